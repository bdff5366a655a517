//! What do the wire formats cost: to find the frames in what was read, and to write them?
//!
//! ```sh
//! cargo bench -p longhaul-benches --bench codec
//! ```
//!
//! Decoding walks over the frames of one read of 64 KiB (or one frame, if that is longer); bodies are
//! lent where they lie, so their size hardly counts. Encoding writes them into a buffer that is large
//! enough, and copies the bodies. `any` is `native` chosen at run time.
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longhaul::protocol::{
    AnyProtocol, Decoded, Head, Kind, Length, Native, Protocol, Qtk2, Qtk3, Tcpstream,
};

const SIZES: [usize; 5] = [16, 64, 1024, 8 * 1024, 64 * 1024];
const READ: usize = 64 * 1024;

/// The frame as the format's own echo server would send it.
fn head<P: Protocol>(protocol: &P) -> Head<P::Id> {
    let kind = match protocol.name() {
        "native" => Kind::Push,
        _ => Kind::Plain,
    };
    Head::new(kind, protocol.push_id(1, 2))
}

fn decode<P: Protocol>(c: &mut Criterion, name: &str, mut protocol: P) {
    let mut group = c.benchmark_group("decode");
    for size in SIZES {
        let (frames, count) = frames(&mut protocol, size);
        group.throughput(Throughput::Elements(count));
        group.bench_with_input(BenchmarkId::new(name, size), &frames, |b, frames| {
            b.iter(|| {
                let mut rest = &black_box(frames)[..];
                let mut found = 0;
                while let Ok(Decoded::Frame { body, len, .. }) = protocol.decode(rest, READ) {
                    black_box(&rest[body]);
                    rest = &rest[len..];
                    found += 1;
                }
                assert_eq!(found, count, "every frame is found");
            });
        });
    }
    group.finish();
}

fn encode<P: Protocol>(c: &mut Criterion, name: &str, mut protocol: P) {
    let mut group = c.benchmark_group("encode");
    for size in SIZES {
        let (frames, count) = frames(&mut protocol, size);
        let head = head(&protocol);
        let body = vec![b'x'; size];
        let mut out = Vec::with_capacity(frames.len());
        group.throughput(Throughput::Elements(count));
        group.bench_with_input(BenchmarkId::new(name, size), &body, |b, body| {
            b.iter(|| {
                out.clear();
                for _ in 0..count {
                    protocol.encode(black_box(&head), black_box(body), &mut out);
                }
                black_box(&out);
            });
            assert_eq!(out, frames, "the same bytes each time");
        });
    }
    group.finish();
}

/// As many frames as one read takes, at least one; and how many.
fn frames<P: Protocol>(protocol: &mut P, size: usize) -> (Vec<u8>, u64) {
    let head = head(protocol);
    let body = vec![b'x'; size];
    let (mut frames, mut count) = (Vec::new(), 0);
    loop {
        protocol.encode(&head, &body, &mut frames);
        count += 1;
        if frames.len() + frames.len() / count > READ {
            return (frames, count as u64);
        }
    }
}

fn formats(c: &mut Criterion) {
    macro_rules! each {
        ($does:ident) => {
            $does(c, "native", Native);
            $does(c, "any", AnyProtocol::from(Native));
            $does(c, "tcpstream", Tcpstream);
            $does(c, "qtk3", Qtk3);
            $does(c, "qtk2", Qtk2);
            $does(c, "length", Length::default());
        };
    }
    each!(decode);
    each!(encode);
}

criterion_group!(benches, formats);
criterion_main!(benches);
