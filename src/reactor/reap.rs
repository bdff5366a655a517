//! The end of a turn: connections whose epoch ended are told and put away.

use std::time::Duration;

use super::{
    net::Net,
    slots::{Drain, EndedCall, Phase, StopPhase},
    sockets::Sockets,
    turn::Engine,
};
use crate::{CloseReason, CloseReport, ConnId, Handler, Incident};

impl<H: Handler, N: Net> Engine<H, N> {
    /// Ends calls, tells the handler, schedules redials, gives slots back.
    pub(super) fn reap_all(&mut self) {
        self.run_ended_calls();
        // A callback of this step may end more connections; they are reaped in this turn, too.
        while !self.state.doomed.is_empty() {
            for id in std::mem::take(&mut self.state.doomed) {
                self.reap(id);
                self.run_ended_calls();
            }
        }
        self.report_undelivered();
        self.report_drained();
    }

    /// Runs the callbacks of calls that ended without a reply.
    fn run_ended_calls(&mut self) {
        while !self.state.ended.is_empty() {
            for EndedCall { conn, callback, error } in std::mem::take(&mut self.state.ended) {
                self.with_conn(conn, |handler, conn| callback(handler.as_any(), conn, Err(error)));
            }
        }
    }

    fn reap(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        let is_over = slot.is_doomed;
        if is_over {
            self.sockets.close(id.slot());
            self.state.end_calls(id);
            self.run_ended_calls();
        }
        let Some(slot) = self.state.get_mut(id) else { return };
        let requests = slot.link.requests_in_flight() as u64;
        for is_cancelled in slot.link.take_requests() {
            is_cancelled.store(true, std::sync::atomic::Ordering::Release);
        }
        // Before the handler is told, so that the report says when the next round begins.
        let reason = slot.fate.as_deref().cloned().unwrap_or(CloseReason::Closed);
        let was_up = slot.phase >= Phase::Open;
        let is_told = std::mem::replace(&mut slot.is_told, false);
        if !was_up
            && self.state.awaited.iter().any(|(awaited, _)| *awaited == id)
            && let Some(slot) = self.state.get_mut(id)
        {
            // Whoever waits for the first attempt is told that it failed, and has no id to close.
            slot.is_final = true;
        }
        let redial_in = if is_over { self.state.next_round(id) } else { None };
        if was_up && is_told {
            self.tell(id, reason.clone(), requests, redial_in);
        }
        if !is_over {
            return;
        }
        if !was_up {
            self.state.tell_awaiters(id, Some(&reason));
            self.tell_dial_failed(id, reason, redial_in);
        }
        match (redial_in, self.state.get(id)) {
            (Some(delay), Some(slot)) if !slot.is_final => {
                if let Some(queue) = self.state.get_mut(id).and_then(|slot| slot.link.out.take()) {
                    self.state.pool.give(queue);
                }
                self.state.await_round(id, delay);
            }
            _ => self.finish(id),
        }
    }

    /// Tells the handler that an epoch has ended.
    fn tell(
        &mut self,
        id: ConnId,
        reason: CloseReason,
        requests: u64,
        redial_in: Option<Duration>,
    ) {
        let Some(slot) = self.state.get_mut(id) else { return };
        let (unsent_messages, unsent_bytes) = match &slot.link.out {
            Some(queue) => (queue.messages(), queue.bytes() as u64),
            None => (0, 0),
        };
        let (calls, listener) = (u64::from(slot.cut_calls), slot.listener);
        self.state.stats.disconnected += 1;
        self.state.stats.undelivered += unsent_messages;
        let report =
            CloseReport { reason, unsent_messages, unsent_bytes, calls, requests, redial_in };
        if self.state.stop != StopPhase::Running {
            self.state.stop_report.add(&report);
        }
        if let Some(drain) = self.state.drain_mut(listener) {
            drain.report.add(&report);
        }
        log::debug!("connection {id}: {report}");
        self.with_conn(id, |handler, conn| handler.on_disconnect(conn, &report));
    }

    fn tell_dial_failed(&mut self, id: ConnId, reason: CloseReason, retry_in: Option<Duration>) {
        let Some(dial) = self.state.get(id).and_then(|slot| slot.dial.as_ref()) else { return };
        let CloseReason::DialFailed(error) = reason else { return };
        let incident = Incident::DialFailed {
            conn: id,
            target: dial.target().to_string(),
            attempt: dial.attempts(),
            error,
            retry_in,
        };
        self.report(&incident);
    }

    /// The connection is gone for good.
    fn finish(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        let listener = slot.listener;
        if let Some(dial) = &mut slot.dial {
            let mut offline = std::mem::take(&mut dial.offline);
            while let Some(kept) = offline.pop() {
                self.state.note_undelivered(id, kept.message);
            }
        }
        self.state.discard(id);
        if let Some(drain) = self.state.drain_mut(listener) {
            drain.left -= 1;
        }
    }

    fn report_undelivered(&mut self) {
        if self.state.undelivered.is_empty() {
            return;
        }
        for (conn, bodies) in std::mem::take(&mut self.state.undelivered) {
            let messages = bodies.len() as u64;
            self.state.handed_back = bodies;
            self.report(&Incident::Undelivered { conn, messages });
            self.state.handed_back = Vec::new();
        }
    }

    /// Tells of listeners whose last connection has ended.
    fn report_drained(&mut self) {
        while let Some(place) = self.state.drains.iter().position(|drain| drain.left == 0) {
            let Drain { listener, report, .. } = self.state.drains.remove(place);
            self.report(&Incident::ListenerDrained { listener, report });
        }
    }

    // ---- stopping ----

    /// Stopping is over when every connection is gone.
    pub(super) fn finish_stop(&mut self) {
        if self.state.stop != StopPhase::Stopping || !self.state.slots.is_empty() {
            return;
        }
        if let Some(key) = self.state.stop_alarm.take() {
            self.state.wheel.cancel(key);
        }
        self.state.stop = StopPhase::Stopped;
        for (conn, message) in self.refuse_commands() {
            self.state.note_undelivered(conn, message);
        }
        self.report_undelivered();
        self.with_context("on_stop", H::on_stop);
    }

    /// Stopping took too long: what is left is dropped.
    pub(super) fn cut_stop(&mut self) {
        self.state.stop_alarm = None;
        let ids: Vec<_> = self.state.slots.iter().map(|(_, slot)| slot.id).collect();
        for id in ids {
            self.state.doom(id, CloseReason::Stopped);
        }
    }
}
