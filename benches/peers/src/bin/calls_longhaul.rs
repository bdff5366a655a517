//! Threads that call over one longhaul client and block.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use longhaul::{
    ClientBuilder,
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
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Tcpstream,
    Native,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.protocol {
        Format::Tcpstream => call(&args.calls, Tcpstream),
        Format::Native => call(&args.calls, Native),
    }
}

fn call<P: Protocol>(args: &Calls, protocol: P) -> anyhow::Result<()> {
    let client = ClientBuilder::new(protocol).connect(args.connect)?;
    let summary = args.drive(|body| Ok(client.call(body, Duration::from_secs(10))?))?;
    println!("{summary}");
    client.stop()?;
    Ok(())
}
