use std::{
    io::{ErrorKind, IoSlice},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{
    ConnectionId, Faults, HostId, SimListener, SimNet, SimRng, SimStream, SimWorld,
    connection::{Content, Pipe, Segment},
};
use crate::{
    ConnId,
    net::{
        BroughtListener, BroughtStream, Event, ListenOptions, Net, SHORT_READ_DRAINS,
        StreamOptions, Ticket, Token,
    },
};

const SERVER: [u8; 4] = [10, 0, 0, 1];
const CLIENT: [u8; 4] = [10, 0, 0, 2];

const STREAM: StreamOptions = StreamOptions {
    nodelay: true,
    keepalive: None,
    user_timeout: None,
    send_buffer: None,
    receive_buffer: None,
};

const LISTEN: ListenOptions =
    ListenOptions { backlog: 16, reuse_address: true, only_v6: false, stream: STREAM };

const LISTENER: Token = Token(1);
const ACCEPTED: Token = Token(2);
const CONNECTED: Token = Token(3);

fn server_addr() -> SocketAddr {
    (SERVER, 700).into()
}

/// A process with one connection, that heeds readiness as the reactor does.
#[expect(clippy::struct_excessive_bools, reason = "facts that hold independently")]
struct Peer {
    net: SimNet,
    stream: Option<SimStream>,
    readable: bool,
    writable: bool,
    read_closed: bool,
    /// What to send, how much of it is sent, and what came.
    outgoing: Vec<u8>,
    sent: usize,
    incoming: Vec<u8>,
    ended: bool,
    error: Option<ErrorKind>,
    is_shut: bool,
}

impl Peer {
    fn new(net: SimNet, stream: SimStream) -> Self {
        Self {
            net,
            stream: Some(stream),
            readable: false,
            writable: false,
            read_closed: false,
            outgoing: Vec::new(),
            sent: 0,
            incoming: Vec::new(),
            ended: false,
            error: None,
            is_shut: false,
        }
    }

    fn shutdown(&mut self) -> Result<(), ErrorKind> {
        let stream = self.stream.as_mut().expect("not closed");
        self.net.shutdown(stream).map_err(|error| error.kind())
    }

    /// What a turn of a reactor does: poll, read and write as far as it goes.
    fn turn(&mut self) {
        for event in self.poll() {
            self.readable |= event.readable;
            self.writable |= event.writable;
            self.read_closed |= event.read_closed;
        }
        self.read_all();
        self.write_all();
    }

    fn poll(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.net.poll(&mut events, Some(Duration::ZERO)).unwrap();
        events.retain(|event| event.token != LISTENER);
        events
    }

    fn read_all(&mut self) {
        let mut buf = [0; 1000];
        while self.readable && !self.ended && self.error.is_none() {
            match self.read(&mut buf) {
                Ok(0) => self.ended = true,
                Ok(len) => {
                    self.incoming.extend(&buf[..len]);
                    let is_drained = SHORT_READ_DRAINS && len < buf.len() && !self.read_closed;
                    self.readable = !is_drained;
                }
                Err(ErrorKind::WouldBlock) => self.readable = false,
                Err(ErrorKind::Interrupted) => {}
                Err(kind) => self.error = Some(kind),
            }
        }
    }

    fn write_all(&mut self) {
        while self.writable && self.sent < self.outgoing.len() && self.error.is_none() {
            let stream = self.stream.as_mut().expect("not closed");
            let rest = IoSlice::new(&self.outgoing[self.sent..]);
            match self.net.write(stream, &[rest]).map_err(|error| error.kind()) {
                Ok(len) => {
                    self.sent += len;
                    self.writable = len == rest.len();
                }
                Err(ErrorKind::WouldBlock) => self.writable = false,
                Err(ErrorKind::Interrupted) => {}
                Err(kind) => self.error = Some(kind),
            }
        }
        if self.sent == self.outgoing.len() && self.error.is_none() && !self.is_shut {
            self.is_shut = true;
            self.error = self.shutdown().err();
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<usize, ErrorKind> {
        let stream = self.stream.as_mut().expect("not closed");
        self.net.read(stream, buf).map_err(|error| error.kind())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, ErrorKind> {
        let stream = self.stream.as_mut().expect("not closed");
        self.net.write(stream, &[IoSlice::new(bytes)]).map_err(|error| error.kind())
    }

    fn close(&mut self) {
        let stream = self.stream.take().expect("not closed");
        self.net.close(stream);
    }
}

/// A world with a server, a client, and a connection between them.
struct Pair {
    world: SimWorld,
    server: Peer,
    client: Peer,
    listener: SimListener,
}

impl Pair {
    /// Gets there under lossless faults, trying again what fails.
    fn new(world: SimWorld) -> Self {
        let mut server = world.host(SERVER);
        let mut client = world.host(CLIENT);
        let listener = retry(&world, || server.listen(server_addr(), &LISTEN, LISTENER).ok()).0;
        loop {
            let tried = client.connect(server_addr(), &STREAM, CONNECTED);
            // Long enough for a partition to heal and for what is tried again after it.
            for _ in 0..300 {
                world.advance(Duration::from_secs(1));
                server.poll(&mut Vec::new(), None).unwrap();
                client.poll(&mut Vec::new(), None).unwrap();
                let Ok(stream) = &tried else { break };
                match client.connected(stream) {
                    Ok(None) => {}
                    Ok(Some(_)) => {
                        let (accepted, _) = retry(&world, || server.accept(&listener).ok());
                        assert_eq!(accepted.connection(), stream.connection());
                        let mut accepted = Peer::new(server, accepted);
                        retry(&world, || {
                            let stream = accepted.stream.as_mut().unwrap();
                            accepted.net.register(stream, ACCEPTED).ok()
                        });
                        let mut client = Peer::new(client, tried.unwrap());
                        // Its events so far were used up above.
                        (client.readable, client.writable) = (true, true);
                        return Self { world, server: accepted, client, listener };
                    }
                    Err(_) => break,
                }
            }
            if let Ok(stream) = tried {
                client.close(stream);
            }
        }
    }

    fn calm(seed: u64) -> Self {
        Self::new(SimWorld::new(seed))
    }

    /// Turns of both until nothing happens any more.
    fn run(&mut self) {
        for _ in 0..1_000_000 {
            self.server.turn();
            self.client.turn();
            self.check();
            match self.world.next_event() {
                Some(at) => self.world.advance_to(at),
                None => return,
            }
        }
        panic!("it does not end:\n{}", self.world.trace().join("\n"));
    }

    fn check(&self) {
        for connection in &self.world.state.borrow().connections {
            connection.pipes.iter().for_each(|pipe| {
                pipe.check();
                let flow = pipe.flow;
                assert!(flow.read <= flow.arrived && flow.arrived <= flow.written, "{flow:?}");
            });
        }
    }

    fn connection(&self) -> ConnectionId {
        self.client.stream.as_ref().expect("not closed").connection()
    }

    fn hosts(&self) -> (HostId, HostId) {
        (self.server.net.id(), self.client.net.id())
    }

    /// Long enough for everything under way, without faults, to arrive.
    fn settle(&self) {
        self.world.advance(Duration::from_secs(1));
    }
}

fn retry<T>(world: &SimWorld, mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..100_000 {
        if let Some(value) = attempt() {
            return value;
        }
        world.advance(Duration::from_secs(1));
    }
    panic!("it never succeeds");
}

fn bytes(rng: &mut SimRng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.next().to_le_bytes()[0]).collect()
}

/// Sends both ways between two hosts under the faults of a seed; the pair at the end.
fn exchange(seed: u64, adjust: impl FnOnce(Faults) -> Faults) -> Pair {
    let world = SimWorld::with_faults(seed);
    let faults = adjust(world.faults());
    world.set_faults(faults.clone().lossless());
    let mut rng = world.fork_rng();
    let mut pair = Pair::new(world);
    pair.world.set_faults(faults);
    let (to_server, to_client) = (rng.part_of(30_000), rng.part_of(30_000));
    pair.client.outgoing = bytes(&mut rng, to_server);
    pair.server.outgoing = bytes(&mut rng, to_client);
    pair.run();
    pair
}

#[test]
fn bytes_arrive_whole_and_in_order_under_every_fault_but_reset() {
    for seed in 0..200 {
        let pair = exchange(seed, Faults::lossless);
        for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
            assert_eq!((to.ended, to.error), (true, None), "seed {seed}");
            assert!(from.outgoing == to.incoming, "seed {seed}");
        }
        let info = pair.world.connection(pair.connection());
        assert_eq!(info.to_server.read, pair.client.outgoing.len() as u64, "seed {seed}");
    }
}

#[test]
fn what_is_read_is_a_first_part_of_what_was_written_under_every_fault() {
    let mut losses = 0;
    for seed in 0..200 {
        let mut pair = exchange(seed, |faults| Faults { reset: 0.02, ..faults });
        for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
            assert!(from.outgoing.starts_with(&to.incoming), "seed {seed}");
            losses += usize::from(to.incoming.len() < from.outgoing.len());
        }
        pair.server.close();
        pair.client.close();
        assert_eq!((pair.world.open_descriptors(), pair.world.leaks()), (1, 0), "seed {seed}");
    }
    assert!(losses > 50, "{losses}");
}

#[test]
fn same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        let hash = || exchange(seed, |faults| faults).world.trace_hash();
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}

