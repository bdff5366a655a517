//! Layers at bad moments: what a fresh look tried against the promises of `docs/design.md`, "Layers".

use std::{cell::Cell, collections::VecDeque, io::IoSlice, rc::Rc, time::Duration};

use super::{
    fleet::Fleet,
    script::{Log, SERVER, Script, accepted, call, pair_on},
};
use crate::{
    Audience, Config, ConnId, ReactorBuilder, Reconnect,
    layer::{
        Failure, Layer, LayerMaker, MakeLayer, Wire,
        records::{Records, data_record},
    },
    moment::Moment,
    net::{
        BroughtStream, Net, StreamOptions,
        sim::{SimNet, SimStream, SimWorld},
    },
    protocol::{Head, Kind, Native, Protocol, Tcpstream},
    role::Role,
};

const SECOND: Duration = Duration::from_secs(1);
const TENTH: Duration = Duration::from_millis(100);
const RECORDS: Records =
    Records { longest: 700, delays: 0.0, failures: 0.0, is_strict: true, bug: None };

fn with(maker: LayerMaker) -> Config {
    let mut config = Config::new().reconnect(Reconnect::never());
    config.layer = Some(maker);
    config
}

fn layered(records: Records) -> Config {
    with(records.maker())
}

// ---- a layer that changes no byte ----

/// A layer that hands bytes on as they are, and is odd in other ways. So its peer needs none.
#[derive(Clone, Debug)]
struct Odd {
    /// It is up when so many bytes came.
    up_after: usize,
    /// Bytes of its own that it says for each byte that comes before it is up.
    answers: usize,
    /// It gives bytes of frames before it is up.
    gives_early: bool,
    /// Each byte that comes stands for all of these.
    expands_to: Vec<u8>,
    /// Bytes of frames that it seals at a time.
    seals: usize,
    /// How long it seals nothing after it has sealed something.
    rests: Duration,
    /// When it gives up, counted from its beginning.
    fails_after: Option<Duration>,
}

const PLAIN: Odd = Odd {
    up_after: 0,
    answers: 0,
    gives_early: false,
    expands_to: Vec::new(),
    seals: usize::MAX,
    rests: Duration::ZERO,
    fails_after: None,
};

impl Odd {
    fn config(self) -> Config {
        with(LayerMaker::new(self))
    }
}

impl MakeLayer for Odd {
    fn make(&self, _: Role, _: u64, _: &mut Wire, now: Moment) -> Box<dyn Layer> {
        let fails_at = self.fails_after.map(|after| now + after);
        let (plain, seal_at) = (VecDeque::new(), None);
        Box::new(OddLayer { rules: self.clone(), came: 0, plain, seal_at, fails_at })
    }
}

#[derive(Debug)]
struct OddLayer {
    rules: Odd,
    came: usize,
    plain: VecDeque<u8>,
    seal_at: Option<Moment>,
    fails_at: Option<Moment>,
}

