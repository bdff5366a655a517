//! The peer's requests that outlived their callback.
//!
//! A request that its callback answers leaves no trace here. One that is deferred is kept until it
//! is answered, so that a cancel finds it, a second request of the same id is noticed and the
//! number in flight is bounded. `D` is what a cancel is told to.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use bytes::Bytes;

use super::write_queue::FRAME_OVERHEAD;
use crate::protocol::Head;

/// Requests in flight, by their id on the wire.
#[derive(Debug)]
pub(crate) struct OpenRequests<Id, D> {
    // The standard hasher: these ids are the peer's choice.
    table: HashMap<Id, Open<D>>,
    /// Those of the table that the peer no longer waits for.
    cancelled: usize,
    unmarked: Unmarked<D>,
    /// Those of a format whose answers go in order; they are not in the table.
    line: Option<Box<AnswerLine<Id, D>>>,
    /// Requests that can't be refused when they are too many: those that are not marked, and those
    /// whose answers go in order, as the refusal would have to wait, too.
    unrefusable: usize,
}

/// One that the format marks.
#[derive(Debug)]
struct Open<D> {
    deferred: D,
    is_cancelled: bool,
}

/// Requests that the format does not mark as such. Their ids may repeat, so they are only counted;
/// there is no cancel, so they share what is told of the end of the epoch.
#[derive(Debug)]
struct Unmarked<D> {
    deferred: Option<D>,
}

/// The answers that are due, in the order of the requests, from the oldest deferred one on.
#[derive(Debug)]
struct AnswerLine<Id, D> {
    places: VecDeque<Place<Id, D>>,
    /// The number of the place at the front. Numbers wrap around.
    first: u32,
    held: Held,
}

#[derive(Debug)]
enum Place<Id, D> {
    /// The request was deferred and is not answered.
    Waits(D),
    /// It was answered, and the answer waits for those before it.
    Answered(Head<Id>, Bytes),
}

/// Answers that wait for those before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) messages: usize,
    /// Bytes of their bodies.
    pub(crate) bytes: usize,
}

impl Held {
    /// Their charge, as that of queued frames.
    pub(crate) const fn cost(self) -> usize {
        self.bytes + self.messages * FRAME_OVERHEAD
    }
}

impl<Id, D> Default for AnswerLine<Id, D> {
    fn default() -> Self {
        Self { places: VecDeque::new(), first: 0, held: Held::default() }
    }
}

impl<Id, D> AnswerLine<Id, D> {
    fn index(&self, place: u32) -> Option<usize> {
        let index = place.wrapping_sub(self.first) as usize;
        (index < self.places.len()).then_some(index)
    }

    fn pop(&mut self) -> Option<Place<Id, D>> {
        let place = self.places.pop_front()?;
        self.first = self.first.wrapping_add(1);
        Some(place)
    }
}

impl<Id: Copy + Eq + Hash, D> Default for OpenRequests<Id, D> {
    fn default() -> Self {
        Self {
            table: HashMap::new(),
            cancelled: 0,
            unmarked: Unmarked { deferred: None },
            line: None,
            unrefusable: 0,
        }
    }
}

impl<Id: Copy + Eq + Hash, D> OpenRequests<Id, D> {
    pub(crate) fn insert(&mut self, id: Id, deferred: D) {
        self.table.insert(id, Open { deferred, is_cancelled: false });
    }

    /// The request was answered.
    pub(crate) fn remove(&mut self, id: &Id) -> Option<D> {
        let open = self.table.remove(id)?;
        self.cancelled -= usize::from(open.is_cancelled);
        Some(open.deferred)
    }

    pub(crate) fn contains(&self, id: &Id) -> bool {
        self.table.contains_key(id)
    }

    /// The peer no longer waits for the answer. Who is to be told; nobody if it has said so before. The
    /// request goes on to count as one in flight: what works on its answer may not know yet.
    pub(crate) fn cancel(&mut self, id: &Id) -> Option<&D> {
        let open = self.table.get_mut(id).filter(|open| !open.is_cancelled)?;
        open.is_cancelled = true;
        self.cancelled += 1;
        Some(&open.deferred)
    }

    /// One that the format does not mark. What is told of the end of the epoch: `new`, or what was
    /// given before.
    pub(crate) fn insert_unmarked(&mut self, new: D) -> &D {
        self.unrefusable += 1;
        self.unmarked.deferred.get_or_insert(new)
    }

    /// One that the format does not mark was answered, or will not be.
    pub(crate) fn remove_unmarked(&mut self) {
        self.unrefusable = self.unrefusable.saturating_sub(1);
    }

    /// Those that can't be refused when they are too many, answers that wait for others included.
    #[inline]
    pub(crate) const fn unrefusable(&self) -> usize {
        self.unrefusable
    }

    /// Defers the newest request of a format whose answers go in order: the number of its place.
    pub(crate) fn insert_in_order(&mut self, deferred: D) -> u32 {
        let line = self.line.get_or_insert_default();
        let place = line.first.wrapping_add(u32::try_from(line.places.len()).unwrap_or(u32::MAX));
        line.places.push_back(Place::Waits(deferred));
        self.unrefusable += 1;
        place
    }

