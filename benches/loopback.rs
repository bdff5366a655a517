//! How long does a message take there and back over loopback, alone and with many under way?
//!
//! ```sh
//! cargo bench -p longhaul-benches --bench loopback
//! ```
//!
//! `call` and `pipelined` have a client and a server on threads of their own, with the wake-ups that
//! this takes. `messages` turns both ends on one thread: what they and the system do, and no waiting.
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

mod common;

use std::{hint::black_box, time::Duration};

use common::{Echo, TIMEOUT, echo, now};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longhaul::{
    Conn, ConnId, Handler, Message, PendingCall, Reactor, ReactorBuilder, protocol::AnyProtocol,
};

const PROTOCOLS: [&str; 4] = ["native", "tcpstream", "qtk3", "qtk2"];

/// What does one blocking call cost, by size and protocol?
fn call(c: &mut Criterion) {
    let mut group = c.benchmark_group("call");
    for name in PROTOCOLS {
        let (_server, client) = echo(name.parse().expect("a protocol of ours"));
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
    let (_server, client) = echo(AnyProtocol::default());
    let mut group = c.benchmark_group("pipelined");
    group.throughput(Throughput::Elements(DEPTH));
    group.bench_function("256 calls of 64 bytes", |b| {
        b.iter(|| {
            let calls: Vec<_> =
                (0..DEPTH).map(|_| client.call_async([b'x'; 64], TIMEOUT)).collect();
            for reply in calls.into_iter().map(PendingCall::wait) {
                black_box(reply.expect("the echo answers"));
            }
        });
    });
    group.finish();
}

/// What does a message cost, by how many are under way?
fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("messages");
    for name in AnyProtocol::NAMES {
        let mut ends = Ends::new(name.parse().expect("a protocol of ours"));
        for depth in [1, 16, 256] {
            group.throughput(Throughput::Elements(depth as u64));
            group.bench_function(BenchmarkId::new(name, depth), |b| {
                b.iter(|| ends.exchange(depth, &[b'x'; 64]));
            });
        }
    }
    group.finish();
}

/// Both ends of a connection, turned by hand.
struct Ends {
    server: Reactor<Echo>,
    client: Reactor<Counter>,
    conn: ConnId,
}

/// Counts the echoes.
struct Counter {
    received: usize,
}

impl Handler for Counter {
    type Protocol = AnyProtocol;

    fn on_message(&mut self, _: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        black_box(msg.body());
        self.received += 1;
    }
}

impl Ends {
    fn new(protocol: AnyProtocol) -> Self {
        let builder = ReactorBuilder::new(protocol);
        let mut server = builder.clone().build(Echo).expect("the system has a descriptor left");
        let (_, addr) = server.listen("127.0.0.1:0").expect("loopback has a free port");
        let mut client = builder.build(Counter { received: 0 }).expect("and another one");
        let conn = client.connect(addr).expect("it is an address");
        let mut ends = Self { server, client, conn };
        ends.exchange(1, b"up");
        ends
    }

    /// Sends so many messages at once, and turns until all have come back.
    fn exchange(&mut self, count: usize, body: &[u8]) {
        let mut cx = self.client.context();
        let mut conn = cx.conn(self.conn).expect("it is there");
        for _ in 0..count {
            conn.send(body).expect("there is room for it");
        }
        self.client.handler().received = 0;
        let deadline = now() + TIMEOUT;
        while self.client.handler().received < count {
            for is_running in
                [self.client.turn(Some(Duration::ZERO)), self.server.turn(Some(Duration::ZERO))]
            {
                assert!(
                    is_running.expect("the poll works") && now() < deadline,
                    "nothing was lost"
                );
            }
        }
    }
}

criterion_group!(benches, call, pipelined, messages);
criterion_main!(benches);
