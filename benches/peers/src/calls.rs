//! Threads that call and block, and what their calls take.

use std::{
    fmt,
    net::SocketAddr,
    process,
    str::FromStr,
    sync::atomic::{AtomicU8, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use hdrhistogram::Histogram;

use crate::{load::histogram, system};

/// The arguments of a client.
#[derive(Args, Clone, Copy, Debug)]
pub struct Calls {
    /// The server
    #[arg(long, value_name = "ADDR")]
    pub connect: SocketAddr,
    /// How many threads call
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Bytes of body
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// How long to call before anything counts
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    pub warm_up: f64,
    /// How long to count
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub seconds: f64,
}

/// What a client prints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub calls: u64,
    pub elapsed: Duration,
    pub cpu: Duration,
    /// In nanoseconds: the median, the 99th and the 99.9th percentile.
    pub latency: [u64; 3],
}

const WARM_UP: u8 = 0;
const COUNTED: u8 = 1;
const OVER: u8 = 2;

impl Calls {
    /// Calls from all threads until the time is over. `call` answers with the reply.
    pub fn drive<R: AsRef<[u8]>>(
        &self,
        call: impl Fn(&[u8]) -> anyhow::Result<R> + Sync,
    ) -> anyhow::Result<Summary> {
        let phase = AtomicU8::new(WARM_UP);
        let body: Vec<u8> = (0..self.size).map(|at| at as u8).collect();
        let work = || -> anyhow::Result<Histogram<u64>> {
            let mut latency = histogram()?;
            loop {
                let begun = Instant::now();
                let reply = call(&body)?;
                let nanos = begun.elapsed().as_nanos() as u64;
                ensure!(reply.as_ref() == body, "a reply is not what was sent");
                match phase.load(Ordering::Relaxed) {
                    WARM_UP => {}
                    COUNTED => latency.saturating_record(nanos),
                    _ => return Ok(latency),
                }
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(work)).collect();
            thread::sleep(Duration::from_secs_f64(self.warm_up));
            phase.store(COUNTED, Ordering::Relaxed);
            let (begun, before) = (Instant::now(), system::cpu_time(process::id())?);
            thread::sleep(Duration::from_secs_f64(self.seconds));
            let (elapsed, after) = (begun.elapsed(), system::cpu_time(process::id())?);
            phase.store(OVER, Ordering::Relaxed);
            let mut latency = histogram()?;
            for thread in threads {
                latency.add(thread.join().expect("a caller does not panic")?)?;
            }
            Ok(Summary {
                calls: latency.len(),
                elapsed,
                cpu: after.saturating_sub(before),
                latency: [0.5, 0.99, 0.999].map(|at| latency.value_at_quantile(at)),
            })
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p999] = self.latency;
        let (elapsed, cpu) = (self.elapsed.as_nanos(), self.cpu.as_nanos());
        write!(f, "{} {elapsed} {cpu} {p50} {p99} {p999}", self.calls)
    }
}

impl FromStr for Summary {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let numbers: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
        let numbers = numbers.with_context(|| format!("no summary: {line:?}"))?;
        let [calls, elapsed, cpu, p50, p99, p999] = numbers[..] else {
            anyhow::bail!("no summary: {line:?}");
        };
        let latency = [p50, p99, p999];
        let (elapsed, cpu) = (Duration::from_nanos(elapsed), Duration::from_nanos(cpu));
        Ok(Self { calls, elapsed, cpu, latency })
    }
}
