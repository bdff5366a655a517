//! Deadlines, fates, ends and handshakes of layers: what a fresh look tried against `docs/design.md`, "Layers".

use std::{cell::Cell, rc::Rc};

use super::{
    odd::*,
    script::{SERVER, Script, accepted, call, pair_on},
};
use crate::{
    Config, Reconnect,
    layer::records::{Records, data_record},
    net::{Net, sim::SimWorld},
    protocol::{Native, Tcpstream},
};

// ---- deadlines ----

/// "A record that has begun has the time of a frame."
#[test]
fn each_record_has_its_own_time() {
    let mut siege = Siege::up(RECORDS);
    siege.write(&[24, 0]);
    for _ in 0..6 {
        siege.fleet.run_for(10 * SECOND);
        // The end of one, which took 10 s of its 30, and the start of the next.
        siege.write(&[0, 24, 0]);
        assert_eq!(siege.log.lines("disconnect"), [""; 0]);
    }
}

/// As above, where each record carries a whole frame.
#[test]
fn each_record_of_frames_has_its_own_time() {
    let mut siege = Siege::up(RECORDS);
    let record = data_record(&frame(b"news"));
    siege.write(&record[..2]);
    for _ in 0..6 {
        siege.fleet.run_for(10 * SECOND);
        siege.write(&[&record[2..], &record[..2]].concat());
        assert_eq!(siege.log.lines("disconnect"), [""; 0]);
    }
}

/// tuning.md: "While a connection is paused and something waits for it unread, nothing of this is
/// noticed"; and where nothing waits, it is.
fn paused_and_gone(config: &Config) -> usize {
    let world = SimWorld::new(1);
    let config = config.clone().heartbeat(SECOND).idle_timeout(3 * SECOND);
    let ((mut server, seen), (client, _)) = (Script::noting(), Script::noting());
    server.on_message = Box::new(|conn, _| _ = conn.pause());
    let configs = [config.clone(), config];
    let (mut fleet, conn) = fleet_with(&world, &Native, configs, [server, client]);
    fleet.handle(1).send(conn, "news").unwrap();
    assert!(fleet.run_until(SECOND, |_| seen.count("message") == 1));
    world.cut(fleet.nodes[0].host, fleet.nodes[1].host);
    fleet.run_for(30 * SECOND);
    seen.count("disconnect")
}

#[test]
fn paused_connection_notices_a_peer_that_is_gone() {
    assert_eq!(paused_and_gone(&plain()), 1);
}

#[test]
fn paused_connection_with_a_layer_notices_a_peer_that_is_gone() {
    assert_eq!(paused_and_gone(&layered(RECORDS)), 1);
}

/// "A layer may hold bytes back, on either side, until a time that it names." `write_timeout` is about a
/// peer that takes nothing.
#[test]
fn layer_that_rests_longer_than_the_write_timeout_is_no_peer_that_takes_nothing() {
    let world = SimWorld::new(1);
    let config = Odd { rests: 3 * SECOND, seals: 20, ..PLAIN }.config();
    let config = config.write_timeout(2 * SECOND).hello_timeout(60 * SECOND);
    let server = plain().hello_timeout(60 * SECOND);
    let (mut fleet, conn, [seen, log]) = fleet_of(&world, &Native, [server, config]);
    fleet.run_for(20 * SECOND);
    for _ in 0..3 {
        let _ = fleet.handle(1).send(conn, "news");
        fleet.run_for(TENTH);
    }
    fleet.run_for(30 * SECOND);
    assert_eq!((log.lines("error"), log.lines("disconnect")), (vec![], vec![]));
    assert_eq!(seen.count("message"), 3);
}

/// "The handshake has the time of a hello", also of a peer that has the layer answer and takes no answer.
#[test]
fn handshake_has_its_time_whatever_the_peer_has_answered() {
    let config = Odd { up_after: usize::MAX, answers: 100, ..PLAIN }
        .config()
        .watermarks(10, 1000)
        .hard_limit(4000)
        .socket_buffers(4096, 4096);
    let mut siege = Siege::of(config);
    for _ in 0..80 {
        siege.write(&[1; 200]);
        siege.fleet.run_for(TENTH);
    }
    let lines = siege.log.take();
    assert!(lines.len() == 1 && lines[0].contains("no handshake within 5s"), "{lines:?}");
}

