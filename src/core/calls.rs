//! The pending table: our calls in flight on one connection.
//!
//! A call is in the table from the moment it is queued until it ends; whoever takes it out ends
//! it, so it ends exactly once. The table knows ids and numbers, not who waits: `W` is that.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hash, Hasher},
};

use crate::id::TimerKey;

/// Calls in flight, by their id on the wire.
#[derive(Debug)]
pub(crate) struct PendingCalls<Id, W> {
    table: HashMap<Id, Pending<W>, BuildHasherDefault<IdHasher>>,
    /// The number of the next call; `None` before the first.
    next: Option<u64>,
    /// Whether `next` went past the last number.
    is_exhausted: bool,
    /// The calls of a format whose answers come in order; they are not in the table.
    line: Option<Box<CallLine<W>>>,
    /// How often all calls were looked at.
    #[cfg(test)]
    pub(crate) scans: u32,
}

/// Calls in flight on a format whose answers carry no id and come in the order of the requests.
///
/// A call that ended before its answer leaves its place behind, so that its late answer is not taken
/// for that of the next call.
#[derive(Debug)]
pub(crate) struct CallLine<W> {
    /// Those whose answers have not come, the oldest first. `None`: the call has ended.
    places: VecDeque<Option<Pending<W>>>,
    /// The number of the call at the front.
    first: u64,
    /// Calls that have not ended.
    in_flight: usize,
}

/// A call in flight.
#[derive(Debug)]
pub(crate) struct Pending<W> {
    pub(crate) number: u64,
    /// Where the request starts in the stream of frames that the connection sends.
    pub(crate) starts_at: u64,
    pub(crate) timer: Option<TimerKey>,
    pub(crate) waiter: W,
}

impl<Id, W> Default for PendingCalls<Id, W> {
    fn default() -> Self {
        Self {
            table: HashMap::default(),
            next: None,
            is_exhausted: false,
            line: None,
            #[cfg(test)]
            scans: 0,
        }
    }
}

impl<Id: Copy + Eq + Hash, W> PendingCalls<Id, W> {
    /// The number of the next call, `first` if there was none before; `None` when all were used.
    /// Skips none.
    pub(crate) fn next_number(&mut self, first: u64) -> Option<u64> {
        if self.is_exhausted { None } else { Some(*self.next.get_or_insert(first)) }
    }

    /// The number that [`next_number`](Self::next_number) gave is used.
    fn use_number(&mut self, number: u64) {
        debug_assert!(self.next.is_none_or(|next| next == number));
        match number.checked_add(1) {
            Some(next) => self.next = Some(next),
            None => self.is_exhausted = true,
        }
    }

    /// Enters a call under the number that [`next_number`](Self::next_number) gave, on a format whose
    /// answers come in order.
    pub(crate) fn insert_in_order(&mut self, pending: Pending<W>) {
        self.use_number(pending.number);
        self.line.get_or_insert_default().insert(pending);
    }

    /// The calls of a format whose answers come in order, if there was one.
    pub(crate) fn line(&self) -> Option<&CallLine<W>> {
        self.line.as_deref()
    }

    pub(crate) fn line_mut(&mut self) -> Option<&mut CallLine<W>> {
        self.line.as_deref_mut()
    }

    /// Enters a call under the number that [`next_number`](Self::next_number) gave.
    pub(crate) fn insert(&mut self, id: Id, pending: Pending<W>) {
        self.use_number(pending.number);
        let before = self.table.insert(id, pending);
        debug_assert!(before.is_none(), "ids of one epoch differ");
    }

    /// Whether a call of this id is in flight, on a format whose answers carry one.
    pub(crate) fn contains(&self, id: &Id) -> bool {
        self.table.contains_key(id)
    }

    /// Takes a call out, whoever comes first.
    pub(crate) fn take(&mut self, id: &Id) -> Option<Pending<W>> {
        self.table.remove(id)
    }

    /// Takes those out of which this holds, oldest first.
    pub(crate) fn take_where(&mut self, mut holds: impl FnMut(&Id) -> bool) -> Vec<Pending<W>> {
        #[cfg(test)]
        {
            self.scans += 1;
        }
        let taken = self.table.extract_if(|id, _| holds(id)).map(|(_, pending)| pending);
        let mut taken: Vec<_> = taken.collect();
        taken.sort_unstable_by_key(|pending| pending.number);
        taken
    }

