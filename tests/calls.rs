//! How calls are made, from either side of a connection, and how they end while it is up.
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
    sync::mpsc::{Sender, channel},
    task::{Context, Poll, Waker},
    time::Duration,
};

use common::{
    Event, PATIENCE, Running, Script,
    pair::{Ended, NEVER, Pair, Side, WITH_CALLS, block_on, not_redialled},
};
use longhaul::{
    CallError, CloseReason, Config, Conn, Fate, LimitBy, Message, Reconnect, Responder, SendError,
    Tagged, error_code,
    protocol::{AnyId, AnyProtocol, Length, Native},
};

/// Answers with what was asked, in capitals.
fn upper() -> Script {
    Script::new().on_message(|conn, msg| {
        let _ = conn.reply(&msg, msg.text().to_uppercase());
    })
}

/// Keeps every request, and passes it on.
fn keeping(keep: Sender<Responder<AnyProtocol>>) -> Script {
    Script::new().on_message(move |conn, msg| {
        let _ = keep.send(conn.defer(&msg).expect("a request"));
    })
}

/// Runs `on_message` on the callee's side, on a connection between two that do the same.
fn both(on_message: fn(&mut Conn<'_, AnyProtocol>, Message<'_, AnyProtocol>)) -> Pair {
    Pair::new(Native, Script::new().on_message(on_message), Script::new().on_message(on_message))
}

fn code_of(ended: Ended) -> (u32, String, Fate) {
    let error = ended.expect_err("the peer fails the call");
    let fate = error.fate();
    match error {
        CallError::Remote { code, text } => (code, text, fate),
        other => panic!("not the peer's error: {other}"),
    }
}

// ---- three ways to call, from both sides ----

fn three_ways(protocol: &str) {
    let protocol: AnyProtocol = protocol.parse().unwrap();
    let pair = Pair::new(protocol, upper(), upper());
    for (caller, _) in pair.both_ways() {
        for (how, ended) in caller.call_three_ways("hello", NEVER).wait() {
            let (_, body) = ended.unwrap_or_else(|error| panic!("{} {how}: {error}", caller.name));
            assert_eq!(body, b"HELLO", "{} {how}", caller.name);
        }
    }
}

#[test]
fn native_sides_call_by_thread_future_and_callback() {
    three_ways("native");
}

#[test]
fn tcpstream_sides_call_by_thread_future_and_callback() {
    three_ways("tcpstream");
}

#[test]
fn qtk3_sides_call_by_thread_future_and_callback() {
    three_ways("qtk3");
}

#[test]
fn qtk2_sides_call_by_thread_future_and_callback() {
    three_ways("qtk2");
}

#[test]
fn tag_travels_with_request_and_reply() {
    for protocol in ["native", "tcpstream"] {
        let next_tag = || {
            Script::new().on_message(|conn, msg| {
                conn.reply(&msg, Tagged(msg.tag() + 1, "reply")).unwrap();
            })
        };
        let pair = Pair::new(protocol.parse::<AnyProtocol>().unwrap(), next_tag(), next_tag());
        for (caller, _) in pair.both_ways() {
            let (tag, _) = caller.call(Tagged(41, "request"), NEVER).unwrap();
            assert_eq!(tag, 42, "{protocol} {}", caller.name);
            let (_, ended) = caller.call_back(Tagged(u32::MAX - 1, "request"), NEVER).unwrap();
            let (tag, _) = ended.recv_timeout(PATIENCE).unwrap().unwrap();
            assert_eq!(tag, u32::MAX, "{protocol} {}", caller.name);
        }
    }
}

#[test]
fn reply_without_a_tag_has_that_of_the_request() {
    let pair = both(|conn, msg| conn.reply(&msg, "reply").unwrap());
    for (caller, _) in pair.both_ways() {
        assert_eq!(caller.call(Tagged(7, "request"), NEVER).unwrap(), (7, b"reply".to_vec()));
    }
}

#[test]
fn id_of_a_call_is_known_before_its_reply() {
    let (keep, kept) = channel();
    let pair = Pair::new(Native, keeping(keep.clone()), keeping(keep));
    for (caller, _) in pair.both_ways() {
        let future = caller.call_async("future", NEVER);
        let responder = kept.recv_timeout(PATIENCE).unwrap();
        let id = future.id().expect("the request was queued before it arrived");
        assert_eq!(responder.id(), AnyId::Native(id.as_u64()));
        responder.reply("").unwrap();
        block_on(future).unwrap();

        let (id, ended) = caller.call_back("callback", NEVER).unwrap();
        let responder = kept.recv_timeout(PATIENCE).unwrap();
        assert_eq!(responder.id(), AnyId::Native(id.as_u64()));
        responder.reply("").unwrap();
        ended.recv_timeout(PATIENCE).unwrap().unwrap();
    }
}

