//! What waits to be sent: its order, its bounds, and what becomes of it.

use std::{cell::Cell, rc::Rc, time::Duration};

use super::{
    bent::{Bend, bent_pair},
    fleet::Fleet,
    script::{Log, SERVER, Script, call, pair},
};
use crate::{
    Audience, Config, ConnId, ReactorBuilder, Reconnect, SendError, net::sim::SimWorld,
    protocol::Native,
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// Messages that are kept while the connection is down: more than its queue may hold.
const KEPT: usize = 80;

/// A client that keeps five times as much as its queue may hold, for a server that is not there yet.
fn keeping(reconnect: Duration, age: Duration) -> (SimWorld, Fleet<Script>, ConnId, [Log; 2]) {
    let world = SimWorld::new(1);
    let ((server, seen), (mut client, log)) = (Script::noting(), Script::noting());
    client.on_connect = Box::new(|conn| conn.send("first").unwrap());
    let config = Config::new()
        .watermarks(4000, 15_000)
        .hard_limit(20_000)
        .offline_queue(100_000, age)
        .socket_buffers(4096, 4096)
        .reconnect(Reconnect::fixed(reconnect));
    let mut fleet = Fleet::new(world.clone());
    for (number, script) in [(1, server), (2, client)] {
        let builder = ReactorBuilder::new(Native).config(config.clone());
        fleet.add(number, builder.seed(u64::from(number)), script);
    }
    let conn = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(Duration::from_millis(1));
    let mut cx = fleet.nodes[1].engine.context();
    let mut dialled = cx.conn(conn).unwrap();
    for number in 0..KEPT {
        dialled.send(numbered(number)).unwrap();
    }
    (world, fleet, conn, [seen, log])
}

/// A body of 1000 bytes that tells which it is.
fn numbered(number: usize) -> String {
    format!("{number:03}{}", "-".repeat(997))
}

fn is_up(fleet: &Fleet<Script>, conn: ConnId) -> bool {
    fleet.handle(1).is_up(conn)
}

#[test]
fn more_than_the_queue_may_hold_is_kept_and_arrives_in_order() {
    let (_, mut fleet, conn, [seen, log]) = keeping(SECOND, LONG);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    assert!(fleet.run_until(LONG, |fleet| is_up(fleet, conn)));
    // What is sent now comes behind what was kept.
    let mut cx = fleet.nodes[1].engine.context();
    cx.conn(conn).unwrap().send("from a callback").unwrap();
    assert_eq!(cx.broadcast(Audience::All, "broadcast"), 1);
    // A thread has to wait until there is room.
    assert_eq!(fleet.handle(1).send(conn, "refused"), Err(SendError::Full));
    fleet.run_for(LONG);
    let messages: Vec<_> =
        seen.lines("message").iter().map(|line| line["message ".len()..].to_owned()).collect();
    assert_eq!(messages.len(), 1 + KEPT + 2);
    assert_eq!(messages[0], "first");
    for (number, message) in messages[1..=KEPT].iter().enumerate() {
        assert!(message.starts_with(&format!("{number:03}-")), "{number}: {message}");
    }
    assert_eq!(messages[KEPT + 1..], ["from a callback", "broadcast"]);
    assert_eq!((log.count("disconnect"), log.count("error")), (0, 1), "{:?}", log.take());
}

/// Its way to the peer is cut as soon as it is up, so that little of what was kept has left.
#[test]
fn what_was_kept_waits_on_when_the_connection_is_lost_half_way() {
    let (world, mut fleet, conn, [seen, log]) = keeping(SECOND, 2 * LONG);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    assert!(fleet.run_until(LONG, |fleet| is_up(fleet, conn)));
    let half_way = |seen: &Log| seen.count("message") >= 5;
    assert!(fleet.run_until(SECOND, |_| half_way(&seen)));
    world.reset(*world.connections().last().unwrap());
    fleet.run_for(LONG);
    let unsent = unsent(&log);
    assert_eq!(log.count("connect"), 2);
    assert!(unsent > 0, "{:?}", log.lines("disconnect"));
    let arrived = seen.lines("message 0").len();
    // A few may have been on their way.
    assert!((KEPT - 12..=KEPT).contains(&(arrived + unsent)), "{arrived} and {unsent}");
    let mut sorted = seen.lines("message 0");
    sorted.sort();
    assert_eq!(seen.lines("message 0"), sorted);
    assert_eq!(log.count("disconnect slow"), 0);
}

/// Messages that close reports said were not sent.
fn unsent(log: &Log) -> usize {
    let number = |line: &String| {
        line.split("; ")
            .find_map(|part| part.split_once(" messages unsent")?.0.parse::<usize>().ok())
    };
    log.lines("disconnect").iter().filter_map(number).sum()
}

#[test]
fn what_waits_on_after_a_loss_keeps_its_age() {
    let (world, mut fleet, conn, [seen, log]) = keeping(20 * SECOND, 30 * SECOND);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    assert!(fleet.run_until(LONG, |fleet| is_up(fleet, conn)));
    assert!(fleet.run_until(SECOND, |_| seen.count("message") >= 5));
    world.reset(*world.connections().last().unwrap());
    let before = seen.count("message 0");
    fleet.run_for(LONG);
    // 40 s old when the connection is up again.
    assert_eq!(log.count("connect"), 2);
    assert_eq!(seen.count("message 0"), before);
    let undelivered = fleet.nodes[1].engine.state.stats.undelivered;
    assert!(undelivered >= (KEPT - 20) as u64, "{undelivered}");
}

#[test]
fn message_that_no_epoch_could_send_is_not_older_than_its_age_when_it_arrives() {
    let world = SimWorld::new(1);
    let ((server, seen), (mut client, log)) = (Script::noting(), Script::noting());
    client.may_panic = true;
    client.on_connect = Box::new(|conn| assert!(conn.epoch() > 10, "as planned"));
    let config =
        Config::new().offline_queue(10_000, 5 * SECOND).reconnect(Reconnect::fixed(2 * SECOND));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    fleet.handle(1).send(conn, "news").unwrap();
    fleet.run_for(2 * LONG);
    assert_eq!(log.count("connect 11"), 1);
    assert_eq!(seen.count("message"), 0, "it is 20 s old");
    assert_eq!(log.count(&format!("error connection {conn}: 1 messages")), 1, "{:?}", log.take());
}

#[test]
fn answers_to_a_healthy_peer_reach_no_hard_limit_that_is_the_high_watermark() {
    let world = SimWorld::new(1);
    let ((mut server, log), (client, outcome)) = (Script::noting(), Script::noting());
    server.on_message = Box::new(|conn, msg| conn.reply(&msg, vec![b'y'; 8000]).unwrap());
    let config =
        Config::new().watermarks(10_000, 100_000).hard_limit(100_000).socket_buffers(4096, 4096);
    let (mut fleet, conn) = pair(&world, server, client, &config);
    for _ in 0..500 {
        call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "work", LONG).unwrap();
    }
    fleet.run_for(LONG);
    assert_eq!(log.count("disconnect"), 0, "{:?}", log.lines("disconnect"));
    assert_eq!(outcome.count("reply to work"), 500);
}

