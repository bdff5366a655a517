//! What a layer between the socket and the frames must not change, and what its own troubles come to.

use std::{io::IoSlice, time::Duration};

use super::{
    fleet::Fleet,
    script::{Log, SERVER, Script, accepted, call, pair_on},
};
use crate::{
    Config, ConnId, ReactorBuilder, Reconnect,
    layer::records::{Records, data_record},
    net::{
        Net, StreamOptions,
        sim::{SimNet, SimStream, SimWorld},
    },
    protocol::{Head, Kind, Native, Protocol, Tcpstream},
};

const SECOND: Duration = Duration::from_secs(1);
const RECORDS: Records =
    Records { longest: 700, delays: 0.0, failures: 0.0, is_strict: true, bug: None };

fn layered(records: Records) -> Config {
    let mut config = Config::new();
    config.layer = Some(records.maker());
    config = config.reconnect(Reconnect::never());
    config
}

/// A server and a client that speak through records.
fn layered_pair(records: Records) -> (Fleet<Script>, ConnId, [Log; 2]) {
    let world = SimWorld::new(1);
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let (fleet, conn) = pair_on(&world, &Native, server, client, &layered(records));
    (fleet, conn, [seen, log])
}

/// A server behind records, and a peer that writes bytes.
struct Siege {
    fleet: Fleet<Script<Tcpstream>>,
    log: Log,
    net: SimNet,
    stream: SimStream,
}

impl Siege {
    fn new() -> Self {
        Self::behind(RECORDS)
    }

    fn behind(records: Records) -> Self {
        let world = SimWorld::new(1);
        let mut fleet = Fleet::new(world.clone());
        let (server, log) = Script::noting();
        let builder = ReactorBuilder::new(Tcpstream).config(layered(records)).seed(1);
        fleet.add(1, builder, server);
        fleet.nodes[0].engine.context().listen(SERVER).unwrap();
        let net = world.host([10, 0, 0, 9]);
        let options = StreamOptions {
            nodelay: true,
            keepalive: None,
            user_timeout: None,
            send_buffer: None,
            receive_buffer: None,
        };
        let stream = net.dial(SERVER.parse().unwrap(), &options).unwrap();
        let mut siege = Self { fleet, log, net, stream };
        siege.fleet.run_for(SECOND / 10);
        siege
    }

    /// As [`new`](Self::new), after the handshake.
    fn up() -> Self {
        Self::up_behind(RECORDS)
    }

    fn up_behind(records: Records) -> Self {
        let mut siege = Self::behind(records);
        for _ in 0..2 {
            siege.write(&[20, 0, 0]);
            siege.fleet.run_for(SECOND / 10);
        }
        assert_eq!(siege.log.take(), ["connect 1"]);
        siege
    }

    /// All that has come.
    fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let mut len = 0;
        while let Ok(count @ 1..) = self.net.read(&mut self.stream, &mut bytes[len..]) {
            len += count;
        }
        bytes.truncate(len);
        bytes
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.net.write(&mut self.stream, &[IoSlice::new(bytes)]).unwrap_or(0)
    }
}

#[test]
fn handshake_comes_before_everything_and_then_all_is_as_without_a_layer() {
    for delays in [0.0, 0.5] {
        let (mut fleet, id, [seen, log]) = layered_pair(Records { delays, ..RECORDS });
        assert_eq!((seen.take(), log.take()), (vec!["connect 1".into()], vec!["connect 1".into()]));
        let mut cx = fleet.nodes[1].engine.context();
        let mut conn = cx.conn(id).unwrap();
        conn.send("news").unwrap();
        conn.send(vec![b'y'; 200_000]).unwrap();
        call(&mut conn, "question", 10 * SECOND).unwrap();
        // Each byte of it may be held back for a while.
        fleet.run_for(60 * SECOND);
        let filled = format!("message {}", "y".repeat(40));
        assert_eq!(seen.take(), ["message news", &filled, "message question"]);
        assert_eq!(log.take(), ["reply to question: question"]);
        fleet.handle(1).close(id);
        fleet.run_for(SECOND);
        assert_eq!(seen.take(), ["disconnect closed by the peer"]);
        assert_eq!(log.take(), ["disconnect closed"]);
        assert!(fleet.nodes.iter().all(|node| node.engine.state.slots.is_empty()));
    }
}

