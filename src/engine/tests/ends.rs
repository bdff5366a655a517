//! How connections end, and what is told of it.

use std::{cell::RefCell, rc::Rc, time::Duration};

use super::{
    bent::{Bend, bent_pair, frame, raw},
    fleet::Fleet,
    script::{SERVER, Script, accepted, call, pair},
};
use crate::{
    CallError, Config, Fate, Incident, ReactorBuilder, Reconnect, SendError,
    net::sim::SimWorld,
    protocol::{Hello, Kind, Native, Protocol},
    table::slot::Phase,
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

fn once() -> Config {
    Config::new().reconnect(Reconnect::never())
}

#[test]
fn call_that_ended_as_not_sent_does_not_leave() {
    let world = SimWorld::new(1);
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let (mut fleet, conn) = pair(&world, server, client, &Config::new());
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(conn).unwrap();
    let id = call(&mut conn, "cancelled", LONG).unwrap();
    conn.abort();
    conn.cancel_call(id);
    fleet.run_for(SECOND);
    assert_eq!(log.lines("call"), ["call cancelled failed: cancelled (not sent)"]);
    assert_eq!(seen.count("message"), 0, "{:?}", seen.take());
}

#[test]
fn call_whose_time_was_over_in_the_turn_of_an_abort_does_not_leave() {
    let world = SimWorld::new(1);
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let (mut fleet, conn) = pair(&world, server, client, &Config::new());
    let handle = fleet.handle(1);
    let pending = handle.call_async(conn, "late", Duration::ZERO);
    handle.abort(conn);
    fleet.run_for(SECOND);
    let Err(error) = pending.wait() else { panic!("nobody answered") };
    assert_eq!(error.fate(), Fate::NotSent, "{error}");
    assert_eq!(seen.count("message"), 0, "{:?}", seen.take());
    assert_eq!(log.count("disconnect aborted"), 1);
}

#[test]
fn nothing_that_was_queued_leaves_after_an_abort_whatever_follows_it() {
    for panics in [false, true] {
        let world = SimWorld::new(1);
        let ((server, seen), (mut client, _)) = (Script::noting(), Script::noting());
        client.may_panic = panics;
        client.on_timer = Box::new(move |cx, timer| {
            let mut conn = cx.conn(timer.conn.unwrap()).unwrap();
            conn.send("queued").unwrap();
            conn.abort();
            conn.close();
            assert!(!panics, "after the abort");
        });
        let (mut fleet, conn) = pair(&world, server, client, &Config::new());
        fleet.nodes[1].engine.context().conn(conn).unwrap().set_timer(SECOND, 0);
        fleet.run_for(LONG);
        assert_eq!(seen.count("message"), 0, "{:?}", seen.take());
    }
}

#[test]
fn panic_in_a_connections_timer_closes_it() {
    let world = SimWorld::new(1);
    let ((server, _), (mut client, log)) = (Script::noting(), Script::noting());
    client.may_panic = true;
    client.on_timer = Box::new(|_, _| panic!("as planned"));
    let (mut fleet, conn) = pair(&world, server, client, &Config::new());
    fleet.nodes[1].engine.context().conn(conn).unwrap().set_timer(SECOND, 7);
    fleet.run_for(2 * SECOND);
    assert_eq!(log.count("disconnect a callback panicked: as planned"), 1, "{:?}", log.take());
    assert_eq!(log.count("error on_timer panicked: as planned"), 1);
}

#[test]
fn redial_after_lingering_is_told_and_comes_when_it_was_told() {
    let world = SimWorld::new(1);
    let ((mut server, _), (mut client, log)) = (Script::noting(), Script::noting());
    server.on_connect = Box::new(|conn| _ = conn.send("bad"));
    client.may_panic = true;
    client.on_message = Box::new(|_, _| panic!("as planned"));
    let config = Config::new().reconnect(Reconnect::fixed(5 * SECOND));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    let told = log.lines("disconnect");
    assert_eq!(told, ["disconnect a callback panicked: as planned; redial in 5s"]);
    // It lingers, and exists all the same: it will be up again.
    let exists = fleet.nodes[1].engine.context().conn(conn).is_some();
    assert_eq!((exists, fleet.handle(1).is_open(conn)), (true, true));
    fleet.run_for(3 * SECOND);
    assert_eq!(log.count("connect 2"), 0);
    fleet.run_for(2 * SECOND);
    assert_eq!(log.count("connect 2"), 1, "{:?}", log.take());
}

#[test]
fn connection_that_is_closed_while_it_waits_ends_with_one_event() {
    let world = SimWorld::new(1);
    let ((server, _), (client, log)) = (Script::noting(), Script::noting());
    let config = Config::new().reconnect(Reconnect::fixed(LONG));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    let at_server = accepted(&mut fleet);
    fleet.handle(0).close(at_server);
    fleet.run_for(5 * SECOND);
    assert_eq!(log.count("disconnect"), 1);
    fleet.handle(1).close(conn);
    fleet.run_for(SECOND);
    let gone = format!("error connection {conn} to {SERVER} was closed while it was down");
    assert_eq!(log.lines("error"), [gone]);
    assert!(!fleet.handle(1).is_open(conn));
}

#[test]
fn dial_that_an_abort_meets_in_the_turn_of_its_success_never_comes_up() {
    let world = SimWorld::new(1);
    let ((server, _), (client, log)) = (Script::<Native>::noting(), Script::noting());
    let mut fleet = Fleet::new(world.clone());
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let conn = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    let phase =
        |fleet: &Fleet<Script>| fleet.nodes[1].engine.state.get(conn).map(|slot| slot.phase);
    fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(phase(&fleet), Some(Phase::Connecting));
    // The event that decides it waits, and the abort is posted before the turn that hears of it.
    world.advance(SECOND);
    fleet.handle(1).abort(conn);
    fleet.run_for(SECOND);
    assert_eq!(log.count("connect"), 0, "{:?}", log.take());
    assert_eq!(phase(&fleet), None);
}

#[test]
fn second_stop_can_only_get_sooner() {
    for (second, ends) in [(Duration::ZERO, true), (2 * LONG, false)] {
        let world = SimWorld::new(1);
        let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
        // Deferred and never answered: draining waits for it.
        let mut kept = Vec::new();
        server.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg).unwrap()));
        let config = Config::new().close_timeout(10 * LONG);
        let (mut fleet, conn) = pair(&world, server, client, &config);
        call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "kept", 10 * LONG).unwrap();
        fleet.run_for(SECOND);
        fleet.handle(0).stop_within(LONG);
        fleet.run_for(SECOND);
        fleet.handle(0).stop_within(second);
        fleet.run_for(SECOND);
        assert_eq!(fleet.nodes[0].engine.is_stopped(), ends);
        fleet.run_for(LONG);
        assert!(fleet.nodes[0].engine.is_stopped(), "the first timeout holds");
        assert_eq!(log.count("call kept failed"), 1);
    }
}

