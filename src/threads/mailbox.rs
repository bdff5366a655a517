//! Commands from other threads: a bounded queue, and one wake for many.
//!
//! What ends something gets through although the queue is full; who posts it sees to its bound, which is
//! in proportion to what exists (see `Shared::post_control`).
//!
//! Posting to a loop that is awake is a lock and a push, without a system call. A loop that wants
//! to sleep says so first and looks into the queue once more after it; a poster pushes first and
//! then asks whether the loop sleeps. So one of the two sees the other, and the first poster who
//! finds the loop asleep, and only that one, wakes it.

use std::{collections::VecDeque, sync::Arc};

use super::sync::{AtomicBool, AtomicUsize, Mutex, Ordering, lock};

/// Rouses a loop that sleeps.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

/// The posts that wait for the loop.
pub(crate) struct Mailbox<T> {
    queue: Mutex<Queue<T>>,
    /// The length of the queue, for a look without the lock.
    len: AtomicUsize,
    is_asleep: AtomicBool,
    waker: Arc<dyn Wake>,
    max_len: usize,
    max_bytes: usize,
}

struct Queue<T> {
    posts: VecDeque<Post<T>>,
    bytes: usize,
    is_closed: bool,
}

/// A command, and the bytes that it carries.
pub(crate) struct Post<T> {
    pub(crate) command: T,
    bytes: usize,
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

impl<T> Mailbox<T> {
    pub(crate) fn new(waker: Arc<dyn Wake>, max_len: usize, max_bytes: usize) -> Self {
        Self {
            queue: Mutex::new(Queue { posts: VecDeque::new(), bytes: 0, is_closed: false }),
            len: AtomicUsize::new(0),
            is_asleep: AtomicBool::new(false),
            waker,
            max_len,
            max_bytes,
        }
    }

    /// Posts a command that carries this many bytes.
    #[cfg(any(test, feature = "bench"))]
    pub(crate) fn post(&self, command: T, bytes: usize) -> Result<(), Refused> {
        self.push(|| command, bytes, false)
    }

    /// Posts a command that carries this many bytes. It is made, under the lock, only if it is taken.
    pub(crate) fn post_with(
        &self,
        command: impl FnOnce() -> T,
        bytes: usize,
    ) -> Result<(), Refused> {
        self.push(command, bytes, false)
    }

    /// Posts a command that must get through although the mailbox is full: what ends something.
    pub(crate) fn post_control(&self, command: T) -> Result<(), Refused> {
        self.push(|| command, 0, true)
    }

    fn push(
        &self,
        command: impl FnOnce() -> T,
        bytes: usize,
        is_control: bool,
    ) -> Result<(), Refused> {
        {
            let mut queue = lock(&self.queue);
            if queue.is_closed {
                return Err(Refused::Closed);
            }
            // One body is taken, however long: else it would be refused for ever.
            let has_room = queue.bytes == 0 || bytes <= self.max_bytes.saturating_sub(queue.bytes);
            let is_full = queue.posts.len() >= self.max_len || !has_room;
            if is_full && !is_control {
                return Err(Refused::Full);
            }
            queue.bytes += bytes;
            queue.posts.push_back(Post { command: command(), bytes });
            self.len.store(queue.posts.len(), Ordering::Relaxed);
        }
        if self.is_asleep.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
        Ok(())
    }

    /// Takes up to `most` of what waits, in order, into an empty buffer. The rest stays and counts.
    pub(crate) fn take(&self, batch: &mut VecDeque<Post<T>>, most: usize) {
        debug_assert!(batch.is_empty());
        if !self.has_post() {
            return;
        }
        let mut queue = lock(&self.queue);
        if queue.posts.len() <= most {
            std::mem::swap(&mut queue.posts, batch);
            // The room of a burst is not kept.
            queue.posts.shrink_to(most);
        } else {
            batch.extend(queue.posts.drain(..most));
        }
        queue.bytes -= batch.iter().map(|post| post.bytes).sum::<usize>();
        self.len.store(queue.posts.len(), Ordering::Relaxed);
    }

    /// The loop is about to wait. Whether it may: not if something was posted meanwhile.
    pub(crate) fn fall_asleep(&self) -> bool {
        // Swapped, not stored, as the posters do: so these steps have one order, and none is missed.
        self.is_asleep.swap(true, Ordering::SeqCst);
        let is_empty = lock(&self.queue).posts.is_empty();
        if !is_empty {
            self.wake_up();
        }
        is_empty
    }

    /// The loop runs again.
    pub(crate) fn wake_up(&self) {
        self.is_asleep.swap(false, Ordering::SeqCst);
    }

