//! Answers that come after the callback of their request, from a timer or from another thread.
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
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use common::{
    PATIENCE, Peer, Running, Script, now,
    pair::{NEVER, Pair, WITH_CALLS, block_on, not_redialled},
};
use longhaul::{
    CallError, Config, Handler, Message, Reconnect, Responder, SendError, Tagged, error_code,
    protocol::{AnyId, AnyProtocol, Kind, Native},
};

/// Keeps every request, and passes it on.
fn keeping() -> (Script, Receiver<Responder<AnyProtocol>>) {
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        let _ = keep.send(conn.defer(&msg).expect("a request"));
    });
    (script, kept)
}

fn next(kept: &Receiver<Responder<AnyProtocol>>) -> Responder<AnyProtocol> {
    kept.recv_timeout(PATIENCE).expect("a request")
}

#[test]
fn answers_from_another_thread_may_come_out_of_order() {
    const CALLS: usize = 500;
    for protocol in WITH_CALLS {
        let ((server, server_kept), (client, client_kept)) = (keeping(), keeping());
        let pair = Pair::new(protocol.parse::<AnyProtocol>().unwrap(), server, client);
        for ((caller, _), kept) in pair.both_ways().into_iter().zip([server_kept, client_kept]) {
            let calls: Vec<_> =
                (0..CALLS).map(|call| caller.call_async(format!("call {call}"), NEVER)).collect();
            let worker = std::thread::spawn(move || {
                let mut waiting: Vec<_> = (0..CALLS).map(|_| next(&kept)).collect();
                // The ids were given in the order of the calls.
                while let Some(responder) = waiting.pop() {
                    let number = waiting.len();
                    responder.reply(format!("reply {number}")).unwrap();
                }
            });
            for (number, call) in calls.into_iter().enumerate() {
                let reply = block_on(call).unwrap();
                assert_eq!(reply, format!("reply {number}"), "{protocol} {}", caller.name);
            }
            worker.join().unwrap();
        }
    }
}

/// Answers each request from a timer.
struct Later(Vec<Responder<AnyProtocol>>);

impl Handler for Later {
    type Protocol = AnyProtocol;

    fn on_message(
        &mut self,
        conn: &mut longhaul::Conn<'_, AnyProtocol>,
        msg: Message<'_, AnyProtocol>,
    ) {
        self.0.push(conn.defer(&msg).unwrap());
        conn.set_timer(Duration::from_millis(1), 0);
    }

    fn on_timer(&mut self, _: &mut longhaul::Context<'_, AnyProtocol>, _: longhaul::Timer) {
        for responder in self.0.drain(..) {
            responder.reply("later").unwrap();
        }
    }
}

#[test]
fn answer_may_come_from_a_timer() {
    let server = longhaul::Server::bind("127.0.0.1:0", Later(Vec::new())).unwrap();
    let client = longhaul::Client::connect(server.addr()).unwrap();
    assert_eq!(client.call("when?", NEVER).unwrap(), "later");
}

/// Waits for room on the loop's own thread, and answers at once when that is refused.
struct Waiting(Vec<Responder<AnyProtocol>>);

impl Handler for Waiting {
    type Protocol = AnyProtocol;

    fn on_message(
        &mut self,
        conn: &mut longhaul::Conn<'_, AnyProtocol>,
        msg: Message<'_, AnyProtocol>,
    ) {
        self.0.push(conn.defer(&msg).unwrap());
        conn.set_timer(Duration::from_millis(1), 0);
    }

    fn on_timer(&mut self, _: &mut longhaul::Context<'_, AnyProtocol>, _: longhaul::Timer) {
        for responder in self.0.drain(..) {
            let refused = responder.reply_wait(Tagged(7, "later"), NEVER).unwrap_err();
            assert_eq!(refused.error(), &SendError::OnLoopThread);
            let (responder, body) = refused.take_back().unwrap();
            responder.reply(body).unwrap();
        }
    }
}

#[test]
fn waiting_for_room_is_refused_on_the_loops_thread() {
    let server = longhaul::Server::bind("127.0.0.1:0", Waiting(Vec::new())).unwrap();
    let client = longhaul::Client::connect(server.addr()).unwrap();
    assert_eq!(client.call_tagged("when?", NEVER).unwrap(), (7, "later".into()));
}

#[test]
fn pool_that_waits_for_room_answers_all_within_the_hard_limit() {
    const CALLS: usize = 400;
    let (server, kept) = keeping();
    let settings = Config::new()
        .watermarks(4 * 1024, 16 * 1024)
        .hard_limit(128 * 1024)
        .socket_buffers(8 * 1024, 0);
    let pair = Pair::with(Native, settings, server, Config::new(), Script::new());
    let side = pair.dialling_side();
    let calls: Vec<_> = (0..CALLS).map(|_| side.call_async("request", NEVER)).collect();
    let kept = std::sync::Mutex::new(kept);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..CALLS / 4 {
                    let responder = next(&kept.lock().unwrap());
                    responder.reply_wait(vec![b'x'; 16 * 1024], PATIENCE).unwrap();
                }
            });
        }
    });
    for call in calls {
        assert_eq!(block_on(call).unwrap().len(), 16 * 1024);
    }
}