#[test]
fn broadcast_that_a_stop_cuts_is_accounted_for_to_the_last_receiver() {
    const CLIENTS: usize = 1000;
    let world = SimWorld::new(1);
    let ((server, log), (client, seen)) = (Script::<Native>::noting(), Script::noting());
    let mut fleet = Fleet::new(world);
    fleet.is_checked = false;
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    let config = Config::new().reconnect(Reconnect::never());
    fleet.add(2, ReactorBuilder::new(Native).config(config).seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    for _ in 0..CLIENTS {
        fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    }
    fleet.run_for(5 * SECOND);
    fleet.handle(0).broadcast("news").unwrap();
    fleet.handle(0).stop_within(Duration::ZERO);
    fleet.run_for(LONG);
    let unsent = fleet.nodes[0].engine.state.stopping.report().unsent_messages;
    assert_eq!(unsent + seen.count("message news") as u64, CLIENTS as u64);
    assert!(log.count("error") > 0);
}

#[test]
fn lingering_without_end_is_no_life() {
    let world = SimWorld::new(1);
    let ((server, log), (client, _)) = (Script::noting(), Script::noting());
    let config = Config::new().linger(Duration::MAX);
    let (mut fleet, _) = pair(&world, server, client, &config);
    let (one, other) = (fleet.nodes[0].host, fleet.nodes[1].host);
    let at_server = accepted(&mut fleet);
    // Cut off, so that the peer never closes.
    world.cut(one, other);
    fleet.handle(0).close(at_server);
    fleet.run_for(10 * LONG);
    assert_eq!(log.count("disconnect closed"), 1);
    let slot = fleet.nodes[0].engine.state.get(at_server);
    if let Some(slot) = slot {
        assert!(!slot.link.has_output(), "a ping is queued for a direction that is shut");
    }
}

#[test]
fn peer_that_says_goaway_and_stays_is_left_when_nothing_is_in_flight() {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    // The server drains, and holds the connection by a request that it never answers.
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg).unwrap()));
    let config = Config::new().close_timeout(100 * LONG).reconnect(Reconnect::fixed(SECOND));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "held", 20 * SECOND).unwrap();
    fleet.run_for(SECOND);
    let at_server = accepted(&mut fleet);
    fleet.handle(0).drain(at_server);
    fleet.run_for(10 * SECOND);
    assert_eq!(log.count("disconnect"), 0, "what is in flight is waited for");
    fleet.run_for(200 * LONG);
    assert_eq!(log.count("disconnect the peer went away"), 1, "{:?}", log.take());
    assert_eq!(log.count("connect 2"), 1);
}

