//! Calls a server once, or many times to see how fast it answers.

#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use longhaul::{Bytes, CallError, Client, ClientBuilder, Config, Reconnect, protocol::AnyProtocol};

use crate::args::{at_least_one, seconds};

/// Calls a server, and prints its reply.
#[derive(clap::Args)]
#[command(after_help = "\
The reply goes to standard output; with --repeat it is the rate, and how long calls took.

Exit status: 0; or 1 if a call fails, with one line that tells why and whether the request may have
left; or 2 for unusable arguments.

Examples:
  longhaul call 127.0.0.1:7001 hello
  longhaul call 127.0.0.1:7001 --repeat 1000000 --threads 64 hello")]
pub(crate) struct Args {
    /// The server to call
    addr: String,
    /// What to ask
    text: String,
    /// The wire format
    #[arg(long, value_name = "native|tcpstream|qtk3|qtk2", default_value_t)]
    protocol: AnyProtocol,
    /// How long to wait for each reply
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = seconds)]
    timeout: Duration,
    /// Call so many times, and print how fast that went
    #[arg(long, value_name = "N")]
    repeat: Option<u64>,
    /// With --repeat: call from so many threads
    #[arg(long, value_name = "T", default_value = "1", value_parser = at_least_one)]
    threads: usize,
    /// With --repeat: spread the threads over so many connections
    #[arg(long, value_name = "C", default_value = "1", value_parser = at_least_one)]
    connections: usize,
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

fn run(args: &Args) -> anyhow::Result<()> {
    let clients = connect(args).context("can't connect")?;
    match args.repeat {
        None => println!("{}", String::from_utf8_lossy(&call(&clients[0], args)?)),
        Some(calls) => measure(args, &clients, calls)?,
    }
    for client in &clients {
        client.stop()?;
    }
    Ok(())
}

/// All connections are of one reactor, the first client's.
fn connect(args: &Args) -> Result<Vec<Client<AnyProtocol>>, longhaul::Error> {
    let config = Config::new().reconnect(Reconnect::never());
    let first = ClientBuilder::new(args.protocol).config(config.clone()).connect(&*args.addr)?;
    let handle = first.handle();
    let more = (1..args.connections)
        .map(|_| Client::connect_on_with(&handle, &*args.addr, &args.protocol, &config));
    std::iter::once(Ok(first)).chain(more).collect()
}

fn call(client: &Client<AnyProtocol>, args: &Args) -> anyhow::Result<Bytes> {
    client.call(&args.text, args.timeout).map_err(|error| anyhow!(with_fate(&error)))
}

/// The error, and whether it is safe to call again.
fn with_fate(error: &CallError) -> String {
    let (text, fate) = (error.to_string(), format!("({})", error.fate()));
    if text.ends_with(&fate) { text } else { format!("{text} {fate}") }
}

/// Makes `calls` calls from all threads together.
fn measure(args: &Args, clients: &[Client<AnyProtocol>], calls: u64) -> anyhow::Result<()> {
    // Drawn on standard error, and not at all where that is no terminal.
    let progress = ProgressBar::new(calls).with_style(ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} calls, {per_sec}, {eta} left",
    )?);
    let taken = AtomicU64::new(0);
    let began = now();
    let latencies = thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads)
            .map(|number| &clients[number % clients.len()])
            .map(|client| scope.spawn(|| call_in_turn(args, client, calls, &taken, &progress)))
            .collect();
        let mut all = Histogram::new(3)?;
        for thread in threads {
            all += thread.join().expect("a thread that calls does not panic")?;
        }
        anyhow::Ok(all)
    });
    let took = now() - began;
    progress.finish_and_clear();
    report(&latencies?, took);
    Ok(())
}

/// Takes one call after the other while there are any; how many microseconds each took.
fn call_in_turn(
    args: &Args,
    client: &Client<AnyProtocol>,
    calls: u64,
    taken: &AtomicU64,
    progress: &ProgressBar,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = Histogram::new(3)?;
    while taken.fetch_add(1, Ordering::Relaxed) < calls {
        let began = now();
        if let Err(error) = call(client, args) {
            // One failure is enough: the others find no more to do.
            taken.store(calls, Ordering::Relaxed);
            return Err(error);
        }
        latencies.record(u64::try_from((now() - began).as_micros())?)?;
        progress.inc(1);
    }
    Ok(latencies)
}

fn report(latencies: &Histogram<u64>, took: Duration) {
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
    let rate = latencies.len() as f64 / took.as_secs_f64();
    println!("{} calls in {took:.2?}: {rate:.0} calls/s", latencies.len());
    for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
        println!("{name:>6} {:>9} µs", latencies.value_at_quantile(quantile));
    }
    println!("{:>6} {:>9} µs", "max", latencies.max());
}

#[expect(clippy::disallowed_methods, reason = "this measures the crate from outside")]
fn now() -> Instant {
    Instant::now()
}