#[test]
fn different_seeds_give_different_traces() {
    let hash = |seed| exchange(seed, |faults| faults).world.trace_hash();
    assert_ne!(hash(1), hash(2));
}

#[test]
fn kept_trace_has_a_line_for_each_action() {
    let world = SimWorld::new(0);
    world.keep_trace(true);
    let pair = Pair::new(world);
    let lines = pair.world.trace();
    assert!(lines[0].ends_with("host 0 Listen 1 700"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("host 0 Accept 1")), "{lines:?}");
}

#[test]
fn full_send_buffer_would_block_and_room_gives_an_event() {
    let mut pair = Pair::calm(0);
    let mut written = 0;
    while let Ok(len) = pair.client.write(&[7; 10_000]) {
        written += len;
    }
    assert_eq!(written, 262_144);
    assert_eq!(pair.client.write(&[7]), Err(ErrorKind::WouldBlock));
    pair.client.poll();
    assert_eq!(pair.client.poll(), []);

    // The receive buffer takes as much again.
    pair.settle();
    assert!(pair.client.poll()[0].writable);
    while let Ok(len) = pair.client.write(&[7; 10_000]) {
        written += len;
    }
    assert_eq!(written, 2 * 262_144);
    pair.settle();
    assert_eq!(pair.client.poll(), []);

    pair.server.turn();
    pair.settle();
    assert!(pair.client.poll()[0].writable);
}

