//! One connection, as far as it can be decided without a socket.
//!
//! Routes frames to what handles them: limits to the greeting, replies to the pending table, pings to
//! the write queue, goodbyes to the farewell, the rest to the handler. Every mechanism has a file of
//! its own.
//!
//! ```text
//! bytes ─▶ decode ─▶ route ─┬▶ Message    for the handler
//!                           ├▶ Ended      a call of ours, with its answer
//!                           ├▶ Cancelled  a request of the peer's that it no longer waits for
//!                           └▶ Done       handled here (hello, ping, pong, a late reply)
//! ```
//!
//! After every `handle_*` and every command the shell looks at [`Connection::has_output`] and
//! [`Connection::poll_timeout`].

use std::time::Duration;

use bytes::Bytes;

use super::{
    calls::{Pending, PendingCalls},
    farewell::{FAREWELL, Farewell},
    frame_clock::{self, FrameClock},
    greeting::{Greeting, own_rules},
    heartbeat::{AWAY, Due, Heartbeat, Rules},
    intake::{Intake, Load},
    moment::Moment,
    read_buffer::{LARGE_FRAME, ReadBuffer},
    requests::{Held, OpenRequests},
    spares::Spares,
    timer_wheel::TimerKey,
    write_queue::{QueuePool, SHARE_BYTES, What, WriteQueue, Written},
};
use crate::{
    Tagged,
    body::Body,
    config::Config,
    error::{CloseReason, LimitBy, PeerText},
    protocol::{
        Correlation, DecodeError, Decoded, Goaway, Head, HeartbeatBy, Hello, Kind, Protocol,
    },
};

/// The longest text of an error or a goaway, in bytes, of ours and of the peer's; a longer one is cut.
pub(crate) const MAX_TEXT: usize = 4096;

/// Which side made the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Accepted,
    Dialled,
}

/// The state of one epoch. `W` waits for the answer to a call, `D` is told of a cancel.
#[derive(Debug)]
pub(crate) struct Connection<P: Protocol, W, D> {
    pub(crate) protocol: P,
    pub(crate) read: ReadBuffer<P::Id>,
    pub(crate) out: Option<Box<WriteQueue>>,
    /// What only a connection with calls has.
    talk: Option<Box<Talk<P::Id, W, D>>>,
    salt: u64,
    pushes: u64,

    greeting: Greeting,
    role: Role,
    /// What answers are charged that wait for those before them: a copy of what the table of requests
    /// has, for the limits that are looked at with every message. Up to 4 GiB, to be small.
    held_cost: u32,
    /// The last request of the peer's that is handled.
    last_request: Option<P::Id>,
    /// What only a connection that comes to its end has.
    farewell: Option<Box<Farewell<P::Id>>>,
    heartbeat: Heartbeat,
    intake: Intake,
    frame: FrameClock,
    pub(crate) counts: Counts,
}

#[derive(Debug)]
struct Talk<Id, W, D> {
    calls: PendingCalls<Id, W>,
    requests: OpenRequests<Id, D>,
    /// Bytes of frames written since there is this; control frames that overtake aside.
    written: u64,
}

/// What a connection counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) late_replies: u32,
    /// The last round trip of a ping, in microseconds; 0: none yet.
    pub(crate) round_trip_us: u32,
}

/// What a whole frame is.
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

/// Where a frame went.
#[derive(Debug)]
pub(crate) enum Route<W, D> {
    /// It was handled here.
    Done,
    /// It is a message for the handler.
    Message,
    /// It ends a call, with its body as the reply or, where there is one, with this error.
    Ended(Pending<W>, Option<RemoteError>),
    /// It cancels a request of the peer's that is in flight, for the first time.
    Cancelled(D),
    /// The peer takes no new requests, with this reason. `excludes`: it handles fewer of ours than it
    /// said before.
    Goaway { text: PeerText, redial_after: Duration, excludes: bool },
}

/// A call that is about to start.
#[derive(Debug)]
pub(crate) struct NewCall<W> {
    pub(crate) number: u64,
    pub(crate) timer: Option<TimerKey>,
    pub(crate) waiter: W,
}

