//! What the application gives may panic: its callbacks, its format, its policies, its data. That costs
//! the connection or the call that was being served, and never the loop.

use std::{
    sync::Arc,
    task::{Context as TaskContext, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;

use super::{
    bent::{At, Bend, Bent, bent_pair, frame, is_planned, panic_at, raw},
    fleet::Fleet,
    script::{Log, SERVER, Script, accepted, call},
};
use crate::{
    Audience, CallError, Config, ConnId, Error, Fate, Reconnect,
    net::{BroughtStream, sim::SimWorld},
    protocol::Kind,
    table::dial::stream_options,
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// A value that panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "as planned");
    }
}

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        std::mem::forget(self);
        panic!("as planned");
    }
}

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        const { &[b'b'; 10_000] }
    }
}

/// A server, and a fragile client of it with two connections.
struct Rig {
    world: SimWorld,
    fleet: Fleet<Script<Bent>>,
    seen: Log,
    log: Log,
    victim: ConnId,
    other: ConnId,
}

impl Rig {
    fn new(change: impl FnOnce(&mut Script<Bent>, &mut Script<Bent>)) -> Self {
        Self::with(Reconnect::fixed(SECOND), change)
    }

    fn with(
        reconnect: Reconnect,
        change: impl FnOnce(&mut Script<Bent>, &mut Script<Bent>),
    ) -> Self {
        let world = SimWorld::new(1);
        let ((mut server, seen), (mut client, log)) = (Script::noting(), Script::noting());
        change(&mut server, &mut client);
        let config = Config::new().reconnect(reconnect);
        let bends = [Bend::Nothing, Bend::Fragile];
        let (mut fleet, victim) = bent_pair(&world, bends, [server, client], &config);
        let other = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
        fleet.run_for(SECOND);
        Self { world, fleet, seen, log, victim, other }
    }

    fn plain() -> Self {
        Self::new(|_, _| {})
    }

    /// The server's end of the victim.
    fn at_server(&mut self) -> ConnId {
        accepted(&mut self.fleet)
    }

    /// The planned panic came, and ended one connection, which came back; the other was not touched,
    /// and the peer got nothing torn.
    fn assert_one_ended(&mut self) {
        self.fleet.run_for(10 * SECOND);
        assert!(!is_planned(), "nothing has panicked");
        let log = &self.log;
        assert_eq!(log.count("disconnect a callback panicked: as planned"), 1, "{:?}", log.take());
        assert_eq!(log.count("disconnect"), 1);
        assert_eq!(log.count("connect 2"), 1);
        self.assert_served();
    }

    /// Everything goes on, and the peer got nothing torn.
    fn assert_served(&mut self) {
        let torn = self.seen.count("disconnect protocol error")
            + self.seen.count("disconnect closed by the peer 1");
        assert_eq!(torn, 0, "{:?}", self.seen.take());
        for (body, conn) in [("victim", self.victim), ("other", self.other)] {
            let mut cx = self.fleet.nodes[1].engine.context();
            if let Some(mut conn) = cx.conn(conn) {
                call(&mut conn, body, 10 * LONG).unwrap();
            }
        }
        self.fleet.run_for(SECOND);
        let replies = self.log.lines("reply to other");
        assert_eq!(replies, ["reply to other: other"], "{:?}", self.log.take());
        for node in &self.fleet.nodes {
            assert!(!node.engine.is_stopped());
        }
    }
}

// ---- the format ----

#[test]
fn decoder_that_panics_costs_the_connection_whose_bytes_they_were() {
    let mut rig = Rig::plain();
    let at_server = rig.at_server();
    panic_at(At::Decode);
    rig.fleet.handle(0).send(at_server, "poison").unwrap();
    rig.assert_one_ended();
}

#[test]
fn encoder_that_panics_costs_the_connection_of_the_message() {
    let mut rig = Rig::plain();
    panic_at(At::Encode(Kind::Push));
    rig.fleet.handle(1).send(rig.victim, "poison").unwrap();
    rig.assert_one_ended();
    assert_eq!(rig.seen.count("message poison"), 0);
}

