//! The mailbox under loom: every order in which a loop that falls asleep, and threads that post to
//! it, can run.
//!
//! A wake that is lost leaves the loop asleep for ever, which loom reports as a deadlock. Each model
//! has a twin with a planted bug, which must fail: so the model would notice.

use std::sync::Weak;

use loom::{sync::Condvar, thread};

use super::*;

/// The system's poll: it waits until it is rung, and a ring that nobody waits for is remembered.
#[derive(Default)]
struct Poll {
    bell: Mutex<Bell>,
    rung: Condvar,
}

#[derive(Default)]
struct Bell {
    is_rung: bool,
    rings: usize,
}

impl Poll {
    fn wait(&self) {
        let mut bell = lock(&self.bell);
        while !bell.is_rung {
            bell = self.rung.wait(bell).unwrap();
        }
        bell.is_rung = false;
    }

    fn rings(&self) -> usize {
        lock(&self.bell).rings
    }
}

/// Rings the poll for as long as it lives; the system forgets a ring with the waker that it is of.
struct Waker(Arc<Poll>);

impl Wake for Waker {
    fn wake(&self) {
        let mut bell = lock(&self.0.bell);
        bell.is_rung = true;
        bell.rings += 1;
        self.0.rung.notify_one();
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        // A model that failed is over, and its locks with it.
        if !std::thread::panicking() {
            lock(&self.0.bell).is_rung = false;
        }
    }
}

fn mailbox(poll: &Arc<Poll>) -> Mailbox<u32> {
    Mailbox::new(Arc::new(Waker(poll.clone())), 10, 10)
}

/// The two halves of the protocol between loop and posters.
#[derive(Clone, Copy)]
struct Steps {
    fall_asleep: fn(&Mailbox<u32>) -> bool,
    post: fn(&Mailbox<u32>, u32),
}

const RIGHT: Steps = Steps {
    fall_asleep: Mailbox::fall_asleep,
    post: |mailbox, command| mailbox.post(command, 0).unwrap(),
};

/// Turns of the loop until both commands of two posters were taken.
fn two_posters(steps: Steps) {
    loom::model(move || {
        let poll = Arc::new(Poll::default());
        let mailbox = Arc::new(mailbox(&poll));
        let posters = [1, 2].map(|command| {
            let mailbox = mailbox.clone();
            thread::spawn(move || (steps.post)(&mailbox, command))
        });
        let (mut taken, mut batch, mut sleeps) = (Vec::new(), VecDeque::new(), 0);
        while taken.len() < 2 {
            sleeps += 1;
            if (steps.fall_asleep)(&mailbox) {
                poll.wait();
            }
            mailbox.wake_up();
            mailbox.take(&mut batch, 1);
            taken.extend(batch.drain(..).map(|post| post.command));
        }
        for poster in posters {
            poster.join().unwrap();
        }
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
        // One wake at most for each time that the loop said it sleeps, however many post.
        assert!(poll.rings() <= sleeps);
    });
}

#[test]
fn no_wake_is_lost() {
    two_posters(RIGHT);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loop_that_looks_before_it_says_asleep_is_caught() {
    two_posters(Steps {
        fall_asleep: |mailbox| {
            let is_empty = lock(&mailbox.queue).posts.is_empty();
            if is_empty {
                mailbox.is_asleep.swap(true, Ordering::SeqCst);
            }
            is_empty
        },
        ..RIGHT
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn poster_that_asks_before_it_pushes_is_caught() {
    two_posters(Steps {
        post: |mailbox, command| {
            let is_asleep = mailbox.is_asleep.swap(false, Ordering::SeqCst);
            {
                let mut queue = lock(&mailbox.queue);
                queue.posts.push_back(Post { command, bytes: 0 });
                mailbox.len.store(queue.posts.len(), Ordering::Relaxed);
            }
            if is_asleep {
                mailbox.waker.wake();
            }
        },
        ..RIGHT
    });
}

/// Posts to a loop that does not say that it sleeps.
fn awake_loop(post: fn(&Mailbox<u32>, u32)) {
    loom::model(move || {
        let poll = Arc::new(Poll::default());
        let mailbox = Arc::new(mailbox(&poll));
        let posters = [1, 2].map(|command| {
            let mailbox = mailbox.clone();
            thread::spawn(move || post(&mailbox, command))
        });
        let mut batch = VecDeque::new();
        mailbox.take(&mut batch, 2);
        for poster in posters {
            poster.join().unwrap();
        }
        let mut rest = VecDeque::new();
        mailbox.take(&mut rest, 2);
        assert_eq!(batch.len() + rest.len(), 2);
        assert_eq!(poll.rings(), 0);
    });
}

#[test]
fn awake_loop_is_never_woken() {
    awake_loop(RIGHT.post);
}

#[test]
#[should_panic(expected = "left: 2")]
fn poster_that_always_wakes_is_caught() {
    awake_loop(|mailbox, command| {
        mailbox.post(command, 0).unwrap();
        mailbox.waker.wake();
    });
}

/// The only handle posts and is dropped while the loop falls asleep. The loop holds no mailbox over
/// its sleep here, and the waker only if `owns_waker`.
fn last_handle(owns_waker: bool) {
    loom::model(move || {
        let poll = Arc::new(Poll::default());
        let mailbox = Arc::new(mailbox(&poll));
        let of_loop: Weak<_> = Arc::downgrade(&mailbox);
        let waker = owns_waker.then(|| mailbox.waker.clone());
        let poster = thread::spawn(move || {
            (RIGHT.post)(&mailbox, 1);
            drop(mailbox);
        });
        let mut batch = VecDeque::new();
        while batch.is_empty()
            && let Some(mailbox) = of_loop.upgrade()
        {
            let may_sleep = mailbox.fall_asleep();
            drop(mailbox);
            if may_sleep {
                poll.wait();
            }
            if let Some(mailbox) = of_loop.upgrade() {
                mailbox.wake_up();
                mailbox.take(&mut batch, 1);
            }
        }
        poster.join().unwrap();
        drop(waker);
    });
}

#[test]
fn wake_outlives_the_last_handle() {
    last_handle(true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loop_that_does_not_own_its_waker_is_caught() {
    last_handle(false);
}

/// A post against the end of the loop.
fn close_against_post(close: fn(&Mailbox<u32>) -> VecDeque<Post<u32>>) {
    loom::model(move || {
        let poll = Arc::new(Poll::default());
        let mailbox = Arc::new(mailbox(&poll));
        let poster = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.post(1, 0).is_ok())
        };
        let back = close(&mailbox);
        let is_accepted = poster.join().unwrap();
        assert_eq!(back.len(), usize::from(is_accepted));
    });
}

#[test]
fn post_is_refused_or_given_back_by_the_close() {
    close_against_post(Mailbox::close);
}

#[test]
#[should_panic(expected = "assertion")]
fn close_that_empties_before_it_refuses_is_caught() {
    close_against_post(|mailbox| {
        let back = std::mem::take(&mut lock(&mailbox.queue).posts);
        lock(&mailbox.queue).is_closed = true;
        back
    });
}
