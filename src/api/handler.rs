//! What the application implements, and the message that it is given.

use std::{any::Any, cell::Cell, fmt, time::Duration};

use bytes::Bytes;

use crate::{
    CloseReport, Conn, ConnId, Context, Incident, TimerId,
    body::{Body, sealed::Sealed},
    moment::Moment,
    protocol::{Head, Kind, Protocol},
};

/// The application's side of a reactor: callbacks, all on the reactor's thread, none at the same
/// time as another. Only [`on_message`](Self::on_message) must be written.
///
/// For each epoch of a connection [`on_connect`](Self::on_connect) comes before any message and
/// [`on_disconnect`](Self::on_disconnect) exactly once, after the last. A callback must not block:
/// every connection waits for it.
///
/// A callback that panics closes its connection, with the reason
/// [`CloseReason::Panicked`](crate::CloseReason::Panicked); the loop goes on. So does whatever else the
/// application gave: its protocol, its policies, what it keeps with the connection. (With
/// `panic = "abort"` the process ends.) The handler is then as the panic left it.
///
/// # Examples
///
/// ```
/// use longhaul::{Conn, Handler, Message, protocol::Native};
///
/// #[derive(Default)]
/// struct Counter {
///     messages: u64,
/// }
///
/// impl Handler for Counter {
///     type Protocol = Native;
///
///     fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
///         self.messages += 1;
///         let _ = conn.reply(&msg, format!("message {}", self.messages));
///     }
/// }
/// ```
pub trait Handler: Sized + 'static {
    /// The wire format of the connections.
    type Protocol: Protocol;

    /// A message, or a request that waits for its answer.
    ///
    /// The body lies in the read buffer and is gone after the callback; keep it with
    /// [`Message::into_bytes`]. A request that is neither answered nor
    /// [deferred](Conn::defer) when the callback returns is answered with the error `unanswered`.
    fn on_message(&mut self, conn: &mut Conn<'_, Self::Protocol>, msg: Message<'_, Self::Protocol>);

    /// The loop starts; called once, in the first turn.
    fn on_start(&mut self, cx: &mut Context<'_, Self::Protocol>) {
        let _ = cx;
    }

    /// The loop has stopped and every connection is closed; the last callback.
    fn on_stop(&mut self, cx: &mut Context<'_, Self::Protocol>) {
        let _ = cx;
    }

    /// A connection was accepted, or a dialled one was made, for the first time or again
    /// ([`Conn::epoch`] tells). Where the protocol has a hello, the peer's has come. What is sent here goes
    /// before what was queued while it was down.
    fn on_connect(&mut self, conn: &mut Conn<'_, Self::Protocol>) {
        let _ = conn;
    }

    /// The connection, or this epoch of it, has ended.
    fn on_disconnect(&mut self, conn: &mut Conn<'_, Self::Protocol>, report: &CloseReport) {
        let _ = (conn, report);
    }

    /// The write queue, which was above its high watermark, is down to the low one.
    fn on_writable(&mut self, conn: &mut Conn<'_, Self::Protocol>) {
        let _ = conn;
    }

    /// A timer that [`Context::set_timer`] or [`Conn::set_timer`] set is due.
    fn on_timer(&mut self, cx: &mut Context<'_, Self::Protocol>, timer: Timer) {
        let _ = (cx, timer);
    }

    /// The peer no longer waits for the answer to a request that was deferred.
    fn on_cancel(
        &mut self,
        conn: &mut Conn<'_, Self::Protocol>,
        request: <Self::Protocol as Protocol>::Id,
    ) {
        let _ = (conn, request);
    }

    /// Problems that belong to no other callback: accepting failed, dialling failed, a callback without a
    /// connection panicked. Default: logged as a warning.
    fn on_error(&mut self, cx: &mut Context<'_, Self::Protocol>, incident: &Incident) {
        let _ = cx;
        // Whoever scans ports must not fill the log.
        let level = match incident {
            Incident::HandshakeFailed { .. } => log::Level::Debug,
            _ => log::Level::Warn,
        };
        log::log!(level, "{incident}");
    }

    /// What the callback of a call is given as its handler: this one, unless it wraps another.
    #[doc(hidden)]
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// A timer that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timer {
    /// What setting it returned.
    pub id: TimerId,
    /// The number that the application gave it.
    pub token: u64,
    /// The connection for which it was set.
    pub conn: Option<ConnId>,
}

