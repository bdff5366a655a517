//! What is dialled, by which rules, and what belongs to which epoch.

use std::{cell::RefCell, rc::Rc, time::Duration};

use super::{
    fleet::Fleet,
    script::{Log, SERVER, Script, accepted, call, pair},
};
use crate::{
    CallId, Config, ConnId, Incident, ReactorBuilder, Reconnect,
    api::command::Command,
    net::sim::SimWorld,
    protocol::{AnyProtocol, Native, Protocol, Tcpstream},
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// A gateway speaks one format on one side, and another on the other.
#[test]
fn reactor_keeps_its_own_format_and_settings_for_life() {
    const PEER: &str = "10.0.0.2:7002";
    let world = SimWorld::new(1);
    let mut fleet = Fleet::new(world);
    let ((gateway, _), (peer, _)) = (Script::<AnyProtocol>::noting(), Script::noting());
    let config = Config::new().connect_timeout(7 * SECOND);
    fleet.add(
        1,
        ReactorBuilder::new(AnyProtocol::from(Native)).config(config.clone()).seed(1),
        gateway,
    );
    fleet.add(2, ReactorBuilder::new(AnyProtocol::from(Native)).seed(2), peer);
    let is_default = |fleet: &Fleet<Script<AnyProtocol>>, conn: ConnId| {
        let profile = &fleet.nodes[0].engine.state.get(conn).unwrap().profile;
        (profile.protocol.name(), profile.config == config)
    };
    fleet.nodes[1].engine.context().listen(PEER).unwrap();
    let mut cx = fleet.nodes[0].engine.context();
    let go = Config::go_tcpstream();
    let (listener, _) = cx.listen_with(SERVER, &Tcpstream.into(), &go).unwrap();
    let first = cx.connect(PEER).unwrap();
    fleet.run_for(SECOND);
    assert!(fleet.handle(0).is_up(first));
    assert_eq!(is_default(&fleet, first), ("native", true));
    // Its last user goes, and others come and go.
    fleet.handle(0).close(first);
    fleet.run_for(5 * SECOND);
    for seconds in 1..200 {
        let config = Config::new().connect_timeout(seconds * SECOND);
        let mut cx = fleet.nodes[0].engine.context();
        let other = cx.connect_with(PEER, &Tcpstream.into(), &config).unwrap();
        cx.conn(other).unwrap().abort();
    }
    fleet.run_for(LONG);
    let mut cx = fleet.nodes[0].engine.context();
    let second = cx.connect(PEER).unwrap();
    let (default_listener, _) = cx.listen("10.0.0.1:7003").unwrap();
    fleet.run_for(SECOND);
    assert_eq!(is_default(&fleet, second), ("native", true));
    let listens = |fleet: &mut Fleet<Script<AnyProtocol>>, id| {
        fleet.nodes[0].engine.state.listeners.get(id).unwrap().profile.protocol.name()
    };
    assert_eq!(listens(&mut fleet, default_listener), "native");
    assert_eq!(listens(&mut fleet, listener), "tcpstream");
}

/// Calls on two epochs of a connection, which have the same number, and of which only the second is
/// in flight.
fn two_epochs() -> (Fleet<Script>, ConnId, CallId, CallId, Log) {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg)));
    let config = Config::new().reconnect(Reconnect::fixed(SECOND));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    let start = |fleet: &mut Fleet<Script>, body| {
        let mut cx = fleet.nodes[1].engine.context();
        call(&mut cx.conn(conn).unwrap(), body, LONG).unwrap()
    };
    let old = start(&mut fleet, "old");
    fleet.run_for(SECOND / 2);
    world.reset(world.connections()[0]);
    fleet.run_for(2 * SECOND);
    let new = start(&mut fleet, "new");
    fleet.run_for(SECOND / 2);
    assert_eq!((old.as_u64(), old.epoch()), (new.as_u64(), 1));
    assert_eq!((new.epoch(), log.count("call old failed: disconnected")), (2, 1));
    (fleet, conn, old, new, log)
}

#[test]
fn id_of_a_call_of_an_earlier_epoch_cancels_nothing() {
    let (mut fleet, id, old, new, log) = two_epochs();
    fleet.nodes[1].engine.context().conn(id).unwrap().cancel_call(old);
    fleet.run_for(SECOND);
    assert_eq!(log.count("call new"), 0);
    fleet.nodes[1].engine.context().conn(id).unwrap().cancel_call(new);
    fleet.run_for(SECOND);
    assert_eq!(log.count("call new failed: cancelled"), 1);
}