#[test]
fn encoder_that_panics_for_a_small_message_between_others_tears_none_of_them() {
    let mut rig = Rig::plain();
    let handle = rig.fleet.handle(1);
    let mut cx = rig.fleet.nodes[1].engine.context();
    cx.conn(rig.victim).unwrap().send("before").unwrap();
    panic_at(At::Encode(Kind::Push));
    handle.send(rig.victim, "poison").unwrap();
    rig.assert_one_ended();
    assert_eq!(rig.seen.lines("message"), ["message before", "message victim", "message other"]);
}

#[test]
fn encoder_that_panics_on_a_call_ends_that_call() {
    let mut rig = Rig::plain();
    panic_at(At::Encode(Kind::Request));
    let pending = rig.fleet.handle(1).call_async(rig.victim, "poison", LONG);
    rig.assert_one_ended();
    let error = pending.wait().unwrap_err();
    assert!(matches!(error, CallError::Disconnected { .. }), "{error}");
}

#[test]
fn encoder_that_panics_on_a_reply_costs_the_connection_of_the_request() {
    let mut rig = Rig::plain();
    let at_server = rig.at_server();
    panic_at(At::Encode(Kind::Reply));
    let pending = rig.fleet.handle(0).call_async(at_server, "poison", LONG);
    rig.assert_one_ended();
    let error = pending.wait().unwrap_err();
    assert_eq!(error.fate(), Fate::MaybeSent, "{error}");
}

#[test]
fn encoder_that_panics_on_a_pong_costs_its_connection() {
    let mut rig = Rig::plain();
    let at_server = rig.at_server();
    panic_at(At::Encode(Kind::Pong));
    rig.fleet.handle(0).send(at_server, raw(&frame(Kind::Ping, 1, 0, b""))).unwrap();
    rig.assert_one_ended();
}

#[test]
fn encoder_that_panics_on_a_ping_costs_its_connection() {
    let mut rig = Rig::plain();
    panic_at(At::Encode(Kind::Ping));
    rig.fleet.run_for(LONG);
    rig.assert_one_ended();
}

#[test]
fn encoder_that_takes_away_what_was_queued_costs_the_connection_that_it_was_queued_for() {
    let mut rig = Rig::plain();
    let mut cx = rig.fleet.nodes[1].engine.context();
    cx.conn(rig.victim).unwrap().send("before").unwrap();
    panic_at(At::TakeAway);
    rig.fleet.handle(1).send(rig.victim, "poison").unwrap();
    rig.fleet.run_for(10 * SECOND);
    assert!(!is_planned());
    assert_eq!(rig.log.count("disconnect a callback panicked: an encoder only appends"), 1);
    assert_eq!(rig.log.count("connect 2"), 1);
    rig.assert_served();
    assert_eq!(rig.seen.lines("message"), ["message victim", "message other"]);

    // Also where the callback of another connection queued it.
    let victim = rig.victim;
    let mut cx = rig.fleet.nodes[1].engine.context();
    let mut conn = cx.conn(rig.other).unwrap();
    conn.call::<Script<Bent>>("x", LONG, move |_, conn, _| {
        let mut conn = conn.cx().conn(victim).unwrap();
        conn.send("before").unwrap();
        panic_at(At::TakeAway);
        let _ = conn.send("poison");
    })
    .unwrap();
    rig.fleet.run_for(10 * SECOND);
    assert!(!is_planned());
    assert_eq!(rig.log.count("connect 3"), 1, "the victim: {:?}", rig.log.take());
    assert_eq!(rig.seen.count("disconnect protocol error"), 0);
    assert_eq!(rig.seen.count("message before"), 0);
}

#[test]
fn id_that_panics_costs_the_connection_of_its_message() {
    let mut rig = Rig::plain();
    panic_at(At::PushId);
    rig.fleet.handle(1).send(rig.victim, "poison").unwrap();
    rig.assert_one_ended();
}

