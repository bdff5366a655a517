//! How long does a message take there and back over loopback, alone and with many under way?
//!
//! ```sh
//! cargo bench --bench loopback
//! ```
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longhaul::{
    ClientBuilder, Conn, Handler, Message, PendingCall, ReactorBuilder, Server,
    protocol::{Any, Kind},
};

const TIMEOUT: Duration = Duration::from_secs(10);

struct Echo;

impl Handler for Echo {
    type Protocol = Any;

    fn on_message(&mut self, conn: &mut Conn<'_, Any>, msg: Message<'_, Any>) {
        let _ = match msg.kind() {
            Kind::Push => conn.send(&msg),
            _ => conn.reply(&msg, &msg),
        };
    }
}

/// What does one blocking call cost, by size and protocol?
fn call(c: &mut Criterion) {
    let mut group = c.benchmark_group("call");
    for name in ["native", "tcpstream", "qtk3", "qtk2"] {
        let protocol: Any = name.parse().expect("a protocol of ours");
        let server = Server::bind_with("127.0.0.1:0", ReactorBuilder::new(protocol), Echo)
            .expect("loopback has a free port");
        let client = ClientBuilder::new(protocol).connect(server.addr()).expect("it listens");
        for size in [64, 64 * 1024] {
            let body = vec![b'x'; size];
            group.throughput(Throughput::Bytes(2 * size as u64));
            group.bench_with_input(BenchmarkId::new(name, size), &body, |b, body| {
                b.iter(|| black_box(client.call(body, TIMEOUT).expect("the echo answers")));
            });
        }
    }
    group.finish();
}

/// What does a call cost when many are in flight?
fn pipelined(c: &mut Criterion) {
    const DEPTH: u64 = 256;
    let protocol = Any::default();
    let server = Server::bind_with("127.0.0.1:0", ReactorBuilder::new(protocol), Echo)
        .expect("loopback has a free port");
    let client = ClientBuilder::new(protocol).connect(server.addr()).expect("it listens");
    let mut group = c.benchmark_group("pipelined");
    group.throughput(Throughput::Elements(DEPTH));
    group.bench_function("256 calls of 64 bytes", |b| {
        b.iter(|| {
            let calls: Vec<_> =
                (0..DEPTH).map(|_| client.call_async(&[b'x'; 64], TIMEOUT)).collect();
            calls.into_iter().flat_map(PendingCall::wait).count()
        });
    });
    group.finish();
}

criterion_group!(benches, call, pipelined);
criterion_main!(benches);
