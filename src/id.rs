//! Names for what the reactor owns.
//!
//! A key is never a bare index: slots are reused, so each id carries a generation (or a count that
//! is never reused), and the id of something that is gone finds nothing.

use std::{fmt, num::NonZeroU32};

/// Names one connection of one reactor.
///
/// An accepted connection keeps its id until it closes; a dialled one keeps it across reconnects.
/// An id is never given to another connection, so a stale one finds nothing. Ids order by slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// The slot, and in the lower half its generation, which counts the uses of the slot; 0 is never
    /// given out. One number, as ids are compared for every message.
    slot_and_generation: u64,
}

impl ConnId {
    pub(crate) const fn new(slot: u32, generation: u32) -> Self {
        Self { slot_and_generation: (slot as u64) << 32 | generation as u64 }
    }

    /// The id as one number, for logs and maps of the application.
    pub const fn as_u64(self) -> u64 {
        self.slot_and_generation.rotate_left(32)
    }

    /// The id that [`as_u64`](Self::as_u64) gave.
    pub const fn from_u64(number: u64) -> Self {
        Self { slot_and_generation: number.rotate_left(32) }
    }

    pub(crate) const fn slot(self) -> u32 {
        (self.slot_and_generation >> 32) as u32
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(crate) const fn generation(self) -> u32 {
        self.slot_and_generation as u32
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({self})")
    }
}

/// Prints as `slot.generation`, the form of the log lines.
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot(), self.generation())
    }
}

/// Names one listener of one reactor; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(
    /// One more than its number, so that an option takes no more room.
    NonZeroU32,
);

impl ListenerId {
    pub(crate) const fn new(number: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(number))
    }

    pub(crate) const fn number(self) -> u32 {
        self.0.get() - 1
    }
}

impl fmt::Display for ListenerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listener {}", self.number())
    }
}

/// Names one timer that the application set; a timer that fired or was cancelled finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(pub(crate) crate::core::timer_wheel::TimerKey);

/// Names one call of ours on one connection, before and after its reply.
///
/// Numbers grow within an epoch and are not reused in it. They start anew in the next one, so the id
/// also says to which it belongs: that of an earlier epoch finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    epoch: u32,
    number: u64,
}

impl CallId {
    pub(crate) const fn new(epoch: u32, number: u64) -> Self {
        Self { epoch, number }
    }

    /// The [epoch](crate::Conn::epoch) of its connection in which the call was made.
    pub const fn epoch(self) -> u32 {
        self.epoch
    }

    /// The call's number within its epoch: what `native` and `tcpstream` put on the wire.
    pub const fn as_u64(self) -> u64 {
        self.number
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}
