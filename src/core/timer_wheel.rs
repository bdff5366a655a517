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

use std::{fmt, mem, time::Duration};

use super::moment::Moment;

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
    /// Invariant: each entry is in one list, or in the free list, or retired.
    entries: Vec<Entry<T>>,
    /// The entry to use next; the others follow by `next`.
    free: u32,
    /// Timers armed or due.
    len: usize,
    /// The generation that a new entry starts with.
    ///
    /// Invariant: above that of every key to an entry that was given back with its memory.
    first_generation: u32,
    /// Invariant: no entry from `KEPT_ENTRIES` on has a higher generation.
    newest_generation: u32,
}

/// Names one timer of one wheel; finds nothing once that timer fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TimerKey {
    index: u32,
    generation: u32,
}

/// A timer, or the room for one.
struct Entry<T> {
    /// The tick at which it fires.
    deadline: u64,
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

/// The ends of a list that runs through the entries.
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
/// Entries that stay when the wheel gets empty, so that a small load does not pay for them
/// again and again.
const KEPT_ENTRIES: u32 = 4096;
/// From this generation on an entry's memory is not given back: entries that start near `RETIRED`
/// would cost more memory than that.
const WORN: u32 = 1 << 31;

impl<T> TimerWheel<T> {
    /// An empty wheel.
    pub(crate) fn new() -> Self {
        Self {
            elapsed: 0,
            lists: Box::new([List::EMPTY; LISTS as usize]),
            occupied: [0; LEVELS as usize + 1],
            entries: Vec::new(),
            free: NIL,
            len: 0,
            first_generation: 0,
            newest_generation: 0,
        }
    }

    /// Arms a timer, in constant time.
    ///
    /// A deadline that is not after the wheel's own time fires in the next pass, after those that
    /// wait already.
    ///
    /// # Panics
    ///
    /// With 2^32 - 1 timers armed.
    #[inline]
    pub(crate) fn insert(&mut self, deadline: Moment, value: T) -> TimerKey {
        let deadline = deadline.as_nanos().div_ceil(NANOS_PER_TICK);
        let list = if deadline > self.elapsed { self.slot_of(deadline) } else { OVERDUE };
        let key = self.allocate(deadline, value);
        self.link(list, key.index);
        key
    }

    /// Disarms a timer and unlinks it at once, in constant time; also one that is due.
    ///
    /// `None` if it was popped or cancelled before.
    #[inline]
    pub(crate) fn cancel(&mut self, key: TimerKey) -> Option<T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        self.unlink(key.index);
        self.release(key.index);
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
        let generation = self.entries.get(index as usize)?.generation;
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
            let Entry { deadline, next, .. } = self.entries[index as usize];
            let list = if deadline > self.elapsed { self.slot_of(deadline) } else { DUE };
            self.link(list, index);
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

    /// Appends an entry to a list.
    #[inline]
    fn link(&mut self, list: u32, index: u32) {
        let prev = mem::replace(&mut self.lists[list as usize].tail, index);
        if prev == NIL {
            self.lists[list as usize].head = index;
            self.occupied[(list / SLOTS) as usize] |= bit(list);
        } else {
            self.entries[prev as usize].next = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.prev = prev;
        entry.next = NIL;
        entry.list = list;
    }

    #[inline]
    fn unlink(&mut self, index: u32) {
        let Entry { next, prev, list, .. } = self.entries[index as usize];
        if prev == NIL {
            self.lists[list as usize].head = next;
        } else {
            self.entries[prev as usize].next = next;
        }
        if next == NIL {
            self.lists[list as usize].tail = prev;
        } else {
            self.entries[next as usize].prev = prev;
        }
        if prev == NIL && next == NIL {
            self.occupied[(list / SLOTS) as usize] &= !bit(list);
        }
    }

    /// Fills a free entry, which is in no list yet.
    #[inline]
    fn allocate(&mut self, deadline: u64, value: T) -> TimerKey {
        let index = if self.free == NIL { self.grow() } else { self.free };
        let entry = &mut self.entries[index as usize];
        self.free = entry.next;
        entry.deadline = deadline;
        entry.value = Some(value);
        self.len += 1;
        TimerKey { index, generation: entry.generation }
    }

    #[cold]
    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.entries.len()).unwrap_or(NIL);
        assert_ne!(index, NIL, "fewer than 2^32 - 1 timers are armed");
        let generation = self.first_generation;
        self.entries.push(Entry {
            deadline: 0,
            next: NIL,
            prev: NIL,
            generation,
            list: 0,
            value: None,
        });
        index
    }

    /// Frees an entry that was unlinked.
    #[inline]
    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.generation += 1;
        if index >= KEPT_ENTRIES {
            self.newest_generation = self.newest_generation.max(entry.generation);
        }
        if entry.generation != RETIRED {
            entry.next = self.free;
            self.free = index;
        }
        self.len -= 1;
        if self.len == 0 && self.entries.len() > KEPT_ENTRIES as usize {
            self.give_memory_back();
        }
    }

    /// Drops the entries from `KEPT_ENTRIES` on, all of them being free.
    #[cold]
    fn give_memory_back(&mut self) {
        if self.newest_generation >= WORN {
            return;
        }
        self.first_generation = self.newest_generation;
        self.entries.truncate(KEPT_ENTRIES as usize);
        self.entries.shrink_to_fit();
        self.free = NIL;
        for index in (0..KEPT_ENTRIES).rev() {
            let entry = &mut self.entries[index as usize];
            if entry.generation != RETIRED {
                entry.next = mem::replace(&mut self.free, index);
            }
        }
    }
}

impl<T> fmt::Debug for TimerWheel<T> {
    /// Prints no timers: there may be a million.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerWheel")
            .field("elapsed", &self.elapsed)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// The digit of a tick at a level: the slot that the tick falls into.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a digit is less than SLOTS")]
const fn digit(tick: u64, level: u32) -> u32 {
    (tick >> (level * SLOT_BITS)) as u32 % SLOTS
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
                let entry = &self.entries[index as usize];
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

        let (mut free, mut index) = (0, self.free);
        while index != NIL {
            let entry = &self.entries[index as usize];
            assert!(entry.value.is_none() && entry.generation != RETIRED, "free entry {index}");
            index = entry.next;
            free += 1;
        }
        let retired = self.entries.iter().filter(|entry| entry.generation == RETIRED).count();
        assert_eq!(linked + free + retired, self.entries.len(), "entries accounted for");
        let worn = self.entries.iter().skip(KEPT_ENTRIES as usize).map(|entry| entry.generation);
        assert!(worn.max() <= Some(self.newest_generation), "newest generation");
    }
}

#[cfg(test)]
mod tests;
