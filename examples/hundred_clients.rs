//! The Go library's demonstration: a server, and a hundred clients that start, talk for ten seconds
//! and stop.
//!
//! ```sh
//! cargo run --release --example hundred_clients
//! cargo run --release --example hundred_clients -- --clients 1000 --seconds 3
//! ```
//!
//! Where that library has a goroutine for each client, all of them share one thread here. At the end
//! both sides say what they counted, and the exit status tells whether they agree.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that prints, and has no simulated clock"
)]

mod args;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::ensure;
use args::{Options, Seconds};
use indicatif::{ProgressBar, ProgressStyle};
use longhaul::{
    Addr, CloseReport, Config, Conn, Context, Handler, Message, Reactor, ReactorBuilder, Server,
    Timer, protocol::Tcpstream,
};

/// What a side counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    connected: usize,
    messages: u64,
    disconnected: usize,
}

/// The server: `OnConn`, `OnData`, `OnDisConn`.
#[derive(Default)]
struct Echo {
    counts: Counts,
}

impl Handler for Echo {
    type Protocol = Tcpstream;

    fn on_connect(&mut self, _: &mut Conn<'_, Tcpstream>) {
        self.counts.connected += 1;
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Tcpstream>, msg: Message<'_, Tcpstream>) {
        self.counts.messages += 1;
        // The same sequence number goes back, so that the client knows which message it answers.
        let _ = conn.reply(&msg, &msg);
    }

    fn on_disconnect(&mut self, _: &mut Conn<'_, Tcpstream>, _: &CloseReport) {
        self.counts.disconnected += 1;
    }
}

/// All clients.
struct Clients {
    server: Addr,
    size: usize,
    counts: Counts,
    sent: u64,
    began: Instant,
    time: Duration,
    bar: ProgressBar,
}

/// How long a client waits after an answer.
const PAUSE: Duration = Duration::from_millis(100);

impl Clients {
    /// Says the next thing; or nothing more when the time is over, and stops when all was answered.
    fn go_on(&mut self, conn: &mut Conn<'_, Tcpstream>) {
        let is_over = self.began.elapsed() >= self.time && self.counts.connected == self.size;
        if !is_over {
            self.sent += u64::from(conn.send(format!("hello {}", self.sent)).is_ok());
        } else if self.counts.messages == self.sent {
            conn.cx().stop();
        }
    }
}

impl Handler for Clients {
    type Protocol = Tcpstream;

    fn on_start(&mut self, cx: &mut Context<'_, Tcpstream>) {
        for _ in 0..self.size {
            cx.connect(&self.server).expect("an address, and settings that were checked");
        }
    }

    fn on_connect(&mut self, conn: &mut Conn<'_, Tcpstream>) {
        self.counts.connected += 1;
        self.go_on(conn);
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Tcpstream>, _: Message<'_, Tcpstream>) {
        self.counts.messages += 1;
        self.bar.set_position(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX));
        conn.set_timer(PAUSE, 0);
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Tcpstream>, timer: Timer) {
        if let Some(mut conn) = timer.conn.and_then(|id| cx.conn(id)) {
            self.go_on(&mut conn);
        }
    }

    fn on_disconnect(&mut self, _: &mut Conn<'_, Tcpstream>, _: &CloseReport) {
        self.counts.disconnected += 1;
    }
}

struct Args {
    clients: u16,
    /// How long they talk.
    seconds: Seconds,
}

impl Args {
    fn read() -> Self {
        let mut args = Self { clients: 100, seconds: Seconds(Duration::from_secs(10)) };
        Options::new("Starts a server and clients, lets them talk, and stops them")
            .number("--clients <N>", "How many clients", 1.., &mut args.clients)
            .value("--seconds <SECS>", "How long they talk; fractions are fine", &mut args.seconds)
            .read();
        args
    }
}

fn main() -> ExitCode {
    env_logger::init();
    match run(&Args::read()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let clients = usize::from(args.clients);
    let builder = ReactorBuilder::new(Tcpstream).config(Config::go_tcpstream());
    let server = Server::bind_with("127.0.0.1:0", builder.clone(), Echo::default())?;
    println!("listening on {}, {clients} clients start", server.addr());

    let millis = u64::try_from(args.seconds.0.as_millis())?;
    let bar = ProgressBar::new(millis)
        .with_style(ProgressStyle::with_template("{bar:40} {elapsed} of the time is over")?);
    let mut reactor: Reactor<Clients> = builder.build(Clients {
        server: server.addr().clone(),
        size: clients,
        counts: Counts::default(),
        sent: 0,
        began: Instant::now(),
        time: args.seconds.0,
        bar: bar.clone(),
    })?;
    reactor.run()?;
    bar.finish_and_clear();
    let (ours, sent) = (reactor.handler().counts, reactor.handler().sent);

    let (ask, asked) = std::sync::mpsc::channel();
    server.handle().run_with(move |echo: &mut Echo, _| _ = ask.send(echo.counts))?;
    let open = asked.recv()?;
    let report = server.stop()?;
    println!(
        "clients: {} connected, {sent} messages sent, {} answered",
        ours.connected, ours.messages
    );
    println!("server:  {} connected, {} messages echoed", open.connected, open.messages);
    println!("stopped: {report}");
    ensure!(
        (ours.connected, ours.messages, ours.messages) == (open.connected, open.messages, sent),
        "the sides do not agree"
    );
    ensure!(ours.disconnected == clients, "{} of {clients} clients stopped", ours.disconnected);
    Ok(())
}
