//! Is the timer wheel worth it, against a binary heap, and up to how many timers?
//!
//! ```sh
//! cargo bench -p longhaul-benches --bench wheel
//! ```
//!
//! The heap is std's, with cancelled timers left in it until they come to the top or are more than
//! the others; it knows ticks of 1 ms as the wheel does. Both hold timers that are due over the next
//! minute.
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

mod common;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    hint::black_box,
    time::{Duration, Instant},
};

use common::now;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use longhaul::bench::{Wheel, WheelKey};

const ARMED: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const MINUTE: u64 = 60_000;

/// What both can do.
trait Timers {
    type Key: Copy;

    fn new(start: Instant) -> Self;
    fn insert(&mut self, deadline: Instant, value: u64) -> Self::Key;
    fn cancel(&mut self, key: Self::Key) -> Option<u64>;
    fn advance(&mut self, now: Instant);
    fn pop_due(&mut self) -> Option<u64>;
    fn next_wake(&self) -> Option<Instant>;
}

impl Timers for Wheel {
    type Key = WheelKey;

    fn new(start: Instant) -> Self {
        Self::new(start)
    }

    fn insert(&mut self, deadline: Instant, value: u64) -> WheelKey {
        self.insert(deadline, value)
    }

    fn cancel(&mut self, key: WheelKey) -> Option<u64> {
        self.cancel(key)
    }

    fn advance(&mut self, now: Instant) {
        self.advance(now);
    }

    fn pop_due(&mut self) -> Option<u64> {
        self.pop_due()
    }

    fn next_wake(&self) -> Option<Instant> {
        self.next_wake()
    }
}

/// A heap of deadlines, and beside it what tells which of them still count.
struct Heap {
    start: Instant,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, HeapKey)>>,
    /// The generation of each entry, and its value while it is armed.
    entries: Vec<(u32, Option<u64>)>,
    free: Vec<u32>,
    armed: usize,
}

/// Names a timer of a [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HeapKey {
    generation: u32,
    index: u32,
}

impl Heap {
    fn tick(&self, at: Instant) -> u64 {
        u64::try_from((at - self.start).as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    fn is_armed(&self, key: HeapKey) -> bool {
        self.entries[key.index as usize].0 == key.generation
    }

    fn take(&mut self, key: HeapKey) -> Option<u64> {
        let entry = &mut self.entries[key.index as usize];
        let value = entry.1.take_if(|_| entry.0 == key.generation)?;
        entry.0 += 1;
        self.free.push(key.index);
        self.armed -= 1;
        Some(value)
    }
}

impl Timers for Heap {
    type Key = HeapKey;

    fn new(start: Instant) -> Self {
        let queue = BinaryHeap::new();
        Self { start, now: 0, queue, entries: Vec::new(), free: Vec::new(), armed: 0 }
    }

    fn insert(&mut self, deadline: Instant, value: u64) -> HeapKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 timers")
        });
        let entry = &mut self.entries[index as usize];
        entry.1 = Some(value);
        let key = HeapKey { generation: entry.0, index };
        self.queue.push(Reverse((self.tick(deadline), key)));
        self.armed += 1;
        key
    }

    fn cancel(&mut self, key: HeapKey) -> Option<u64> {
        let value = self.take(key);
        if self.queue.len() > 2 * self.armed + 64 {
            let mut queue = std::mem::take(&mut self.queue);
            queue.retain(|Reverse((_, key))| self.is_armed(*key));
            self.queue = queue;
        }
        value
    }

    fn advance(&mut self, now: Instant) {
        self.now = u64::try_from((now - self.start).as_millis()).unwrap_or(u64::MAX);
    }

    fn pop_due(&mut self) -> Option<u64> {
        while let Some(&Reverse((tick, key))) = self.queue.peek()
            && tick <= self.now
        {
            self.queue.pop();
            if let Some(value) = self.take(key) {
                return Some(value);
            }
        }
        None
    }

    fn next_wake(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((tick, _))| self.start + Duration::from_millis(*tick))
    }
}

/// A full house whose time goes on.
struct House<T: Timers> {
    timers: T,
    keys: Vec<T::Key>,
    now: Instant,
    random: u64,
}

impl<T: Timers> House<T> {
    fn new(armed: usize) -> Self {
        let start = now();
        let mut house =
            Self { timers: T::new(start), keys: Vec::with_capacity(armed), now: start, random: 1 };
        for value in 0..armed as u64 {
            let deadline = house.deadline();
            let key = house.timers.insert(deadline, value);
            house.keys.push(key);
        }
        house
    }

    /// Within the next minute.
    fn deadline(&mut self) -> Instant {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.now + Duration::from_millis(1 + (self.random >> 33) % MINUTE)
    }

    /// As a call that is answered in time: armed, and soon cancelled.
    fn arm_and_cancel(&mut self) {
        let deadline = self.deadline();
        let key = self.timers.insert(deadline, u64::MAX);
        assert!(black_box(self.timers.cancel(key)).is_some());
    }

    /// As an idle timeout that is set anew: one of those that are armed goes, and comes again.
    fn rearm(&mut self) {
        let deadline = self.deadline();
        let which = usize::try_from(self.random >> 20).unwrap_or_default() % self.keys.len();
        let value = self.timers.cancel(self.keys[which]).expect("it is armed");
        self.keys[which] = self.timers.insert(deadline, value);
    }

    /// As heartbeats: time goes on to the next wake, and what fires is armed again. Until so many have
    /// fired.
    fn fire(&mut self, count: u64) {
        let mut fired = 0;
        while fired < count {
            self.now = self.timers.next_wake().expect("timers are armed");
            self.timers.advance(self.now);
            while let Some(value) = self.timers.pop_due() {
                fired += 1;
                let deadline = self.deadline();
                let key = self.timers.insert(deadline, value);
                self.keys[usize::try_from(value).expect("an index")] = key;
            }
        }
    }
}

fn measure<T: Timers>(c: &mut Criterion, name: &str) {
    for armed in ARMED {
        let mut house = House::<T>::new(armed);
        c.benchmark_group("arm and cancel").bench_function(BenchmarkId::new(name, armed), |b| {
            b.iter(|| house.arm_and_cancel());
        });
        c.benchmark_group("re-arm")
            .bench_function(BenchmarkId::new(name, armed), |b| b.iter(|| house.rearm()));
        c.benchmark_group("fire").bench_function(BenchmarkId::new(name, armed), |b| {
            b.iter_custom(|count| {
                let began = now();
                house.fire(count);
                now() - began
            });
        });
    }
}

fn both(c: &mut Criterion) {
    measure::<Wheel>(c, "wheel");
    measure::<Heap>(c, "heap");
}

criterion_group!(benches, both);
criterion_main!(benches);