#[test]
fn failure_from_another_thread_carries_code_and_text() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let call = pair.dialling_side().call_async("request", NEVER);
    next(&kept).fail(700, "no").unwrap();
    assert_eq!(block_on(call), Err(CallError::Remote { code: 700, text: "no".into() }));
}

#[test]
fn text_of_a_failure_is_cut_at_its_limit() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let call = pair.dialling_side().call_async("request", NEVER);
    // The cut falls into the middle of a character.
    next(&kept).fail(700, &format!("x{}", "ä".repeat(4096))).unwrap();
    let Err(CallError::Remote { text, .. }) = block_on(call) else { panic!("no failure") };
    assert_eq!(text, format!("x{}", "ä".repeat(2047)));
}

#[test]
fn failure_is_not_awaited_where_the_format_has_none() {
    for protocol in ["tcpstream", "qtk3", "qtk2"] {
        let (server, kept) = keeping();
        let pair = Pair::new(protocol.parse::<AnyProtocol>().unwrap(), server, Script::new());
        let _call = pair.dialling_side().call_async("request", NEVER);
        assert_eq!(next(&kept).fail(700, "no"), Err(SendError::NotAwaited), "{protocol}");
    }
}

#[test]
fn responder_knows_its_request() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let call = pair.dialling_side().call_async(Tagged(9, "request"), NEVER);
    let responder = next(&kept);
    assert_eq!((responder.conn(), responder.tag()), (pair.accepted, 9));
    assert_eq!(responder.id(), AnyId::Native(call.id().unwrap().as_u64()));
    assert!(responder.is_open() && !responder.is_cancelled());
}

#[test]
fn reply_of_a_responder_has_its_own_tag_or_that_of_the_request() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let side = pair.dialling_side();
    let (_, ended) = side.call_back(Tagged(9, "request"), NEVER).unwrap();
    next(&kept).reply("plain").unwrap();
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().unwrap().0, 9);
    let (_, ended) = side.call_back(Tagged(9, "request"), NEVER).unwrap();
    next(&kept).reply(Tagged(10, "tagged")).unwrap();
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().unwrap().0, 10);
}

#[test]
fn request_is_deferred_once_and_then_not_answered_otherwise() {
    let (tell, told) = channel();
    let server = Script::new().on_message(move |conn, msg| {
        let responder = conn.defer(&msg).unwrap();
        let again = conn.defer(&msg).map(drop);
        let replied = conn.reply(&msg, "at once");
        tell.send((again, replied, responder)).unwrap();
    });
    let pair = Pair::new(Native, server, Script::new());
    let call = pair.dialling_side().call_async("request", NEVER);
    let (again, replied, responder) = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!((again, replied), (Err(SendError::NotAwaited), Err(SendError::NotAwaited)));
    responder.reply("later").unwrap();
    assert_eq!(block_on(call).unwrap(), "later");
}

#[test]
fn reply_that_is_too_long_fails_the_request() {
    let (server, kept) = keeping();
    let ours = Config::new().max_body(10);
    let pair = Pair::with(Native, ours, server, not_redialled(), Script::new());
    let call = pair.dialling_side().call_async("request", NEVER);
    let refused = next(&kept).reply("0123456789x").unwrap_err();
    assert!(
        matches!(refused.error(), SendError::BodyTooLong { len: 11, max: 10, .. }),
        "{refused:?}"
    );
    let Err(CallError::Remote { code, .. }) = block_on(call) else { panic!("no failure") };
    assert_eq!(code, error_code::FAILED);
}

// ---- how long the caller waits ----

#[test]
fn callee_knows_how_long_the_caller_waits() {
    let (tell, told) = channel();
    let server = Script::new().on_message(move |conn, msg| {
        let remaining = msg.remaining().expect("native carries it");
        tell.send((conn.cx().now(), remaining, conn.defer(&msg).unwrap())).unwrap();
    });
    let pair = Pair::new(Native, server, Script::new());
    let timeout = Duration::from_secs(1000);
    let _call = pair.dialling_side().call_async("request", timeout);
    let (received, remaining, responder) = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(remaining, timeout);
    assert_eq!(responder.deadline(), Some(received + timeout));
}

#[test]
fn callee_does_not_know_how_long_the_caller_waits_where_the_format_does_not_say() {
    for protocol in ["tcpstream", "qtk3", "qtk2"] {
        let (tell, told) = channel();
        let server = Script::new().on_message(move |conn, msg| {
            tell.send((msg.remaining(), conn.defer(&msg).unwrap())).unwrap();
        });
        let pair = Pair::new(protocol.parse::<AnyProtocol>().unwrap(), server, Script::new());
        let _call = pair.dialling_side().call_async("request", NEVER);
        let (remaining, responder) = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!((remaining, responder.deadline()), (None, None), "{protocol}");
    }
}

