//! Why a call ended without a reply, and whether its request may have reached the peer.

use std::{error, fmt, io};

use super::{CloseReason, LimitBy, NetworkError, SendError, error_code, peer_text::Printable};

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
