//! Deadlines in a hierarchical wheel: to arm or cancel one costs the same however many are armed.
//!
//! Time is counted in ticks of 1 ms since the start. A deadline is rounded up to a tick and `now`
//! down, so nothing fires early. The level of a deadline is that of the highest digit (base 64) in
//! which it differs from the wheel's time. So equal deadlines always share a list, and lists keep
//! the order of insertion when a slot's turn comes and its entries move down.
//!
//! ```text
//! level 5   64 slots of 12 days   a ring: what is farther than 2.2 years goes round again
//!   ...       │ a slot's turn: its entries move to lower levels
//! level 1   64 slots of 64 ms     the rest of the current 4 s
//! level 0   64 slots of 1 ms      the rest of the current 64 ms
//!             │ advance
//!            due ── pop_due       overdue (inserted too late) joins due at the next advance
//! ```
//!
//! A timer never moves in memory, as its key says where it is. So the memory is in chunks, and each
//! chunk is given back when none of its timers is left, but for a few.

use std::{fmt, mem, time::Duration};

use crate::{id::TimerKey, moment::Moment};

/// Armed timers, each with its deadline and a value to hand back when it fires.
///
/// Timers fire in order of their deadline's tick, equal ticks in insertion order.
pub(crate) struct TimerWheel<T> {
    /// The wheel's own time, in ticks since the start.
    ///
    /// Invariant: it never goes back, and the turn of every slot that is occupied is after it.
    elapsed: u64,
    /// The slots of level 0, of level 1 and so on, then `DUE` and `OVERDUE`.
    lists: Box<[List; LISTS as usize]>,
    /// A bit per list, a word per level; the last word is for `DUE` and `OVERDUE`.
    ///
    /// Invariant: a bit is set exactly when its list is not empty.
    occupied: [u64; LEVELS as usize + 1],
    /// Invariant: each entry is in one list, or in the free list of its chunk, or retired.
    chunks: Vec<Chunk<T>>,
    /// The chunks with a free entry, and behind these those without memory.
    ///
    /// Invariant: a chunk is in it exactly when it has a free entry or no memory.
    open: List,
    /// Chunks that have memory and no timers.
    empty: u32,
    /// Timers armed or due.
    #[cfg(test)]
    len: usize,
}

/// Entries whose memory comes and goes together.
struct Chunk<T> {
    /// `None` while there is no memory.
    entries: Option<Box<[Entry<T>; CHUNK]>>,
    /// Timers armed or due.
    len: u16,
    /// The place of the entry to use next, `FULL` if there is none; the others follow by `next`.
    free: u16,
    /// The generation that the entries start with when there is memory again.
    ///
    /// Invariant: above that of every key to an entry that was given back.
    first_generation: u32,
    /// In `open`.
    next: u32,
    prev: u32,
}

/// A timer, or the room for one.
struct Entry<T> {
    /// The tick at which it fires.
    deadline: u64,
    /// The index of the next one in the list; of a free entry the place of the next free one.
    next: u32,
    prev: u32,
    /// Counts the timers that were here; that of a free entry is for the next one.
    ///
    /// Invariant: no timer has `RETIRED`.
    generation: u32,
    list: u32,
    /// Invariant: `None` exactly when the entry is free or retired.
    value: Option<T>,
}

/// The ends of a list that runs through the entries, or the chunks.
///
/// Invariant: both are `NIL`, or neither is.
#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: Self = Self { head: NIL, tail: NIL };
}

const NANOS_PER_TICK: u64 = 1_000_000;

const SLOT_BITS: u32 = 6;
/// As many as a word has bits.
const SLOTS: u32 = 1 << SLOT_BITS;
const LEVELS: u32 = 6;
/// Ticks in one round of the top level.
const RANGE: u64 = 1 << (SLOT_BITS * LEVELS);

/// What the last `advance` moved out.
const DUE: u32 = LEVELS * SLOTS;
/// What was inserted since then with a deadline that was not after the wheel's time.
const OVERDUE: u32 = DUE + 1;
const LISTS: u32 = DUE + 2;

