//! Budgets, pauses, sizes and limits of layers, and several at once: what a fresh look tried against
//! `docs/design.md`, "Layers".

use std::{cell::Cell, rc::Rc, time::Duration};

use super::{
    fleet::Fleet,
    odd::*,
    script::{SERVER, Script, accepted, call},
};
use crate::{
    Audience, ReactorBuilder, Reconnect,
    layer::records::Records,
    net::{BroughtStream, Net, sim::SimWorld},
    protocol::{Native, Tcpstream},
};

// ---- budgets, pauses, sizes ----

/// "Everything done in a turn has a budget", also where one byte of the wire is a megabyte of frames.
#[test]
fn layer_that_expands_is_read_within_the_budget_and_through_pauses() {
    const MESSAGES: usize = 40_000;
    let expands_to: Vec<u8> =
        (0..MESSAGES).flat_map(|number| frame(&numbered(number, 3))).collect();
    let (mut server, log) = Script::noting();
    server.on_message = Box::new(|conn, msg| {
        if msg.text().starts_with("000700") || msg.text().starts_with("039999") {
            conn.pause();
        }
    });
    let mut siege = Siege::with(Odd { expands_to, ..PLAIN }.config(), server);
    assert_eq!(log.take(), ["connect 1"]);
    siege.write(b"x");
    siege.fleet.run_for(SECOND);
    assert_eq!(log.count("message"), 701, "what the layer has waits while reading is paused");
    let at_server = accepted(&mut siege.fleet);
    siege.fleet.nodes[0].engine.context().conn(at_server).unwrap().resume();
    let mut before = log.count("message");
    for _ in 0..100 {
        siege.fleet.nodes[0].engine.turn(Some(Duration::ZERO)).unwrap();
        let now = log.count("message");
        assert!(now - before <= 1024 + 1, "{} in one turn", now - before);
        before = now;
    }
    assert_eq!(numbers(&log.lines("message")), (0..MESSAGES).collect::<Vec<_>>());
    // The end comes behind all of it.
    siege.net.shutdown(&mut siege.stream).unwrap();
    siege.fleet.run_for(SECOND);
    siege.fleet.nodes[0].engine.context().conn(at_server).unwrap().resume();
    siege.fleet.run_for(SECOND);
    assert_eq!(log.lines("disconnect"), ["disconnect closed by the peer"]);
}

#[test]
fn layer_that_expands_does_not_starve_others() {
    let expands_to: Vec<u8> = (0..40_000).flat_map(|number| frame(&numbered(number, 3))).collect();
    let mut siege = Siege::of(Odd { expands_to, ..PLAIN }.config());
    siege.log.take();
    let other = ReactorBuilder::new(Tcpstream).config(plain()).seed(5);
    let (script, log) = Script::noting();
    siege.fleet.add(2, other, script);
    let second = "10.0.0.1:7002";
    let mut cx = siege.fleet.nodes[0].engine.context();
    cx.listen_with(second, &Tcpstream, &plain()).unwrap();
    let id = siege.fleet.nodes[1].engine.context().connect(second).unwrap();
    siege.fleet.run_for(SECOND);
    assert_eq!(log.count("connect"), 1);
    siege.fleet.handle(1).send(id, "other").unwrap();
    siege.write(b"xx");
    assert!(siege.fleet.run_until(SECOND, |_| siege.log.count("message other") == 1));
    assert!(siege.log.count("message") < 20_000, "{}", siege.log.count("message"));
}

#[test]
fn layer_that_seals_a_byte_at_a_time_changes_nothing() {
    let world = SimWorld::new(1);
    let config = Odd { seals: 1, ..PLAIN }.config();
    let configs = [config.clone(), config];
    let (mut fleet, id, [seen, log]) = fleet_of(&world, &Native, configs);
    for number in 0..30 {
        fleet.handle(1).send(id, numbered(number, 3000)).unwrap();
    }
    let mut cx = fleet.nodes[1].engine.context();
    call(&mut cx.conn(id).unwrap(), "question", 10 * SECOND).unwrap();
    fleet.run_for(5 * SECOND);
    assert_eq!(numbers(&seen.lines("message 0")), (0..30).collect::<Vec<_>>());
    assert_eq!(log.count("reply"), 1);
    fleet.handle(1).send(id, numbered(30, 100_000)).unwrap();
    fleet.handle(1).close(id);
    fleet.run_for(5 * SECOND);
    assert_eq!(seen.count("message 000030"), 1);
    assert_eq!(log.lines("disconnect"), ["disconnect closed"]);
}

