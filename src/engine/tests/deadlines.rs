//! Deadlines: of frames, of writes, of silence, and what they are worth after the loop was away.

use std::time::Duration;

use super::{
    bent::{Bend, Bent, bent_pair, frame, raw},
    fleet::Fleet,
    script::{Log, SERVER, Script, accepted, pair, pair_on},
};
use crate::{
    Config, ConnId, ReactorBuilder, Reconnect,
    net::sim::SimWorld,
    protocol::{AnyProtocol, Kind, Length, Native, Protocol, Qtk2, Qtk3, Tcpstream},
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);
const MIB: usize = 1024 * 1024;

/// Nobody asks whether the other lives, so only the other deadlines are left.
fn quiet() -> Config {
    Config::new().heartbeat(None).idle_timeout(None).reconnect(Reconnect::never())
}

/// A client that writes the parts of one frame of 1 MiB when it is told to.
fn slow_frame() -> (Fleet<Script<Bent>>, ConnId, Log, Vec<u8>) {
    let world = SimWorld::new(1);
    let ((server, log), (client, _)) = (Script::noting(), Script::noting());
    let (fleet, conn) = bent_pair(&world, [Bend::Nothing; 2], [server, client], &quiet());
    (fleet, conn, log, frame(Kind::Push, 0, 0, &vec![b'y'; MIB]))
}

#[test]
fn long_frame_has_its_time_although_its_header_came_in_two_reads() {
    let (mut fleet, conn, log, frame) = slow_frame();
    let handle = fleet.handle(1);
    handle.send(conn, raw(&frame[..10])).unwrap();
    fleet.run_for(SECOND);
    handle.send(conn, raw(&frame[10..1000])).unwrap();
    // 30 s and 64 s for 1 MiB at 16 KiB/s.
    fleet.run_for(85 * SECOND);
    handle.send(conn, raw(&frame[1000..])).unwrap();
    fleet.run_for(SECOND);
    assert_eq!(log.count("message yyy"), 1, "{:?}", log.take());
}

#[test]
fn frame_that_is_not_whole_in_its_time_ends_the_connection_which_says_how_long_that_was() {
    let (mut fleet, conn, log, frame) = slow_frame();
    fleet.handle(1).send(conn, raw(&frame[..1000])).unwrap();
    fleet.run_for(93 * SECOND);
    assert_eq!(log.count("disconnect"), 0);
    fleet.run_for(3 * SECOND);
    assert_eq!(log.lines("disconnect"), ["disconnect a frame was not whole within 94s"]);
}

#[test]
fn pause_in_the_middle_of_a_long_frame_leaves_it_all_its_time() {
    let (mut fleet, conn, log, frame) = slow_frame();
    let at_server = accepted(&mut fleet);
    let handle = fleet.handle(1);
    handle.send(conn, raw(&frame[..1000])).unwrap();
    fleet.run_for(SECOND);
    fleet.handle(0).run(move |cx| _ = cx.conn(at_server).unwrap().pause()).unwrap();
    fleet.run_for(SECOND);
    handle.send(conn, raw(&frame[1000..2000])).unwrap();
    fleet.run_for(40 * SECOND);
    fleet.handle(0).run(move |cx| _ = cx.conn(at_server).unwrap().resume()).unwrap();
    fleet.run_for(80 * SECOND);
    handle.send(conn, raw(&frame[2000..])).unwrap();
    fleet.run_for(SECOND);
    assert_eq!(log.count("message yyy"), 1, "{:?}", log.take());
}

/// As it is written for `Conn::pause`.
#[test]
fn paused_connection_does_not_notice_that_its_peer_is_gone() {
    let world = SimWorld::new(1);
    let ((server, log), (client, _)) = (Script::noting(), Script::noting());
    let config = Config::new().reconnect(Reconnect::never());
    let (mut fleet, conn) = pair(&world, server, client, &config);
    let at_server = accepted(&mut fleet);
    fleet.nodes[0].engine.context().conn(at_server).unwrap().pause();
    fleet.handle(1).send(conn, "unread").unwrap();
    fleet.run_for(SECOND);
    world.reset(world.connections()[0]);
    fleet.run_for(10 * LONG);
    assert_eq!(log.count("disconnect"), 0);
    fleet.nodes[0].engine.context().conn(at_server).unwrap().resume();
    fleet.run_for(SECOND);
    assert_eq!(log.count("disconnect"), 1);
}

/// A client with 4 MB queued, which its peer is reading, and neither is in a hurry.
fn full_queue() -> (SimWorld, Fleet<Script>, ConnId, [Log; 2]) {
    let world = SimWorld::new(1);
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let config = quiet().frame_timeout(10 * LONG).tcp_user_timeout(None);
    let (mut fleet, id) = pair(&world, server, client, &config);
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(id).unwrap();
    for _ in 0..40 {
        conn.send(vec![b'y'; 100_000]).unwrap();
    }
    // What the systems take is taken, and the peer has read nothing yet.
    for _ in 0..10 {
        fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
        world.advance(Duration::from_millis(1));
    }
    (world, fleet, id, [seen, log])
}

