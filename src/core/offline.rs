//! The messages that a dialled connection keeps while it is down.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;

use super::write_queue::FRAME_OVERHEAD;
use crate::{Tagged, moment::Moment};

/// Messages for the next epoch, in order, bounded in bytes and in age.
#[derive(Debug)]
pub(crate) struct OfflineQueue<Id> {
    messages: VecDeque<Kept<Id>>,
    cost: usize,
}

/// A message that waits for the connection.
#[derive(Debug)]
pub(crate) struct Kept<Id> {
    pub(crate) id: Option<Id>,
    pub(crate) message: Tagged<Bytes>,
    since: Moment,
}

impl<Id> Kept<Id> {
    fn cost(&self) -> usize {
        self.message.1.len() + FRAME_OVERHEAD
    }
}

impl<Id> Default for OfflineQueue<Id> {
    fn default() -> Self {
        Self { messages: VecDeque::new(), cost: 0 }
    }
}

impl<Id> OfflineQueue<Id> {
    /// Whether a body of this length can be kept without going over `max_cost`.
    pub(crate) const fn has_room(&self, len: usize, max_cost: usize) -> bool {
        self.cost.saturating_add(len).saturating_add(FRAME_OVERHEAD) <= max_cost
    }

    /// Keeps a message.
    pub(crate) fn push(&mut self, id: Option<Id>, message: Tagged<Bytes>, now: Moment) {
        let kept = Kept { id, message, since: now };
        self.cost += kept.cost();
        self.messages.push_back(kept);
    }

    /// Takes what is older than `max_age`.
    pub(crate) fn expire(&mut self, max_age: Duration, now: Moment) -> Vec<Kept<Id>> {
        let mut expired = Vec::new();
        while let Some(kept) = self.messages.front()
            && now.saturating_duration_since(kept.since) > max_age
        {
            expired.extend(self.pop());
        }
        expired
    }

    pub(crate) fn pop(&mut self) -> Option<Kept<Id>> {
        let kept = self.messages.pop_front()?;
        self.cost -= kept.cost();
        Some(kept)
    }

    /// The charge of the next message in a write queue.
    pub(crate) fn next_cost(&self) -> Option<usize> {
        Some(self.messages.front()?.cost())
    }

    /// The charge of all that waits, with the overhead of each message.
    pub(crate) const fn cost(&self) -> usize {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Moment {
        Moment::START
    }

    fn push(queue: &mut OfflineQueue<u64>, body: &'static str, max: usize, now: Moment) -> bool {
        let has_room = queue.has_room(body.len(), max);
        if has_room {
            queue.push(None, Tagged(0, Bytes::from_static(body.as_bytes())), now);
        }
        has_room
    }

    #[test]
    fn messages_come_out_in_order() {
        let (mut queue, now) = (OfflineQueue::default(), start());
        assert!(push(&mut queue, "a", 1000, now) && push(&mut queue, "bc", 1000, now));
        assert_eq!(queue.cost(), 3 + 2 * FRAME_OVERHEAD);
        assert_eq!(queue.pop().unwrap().message.1, "a");
        assert_eq!(queue.pop().unwrap().message.1, "bc");
        assert!(queue.pop().is_none());
        assert_eq!(queue.cost(), 0);
    }

    #[test]
    fn bound_counts_bytes_and_overhead() {
        let (mut queue, now) = (OfflineQueue::default(), start());
        let max = 2 * FRAME_OVERHEAD + 5;
        assert!(push(&mut queue, "abc", max, now) && push(&mut queue, "de", max, now));
        assert!(!push(&mut queue, "", max, now));
    }

    #[test]
    fn only_what_is_too_old_expires() {
        let (mut queue, now) = (OfflineQueue::default(), start());
        let second = Duration::from_secs(1);
        push(&mut queue, "old", 1000, now);
        push(&mut queue, "new", 1000, now + second);
        assert!(queue.expire(second, now + second).is_empty());
        assert_eq!(queue.expire(second, now + second * 2)[0].message.1, "old");
        assert_eq!(queue.pop().unwrap().message.1, "new");
    }
}
