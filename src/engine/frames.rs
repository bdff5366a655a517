//! From bytes to the handler: frames are decoded where they lie, and it is called for each message.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Engine, read::Budget};
use crate::{
    CloseReason, Conn, ConnId, Context, Handler, Message,
    api::{
        handler::{Arrival, Asked, Reply},
        waiter::Waiter,
    },
    core::connection::{Incoming, Input, Received, RemoteError, Route},
    error::{CallError, error_code},
    moment::Moment,
    net::Net,
    protocol::{DecodeError, Head, Kind, Protocol},
    table::{slot::Phase, state::State},
};

type IdOf<H> = <<H as Handler>::Protocol as Protocol>::Id;

impl<H: Handler, N: Net> Engine<H, N> {
    /// Handles the frames that were received, and keeps what is left of them.
    pub(super) fn handle_received(
        &mut self,
        id: ConnId,
        received: Result<Option<Received<'_, IdOf<H>>>, DecodeError>,
        budget: &mut Budget,
    ) {
        let mut received = match received {
            Ok(Some(received)) => received,
            Ok(None) => return,
            Err(error) => return self.state.close(id, CloseReason::Protocol(error)),
        };
        let at = received.at();
        let (input, owner) = received.take_apart();
        let arrival = Arrival { conn: id, owner, at };
        let left = self.handle_frames(input, &arrival, budget);
        let State { slots, pool, clock, .. } = &mut self.state;
        if let Some(slot) = slots.get_mut(id)
            && slot.phase < Phase::Closing
            && slot.link.keep(left, &mut pool.spares, clock.now())
        {
            self.state.watch(id);
        }
        received.recycle(&mut self.state.pool.spares);
    }

