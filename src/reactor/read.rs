//! From the socket to the handler: reads within a budget, decodes in place, and calls.

use std::{io, sync::atomic::Ordering, time::Duration};

use super::{
    fanout::Source,
    net::{Net, SHORT_READ_DRAINS},
    slot::{PeersEnd, Phase, Waiter},
    slots::State,
    turn::Engine,
};
use crate::{
    CloseReason, Conn, ConnId, Context, Handler, Message,
    core::{
        connection::{Incoming, RemoteError, Route},
        moment::Moment,
        read_buffer::{Frame, Front, LARGE_FRAME},
    },
    error::{CallError, NetworkError, error_code},
    handler::{Arrival, Asked, Reply},
    protocol::{DecodeError, Decoded, Head, Kind, Protocol},
};

/// Bytes asked for in one read. More costs cache, less costs system calls.
const READ_CHUNK: usize = 64 * 1024;

/// Bytes read from one connection in one turn, so that a busy one does not starve the others.
const BYTES_PER_TURN: usize = 256 * 1024;

/// Messages handled of one connection in one turn, for the same reason where they are small.
const MESSAGES_PER_TURN: usize = 1024;

/// The one buffer that all connections read into.
pub(crate) struct Reader {
    /// Room for the start of a frame that was kept, and one read behind it.
    buf: Box<[u8]>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { buf: vec![0; LARGE_FRAME + READ_CHUNK].into() }
    }
}

impl Reader {
    /// The buffer, to be given back after the read; a new one where a panic lost it.
    fn take(&mut self) -> Box<[u8]> {
        let buf = std::mem::take(&mut self.buf);
        if buf.is_empty() { Self::default().buf } else { buf }
    }
}

/// What is left of one connection's share of a turn.
#[derive(Debug)]
struct Budget {
    bytes: usize,
    messages: usize,
}

/// What one read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Bytes, and perhaps more behind them.
    Some,
    /// Nothing is there now.
    Nothing,
    /// The peer sends no more, or the connection is broken: that was handled.
    End,
}

impl<H: Handler, N: Net> Engine<H, N> {
    /// Gives every connection that has something to read its share.
    pub(super) fn read_all(&mut self) {
        self.state.fanouts.begin(Source::Message);
        for _ in 0..self.state.ready.len() {
            if self.state.fanouts.is_step_over() {
                break;
            }
            let Some(slot) = self.state.ready.pop_front() else { break };
            let Some(entry) = self.state.slots.get_mut(slot as usize) else { continue };
            entry.lists.is_ready = false;
            let id = entry.id;
            self.state.serving = Some(id);
            if entry.phase == Phase::Lingering {
                self.discard_input(id);
            } else if !self.state.is_held_back(id) {
                self.read(id);
                self.flush_early(id);
                self.state.shared.bell.ring();
            }
            self.state.serving = None;
        }
        self.state.fanouts.begin(Source::Other);
    }