#[test]
fn callback_is_given_the_handler_and_its_connection() {
    let pair = Pair::new(Native, upper(), Script::new());
    let (tell, told) = channel();
    let dialled = pair.dialled;
    pair.client.ask(move |cx| {
        let mut conn = cx.conn(dialled).unwrap();
        conn.call("first", NEVER, move |_: &mut Script, conn, result| {
            assert_eq!(result.unwrap().body(), b"FIRST");
            assert_eq!(conn.id(), dialled);
            // A callback may call again.
            let again = conn.call("second", NEVER, move |_: &mut Script, _, result| {
                let _ = tell.send(result.unwrap().to_bytes());
            });
            again.unwrap();
        })
        .unwrap();
    });
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "SECOND");
}

#[test]
fn call_in_the_callback_of_a_request_is_answered_by_the_same_peer() {
    // The server answers "ask me" with what the client answers to "who?": one thread each.
    let server = Script::new().on_message(|conn, msg| {
        let responder = conn.defer(&msg).unwrap();
        conn.call("who?", NEVER, move |_: &mut Script, _, result| {
            responder.reply(result.unwrap().to_bytes()).unwrap();
        })
        .unwrap();
    });
    let client = Script::new().on_message(|conn, msg| conn.reply(&msg, "me").unwrap());
    let pair = Pair::new(Native, server, client);
    assert_eq!(pair.dialling_side().call("ask me", NEVER).unwrap().1, b"me");
}

#[test]
fn cancelled_callback_call_ends_at_once_and_the_callee_is_told() {
    let (keep, kept) = channel();
    let pair = Pair::new(Native, keeping(keep), Script::new());
    let side = pair.dialling_side();
    let (id, ended) = side.call_back("request", NEVER).unwrap();
    let responder: Responder<AnyProtocol> = kept.recv_timeout(PATIENCE).unwrap();
    let cancelled = side.handle.ask(move |cx| {
        let mut conn = cx.conn(side.conn).unwrap();
        [conn.cancel_call(id), conn.cancel_call(id)]
    });
    assert_eq!(cancelled.unwrap(), [true, false]);
    let error = ended.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error, CallError::Cancelled { fate: Fate::MaybeSent });
    assert_eq!(pair.server.events.cancelled(), responder.id());
    assert!(responder.is_cancelled());
}

// ---- what the peer says instead of a reply ----

#[test]
fn failed_request_carries_code_and_text() {
    let pair = both(|conn, msg| conn.fail(&msg, 256, "no such room").unwrap());
    for (caller, _) in pair.both_ways() {
        for (how, ended) in caller.call_three_ways("request", NEVER).wait() {
            let expected = (256, "no such room".to_owned(), Fate::Answered);
            assert_eq!(code_of(ended), expected, "{} {how}", caller.name);
        }
    }
}

#[test]
fn request_that_the_handler_ignores_is_unanswered() {
    let pair = both(|_, _| {});
    for (caller, _) in pair.both_ways() {
        let (code, _, fate) = code_of(caller.call("request", NEVER));
        assert_eq!((code, fate), (error_code::UNANSWERED, Fate::Answered));
    }
}

#[test]
fn request_whose_responder_is_dropped_is_unanswered() {
    let pair = both(|conn, msg| drop(conn.defer(&msg).unwrap()));
    for (caller, _) in pair.both_ways() {
        let (code, _, fate) = code_of(caller.call("request", NEVER));
        assert_eq!((code, fate), (error_code::UNANSWERED, Fate::Answered));
    }
}

#[test]
fn panic_fails_the_request_and_closes_only_its_connection() {
    let server = Script::new().on_message(|conn, msg| {
        assert!(msg.body() != b"panic", "as asked");
        conn.reply(&msg, &msg).unwrap();
    });
    let pair = Pair::new(Native, server, Script::new());
    let other = Running::client(Native, not_redialled(), Script::new());
    let handle = other.handle.clone();
    let conn =
        handle.connect_and_wait_with(pair.server.addr, &Native.into(), &not_redialled()).unwrap();

    let (code, _, fate) = code_of(pair.dialling_side().call("panic", NEVER));
    assert_eq!((code, fate), (error_code::PANICKED, Fate::Answered));
    let end = pair.server.events.end_of(pair.accepted);
    assert!(matches!(&end, CloseReason::Panicked(text) if text == "as asked"), "{end:?}");
    assert_eq!(handle.call(conn, "hello", NEVER).unwrap(), "hello");
}

