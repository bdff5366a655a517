//! Stopping: all of the reactor, or a listener with what it accepted.
//!
//! To drain a connection takes a microsecond, and there may be a hundred thousand. So a walk over all of
//! them takes some in each turn.

use std::time::Duration;

use super::{clock::Alarm, desk::Desk, ended_call::AwaitsEnd, state::State, stopping::StopPhase};
use crate::{CloseReason, close_mode::CloseMode, protocol::Protocol};

/// Slots that one turn looks at, to drain their connections.
const DRAINS_PER_TURN: usize = 1024;

impl<P: Protocol, W: AwaitsEnd> Desk<'_, P, W> {
    /// No new work from now on: listeners close, connections drain, for up to `timeout`. Repeated, it
    /// can only get sooner.
    pub(crate) fn begin_stop(&mut self, timeout: Duration) {
        match self.state.stopping.phase() {
            StopPhase::Running => {}
            StopPhase::Stopping => return self.state.stop_within(timeout),
            StopPhase::Stopped => return,
        }
        let listeners: Vec<_> = self.state.listeners.iter().map(|listener| listener.id).collect();
        for id in listeners {
            self.drop_listener(id);
        }
        self.state.stopping.begin();
        self.state.stop_within(timeout);
    }
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    /// Whether new work is taken.
    pub(crate) fn is_running(&self) -> bool {
        self.stopping.phase() == StopPhase::Running
    }

    /// Stopping is cut after this time, if it is not to be cut sooner.
    fn stop_within(&mut self, timeout: Duration) {
        let Some(by) = self.clock.after(timeout) else { return };
        match self.stopping.alarm() {
            Some((_, before)) if before <= by => return,
            Some((key, _)) => _ = self.clock.disarm(key),
            None => {}
        }
        self.stopping.set_alarm(Some((self.clock.arm(by, Alarm::Stop), by)));
    }

    /// Drains the next connections of the walks under way.
    pub(crate) fn sweep(&mut self) {
        for _ in 0..DRAINS_PER_TURN {
            if !self.stopping.has_sweeps() {
                return;
            }
            let Some((slot, only)) = self.stopping.next_to_drain(self.slots.end()) else {
                continue;
            };
            let Some(slot) = self.slots.at(slot) else { continue };
            if only.is_some() && slot.listener != only {
                continue;
            }
            let id = slot.id;
            let reason = if only.is_some() { CloseReason::Closed } else { CloseReason::Stopped };
            self.serving.begin(id);
            self.end_for_good(id, CloseMode::Drain, reason);
            self.serving.end();
        }
    }
}