    /// Whether the request of that place has no answer.
    pub(crate) fn is_awaited(&self, place: u32) -> bool {
        let Some(line) = &self.line else { return false };
        line.index(place).is_some_and(|index| matches!(line.places[index], Place::Waits(_)))
    }

    /// Whether an answer can go out now: that of the place, or of the newest request, which has none.
    pub(crate) fn is_next(&self, place: Option<u32>) -> bool {
        match (&self.line, place) {
            (Some(line), Some(place)) => line.index(place) == Some(0),
            (Some(line), None) => line.places.is_empty(),
            (None, _) => true,
        }
    }

    /// Keeps an answer until those before it are there. `None`: it is that of the newest request.
    pub(crate) fn hold(&mut self, place: Option<u32>, head: Head<Id>, body: Bytes) {
        let line = self.line.get_or_insert_default();
        line.held.messages += 1;
        line.held.bytes += body.len();
        let answered = Place::Answered(head, body);
        if let Some(place) = place {
            if let Some(index) = line.index(place) {
                line.places[index] = answered;
            }
        } else {
            line.places.push_back(answered);
            self.unrefusable += 1;
        }
    }

    /// The answer at the front went out.
    pub(crate) fn advance(&mut self) {
        if self.line.as_mut().and_then(|line| line.pop()).is_some() {
            self.unrefusable -= 1;
        }
    }

    /// Takes the answer at the front, if it is there.
    pub(crate) fn take_answer(&mut self) -> Option<(Head<Id>, Bytes)> {
        let line = self.line.as_mut()?;
        let is_there = |place: &mut Place<Id, D>| matches!(place, Place::Answered(..));
        let Place::Answered(head, body) = line.places.pop_front_if(is_there)? else { return None };
        line.first = line.first.wrapping_add(1);
        line.held.messages -= 1;
        line.held.bytes -= body.len();
        self.unrefusable -= 1;
        Some((head, body))
    }

    /// Answers that wait for those before them.
    pub(crate) fn held(&self) -> Held {
        self.line.as_ref().map_or_else(Held::default, |line| line.held)
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = D> {
        (self.unrefusable, self.cancelled) = (0, 0);
        let places = self.line.take().map(|line| line.places).unwrap_or_default();
        let in_order = places.into_iter().filter_map(|place| match place {
            Place::Waits(deferred) => Some(deferred),
            Place::Answered(..) => None,
        });
        let marked = self.table.drain().map(|(_, open)| open.deferred);
        marked.chain(self.unmarked.deferred.take()).chain(in_order)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len() + self.unrefusable
    }

    /// Those for whose answers the peer waits.
    pub(crate) fn awaited(&self) -> usize {
        self.len() - self.cancelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Kind, NoId};

    type Requests = OpenRequests<NoId, ()>;

    fn hold(requests: &mut Requests, place: Option<u32>, body: &'static str) {
        requests.hold(place, Head::new(Kind::Reply, NoId), body.into());
    }

    fn answers(requests: &mut Requests) -> Vec<Bytes> {
        std::iter::from_fn(|| requests.take_answer()).map(|(_, body)| body).collect()
    }

    #[test]
    fn answers_go_in_the_order_of_the_requests() {
        let mut requests = Requests::default();
        assert!(requests.is_next(None), "nothing is before it");
        let [a, b] = [(); 2].map(|()| requests.insert_in_order(()));
        assert!(!requests.is_next(None) && !requests.is_next(Some(b)) && requests.is_next(Some(a)));
        hold(&mut requests, None, "third");
        hold(&mut requests, Some(b), "second");
        assert_eq!((requests.held(), requests.len()), (Held { messages: 2, bytes: 11 }, 3));
        assert!(requests.is_awaited(a) && !requests.is_awaited(b));
        assert!(answers(&mut requests).is_empty());
        requests.advance();
        assert_eq!(answers(&mut requests), ["second", "third"]);
        assert_eq!((requests.held(), requests.len()), (Held::default(), 0));
        assert!(!requests.is_awaited(a), "a place is not used again");
    }

    #[test]
    fn cancelled_request_counts_as_in_flight_and_is_not_awaited() {
        let mut requests = OpenRequests::<u64, ()>::default();
        requests.insert(1, ());
        requests.insert(2, ());
        assert!(requests.cancel(&1).is_some());
        assert!(requests.cancel(&1).is_none(), "once is enough");
        assert!(requests.cancel(&3).is_none());
        assert_eq!((requests.len(), requests.awaited()), (2, 1));
        assert!(requests.remove(&1).is_some());
        assert_eq!((requests.len(), requests.awaited()), (1, 1));
        assert!(requests.cancel(&2).is_some());
        assert_eq!((requests.drain().count(), requests.awaited()), (1, 0));
    }

    #[test]
    fn numbers_of_places_wrap_around() {
        let mut requests = Requests::default();
        requests.line.get_or_insert_default().first = u32::MAX;
        let [a, b] = [(); 2].map(|()| requests.insert_in_order(()));
        assert_eq!([a, b], [u32::MAX, 0]);
        assert!(requests.is_next(Some(a)) && requests.is_awaited(b));
        requests.advance();
        assert!(requests.is_next(Some(b)) && !requests.is_awaited(a));
    }
}