#[test]
fn panic_in_the_callback_of_a_call_closes_only_its_connection() {
    let pair = Pair::new(Native, upper(), Script::new());
    let other = Side {
        conn: pair
            .client
            .handle
            .connect_and_wait_with(pair.server.addr, &Native.into(), &not_redialled())
            .unwrap(),
        ..pair.dialling_side()
    };
    let dialled = pair.dialled;
    pair.client.ask(move |cx| {
        let mut conn = cx.conn(dialled).unwrap();
        conn.call("hello", NEVER, |_: &mut Script, _, _| panic!("on the reply")).unwrap();
    });
    let end = pair.client.events.end_of(dialled);
    assert!(matches!(&end, CloseReason::Panicked(text) if text == "on the reply"), "{end:?}");
    assert_eq!(other.call("hello", NEVER).unwrap().1, b"HELLO");
}

#[test]
fn one_request_more_than_permitted_is_busy() {
    let (keep, kept) = channel();
    let server = Script::new().on_message(move |conn, msg| {
        if msg.body() == b"keep" {
            keep.send(conn.defer(&msg).unwrap()).unwrap();
        } else {
            conn.reply(&msg, &msg).unwrap();
        }
    });
    // The caller knows nothing of the limit: it is a peer that the test speaks for.
    let server = Running::server(Native, Config::new().max_requests(2), server);
    let mut peer = common::Peer::new(server.addr, Native);
    for id in 1..=3 {
        peer.write(&common::request(id, b"keep"));
    }
    let (head, _) = next_answer(&mut peer);
    assert_eq!((head.id, head.tag), (AnyId::Native(3), error_code::BUSY));
    let responder: Responder<AnyProtocol> = kept.recv_timeout(PATIENCE).unwrap();
    responder.reply("done").unwrap();
    assert_eq!(next_answer(&mut peer).0.id, AnyId::Native(1));
    // Its slot is free again.
    peer.write(&common::request(4, b"now"));
    let (head, body) = next_answer(&mut peer);
    assert_eq!((head.id, body), (AnyId::Native(4), b"now".to_vec()));
    assert_eq!(
        CallError::Remote { code: error_code::BUSY, text: String::new() }.fate(),
        Fate::NotSent
    );
}

fn next_answer(peer: &mut common::Peer) -> (longhaul::protocol::Head<AnyId>, Vec<u8>) {
    use longhaul::protocol::Kind;
    loop {
        let (head, body) = peer.next_frame().expect("an answer before the end");
        if matches!(head.kind, Kind::Reply | Kind::Error) {
            return (head, body);
        }
    }
}

#[test]
fn request_is_answered_once() {
    let (tell, told) = channel();
    let server = Script::new().on_message(move |conn, msg| {
        conn.reply(&msg, "first").unwrap();
        let second = conn.reply(&msg, "second");
        let failed = conn.fail(&msg, 256, "third");
        let deferred = conn.defer(&msg).map(drop);
        tell.send([second, failed, deferred]).unwrap();
    });
    let pair = Pair::new(Native, server, Script::new());
    assert_eq!(pair.dialling_side().call("request", NEVER).unwrap().1, b"first");
    for outcome in told.recv_timeout(PATIENCE).unwrap() {
        assert_eq!(outcome, Err(SendError::NotAwaited));
    }
}

#[test]
fn push_has_no_answer_on_native() {
    let (tell, told) = channel();
    let server = Script::new().on_message(move |conn, msg| {
        let replied = conn.reply(&msg, "reply");
        let failed = conn.fail(&msg, 256, "failed");
        let deferred = conn.defer(&msg).map(drop);
        tell.send([replied, failed, deferred]).unwrap();
    });
    let pair = Pair::new(Native, server, Script::new());
    pair.client.handle.send(pair.dialled, "push").unwrap();
    for outcome in told.recv_timeout(PATIENCE).unwrap() {
        assert_eq!(outcome, Err(SendError::NotAwaited));
    }
}

#[test]
fn protocols_without_errors_can_not_fail_a_request() {
    for protocol in ["tcpstream", "qtk3", "qtk2"] {
        let server = Script::new().on_message(|conn, msg| {
            let failed = conn.fail(&msg, 256, "failed");
            assert_eq!(failed, Err(SendError::NotAwaited));
            conn.reply(&msg, "still answered").unwrap();
        });
        let pair = Pair::new(protocol.parse::<AnyProtocol>().unwrap(), server, Script::new());
        let (_, body) = pair.dialling_side().call("request", NEVER).unwrap();
        assert_eq!(body, b"still answered", "{protocol}");
    }
}