#[test]
fn fin_comes_behind_the_data() {
    let mut pair = Pair::calm(0);
    pair.server.poll();
    assert_eq!(pair.client.write(b"last words"), Ok(10));
    pair.client.net.shutdown(pair.client.stream.as_mut().unwrap()).unwrap();
    assert_eq!(pair.client.write(b"more"), Err(ErrorKind::BrokenPipe));
    assert_eq!(pair.server.read(&mut [0; 20]), Err(ErrorKind::WouldBlock));
    pair.settle();
    let events = pair.server.poll();
    assert!(events[0].readable && events[0].read_closed, "{events:?}");
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(10));
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(0));
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(0));
    // The other direction is still open.
    assert_eq!(pair.server.write(b"answer"), Ok(6));
    pair.settle();
    assert_eq!(pair.client.read(&mut [0; 20]), Ok(6));
}

#[test]
fn missing_hint_is_followed_by_a_plain_readable_event() {
    let mut pair = Pair::calm(0);
    pair.server.poll();
    pair.world.set_faults(Faults { missing_hint: 1.0, ..Faults::none() });
    assert_eq!(pair.client.write(b"last words"), Ok(10));
    pair.client.shutdown().unwrap();
    pair.settle();
    let first = pair.server.poll();
    assert_eq!((first.len(), first[0].readable, first[0].read_closed), (1, true, false));
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(10));
    pair.settle();
    let second = pair.server.poll();
    assert_eq!((second.len(), second[0].readable, second[0].read_closed), (1, true, false));
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(0));
}

#[test]
fn short_receive_buffer_takes_time_to_be_filled_again() {
    let mut faults = Faults::none();
    faults.receive_buffer = 2..=2;
    let world = SimWorld::new(0);
    world.set_faults(faults);
    let mut pair = Pair::new(world);
    pair.client.write(&[7; 100]).unwrap();
    pair.settle();
    for _ in 0..10 {
        let before = pair.world.now();
        assert_eq!(pair.server.read(&mut [0; 20]), Ok(2));
        assert_eq!(pair.server.read(&mut [0; 20]), Err(ErrorKind::WouldBlock));
        pair.server.poll();
        pair.client.poll();
        let next = pair.world.next_event().unwrap();
        assert!(next > before, "the rest comes in the same moment");
        pair.world.advance_to(next);
    }
}

#[test]
fn short_read_is_followed_by_an_event() {
    let mut pair = Pair::calm(3);
    pair.server.poll();
    pair.client.write(&[7; 1000]).unwrap();
    pair.settle();
    assert!(pair.server.poll()[0].readable);
    pair.world.set_faults(Faults { short_read: 1.0, ..Faults::none() });
    assert!(pair.server.read(&mut [0; 5000]).unwrap() < 1000);
    assert_eq!(pair.world.next_event(), Some(pair.world.now()));
    assert!(pair.server.poll()[0].readable);
}