/// The index of no entry.
const NIL: u32 = u32::MAX;
/// The generation of an entry that is out of generations: it is not used again, for a key must
/// never find a later timer. This costs the memory of one entry in 2^32 timers.
const RETIRED: u32 = u32::MAX;
/// Entries in a chunk: their places fit in a byte, which spares a comparison.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = u8::BITS;
/// The place of no entry.
const FULL: u16 = 1 << CHUNK_BITS;
/// Chunks without timers that keep their memory. A chunk is given back only when there are more, so
/// as many timers are armed before one is needed again: a load that comes and goes does not pay for
/// it each time.
const KEPT_CHUNKS: u32 = 16;
/// From this generation on a chunk's memory is not given back: entries that start near `RETIRED`
/// would cost more memory than that.
const WORN: u32 = 1 << 31;

impl<T> TimerWheel<T> {
    /// An empty wheel.
    pub(crate) fn new() -> Self {
        Self {
            elapsed: 0,
            lists: Box::new([List::EMPTY; LISTS as usize]),
            occupied: [0; LEVELS as usize + 1],
            chunks: Vec::new(),
            open: List::EMPTY,
            empty: 0,
            #[cfg(test)]
            len: 0,
        }
    }

    /// Arms a timer, in constant time.
    ///
    /// A deadline that is not after the wheel's own time fires in the next pass, after those that
    /// wait already.
    ///
    /// # Panics
    ///
    /// With 2^32 - 256 timers armed.
    #[inline]
    pub(crate) fn insert(&mut self, deadline: Moment, value: T) -> TimerKey {
        self.insert_at(deadline.as_nanos().div_ceil(NANOS_PER_TICK), value)
    }

    #[inline]
    fn insert_at(&mut self, deadline: u64, value: T) -> TimerKey {
        let list = if deadline > self.elapsed { self.slot_of(deadline) } else { OVERDUE };
        let number = self.open.head;
        let Some(Chunk { entries: Some(entries), len, free, .. }) =
            self.chunks.get_mut(number as usize)
        else {
            self.grow();
            return self.insert_at(deadline, value);
        };
        let index = number << CHUNK_BITS | u32::from(*free);
        let entry = &mut entries[place_of(index)];
        let generation = entry.generation;
        *free = low(entry.next);
        *len += 1;
        let (is_first, is_full) = (*len == 1, *free == FULL);
        entry.deadline = deadline;
        entry.prev = self.lists[list as usize].tail;
        entry.next = NIL;
        entry.list = list;
        entry.value = Some(value);
        self.append(list, index);
        self.empty -= u32::from(is_first);
        if is_full {
            self.shut(number);
        }
        #[cfg(test)]
        {
            self.len += 1;
        }
        TimerKey { index, generation }
    }

    /// Disarms a timer and unlinks it at once, in constant time; also one that is due.
    ///
    /// `None` if it was popped or cancelled before.
    #[inline]
    pub(crate) fn cancel(&mut self, key: TimerKey) -> Option<T> {
        let number = key.index >> CHUNK_BITS;
        let chunk = self.chunks.get_mut(number as usize)?;
        let entry = &mut chunk.entries.as_mut()?[place_of(key.index)];
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        let (next, prev, list) = (entry.next, entry.prev, entry.list);
        entry.generation += 1;
        chunk.len -= 1;
        let is_empty = chunk.len == 0;
        let mut was_full = false;
        if entry.generation != RETIRED {
            was_full = chunk.free == FULL;
            entry.next = u32::from(chunk.free);
            chunk.free = low(key.index) % FULL;
        }
        if prev == NIL {
            self.lists[list as usize].head = next;
        } else {
            self.entry_mut(prev).next = next;
        }
        if next == NIL {
            self.lists[list as usize].tail = prev;
        } else {
            self.entry_mut(next).prev = prev;
        }
        if prev == NIL && next == NIL {
            self.occupied[(list / SLOTS) as usize] &= !bit(list);
        }
        if was_full {
            self.open_first(number);
        }
        if is_empty {
            self.handle_empty(number);
        }
        #[cfg(test)]
        {
            self.len -= 1;
        }
        Some(value)
    }

