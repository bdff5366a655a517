//! What was accepted and not sent is handed back, and a graceful end reports what it cut.
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
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use common::{PATIENCE, Peer, Running, Script, message};
use longhaul::{
    Audience, Bytes, Config, Conn, ConnId, Context, Handler, Incident, Message, ReactorBuilder,
    Reconnect, Tagged,
    protocol::{AnyProtocol, Length, Native, Qtk3, Tcpstream},
};

const KIB: usize = 1024;

/// The number in the tag, and a body whose length and bytes follow from it.
fn numbered(number: u32) -> Tagged<Vec<u8>> {
    let len = if number.is_multiple_of(7) { 20 * KIB } else { number as usize % 500 };
    Tagged(number, vec![number as u8; len])
}

fn assert_numbered(message: &Tagged<Bytes>, number: u32) {
    assert_eq!(message.0, number);
    assert_eq!(message.1, numbered(number).1);
}

#[test]
fn unsent_messages_are_handed_back_whole_and_in_order_once() {
    const MESSAGES: u32 = 2000;
    // Their own frames read as other bodies, or as none.
    let with_header = Length::builder().skip(0).build().unwrap();
    let filled_up = Length::builder().adjustment(300).build().unwrap();
    let apart = Length::builder().skip(9).build().unwrap();
    for protocol in [
        AnyProtocol::from(Native),
        Tcpstream.into(),
        Qtk3.into(),
        with_header.into(),
        filled_up.into(),
        apart.into(),
    ] {
        let (tell, told) = channel();
        let script = Script::new().on_disconnect(move |conn, report| {
            let unsent = conn.take_unsent();
            assert!(conn.take_unsent().is_empty(), "once");
            tell.send((report.clone(), conn.stats().messages_out, unsent)).unwrap();
        });
        let settings = Config::new().hard_limit(64 * KIB * KIB);
        let server = Running::server(protocol, settings, script);
        let peer = Peer::new(server.addr, protocol);
        let id = server.events.connected();
        server.ask(move |cx| {
            let mut conn = cx.conn(id).unwrap();
            for number in 0..MESSAGES {
                if number % 5 == 0 {
                    assert_eq!(conn.cx().broadcast(Audience::All, numbered(number)), 1);
                } else {
                    conn.send(numbered(number)).unwrap();
                }
            }
            assert!(conn.take_unsent().is_empty(), "the connection is up");
        });
        // The peer reads nothing, so that what the system does not take stays in the queue.
        server.ask(|_| ());
        server.ask(move |cx| cx.conn(id).unwrap().abort());
        let (report, written, unsent) = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(report.unsent_messages, unsent.len() as u64);
        assert_eq!(written + report.unsent_messages, u64::from(MESSAGES));
        assert!(!unsent.is_empty(), "the system took all: the test proves nothing");
        for (message, number) in unsent.iter().zip(written as u32..) {
            assert_numbered(message, number);
        }
        drop(peer);
    }
}

#[test]
fn what_is_handed_back_can_be_sent_again_and_arrives_before_what_follows() {
    const MESSAGES: u32 = 3000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let settings = Config::new()
        .hard_limit(64 * KIB * KIB)
        .reconnect(Reconnect::fixed(Duration::from_millis(10)))
        .offline_queue(64 * KIB * KIB, PATIENCE)
        .watermarks(KIB, 64 * KIB * KIB);
    let script = Script::new().on_disconnect(|conn, report| {
        let unsent = conn.take_unsent();
        assert_eq!(unsent.len() as u64, report.unsent_messages);
        if report.redial_in.is_some() {
            for message in unsent {
                conn.send(message).unwrap();
            }
        }
    });
    let client = Running::client(Tcpstream, settings.clone(), script);
    let id = client.handle.connect_with(addr, &Tcpstream.into(), &settings).unwrap();
    let first = listener.accept().unwrap().0;
    client.events.connected();
    client.ask(move |cx| {
        let mut conn = cx.conn(id).unwrap();
        (0..MESSAGES).for_each(|number| conn.send(numbered(number)).unwrap());
    });
    // Nothing was read of the first connection, so its end is a reset.
    drop(first);
    let (_, report) = client.events.disconnected();
    assert!(report.unsent_messages > 0);
    client.handle.send(id, "the last").unwrap();
    let mut peer = Peer::of(listener.accept().unwrap().0, Tcpstream);
    for number in MESSAGES - report.unsent_messages as u32..MESSAGES {
        let (head, body) = peer.next_frame().unwrap();
        assert_numbered(&Tagged(head.tag, body.into()), number);
    }
    peer.expect("the last");
}

/// Keeps what it is handed back by incidents.
struct Keeper(Sender<(ConnId, u64, Vec<Tagged<Bytes>>)>);

impl Handler for Keeper {
    type Protocol = AnyProtocol;

