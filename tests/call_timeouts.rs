//! Calls whose time runs out, and what their callee learns of it.
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
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use common::{
    PATIENCE, Peer, Running, Script, frame, now,
    pair::{NEVER, Pair, Side, WITH_CALLS, block_on, not_redialled},
    pass,
};
use longhaul::{
    CallError, Client, ClientBuilder, Config, Conn, Fate, Handler, Message, Responder, SendError,
    Server, error_code,
    protocol::{AnyId, AnyProtocol, Head, Kind, Native},
};

/// A timeout that is waited for.
const SHORT: Duration = Duration::from_millis(30);

const TIMED_OUT: CallError = CallError::Timeout { fate: Fate::MaybeSent };

/// Keeps every request, and passes it on.
fn keeping() -> (Script, Receiver<Responder<AnyProtocol>>) {
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        let _ = keep.send(conn.defer(&msg).expect("a request"));
    });
    (script, kept)
}

#[test]
fn timeout_ends_a_call_that_is_not_answered_and_not_before_its_time() {
    for protocol in WITH_CALLS {
        let ((server, _kept), (client, _also_kept)) = (keeping(), keeping());
        let pair = Pair::new(protocol.parse::<AnyProtocol>().unwrap(), server, client);
        for (caller, _) in pair.both_ways() {
            let began = now();
            for (how, ended) in caller.call_three_ways("request", SHORT).wait() {
                assert_eq!(ended, Err(TIMED_OUT), "{protocol} {} {how}", caller.name);
            }
            assert!(now() - began >= SHORT, "{protocol}: too early");
            let stats = caller.handle.ask(|cx| cx.stats()).unwrap();
            assert_eq!((stats.calls_timed_out, stats.calls_in_flight), (3, 0));
        }
    }
}

#[test]
fn timeout_beyond_what_an_instant_can_say_is_never() {
    let pair = Pair::new(Native, Script::echo(), Script::new());
    assert_eq!(pair.dialling_side().call("hello", Duration::MAX).unwrap().1, b"hello");
}

#[test]
fn timeout_of_zero_ends_a_call_as_timed_out() {
    let (server, _kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let error = pair.dialling_side().call("request", Duration::ZERO).unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error:?}");
}

#[test]
fn timeout_cancels_the_request_at_the_callee() {
    let ((server, server_kept), (client, client_kept)) = (keeping(), keeping());
    let pair = Pair::new(Native, server, client);
    for ((caller, callee), kept) in pair.both_ways().into_iter().zip([server_kept, client_kept]) {
        assert_eq!(caller.call("request", SHORT), Err(TIMED_OUT));
        let responder = kept.recv_timeout(PATIENCE).unwrap();
        assert_eq!(callee.events.cancelled(), responder.id());
        assert!(responder.is_cancelled() && !responder.is_open());
        assert_eq!(responder.reply("too late").map_err(SendError::from), Err(SendError::Closed));
    }
}

#[test]
fn cancelled_request_holds_its_place_until_its_responder_is_done() {
    let (keep, kept) = channel();
    let server = Script::new().on_message(move |conn, msg| {
        keep.send(conn.defer(&msg).unwrap()).unwrap();
    });
    let pair = Pair::with(
        Native,
        Config::new().max_requests(1),
        server,
        // More than the server permits are asked at a time: its limit is tested, not ours.
        not_redialled(),
        Script::new(),
    );
    let side = pair.dialling_side();
    let in_flight = {
        let (handle, conn) = (pair.server.handle.clone(), pair.accepted);
        move || handle.ask(move |cx| cx.conn(conn).unwrap().stats().requests_in_flight)
    };
    let done: [fn(Responder<AnyProtocol>); 3] = [
        |responder| {
            assert_eq!(responder.reply("late").map_err(SendError::from), Err(SendError::Closed));
        },
        |responder| drop(responder.fail(256, "late")),
        drop,
    ];
    for finish in done {
        assert_eq!(side.call("request", SHORT), Err(TIMED_OUT));
        let responder: Responder<AnyProtocol> = kept.recv_timeout(PATIENCE).unwrap();
        pair.server.events.cancelled();
        assert_eq!(in_flight().unwrap(), 1);
        finish(responder);
        assert_eq!(in_flight().unwrap(), 0);
    }
}

// ---- a peer that the test speaks for ----

/// A caller, and its peer.
fn caller_of(protocol: AnyProtocol) -> (Running, Side, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let client = Running::client(protocol, not_redialled(), Script::new());
    let conn = client.handle.connect_with(addr, &protocol, &not_redialled()).unwrap();
    let mut peer = Peer::of(listener.accept().unwrap().0, protocol);
    peer.write(&common::hello(&protocol));
    client.events.connected();
    let side = Side { name: "dialled", handle: client.handle.clone(), conn };
    (client, side, peer)
}

