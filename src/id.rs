//! Names for what the reactor owns.
//!
//! A key is never a bare index: slots are reused, so each id carries a generation (or a count that
//! is never reused), and the id of something that is gone finds nothing.

use std::{fmt, num::NonZeroU32};

/// Names one connection of one reactor.
///
/// An accepted connection keeps its id until it closes; a dialled one keeps it across reconnects.
/// An id is never given to another connection, so a stale one finds nothing. It names its reactor,
/// too: another reactor of the process refuses it as [`Closed`](crate::SendError::Closed). Ids of
/// one reactor order by slot.
///
/// The number of a reactor is free again when the reactor and its handles are gone, and more than
/// 256 reactors at a time share numbers. The generations of each holder of a number start far from
/// those of the holders before, so that an id of one of them practically finds nothing, too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// From the top: the number of the reactor (8 bits), the slot (24), and its generation (32), which
    /// counts the uses of the slot; 0 is never given out. One number, as ids are compared for every
    /// message.
    bits: u64,
}

/// Slots that an id can name.
pub(crate) const MAX_SLOTS: usize = 1 << SLOT_BITS;

/// The last of them.
pub(crate) const LAST_SLOT: u32 = (1 << SLOT_BITS) - 1;

pub(crate) const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 32;

impl ConnId {
    /// The slot is below [`MAX_SLOTS`].
    pub(crate) const fn new(reactor: u8, slot: u32, generation: u32) -> Self {
        debug_assert!(slot <= LAST_SLOT);
        let upper = (reactor as u64) << SLOT_BITS | slot as u64;
        Self { bits: upper << GENERATION_BITS | generation as u64 }
    }

    /// The id as one number, for logs and maps of the application.
    pub const fn as_u64(self) -> u64 {
        self.bits
    }

    /// The id that [`as_u64`](Self::as_u64) gave.
    pub const fn from_u64(number: u64) -> Self {
        Self { bits: number }
    }

    /// The number of the reactor.
    pub(crate) const fn reactor(self) -> u8 {
        (self.bits >> (SLOT_BITS + GENERATION_BITS)) as u8
    }

    pub(crate) const fn slot(self) -> u32 {
        (self.bits >> GENERATION_BITS) as u32 & LAST_SLOT
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(crate) const fn generation(self) -> u32 {
        self.bits as u32
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({self})")
    }
}

/// Prints as `reactor:slot.generation`, the form of the log lines.
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}.{}", self.reactor(), self.slot(), self.generation())
    }
}

/// Names one listener of one reactor; never reused. The id of another reactor's listener finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(
    /// The reactor in the upper 8 bits, below them one more than the listener's number: so an option takes
    /// no more room.
    NonZeroU32,
);

/// Bits of a listener's number: a reactor that opens one each second has enough for half a year.
const LISTENER_BITS: u32 = 24;

impl ListenerId {
    pub(crate) const fn new(reactor: u8, number: u32) -> Self {
        let number = number % ((1 << LISTENER_BITS) - 1);
        Self(NonZeroU32::MIN.saturating_add((reactor as u32) << LISTENER_BITS | number))
    }

    /// The number of the reactor.
    const fn reactor(self) -> u32 {
        (self.0.get() - 1) >> LISTENER_BITS
    }

    pub(crate) const fn number(self) -> u32 {
        (self.0.get() - 1) % (1 << LISTENER_BITS)
    }
}

impl fmt::Debug for ListenerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ListenerId({self})")
    }
}

/// Prints as `reactor:number`.
impl fmt::Display for ListenerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.reactor(), self.number())
    }
}

/// Names one timer that the application set; a timer that fired or was cancelled finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(pub(crate) TimerKey);

/// Names one timer of one wheel; finds nothing once that timer fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TimerKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_gives_back_its_parts_and_prints_them() {
        let last = (u8::MAX, LAST_SLOT, u32::MAX);
        for (reactor, slot, generation) in [(0, 3, 1), (7, 0, u32::MAX), last] {
            let id = ConnId::new(reactor, slot, generation);
            assert_eq!((id.reactor(), id.slot(), id.generation()), (reactor, slot, generation));
            assert_eq!(ConnId::from_u64(id.as_u64()), id);
            assert_eq!(id.to_string(), format!("{reactor}:{slot}.{generation}"));
        }
    }

    #[test]
    fn id_of_a_listener_prints_its_parts() {
        let id = ListenerId::new(7, 3);
        assert_eq!((id.to_string(), format!("{id:?}")), ("7:3".into(), "ListenerId(7:3)".into()));
        assert_eq!(ListenerId::new(u8::MAX, 0).to_string(), "255:0");
    }

    #[test]
    fn ids_of_a_reactor_order_by_slot() {
        assert!(ConnId::new(1, 2, 9) < ConnId::new(1, 3, 1));
        assert!(ConnId::new(1, 3, 1) < ConnId::new(1, 3, 2));
    }
}
