//! Stopping: all of the reactor, or a listener with what it accepted.
//!
//! To drain a connection takes a microsecond, and there may be a hundred thousand. So a walk over all of
//! them takes some in each turn.

use std::time::Duration;

use super::{
    desk::Desk,
    ended_call::AwaitsEnd,
    state::{Alarm, State},
};
use crate::{CloseReason, DrainReport, ListenerId, close_mode::CloseMode, protocol::Protocol};

/// Slots that one turn looks at, to drain their connections.
const DRAINS_PER_TURN: usize = 1024;

/// How far stopping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopPhase {
    Running,
    /// Connections drain.
    Stopping,
    /// Every connection is gone.
    Stopped,
}

/// A walk over all slots, which drains their connections.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// Only what this listener accepted.
    listener: Option<ListenerId>,
    /// The slot to look at next.
    next: usize,
}

/// A listener that is closed, and whose connections are to end.
#[derive(Debug)]
pub(crate) struct Drain {
    pub(crate) listener: ListenerId,
    /// Connections that have not ended.
    pub(crate) left: usize,
    pub(crate) report: DrainReport,
}

impl<P: Protocol, W: AwaitsEnd> Desk<'_, P, W> {
    /// The connections that a closed listener accepted drain; there are so many.
    pub(crate) fn begin_drain(&mut self, listener: ListenerId, connections: usize) {
        let report = DrainReport::default();
        self.state.drains.push(Drain { listener, left: connections, report });
        self.state.sweeps.push_back(Sweep { listener: Some(listener), next: 0 });
    }

    /// No new work from now on: listeners close, connections drain, for up to `timeout`. Repeated, it
    /// can only get sooner.
    pub(crate) fn begin_stop(&mut self, timeout: Duration) {
        match self.state.stop {
            StopPhase::Running => {}
            StopPhase::Stopping => return self.state.stop_within(timeout),
            StopPhase::Stopped => return,
        }
        self.state.stop = StopPhase::Stopping;
        let listeners: Vec<_> = self.state.listeners.iter().map(|listener| listener.id).collect();
        for id in listeners {
            self.drop_listener(id);
        }
        self.state.sweeps.push_back(Sweep { listener: None, next: 0 });
        self.state.stop_within(timeout);
    }
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    /// Whether new work is taken.
    pub(crate) fn is_running(&self) -> bool {
        self.stop == StopPhase::Running
    }

    /// Stopping is cut after this time, if it is not to be cut sooner.
    fn stop_within(&mut self, timeout: Duration) {
        let Some(by) = self.now.checked_add(timeout) else { return };
        match self.stop_alarm {
            Some((_, before)) if before <= by => return,
            Some((key, _)) => _ = self.wheel.cancel(key),
            None => {}
        }
        self.stop_alarm = Some((self.wheel.insert(by, Alarm::Stop), by));
    }

    /// The drain of a listener, if there is one.
    pub(crate) fn drain_mut(&mut self, listener: Option<ListenerId>) -> Option<&mut Drain> {
        self.drains.iter_mut().find(|drain| Some(drain.listener) == listener)
    }

    /// Drains the next connections of the walks under way.
    pub(crate) fn sweep(&mut self) {
        let mut budget = DRAINS_PER_TURN;
        while budget > 0
            && let Some(Sweep { listener, next }) = self.sweeps.front_mut()
        {
            let (only, slot) = (*listener, *next);
            *next += 1;
            budget -= 1;
            if slot >= self.slots.capacity() {
                self.sweeps.pop_front();
                continue;
            }
            let Some(slot) = self.slots.get(slot) else { continue };
            if only.is_some() && slot.listener != only {
                continue;
            }
            let id = slot.id;
            let reason = if only.is_some() { CloseReason::Closed } else { CloseReason::Stopped };
            self.serving = Some(id);
            self.end_for_good(id, CloseMode::Drain, reason);
            self.serving = None;
        }
    }
}