#[test]
fn accept_error_leaves_the_connection_waiting_and_gives_no_further_event() {
    let world = SimWorld::new(0);
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let (listener, _) = server.listen(server_addr(), &LISTEN, LISTENER).unwrap();
    let _stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_secs(1));
    world.exhaust_descriptors(server.id(), Duration::from_secs(5));

    let mut events = Vec::new();
    server.poll(&mut events, None).unwrap();
    assert_eq!((events.len(), events[0].token), (1, LISTENER));
    let error = server.accept(&listener).err().unwrap();
    assert_eq!(error.raw_os_error(), Some(if cfg!(windows) { 10_024 } else { 24 }));

    events.clear();
    world.advance(Duration::from_hours(1));
    server.poll(&mut events, None).unwrap();
    assert_eq!(events, []);
    assert!(server.accept(&listener).is_ok());
    assert_eq!(server.accept(&listener).err().unwrap().kind(), ErrorKind::WouldBlock);
}

#[test]
fn connect_is_refused_where_nobody_listens() {
    let world = SimWorld::new(0);
    let _server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    assert_eq!(client.connected(&stream).unwrap(), None);
    world.advance(Duration::from_secs(1));
    let mut events = Vec::new();
    client.poll(&mut events, None).unwrap();
    assert!(events[0].readable && events[0].writable && events[0].read_closed);
    assert_eq!(client.connected(&stream).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    client.close(stream);
}

#[test]
fn connect_into_a_black_hole_is_never_decided() {
    let world = SimWorld::new(0);
    world.black_hole(SERVER);
    let mut client = world.host(CLIENT);
    let stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    let mut events = Vec::new();
    client.poll(&mut events, None).unwrap();
    assert_eq!(world.next_event(), None);
    world.advance(Duration::from_secs(1_000_000));
    client.poll(&mut events, None).unwrap();
    assert_eq!(events, []);
    assert_eq!(client.connected(&stream).unwrap(), None);
    client.close(stream);
}

/// A listening server and a client that connects under these faults, an hour later.
fn connect_under(faults: Faults) -> (SimWorld, SimNet, SimListener, SimNet, SimStream) {
    let world = SimWorld::new(0);
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let (listener, _) = server.listen(server_addr(), &LISTEN, LISTENER).unwrap();
    world.set_faults(faults);
    let stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_hours(1));
    (world, server, listener, client, stream)
}

#[test]
fn started_connect_fails_as_the_fault_says() {
    let none = Faults::none();
    for (faults, kind) in [
        (Faults { connect_refused: 1.0, ..none.clone() }, ErrorKind::ConnectionRefused),
        (Faults { connect_unreachable: 1.0, ..none.clone() }, ErrorKind::HostUnreachable),
        (Faults { connect_timeout: 1.0, ..none.clone() }, ErrorKind::TimedOut),
        (Faults { connect_reset: 1.0, ..none }, ErrorKind::ConnectionReset),
    ] {
        let (_world, mut server, listener, mut client, stream) = connect_under(faults);
        let error = client.connected(&stream).unwrap_err();
        assert_eq!(error.kind(), kind);
        let was_made = kind == ErrorKind::ConnectionReset;
        assert_eq!(server.accept(&listener).is_ok(), was_made, "{kind:?}");
    }
    let black_hole = Faults { black_hole: 1.0, ..Faults::none() };
    let (_world, _server, _listener, mut client, stream) = connect_under(black_hole);
    assert_eq!(client.connected(&stream).unwrap(), None);
}

