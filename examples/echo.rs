//! An echo server on any of the shipped protocols, and a client that says hello to it.
//!
//! ```sh
//! cargo run --release --example echo
//! cargo run --release --example echo -- --listen 0.0.0.0:7001 --protocol tcpstream --quiet
//! cargo run --release --example echo -- --delay 3
//! ```
//!
//! Ctrl-C or SIGTERM stops it gracefully. `RUST_LOG=debug` shows what the library logs.

mod args;

use std::{
    collections::VecDeque,
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
    sync::mpsc::{Sender, channel},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use args::{Options, Seconds};
use longhaul::{
    Addr, Bytes, CallError, ClientBuilder, Config, Conn, ConnId, Context, Handler, Message,
    ReactorBuilder, Responder, Stats, Tagged, Timer,
    protocol::{AnyProtocol, Kind},
};

/// Sends back what it gets, and tells once a second how much, while there is traffic.
#[derive(Default)]
struct Echo {
    is_quiet: bool,
    /// Whether the timer for the next line runs. It does not without traffic: an idle server sleeps.
    is_line_due: bool,
    last: Stats,
    /// How long every answer waits.
    delay: Duration,
    /// The answers that wait, each with a timer of its own; the next one first.
    delayed: VecDeque<Delayed>,
}

/// An answer that waits for its timer.
enum Delayed {
    Push(ConnId, Tagged<Bytes>),
    Answer(Responder<AnyProtocol>, Bytes),
}

/// What a timer is for.
const LINE: u64 = 0;
const ANSWER: u64 = 1;

impl Echo {
    /// Answers, at once or when its time has come. An error would say why nothing was queued; the peer
    /// learns it from its connection, which closes.
    fn answer(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        let is_push = msg.kind() == Kind::Push;
        if self.delay.is_zero() {
            // The message is its own answer: id, tag and body are the same.
            let _ = if is_push { conn.send(&msg) } else { conn.reply(&msg, &msg) };
            return;
        }
        let delayed = if is_push {
            Delayed::Push(conn.id(), Tagged(msg.tag(), msg.into_bytes()))
        } else {
            match conn.defer(&msg) {
                Ok(responder) => Delayed::Answer(responder, msg.into_bytes()),
                Err(_) => return,
            }
        };
        // Timers of one delay are due in the order in which they were set.
        self.delayed.push_back(delayed);
        conn.cx().set_timer(self.delay, ANSWER); // it outlives the connection
    }

    fn answer_next(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        match self.delayed.pop_front() {
            Some(Delayed::Push(id, body)) => {
                let _ = cx.conn(id).map(|mut conn| conn.send(body));
            }
            Some(Delayed::Answer(responder, body)) => {
                if let Err(refused) = responder.reply(body)
                    && let Ok((responder, Tagged(_, body))) = refused.take_back()
                {
                    // Its peer does not take answers that fast.
                    self.delayed.push_front(Delayed::Answer(responder, body));
                    cx.set_timer(Duration::from_millis(1), ANSWER);
                }
            }
            None => {}
        }
    }
}

impl Handler for Echo {
    type Protocol = AnyProtocol;

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        self.answer(conn, msg);
        if !self.is_quiet && !self.is_line_due {
            self.is_line_due = true;
            conn.cx().set_timer(Duration::from_secs(1), LINE); // it outlives the connection
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_, AnyProtocol>, timer: Timer) {
        if timer.token == ANSWER {
            return self.answer_next(cx);
        }
        self.is_line_due = false;
        let last = std::mem::replace(&mut self.last, cx.stats());
        say(format_args!(
            "last second: messages {}, bytes in {}, bytes out {}; connections {}",
            self.last.messages_in - last.messages_in,
            self.last.bytes_in - last.bytes_in,
            self.last.bytes_out - last.bytes_out,
            self.last.connections,
        ));
    }
}

/// On the command line 0 stands for never.
fn unless_zero(time: Duration) -> Option<Duration> {
    Some(time).filter(|time| !time.is_zero())
}

struct Args {
    listen: String,
    protocol: AnyProtocol,
    max_body: usize,
    /// How long every answer waits.
    delay: Seconds,
    /// How the peer's life is watched; `None` is the protocol's own way.
    heartbeat: Option<Seconds>,
    idle_timeout: Option<Seconds>,
    busy_poll: Seconds,
    /// No built-in client, and no statistics.
    quiet: bool,
}

impl Args {
    fn read() -> Self {
        let mut args = Self {
            listen: "127.0.0.1:7001".to_owned(),
            protocol: AnyProtocol::default(),
            max_body: 8 * 1024 * 1024,
            delay: Seconds::default(),
            heartbeat: None,
            idle_timeout: None,
            busy_poll: Seconds::default(),
            quiet: false,
        };
        Options::new("Echoes messages on every connection, until Ctrl-C or SIGTERM")
            .value("--listen <ADDR>", "Where to listen; port 0 takes a free one", &mut args.listen)
            .value(
                "--protocol <native|tcpstream|qtk3|qtk2|length>",
                "The wire format",
                &mut args.protocol,
            )
            .value(
                "--max-body <BYTES>",
                "The largest body that is accepted, in bytes",
                &mut args.max_body,
            )
            .value(
                "--delay <SECS>",
                "Answer only after this long; fractions are fine",
                &mut args.delay,
            )
            .optional(
                "--heartbeat <SECS>",
                "Ping a silent peer after this long; fractions are fine, 0 is off \
                 [default: the protocol's own]",
                &mut args.heartbeat,
            )
            .optional(
                "--idle-timeout <SECS>",
                "Close a connection that was silent for this long; fractions are fine, 0 is off \
                 [default: the protocol's own]",
                &mut args.idle_timeout,
            )
            .value(
                "--busy-poll <SECS>",
                "Look for work for so long before sleeping: answers sooner, and keeps a core busy",
                &mut args.busy_poll,
            )
            .flag("--quiet", "No built-in client, and no statistics", &mut args.quiet)
            .read();
        args
    }

    fn config(&self) -> Config {
        let mut config = Config::new().max_body(self.max_body);
        if let Some(Seconds(interval)) = self.heartbeat {
            config = config.heartbeat(unless_zero(interval));
        }
        if let Some(Seconds(timeout)) = self.idle_timeout {
            config = config.idle_timeout(unless_zero(timeout));
        }
        config
    }
}

fn main() -> ExitCode {
    env_logger::init();
    match serve(&Args::read()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> anyhow::Result<()> {
    let config = args.config();
    let echo = Echo { is_quiet: args.quiet, delay: args.delay.0, ..Echo::default() };
    let mut reactor = ReactorBuilder::new(args.protocol)
        .config(config.clone())
        .busy_poll(args.busy_poll.0)
        .build(echo)?;
    let (_, addr) = reactor.listen(&*args.listen).context("can't listen")?;
    let handle = reactor.handle();
    ctrlc::set_handler(move || handle.stop())?;
    say(format_args!("listening on {addr} ({})", args.protocol));

    if !args.quiet {
        let client = ClientBuilder::new(args.protocol).config(config);
        let patience = args.delay.0.saturating_add(Duration::from_secs(5));
        thread::spawn(move || {
            if let Err(error) = say_hello(client, addr, patience) {
                eprintln!("the built-in client failed: {error:#}");
            }
        });
    }
    Ok(reactor.run()?)
}

/// All that a client does: it connects, says hello, hears the answer, and goes.
fn say_hello(
    client: ClientBuilder<AnyProtocol>,
    addr: Addr,
    patience: Duration,
) -> anyhow::Result<()> {
    let (told, pushes) = channel();
    let client = client.connect_with(addr, Ear(told))?;
    let answer = match client.call("hello", patience) {
        // The protocol has nothing but messages, so what comes back is one, too.
        Err(CallError::NoCalls { .. }) => {
            client.send("hello")?;
            pushes.recv_timeout(patience)?
        }
        answer => String::from_utf8_lossy(&answer?).into_owned(),
    };
    say(format_args!("the built-in client said 'hello', the server answered '{answer}'"));
    client.stop()?;
    Ok(())
}

/// Tells what the server sends unasked.
struct Ear(Sender<String>);

impl Handler for Ear {
    type Protocol = AnyProtocol;

    fn on_message(&mut self, _: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        let _ = self.0.send(msg.text().into_owned());
    }
}

/// Prints a line at once. That nobody reads it any more is no reason to stop serving.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
