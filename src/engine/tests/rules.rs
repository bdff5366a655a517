//! Rules that a script on the simulated network shows best.

use std::{cell::RefCell, rc::Rc, time::Duration};

use super::fleet::Fleet;
use crate::{
    CallError, CloseReason, CloseReport, Config, Conn, ConnId, Context, Fate, Handler, Incident,
    Message, ReactorBuilder, Reconnect, Reply, api::handler::Timer, error::error_code,
    net::sim::SimWorld, protocol::Native,
};

/// What the callbacks saw, in order.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    fn note(&self, line: impl Into<String>) {
        self.0.borrow_mut().push(line.into());
    }

    fn take(&self) -> Vec<String> {
        self.0.take()
    }

    fn count(&self, start: &str) -> usize {
        self.0.borrow().iter().filter(|line| line.starts_with(start)).count()
    }
}

/// Notes everything, and answers requests with their own body.
#[derive(Clone, Default)]
struct Noting {
    log: Log,
    /// Pauses reading for so long after a message.
    pause: Option<Duration>,
    closes_at_once: bool,
}

impl Handler for Noting {
    type Protocol = Native;

    fn on_connect(&mut self, conn: &mut Conn<'_, Native>) {
        self.log.note(format!("connect {}", conn.epoch()));
        if self.closes_at_once {
            conn.close();
        }
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        self.log.note(format!("message {}", msg.text()));
        if let Some(pause) = self.pause {
            conn.pause();
            conn.set_timer(pause, 0);
        }
        if msg.is_request() {
            let _ = conn.reply(&msg, &msg);
        }
    }

    fn on_disconnect(&mut self, _: &mut Conn<'_, Native>, report: &CloseReport) {
        self.log.note(format!("disconnect {}", report.reason));
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Native>, timer: Timer) {
        if let Some(mut conn) = timer.conn.and_then(|id| cx.conn(id)) {
            conn.resume();
        }
    }

    fn on_error(&mut self, _: &mut Context<'_, Native>, incident: &Incident) {
        self.log.note(format!("error {incident}"));
    }
}

const SERVER: &str = "10.0.0.1:7001";

/// A server and a client of it, connected unless the world prevents it.
fn pair(
    world: &SimWorld,
    server: Noting,
    client: Noting,
    config: &Config,
) -> (Fleet<Noting>, ConnId) {
    let mut fleet = Fleet::new(world.clone());
    fleet.add(1, ReactorBuilder::new(Native).config(config.clone()).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).config(config.clone()).seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let conn = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(Duration::from_secs(1));
    (fleet, conn)
}

fn call(fleet: &mut Fleet<Noting>, conn: ConnId, body: &'static str, timeout: Duration) {
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(conn).unwrap();
    let callback = move |noting: &mut Noting,
                         _: &mut Conn<'_, Native>,
                         result: Result<Reply<'_>, CallError>| {
        noting.log.note(match result {
            Ok(reply) => format!("reply {}", String::from_utf8_lossy(reply.body())),
            Err(error) => format!("failed {error}"),
        });
    };
    conn.call::<Noting>(body, timeout, callback).unwrap();
}

#[test]
fn request_that_is_over_before_its_turn_is_not_run() {
    let world = SimWorld::new(1);
    let (log, caller) = (Log::default(), Log::default());
    let server =
        Noting { log: log.clone(), pause: Some(Duration::from_secs(5)), ..Noting::default() };
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, conn) = pair(&world, server, client, &Config::new());
    call(&mut fleet, conn, "first", Duration::from_secs(60));
    call(&mut fleet, conn, "over", Duration::from_secs(2));
    call(&mut fleet, conn, "late", Duration::from_secs(60));
    fleet.run_for(Duration::from_secs(20));
    assert_eq!(log.take(), ["connect 1", "message first", "message late"]);
    assert_eq!(
        caller.take(),
        ["connect 1", "reply first", "failed no answer in time (maybe sent)", "reply late"]
    );
    assert_eq!(fleet.nodes[1].engine.state.stats.late_replies, 1);
    assert_eq!(error_code::EXPIRED, 6);
}

