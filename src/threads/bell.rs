//! One system call that wakes every thread whose call has ended.
//!
//! Threads that call at the same time over one connection get their replies in one read. To wake
//! them one by one costs a system call each, and on a core that they share with the loop a switch to
//! the thread and back. So threads that are blocked at the same time wait at a bell, which the loop
//! rings once for all the replies of a read.
//!
//! A thread whose call goes on was woken in vain. Where that happens more often than not, threads wait
//! each by itself, so that it costs a call one more switch at most on average.

use super::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, Ordering, lock, wait};

/// Where blocked threads wait together.
#[derive(Debug)]
pub(crate) struct Bell {
    /// Held by a thread from the look at its call until it waits, so that no ring comes in between.
    door: Mutex<()>,
    rung: Condvar,
    /// A call has ended whose thread waits here.
    is_due: AtomicBool,
    /// How well it went lately: up by one for each thread whose call had ended when it was woken,
    /// down by one for each that was woken in vain.
    luck: AtomicUsize,
    /// Counts the threads that stayed away.
    avoided: AtomicUsize,
}

const MOST_LUCK: usize = 16;

/// One in so many tries all the same, so that better times are noticed.
const TRIES: usize = 256;

impl Bell {
    pub(crate) fn new() -> Self {
        Self {
            door: Mutex::new(()),
            rung: Condvar::new(),
            is_due: AtomicBool::new(false),
            luck: AtomicUsize::new(MOST_LUCK),
            avoided: AtomicUsize::new(0),
        }
    }

    // ---- the loop's side ----

    /// A call has ended whose thread waits here; it is woken by the next ring.
    pub(crate) fn mark(&self) {
        self.is_due.store(true, Ordering::Relaxed);
    }

    /// Wakes all, if there is somebody to wake. Called by the thread that marked.
    pub(crate) fn ring(&self) {
        if self.is_due.load(Ordering::Relaxed) {
            self.is_due.store(false, Ordering::Relaxed);
            drop(lock(&self.door));
            self.rung.notify_all();
        }
    }

    // ---- the waiters' side ----

    /// Blocks the thread until `listen` finds the end of its call; while there is none it sees to it that
    /// this bell is [marked](Self::mark) when it comes. `None` if it is better to wait alone.
    pub(crate) fn wait<T>(&self, listen: impl Fn() -> Option<T>) -> Option<T> {
        if !self.is_worth_it() {
            return None;
        }
        let mut door = lock(&self.door);
        let mut was_woken = false;
        loop {
            if let Some(outcome) = listen() {
                if was_woken {
                    self.learn(true);
                }
                return Some(outcome);
            }
            if was_woken && !self.learn(false) {
                return None;
            }
            door = wait(&self.rung, door);
            was_woken = true;
        }
    }

    fn is_worth_it(&self) -> bool {
        self.luck.load(Ordering::Relaxed) > 0
            || self.avoided.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRIES)
    }

    /// A thread was woken, because its call had ended or in vain. Whether luck is left. The door keeps
    /// others from learning at the same time.
    fn learn(&self, is_hit: bool) -> bool {
        let luck = self.luck.load(Ordering::Relaxed);
        let luck = if is_hit { (luck + 1).min(MOST_LUCK) } else { luck.saturating_sub(1) };
        self.luck.store(luck, Ordering::Relaxed);
        luck > 0
    }
}

#[cfg(all(test, model))]
mod models;

#[cfg(all(test, not(model)))]
mod tests;
