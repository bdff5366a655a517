//! Calls in flight when their connection ends: they end with it, for the reason for which it ended.
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
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use common::{
    Event, PATIENCE, Peer, Running, Script, hello,
    pair::{NEVER, Side, Three, WITH_CALLS, not_redialled},
};
use longhaul::{
    CallError, CloseReason, Fate, Reactor, ReactorBuilder,
    protocol::{AnyProtocol, Kind, Native},
};

/// A reactor with calls in flight to a peer that answers none of them.
struct Asking {
    reactor: Running,
    side: Side,
    peer: Peer,
    calls: Three,
}

impl Asking {
    fn new(protocol: AnyProtocol, dials: bool) -> Self {
        let script = Script::new().on_message(|_, msg| assert!(msg.body() != b"panic", "as asked"));
        let (reactor, stream) = if dials {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let reactor = Running::client(protocol, not_redialled(), script);
            let addr = listener.local_addr().unwrap();
            reactor.handle.connect_with(addr, &protocol, &not_redialled()).unwrap();
            (reactor, listener.accept().unwrap().0)
        } else {
            let reactor = Running::server(protocol, not_redialled(), script);
            let stream = TcpStream::connect(reactor.addr).unwrap();
            (reactor, stream)
        };
        let mut peer = Peer::of(stream, protocol);
        peer.write(&hello(&protocol));
        let conn = reactor.events.connected();
        let name = if dials { "dialled" } else { "accepted" };
        let side = Side { name, handle: reactor.handle.clone(), conn };
        let calls = side.call_three_ways("request", NEVER);
        for _ in 0..3 {
            assert_eq!(peer.receive().unwrap(), b"request");
        }
        Self { reactor, side, peer, calls }
    }

    /// Each call ends with this error; nothing is left of any.
    fn expect(self, expected: &CallError) {
        for (how, ended) in self.calls.wait() {
            assert_eq!(ended.as_ref(), Err(expected), "{} {how}", self.side.name);
        }
        assert_eq!(self.reactor.ask(|cx| cx.stats().calls_in_flight), 0);
    }
}

/// Ends a connection by `end`, in every protocol and on both sides, and expects `reason`.
fn ends_at_once(end: impl Fn(&mut Asking), reason: &CloseReason) {
    for protocol in WITH_CALLS {
        for dials in [true, false] {
            let mut asking = Asking::new(protocol.parse().unwrap(), dials);
            end(&mut asking);
            asking
                .expect(&CallError::Disconnected { reason: reason.clone(), fate: Fate::MaybeSent });
        }
    }
}

#[test]
fn call_ends_when_the_peer_closes() {
    ends_at_once(|asking| asking.peer.half_close(), &CloseReason::PeerClosed);
}

#[test]
fn call_ends_when_the_peer_closes_in_the_middle_of_a_frame() {
    for dials in [true, false] {
        let mut asking = Asking::new(Native.into(), dials);
        let frame = common::message(&Native.into(), b"half");
        asking.peer.write(&frame[..10]);
        asking.peer.half_close();
        let reason = CloseReason::PeerClosedMidFrame { received: 10 };
        asking.expect(&CallError::Disconnected { reason, fate: Fate::MaybeSent });
    }
}

