//! The work lists of the turn's steps.

use std::collections::VecDeque;

use super::ended_call::EndedCall;
use crate::ConnId;

/// The lists from which the steps of the turn take their work, one after the other.
pub(crate) struct Work<W> {
    /// Slots with something to write or to finish.
    dirty: VecDeque<u32>,
    /// Slots with something to read.
    ready: VecDeque<u32>,
    /// Streams that the application brought, to be opened.
    arrivals: VecDeque<ConnId>,
    /// Connections that linger or were dropped: the handler is to be told, or they are to be put away.
    ended: VecDeque<ConnId>,
    ended_calls: VecDeque<EndedCall<W>>,
}

/// How much there is of each kind of work. A step takes so much of its kind, and leaves what comes
/// meanwhile to the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) dirty: usize,
    pub(crate) ready: usize,
    pub(crate) arrivals: usize,
    pub(crate) ended: usize,
    pub(crate) ended_calls: usize,
}

impl<W> Default for Work<W> {
    fn default() -> Self {
        Self {
            dirty: VecDeque::new(),
            ready: VecDeque::new(),
            arrivals: VecDeque::new(),
            ended: VecDeque::new(),
            ended_calls: VecDeque::new(),
        }
    }
}

impl<W> Work<W> {
    #[inline]
    pub(crate) fn amounts(&self) -> Amounts {
        Amounts {
            dirty: self.dirty.len(),
            ready: self.ready.len(),
            arrivals: self.arrivals.len(),
            ended: self.ended.len(),
            ended_calls: self.ended_calls.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
            && self.dirty.is_empty()
            && self.arrivals.is_empty()
            && self.ended.is_empty()
            && self.ended_calls.is_empty()
    }

    #[inline]
    pub(crate) fn push_dirty(&mut self, slot: u32) {
        self.dirty.push_back(slot);
    }

    pub(crate) fn pop_dirty(&mut self) -> Option<u32> {
        self.dirty.pop_front()
    }

    pub(crate) fn push_ready(&mut self, slot: u32) {
        self.ready.push_back(slot);
    }

    pub(crate) fn pop_ready(&mut self) -> Option<u32> {
        self.ready.pop_front()
    }

    pub(crate) fn push_arrival(&mut self, id: ConnId) {
        self.arrivals.push_back(id);
    }

    pub(crate) fn pop_arrival(&mut self) -> Option<ConnId> {
        self.arrivals.pop_front()
    }

    pub(crate) fn push_ended(&mut self, id: ConnId) {
        self.ended.push_back(id);
    }

    pub(crate) fn pop_ended(&mut self) -> Option<ConnId> {
        self.ended.pop_front()
    }

    pub(crate) fn push_ended_call(&mut self, call: EndedCall<W>) {
        self.ended_calls.push_back(call);
    }

    pub(crate) fn pop_ended_call(&mut self) -> Option<EndedCall<W>> {
        self.ended_calls.pop_front()
    }

    #[cfg(test)]
    pub(crate) fn is_dirty(&self, slot: u32) -> bool {
        self.dirty.contains(&slot)
    }

    #[cfg(test)]
    pub(crate) fn is_ready(&self, slot: u32) -> bool {
        self.ready.contains(&slot)
    }

    #[cfg(test)]
    pub(crate) fn is_ended(&self, id: ConnId) -> bool {
        self.ended.contains(&id)
    }
}