#[test]
fn large_frames_go_both_ways_through_records() {
    let world = SimWorld::new(3);
    let config = layered(Records { longest: 60_000, delays: 0.3, ..RECORDS });
    let configs = [config.clone(), config];
    let (mut fleet, id, [seen, log]) = fleet_of(&world, &Native, configs);
    fleet.run_for(SECOND);
    let sizes = [65_511, 65_512, 65_513, 65_536, 131_072, 3_000_000];
    for size in sizes {
        let at_server = accepted(&mut fleet);
        fleet.handle(1).send(id, numbered(size / 10, size)).unwrap();
        fleet.handle(0).send(at_server, numbered(size / 10, size)).unwrap();
        fleet.run_for(60 * SECOND);
    }
    let expected: Vec<_> = sizes.iter().map(|size| size / 10).collect();
    assert_eq!(numbers(&seen.lines("message")), expected);
    assert_eq!(numbers(&log.lines("message")), expected);
    let (one, other) = (&fleet.nodes[0].engine.state.stats, &fleet.nodes[1].engine.state.stats);
    assert_eq!((one.bytes_in, one.bytes_out), (other.bytes_out, other.bytes_in), "of the wire");
    assert_eq!((one.messages_in, one.messages_out), (6, 6));
    let bytes = fleet.nodes[1].engine.context().conn(id).unwrap().stats().bytes_in;
    assert_eq!(bytes, fleet.nodes[1].engine.state.stats.bytes_in);
}

#[test]
fn pause_holds_what_the_layer_lets_out_later() {
    let world = SimWorld::new(1);
    let config = layered(Records { delays: 1.0, longest: 30, ..RECORDS });
    let configs = [config.clone(), config];
    let ((mut server, seen), (client, _)) = (Script::noting(), Script::noting());
    server.on_message = Box::new(|conn, _| _ = conn.pause());
    let (mut fleet, id) = fleet_with(&world, &Native, configs, [server, client]);
    fleet.run_for(2 * SECOND);
    for number in 0..20 {
        fleet.handle(1).send(id, numbered(number, 10)).unwrap();
    }
    let at_server = accepted(&mut fleet);
    for number in 0..20 {
        fleet.run_for(5 * SECOND);
        assert_eq!(seen.count("message"), number + 1);
        fleet.nodes[0].engine.context().conn(at_server).unwrap().resume();
    }
    assert_eq!(numbers(&seen.lines("message")), (0..20).collect::<Vec<_>>());
}

// ---- limits ----

#[test]
fn slow_consumer_behind_a_layer_is_cut_and_all_is_accounted_for() {
    let world = SimWorld::new(1);
    let config = layered(RECORDS).watermarks(10_000, 100_000).hard_limit(200_000);
    let configs = [config.clone().socket_buffers(4096, 4096), config.socket_buffers(4096, 4096)];
    let ((mut server, seen), (client, log)) = (Script::noting(), Script::noting());
    server.on_message = Box::new(|conn, _| _ = conn.pause());
    let (mut fleet, id) = fleet_with(&world, &Native, configs, [server, client]);
    fleet.run_for(SECOND);
    let mut sent = 0;
    while sent < 1000 {
        let mut cx = fleet.nodes[1].engine.context();
        let Some(mut conn) = cx.conn(id) else { break };
        if conn.send(numbered(sent, 1000)).is_err() {
            break;
        }
        sent += 1;
        fleet.run_for(Duration::from_millis(1));
    }
    fleet.run_for(SECOND);
    assert_eq!(log.count("disconnect slow consumer"), 1, "{:?}", log.take());
    assert!(sent < 1000 && unsent(&log) <= sent && unsent(&log) >= 150, "{sent} {}", unsent(&log));
    assert_eq!(seen.count("message"), 1);
}

