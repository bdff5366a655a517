//! The board: the state of each connection, for other threads to see without asking the loop.
//!
//! One entry a slot, so that a [`Handle`](crate::Handle) can refuse at once what could not be
//! sent: to a connection that is gone, or whose queue is full. The loop writes the state; what is
//! `used` is written by both sides and always adds up:
//!
//! ```text
//! used = what the loop holds queued, as last published + what was posted and not yet taken
//! ```
//!
//! The room that a post reserved is given back in the same step that publishes what became of it. So it is
//! never counted as nothing in between, and a turn does not admit a second watermark's worth.

use std::sync::OnceLock;

use super::{
    number::ReactorNumber,
    sync::{AtomicI64, AtomicU32, AtomicU64, Ordering},
};
use crate::{
    ConnId,
    close_mode::CloseMode,
    error::{LimitBy, SendError},
};

/// Entries of all slots, in chunks that grow and never move.
#[derive(Debug)]
pub(crate) struct Board {
    /// Whose connections these are; held for as long as anybody can ask for one.
    reactor: ReactorNumber,
    chunks: [OnceLock<Box<[Entry]>>; CHUNKS],
}

/// Eight chunks have a length in common, that of the next eight is twice it. So what is not used
/// yet is at most an eighth of what is.
const ALIKE: usize = 8;
/// The length of the first eight. In models it is one, as their atomics are large.
const FIRST: usize = if cfg!(model) { 1 } else { 128 };
/// As many as all slots need.
const CHUNKS: usize = ALIKE * 14 + 1;

#[derive(Debug)]
struct Entry {
    /// Generation, number of the reactor, and flags; see [`stamp`]. All but [`ENDS`] is written by the loop
    /// alone.
    state: AtomicU64,
    used: AtomicI64,
    /// How much may be used for messages and calls, in bytes with overhead.
    capacity: AtomicU32,
    /// How much may be used for answers.
    answers: AtomicU32,
    /// The longest body that may be sent, in bytes.
    max_body: AtomicU32,
    /// Whether that is the peer's limit.
    is_peers: AtomicU32,
}

// Not derived, as loom's atomics have no default.
impl Default for Entry {
    fn default() -> Self {
        Self {
            state: AtomicU64::new(0),
            used: AtomicI64::new(0),
            capacity: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            max_body: AtomicU32::new(0),
            is_peers: AtomicU32::new(0),
        }
    }
}

/// The connection exists.
const OPEN: u64 = 1;
/// Its queue is above the high watermark.
const FULL: u64 = 2;
/// It was dialled, and is not up.
const DOWN: u64 = 4;
/// It drains.
const LEAVING: u64 = 64;
/// The state of a connection, as the loop published it.
const LINK: u64 = OPEN | FULL | DOWN | LEAVING;
/// The strictest end that was asked for: none, or one more than the [`CloseMode`].
const ENDS: u64 = 3 << ENDS_SHIFT;
const ENDS_SHIFT: u32 = 3;
/// The loop holds it: it is open, or on its way to be closed.
const HELD: u64 = 32;
/// Where flags are.
const FLAGS: u64 = 0xFF;

/// The id of the connection without its slot, which is the entry's own.
const fn stamp(id: ConnId) -> u64 {
    (id.generation() as u64) << 32 | (id.reactor() as u64) << 8
}

/// The loop's last word on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    link: LinkState,
    /// Bytes queued, overhead included.
    queued: i64,
}

/// How a connection is, to a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LinkState {
    #[default]
    Closed,
    Down,
    Up,
    Full,
    /// It drains: what is sent is still taken, and it takes no new calls.
    Leaving,
}

impl LinkState {
    const fn flags(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Down => OPEN | DOWN,
            Self::Up => OPEN,
            Self::Full => OPEN | FULL,
            Self::Leaving => OPEN | LEAVING,
        }
    }
}

impl Published {
    #[inline]
    pub(crate) fn new(link: LinkState, queued: usize) -> Self {
        Self { link, queued: signed(queued) }
    }
}

impl Board {
    pub(crate) fn new(reactor: ReactorNumber) -> Self {
        Self { reactor, chunks: [const { OnceLock::new() }; CHUNKS] }
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        let (chunk, index) = place(slot);
        self.chunks[chunk].get()?.get(index)
    }

