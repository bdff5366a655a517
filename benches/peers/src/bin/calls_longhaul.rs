//! Threads that call over one longhaul client and block.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use longhaul::{
    ClientBuilder, ReactorBuilder,
    protocol::{Native, Protocol, Tcpstream},
};
use peers::calls::Calls;

/// longhaul's client.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    calls: Calls,
    /// The wire format
    #[arg(long, value_enum, default_value_t = Format::Tcpstream)]
    protocol: Format,
    /// Look for work for so long before sleeping
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    busy_poll: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Tcpstream,
    Native,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.protocol {
        Format::Tcpstream => call(&args, Tcpstream),
        Format::Native => call(&args, Native),
    }
}

fn call<P: Protocol>(args: &Args, protocol: P) -> anyhow::Result<()> {
    let busy_poll = Duration::from_micros(args.busy_poll);
    let reactor = ReactorBuilder::new(protocol.clone()).busy_poll(busy_poll);
    let client = ClientBuilder::new(protocol).reactor(reactor).connect(args.calls.connect)?;
    let summary = args.calls.drive(|body| Ok(client.call(body, Duration::from_secs(10))?))?;
    println!("{summary}");
    client.stop()?;
    Ok(())
}