/// As above with the default settings, by a peer that takes a little now and then.
#[test]
fn handshake_has_its_time_where_a_peer_takes_a_little_of_what_it_has_answered() {
    let mut siege = Siege::of(Odd { up_after: usize::MAX, answers: 100, ..PLAIN }.config());
    for step in 0..600 {
        siege.write(&[1; 10_000]);
        siege.fleet.run_for(TENTH);
        if step % 10 == 0 {
            let mut some = [0; 1000];
            let _ = siege.net.read(&mut siege.stream, &mut some);
        }
    }
    let lines = siege.log.take();
    assert!(lines.len() == 1 && lines[0].contains("no handshake within 5s"), "{lines:?}");
}

#[test]
fn heartbeats_keep_alive_what_a_slow_layer_lies_under() {
    let world = SimWorld::new(1);
    let config = Odd { rests: SECOND / 2, seals: 10, ..PLAIN }.config();
    let config = config.heartbeat(10 * SECOND).idle_timeout(15 * SECOND);
    let configs = [config.clone(), config];
    let (mut fleet, _, [seen, log]) = fleet_of(&world, &Native, configs);
    fleet.run_for(200 * SECOND);
    assert_eq!((seen.take(), log.take()), (vec!["connect 1".into()], vec!["connect 1".into()]));
}

#[test]
fn peer_that_is_gone_is_noticed_behind_a_layer() {
    let world = SimWorld::new(1);
    let configs = [layered(RECORDS), layered(RECORDS)];
    let (mut fleet, _, [seen, log]) = fleet_of(&world, &Native, configs);
    world.cut(fleet.nodes[0].host, fleet.nodes[1].host);
    fleet.run_for(60 * SECOND);
    assert_eq!((seen.count("disconnect"), log.count("disconnect")), (1, 1), "{:?}", log.take());
}

// ---- fates ----

/// "The fate of a call is known": nothing is sealed after the layer gave up, so it was not sent.
#[test]
fn call_that_a_layer_which_gave_up_never_sealed_was_not_sent() {
    let world = SimWorld::new(1);
    let config = Odd { rests: 60 * SECOND, fails_after: Some(5 * SECOND), ..PLAIN }.config();
    let (mut fleet, id, [seen, log]) = fleet_of(&world, &Native, [plain(), config]);
    // The hello was sealed; now it rests.
    let mut cx = fleet.nodes[1].engine.context();
    call(&mut cx.conn(id).unwrap(), "question", 30 * SECOND).unwrap();
    fleet.run_for(20 * SECOND);
    assert_eq!(seen.count("message"), 0, "it never left");
    let lines = log.lines("call");
    assert!(lines.len() == 1 && lines[0].contains("not sent"), "{lines:?}");
}

#[test]
fn call_that_timed_out_in_the_layer_ends_once_and_its_late_answer_is_dropped() {
    let world = SimWorld::new(1);
    let config = Odd { rests: SECOND, seals: 40, ..PLAIN }.config();
    let (mut fleet, id, [seen, log]) = fleet_of(&world, &Native, [plain(), config]);
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(id).unwrap();
    call(&mut conn, "a question that takes a few records", SECOND / 2).unwrap();
    let second = call(&mut conn, "another one", 30 * SECOND).unwrap();
    conn.cancel_call(second);
    fleet.run_for(30 * SECOND);
    let lines = log.lines("call");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("cancelled") && lines[1].contains("no answer in time"), "{lines:?}");
    assert_eq!(log.count("reply"), 0);
    assert_eq!(log.count("disconnect") + seen.count("disconnect"), 0);
}

// ---- ends ----

/// "One that [shuts its direction] in the middle of a frame is closed, with that reason": a record that was
/// cut is no clean end, whatever the layer says of its own end.
#[test]
fn end_in_the_middle_of_a_record_is_no_clean_end() {
    let mut siege = Siege::up(Records { is_strict: false, ..RECORDS });
    let record = data_record(&frame(b"news"));
    siege.write(&record[..record.len() - 1]);
    siege.net.shutdown(&mut siege.stream).unwrap();
    siege.fleet.run_for(2 * SECOND);
    let lines = siege.log.take();
    assert_ne!(lines, ["disconnect closed by the peer"]);
}

/// "With one all that is promised holds as without": what came whole before the fault is handled.
#[test]
fn message_that_came_before_what_the_layer_can_not_take_is_handled() {
    let mut siege = Siege::of(plain());
    siege.write(&[&frame(b"news")[..], &[99; 40]].concat());
    siege.fleet.run_for(2 * SECOND);
    assert_eq!(siege.log.lines("message"), ["message news"], "without a layer");

    let mut siege = Siege::up(RECORDS);
    siege.write(&[&data_record(&frame(b"news"))[..], &[99, 0, 0]].concat());
    siege.fleet.run_for(2 * SECOND);
    assert_eq!(siege.log.lines("message"), ["message news"]);
}

