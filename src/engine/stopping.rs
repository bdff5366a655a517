//! The end of a stop.

use super::Engine;
use crate::{CloseReason, Handler, close_mode::CloseMode, net::Net, table::stopping::StopPhase};

impl<H: Handler, N: Net> Engine<H, N> {
    /// Stopping took too long: what is left is dropped.
    pub(super) fn cut_stop(&mut self) {
        self.state.stopping.cut();
        for id in self.state.slots.ids() {
            self.state.end_for_good(id, CloseMode::Abort, CloseReason::Stopped);
        }
    }

    /// Stopping is over when every connection is gone, and every broadcast was given out or reported.
    pub(super) fn finish_stop(&mut self) {
        if self.state.stopping.phase() != StopPhase::Stopping
            || !self.state.slots.is_empty()
            || !self.state.fanouts.is_empty()
        {
            return;
        }
        if let Some((key, _)) = self.state.stopping.alarm() {
            self.state.clock.disarm(key);
        }
        self.state.stopping.end();
        for (conn, message) in self.refuse_commands() {
            self.state.note_undelivered(conn, message);
        }
        self.report_undelivered();
        self.with_context("on_stop", H::on_stop);
    }
}