impl Layer for OddLayer {
    fn name(&self) -> &'static str {
        "odd"
    }

    fn receive(&mut self, wire: &mut [u8], out: &mut Wire, _: Moment) -> Result<(), Failure> {
        assert!(!self.has_plain(), "what came before was read");
        for byte in wire {
            if !self.is_up() {
                self.came += 1;
                if self.rules.answers > 0 {
                    out.push(0, |out| out.resize(out.len() + self.rules.answers, 0));
                }
                if !self.rules.gives_early {
                    continue;
                }
            }
            if self.rules.expands_to.is_empty() {
                self.plain.push_back(*byte);
            } else {
                self.plain.extend(&self.rules.expands_to);
            }
        }
        Ok(())
    }

    fn receive_end(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn read(&mut self, room: &mut [u8]) -> usize {
        let count = room.len().min(self.plain.len());
        for (place, byte) in room.iter_mut().zip(self.plain.drain(..count)) {
            *place = byte;
        }
        count
    }

    fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    fn mid_record(&self) -> Option<u64> {
        None
    }

    fn is_ended(&self) -> bool {
        false
    }

    fn is_up(&self) -> bool {
        self.came >= self.rules.up_after
    }

    fn can_seal(&self) -> bool {
        self.is_up() && self.seal_at.is_none()
    }

    fn seal(&mut self, plain: &[IoSlice<'_>], most: usize, out: &mut Wire, now: Moment) {
        assert!(self.can_seal());
        let most = most.min(self.rules.seals);
        let bytes: Vec<u8> =
            plain.iter().flat_map(|slice| slice.iter().copied()).take(most).collect();
        assert!(!bytes.is_empty());
        out.push(bytes.len(), |out| out.extend_from_slice(&bytes));
        self.seal_at = (!self.rules.rests.is_zero()).then(|| now + self.rules.rests);
    }

    fn finish(&mut self, _: &mut Wire) {}

    fn poll_timeout(&self) -> Option<Moment> {
        self.seal_at.into_iter().chain(self.fails_at).min()
    }

    fn handle_timeout(&mut self, _: &mut Wire, now: Moment) -> Result<(), Failure> {
        self.seal_at = self.seal_at.filter(|at| now < *at);
        if self.fails_at.is_some_and(|at| now >= at) {
            return Err("its time is over".into());
        }
        Ok(())
    }
}

// ---- who talks ----

fn fleet_of<P: Protocol>(
    world: &SimWorld,
    protocol: &P,
    configs: [Config; 2],
) -> (Fleet<Script<P>>, ConnId, [Log; 2]) {
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let (fleet, conn) = fleet_with(world, protocol, configs, [server, client]);
    (fleet, conn, [seen, log])
}

/// A server and a client, each with settings of its own.
fn fleet_with<P: Protocol>(
    world: &SimWorld,
    protocol: &P,
    configs: [Config; 2],
    scripts: [Script<P>; 2],
) -> (Fleet<Script<P>>, ConnId) {
    let mut fleet = Fleet::new(world.clone());
    fleet.may_panic = scripts.iter().any(|script| script.may_panic);
    for ((number, config), script) in (1..).zip(configs).zip(scripts) {
        let builder = ReactorBuilder::new(protocol.clone()).config(config).seed(number.into());
        fleet.add(number, builder, script);
    }
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let conn = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(TENTH);
    (fleet, conn)
}

fn plain() -> Config {
    Config::new().reconnect(Reconnect::never())
}

const STREAM: StreamOptions = StreamOptions {
    nodelay: true,
    keepalive: None,
    user_timeout: None,
    send_buffer: None,
    receive_buffer: None,
};

/// A server, and a peer that writes bytes.
struct Siege {
    fleet: Fleet<Script<Tcpstream>>,
    log: Log,
    net: SimNet,
    stream: SimStream,
}

impl Siege {
    fn of(config: Config) -> Self {
        let (server, _) = Script::noting();
        Self::with(config, server)
    }

    fn with(config: Config, server: Script<Tcpstream>) -> Self {
        let world = SimWorld::new(1);
        let mut fleet = Fleet::new(world.clone());
        let log = server.log.clone();
        fleet.add(1, ReactorBuilder::new(Tcpstream).config(config).seed(1), server);
        fleet.nodes[0].engine.context().listen(SERVER).unwrap();
        let net = world.host([10, 0, 0, 9]);
        let stream = net.dial(SERVER.parse().unwrap(), &STREAM).unwrap();
        let mut siege = Self { fleet, log, net, stream };
        siege.fleet.run_for(TENTH);
        siege
    }

    fn up(records: Records) -> Self {
        let mut siege = Self::of(layered(records));
        siege.shake_hands();
        siege
    }

    fn shake_hands(&mut self) {
        for _ in 0..2 {
            self.write(&[20, 0, 0]);
            self.fleet.run_for(TENTH);
        }
        assert_eq!(self.log.take(), ["connect 1"]);
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.net.write(&mut self.stream, &[IoSlice::new(bytes)]).unwrap_or(0)
    }

    fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let mut len = 0;
        while let Ok(count @ 1..) = self.net.read(&mut self.stream, &mut bytes[len..]) {
            len += count;
        }
        bytes.truncate(len);
        bytes
    }

    fn slots(&self) -> usize {
        self.fleet.nodes[0].engine.state.slots.len()
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    Tcpstream.encode(&Head::new(Kind::Plain, Tcpstream.push_id(1, 0)), body, &mut frame);
    frame
}

fn numbers(lines: &[String]) -> Vec<usize> {
    lines.iter().map(|line| line["message ".len()..][..6].parse().unwrap()).collect()
}

fn numbered(number: usize, len: usize) -> Vec<u8> {
    format!("{number:06}{}", "x".repeat(len)).into_bytes()
}

/// Messages that the close report says were not sent.
fn unsent(log: &Log) -> usize {
    let number = |line: &String| {
        line.split("; ")
            .find_map(|part| part.split_once(" messages unsent")?.0.parse::<usize>().ok())
    };
    log.lines("disconnect").iter().filter_map(number).sum()
}

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