#[test]
fn aborted_accept_takes_the_connection_out_of_the_backlog() {
    let faults = Faults { accept_aborted: 1.0, ..Faults::none() };
    let (world, mut server, listener, mut client, mut stream) = connect_under(faults);
    assert_eq!(server.accept(&listener).err().unwrap().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(server.accept(&listener).err().unwrap().kind(), ErrorKind::WouldBlock);
    world.advance(Duration::from_secs(1));
    let error = client.read(&mut stream, &mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn events_of_different_sockets_come_in_any_order() {
    let world = SimWorld::new(0);
    world.set_faults(Faults { reorder_events: 1.0, ..Faults::none() });
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let _listener = server.listen(server_addr(), &LISTEN, LISTENER).unwrap();
    let connect = |token| client.connect(server_addr(), &STREAM, Token(token)).unwrap();
    let _streams: Vec<_> = (10..20).map(connect).collect();
    world.advance(Duration::from_secs(1));
    let mut events = Vec::new();
    client.poll(&mut events, None).unwrap();
    assert_eq!(events.len(), 10);
    assert!(!events.is_sorted_by_key(|event| event.token));
}

#[test]
fn spurious_events_come_for_sockets_that_have_nothing() {
    let mut pair = Pair::calm(0);
    pair.server.poll();
    assert_eq!(pair.server.poll(), []);
    pair.world.set_faults(Faults { spurious_event: 1.0, ..Faults::none() });
    let spurious = (0..20).flat_map(|_| pair.server.poll()).collect::<Vec<_>>();
    assert!(spurious.iter().any(|event| event.readable), "{spurious:?}");
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
}

#[test]
fn connect_to_no_machine_finds_no_way() {
    let world = SimWorld::new(0);
    let mut client = world.host(CLIENT);
    let stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_secs(1));
    assert_eq!(client.connected(&stream).unwrap_err().kind(), ErrorKind::HostUnreachable);
    client.close(stream);
    let v6 = "[fd00::1]:700".parse().unwrap();
    let error = client.connect(v6, &STREAM, CONNECTED).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
}

#[test]
fn connect_to_itself_fails() {
    let world = SimWorld::new(0);
    world.set_faults(Faults { self_connect: 1.0, ..Faults::none() });
    let mut net = world.host(CLIENT);
    let stream = net.connect((CLIENT, 40_000).into(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_secs(1));
    let mut events = Vec::new();
    net.poll(&mut events, None).unwrap();
    assert!(events[0].writable);
    assert_eq!(net.connected(&stream).unwrap_err().to_string(), "connected to itself");
    net.close(stream);
}

#[test]
fn backlog_is_bounded() {
    let world = SimWorld::new(0);
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let options = ListenOptions { backlog: 2, ..LISTEN };
    let (listener, addr) = server.listen(([0; 4], 0).into(), &options, LISTENER).unwrap();
    let addr = (SERVER, addr.port()).into();
    let streams: Vec<_> =
        (10..13).map(|token| client.connect(addr, &STREAM, Token(token)).unwrap()).collect();
    world.advance(Duration::from_millis(10));
    let mut states = || -> Vec<_> {
        streams.iter().map(|stream| client.connected(stream).unwrap().is_some()).collect()
    };
    assert_eq!(states(), [true, true, false]);
    let _accepted = server.accept(&listener).unwrap();
    // The third is tried again after a second.
    world.advance(Duration::from_secs(2));
    assert_eq!(states(), [true, true, true]);
}

#[test]
fn closing_a_listener_resets_what_waits() {
    let world = SimWorld::new(0);
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let (listener, _) = server.listen(server_addr(), &LISTEN, LISTENER).unwrap();
    let mut stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_secs(1));
    server.close_listener(listener);
    world.advance(Duration::from_secs(1));
    let error = client.read(&mut stream, &mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.open_descriptors(), 1);
}

#[test]
fn close_sends_fin_behind_the_data() {
    let mut pair = Pair::calm(0);
    pair.client.write(b"bye").unwrap();
    pair.client.close();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(3));
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(0));
    // What is written now nobody reads: it is answered with a reset.
    assert_eq!(pair.server.write(b"?"), Ok(1));
    pair.settle();
    assert_eq!(pair.server.write(b"?"), Err(ErrorKind::BrokenPipe));
}

#[test]
fn close_with_unread_input_resets() {
    let mut pair = Pair::calm(0);
    pair.server.write(b"unread").unwrap();
    pair.settle();
    pair.client.close();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(0));
}

