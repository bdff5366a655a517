//! A layer that changes no byte and comes at bad moments, and who talks through it.

use std::{collections::VecDeque, io::IoSlice, time::Duration};

use super::{
    fleet::Fleet,
    script::{Log, SERVER, Script},
};
use crate::{
    Config, ConnId, ReactorBuilder, Reconnect,
    layer::{Failure, Layer, LayerMaker, MakeLayer, Wire, records::Records},
    moment::Moment,
    net::{
        Net, StreamOptions,
        sim::{SimNet, SimStream, SimWorld},
    },
    protocol::{Head, Kind, Protocol, Tcpstream},
    role::Role,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const TENTH: Duration = Duration::from_millis(100);
pub(super) const RECORDS: Records =
    Records { longest: 700, delays: 0.0, failures: 0.0, is_strict: true, bug: None };

pub(super) fn with(maker: LayerMaker) -> Config {
    let mut config = Config::new().reconnect(Reconnect::never());
    config.layer = Some(maker);
    config
}

pub(super) fn layered(records: Records) -> Config {
    with(records.maker())
}

// ---- a layer that changes no byte ----

/// A layer that hands bytes on as they are, and is odd in other ways. So its peer needs none.
#[derive(Clone, Debug)]
pub(super) struct Odd {
    /// It is up when so many bytes came.
    pub(super) up_after: usize,
    /// Bytes of its own that it says for each byte that comes before it is up.
    pub(super) answers: usize,
    /// It gives bytes of frames before it is up.
    pub(super) gives_early: bool,
    /// Each byte that comes stands for all of these.
    pub(super) expands_to: Vec<u8>,
    /// Bytes of frames that it seals at a time.
    pub(super) seals: usize,
    /// How long it seals nothing after it has sealed something.
    pub(super) rests: Duration,
    /// When it gives up, counted from its beginning.
    pub(super) fails_after: Option<Duration>,
}

pub(super) const PLAIN: Odd = Odd {
    up_after: 0,
    answers: 0,
    gives_early: false,
    expands_to: Vec::new(),
    seals: usize::MAX,
    rests: Duration::ZERO,
    fails_after: None,
};

impl Odd {
    pub(super) fn config(self) -> Config {
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

pub(super) fn fleet_of<P: Protocol>(
    world: &SimWorld,
    protocol: &P,
    configs: [Config; 2],
) -> (Fleet<Script<P>>, ConnId, [Log; 2]) {
    let ((server, seen), (client, log)) = (Script::noting(), Script::noting());
    let (fleet, conn) = fleet_with(world, protocol, configs, [server, client]);
    (fleet, conn, [seen, log])
}

/// A server and a client, each with settings of its own.
pub(super) fn fleet_with<P: Protocol>(
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

pub(super) fn plain() -> Config {
    Config::new().reconnect(Reconnect::never())
}

pub(super) const STREAM: StreamOptions = StreamOptions {
    nodelay: true,
    keepalive: None,
    user_timeout: None,
    send_buffer: None,
    receive_buffer: None,
};

/// A server, and a peer that writes bytes.
pub(super) struct Siege {
    pub(super) fleet: Fleet<Script<Tcpstream>>,
    pub(super) log: Log,
    pub(super) net: SimNet,
    pub(super) stream: SimStream,
}

impl Siege {
    pub(super) fn of(config: Config) -> Self {
        let (server, _) = Script::noting();
        Self::with(config, server)
    }

    pub(super) fn with(config: Config, server: Script<Tcpstream>) -> Self {
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

    pub(super) fn up(records: Records) -> Self {
        let mut siege = Self::of(layered(records));
        siege.shake_hands();
        siege
    }

    pub(super) fn shake_hands(&mut self) {
        for _ in 0..2 {
            self.write(&[20, 0, 0]);
            self.fleet.run_for(TENTH);
        }
        assert_eq!(self.log.take(), ["connect 1"]);
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        self.net.write(&mut self.stream, &[IoSlice::new(bytes)]).unwrap_or(0)
    }

    pub(super) fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let mut len = 0;
        while let Ok(count @ 1..) = self.net.read(&mut self.stream, &mut bytes[len..]) {
            len += count;
        }
        bytes.truncate(len);
        bytes
    }

    pub(super) fn slots(&self) -> usize {
        self.fleet.nodes[0].engine.state.slots.len()
    }
}

pub(super) fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    Tcpstream.encode(&Head::new(Kind::Plain, Tcpstream.push_id(1, 0)), body, &mut frame);
    frame
}

pub(super) fn numbers(lines: &[String]) -> Vec<usize> {
    lines.iter().map(|line| line["message ".len()..][..6].parse().unwrap()).collect()
}

pub(super) fn numbered(number: usize, len: usize) -> Vec<u8> {
    format!("{number:06}{}", "x".repeat(len)).into_bytes()
}

/// Messages that the close report says were not sent.
pub(super) fn unsent(log: &Log) -> usize {
    let number = |line: &String| {
        line.split("; ")
            .find_map(|part| part.split_once(" messages unsent")?.0.parse::<usize>().ok())
    };
    log.lines("disconnect").iter().filter_map(number).sum()
}
