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
    /// What all requests share that the format does not mark as such: without a cancel, and with ids
    /// that may repeat, they have nothing to be told but the end of the epoch.
    unmarked: Option<D>,
}

impl<Id: Copy + Eq + Hash, D> Default for OpenRequests<Id, D> {
    fn default() -> Self {
        Self { table: HashMap::new(), unmarked: None }
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

    pub(crate) fn unmarked_or(&mut self, new: D) -> &D {
        self.unmarked.get_or_insert(new)
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = D> {
        self.table.drain().map(|(_, deferred)| deferred).chain(self.unmarked.take())
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}
