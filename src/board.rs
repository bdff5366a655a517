//! What other threads may know of a connection without asking the loop.
//!
//! One entry a slot, so that a [`Handle`](crate::Handle) can refuse at once what could not be
//! sent: to a connection that is gone, or whose queue is full. The loop writes the state; `room`
//! is written by both sides and always adds up:
//!
//! ```text
//! room = high watermark − what the loop holds queued − what was posted and not yet taken
//! ```

use std::sync::{
    OnceLock,
    atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
};

use crate::{
    ConnId,
    error::{LimitBy, SendError},
    reactor::number::ReactorNumber,
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
/// The length of the first eight.
const FIRST: usize = 128;
/// As many as all slots need.
const CHUNKS: usize = ALIKE * 14 + 1;

#[derive(Debug, Default)]
struct Entry {
    /// Generation, number of the reactor, and flags; see [`stamp`].
    state: AtomicU64,
    room: AtomicI64,
    /// The longest body that may be sent, in bytes.
    max_body: AtomicU32,
    /// Whether that is the peer's limit.
    is_peers: AtomicU32,
}

/// The connection exists.
const OPEN: u64 = 1;
/// Its queue is above the high watermark.
const FULL: u64 = 2;
/// It was dialled, and is not up.
const DOWN: u64 = 4;
/// Where flags are.
const FLAGS: u64 = 0xFF;

/// What an entry keeps of the id of its connection: all but the slot, which found the entry.
const fn stamp(id: ConnId) -> u64 {
    (id.generation() as u64) << 32 | (id.reactor() as u64) << 8
}

/// What the loop says of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    link: LinkState,
    /// What may still be queued, as far as the loop knows.
    room: i64,
}

/// How a connection is, to a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LinkState {
    #[default]
    Closed,
    Down,
    Up,
    Full,
}

impl LinkState {
    const fn flags(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Down => OPEN | DOWN,
            Self::Up => OPEN,
            Self::Full => OPEN | FULL,
        }
    }
}

impl Published {
    /// Of `capacity`, which is the most that may be queued, `queued` is in use.
    #[inline]
    pub(crate) fn new(link: LinkState, capacity: usize, queued: usize) -> Self {
        Self { link, room: signed(capacity) - signed(queued) }
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
        entry.state.store(stamp(id), Ordering::Release);
        id
    }

    /// The connection is gone; its share of the room goes with it.
    pub(crate) fn close(&self, id: ConnId, last: Published) {
        self.publish(id, last, Published::default());
    }

    /// Says how the connection is now, and was when it was last said.
    pub(crate) fn publish(&self, id: ConnId, before: Published, now: Published) {
        let entry = self.entry_or_new(id.slot());
        let difference = now.room - before.room;
        if difference != 0 {
            entry.room.fetch_add(difference, Ordering::Relaxed);
        }
        if now.link != before.link {
            entry.state.store(stamp(id) | now.link.flags(), Ordering::Release);
        }
    }

    pub(crate) fn set_max_body(&self, slot: u32, (max, by): (usize, LimitBy)) {
        let entry = self.entry_or_new(slot);
        entry.max_body.store(u32::try_from(max).unwrap_or(u32::MAX), Ordering::Relaxed);
        entry.is_peers.store(u32::from(by == LimitBy::Peer), Ordering::Relaxed);
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
        entry.is_some_and(|entry| entry.state.load(Ordering::Relaxed) & DOWN == 0)
    }

    /// Whether a body of this length could be sent, room aside.
    pub(crate) fn check(&self, id: ConnId, len: usize) -> Result<(), SendError> {
        let entry = self.entry(id.slot()).filter(|entry| entry.is_open(id));
        entry.ok_or(SendError::Closed)?.check_len(len)
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
        // A connection that is up may take one message over its watermark; what is kept for one that
        // is down has to fit.
        let least = if state & DOWN == 0 { 1 } else { signed(cost) };
        if entry.room.fetch_sub(signed(cost), Ordering::Relaxed) < least {
            entry.room.fetch_add(signed(cost), Ordering::Relaxed);
            return Err(if state & DOWN == 0 { SendError::Full } else { SendError::Offline });
        }
        Ok(())
    }

