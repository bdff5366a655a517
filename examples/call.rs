//! Calls a server, once or many times, and says how long that took.
//!
//! ```sh
//! cargo run --release --example call -- 127.0.0.1:7001 hello
//! cargo run --release --example call -- 127.0.0.1:7001 hello --repeat 100000 --threads 8
//! ```
//!
//! Once it prints the reply. Many times it shows a progress bar, then calls per second and the
//! percentiles of their latency. A call that failed ends it with one line and a status of 1.
#![allow(clippy::print_stdout, reason = "a program that talks on its terminal")]

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use longhaul::{Client, ClientBuilder, protocol::Any};

/// Calls a server, once or many times, and says how long that took.
#[derive(Parser)]
struct Args {
    /// The server to call
    addr: String,
    /// What to ask
    text: String,
    /// The wire format
    #[arg(long, value_name = "native|tcpstream|qtk3|qtk2|length", default_value_t)]
    protocol: Any,
    /// How long a reply may take, in seconds; fractions are fine
    #[arg(long, value_name = "SECS", default_value_t = 5.0)]
    timeout: f64,
    /// How many calls, in all
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// How many threads call at the same time
    #[arg(long, value_name = "T", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: u64,
    /// How many connections the threads share
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    connections: u64,
}

fn main() -> ExitCode {
    env_logger::init();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let timeout = Duration::try_from_secs_f64(args.timeout).context("--timeout")?;
    let connect = |_| {
        ClientBuilder::new(args.protocol)
            .connect(args.addr.as_str())
            .with_context(|| format!("can't connect to {}", args.addr))
    };
    let clients = (0..args.connections).map(connect).collect::<Result<Vec<Client<Any>>>>()?;
    if args.repeat == 1 {
        let reply = clients[0].call(&args.text, timeout)?;
        println!("{}", String::from_utf8_lossy(&reply));
        return Ok(());
    }
    let bar = ProgressBar::new(args.repeat).with_style(ProgressStyle::with_template(
        "{bar:40} {pos} of {len} calls, {per_sec}, {eta} left",
    )?);
    let left = AtomicU64::new(args.repeat);
    let began = now();
    let latencies = thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads)
            .map(|thread| {
                let client = &clients[usize::try_from(thread % args.connections).unwrap_or(0)];
                let (left, bar) = (&left, &bar);
                scope.spawn(move || repeat(client, &args.text, timeout, left, bar))
            })
            .collect();
        let mut all = Histogram::<u64>::new(3)?;
        for thread in threads {
            all.add(thread.join().map_err(|_| anyhow!("a thread panicked"))??)?;
        }
        anyhow::Ok(all)
    })?;
    let took = began.elapsed();
    bar.finish_and_clear();
    report(&latencies, took);
    clients.iter().try_for_each(|client| client.stop().map_err(Into::into))
}

/// One thread's calls: as many as are left.
fn repeat(
    client: &Client<Any>,
    text: &str,
    timeout: Duration,
    left: &AtomicU64,
    bar: &ProgressBar,
) -> Result<Histogram<u64>> {
    let mut latencies = Histogram::new(3)?;
    while left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok()
    {
        let began = now();
        client.call(text, timeout)?;
        latencies.record(u64::try_from(began.elapsed().as_nanos())?)?;
        bar.inc(1);
    }
    Ok(latencies)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn report(latencies: &Histogram<u64>, took: Duration) {
    let calls = latencies.len();
    println!("{calls} calls in {took:.2?}: {:.0} a second", calls as f64 / took.as_secs_f64());
    for (name, quantile) in
        [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)]
    {
        let latency = Duration::from_nanos(latencies.value_at_quantile(quantile));
        println!("{name:>6} {latency:.1?}");
    }
}

#[expect(clippy::disallowed_methods, reason = "this program measures")]
fn now() -> Instant {
    Instant::now()
}
