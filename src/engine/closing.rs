//! The steps of an [end](crate::table::close) that need the socket.

use super::Engine;
use crate::{
    CloseReason, ConnId, Handler,
    net::Net,
    table::slot::{PeersEnd, Phase},
};

impl<H: Handler, N: Net> Engine<H, N> {
    /// A connection that ends takes its next step when there is nothing left to write.
    pub(super) fn go_on_closing(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.link.holds_output() || slot.phase == Phase::Open {
            return;
        }
        // A draining connection was up so far, so it gets the broadcasts that were made meanwhile.
        self.state.catch_up(id);
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.link.holds_output() {
            return;
        }
        let is_idle = slot.link.requests_awaited() == 0
            && slot.link.calls_in_flight() == 0
            && (slot.io.is_eof() || !slot.link.is_noticed());
        match slot.phase {
            Phase::Closing => {}
            Phase::Draining if is_idle => {}
            _ => return,
        }
        if slot.link.finish_layer() {
            // Behind the layer's last word nothing is sent.
            slot.phase = Phase::Closing;
            self.state.fanouts.went(id);
            self.state.publish(id);
            self.state.end_calls(id);
            self.state.mark_dirty(id);
        } else if slot.io.peers_end == PeersEnd::Read {
            self.state.abort(id, CloseReason::Closed);
        } else {
            self.linger(id);
        }
    }

    /// All was said: shuts our direction, and waits for the peer to close, too.
    fn linger(&mut self, id: ConnId) {
        let now = self.state.clock.now();
        let shut = self.sockets.stream(id.slot()).map(|(net, stream)| net.shutdown(stream));
        let Some(slot) = self.state.get_mut(id) else { return };
        if !matches!(shut, Some(Ok(()))) {
            return self.state.abort(id, CloseReason::Closed);
        }
        slot.phase = Phase::Lingering;
        slot.io.is_readable = true;
        slot.link.close_anew(slot.profile.config.linger, now);
        self.state.fanouts.went(id);
        self.state.publish(id);
        self.state.end_calls(id);
        self.state.watch(id);
        self.state.mark_ready(id);
        // The handler is told now; the socket stays until the peer has closed, too.
        self.state.note_end(id);
    }
}