#[test]
fn drain_does_not_wait_for_a_request_that_its_caller_has_cancelled() {
    for is_cancelled_first in [true, false] {
        let world = SimWorld::new(1);
        let ((mut server, seen), (client, log)) = (Script::noting(), Script::noting());
        let kept = Rc::new(RefCell::new(Vec::new()));
        let keep = kept.clone();
        server.on_message =
            Box::new(move |conn, msg| keep.borrow_mut().push(conn.defer(&msg).unwrap()));
        let config = Config::new().close_timeout(LONG).reconnect(Reconnect::never());
        let (mut fleet, conn) = pair(&world, server, client, &config);
        let held = call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "held", LONG);
        fleet.run_for(SECOND);
        let at_server = accepted(&mut fleet);
        if !is_cancelled_first {
            fleet.handle(0).drain(at_server);
            fleet.run_for(SECOND);
            assert_eq!(seen.count("disconnect"), 0, "the caller still waits");
        }
        let mut cx = fleet.nodes[1].engine.context();
        cx.conn(conn).unwrap().cancel_call(held.unwrap());
        fleet.run_for(SECOND);
        assert_eq!(seen.count("cancel"), 1);
        if is_cancelled_first {
            let mut cx = fleet.nodes[0].engine.context();
            let stats = cx.conn(at_server).unwrap().stats();
            assert_eq!(stats.requests_in_flight, 1, "its answer is still being made");
            fleet.handle(0).drain(at_server);
            fleet.run_for(SECOND);
        }
        assert_eq!(seen.lines("disconnect"), ["disconnect closed"], "and nothing was cut");
        assert_eq!(log.count("disconnect"), 1);
        let late = kept.take().pop().unwrap().reply("late").unwrap_err();
        assert_eq!(late.take_back().err(), Some(SendError::Closed));
        assert!(fleet.stop());
        fleet.assert_empty();
    }
}

#[test]
fn peer_that_said_goaway_is_left_when_it_has_cancelled_all_that_it_asked() {
    let world = SimWorld::new(1);
    let ((server, _), (mut client, log)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    client.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg).unwrap()));
    let config = Config::new().close_timeout(5 * SECOND).reconnect(Reconnect::never());
    let bends = [Bend::Nothing; 2];
    let (mut fleet, _) = bent_pair(&world, bends, [server, client], &config);
    let at_server = accepted(&mut fleet);
    let mut cx = fleet.nodes[0].engine.context();
    let mut conn = cx.conn(at_server).unwrap();
    let held = call(&mut conn, "held", LONG).unwrap();
    conn.send(raw(&frame(Kind::Goaway, u64::MAX, 0, b""))).unwrap();
    fleet.run_for(SECOND);
    fleet.nodes[0].engine.context().conn(at_server).unwrap().cancel_call(held);
    fleet.run_for(10 * SECOND);
    assert_eq!(log.count("disconnect the peer went away"), 1, "{:?}", log.take());
}

