//! What the simulated network promises.

mod connects;
mod streams;
mod troubles;

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