#[test]
fn writable_comes_once_when_a_layered_queue_is_down_at_its_low_mark() {
    let world = SimWorld::new(1);
    let config = layered(RECORDS).watermarks(0, 50_000);
    let configs = [config.clone(), config];
    let (mut fleet, id, [seen, log]) = fleet_of(&world, &Native, configs);
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(id).unwrap();
    for number in 0..100 {
        conn.send(numbered(number, 1000)).unwrap();
    }
    assert!(!conn.is_writable());
    fleet.run_for(5 * SECOND);
    assert_eq!((seen.count("message"), log.count("writable")), (100, 1));
}

#[test]
fn what_an_abort_cuts_in_a_batch_is_handed_back_in_order() {
    let world = SimWorld::new(1);
    let config = layered(RECORDS).socket_buffers(4096, 4096);
    let configs = [config.clone(), config];
    let ((mut server, seen), (mut client, log)) = (Script::noting(), Script::noting());
    server.on_message = Box::new(|conn, _| _ = conn.pause());
    let back = Rc::new(Cell::new(Vec::new()));
    let give = back.clone();
    client.on_disconnect = Box::new(move |conn, _| give.set(conn.take_unsent()));
    let (mut fleet, id) = fleet_with(&world, &Native, configs, [server, client]);
    fleet.run_for(SECOND);
    for number in 0..100 {
        fleet.handle(1).send(id, numbered(number, 500)).unwrap();
    }
    fleet.run_for(SECOND);
    fleet.nodes[1].engine.context().conn(id).unwrap().abort();
    fleet.run_for(SECOND);
    let back: Vec<usize> = back
        .take()
        .iter()
        .map(|tagged| std::str::from_utf8(&tagged.1[..6]).unwrap().parse().unwrap())
        .collect();
    assert!(!back.is_empty() && back.len() < 100, "{}", back.len());
    assert_eq!(back, (100 - back.len()..100).collect::<Vec<_>>());
    assert_eq!(unsent(&log), back.len());
    assert!(seen.count("message") <= 100 - back.len());
}

// ---- several at once, and again ----

#[test]
fn connection_that_comes_back_shakes_hands_anew_and_sends_what_was_kept() {
    let world = SimWorld::new(1);
    let records = Records { longest: 100, delays: 0.3, is_strict: false, ..RECORDS };
    let config = layered(records).reconnect(Reconnect::fixed(2 * SECOND));
    let configs = [config.clone(), config];
    let (mut fleet, id, [seen, log]) = fleet_of(&world, &Native, configs);
    for round in 0..5 {
        fleet.run_for(10 * SECOND);
        assert_eq!(log.count("connect"), round + 1, "{:?}", log.take());
        // In the middle of a batch.
        for number in 0..20 {
            fleet.handle(1).send(id, format!("lost {round} {number}")).unwrap();
        }
        fleet.run_for(Duration::from_millis(5));
        world.reset(*world.connections().last().unwrap());
        fleet.run_for(SECOND);
        for number in 0..10 {
            fleet.handle(1).send(id, format!("kept {round} {number}")).unwrap();
        }
    }
    fleet.run_for(20 * SECOND);
    let kept: Vec<_> = (0..5)
        .flat_map(|round| (0..10).map(move |number| format!("message kept {round} {number}")))
        .collect();
    assert_eq!(seen.lines("message kept"), kept);
    assert_eq!(log.count("error"), 0);
    let lost = seen.count("message lost") + unsent(&log);
    assert!(lost <= 100, "{lost}");
}