/// A message, borrowed from the read buffer.
pub struct Message<'a, P: Protocol> {
    pub(crate) head: &'a Head<P::Id>,
    pub(crate) body: &'a [u8],
    pub(crate) arrival: &'a Arrival<'a>,
    /// Where the format says that it is a request.
    pub(crate) asked: Option<&'a Asked>,
}

/// What messages that were read together share.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) conn: ConnId,
    /// What holds the bodies where they have a buffer of their own.
    pub(crate) owner: Option<&'a Bytes>,
    /// When they were read.
    pub(crate) at: Moment,
}

/// The request that is being handled, of those that were read together.
#[derive(Debug)]
pub(crate) struct Asked {
    /// When the caller stops waiting.
    pub(crate) deadline: Cell<Option<Moment>>,
    pub(crate) now: Moment,
}

impl Asked {
    pub(crate) const fn new(now: Moment) -> Self {
        Self { deadline: Cell::new(None), now }
    }
}

impl<P: Protocol> Message<'_, P> {
    /// The body.
    pub const fn body(&self) -> &[u8] {
        self.body
    }

    /// The body as text, where it is UTF-8, with a replacement for what is not.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.body)
    }

    /// The body, to be kept. Copies a small one; a large one has a buffer of its own, which is
    /// handed over.
    pub fn into_bytes(self) -> Bytes {
        (&self).into_bytes()
    }

    /// The application's message type; 0 where the format has none.
    pub const fn tag(&self) -> u32 {
        self.head.tag
    }

    /// The id on the wire.
    pub const fn id(&self) -> P::Id {
        self.head.id
    }

    /// Whether the format says that an answer is awaited. Where it does not tell requests from other
    /// messages (`tcpstream`, `qtk`) this is false, and the application knows.
    pub fn is_request(&self) -> bool {
        self.head.kind == Kind::Request
    }

    /// What the frame was.
    pub const fn kind(&self) -> Kind {
        self.head.kind
    }

    /// How long the caller will still wait, where it said so.
    pub fn remaining(&self) -> Option<Duration> {
        let asked = self.asked?;
        Some(asked.deadline.get()?.saturating_duration_since(asked.now))
    }
}

impl<P: Protocol> fmt::Debug for Message<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("kind", &self.head.kind)
            .field("id", &self.head.id)
            .field("tag", &self.head.tag)
            .field("len", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl<P: Protocol> Sealed for &Message<'_, P> {}

/// A message sent on as it is, its tag included. A large body is shared, not copied.
impl<P: Protocol> Body for &Message<'_, P> {
    fn as_slice(&self) -> &[u8] {
        self.body
    }

    fn into_bytes(self) -> Bytes {
        match self.arrival.owner {
            Some(owner) => owner.slice_ref(self.body),
            None => Bytes::copy_from_slice(self.body),
        }
    }

    fn is_shared(&self) -> bool {
        self.arrival.owner.is_some()
    }

    fn tag(&self) -> Option<u32> {
        Some(self.head.tag)
    }
}

/// The answer to a call, borrowed from the read buffer.
#[derive(Clone, Copy)]
pub struct Reply<'a> {
    pub(crate) tag: u32,
    pub(crate) body: &'a [u8],
    pub(crate) owner: Option<&'a Bytes>,
}

impl Reply<'_> {
    /// The body.
    pub const fn body(&self) -> &[u8] {
        self.body
    }

    /// The body as text, where it is UTF-8, with a replacement for what is not.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.body)
    }

    /// The application's message type.
    pub const fn tag(&self) -> u32 {
        self.tag
    }

    /// The body, to be kept. Copies a small one.
    pub fn to_bytes(&self) -> Bytes {
        match self.owner {
            Some(owner) => owner.slice_ref(self.body),
            None => Bytes::copy_from_slice(self.body),
        }
    }
}

impl fmt::Debug for Reply<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("tag", &self.tag).field("len", &self.body.len()).finish()
    }
}