/// Closing ends when nothing is left that can be written.
#[test]
fn layer_that_gives_up_while_its_connection_closes_ends_that() {
    let world = SimWorld::new(1);
    let config = Odd { rests: 600 * SECOND, fails_after: Some(7 * SECOND), ..PLAIN }
        .config()
        .close_timeout(60 * SECOND);
    let (mut fleet, id, [_, log]) = fleet_of(&world, &Native, [plain(), config]);
    fleet.handle(1).send(id, "news").unwrap();
    fleet.handle(1).close(id);
    fleet.run_for(20 * SECOND);
    let lines = log.lines("disconnect");
    assert!(lines.len() == 1 && lines[0].contains("1 messages unsent"), "{lines:?}");
}

#[test]
fn stop_in_the_middle_of_a_handshake_is_quick_and_silent() {
    let mut siege = Siege::of(layered(RECORDS));
    siege.write(&[20, 0, 0, 20]);
    siege.fleet.run_for(TENTH);
    siege.fleet.handle(0).stop();
    siege.fleet.run_for(3 * SECOND);
    assert!(siege.fleet.nodes[0].engine.is_stopped());
    assert_eq!(siege.log.take(), ["stop"]);
}

#[test]
fn close_drain_and_abort_in_a_handshake_end_with_one_event() {
    for how in 0..3 {
        let world = SimWorld::new(1);
        let never = Odd { up_after: usize::MAX, ..PLAIN }.config();
        let (mut fleet, id, [_, log]) = fleet_of(&world, &Native, [never, layered(RECORDS)]);
        let handle = fleet.handle(1);
        match how {
            0 => handle.close(id),
            1 => handle.drain(id),
            _ => handle.abort(id),
        }
        fleet.run_for(3 * SECOND);
        let lines = log.take();
        assert!(lines.len() == 1 && lines[0].ends_with("while it was down"), "{lines:?}");
        assert!(fleet.nodes[1].engine.state.slots.is_empty());
    }
}

#[test]
fn nothing_behind_the_peers_end_is_heard() {
    let mut siege = Siege::up(Records { is_strict: false, ..RECORDS });
    siege.write(&[&data_record(&frame(b"last"))[..], &[21, 0, 0]].concat());
    siege.write(&data_record(&frame(b"later")));
    siege.fleet.run_for(3 * SECOND);
    assert_eq!(siege.log.count("message later"), 0);
    siege.net.shutdown(&mut siege.stream).unwrap();
    siege.fleet.run_for(3 * SECOND);
    assert_eq!((siege.log.count("disconnect"), siege.slots()), (1, 0));
}

/// "A peer that shuts its own direction is drained": what was queued for it is written, and then the
/// layer's last word.
#[test]
fn peer_that_ended_first_gets_all_that_was_queued_and_the_last_word() {
    let mut siege = Siege::up(RECORDS);
    siege.read();
    let at_server = accepted(&mut siege.fleet);
    for number in 0..40 {
        siege.fleet.handle(0).send(at_server, numbered(number, 20_000)).unwrap();
    }
    siege.fleet.run_for(TENTH);
    siege.write(&[21, 0, 0]);
    let mut got = Vec::new();
    for _ in 0..40 {
        siege.fleet.run_for(TENTH);
        got.extend(siege.read());
    }
    let (mut rest, mut plain, mut ends) = (&got[..], 0, 0);
    while let Some((&[kind, high, low], behind)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_be_bytes([high, low]));
        plain += if kind == 23 { len } else { 0 };
        ends += usize::from(kind == 21);
        rest = &behind[len..];
    }
    assert_eq!((plain, ends), (40 * frame(&numbered(0, 20_000)).len(), 1));
    assert_eq!(siege.log.lines("disconnect"), ["disconnect closed by the peer"]);
}

