//! From the socket to the handler: reads within a budget, decodes in place, and calls.

use std::{io, sync::atomic::Ordering, time::Duration};

use super::Engine;
use crate::{
    CloseReason, Conn, ConnId, Context, Handler, Message,
    api::{
        handler::{Arrival, Asked, Reply},
        waiter::Waiter,
    },
    core::{
        connection::{Incoming, Input, Received, RemoteError, Route},
        layered::WIRE_CHUNK,
        read_buffer::READ_CHUNK,
    },
    error::{CallError, NetworkError, error_code},
    moment::Moment,
    net::{Net, SHORT_READ_DRAINS},
    protocol::{DecodeError, Head, Kind, Protocol},
    table::{
        broadcasts::Source,
        slot::{PeersEnd, Phase},
        state::State,
    },
};

/// Bytes read from one connection in one turn, so that a busy one does not starve the others.
const BYTES_PER_TURN: usize = 256 * 1024;

/// Messages handled of one connection in one turn, for the same reason where they are small.
const MESSAGES_PER_TURN: usize = 1024;

/// What is left of one connection's share of a turn.
#[derive(Debug)]
struct Budget {
    bytes: usize,
    messages: usize,
}

/// What one read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// So many bytes, and perhaps more behind them.
    Bytes(usize),
    /// Nothing is there now.
    Nothing,
    /// The peer sends no more.
    Eof,
    /// The connection is broken or ended, and that was handled.
    Broken,
}

type IdOf<H> = <<H as Handler>::Protocol as Protocol>::Id;

impl<H: Handler, N: Net> Engine<H, N> {
    /// Gives every connection that has something to read its share.
    pub(super) fn read_all(&mut self) {
        self.state.fanouts.begin(Source::Message);
        for _ in 0..self.state.work.amounts().ready {
            if self.state.fanouts.is_step_over() {
                break;
            }
            let Some(slot) = self.state.work.pop_ready() else { break };
            let Some(entry) = self.state.slots.at_mut(slot as usize) else { continue };
            entry.lists.is_ready = false;
            let id = entry.id;
            self.state.serving.begin(id);
            if entry.phase == Phase::Lingering {
                self.discard_input(id);
            } else if !self.state.is_held_back(id) {
                self.read(id);
                self.flush_early(id);
                self.shared.bell.ring();
            }
            self.state.serving.end();
        }
        self.state.fanouts.begin(Source::Other);
    }

    fn read(&mut self, id: ConnId) {
        let mut reader = self.reader.take();
        let mut budget = Budget { bytes: BYTES_PER_TURN, messages: MESSAGES_PER_TURN };
        while let Some(slot) = self.state.get_mut(id)
            && slot.can_read()
            && (slot.io.is_readable || slot.link.has_waiting())
        {
            if budget.bytes == 0 || budget.messages == 0 {
                self.state.mark_ready(id);
                break;
            }
            if let Some(received) = slot.link.take_waiting(&mut reader) {
                self.handle_received(id, Ok(Some(received)), &mut budget);
                continue;
            }
            let found = if slot.link.is_layered() {
                self.read_layered(id, &mut reader, &mut budget)
            } else {
                self.read_socket(id, &mut reader, &mut budget)
            };
            if !matches!(found, Found::Bytes(_)) {
                break;
            }
        }
        self.reader.buf = reader;
        self.after_read(id);
    }

    /// What reading leaves to do: output of its own, a deadline, frames that wait.
    fn after_read(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.io.is_writable && slot.link.has_output() {
            self.state.mark_dirty(id);
        }
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.link.has_waiting() && slot.can_read() {
            self.state.mark_ready(id);
        }
    }

    /// One read of the socket, and the frames that it completes.
    fn read_socket(&mut self, id: ConnId, reader: &mut [u8], budget: &mut Budget) -> Found {
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        let room = slot.link.room(reader, budget.bytes);
        let asked = room.len();
        let result = self.sockets.read(id.slot(), room);
        let found = self.judge_read(id, result);
        match found {
            Found::Bytes(count) => {
                budget.bytes -= count;
                let now = self.state.clock.now();
                let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
                // What is behind a short read is the end, if an event told of one.
                slot.io.is_readable =
                    !SHORT_READ_DRAINS || count == asked || slot.io.peers_end == PeersEnd::Told;
                let received = slot.link.receive(reader, count, &slot.profile.config, now);
                self.handle_received(id, received, budget);
            }
            Found::Eof => self.handle_eof(id, PeersEnd::Read),
            Found::Nothing | Found::Broken => {}
        }
        found
    }