#[test]
fn encoder_that_panics_on_a_kept_message_costs_the_connection() {
    let mut rig = Rig::plain();
    let connections = rig.world.connections();
    rig.world.reset(connections[0]);
    rig.fleet.run_for(SECOND / 2);
    assert_eq!(rig.log.count("disconnect"), 1, "it is down");
    rig.fleet.handle(1).send(rig.victim, "poison").unwrap();
    rig.fleet.handle(1).send(rig.victim, "kept").unwrap();
    rig.fleet.run_for(SECOND / 4);
    panic_at(At::Encode(Kind::Push));
    rig.fleet.run_for(10 * SECOND);
    assert!(!is_planned());
    assert_eq!(rig.log.count("disconnect a callback panicked: as planned"), 1);
    assert_eq!(rig.log.count("connect 3"), 1, "{:?}", rig.log.take());
    assert_eq!(rig.seen.lines("message"), ["message kept"], "what was behind it waits on");
    rig.assert_served();
}

#[test]
fn encoder_that_panics_on_a_broadcast_costs_that_broadcast() {
    for clients in [10, 300] {
        let world = SimWorld::new(1);
        let ((server, log), (client, seen)) = (Script::noting(), Script::noting());
        let bends = [Bend::Fragile, Bend::Nothing];
        let (mut fleet, _) = bent_pair(&world, bends, [server, client], &Config::new());
        for _ in 1..clients {
            fleet.nodes[1].engine.context().connect(SERVER).unwrap();
        }
        fleet.run_for(SECOND);
        panic_at(At::Encode(Kind::Push));
        fleet.handle(0).broadcast("poison").unwrap();
        fleet.run_for(SECOND);
        assert!(!is_planned());
        fleet.handle(0).broadcast("news").unwrap();
        fleet.run_for(SECOND);
        assert_eq!((seen.count("message news"), seen.count("message poison")), (clients, 0));
        assert_eq!(log.count("disconnect"), 0, "nobody is cut");
        let undelivered = fleet.nodes[0].engine.state.stats.undelivered;
        assert_eq!(undelivered, clients as u64, "and each is accounted for");
    }
}

#[test]
fn hello_that_panics_costs_that_attempt() {
    let mut rig = Rig::plain();
    panic_at(At::Hello);
    let connections = rig.world.connections();
    rig.world.reset(connections[0]);
    rig.fleet.run_for(10 * SECOND);
    assert!(!is_planned());
    assert_eq!(rig.log.count("error could not connect"), 0);
    assert_eq!(rig.log.count("connect 2"), 1, "{:?}", rig.log.take());
    rig.assert_served();
}

/// Where a protocol is asked when a connection is made of it.
const MAKING: [At; 2] = [At::Clone, At::LargestBody];

#[test]
fn protocol_that_panics_when_a_connection_is_made_is_an_error_for_who_asked() {
    for at in MAKING {
        let mut rig = Rig::plain();
        let connections = rig.fleet.nodes[1].engine.state.stats.connections;
        panic_at(at);
        let made = rig.fleet.nodes[1].engine.context().connect(SERVER);
        assert!(matches!(&made, Err(Error::Panicked(text)) if text == "as planned"), "{made:?}");
        panic_at(at);
        rig.fleet.handle(1).run(|cx| assert!(cx.connect(SERVER).is_err())).unwrap();
        rig.fleet.run_for(SECOND);
        assert!(!is_planned());
        assert_eq!(rig.log.count("error"), 0, "{:?}", rig.log.take());
        let stats = rig.fleet.nodes[1].engine.state.stats;
        assert_eq!((stats.panics, stats.connections), (2, connections));
        rig.assert_served();
    }
}