/// The client's loop does not run for a minute; all others do.
fn is_away_for_a_minute(world: &SimWorld, fleet: &mut Fleet<Script>) {
    let client = fleet.nodes.pop().unwrap();
    world.pause(client.host, true);
    fleet.run_for(LONG);
    world.pause(client.host, false);
    fleet.nodes.push(client);
}

#[test]
fn loop_that_was_away_cuts_no_peer_that_takes_what_is_queued() {
    let (world, mut fleet, _, [seen, log]) = full_queue();
    is_away_for_a_minute(&world, &mut fleet);
    fleet.run_for(LONG);
    assert_eq!((seen.count("message"), log.count("disconnect")), (40, 0), "{:?}", log.take());
}

#[test]
fn loop_that_was_away_says_all_to_a_peer_of_a_closing_connection() {
    let (world, mut fleet, conn, [seen, log]) = full_queue();
    fleet.handle(1).close(conn);
    fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
    is_away_for_a_minute(&world, &mut fleet);
    fleet.run_for(LONG);
    assert_eq!(seen.count("message"), 40);
    assert_eq!(log.lines("disconnect"), ["disconnect closed"]);
}

#[test]
fn both_sides_that_were_away_go_on() {
    for closes in [false, true] {
        let (world, mut fleet, conn, [seen, log]) = full_queue();
        if closes {
            fleet.handle(1).close(conn);
            fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
        }
        world.advance(LONG);
        if !closes {
            // It comes back sooner than its peer, which has taken nothing yet.
            fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
        }
        fleet.run_for(LONG);
        let ended = if closes { vec!["disconnect closed"] } else { vec![] };
        assert_eq!(
            (seen.count("message"), log.lines("disconnect")),
            (40, ended.into_iter().map(str::to_owned).collect())
        );
    }
}

#[test]
fn peer_that_takes_nothing_is_given_up_also_by_a_loop_that_was_away() {
    let (world, mut fleet, _, [_, log]) = full_queue();
    let (one, other) = (fleet.nodes[0].host, fleet.nodes[1].host);
    world.cut(one, other);
    is_away_for_a_minute(&world, &mut fleet);
    fleet.run_for(LONG);
    assert_eq!(log.count("disconnect the peer took no byte for 30s"), 1, "{:?}", log.take());
}

// ---- heartbeats ----

#[test]
fn client_that_only_listens_is_not_given_up_by_a_server_that_does_not_probe() {
    let world = SimWorld::new(1);
    let ((mut server, log), (client, seen)) = (Script::<Native>::noting(), Script::noting());
    server.on_connect = Box::new(|conn| _ = conn.set_timer(SECOND, 0));
    server.on_timer = Box::new(|cx, timer| {
        if let Some(mut conn) = timer.conn.and_then(|id| cx.conn(id)) {
            conn.send("news").unwrap();
            conn.set_timer(SECOND, 0);
        }
    });
    let mut fleet = Fleet::new(world);
    let config = Config::new().heartbeat(None);
    fleet.add(1, ReactorBuilder::new(Native).config(config).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(10 * LONG);
    assert_eq!((log.count("disconnect"), seen.count("disconnect")), (0, 0), "{:?}", log.take());
    assert!(seen.count("message news") > 590);
}

#[test]
fn peer_whose_idle_timeout_is_our_interval_stays() {
    let world = SimWorld::new(1);
    let ((server, log), (client, seen)) = (Script::noting(), Script::noting());
    let bends = [Bend::Hello { heartbeat_ms: 20_000, idle_timeout_ms: 20_000 }, Bend::Nothing];
    let config = Config::new().idle_timeout(20 * SECOND).heartbeat(None);
    let mut fleet = Fleet::new(world);
    fleet.add(1, ReactorBuilder::new(Bent(bends[0])).config(config).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Bent(bends[1])).seed(2), client);
    // The client's own interval is 20 s, and what the server says of its own probes is not true.
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(10 * LONG);
    assert_eq!((log.count("disconnect"), seen.count("disconnect")), (0, 0), "{:?}", log.take());
}

#[test]
fn no_hello_makes_the_loop_turn_more_than_a_few_times_a_second() {
    for heartbeat_ms in [0, 1] {
        let world = SimWorld::new(1);
        let ((server, _), (client, log)) = (Script::noting(), Script::noting());
        let bends = [Bend::Hello { heartbeat_ms, idle_timeout_ms: 3 }, Bend::Nothing];
        let (mut fleet, _) = bent_pair(&world, bends, [server, client], &Config::new());
        let before = fleet.nodes[1].engine.state.stats.turns;
        fleet.run_for(100 * SECOND);
        let turns = fleet.nodes[1].engine.state.stats.turns - before;
        assert!(turns <= 1000, "{turns} turns in 100 s");
        assert_eq!(log.count("disconnect"), 0);
    }
}

