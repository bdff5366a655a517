//! Problems that belong to no other callback.

use std::{fmt, io, time::Duration};

use super::{CloseReason, DrainReport, NetworkError};
use crate::{Addr, ConnId, ListenerId};

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
