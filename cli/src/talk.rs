//! A netcat for framed connections: lines in, messages out, and the other way round.
//!
//! Each line of standard input is sent as a message, or with `--call` as a request, and standard output
//! has one line per event.

use std::{
    fmt::Display,
    io::{self, BufRead, Write},
    process::ExitCode,
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread,
    time::Duration,
};

use longhaul::{
    CallError, CloseReason, CloseReport, Conn, ConnId, Context, Handle, Handler, Incident, Message,
    ReactorBuilder, Reconnect, Timer, TimerId, protocol::AnyProtocol,
};

use crate::args::{Liveness, seconds};

/// Sends each line of standard input as a message, and prints a line per event.
#[derive(clap::Args)]
#[command(after_help = "\
Standard output has one line per event:
  connected                     with the peer, or with --listen with one more
  message TEXT, reply TEXT      what came
  failed REASON                 a request got no reply
  disconnected REASON           the connection has ended
  reconnecting in MS ms         it will be dialled again
  error TEXT                    anything else that went wrong
When the input has ended and everything was answered it closes the connection, unless --stay.

Exit status: 0 if all went well, 1 if not, or 2 for unusable arguments.

Examples:
  longhaul talk 127.0.0.1:7001
  longhaul talk 127.0.0.1:7001 --protocol length --listen")]
pub(crate) struct Args {
    /// The peer to connect to, or with --listen where to listen
    addr: String,
    /// The wire format
    #[arg(long, value_name = "native|tcpstream|qtk3|qtk2|length", default_value_t)]
    protocol: AnyProtocol,
    /// Listen, and talk with everyone who connects
    #[arg(long, conflicts_with = "reconnect")]
    listen: bool,
    /// Each line is a request, and its answer is printed
    #[arg(long)]
    call: bool,
    /// How long a request waits for its answer; fractions are fine
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// When to dial again after a loss or a failure
    #[arg(long, value_name = "backoff|fixed:MS|off", default_value = "off", value_parser = policy)]
    reconnect: Reconnect,
    /// Go on after the end of input
    #[arg(long)]
    stay: bool,
    #[command(flatten)]
    liveness: Liveness,
}

fn policy(text: &str) -> Result<Reconnect, String> {
    match (text, text.strip_prefix("fixed:")) {
        ("backoff", _) => Ok(Reconnect::default()),
        ("off", _) => Ok(Reconnect::never()),
        (_, Some(millis)) => {
            let millis = millis.parse().map_err(|_| "not a number of milliseconds".to_owned())?;
            Ok(Reconnect::fixed(Duration::from_millis(millis)))
        }
        _ => Err("neither backoff nor fixed:MS nor off".to_owned()),
    }
}