    fn on_message(&mut self, _: &mut Conn<'_, AnyProtocol>, _: Message<'_, AnyProtocol>) {}

    fn on_error(&mut self, cx: &mut Context<'_, AnyProtocol>, incident: &Incident) {
        if let Incident::Undelivered { conn, messages } = incident {
            let bodies = cx.take_undelivered();
            assert!(cx.take_undelivered().is_empty(), "once");
            self.0.send((*conn, *messages, bodies)).unwrap();
        }
    }
}

#[test]
fn messages_that_waited_for_a_connection_that_never_came_are_handed_back() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (tell, told) = channel();
    let mut reactor = ReactorBuilder::new(AnyProtocol::from(Native)).build(Keeper(tell)).unwrap();
    let conn = reactor.connect(nobody).unwrap();
    let handle = reactor.handle();
    let thread = std::thread::spawn(move || reactor.run());
    for number in 0..20 {
        handle.send(conn, numbered(number)).unwrap();
    }
    handle.ask(|_| ()).unwrap();
    handle.close(conn);
    let (of, count, bodies) = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!((of, count, bodies.len()), (conn, 20, 20));
    for (message, number) in bodies.iter().zip(0..) {
        assert_numbered(message, number);
    }
    handle.stop();
    thread.join().unwrap().unwrap();
}

// ---- reports ----

#[test]
fn drained_listener_finishes_what_is_in_flight_and_reports() {
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        keep.send(conn.defer(&msg).unwrap()).unwrap();
    });
    let server = Running::server(Native, Config::new(), script);
    let (other, other_addr) =
        server.handle.listen_with("127.0.0.1:0", &Native.into(), &Config::new()).unwrap();
    let mut peer = Peer::new(server.addr, Native);
    let mut stays = Peer::new(&other_addr, Native);
    let _ids = (server.events.connected(), server.events.connected());
    peer.write(&common::request(1, b"question"));
    let responder = kept.recv_timeout(PATIENCE).unwrap();
    let listener = server.ask(move |cx| {
        let of_first = |cx: &mut Context<'_, AnyProtocol>| {
            let ids: Vec<_> = cx.connections().collect();
            ids.into_iter().find_map(|id| cx.conn(id).unwrap().listener().filter(|id| *id != other))
        };
        of_first(cx).unwrap()
    });
    server.handle.drain_listener(listener).unwrap();
    server.ask(|_| ());
    assert!(std::net::TcpStream::connect(server.addr).is_err(), "nobody is accepted any more");
    responder.reply("answer").unwrap();
    peer.expect("answer");
    peer.expect_end();
    drop(peer);
    let report = server.events.wait(|event| match event {
        common::Event::Incident(Incident::ListenerDrained { listener: of, report }) => {
            assert_eq!(of, listener);
            Some(report)
        }
        _ => None,
    });
    assert_eq!((report.connections, report.cut), (1, 0), "{report}");
    stays.write(&message(&Native.into(), b"still served"));
}

#[test]
fn stop_reports_what_it_cut() {
    let (keep, kept) = channel();
    let (tell, told) = channel();
    let script = Script::new()
        .on_message(move |conn, msg| keep.send(conn.defer(&msg).unwrap()).unwrap())
        .on_stop(move |cx| tell.send(cx.stop_report()).unwrap());
    let mut server = Running::server(Native, Config::new(), script);
    let mut peer = Peer::new(server.addr, Native);
    let _idle = Peer::new(server.addr, Native);
    let _ids = (server.events.connected(), server.events.connected());
    // A request that is not answered, and behind it a push that the peer does not read.
    peer.write(&common::request(1, b"question"));
    let unanswered = kept.recv_timeout(PATIENCE).unwrap();
    let id = unanswered.conn();
    server.ask(move |cx| {
        let mut conn = cx.conn(id).unwrap();
        conn.send(vec![0; 8 * KIB * KIB]).unwrap();
    });
    server.handle.stop_within(Duration::from_millis(50));
    server.join();
    let report = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        (report.connections, report.requests, report.unsent_messages),
        (2, 1, 1),
        "{report}"
    );
    assert!(report.cut >= 1 && report.unsent_bytes > 0, "{report}");
    drop(unanswered);
}

#[test]
fn presets_are_valid_and_say_when_a_dead_peer_is_noticed() {
    let (go, node) = (Config::go_tcpstream(), Config::qtk());
    assert!(go.validate().is_ok() && node.validate().is_ok());
    // 20 s until the ping, 30 s until the end, and a round more where the loop was away.
    assert_eq!(node.worst_case_detection(&Qtk3), Some(Duration::from_secs(50)));
    // Keepalive probes alone: 15 s, and nine times 15 s.
    assert_eq!(go.worst_case_detection(&Tcpstream), Some(Duration::from_secs(150)));
    let never = Config::go_tcpstream().tcp_keepalive(None);
    assert_eq!(never.worst_case_detection(&Tcpstream), None);
}
