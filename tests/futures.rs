//! Calls as futures, under executors that know nothing of the crate.
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
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::channel,
    },
    task::{Context, Poll, Wake, Waker},
};

use common::{
    PATIENCE, Peer, Running, Script, frame, hello,
    pair::{NEVER, Pair, Side, WITH_CALLS, block_on, keeping, not_redialled},
};
use longhaul::{
    CallError, Fate, PendingCall,
    protocol::{AnyId, AnyProtocol, Head, Kind, Native},
};

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicU64);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl Count {
    fn wakes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

fn poll(
    call: &mut PendingCall<AnyProtocol>,
    waker: &Waker,
) -> Poll<Result<longhaul::Bytes, CallError>> {
    Pin::new(call).poll(&mut Context::from_waker(waker))
}

#[test]
fn futures_complete_under_a_hand_written_executor() {
    for protocol in WITH_CALLS {
        let protocol: AnyProtocol = protocol.parse().unwrap();
        let pair = Pair::new(protocol, Script::echo(), Script::echo());
        for (caller, _) in pair.both_ways() {
            let calls: Vec<_> =
                (0..100).map(|call| caller.call_async(format!("call {call}"), NEVER)).collect();
            // Driven in another order than that in which they were made.
            for (number, call) in calls.into_iter().enumerate().rev() {
                assert_eq!(block_on(call).unwrap(), format!("call {number}"));
            }
        }
    }
}

#[test]
fn future_that_is_not_polled_is_under_way() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let call = pair.dialling_side().call_async("request", NEVER);
    kept.recv_timeout(PATIENCE).unwrap().reply("reply").unwrap();
    assert_eq!(block_on(call).unwrap(), "reply");
}

#[test]
fn future_may_be_waited_for_by_a_thread() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let call = pair.dialling_side().call_async("request", NEVER);
    // It was polled before.
    let mut call = call;
    assert!(poll(&mut call, Waker::noop()).is_pending());
    kept.recv_timeout(PATIENCE).unwrap().reply("reply").unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || tell.send(call.wait()).unwrap());
    assert_eq!(told.recv_timeout(PATIENCE).unwrap().unwrap(), "reply");
}

#[test]
fn the_waker_of_the_last_poll_is_woken_once() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let mut call = pair.dialling_side().call_async("request", NEVER);
    let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
    assert!(poll(&mut call, &first.clone().into()).is_pending());
    assert!(poll(&mut call, &second.clone().into()).is_pending());
    kept.recv_timeout(PATIENCE).unwrap().reply("reply").unwrap();
    pair.client.until({
        let second = second.clone();
        move |_| second.wakes() > 0
    });
    assert_eq!((first.wakes(), second.wakes()), (0, 1));
    let Poll::Ready(reply) = poll(&mut call, Waker::noop()) else { panic!("woken too early") };
    assert_eq!(reply.unwrap(), "reply");
}

#[test]
fn future_of_a_refused_call_is_ready_at_once() {
    let mut pair = Pair::new(Native, Script::new(), Script::new());
    pair.client.handle.stop();
    pair.client.join();
    let mut call = pair.dialling_side().call_async("late", NEVER);
    assert_eq!(call.id(), None);
    let outcome = poll(&mut call, Waker::noop());
    assert_eq!(outcome, Poll::Ready(Err(CallError::Stopped { fate: Fate::NotSent })));
}

// ---- drop ----

#[test]
fn future_dropped_before_its_reply_cancels_the_request() {
    let ((server, server_kept), (client, client_kept)) = (keeping(), keeping());
    let pair = Pair::new(Native, server, client);
    for ((caller, callee), kept) in pair.both_ways().into_iter().zip([server_kept, client_kept]) {
        let call = caller.call_async("request", NEVER);
        let responder = kept.recv_timeout(PATIENCE).unwrap();
        drop(call);
        assert_eq!(callee.events.cancelled(), responder.id(), "{}", caller.name);
        assert!(responder.is_cancelled());
        assert_eq!(caller.handle.ask(|cx| cx.stats().calls_in_flight).unwrap(), 0);
    }
}

#[test]
fn future_dropped_between_two_polls_cancels_the_request() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let mut call = pair.dialling_side().call_async("request", NEVER);
    let count = Arc::new(Count::default());
    assert!(poll(&mut call, &count.clone().into()).is_pending());
    let responder = kept.recv_timeout(PATIENCE).unwrap();
    drop(call);
    assert_eq!(pair.server.events.cancelled(), responder.id());
    assert_eq!(pair.client.ask(|cx| cx.stats().calls_in_flight), 0);
    assert_eq!(count.wakes(), 0, "nobody is there to be woken");
    // Its waker went with it.
    assert_eq!(Arc::strong_count(&count), 1);
}

