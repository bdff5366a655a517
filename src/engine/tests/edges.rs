//! The promises at their edges, by one who has only read them: hostile peers, callbacks that do what
//! nobody does, numbers at their ends.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "shorter than the path of the method"
)]

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    bent::{Bend, Bent, bent_pair, frame, raw},
    fleet::Fleet,
    script::{Log, SERVER, Script, accepted, call, pair},
};
use crate::{
    Audience, CallError, CloseReport, Config, Conn, ConnId, Context, Handler, Incident, Message,
    ReactorBuilder, Reconnect, SendError,
    api::handler::Timer,
    net::sim::SimWorld,
    protocol::{Hello, Kind, Native, Protocol},
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

fn once() -> Config {
    Config::new().reconnect(Reconnect::never())
}

fn fixed(delay: Duration) -> Config {
    Config::new().reconnect(Reconnect::fixed(delay))
}

// ---- hostile peers ----

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
    assert!(kept.borrow().iter().flatten().all(|responder| responder.is_cancelled()));
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

// ---- numbers at their ends ----

/// What a server sees of how long the caller waits.
fn remaining(timeout: Duration) -> (Option<Duration>, bool) {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    let found = Rc::new(RefCell::new(None));
    let find = found.clone();
    server.on_message = Box::new(move |conn, msg| {
        *find.borrow_mut() = Some(msg.remaining());
        let _ = conn.reply(&msg, "");
    });
    let (mut fleet, conn) = pair(&world, server, client, &once());
    let dialled = fleet.handle(1);
    dialled.run(move |cx| _ = call(&mut cx.conn(conn).unwrap(), "x", timeout)).unwrap();
    fleet.run_for(SECOND);
    let remaining = found.take().unwrap_or(Some(Duration::ZERO));
    (remaining, log.count("reply to x") == 1)
}

#[test]
fn timeout_that_the_wire_can_not_say_is_not_told_as_a_shorter_one() {
    for timeout in [
        Duration::MAX,
        Duration::from_millis(1 << 32),
        Duration::from_millis((1 << 32) + 1),
        Duration::from_millis(u64::from(u32::MAX)),
        Duration::from_secs(u64::MAX),
    ] {
        let (remaining, is_answered) = remaining(timeout);
        let least = Duration::from_millis(u64::from(u32::MAX) - 1000);
        assert!(remaining.is_none_or(|left| left >= least), "{timeout:?}: {remaining:?}");
        assert!(is_answered, "{timeout:?}");
    }
}

#[test]
fn timeout_of_less_than_a_millisecond_is_told() {
    let (remaining, is_answered) = remaining(Duration::from_micros(900));
    assert!(remaining.is_some_and(|left| left <= Duration::from_millis(1)), "{remaining:?}");
    assert!(is_answered);
}

#[test]
fn timers_at_both_ends_fire_when_they_are_due_and_starve_nothing() {
    let world = SimWorld::new(1);
    let ((server, _), (mut client, log)) = (Script::noting(), Script::noting());
    let mut left = 10_000;
    client.on_timer = Box::new(move |cx, timer| {
        if left > 0 {
            left -= 1;
            cx.set_timer(Duration::ZERO, timer.token);
        }
    });
    let (mut fleet, conn) = pair(&world, server, client, &once());
    let mut cx = fleet.nodes[1].engine.context();
    let never = [
        cx.set_timer(Duration::MAX, 1),
        cx.set_timer(Duration::from_secs(u64::MAX), 2),
        cx.conn(conn).unwrap().set_timer(Duration::MAX, 3),
    ];
    cx.set_timer(Duration::ZERO, 4);
    fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
    assert!(log.count("timer") <= 1, "one that is set in the step of timers does not run in it");
    let mut cx = fleet.nodes[1].engine.context();
    call(&mut cx.conn(conn).unwrap(), "served", LONG).unwrap();
    fleet.run_for(LONG);
    assert_eq!(log.count("timer 4"), 10_001);
    assert_eq!(log.count("timer"), 10_001);
    assert_eq!(log.count("reply to served"), 1);
    let mut cx = fleet.nodes[1].engine.context();
    for id in never {
        assert!(cx.cancel_timer(id));
        assert!(!cx.cancel_timer(id));
    }
}

#[test]
fn stop_without_end_waits_until_a_stricter_one_cuts_it() {
    let world = SimWorld::new(1);
    let ((mut server, log), (client, _)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg)));
    let config = once().close_timeout(Duration::MAX).linger(Duration::MAX);
    let (mut fleet, conn) = pair(&world, server, client, &config);
    let mut cx = fleet.nodes[1].engine.context();
    call(&mut cx.conn(conn).unwrap(), "held", Duration::MAX).unwrap();
    fleet.run_for(SECOND);
    fleet.handle(0).stop_within(Duration::MAX);
    fleet.run_for(60 * LONG);
    assert!(!fleet.nodes[0].engine.is_stopped());
    fleet.handle(0).stop_within(Duration::MAX);
    fleet.run_for(LONG);
    fleet.handle(0).stop_within(Duration::ZERO);
    fleet.run_for(SECOND);
    assert!(fleet.nodes[0].engine.is_stopped());
    assert_eq!(
        log.lines("disconnect"),
        ["disconnect the reactor stopped; 1 requests not answered"]
    );
}