#[test]
fn broadcast_reaches_layered_and_plain_connections_alike_and_in_order() {
    let world = SimWorld::new(1);
    let mut fleet = Fleet::new(world);
    let (server, _) = Script::noting();
    let records = layered(RECORDS);
    fleet.add(1, ReactorBuilder::new(Native).config(plain()).seed(1), server);
    let addrs = ["10.0.0.1:7001", "10.0.0.1:7002", "10.0.0.1:7003"];
    let configs = [plain(), records, Odd { seals: 3, ..PLAIN }.config()];
    let mut cx = fleet.nodes[0].engine.context();
    for (addr, config) in addrs.iter().zip(&configs) {
        cx.listen_with(*addr, &Native, config).unwrap();
    }
    let mut logs = Vec::new();
    for number in 0..6 {
        let (client, log) = Script::noting();
        let config = configs[number % 3].clone();
        let host = u8::try_from(number + 2).unwrap();
        fleet.add(host, ReactorBuilder::new(Native).config(config).seed(9), client);
        fleet.nodes[number + 1].engine.context().connect(addrs[number % 3]).unwrap();
        logs.push(log);
    }
    fleet.run_for(SECOND);
    let mut cx = fleet.nodes[0].engine.context();
    for number in 0..100 {
        // The large ones are shared by the queues.
        let len = if number % 10 == 0 { 20_000 } else { 50 };
        assert_eq!(cx.broadcast(Audience::All, numbered(number, len)), 6);
    }
    fleet.run_for(10 * SECOND);
    for log in logs {
        assert_eq!(numbers(&log.lines("message")), (0..100).collect::<Vec<_>>());
    }
}

#[test]
fn stream_that_was_brought_gets_the_layer_of_its_settings() {
    let mut siege = Siege::of(layered(RECORDS));
    let (script, log) = Script::noting();
    siege.fleet.add(2, ReactorBuilder::new(Tcpstream).config(plain()).seed(5), script);
    // The second node takes a stream over to somebody who shakes hands as the one who dialled.
    let second = "10.0.0.1:7002";
    let mut cx = siege.fleet.nodes[0].engine.context();
    cx.listen_with(second, &Tcpstream, &Odd { seals: 7, ..PLAIN }.config()).unwrap();
    let engine = &mut siege.fleet.nodes[1].engine;
    let stream = engine.sockets.net.dial(second.parse().unwrap(), &STREAM).unwrap();
    siege.fleet.run_for(SECOND);
    assert_eq!(stream.is_up(), Some(true));
    let engine = &mut siege.fleet.nodes[1].engine;
    let brought = BroughtStream::Simulated(stream);
    let config = Odd { seals: 5, ..PLAIN }.config();
    let id = engine.context().adopt_brought(brought, &Tcpstream, &config).unwrap();
    siege.fleet.run_for(SECOND);
    assert_eq!(log.count("connect"), 1);
    siege.fleet.handle(1).send(id, numbered(1, 10_000)).unwrap();
    siege.fleet.handle(1).close(id);
    siege.fleet.run_for(3 * SECOND);
    assert_eq!(siege.log.count("message 000001"), 1);
    assert_eq!(log.lines("disconnect"), ["disconnect closed"]);
}

/// Every conversation ends with nothing left, whatever phase a stop meets the records in.
#[test]
fn stop_at_any_moment_leaves_nothing() {
    for millis in (0..200).step_by(3) {
        let world = SimWorld::new(millis);
        let config = layered(Records { longest: 20, delays: 0.3, ..RECORDS });
        let ((server, _), (client, _)) = (Script::noting(), Script::noting());
        let mut fleet = Fleet::new(world);
        for (number, script) in [(1, server), (2, client)] {
            let builder = ReactorBuilder::new(Native).config(config.clone()).seed(number.into());
            fleet.add(number, builder, script);
        }
        fleet.nodes[0].engine.context().listen(SERVER).unwrap();
        let id = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
        for number in 0..10 {
            let _ = fleet.handle(1).send(id, numbered(number, 200));
        }
        fleet.run_for(Duration::from_millis(millis));
        if let Some(mut conn) = fleet.nodes[1].engine.context().conn(id) {
            let _ = call(&mut conn, "question", 10 * SECOND);
        }
        assert!(fleet.stop());
        fleet.assert_empty();
    }
}