#[test]
fn call_ends_when_the_peer_resets() {
    for protocol in WITH_CALLS {
        for dials in [true, false] {
            let Asking { reactor, side, peer, calls } =
                Asking::new(protocol.parse().unwrap(), dials);
            socket2::SockRef::from(&peer.stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            for (how, ended) in calls.wait() {
                let error = ended.unwrap_err();
                let CallError::Disconnected { reason: CloseReason::Network(reason), fate } = &error
                else {
                    panic!("{} {how}: {error}", side.name)
                };
                assert_eq!(reason.kind(), std::io::ErrorKind::ConnectionReset);
                assert_eq!(*fate, Fate::MaybeSent);
            }
            assert_eq!(reactor.ask(|cx| cx.stats().calls_in_flight), 0);
        }
    }
}

#[test]
fn call_ends_when_we_close() {
    ends_at_once(|asking| asking.side.handle.close(asking.side.conn), &CloseReason::Closed);
}

#[test]
fn call_ends_when_we_abort() {
    ends_at_once(|asking| asking.side.handle.abort(asking.side.conn), &CloseReason::Aborted);
}

#[test]
fn call_ends_when_a_callback_panics() {
    let panicked = CloseReason::Panicked("as asked".to_owned());
    ends_at_once(|asking| asking.peer.send("panic"), &panicked);
}

#[test]
fn call_ends_when_what_arrives_is_no_frame() {
    for protocol in WITH_CALLS {
        for dials in [true, false] {
            let Asking { reactor, side, mut peer, calls } =
                Asking::new(protocol.parse().unwrap(), dials);
            peer.write(&[0xFF; 64]);
            for (how, ended) in calls.wait() {
                let error = ended.unwrap_err();
                let is_expected = matches!(
                    &error,
                    CallError::Disconnected {
                        reason: CloseReason::Protocol(_),
                        fate: Fate::MaybeSent
                    }
                );
                assert!(is_expected, "{protocol} {} {how}: {error}", side.name);
            }
            assert_eq!(reactor.ask(|cx| cx.stats().calls_in_flight), 0);
        }
    }
}

#[test]
fn call_ends_when_the_reactor_is_stopped() {
    for protocol in WITH_CALLS {
        for dials in [true, false] {
            let mut asking = Asking::new(protocol.parse().unwrap(), dials);
            asking.side.handle.stop_within(Duration::ZERO);
            for (how, ended) in asking.calls.wait() {
                let stopped = CallError::Stopped { fate: Fate::MaybeSent };
                assert_eq!(ended, Err(stopped), "{protocol} {} {how}", asking.side.name);
            }
            asking.reactor.join();
        }
    }
}

#[test]
fn call_in_flight_is_waited_for_when_the_reactor_stops_gracefully() {
    let asking = Asking::new(Native.into(), true);
    let Asking { mut reactor, side, mut peer, calls } = asking;
    side.handle.stop_within(NEVER);
    let mut answered = 0;
    // The peer is told that no new requests are taken, and answers those that it has.
    while let Some((head, _)) = peer.next_frame() {
        if head.kind == Kind::Goaway && answered == 0 {
            for id in 1..=3 {
                let head = longhaul::protocol::Head::new(
                    Kind::Reply,
                    longhaul::protocol::AnyId::Native(id),
                );
                peer.write(&common::frame(&Native.into(), &head, b"done"));
                answered += 1;
            }
            peer.half_close();
        }
    }
    for (how, ended) in calls.wait() {
        assert_eq!(ended.unwrap().1, b"done", "{how}");
    }
    reactor.join();
}

// ---- a reactor that is dropped ----

/// A reactor that the test turns itself, with a peer.
fn turned_by_hand() -> (Reactor<Script>, Side, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (script, events) = Script::new().telling();
    let mut reactor = ReactorBuilder::new(AnyProtocol::default()).build(script).unwrap();
    let conn = reactor.connect(listener.local_addr().unwrap()).unwrap();
    let side = Side { name: "dialled", handle: reactor.handle(), conn };
    let mut peer = None;
    while !events.so_far().iter().any(|event| matches!(event, Event::Connected(..))) {
        reactor.turn(Some(Duration::from_millis(1))).unwrap();
        peer.get_or_insert_with(|| {
            let mut peer = Peer::of(listener.accept().unwrap().0, Native);
            peer.write(&hello(&Native.into()));
            peer
        });
    }
    (reactor, side, peer.unwrap())
}

/// A blocking call and a future that a thread waits for.
fn wait_elsewhere(side: &Side) -> Receiver<Result<Vec<u8>, CallError>> {
    let (tell, ended) = channel();
    for call in [side.call_async("1", NEVER), side.call_async("2", NEVER)] {
        let tell = tell.clone();
        std::thread::spawn(move || {
            let outcome = common::pair::block_on(call);
            let _ = tell.send(outcome.map(|body| body.to_vec()));
        });
    }
    ended
}

#[test]
fn call_in_flight_ends_when_the_reactor_is_dropped() {
    let (mut reactor, side, mut peer) = turned_by_hand();
    let ended = wait_elsewhere(&side);
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert!(peer.receive().is_some() && peer.receive().is_some());
    drop(reactor);
    for _ in 0..2 {
        let error = ended.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert_eq!(error, CallError::Stopped { fate: Fate::MaybeSent });
    }
    peer.expect_end();
}

#[test]
fn call_that_the_loop_did_not_take_ends_when_the_reactor_is_dropped() {
    let (reactor, side, _peer) = turned_by_hand();
    let ended = wait_elsewhere(&side);
    drop(reactor);
    for _ in 0..2 {
        let error = ended.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert_eq!(error, CallError::Stopped { fate: Fate::NotSent });
    }
}

#[test]
fn call_that_waits_behind_a_panic_in_a_closure_is_made() {
    let reactor = Running::server(Native, not_redialled(), Script::new());
    let mut peer = Peer::new(reactor.addr, Native);
    let conn = reactor.events.connected();
    let (release, held) = channel::<()>();
    reactor.handle.run(move |_| _ = held.recv()).unwrap();
    reactor.handle.run(|_| panic!("in a closure")).unwrap();
    let call = reactor.handle.call_async(conn, "request", NEVER);
    drop(release);
    let (head, _) = std::iter::repeat_with(|| peer.next_frame().unwrap())
        .find(|(head, _)| head.kind == Kind::Request)
        .unwrap();
    let head = longhaul::protocol::Head::new(Kind::Reply, head.id);
    peer.write(&common::frame(&Native.into(), &head, b"reply"));
    assert_eq!(common::pair::block_on(call).unwrap(), "reply");
}