#[test]
fn call_ends_with_its_connection_and_not_at_its_timeout() {
    let world = SimWorld::new(1);
    let caller = Log::default();
    let server = Noting { pause: Some(Duration::from_secs(600)), ..Noting::default() };
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, conn) = pair(&world, server, client, &Config::new());
    call(&mut fleet, conn, "first", Duration::from_secs(3600));
    fleet.run_for(Duration::from_secs(1));
    call(&mut fleet, conn, "pending", Duration::from_secs(3600));
    fleet.run_for(Duration::from_secs(1));
    let connection = world.connections()[0];
    world.reset(connection);
    fleet.run_for(Duration::from_millis(1));
    let lines = caller.take();
    assert!(lines[2].starts_with("failed disconnected: "), "{lines:?}");
    assert!(lines[2].ends_with("(maybe sent)"), "{lines:?}");
    assert!(lines[3].starts_with("disconnect "), "{lines:?}");
}

#[test]
fn accepting_recovers_by_itself_after_descriptors_ran_out() {
    let world = SimWorld::new(1);
    let log = Log::default();
    let server = Noting { log: log.clone(), ..Noting::default() };
    // So patient that it does not give up and dial again.
    let config =
        Config::new().hello_timeout(Duration::from_mins(1)).heartbeat(None).idle_timeout(None);
    let (mut fleet, _) = pair(&world, server, Noting::default(), &config);
    log.take();
    let host = fleet.nodes[0].host;
    world.exhaust_descriptors(host, Duration::from_secs(30));
    fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(Duration::from_secs(32));
    let failures = log.count("error listener 1:0: accept failed");
    assert!((5..=45).contains(&failures), "{failures} attempts in 30 s");
    // Nobody else connected meanwhile: the one that waited was found without an event.
    assert_eq!(log.count("connect 1"), 1);
}

#[test]
fn idle_connection_lives_for_a_year_of_heartbeats() {
    let world = SimWorld::new(1);
    let (log, caller) = (Log::default(), Log::default());
    let server = Noting { log: log.clone(), ..Noting::default() };
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, conn) = pair(&world, server, client, &Config::new());
    let day = Duration::from_hours(24);
    let before = fleet.nodes[0].engine.state.stats.turns;
    fleet.run_for(day * 365);
    assert_eq!((log.take(), caller.take()), (vec!["connect 1".into()], vec!["connect 1".into()]));
    // One ping and one pong each 20 s or so, and a few turns for each.
    let turns = fleet.nodes[0].engine.state.stats.turns - before;
    assert!(turns < 365 * 86_400 / 20 * 12, "{turns} turns");
    let slot = fleet.nodes[1].engine.state.get(conn).unwrap();
    assert!(slot.link.counts().round_trip_us > 0);
}

#[test]
fn silent_peer_is_noticed_within_the_idle_timeout_and_an_interval() {
    let world = SimWorld::new(1);
    let caller = Log::default();
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, _) = pair(&world, Noting::default(), client, &Config::new());
    let (server, client) = (fleet.nodes[0].host, fleet.nodes[1].host);
    world.cut(server, client);
    fleet.run_for(Duration::from_secs(50));
    assert!(caller.count("disconnect nothing received for 30s") == 1, "{:?}", caller.take());
    world.heal(server, client);
    fleet.run_for(Duration::from_secs(40));
    assert_eq!(caller.count("connect 2"), 1, "{:?}", caller.take());
}

#[test]
fn loop_that_was_away_for_a_minute_closes_no_healthy_peer() {
    let world = SimWorld::new(1);
    let (log, caller) = (Log::default(), Log::default());
    let server = Noting { log: log.clone(), ..Noting::default() };
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, _) = pair(&world, server, client, &Config::new());
    // Neither side runs for a minute, although time goes on.
    world.advance(Duration::from_mins(1));
    fleet.run_for(Duration::from_mins(5));
    assert_eq!((log.count("disconnect"), caller.count("disconnect")), (0, 0));
}

#[test]
fn clock_that_leaps_changes_nothing() {
    let world = SimWorld::new(1);
    let caller = Log::default();
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, _) = pair(&world, Noting::default(), client, &Config::new());
    for leap in [Duration::from_hours(1), Duration::from_hours(365 * 24)] {
        world.advance(leap);
        fleet.run_for(Duration::from_mins(2));
    }
    assert_eq!(caller.take(), ["connect 1"]);
}

#[test]
fn peer_that_accepts_and_closes_at_once_is_dialled_a_handful_of_times() {
    let world = SimWorld::new(1);
    let caller = Log::default();
    let server = Noting { closes_at_once: true, ..Noting::default() };
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, _) = pair(&world, server, client, &Config::new());
    fleet.run_for(Duration::from_secs(9));
    let dials = caller.count("connect ");
    assert!((2..=20).contains(&dials), "{dials} dials in 10 s");
}

