//! Frames: their heads, their kinds, and how a reply finds its request.

use std::ops::Range;

/// The answer of [`Protocol::decode`](super::Protocol::decode) about the front of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decoded<Id> {
    /// The header is not whole: look again when this many bytes are there, counted from the front, and
    /// not before. A number that is not above what was shown counts as one byte more.
    Need(usize),
    /// A frame, of which the body may not have arrived.
    Frame {
        /// The fields of the header.
        head: Head<Id>,
        /// Where the body stands, counted from the front.
        body: Range<usize>,
        /// Bytes of the whole frame; at least `body.end` and at least 1.
        len: usize,
    },
}

impl<Id> Decoded<Id> {
    /// More bytes are needed: `total` from the front.
    pub const fn need(total: usize) -> Self {
        Self::Need(total)
    }

    /// A frame of a header and a body right behind it.
    pub const fn frame(head: Head<Id>, header_len: usize, body_len: usize) -> Self {
        let end = header_len.saturating_add(body_len);
        Self::Frame { head, body: header_len..end, len: end }
    }
}

/// The fields of a frame's header, but for the length of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Head<Id> {
    /// The kind of the frame.
    pub kind: Kind,
    /// The correlation id.
    pub id: Id,
    /// The application's message type; on [`Kind::Error`] the code. 0 where the format has none.
    pub tag: u32,
    /// On [`Kind::Request`] the milliseconds that the caller will still wait (0: not said), on
    /// [`Kind::Goaway`] those to wait before a redial; else 0.
    pub millis: u32,
}

impl<Id> Head<Id> {
    /// A head of this kind and id, with tag and millis 0.
    pub const fn new(kind: Kind, id: Id) -> Self {
        Self { kind, id, tag: 0, millis: 0 }
    }

    /// A message of a format that does not tell requests from replies.
    pub const fn plain(id: Id) -> Self {
        Self::new(Kind::Plain, id)
    }
}

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The first frame, with the sender's limits.
    Hello,
    /// One way: no answer is expected.
    Push,
    /// Answered by exactly one reply or error.
    Request,
    /// The answer to a request.
    Reply,
    /// The answer to a request that failed.
    Error,
    /// A probe, to be answered with a pong.
    Ping,
    /// The answer to a ping.
    Pong,
    /// No new requests are taken.
    Goaway,
    /// The caller no longer waits.
    Cancel,
    /// A message whose format does not say what it is: a reply if its id is in the pending table,
    /// else a message for the handler.
    Plain,
}

/// How a reply finds its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Correlation {
    /// It can't: calls are refused.
    None,
    /// The frame's kind tells replies from requests.
    ByKind,
    /// A frame whose id is in the pending table is a reply.
    ByPendingTable,
    /// The frame's kind tells replies from requests, no frame carries an id, and replies come in the
    /// order of the requests, as in Redis and SMTP. Pushes may come in between.
    ///
    /// A frame of [`Kind::Reply`] or [`Kind::Error`] ends the oldest of our calls. A call that timed out
    /// or was cancelled keeps its place until its answer comes, and counts as one of
    /// [`max_calls`](crate::Config::max_calls) until then. The peer's requests are answered in the order
    /// in which they came: an answer that is given sooner waits for those before it. Meanwhile it counts
    /// as one of [`max_requests`](crate::Config::max_requests), with which nothing more is read, and its
    /// bytes as queued. A request that is left unanswered is answered with an error; where the format has
    /// none ([`has_errors`](super::Protocol::has_errors)) the connection closes, with the reason
    /// [`Unanswered`](crate::CloseReason::Unanswered).
    InOrder,
}

/// The side that sends heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeartbeatBy {
    /// Nobody: the format has no ping.
    Nobody,
    /// The side that dialled; the other sends the same bytes back, which the dialler takes as the pong.
    Dialler,
    /// Either side; a pong answers.
    Both,
}

/// The two steps in which a side says that it takes no new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Goaway<Id> {
    /// Soon none will be taken; those under way still are.
    Notice,
    /// None is taken after this one.
    Final {
        /// The last request that was handled, if any was.
        last: Option<Id>,
    },
}

/// The id of a format that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NoId;
