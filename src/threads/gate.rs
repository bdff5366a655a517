//! Where threads wait for what a turn of the loop may bring: room for an answer, a connection that is
//! up, a reactor that runs.
//!
//! A thread says that it waits and then looks; the loop changes something and then asks whether anybody
//! waits. So one of the two sees the other. A turn that nobody waits for pays a fence and a load.

use std::time::{Duration, Instant};

use super::sync::{AtomicUsize, Condvar, Mutex, Ordering, fence, lock, wait_timeout};

/// Opened by the loop at the end of each turn, if somebody waits.
#[derive(Debug)]
pub(crate) struct Gate {
    waiting: AtomicUsize,
    /// How often it was opened while somebody waited.
    openings: Mutex<usize>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { waiting: AtomicUsize::new(0), openings: Mutex::new(0), opened: Condvar::new() }
    }

    /// Something may have changed: whoever waits looks again.
    pub(crate) fn open(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            let mut openings = lock(&self.openings);
            *openings = openings.wrapping_add(1);
            self.opened.notify_all();
        }
    }

    /// Blocks the thread until `look` finds something, for up to `limit`; looks at least once. No lock
    /// is held meanwhile.
    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        // Far beyond what anybody waits, and safe to add.
        let deadline = now() + limit.min(Duration::from_hours(24 * 365));
        self.waiting.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let found = loop {
            let seen = *lock(&self.openings);
            let found = look();
            if found.is_some() {
                break found;
            }
            let mut openings = lock(&self.openings);
            while *openings == seen {
                let left = deadline.saturating_duration_since(now());
                if left.is_zero() {
                    break;
                }
                openings = wait_timeout(&self.opened, openings, left);
            }
            if *openings == seen {
                break None;
            }
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        found
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread that waits has no turn whose clock it could use"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(all(test, model))]
mod models;

#[cfg(all(test, not(model)))]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn what_is_there_already_is_found_without_waiting() {
        assert_eq!(Gate::new().wait(Duration::ZERO, || Some(1)), Some(1));
    }

    #[test]
    fn nothing_is_found_in_vain_for_as_long_as_was_told() {
        let (gate, mut looks) = (Gate::new(), 0);
        let found = gate.wait(Duration::from_millis(1), || {
            looks += 1;
            None::<()>
        });
        assert_eq!((found, looks), (None, 1));
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_who_wait_look_again_when_it_opens() {
        let (gate, change) = (Arc::new(Gate::new()), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (gate, change) = (gate.clone(), change.clone());
                thread::spawn(move || {
                    gate.wait(Duration::MAX, || {
                        Some(change.load(Ordering::Relaxed)).filter(|n| *n > 0)
                    })
                })
            })
            .collect();
        while gate.waiting.load(Ordering::Relaxed) < 4 {
            thread::yield_now();
        }
        gate.open();
        change.store(7, Ordering::Relaxed);
        gate.open();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Some(7));
        }
    }
}
