//! One error type for each kind of question: was it accepted, how did the call end, why did the
//! connection end.

mod peer_text;

use std::{any::Any, borrow::Cow, error, fmt, io, time::Duration};

pub use self::peer_text::PeerText;
pub(crate) use self::peer_text::Printable;
use crate::{Addr, ConnId, ListenerId, protocol::DecodeError};

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is no text".to_owned()
    }
}

/// The result of what can fail as a whole: building, listening, running.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a reactor could not be built, bound, dialled or run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    Io(io::Error),
    /// A setting is out of its range, or two contradict each other.
    Config(ConfigError),
    /// An address is none of the forms that a [`Target`](crate::Target) takes.
    Address(String),
    /// An address is of a kind that this version does not have.
    Unsupported(String),
    /// The reactor has stopped.
    Stopped,
    /// A blocking method was called on the reactor's own thread, which would wait for itself.
    OnLoopThread,
    /// The mailbox is full.
    Full,
    /// A blocking method was called on a reactor that no thread has run yet, and none began to within
    /// 5 s. Nothing was done, and nothing will be.
    NotRunning,
    /// A closure that was put to the loop panicked, or the loop's thread did, or the protocol as a connection
    /// or a listener was to be made; with the panic's message.
    Panicked(String),
    /// A message was not accepted.
    Send(SendError),
    /// A call ended without a reply.
    Call(CallError),
}

impl Error {
    /// The same error once more, for who asks again.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Io(error) => Self::Io(match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
            Self::Config(error) => Self::Config(error.clone()),
            Self::Address(text) => Self::Address(text.clone()),
            Self::Unsupported(text) => Self::Unsupported(text.clone()),
            Self::Panicked(text) => Self::Panicked(text.clone()),
            Self::Stopped => Self::Stopped,
            Self::OnLoopThread => Self::OnLoopThread,
            Self::Full => Self::Full,
            Self::NotRunning => Self::NotRunning,
            Self::Send(error) => Self::Send(error.clone()),
            Self::Call(error) => Self::Call(error.clone()),
        }
    }
}

/// An error of the system that names what it is about, and keeps its kind.
pub(crate) fn named(what: impl fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            // What is shown is the inner error itself, so its own source is the next in the chain.
            Self::Io(error) => error.source(),
            Self::Config(error) => error.source(),
            Self::Send(error) => error.source(),
            Self::Call(error) => error.source(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
            Self::Address(text) => {
                write!(f, "'{text}' is no address, expected ip:port or host:port")
            }
            Self::Unsupported(text) => write!(f, "this version has no support for '{text}'"),
            Self::Stopped => f.write_str("the reactor has stopped"),
            Self::OnLoopThread => f.write_str("blocking call on the reactor's own thread"),
            Self::Full => f.write_str("the mailbox is full"),
            Self::NotRunning => f.write_str("no thread runs the reactor"),
            Self::Panicked(text) => write!(f, "panicked: {text}"),
            Self::Send(error) => error.fmt(f),
            Self::Call(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// For targets that are addresses already.
impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        Self::Send(error)
    }
}

/// What it means for a call.
impl From<&SendError> for CallError {
    fn from(error: &SendError) -> Self {
        let gone = |reason| Self::Disconnected { reason, fate: Fate::NotSent };
        match *error {
            SendError::Full | SendError::MailboxFull | SendError::SlowConsumer => Self::QueueFull,
            SendError::BodyTooLong { len, max, limit } => Self::BodyTooLong { len, max, limit },
            SendError::Stopped => Self::Stopped { fate: Fate::NotSent },
            SendError::Offline => gone(CloseReason::DialFailed(NetworkError::new(
                io::ErrorKind::NotConnected,
                "not connected",
            ))),
            SendError::OnLoopThread => Self::OnLoopThread,
            SendError::Closed | SendError::NotAwaited => gone(CloseReason::Closed),
        }
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// A setting that can't work, found when it is used to listen or to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the setting.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: Cow<'static, str>,
}

impl error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "setting {}: {}", self.setting, self.problem)
    }
}

