//! The way in: the room for bytes, the frames in them, and the meaning of each frame.

use std::time::Duration;

use bytes::Bytes;

use super::{Connection, MAX_TEXT, MAX_URGENT, RemoteError, Route, cut};
use crate::{
    config::Config,
    core::{
        calls::Pending,
        farewell::FAREWELL,
        greeting::Greeting,
        read_buffer::{Frame, Front},
        spares::{LARGE_FRAME, Spares},
        write_queue::QueuePool,
    },
    moment::Moment,
    protocol::{DecodeError, Decoded, Head, HeartbeatBy, Kind, Protocol},
    role::Role,
};

/// Bytes that were received and can be handled: the start of at least one frame.
#[derive(Debug)]
pub(crate) struct Received<'r, Id> {
    bytes: Source<'r>,
    front: Option<Front<Id>>,
    /// When the oldest of them came.
    at: Moment,
}

#[derive(Debug)]
enum Source<'r> {
    /// They are in the buffer that all connections share.
    Shared(&'r [u8]),
    /// They were put together in a buffer of their own, which bodies may refer to.
    Own(Bytes),
}

impl<Id> Received<'_, Id> {
    /// When the oldest of them came.
    pub(crate) const fn at(&self) -> Moment {
        self.at
    }

    /// The bytes, to be taken apart, and the buffer that bodies may refer to, if they have their own.
    pub(crate) fn take_apart(&mut self) -> (Input<'_, Id>, Option<&Bytes>) {
        let (rest, owner) = match &self.bytes {
            Source::Shared(bytes) => (*bytes, None),
            Source::Own(bytes) => (&bytes[..], Some(bytes)),
        };
        (Input { rest, front: self.front.take(), has_begun: false }, owner)
    }

    /// All was handled: their buffer, if it was their own, may be used again.
    pub(crate) fn recycle(self, spares: &mut Spares) {
        if let Source::Own(bytes) = self.bytes {
            spares.give(bytes);
        }
    }
}

/// Bytes that are being taken apart, frame by frame.
#[derive(Debug)]
pub(crate) struct Input<'a, Id> {
    rest: &'a [u8],
    /// The state of the frame at the front of `rest`, where it is known.
    front: Option<Front<Id>>,
    /// Whether a frame was taken.
    has_begun: bool,
}

impl<'a, Id: Copy> Input<'a, Id> {
    /// Whether all was taken.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The decoder's answer about the frame at the front, if it was asked before. Taken once, before the
    /// first frame is decoded.
    #[inline]
    pub(crate) fn known(&mut self) -> Option<Decoded<Id>> {
        match self.front.take()? {
            Front::Frame(Frame { head, body, len }) => Some(Decoded::Frame { head, body, len }),
            Front::Needs(total) if self.rest.len() < total => Some(Decoded::Need(total)),
            Front::Needs(_) | Front::Waits(_) => None,
        }
    }

    /// Takes the frame that was decoded: its head and body, if it is whole.
    #[expect(clippy::inline_always, reason = "see `Connection::decode`")]
    #[inline(always)]
    pub(crate) fn take<'d>(
        &mut self,
        decoded: &'d Decoded<Id>,
    ) -> Option<(&'d Head<Id>, &'a [u8])> {
        if let Decoded::Frame { head, body, len } = decoded
            && let Some((frame, rest)) = self.rest.split_at_checked(*len)
        {
            self.rest = rest;
            self.has_begun = true;
            return Some((head, &frame[body.clone()]));
        }
        self.front = Some(decoded.clone().into());
        None
    }

    /// The frames that are left wait: a budget is spent, or reading is paused. They came at that time.
    #[inline]
    pub(crate) fn wait(&mut self, since: Moment) {
        self.front = Some(Front::Waits(since));
    }
}

/// The meaning of a whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A message that the format does not mark as a request.
    Message,
    /// A request.
    Request,
    /// A request whose id is in flight already.
    Duplicate,
    /// Anything else: see [`Connection::handle_frame`].
    Other,
}

