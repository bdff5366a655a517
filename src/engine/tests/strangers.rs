//! Peers that break the rules, or bend them.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    bent::{Bend, Bent, bent_pair, frame, raw},
    fleet::Fleet,
    script::{SERVER, Script, accepted, call, pair_on},
};
use crate::{
    Audience, CallError, CloseReason, Config, ReactorBuilder, Reconnect,
    net::sim::SimWorld,
    protocol::{Kind, Native, Qtk3, Tcpstream},
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// Dialled once.
fn once() -> Config {
    Config::new().reconnect(Reconnect::never())
}

#[test]
fn peer_that_never_says_hello_is_reached_by_nothing_and_ended() {
    let world = SimWorld::new(1);
    let ((server, log), (client, seen)) = (Script::noting(), Script::noting());
    let bends = [Bend::Nothing, Bend::Silent];
    let (mut fleet, _) = bent_pair(&world, bends, [server, client], &once());
    assert_eq!(fleet.nodes[0].engine.context().broadcast(Audience::All, "news"), 0);
    fleet.run_for(10 * SECOND);
    assert_eq!((log.count("connect"), seen.count("message")), (0, 0));
    let errors = log.lines("error");
    assert!(matches!(&errors[..], [error] if error.ends_with("no hello within 5s")), "{errors:?}");
    assert_eq!(fleet.nodes[0].engine.state.stats.handshakes_failed, 1);
    assert!(fleet.nodes[0].engine.state.slots.is_empty());
}

#[test]
fn peer_that_begins_with_something_else_than_a_hello_is_refused_unheard() {
    let world = SimWorld::new(1);
    let ((server, log), (mut client, _)) = (Script::noting(), Script::noting());
    client.on_connect = Box::new(|conn| _ = conn.send("first"));
    let bends = [Bend::Nothing, Bend::Silent];
    bent_pair(&world, bends, [server, client], &once());
    assert_eq!((log.count("connect"), log.count("message")), (0, 0));
    let errors = log.lines("error connection");
    assert!(errors.len() == 1 && errors[0].contains("not a hello"), "{errors:?}");
}

#[test]
fn goaway_of_more_than_4096_bytes_is_refused() {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    let goaway = raw(&frame(Kind::Goaway, u64::MAX, 0, &[b'x'; 4097]));
    server.on_connect = Box::new(move |conn| _ = conn.send(&goaway));
    bent_pair(&world, [Bend::Nothing; 2], [server, client], &once());
    assert_eq!(log.count("disconnect protocol error"), 1, "{:?}", log.take());
}

#[test]
fn text_of_a_goaway_is_kept_once_for_all_calls() {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, _)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| {
        if msg.is_request() {
            kept.push(conn.defer(&msg));
        } else {
            let goaway = frame(Kind::Goaway, u64::MAX, 0, &[b'x'; 4096]);
            conn.send(raw(&goaway)).unwrap();
            conn.close();
        }
    });
    let (mut fleet, conn) = bent_pair(&world, [Bend::Nothing; 2], [server, client], &once());
    let places = Arc::new(Mutex::new(Vec::new()));
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(conn).unwrap();
    for _ in 0..100 {
        let places = places.clone();
        conn.call::<Script<Bent>>("held", LONG, move |_, _, result| {
            if let Err(CallError::Disconnected {
                reason: CloseReason::PeerGoaway { text }, ..
            }) = result
            {
                places.lock().unwrap().push((text.as_str().as_ptr().addr(), text.len()));
            }
        })
        .unwrap();
    }
    conn.send("go away").unwrap();
    fleet.run_for(LONG);
    let places = places.lock().unwrap();
    assert_eq!(places.len(), 100);
    assert!(places.iter().all(|place| *place == places[0] && place.1 == 4096), "{places:?}");
}