#[test]
fn protocol_that_panics_when_a_listener_is_made_leaves_none() {
    let mut rig = Rig::plain();
    let config = Config::new().backlog(7);
    panic_at(At::Clone);
    let mut cx = rig.fleet.nodes[1].engine.context();
    let made = cx.listen_with("10.0.0.2:7002", &Bent(Bend::Fragile), &config);
    assert!(matches!(made, Err(Error::Panicked(_))), "{made:?}");
    assert!(cx.listen_with("10.0.0.2:7002", &Bent(Bend::Fragile), &config).is_ok());
    rig.assert_served();
}

#[test]
fn protocol_that_panics_when_a_connection_is_redialled_ends_that_connection() {
    for at in MAKING {
        let mut rig = Rig::plain();
        panic_at(at);
        let connections = rig.world.connections();
        rig.world.reset(connections[0]);
        rig.fleet.run_for(SECOND);
        assert!(!is_planned());
        let gone = [rig.victim, rig.other].map(|id| rig.fleet.handle(1).is_open(id));
        assert_eq!(gone, [false, true]);
        // What had promised to go on says that it does not.
        assert_eq!(rig.log.count("error connection"), 1, "{:?}", rig.log.take());
        rig.assert_served();
    }
}

#[test]
fn protocol_that_panics_when_a_connection_is_accepted_refuses_that_connection() {
    for at in MAKING {
        let world = SimWorld::new(1);
        let ((server, log), (client, _)) = (Script::noting(), Script::noting());
        let config = Config::new().reconnect(Reconnect::fixed(SECOND));
        let bends = [Bend::Fragile, Bend::Nothing];
        let (mut fleet, _) = bent_pair(&world, bends, [server, client], &config);
        panic_at(at);
        fleet.nodes[1].engine.context().connect(SERVER).unwrap();
        fleet.run_for(10 * SECOND);
        assert!(!is_planned());
        assert_eq!(log.count("connect"), 2, "the first, and the next attempt: {:?}", log.take());
        assert_eq!(fleet.nodes[0].engine.state.stats.panics, 1);
        assert!(fleet.stop());
        fleet.assert_empty();
    }
}

#[test]
fn protocol_that_panics_when_a_stream_is_adopted_closes_the_stream() {
    for at in MAKING {
        let mut rig = Rig::plain();
        let options = stream_options(&Config::new());
        let net = &mut rig.fleet.nodes[1].engine.sockets.net;
        let stream = net.dial(SERVER.parse().unwrap(), &options).unwrap();
        rig.fleet.run_for(SECOND);
        panic_at(at);
        // Settings of its own, so that a profile is made.
        let config = Config::go_tcpstream();
        let mut cx = rig.fleet.nodes[1].engine.context();
        let made =
            cx.adopt_brought(BroughtStream::Simulated(stream), &Bent(Bend::Fragile), &config);
        assert!(matches!(made, Err(Error::Panicked(_))), "{made:?}");
        assert!(!is_planned());
        rig.fleet.run_for(SECOND);
        assert_eq!(rig.seen.count("error"), 1, "its hello never came: {:?}", rig.seen.take());
        rig.assert_served();
    }
}

#[test]
fn protocol_that_panics_when_a_connection_ends_leaves_no_call_without_an_end() {
    let mut rig = Rig::new(|server, _| {
        let mut kept = Vec::new();
        server.on_message = Box::new(move |conn, msg| match &*msg.text() {
            "go away" => _ = conn.send(raw(&frame(Kind::Goaway, u64::MAX, 0, b""))),
            "held" => kept.push(conn.defer(&msg)),
            _ => _ = conn.reply(&msg, &msg),
        });
    });
    let handle = rig.fleet.handle(1);
    let calls: Vec<_> = (0..3).map(|_| handle.call_async(rig.victim, "held", LONG)).collect();
    handle.send(rig.victim, "go away").unwrap();
    rig.fleet.run_for(SECOND);
    panic_at(At::Handled);
    let connections = rig.world.connections();
    rig.world.reset(connections[0]);
    rig.fleet.run_for(10 * SECOND);
    assert!(!is_planned());
    for call in calls {
        let error = call.wait().unwrap_err();
        assert_eq!(error.fate(), Fate::MaybeSent, "{error}");
    }
    rig.assert_served();
    assert!(rig.fleet.stop());
    rig.fleet.assert_empty();
}