    /// Handles the whole frames of `input`, within the budget; what is left of it. A callback that panics
    /// is the last of them: the connection closes, and the turn goes on.
    #[inline(never)] // so that its loop has the registers for itself
    fn handle_frames<'a>(
        &mut self,
        mut input: Input<'a, IdOf<H>>,
        arrival: &Arrival<'_>,
        budget: &mut Budget,
    ) -> Input<'a, IdOf<H>> {
        let id = arrival.conn;
        let asked = &Asked::new(self.state.clock.now());
        if let Some(known) = input.known() {
            let Some((head, body)) = input.take(&known) else { return input };
            self.handle_known(head, body, arrival, budget);
        }
        while !input.is_empty() {
            let Some(slot) = self.state.slots.at_mut(id.slot() as usize) else { break };
            if slot.id != id || budget.messages == 0 || !slot.can_read() {
                input.wait(arrival.at);
                break;
            }
            // Matched where it is: a head with a long id is not moved.
            let decoded = slot.link.decode(&input, &slot.profile.config);
            let (head, body) = match &decoded {
                Ok(decoded) => match input.take(decoded) {
                    Some(frame) => frame,
                    None => break,
                },
                Err(error) => {
                    self.state.close(id, CloseReason::Protocol(error.clone()));
                    break;
                }
            };
            budget.messages -= 1;
            let incoming = slot.link.accept(head);
            self.handle_whole(incoming, head, body, arrival, asked);
        }
        input
    }

    /// Handles a whole frame that was decoded before.
    #[inline(never)] // so that the loop is the place for what can be inlined once
    fn handle_known(
        &mut self,
        head: &Head<IdOf<H>>,
        body: &[u8],
        arrival: &Arrival<'_>,
        budget: &mut Budget,
    ) {
        budget.messages = budget.messages.saturating_sub(1);
        if let Some(slot) = self.state.get_mut(arrival.conn) {
            let incoming = slot.link.accept(head);
            self.handle_whole(incoming, head, body, arrival, &Asked::new(self.state.clock.now()));
        }
    }

    /// Handles a whole frame, of which this is known.
    #[expect(clippy::inline_always, reason = "a call is 25 instructions more for each message")]
    #[inline(always)]
    fn handle_whole(
        &mut self,
        incoming: Incoming,
        head: &Head<IdOf<H>>,
        body: &[u8],
        arrival: &Arrival<'_>,
        asked: &Asked,
    ) {
        match incoming {
            Incoming::Message => self.handle_push(head, body, arrival),
            Incoming::Request => self.handle_request(head, body, arrival, asked),
            Incoming::Duplicate => {
                let error = DecodeError::DuplicateRequest;
                self.state.close(arrival.conn, CloseReason::Protocol(error));
            }
            Incoming::Other => self.handle_frame(head, body, arrival),
        }
    }

    /// A whole frame that is neither a push nor a request. What follows from it.
    fn handle_frame(&mut self, head: &Head<IdOf<H>>, body: &[u8], arrival: &Arrival<'_>) {
        let id = arrival.conn;
        let State { slots, pool, clock, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id) else { return };
        match slot.link.handle_frame(head, body, pool, clock.now()) {
            Ok(None) => self.handle_push(head, body, arrival),
            Ok(Some(Route::Done)) => self.after_control(id, head.kind),
            Ok(Some(Route::Ended(pending, error))) => {
                if let Some(key) = pending.timer {
                    self.state.clock.disarm(key);
                }
                self.state.stats.calls_in_flight -= 1;
                self.state.stats.messages_in += 1;
                let reply = Reply { tag: head.tag, body, owner: arrival.owner };
                self.finish_call(id, pending.waiter, reply, error);
            }
            Ok(Some(Route::Cancelled(flag))) => {
                flag.store(true, Ordering::Release);
                self.with_conn(id, |handler, conn| handler.on_cancel(conn, head.id));
                self.note_settled(id);
            }
            Ok(Some(Route::Goaway { text, redial_after, excludes })) => {
                log::debug!("connection {id}: the peer goes away: {text}");
                self.state.handle_goaway(id, text, redial_after, excludes);
            }
            Err(error) => self.state.close(id, CloseReason::Protocol(error)),
        }
    }

    /// A control frame was handled inside the connection.
    fn after_control(&mut self, id: ConnId, kind: Kind) {
        match kind {
            Kind::Hello => self.greeted(id),
            Kind::Reply | Kind::Error => self.state.stats.late_replies += 1,
            // Perhaps what draining waited for. And the next ping is due before the deadline that was
            // set for this pong.
            Kind::Pong => {
                self.state.mark_dirty(id);
                self.state.watch(id);
            }
            _ => {}
        }
    }

    /// A message that the format does not mark as a request.
    #[inline]
    fn handle_push(
        &mut self,
        head: &Head<<H::Protocol as Protocol>::Id>,
        body: &[u8],
        arrival: &Arrival<'_>,
    ) {
        let id = arrival.conn;
        self.state.stats.messages_in += 1;
        self.state.serving.begin_message(id);
        let msg = Message { head, body, arrival, asked: None };
        let cx =
            Context { state: &mut self.state, sockets: &mut self.sockets, shared: &self.shared };
        self.handler.on_message(&mut Conn { cx, id }, msg);
        self.state.serving.end_message();
    }

    /// As [`handle_push`](Self::handle_push), of a request: it is answered at any rate.
    #[inline]
    fn handle_request(
        &mut self,
        head: &Head<<H::Protocol as Protocol>::Id>,
        body: &[u8],
        arrival: &Arrival<'_>,
        asked: &Asked,
    ) {
        let id = arrival.conn;
        self.state.stats.messages_in += 1;
        let wait = Duration::from_millis(u64::from(head.millis));
        let deadline = if head.millis > 0 { arrival.at.checked_add(wait) } else { None };
        if let Some((code, text)) = self.refusal(id, deadline) {
            let _ = self.state.send_error(id, None, head.id, code, text);
            return;
        }
        asked.deadline.set(deadline);
        self.state.serving.begin_request(id, head.id);
        let msg = Message { head, body, arrival, asked: Some(asked) };
        let cx =
            Context { state: &mut self.state, sockets: &mut self.sockets, shared: &self.shared };
        self.handler.on_message(&mut Conn { cx, id }, msg);
        if self.state.serving.end_request().is_some() {
            let (code, text) = (error_code::UNANSWERED, "the handler gave no answer");
            self.state.send_last_error(id, head.id, code, text);
        }
    }

    /// Why a request is not handled.
    #[inline]
    fn refusal(&self, id: ConnId, deadline: Option<Moment>) -> Option<(u32, &'static str)> {
        let slot = self.state.get(id)?;
        if !slot.link.protocol().has_errors() {
            return None;
        }
        if slot.phase == Phase::Draining && !slot.link.is_noticed() {
            return Some((error_code::DRAINING, "no new requests are taken"));
        }
        if slot.link.requests_in_flight() >= slot.profile.config.max_requests {
            return Some((error_code::BUSY, "too many requests are in flight"));
        }
        if deadline.is_some_and(|deadline| deadline <= self.state.clock.now()) {
            return Some((error_code::EXPIRED, "the caller no longer waits"));
        }
        None
    }

    /// A call of ours has ended with what the peer says.
    fn finish_call(
        &mut self,
        id: ConnId,
        waiter: Waiter<H::Protocol>,
        reply: Reply<'_>,
        error: Option<RemoteError>,
    ) {
        let error = error.map(|RemoteError { code, text }| CallError::Remote { code, text });
        match waiter {
            Waiter::Caller(caller) => {
                self.spin.note_reply();
                caller.end(match error {
                    Some(error) => Err(error),
                    None => Ok((reply.tag, reply.to_bytes())),
                });
            }
            Waiter::Callback(callback) => {
                let result = error.map_or(Ok(reply), Err);
                self.with_conn(id, |handler, conn| callback(handler.as_any(), conn, result));
            }
        }
        self.note_settled(id);
    }

    /// A call of ours has ended, or a request of the peer's is not awaited any more: perhaps draining
    /// waited for that. And a peer that said goaway is left soon after the last.
    fn note_settled(&mut self, id: ConnId) {
        if let Some(slot) = self.state.get(id)
            && (slot.phase == Phase::Draining || slot.link.is_left())
        {
            self.state.mark_dirty(id);
            self.state.watch(id);
        }
    }
}