/// The next frame that is no control frame of the connection's own.
fn next_of_calls(peer: &mut Peer) -> Head<AnyId> {
    loop {
        let (head, _) = peer.next_frame().expect("a frame before the end");
        if !matches!(head.kind, Kind::Hello | Kind::Ping | Kind::Pong) {
            return head;
        }
    }
}

#[test]
fn timeout_sends_a_cancel_and_a_reply_does_not() {
    let (_client, side, mut peer) = caller_of(Native.into());
    assert_eq!(side.call("never answered", SHORT), Err(TIMED_OUT));
    let request = next_of_calls(&mut peer);
    let cancel = next_of_calls(&mut peer);
    assert_eq!(
        (request.kind, cancel.kind, request.id == cancel.id),
        (Kind::Request, Kind::Cancel, true)
    );
    for _ in 0..2 {
        let call = side.call_async("answered", NEVER);
        let request = next_of_calls(&mut peer);
        assert_eq!(request.kind, Kind::Request);
        peer.write(&frame(&Native.into(), &Head::new(Kind::Reply, request.id), b"yes"));
        assert_eq!(block_on(call).unwrap(), "yes");
    }
}

#[test]
fn request_says_how_long_its_caller_waits() {
    let (_client, side, mut peer) = caller_of(Native.into());
    let _call = side.call_async("request", Duration::from_millis(12_345));
    assert_eq!(next_of_calls(&mut peer).millis, 12_345);
}

#[test]
fn late_reply_is_counted_and_dropped_on_native() {
    let (client, side, mut peer) = caller_of(Native.into());
    assert_eq!(side.call("request", SHORT), Err(TIMED_OUT));
    let late = next_of_calls(&mut peer);
    let reply = |id| frame(&Native.into(), &Head::new(Kind::Reply, id), b"late");
    let error = |id| frame(&Native.into(), &Head::new(Kind::Error, id), b"late");
    // Late, late as an error, and to a call that never was.
    peer.write(&reply(late.id));
    peer.write(&error(late.id));
    peer.write(&reply(AnyId::Native(999)));
    // A reply that comes twice.
    let call = side.call_async("request", NEVER);
    assert_eq!(next_of_calls(&mut peer).kind, Kind::Cancel);
    let answered = next_of_calls(&mut peer);
    peer.write(&[reply(answered.id), reply(answered.id)].concat());
    assert_eq!(block_on(call).unwrap(), "late");
    peer.send("and on it goes");
    assert_eq!(client.events.message(), b"and on it goes");
    assert_eq!(client.ask(|cx| cx.stats().late_replies), 4);
    let conn = side.conn;
    assert_eq!(client.ask(move |cx| cx.conn(conn).unwrap().stats().late_replies), 4);
}

#[test]
fn late_reply_is_a_message_where_the_pending_table_decides() {
    for protocol in ["tcpstream", "qtk3", "qtk2"] {
        let (client, side, mut peer) = caller_of(protocol.parse().unwrap());
        assert_eq!(side.call("request", SHORT), Err(TIMED_OUT));
        let late = next_of_calls(&mut peer);
        let reply = frame(&protocol.parse().unwrap(), &Head::new(Kind::Plain, late.id), b"late");
        // Once late, and once more.
        peer.write(&[reply.clone(), reply].concat());
        assert_eq!(client.events.message(), b"late", "{protocol}");
        assert_eq!(client.events.message(), b"late", "{protocol}");
        assert_eq!(client.ask(|cx| cx.stats().late_replies), 0, "{protocol}");
    }
}

#[test]
fn request_that_is_over_before_its_turn_is_not_run() {
    let server = Script::new().on_message(|conn, msg| {
        if msg.body() == b"pause" {
            conn.pause();
        } else {
            conn.reply(&msg, &msg).unwrap();
        }
    });
    let server = Running::server(Native, Config::new(), server);
    let mut peer = Peer::new(server.addr, Native);
    let conn = server.events.connected();
    let request = |id, millis, body: &[u8]| {
        let head = Head { millis, ..Head::new(Kind::Request, AnyId::Native(id)) };
        frame(&Native.into(), &head, body)
    };
    // All in one segment: they have arrived when the first of them pauses the connection.
    let pause = common::message(&Native.into(), b"pause");
    let frames = [pause, request(1, 1, b"short"), request(2, 3_600_000, b"long")].concat();
    peer.write(&frames);
    assert_eq!(server.events.message(), b"pause");
    pass(Duration::from_millis(20));
    server.ask(move |cx| cx.conn(conn).unwrap().resume());
    let expired = next_of_calls(&mut peer);
    assert_eq!((expired.kind, expired.id), (Kind::Error, AnyId::Native(1)));
    assert_eq!(expired.tag, error_code::EXPIRED);
    let replied = next_of_calls(&mut peer);
    assert_eq!((replied.kind, replied.id), (Kind::Reply, AnyId::Native(2)));
    assert_eq!(server.events.message(), b"long");
    let error = CallError::Remote { code: error_code::EXPIRED, text: String::new() };
    assert_eq!(error.fate(), Fate::NotSent);
}

