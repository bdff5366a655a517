//! How fast do calls go over one connection: from blocking threads, and from futures?
//!
//! ```sh
//! cargo bench -p longhaul-benches --bench calls
//! ```
//!
//! The time is that of one call when so many callers call without pause: one over the rate. With one
//! caller it is the round trip.
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

mod common;

use std::{
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use common::{TIMEOUT, echo, now};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longhaul::{Client, protocol::AnyProtocol};
use tokio::runtime::{Builder, Runtime};

const CALLERS: [u64; 3] = [1, 8, 64];
const BODY: [u8; 64] = [b'x'; 64];

/// `count` calls, shared out among threads that block.
fn from_threads(client: &Client<AnyProtocol>, threads: u64, count: u64) -> Duration {
    let barrier = Barrier::new(usize::try_from(threads).expect("a few") + 1);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..threads)
            .map(|number| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    for _ in 0..share(count, threads, number) {
                        let reply = client.call(BODY, TIMEOUT).expect("the echo answers");
                        assert_eq!(reply, &BODY[..]);
                    }
                })
            })
            .collect();
        barrier.wait();
        let began = now();
        for caller in callers {
            caller.join().expect("no panic");
        }
        now() - began
    })
}

/// `count` calls, shared out among tasks of one thread.
fn from_tasks(
    runtime: &Runtime,
    client: &Arc<Client<AnyProtocol>>,
    tasks: u64,
    count: u64,
) -> Duration {
    runtime.block_on(async {
        let began = now();
        let callers: Vec<_> = (0..tasks)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move {
                    for _ in 0..share(count, tasks, number) {
                        let reply = client.call_async(BODY, TIMEOUT).await;
                        assert_eq!(reply.expect("the echo answers"), &BODY[..]);
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.expect("no panic");
        }
        now() - began
    })
}

/// The part of number `number` among so many.
const fn share(count: u64, among: u64, number: u64) -> u64 {
    count / among + (number < count % among) as u64
}

fn calls(c: &mut Criterion) {
    let (_server, client) = echo(AnyProtocol::default());
    let client = Arc::new(client);
    let runtime = Builder::new_current_thread().build().expect("a small runtime");
    let mut group = c.benchmark_group("calls");
    group.throughput(Throughput::Elements(1));
    for callers in CALLERS {
        group.bench_function(BenchmarkId::new("threads", callers), |b| {
            b.iter_custom(|count| from_threads(&client, callers, count));
        });
    }
    for callers in CALLERS {
        group.bench_function(BenchmarkId::new("futures", callers), |b| {
            b.iter_custom(|count| from_tasks(&runtime, &client, callers, count));
        });
    }
    group.finish();
}

criterion_group!(benches, calls);
criterion_main!(benches);