/// A message was not accepted; nothing of it was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// There is no such connection, or it is closing.
    Closed,
    /// There is no room for it in the queue of this connection. Which limit that is depends on what it is:
    ///
    /// - for a message from another thread the [high watermark](crate::Config::watermarks),
    /// - for a deferred answer three quarters of the [hard limit](crate::Config::hard_limit),
    /// - for a message to a dialled connection that is just up, behind what was kept for it, the
    ///   [offline queue](crate::Config::offline_queue).
    ///
    /// Try again after [`on_writable`](crate::Handler::on_writable), or later.
    Full,
    /// The mailbox of the reactor is full.
    MailboxFull,
    /// The dialled connection is down, and its settings keep nothing for later (or no more).
    Offline,
    /// The queue passed its hard limit; the connection is being closed as a slow consumer.
    SlowConsumer,
    /// The body is longer than a limit.
    BodyTooLong {
        /// Bytes of the body.
        len: usize,
        /// The most that may be sent, in bytes.
        max: usize,
        /// Whose limit it is.
        limit: LimitBy,
    },
    /// The message is no request, or its answer was given already.
    NotAwaited,
    /// A blocking method was called on the reactor's own thread, which would wait for itself.
    OnLoopThread,
    /// The reactor has stopped.
    Stopped,
}

/// Whose limit a body is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitBy {
    /// Our own setting, or what the format can carry.
    Us,
    /// What the peer said that it accepts.
    Peer,
}

impl error::Error for SendError {}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the connection is closed"),
            Self::Full => f.write_str("the connection's queue has no room for it now"),
            Self::MailboxFull => f.write_str("the mailbox is full"),
            Self::Offline => f.write_str("the connection is down and can't keep this for later"),
            Self::SlowConsumer => f.write_str("the peer reads too slowly"),
            Self::BodyTooLong { len, max, limit: LimitBy::Us } => {
                write!(f, "a body of {len} bytes is over our limit of {max}")
            }
            Self::BodyTooLong { len, max, limit: LimitBy::Peer } => {
                write!(f, "a body of {len} bytes is over the peer's limit of {max}")
            }
            Self::NotAwaited => f.write_str("no answer to this message is awaited"),
            Self::OnLoopThread => f.write_str("blocking call on the reactor's own thread"),
            Self::Stopped => f.write_str("the reactor has stopped"),
        }
    }
}

/// How a call ended without a reply.
///
/// [`fate`](Self::fate) tells whether the peer may have handled the request, and
/// [`is_transient`](Self::is_transient) whether it makes sense to try again. Both hold where a call may
/// simply be made again.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum CallError {
    /// The peer answered with an error. Transient if the peer was busy or draining, or too late; else
    /// the application knows.
    Remote {
        /// What the peer says: see [`error_code`] for those below 256, the rest is the application's.
        code: u32,
        /// The reason as text; may be empty.
        text: String,
    },
    /// No answer within the call's timeout. Transient.
    Timeout {
        /// Whether the request may have left.
        fate: Fate,
    },
    /// The caller gave up. Transient.
    Cancelled {
        /// Whether the request may have left.
        fate: Fate,
    },
    /// The connection ended, or was down. Transient unless this side ended it for good; a dialled
    /// connection comes back. An accepted one does not, and the next call on it ends as closed, which is
    /// not transient.
    Disconnected {
        /// Why.
        reason: CloseReason,
        /// Whether the request may have left.
        fate: Fate,
    },
    /// The peer takes no new requests. Transient: it will close, and a dialled connection comes back.
    PeerDraining,
    /// As many calls as allowed are in flight on this connection. Transient.
    TooManyInFlight {
        /// The limit, ours or the peer's, whichever is lower. 0: there may be no calls.
        limit: usize,
    },
    /// The queue for this connection, or the mailbox, is full. Transient.
    QueueFull,
    /// The body is longer than a limit. Not transient.
    BodyTooLong {
        /// Bytes of the body.
        len: usize,
        /// The most that may be sent, in bytes.
        max: usize,
        /// Whose limit it is.
        limit: LimitBy,
    },
    /// The protocol has no calls. Not transient.
    NoCalls {
        /// Its name.
        protocol: &'static str,
    },
    /// Every call number of this epoch was used. Not transient.
    IdsExhausted,
    /// A blocking call on the reactor's own thread, which would wait for itself. Not transient.
    OnLoopThread,
    /// A blocking call on a reactor that no thread has run yet, and none began to within 5 s or the
    /// call's timeout. The request is not sent, also not later. Transient.
    NotRunning,
    /// The reactor stopped. Not transient.
    Stopped {
        /// Whether the request may have left.
        fate: Fate,
    },
}

