//! Stopping and draining of many connections.

use std::time::Duration;

use super::{
    fleet::Fleet,
    script::{SERVER, Script},
};
use crate::{
    Config, Error, ListenerId, ReactorBuilder, Reconnect,
    net::{BroughtStream, sim::SimWorld},
    protocol::Native,
    table::{dial::stream_options, slot::Phase},
};

const SECOND: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 5000;

/// A server with very many connections.
fn crowd() -> (Fleet<Script>, ListenerId, super::script::Log) {
    let world = SimWorld::new(1);
    let ((server, log), (client, _)) = (Script::<Native>::noting(), Script::noting());
    let mut fleet = Fleet::new(world);
    fleet.is_checked = false;
    let builder = |seed| {
        let config = Config::new().reconnect(Reconnect::never());
        ReactorBuilder::new(Native).config(config).max_connections(2 * CONNECTIONS).seed(seed)
    };
    fleet.add(1, builder(1), server);
    fleet.add(2, builder(2), client);
    let (listener, _) = fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    for number in 1..=CONNECTIONS {
        fleet.nodes[1].engine.context().connect(SERVER).unwrap();
        if number.is_multiple_of(500) {
            fleet.run_for(SECOND);
        }
    }
    assert_eq!(fleet.nodes[0].engine.context().connections().count(), CONNECTIONS);
    (fleet, listener, log)
}

/// One turn of the server; how many connections began to end in it.
fn begun_in_a_turn(fleet: &mut Fleet<Script>) -> usize {
    let open = |fleet: &Fleet<Script>| {
        let slots = fleet.nodes[0].engine.state.slots.iter();
        slots.filter(|slot| slot.phase == Phase::Open).count()
    };
    let before = open(fleet);
    fleet.nodes[0].engine.turn(Some(Duration::ZERO)).unwrap();
    before - open(fleet)
}

#[test]
fn stop_drains_some_of_many_connections_in_each_turn() {
    let (mut fleet, _, log) = crowd();
    fleet.handle(0).stop();
    let begun = begun_in_a_turn(&mut fleet);
    assert!((1..=1024).contains(&begun), "{begun} in one turn");
    fleet.run_for(20 * SECOND);
    assert!(fleet.nodes[0].engine.is_stopped());
    assert_eq!(log.count("disconnect the reactor stopped"), CONNECTIONS);
}

#[test]
fn listener_drains_some_of_many_connections_in_each_turn() {
    let (mut fleet, listener, log) = crowd();
    fleet.handle(0).drain_listener(listener).unwrap();
    let begun = begun_in_a_turn(&mut fleet);
    assert!((1..=1024).contains(&begun), "{begun} in one turn");
    fleet.run_for(20 * SECOND);
    assert_eq!(log.count("disconnect"), CONNECTIONS);
    assert_eq!(log.count("error"), 1, "that it has drained: {:?}", log.lines("error"));
}

#[test]
fn ends_of_many_connections_are_told_over_several_turns() {
    let (mut fleet, _, log) = crowd();
    let ids: Vec<_> = fleet.nodes[0].engine.context().connections().collect();
    for id in ids {
        fleet.nodes[0].engine.context().conn(id).unwrap().abort();
    }
    fleet.nodes[0].engine.turn(Some(Duration::ZERO)).unwrap();
    let told = log.count("disconnect");
    assert!((1..=1024).contains(&told), "{told} in one turn");
    fleet.run_for(SECOND);
    assert_eq!(log.count("disconnect aborted"), CONNECTIONS);
}

#[test]
fn nothing_new_is_taken_while_stopping() {
    let (mut fleet, _, _) = crowd();
    fleet.handle(0).stop();
    fleet.nodes[0].engine.turn(Some(Duration::ZERO)).unwrap();
    let mut cx = fleet.nodes[0].engine.context();
    assert!(cx.listen("10.0.0.1:7002").is_err());
    assert!(cx.connect(SERVER).is_err());
}

#[test]
fn stream_that_is_adopted_while_stopping_is_refused_and_closed() {
    let world = SimWorld::new(1);
    let ((server, log), (client, _)) = (Script::<Native>::noting(), Script::noting());
    let mut fleet = Fleet::new(world);
    fleet.add(1, ReactorBuilder::new(Native).seed(1), server);
    fleet.add(2, ReactorBuilder::new(Native).seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let options = stream_options(&Config::new());
    let stream = fleet.nodes[1].engine.sockets.net.dial(SERVER.parse().unwrap(), &options).unwrap();
    // One that is up keeps the reactor from being stopped at once.
    fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(SECOND);
    fleet.handle(1).stop();
    fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
    assert!(!fleet.nodes[1].engine.is_stopped());
    let brought = BroughtStream::Simulated(stream);
    let adopted = fleet.nodes[1].engine.context().adopt_brought(brought, &Native, &Config::new());
    assert!(matches!(adopted, Err(Error::Stopped)), "{adopted:?}");
    fleet.run_for(SECOND);
    assert_eq!(log.count("error"), 1, "the peer sees its end: {:?}", log.take());
    assert!(fleet.stop());
    fleet.assert_empty();
}
