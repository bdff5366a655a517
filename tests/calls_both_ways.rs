//! Both sides of one connection call each other at the same time.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    clippy::needless_pass_by_value,
    clippy::redundant_closure_for_method_calls,
    clippy::similar_names,
    reason = "a test says so by panicking, and its numbers are small"
)]

mod common;

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use common::pair::{NEVER, not_redialled};
use longhaul::{
    CallError, Config, Conn, ConnId, Handle, Handler, Message, Reactor, ReactorBuilder, Reply,
    protocol::{AnyId, AnyProtocol, Native},
};

/// How long all calls of a test may take together: far more than they need.
const PATIENCE: Duration = Duration::from_secs(120);

/// Calls in flight on each side, below what the defaults permit.
const WINDOW: u64 = 1000;

/// Calls the peer, a window of calls at a time, and answers what the peer asks.
struct Side {
    /// What its requests and its replies start with.
    letter: u8,
    total: u64,
    started: u64,
    /// Answers that came, by the number of the call.
    answered: Vec<bool>,
    done: u64,
    wrong: u64,
    /// Requests that came, by the number that the peer gave them.
    asked: Vec<bool>,
    repeated: u64,
    padding: usize,
    first_request: Option<AnyId>,
    tell: Sender<()>,
}

impl Side {
    fn new(letter: u8, total: u64, padding: usize) -> (Self, Receiver<()>) {
        let (tell, told) = channel();
        let len = usize::try_from(total).unwrap();
        let side = Self {
            letter,
            total,
            started: 0,
            answered: vec![false; len],
            done: 0,
            wrong: 0,
            asked: vec![false; len],
            repeated: 0,
            padding,
            first_request: None,
            tell,
        };
        (side, told)
    }

    /// Starts calls until the window is full or none is left to start.
    fn pump(&mut self, conn: &mut Conn<'_, AnyProtocol>, window: u64) {
        while self.started < self.total && self.started - self.done < window {
            let number = self.started;
            self.started += 1;
            let request = body(self.letter, number, self.padding);
            conn.call(request, NEVER, move |side: &mut Self, conn, result| {
                side.take_answer(number, result);
                side.pump(conn, window);
            })
            .expect("a window below the limits");
        }
    }

    /// The reply is the request with the peer's letter in front, and each comes once.
    fn take_answer(&mut self, number: u64, result: Result<Reply<'_>, CallError>) {
        let mut expected = vec![other(self.letter)];
        expected.extend(body(self.letter, number, self.padding));
        let seen = &mut self.answered[usize::try_from(number).unwrap()];
        let is_right = result.is_ok_and(|reply| reply.body() == expected);
        if !is_right || std::mem::replace(seen, true) {
            self.wrong += 1;
        }
        self.done += 1;
        if self.done == self.total {
            let _ = self.tell.send(());
        }
    }
}

impl Handler for Side {
    type Protocol = AnyProtocol;

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        self.first_request.get_or_insert_with(|| msg.id());
        let (from, number) = (msg.body()[0], &msg.body()[1..9]);
        let number = u64::from_be_bytes(number.try_into().unwrap());
        let seen = &mut self.asked[usize::try_from(number).unwrap()];
        if from != other(self.letter) || std::mem::replace(seen, true) {
            self.repeated += 1;
        }
        let mut reply = vec![self.letter];
        reply.extend_from_slice(msg.body());
        conn.reply(&msg, reply).expect("the connection is up");
    }
}

fn body(letter: u8, number: u64, padding: usize) -> Vec<u8> {
    let mut body = vec![letter];
    body.extend(number.to_be_bytes());
    body.resize(9 + padding, letter);
    body
}

const fn other(letter: u8) -> u8 {
    if letter == b'c' { b's' } else { b'c' }
}

/// A reactor on a thread that gives it back when it has stopped.
fn run(mut reactor: Reactor<Side>) -> JoinHandle<Reactor<Side>> {
    std::thread::spawn(move || {
        reactor.run().unwrap();
        reactor
    })
}

