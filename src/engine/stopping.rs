//! The end of a stop.

use super::Engine;
use crate::{CloseReason, Handler, close_mode::CloseMode, net::Net, table::stop::StopPhase};

impl<H: Handler, N: Net> Engine<H, N> {
    /// Stopping took too long: what is left is dropped.
    pub(super) fn cut_stop(&mut self) {
        self.state.stop_alarm = None;
        self.state.sweeps.clear();
        let ids: Vec<_> = self.state.slots.iter().map(|(_, slot)| slot.id).collect();
        for id in ids {
            self.state.end_for_good(id, CloseMode::Abort, CloseReason::Stopped);
        }
    }

    /// Stopping is over when every connection is gone, and every broadcast was given out or reported.
    pub(super) fn finish_stop(&mut self) {
        if self.state.stop != StopPhase::Stopping
            || !self.state.slots.is_empty()
            || !self.state.fanouts.is_empty()
        {
            return;
        }
        if let Some((key, _)) = self.state.stop_alarm.take() {
            self.state.wheel.cancel(key);
        }
        self.state.sweeps.clear();
        self.state.stop = StopPhase::Stopped;
        for (conn, message) in self.refuse_commands() {
            self.state.note_undelivered(conn, message);
        }
        self.report_undelivered();
        self.with_context("on_stop", H::on_stop);
    }
}