#[test]
fn messages_kept_while_down_arrive_in_order_and_old_ones_do_not() {
    let world = SimWorld::new(1);
    let (log, caller) = (Log::default(), Log::default());
    let server = Noting { log: log.clone(), ..Noting::default() };
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let config = Config::new()
        .offline_queue(10_000, Duration::from_secs(30))
        .reconnect(Reconnect::fixed(Duration::from_secs(10)));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    let (server, client) = (fleet.nodes[0].host, fleet.nodes[1].host);
    world.cut(server, client);
    fleet.run_for(Duration::from_secs(60));
    let handle = fleet.handle(1);
    handle.send(conn, "too old").unwrap();
    fleet.run_for(Duration::from_secs(40));
    handle.send(conn, "a").unwrap();
    handle.send(conn, "b").unwrap();
    assert!(handle.send(conn, vec![0; 10_000]).is_err());
    fleet.run_for(Duration::from_secs(1));
    world.heal(server, client);
    fleet.run_for(Duration::from_secs(20));
    let messages: Vec<_> =
        log.take().into_iter().filter(|line| line.starts_with("message")).collect();
    assert_eq!(messages, ["message a", "message b"]);
    assert_eq!(caller.count(&format!("error connection {conn}: 1 messages were not")), 1);
}

#[test]
fn calls_are_refused_at_once_while_down() {
    let world = SimWorld::new(1);
    let mut fleet = Fleet::new(world);
    fleet.add(2, ReactorBuilder::new(Native).seed(2), Noting::default());
    let conn = fleet.nodes[0].engine.context().connect(SERVER).unwrap();
    fleet.run_for(Duration::from_secs(1));
    let mut cx = fleet.nodes[0].engine.context();
    let refused = cx
        .conn(conn)
        .unwrap()
        .call::<Noting>("x", Duration::from_secs(1), |_, _, _| panic!("not started"))
        .unwrap_err();
    assert!(matches!(
        refused.error(),
        CallError::Disconnected { reason: CloseReason::DialFailed(_), fate: Fate::NotSent }
    ));
}

#[test]
fn fleet_of_clients_comes_back_spread_over_time() {
    const CLIENTS: usize = 2000;
    let world = SimWorld::new(7);
    let log = Log::default();
    let mut fleet = Fleet::new(world);
    let server = Noting { log: log.clone(), ..Noting::default() };
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).seed(2), Noting::default());
    for _ in 0..CLIENTS {
        fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    }
    fleet.run_for(Duration::from_mins(10));
    assert_eq!(log.count("connect"), 0);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let mut buckets = Vec::new();
    while log.count("connect") < CLIENTS {
        let before = log.count("connect");
        fleet.run_for(Duration::from_secs(1));
        buckets.push(log.count("connect") - before);
        assert!(buckets.len() <= 60, "not all are back within a minute: {buckets:?}");
    }
    let mean = CLIENTS.div_ceil(buckets.len());
    let busiest = buckets.iter().max().copied().unwrap_or(0);
    assert!(busiest <= 3 * mean, "{busiest} in the busiest second, {mean} on average: {buckets:?}");
}

#[test]
fn goaway_lets_what_is_in_flight_finish_and_proves_the_rest_unsent() {
    let world = SimWorld::new(1);
    let (log, caller) = (Log::default(), Log::default());
    let server = Noting { log: log.clone(), ..Noting::default() };
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, conn) = pair(&world, server, client, &Config::new());
    call(&mut fleet, conn, "before", Duration::from_secs(60));
    fleet.handle(0).stop();
    fleet.run_for(Duration::from_secs(10));
    assert!(fleet.nodes[0].engine.is_stopped());
    assert_eq!(log.take(), ["connect 1", "message before", "disconnect the reactor stopped"]);
    let lines = caller.take();
    assert_eq!(lines[..3], ["connect 1", "reply before", "disconnect the peer went away"]);
}

