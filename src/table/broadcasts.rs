//! The broadcasts under way, and how far each connection has come in them. See [`fanout`](super::fanout).

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;

use super::{groups::Groups, profile::Profile, slot::Slot};
use crate::{
    ConnId, Stats, Tagged, drop_quietly::drop_quietly, error::panic_text, protocol::Protocol,
};

/// Messages of broadcasts, each to one receiver, that one turn queues: at about 100 ns each a turn grows
/// by some 25 µs, and one broadcast to 10 000 receivers takes 40 turns.
const DELIVERIES_PER_TURN: usize = 256;

/// Slots, and broadcasts for each of them, that one turn looks at to find those deliveries.
const LOOKS_PER_TURN: usize = 8192;

/// Deliveries out of turn, before something else that is sent, after which a step of the turn stops
/// early.
const CATCH_UPS_PER_STEP: usize = 4096;

/// Broadcasts under way that commands have made, and as many that messages have made, from which on the
/// loop takes no more of what makes them.
const MARK: usize = 64;

/// Broadcasts under way in all. One more makes the oldest be given out at once.
const MAX_FANOUTS: usize = 65_536;

/// In the place of how far a connection has come: none is up in this slot.
pub(super) const NOBODY: u64 = u64::MAX;

/// The bounds above. A test has smaller ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) deliveries_per_turn: usize,
    pub(crate) looks_per_turn: usize,
    pub(crate) catch_ups_per_step: usize,
    pub(crate) mark: usize,
    pub(crate) most: usize,
}

impl Limits {
    const DEFAULT: Self = Self {
        deliveries_per_turn: DELIVERIES_PER_TURN,
        looks_per_turn: LOOKS_PER_TURN,
        catch_ups_per_step: CATCH_UPS_PER_STEP,
        mark: MARK,
        most: MAX_FANOUTS,
    };
}

/// What makes a broadcast. Each has a mark of its own, so that none keeps another from going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// A command of another thread.
    Command,
    /// What a peer has sent.
    Message,
    /// A timer, a connection that came or went, or the owner of the loop between two turns.
    #[default]
    Other,
}

/// The broadcasts under way, and how far each connection has come.
#[derive(Debug)]
pub(crate) struct Fanouts<P> {
    /// The oldest first.
    pub(super) log: VecDeque<Fanout<P>>,
    /// The number of the oldest: they are numbered over the life of the reactor.
    pub(super) first: u64,
    /// For each slot the number of the broadcast that its connection looks at next, or [`NOBODY`].
    pub(super) heard: Vec<u64>,
    /// Connections that are up.
    pub(super) up: usize,
    /// Grows when a connection comes up, or is so no more.
    pub(super) version: u64,
    /// Connections that went, and what of the log they had not come to.
    pub(super) gone: BTreeMap<ConnId, Range<u64>>,
    /// The slot that is looked at next.
    pub(super) walk: usize,
    /// How many are under way, by [`Source`].
    pub(super) waiting: [usize; 3],
    pub(super) source: Source,
    /// Deliveries out of turn in this step, and what costs as much.
    pub(super) catch_ups: usize,
    /// Connections that are not read because of the mark: those that were not read since the last
    /// release, and those that were.
    pub(super) held: Vec<ConnId>,
    pub(super) sated: Vec<ConnId>,
    pub(crate) groups: Groups,
    pub(crate) limits: Limits,
    /// Deliveries so far.
    #[cfg(test)]
    pub(crate) deliveries: usize,
}

/// A broadcast under way.
#[derive(Debug)]
pub(super) struct Fanout<P> {
    pub(super) tag: u32,
    pub(super) body: Bytes,
    pub(super) to: Receivers,
    /// Receivers that were neither served nor given up.
    pub(super) left: usize,
    /// The place in the list that is looked at next.
    pub(super) next: usize,
    pub(super) source: Source,
    /// The frame, for each protocol that was met; `None` if encoding it panicked.
    pub(super) frames: Vec<(Arc<Profile<P>>, Option<Bytes>)>,
}

/// Who receives a broadcast, of those that were up when it was made.
#[derive(Debug)]
pub(super) enum Receivers {
    All,
    AllBut(ConnId),
    /// These, by slot.
    Only(Arc<[ConnId]>),
}

impl Receivers {
    pub(super) fn include(&self, id: ConnId) -> bool {
        match self {
            Self::All => true,
            Self::AllBut(but) => id != *but,
            Self::Only(list) => list.binary_search(&id).is_ok(),
        }
    }
}

impl<P> Default for Fanouts<P> {
    fn default() -> Self {
        Self {
            log: VecDeque::new(),
            first: 0,
            heard: Vec::new(),
            up: 0,
            version: 0,
            gone: BTreeMap::new(),
            walk: 0,
            waiting: [0; 3],
            source: Source::Other,
            catch_ups: 0,
            held: Vec::new(),
            sated: Vec::new(),
            groups: Groups::default(),
            limits: Limits::DEFAULT,
            #[cfg(test)]
            deliveries: 0,
        }
    }
}