    /// Moves every timer that is due at `now` out of the wheel, for [`pop_due`](Self::pop_due).
    ///
    /// Costs per timer and slot, not per tick. A `now` before the wheel's own time counts as that.
    pub(crate) fn advance(&mut self, now: Moment) {
        let target = now.as_nanos() / NANOS_PER_TICK;
        // These first: what the slots hold is due later than they were.
        self.take_turn(OVERDUE);
        while let Some((tick, slot)) = self.next_turn()
            && tick <= target
        {
            debug_assert!(tick > self.elapsed, "a slot's turn was missed");
            self.elapsed = tick;
            self.take_turn(slot);
        }
        self.elapsed = self.elapsed.max(target);
    }

    /// The next of the timers that [`advance`](Self::advance) moved out.
    ///
    /// One that was inserted since does not come out before the next `advance`, whatever its
    /// deadline; one that was cancelled since does not come out at all.
    pub(crate) fn pop_due(&mut self) -> Option<(TimerKey, T)> {
        let index = self.lists[DUE as usize].head;
        if index == NIL {
            return None;
        }
        let generation = self.entry(index).generation;
        let key = TimerKey { index, generation };
        Some((key, self.cancel(key)?))
    }

    /// Whether [`pop_due`](Self::pop_due) has a timer to give.
    pub(crate) fn has_due(&self) -> bool {
        self.lists[DUE as usize].head != NIL
    }

    /// The earliest instant at which [`advance`](Self::advance) or `pop_due` has something to do.
    ///
    /// Never after the tick of the first deadline, but it may be before it, once for each level
    /// that a timer moves down and once for each round of the top level. Not after the wheel's own
    /// time if something waits already. `None` if the wheel is empty, or if an [`Moment`] cannot
    /// be so late.
    pub(crate) fn next_wake(&self) -> Option<Moment> {
        let is_waiting = self.occupied[LEVELS as usize] != 0;
        let tick = if is_waiting { self.elapsed } else { self.next_turn()?.0 };
        Moment::START.checked_add(Duration::from_millis(tick))
    }

    /// The number of timers that were neither popped nor cancelled.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is armed or due.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Moves the entries of a list to where they belong now.
    fn take_turn(&mut self, list: u32) {
        if self.lists[list as usize].head == NIL {
            return;
        }
        let mut index = mem::replace(&mut self.lists[list as usize], List::EMPTY).head;
        self.occupied[(list / SLOTS) as usize] &= !bit(list);
        while index != NIL {
            let &Entry { deadline, next, .. } = self.entry(index);
            let list = if deadline > self.elapsed { self.slot_of(deadline) } else { DUE };
            let prev = self.lists[list as usize].tail;
            let entry = self.entry_mut(index);
            (entry.prev, entry.next, entry.list) = (prev, NIL, list);
            self.append(list, index);
            index = next;
        }
    }

    /// The occupied slot whose turn comes first, and the tick of its turn.
    fn next_turn(&self) -> Option<(u64, u32)> {
        // All of a level's turns come before any of the next level's: those wait for this level
        // to complete its round.
        let level = (0..LEVELS).find(|&level| self.occupied[level as usize] != 0)?;
        let here = digit(self.elapsed, level);
        // On the top level the ring may lead on to this very slot, 64 steps ahead.
        let steps = self.occupied[level as usize].rotate_right(here + 1).trailing_zeros() + 1;
        let shift = level * SLOT_BITS;
        let tick = ((self.elapsed >> shift) + u64::from(steps)) << shift;
        Some((tick, level * SLOTS + (here + steps) % SLOTS))
    }

    /// The slot for a tick after `elapsed`.
    #[inline]
    fn slot_of(&self, deadline: u64) -> u32 {
        debug_assert!(deadline > self.elapsed);
        let differing = (self.elapsed ^ deadline).min(RANGE - 1);
        let level = differing.ilog2() / SLOT_BITS;
        level * SLOTS + digit(deadline, level)
    }