    /// The entry, made if need be; for the loop alone.
    fn entry_or_new(&self, slot: u32) -> &Entry {
        let (chunk, index) = place(slot);
        let len = FIRST << (chunk / ALIKE);
        let state = u64::from(self.reactor.base()) << 32;
        let new = || Entry { state: AtomicU64::new(state), ..Entry::default() };
        let make = || (0..len).map(|_| new()).collect();
        &self.chunks[chunk].get_or_init(make)[index]
    }

    // ---- the loop's side ----

    /// Takes the slot for a new connection, and gives its id. Nothing is accepted for it before the
    /// first [`publish`](Self::publish).
    pub(crate) fn open(&self, slot: u32) -> ConnId {
        let entry = self.entry_or_new(slot);
        let last = (entry.state.load(Ordering::Relaxed) >> 32) as u32;
        let id = ConnId::new(self.reactor.get(), slot, last.wrapping_add(1).max(1));
        // Swapped, not stored, as the others do: so all that is written here has one order.
        entry.state.swap(stamp(id) | HELD, Ordering::Release);
        id
    }

    /// The connection is gone; what it has queued goes with it.
    pub(crate) fn close(&self, id: ConnId, last: Published) {
        self.publish(id, last, Published::default(), 0, 0);
        self.entry_or_new(id.slot()).state.swap(stamp(id), Ordering::Release);
    }

    /// Says how the connection is now, and was when it was last said. Of what posts have reserved,
    /// `released` is given back in the same step.
    pub(crate) fn publish(
        &self,
        id: ConnId,
        before: Published,
        now: Published,
        capacity: usize,
        released: usize,
    ) {
        let entry = self.entry_or_new(id.slot());
        let difference = now.queued - before.queued - signed(released);
        if difference != 0 {
            entry.used.fetch_add(difference, Ordering::Relaxed);
        }
        if now.link != before.link {
            entry.capacity.store(clamped(capacity), Ordering::Relaxed);
            let state = |state| Some(state & !LINK | now.link.flags());
            let _ = entry.state.fetch_update(Ordering::Release, Ordering::Relaxed, state);
        }
    }

    pub(crate) fn set_max_body(&self, slot: u32, (max, by): (usize, LimitBy)) {
        let entry = self.entry_or_new(slot);
        entry.max_body.store(clamped(max), Ordering::Relaxed);
        entry.is_peers.store(u32::from(by == LimitBy::Peer), Ordering::Relaxed);
    }

    /// How much may be in use when an answer is accepted.
    pub(crate) fn set_answer_room(&self, slot: u32, bytes: usize) {
        self.entry_or_new(slot).answers.store(clamped(bytes), Ordering::Relaxed);
    }

    // ---- any thread's side ----

    /// Whether this was the last connection in its slot, whatever has become of it.
    pub(crate) fn knows(&self, id: ConnId) -> bool {
        let state = self.entry(id.slot()).map(|entry| entry.state.load(Ordering::Acquire));
        state.is_some_and(|state| state & !FLAGS == stamp(id))
    }

    /// Whether the connection exists.
    pub(crate) fn is_open(&self, id: ConnId) -> bool {
        self.entry(id.slot()).is_some_and(|entry| entry.is_open(id))
    }

    /// Whether the connection is up.
    pub(crate) fn is_up(&self, id: ConnId) -> bool {
        let entry = self.entry(id.slot()).filter(|entry| entry.is_open(id));
        entry.is_some_and(|entry| entry.state.load(Ordering::Relaxed) & (DOWN | LEAVING) == 0)
    }