    /// As [`read_socket`](Self::read_socket), where a layer lies between the socket and the frames.
    fn read_layered(&mut self, id: ConnId, reader: &mut [u8], budget: &mut Budget) -> Found {
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        if slot.link.is_ended() {
            self.handle_eof(id, PeersEnd::Said);
            return Found::Eof;
        }
        if !slot.link.has_plain() {
            match self.feed_layer(id) {
                Found::Bytes(count) => budget.bytes = budget.bytes.saturating_sub(count),
                found => return found,
            }
        }
        let now = self.state.clock.now();
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        if !slot.can_read() {
            return Found::Bytes(0); // told that it is up, the handler has paused or closed it
        }
        let count = slot.link.read_plain(reader, budget.bytes);
        if count > 0 {
            budget.bytes -= count;
            let received = slot.link.receive(reader, count, &slot.profile.config, now);
            self.handle_received(id, received, budget);
        }
        if let Some(slot) = self.state.get_mut(id)
            && slot.link.note_record(now)
        {
            self.state.watch(id);
        }
        Found::Bytes(count)
    }

    /// One read of the socket, for the layer.
    fn feed_layer(&mut self, id: ConnId) -> Found {
        let wire = &mut self.reader.wire;
        wire.resize(WIRE_CHUNK, 0);
        let result = self.sockets.read(id.slot(), wire);
        let found = self.judge_read(id, result);
        let now = self.state.clock.now();
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        let fed = match found {
            Found::Bytes(count) => slot.link.receive_wire(&mut self.reader.wire[..count], now),
            Found::Eof => slot.link.receive_end(),
            Found::Nothing | Found::Broken => return found,
        };
        let has_plain = slot.link.has_plain();
        if let Err(reason) = fed {
            if found == Found::Eof {
                slot.io.peers_end = PeersEnd::Read;
            }
            self.state.close(id, reason);
            return Found::Broken;
        }
        self.after_layer(id);
        match found {
            // The end lets out what the layer has held back.
            Found::Eof if has_plain => Found::Bytes(0),
            Found::Eof => {
                self.handle_eof(id, PeersEnd::Read);
                Found::Eof
            }
            _ => found,
        }
    }

    /// The layer has taken a step: perhaps its handshake is over, or it lets out what it held back.
    pub(super) fn after_layer(&mut self, id: ConnId) {
        if let Some(slot) = self.state.get_mut(id)
            && slot.link.has_plain()
        {
            slot.io.is_readable = true;
            self.state.mark_ready(id);
        }
        // It may have answered by itself.
        self.state.charge(id);
        self.state.watch(id);
        if let Some(slot) = self.state.get_mut(id)
            && slot.phase == Phase::Greeting
            && slot.link.is_greeted()
        {
            self.greeted(id);
        }
    }

    /// What a read says of the connection.
    #[inline]
    fn judge_read(&mut self, id: ConnId, result: io::Result<usize>) -> Found {
        let now = self.state.clock.now();
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        match result {
            Ok(0) => Found::Eof,
            Ok(count) => {
                slot.link.note_heard(count, now);
                self.state.stats.bytes_in += count as u64;
                Found::Bytes(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                slot.io.is_readable = false;
                Found::Nothing
            }
            Err(error) => {
                self.state.abort(id, CloseReason::Network(NetworkError::from(&error)));
                Found::Broken
            }
        }
    }

    /// The peer sends no more. What it asked for is still answered.
    fn handle_eof(&mut self, id: ConnId, end: PeersEnd) {
        let Some(slot) = self.state.get_mut(id) else { return };
        slot.io.is_readable = false;
        slot.io.peers_end = end;
        let reason = match slot.link.unfinished() {
            0 => CloseReason::PeerClosed,
            received => CloseReason::PeerClosedMidFrame { received },
        };
        // What draining was begun for before, the peer's goaway for one, stays the reason.
        if matches!(reason, CloseReason::PeerClosed) {
            self.state.drain(id, reason);
            self.state.end_calls(id);
        } else {
            self.state.close(id, reason);
        }
        self.state.mark_dirty(id);
    }

    /// Handles the frames that were received, and keeps what is left of them.
    fn handle_received(
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

    /// Reads on after everything was said, so that what the peer still sends does not make the
    /// system reset the connection and with it what we said last.
    fn discard_input(&mut self, id: ConnId) {
        let mut reader = self.reader.take();
        let mut budget = BYTES_PER_TURN;
        while budget > 0 {
            match self.sockets.read(id.slot(), &mut reader[..READ_CHUNK]) {
                Ok(count) if count > 0 => budget = budget.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {
                    self.state.abort(id, CloseReason::Closed);
                    break;
                }
            }
        }
        if budget == 0 {
            self.state.mark_ready(id);
        }
        self.reader.buf = reader;
    }
}