/// Whether the peer may have handled a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// No byte of it left, or the peer proved that it was not handled: safe to call again.
    NotSent,
    /// It may have been handled, or not.
    MaybeSent,
    /// The peer answered.
    Answered,
}

impl CallError {
    /// Whether the peer may have handled the request.
    pub const fn fate(&self) -> Fate {
        match self {
            Self::Remote { code, .. } => match *code {
                error_code::BUSY | error_code::DRAINING | error_code::EXPIRED => Fate::NotSent,
                _ => Fate::Answered,
            },
            Self::Timeout { fate }
            | Self::Cancelled { fate }
            | Self::Disconnected { fate, .. }
            | Self::Stopped { fate } => *fate,
            Self::PeerDraining
            | Self::TooManyInFlight { .. }
            | Self::QueueFull
            | Self::BodyTooLong { .. }
            | Self::NoCalls { .. }
            | Self::IdsExhausted
            | Self::OnLoopThread
            | Self::NotRunning => Fate::NotSent,
        }
    }

    /// Whether the same call may succeed if it is made again later, on the same connection. It says
    /// nothing of whether that is safe: see [`fate`](Self::fate).
    ///
    /// # Examples
    ///
    /// ```
    /// use longhaul::{CallError, Fate};
    ///
    /// /// Whether to call again without asking what the request does.
    /// fn may_retry(error: &CallError) -> bool {
    ///     error.is_transient() && error.fate() == Fate::NotSent
    /// }
    /// assert!(may_retry(&CallError::QueueFull));
    /// assert!(!may_retry(&CallError::Timeout { fate: Fate::MaybeSent }));
    /// assert!(!may_retry(&CallError::NoCalls { protocol: "length" }));
    /// ```
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Remote { code, .. } => {
                matches!(*code, error_code::BUSY | error_code::DRAINING | error_code::EXPIRED)
            }
            Self::Disconnected { reason, .. } => {
                !matches!(reason, CloseReason::Closed | CloseReason::Aborted | CloseReason::Stopped)
            }
            Self::Timeout { .. }
            | Self::Cancelled { .. }
            | Self::PeerDraining
            | Self::TooManyInFlight { .. }
            | Self::QueueFull
            | Self::NotRunning => true,
            Self::BodyTooLong { .. }
            | Self::NoCalls { .. }
            | Self::IdsExhausted
            | Self::OnLoopThread
            | Self::Stopped { .. } => false,
        }
    }
}