#[test]
fn reset_is_seen_by_both_ends() {
    let mut pair = Pair::calm(0);
    pair.client.write(b"lost").unwrap();
    pair.world.reset(pair.connection());
    for peer in [&mut pair.client, &mut pair.server] {
        let event = peer.poll()[0];
        assert!(event.readable && event.writable && event.read_closed);
        assert_eq!(peer.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
        assert_eq!(peer.write(b"?"), Err(ErrorKind::BrokenPipe));
    }
    let flow = pair.world.connection(pair.connection()).to_server;
    assert_eq!((flow.written, flow.arrived, flow.read), (4, 0, 0));
}

#[test]
fn reset_loses_unread_bytes_or_leaves_them_to_be_read() {
    for (loses, expected) in [(0.0, Ok(4)), (1.0, Err(ErrorKind::ConnectionReset))] {
        let mut pair = Pair::calm(0);
        pair.client.write(b"here").unwrap();
        pair.settle();
        pair.world.set_faults(Faults { reset_loses_unread: loses, ..Faults::none() });
        pair.world.reset(pair.connection());
        assert_eq!(pair.server.read(&mut [0; 9]), expected);
    }
}

#[test]
fn closed_stream_has_no_more_events() {
    let mut pair = Pair::calm(0);
    pair.client.write(b"here").unwrap();
    pair.settle();
    // The event waits to be polled.
    pair.server.close();
    assert_eq!(pair.server.poll(), []);
    pair.settle();
    assert_eq!(pair.server.poll(), []);
}

#[test]
fn descriptors_are_counted_until_closed() {
    let mut pair = Pair::calm(0);
    assert_eq!(pair.world.open_descriptors(), 3);
    assert_eq!(pair.world.open_descriptors_of(pair.client.net.id()), 1);
    pair.client.close();
    pair.server.close();
    pair.server.net.close_listener(pair.listener);
    assert_eq!((pair.world.open_descriptors(), pair.world.leaks()), (0, 0));
}

#[test]
fn dropped_stream_is_a_leak_while_its_process_lives() {
    let mut pair = Pair::calm(0);
    pair.client.stream = None;
    assert_eq!((pair.world.open_descriptors(), pair.world.leaks()), (2, 1));
    pair.client.poll();
    drop(pair.client);
    assert_eq!(pair.world.leaks(), 1);
}

#[test]
fn ending_a_whole_process_leaks_nothing_and_tells_the_peer() {
    let mut pair = Pair::calm(0);
    let world = pair.world.clone();
    let Peer { net, stream, .. } = pair.client;
    drop(stream);
    drop(net);
    assert_eq!((world.open_descriptors(), world.leaks()), (2, 0));
    world.advance(Duration::from_secs(1));
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(0));
}

#[test]
fn descriptor_limit_makes_connect_fail() {
    let mut pair = Pair::calm(0);
    pair.world.limit_descriptors(pair.client.net.id(), Some(1));
    assert!(pair.client.net.connect(server_addr(), &STREAM, Token(9)).is_err());
    pair.world.limit_descriptors(pair.client.net.id(), Some(2));
    assert!(pair.client.net.connect(server_addr(), &STREAM, Token(9)).is_ok());
}

const TICKET: Ticket = Ticket { conn: ConnId::new(0, 0, 1), round: 7 };

#[test]
fn name_is_resolved_after_its_delay() {
    let world = SimWorld::new(0);
    let delay = Duration::from_secs(3);
    world.set_faults(Faults { resolve_time: delay..=delay, ..Faults::none() });
    let ips: Vec<IpAddr> = vec![Ipv4Addr::from(SERVER).into(), "::1".parse().unwrap()];
    world.add_name("server", ips.clone());
    let mut net = world.host(CLIENT);
    net.resolve(TICKET, "server", 700);
    world.advance(Duration::from_millis(2999));
    assert!(!net.has_resolved() && !net.is_woken());
    assert_eq!(world.next_event(), Some(world.now() + Duration::from_millis(1)));
    world.advance(Duration::from_millis(1));
    assert!(net.has_resolved() && net.is_woken());
    assert_eq!(world.next_event(), Some(world.now()));
    net.poll(&mut Vec::new(), None).unwrap();
    assert!(!net.is_woken());
    let expected: Vec<_> = ips.into_iter().map(|ip| SocketAddr::new(ip, 700)).collect();
    assert!(matches!(net.resolved(), Some((TICKET, Ok(addrs))) if addrs == expected));
    assert!(net.resolved().is_none());
}

#[test]
fn unknown_name_is_an_error() {
    let world = SimWorld::new(0);
    let mut net = world.host(CLIENT);
    net.resolve(TICKET, "nobody", 1);
    world.advance(Duration::from_secs(1));
    assert!(matches!(net.resolved(), Some((TICKET, Err(_)))));
}

#[test]
fn lost_lookup_is_answered_once_the_world_is_calm() {
    let world = SimWorld::new(0);
    world.set_faults(Faults { resolve_never: 1.0, ..Faults::none() });
    let mut net = world.host(CLIENT);
    net.resolve(TICKET, "10.0.0.1", 1);
    world.advance(Duration::from_secs(1_000_000));
    assert!(!net.has_resolved());
    world.calm();
    world.advance(Duration::ZERO);
    assert!(matches!(net.resolved(), Some((TICKET, Ok(_)))));
}

