//! A netcat for framed connections: lines in, messages out, and the other way round.
//!
//! ```sh
//! cargo run --release --example talk -- 127.0.0.1:7001 --protocol native
//! cargo run --release --example talk -- 127.0.0.1:7001 --listen
//! ```
//!
//! Each line of standard input is sent as a message. Standard output has one line per event:
//! `connected`, `message TEXT`, `disconnected REASON`, `error TEXT`. At the end of input it waits
//! until the peer is quiet, and closes. The status tells whether all went well.

use std::{
    fmt::Display,
    io::{self, BufRead, Write},
    process::ExitCode,
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread,
    time::Duration,
};

use clap::Parser;
use longhaul::{
    CloseReason, CloseReport, Config, Conn, ConnId, Context, Handle, Handler, Incident, Message,
    ReactorBuilder, Reconnect, Timer, TimerId, protocol::Any,
};

/// How long the peer must have said nothing, after the end of input, to be taken to have answered.
const QUIET: Duration = Duration::from_millis(500);

/// Lines that were read and wait for a connection that can take them. More stay in the pipe.
const LINES: usize = 64;

/// Sends each line of standard input as a message, and prints one line per event.
#[derive(Parser)]
struct Args {
    /// The peer to connect to, or with --listen where to listen
    addr: String,
    /// The wire format
    #[arg(long, value_name = "native|tcpstream|qtk3|qtk2|length", default_value_t)]
    protocol: Any,
    /// Listen, and talk with everyone who connects
    #[arg(long)]
    listen: bool,
}

/// A peer that can't be reached, or that is lost, ends the talk.
fn config() -> Config {
    let mut config = Config::new();
    config.reconnect(Reconnect::never());
    config
}

/// What is said and heard. All of its state lives on the loop.
struct Talk {
    lines: Receiver<io::Result<Vec<u8>>>,
    is_listening: bool,
    peers: Vec<ConnId>,
    /// Set once the input has ended and all of it was sent; due when the peers were quiet.
    goodbye: Option<TimerId>,
    has_failed: bool,
}

fn main() -> ExitCode {
    env_logger::init();
    match talk(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stdout(), "error {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
fn talk(args: &Args) -> anyhow::Result<bool> {
    let (read, lines) = sync_channel(LINES);
    let talk = Talk {
        lines,
        is_listening: args.listen,
        peers: Vec::new(),
        goodbye: None,
        has_failed: false,
    };
    let mut reactor = ReactorBuilder::new(args.protocol).config(config()).build(talk)?;
    if args.listen {
        let (_, addr) = reactor.listen(&*args.addr)?;
        eprintln!("listening on {addr} ({})", args.protocol);
    } else {
        reactor.connect(&*args.addr)?;
    }
    let handle = reactor.handle();
    // Not joined: it may wait for a line for ever.
    thread::spawn(move || read_lines(read, &handle));
    reactor.run()?;
    Ok(!reactor.handler().has_failed)
}

/// Hands over one line after the other; blocks while the peer does not take them.
fn read_lines(read: SyncSender<io::Result<Vec<u8>>>, handle: &Handle<Any>) {
    let pump = || handle.run_with(Talk::pump).is_ok();
    for line in io::stdin().lock().split(b'\n') {
        let is_last = line.is_err();
        if read.send(line).is_err() || !pump() || is_last {
            break;
        }
    }
    drop(read); // which is how the handler learns of the end
    pump();
}

impl Talk {
    /// Sends what was read, as long as every peer takes it.
    fn pump(&mut self, cx: &mut Context<'_, Any>) {
        while !self.peers.is_empty() && self.peers.iter().all(|id| is_writable(cx, *id)) {
            match self.lines.try_recv() {
                Ok(Ok(line)) => self.send(cx, &line),
                Ok(Err(error)) => self.fail(cx, format_args!("standard input: {error}")),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.await_quiet(cx),
            }
        }
    }

    fn send(&mut self, cx: &mut Context<'_, Any>, line: &[u8]) {
        for peer in self.peers.clone() {
            let sent = cx.conn(peer).map(|mut conn| conn.send(line));
            if let Some(Err(error)) = sent {
                self.fail(cx, error);
            }
        }
    }

    /// Says goodbye when nobody has said anything for a while.
    fn await_quiet(&mut self, cx: &mut Context<'_, Any>) {
        if let Some(timer) = self.goodbye.take() {
            cx.cancel_timer(timer);
        }
        self.goodbye = Some(cx.set_timer(QUIET, 0));
    }

    fn fail(&mut self, cx: &mut Context<'_, Any>, error: impl Display) {
        self.has_failed = true;
        say(cx, format_args!("error {error}"));
    }
}

impl Handler for Talk {
    type Protocol = Any;

    fn on_connect(&mut self, conn: &mut Conn<'_, Any>) {
        say(conn, "connected");
        self.peers.push(conn.id());
        self.pump(conn);
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Any>, msg: Message<'_, Any>) {
        say(conn, format_args!("message {}", on_one_line(&msg.text())));
        if self.goodbye.is_some() {
            self.await_quiet(conn);
        }
    }

    fn on_writable(&mut self, conn: &mut Conn<'_, Any>) {
        self.pump(conn);
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Any>, report: &CloseReport) {
        say(conn, format_args!("disconnected {}", on_one_line(&report.to_string())));
        let is_expected = matches!(
            report.reason,
            CloseReason::Closed | CloseReason::PeerClosed | CloseReason::PeerGoaway { .. }
        );
        self.has_failed |= !is_expected || report.unsent_messages > 0;
        self.peers.retain(|peer| *peer != conn.id());
        let is_over = if self.is_listening {
            self.goodbye.is_some() && self.peers.is_empty()
        } else {
            report.redial_in.is_none()
        };
        if is_over {
            conn.stop();
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Any>, _: Timer) {
        let is_sending = |peer: &ConnId| cx.conn(*peer).is_some_and(|conn| conn.queued() > 0);
        if self.peers.iter().any(is_sending) {
            return self.await_quiet(cx);
        }
        for peer in &self.peers {
            if let Some(mut conn) = cx.conn(*peer) {
                conn.close();
            }
        }
    }

    fn on_error(&mut self, cx: &mut Context<'_, Any>, incident: &Incident) {
        self.fail(cx, incident);
        if matches!(incident, Incident::DialFailed { retry_in: None, .. }) {
            cx.stop();
        }
    }
}

fn is_writable(cx: &mut Context<'_, Any>, peer: ConnId) -> bool {
    cx.conn(peer).is_some_and(|conn| conn.is_writable())
}

/// Prints a line at once, and stops when nobody reads it any more.
fn say(cx: &mut Context<'_, Any>, line: impl Display) {
    if writeln!(io::stdout(), "{line}").is_err() {
        cx.stop();
    }
}

/// What a peer says must not look like two events, nor move the cursor.
fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() && char != '\t' {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    line
}