impl error::Error for CallError {}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote { code, text } if text.is_empty() => {
                write!(f, "the peer failed: code {code}")
            }
            Self::Remote { code, text } => {
                write!(f, "the peer failed: {} (code {code})", Printable(text))
            }
            Self::Timeout { fate } => write!(f, "no answer in time ({fate})"),
            Self::Cancelled { fate } => write!(f, "cancelled ({fate})"),
            Self::Disconnected { reason, fate } => write!(f, "disconnected: {reason} ({fate})"),
            Self::PeerDraining => f.write_str("the peer takes no new requests"),
            Self::TooManyInFlight { limit: 0 } => f.write_str("no calls are allowed"),
            Self::TooManyInFlight { limit } => {
                write!(f, "as many calls as allowed, {limit}, are in flight")
            }
            Self::QueueFull => f.write_str("the queue is full"),
            Self::BodyTooLong { len, max, limit } => {
                SendError::BodyTooLong { len: *len, max: *max, limit: *limit }.fmt(f)
            }
            Self::NoCalls { protocol } => write!(f, "the protocol {protocol} has no calls"),
            Self::IdsExhausted => f.write_str("every call id of this connection was used"),
            Self::OnLoopThread => f.write_str("blocking call on the reactor's own thread"),
            Self::NotRunning => f.write_str("no thread runs the reactor"),
            Self::Stopped { fate } => write!(f, "the reactor stopped ({fate})"),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSent => "not sent",
            Self::MaybeSent => "maybe sent",
            Self::Answered => "answered",
        })
    }
}

/// The codes of a [`CallError::Remote`] that `native` gives a meaning. 256 and above are the
/// application's.
pub mod error_code {
    /// The handler failed the request and says why.
    pub const FAILED: u32 = 1;
    /// Too many requests are in flight; this one was not handled.
    pub const BUSY: u32 = 2;
    /// The handler gave no answer.
    pub const UNANSWERED: u32 = 3;
    /// The handler panicked.
    pub const PANICKED: u32 = 4;
    /// No new requests are taken; this one was not handled.
    pub const DRAINING: u32 = 5;
    /// The request's time was over before the handler saw it.
    pub const EXPIRED: u32 = 6;
}

/// Why a connection, or one epoch of it, ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum CloseReason {
    /// We closed it, and flushed.
    Closed,
    /// We dropped it.
    Aborted,
    /// The reactor stopped.
    Stopped,
    /// A callback panicked, or what else the application gave: its protocol, a body, a value that was
    /// dropped.
    Panicked(
        /// The panic's message.
        String,
    ),
    /// We left a request of the peer's unanswered, on a format whose answers go in order and that has no
    /// errors: an answer to a later request would be taken for that to this one.
    Unanswered,
    /// The peer did not take what was queued for it.
    SlowConsumer {
        /// What was queued, in bytes, overhead included.
        queued: usize,
        /// What did not fit beside it, in bytes, overhead included.
        refused: usize,
        /// The hard limit, in bytes.
        limit: usize,
    },
    /// The peer took no byte of what was queued for this long.
    WriteStalled(
        /// The limit.
        Duration,
    ),
    /// Nothing was received for this long.
    IdleTimeout(
        /// The limit.
        Duration,
    ),
    /// The peer's hello did not come within this time.
    HelloTimeout(
        /// The limit.
        Duration,
    ),
    /// The handshake of what lies between the socket and the frames was not over within this time.
    HandshakeTimeout(
        /// The limit.
        Duration,
    ),
    /// What lies between the socket and the frames gave the connection up.
    Layer {
        /// Its name.
        layer: &'static str,
        /// What was wrong, in its words.
        problem: String,
    },
    /// A frame that had begun was not whole within this time.
    FrameTimeout(
        /// The limit, for a frame of that length.
        Duration,
    ),
    /// The peer sent what can't be a frame.
    Protocol(
        /// The fault.
        DecodeError,
    ),
    /// The peer closed the connection.
    PeerClosed,
    /// The peer closed the connection in the middle of a frame.
    PeerClosedMidFrame {
        /// Bytes of the unfinished frame that had arrived.
        received: usize,
    },
    /// The peer said that it goes away.
    PeerGoaway {
        /// The reason that it gave, at most 4096 bytes; may be empty.
        text: PeerText,
    },
    /// The network failed.
    Network(
        /// What the system reported.
        NetworkError,
    ),
    /// The connection could not be made.
    DialFailed(
        /// The last failure.
        NetworkError,
    ),
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedBy {
    /// This side, of its own will.
    Local,
    /// The peer, by closing or by breaking a rule.
    Peer,
    /// Neither: the network, or silence.
    Network,
}

