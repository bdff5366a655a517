//! Do idle connections cost the loop anything, their heartbeats and timeouts armed?
//!
//! ```sh
//! cargo bench -p longhaul-benches --bench idle
//! ```
//!
//! `turn` has nothing to do; `echo` is a message of 64 bytes there and back on one more connection,
//! the client's two system calls included. Both should not depend on how many are idle. A size for
//! which there are not the descriptors is left out.
#![allow(missing_docs, reason = "the macros of criterion make public functions without any")]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use common::Crowd;
use criterion::{BenchmarkId, Criterion, criterion_group};
use longhaul::{
    Config,
    protocol::{AnyProtocol, Head, Length, NoId, Protocol},
};

fn idle(c: &mut Criterion) {
    let mut group = c.benchmark_group("idle");
    for size in [1, 100, 10_000] {
        let Some(mut crowd) = Crowd::new(size) else { continue };
        group.bench_function(BenchmarkId::new("turn", size), |b| {
            b.iter(|| crowd.reactor.turn(Some(Duration::ZERO)).expect("the poll works"));
        });

        let protocol = AnyProtocol::from(Length::default());
        let listening = crowd.reactor.listen_with("127.0.0.1:0", &protocol, &Config::new());
        let mut stream =
            TcpStream::connect(listening.expect("loopback has a free port").1).expect("it listens");
        stream.set_nodelay(true).expect("a setting of TCP");
        let mut frame = Vec::new();
        Length::default().encode(&Head::plain(NoId), &[b'x'; 64], &mut frame);
        let mut echo = vec![0; frame.len()];
        group.bench_function(BenchmarkId::new("echo", size), |b| {
            b.iter(|| {
                let sent = crowd.reactor.stats().messages_out + 1;
                stream.write_all(&frame).expect("the server reads");
                crowd.turn_until(|crowd| crowd.reactor.stats().messages_out >= sent);
                stream.read_exact(&mut echo).expect("the echo is there");
            });
            assert_eq!(echo, frame);
        });
    }
    group.finish();
}

criterion_group!(benches, idle);

fn main() {
    if common::is_crowd() {
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
