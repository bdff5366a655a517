//! The promises at their edges, by one who has only read them: numbers at their ends, ends that are told
//! once and truly.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "shorter than the path of the method"
)]

use std::{cell::RefCell, rc::Rc, time::Duration};

use super::{
    fleet::Fleet,
    script::{SERVER, Script, accepted, call, once, pair},
};
use crate::{
    Audience, Config, Incident, ReactorBuilder, Reconnect, net::sim::SimWorld, protocol::Native,
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

fn fixed(delay: Duration) -> Config {
    Config::new().reconnect(Reconnect::fixed(delay))
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
        notes.note(format!("taken {} {} {}", conn.join("late"), conn.pause(), conn.resume()));
        conn.set_data(vec![1_u8; 100]);
        conn.set_timer(SECOND, 7);
        conn.set_timer(Duration::MAX, 8);
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
    assert_eq!(log.count("taken false false false"), 1, "{:?}", log.take());
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