/// What a deadline that has passed asks for.
#[derive(Debug)]
pub(crate) enum Overdue {
    /// The peer is not there, or takes nothing: drop the connection.
    Abort(CloseReason),
    /// Close the connection, and say what is queued.
    Close(CloseReason),
    /// The peer said that it goes away, and does not: leave it.
    Leave,
}

/// What the peer answered to a call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteError {
    pub(crate) code: u32,
    pub(crate) text: String,
}

/// Why a call can't start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallRefusal {
    NoCalls,
    PeerDraining,
    TooManyInFlight { limit: usize },
    IdsExhausted,
}

impl<P: Protocol, W, D: Clone> Connection<P, W, D> {
    pub(crate) fn new(protocol: P, role: Role, config: &Config, salt: u64, now: Moment) -> Self {
        let greeting = Greeting::new(&protocol, config);
        Self {
            protocol,
            read: ReadBuffer::default(),
            out: None,
            talk: None,
            salt,
            pushes: 0,
            greeting,
            role,
            held_cost: 0,
            last_request: None,
            farewell: None,
            heartbeat: Heartbeat::new(now),
            intake: Intake::default(),
            frame: FrameClock::default(),
            counts: Counts::default(),
        }
    }

    /// The peers are connected: queues what a new connection says first.
    pub(crate) fn open(&mut self, config: &Config, pool: &mut QueuePool, now: Moment) {
        self.heartbeat = Heartbeat::new(now);
        if !self.protocol.has_hello() {
            return;
        }
        let rules = self.own_rules(config);
        // 0 means never.
        let millis = |duration: Option<Duration>| {
            duration.map_or(0, |duration| {
                u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
            })
        };
        let hello = Hello::new(
            u32::try_from(config.max_body).unwrap_or(u32::MAX),
            u32::try_from(config.max_requests).unwrap_or(u32::MAX),
            millis(rules.interval),
            millis(rules.idle_timeout),
        );
        let queue = self.out.get_or_insert_with(|| pool.take());
        queue.push_urgent(|out| self.protocol.encode_hello(&hello, out));
    }

    // ---- what arrives ----

