//! What a dialled connection keeps while it is down.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::write_queue::FRAME_OVERHEAD;

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
    pub(crate) tag: u32,
    pub(crate) body: Bytes,
    since: Instant,
}

impl<Id> Kept<Id> {
    fn cost(&self) -> usize {
        self.body.len() + FRAME_OVERHEAD
    }
}

impl<Id> Default for OfflineQueue<Id> {
    fn default() -> Self {
        Self { messages: VecDeque::new(), cost: 0 }
    }
}

impl<Id> OfflineQueue<Id> {
    /// Keeps a message, or says no if that would go over `max_cost`.
    pub(crate) fn push(
        &mut self,
        id: Option<Id>,
        tag: u32,
        body: Bytes,
        max_cost: usize,
        now: Instant,
    ) -> bool {
        let kept = Kept { id, tag, body, since: now };
        let is_kept = self.cost + kept.cost() <= max_cost;
        if is_kept {
            self.cost += kept.cost();
            self.messages.push_back(kept);
        }
        is_kept
    }

    /// Drops what is older than `max_age`, and says how many messages that were.
    pub(crate) fn expire(&mut self, max_age: Duration, now: Instant) -> u64 {
        let mut messages = 0;
        while let Some(kept) = self.messages.front()
            && now.saturating_duration_since(kept.since) > max_age
        {
            messages += 1;
            self.pop();
        }
        messages
    }

    pub(crate) fn pop(&mut self) -> Option<Kept<Id>> {
        let kept = self.messages.pop_front()?;
        self.cost -= kept.cost();
        Some(kept)
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// What waits, with the overhead of each message.
    pub(crate) const fn cost(&self) -> usize {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn start() -> Instant {
        Instant::now()
    }

    fn push(queue: &mut OfflineQueue<u64>, body: &'static str, max: usize, now: Instant) -> bool {
        queue.push(None, 0, Bytes::from_static(body.as_bytes()), max, now)
    }

    #[test]
    fn messages_come_out_in_order() {
        let (mut queue, now) = (OfflineQueue::default(), start());
        assert!(push(&mut queue, "a", 1000, now) && push(&mut queue, "bc", 1000, now));
        assert_eq!(queue.cost(), 3 + 2 * FRAME_OVERHEAD);
        assert_eq!(queue.pop().unwrap().body, "a");
        assert_eq!(queue.pop().unwrap().body, "bc");
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
        assert_eq!(queue.expire(second, now + second), 0);
        assert_eq!(queue.expire(second, now + second * 2), 1);
        assert_eq!(queue.pop().unwrap().body, "new");
    }
}