    /// Gives back what [`reserve`](Self::reserve) took: the post was refused, or was taken.
    pub(crate) fn release(&self, slot: u32, cost: usize) {
        if let Some(entry) = self.entry(slot) {
            entry.room.fetch_add(signed(cost), Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(crate) const fn number(&self) -> u8 {
        self.reactor.get()
    }

    /// The room that is left.
    #[cfg(test)]
    pub(crate) fn room(&self, slot: u32) -> i64 {
        self.entry(slot).map_or(0, |entry| entry.room.load(Ordering::Relaxed))
    }
}

impl Entry {
    fn is_open(&self, id: ConnId) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state & !FLAGS == stamp(id) && state & OPEN != 0
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::LAST_SLOT;

    const UP: Published = Published { link: LinkState::Up, room: 100 };

    fn open(slot: u32, board: &Board) -> ConnId {
        let id = board.open(slot);
        board.set_max_body(slot, (1000, LimitBy::Us));
        board.publish(id, Published::default(), UP);
        id
    }

    #[test]
    fn every_slot_has_a_place_of_its_own() {
        let mut expected = (0, 0);
        for slot in 0..100_000 {
            assert_eq!(place(slot), expected);
            expected.1 += 1;
            if expected.1 == FIRST << (expected.0 / ALIKE) {
                expected = (expected.0 + 1, 0);
            }
        }
        assert_eq!(place(LAST_SLOT).0, CHUNKS - 1);
    }

    #[test]
    fn stale_id_is_refused_after_the_slot_was_reused() {
        let board = Board::new(ReactorNumber::fixed(3));
        let old = open(7, &board);
        board.close(old, UP);
        assert_eq!(board.reserve(old, 0, 1), Err(SendError::Closed));
        let new = open(7, &board);
        assert_ne!(old, new);
        assert_eq!(board.reserve(old, 0, 1), Err(SendError::Closed));
        assert_eq!(board.reserve(new, 0, 1), Ok(()));
    }

    #[test]
    fn id_of_another_reactor_is_refused() {
        let (board, other) =
            (Board::new(ReactorNumber::fixed(3)), Board::new(ReactorNumber::fixed(4)));
        let (own, foreign) = (open(0, &board), open(0, &other));
        assert_eq!((own.slot(), own.generation()), (foreign.slot(), foreign.generation()));
        assert!(board.knows(own) && !board.knows(foreign));
        assert!(!board.is_open(foreign) && !board.is_up(foreign));
        assert_eq!(board.check(foreign, 0), Err(SendError::Closed));
        assert_eq!(board.reserve(foreign, 0, 1), Err(SendError::Closed));
        assert_eq!(board.room(0), 100);
        assert_eq!(board.reserve(own, 0, 1), Ok(()));
    }

    #[test]
    fn posts_are_refused_when_the_room_is_used_up() {
        let board = Board::new(ReactorNumber::fixed(3));
        let id = open(0, &board);
        assert_eq!(board.reserve(id, 0, 60), Ok(()));
        assert_eq!(board.reserve(id, 0, 60), Ok(()));
        assert_eq!(board.reserve(id, 0, 60), Err(SendError::Full));
        board.release(0, 60);
        assert_eq!(board.reserve(id, 0, 60), Ok(()));
    }

    #[test]
    fn queue_above_its_watermark_refuses_until_it_is_below_the_low_one() {
        let board = Board::new(ReactorNumber::fixed(3));
        let id = open(0, &board);
        let full = Published { link: LinkState::Full, room: 50 };
        board.publish(id, UP, full);
        assert_eq!(board.reserve(id, 0, 1), Err(SendError::Full));
        board.publish(id, full, UP);
        assert_eq!(board.reserve(id, 0, 1), Ok(()));
    }

    #[test]
    fn what_is_kept_for_a_connection_that_is_down_has_to_fit() {
        let board = Board::new(ReactorNumber::fixed(3));
        let id = open(0, &board);
        let down = Published { link: LinkState::Down, room: 50 };
        board.publish(id, UP, down);
        assert!(board.is_open(id) && !board.is_up(id));
        assert_eq!(board.reserve(id, 0, 51), Err(SendError::Offline));
        assert_eq!(board.reserve(id, 0, 50), Ok(()));
        assert_eq!(board.reserve(id, 0, 1), Err(SendError::Offline));
    }

    #[test]
    fn room_adds_up_over_the_generations_of_a_slot() {
        let board = Board::new(ReactorNumber::fixed(3));
        let old = open(0, &board);
        board.reserve(old, 0, 30).unwrap();
        board.close(old, UP);
        let new = open(0, &board);
        assert_eq!(board.room(0), 70);
        board.release(0, 30);
        assert_eq!(board.room(0), 100);
        board.close(new, UP);
        assert_eq!(board.room(0), 0);
    }

    #[test]
    fn long_body_names_whose_limit_it_is() {
        let board = Board::new(ReactorNumber::fixed(3));
        let id = open(0, &board);
        board.set_max_body(0, (10, LimitBy::Peer));
        let refused = board.reserve(id, 11, 1);
        let expected = SendError::BodyTooLong { len: 11, max: 10, limit: LimitBy::Peer };
        assert_eq!(refused, Err(expected));
        assert_eq!(board.room(0), 100);
    }
}