    fn read(&mut self, id: ConnId) {
        let mut reader = self.reader.take();
        let mut budget = Budget { bytes: BYTES_PER_TURN, messages: MESSAGES_PER_TURN };
        while let Some(slot) = self.state.get_mut(id)
            && slot.can_read()
        {
            let arrived = slot.link.read.waits_since();
            if arrived.is_none() && !slot.io.is_readable {
                break;
            }
            if budget.bytes == 0 || budget.messages == 0 {
                self.state.mark_ready(id);
                break;
            }
            if let Some(arrived) = arrived {
                if slot.link.read.len() > reader.len() {
                    let (kept, _) = slot.link.read.take();
                    let arrival = Arrival { conn: id, owner: Some(&kept), at: arrived };
                    self.handle_bytes(&kept, None, &arrival, &mut budget);
                } else {
                    let (len, _) = slot.link.read.restore(&mut reader);
                    let arrival = Arrival { conn: id, owner: None, at: arrived };
                    self.handle_bytes(&reader[..len], None, &arrival, &mut budget);
                }
                continue;
            }
            let is_large = slot.link.read.is_large();
            let found = if is_large {
                self.read_large(id, &mut budget)
            } else {
                self.read_chunk(id, &mut reader, &mut budget)
            };
            if matches!(found, Found::Nothing | Found::End) {
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
        if slot.link.read.waits_since().is_some() && slot.can_read() {
            self.state.mark_ready(id);
        }
    }

    /// One read into the shared buffer, behind what was kept, and its frames.
    fn read_chunk(&mut self, id: ConnId, reader: &mut [u8], budget: &mut Budget) -> Found {
        let Some(slot) = self.state.get_mut(id) else { return Found::End };
        let (kept, mut front) = slot.link.read.restore(reader);
        let asked = READ_CHUNK.min(budget.bytes);
        let result = self.sockets.read(id.slot(), &mut reader[kept..kept + asked]);
        let count = *result.as_ref().unwrap_or(&0);
        if count == 0
            && let Some(front) = front.take()
            && let Some(slot) = self.state.slots.get_mut(id.slot() as usize)
        {
            slot.link.read.keep(&reader[..kept], front, &mut self.state.pool.spares);
        }
        let found = self.judge_read(id, result, asked);
        if count > 0 {
            budget.bytes -= count;
            let arrival = Arrival { conn: id, owner: None, at: self.state.now };
            self.handle_bytes(&reader[..kept + count], front, &arrival, budget);
        }
        found
    }

    /// One read into the buffer of a large frame; the frame, if that completes it.
    fn read_large(&mut self, id: ConnId, budget: &mut Budget) -> Found {
        let Some(slot) = self.state.get_mut(id) else { return Found::End };
        let room = slot.link.read.room();
        let asked = room.len().min(budget.bytes);
        let result = self.sockets.read(id.slot(), &mut room[..asked]);
        let count = *result.as_ref().unwrap_or(&0);
        slot.link.read.filled(count);
        budget.bytes -= count;
        let found = self.judge_read(id, result, asked);
        let Some(slot) = self.state.get_mut(id) else { return found };
        if count == 0 {
            return found;
        }
        match slot.link.is_frame_whole(&slot.profile.config) {
            Ok(true) => {
                let (frame, front) = slot.link.read.take();
                let arrival = Arrival { conn: id, owner: Some(&frame), at: self.state.now };
                self.handle_bytes(&frame, front, &arrival, budget);
                self.state.pool.spares.give(frame);
            }
            Ok(false) => {}
            Err(error) => self.state.close(id, CloseReason::Protocol(error)),
        }
        found
    }

    /// What a read says of the connection.
    fn judge_read(&mut self, id: ConnId, result: io::Result<usize>, asked: usize) -> Found {
        let now = self.state.now;
        let Some(slot) = self.state.get_mut(id) else { return Found::End };
        match result {
            Ok(0) => {
                slot.io.is_readable = false;
                slot.io.peers_end = PeersEnd::Read;
                self.handle_eof(id);
                Found::End
            }
            Ok(count) => {
                // What is behind a short read is the end, if an event told of one.
                slot.io.is_readable =
                    !SHORT_READ_DRAINS || count == asked || slot.io.peers_end == PeersEnd::Told;
                slot.link.handle_bytes(count, now);
                self.state.stats.bytes_in += count as u64;
                Found::Some
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                slot.io.is_readable = false;
                Found::Nothing
            }
            Err(error) => {
                self.state.abort(id, CloseReason::Network(NetworkError::from(&error)));
                Found::End
            }
        }
    }

    /// The peer sends no more. What it asked for is still answered.
    fn handle_eof(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        let reason = match slot.link.read.len() {
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

    /// Handles what arrived, and keeps the rest. `front` is what is known of it from before.
    fn handle_bytes(
        &mut self,
        bytes: &[u8],
        front: Option<Front<<H::Protocol as Protocol>::Id>>,
        arrival: &Arrival<'_>,
        budget: &mut Budget,
    ) {
        let id = arrival.conn;
        let (consumed, front) = match front {
            None => self.handle_frames(bytes, arrival, budget),
            Some(front) => self.handle_known(bytes, front, arrival, budget),
        };
        let rest = &bytes[consumed..];
        let State { slots, pool, now, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return;
        };
        if slot.phase >= Phase::Closing {
            return;
        }
        let is_incomplete = !rest.is_empty() && !matches!(front, Front::Waits(_));
        slot.link.read.keep(rest, front, &mut pool.spares);
        // A frame that began in these bytes has its own time, whatever the one before it took.
        if consumed > 0 || rest.is_empty() {
            slot.link.frame_ended();
        }
        if is_incomplete && slot.link.frame_began(*now) {
            self.state.watch(id);
        }
    }

    /// Handles the whole frames at the front of `bytes`, of which something is known already; as
    /// [`handle_frames`](Self::handle_frames).
    #[inline(never)] // so that the loop of `handle_frames` is the place for what can be inlined once
    fn handle_known(
        &mut self,
        bytes: &[u8],
        front: Front<<H::Protocol as Protocol>::Id>,
        arrival: &Arrival<'_>,
        budget: &mut Budget,
    ) -> (usize, Front<<H::Protocol as Protocol>::Id>) {
        let Frame { head, body, len } = match front {
            Front::Needs(total) if bytes.len() < total => return (0, front),
            Front::Frame(frame) if bytes.len() < frame.len => return (0, Front::Frame(frame)),
            Front::Frame(frame) => frame,
            Front::Needs(_) | Front::Waits(_) => return self.handle_frames(bytes, arrival, budget),
        };
        let (frame, behind) = bytes.split_at(len);
        budget.messages = budget.messages.saturating_sub(1);
        if let Some(slot) = self.state.get_mut(arrival.conn) {
            let incoming = slot.link.accept(&head);
            self.handle_whole(incoming, &head, &frame[body], arrival, &Asked::new(self.state.now));
        }
        let (consumed, front) = self.handle_frames(behind, arrival, budget);
        (len + consumed, front)
    }

    /// Handles the whole frames at the front of `bytes`; how many bytes they are, and what is known of
    /// the rest. A callback that panics is the last of them: the connection closes, and the turn goes on.
    fn handle_frames(
        &mut self,
        bytes: &[u8],
        arrival: &Arrival<'_>,
        budget: &mut Budget,
    ) -> (usize, Front<<H::Protocol as Protocol>::Id>) {
        let id = arrival.conn;
        let asked = &Asked::new(self.state.now);
        let mut rest = bytes;
        let front = loop {
            if rest.is_empty() {
                break Front::Needs(1);
            }
            let Some(slot) = self.state.slots.get_mut(id.slot() as usize) else {
                break Front::Waits(arrival.at);
            };
            if slot.id != id || budget.messages == 0 || !slot.can_read() {
                break Front::Waits(arrival.at);
            }
            // Matched where it is: a head with a long id is not moved.
            let decoded = slot.link.decode(rest, &slot.profile.config);
            let (head, body) = match &decoded {
                Ok(Decoded::Frame { head, body, len }) => {
                    let Some((frame, behind)) = rest.split_at_checked(*len) else {
                        let (head, body) = (*head, body.clone());
                        break Front::Frame(Frame { head, body, len: *len });
                    };
                    rest = behind;
                    (head, &frame[body.clone()])
                }
                Ok(Decoded::Need(total)) => break Front::Needs(*total),
                Err(error) => {
                    self.state.close(id, CloseReason::Protocol(error.clone()));
                    break Front::Waits(arrival.at);
                }
            };
            budget.messages -= 1;
            let incoming = slot.link.accept(head);
            self.handle_whole(incoming, head, body, arrival, asked);
        };
        (bytes.len() - rest.len(), front)
    }

    /// Handles a whole frame, of which this is known.
    #[expect(clippy::inline_always, reason = "a call is 25 instructions more for each message")]
    #[inline(always)]
    fn handle_whole(
        &mut self,
        incoming: Incoming,
        head: &Head<<H::Protocol as Protocol>::Id>,
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

    fn handle_frame(
        &mut self,
        head: &Head<<H::Protocol as Protocol>::Id>,
        body: &[u8],
        arrival: &Arrival<'_>,
    ) {
        let id = arrival.conn;
        let now = self.state.now;
        let slot = &mut self.state.slots[id.slot() as usize];
        match slot.link.handle_frame(head, body, &mut self.state.pool, now) {
            Ok(Route::Message) => self.handle_push(head, body, arrival),
            Ok(Route::Done) => self.after_control(id, head.kind),
            Ok(Route::Ended(pending, error)) => {
                if let Some(key) = pending.timer {
                    self.state.wheel.cancel(key);
                }
                self.state.stats.calls_in_flight -= 1;
                self.state.stats.messages_in += 1;
                let reply = Reply { tag: head.tag, body, owner: arrival.owner };
                self.finish_call(id, pending.waiter, reply, error);
            }
            Ok(Route::Cancelled(flag)) => {
                flag.store(true, Ordering::Release);
                self.with_conn(id, |handler, conn| handler.on_cancel(conn, head.id));
                self.note_settled(id);
            }
            Ok(Route::Goaway { text, redial_after, excludes }) => {
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
        self.state.handling = Some(id);
        let msg = Message { head, body, arrival, asked: None };
        let cx = Context { state: &mut self.state, sockets: &mut self.sockets };
        self.handler.on_message(&mut Conn { cx, id }, msg);
        self.state.handling = None;
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
        self.state.handling = Some(id);
        self.state.answering = Some(head.id);
        let msg = Message { head, body, arrival, asked: Some(asked) };
        let cx = Context { state: &mut self.state, sockets: &mut self.sockets };
        self.handler.on_message(&mut Conn { cx, id }, msg);
        self.state.handling = None;
        if self.state.answering.take().is_some() {
            let (code, text) = (error_code::UNANSWERED, "the handler gave no answer");
            self.state.send_last_error(id, head.id, code, text);
        }
    }

    /// Why a request is not handled.
    #[inline]
    fn refusal(&self, id: ConnId, deadline: Option<Moment>) -> Option<(u32, &'static str)> {
        let slot = self.state.get(id)?;
        if !slot.link.protocol.has_errors() {
            return None;
        }
        if slot.phase == Phase::Draining && !slot.link.is_noticed() {
            return Some((error_code::DRAINING, "no new requests are taken"));
        }
        if slot.link.requests_in_flight() >= slot.profile.config.max_requests {
            return Some((error_code::BUSY, "too many requests are in flight"));
        }
        if deadline.is_some_and(|deadline| deadline <= self.state.now) {
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
                self.state.spin.note_reply();
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