impl CloseReason {
    /// Who ended it.
    pub const fn by(&self) -> ClosedBy {
        match self {
            Self::Closed | Self::Aborted | Self::Stopped | Self::Panicked(_) | Self::Unanswered => {
                ClosedBy::Local
            }
            Self::SlowConsumer { .. }
            | Self::HelloTimeout(_)
            | Self::HandshakeTimeout(_)
            | Self::Layer { .. }
            | Self::FrameTimeout(_)
            | Self::Protocol(_)
            | Self::PeerClosed
            | Self::PeerClosedMidFrame { .. }
            | Self::PeerGoaway { .. } => ClosedBy::Peer,
            Self::WriteStalled(_)
            | Self::IdleTimeout(_)
            | Self::Network(_)
            | Self::DialFailed(_) => ClosedBy::Network,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Aborted => f.write_str("aborted"),
            Self::Unanswered => f.write_str("a request was left unanswered"),
            Self::Stopped => f.write_str("the reactor stopped"),
            Self::Panicked(text) => write!(f, "a callback panicked: {text}"),
            Self::SlowConsumer { queued, refused, limit } => write!(
                f,
                "slow consumer: {queued} bytes queued, {refused} more pass the limit of {limit}"
            ),
            Self::WriteStalled(limit) => write!(f, "the peer took no byte for {limit:?}"),
            Self::IdleTimeout(limit) => write!(f, "nothing received for {limit:?}"),
            Self::HelloTimeout(limit) => write!(f, "no hello within {limit:?}"),
            Self::HandshakeTimeout(limit) => write!(f, "no handshake within {limit:?}"),
            Self::Layer { layer, problem } => write!(f, "{layer} failed: {problem}"),
            Self::FrameTimeout(limit) => write!(f, "a frame was not whole within {limit:?}"),
            Self::Protocol(error) => write!(f, "protocol error: {error}"),
            Self::PeerClosed => f.write_str("closed by the peer"),
            Self::PeerClosedMidFrame { received } => {
                write!(f, "closed by the peer {received} bytes into a frame")
            }
            Self::PeerGoaway { text } if text.is_empty() => f.write_str("the peer went away"),
            Self::PeerGoaway { text } => write!(f, "the peer went away: {text}"),
            Self::Network(error) => error.fmt(f),
            Self::DialFailed(error) => write!(f, "could not connect: {error}"),
        }
    }
}

impl From<CloseReason> for io::Error {
    fn from(reason: CloseReason) -> Self {
        let kind = match &reason {
            CloseReason::Network(error) | CloseReason::DialFailed(error) => error.kind(),
            CloseReason::PeerClosed | CloseReason::PeerGoaway { .. } => {
                io::ErrorKind::UnexpectedEof
            }
            CloseReason::PeerClosedMidFrame { .. } => io::ErrorKind::UnexpectedEof,
            CloseReason::Protocol(_) => io::ErrorKind::InvalidData,
            CloseReason::WriteStalled(_)
            | CloseReason::IdleTimeout(_)
            | CloseReason::HelloTimeout(_)
            | CloseReason::HandshakeTimeout(_)
            | CloseReason::FrameTimeout(_) => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, reason.to_string())
    }
}

/// An error of the system that can be kept, compared and given to many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkError {
    kind: io::ErrorKind,
    os_code: Option<i32>,
    text: Cow<'static, str>,
}

impl NetworkError {
    pub(crate) const fn new(kind: io::ErrorKind, text: &'static str) -> Self {
        Self { kind, os_code: None, text: Cow::Borrowed(text) }
    }

    /// The kind, as the standard library sorts it.
    pub const fn kind(&self) -> io::ErrorKind {
        self.kind
    }

    /// The system's own number, where there was one.
    pub const fn os_code(&self) -> Option<i32> {
        self.os_code
    }
}