#[test]
fn drain_waits_for_the_call_and_the_last_word_comes_behind_its_answer() {
    let world = SimWorld::new(1);
    let ((mut server, seen), (client, log)) = (Script::noting(), Script::noting());
    let kept = Rc::new(Cell::new(None));
    let keep = kept.clone();
    server.on_message = Box::new(move |conn, msg| keep.set(conn.defer(&msg).ok()));
    let config = layered(Records { delays: 0.5, longest: 7, ..RECORDS }).close_timeout(60 * SECOND);
    let (mut fleet, id) = pair_on(&world, &Native, server, client, &config);
    let mut cx = fleet.nodes[1].engine.context();
    call(&mut cx.conn(id).unwrap(), "question", 60 * SECOND).unwrap();
    fleet.run_for(5 * SECOND);
    let at_server = accepted(&mut fleet);
    fleet.handle(0).drain(at_server);
    fleet.run_for(5 * SECOND);
    assert_eq!(seen.count("disconnect"), 0);
    kept.take().unwrap().reply("answer").unwrap();
    fleet.run_for(10 * SECOND);
    assert_eq!(log.lines("reply"), ["reply to question: answer"]);
    assert_eq!(seen.lines("disconnect"), ["disconnect closed"]);
    assert_eq!(log.count("disconnect"), 1);
}

// ---- the handshake ----

/// "Nobody is up before it is over."
#[test]
fn frames_that_a_layer_gives_in_its_handshake_reach_nobody() {
    let mut siege = Siege::of(Odd { up_after: 1000, gives_early: true, ..PLAIN }.config());
    siege.write(&frame(b"early"));
    siege.fleet.run_for(SECOND);
    let lines = siege.log.take();
    assert!(lines.len() == 1 && lines[0].contains("in the handshake"), "{lines:?}");
}

/// As above, where the format has a hello.
#[test]
fn hello_in_the_handshake_makes_nobody_up() {
    let world = SimWorld::new(1);
    let early = Odd { up_after: 1000, gives_early: true, ..PLAIN }.config();
    let (mut fleet, _, [seen, _]) = fleet_of(&world, &Native, [early, plain()]);
    fleet.run_for(SECOND);
    let lines = seen.take();
    assert!(lines.len() == 1 && lines[0].contains("in the handshake"), "{lines:?}");
}

#[test]
fn handshake_that_fails_is_tried_again_as_often_as_the_policy_says() {
    let world = SimWorld::new(1);
    let policy = Reconnect::fixed(SECOND).max_attempts(3);
    let client = layered(RECORDS).reconnect(policy);
    let (mut fleet, id, [seen, log]) = fleet_of(&world, &Native, [plain(), client]);
    fleet.run_for(60 * SECOND);
    let errors = log.take();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert_eq!(seen.count("connect"), 0);
    assert!(!fleet.handle(1).is_open(id));
    assert!(fleet.nodes[1].engine.state.slots.is_empty());
}

#[test]
fn panic_in_on_connect_after_the_handshake_costs_that_connection_alone() {
    let world = SimWorld::new(1);
    let ((mut server, seen), (client, log)) = (Script::noting(), Script::noting());
    server.may_panic = true;
    let mut count = 0;
    server.on_connect = Box::new(move |_| {
        count += 1;
        assert!(count > 1, "as planned");
    });
    let config = layered(RECORDS);
    let configs = [config.clone(), config];
    let (mut fleet, _) = fleet_with(&world, &Tcpstream, configs, [server, client]);
    fleet.run_for(2 * SECOND);
    assert_eq!(seen.count("disconnect a callback panicked"), 1, "{:?}", seen.take());
    let second = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(SECOND);
    fleet.handle(1).send(second, "news").unwrap();
    fleet.run_for(SECOND);
    assert_eq!(seen.lines("message"), ["message news"]);
    assert_eq!(log.count("connect"), 2);
}

#[test]
fn connection_may_be_ended_in_on_connect_after_the_handshake() {
    for how in 0..5 {
        let world = SimWorld::new(1);
        let ((mut server, seen), (client, log)) = (Script::noting(), Script::noting());
        server.on_connect = Box::new(move |conn| {
            conn.send("hello").unwrap();
            match how {
                0 => conn.close(),
                1 => conn.abort(),
                2 => conn.drain(),
                3 => conn.cx().stop(),
                _ => _ = conn.pause(),
            }
        });
        let config = layered(RECORDS);
        let configs = [config.clone(), config];
        let (mut fleet, _) = fleet_with(&world, &Native, configs, [server, client]);
        fleet.run_for(20 * SECOND);
        let ended = usize::from(how != 4);
        assert_eq!((seen.count("disconnect"), log.count("disconnect")), (ended, ended), "{how}");
        assert_eq!(log.count("message hello"), usize::from(how != 1), "{how}");
    }
}
