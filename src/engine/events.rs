//! Readiness events, and streams that the application brought.

use super::Engine;
use crate::{
    ConnId, Handler,
    error::NetworkError,
    net::{Event, Net, Token},
    table::slot::{PeersEnd, Phase},
};

impl<H: Handler, N: Net> Engine<H, N> {
    pub(super) fn handle_events(&mut self) {
        while let Some(&event) = self.events.get(self.next_event) {
            self.next_event += 1;
            if let Some(slot) = event.token.slot() {
                self.handle_event(slot, event);
            } else if let Some(listener) = self.state.listeners.of_token(event.token) {
                listener.note_event();
            }
        }
    }

    fn handle_event(&mut self, slot: usize, event: Event) {
        let found = self.state.slots.at_mut(slot);
        let Some(slot) = found.filter(|slot| Token::from(slot.id) == event.token) else { return };
        let id = slot.id;
        slot.io.is_readable |= event.readable;
        if event.read_closed {
            slot.io.peers_end = slot.io.peers_end.max(PeersEnd::Told);
        }
        if !slot.phase.is_connected() {
            // Bytes that are here are read when the connection is open; no other event will tell of them.
            if slot.phase == Phase::Connecting && slot.is_dialled() {
                self.state.serving.begin(id);
                self.handle_connect(id);
                self.state.serving.end();
            }
            return;
        }
        slot.io.is_writable |= event.writable;
        if event.writable && slot.link.has_output() {
            self.state.mark_dirty(id);
        }
        if event.readable {
            self.state.mark_ready(id);
        }
    }

    /// A connect may be decided.
    fn handle_connect(&mut self, id: ConnId) {
        let Some((net, stream)) = self.sockets.stream(id.slot()) else { return };
        match net.connected(stream) {
            Ok(None) => {}
            Ok(Some(peer)) => {
                self.state.cancel_dial_alarm(id);
                if let Some(slot) = self.state.get_mut(id) {
                    slot.peer = peer.into();
                }
                self.establish(id);
            }
            Err(error) => self.desk().fail_attempt(id, NetworkError::from(&error)),
        }
    }

    pub(super) fn open_arrivals(&mut self) {
        for _ in 0..self.state.work.amounts().arrivals {
            let Some(id) = self.state.work.pop_arrival() else { return };
            self.establish(id);
        }
    }
}