#[test]
fn protocol_that_panics_as_two_are_compared_costs_a_broadcast_its_receivers() {
    let mut rig = Rig::plain();
    let config = Config::new().reconnect(Reconnect::never());
    let mut cx = rig.fleet.nodes[1].engine.context();
    cx.connect_with(SERVER, &Bent(Bend::Fragile), &config).unwrap();
    rig.fleet.run_for(SECOND);
    panic_at(At::Compare);
    rig.fleet.handle(1).broadcast("news").unwrap();
    rig.fleet.run_for(SECOND);
    assert!(!is_planned());
    assert_eq!(rig.log.count("disconnect"), 0);
    assert_eq!(rig.seen.count("message news"), 2, "{:?}", rig.seen.take());
    assert_eq!(rig.fleet.nodes[1].engine.state.stats.undelivered, 1);
    rig.assert_served();
}

#[test]
fn error_is_not_longer_than_the_format_carries() {
    let world = SimWorld::new(1);
    let ((mut server, log), (client, outcome)) = (Script::noting(), Script::noting());
    server.on_message = Box::new(|conn, msg| {
        let responder = conn.defer(&msg).unwrap();
        responder.fail(300, &"ä".repeat(1000)).unwrap();
    });
    let bends = [Bend::Short, Bend::Nothing];
    let (mut fleet, conn) = bent_pair(&world, bends, [server, client], &Config::new());
    call(&mut fleet.nodes[1].engine.context().conn(conn).unwrap(), "fail", SECOND).unwrap();
    fleet.run_for(SECOND);
    let failed = outcome.lines("call fail failed");
    assert_eq!(
        failed,
        [format!("call fail failed: the peer failed: {} (code 300)", "ä".repeat(127))]
    );
    assert_eq!(log.count("disconnect"), 0);
}

// ---- policies and data ----

#[test]
fn policy_that_panics_ends_its_connection() {
    let mut rig = Rig::with(Reconnect::custom(|_| panic!("as planned")), |_, _| {});
    let connections = rig.world.connections();
    rig.world.reset(connections[0]);
    rig.fleet.run_for(10 * SECOND);
    assert_eq!(rig.log.count("disconnect"), 1);
    assert_eq!(rig.log.count("connect 2"), 0);
    let are_open = [rig.victim, rig.other].map(|id| rig.fleet.handle(1).is_open(id));
    assert_eq!(are_open, [false, true]);
    rig.assert_served();
}

#[test]
fn data_that_panics_when_it_is_dropped_costs_nothing_else() {
    let mut rig = Rig::plain();
    rig.fleet.nodes[1].engine.context().conn(rig.victim).unwrap().set_data(Bomb);
    rig.fleet.handle(1).close(rig.victim);
    rig.fleet.run_for(10 * SECOND);
    assert_eq!(rig.log.count("disconnect closed"), 1);
    assert!(!rig.fleet.handle(1).is_open(rig.victim));
    rig.assert_served();
    assert!(rig.fleet.stop());
    rig.fleet.assert_empty();
}

#[test]
fn data_that_panics_when_it_is_dropped_does_not_keep_a_stop() {
    let mut rig = Rig::plain();
    for id in [rig.victim, rig.other] {
        rig.fleet.nodes[1].engine.context().conn(id).unwrap().set_data(Bomb);
    }
    assert!(rig.fleet.stop());
    rig.fleet.assert_empty();
    assert_eq!(rig.log.count("stop"), 1);
}

#[test]
fn callback_that_panics_when_it_is_dropped_costs_its_connection() {
    let mut rig = Rig::plain();
    let bomb = Bomb;
    let mut cx = rig.fleet.nodes[1].engine.context();
    let mut conn = cx.conn(rig.victim).unwrap();
    conn.call::<Script<Bent>>("called", SECOND, move |_, _, _| drop(bomb)).unwrap();
    rig.assert_one_ended();
}