#[test]
fn goaway_that_excludes_no_more_than_the_last_looks_at_no_call() {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| match &*msg.text() {
        "again" => {
            let goaway = frame(Kind::Goaway, u64::MAX, 0, b"");
            conn.send(raw(&goaway.repeat(1000))).unwrap();
        }
        "lower" => conn.send(raw(&frame(Kind::Goaway, 2048, 0, b""))).unwrap(),
        _ => kept.push(conn.defer(&msg)),
    });
    let (mut fleet, id) = bent_pair(&world, [Bend::Nothing; 2], [server, client], &once());
    {
        let mut cx = fleet.nodes[1].engine.context();
        let mut conn = cx.conn(id).unwrap();
        for _ in 0..4096 {
            call(&mut conn, "held", LONG).unwrap();
        }
        conn.send("again").unwrap();
    }
    fleet.run_for(SECOND);
    assert_eq!(log.count("call"), 0);
    let scans = |fleet: &Fleet<Script<Bent>>| {
        fleet.nodes[1].engine.state.get(id).map(|slot| slot.link.call_scans())
    };
    assert_eq!(scans(&fleet), Some(1), "for the first of a thousand");
    fleet.handle(1).send(id, "lower").unwrap();
    fleet.run_for(SECOND);
    assert_eq!(log.count("call held failed"), 2048);
    assert_eq!(scans(&fleet), Some(2));
}

/// A peer says that it goes away, answers no call, and stays.
#[test]
fn peer_that_says_goaway_and_never_closes_is_left() {
    for (calls, patience) in [(0, 5 * SECOND), (1, 30 * SECOND)] {
        let world = SimWorld::new(1);
        let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
        let mut kept = Vec::new();
        server.on_message = Box::new(move |conn, msg| {
            if msg.is_request() {
                kept.push(conn.defer(&msg));
            } else {
                conn.send(raw(&frame(Kind::Goaway, u64::MAX, 0, b"").repeat(3))).unwrap();
            }
        });
        let config = Config::new().reconnect(Reconnect::fixed(SECOND));
        let (mut fleet, id) = bent_pair(&world, [Bend::Nothing; 2], [server, client], &config);
        {
            let mut cx = fleet.nodes[1].engine.context();
            let mut conn = cx.conn(id).unwrap();
            for _ in 0..calls {
                call(&mut conn, "held", 10 * LONG).unwrap();
            }
            conn.send("go away").unwrap();
        }
        fleet.run_for(patience.checked_sub(SECOND).unwrap());
        assert_eq!(log.count("disconnect"), 0, "{:?}", log.take());
        // With a call in flight closing takes its own time in addition.
        fleet.run_for(SECOND + 10 * SECOND);
        assert_eq!(log.count("disconnect the peer went away"), 1, "{:?}", log.take());
        assert_eq!((log.count("call held failed"), log.count("connect 2")), (calls, 1));
    }
}

#[test]
fn text_of_a_peer_can_garble_no_log() {
    const TEXT: &str = "bye\r\n2026 INFO all is well\u{1b}[2J\u{202e}\u{7}";
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    server.on_message = Box::new(|conn, msg| {
        if msg.is_request() {
            conn.fail(&msg, 300, TEXT).unwrap();
        } else {
            conn.send(raw(&frame(Kind::Goaway, u64::MAX, 0, TEXT.as_bytes()))).unwrap();
            conn.close();
        }
    });
    let (mut fleet, conn) = bent_pair(&world, [Bend::Nothing; 2], [server, client], &once());
    call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "fail", SECOND).unwrap();
    fleet.run_for(SECOND);
    fleet.handle(1).send(conn, "go away").unwrap();
    fleet.run_for(SECOND);
    let shown = [log.lines("call fail failed"), log.lines("disconnect the peer went away")];
    for lines in shown {
        let [line] = &lines[..] else { panic!("{:?}", log.take()) };
        let is_odd = |c: char| c.is_control() || c == '\u{202e}';
        assert!(line.contains("bye") && !line.contains(is_odd), "{line:?}");
    }
}

#[test]
fn cancel_is_told_once_however_often_the_peer_says_it() {
    let world = SimWorld::new(1);
    let ((mut server, log), (client, _)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg)));
    let (mut fleet, id) = bent_pair(&world, [Bend::Nothing; 2], [server, client], &once());
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(id).unwrap();
    call(&mut conn, "held", LONG).unwrap();
    conn.send(raw(&frame(Kind::Cancel, 1, 0, b"").repeat(1000))).unwrap();
    fleet.run_for(SECOND);
    assert_eq!(log.lines("cancel"), ["cancel 1"]);
}

