//! Pings go on: after each that was answered comes the next, an interval later.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    clippy::needless_pass_by_value,
    clippy::redundant_closure_for_method_calls,
    clippy::similar_names,
    reason = "a test says so by panicking, and its numbers are small"
)]

mod common;

use std::time::Duration;

use common::{Peer, Running, Script, frame, now, pass};
use longhaul::{
    Config,
    protocol::{Head, Kind, Native},
};

/// By a peer that answers each ping, of a server whose idle timeout is far away, or off.
#[test]
fn answered_ping_is_followed_by_another_an_interval_later() {
    for idle in [None, Some(Duration::from_secs(3600))] {
        let settings = Config::new().heartbeat(Duration::from_millis(100)).idle_timeout(idle);
        let server = Running::server(Native, settings, Script::new());
        let mut peer = Peer::new(server.addr, Native);
        let mut pings = 0;
        while pings < 5 {
            let (head, body) = peer.next_frame().expect("the connection stays up");
            if head.kind == Kind::Ping {
                pings += 1;
                peer.write(&frame(&Native.into(), &Head::new(Kind::Pong, head.id), &body));
            }
        }
    }
}

/// Two of ours: one beats at a third of the idle timeout that the other named, for as long as it is up.
#[test]
fn side_that_beats_keeps_up_a_link_to_one_that_does_not() {
    let idle = Duration::from_millis(1500);
    let deaf = Config::new().heartbeat(None).idle_timeout(idle);
    let server = Running::server(Native, deaf, Script::new());
    let beats =
        Config::new().heartbeat(Duration::from_secs(10)).idle_timeout(Duration::from_secs(30));
    let client = Running::client(Native, beats.clone(), Script::new());
    let conn = client.handle.connect_with(server.addr, &Native.into(), &beats).unwrap();
    client.events.connected();
    let began = now();
    while now() - began < 4 * idle {
        pass(idle / 10);
        let epoch = client.ask(move |cx| cx.conn(conn).unwrap().epoch());
        assert!(client.handle.is_up(conn) && epoch == 1, "lost after {:?}", now() - began);
    }
}
