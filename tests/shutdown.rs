//! Ends that we choose: what was accepted is flushed, what is not is counted, and no end waits for
//! ever.
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
    sync::mpsc::channel,
    time::Duration,
};

use common::{Event, PATIENCE, Peer, Running, Script, message};
use longhaul::{
    CallError, CloseReason, Config, Error, Incident, ReactorBuilder, SendError,
    protocol::{AnyProtocol, Native, Tcpstream},
};

const KIB: usize = 1024;

/// More than the system buffers for a peer that does not read.
const MUCH: usize = 16 * 1024 * KIB;

/// Room for all that a test sends at once, and time to send it.
fn roomy() -> Config {
    Config::new().hard_limit(64 * 1024 * KIB).close_timeout(PATIENCE)
}

/// Sends 4 MiB as 64 messages, in one turn.
fn send_4_mib(
    server: &Running,
    id: longhaul::ConnId,
    then: fn(&mut longhaul::Conn<'_, AnyProtocol>),
) {
    server.ask(move |cx| {
        let mut conn = cx.conn(id).unwrap();
        for number in 0..64_u8 {
            conn.send(vec![number; 64 * KIB]).unwrap();
        }
        then(&mut conn);
    });
}

fn expect_4_mib(peer: &mut Peer) {
    for number in 0..64_u8 {
        peer.expect([number; 64 * KIB]);
    }
}

#[test]
fn close_delivers_all_that_was_sent_before_it() {
    let server = Running::server(Tcpstream, roomy(), Script::new());
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    send_4_mib(&server, id, |conn| conn.close());
    expect_4_mib(&mut peer);
    peer.expect_end();
    let (_, report) = server.events.disconnected();
    assert_eq!((report.reason, report.unsent_messages), (CloseReason::Closed, 0));
}

#[test]
fn handle_close_comes_after_the_sends_of_the_same_thread() {
    let server = Running::server(Tcpstream, roomy(), Script::new());
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    for number in 0..50_u8 {
        server.handle.send(id, [number]).unwrap();
    }
    server.handle.close(id);
    for number in 0..50_u8 {
        peer.expect([number]);
    }
    peer.expect_end();
}

#[test]
fn close_with_unread_input_does_not_lose_the_last_reply() {
    let script = Script::new().on_message(|conn, msg| {
        conn.reply(&msg, vec![b'y'; 1024 * KIB]).unwrap();
        conn.close();
    });
    let server = Running::server(Tcpstream, roomy(), script);
    let mut peer = Peer::new(server.addr, Tcpstream);
    // What is behind the first is never handled, and must not reset the connection.
    peer.write(&message(&Tcpstream.into(), &[b'x'; 1000]).repeat(500));
    peer.expect(vec![b'y'; 1024 * KIB]);
    peer.write(&message(&Tcpstream.into(), b"even more"));
    peer.expect_end();
    assert_eq!(
        server.events.wait(|event| match event {
            Event::Disconnected(_, report) => Some(report.reason),
            _ => None,
        }),
        CloseReason::Closed
    );
}

#[test]
fn close_gives_up_a_peer_that_does_not_read_after_the_close_timeout() {
    let settings =
        Config::new().hard_limit(64 * 1024 * KIB).close_timeout(Duration::from_millis(100));
    let server = Running::server(
        Tcpstream,
        settings,
        Script::new().on_connect(|conn| {
            conn.send(vec![0; 8 * 1024 * KIB]).unwrap();
            conn.send(vec![0; 8 * 1024 * KIB]).unwrap();
            conn.close();
        }),
    );
    let _peer = Peer::new(server.addr, Tcpstream);
    let (_, report) = server.events.disconnected();
    assert_eq!(report.reason, CloseReason::Closed);
    assert!(report.unsent_messages > 0 && report.unsent_bytes > 0, "{report}");
    server.until_empty();
}

#[test]
fn peer_that_never_closes_is_let_go_after_the_linger_time() {
    let settings = Config::new().linger(Duration::from_millis(50));
    let server = Running::server(Tcpstream, settings, Script::new());
    let _peer = Peer::new(server.addr, Tcpstream);
    server.handle.close(server.events.connected());
    assert_eq!(server.events.disconnected().1.reason, CloseReason::Closed);
    server.until_empty();
}

#[test]
fn peer_that_never_stops_sending_is_let_go_after_the_linger_time() {
    let settings = Config::new().linger(Duration::from_millis(50));
    let server = Running::server(Tcpstream, settings, Script::new());
    let peer = Peer::new(server.addr, Tcpstream);
    let mut writer = peer.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        while std::io::Write::write_all(&mut writer, &message(&Tcpstream.into(), b"on")).is_ok() {}
    });
    server.handle.close(server.events.connected());
    server.until_empty();
    writing.join().unwrap();
}