pub(crate) fn main(args: &Args) -> ExitCode {
    match talk(args) {
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
    let talk = Talk {
        lines,
        next: None,
        timeout: args.call.then_some(args.timeout),
        calls: 0,
        unanswered: 0,
        is_coming_back: false,
        stays: args.stay,
        goodbye: None,
        has_failed: false,
    };
    let config = args.liveness.config().reconnect(args.reconnect.clone());
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
fn read_lines(read: SyncSender<Vec<u8>>, handle: &Handle<AnyProtocol>) {
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
    /// Of each call; `None`: lines are messages.
    timeout: Option<Duration>,
    /// Calls in flight.
    calls: usize,
    /// Messages sent, less those that came.
    unanswered: usize,
    /// The connection is down, and will be dialled again.
    is_coming_back: bool,
    /// The end of input is not the end.
    stays: bool,
    /// Runs once all input was sent: until it is due, the peers may answer.
    goodbye: Option<TimerId>,
    has_failed: bool,
}

impl Talk {
    /// Sends what was read, while there are peers and all of them take it.
    fn pump(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        loop {
            let line = match self.next.take().map_or_else(|| self.lines.try_recv(), Ok) {
                Ok(line) => line,
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.wait_for_quiet(cx),
            };
            let peers: Vec<ConnId> = cx.connections().collect();
            let is_writable = |peer| cx.conn(peer).is_some_and(|conn| conn.is_writable());
            let is_busy = self.calls >= CALLS;
            if peers.is_empty() || is_busy || !peers.iter().copied().all(is_writable) {
                self.next = Some(line);
                return;
            }
            for peer in peers {
                if let Some(mut conn) = cx.conn(peer) {
                    self.say_line(&mut conn, &line);
                }
            }
        }
    }

    /// Sends a line as a message, or as a request.
    fn say_line(&mut self, conn: &mut Conn<'_, AnyProtocol>, line: &[u8]) {
        let Some(timeout) = self.timeout else {
            self.unanswered += 1;
            if let Err(error) = conn.send(line) {
                self.fail(conn.cx(), error);
            }
            return;
        };
        let called = conn.call(line, timeout, |talk: &mut Self, conn, result| {
            talk.calls -= 1;
            match result {
                Ok(reply) => say(conn.cx(), format_args!("reply {}", reply.text())),
                Err(error) => talk.fail_call(conn.cx(), &error),
            }
            talk.pump(conn.cx());
        });
        match called {
            Ok(_) => self.calls += 1,
            Err(refused) => self.fail_call(conn.cx(), refused.error()),
        }
    }

    fn fail_call(&mut self, cx: &mut Context<'_, AnyProtocol>, error: &CallError) {
        self.has_failed = true;
        say(cx, format_args!("failed {error}"));
    }

    /// All input was sent. It ends when there was a peer, every call has ended, and no peer has said
    /// anything for a while: a short one if as much came as was sent.
    fn wait_for_quiet(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        const QUIET: Duration = Duration::from_millis(500);
        const UNANSWERED: Duration = Duration::from_secs(5);
        if self.stays || self.calls > 0 {
            return;
        }
        if let Some(timer) = self.goodbye.take() {
            cx.cancel_timer(timer);
        }
        if cx.connections().next().is_some() {
            let quiet = if self.unanswered > 0 { UNANSWERED } else { QUIET };
            self.goodbye = Some(cx.set_timer(quiet, 0));
        } else if self.is_coming_back && self.unanswered > 0 {
            // What was not answered may not have been sent.
        } else if cx.stats().disconnected > 0 {
            cx.stop();
        }
    }

    fn fail(&mut self, cx: &mut Context<'_, AnyProtocol>, error: impl Display) {
        self.has_failed = true;
        say(cx, format_args!("error {error}"));
    }
}

/// Calls in flight at a time.
const CALLS: usize = 64;

impl Handler for Talk {
    type Protocol = AnyProtocol;

    fn on_connect(&mut self, conn: &mut Conn<'_, AnyProtocol>) {
        self.is_coming_back = false;
        say(conn.cx(), "connected");
        self.pump(conn.cx());
    }

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        say(conn.cx(), format_args!("message {}", msg.text()));
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.goodbye.is_some() {
            self.wait_for_quiet(conn.cx());
        }
    }

    fn on_writable(&mut self, conn: &mut Conn<'_, AnyProtocol>) {
        self.pump(conn.cx());
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, AnyProtocol>, report: &CloseReport) {
        say(conn.cx(), format_args!("disconnected {}", report.reason));
        let is_normal = matches!(
            report.reason,
            CloseReason::Closed | CloseReason::PeerClosed | CloseReason::PeerGoaway { .. }
        );
        self.is_coming_back = report.redial_in.is_some();
        if let Some(delay) = report.redial_in {
            // What did not leave goes first on the next connection.
            for message in conn.take_unsent() {
                if let Err(error) = conn.send(message) {
                    self.fail(conn.cx(), error);
                }
            }
            say(conn.cx(), format_args!("reconnecting in {} ms", delay.as_millis()));
        } else {
            self.has_failed |= !is_normal || report.unsent_messages > 0;
            if report.unsent_messages > 0 {
                say(
                    conn.cx(),
                    format_args!("error {} messages were not sent", report.unsent_messages),
                );
            }
            if conn.is_dialled() {
                return conn.cx().stop();
            }
        }
        self.pump(conn.cx());
    }

    fn on_timer(&mut self, cx: &mut Context<'_, AnyProtocol>, _: Timer) {
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

    fn on_error(&mut self, cx: &mut Context<'_, AnyProtocol>, incident: &Incident) {
        match incident {
            Incident::DialFailed { error, retry_in: Some(delay), .. } => {
                say(cx, format_args!("error {error}"));
                say(cx, format_args!("reconnecting in {} ms", delay.as_millis()));
            }
            Incident::DialFailed { retry_in: None, .. } => {
                self.fail(cx, incident);
                cx.stop();
            }
            _ => self.fail(cx, incident),
        }
    }
}

/// Prints an event at once, on one line whatever the peer says, and stops when nobody reads it.
fn say(cx: &mut Context<'_, AnyProtocol>, event: impl Display) {
    let is_unprintable = |char: char| char.is_control() && char != '\t';
    let line = event.to_string().replace(is_unprintable, "\u{fffd}");
    if writeln!(io::stdout(), "{line}").is_err() {
        cx.stop();
    }
}