#[test]
fn policy_of_no_delay_does_not_keep_the_loop_from_other_work() {
    let world = SimWorld::new(1);
    let ((server, _), (client, log)) = (Script::noting(), Script::noting());
    let (mut fleet, conn) = pair(&world, server, client, &once());
    let hasty = Config::new().reconnect(Reconnect::custom(|_| Some(Duration::ZERO)));
    let mut cx = fleet.nodes[1].engine.context();
    let refused = cx.connect_with("10.0.0.1:9", &Native, &hasty).unwrap();
    for _ in 0..100 {
        fleet.run_for(Duration::from_millis(1));
    }
    assert!(log.count("error") <= 200, "{} rounds in 100 ms", log.count("error"));
    let mut cx = fleet.nodes[1].engine.context();
    call(&mut cx.conn(conn).unwrap(), "served", LONG).unwrap();
    cx.conn(refused).unwrap().close();
    fleet.run_for(SECOND);
    assert_eq!(log.count("reply to served"), 1);
    assert!(!fleet.handle(1).is_open(refused));
    fleet.stop();
    fleet.assert_empty();
}

#[test]
fn policy_of_an_endless_delay_waits_until_it_is_closed() {
    let world = SimWorld::new(1);
    let ((server, _), (client, log)) = (Script::noting(), Script::noting());
    let config = Config::new().reconnect(Reconnect::custom(|_| Some(Duration::MAX)));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    world.reset(world.connections()[0]);
    fleet.run_for(1000 * LONG);
    assert_eq!((log.count("connect"), log.count("disconnect")), (1, 1));
    assert!(fleet.handle(1).is_open(conn) && !fleet.handle(1).is_up(conn));
    fleet.handle(1).drain(conn);
    fleet.run_for(SECOND);
    assert_eq!(log.count("error"), 1, "{:?}", log.take());
    assert!(!fleet.handle(1).is_open(conn));
}

// ---- ends, told once and truly ----

#[test]
fn connection_that_is_ended_in_its_own_report_is_gone_once() {
    for mode in 0..3 {
        let world = SimWorld::new(1);
        let ((server, _), (mut client, log)) = (Script::noting(), Script::noting());
        client.on_disconnect = Box::new(move |conn, report| {
            assert!(report.redial_in.is_some());
            match mode {
                0 => conn.close(),
                1 => conn.abort(),
                _ => conn.drain(),
            }
        });
        let (mut fleet, conn) = pair(&world, server, client, &fixed(SECOND));
        world.reset(world.connections()[0]);
        fleet.run_for(LONG);
        assert_eq!((log.count("connect"), log.count("disconnect")), (1, 1), "{:?}", log.take());
        assert_eq!(log.count("error"), 1, "gone: {:?}", log.take());
        assert!(!fleet.handle(1).is_open(conn));
    }
}

#[test]
fn dial_that_is_ended_in_the_report_of_its_failure_is_gone_once() {
    let world = SimWorld::new(1);
    let (mut client, log) = Script::<Native>::noting();
    client.on_error = Box::new(|cx, incident| {
        if let Incident::DialFailed { conn, attempt: 3, .. } = incident {
            cx.conn(*conn).unwrap().close();
        }
    });
    let mut fleet = Fleet::new(world.clone());
    let _nobody = world.host([10, 0, 0, 1]);
    let builder = ReactorBuilder::new(Native).config(fixed(SECOND)).seed(1);
    fleet.add(2, builder, client);
    let conn = fleet.nodes[0].engine.context().connect(SERVER).unwrap();
    fleet.run_for(LONG);
    assert_eq!(log.count("error"), 4, "three rounds, and that it is gone: {:?}", log.take());
    assert!(!fleet.handle(0).is_open(conn));
    fleet.stop();
    fleet.assert_empty();
}

