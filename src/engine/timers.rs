//! Timers that are due.

use super::Engine;
use crate::{
    CloseReason, ConnId, Handler, TimerId,
    api::handler::Timer,
    core::{connection::Overdue, heartbeat::AWAY},
    net::Net,
    table::{broadcasts::Source, clock::Alarm, slot::Phase, state::State},
};

/// Timers that run in one turn. A million at the same tick must not keep the sockets waiting.
const TIMERS_PER_TURN: usize = 1024;

impl<H: Handler, N: Net> Engine<H, N> {
    pub(super) fn run_timers(&mut self) {
        self.state.clock.advance();
        self.state.fanouts.begin(Source::Other);
        for _ in 0..TIMERS_PER_TURN {
            if self.state.fanouts.is_step_over() {
                return;
            }
            let Some((key, alarm)) = self.state.clock.pop_due() else { return };
            match alarm {
                Alarm::Watch(id) => {
                    self.state.serving.begin(id);
                    self.on_watch(id);
                    self.state.serving.end();
                }
                Alarm::Call(id, call) => {
                    self.state.serving.begin(id);
                    self.state.give_up(id, call, true);
                    self.state.serving.end();
                }
                Alarm::User { token, conn } => {
                    if let Some(conn) = conn {
                        self.state.forget_timer(conn, key);
                    }
                    let timer = Timer { id: TimerId(key), token, conn };
                    let panicked =
                        self.with_context("on_timer", |handler, cx| handler.on_timer(cx, timer));
                    if let (Some(text), Some(conn)) = (panicked, conn) {
                        self.state.end_panicked(conn, text);
                    }
                }
                Alarm::Dial(id) => {
                    self.state.serving.begin(id);
                    self.desk().on_dial_alarm(id);
                    self.state.serving.end();
                }
                Alarm::Accept(id) => {
                    if let Some(listener) = self.state.listeners.get_mut(id) {
                        listener.end_rest();
                    }
                }
                Alarm::Stop => self.cut_stop(),
            }
        }
    }

    /// A deadline of the connection may be due.
    fn on_watch(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        slot.watch = None;
        if !slot.phase.is_connected() {
            return;
        }
        // If the socket takes bytes now, it was we who did not write sooner: this step comes before the one
        // that writes, and the loop may have been away. So nobody is judged before one more try.
        let before = slot.link.queued_cost();
        if before > 0 && slot.phase.is_writing() {
            slot.io.is_writable = true;
            self.flush(id);
        }
        let State { slots, pool, clock, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id) else {
            return;
        };
        if let Some(by) = slot.link.close_by()
            && clock.now() >= by
        {
            let is_away = clock.now().saturating_duration_since(by) >= AWAY;
            if !is_away || slot.link.queued_cost() >= before || slot.phase == Phase::Lingering {
                self.state.abort(id, CloseReason::Closed);
                return;
            }
            // We were away, and the peer takes what is left.
            slot.link.close_anew(slot.profile.config.close_timeout, clock.now());
        }
        // Bytes that wait to be read are life, although nobody has looked at them yet.
        if slot.io.is_readable && !slot.can_read() || slot.lists.is_ready || slot.link.has_waiting()
        {
            slot.link.handle_unread(clock.now());
        }
        match slot.link.handle_timeout(&slot.profile.config, pool, clock.now()) {
            Some(Overdue::Abort(reason)) => self.state.abort(id, reason),
            Some(Overdue::Close(reason)) => self.state.close(id, reason),
            Some(Overdue::Leave) => self.state.drain(id, CloseReason::Closed),
            None => {
                if slot.link.has_output() || slot.link.close_by().is_some() {
                    self.state.mark_dirty(id);
                }
                if self.state.get(id).is_some_and(|slot| slot.link.is_layered()) {
                    self.after_layer(id);
                }
                self.state.resume_choked(id);
            }
        }
        self.state.watch(id);
    }
}