    /// Notes that an end of the connection is asked for. Whether that is news: the connection is not
    /// gone, and no end as strict was asked for before. So what ends connections is bounded by the
    /// connections that there are, at three posts each.
    pub(crate) fn ask_end(&self, id: ConnId, mode: CloseMode) -> bool {
        let Some(entry) = self.entry(id.slot()) else { return false };
        let ask = (mode as u64 + 1) << ENDS_SHIFT;
        let asked = |state: u64| {
            let is_news = state & !FLAGS == stamp(id) && state & HELD != 0 && state & ENDS < ask;
            is_news.then_some(state & !ENDS | ask)
        };
        entry.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, asked).is_ok()
    }

    /// Reserves room for a post of `cost` with a body of `len` bytes, or says why not.
    pub(crate) fn reserve(&self, id: ConnId, len: usize, cost: usize) -> Result<(), SendError> {
        let entry = self.entry(id.slot()).filter(|entry| entry.is_open(id));
        let entry = entry.ok_or(SendError::Closed)?;
        entry.check_len(len)?;
        let state = entry.state.load(Ordering::Relaxed);
        if state & FULL != 0 {
            return Err(SendError::Full);
        }
        let (cost, is_down) = (signed(cost), state & DOWN != 0);
        let capacity = i64::from(entry.capacity.load(Ordering::Relaxed));
        // A connection that is up may take one message over its watermark; what is kept for one that
        // is down has to fit.
        let most = if is_down { capacity - cost } else { capacity - 1 };
        if entry.take(cost, most) {
            return Ok(());
        }
        Err(if is_down { SendError::Offline } else { SendError::Full })
    }

    /// As [`reserve`](Self::reserve), for an answer that was asked for some time ago. It may go over the
    /// watermark, and one into an empty queue is taken however long it is.
    pub(crate) fn reserve_answer(
        &self,
        id: ConnId,
        len: usize,
        cost: usize,
    ) -> Result<(), SendError> {
        let entry = self.entry(id.slot()).filter(|entry| entry.is_open(id));
        let entry = entry.ok_or(SendError::Closed)?;
        entry.check_len(len)?;
        if entry.state.load(Ordering::Relaxed) & DOWN != 0 {
            return Err(SendError::Closed);
        }
        let cost = signed(cost);
        let most = i64::from(entry.answers.load(Ordering::Relaxed)) - cost;
        if entry.take(cost, most.max(0)) { Ok(()) } else { Err(SendError::Full) }
    }

    /// Gives back what [`reserve`](Self::reserve) took, as the post was refused or found no connection.
    pub(crate) fn release(&self, slot: u32, cost: usize) {
        if let Some(entry) = self.entry(slot) {
            entry.used.fetch_sub(signed(cost), Ordering::Relaxed);
        }
    }

    pub(crate) const fn number(&self) -> u8 {
        self.reactor.get()
    }

    /// Bytes queued and posted.
    #[cfg(test)]
    pub(crate) fn used(&self, slot: u32) -> i64 {
        self.entry(slot).map_or(0, |entry| entry.used.load(Ordering::Relaxed))
    }
}

impl Entry {
    fn is_open(&self, id: ConnId) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state & !FLAGS == stamp(id) && state & OPEN != 0
    }

    /// Uses `cost` more, if no more than `most` is used. A refusal leaves no trace, also not for a
    /// moment: another thread could be refused because of it, and wait for room that is there.
    fn take(&self, cost: i64, most: i64) -> bool {
        let taken = |used: i64| (used <= most).then_some(used.saturating_add(cost));
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    fn check_len(&self, len: usize) -> Result<(), SendError> {
        let max = self.max_body.load(Ordering::Relaxed) as usize;
        if len <= max {
            return Ok(());
        }
        let is_peers = self.is_peers.load(Ordering::Relaxed) != 0;
        let limit = if is_peers { LimitBy::Peer } else { LimitBy::Us };
        Err(SendError::BodyTooLong { len, max, limit })
    }
}

/// Chunk and index of a slot's entry.
const fn place(slot: u32) -> (usize, usize) {
    // Counted as if there were chunks before: then all of one length begin at a power of two.
    let number = slot as usize + FIRST * ALIKE;
    let doubled = (number.ilog2() - (FIRST * ALIKE).ilog2()) as usize;
    let (len, behind) = (FIRST << doubled, number - ((FIRST * ALIKE) << doubled));
    (doubled * ALIKE + behind / len, behind % len)
}

fn signed(cost: usize) -> i64 {
    i64::try_from(cost).unwrap_or(i64::MAX / 4)
}

/// A limit as an entry holds it; 4 GiB and more count as little less.
fn clamped(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(all(test, model))]
mod models;

#[cfg(all(test, not(model)))]
mod tests;