    /// Refuses all posts from now on, and gives back what waits.
    pub(crate) fn close(&self) -> VecDeque<Post<T>> {
        let mut queue = lock(&self.queue);
        queue.is_closed = true;
        queue.bytes = 0;
        self.len.store(0, Ordering::Relaxed);
        std::mem::take(&mut queue.posts)
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.queue).is_closed
    }

    /// How many posts wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.queue).posts.len()
    }

    /// Whether something waits, at a glance: what is just being posted may be missed.
    pub(crate) fn has_post(&self) -> bool {
        self.len.load(Ordering::Relaxed) != 0
    }
}

#[cfg(all(test, model))]
mod models;

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn mailbox(max_len: usize, max_bytes: usize) -> (Mailbox<u32>, Arc<Wakes>) {
        let wakes = Arc::new(Wakes::default());
        (Mailbox::new(wakes.clone(), max_len, max_bytes), wakes)
    }

    fn taken(mailbox: &Mailbox<u32>) -> Vec<u32> {
        let mut batch = VecDeque::new();
        mailbox.take(&mut batch, 3);
        commands(batch)
    }

    fn commands(posts: VecDeque<Post<u32>>) -> Vec<u32> {
        posts.into_iter().map(|post| post.command).collect()
    }

    #[test]
    fn commands_come_out_in_order() {
        let (mailbox, _) = mailbox(10, 10);
        for command in 1..=3 {
            mailbox.post(command, 1).unwrap();
        }
        assert_eq!(taken(&mailbox), [1, 2, 3]);
        assert_eq!(taken(&mailbox), []);
    }

    #[test]
    fn awake_loop_is_not_woken() {
        let (mailbox, wakes) = mailbox(10, 10);
        mailbox.post(1, 0).unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn sleeping_loop_is_woken_once_for_many() {
        let (mailbox, wakes) = mailbox(10, 10);
        assert!(mailbox.fall_asleep());
        for command in 1..=5 {
            mailbox.post(command, 0).unwrap();
        }
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn loop_does_not_sleep_over_a_command() {
        let (mailbox, wakes) = mailbox(10, 10);
        mailbox.post(1, 0).unwrap();
        assert!(!mailbox.fall_asleep());
        mailbox.post(2, 0).unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn full_in_items_or_in_bytes_refuses_all_but_control() {
        let (mailbox, _) = mailbox(2, 100);
        mailbox.post(1, 100).unwrap();
        assert_eq!(mailbox.post(2, 1), Err(Refused::Full));
        mailbox.post(2, 0).unwrap();
        assert_eq!(mailbox.post(3, 0), Err(Refused::Full));
        mailbox.post_control(4).unwrap();
        assert_eq!(taken(&mailbox), [1, 2, 4]);
        mailbox.post(5, 100).unwrap();
    }

    #[test]
    fn one_body_over_the_limit_is_taken_alone() {
        let (mailbox, _) = mailbox(10, 100);
        mailbox.post(1, 0).unwrap();
        mailbox.post(2, 101).unwrap();
        assert_eq!(mailbox.post(3, 1), Err(Refused::Full));
        mailbox.post(3, 0).unwrap();
        assert_eq!(taken(&mailbox), [1, 2, 3]);
        mailbox.post(4, 1).unwrap();
        assert_eq!(mailbox.post(5, 101), Err(Refused::Full));
    }

    #[test]
    fn what_is_not_taken_stays_in_order_and_counts() {
        let (mailbox, _) = mailbox(5, 100);
        for command in 1..=5 {
            mailbox.post(command, 20).unwrap();
        }
        assert_eq!(taken(&mailbox), [1, 2, 3]);
        assert_eq!(mailbox.post(6, 61), Err(Refused::Full));
        for command in 6..=8 {
            mailbox.post(command, 20).unwrap();
        }
        assert_eq!(mailbox.post(9, 0), Err(Refused::Full));
        assert_eq!(taken(&mailbox), [4, 5, 6]);
        assert_eq!(taken(&mailbox), [7, 8]);
        assert!(!mailbox.has_post());
    }

    #[test]
    fn closed_refuses_everything_and_gives_back_what_waits() {
        let (mailbox, _) = mailbox(10, 10);
        mailbox.post(1, 1).unwrap();
        assert_eq!(commands(mailbox.close()), [1]);
        assert_eq!(mailbox.post(2, 0), Err(Refused::Closed));
        assert_eq!(mailbox.post_control(2), Err(Refused::Closed));
    }
}
