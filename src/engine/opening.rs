//! How a connection comes up.

use super::Engine;
use crate::{
    CloseReason, ConnId, Handler,
    net::Net,
    table::{
        slot::{Phase, Told},
        state::State,
    },
};

impl<H: Handler, N: Net> Engine<H, N> {
    /// The peers are connected: says hello, and waits for the peer's, where the format has one.
    pub(super) fn establish(&mut self, id: ConnId) {
        let State { slots, pool, clock, serving, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id) else {
            return;
        };
        if slot.phase != Phase::Connecting {
            return; // it ended before it began
        }
        let outer = serving.interrupt(id);
        slot.phase = Phase::Greeting;
        slot.io.is_writable = true;
        slot.link.open(&slot.profile.config, pool, clock.now());
        let (is_readable, is_greeted) = (slot.io.is_readable, slot.link.is_greeted());
        if is_readable {
            self.state.mark_ready(id);
        }
        self.state.mark_dirty(id);
        self.state.watch(id);
        if is_greeted {
            self.greeted(id);
        }
        self.state.serving.resume(outer);
    }

    /// The connection is up: the handler is told, and then what was kept for it is sent.
    pub(super) fn greeted(&mut self, id: ConnId) {
        // Broadcasts of an earlier epoch come behind the messages that were kept since.
        self.state.catch_up(id);
        let board = &*self.state.board;
        let slots = &mut self.state.slots;
        let Some(slot) = slots.get_mut(id) else {
            return;
        };
        if slot.phase != Phase::Greeting {
            return;
        }
        slot.phase = Phase::Open;
        self.state.fanouts.came(id);
        slot.epoch.number += 1;
        slot.epoch.told = Told::Up;
        // The peer's limits hold from now on, for other threads, too.
        board.set_max_body(id.slot(), slot.link.body_limit());
        slot.publish(board);
        if slot.is_dialled() {
            self.state.stats.dialled += 1;
            self.state.dial_succeeded(id);
        }
        self.state.watch(id);
        self.state.awaiters.tell(id, None);
        self.with_conn(id, H::on_connect);
        self.state.send_kept(id);
        if !self.state.is_running() {
            // It came while all others were being drained.
            self.state.drain(id, CloseReason::Stopped);
        }
    }
}
