//! An echo server on any of the shipped protocols, and a client that says hello to it.
//!
//! ```sh
//! cargo run --release --example echo
//! cargo run --release --example echo -- --listen 0.0.0.0:7001 --protocol tcpstream --quiet
//! ```
//!
//! Ctrl-C or SIGTERM stops it gracefully. `RUST_LOG=debug` shows what the library logs.

use std::{
    fmt::Display,
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{self, ExitCode},
    sync::mpsc::{Sender, channel},
    thread,
    time::Duration,
};

use anyhow::anyhow;
use clap::Parser;
use longhaul::{
    CallError, ClientBuilder, Config, Conn, Context, Handler, Message, ReactorBuilder, Stats,
    Timer,
    protocol::{Any, Kind},
};

/// Sends back what it gets.
struct Echo {
    statistics: Option<Statistics>,
}

impl Handler for Echo {
    type Protocol = Any;

    fn on_message(&mut self, conn: &mut Conn<'_, Any>, msg: Message<'_, Any>) {
        // The message is its own answer: id, tag and body are the same. An error would say why
        // nothing was queued; the peer learns it from its connection, which closes.
        let _ = match msg.kind() {
            Kind::Push => conn.send(&msg),
            _ => conn.reply(&msg, &msg),
        };
        if let Some(statistics) = &mut self.statistics {
            statistics.handle_traffic(conn);
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Any>, _: Timer) {
        if let Some(statistics) = &mut self.statistics {
            statistics.show(cx);
        }
    }
}

/// One line a second while there is traffic. Without traffic no timer runs: an idle server sleeps.
#[derive(Default)]
struct Statistics {
    is_due: bool,
    shown: Stats,
}

impl Statistics {
    fn handle_traffic(&mut self, cx: &mut Context<'_, Any>) {
        if !self.is_due {
            self.is_due = true;
            cx.set_timer(Duration::from_secs(1), 0);
        }
    }

    fn show(&mut self, cx: &Context<'_, Any>) {
        let now = cx.stats();
        say(format_args!(
            "{} connections; in the last second {} messages, {} bytes in, {} bytes out",
            now.connections,
            now.messages_in - self.shown.messages_in,
            now.bytes_in - self.shown.bytes_in,
            now.bytes_out - self.shown.bytes_out,
        ));
        *self = Self { is_due: false, shown: now };
    }
}

/// Echoes messages on every connection, until Ctrl-C or SIGTERM.
#[derive(Parser)]
struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7001")]
    listen: String,
    /// The wire format
    #[arg(long, value_name = "native|tcpstream|qtk3|qtk2|length", default_value_t)]
    protocol: Any,
    /// The largest body that is accepted, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 8 * 1024 * 1024)]
    max_body: usize,
    /// No built-in client, and no statistics
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    env_logger::init();
    match serve(&Args::try_parse().unwrap_or_else(|error| refuse(&error))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> anyhow::Result<()> {
    let mut config = Config::new();
    config.max_body(args.max_body);
    let echo = Echo { statistics: (!args.quiet).then(Statistics::default) };
    let mut reactor = ReactorBuilder::new(args.protocol).config(config.clone()).build(echo)?;
    let handle = reactor.handle();
    ctrlc::set_handler(move || handle.stop())?;
    let (_, addr) = reactor
        .listen(&*args.listen)
        .map_err(|error| anyhow!("can't listen on {}: {error}", args.listen))?;
    say(format_args!("listening on {addr} ({})", args.protocol));

    if !args.quiet {
        let client = ClientBuilder::new(args.protocol).config(config);
        thread::spawn(move || {
            if let Err(error) = say_hello(client, addr) {
                eprintln!("the built-in client failed: {error}");
            }
        });
    }
    Ok(reactor.run()?)
}

/// What a client is: it connects, says hello, and hears the answer.
fn say_hello(client: ClientBuilder<Any>, mut addr: SocketAddr) -> anyhow::Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(5);
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let (told, pushes) = channel();
    let client = client.connect_with(addr, Ear(told))?;
    let answer = match client.call("hello", TIMEOUT) {
        // The protocol only has messages, so what comes back is one, too.
        Err(CallError::NoCalls { .. }) => {
            client.send("hello")?;
            pushes.recv_timeout(TIMEOUT)?
        }
        answer => String::from_utf8_lossy(&answer?).into_owned(),
    };
    say(format_args!("the built-in client said 'hello', and the server answered '{answer}'"));
    Ok(client.stop()?)
}

/// Tells what the server sends unasked.
struct Ear(Sender<String>);

impl Handler for Ear {
    type Protocol = Any;

    fn on_message(&mut self, _: &mut Conn<'_, Any>, msg: Message<'_, Any>) {
        let _ = self.0.send(msg.text().into_owned());
    }
}

/// Prints a line at once. That nobody reads it any more is no reason to stop serving.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Ends the program because of its arguments: with the help that was asked for, or with one line
/// that says what is wrong with them.
fn refuse(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        error.exit()
    }
    let text = error.to_string();
    eprintln!("{}", text.lines().next().unwrap_or("error: unusable arguments"));
    process::exit(2)
}