// ---- settings at their extremes ----

type Set = fn(Config) -> Config;

#[test]
fn setting_at_its_extreme_ends_no_loop_on_any_format() {
    const MAX: Duration = Duration::MAX;
    const NANO: Duration = Duration::from_nanos(1);
    let settings: [(&str, Set); 34] = [
        ("heartbeat max", |c| c.heartbeat(MAX).idle_timeout(None)),
        ("heartbeat min", |c| c.heartbeat(NANO)),
        ("idle_timeout max", |c| c.idle_timeout(MAX)),
        ("idle_timeout min", |c| c.idle_timeout(NANO)),
        ("both max", |c| c.heartbeat(MAX / 2).idle_timeout(MAX)),
        ("connect_timeout max", |c| c.connect_timeout(MAX)),
        ("resolve_timeout max", |c| c.resolve_timeout(MAX)),
        ("hello_timeout max", |c| c.hello_timeout(MAX)),
        ("hello_timeout min", |c| c.hello_timeout(NANO)),
        ("frame_timeout max", |c| c.frame_timeout(MAX)),
        ("frame_timeout min", |c| c.frame_timeout(NANO)),
        ("frame_rate max", |c| c.frame_rate(usize::MAX)),
        ("frame_rate min", |c| c.frame_rate(1)),
        ("frame_timeout max, rate min", |c| c.frame_timeout(MAX).frame_rate(1)),
        ("max_body min", |c| c.max_body(1)),
        ("max_body max", |c| c.max_body(u32::MAX as usize)),
        ("watermarks max", |c| c.watermarks(0, usize::MAX).hard_limit(usize::MAX)),
        ("watermarks min", |c| c.watermarks(0, 1).hard_limit(1)),
        ("write_timeout max", |c| c.write_timeout(MAX)),
        ("write_timeout min", |c| c.write_timeout(NANO)),
        ("max_calls min", |c| c.max_calls(0)),
        ("max_calls max", |c| c.max_calls(usize::MAX)),
        ("max_requests min", |c| c.max_requests(0)),
        ("max_requests max", |c| c.max_requests(usize::MAX)),
        ("offline_queue max", |c| c.offline_queue(usize::MAX, MAX)),
        ("offline_queue min", |c| c.offline_queue(0, Duration::ZERO)),
        ("close_timeout max", |c| c.close_timeout(MAX)),
        ("close_timeout min", |c| c.close_timeout(Duration::ZERO)),
        ("linger max", |c| c.linger(MAX)),
        ("linger min", |c| c.linger(Duration::ZERO)),
        ("reconnect max", |c| c.reconnect(Reconnect::fixed(MAX).after_loss(MAX))),
        ("reconnect min", |c| c.reconnect(Reconnect::fixed(NANO).longest_hint(MAX))),
        ("healthy max", |c| c.reconnect(Reconnect::exponential(NANO, MAX).healthy_after(MAX))),
        ("no connections", |c| c.max_connections(0).max_connections_per_peer(0)),
    ];
    let formats: [AnyProtocol; 5] =
        [Native.into(), Tcpstream.into(), Qtk3.into(), Qtk2.into(), Length::default().into()];
    let mut tried = 0;
    for (name, set) in settings {
        for format in &formats {
            let config = set(Config::new());
            if config.validate().is_err() {
                continue;
            }
            tried += 1;
            println!("{name} on {}", format.name());
            let _ = config.worst_case_detection(format);
            run_a_life(format, &config);
        }
    }
    assert!(tried > 100, "{tried}");
}

/// A connection comes up if it can, says something, is lost, is dialled again, and is closed.
fn run_a_life(format: &AnyProtocol, config: &Config) {
    let world = SimWorld::new(1);
    let ((server, _), (client, _)) = (Script::noting(), Script::noting());
    let (mut fleet, conn) = pair_on(&world, format, server, client, config);
    let _ = fleet.handle(1).send(conn, "x");
    fleet.run_for(SECOND);
    if let Some(connection) = world.connections().first() {
        world.reset(*connection);
    }
    let _ = fleet.handle(1).send(conn, vec![b'x'; 30_000]);
    fleet.run_for(3 * SECOND);
    fleet.handle(1).close(conn);
    fleet.run_for(SECOND);
    for node in 0..2 {
        fleet.handle(node).stop_within(SECOND);
    }
    fleet.run_for(5 * SECOND);
    assert!(fleet.nodes.iter().all(|node| node.engine.is_stopped()));
}