fn start(handle: &Handle<AnyProtocol>, conn: ConnId, window: u64) {
    let begin = move |side: &mut Side, cx: &mut longhaul::Context<'_, AnyProtocol>| {
        side.pump(&mut cx.conn(conn).expect("the connection is up"), window);
    };
    handle.run_with(begin).unwrap();
}

/// What one side saw, when all was over.
struct Seen {
    first_request: AnyId,
}

/// Lets both sides make `total` calls over one connection, and checks that none is lost or crossed.
fn both_ways(
    protocol: impl Into<AnyProtocol>,
    config: &Config,
    total: u64,
    window: u64,
    padding: usize,
) -> [Seen; 2] {
    let protocol = protocol.into();
    let (side, server_done) = Side::new(b's', total, padding);
    let mut server = ReactorBuilder::new(protocol).config(config.clone()).build(side).unwrap();
    let (_, addr) = server.listen("127.0.0.1:0").unwrap();
    let server_handle = server.handle();
    let server = run(server);

    let (side, client_done) = Side::new(b'c', total, padding);
    let client = ReactorBuilder::new(protocol).config(config.clone()).build(side).unwrap();
    let client_handle = client.handle();
    let client = run(client);
    let dialled = client_handle.connect_and_wait_with(addr, &protocol, config).unwrap();
    let accepted = loop {
        if let Some(conn) = server_handle.ask(|cx| cx.connections().next()).unwrap() {
            break conn;
        }
    };

    start(&client_handle, dialled, window);
    start(&server_handle, accepted, window);
    client_done.recv_timeout(PATIENCE).expect("the client's calls end");
    server_done.recv_timeout(PATIENCE).expect("the server's calls end");
    client_handle.stop();
    server_handle.stop();
    [client, server].map(|thread| {
        let mut reactor = thread.join().unwrap();
        let stats = reactor.stats();
        assert_eq!((stats.calls_in_flight, stats.calls_timed_out, stats.late_replies), (0, 0, 0));
        let side = reactor.handler();
        assert_eq!((side.done, side.wrong, side.repeated), (total, 0, 0));
        assert!(side.answered.iter().all(|seen| *seen), "an answer is missing");
        assert!(side.asked.iter().all(|seen| *seen), "a request is missing");
        Seen { first_request: side.first_request.unwrap() }
    })
}

#[test]
fn native_calls_of_equal_ids_do_not_cross() {
    let [client, server] = both_ways(Native, &not_redialled(), 100_000, WINDOW, 0);
    assert_eq!(client.first_request, server.first_request);
}

#[test]
fn tcpstream_calls_of_both_sides_do_not_cross() {
    by_name("tcpstream");
}

#[test]
fn qtk3_calls_of_both_sides_do_not_cross() {
    by_name("qtk3");
}

#[test]
fn qtk2_calls_of_both_sides_do_not_cross() {
    by_name("qtk2");
}

/// On these a request is a message whose id is unknown.
fn by_name(protocol: &str) {
    let protocol: AnyProtocol = protocol.parse().unwrap();
    both_ways(protocol, &not_redialled(), 20_000, WINDOW, 0);
}

#[test]
fn all_the_calls_that_are_permitted_may_be_in_flight_both_ways() {
    both_ways(Native, &not_redialled(), 20_000, 4096, 0);
}

/// More is in flight each way than sockets and queues hold below their watermarks. Were a side that
/// waits for answers allowed to stop reading, both would wait for ever.
#[test]
fn calls_that_fill_both_queues_do_not_block_each_other() {
    let config = not_redialled().watermarks(4 * 1024, 8 * 1024).socket_buffers(4 * 1024, 4 * 1024);
    both_ways(Native, &config, 2000, 500, 1000);
    // Three times what the default high watermark allows, each way.
    both_ways(Native, &not_redialled(), 20_000, 4096, 1600);
}