// ---- calls that are refused ----

/// The same refusal for a blocking call, a future and a callback.
fn refused_three_ways(side: &Side, body: &'static [u8], expected: &CallError) {
    assert_eq!(&side.call(body, NEVER).unwrap_err(), expected);
    assert_eq!(&block_on(side.call_async(body, NEVER)).unwrap_err(), expected);
    assert_eq!(&side.call_back(body, NEVER).map(|_| ()).unwrap_err(), expected);
    assert_eq!(expected.fate(), Fate::NotSent);
}

#[test]
fn one_call_more_than_we_permit_is_refused() {
    let (keep, kept) = channel();
    let ours = Config::new().max_calls(2);
    let pair = Pair::with(
        Native,
        ours,
        keeping(keep.clone()),
        not_redialled().max_calls(2),
        keeping(keep),
    );
    for (caller, _) in pair.both_ways() {
        let in_flight = [caller.call_async("1", NEVER), caller.call_async("2", NEVER)];
        let responders: [Responder<AnyProtocol>; 2] =
            [(); 2].map(|()| kept.recv_timeout(PATIENCE).unwrap());
        refused_three_ways(&caller, b"3", &CallError::TooManyInFlight { limit: 2 });
        for responder in responders {
            responder.reply("").unwrap();
        }
        for call in in_flight {
            block_on(call).unwrap();
        }
        let next = caller.call_async("4", NEVER);
        kept.recv_timeout(PATIENCE).unwrap().reply("").unwrap();
        block_on(next).unwrap();
    }
}

#[test]
fn one_call_more_than_the_peer_permits_is_refused() {
    let (keep, kept) = channel();
    let theirs = Config::new().max_requests(1);
    let pair = Pair::with(Native, theirs, keeping(keep), not_redialled(), Script::new());
    let side = pair.dialling_side();
    let first = side.call_async("1", NEVER);
    // Its reply comes behind the hello, so the limit is known from then on.
    kept.recv_timeout(PATIENCE).unwrap().reply("").unwrap();
    block_on(first).unwrap();
    let _in_flight = side.call_async("2", NEVER);
    let _kept: Responder<AnyProtocol> = kept.recv_timeout(PATIENCE).unwrap();
    refused_three_ways(&side, b"3", &CallError::TooManyInFlight { limit: 1 });
}

#[test]
fn body_above_our_own_limit_is_refused() {
    for protocol in WITH_CALLS {
        let ours = not_redialled().max_body(10);
        let protocol = protocol.parse::<AnyProtocol>().unwrap();
        let pair = Pair::with(protocol, Config::new(), upper(), ours, Script::new());
        let side = pair.dialling_side();
        let expected = CallError::BodyTooLong { len: 11, max: 10, limit: LimitBy::Us };
        refused_three_ways(&side, b"0123456789x", &expected);
        assert_eq!(side.call("0123456789", NEVER).unwrap().1, b"0123456789");
    }
}

#[test]
fn body_above_the_peers_limit_is_refused() {
    let theirs = Config::new().max_body(10);
    let pair = Pair::with(Native, theirs, upper(), not_redialled(), Script::new());
    let side = pair.dialling_side();
    // The peer's hello comes before its reply.
    side.call("", NEVER).unwrap();
    let expected = CallError::BodyTooLong { len: 11, max: 10, limit: LimitBy::Peer };
    refused_three_ways(&side, b"0123456789x", &expected);
    assert_eq!(side.call("0123456789", NEVER).unwrap().1, b"0123456789");
}

#[test]
fn length_has_no_calls() {
    let pair = Pair::new(Length::default(), Script::new(), Script::new());
    for (caller, _) in pair.both_ways() {
        refused_three_ways(&caller, b"request", &CallError::NoCalls { protocol: "length" });
    }
}

#[test]
fn blocking_call_inside_a_callback_is_refused_at_once() {
    let (tell, told) = channel();
    let server = Script::new().on_message(move |conn, msg| {
        let (handle, id) = (conn.cx().handle(), conn.id());
        let call = handle.call(id, "inside", NEVER);
        let future = handle.call_async(id, "inside", NEVER).wait();
        tell.send([call, future]).unwrap();
        conn.reply(&msg, "done").unwrap();
    });
    let pair = Pair::new(Native, server, upper());
    assert_eq!(pair.dialling_side().call("request", NEVER).unwrap().1, b"done");
    for outcome in told.recv_timeout(PATIENCE).unwrap() {
        assert_eq!(outcome, Err(CallError::OnLoopThread));
    }
    assert_eq!(CallError::OnLoopThread.fate(), Fate::NotSent);
}

