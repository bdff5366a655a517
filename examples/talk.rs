//! A netcat for framed connections: lines in, messages out, and the other way round.
//!
//! ```sh
//! cargo run --release --example talk -- 127.0.0.1:7001
//! cargo run --release --example talk -- 127.0.0.1:7001 --protocol length --listen
//! ```
//!
//! Each line of standard input is sent as a message. Standard output has one line per event:
//! `connected`, `message TEXT`, `disconnected REASON`, `error TEXT`. At the end of input it waits
//! until the peer is quiet, and closes. The exit status tells whether all went well.

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

/// Sends each line of standard input as a message, and prints a line per event.
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
    /// Lines that were read and wait for a peer who takes them. More stay in the pipe.
    const LINES: usize = 64;
    let (read, lines) = sync_channel(LINES);
    let talk = Talk { lines, next: None, goodbye: None, has_failed: false };
    let mut config = Config::new();
    config.reconnect(Reconnect::never());
    let mut reactor = ReactorBuilder::new(args.protocol).config(config).build(talk)?;
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

/// Hands over one line after the other, and rouses the loop for it.
fn read_lines(read: SyncSender<Vec<u8>>, handle: &Handle<Any>) {
    let pump = || handle.run_with(Talk::pump).is_ok();
    for line in io::stdin().lock().split(b'\n') {
        let is_taken = match line {
            // Blocks while the peers take nothing.
            Ok(line) => read.send(line).is_ok() && pump(),
            Err(error) => {
                let _ = handle.run_with(move |talk: &mut Talk, cx| talk.fail(cx, error));
                false
            }
        };
        if !is_taken {
            break;
        }
    }
    drop(read); // which tells that this was the end
    pump();
}

/// What is said and heard, on the loop.
struct Talk {
    lines: Receiver<Vec<u8>>,
    /// Taken from `lines`, and not yet sent.
    next: Option<Vec<u8>>,
    /// Runs once all input was sent: until it is due, the peers may answer.
    goodbye: Option<TimerId>,
    has_failed: bool,
}

impl Talk {
    /// Sends what was read, while there are peers and all of them take it.
    fn pump(&mut self, cx: &mut Context<'_, Any>) {
        loop {
            let line = match self.next.take().map_or_else(|| self.lines.try_recv(), Ok) {
                Ok(line) => line,
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.wait_for_quiet(cx),
            };
            let peers: Vec<ConnId> = cx.connections().collect();
            let is_writable = |peer| cx.conn(peer).is_some_and(|conn| conn.is_writable());
            if peers.is_empty() || !peers.iter().copied().all(is_writable) {
                self.next = Some(line);
                return;
            }
            for peer in peers {
                if let Some(Err(error)) = cx.conn(peer).map(|mut conn| conn.send(&line)) {
                    self.fail(cx, error);
                }
            }
        }
    }

    /// All input was sent. It ends when there was a peer, and no peer has said anything for a while.
    fn wait_for_quiet(&mut self, cx: &mut Context<'_, Any>) {
        const QUIET: Duration = Duration::from_millis(500);
        if let Some(timer) = self.goodbye.take() {
            cx.cancel_timer(timer);
        }
        if cx.connections().next().is_some() {
            self.goodbye = Some(cx.set_timer(QUIET, 0));
        } else if cx.stats().disconnected > 0 {
            cx.stop();
        }
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
        self.pump(conn);
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Any>, msg: Message<'_, Any>) {
        say(conn, format_args!("message {}", msg.text()));
        if self.goodbye.is_some() {
            self.wait_for_quiet(conn);
        }
    }

    fn on_writable(&mut self, conn: &mut Conn<'_, Any>) {
        self.pump(conn);
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Any>, report: &CloseReport) {
        say(conn, format_args!("disconnected {report}"));
        let is_normal = matches!(
            report.reason,
            CloseReason::Closed | CloseReason::PeerClosed | CloseReason::PeerGoaway { .. }
        );
        self.has_failed |= !is_normal || report.unsent_messages > 0;
        if conn.is_dialled() && report.redial_in.is_none() {
            conn.stop();
        } else {
            self.pump(conn);
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Any>, _: Timer) {
        let peers: Vec<ConnId> = cx.connections().collect();
        if peers.iter().any(|peer| cx.conn(*peer).is_some_and(|conn| conn.queued() > 0)) {
            return self.wait_for_quiet(cx);
        }
        for peer in peers {
            if let Some(mut conn) = cx.conn(peer) {
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

/// Prints an event at once, on one line whatever the peer says, and stops when nobody reads it.
fn say(cx: &mut Context<'_, Any>, event: impl Display) {
    let is_unprintable = |char: char| char.is_control() && char != '\t';
    let line = event.to_string().replace(is_unprintable, "\u{fffd}");
    if writeln!(io::stdout(), "{line}").is_err() {
        cx.stop();
    }
}
