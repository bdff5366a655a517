//! Why a connection ended.

use std::{fmt, io, time::Duration};

use super::{NetworkError, PeerText};
use crate::protocol::DecodeError;

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