    /// Looks for a frame at the front of `buf`, which the decoder has not seen, or of which it asked for
    /// so much.
    #[expect(
        clippy::inline_always,
        reason = "a call would carry the whole head through memory twice"
    )]
    #[inline(always)]
    pub(crate) fn decode(
        &mut self,
        buf: &[u8],
        config: &Config,
    ) -> Result<Decoded<P::Id>, DecodeError> {
        decode(&mut self.protocol, &self.greeting, buf, config)
    }

    /// Bytes arrived.
    #[inline]
    pub(crate) const fn handle_bytes(&mut self, count: usize, now: Moment) {
        self.heartbeat.heard(now);
        self.counts.bytes_in += count as u64;
    }

    /// Bytes wait in the system, or here, and it is our doing that they were not handled: the peer's
    /// deadlines begin anew.
    pub(crate) fn handle_unread(&mut self, now: Moment) {
        self.heartbeat.heard(now);
        self.frame.restart(now);
        if !self.is_greeted() {
            self.heartbeat = Heartbeat::new(now);
        }
    }

    /// Whether the frame that is being put together in its own buffer can be handled.
    pub(crate) fn is_frame_whole(&mut self, config: &Config) -> Result<bool, DecodeError> {
        if let Some(bytes) = self.read.undecoded() {
            let decoded = decode(&mut self.protocol, &self.greeting, bytes, config)?;
            self.read.note(decoded);
        }
        Ok(self.read.is_whole())
    }

    /// The start of a frame is there and the rest is not. Whether that sets a deadline that was not
    /// there before.
    pub(crate) fn frame_began(&mut self, now: Moment) -> bool {
        self.frame.start(now)
    }

    /// No frame is half received, or not the one that was.
    pub(crate) const fn frame_ended(&mut self) {
        self.frame.stop();
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

    /// Says where a frame goes that [`accept`](Self::accept) found to be neither a message nor a request.
    #[inline]
    pub(crate) fn handle_frame(
        &mut self,
        head: &Head<P::Id>,
        body: &[u8],
        pool: &mut QueuePool,
        now: Moment,
    ) -> Result<Route<W, D>, DecodeError> {
        match head.kind {
            Kind::Push | Kind::Request => {
                debug_assert!(false, "neither a push nor a request comes here");
                Ok(Route::Done)
            }
            Kind::Plain => {
                self.counts.messages_in += 1;
                // Where answers come in order, what is one has a kind of its own.
                let pending =
                    if self.is_in_order() { None } else { self.answered_call(&head.id, now) };
                Ok(match pending {
                    Some(pending) => Route::Ended(pending, None),
                    None => Route::Message,
                })
            }
            Kind::Reply => {
                self.counts.messages_in += 1;
                Ok(self.end_call(&head.id, None, now))
            }
            Kind::Error => {
                self.counts.messages_in += 1;
                let error = RemoteError { code: head.tag, text: text_of(body) };
                Ok(self.end_call(&head.id, Some(error), now))
            }
            Kind::Hello => self.handle_hello(body).map(|()| Route::Done),
            Kind::Ping => {
                self.handle_ping(head, body, pool, now);
                Ok(Route::Done)
            }
            Kind::Pong => {
                self.handle_pong(now);
                if body == FAREWELL {
                    self.finish_farewell(pool);
                }
                Ok(Route::Done)
            }
            Kind::Cancel => {
                let deferred = self.talk.as_mut().and_then(|talk| talk.requests.cancel(&head.id));
                Ok(deferred.cloned().map_or(Route::Done, Route::Cancelled))
            }
            Kind::Goaway => {
                let Self { protocol, farewell, .. } = self;
                let is_lower = |before: &P::Id| !protocol.may_be_handled(before, &head.id);
                let excludes =
                    farewell.get_or_insert_default().handle_goaway(head.id, is_lower, now);
                Ok(Route::Goaway {
                    text: text_of(body).into(),
                    redial_after: Duration::from_millis(u64::from(head.millis)),
                    excludes,
                })
            }
        }
    }

    fn handle_hello(&mut self, body: &[u8]) -> Result<(), DecodeError> {
        let hello = self.protocol.decode_hello(body)?;
        self.greeting.handle_hello(&hello);
        Ok(())
    }

    /// Whether the peer's hello came, or there is none to wait for.
    #[inline]
    pub(crate) const fn is_greeted(&self) -> bool {
        self.greeting.is_done()
    }

    fn handle_ping(&mut self, head: &Head<P::Id>, body: &[u8], pool: &mut QueuePool, now: Moment) {
        if self.greeting.heartbeat_by() == HeartbeatBy::Dialler && self.role == Role::Dialled {
            self.handle_pong(now);
            return;
        }
        // A peer that pings faster than it takes our pongs gets fewer of them.
        let queue = self.out.get_or_insert_with(|| pool.take());
        if queue.urgent_bytes() < MAX_URGENT {
            let pong = Head { kind: Kind::Pong, ..*head };
            queue.push_urgent(|out| self.protocol.encode(&pong, body, out));
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

    // ---- goodbyes ----

    /// Tells the peer, where the format can, that soon no new requests are taken.
    pub(crate) fn begin_farewell(&mut self, pool: &mut QueuePool, now: Moment) {
        let Some(id) = self.protocol.goaway_id(Goaway::Notice) else { return };
        if !self.farewell.get_or_insert_default().notice(now) {
            return;
        }
        let ping = self.next_push_id();
        let queue = self.out.get_or_insert_with(|| pool.take());
        queue.push_urgent(|out| self.protocol.encode(&Head::new(Kind::Goaway, id), &[], out));
        queue.push_urgent(|out| self.protocol.encode(&Head::new(Kind::Ping, ping), FAREWELL, out));
    }

    /// Tells the peer which request is the last that is handled, once it knows of the notice.
    fn finish_farewell(&mut self, pool: &mut QueuePool) {
        if !self.farewell.as_mut().is_some_and(|farewell| farewell.finish()) {
            return;
        }
        let last = self.last_request;
        if let Some(id) = self.protocol.goaway_id(Goaway::Final { last }) {
            let queue = self.out.get_or_insert_with(|| pool.take());
            queue.push_urgent(|out| self.protocol.encode(&Head::new(Kind::Goaway, id), &[], out));
        }
    }

    /// Whether requests are still taken although the connection drains.
    pub(crate) fn is_noticed(&self) -> bool {
        self.farewell.as_ref().is_some_and(|farewell| farewell.is_noticed())
    }

    /// The last request of ours that the peer handles, where it has said so.
    fn last_handled(&self) -> Option<P::Id> {
        self.farewell.as_ref()?.last_handled()
    }

    /// Whether the peer said that it goes away.
    pub(crate) fn is_left(&self) -> bool {
        self.last_handled().is_some()
    }

    /// When closing ends, whatever is left; `None` also where it takes as long as it takes.
    #[inline]
    pub(crate) fn close_by(&self) -> Option<Moment> {
        self.farewell.as_ref()?.close_by()
    }

    /// Closing has begun, and takes this long at the most; what was said before holds.
    pub(crate) fn close_within(&mut self, time: Duration, now: Moment) {
        self.farewell.get_or_insert_default().close_within(time, now);
    }

    /// Closing takes this long at the most, counted anew.
    pub(crate) fn close_anew(&mut self, time: Duration, now: Moment) {
        self.farewell.get_or_insert_default().close_anew(time, now);
    }

    /// Takes the calls of ours that the peer's goaway says it will not handle.
    pub(crate) fn take_excluded_calls(&mut self) -> Vec<Pending<W>> {
        let (Some(last), Some(talk)) = (self.last_handled(), &mut self.talk) else {
            return Vec::new();
        };
        let (protocol, salt) = (&self.protocol, self.salt);
        if let Some(line) = talk.calls.line_mut() {
            return line.take_where(|number| {
                let id = protocol.call_id(number, salt);
                id.is_some_and(|id| !protocol.may_be_handled(&id, &last))
            });
        }
        talk.calls.take_where(|id| !protocol.may_be_handled(id, &last))
    }

    // ---- what is sent ----

    /// The longest body that may be sent.
    #[inline]
    pub(crate) const fn max_body(&self) -> usize {
        self.greeting.max_body()
    }

    /// The longest body that may be sent, and whose limit that is.
    pub(crate) const fn body_limit(&self) -> (usize, LimitBy) {
        self.greeting.body_limit()
    }

    /// Queues a frame. If the format's encoder panics nothing is queued.
    #[inline]
    pub(crate) fn push_frame(
        &mut self,
        head: &Head<P::Id>,
        body: impl Body,
        what: What,
        pool: &mut QueuePool,
    ) {
        let len = body.as_slice().len();
        let is_plain = self.protocol.is_header_then_body();
        let protocol = &mut self.protocol;
        let queue = self.out.get_or_insert_with(|| pool.take());
        if what.is_push() && !is_plain {
            let encode = |body: &[u8], out: &mut Vec<u8>| protocol.encode(head, body, out);
            queue.push_transformed(what, head.tag, body, encode);
        } else if len < SHARE_BYTES || !is_plain {
            queue.push(what, head.tag, len, |out| protocol.encode(head, body.as_slice(), out));
        } else if body.is_shared() || len > LARGE_FRAME {
            let encode = |out: &mut Vec<u8>| protocol.encode_header(head, len, out);
            queue.push_shared(what, head.tag, encode, body.into_bytes());
        } else {
            queue.make_room(len, &mut pool.spares);
            queue.push(what, head.tag, len, |out| protocol.encode(head, body.as_slice(), out));
        }
    }

    /// Queues a push that was encoded before, with this body.
    pub(crate) fn push_encoded(
        &mut self,
        tag: u32,
        body: &Bytes,
        frame: &Bytes,
        pool: &mut QueuePool,
    ) {
        let original = if self.protocol.is_header_then_body() { None } else { Some(body) };
        let queue = self.out.get_or_insert_with(|| pool.take());
        queue.push_encoded(tag, body.len(), frame, original);
    }

    /// Whether answers carry no id and go in the order of the requests.
    #[inline]
    pub(crate) fn is_in_order(&self) -> bool {
        self.protocol.correlation() == Correlation::InOrder
    }

    /// Queues a frame as the answer to a request, once those before it are answered where answers go in
    /// order. `place` is that of a request that was deferred there; `None`: it is the newest request.
    #[inline]
    pub(crate) fn push_answer(
        &mut self,
        place: Option<u32>,
        head: &Head<P::Id>,
        body: impl Body,
        pool: &mut QueuePool,
    ) {
        if self.is_in_order() && matches!(head.kind, Kind::Reply | Kind::Error) {
            self.push_in_order(place, head, body, pool);
        } else {
            self.push_frame(head, body, What::Answer, pool);
        }
    }

    fn push_in_order(
        &mut self,
        place: Option<u32>,
        head: &Head<P::Id>,
        body: impl Body,
        pool: &mut QueuePool,
    ) {
        let requests = &mut self.talk_or_new().requests;
        if !requests.is_next(place) {
            requests.hold(place, *head, body.into_bytes());
            self.note_held();
            return;
        }
        if place.is_some() {
            requests.advance();
        }
        self.push_frame(head, body, What::Answer, pool);
        while let Some((head, body)) = self.talk_or_new().requests.take_answer() {
            self.note_held();
            self.push_frame(&head, body, What::Answer, pool);
        }
    }

    fn note_held(&mut self) {
        self.held_cost = u32::try_from(self.held().cost()).unwrap_or(u32::MAX);
    }

    /// Answers that wait for those before them.
    pub(crate) fn held(&self) -> Held {
        self.talk.as_ref().map_or_else(Held::default, |talk| talk.requests.held())
    }

    /// Queues an error as the answer to a request; `place` as for [`push_answer`](Self::push_answer).
    pub(crate) fn push_error(
        &mut self,
        place: Option<u32>,
        id: P::Id,
        code: u32,
        text: &str,
        pool: &mut QueuePool,
    ) {
        let head = Head { tag: code, ..Head::new(Kind::Error, id) };
        let text = cut(text, MAX_TEXT.min(self.protocol.largest_body()));
        self.push_answer(place, &head, text, pool);
    }

    /// The id of a message that nobody answers.
    pub(crate) fn next_push_id(&mut self) -> P::Id {
        self.pushes += 1;
        self.protocol.push_id(self.pushes, self.salt)
    }

    /// Whether the kind of a frame tells requests, replies and other messages apart.
    fn has_kinds(&self) -> bool {
        matches!(self.protocol.correlation(), Correlation::ByKind | Correlation::InOrder)
    }

    /// What a message is called on this protocol.
    pub(crate) fn push_kind(&self) -> Kind {
        if self.has_kinds() { Kind::Push } else { Kind::Plain }
    }

    /// So many bytes of the queue's slices were written.
    #[inline]
    pub(crate) fn handle_written(
        &mut self,
        count: usize,
        spares: &mut Spares,
        now: Moment,
    ) -> Written {
        let Some(queue) = &mut self.out else { return Written::default() };
        let written = queue.advance(count, spares);
        if let Some(talk) = &mut self.talk {
            talk.written += written.bytes as u64;
        }
        self.counts.messages_out += written.messages;
        queue.stalled_since = if queue.is_empty() { None } else { Some(now) };
        written
    }

    /// Takes the messages that nobody answers and that were not written whole, with their tags. The
    /// epoch is over: what is queued will not be written.
    pub(crate) fn take_unsent(&mut self) -> Vec<Tagged<Bytes>> {
        self.out.as_mut().map_or_else(Vec::new, |queue| queue.take_unsent())
    }

    /// The system takes no more for now.
    pub(crate) fn handle_write_blocked(&mut self, now: Moment) {
        if let Some(queue) = &mut self.out {
            queue.stalled_since.get_or_insert(now);
        }
    }

    /// Since when bytes wait to be written and none was taken.
    fn stalled_since(&self) -> Option<Moment> {
        self.out.as_ref()?.stalled_since
    }

    /// Whether an encoder took away what was queued, so that nothing may be written.
    #[inline]
    pub(crate) fn is_torn(&self) -> bool {
        self.out.as_ref().is_some_and(|queue| queue.is_torn())
    }

    pub(crate) fn has_output(&self) -> bool {
        self.out.as_ref().is_some_and(|queue| !queue.is_empty())
    }

    /// The queue has grown or shrunk. Whether that choked the peer.
    #[inline]
    pub(crate) fn update_intake(&mut self, config: &Config) -> bool {
        let caused = self.caused_cost();
        self.intake.update(caused, config)
    }

    /// Whether messages may be read and handled, as far as the queue is concerned.
    #[inline]
    pub(crate) fn is_intake_open(&self, config: &Config) -> bool {
        if !self.intake.is_choked() {
            return true;
        }
        let load = Load {
            queued: self.queued_cost(),
            caused: self.caused_cost(),
            calls: self.calls_in_flight(),
        };
        self.intake.is_open(load, config)
    }

    /// Whether another message may be handled, as far as deferred requests are concerned that can't be
    /// refused: those that the format does not mark as such, and those whose answers go in order. One
    /// too many of them is not read.
    #[inline]
    pub(crate) fn has_request_room(&self, config: &Config) -> bool {
        self.talk.as_ref().is_none_or(|talk| talk.requests.unrefusable() < config.max_requests)
    }

    pub(crate) const fn is_choked(&self) -> bool {
        self.intake.is_choked()
    }

    /// What is queued, and answers that wait for others, overhead included.
    #[inline]
    pub(crate) fn queued_cost(&self) -> usize {
        self.out.as_ref().map_or(0, |queue| queue.cost()) + self.held_cost as usize
    }

    /// As [`queued_cost`](Self::queued_cost), of what the peer's own messages caused.
    #[inline]
    fn caused_cost(&self) -> usize {
        self.out.as_ref().map_or(0, |queue| queue.caused()) + self.held_cost as usize
    }

    // ---- calls of ours ----

    /// Whether a call may start now, and the number and id that it would have.
    pub(crate) fn next_call(
        &mut self,
        config: &Config,
        first: Option<u64>,
    ) -> Result<(u64, P::Id), CallRefusal> {
        if self.protocol.correlation() == Correlation::None {
            return Err(CallRefusal::NoCalls);
        }
        if self.last_handled().is_some() {
            return Err(CallRefusal::PeerDraining);
        }
        let limit = self.greeting.max_calls(config.max_calls);
        let salt = self.salt;
        let first = first.unwrap_or_else(|| self.protocol.first_call(salt));
        let calls = &mut self.talk_or_new().calls;
        // The peer still answers those that were given up, before any new one.
        let awaited = calls.line().map_or(0, super::calls::CallLine::awaited);
        if calls.len() + awaited >= limit {
            return Err(CallRefusal::TooManyInFlight { limit });
        }
        let number = calls.next_number(first).ok_or(CallRefusal::IdsExhausted)?;
        let Some(id) = self.call_id(number) else { return Err(CallRefusal::NoCalls) };
        if self.talk_or_new().calls.contains(&id) {
            // The protocol gives an id twice: with this one the call before it would be lost.
            return Err(CallRefusal::IdsExhausted);
        }
        Ok((number, id))
    }

    /// Enters the call that [`next_call`](Self::next_call) allowed, and queues its request. In this
    /// order, so that it ends also where encoding it panics.
    pub(crate) fn push_call(
        &mut self,
        head: &Head<P::Id>,
        body: impl Body,
        call: NewCall<W>,
        pool: &mut QueuePool,
    ) {
        let queued = self.out.as_ref().map_or(0, |queue| queue.frame_bytes());
        let talk = self.talk.as_mut().expect("next_call made it");
        let starts_at = talk.written + queued as u64;
        let NewCall { number, timer, waiter } = call;
        let pending = Pending { number, starts_at, timer, waiter };
        if self.protocol.correlation() == Correlation::InOrder {
            talk.calls.insert_in_order(pending);
        } else {
            talk.calls.insert(head.id, pending);
        }
        self.push_frame(head, body, What::Request, pool);
    }

    /// The kind that a request has on the wire.
    pub(crate) fn request_kind(&self) -> Kind {
        if self.has_kinds() { Kind::Request } else { Kind::Plain }
    }

    /// The id on the wire of our call of that number. Where answers come in order it means nothing.
    fn call_id(&self, number: u64) -> Option<P::Id> {
        let id = self.protocol.call_id(number, self.salt);
        if id.is_none() && self.is_in_order() {
            return Some(self.protocol.push_id(number, self.salt));
        }
        id
    }

    /// Takes the call of that number before its answer, with its id on the wire.
    pub(crate) fn give_up_call(&mut self, number: u64) -> Option<(Pending<W>, P::Id)> {
        let (id, is_in_order) = (self.call_id(number)?, self.is_in_order());
        let calls = &mut self.talk.as_mut()?.calls;
        let pending =
            if is_in_order { calls.line_mut()?.take(number)? } else { calls.take(&id)? };
        Some((pending, id))
    }

    /// Takes every call in flight, oldest first: the epoch is over.
    pub(crate) fn take_calls(&mut self) -> Vec<Pending<W>> {
        let Some(talk) = &mut self.talk else { return Vec::new() };
        if let Some(line) = talk.calls.line_mut() {
            return line.take_where(|_| true);
        }
        if talk.calls.is_empty() { Vec::new() } else { talk.calls.take_all() }
    }

    /// Whether the peer may have handled a request of ours, or still may: a byte of it was given to the
    /// system, or will be, and no goaway proves the opposite.
    pub(crate) fn may_be_handled(&self, pending: &Pending<W>, is_flushed: bool) -> bool {
        let is_excluded = self.last_handled().is_some_and(|last| {
            self.call_id(pending.number).is_some_and(|id| !self.protocol.may_be_handled(&id, &last))
        });
        let written = self.talk.as_ref().map_or(0, |talk| talk.written);
        (is_flushed || pending.starts_at < written) && !is_excluded
    }

    pub(crate) fn calls_in_flight(&self) -> usize {
        let Some(talk) = &self.talk else { return 0 };
        if self.is_in_order() {
            talk.calls.line().map_or(0, super::calls::CallLine::in_flight)
        } else {
            talk.calls.len()
        }
    }

    /// How often all calls in flight were looked at.
    #[cfg(test)]
    pub(crate) fn call_scans(&self) -> u32 {
        self.talk.as_ref().map_or(0, |talk| talk.calls.scans)
    }

    // ---- requests of the peer's ----

    /// The request outlives its callback.
    pub(crate) fn defer(&mut self, id: P::Id, deferred: D) {
        self.talk_or_new().requests.insert(id, deferred);
    }

    /// As [`defer`](Self::defer), where answers go in order: the place of this one.
    pub(crate) fn defer_in_order(&mut self, deferred: D) -> u32 {
        self.talk_or_new().requests.insert_in_order(deferred)
    }

    /// Whether the request of that place, where answers go in order, has no answer.
    pub(crate) fn is_awaited(&self, place: u32) -> bool {
        self.talk.as_ref().is_some_and(|talk| talk.requests.is_awaited(place))
    }

    /// A request that the format does not mark as one outlives its callback. What is told of the end
    /// of the epoch: this, or what was given before.
    pub(crate) fn defer_unmarked(&mut self, deferred: D) -> D {
        self.talk_or_new().requests.insert_unmarked(deferred).clone()
    }

    /// The request is being answered; `None` if that was done already.
    pub(crate) fn take_request(&mut self, id: &P::Id) -> Option<D> {
        self.talk.as_mut()?.requests.remove(id)
    }

    /// A request that the format does not mark is being answered, or will not be.
    pub(crate) fn take_unmarked_request(&mut self) {
        if let Some(talk) = &mut self.talk {
            talk.requests.remove_unmarked();
        }
    }

    pub(crate) fn requests_in_flight(&self) -> usize {
        self.talk.as_ref().map_or(0, |talk| talk.requests.len())
    }

    /// Requests in flight for whose answers the peer waits; those that it has cancelled aside.
    pub(crate) fn requests_awaited(&self) -> usize {
        self.talk.as_ref().map_or(0, |talk| talk.requests.awaited())
    }

    /// Takes every request in flight: the epoch is over.
    pub(crate) fn take_requests(&mut self) -> Vec<D> {
        self.held_cost = 0;
        self.talk.as_mut().map_or_else(Vec::new, |talk| talk.requests.drain().collect())
    }

    fn talk_or_new(&mut self) -> &mut Talk<P::Id, W, D> {
        self.talk.get_or_insert_with(|| {
            Box::new(Talk {
                calls: PendingCalls::default(),
                requests: OpenRequests::default(),
                written: 0,
            })
        })
    }

    // ---- deadlines ----

    /// The earliest moment at which [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn poll_timeout(&self, config: &Config) -> Option<Moment> {
        // A connection that closes has only its end to wait for.
        if let Some(farewell) = &self.farewell
            && farewell.is_closing()
        {
            return farewell.poll_timeout();
        }
        let since = self.stalled_since();
        [
            self.hello_by(config),
            since.and_then(|since| since.checked_add(config.write_timeout)),
            self.frame.deadline(self.read.frame_len(), config),
            self.heartbeat.poll_timeout(self.rules(config)),
            self.intake.poll_timeout(since, config),
            self.leave_by(config),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Judges the deadlines, and queues a ping that is due. What must be done because of one, if
    /// something must.
    pub(crate) fn handle_timeout(
        &mut self,
        config: &Config,
        pool: &mut QueuePool,
        now: Moment,
    ) -> Option<Overdue> {
        if let Some(farewell) = &self.farewell
            && farewell.is_closing()
        {
            if farewell.is_notice_over(now) {
                self.finish_farewell(pool);
            }
            return None;
        }
        let is_over = |limit: Option<Moment>| limit.is_some_and(|limit| now >= limit);
        if is_over(self.hello_by(config)) {
            return Some(Overdue::Close(CloseReason::HelloTimeout(config.hello_timeout)));
        }
        let frame_len = self.read.frame_len();
        if is_over(self.frame.deadline(frame_len, config)) {
            let limit = frame_clock::limit(frame_len, config);
            return Some(Overdue::Close(CloseReason::FrameTimeout(limit)));
        }
        if let Some(queue) = &mut self.out
            && let Some(since) = &mut queue.stalled_since
            && let Some(limit) = since.checked_add(config.write_timeout)
            && now >= limit
        {
            if now.saturating_duration_since(limit) < AWAY {
                return Some(Overdue::Abort(CloseReason::WriteStalled(config.write_timeout)));
            }
            // We were away, and perhaps the peer was, too: it is given as much time again.
            *since = now;
        }
        let stalled_since = self.stalled_since();
        if is_over(self.leave_by(config)) {
            return Some(Overdue::Leave);
        }
        self.intake.handle_timeout(stalled_since, config, now);
        let rules = self.rules(config);
        match self.heartbeat.handle_timeout(rules, now) {
            Due::Nothing => None,
            Due::Dead => {
                rules.idle_timeout.map(|limit| Overdue::Abort(CloseReason::IdleTimeout(limit)))
            }
            Due::Ping => {
                let id = self.next_push_id();
                let queue = self.out.get_or_insert_with(|| pool.take());
                queue.push_urgent(|out| self.protocol.encode(&Head::new(Kind::Ping, id), &[], out));
                None
            }
        }
    }

    /// When the peer's hello must have come, if it has not.
    fn hello_by(&self, config: &Config) -> Option<Moment> {
        if self.is_greeted() {
            None
        } else {
            self.heartbeat.began().checked_add(config.hello_timeout)
        }
    }

    /// When we leave a peer that said goaway and does not close.
    fn leave_by(&self, config: &Config) -> Option<Moment> {
        let is_in_flight =
            self.calls_in_flight() > 0 || self.requests_awaited() > 0 || self.has_output();
        self.farewell.as_ref()?.leave_by(is_in_flight, config)
    }

    /// Our rules, as the settings have them.
    fn own_rules(&self, config: &Config) -> Rules {
        own_rules(self.greeting.heartbeat_by(), self.role == Role::Dialled, config)
    }

    /// Our rules, faster where the peer would otherwise give us up.
    fn rules(&self, config: &Config) -> Rules {
        self.greeting.rules(self.own_rules(config))
    }

    pub(crate) const fn role(&self) -> Role {
        self.role
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert_eq!(self.held_cost as usize, self.held().cost());
    }
}

/// Asks the decoder, and checks what it answers.
#[expect(clippy::inline_always, reason = "see `Connection::decode`")]
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

/// The most bytes of pongs that wait for a peer which does not take them.
const MAX_URGENT: usize = 16 * 1024;

/// A text of at most `max` bytes, cut at a character.
fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max { text } else { &text[..text.floor_char_boundary(max)] }
}

/// A peer's text: what is no UTF-8 replaced, and not longer than we keep.
fn text_of(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT)]);
    cut(&text, MAX_TEXT).to_owned()
}