#[test]
fn blocking_call_inside_a_closure_on_the_loop_is_refused_at_once() {
    let pair = Pair::new(Native, upper(), upper());
    for (caller, _) in pair.both_ways() {
        let side = caller.clone();
        let outcome = caller.handle.ask(move |_| side.call("inside", NEVER)).unwrap();
        assert_eq!(outcome, Err(CallError::OnLoopThread), "{}", caller.name);
    }
}

#[test]
fn blocking_call_to_another_reactor_is_allowed_on_a_loop() {
    let pair = Pair::new(Native, upper(), upper());
    let other = Running::client(Native, Config::new(), Script::new());
    let side = pair.dialling_side();
    let outcome = other.handle.ask(move |_| side.call("from another loop", NEVER)).unwrap();
    assert_eq!(outcome.unwrap().1, b"FROM ANOTHER LOOP");
}

#[test]
fn call_to_a_reactor_that_has_stopped_is_refused() {
    let mut pair = Pair::new(Native, upper(), Script::new());
    let side = pair.dialling_side();
    pair.client.handle.stop();
    pair.client.join();
    for outcome in [
        side.handle.call(side.conn, "late", NEVER),
        block_on(side.call_async("late", NEVER)),
        side.call_async("late", NEVER).wait(),
    ] {
        let error = outcome.unwrap_err();
        assert_eq!(error.fate(), Fate::NotSent);
        assert_eq!(error, CallError::Stopped { fate: Fate::NotSent });
    }
}

#[test]
fn call_on_a_connection_that_is_down_is_not_sent() {
    let later = Config::new().reconnect(Reconnect::fixed(NEVER));
    let mut pair = Pair::with(Native, Config::new(), upper(), later, Script::new());
    let side = pair.dialling_side();
    pair.server.handle.stop_within(Duration::ZERO);
    pair.server.join();
    pair.client.events.end_of(pair.dialled);
    assert!(side.handle.is_open(side.conn) && !side.handle.is_up(side.conn));
    let outcomes = [
        side.call("down", NEVER).map(|_| ()),
        block_on(side.call_async("down", NEVER)).map(|_| ()),
        side.call_back("down", NEVER).map(|_| ()),
    ];
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert!(matches!(&error, CallError::Disconnected { fate: Fate::NotSent, .. }), "{error:?}");
    }
}

#[test]
fn call_on_a_connection_that_is_gone_is_not_sent() {
    let pair = Pair::new(Native, upper(), Script::new());
    let side = pair.dialling_side();
    side.handle.abort(side.conn);
    pair.client.events.end_of(side.conn);
    pair.client.until_empty();
    for outcome in [side.call("gone", NEVER).map(|_| ()), {
        block_on(side.call_async("gone", NEVER)).map(|_| ())
    }] {
        let error = outcome.unwrap_err();
        assert!(matches!(&error, CallError::Disconnected { fate: Fate::NotSent, .. }), "{error:?}");
    }
}

#[test]
fn call_above_the_high_watermark_is_refused() {
    // The server reads nothing, so the client's queue fills.
    let server = Script::new().on_connect(|conn| _ = conn.pause());
    let ours = not_redialled().watermarks(16 * 1024, 64 * 1024);
    let pair = Pair::with(Native, Config::new(), server, ours, Script::new());
    let side = pair.dialling_side();
    let mut context = Context::from_waker(Waker::noop());
    let mut in_flight = Vec::new();
    let error = loop {
        let mut call = Box::pin(side.call_async(vec![0; 64 * 1024], NEVER));
        match call.as_mut().poll(&mut context) {
            Poll::Pending => in_flight.push(call),
            Poll::Ready(outcome) => break outcome.unwrap_err(),
        }
    };
    assert_eq!((&error, error.fate()), (&CallError::QueueFull, Fate::NotSent));
    assert!(!in_flight.is_empty());
}

#[test]
fn requests_that_are_answered_at_once_are_not_tracked() {
    let pair = Pair::new(Native, upper(), Script::new());
    let side = pair.dialling_side();
    for _ in 0..100 {
        side.call("request", NEVER).unwrap();
    }
    let accepted = pair.accepted;
    let stats = pair.server.ask(move |cx| cx.conn(accepted).unwrap().stats());
    assert_eq!((stats.requests_in_flight, stats.messages_in), (0, 100));
    let dialled = pair.dialled;
    let stats = pair.client.ask(move |cx| cx.conn(dialled).unwrap().stats());
    assert_eq!((stats.calls_in_flight, stats.messages_in), (0, 100));
    assert!(pair.client.events.so_far().iter().all(|event| !matches!(event, Event::Message(..))));
}