#[test]
fn call_after_the_peers_goaway_is_refused_as_not_sent() {
    let world = SimWorld::new(1);
    let caller = Log::default();
    // The first request pauses the server's reading, so that draining has something to wait for.
    let server = Noting { pause: Some(Duration::from_secs(2)), ..Noting::default() };
    let client = Noting { log: caller.clone(), ..Noting::default() };
    let (mut fleet, conn) = pair(&world, server, client, &Config::new());
    call(&mut fleet, conn, "first", Duration::from_secs(60));
    fleet.run_for(Duration::from_millis(100));
    let server_side = fleet.nodes[0].engine.context().connections().next().unwrap();
    fleet.handle(0).drain(server_side);
    fleet.run_for(Duration::from_millis(300));
    let mut cx = fleet.nodes[1].engine.context();
    let refused = cx
        .conn(conn)
        .unwrap()
        .call::<Noting>("late", Duration::from_secs(1), |_, _, _| panic!("not started"))
        .unwrap_err();
    assert_eq!(refused.error(), &CallError::PeerDraining);
    assert_eq!(refused.error().fate(), Fate::NotSent);
    // The dialled side comes back by itself.
    fleet.run_for(Duration::from_secs(60));
    assert_eq!(caller.count("connect 2"), 1, "{:?}", caller.take());
}

#[test]
fn stats_of_a_connection_are_its_own_and_those_of_its_context_are_the_reactors() {
    let world = SimWorld::new(1);
    let (mut fleet, conn) = pair(&world, Noting::default(), Noting::default(), &Config::new());
    let other = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(Duration::from_secs(1));
    for (conn, body) in [(conn, "one"), (other, "two"), (other, "three")] {
        fleet.handle(1).send(conn, body).unwrap();
    }
    fleet.run_for(Duration::from_secs(1));
    let mut cx = fleet.nodes[1].engine.context();
    for (conn, sent) in [(conn, 1), (other, 2)] {
        let mut conn = cx.conn(conn).unwrap();
        assert_eq!(conn.stats().messages_out, sent);
        assert_eq!(conn.cx().stats().messages_out, 3);
    }
}

#[test]
fn more_frames_in_one_read_than_a_turn_handles_do_not_spin() {
    let world = SimWorld::new(1);
    let log = Log::default();
    let server = Noting { log: log.clone(), ..Noting::default() };
    let (mut fleet, conn) = pair(&world, server, Noting::default(), &Config::new());
    for _ in 0..4096 {
        fleet.handle(1).send(conn, "x").unwrap();
    }
    fleet.run_for(Duration::from_secs(10));
    assert_eq!(log.count("message x"), 4096);
}

#[test]
fn pause_in_the_middle_of_a_frame_does_not_count_against_the_peer() {
    let world = SimWorld::new(1);
    let log = Log::default();
    let pause = Some(Duration::from_mins(2));
    let server = Noting { log: log.clone(), pause, ..Noting::default() };
    // A peer that waits as long for us: we answer no ping while we don't read.
    let config =
        Config::new().heartbeat(None).idle_timeout(None).write_timeout(Duration::from_mins(10));
    let (mut fleet, conn) = pair(&world, server, Noting::default(), &config);
    let handle = fleet.handle(1);
    handle.send(conn, "first").unwrap();
    handle.send(conn, vec![b'y'; 300_000]).unwrap();
    fleet.run_for(Duration::from_mins(5));
    assert_eq!(
        (log.count("message first"), log.count("message yyy")),
        (1, 1),
        "{:?}",
        log.count("d")
    );
    assert_eq!(log.count("disconnect"), 0);
}

#[test]
fn room_for_a_connection_that_is_down_comes_back_with_the_age_of_what_is_kept() {
    let world = SimWorld::new(1);
    let mut fleet = Fleet::new(world);
    let config = Config::new()
        .offline_queue(1000, Duration::from_secs(5))
        .reconnect(Reconnect::fixed(Duration::from_secs(1)));
    fleet.add(2, ReactorBuilder::new(Native).config(config).seed(2), Noting::default());
    let conn = fleet.nodes[0].engine.context().connect(SERVER).unwrap();
    fleet.run_for(Duration::from_secs(1));
    let handle = fleet.handle(0);
    handle.send(conn, vec![0; 900]).unwrap();
    fleet.run_for(Duration::from_secs(1));
    assert_eq!(handle.send(conn, vec![0; 900]), Err(crate::SendError::Offline));
    fleet.run_for(Duration::from_secs(10));
    assert_eq!(handle.send(conn, vec![0; 900]), Ok(()));
}

#[test]
#[should_panic = "1 panics of callbacks, of which 0 were planned"]
fn assertion_that_fails_in_a_callback_fails_the_test_although_the_reactor_catches_it() {
    let world = SimWorld::new(1);
    let (mut fleet, conn) = pair(&world, Noting::default(), Noting::default(), &Config::new());
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(conn).unwrap();
    conn.call::<Noting>("x", Duration::from_secs(1), |_, _, _| panic!("it failed")).unwrap();
    fleet.run_for(Duration::from_secs(1));
}