#[test]
fn calls_broadcasts_and_goodbyes_go_through_the_layer() {
    let (mut fleet, id, [seen, log]) = layered_pair(RECORDS);
    let at_server = accepted(&mut fleet);
    fleet.nodes[0].engine.context().broadcast(crate::Audience::All, "to all");
    fleet.handle(0).send(at_server, "to one").unwrap();
    fleet.run_for(SECOND);
    assert_eq!(log.lines("message"), ["message to all", "message to one"]);
    let mut cx = fleet.nodes[1].engine.context();
    call(&mut cx.conn(id).unwrap(), "last", SECOND).unwrap();
    cx.stop();
    fleet.run_for(5 * SECOND);
    assert_eq!(log.lines("reply"), ["reply to last: last"]);
    assert_eq!(seen.lines("disconnect").len(), 1);
    assert!(fleet.nodes[1].engine.is_stopped());
}

#[test]
fn handshake_has_its_time() {
    let mut siege = Siege::new();
    siege.write(&[20, 0, 0]);
    siege.fleet.run_for(10 * SECOND);
    let errors = siege.log.take();
    assert!(
        matches!(&errors[..], [error] if error.ends_with("no handshake within 5s")),
        "{errors:?}"
    );
    assert!(siege.fleet.nodes[0].engine.state.slots.is_empty());
}

#[test]
fn bytes_of_frames_before_the_handshake_are_refused_unheard() {
    let mut siege = Siege::new();
    siege.write(&[23, 0, 1, b'x']);
    siege.fleet.run_for(SECOND);
    let errors = siege.log.take();
    assert!(errors.len() == 1 && errors[0].contains("in the handshake"), "{errors:?}");
}

#[test]
fn record_that_drips_in_has_the_time_of_a_frame() {
    let mut siege = Siege::up();
    for byte in [23, 1] {
        siege.write(&[byte]);
        siege.fleet.run_for(14 * SECOND);
        assert_eq!(siege.log.take(), [""; 0]);
    }
    siege.fleet.run_for(4 * SECOND);
    assert_eq!(siege.log.take(), ["disconnect a frame was not whole within 30s"]);
}

#[test]
fn record_that_is_whole_has_no_time_left_to_keep() {
    let mut siege = Siege::up();
    siege.write(&[24, 0]);
    siege.fleet.run_for(SECOND);
    siege.write(&[0]);
    siege.fleet.run_for(31 * SECOND);
    assert_eq!(siege.log.lines("disconnect"), [""; 0]);
}

#[test]
fn layer_that_gives_up_ends_the_connection_and_says_why() {
    let mut siege = Siege::up();
    siege.write(&[99, 0, 0]);
    siege.fleet.run_for(2 * SECOND);
    assert_eq!(siege.log.take(), ["disconnect records failed: no record is of kind 99"]);
}

#[test]
fn end_without_the_layers_own_is_told_from_one_with_it() {
    let mut siege = Siege::up();
    siege.net.shutdown(&mut siege.stream).unwrap();
    siege.fleet.run_for(2 * SECOND);
    assert_eq!(siege.log.take(), ["disconnect records failed: cut off"]);

    let mut siege = Siege::up();
    siege.write(&[21, 0, 0]);
    siege.fleet.run_for(2 * SECOND);
    assert_eq!(siege.log.take(), ["disconnect closed by the peer"]);
}

/// A peer that has records of the layer's own answered, and reads no answer.
#[test]
fn answers_of_the_layer_that_a_peer_does_not_take_are_bounded() {
    let mut siege = Siege::up();
    let ask = [&[24, 0, 200][..], &[0; 200]].concat().repeat(100);
    let mut most = 0;
    for _ in 0..2000 {
        siege.write(&ask);
        siege.fleet.run_for(Duration::from_millis(10));
        let slots = &siege.fleet.nodes[0].engine.state.slots;
        most = most.max(slots.iter().map(|slot| slot.link.queued_cost()).max().unwrap_or(0));
    }
    let config = Config::new();
    assert!(most > 0 && most < config.high_watermark + 1024 * 1024, "{most} bytes");
}