impl error::Error for NetworkError {}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&io::Error> for NetworkError {
    fn from(error: &io::Error) -> Self {
        Self {
            kind: error.kind(),
            os_code: error.raw_os_error(),
            text: Cow::Owned(error.to_string()),
        }
    }
}

/// What [`on_disconnect`](crate::Handler::on_disconnect) is told.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CloseReport {
    /// Why the connection ended.
    pub reason: CloseReason,
    /// How many accepted messages were not given to the system whole;
    /// [`Conn::take_unsent`](crate::Conn::take_unsent) hands them back.
    pub unsent_messages: u64,
    /// How many bytes of frames were not given to the system.
    pub unsent_bytes: u64,
    /// How many calls of ours ended with it; each was told so.
    pub calls: u64,
    /// How many deferred requests of the peer's were not answered; those that it had cancelled aside.
    pub requests: u64,
    /// When a dialled connection will be tried again, counted from now; `None`: never.
    pub redial_in: Option<Duration>,
}

impl fmt::Display for CloseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)?;
        if self.unsent_messages > 0 {
            write!(f, "; {} messages unsent ({} bytes)", self.unsent_messages, self.unsent_bytes)?;
        }
        if self.calls > 0 {
            write!(f, "; {} calls unanswered", self.calls)?;
        }
        if self.requests > 0 {
            write!(f, "; {} requests not answered", self.requests)?;
        }
        if let Some(delay) = self.redial_in {
            write!(f, "; redial in {delay:?}")?;
        }
        Ok(())
    }
}

/// What a graceful end of a listener's connections, or of all of a reactor's, came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Connections that ended.
    pub connections: u64,
    /// Those of them that had something unfinished when they ended.
    pub cut: u64,
    /// Accepted messages that were not given to the system whole.
    pub unsent_messages: u64,
    /// Bytes of frames that were not given to the system.
    pub unsent_bytes: u64,
    /// Calls of ours that ended without an answer.
    pub calls: u64,
    /// Deferred requests that were not answered; those that their peer had cancelled aside.
    pub requests: u64,
}

impl DrainReport {
    pub(crate) fn add(&mut self, closed: &CloseReport) {
        self.connections += 1;
        let is_cut = closed.unsent_messages > 0 || closed.calls > 0 || closed.requests > 0;
        self.cut += u64::from(is_cut);
        self.unsent_messages += closed.unsent_messages;
        self.unsent_bytes += closed.unsent_bytes;
        self.calls += closed.calls;
        self.requests += closed.requests;
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, cut, unsent_messages, unsent_bytes, calls, requests } = self;
        write!(f, "{connections} connections ended, {cut} of them cut")?;
        if *cut > 0 {
            write!(
                f,
                ": {unsent_messages} messages unsent ({unsent_bytes} bytes), {calls} calls \
                 unanswered, {requests} requests not answered"
            )?;
        }
        Ok(())
    }
}