    /// Takes all out, oldest first.
    pub(crate) fn take_all(&mut self) -> Vec<Pending<W>> {
        let mut all: Vec<_> = self.table.drain().map(|(_, pending)| pending).collect();
        all.sort_unstable_by_key(|pending| pending.number);
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

impl<W> Default for CallLine<W> {
    fn default() -> Self {
        Self { places: VecDeque::new(), first: 0, in_flight: 0 }
    }
}

impl<W> CallLine<W> {
    fn insert(&mut self, pending: Pending<W>) {
        if self.places.is_empty() {
            self.first = pending.number;
        }
        debug_assert_eq!(self.first + self.places.len() as u64, pending.number);
        self.places.push_back(Some(pending));
        self.in_flight += 1;
    }

    /// An answer came. The call that it ends; `None` if that has ended, or if nobody asked.
    pub(crate) fn take_oldest(&mut self) -> Option<Pending<W>> {
        let place = self.places.pop_front()?;
        self.first = self.first.saturating_add(1);
        self.in_flight -= usize::from(place.is_some());
        place
    }

    /// Takes a call out before its answer; its place stays.
    pub(crate) fn take(&mut self, number: u64) -> Option<Pending<W>> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let pending = self.places.get_mut(place)?.take()?;
        self.in_flight -= 1;
        Some(pending)
    }

    /// Takes those out of whose numbers this holds, oldest first; their places stay.
    pub(crate) fn take_where(&mut self, mut holds: impl FnMut(u64) -> bool) -> Vec<Pending<W>> {
        let places = self.places.iter_mut();
        let taken = places.filter_map(|place| place.take_if(|pending| holds(pending.number)));
        let taken: Vec<_> = taken.collect();
        self.in_flight -= taken.len();
        taken
    }

    /// Calls that have not ended.
    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Answers that have not come, those of calls that have ended included.
    pub(crate) fn awaited(&self) -> usize {
        self.places.len()
    }
}

/// A cheap hash for ids that we made ourselves.
///
/// A peer can ask for ids that are not there, but it can't put any in, so it has no way to make
/// the table slow, and the standard hasher's defence would be paid for nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(u64::from_le_bytes(chunk.try_into().expect("chunks of 8")));
        }
        for &byte in chunks.remainder() {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        // A multiplication by 2^64 / φ spreads the low bits; the fold brings them back down.
        let product = u128::from(self.0 ^ word) * 0x9E37_79B9_7F4A_7C15;
        #[expect(clippy::cast_possible_truncation, reason = "the two halves, one after the other")]
        let folded = (product as u64) ^ (product >> 64) as u64;
        self.0 = folded;
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(number: u64) -> Pending<&'static str> {
        Pending { number, starts_at: 0, timer: None, waiter: "who" }
    }

    #[test]
    fn call_is_taken_once() {
        let mut calls = PendingCalls::default();
        calls.insert(10_u64, pending(1));
        assert!(calls.take(&10).is_some());
        assert!(calls.take(&10).is_none());
        assert!(calls.is_empty());
    }

    #[test]
    fn numbers_grow_and_are_not_reused() {
        let mut calls = PendingCalls::default();
        for number in 1..=3 {
            assert_eq!(calls.next_number(1), Some(number));
            calls.insert(number, pending(number));
            calls.take(&number);
        }
        assert_eq!(calls.next_number(1), Some(4));
    }

    #[test]
    fn last_number_is_used_and_then_none_is_left() {
        let mut calls = PendingCalls::default();
        assert_eq!(calls.next_number(u64::MAX), Some(u64::MAX));
        calls.insert(u64::MAX, pending(u64::MAX));
        assert_eq!(calls.next_number(u64::MAX), None);
    }

    #[test]
    fn all_end_oldest_first() {
        let mut calls = PendingCalls::default();
        for number in 1..=1000 {
            calls.insert(number, pending(number));
        }
        let numbers: Vec<_> = calls.take_all().iter().map(|pending| pending.number).collect();
        assert_eq!(numbers, (1..=1000).collect::<Vec<_>>());
        assert_eq!(calls.len(), 0);
    }

    #[test]
    fn answer_ends_the_oldest_call_and_one_that_was_given_up_keeps_its_place() {
        let mut calls = PendingCalls::<u64, _>::default();
        for number in 1..=3 {
            assert_eq!(calls.next_number(1), Some(number));
            calls.insert_in_order(pending(number));
        }
        let line = calls.line_mut().unwrap();
        assert!(line.take(2).is_some());
        assert!(line.take(2).is_none());
        assert_eq!((line.in_flight(), line.awaited()), (2, 3));
        let answered = [0; 4].map(|_| line.take_oldest().map(|pending| pending.number));
        assert_eq!(answered, [Some(1), None, Some(3), None]);
        assert_eq!((line.in_flight(), line.awaited()), (0, 0));
        assert!(line.take(3).is_none());
        calls.insert_in_order(pending(4));
        assert_eq!(calls.line_mut().unwrap().take_oldest().unwrap().number, 4);
    }

    #[test]
    fn sequential_ids_spread_over_the_low_bits() {
        let mut buckets = [0_u32; 64];
        for id in 0..6400_u64 {
            let mut hasher = IdHasher::default();
            hasher.write_u64(id);
            buckets[usize::try_from(hasher.finish() % 64).unwrap()] += 1;
        }
        assert!(buckets.iter().all(|&count| (50..200).contains(&count)), "{buckets:?}");
    }
}