#[test]
fn cut_delivers_nothing_until_it_heals() {
    let mut pair = Pair::calm(0);
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    pair.client.write(b"held").unwrap();
    pair.world.advance(Duration::from_mins(10));
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    pair.world.heal(server, client);
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(4));
}

#[test]
fn unacknowledged_bytes_time_out_in_a_cut() {
    let mut pair = Pair::calm(0);
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    pair.client.write(b"held").unwrap();
    pair.world.advance(Duration::from_secs(1000));
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::TimedOut));
    // The other end knows nothing until it speaks.
    pair.world.heal(server, client);
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    pair.server.write(b"?").unwrap();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
}

/// A pair whose client has a keepalive of 6 s, then 2 s, six times, and perhaps a user timeout. It has
/// been idle for 15 s, so that two probes were answered, the last 3 s ago.
fn kept_alive(user_timeout: Option<Duration>) -> Pair {
    let mut pair = Pair::calm(0);
    let keepalive = Some((Duration::from_secs(6), Duration::from_secs(2), 6));
    let options = StreamOptions { keepalive, user_timeout, ..STREAM };
    let end = pair.client.stream.as_ref().unwrap().end;
    let mut state = pair.world.state.borrow_mut();
    state.adopt_stream(end, &options).unwrap();
    let now = state.now;
    state.end(end).hear(now);
    drop(state);
    pair.world.advance(Duration::from_secs(15));
    pair.server.poll();
    pair.client.poll();
    assert_eq!(pair.world.next_event(), None, "probes that are answered cost nothing");
    pair
}

/// For how many seconds from now on the client's connection lives.
fn seconds_to_live(pair: &mut Pair) -> Option<u64> {
    (0..1000).find(|_| {
        let result = pair.client.read(&mut [0; 9]);
        pair.world.advance(Duration::from_secs(1));
        result == Err(ErrorKind::TimedOut)
    })
}

#[test]
fn keepalive_gives_a_silent_peer_up_after_all_its_probes() {
    let mut pair = kept_alive(None);
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    // The first probe 3 s from now, five more, and the end when a seventh would be due.
    assert_eq!(seconds_to_live(&mut pair), Some(3 + 6 * 2));
    pair.world.heal(server, client);
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock), "its reset was lost");
}

#[test]
fn user_timeout_takes_the_place_of_the_count_of_probes() {
    for (user_timeout, expected) in [(3, 3 + 2), (9, 3 + 2 * 2), (100, 3 + 2 * 47)] {
        let mut pair = kept_alive(Some(Duration::from_secs(user_timeout)));
        let (server, client) = pair.hosts();
        pair.world.cut(server, client);
        assert_eq!(seconds_to_live(&mut pair), Some(expected), "{user_timeout}");
    }
}

#[test]
fn probes_one_way_only_are_as_none_and_the_reset_behind_them_arrives() {
    let mut pair = kept_alive(None);
    let (server, client) = pair.hosts();
    pair.world.cut_one_way(server, client);
    assert_eq!(seconds_to_live(&mut pair), Some(15));
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
}

#[test]
fn probe_that_is_answered_after_a_cut_keeps_the_connection_and_counts_anew() {
    let mut pair = kept_alive(None);
    let (server, client) = pair.hosts();
    for _ in 0..3 {
        pair.world.cut(server, client);
        pair.world.advance(Duration::from_secs(10));
        pair.world.heal(server, client);
        pair.world.advance(Duration::from_secs(3));
    }
    pair.world.cut(server, client);
    assert!(seconds_to_live(&mut pair) > Some(12));
}

#[test]
fn keepalive_leaves_what_is_under_way_to_the_user_timeout() {
    let mut pair = kept_alive(Some(Duration::from_secs(50)));
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    pair.client.write(b"held").unwrap();
    assert_eq!(seconds_to_live(&mut pair), Some(51));
}

#[test]
fn peer_that_lost_its_power_answers_a_probe_with_a_reset_once_it_has_it_back() {
    let mut pair = kept_alive(None);
    let id = pair.server.net.id();
    pair.world.power_off(id);
    pair.world.advance(Duration::from_secs(8));
    pair.world.power_on(id);
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    pair.world.advance(Duration::from_secs(2));
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
}