#[test]
fn last_attempt_is_told_as_the_last() {
    for attempts in 1..4 {
        let world = SimWorld::new(1);
        let (mut client, log) = Script::<Native>::noting();
        let told = Rc::new(RefCell::new(Vec::new()));
        let tell = told.clone();
        client.on_error = Box::new(move |cx, incident| {
            if let Incident::DialFailed { conn, retry_in, .. } = incident {
                tell.borrow_mut().push(retry_in.is_some());
                assert_eq!(cx.conn(*conn).is_some(), retry_in.is_some());
            }
        });
        let mut fleet = Fleet::new(world.clone());
        let _nobody = world.host([10, 0, 0, 1]);
        let config = Config::new().reconnect(Reconnect::fixed(SECOND).max_attempts(attempts));
        fleet.add(2, ReactorBuilder::new(Native).config(config).seed(1), client);
        fleet.nodes[0].engine.context().connect(SERVER).unwrap();
        fleet.run_for(LONG);
        let mut expected = vec![true; attempts as usize - 1];
        expected.push(false);
        assert_eq!(*told.borrow(), expected);
        assert_eq!(log.count("error"), attempts as usize, "{:?}", log.take());
    }
}

#[test]
fn call_made_again_by_the_callback_of_a_call_that_its_connection_ended_fails_at_once() {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg)));
    let (mut fleet, conn) = pair(&world, server, client, &fixed(SECOND));
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(conn).unwrap();
    for _ in 0..50 {
        conn.call::<Script>("x", LONG, |script, conn, result| {
            script.log.note(format!("ended {}", result.is_err()));
            let again = call(conn, "again", LONG);
            script.log.note(format!("again {again:?}"));
        })
        .unwrap();
    }
    fleet.run_for(SECOND / 2);
    world.reset(world.connections()[0]);
    fleet.run_for(SECOND / 2);
    assert_eq!(log.count("ended true"), 50, "{:?}", log.take());
    assert_eq!(log.count("again Err"), 50, "{:?}", log.take());
    assert!(log.lines("disconnect")[0].contains("50 calls unanswered"), "{:?}", log.take());
    assert_eq!(fleet.nodes[1].engine.state.stats.calls_in_flight, 0);
}

#[test]
fn what_is_given_to_an_accepted_connection_in_its_last_callback_is_left_nowhere() {
    let world = SimWorld::new(1);
    let ((mut server, log), (client, _)) = (Script::noting(), Script::noting());
    let notes = log.clone();
    server.on_disconnect = Box::new(move |conn, _| {
        conn.join("late");
        conn.set_data(vec![1_u8; 100]);
        conn.set_timer(SECOND, 7);
        conn.set_timer(Duration::MAX, 8);
        conn.pause();
        conn.resume();
        let sent = conn.send("late");
        let called = call(conn, "late", LONG).is_err();
        notes.note(format!("late {} {called}", sent.is_err()));
        let id = conn.id();
        conn.cx().broadcast(Audience::group("late"), "nobody");
        conn.cx().handle().close(id);
        conn.abort();
        conn.close();
    });
    let (mut fleet, conn) = pair(&world, server, client, &once());
    fleet.handle(1).abort(conn);
    fleet.run_for(LONG);
    assert_eq!(log.count("late true true"), 1, "{:?}", log.take());
    assert_eq!((log.count("disconnect"), log.count("timer")), (1, 0));
    assert!(fleet.stop());
    fleet.assert_empty();
}

#[test]
fn messages_sent_again_in_the_report_keep_their_order_over_many_losses() {
    let world = SimWorld::new(1);
    let ((server, seen), (mut client, _)) = (Script::noting(), Script::noting());
    client.on_disconnect = Box::new(|conn, _| {
        for body in conn.take_unsent() {
            conn.send(body).unwrap();
        }
        assert!(conn.take_unsent().is_empty());
    });
    let config = fixed(SECOND).socket_buffers(4096, 4096);
    let (mut fleet, conn) = pair(&world, server, client, &config);
    for number in 0..200 {
        let body = format!("{number:03}{}", "-".repeat(900));
        fleet.handle(1).send(conn, body).unwrap();
    }
    for _ in 0..6 {
        fleet.run_for(Duration::from_millis(2));
        world.reset(*world.connections().last().unwrap());
        fleet.run_for(SECOND);
    }
    fleet.run_for(LONG);
    let lines = seen.lines("message");
    let mut sorted = lines.clone();
    sorted.sort();
    assert_eq!(lines, sorted);
    assert!(lines.last().unwrap().starts_with("message 199"), "{:?}", lines.last());
}

