//! Loads an echo server: many connections, each with some messages in flight, and every echo compared.
//!
//! One thread and one reactor of this crate do it. A connection sends its next message when an echo
//! has come, so a slow server is asked less: the latencies are those of this many messages in flight,
//! not of a fixed rate. One that is wrong or missing, and a connection that is lost, end the run.

mod generator;
mod plot;
mod report;

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use generator::{Generator, Plan};
use indicatif::HumanBytes;
use longhaul::{
    Config, ReactorBuilder, Reconnect, Target,
    protocol::{AnyProtocol, Correlation, Protocol},
};
use report::Report;

use crate::args::{at_least_one, seconds};

/// What may be in flight in all; it has to be held in memory.
const MAX_IN_FLIGHT: usize = 4 << 30;
/// What a message takes beside its body, with a good margin.
const OVERHEAD: usize = 256;

/// Loads an echo server, compares every echo, and prints rates and latencies.
#[derive(clap::Args)]
#[command(after_help = "\
Each connection has DEPTH messages in flight and sends the next one when an echo has come. Bytes are
those of bodies, counted once for there and back. A latency is from handing a message over to be sent
until its echo is there. Ctrl-C ends early, and prints what there is.

With --json one object goes to standard output:
  protocol, connections, depth, size    as asked for
  seconds                               how long was measured, without the warm-up
  messages, bytes                       what came back in that time
  messages_per_second                   messages / seconds
  errors                                messages whose echo was wrong or never came
  latency_us                            in microseconds: min, p50, p90, p99, p99_9, p99_99, max, mean;
                                        null if no message came back

Exit status: 0, or 1 if it can't connect, a connection is lost or an echo is wrong or missing, or 2 for
unusable arguments.

Example:
  longhaul load 127.0.0.1:7001 --connections 1000 --size 1024 --duration 30 --plot latency.svg")]
pub(crate) struct Args {
    /// The server: ip:port or host:port
    addr: Target,
    /// The wire format
    #[arg(long, value_name = "native|tcpstream|qtk3|qtk2|length", default_value_t)]
    protocol: AnyProtocol,
    /// How many connections
    #[arg(long, value_name = "N", default_value = "64", value_parser = at_least_one)]
    connections: usize,
    /// Messages in flight on each connection
    #[arg(long, value_name = "D", default_value = "1", value_parser = at_least_one)]
    depth: usize,
    /// The body of each message, in bytes
    #[arg(long, value_name = "BYTES", default_value = "64")]
    size: usize,
    /// How long to measure; fractions are fine
    #[arg(long, value_name = "SECS", default_value = "10", value_parser = some_seconds)]
    duration: Duration,
    /// How long to load before that; fractions are fine
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = seconds)]
    warm_up: Duration,
    /// How long an echo may take until it counts as missing; fractions are fine
    #[arg(long, value_name = "SECS", default_value = "10", value_parser = some_seconds)]
    timeout: Duration,
    /// Send calls, and compare each one's own reply; else messages, of which the echoes have to come
    /// in order
    #[arg(long)]
    calls: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Draw the latencies by percentile to this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

fn some_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

pub(crate) fn main(args: &Args) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    /// Tells what can't work together, or can't be written.
    pub(crate) fn check(&self) -> Result<(), String> {
        let protocol = self.protocol;
        if self.calls && protocol.correlation() == Correlation::None {
            return Err(format!("{protocol} has no calls"));
        }
        let largest = protocol.largest_body();
        if self.size > largest {
            return Err(format!("{} is over the largest body of {protocol}, {largest}", self.size));
        }
        let in_flight = self.in_flight().saturating_mul(self.connections);
        if in_flight > MAX_IN_FLIGHT {
            return Err(format!(
                "{} would be in flight at a time, more than {}",
                HumanBytes(in_flight as u64),
                HumanBytes(MAX_IN_FLIGHT as u64)
            ));
        }
        if let Some(path) = &self.plot
            && let Err(error) = OpenOptions::new().append(true).create(true).open(path)
        {
            return Err(format!("can't write {}: {error}", path.display()));
        }
        Ok(())
    }

    /// Bytes in flight on one connection.
    const fn in_flight(&self) -> usize {
        self.size.saturating_add(OVERHEAD).saturating_mul(self.depth)
    }

    /// Settings that let all this be in flight.
    fn config(&self) -> Config {
        let in_flight = self.in_flight();
        Config::new()
            .reconnect(Reconnect::never())
            .max_body(self.size.max(8 << 20))
            .max_calls(self.depth)
            .watermarks(in_flight, in_flight.saturating_mul(2))
            .hard_limit(in_flight.saturating_mul(4).max(16 << 20))
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let plan = Plan {
        target: args.addr.clone(),
        connections: args.connections,
        depth: args.depth,
        size: args.size,
        warm_up: args.warm_up,
        duration: args.duration,
        timeout: args.timeout,
        is_calling: args.calls,
    };
    let mut reactor = ReactorBuilder::new(args.protocol)
        .config(args.config())
        .stop_timeout(Duration::ZERO)
        .build(Generator::new(plan)?)?;
    let handle = reactor.handle();
    ctrlc::set_handler(move || {
        let _ = handle.run_with(Generator::interrupt); // an error: it has ended already
    })?;
    reactor.run()?;

    let outcome = reactor.handler().take_outcome();
    let is_empty = outcome.latencies.is_empty() && outcome.failure.is_some();
    if !outcome.took.is_zero() && !is_empty {
        let report = Report::new(args, &outcome);
        let text = if args.json { report.json()? } else { report.text() };
        writeln!(io::stdout(), "{text}")?;
        if let Some(path) = &args.plot {
            plot::draw(path, &outcome.latencies, &report.title())
                .with_context(|| format!("can't draw {}", path.display()))?;
        }
    }
    match outcome.failure {
        Some(failure) => bail!(failure),
        None => Ok(()),
    }
}