#[test]
fn abort_drops_what_is_queued_and_counts_it() {
    let server = Running::server(
        Tcpstream,
        roomy(),
        Script::new().on_connect(|conn| {
            for _ in 0..MUCH / (256 * KIB) {
                conn.send(vec![0; 256 * KIB]).unwrap();
            }
        }),
    );
    let _peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    server.handle.abort(id);
    let (_, report) = server.events.disconnected();
    assert_eq!(report.reason, CloseReason::Aborted);
    assert!(report.unsent_messages > 0, "{report}");
    let stats = server.ask(|cx| cx.stats());
    assert_eq!(stats.messages_out + report.unsent_messages, (MUCH / (256 * KIB)) as u64);
    assert_eq!(stats.undelivered, report.unsent_messages);
}

#[test]
fn nothing_is_accepted_or_received_after_close() {
    let server = Running::server(Tcpstream, Config::new(), Script::echo());
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    let sent = server.ask(move |cx| {
        let mut conn = cx.conn(id).unwrap();
        conn.close();
        conn.send("x")
    });
    assert_eq!(sent, Err(SendError::Closed));
    assert_eq!(server.handle.send(id, "x"), Err(SendError::Closed));
    peer.send("is anybody there?");
    peer.expect_end();
    drop(peer);
    server.until_empty();
    let told = server.events.so_far();
    assert!(!told.iter().any(|event| matches!(event, Event::Message(..))), "{told:?}");
}

#[test]
fn closing_twice_or_what_is_gone_is_fine() {
    let server = Running::server(Tcpstream, Config::new(), Script::new());
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    server.handle.close(id);
    server.handle.close(id);
    server.handle.drain(id);
    peer.expect_end();
    drop(peer);
    server.until_empty();
    server.handle.close(id);
    server.handle.abort(id);
    server.ask(|_| ());
    let told = server.events.so_far();
    let ends = told.iter().filter(|event| matches!(event, Event::Disconnected(..))).count();
    assert_eq!(ends, 1);
}

// ---- stopping ----

#[test]
fn stop_flushes_what_was_accepted_to_a_slow_reader() {
    let builder = ReactorBuilder::new(Tcpstream.into()).config(roomy()).stop_timeout(PATIENCE);
    let mut server =
        Running::start(builder, Script::new(), |reactor| reactor.listen("127.0.0.1:0").unwrap().1);
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    send_4_mib(&server, id, |_| ());
    server.handle.stop();
    expect_4_mib(&mut peer);
    peer.expect_end();
    drop(peer);
    server.join();
    let (_, report) = server.events.disconnected();
    assert_eq!((report.reason, report.unsent_messages), (CloseReason::Stopped, 0));
    assert!(matches!(server.events.next(), Event::Stopped));
    assert!(server.events.so_far().is_empty(), "the last callback");
}

/// The handler keeps every request; the reactor stops; one is answered after that, and one dropped.
fn stop_waits_for_responders(protocol: AnyProtocol, request: impl Fn(u64, &[u8]) -> Vec<u8>) {
    let builder = ReactorBuilder::new(protocol).config(roomy()).stop_timeout(PATIENCE);
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        keep.send(conn.defer(&msg).unwrap()).unwrap();
    });
    let mut server =
        Running::start(builder, script, |reactor| reactor.listen("127.0.0.1:0").unwrap().1);
    let mut peer = Peer::new(server.addr, protocol);
    let id = server.events.connected();
    peer.write(&[request(1, b"slow one"), request(2, b"another")].concat());
    let [answered, dropped] = [(); 2].map(|()| kept.recv_timeout(PATIENCE).unwrap());
    server.handle.stop();
    let in_flight = server.ask(move |cx| cx.conn(id).unwrap().stats().requests_in_flight);
    assert_eq!(in_flight, 2, "it drains");
    answered.reply("done").unwrap();
    peer.expect("done");
    assert!(server.ask(move |cx| cx.conn(id).is_some()), "it waits for the other");
    drop(dropped);
    while peer.receive().is_some() {} // an error, where the format has them
    drop(peer);
    server.join();
}

