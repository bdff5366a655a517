//! The end of a turn: connections that ended are told and put away.
//!
//! This is the one place that tells the handler of an end: by `on_disconnect` if it knows that the
//! connection was up, else as an incident. Each id that was given out ends with one of them that says
//! that nothing follows.

use std::time::Duration;

use super::Engine;
use crate::{
    CloseReason, CloseReport, ConnId, Handler, Incident,
    api::waiter::Waiter,
    core::requests::Held,
    error::NetworkError,
    net::{Net, sockets::Sockets},
    table::{
        ended_call::EndedCall,
        planted::{Bug, is_planted},
        slot::{Phase, Told},
        state::State,
    },
};

/// Connections of which one turn tells, and which it puts away. What a callback ends meanwhile is left
/// to the next turn: a handler that dials anew whenever a dial fails must not keep the loop.
const ENDS_PER_TURN: usize = 1024;

impl<H: Handler, N: Net> Engine<H, N> {
    /// Ends calls, tells the handler, schedules redials, gives slots back.
    pub(super) fn reap_all(&mut self) {
        if self.state.work.amounts().ended_calls > 0 {
            self.run_ended_calls();
        }
        for _ in 0..self.state.work.amounts().ended.min(ENDS_PER_TURN) {
            let Some(id) = self.state.work.pop_ended() else { break };
            self.state.serving.begin(id);
            self.reap(id);
            self.state.serving.end();
        }
        if !self.state.losses.is_empty() {
            self.report_undelivered();
        }
        if self.state.stopping.has_drains() {
            self.report_drained();
        }
    }

    /// Runs the callbacks of calls that ended without a reply. Those that they end are left for later.
    fn run_ended_calls(&mut self) {
        for _ in 0..self.state.work.amounts().ended_calls {
            let Some(ended) = self.state.work.pop_ended_call() else { return };
            let EndedCall { conn, waiter, error } = ended;
            match waiter {
                Waiter::Callback(callback) => {
                    self.with_conn(conn, |handler, conn| {
                        callback(handler.as_any(), conn, Err(error));
                    });
                }
                Waiter::Caller(caller) => caller.end(Err(error)),
            }
        }
    }

    fn reap(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        slot.lists.is_ended = false;
        let is_over = slot.phase == Phase::Dropped;
        if is_over {
            self.sockets.close(id.slot());
        }
        self.state.end_calls(id);
        self.run_ended_calls();
        self.tell_end(id);
        if is_over {
            self.put_away(id);
        }
    }

    /// Tells the handler that the epoch has ended, or never began; once.
    fn tell_end(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        let told = std::mem::replace(&mut slot.epoch.told, Told::End);
        if told == Told::End {
            return;
        }
        let held = slot.link.held();
        let requests = (slot.link.requests_awaited() - held.messages) as u64;
        for is_cancelled in slot.link.take_requests() {
            is_cancelled.store(true, std::sync::atomic::Ordering::Release);
        }
        let reason = slot.epoch.end_reason().cloned().unwrap_or(CloseReason::Closed);
        if let Some(dial) = &mut slot.dial {
            dial.note_end(reason.clone());
        }
        if told == Told::Nothing
            && self.state.awaiters.is_awaited(id)
            && let Some(slot) = self.state.get_mut(id)
            && let Some(dial) = &mut slot.dial
        {
            // `connect_and_wait` returns an error and no id, so nobody could close the connection later:
            // do not redial.
            dial.give_up();
            dial.is_expected = false;
        }
        let redial_in = self.state.decide_redial(id);
        self.state.publish(id);
        if told == Told::Up {
            self.tell_disconnect(id, reason, (requests, held), redial_in);
        } else {
            self.state.awaiters.tell(id, Some(&reason));
            self.tell_failure(id, reason, redial_in);
        }
    }

    /// Tells the handler that an epoch of which it knows has ended.
    fn tell_disconnect(
        &mut self,
        id: ConnId,
        reason: CloseReason,
        (requests, held): (u64, Held),
        redial_in: Option<Duration>,
    ) {
        let Some(slot) = self.state.get_mut(id) else { return };
        if let Some(dial) = &mut slot.dial {
            dial.is_expected = redial_in.is_some();
        }
        let (unsent_messages, unsent_bytes) = slot.link.unsent();
        let unsent_messages = unsent_messages + held.messages as u64;
        let unsent_bytes = (unsent_bytes + held.bytes) as u64;
        let is_wrong = is_planted(Bug::ReportsFewerUnsent) && unsent_messages > 0;
        let unsent_messages = unsent_messages - u64::from(is_wrong);
        let (calls, listener) = (u64::from(slot.epoch.cut_calls()), slot.listener);
        self.state.stats.disconnected += 1;
        self.state.stats.undelivered += unsent_messages;
        let report =
            CloseReport { reason, unsent_messages, unsent_bytes, calls, requests, redial_in };
        self.state.stopping.count_end(listener, &report);
        log::debug!("connection {id}: {report}");
        self.with_conn(id, |handler, conn| handler.on_disconnect(conn, &report));
    }

    /// Tells the handler of a connection that never came up.
    fn tell_failure(&mut self, id: ConnId, reason: CloseReason, retry_in: Option<Duration>) {
        // A connection that the application itself ended has not failed.
        if matches!(reason, CloseReason::Closed | CloseReason::Aborted | CloseReason::Stopped) {
            return;
        }
        let State { slots, stats, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id) else {
            return;
        };
        let incident = if let Some(dial) = &mut slot.dial {
            dial.is_expected = retry_in.is_some();
            stats.dials_failed += 1;
            Incident::DialFailed {
                conn: id,
                target: dial.target().to_string(),
                attempt: dial.note_failed_round(),
                error: match reason {
                    CloseReason::DialFailed(error) => error,
                    other => NetworkError::from(&std::io::Error::from(other)),
                },
                retry_in,
            }
        } else {
            stats.handshakes_failed += 1;
            Incident::HandshakeFailed {
                conn: id,
                listener: slot.listener,
                peer: slot.peer.get().into(),
                reason,
            }
        };
        self.report(&incident);
    }

    /// The epoch is over and told: the next round is scheduled, or the slot is given back.
    fn put_away(&mut self, id: ConnId) {
        let State { slots, pool, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id) else {
            return;
        };
        slot.link.give_queue(pool);
        match slot.dial.as_ref().and_then(|dial| dial.redial_at()) {
            Some(at) => self.state.await_round(id, at),
            None => self.finish(id),
        }
    }

    /// The connection is gone for good.
    pub(super) fn finish(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        let listener = slot.listener;
        let mut gone = None;
        if let Some(dial) = &mut slot.dial {
            if dial.is_expected {
                gone = Some(Incident::Gone { conn: id, target: dial.target().to_string() });
            }
            let mut offline = std::mem::take(&mut dial.offline);
            while let Some(kept) = offline.pop() {
                self.state.note_undelivered(id, kept.message);
            }
        }
        self.state.stopping.count_gone(listener);
        self.state.discard(id);
        if let Some(incident) = gone {
            self.report(&incident);
        }
    }

    pub(super) fn report_undelivered(&mut self) {
        for (conn, bodies) in self.state.losses.take() {
            let messages = bodies.len() as u64;
            self.state.losses.offer(bodies);
            self.report(&Incident::Undelivered { conn, messages });
            self.state.losses.offer(Vec::new());
        }
    }

    /// Tells of listeners whose last connection has ended.
    fn report_drained(&mut self) {
        while let Some((listener, report)) = self.state.stopping.take_drained() {
            self.report(&Incident::ListenerDrained { listener, report });
        }
    }
}
