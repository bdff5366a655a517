//! What is known of a dialled connection beside what is known of any.

use std::{io, net::SocketAddr, time::Duration};

use crate::{
    core::{backoff::Backoff, offline::OfflineQueue},
    error::{CloseReason, NetworkError},
    id::TimerKey,
    moment::Moment,
    target::Target,
};

/// What only a dialled connection has.
#[derive(Debug)]
pub(crate) struct Dial<Id> {
    pub(super) target: Target,
    /// The addresses of this round that were not tried yet, the next one last.
    pub(super) addrs: Vec<SocketAddr>,
    /// Tells the answer for this round from one that came too late.
    pub(super) round: u32,
    pub(super) alarm: Option<TimerKey>,
    pub(super) backoff: Backoff,
    pub(super) last_error: NetworkError,
    /// Rounds that failed since the connection was last up, or was dialled.
    pub(super) failed_rounds: u32,
    /// Why the connection was last lost, or could not be made.
    pub(super) last_end: Option<CloseReason>,
    /// What the peer asked for when it went away.
    pub(crate) redial_after: Duration,
    pub(crate) offline: OfflineQueue<Id>,
    /// When this epoch was established.
    pub(super) connected_at: Option<Moment>,
    pub(super) redial: Redial,
    /// The handler was told that the connection goes on, or was given its id.
    pub(crate) is_expected: bool,
}

/// What comes after this round, or this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redial {
    /// Not decided yet: that is done when it has failed, or has ended.
    Open,
    /// The next round.
    At(Moment),
    /// Nothing.
    Never,
}

impl<Id> Dial<Id> {
    pub(crate) fn new(target: Target) -> Self {
        Self {
            target,
            addrs: Vec::new(),
            round: 0,
            alarm: None,
            backoff: Backoff::default(),
            last_error: NetworkError::new(
                io::ErrorKind::NotConnected,
                "the first attempt is under way",
            ),
            failed_rounds: 0,
            last_end: None,
            redial_after: Duration::ZERO,
            offline: OfflineQueue::default(),
            connected_at: None,
            redial: Redial::Open,
            is_expected: true,
        }
    }

    /// Why the connection is down.
    pub(crate) fn reason(&self) -> CloseReason {
        match &self.last_end {
            Some(reason) => reason.clone(),
            None => CloseReason::DialFailed(self.last_error.clone()),
        }
    }

    /// The connection was lost, or could not be made.
    pub(crate) fn note_end(&mut self, reason: CloseReason) {
        self.last_end = Some(reason);
    }

    pub(crate) const fn target(&self) -> &Target {
        &self.target
    }

    /// A round has failed. How many have since the connection was last up, or was dialled.
    pub(crate) const fn note_failed_round(&mut self) -> u32 {
        self.failed_rounds = self.failed_rounds.saturating_add(1);
        self.failed_rounds
    }

    /// There will be no other round, whatever the policy says.
    pub(crate) const fn give_up(&mut self) {
        self.redial = Redial::Never;
    }

    /// Whether there may be another round.
    pub(crate) const fn is_to_go_on(&self) -> bool {
        !matches!(self.redial, Redial::Never)
    }

    /// When the next round begins, if there is one and that was decided.
    pub(crate) const fn redial_at(&self) -> Option<Moment> {
        match self.redial {
            Redial::At(at) => Some(at),
            Redial::Open | Redial::Never => None,
        }
    }
}