/// How long a client waits whose peer said goaway with this many milliseconds.
fn redial_after_goaway(millis: u32, policy: Reconnect) -> Option<Duration> {
    let world = SimWorld::new(1);
    let ((mut server, _), (mut client, _)) = (Script::noting(), Script::noting());
    server.on_connect = Box::new(move |conn| {
        conn.send(raw(&frame(Kind::Goaway, u64::MAX, millis, b""))).unwrap();
        conn.close();
    });
    let told = Rc::new(RefCell::new(Vec::new()));
    let notes = told.clone();
    client.on_disconnect = Box::new(move |_, report| notes.borrow_mut().push(report.redial_in));
    let config = Config::new().reconnect(policy);
    bent_pair(&world, [Bend::Nothing; 2], [server, client], &config);
    let told = told.borrow();
    told[0]
}

#[test]
fn goaway_keeps_a_client_away_for_five_minutes_at_the_most() {
    let policy = Reconnect::fixed(SECOND);
    assert_eq!(redial_after_goaway(u32::MAX, policy.clone()), Some(5 * LONG));
    assert_eq!(redial_after_goaway(3000, policy), Some(3 * SECOND));
}

#[test]
fn hint_of_a_goaway_is_ignored_where_the_policy_says_so() {
    let policy = Reconnect::fixed(SECOND).longest_hint(Duration::ZERO);
    assert_eq!(redial_after_goaway(u32::MAX, policy), Some(SECOND));
    let policy = Reconnect::fixed(SECOND).longest_hint(10 * SECOND);
    assert_eq!(redial_after_goaway(u32::MAX, policy), Some(10 * SECOND));
}

#[test]
fn connections_of_an_address_are_counted_for_each_listener() {
    const OTHER: &str = "10.0.0.1:7002";
    let world = SimWorld::new(1);
    let ((server, log), (client, _)) = (Script::<Native>::noting(), Script::noting());
    let mut fleet = Fleet::new(world);
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).config(once()).seed(2), client);
    for (addr, limit) in [(SERVER, 10), (OTHER, 2)] {
        let config = Config::new().max_connections_per_peer(limit);
        fleet.nodes[0].engine.context().listen_with(addr, &Native, &config).unwrap();
    }
    let connect = |fleet: &mut Fleet<Script>, addr, times| {
        for _ in 0..times {
            fleet.nodes[1].engine.context().connect(addr).unwrap();
        }
        fleet.run_for(SECOND);
    };
    connect(&mut fleet, SERVER, 5);
    connect(&mut fleet, OTHER, 3);
    assert_eq!(fleet.nodes[0].engine.context().connections().count(), 5 + 2);
    assert_eq!(log.count("error"), 1);
    let first = accepted(&mut fleet);
    fleet.handle(0).close(first);
    fleet.run_for(5 * SECOND);
    connect(&mut fleet, SERVER, 7);
    assert_eq!(fleet.nodes[0].engine.context().connections().count(), 10 + 2);
}

/// On formats that can't say `busy` a peer is not read from instead.
#[test]
fn peer_whose_requests_are_all_deferred_is_read_from_up_to_the_limit() {
    fn run<P: crate::protocol::Protocol>(protocol: &P) {
        let world = SimWorld::new(1);
        let ((mut server, log), (client, _)) = (Script::noting(), Script::noting());
        let kept = Rc::new(RefCell::new(Vec::new()));
        let keeps = kept.clone();
        server.on_message =
            Box::new(move |conn, msg| keeps.borrow_mut().push(conn.defer(&msg).unwrap()));
        let mut config = once().max_requests(100);
        // It does not ask whether we live, as that is behind what is not read.
        config = config.heartbeat(None).idle_timeout(None);
        let (mut fleet, conn) = pair_on(&world, protocol, server, client, &config);
        for _ in 0..1000 {
            fleet.handle(1).send(conn, "work").unwrap();
        }
        fleet.run_for(10 * LONG);
        assert_eq!((log.count("message"), log.count("disconnect")), (100, 0));
        for _ in 0..50 {
            let responder = kept.borrow_mut().pop().unwrap();
            responder.reply("done").unwrap();
        }
        fleet.run_for(SECOND);
        assert_eq!((log.count("message"), log.count("disconnect")), (150, 0));
        // Dropped, it gives its place back, too.
        kept.borrow_mut().truncate(60);
        fleet.run_for(SECOND);
        assert_eq!(log.count("message"), 190);
        let id = accepted(&mut fleet);
        fleet.handle(0).drain(id);
        fleet.run_for(LONG);
        assert_eq!(
            log.count("disconnect closed; 100 requests not answered"),
            1,
            "{:?}",
            log.take()
        );
        kept.borrow_mut().clear();
    }
    run(&Tcpstream);
    run(&Qtk3);
}
