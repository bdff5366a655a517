//! What does it cost to post to the loop, from 1 to 8 threads at a time?
//!
//! ```sh
//! cargo bench -p longhaul-benches --bench mailbox
//! ```
//!
//! `mailbox` is the queue alone, its loop always awake; `std` a channel of the standard library in its
//! place; `handle` the whole way: a closure that a reactor runs, which sleeps when it may. Timed is
//! from the first post until the last was taken.
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

mod common;

use std::{
    sync::{Barrier, mpsc},
    thread,
    time::Duration,
};

use common::{Echo, now};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use longhaul::{
    Error, ReactorBuilder, SendError,
    bench::{Batch, Mailbox},
    protocol::AnyProtocol,
};

const THREADS: [u64; 4] = [1, 2, 4, 8];

/// Posts from all threads together, each its share. `take` takes what comes until it was all, or
/// `settle` waits for that when all is posted.
fn posted(
    threads: u64,
    count: u64,
    post: impl Fn(u64) + Clone + Send,
    take: impl FnOnce(u64),
    settle: impl FnOnce(),
) -> Duration {
    let share = count.div_ceil(threads);
    let barrier = Barrier::new(usize::try_from(threads).expect("a few") + 1);
    let took = thread::scope(|scope| {
        let posters: Vec<_> = (0..threads)
            .map(|_| {
                let (post, barrier) = (post.clone(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    (0..share).for_each(post);
                })
            })
            .collect();
        barrier.wait();
        let began = now();
        take(share * threads);
        for poster in posters {
            poster.join().expect("no panic");
        }
        settle();
        now() - began
    });
    // As if it had been exactly as many as asked for.
    took.mul_f64(as_f64(count) / as_f64(share * threads))
}

#[expect(clippy::cast_precision_loss, reason = "a proportion")]
const fn as_f64(count: u64) -> f64 {
    count as f64
}

fn post(c: &mut Criterion) {
    let mut group = c.benchmark_group("post");
    let mut reactor = ReactorBuilder::new(AnyProtocol::default())
        .build(Echo)
        .expect("the system has a descriptor left");
    let handle = reactor.handle();
    let the_loop = thread::spawn(move || reactor.run());
    for threads in THREADS {
        group.bench_function(BenchmarkId::new("mailbox", threads), |b| {
            b.iter_custom(|count| {
                let mailbox = Mailbox::new();
                let post = |number| assert!(mailbox.post(number), "it has no bounds");
                let take = |count| {
                    let (mut batch, mut taken) = (Batch::default(), 0);
                    while taken < count {
                        taken += mailbox.take(&mut batch);
                    }
                };
                posted(threads, count, post, take, || ())
            });
        });
        group.bench_function(BenchmarkId::new("std", threads), |b| {
            b.iter_custom(|count| {
                let (sender, receiver) = mpsc::channel();
                let post = move |number| sender.send(number).expect("it is read");
                let take = |count| {
                    let mut taken = 0;
                    while taken < count {
                        taken += receiver.try_iter().count() as u64;
                    }
                };
                posted(threads, count, post, take, || ())
            });
        });
        group.bench_function(BenchmarkId::new("handle", threads), |b| {
            b.iter_custom(|count| {
                let run = handle.clone();
                let post = move |_| {
                    while let Err(error) = run.run(|_| ()) {
                        assert_eq!(error, SendError::MailboxFull, "the loop runs");
                        thread::yield_now();
                    }
                };
                // A question is a post as others are: it comes after all of them.
                let settle = || {
                    while let Err(error) = handle.ask(|_| ()) {
                        assert!(matches!(error, Error::Full), "the loop runs: {error}");
                        thread::yield_now();
                    }
                };
                posted(threads, count, post, |_| (), settle)
            });
        });
    }
    handle.stop();
    the_loop.join().expect("no panic").expect("the poll works");
    group.finish();
}

criterion_group!(benches, post);
criterion_main!(benches);