/// A problem that belongs to no other callback; [`on_error`](crate::Handler::on_error) is told of it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incident {
    /// Accepting failed; the listener rests and then goes on by itself.
    AcceptFailed {
        /// Which listener.
        listener: ListenerId,
        /// What the system said.
        error: io::Error,
        /// How long the listener rests.
        retry_in: Duration,
    },
    /// A connection was refused, as a limit is reached.
    Refused {
        /// Which listener.
        listener: ListenerId,
        /// The address of the peer.
        peer: Addr,
        /// The limit that is reached: connections in all, or of one address.
        limit: usize,
    },
    /// One round of attempts to connect failed.
    DialFailed {
        /// Which connection.
        conn: ConnId,
        /// What was dialled.
        target: String,
        /// The number of this round: 1 for the first that failed since the connection was dialled, or since
        /// it was last up, however it was dialled. Not what
        /// [`max_attempts`](crate::Reconnect::max_attempts) counts, which also counts a short epoch.
        attempt: u32,
        /// The last failure of the round.
        error: NetworkError,
        /// When the next round starts, counted from now; `None`: never, the id is gone.
        retry_in: Option<Duration>,
    },
    /// A dialled connection ended although more was to be expected: it was closed, or the reactor stops,
    /// while it was down. Its id is gone. A connection ends with this, with
    /// [`on_disconnect`](crate::Handler::on_disconnect) or with [`DialFailed`](Self::DialFailed), the
    /// latter two naming no other attempt.
    Gone {
        /// Which connection.
        conn: ConnId,
        /// What was dialled.
        target: String,
    },
    /// A connection that was accepted ended before it was up: the peer's hello did not come, or was none.
    HandshakeFailed {
        /// Which connection; the id is gone.
        conn: ConnId,
        /// Which listener accepted it; `None` if the application brought the socket.
        listener: Option<ListenerId>,
        /// The address of the peer.
        peer: Addr,
        /// Why.
        reason: CloseReason,
    },
    /// Messages that were accepted from another thread, or kept for a connection that was down, and
    /// then found none to be sent on; [`Context::take_undelivered`](crate::Context::take_undelivered)
    /// hands them back.
    Undelivered {
        /// For which connection they were.
        conn: ConnId,
        /// How many.
        messages: u64,
    },
    /// Every connection of a listener that was [drained](crate::Context::drain_listener) has ended.
    ListenerDrained {
        /// Which listener.
        listener: ListenerId,
        /// What it came to.
        report: DrainReport,
    },
    /// A callback without a connection panicked; the loop goes on.
    Panicked {
        /// Which callback.
        callback: &'static str,
        /// The panic's message.
        text: String,
    },
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AcceptFailed { listener, error, retry_in } => {
                write!(f, "listener {listener}: accept failed, again in {retry_in:?}: {error}")
            }
            Self::Refused { listener, peer, limit } => {
                write!(f, "listener {listener}: {peer} refused, {limit} connections are the limit")
            }
            Self::DialFailed { conn, target, attempt, error, retry_in } => {
                write!(f, "connection {conn} to {target}, attempt {attempt}: {error}")?;
                match retry_in {
                    Some(delay) => write!(f, "; again in {delay:?}"),
                    None => f.write_str("; given up"),
                }
            }
            Self::Gone { conn, target } => {
                write!(f, "connection {conn} to {target} was closed while it was down")
            }
            Self::HandshakeFailed { conn, peer, reason, .. } => {
                write!(f, "connection {conn} from {peer} did not come up: {reason}")
            }
            Self::Undelivered { conn, messages } => {
                write!(f, "connection {conn}: {messages} messages were not delivered")
            }
            Self::ListenerDrained { listener, report } => {
                write!(f, "listener {listener} is drained: {report}")
            }
            Self::Panicked { callback, text } => write!(f, "{callback} panicked: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_is_none_is_named_with_what_was_expected() {
        let error = "localhost".parse::<crate::Target>().unwrap_err();
        let expected = "'localhost' is no address, expected ip:port or host:port";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn only_what_time_can_mend_is_transient() {
        let fate = Fate::NotSent;
        let disconnected = |reason| CallError::Disconnected { reason, fate };
        let remote = |code| CallError::Remote { code, text: String::new() };
        for error in [
            CallError::Timeout { fate: Fate::MaybeSent },
            CallError::PeerDraining,
            CallError::TooManyInFlight { limit: 1 },
            CallError::QueueFull,
            CallError::NotRunning,
            disconnected(CloseReason::PeerClosed),
            remote(error_code::BUSY),
        ] {
            assert!(error.is_transient(), "{error}");
        }
        for error in [
            CallError::BodyTooLong { len: 2, max: 1, limit: LimitBy::Peer },
            CallError::NoCalls { protocol: "length" },
            CallError::IdsExhausted,
            CallError::OnLoopThread,
            CallError::Stopped { fate },
            disconnected(CloseReason::Closed),
            remote(error_code::FAILED),
            remote(700),
        ] {
            assert!(!error.is_transient(), "{error}");
        }
    }
}