// ---- many ----

/// Answers at once, or never where the body starts with an `x`: that request is kept until its
/// caller gives it up.
#[derive(Default)]
struct Selective {
    kept: std::collections::HashMap<u64, Responder<Native>>,
    handled: Arc<AtomicU64>,
    cancelled: Arc<AtomicU64>,
}

impl Handler for Selective {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        self.handled.fetch_add(1, Ordering::Relaxed);
        if msg.body().first() == Some(&b'x') {
            let responder = conn.defer(&msg).unwrap();
            self.kept.insert(msg.id(), responder);
        } else {
            conn.reply(&msg, &msg).unwrap();
        }
    }

    fn on_cancel(&mut self, _: &mut Conn<'_, Native>, request: u64) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
        drop(self.kept.remove(&request).expect("only what was kept is cancelled"));
    }
}

#[test]
fn outcomes_of_64_threads_on_one_client_add_up() {
    const THREADS: u64 = 64;
    const CALLS: u64 = 50;
    let callee = Selective::default();
    let (handled, cancelled) = (callee.handled.clone(), callee.cancelled.clone());
    let server = Server::bind("127.0.0.1:0", callee).unwrap();
    let client = Client::connect(server.addr()).unwrap();
    let mut totals = [0, 0];
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let client = &client;
                scope.spawn(move || {
                    let (mut answered, mut timed_out) = (0, 0);
                    for call in 0..CALLS {
                        let is_kept = (thread + call) % 5 == 0;
                        let letter = if is_kept { "x" } else { "y" };
                        let body = format!("{letter} {thread} {call}");
                        let timeout = if is_kept { Duration::from_millis(5) } else { NEVER };
                        match client.call(&body, timeout) {
                            Ok(reply) => {
                                assert_eq!(reply, body);
                                answered += 1;
                            }
                            Err(CallError::Timeout { .. }) => timed_out += 1,
                            Err(error) => panic!("{body}: {error}"),
                        }
                    }
                    [answered, timed_out]
                })
            })
            .collect();
        for thread in threads {
            let sums = thread.join().unwrap();
            totals = [totals[0] + sums[0], totals[1] + sums[1]];
        }
    });
    assert_eq!(totals, [THREADS * CALLS * 4 / 5, THREADS * CALLS / 5]);
    // What the callee saw is there once it has seen what came behind it.
    client.call("last", NEVER).unwrap();
    assert_eq!(handled.load(Ordering::Relaxed), THREADS * CALLS + 1);
    assert_eq!(cancelled.load(Ordering::Relaxed), totals[1]);
    let stats = client.handle().ask(|cx| cx.stats()).unwrap();
    assert_eq!((stats.calls_in_flight, stats.calls_timed_out), (0, totals[1]));
}