#[test]
fn stream_and_listener_that_the_application_made_are_adopted() {
    let world = SimWorld::new(0);
    let (mut server, mut client) = (world.host(SERVER), world.host(CLIENT));
    let listener = server.bind(server_addr(), &LISTEN).unwrap();
    let stream = client.dial(server_addr(), &STREAM).unwrap();
    assert_eq!(stream.is_up(), None);
    world.advance(Duration::from_secs(1));
    assert_eq!(stream.is_up(), Some(true));
    let (mut events, none) = (Vec::new(), Some(Duration::ZERO));
    server.poll(&mut events, none).unwrap();
    client.poll(&mut events, none).unwrap();
    assert_eq!(events, [], "neither is registered");
    let (listener, addr) =
        server.adopt_listener(BroughtListener::Simulated(listener), &LISTEN, LISTENER).unwrap();
    let (mut stream, peer) =
        client.adopt_stream(BroughtStream::Simulated(stream), &STREAM).unwrap();
    assert_eq!((addr, peer), (server_addr(), server_addr()));
    client.register(&mut stream, CONNECTED).unwrap();
    server.poll(&mut events, none).unwrap();
    client.poll(&mut events, none).unwrap();
    assert_eq!(events.iter().map(|event| event.token).collect::<Vec<_>>(), [LISTENER, CONNECTED]);
    let (accepted, _) = server.accept(&listener).unwrap();
    server.close(accepted);
    client.close(stream);
    server.close_listener(listener);
    assert_eq!((world.open_descriptors(), world.leaks()), (0, 0));
}

#[test]
fn connect_to_where_no_way_leads_fails_at_once() {
    let world = SimWorld::new(0);
    let mut client = world.host(CLIENT);
    world.unroute(SERVER);
    let failed = client.connect(server_addr(), &STREAM, CONNECTED).map(|_| ()).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NetworkUnreachable);
    assert_eq!(world.open_descriptors(), 0);
}

#[test]
fn connect_hangs_in_a_cut() {
    let mut pair = Pair::calm(0);
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    let stream = pair.client.net.connect(server_addr(), &STREAM, Token(9)).unwrap();
    pair.world.advance(Duration::from_secs(20));
    assert_eq!(pair.client.net.connected(&stream).unwrap(), None);
    pair.world.heal(server, client);
    pair.world.advance(Duration::from_secs(20));
    assert_eq!(pair.client.net.connected(&stream).unwrap(), Some(server_addr()));
    pair.client.net.close(stream);
}

#[test]
fn killed_process_is_noticed_by_its_peer() {
    let mut pair = Pair::calm(0);
    pair.world.kill_host(pair.server.net.id());
    pair.settle();
    assert_eq!(pair.client.read(&mut [0; 9]), Ok(0));
    assert_eq!((pair.world.open_descriptors(), pair.world.leaks()), (1, 0));
    // Its successor on the same machine has the port.
    let mut net = pair.world.host(SERVER);
    assert!(net.listen(server_addr(), &LISTEN, LISTENER).is_ok());
}

#[test]
fn machine_without_power_is_noticed_by_nobody_until_it_runs_again() {
    let mut pair = Pair::calm(0);
    let id = pair.server.net.id();
    pair.world.power_off(id);
    pair.client.write(b"?").unwrap();
    pair.world.advance(Duration::from_mins(10));
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    pair.world.power_on(id);
    pair.settle();
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
}

#[test]
fn stalled_direction_delivers_nothing_until_the_world_is_calm() {
    let mut pair = Pair::calm(0);
    let from = pair.client.net.local_addr(pair.client.stream.as_ref().unwrap()).unwrap();
    pair.world.stall(from, server_addr(), Duration::from_secs(100));
    pair.client.write(b"held").unwrap();
    pair.server.write(b"free").unwrap();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    assert_eq!(pair.client.read(&mut [0; 9]), Ok(4));
    pair.world.calm();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(4));
    let flow = pair.world.flow(from, server_addr()).unwrap();
    assert_eq!((flow.written, flow.arrived, flow.read), (4, 4, 4));
}

#[test]
fn nothing_arrives_behind_what_a_full_window_lost_but_the_reset() {
    let contents = [Content::Bytes(6), Content::Bytes(3), Content::Fin, Content::Reset];
    let mut pipe = Pipe {
        bytes: (0..9).collect(),
        segments: contents.map(|content| Segment { due: 0, content }).into(),
        receive_limit: 4,
        has_reset: true,
        ..Pipe::default()
    };
    assert!(pipe.accept_segment(6), "as far as there is room");
    assert!(pipe.accept_segment(2), "there is none");
    pipe.check();
    pipe.take(&mut [0; 4]);
    let left: Vec<_> = pipe.segments.iter().map(|segment| segment.content).collect();
    assert!(matches!(left[..], [Content::Reset]), "{left:?}");
    assert!(pipe.bytes.is_empty());
}
