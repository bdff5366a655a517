//! Why a message was not accepted.

use std::{error, fmt};

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
