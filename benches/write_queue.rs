//! What does it cost to queue frames and to keep account of what was written, over only copying them?
//!
//! ```sh
//! cargo bench -p longhaul-benches --bench write_queue
//! ```
//!
//! `queue` pushes the frames of one turn and then does what writes do, but for the system call;
//! `parts` has the system take 4 KiB at a time; `buffer` is the floor: the same bytes appended to a
//! buffer that is then cleared.
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longhaul::{Bytes, bench::WriteQueue};

const HEADER: [u8; 24] = [7; 24];

/// Small frames, which lie one behind the other.
fn small(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames of 64 bytes");
    let body = [b'x'; 64];
    for count in [1, 64, 512] {
        group.throughput(Throughput::Elements(count));
        let mut queue = WriteQueue::default();
        let mut queue_and_write = |most| {
            for _ in 0..count {
                queue.push(black_box(&HEADER), black_box(&body));
            }
            while !queue.is_empty() {
                black_box(queue.write(most));
            }
        };
        group.bench_function(BenchmarkId::new("queue", count), |b| {
            b.iter(|| queue_and_write(usize::MAX));
        });
        group.bench_function(BenchmarkId::new("parts", count), |b| {
            b.iter(|| queue_and_write(4096));
        });
        let mut buffer = Vec::new();
        group.bench_function(BenchmarkId::new("buffer", count), |b| {
            b.iter(|| {
                for _ in 0..count {
                    buffer.extend_from_slice(black_box(&HEADER));
                    buffer.extend_from_slice(black_box(&body));
                }
                black_box(&buffer);
                buffer.clear();
            });
        });
    }
    group.finish();
}

/// From which size on is it cheaper to refer to a body than to copy it? Four frames each.
fn shared(c: &mut Criterion) {
    let mut group = c.benchmark_group("body");
    for size in [1024, 4 * 1024, 8 * 1024, 16 * 1024, 64 * 1024] {
        group.throughput(Throughput::Elements(4));
        let body = Bytes::from(vec![b'x'; size]);
        let mut queue = WriteQueue::default();
        group.bench_with_input(BenchmarkId::new("copied", size), &body, |b, body| {
            b.iter(|| {
                for _ in 0..4 {
                    queue.push(black_box(&HEADER), black_box(body));
                }
                while !queue.is_empty() {
                    black_box(queue.write(usize::MAX));
                }
            });
        });
        group.bench_with_input(BenchmarkId::new("shared", size), &body, |b, body| {
            b.iter(|| {
                for _ in 0..4 {
                    queue.push_shared(black_box(&HEADER), black_box(body).clone());
                }
                while !queue.is_empty() {
                    black_box(queue.write(usize::MAX));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, small, shared);
criterion_main!(benches);