#[test]
fn stop_waits_for_responders_on_native() {
    stop_waits_for_responders(Native.into(), common::request);
}

/// Nothing on the wire says that an answer is awaited; that the handler deferred it does.
#[test]
fn stop_waits_for_responders_where_requests_are_not_marked() {
    for protocol in ["tcpstream", "qtk3", "qtk2"] {
        let protocol: AnyProtocol = protocol.parse().unwrap();
        stop_waits_for_responders(protocol, |_, body| message(&protocol, body));
    }
}

#[test]
fn peer_that_sends_no_more_is_still_answered_where_requests_are_not_marked() {
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        keep.send(conn.defer(&msg).unwrap()).unwrap();
    });
    let server = Running::server(Tcpstream, roomy(), script);
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    peer.send("slow one");
    let responder = kept.recv_timeout(PATIENCE).unwrap();
    peer.half_close();
    // Its end has arrived when a call to it ends.
    let error = server.handle.call(id, "anybody?", PATIENCE).unwrap_err();
    assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
    responder.reply("done").unwrap();
    while peer.receive().expect("an answer") != b"done" {}
    peer.expect_end();
}

#[test]
fn stop_timeout_cuts_what_is_left() {
    let server_config =
        Config::new().hard_limit(64 * 1024 * KIB).close_timeout(Duration::from_secs(3600));
    let mut server = Running::server(
        Tcpstream,
        server_config,
        Script::new().on_connect(|conn| {
            for _ in 0..MUCH / (256 * KIB) {
                conn.send(vec![0; 256 * KIB]).unwrap();
            }
        }),
    );
    let _peer = Peer::new(server.addr, Tcpstream);
    server.events.connected();
    server.handle.stop_within(Duration::from_millis(100));
    server.join();
    let (_, report) = server.events.disconnected();
    assert_eq!(report.reason, CloseReason::Stopped);
    assert!(report.unsent_messages > 0, "{report}");
}

#[test]
fn stop_within_no_time_ends_at_once() {
    let mut server = Running::server(Native, Config::new(), Script::new());
    let mut peers: Vec<_> = (0..10).map(|_| Peer::new(server.addr, Native)).collect();
    for _ in &peers {
        server.events.connected();
    }
    server.handle.stop_within(Duration::ZERO);
    server.join();
    for peer in &mut peers {
        peer.expect_end();
    }
    for _ in &peers {
        assert_eq!(server.events.disconnected().1.reason, CloseReason::Stopped);
    }
}

#[test]
fn handle_of_a_stopped_reactor_says_so() {
    let mut server = Running::server(Native, Config::new(), Script::new());
    let peer = Peer::new(server.addr, Native);
    let id = server.events.connected();
    drop(peer);
    server.handle.stop();
    server.join();
    let handle = &server.handle;
    assert!(handle.is_stopped());
    assert_eq!(handle.broadcast("x"), Err(SendError::Stopped));
    assert_eq!(handle.run(|_| ()), Err(SendError::Stopped));
    assert!(matches!(handle.ask(|_| ()), Err(Error::Stopped)));
    let any = AnyProtocol::from(Native);
    assert!(matches!(handle.listen_with("127.0.0.1:0", &any, &Config::new()), Err(Error::Stopped)));
    let dialled = handle.connect_with("127.0.0.1:1", &any, &Config::new());
    assert!(matches!(dialled, Err(Error::Stopped)));
    assert!(matches!(handle.send(id, "x"), Err(SendError::Stopped | SendError::Closed)));
    handle.close(id);
    handle.stop();
}

