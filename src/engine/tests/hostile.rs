//! Peers that put any bytes on the wire.

use std::{cell::RefCell, rc::Rc, time::Duration};

use super::{
    bent::{Bend, Bent, bent_pair, frame, raw},
    fleet::Fleet,
    script::{Log, Script, accepted, call, once},
};
use crate::{
    CallError, Config, ConnId, Responder, SendError,
    net::sim::SimWorld,
    protocol::{Hello, Kind, Native, Protocol},
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// A server, and a peer of it that puts any bytes on the wire.
struct Siege {
    fleet: Fleet<Script<Bent>>,
    peer: ConnId,
    victim: ConnId,
    /// What the server saw.
    log: Log,
    /// What the peer saw.
    seen: Log,
}

impl Siege {
    fn of(server: Script<Bent>, config: &Config) -> Self {
        let log = server.log.clone();
        let (client, seen) = Script::noting();
        let world = SimWorld::new(1);
        let (mut fleet, peer) = bent_pair(&world, [Bend::Nothing; 2], [server, client], config);
        let victim = accepted(&mut fleet);
        Self { fleet, peer, victim, log, seen }
    }

    fn new() -> Self {
        Self::of(Script::default(), &once())
    }

    fn throw(&mut self, bytes: &[u8]) {
        self.fleet.handle(1).send(self.peer, raw(bytes)).unwrap();
        self.fleet.run_for(SECOND / 10);
    }

    /// Many frames, in pieces that the peer's own queue takes.
    fn flood(&mut self, one: &[u8], times: usize) {
        let piece = one.repeat(500);
        for _ in 0..times / 500 {
            self.throw(&piece);
        }
    }

    /// The server still answers that peer.
    fn assert_answers(&mut self) {
        let mut cx = self.fleet.nodes[1].engine.context();
        call(&mut cx.conn(self.peer).expect("it is up"), "alive", LONG).unwrap();
        self.fleet.run_for(SECOND);
        assert_eq!(self.seen.count("reply to alive: alive"), 1, "{:?}", self.log.take());
    }

    /// The server ended it, for a fault that it names so.
    fn assert_refused(&mut self, why: &str) {
        self.fleet.run_for(SECOND);
        let ends = self.log.lines("disconnect");
        assert!(ends.len() == 1 && ends[0].contains(why), "{ends:?}");
    }

    fn queued(&mut self) -> usize {
        let mut cx = self.fleet.nodes[0].engine.context();
        cx.conn(self.victim).map_or(0, |conn| conn.queued())
    }
}

#[test]
fn flood_of_pongs_replies_errors_and_cancels_that_nobody_asked_for_ends_nothing() {
    let mut siege = Siege::new();
    for one in [
        frame(Kind::Pong, 0, 0, b""),
        frame(Kind::Pong, u64::MAX, 0, &[7; 125]),
        frame(Kind::Reply, 1, 0, b"late"),
        frame(Kind::Reply, u64::MAX, 0, b""),
        frame(Kind::Error, 0, 0, &[0xff; 100]),
        frame(Kind::Cancel, 5, 0, b""),
    ] {
        siege.flood(&one, 5000);
    }
    assert_eq!(siege.queued(), 0);
    siege.assert_answers();
    let mut cx = siege.fleet.nodes[0].engine.context();
    let late = cx.conn(siege.victim).unwrap().stats().late_replies;
    assert_eq!(late, 15_000);
}

#[test]
fn flood_of_pings_by_a_peer_that_does_not_read_holds_no_more_than_its_bound() {
    let config = once().socket_buffers(4096, 4096).write_timeout(10 * LONG).idle_timeout(10 * LONG);
    let mut siege = Siege::of(Script::default(), &config);
    let peer = siege.peer;
    siege.fleet.nodes[1].engine.context().conn(peer).unwrap().pause();
    siege.flood(&frame(Kind::Ping, 9, 0, &[1; 125]), 20_000);
    siege.fleet.run_for(5 * SECOND);
    let queued = siege.queued();
    assert!(queued <= 20_000, "{queued} bytes of pongs");
    assert_eq!(siege.log.count("disconnect"), 0);
    siege.fleet.nodes[1].engine.context().conn(peer).unwrap().resume();
    siege.fleet.run_for(5 * SECOND);
    siege.assert_answers();
}

#[test]
fn frame_that_its_kind_forbids_is_a_protocol_error() {
    for bytes in [
        frame(Kind::Ping, 0, 0, &[0; 126]),
        frame(Kind::Pong, 0, 0, &[0; 126]),
        frame(Kind::Cancel, 0, 0, b"x"),
        frame(Kind::Error, 1, 0, &[b'x'; 4097]),
        [&[0_u8, 0, 0, 0, 9][..], &[0; 19]].concat(),
        [&[0_u8, 0, 0, 0, 1, 1][..], &[0; 18]].concat(),
        [&[0_u8, 0, 0, 0, 1, 0, 0, 1][..], &[0; 16]].concat(),
    ] {
        let mut siege = Siege::new();
        siege.throw(&bytes);
        siege.assert_refused("protocol error");
    }
}

fn hello(max_body: u32, max_in_flight: u32) -> Vec<u8> {
    let mut out = Vec::new();
    Native.encode_hello(&Hello::new(max_body, max_in_flight, 0, 0), &mut out);
    out
}

#[test]
fn second_hello_is_a_protocol_error() {
    let mut siege = Siege::new();
    siege.throw(&hello(100, 100));
    siege.assert_refused("protocol error");
}

#[test]
fn request_whose_id_is_in_flight_is_a_protocol_error_and_its_twin_is_counted() {
    let (mut server, _) = Script::noting();
    let kept = Rc::new(RefCell::new(Vec::new()));
    let keep = kept.clone();
    server.on_message = Box::new(move |conn, msg| keep.borrow_mut().push(conn.defer(&msg)));
    let mut siege = Siege::of(server, &once());
    siege.throw(&frame(Kind::Request, 3, 0, b"one").repeat(2));
    siege.assert_refused("protocol error");
    assert_eq!(siege.log.count("disconnect"), 1);
    assert!(siege.log.lines("disconnect")[0].contains("1 requests not answered"));
    assert!(kept.borrow().iter().flatten().all(Responder::is_cancelled));
}

#[test]
fn request_that_is_cancelled_keeps_its_place_until_its_responder_is_gone() {
    let (mut server, _) = Script::noting();
    let kept = Rc::new(RefCell::new(Vec::new()));
    let keep = kept.clone();
    server.on_message = Box::new(move |conn, msg| {
        if let Ok(responder) = conn.defer(&msg) {
            keep.borrow_mut().push(responder);
        }
    });
    let config = once().max_requests(4);
    let mut siege = Siege::of(server, &config);
    for id in 1..=100 {
        let both = [frame(Kind::Request, id, 0, b"x"), frame(Kind::Cancel, id, 0, b"")];
        siege.throw(&both.concat());
    }
    assert_eq!((kept.borrow().len(), siege.log.count("cancel")), (4, 4));
    kept.borrow_mut().clear();
    siege.throw(&frame(Kind::Request, 200, 0, b"again"));
    assert_eq!(kept.borrow().len(), 1, "{:?}", siege.log.lines("disconnect"));
}

#[test]
fn declared_length_costs_nothing_and_a_half_frame_at_the_end_is_told() {
    let mut siege = Siege::new();
    siege.throw(&[&0x0070_0000_u32.to_be_bytes()[..], &[1], &[0; 19]].concat());
    siege.throw(&[b'x'; 100]);
    let peer = siege.peer;
    siege.fleet.nodes[1].engine.context().conn(peer).unwrap().close();
    siege.assert_refused("closed by the peer 124 bytes into a frame");
}

#[test]
fn goaways_without_end_change_nothing_but_that_no_calls_are_made() {
    let mut siege = Siege::new();
    for id in [u64::MAX, 5, 100, 0, u64::MAX, u64::MAX - 1] {
        siege.throw(&frame(Kind::Goaway, id, u32::MAX, b"bye").repeat(200));
    }
    siege.fleet.run_for(SECOND);
    assert!(siege.log.count("disconnect") <= 1, "{:?}", siege.log.take());
    siege.fleet.run_for(LONG);
    assert_eq!(siege.log.lines("disconnect"), ["disconnect the peer went away: bye"]);
}

#[test]
fn calls_that_a_goaway_excludes_end_once_whatever_the_peer_says_afterwards() {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| {
        if msg.is_request() {
            kept.push((msg.id(), conn.defer(&msg)));
            return;
        }
        let first = kept[0].0;
        let mut bytes = frame(Kind::Goaway, first, 0, b"");
        for (id, _) in &kept {
            bytes.extend(frame(Kind::Reply, *id, 0, b"answer"));
            bytes.extend(frame(Kind::Error, *id, 0, b"no"));
        }
        bytes.extend(frame(Kind::Goaway, 0, 0, b""));
        conn.send(raw(&bytes)).unwrap();
    });
    let (mut fleet, conn) = bent_pair(&world, [Bend::Nothing; 2], [server, client], &once());
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(conn).unwrap();
    for body in ["a", "b", "c"] {
        call(&mut conn, body, LONG).unwrap();
    }
    conn.send("go").unwrap();
    fleet.run_for(2 * LONG);
    assert_eq!(log.lines("reply to"), ["reply to a: answer"]);
    assert_eq!(log.count("call a") + log.count("reply to a"), 1);
    let ends = [log.lines("call b"), log.lines("call c")].concat();
    let refused =
        ["b", "c"].map(|body| format!("call {body} failed: the peer takes no new requests"));
    assert_eq!(ends, refused);
}

#[test]
fn hello_that_takes_nothing_is_obeyed() {
    let world = SimWorld::new(1);
    let ((server, log), (client, _)) = (Script::<Bent>::noting(), Script::noting());
    let bends = [Bend::Nothing, Bend::Silent];
    let (mut fleet, conn) = bent_pair(&world, bends, [server, client], &once());
    fleet.handle(1).send(conn, raw(&hello(0, 0))).unwrap();
    fleet.run_for(SECOND / 2);
    assert_eq!(log.count("connect 1"), 1, "{:?}", log.take());
    let at_server = accepted(&mut fleet);
    let mut cx = fleet.nodes[0].engine.context();
    let mut conn = cx.conn(at_server).unwrap();
    assert!(matches!(conn.send("x"), Err(SendError::BodyTooLong { len: 1, max: 0, .. })));
    conn.send("").unwrap();
    let refused = call(&mut conn, "", LONG);
    assert_eq!(refused, Err(CallError::TooManyInFlight { limit: 0 }));
    assert!(matches!(
        fleet.handle(0).send(at_server, "x"),
        Err(SendError::BodyTooLong { len: 1, max: 0, .. })
    ));
}
