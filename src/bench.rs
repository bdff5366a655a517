//! Doors for this crate's own benchmarks to parts of the inside. Nothing here may be relied on.

use std::{collections::VecDeque, fmt, io::IoSlice, sync::Arc, time::Instant};

use bytes::Bytes;

use crate::{
    core::{
        spares::Spares,
        timer_wheel::TimerWheel,
        write_queue::{self, What},
    },
    engine::commands::COMMANDS_PER_TURN,
    id::TimerKey,
    moment::Moment,
    threads::mailbox::{self, Wake},
};

/// The timers of a reactor, each with a number.
#[derive(Debug)]
pub struct Wheel {
    wheel: TimerWheel<u64>,
    start: Instant,
}

/// Names a timer of a [`Wheel`].
#[derive(Clone, Copy, Debug)]
pub struct WheelKey(TimerKey);

impl Wheel {
    /// An empty wheel whose time begins at `start`.
    pub fn new(start: Instant) -> Self {
        Self { wheel: TimerWheel::new(), start }
    }

    /// Arms a timer.
    #[inline]
    pub fn insert(&mut self, deadline: Instant, value: u64) -> WheelKey {
        WheelKey(self.wheel.insert(Moment::new(self.start, deadline), value))
    }

    /// Disarms a timer.
    #[inline]
    pub fn cancel(&mut self, key: WheelKey) -> Option<u64> {
        self.wheel.cancel(key.0)
    }

    /// Moves out what is due.
    pub fn advance(&mut self, now: Instant) {
        self.wheel.advance(Moment::new(self.start, now));
    }

    /// The next of what was moved out.
    pub fn pop_due(&mut self) -> Option<u64> {
        self.wheel.pop_due().map(|(_, value)| value)
    }

    /// When there is something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        self.wheel.next_wake()?.to_instant(self.start)
    }
}

/// The write queue of a connection.
#[derive(Debug, Default)]
pub struct WriteQueue(write_queue::WriteQueue);

impl WriteQueue {
    /// Appends a frame, its body copied.
    #[inline]
    pub fn push(&mut self, header: &[u8], body: &[u8]) {
        self.0.push(What::Push { is_caused: false }, 0, body.len(), |out| {
            out.extend_from_slice(header);
            out.extend_from_slice(body);
        });
    }

    /// Appends a frame, its body shared.
    #[inline]
    pub fn push_shared(&mut self, header: &[u8], body: Bytes) {
        let what = What::Push { is_caused: false };
        self.0.push_shared(what, 0, |out| out.extend_from_slice(header), body);
    }

    /// Does what a write does of which the system takes `most` bytes; how many there were of those.
    pub fn write(&mut self, most: usize) -> usize {
        let written = if let Some(bytes) = self.0.single() {
            bytes.len()
        } else {
            let mut slices = [IoSlice::new(&[]); 64];
            let count = self.0.slices(&mut slices);
            slices[..count].iter().map(|slice| slice.len()).sum()
        };
        let written = written.min(most);
        self.0.advance(written, &mut Spares::default());
        written
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A mailbox without bounds, of numbers, whose loop never sleeps.
#[derive(Clone)]
pub struct Mailbox(Arc<mailbox::Mailbox<u64>>);

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> Self {
        Self(Arc::new(mailbox::Mailbox::new(Arc::new(Nobody), usize::MAX, usize::MAX)))
    }

    /// Posts; whether it was taken.
    #[inline]
    pub fn post(&self, command: u64) -> bool {
        self.0.post(command, 0).is_ok()
    }

    /// Takes what one turn takes, and counts it.
    pub fn take(&self, batch: &mut Batch) -> u64 {
        self.0.take(&mut batch.0, COMMANDS_PER_TURN);
        batch.0.drain(..).count() as u64
    }
}

/// What is taken from a [`Mailbox`] at a time.
#[derive(Default)]
pub struct Batch(VecDeque<mailbox::Post<u64>>);

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Batch").field(&self.0.len()).finish()
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

/// The waker of a loop that never sleeps.
struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}