#[test]
fn nothing_new_begins_once_the_reactor_stops() {
    let builder = ReactorBuilder::new(Native.into()).config(roomy()).stop_timeout(PATIENCE);
    let mut server =
        Running::start(builder, Script::new(), |reactor| reactor.listen("127.0.0.1:0").unwrap().1);
    let peer = Peer::new(server.addr, Native);
    server.events.connected();
    let addr = server.addr;
    let (listened, dialled) = server.ask(move |cx| {
        cx.stop();
        (cx.listen("127.0.0.1:0").is_err(), cx.connect(addr).is_err())
    });
    assert!(listened && dialled);
    assert!(TcpStream::connect(addr).is_err(), "the listener is closed");
    drop(peer);
    server.join();
}

#[test]
fn stop_ends_dials_and_those_who_wait_for_them() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut client = Running::client(Native, Config::new(), Script::new());
    let id = client.handle.connect_with(nobody, &Native.into(), &Config::new()).unwrap();
    client.handle.send(id, "kept for later").unwrap();
    client.events.incident();
    client.handle.stop();
    client.join();
    assert!(!client.handle.is_open(id));
    // That it is gone is told, and what was kept as undelivered. Perhaps it was dialled once more.
    let mut incident = client.events.incident();
    while matches!(incident, Incident::DialFailed { .. }) {
        incident = client.events.incident();
    }
    assert!(matches!(incident, Incident::Gone { conn, .. } if conn == id), "{incident}");
    match client.events.incident() {
        Incident::Undelivered { conn, messages } => assert_eq!((conn, messages), (id, 1)),
        incident => panic!("{incident}"),
    }
}

#[test]
fn stop_inside_a_callback_ends_the_run() {
    let mut server = Running::server(
        Tcpstream,
        Config::new(),
        Script::new().on_message(|conn, msg| {
            conn.send(&msg).unwrap();
            conn.cx().stop();
        }),
    );
    let mut peer = Peer::new(server.addr, Tcpstream);
    peer.send("goodbye");
    peer.expect("goodbye");
    peer.expect_end();
    drop(peer);
    server.join();
}

#[test]
fn dropped_reactor_closes_its_sockets() {
    let mut reactor =
        ReactorBuilder::new(AnyProtocol::from(Tcpstream)).build(Script::new()).unwrap();
    let (_, addr) = reactor.listen("127.0.0.1:0").unwrap();
    let mut peer = Peer::new(&addr, Tcpstream);
    while reactor.stats().accepted == 0 {
        reactor.turn(Some(PATIENCE)).unwrap();
    }
    let handle = reactor.handle();
    drop(reactor);
    peer.expect_end();
    assert!(TcpStream::connect(addr).is_err());
    assert!(handle.is_stopped());
}

#[test]
fn turn_and_run_after_the_end_do_nothing() {
    let mut reactor = ReactorBuilder::new(AnyProtocol::from(Native)).build(Script::new()).unwrap();
    reactor.handle().stop();
    reactor.run().unwrap();
    assert!(!reactor.turn(None).unwrap());
    reactor.run().unwrap();
}

#[test]
fn every_message_that_is_accepted_while_the_reactor_stops_is_told_of() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut lost = Vec::new();
    for round in 0..50 {
        let settings = Config::new().offline_queue(256 << 20, Duration::from_secs(600));
        let mut client = Running::client(Native, settings.clone(), Script::new());
        let id = client.handle.connect_with(nobody, &Native.into(), &settings).unwrap();
        client.events.incident();
        let handle = client.handle.clone();
        let (tell, started) = channel();
        let sending = std::thread::spawn(move || {
            let mut accepted = 0_u64;
            loop {
                match handle.send(id, "x") {
                    Ok(()) => accepted += 1,
                    Err(SendError::Closed | SendError::Stopped) => return accepted,
                    Err(_) => {}
                }
                if accepted == 100 {
                    let _ = tell.send(());
                }
            }
        });
        started.recv().unwrap();
        client.handle.stop();
        client.join();
        let accepted = sending.join().unwrap();
        let counted: u64 = client
            .events
            .so_far()
            .into_iter()
            .map(|event| match event {
                Event::Incident(Incident::Undelivered { messages, .. }) => messages,
                _ => 0,
            })
            .sum();
        if counted != accepted {
            lost.push((round, accepted, counted));
        }
    }
    assert!(lost.is_empty(), "{} of 50: {:?}", lost.len(), &lost[..lost.len().min(10)]);
}