#[test]
fn body_whose_owner_panics_costs_its_connection() {
    let mut rig = Rig::plain();
    rig.fleet.handle(1).send(rig.victim, Bytes::from_owner(Bomb)).unwrap();
    rig.assert_one_ended();
}

#[test]
fn waker_that_panics_keeps_no_other_call_waiting() {
    let mut rig = Rig::new(|server, _| {
        let mut kept = Vec::new();
        server.on_message = Box::new(move |conn, msg| {
            if &*msg.text() == "held" {
                kept.push(conn.defer(&msg));
            } else if msg.is_request() {
                conn.reply(&msg, &msg).unwrap();
            }
        });
    });
    let handle = rig.fleet.handle(1);
    let mut calls: Vec<_> = (0..3).map(|_| handle.call_async(rig.victim, "held", LONG)).collect();
    let waker = Waker::from(Arc::new(Bomb));
    for call in &mut calls {
        let polled = std::pin::Pin::new(call).poll(&mut TaskContext::from_waker(&waker));
        assert!(polled.is_pending());
    }
    std::mem::forget(waker);
    rig.fleet.run_for(SECOND);
    let connections = rig.world.connections();
    rig.world.reset(connections[0]);
    rig.fleet.run_for(10 * SECOND);
    for call in calls {
        assert!(matches!(call.wait(), Err(CallError::Disconnected { .. })));
    }
    rig.assert_served();
}

#[test]
fn filter_that_panics_costs_its_broadcast() {
    let mut rig = Rig::plain();
    let audience = Audience::filter(|_| panic!("as planned"));
    rig.fleet.handle(1).broadcast_to(audience, "news").unwrap();
    rig.fleet.run_for(SECOND);
    assert_eq!(rig.log.count("error a broadcast's filter panicked: as planned"), 1);
    assert_eq!(rig.log.count("disconnect"), 0);
    rig.assert_served();
}

#[test]
fn closure_that_comes_too_late_and_panics_when_it_is_dropped_does_not_undo_a_stop() {
    let mut rig = Rig::new(|_, client| {
        client.on_disconnect = Box::new(|conn, _| {
            let bomb = Bomb;
            // In the last turn: nobody runs it any more.
            let _ = conn.cx().handle().run(move |_| drop(bomb));
        });
    });
    rig.fleet.handle(1).stop_within(Duration::ZERO);
    rig.fleet.run_for(SECOND);
    assert_eq!(rig.log.count("disconnect the reactor stopped"), 2);
    assert!(rig.fleet.stop());
    assert_eq!(rig.log.count("stop"), 1);
    rig.fleet.assert_empty();
}

#[test]
fn reactor_whose_data_panics_is_dropped_and_ends_every_call() {
    let mut rig = Rig::plain();
    let pending = rig.fleet.handle(1).call_async(rig.victim, "called", LONG);
    rig.fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
    let bomb = Bomb;
    let mut cx = rig.fleet.nodes[1].engine.context();
    let mut conn = cx.conn(rig.victim).unwrap();
    conn.set_data(Bomb);
    conn.call::<Script<Bent>>("called", LONG, move |_, _, _| drop(bomb)).unwrap();
    let bomb = Bomb;
    rig.fleet.handle(1).run(move |_| drop(bomb)).unwrap();
    drop(rig.fleet.nodes.pop());
    assert!(matches!(pending.wait(), Err(CallError::Stopped { .. })));
}

#[test]
fn callback_that_panics_takes_no_other_connection_with_it() {
    let mut rig = Rig::new(|_, client| {
        client.on_message = Box::new(|_, msg| assert_ne!(&*msg.text(), "poison", "as planned"));
    });
    let at_server = rig.at_server();
    rig.fleet.handle(0).send(at_server, "poison").unwrap();
    rig.fleet.run_for(10 * SECOND);
    assert_eq!(rig.log.count("disconnect a callback panicked"), 1);
    rig.assert_served();
}