#[test]
fn peer_without_the_layer_is_not_taken_for_one_with_it() {
    let world = SimWorld::new(1);
    let mut fleet = Fleet::new(world);
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let plain = Config::new().reconnect(Reconnect::never());
    for (number, config, script) in [(1, plain, server), (2, layered(RECORDS), client)] {
        let builder = ReactorBuilder::new(Native).config(config).seed(number.into());
        fleet.add(number, builder, script);
    }
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(10 * SECOND);
    assert_eq!((seen.count("connect"), log.count("connect")), (0, 0));
    assert_eq!((seen.count("error"), log.count("error")), (1, 1), "{:?}", log.take());
}

#[test]
fn calls_that_a_layer_did_not_let_out_were_not_sent() {
    let world = SimWorld::new(1);
    let ((server, _), (client, log)) = (Script::noting(), Script::noting());
    let config = layered(Records { delays: 1.0, ..RECORDS });
    let (mut fleet, id) = pair_on(&world, &Native, server, client, &config);
    fleet.run_for(SECOND);
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(id).unwrap();
    // Each batch is followed by a pause.
    call(&mut conn, "first", 10 * SECOND).unwrap();
    fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
    let mut cx = fleet.nodes[1].engine.context();
    let mut conn = cx.conn(id).unwrap();
    call(&mut conn, "second", 10 * SECOND).unwrap();
    fleet.nodes[1].engine.turn(Some(Duration::ZERO)).unwrap();
    fleet.nodes[1].engine.context().conn(id).unwrap().abort();
    fleet.run_for(SECOND);
    let lines = log.lines("call");
    assert!(lines[0].contains("maybe sent"), "{lines:?}");
    assert!(lines[1].contains("not sent"), "{lines:?}");
}

/// Data that the layer holds back is data that closing writes, as fast as the layer lets it out.
#[test]
fn closing_waits_for_what_the_layer_holds_back() {
    let world = SimWorld::new(1);
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let config = layered(Records { delays: 1.0, longest: 20, ..RECORDS });
    let (mut fleet, id) = pair_on(&world, &Native, server, client, &config);
    fleet.run_for(SECOND);
    for number in 0..100 {
        fleet.handle(1).send(id, format!("news {number} that takes a few records")).unwrap();
    }
    fleet.handle(1).close(id);
    fleet.run_for(4 * SECOND);
    assert_eq!(log.lines("disconnect"), ["disconnect closed"]);
    assert_eq!(seen.count("message news"), 100);
}

#[test]
fn peer_that_ended_in_the_layers_way_is_answered_and_then_waited_for() {
    let mut siege = Siege::up();
    siege.read();
    siege.write(&[21, 0, 0]);
    siege.fleet.run_for(SECOND / 10);
    assert_eq!(siege.log.take(), ["disconnect closed by the peer"]);
    assert_eq!(siege.read(), [21, 0, 0], "the layer's own end is said");
    assert_eq!(siege.fleet.nodes[0].engine.state.slots.len(), 1, "its socket has not ended");
    siege.net.shutdown(&mut siege.stream).unwrap();
    siege.fleet.run_for(SECOND / 10);
    assert!(siege.fleet.nodes[0].engine.state.slots.is_empty());
}

#[test]
fn what_the_layer_holds_back_at_the_end_is_handled_before_it() {
    let mut siege = Siege::up_behind(Records { delays: 1.0, is_strict: false, ..RECORDS });
    let mut frame = Vec::new();
    let id = Tcpstream.push_id(1, 0);
    Tcpstream.encode(&Head::new(Kind::Plain, id), b"last", &mut frame);
    let record = data_record(&frame);
    siege.write(&record);
    siege.net.shutdown(&mut siege.stream).unwrap();
    siege.fleet.run_for(SECOND);
    assert_eq!(siege.log.take(), ["message last", "disconnect closed by the peer"]);
}

#[test]
fn peer_that_takes_nothing_from_the_layer_is_given_up() {
    let mut siege = Siege::up();
    let at_server = accepted(&mut siege.fleet);
    for _ in 0..40 {
        siege.fleet.handle(0).send(at_server, vec![b'y'; 20_000]).unwrap();
    }
    siege.fleet.run_for(29 * SECOND);
    assert_eq!(siege.log.count("disconnect"), 0);
    siege.fleet.run_for(3 * SECOND);
    let lines = siege.log.lines("disconnect");
    assert!(lines.len() == 1 && lines[0].contains("took no byte"), "{lines:?}");
}