#[test]
fn nothing_that_was_queued_leaves_for_a_slow_consumer_that_is_then_closed() {
    for end in ["close", "panic", "broadcast"] {
        let world = SimWorld::new(1);
        let ((server, seen), (mut client, log)) = (Script::noting(), Script::noting());
        client.may_panic = end == "panic";
        let accepted = Rc::new(Cell::new(0));
        let count = accepted.clone();
        client.on_timer = Box::new(move |cx, timer| {
            let mut conn = cx.conn(timer.conn.unwrap()).unwrap();
            while conn.send(numbered(0)) == Ok(()) {
                count.set(count.get() + 1);
            }
            assert_ne!(end, "panic", "as planned");
            if end == "close" {
                conn.close();
            } else {
                assert_eq!(conn.cx().broadcast(Audience::All, "news"), 0);
            }
        });
        let config =
            Config::new().watermarks(4000, 15_000).hard_limit(20_000).reconnect(Reconnect::never());
        let (mut fleet, conn) = pair(&world, server, client, &config);
        fleet.nodes[1].engine.context().conn(conn).unwrap().set_timer(SECOND, 0);
        fleet.run_for(LONG);
        assert_eq!(seen.count("message"), 0, "{end}");
        assert_eq!(log.count("disconnect slow consumer"), 1, "{end}: {:?}", log.take());
        assert_eq!((accepted.get(), unsent(&log)), (18, 18), "{end}");
    }
}

