//! One connection, as far as it can be decided without a socket.
//!
//! Bytes and the time go in; messages, answers and bytes come out.
//!
//! ```text
//! socket ─▶ room, receive ─▶ Input ─▶ decode, take, accept ─┬▶ Message, Request   for the handler
//!                                                           └▶ Other ─▶ handle_frame
//!                                                Ended      a call of ours, with its answer
//!                                                Cancelled  the peer waits for a request no longer
//!                                                Goaway     the peer takes no new requests
//!                                                Done       hello, ping, pong, a late reply
//! socket ◀─ write ◀─ write queue ◀─ push_frame, push_answer, push_call
//! ```
//!
//! Each mechanism has a file of its own, here or beside: what arrives ([`input`]), what is sent
//! ([`output`]), calls both ways ([`talk`]), the end ([`ending`]), the deadlines, and the layer that may
//! lie between the socket and the frames ([`wire`]).
//!
//! After every `handle_*` and every command the shell looks at [`Connection::has_output`] and
//! [`Connection::poll_timeout`].

mod deadlines;
mod ending;
mod input;
mod output;
mod talk;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

pub(crate) use self::input::{Incoming, Input, Received};
use super::{
    calls::{Pending, PendingCalls},
    farewell::Farewell,
    frame_clock::FrameClock,
    greeting::Greeting,
    heartbeat::Heartbeat,
    intake::Intake,
    layered::Layered,
    read_buffer::ReadBuffer,
    requests::OpenRequests,
    write_queue::{QueuePool, WriteQueue},
};
use crate::{
    config::Config,
    error::{CloseReason, PeerText},
    id::TimerKey,
    moment::Moment,
    protocol::{Hello, Protocol},
    role::Role,
};

/// The longest text of an error or a goaway, in bytes, of ours and of the peer's; a longer one is cut.
pub(crate) const MAX_TEXT: usize = 4096;

/// What only a connection with calls has.
#[derive(Debug)]
struct Talk<Id, W, D> {
    calls: PendingCalls<Id, W>,
    requests: OpenRequests<Id, D>,
    /// Bytes of frames written since there is this; control frames that overtake aside.
    written: u64,
}

/// The state of one epoch. `W` waits for the answer to a call, `D` is told of a cancel.
#[derive(Debug)]
pub(crate) struct Connection<P: Protocol, W, D> {
    protocol: P,
    read: ReadBuffer<P::Id>,
    out: Option<Box<WriteQueue>>,
    /// The layer between the socket and the frames, if there is one.
    layer: Option<Box<Layered>>,
    /// State that only a connection with calls has.
    talk: Option<Box<Talk<P::Id, W, D>>>,
    salt: u64,
    pushes: u64,

    greeting: Greeting,
    role: Role,
    /// The charge beside the queue: answers that wait for those before them, and bytes that the layer
    /// holds of its own. A copy, for the limits that are looked at with every message. Up to 4 GiB, to be
    /// small.
    charged_beside: u32,
    /// The last request of the peer's that is handled.
    last_request: Option<P::Id>,
    /// State that only a connection has that comes to its end.
    farewell: Option<Box<Farewell<P::Id>>>,
    heartbeat: Heartbeat,
    intake: Intake,
    frame: FrameClock,
    counts: Counts,
}

/// The counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) late_replies: u32,
    /// The last round trip of a ping, in microseconds; 0: none yet.
    pub(crate) round_trip_us: u32,
}

/// Where a frame went.
#[derive(Debug)]
pub(crate) enum Route<W, D> {
    /// It was handled here.
    Done,
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

/// The consequence of a deadline that has passed.
#[derive(Debug)]
pub(crate) enum Overdue {
    /// The peer is not there, or takes nothing: drop the connection.
    Abort(CloseReason),
    /// Close the connection, and say what is queued.
    Close(CloseReason),
    /// The peer said that it goes away, and does not: leave it.
    Leave,
}

/// The peer's answer to a call that failed.
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
            layer: None,
            talk: None,
            salt,
            pushes: 0,
            greeting,
            role,
            charged_beside: 0,
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
        self.heartbeat.begin(now);
        self.add_layer(config, now);
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
        self.push_urgent(pool, |protocol, out| protocol.encode_hello(&hello, out));
    }

    /// The format.
    pub(crate) const fn protocol(&self) -> &P {
        &self.protocol
    }

    /// The counters so far.
    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) const fn role(&self) -> Role {
        self.role
    }
}

/// The most bytes of pongs that wait for a peer which does not take them.
const MAX_URGENT: usize = 16 * 1024;

/// A text of at most `max` bytes, cut at a character.
fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max { text } else { &text[..text.floor_char_boundary(max)] }
}