#[test]
fn kept_messages_of_which_some_are_too_old_arrive_in_order_and_the_rest_is_handed_back_once() {
    let world = SimWorld::new(1);
    let ((server, seen), (mut client, log)) = (Script::noting(), Script::noting());
    let notes = log.clone();
    client.on_error = Box::new(move |cx, incident| {
        if let Incident::Undelivered { messages, .. } = incident {
            let back = cx.take_undelivered();
            let text: Vec<_> = back.iter().map(|body| body.1.escape_ascii().to_string()).collect();
            notes.note(format!("back {messages} {}", text.join(",")));
            assert!(cx.take_undelivered().is_empty());
        }
    });
    let config = Config::new()
        .reconnect(Reconnect::custom(|_| Some(20 * SECOND)))
        .offline_queue(10_000, 10 * SECOND);
    let (mut fleet, conn) = pair(&world, server, client, &config);
    world.reset(world.connections()[0]);
    for number in 0..8 {
        fleet.run_for(2 * SECOND);
        fleet.handle(1).send(conn, format!("m{number}")).unwrap();
    }
    fleet.run_for(LONG);
    let arrived = seen.lines("message");
    let lost = 8 - arrived.len();
    assert!((1..8).contains(&lost), "{arrived:?}");
    let back: Vec<_> = log
        .lines("back")
        .iter()
        .flat_map(|line| line[7..].split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let names: Vec<_> = (0..lost).map(|number| format!("m{number}")).collect();
    assert_eq!(back, names);
    let rest: Vec<_> = (lost..8).map(|number| format!("message m{number}")).collect();
    assert_eq!(arrived, rest);
}

#[test]
fn paused_connection_is_stopped_drained_and_closed_in_time() {
    for mode in 0..3 {
        let world = SimWorld::new(1);
        let ((server, log), (client, _)) = (Script::noting(), Script::noting());
        let (mut fleet, conn) = pair(&world, server, client, &once());
        let at_server = accepted(&mut fleet);
        let mut cx = fleet.nodes[0].engine.context();
        let mut paused = cx.conn(at_server).unwrap();
        paused.pause();
        call(&mut paused, "unread", LONG).unwrap();
        fleet.handle(1).send(conn, vec![b'x'; 900_000]).unwrap();
        fleet.run_for(SECOND);
        let handle = fleet.handle(0);
        match mode {
            0 => handle.stop(),
            1 => handle.drain(at_server),
            _ => handle.close(at_server),
        }
        fleet.run_for(7 * SECOND);
        assert_eq!(log.count("disconnect"), 1, "{mode}: {:?}", log.take());
        assert_eq!(log.count("call unread") + log.count("reply to unread"), 1);
        assert_eq!(log.count("message xxx"), 0);
        assert!(fleet.nodes[0].engine.state.slots.is_empty(), "{mode}");
    }
}

#[test]
fn places_of_each_listener_are_given_back_however_a_connection_ends() {
    let world = SimWorld::new(1);
    let ((server, log), (client, _)) = (Script::<Native>::noting(), Script::noting());
    let mut fleet = Fleet::new(world.clone());
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).config(once()).seed(2), client);
    let config = Config::new().max_connections(1).max_connections_per_peer(1);
    let mut cx = fleet.nodes[0].engine.context();
    cx.listen_with(SERVER, &Native, &config).unwrap();
    cx.listen_with("10.0.0.1:7002", &Native, &config).unwrap();
    for round in 0..12 {
        for addr in [SERVER, "10.0.0.1:7002"] {
            fleet.handle(1).run(move |cx| _ = cx.connect(addr)).unwrap();
        }
        fleet.run_for(SECOND);
        let ids: Vec<_> = fleet.nodes[0].engine.context().connections().collect();
        assert_eq!(ids.len(), 2, "round {round}: {:?}", log.take());
        // One too many.
        fleet.handle(1).run(|cx| _ = cx.connect(SERVER)).unwrap();
        fleet.run_for(SECOND);
        assert_eq!(log.count("error"), round + 1, "{:?}", log.lines("error"));
        for id in ids {
            let mut cx = fleet.nodes[0].engine.context();
            let mut conn = cx.conn(id).unwrap();
            match round % 4 {
                0 => conn.abort(),
                1 => conn.close(),
                2 => conn.drain(),
                _ => {
                    for connection in world.connections() {
                        world.reset(connection);
                    }
                    break;
                }
            }
        }
        fleet.run_for(10 * SECOND);
        assert_eq!(fleet.nodes[0].engine.state.listeners.peers(), 0);
    }
}

