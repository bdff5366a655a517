//! A reactor in a loop of your own: here one that also has a UDP socket and a clock, on one thread.
//!
//! Each datagram is broadcast to every connection, each request is answered, and once a second the loop
//! does something of its own.
//!
//! ```sh
//! cargo run --release --example own_loop
//! cargo run --release --example own_loop -- --listen 127.0.0.1:7001 --udp 127.0.0.1:7002
//! ```
//!
//! Ctrl-C or SIGTERM stops it gracefully.
//!
//! A loop that embeds a reactor does three things. It watches the reactor's descriptor for reading, it
//! waits no longer than until [`next_deadline`](longhaul::Reactor::next_deadline), and whichever comes
//! first it runs a [`turn`](longhaul::Reactor::turn) that does not wait.
//!
//! In tokio an `AsyncFd` watches a copy of the descriptor. (From tokio 1.54 on `with_interest` is called
//! `register_with_interest` and is unsafe, as the descriptor must not change; that of an `OwnedFd` does not.)
//!
//! ```ignore
//! let fd = reactor.as_fd().try_clone_to_owned()?;
//! let readiness = AsyncFd::with_interest(fd, Interest::READABLE)?;
//! while reactor.turn(Some(Duration::ZERO))? {
//!     let readable = readiness.readable();
//!     match reactor.next_deadline() {
//!         Some(at) => {
//!             if let Ok(ready) = tokio::time::timeout_at(at.into(), readable).await {
//!                 ready?.clear_ready();
//!             }
//!         }
//!         None => readable.await?.clear_ready(),
//!     }
//! }
//! ```

#![cfg(unix)]
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that talks on its terminal, and whose loop has a clock of its own"
)]

mod args;

use std::{
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use args::Options;
use longhaul::{Audience, Conn, Handler, Message, Reactor, protocol::Native};
use mio::{Events, Interest, Poll, Token, net::UdpSocket, unix::SourceFd};

/// Answers every request with its own body.
struct Echo;

impl Handler for Echo {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        let _ = conn.reply(&msg, msg.body()); // an error says why nothing was queued
    }
}

/// What an event of the loop is about.
const REACTOR: Token = Token(0);
const UDP: Token = Token(1);

/// How often the loop does something of its own.
const TICK: Duration = Duration::from_secs(1);

fn run(listen: SocketAddr, udp: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let mut reactor = Reactor::new(Echo)?;
    let (_, listen) = reactor.listen(listen)?;
    let mut socket = UdpSocket::bind(udp)?;
    println!("listening on {listen}, and for datagrams on {}", socket.local_addr()?);

    let handle = reactor.handle();
    ctrlc::set_handler(move || handle.stop())?;

    let mut poll = Poll::new()?;
    let descriptor = reactor.as_raw_fd();
    poll.registry().register(&mut SourceFd(&descriptor), REACTOR, Interest::READABLE)?;
    poll.registry().register(&mut socket, UDP, Interest::READABLE)?;

    let mut events = Events::with_capacity(64);
    let (mut datagrams, mut told) = (0_u64, 0);
    let mut next_tick = Instant::now() + TICK;
    loop {
        // A turn first: it is also what makes the first deadline known.
        if !reactor.turn(Some(Duration::ZERO))? {
            return Ok(());
        }
        let until = reactor.next_deadline().map_or(next_tick, |at| at.min(next_tick));
        match poll.poll(&mut events, Some(until.saturating_duration_since(Instant::now()))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        if events.iter().any(|event| event.token() == UDP) {
            datagrams += pass_on(&socket, &mut reactor)?;
        }
        if Instant::now() >= next_tick {
            next_tick += TICK;
            if datagrams > told {
                let connections = reactor.stats().connections;
                println!("{datagrams} datagrams so far, {connections} connections");
                told = datagrams;
            }
        }
    }
}

/// Broadcasts every datagram that has come; how many those were.
fn pass_on(socket: &UdpSocket, reactor: &mut Reactor<Echo>) -> io::Result<u64> {
    let mut datagram = [0; 1500];
    for count in 0.. {
        match socket.recv(&mut datagram) {
            Ok(len) => _ = reactor.context().broadcast(Audience::All, &datagram[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error),
        }
    }
    Ok(0)
}

fn main() -> ExitCode {
    let mut listen = SocketAddr::from(([127, 0, 0, 1], 7001));
    let mut udp = SocketAddr::from(([127, 0, 0, 1], 7002));
    Options::new("A reactor in a loop of your own, beside a UDP socket")
        .value("--listen <ADDR>", "Where to listen for connections", &mut listen)
        .value("--udp <ADDR>", "Where to listen for datagrams", &mut udp)
        .read();
    match run(listen, udp) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