/// It may wait in the mailbox while the connection is lost and dialled again.
#[test]
fn cancel_from_a_thread_that_comes_an_epoch_too_late_cancels_nothing() {
    let (mut fleet, conn, old, new, log) = two_epochs();
    let shared = fleet.nodes[1].engine.shared.clone();
    shared.post_control(Command::CancelCall { conn, call: old }).unwrap();
    fleet.run_for(SECOND);
    assert_eq!(log.count("call new"), 0);
    shared.post_control(Command::CancelCall { conn, call: new }).unwrap();
    fleet.run_for(SECOND);
    assert_eq!(log.count("call new failed: cancelled"), 1);
}

#[test]
fn call_that_is_dropped_after_its_connection_was_lost_cancels_nothing() {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg)));
    let config = Config::new().reconnect(Reconnect::fixed(SECOND));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    let pending = fleet.handle(1).call_async(conn, "old", LONG);
    fleet.run_for(SECOND / 2);
    assert_eq!(pending.id().map(CallId::epoch), Some(1));
    world.reset(world.connections()[0]);
    fleet.run_for(2 * SECOND);
    call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "new", LONG).unwrap();
    drop(pending);
    fleet.run_for(SECOND);
    assert_eq!(log.count("call new"), 0);
}

#[test]
fn timeout_of_a_call_of_an_earlier_epoch_ends_nothing() {
    let world = SimWorld::new(1);
    let ((mut server, _), (client, log)) = (Script::noting(), Script::noting());
    let mut kept = Vec::new();
    server.on_message = Box::new(move |conn, msg| kept.push(conn.defer(&msg)));
    let config = Config::new().reconnect(Reconnect::fixed(SECOND));
    let (mut fleet, conn) = pair(&world, server, client, &config);
    call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "old", 5 * SECOND).unwrap();
    fleet.run_for(SECOND / 2);
    world.reset(world.connections()[0]);
    fleet.run_for(2 * SECOND);
    call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "new", LONG).unwrap();
    fleet.run_for(10 * SECOND);
    assert_eq!((log.count("call old failed"), log.count("call new")), (1, 0));
}

/// `localhost` is one: two addresses, of which the first may be refused.
#[test]
fn connection_whose_first_address_was_refused_reads_once_for_a_message() {
    let reads = |is_refused_first: bool| {
        let world = SimWorld::new(1);
        let ((server, seen), (client, _)) = (Script::<Native>::noting(), Script::noting());
        let mut fleet = Fleet::new(world.clone());
        fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
        fleet.add(2, ReactorBuilder::new(Native).seed(2), client);
        let nobody = world.host([10, 0, 0, 3]);
        let mut addrs = vec![[10, 0, 0, 1].into()];
        if is_refused_first {
            addrs.insert(0, [10, 0, 0, 3].into());
        }
        world.add_name("server", addrs);
        fleet.nodes[0].engine.context().listen(SERVER).unwrap();
        fleet.nodes[1].engine.context().connect("server:7001").unwrap();
        fleet.run_for(SECOND);
        let id = accepted(&mut fleet);
        world.keep_trace(true);
        for _ in 0..100 {
            fleet.handle(0).send(id, "news").unwrap();
            fleet.run_for(SECOND / 100);
        }
        let client = format!("host {} Read", 1);
        let count = world.trace().iter().filter(|line| line.contains(&client)).count();
        assert_eq!(seen.count("disconnect"), 0);
        drop(nobody);
        count
    };
    assert_eq!((reads(false), reads(true)), (100, 100));
}

#[test]
fn peer_has_no_address_before_its_name_is_found() {
    let world = SimWorld::new(1);
    world.add_name("home", vec![[10, 0, 0, 1].into()]);
    let ((server, _), (client, _)) = (Script::<Native>::noting(), Script::noting());
    let mut fleet = Fleet::new(world);
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let mut cx = fleet.nodes[1].engine.context();
    let id = cx.connect("home:7001").unwrap();
    assert_eq!(cx.conn(id).unwrap().peer_addr(), None);
    fleet.run_for(SECOND);
    let addr = fleet.nodes[1].engine.context().conn(id).unwrap().peer_addr().unwrap();
    assert_eq!(addr.socket_addr(), SERVER.parse().ok());
}