impl<P> Fanouts<P> {
    /// Whether nothing is under way, and nothing waits for that.
    pub(crate) fn is_empty(&self) -> bool {
        self.log.is_empty() && self.held.is_empty() && self.sated.is_empty()
    }

    /// How many are under way.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.log.len()
    }

    /// The number of the next broadcast.
    pub(super) fn end(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    /// A connection came up.
    pub(crate) fn came(&mut self, id: ConnId) {
        let (slot, end) = (id.slot() as usize, self.end());
        if slot >= self.heard.len() {
            self.heard.resize(slot + 1, NOBODY);
        }
        self.heard[slot] = end;
        self.up += 1;
        self.version += 1;
    }

    /// A connection is no longer up, if it was. What it has not got is kept for it, or reported, when its
    /// turn comes.
    pub(crate) fn went(&mut self, id: ConnId) {
        let end = self.end();
        let Some(heard) = self.heard.get_mut(id.slot() as usize) else { return };
        let next = std::mem::replace(heard, NOBODY);
        if next == NOBODY {
            return;
        }
        self.up -= 1;
        self.version += 1;
        let next = next.max(self.first);
        if next < end {
            self.gone.insert(id, next..end);
        }
    }

    /// A step of the turn begins.
    pub(crate) const fn begin(&mut self, source: Source) {
        self.source = source;
        self.catch_ups = 0;
    }

    /// Whether so much was sent out of turn that the step is to stop here.
    #[inline]
    pub(crate) const fn is_step_over(&self) -> bool {
        self.catch_ups >= self.limits.catch_ups_per_step
    }

    /// Whether so many of this source are under way that no more are taken.
    #[inline]
    pub(crate) const fn is_full(&self, source: Source) -> bool {
        self.waiting[source as usize] >= self.limits.mark
    }

    pub(super) fn push(&mut self, fanout: Fanout<P>) {
        self.waiting[fanout.source as usize] += 1;
        self.log.push_back(fanout);
    }

    /// Takes those that have no receiver left out of the log.
    pub(super) fn drop_finished(&mut self) {
        while self.log.front().is_some_and(|fanout| fanout.left == 0)
            && let Some(fanout) = self.log.pop_front()
        {
            self.first += 1;
            self.waiting[fanout.source as usize] -= 1;
            // The body is the application's.
            drop_quietly(|| drop(fanout));
        }
        if self.log.is_empty() {
            // What is left of these was for others.
            self.gone.clear();
        }
    }

    /// One delivery of the broadcast of this number was made, or given up.
    pub(super) fn tick_off(&mut self, number: u64) {
        self.log[place(number, self.first)].left -= 1;
        #[cfg(test)]
        {
            self.deliveries += 1;
        }
    }
}

/// Where in the log a broadcast is; not before its beginning.
pub(super) fn place(number: u64, first: u64) -> usize {
    usize::try_from(number - first).expect("the log is in memory")
}

impl<P: Protocol> Fanout<P> {
    pub(super) fn message(&self) -> Tagged<Bytes> {
        Tagged(self.tag, self.body.clone())
    }

    /// Which of the frames is for this receiver; it is encoded if its protocol was not met before. A
    /// protocol of the application's that panics costs its receivers this message.
    #[inline]
    pub(super) fn encode_for<W>(&mut self, slot: &mut Slot<P, W>, stats: &mut Stats) -> usize {
        let is_known = |(profile, _): &(Arc<Profile<P>>, _)| Arc::ptr_eq(profile, &slot.profile);
        match self.frames.iter().position(is_known) {
            Some(place) => place,
            None => self.encode(slot, stats),
        }
    }

    /// As [`encode_for`](Self::encode_for), of connections that were made with other settings. The
    /// protocol is the application's, and may panic.
    #[cold]
    fn encode<W>(&mut self, slot: &mut Slot<P, W>, stats: &mut Stats) -> usize {
        let encoded = catch_unwind(AssertUnwindSafe(|| {
            let is_equal =
                |(profile, _): &(Arc<Profile<P>>, _)| profile.protocol == slot.profile.protocol;
            if let Some(place) = self.frames.iter().position(is_equal) {
                return Ok(place);
            }
            stats.encoded_broadcasts += 1;
            Err(slot.link.encode_push(self.tag, &self.body))
        }));
        let frame = match encoded {
            Ok(Ok(place)) => return place,
            Ok(Err(frame)) => Some(frame),
            Err(panic) => {
                log::error!("encoding a broadcast panicked: {}", panic_text(&*panic));
                stats.panics += 1;
                None
            }
        };
        self.frames.push((slot.profile.clone(), frame));
        self.frames.len() - 1
    }
}