#[test]
fn future_dropped_where_the_format_has_no_cancel_is_only_forgotten() {
    for protocol in ["tcpstream", "qtk3", "qtk2"] {
        let (server, kept) = keeping();
        let pair = Pair::new(protocol.parse::<AnyProtocol>().unwrap(), server, Script::new());
        let call = pair.dialling_side().call_async("request", NEVER);
        let responder = kept.recv_timeout(PATIENCE).unwrap();
        drop(call);
        assert_eq!(pair.client.ask(|cx| cx.stats().calls_in_flight), 0);
        // Its answer is a message then.
        responder.reply("late").unwrap();
        assert_eq!(pair.client.events.message(), b"late", "{protocol}");
    }
}

/// A caller, and its peer for which the test speaks.
fn caller_of_native() -> (Running, Side, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Running::client(Native, not_redialled(), Script::new());
    let addr = listener.local_addr().unwrap();
    let conn = client.handle.connect_with(addr, &Native.into(), &not_redialled()).unwrap();
    let mut peer = Peer::of(listener.accept().unwrap().0, Native);
    peer.write(&hello(&Native.into()));
    client.events.connected();
    let side = Side { name: "dialled", handle: client.handle.clone(), conn };
    (client, side, peer)
}

/// The next frame that is no control frame of the connection's own.
fn next_of_calls(peer: &mut Peer) -> (Kind, AnyId) {
    loop {
        let (head, _) = peer.next_frame().expect("a frame before the end");
        if !matches!(head.kind, Kind::Hello | Kind::Ping | Kind::Pong) {
            return (head.kind, head.id);
        }
    }
}

#[test]
fn future_dropped_after_its_reply_sends_no_cancel() {
    let (client, side, mut peer) = caller_of_native();
    for is_polled in [true, false] {
        let mut call = side.call_async("request", NEVER);
        let (kind, id) = next_of_calls(&mut peer);
        assert_eq!(kind, Kind::Request);
        peer.write(&frame(&Native.into(), &Head::new(Kind::Reply, id), b"reply"));
        client.until(|cx| cx.stats().calls_in_flight == 0);
        if is_polled {
            assert!(poll(&mut call, Waker::noop()).is_ready());
        }
        drop(call);
        side.handle.send(side.conn, "behind it").unwrap();
        assert_eq!(next_of_calls(&mut peer).0, Kind::Push, "polled: {is_polled}");
    }
}

#[test]
fn future_dropped_before_the_loop_took_it_is_not_sent() {
    let (client, side, mut peer) = caller_of_native();
    let (release, held) = channel::<()>();
    client.handle.run(move |_| _ = held.recv()).unwrap();
    let call = side.call_async("request", NEVER);
    assert_eq!(call.id(), None);
    drop(call);
    side.handle.send(side.conn, "behind it").unwrap();
    drop(release);
    assert_eq!(next_of_calls(&mut peer).0, Kind::Push);
    assert_eq!(client.ask(|cx| cx.stats().calls_in_flight), 0);
}

#[test]
fn futures_dropped_while_their_replies_arrive_leave_nothing_behind() {
    let pair = Pair::new(Native, Script::echo(), Script::new());
    let side = pair.dialling_side();
    let mut kept = Vec::new();
    for number in 0..5000_u32 {
        let call = side.call_async(number.to_be_bytes(), NEVER);
        // Each thousandth is waited for, so that the rest is at every stage when it is dropped.
        match number {
            _ if number % 1000 == 999 => {
                assert_eq!(block_on(call).unwrap(), &number.to_be_bytes()[..]);
            }
            _ if number % 3 == 0 && kept.len() < 100 => kept.push(call),
            _ if number % 7 == 0 => kept.clear(),
            _ => drop(call),
        }
    }
    drop(kept);
    side.call("last", NEVER).unwrap();
    assert_eq!(pair.client.ask(|cx| cx.stats().calls_in_flight), 0);
    let accepted = pair.accepted;
    let stats = pair.server.ask(move |cx| cx.conn(accepted).unwrap().stats());
    assert_eq!(stats.requests_in_flight, 0);
}
