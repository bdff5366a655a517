//! The peer's requests that outlived their callback.
//!
//! A request that its callback answers leaves no trace here. One that is deferred is kept until it
//! is answered, so that a cancel finds it, a second request of the same id is noticed and the
//! number in flight is bounded. `D` is what a cancel is told to.

use std::{collections::HashMap, hash::Hash};

/// Requests in flight, by their id on the wire.
#[derive(Debug)]
pub(crate) struct OpenRequests<Id, D> {
    // The standard hasher: these ids are the peer's choice.
    table: HashMap<Id, D>,
    unmarked: Unmarked<D>,
}

/// Requests that the format does not mark as such. Their ids may repeat, so they are only counted;
/// there is no cancel, so they share what is told of the end of the epoch.
#[derive(Debug)]
struct Unmarked<D> {
    count: usize,
    deferred: Option<D>,
}

impl<Id: Copy + Eq + Hash, D> Default for OpenRequests<Id, D> {
    fn default() -> Self {
        Self { table: HashMap::new(), unmarked: Unmarked { count: 0, deferred: None } }
    }
}

impl<Id: Copy + Eq + Hash, D> OpenRequests<Id, D> {
    pub(crate) fn insert(&mut self, id: Id, deferred: D) {
        self.table.insert(id, deferred);
    }

    /// The request was answered.
    pub(crate) fn remove(&mut self, id: &Id) -> Option<D> {
        self.table.remove(id)
    }

    pub(crate) fn get(&self, id: &Id) -> Option<&D> {
        self.table.get(id)
    }

    /// One that the format does not mark. What is told of the end of the epoch: `new`, or what was
    /// given before.
    pub(crate) fn insert_unmarked(&mut self, new: D) -> &D {
        self.unmarked.count += 1;
        self.unmarked.deferred.get_or_insert(new)
    }

    /// One that the format does not mark was answered, or will not be.
    pub(crate) fn remove_unmarked(&mut self) {
        self.unmarked.count = self.unmarked.count.saturating_sub(1);
    }

    /// Those that the format does not mark.
    pub(crate) const fn unmarked(&self) -> usize {
        self.unmarked.count
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = D> {
        self.unmarked.count = 0;
        self.table.drain().map(|(_, deferred)| deferred).chain(self.unmarked.deferred.take())
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len() + self.unmarked.count
    }
}