#[test]
fn timeout_beyond_the_format_is_carried_as_its_most() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let _call = pair.dialling_side().call_async("request", Duration::MAX);
    let most = Duration::from_millis(u64::from(u32::MAX));
    let deadline = next(&kept).deadline().unwrap();
    assert!(deadline <= now() + most && deadline > now() + most / 2);
}

// ---- after the epoch has ended ----

#[test]
fn answer_after_the_connection_has_ended_goes_nowhere_and_says_so() {
    for protocol in WITH_CALLS {
        let (server, kept) = keeping();
        let protocol: AnyProtocol = protocol.parse().unwrap();
        let pair = Pair::with(protocol, impatient(), server, not_redialled(), Script::new());
        let side = pair.dialling_side();
        let _calls = [side.call_async("1", NEVER), side.call_async("2", NEVER)];
        let [answered, dropped] = [next(&kept), next(&kept)];
        side.handle.abort(side.conn);
        pair.server.events.end_of(pair.accepted);
        pair.server.until_empty();
        assert!(answered.is_cancelled() && !answered.is_open(), "{protocol}");
        assert_eq!(
            answered.reply("late").map_err(SendError::from),
            Err(SendError::Closed),
            "{protocol}"
        );
        drop(dropped);
        assert_eq!(pair.server.ask(|cx| cx.stats().panics), 0);
    }
}

/// Settings of a callee that does not wait long for the answers that it still owes to a peer that
/// sends no more.
fn impatient() -> Config {
    Config::new().close_timeout(Duration::from_millis(1))
}

/// The callee is the side that dials: its connection lives on, in another epoch.
fn answer_after_a_reconnect(protocol: &str) {
    let protocol: AnyProtocol = protocol.parse().unwrap();
    let (client, kept) = keeping();
    let soon = impatient().reconnect(Reconnect::fixed(Duration::ZERO));
    let pair = Pair::with(protocol, Config::new(), Script::new(), soon, client);
    let _calls = [(); 4].map(|()| pair.accepting_side().call_async("of the first epoch", NEVER));
    let [checked, replied, failed, dropped] = [(); 4].map(|()| next(&kept));
    pair.client.events.connected();
    pair.server.handle.abort(pair.accepted);
    assert_eq!(pair.client.events.connected(), pair.dialled);
    let again = pair.server.events.connected();

    assert!(checked.is_cancelled() && !checked.is_open(), "{protocol}");
    drop(checked);
    assert_eq!(
        replied.reply("late").map_err(SendError::from),
        Err(SendError::Closed),
        "{protocol}"
    );
    assert!(failed.fail(256, "late").is_err(), "{protocol}");
    drop(dropped);
    // The first that the new epoch carries is not one of them.
    pair.client.handle.send(pair.dialled, "of the second epoch").unwrap();
    assert_eq!(pair.server.events.message(), b"of the second epoch", "{protocol}");
    let stats = pair.server.ask(move |cx| cx.conn(again).unwrap().stats());
    assert_eq!((stats.messages_in, stats.late_replies), (1, 0), "{protocol}");
}

#[test]
fn answer_after_a_reconnect_goes_nowhere_and_says_so_on_native() {
    answer_after_a_reconnect("native");
}

#[test]
fn answer_after_a_reconnect_goes_nowhere_and_says_so_on_tcpstream() {
    answer_after_a_reconnect("tcpstream");
}

#[test]
fn answer_after_a_reconnect_goes_nowhere_and_says_so_on_qtk() {
    answer_after_a_reconnect("qtk3");
    answer_after_a_reconnect("qtk2");
}

#[test]
fn answer_after_the_reactor_has_stopped_says_so() {
    let (server, kept) = keeping();
    let mut pair = Pair::new(Native, server, Script::new());
    let _calls = [(); 3].map(|()| pair.dialling_side().call_async("request", NEVER));
    let [replied, failed, dropped] = [(); 3].map(|()| next(&kept));
    pair.server.handle.stop_within(Duration::ZERO);
    pair.server.join();
    assert!(matches!(
        replied.reply("late").map_err(SendError::from),
        Err(SendError::Closed | SendError::Stopped)
    ));
    assert!(matches!(failed.fail(1, "late"), Err(SendError::Closed | SendError::Stopped)));
    drop(dropped);
}

#[test]
fn same_request_twice_in_flight_is_a_protocol_error() {
    let (script, kept) = keeping();
    let server = Running::server(Native, Config::new(), script);
    let mut peer = Peer::new(server.addr, Native);
    peer.write(&common::request(5, b"first"));
    let _kept = next(&kept);
    peer.write(&common::request(5, b"again"));
    while let Some((head, _)) = peer.next_frame() {
        assert!(!matches!(head.kind, Kind::Reply | Kind::Error));
    }
    let (_, report) = server.events.disconnected();
    assert!(report.reason.to_string().contains("protocol error"), "{report}");
}
