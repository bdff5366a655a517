//! longhaul with its default settings: a handler that replies with the message itself.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum};
use longhaul::{
    Audience, Config, Conn, Handler, Message, ReactorBuilder,
    protocol::{AnyProtocol, Native, Protocol, Tcpstream},
};
use peers::serve::{Idle, announce};

/// longhaul.
#[derive(Parser)]
struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The wire format
    #[arg(long, value_enum, default_value_t = Format::Tcpstream)]
    protocol: Format,
    /// Send every message to all other connections instead of back
    #[arg(long)]
    broadcast: bool,
    /// Look for work for so long before sleeping
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    busy_poll: u64,
    #[command(flatten)]
    idle: Idle,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Tcpstream,
    Native,
    /// `tcpstream`, chosen at run time
    Any,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match (args.protocol, args.broadcast) {
        (Format::Tcpstream, false) => serve(&args, Tcpstream, Echo(Tcpstream)),
        (Format::Tcpstream, true) => serve(&args, Tcpstream, Broadcast(Tcpstream)),
        (Format::Native, false) => serve(&args, Native, Echo(Native)),
        (Format::Native, true) => serve(&args, Native, Broadcast(Native)),
        (Format::Any, false) => {
            serve(&args, AnyProtocol::from(Tcpstream), Echo(AnyProtocol::from(Tcpstream)))
        }
        (Format::Any, true) => {
            serve(&args, AnyProtocol::from(Tcpstream), Broadcast(AnyProtocol::from(Tcpstream)))
        }
    }
}

fn serve<H: Handler>(args: &Args, protocol: H::Protocol, handler: H) -> anyhow::Result<()> {
    let mut config = Config::new();
    if let Some(timeout) = args.idle.timeout() {
        config = config.idle_timeout(Some(timeout).filter(|timeout| !timeout.is_zero()));
    }
    let busy_poll = Duration::from_micros(args.busy_poll);
    let builder = ReactorBuilder::new(protocol).config(config).busy_poll(busy_poll);
    let mut reactor = builder.build(handler)?;
    let (_, addr) = reactor.listen(args.listen)?;
    announce(addr)?;
    reactor.run()?;
    Ok(())
}

struct Echo<P>(P);

impl<P: Protocol> Handler for Echo<P> {
    type Protocol = P;

    fn on_message(&mut self, conn: &mut Conn<'_, P>, msg: Message<'_, P>) {
        let _ = conn.reply(&msg, &msg);
    }
}

struct Broadcast<P>(P);

impl<P: Protocol> Handler for Broadcast<P> {
    type Protocol = P;

    fn on_message(&mut self, conn: &mut Conn<'_, P>, msg: Message<'_, P>) {
        let sender = conn.id();
        conn.cx().broadcast(Audience::AllBut(sender), &msg);
    }
}
