//! The connections, each in its slot.

use std::io;

use slab::Slab;

use super::slot::Slot;
use crate::{ConnId, id::MAX_SLOTS, protocol::Protocol};

/// All connections that exist.
pub(crate) struct Slots<P: Protocol, W> {
    slab: Slab<Slot<P, W>>,
    /// As many as ids can name.
    most: usize,
}

impl<P: Protocol, W> Default for Slots<P, W> {
    fn default() -> Self {
        Self { slab: Slab::new(), most: MAX_SLOTS }
    }
}

impl<P: Protocol, W> Slots<P, W> {
    /// The connection of this id, if it is not gone.
    #[inline]
    pub(crate) fn get(&self, id: ConnId) -> Option<&Slot<P, W>> {
        self.slab.get(id.slot() as usize).filter(|slot| slot.id == id)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Slot<P, W>> {
        self.slab.get_mut(id.slot() as usize).filter(|slot| slot.id == id)
    }

    /// The connection that is in this slot now.
    #[inline]
    pub(crate) fn at(&self, slot: usize) -> Option<&Slot<P, W>> {
        self.slab.get(slot)
    }

    #[inline]
    pub(crate) fn at_mut(&mut self, slot: usize) -> Option<&mut Slot<P, W>> {
        self.slab.get_mut(slot)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot<P, W>> {
        self.slab.iter().map(|(_, slot)| slot)
    }

    /// The ids of all, for who changes some of them meanwhile.
    pub(crate) fn ids(&self) -> Vec<ConnId> {
        self.iter().map(|slot| slot.id).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// All slots in use are below this one.
    pub(crate) fn end(&self) -> usize {
        self.slab.capacity()
    }

    /// Whether there is a slot for one more connection; else why not.
    pub(crate) fn check_room(&self) -> io::Result<()> {
        if self.slab.len() < self.most {
            return Ok(());
        }
        let text = format!("{} connections are all that ids can name", self.most);
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, text))
    }

    /// The slot of the next connection.
    pub(crate) fn next(&self) -> u32 {
        u32::try_from(self.slab.vacant_key()).expect("ids name the slot")
    }

    /// Puts a connection into the slot that [`next`](Self::next) gave.
    pub(crate) fn insert(&mut self, connection: Slot<P, W>) {
        let slot = connection.id.slot();
        let key = self.slab.insert(connection);
        debug_assert_eq!(key, slot as usize);
    }

    /// Takes a connection out, if it is not gone.
    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Slot<P, W>> {
        self.get(id)?;
        Some(self.slab.remove(id.slot() as usize))
    }

    /// Lets ids name no more than so many.
    #[cfg(test)]
    pub(crate) const fn limit(&mut self, most: usize) {
        self.most = most;
    }
}