impl<P: Protocol, W, D: Clone> Connection<P, W, D> {
    // ---- bytes ----

    /// Where the next bytes of the peer go, at most `most` of them: into the buffer that all connections
    /// share, or into that of a large frame.
    #[inline]
    pub(crate) fn room<'r>(&'r mut self, shared: &'r mut [u8], most: usize) -> &'r mut [u8] {
        self.read.room_for(shared, most)
    }

    /// The first `count` bytes of the [`room`](Self::room) were filled. What can be handled now, if
    /// something can: a large frame only when it is whole.
    #[expect(clippy::inline_always, reason = "its answer is large, and taken apart at once")]
    #[inline(always)]
    pub(crate) fn receive<'r>(
        &mut self,
        shared: &'r mut [u8],
        count: usize,
        config: &Config,
        now: Moment,
    ) -> Result<Option<Received<'r, P::Id>>, DecodeError> {
        if self.read.is_large() {
            self.read.filled(count);
            if !self.is_frame_whole(config)? {
                return Ok(None);
            }
            let (frame, front) = self.read.take();
            Ok(Some(Received { bytes: Source::Own(frame), front, at: now }))
        } else {
            let (kept, front) = self.read.restore(shared);
            Ok(Some(Received { bytes: Source::Shared(&shared[..kept + count]), front, at: now }))
        }
    }

    /// Bytes of the wire came from the peer, for us or for the layer.
    #[inline]
    pub(crate) const fn note_heard(&mut self, count: usize, now: Moment) {
        self.heartbeat.heard(now);
        self.counts.bytes_in += count as u64;
    }

    /// Whether something waits here, where a budget or a pause left it: whole frames, or what the layer has.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.read.waits_since().is_some()
            || self.layer.as_ref().is_some_and(|layer| layer.has_input())
    }

    /// Takes the frames that wait.
    pub(crate) fn take_waiting<'r>(&mut self, shared: &'r mut [u8]) -> Option<Received<'r, P::Id>> {
        let at = self.read.waits_since()?;
        let bytes = if self.read.len() > shared.len() {
            Source::Own(self.read.take().0)
        } else {
            let (len, _) = self.read.restore(shared);
            Source::Shared(&shared[..len])
        };
        Some(Received { bytes, front: None, at })
    }

    /// Keeps what was not taken. Whether that is a frame that is not whole, and has a deadline that was
    /// not there before.
    pub(crate) fn keep(
        &mut self,
        input: Input<'_, P::Id>,
        spares: &mut Spares,
        now: Moment,
    ) -> bool {
        let Input { rest, front, has_begun } = input;
        // A frame that began in these bytes has its own time, whatever the one before it took.
        if has_begun || rest.is_empty() {
            self.frame.stop();
        }
        if rest.is_empty() {
            return false;
        }
        let front = front.unwrap_or(Front::Needs(1));
        let is_incomplete = !matches!(front, Front::Waits(_));
        self.read.keep(rest, front, spares);
        is_incomplete && self.frame.start(now)
    }

    /// Bytes of a frame that is not whole, or of frames that wait; 0: there are none.
    pub(crate) fn unfinished(&self) -> usize {
        let has_record = self.layer.as_ref().is_some_and(|layer| layer.is_mid_record());
        self.read.len().max(usize::from(has_record))
    }

    /// Bytes wait in the system, or here, and it is our doing that they were not handled: the peer's
    /// deadlines begin anew.
    pub(crate) fn handle_unread(&mut self, now: Moment) {
        self.heartbeat.heard(now);
        self.frame.restart(now);
        // One that is choked does not take what its own bytes caused, which is no doing of ours.
        if !self.is_greeted() && !self.is_choked() {
            self.heartbeat.begin(now);
        }
    }

    /// Whether the frame that is being put together in its own buffer can be handled.
    fn is_frame_whole(&mut self, config: &Config) -> Result<bool, DecodeError> {
        if let Some(bytes) = self.read.undecoded() {
            let decoded = decode(&mut self.protocol, &self.greeting, bytes, config)?;
            self.read.note(decoded);
        }
        Ok(self.read.is_whole())
    }

    // ---- frames ----

    /// Decodes the next frame of `input`, which [`take`](Input::take) gives if it is whole.
    #[expect(clippy::inline_always, reason = "a call would carry the whole head through memory")]
    #[inline(always)]
    pub(crate) fn decode(
        &mut self,
        input: &Input<'_, P::Id>,
        config: &Config,
    ) -> Result<Decoded<P::Id>, DecodeError> {
        decode(&mut self.protocol, &self.greeting, input.rest, config)
    }

    /// A whole frame arrived. What it is, as far as that needs no more than a look.
    #[expect(clippy::inline_always, reason = "a call is a tenth of what a small frame costs here")]
    #[inline(always)]
    pub(crate) fn accept(&mut self, head: &Head<P::Id>) -> Incoming {
        if head.kind == Kind::Push || head.kind == Kind::Plain && self.talk.is_none() {
            self.counts.messages_in += 1;
            Incoming::Message
        } else if head.kind == Kind::Request {
            if self.begin_request(head.id) { Incoming::Request } else { Incoming::Duplicate }
        } else {
            Incoming::Other
        }
    }

    /// A request of the peer's is about to be handled. Not if its id is in flight already.
    #[inline]
    fn begin_request(&mut self, id: P::Id) -> bool {
        self.counts.messages_in += 1;
        if self.talk.as_ref().is_some_and(|talk| talk.requests.contains(&id)) {
            return false;
        }
        if !self.farewell.as_ref().is_some_and(|farewell| farewell.is_final()) {
            self.last_request = Some(id);
        }
        true
    }

    /// Handles a frame that is neither a push nor a request. `None`: it is a message after all.
    #[inline]
    pub(crate) fn handle_frame(
        &mut self,
        head: &Head<P::Id>,
        body: &[u8],
        pool: &mut QueuePool,
        now: Moment,
    ) -> Result<Option<Route<W, D>>, DecodeError> {
        let route = match head.kind {
            Kind::Push | Kind::Request => {
                debug_assert!(false, "neither a push nor a request comes here");
                Route::Done
            }
            Kind::Plain => {
                self.counts.messages_in += 1;
                // Where answers come in order, what is one has a kind of its own.
                let pending =
                    if self.is_in_order() { None } else { self.answered_call(&head.id, now) };
                match pending {
                    Some(pending) => Route::Ended(pending, None),
                    None => return Ok(None),
                }
            }
            Kind::Reply => {
                self.counts.messages_in += 1;
                self.end_call(&head.id, None, now)
            }
            Kind::Error => {
                self.counts.messages_in += 1;
                let error = RemoteError { code: head.tag, text: text_of(body) };
                self.end_call(&head.id, Some(error), now)
            }
            Kind::Hello => {
                self.handle_hello(body)?;
                Route::Done
            }
            Kind::Ping => {
                self.handle_ping(head, body, pool, now);
                Route::Done
            }
            Kind::Pong => {
                self.handle_pong(now);
                if body == FAREWELL {
                    self.finish_farewell(pool);
                }
                Route::Done
            }
            Kind::Cancel => {
                let deferred = self.talk.as_mut().and_then(|talk| talk.requests.cancel(&head.id));
                deferred.cloned().map_or(Route::Done, Route::Cancelled)
            }
            Kind::Goaway => self.handle_goaway(head, body, now),
        };
        Ok(Some(route))
    }

    fn handle_goaway(&mut self, head: &Head<P::Id>, body: &[u8], now: Moment) -> Route<W, D> {
        let Self { protocol, farewell, .. } = self;
        let is_lower = |before: &P::Id| !protocol.may_be_handled(before, &head.id);
        let excludes = farewell.get_or_insert_default().handle_goaway(head.id, is_lower, now);
        Route::Goaway {
            text: text_of(body).into(),
            redial_after: Duration::from_millis(u64::from(head.millis)),
            excludes,
        }
    }

    fn handle_hello(&mut self, body: &[u8]) -> Result<(), DecodeError> {
        let hello = self.protocol.decode_hello(body)?;
        self.greeting.handle_hello(&hello);
        Ok(())
    }

    /// Whether the peer's hello came, or there is none to wait for; and the layer's handshake is over.
    #[inline]
    pub(crate) fn is_greeted(&self) -> bool {
        self.greeting.is_done() && self.is_secured()
    }

    fn handle_ping(&mut self, head: &Head<P::Id>, body: &[u8], pool: &mut QueuePool, now: Moment) {
        if self.greeting.heartbeat_by() == HeartbeatBy::Dialler && self.role == Role::Dialled {
            self.handle_pong(now);
            return;
        }
        // A peer that pings faster than it takes our pongs gets fewer of them.
        if self.urgent_bytes() < MAX_URGENT {
            let pong = Head { kind: Kind::Pong, ..*head };
            self.push_urgent(pool, |protocol, out| protocol.encode(&pong, body, out));
        }
    }

    fn handle_pong(&mut self, now: Moment) {
        if let Some(round_trip) = self.heartbeat.ponged(now) {
            let micros = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX);
            self.counts.round_trip_us = micros.max(1);
        }
    }

    fn end_call(&mut self, id: &P::Id, error: Option<RemoteError>, now: Moment) -> Route<W, D> {
        if let Some(pending) = self.answered_call(id, now) {
            return Route::Ended(pending, error);
        }
        self.counts.late_replies = self.counts.late_replies.saturating_add(1);
        log::debug!("dropped a reply to {id:?}: no such call is in flight");
        Route::Done
    }

    fn answered_call(&mut self, id: &P::Id, now: Moment) -> Option<Pending<W>> {
        let is_in_order = self.is_in_order();
        let calls = &mut self.talk.as_mut()?.calls;
        let pending =
            if is_in_order { calls.line_mut()?.take_oldest()? } else { calls.take(id)? };
        if let Some(farewell) = &mut self.farewell {
            farewell.handle_answer(now);
        }
        Some(pending)
    }
}

