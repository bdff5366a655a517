//! What several benchmarks need: an echo server, and a process of its own for many connections.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::{
    env,
    fs::read_to_string,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use longhaul::{
    Audience, Client, ClientBuilder, CloseReport, Conn, Context, Handler, Incident, Message,
    Reactor, ReactorBuilder, Server,
    protocol::{AnyId, AnyProtocol, Kind},
};

/// No call and no round takes so long, unless something is lost.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

#[expect(clippy::disallowed_methods, reason = "this measures the crate from outside")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Sends everything back.
pub(crate) struct Echo;

impl Handler for Echo {
    type Protocol = AnyProtocol;

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        let _ = match msg.kind() {
            Kind::Push => conn.send(&msg),
            _ => conn.reply(&msg, &msg),
        };
    }
}

/// An echo server on a thread of its own, and a client of it on another.
pub(crate) fn echo(protocol: AnyProtocol) -> (Server<AnyProtocol>, Client<AnyProtocol>) {
    let server = Server::bind_with("127.0.0.1:0", ReactorBuilder::new(protocol), Echo)
        .expect("loopback has a free port");
    let client = ClientBuilder::new(protocol).connect(server.addr()).expect("it listens");
    (server, client)
}

/// Set for the process that holds the other ends: the server's address, and how many.
const ROLE: &str = "LONGHAUL_BENCH_CROWD";

/// A server that is turned by hand, with many connections, whose other ends another process holds:
/// one process seldom has the descriptors for both.
pub(crate) struct Crowd {
    pub(crate) reactor: Reactor<Host>,
    size: usize,
    /// Ends when its connections do.
    others: Child,
}

/// The server's handler: echoes what comes on the protocol `length`, else counts.
#[derive(Debug, Default)]
pub(crate) struct Host {
    up: usize,
    /// How often all others had received a message.
    rounds: u64,
}

impl Crowd {
    /// `None` if the process may not have so many descriptors; says so.
    pub(crate) fn new(size: usize) -> Option<Self> {
        let limit = descriptors();
        if size + 64 > limit {
            eprintln!(
                "{size} connections are left out: {limit} descriptors are too few (ulimit -n)"
            );
            return None;
        }
        let protocol = AnyProtocol::default();
        let mut reactor = ReactorBuilder::new(protocol)
            .build(Host::default())
            .expect("the system has a descriptor left");
        let (_, addr) = reactor.listen("127.0.0.1:0").expect("loopback has a free port");
        let others = Command::new(env::current_exe().expect("this program has a path"))
            .env(ROLE, format!("{addr} {size}"))
            .stdin(Stdio::null())
            .spawn()
            .expect("this program starts again");
        let mut crowd = Self { reactor, size, others };
        crowd.turn_until(|crowd| crowd.reactor.handler().up == size);
        Some(crowd)
    }

    pub(crate) fn turn_until(&mut self, mut is_reached: impl FnMut(&mut Self) -> bool) {
        let deadline = now() + TIMEOUT;
        while !is_reached(self) {
            self.reactor.turn(Some(Duration::from_secs(1))).expect("the poll works");
            assert!(now() < deadline, "something was lost");
        }
    }

    /// Sends all a message, and turns until all of it was given to the system; how long that took.
    /// Then waits until all have it; how long it took until then.
    pub(crate) fn broadcast(&mut self, body: &[u8]) -> (Duration, Duration) {
        let sent = self.reactor.stats().messages_out + self.size as u64;
        let rounds = self.reactor.handler().rounds + 1;
        let began = now();
        self.reactor.context().broadcast(Audience::All, body);
        self.turn_until(|crowd| crowd.reactor.stats().messages_out >= sent);
        let written = now() - began;
        self.turn_until(|crowd| crowd.reactor.handler().rounds == rounds);
        (written, now() - began)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.others.kill();
        let _ = self.others.wait();
    }
}

impl Handler for Host {
    type Protocol = AnyProtocol;

    fn on_connect(&mut self, _: &mut Conn<'_, AnyProtocol>) {
        self.up += 1;
    }

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        if matches!(msg.id(), AnyId::Length(_)) {
            let _ = conn.send(&msg);
        } else {
            self.rounds += 1;
        }
    }
}

/// Does the work of the other process, if this is it. To be asked before all else.
pub(crate) fn is_crowd() -> bool {
    let Ok(role) = env::var(ROLE) else { return false };
    let (addr, size) = role.split_once(' ').expect("an address and a number");
    let others = Others {
        server: addr.parse().expect("an address"),
        size: size.parse().expect("a number"),
        dialled: 0,
        received: 0,
    };
    let mut reactor = ReactorBuilder::new(AnyProtocol::default())
        .build(others)
        .expect("it has a descriptor left");
    reactor.run().expect("the poll works");
    true
}

/// The handler of the other process.
struct Others {
    server: SocketAddr,
    size: usize,
    dialled: usize,
    received: usize,
}

impl Others {
    fn dial(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        if self.dialled < self.size {
            self.dialled += 1;
            cx.connect(self.server).expect("the reactor runs");
        }
    }
}

impl Handler for Others {
    type Protocol = AnyProtocol;

    fn on_start(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        // No more at a time than the listener's backlog takes.
        for _ in 0..100 {
            self.dial(cx);
        }
    }

    fn on_connect(&mut self, conn: &mut Conn<'_, AnyProtocol>) {
        self.dial(conn.cx());
    }

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, _: Message<'_, AnyProtocol>) {
        self.received += 1;
        if self.received == self.size {
            self.received = 0;
            let _ = conn.send("all have it"); // an error: the other process has ended
        }
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, AnyProtocol>, _: &CloseReport) {
        conn.cx().stop();
    }

    fn on_error(&mut self, cx: &mut Context<'_, AnyProtocol>, incident: &Incident) {
        eprintln!("the other process: {incident}");
        cx.stop();
    }
}

/// How many descriptors this process may have; where nobody says, as many as POSIX grants.
fn descriptors() -> usize {
    let limits = read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits.lines().find_map(|line| {
        line.strip_prefix("Max open files")?.split_whitespace().next().map(str::to_owned)
    });
    soft.map_or(20, |soft| soft.parse().unwrap_or(usize::MAX))
}
