//! Messages that were accepted, and found no connection.

use crate::{Bytes, ConnId, Tagged};

/// What the handler is to be told of, and what it may take back.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    undelivered: Vec<(ConnId, Vec<Tagged<Bytes>>)>,
    /// Those of which the handler is just being told.
    handed_back: Vec<Tagged<Bytes>>,
}

impl Losses {
    pub(crate) fn note(&mut self, id: ConnId, message: Tagged<Bytes>) {
        match self.undelivered.last_mut() {
            Some((last, bodies)) if *last == id => bodies.push(message),
            _ => self.undelivered.push((id, vec![message])),
        }
    }

    /// Whether there is nothing to tell.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.undelivered.is_empty()
    }

    /// All of which the handler was not told, by connection.
    pub(crate) fn take(&mut self) -> Vec<(ConnId, Vec<Tagged<Bytes>>)> {
        std::mem::take(&mut self.undelivered)
    }

    /// The handler is told of these, and may take them back until it is told of others.
    pub(crate) fn offer(&mut self, messages: Vec<Tagged<Bytes>>) {
        self.handed_back = messages;
    }

    /// The handler takes back what it was offered.
    pub(crate) fn take_back(&mut self) -> Vec<Tagged<Bytes>> {
        std::mem::take(&mut self.handed_back)
    }
}