/// Asks the decoder, and checks what it answers.
#[expect(clippy::inline_always, reason = "a call would carry the whole head through memory")]
#[inline(always)]
fn decode<P: Protocol>(
    protocol: &mut P,
    greeting: &Greeting,
    buf: &[u8],
    config: &Config,
) -> Result<Decoded<P::Id>, DecodeError> {
    let mut decoded = protocol.decode(buf, config.max_body)?;
    match &mut decoded {
        Decoded::Need(total) => {
            // More than it was shown, or it would be asked the same again.
            *total = (*total).max(buf.len().saturating_add(1));
            check_len(*total, config)?;
        }
        Decoded::Frame { head, body, len } => {
            if body.start > body.end || body.end > *len || *len == 0 {
                return Err(DecodeError::Contract("a frame without bytes or a body outside of it"));
            }
            if *len > config.max_body {
                check_long(head.kind, body.len(), *len, config)?;
            }
            greeting.check(head.kind)?;
        }
    }
    Ok(decoded)
}

/// Refuses a frame that asks for more than the settings allow.
fn check_len(total: usize, config: &Config) -> Result<(), DecodeError> {
    if total > config.max_body.saturating_add(LARGE_FRAME) {
        let (len, max) = (total as u64, config.max_body as u64);
        return Err(DecodeError::BodyTooLong { len, max });
    }
    Ok(())
}

/// Whether a frame that is longer than the longest body may be taken. The format has its own look at the
/// body; one of the application's may not.
#[cold]
fn check_long(kind: Kind, body_len: usize, len: usize, config: &Config) -> Result<(), DecodeError> {
    let is_message = matches!(kind, Kind::Push | Kind::Request | Kind::Reply | Kind::Plain);
    if is_message && body_len > config.max_body {
        let (len, max) = (body_len as u64, config.max_body as u64);
        return Err(DecodeError::BodyTooLong { len, max });
    }
    check_len(len, config)
}

/// A peer's text: what is no UTF-8 replaced, and not longer than we keep.
fn text_of(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT)]);
    cut(&text, MAX_TEXT).to_owned()
}