    /// Makes an entry the last of a list, which it knows already.
    #[inline]
    fn append(&mut self, list: u32, index: u32) {
        let prev = mem::replace(&mut self.lists[list as usize].tail, index);
        if prev == NIL {
            self.lists[list as usize].head = index;
            self.occupied[(list / SLOTS) as usize] |= bit(list);
        } else {
            self.entry_mut(prev).next = index;
        }
    }

    #[inline]
    fn entry(&self, index: u32) -> &Entry<T> {
        let chunk = &self.chunks[(index >> CHUNK_BITS) as usize];
        &chunk.entries.as_ref().expect("a chunk with timers has memory")[place_of(index)]
    }

    #[inline]
    fn entry_mut(&mut self, index: u32) -> &mut Entry<T> {
        let chunk = &mut self.chunks[(index >> CHUNK_BITS) as usize];
        &mut chunk.entries.as_mut().expect("a chunk with timers has memory")[place_of(index)]
    }

    /// Gets memory for a chunk, all of whose entries are free then; it becomes the first open one.
    #[cold]
    fn grow(&mut self) {
        if self.open.head == NIL {
            let number = u32::try_from(self.chunks.len()).unwrap_or(NIL);
            assert!(number < NIL >> CHUNK_BITS, "fewer than 2^32 - 256 timers are armed");
            self.chunks.push(Chunk::new());
            self.open_last(number);
        }
        self.chunks[self.open.head as usize].fill();
        self.empty += 1;
    }

    /// A chunk has no timers any more: gives its memory back if others have some for the next ones.
    fn handle_empty(&mut self, number: u32) {
        let chunk = &mut self.chunks[number as usize];
        if self.empty < KEPT_CHUNKS || chunk.first_generation == RETIRED {
            self.empty += 1;
            return;
        }
        let newest = chunk.entries.iter().flat_map(|entries| &entries[..]);
        let newest = newest.map(|entry| entry.generation).max().unwrap_or(RETIRED);
        if newest >= WORN {
            // So that they are not looked at again.
            chunk.first_generation = RETIRED;
            self.empty += 1;
            return;
        }
        chunk.first_generation = newest;
        chunk.entries = None;
        // Behind those that have memory.
        self.shut(number);
        self.open_last(number);
    }

    /// Takes a chunk out of `open`.
    fn shut(&mut self, number: u32) {
        let &Chunk { next, prev, .. } = &self.chunks[number as usize];
        match self.chunks.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => self.open.head = next,
        }
        match self.chunks.get_mut(next as usize) {
            Some(behind) => behind.prev = prev,
            None => self.open.tail = prev,
        }
    }

    /// Puts a chunk in front of `open`: the next timers fill it up again, so that others get empty.
    fn open_first(&mut self, number: u32) {
        let next = mem::replace(&mut self.open.head, number);
        match self.chunks.get_mut(next as usize) {
            Some(behind) => behind.prev = number,
            None => self.open.tail = number,
        }
        let chunk = &mut self.chunks[number as usize];
        (chunk.next, chunk.prev) = (next, NIL);
    }

    /// Puts a chunk behind all of `open`.
    fn open_last(&mut self, number: u32) {
        let prev = mem::replace(&mut self.open.tail, number);
        match self.chunks.get_mut(prev as usize) {
            Some(before) => before.next = number,
            None => self.open.head = number,
        }
        let chunk = &mut self.chunks[number as usize];
        (chunk.next, chunk.prev) = (NIL, prev);
    }
}

impl<T> Chunk<T> {
    /// A chunk without memory.
    const fn new() -> Self {
        Self { entries: None, len: 0, free: 0, first_generation: 0, next: NIL, prev: NIL }
    }

    /// Gets memory; all entries are free.
    fn fill(&mut self) {
        let generation = self.first_generation;
        let free = |place| Entry {
            deadline: 0,
            next: place + 1,
            prev: NIL,
            generation,
            list: 0,
            value: None,
        };
        let entries: Vec<_> = (0..u32::from(FULL)).map(free).collect();
        self.entries = entries.try_into().ok();
        self.free = 0;
    }
}