/// A relay moves the responder of a request into the callback of the call that it makes for it.
#[test]
fn callback_of_a_refused_call_is_given_back_with_what_was_moved_into_it() {
    for runs in [true, false] {
        let world = SimWorld::new(1);
        let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
        server.on_message = Box::new(move |conn, msg| {
            let responder = conn.defer(&msg).unwrap();
            // Nothing follows a close.
            conn.drain();
            let refused = conn
                .call("on", SECOND, |script: &mut Script, _, result| {
                    let Err(error) = result else { return };
                    script.log.note(format!("refused {error}"));
                    responder.fail(300, "refused").unwrap();
                })
                .unwrap_err();
            if runs {
                refused.run(&mut Script::default(), conn);
            } else {
                assert!(matches!(CallError::from(refused), CallError::Disconnected { .. }));
            }
        });
        let (mut fleet, conn) = pair(&world, server, client, &once());
        call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "x", LONG).unwrap();
        fleet.run_for(SECOND);
        let answer = if runs {
            "call x failed: the peer failed: refused (code 300)"
        } else {
            "call x failed: the peer failed: the responder was dropped (code 3)"
        };
        assert_eq!(log.lines("call"), [answer]);
    }
}

#[test]
fn handler_that_dials_whenever_a_dial_fails_does_not_keep_the_loop() {
    let world = SimWorld::new(1);
    // No route: a dial fails in the call that starts it.
    let mut faults = world.faults();
    faults.connect_error = 1.0;
    world.set_faults(faults);
    let (mut script, log) = Script::<Native>::noting();
    script.on_error = Box::new(|cx, incident| {
        if matches!(incident, Incident::DialFailed { .. }) {
            let _ = cx.connect(SERVER);
        }
    });
    let config = Config::new().reconnect(Reconnect::never());
    let mut fleet = Fleet::new(world);
    fleet.add(2, ReactorBuilder::new(Native).config(config).seed(2), script);
    fleet.nodes[0].engine.context().connect(SERVER).unwrap();
    for turn in 1..=20 {
        fleet.nodes[0].engine.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(log.count("error"), turn, "one dial a turn");
    }
}

#[test]
fn broadcast_reaches_nobody_who_has_not_said_hello() {
    let world = SimWorld::new(1);
    let ((server, log), (client, seen)) = (Script::noting(), Script::noting());
    let mut fleet = Fleet::new(world.clone());
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    let (one, other) = (fleet.nodes[0].host, fleet.nodes[1].host);
    // The client's hello is held back: the server has a connection, and no peer.
    let has_accepted = |fleet: &mut Fleet<Script>| fleet.nodes[0].engine.state.stats.accepted == 1;
    assert!(fleet.run_until(SECOND, has_accepted));
    world.cut_one_way(other, one);
    fleet.run_for(SECOND);
    assert_eq!(fleet.nodes[0].engine.context().broadcast(crate::Audience::All, "news"), 0);
    assert_eq!(fleet.nodes[0].engine.context().connections().count(), 0);
    fleet.run_for(10 * SECOND);
    assert_eq!(log.count("connect"), 0);
    assert_eq!(log.count("error connection"), 1, "{:?}", log.take());
    assert_eq!(seen.count("message"), 0);
    assert_eq!(fleet.nodes[0].engine.state.stats.handshakes_failed, 1);
}

#[test]
fn calls_are_refused_and_messages_kept_until_the_peer_has_said_hello() {
    let world = SimWorld::new(1);
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let bends = [Bend::Silent, Bend::Nothing];
    let (mut fleet, conn) = bent_pair(&world, bends, [server, client], &Config::new());
    let phase = fleet.nodes[1].engine.state.get(conn).map(|slot| slot.phase);
    assert_eq!((phase, log.count("connect")), (Some(Phase::Greeting), 0));
    let handle = fleet.handle(1);
    assert!(handle.is_open(conn) && !handle.is_up(conn));
    handle.send(conn, "kept").unwrap();
    let mut cx = fleet.nodes[1].engine.context();
    let refused = call(&mut cx.conn(conn).unwrap(), "early", SECOND).unwrap_err();
    assert!(matches!(refused, CallError::Disconnected { fate: Fate::NotSent, .. }), "{refused}");
    let hello = Hello::new(1000, 10, 0, 0);
    let at_server = accepted(&mut fleet);
    let mut frame = Vec::new();
    Native.encode_hello(&hello, &mut frame);
    fleet.handle(0).send(at_server, raw(&frame)).unwrap();
    fleet.run_for(SECOND);
    assert_eq!(seen.lines("message"), ["message kept"]);
    assert!(handle.is_up(conn));
}