#[test]
fn timeouts_shorter_than_some_replies_end_each_call_once() {
    const THREADS: u64 = 64;
    const CALLS: u64 = 100;
    /// Answers some requests from another thread, while their callers are giving up.
    struct Racing(Sender<Responder<Native>>, Arc<AtomicU64>);
    impl Handler for Racing {
        type Protocol = Native;
        fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.send(conn.defer(&msg).unwrap()).unwrap();
        }
    }
    let (work, todo) = channel::<Responder<Native>>();
    let handled = Arc::new(AtomicU64::new(0));
    let server = Server::bind("127.0.0.1:0", Racing(work, handled.clone())).unwrap();
    let worker = std::thread::spawn(move || {
        for (number, responder) in todo.iter().enumerate() {
            if number % 16 == 0 {
                pass(Duration::from_millis(1));
            }
            let _ = responder.reply("done");
        }
    });
    let client = Client::connect(server.addr()).unwrap();
    let (answered, timed_out) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for call in 0..CALLS {
                    // From less than the worker takes to more than it takes for all.
                    let timeout = Duration::from_millis([1, 3, 9, 3_600_000][call as usize % 4]);
                    match client.call("request", timeout) {
                        Ok(reply) => {
                            assert_eq!(reply, "done");
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(CallError::Timeout { .. }) => {
                            _ = timed_out.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let sum = answered.load(Ordering::Relaxed) + timed_out.load(Ordering::Relaxed);
    assert_eq!(sum, THREADS * CALLS);
    client.call("last", NEVER).unwrap();
    // A call whose time was over before it was written was not seen by the callee.
    let seen = handled.load(Ordering::Relaxed);
    assert!(seen <= sum + 1 && seen > answered.load(Ordering::Relaxed), "{seen} of {sum}");
    let stats = client.handle().ask(|cx| cx.stats()).unwrap();
    assert_eq!(stats.calls_in_flight, 0);
    assert_eq!(stats.calls_timed_out, timed_out.load(Ordering::Relaxed));
    let left = server.handle().ask(|cx| {
        let conn = cx.connections().next().unwrap();
        cx.conn(conn).unwrap().stats().requests_in_flight
    });
    assert_eq!(left.unwrap(), 0);
    server.stop().unwrap();
    worker.join().unwrap();
}

/// A million calls in release; a tenth of that where the compiler did not optimise.
#[test]
fn million_calls_of_which_a_tenth_times_out_leave_nothing_behind() {
    const TOTAL: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
    const WINDOW: u64 = 1000;

    /// How calls ended.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Ends {
        answered: u64,
        timed_out: u64,
        /// The callee came to it too late and says so, before its caller noticed.
        expired: u64,
        wrong: Vec<String>,
    }

    impl Ends {
        fn sum(&self) -> u64 {
            self.answered + self.timed_out + self.expired + self.wrong.len() as u64
        }

        fn add(&mut self, is_kept: bool, end: Result<(), CallError>) {
            match end {
                Ok(()) if !is_kept => self.answered += 1,
                Err(CallError::Timeout { .. }) if is_kept => self.timed_out += 1,
                Err(CallError::Remote { code: error_code::EXPIRED, .. }) if is_kept => {
                    self.expired += 1;
                }
                end => self.wrong.push(format!("kept {is_kept}: {end:?}")),
            }
        }
    }

    /// Starts the next call when one has ended.
    struct Caller {
        started: u64,
        ends: Ends,
        done: Sender<Ends>,
    }

    impl Caller {
        fn pump(&mut self, conn: &mut Conn<'_, Native>) {
            while self.started < TOTAL && self.started - self.ends.sum() < WINDOW {
                let number = self.started;
                self.started += 1;
                let is_kept = number.is_multiple_of(10);
                let timeout = if is_kept { Duration::from_millis(3) } else { NEVER };
                let body = if is_kept { "x" } else { "y" };
                conn.call(body, timeout, move |caller: &mut Self, conn, result| {
                    caller.ends.add(is_kept, result.map(|_| ()));
                    if caller.ends.sum() == TOTAL {
                        let _ = caller.done.send(caller.ends.clone());
                    }
                    caller.pump(conn);
                })
                .unwrap();
            }
        }
    }

    impl Handler for Caller {
        type Protocol = Native;
        fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
    }

    let callee = Selective::default();
    let cancelled = callee.cancelled.clone();
    let server = Server::bind("127.0.0.1:0", callee).unwrap();
    let (done, ended) = channel();
    let caller = Caller { started: 0, ends: Ends::default(), done };
    let client = ClientBuilder::new(Native).connect_with(server.addr(), caller).unwrap();
    let conn = client.conn();
    let begin = move |caller: &mut Caller, cx: &mut longhaul::Context<'_, Native>| {
        caller.pump(&mut cx.conn(conn).unwrap());
    };
    client.handle().run_with(begin).unwrap();
    let ends = ended.recv_timeout(10 * PATIENCE).expect("every call ends");
    assert_eq!(ends.wrong, [""; 0]);
    assert_eq!(
        (ends.answered, ends.timed_out + ends.expired),
        (TOTAL / 10 * 9, TOTAL / 10),
        "{ends:?}"
    );

    client.call("last", NEVER).unwrap();
    let in_flight = move |cx: &mut longhaul::Context<'_, Native>, conn| {
        let stats = cx.conn(conn).unwrap().stats();
        (stats.calls_in_flight, stats.requests_in_flight)
    };
    let left = client.handle().ask(move |cx| (cx.stats(), in_flight(cx, conn))).unwrap();
    assert_eq!((left.0.calls_in_flight, left.0.calls_timed_out), (0, ends.timed_out));
    assert_eq!(left.1, (0, 0));
    // Who timed out was cancelled at the callee, or refused there, which came too late.
    assert_eq!(cancelled.load(Ordering::Relaxed) + left.0.late_replies, ends.timed_out);
    let left = server.handle().ask(move |cx| {
        let conn = cx.connections().next().unwrap();
        in_flight(cx, conn)
    });
    assert_eq!(left.unwrap(), (0, 0));
}