impl<T> fmt::Debug for TimerWheel<T> {
    /// Prints no timers: there may be a million.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerWheel")
            .field("elapsed", &self.elapsed)
            .field("chunks", &self.chunks.len())
            .finish_non_exhaustive()
    }
}

/// The digit of a tick at a level: the slot that the tick falls into.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a digit is less than SLOTS")]
const fn digit(tick: u64, level: u32) -> u32 {
    (tick >> (level * SLOT_BITS)) as u32 % SLOTS
}

/// The lower half, which is all of a place.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "wanted")]
const fn low(index: u32) -> u16 {
    index as u16
}

/// The place of an entry in its chunk.
#[inline]
const fn place_of(index: u32) -> usize {
    (index % FULL as u32) as usize
}

/// The bit of a list in its word.
#[inline]
const fn bit(list: u32) -> u64 {
    1 << (list % SLOTS)
}

#[cfg(test)]
impl<T> TimerWheel<T> {
    /// Panics if an invariant is broken.
    pub(crate) fn check(&self) {
        let mut linked = 0;
        for list in 0..LISTS {
            let List { head, tail } = self.lists[list as usize];
            let is_occupied = self.occupied[(list / SLOTS) as usize] & bit(list) != 0;
            assert_eq!(is_occupied, head != NIL, "bit of list {list}");
            let (mut prev, mut index) = (NIL, head);
            while index != NIL {
                let entry = self.entry(index);
                assert_eq!((entry.prev, entry.list), (prev, list), "entry {index}");
                assert!(entry.value.is_some() && entry.generation != RETIRED, "entry {index}");
                assert_eq!(entry.deadline > self.elapsed, list < DUE, "entry {index}");
                if list < DUE {
                    assert_eq!(list, self.slot_of(entry.deadline), "entry {index}");
                }
                (prev, index) = (index, entry.next);
                linked += 1;
            }
            assert_eq!(tail, prev, "tail of list {list}");
        }
        assert_eq!(linked, self.len, "timers in lists");

        let mut open = Vec::new();
        let (mut prev, mut number) = (NIL, self.open.head);
        while number != NIL {
            let chunk = &self.chunks[number as usize];
            assert_eq!(chunk.prev, prev, "chunk {number}");
            open.push(number);
            (prev, number) = (number, chunk.next);
        }
        assert_eq!(self.open.tail, prev, "tail of the open chunks");
        let has_memory = |number: &u32| self.chunks[*number as usize].entries.is_some();
        assert!(open.is_sorted_by_key(|number| !has_memory(number)), "those without come last");
        let (mut in_chunks, mut empty) = (0, 0);
        for (number, chunk) in (0..).zip(&self.chunks) {
            let is_open = chunk.free != FULL || chunk.entries.is_none();
            assert_eq!(open.contains(&number), is_open, "chunk {number}");
            in_chunks += chunk.check();
            empty += u32::from(chunk.len == 0 && chunk.entries.is_some());
        }
        assert_eq!((in_chunks, empty), (self.len, self.empty), "timers, empty chunks");
    }

    /// The chunks that have memory.
    pub(crate) fn held(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.entries.is_some()).count()
    }
}

#[cfg(test)]
impl<T> Chunk<T> {
    /// Panics if an invariant is broken; the number of timers.
    fn check(&self) -> usize {
        let Some(entries) = &self.entries else {
            assert_eq!(self.len, 0);
            return 0;
        };
        let (mut free, mut place) = (0, self.free);
        while place != FULL {
            let entry = &entries[usize::from(place)];
            assert!(entry.value.is_none() && entry.generation != RETIRED, "free entry {place}");
            place = u16::try_from(entry.next).unwrap_or(FULL);
            free += 1;
        }
        let armed = entries.iter().filter(|entry| entry.value.is_some()).count();
        assert_eq!(armed, usize::from(self.len));
        let retired = entries.iter().filter(|entry| entry.generation == RETIRED).count();
        assert_eq!(armed + free + retired, entries.len(), "entries accounted for");
        armed
    }
}

#[cfg(test)]
mod tests;