#[test]
fn broadcast_that_makes_a_slow_consumer_lets_nothing_leave() {
    let world = SimWorld::new(1);
    let ((server, seen), (mut client, log)) = (Script::noting(), Script::noting());
    client.on_timer = Box::new(|cx, _| {
        for _ in 0..30 {
            cx.broadcast(Audience::All, numbered(0));
        }
    });
    let config =
        Config::new().watermarks(4000, 15_000).hard_limit(20_000).reconnect(Reconnect::never());
    let (mut fleet, _) = pair(&world, server, client, &config);
    fleet.nodes[1].engine.context().set_timer(SECOND, 0);
    fleet.run_for(LONG);
    assert_eq!(seen.count("message"), 0);
    // Those that found no room, those that found nobody any more: all but the latter are accounted for.
    assert_eq!((unsent(&log), fleet.nodes[1].engine.state.stats.undelivered), (18, 18 + 1));
}

/// A caller must not read the error before the news that were sent before it.
#[test]
fn error_does_not_overtake_the_broadcast_that_was_made_before_it() {
    const CLIENTS: usize = 600;
    let world = SimWorld::new(1);
    let ((mut server, _), (mut client, log)) = (Script::<Native>::noting(), Script::noting());
    server.on_message = Box::new(|conn, _| {
        conn.cx().broadcast(Audience::All, "news");
        // No answer: that is an error.
    });
    let callers = Rc::new(Cell::new(None));
    let caller = callers.clone();
    client.on_message = Box::new(move |conn, _| {
        if caller.get() == Some(conn.id()) {
            // Noted for the caller alone.
            conn.set_timer(Duration::ZERO, 77);
        }
    });
    let mut fleet = Fleet::new(world);
    fleet.is_checked = false;
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let mut last = None;
    for _ in 0..CLIENTS {
        last = Some(fleet.nodes[1].engine.context().connect(SERVER).unwrap());
    }
    fleet.run_for(5 * SECOND);
    callers.set(last);
    call(&mut fleet.nodes[1].engine.context().conn(last.unwrap()).unwrap(), "ask", LONG).unwrap();
    let is_answered = |log: &Log| log.count("call ask failed") == 1;
    assert!(fleet.run_until(LONG, |_| is_answered(&log)));
    let messages_before = log.take();
    let error = messages_before.iter().position(|line| line.starts_with("call ask")).unwrap();
    // The caller's slot is among the last to be served, so by then it had got the news out of turn.
    let news = messages_before[..error].iter().filter(|line| *line == "message news").count();
    assert!(news > 0);
    let stats = fleet.nodes[1].engine.context().conn(last.unwrap()).unwrap().stats();
    assert!(stats.messages_in >= 2, "{stats:?}");
}

#[test]
fn timers_of_a_connection_are_forgotten_as_they_fire() {
    let world = SimWorld::new(1);
    let ((server, _), (client, log)) = (Script::noting(), Script::noting());
    let (mut fleet, id) = bent_pair(&world, [Bend::Nothing; 2], [server, client], &Config::new());
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(id).unwrap();
    for number in 0..5000 {
        conn.set_timer(SECOND, number);
    }
    let cancelled = conn.set_timer(SECOND, 9999);
    assert!(cx.cancel_timer(cancelled));
    let left = |fleet: &Fleet<Script<super::bent::Bent>>| {
        fleet.nodes[1].engine.state.get(id).unwrap().own.as_ref().unwrap().timers.len()
    };
    assert_eq!(left(&fleet), 5000);
    fleet.run_for(2 * SECOND);
    assert_eq!((left(&fleet), log.count("timer")), (0, 5000));
}