// ---- callbacks that do what nobody does ----

type Deed = Rc<dyn Fn(&mut Context<'_, Native>, Option<ConnId>)>;

/// Does one thing in the callback of one name, once or always, and notes what it was told.
struct Reckless {
    log: Log,
    place: &'static str,
    times: usize,
    deed: Deed,
}

impl Reckless {
    fn come_to(&mut self, place: &str, cx: &mut Context<'_, Native>, conn: Option<ConnId>) {
        self.log.note(match conn {
            Some(conn) => format!("{place} {conn}"),
            None => place.to_owned(),
        });
        if place == self.place && self.times > 0 {
            self.times -= 1;
            let deed = self.deed.clone();
            deed(cx, conn);
        }
    }
}

impl Handler for Reckless {
    type Protocol = Native;

    fn on_start(&mut self, cx: &mut Context<'_, Native>) {
        self.come_to("on_start", cx, None);
    }

    fn on_stop(&mut self, cx: &mut Context<'_, Native>) {
        self.come_to("on_stop", cx, None);
    }

    fn on_connect(&mut self, conn: &mut Conn<'_, Native>) {
        let id = conn.id();
        conn.set_timer(SECOND, 1);
        for _ in 0..3 {
            let _ = conn.call::<Self>("request", 10 * SECOND, move |handler, conn, result| {
                handler.log.note(format!("ended {}", result.is_ok()));
                handler.come_to("callback", conn.cx(), Some(id));
            });
        }
        self.log.note(format!("started {}", conn.stats().calls_in_flight));
        self.come_to("on_connect", conn.cx(), Some(id));
        let _ = conn.send("news");
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        let id = conn.id();
        self.come_to("on_message", conn.cx(), Some(id));
        if msg.is_request() {
            let _ = conn.reply(&msg, vec![b'r'; 60_000]);
        }
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Native>, _: &CloseReport) {
        let id = conn.id();
        self.come_to("on_disconnect", conn.cx(), Some(id));
    }

    fn on_writable(&mut self, conn: &mut Conn<'_, Native>) {
        let id = conn.id();
        self.come_to("on_writable", conn.cx(), Some(id));
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Native>, timer: Timer) {
        self.come_to("on_timer", cx, timer.conn);
    }

    fn on_cancel(&mut self, conn: &mut Conn<'_, Native>, _: u64) {
        let id = conn.id();
        self.come_to("on_cancel", conn.cx(), Some(id));
    }

    fn on_error(&mut self, cx: &mut Context<'_, Native>, _: &Incident) {
        self.come_to("on_error", cx, None);
    }
}

const PLACES: [&str; 9] = [
    "on_start",
    "on_stop",
    "on_connect",
    "on_message",
    "on_disconnect",
    "on_writable",
    "on_timer",
    "on_error",
    "callback",
];

/// As [`run_lives`], for what panics: what follows a panic in `on_stop` is a test of its own.
fn run_lives_but_in_on_stop(deed: impl Fn(&mut Context<'_, Native>, Option<ConnId>) + 'static) {
    let deed: Deed = Rc::new(deed);
    for place in PLACES.into_iter().filter(|place| *place != "on_stop") {
        for reckless in 0..2 {
            run_life(&SimWorld::new(1), place, 2, reckless, &deed);
        }
    }
}

/// Runs a life of two connections, in which one callback of either side does something, and then looks at
/// what must hold whatever it was.
fn run_lives(deed: impl Fn(&mut Context<'_, Native>, Option<ConnId>) + 'static) {
    let deed: Deed = Rc::new(deed);
    for place in PLACES {
        for times in [1, 5] {
            for reckless in 0..2 {
                run_life(&SimWorld::new(1), place, times, reckless, &deed);
            }
        }
    }
}

fn run_life(world: &SimWorld, place: &'static str, times: usize, reckless: usize, deed: &Deed) {
    let mut fleet = Fleet::new(world.clone());
    fleet.may_panic = true;
    let config = Config::new()
        .watermarks(10_000, 50_000)
        .socket_buffers(8192, 8192)
        .reconnect(Reconnect::fixed(2 * SECOND).max_attempts(3));
    let logs = [Log::default(), Log::default()];
    for (index, number) in (0..2).zip(1..) {
        let handler = Reckless {
            log: logs[index].clone(),
            place: if index == reckless { place } else { "nowhere" },
            times,
            deed: deed.clone(),
        };
        let builder = ReactorBuilder::new(Native).config(config.clone());
        fleet.add(number, builder.seed(number.into()), handler);
    }
    // Faults may prevent it.
    let _ = fleet.nodes[0].engine.context().listen(SERVER);
    for target in [SERVER, SERVER, "10.0.0.1:9"] {
        fleet.nodes[1].engine.context().connect(target).unwrap();
    }
    fleet.run_for(3 * SECOND);
    for connection in world.connections() {
        world.reset(connection);
    }
    fleet.run_for(5 * SECOND);
    let what = format!("{place}, {times} times, at {reckless}");
    world.calm();
    assert!(fleet.stop(), "{what}: it does not stop");
    for (log, node) in logs.iter().zip(&fleet.nodes) {
        let all = log.take();
        let count = |start: &str| all.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(count("on_stop"), 1, "{what}: {all:?}");
        assert_eq!(all.last().map(String::as_str), Some("on_stop"), "{what}: {all:?}");
        assert_eq!(count("on_connect"), count("on_disconnect"), "{what}: {all:?}");
        let started: usize = all
            .iter()
            .filter_map(|line| line.strip_prefix("started ")?.parse::<usize>().ok())
            .sum();
        assert_eq!(count("ended"), started, "{what}: {all:?}");
        assert_eq!(node.engine.state.stats.calls_in_flight, 0, "{what}");
    }
    fleet.assert_empty();
}

#[test]
fn connection_may_end_itself_in_any_callback() {
    fn ending(end: impl Fn(&mut Conn<'_, Native>) + 'static) {
        run_lives(move |cx, id| {
            if let Some(mut conn) = id.and_then(|id| cx.conn(id)) {
                end(&mut conn);
            }
        });
    }
    ending(|conn| conn.close());
    ending(|conn| conn.abort());
    ending(|conn| conn.drain());
}

#[test]
fn any_callback_may_end_every_connection_in_every_way() {
    run_lives(|cx, _| {
        let ids: Vec<_> = cx.connections().collect();
        for (index, id) in ids.into_iter().enumerate() {
            let Some(mut conn) = cx.conn(id) else { continue };
            match index % 3 {
                0 => conn.abort(),
                1 => conn.drain(),
                _ => conn.close(),
            }
            conn.close();
            conn.abort();
            let _ = conn.send("too late");
        }
    });
}

#[test]
fn any_callback_may_stop_the_reactor_and_again() {
    run_lives(|cx, _| {
        cx.stop();
        cx.stop();
        cx.handle().stop_within(Duration::ZERO);
        let _ = cx.connect(SERVER);
        let _ = cx.listen("10.0.0.1:7003");
    });
    run_lives(|cx, _| cx.stop());
}

#[test]
fn any_callback_may_dial_and_drop_what_it_dialled() {
    run_lives(|cx, _| {
        let _ = cx.connect(SERVER);
        if let Ok(id) = cx.connect(SERVER) {
            let _ = cx.conn(id).map(|mut conn| conn.send("kept"));
            if let Some(mut conn) = cx.conn(id) {
                conn.abort();
            }
        }
        let _ = cx.connect("10.0.0.1:9");
        let _ = cx.connect("nobody:9");
    });
}

#[test]
fn any_callback_may_call_and_send_to_every_connection() {
    let counts = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let [started, ended] = counts.clone();
    run_lives(move |cx, _| {
        let ids: Vec<_> = cx.connections().collect();
        for id in ids {
            let Some(mut conn) = cx.conn(id) else { continue };
            let end = ended.clone();
            let call = conn.call::<Reckless>("x", SECOND, move |_, _, _| {
                end.fetch_add(1, Ordering::Relaxed);
            });
            if let Ok(call) = call {
                started.fetch_add(1, Ordering::Relaxed);
                if call.as_u64() % 2 == 0 {
                    conn.cancel_call(call);
                }
            }
            let _ = conn.send(vec![b'x'; 100_000]);
            let _ = conn.cx().handle().send(id, "from outside");
        }
        cx.broadcast(Audience::All, vec![b'y'; 20_000]);
        cx.broadcast(Audience::filter(|_| true), "z");
    });
    let [started, ended] = counts.map(|count| count.load(Ordering::Relaxed));
    assert!(started > 0);
    assert_eq!(started, ended);
}

#[test]
fn any_callback_may_open_close_and_drain_listeners() {
    run_lives(|cx, _| {
        for port in 7100..7104 {
            if let Ok((listener, _)) = cx.listen(format!("10.0.0.1:{port}").as_str()) {
                match port % 3 {
                    0 => _ = cx.close_listener(listener),
                    1 => _ = cx.drain_listener(listener),
                    _ => {}
                }
            }
        }
    });
}

#[test]
fn any_callback_may_panic() {
    run_lives_but_in_on_stop(|_, _| panic!("as planned"));
}

#[test]
fn any_callback_may_panic_after_it_has_done_everything() {
    run_lives_but_in_on_stop(|cx, id| {
        let _ = cx.connect(SERVER);
        if let Some(mut conn) = id.and_then(|id| cx.conn(id)) {
            conn.set_timer(Duration::ZERO, 9);
            conn.join("group");
            let _ = conn.send(vec![b'x'; 100_000]);
            conn.drain();
        }
        cx.broadcast(Audience::All, "news");
        cx.stop();
        panic!("as planned");
    });
}

#[test]
fn any_callback_may_pause_and_resume_whatever_is_there() {
    run_lives(|cx, _| {
        let ids: Vec<_> = cx.connections().collect();
        for (index, id) in ids.into_iter().enumerate() {
            let Some(mut conn) = cx.conn(id) else { continue };
            conn.pause();
            if index % 2 == 0 {
                conn.resume();
            }
        }
    });
}

#[test]
fn no_fault_of_the_network_makes_a_reckless_callback_leave_anything() {
    let deeds: [Deed; 4] = [
        Rc::new(|cx, id| {
            if let Some(mut conn) = id.and_then(|id| cx.conn(id)) {
                conn.drain();
            }
            let _ = cx.connect(SERVER);
        }),
        Rc::new(|cx, id| {
            if let Some(mut conn) = id.and_then(|id| cx.conn(id)) {
                let _ = conn.send(vec![b'x'; 200_000]);
                conn.close();
            }
        }),
        Rc::new(|cx, _| {
            let ids: Vec<_> = cx.connections().collect();
            for id in ids {
                if let Some(mut conn) = cx.conn(id) {
                    conn.abort();
                }
            }
        }),
        Rc::new(|cx, _| {
            cx.broadcast(Audience::All, vec![b'y'; 20_000]);
        }),
    ];
    for seed in 0..8 {
        for (index, deed) in deeds.iter().enumerate() {
            for place in ["on_connect", "on_message", "on_disconnect", "on_error", "callback"] {
                run_life(&SimWorld::with_faults(seed), place, 3, index % 2, deed);
            }
        }
    }
}

#[test]
fn connection_that_waits_while_the_reactor_stops_is_told_once() {
    for times in 0..3 {
        let world = SimWorld::new(1);
        let (client, log) = Script::<Native>::noting();
        let mut fleet = Fleet::new(world.clone());
        let nobody = world.host([10, 0, 0, 1]);
        fleet.add(2, ReactorBuilder::new(Native).config(fixed(LONG)).seed(1), client);
        let conn = fleet.nodes[0].engine.context().connect(SERVER).unwrap();
        fleet.run_for(SECOND * times);
        fleet.handle(0).stop();
        fleet.handle(0).close(conn);
        fleet.run_for(LONG);
        assert!(fleet.nodes[0].engine.is_stopped());
        let gone = log.lines("error").iter().filter(|line| line.contains("was closed")).count();
        assert_eq!(gone, 1, "{:?}", log.take());
        assert_eq!(log.count("connect") + log.count("disconnect"), 0);
        drop(nobody);
    }
}

/// The promise: `on_stop` is the last callback.
#[test]
fn nothing_is_called_after_on_stop_also_where_that_panics() {
    let deed: Deed = Rc::new(|_, _| panic!("as planned"));
    run_life(&SimWorld::new(1), "on_stop", 1, 0, &deed);
}
