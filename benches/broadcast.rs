//! What does a broadcast cost, to one, to a hundred, to ten thousand connections?
//!
//! ```sh
//! cargo bench -p longhaul-benches --bench broadcast
//! ```
//!
//! `written` ends when all of it was given to the system, `received` when the last one has it, which
//! another process says. One system call for each receiver is nearly all of it. A size for which there
//! are not the descriptors is left out.
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

mod common;

use common::Crowd;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};

fn broadcast(c: &mut Criterion) {
    let mut group = c.benchmark_group("broadcast");
    group.sample_size(20);
    let body = [b'x'; 64];
    for size in [1, 100, 10_000] {
        let Some(mut crowd) = Crowd::new(size) else { continue };
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("written", size), |b| {
            b.iter_custom(|count| (0..count).map(|_| crowd.broadcast(&body).0).sum());
        });
        group.bench_function(BenchmarkId::new("received", size), |b| {
            b.iter_custom(|count| (0..count).map(|_| crowd.broadcast(&body).1).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, broadcast);

fn main() {
    if common::is_crowd() {
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