#[test]
fn policies_that_are_all_different_are_looked_up_and_not_compared() {
    let world = SimWorld::new(1);
    let mut fleet = Fleet::new(world);
    fleet.is_checked = false;
    let (client, _) = Script::<Native>::noting();
    fleet.add(2, ReactorBuilder::new(Native).seed(2), client);
    let mut kept = Vec::new();
    for _ in 0..2000 {
        let config = Config::new().reconnect(Reconnect::custom(|_| Some(LONG)));
        let mut cx = fleet.nodes[0].engine.context();
        kept.push(cx.connect_with(SERVER, &Native, &config).unwrap());
    }
    let profiles = &fleet.nodes[0].engine.state.profiles;
    assert!(profiles.most_alike() <= 4, "{} have the same hash", profiles.most_alike());
}

// ---- what is told ----

/// A client without a server, whose handler notes the numbers of the rounds that failed.
fn lonely(config: &Config) -> (SimWorld, Fleet<Script>, Rc<RefCell<Vec<u32>>>, Log) {
    let world = SimWorld::new(1);
    let (mut client, log) = Script::noting();
    let rounds = Rc::new(RefCell::new(Vec::new()));
    let note = rounds.clone();
    client.on_error = Box::new(move |_, incident| {
        if let Incident::DialFailed { attempt, .. } = incident {
            note.borrow_mut().push(*attempt);
        }
    });
    let mut fleet = Fleet::new(world.clone());
    fleet.add(2, ReactorBuilder::new(Native).config(config.clone()).seed(2), client);
    (world, fleet, rounds, log)
}

#[test]
fn first_round_that_fails_is_number_one_however_it_was_dialled() {
    let config = Config::new().reconnect(Reconnect::fixed(SECOND).max_attempts(3));
    let (world, mut fleet, rounds, _) = lonely(&config);
    let _nobody = world.host([10, 0, 0, 1]);
    fleet.nodes[0].engine.context().connect(SERVER).unwrap();
    fleet.run_for(LONG);
    assert_eq!(rounds.take(), [1, 2, 3]);

    // Somebody waits for the first round.
    let id = fleet.nodes[0].engine.context().connect(SERVER).unwrap();
    fleet.nodes[0].engine.state.awaiters.add(id, Box::new(|_| {}));
    fleet.run_for(LONG);
    assert_eq!(rounds.take(), [1]);
}

#[test]
fn first_round_that_fails_after_a_loss_is_number_one() {
    let config = Config::new().reconnect(Reconnect::fixed(SECOND));
    for uptime in [SECOND, LONG] {
        let (world, mut fleet, rounds, _) = lonely(&config);
        fleet.add(1, ReactorBuilder::new(Native).seed(1), Script::default());
        fleet.nodes[1].engine.context().listen(SERVER).unwrap();
        fleet.nodes[0].engine.context().connect(SERVER).unwrap();
        fleet.run_for(uptime);
        world.kill_host(fleet.nodes[1].host);
        fleet.send_away(1, 10 * LONG);
        fleet.run_for(3 * SECOND + SECOND / 2);
        assert_eq!(rounds.take(), [1, 2, 3], "up for {uptime:?}");
    }
}

#[test]
fn call_while_the_connection_is_down_is_told_why_it_is_down() {
    let config = Config::new().reconnect(Reconnect::fixed(10 * SECOND));
    let (world, mut fleet, _, log) = lonely(&config);
    let calls = |fleet: &mut Fleet<Script>, conn| {
        call(&mut fleet.nodes[0].engine.context().conn(conn).unwrap(), "x", SECOND)
            .unwrap_err()
            .to_string()
    };
    let conn = fleet.nodes[0].engine.context().connect(SERVER).unwrap();
    let first = "disconnected: could not connect: the first attempt is under way (not sent)";
    assert_eq!(calls(&mut fleet, conn), first);
    let _nobody = world.host([10, 0, 0, 1]);
    fleet.run_for(LONG);
    let refused = calls(&mut fleet, conn);
    assert!(refused.contains("could not connect: ") && !refused.contains("under way"), "{refused}");
    assert!(log.count("error") > 1);
    fleet.handle(0).abort(conn);

    let server = ReactorBuilder::new(Native).seed(1);
    fleet.add(3, server, Script::default());
    fleet.nodes[1].engine.context().listen("10.0.0.3:7001").unwrap();
    let conn = fleet.nodes[0].engine.context().connect("10.0.0.3:7001").unwrap();
    fleet.run_for(SECOND);
    let at_server = fleet.nodes[1].engine.context().connections().next().unwrap();
    fleet.handle(1).close(at_server);
    fleet.run_for(5 * SECOND);
    assert_eq!(calls(&mut fleet, conn), "disconnected: closed by the peer (not sent)");
}
