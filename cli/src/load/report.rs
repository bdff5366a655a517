//! What is printed: for people, or as JSON.

use std::fmt::Write;

use hdrhistogram::Histogram;
use indicatif::{HumanBytes, HumanCount};
use longhaul::protocol::Protocol;
use serde::Serialize;

use super::{Args, generator::Outcome};

/// What was measured. The fields are those of the JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    protocol: &'static str,
    connections: usize,
    depth: usize,
    size: usize,
    seconds: f64,
    messages: u64,
    bytes: u64,
    messages_per_second: f64,
    #[serde(skip)]
    bytes_per_second: f64,
    errors: u64,
    latency_us: Option<Latencies>,
    #[serde(skip)]
    is_calling: bool,
}

/// In microseconds.
#[derive(Debug, Serialize)]
struct Latencies {
    min: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    p99_99: f64,
    max: f64,
    mean: f64,
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
    pub(crate) fn new(args: &Args, outcome: &Outcome) -> Self {
        let messages = outcome.latencies.len();
        let bytes = messages * args.size as u64;
        let seconds = outcome.took.as_secs_f64();
        Self {
            protocol: args.protocol.name(),
            connections: args.connections,
            depth: args.depth,
            size: args.size,
            seconds,
            messages,
            bytes,
            messages_per_second: messages as f64 / seconds,
            bytes_per_second: bytes as f64 / seconds,
            errors: outcome.errors,
            latency_us: (messages > 0).then(|| Latencies::of(&outcome.latencies)),
            is_calling: args.calls,
        }
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// What was done, in one line.
    pub(crate) fn title(&self) -> String {
        let what = if self.is_calling { "calls" } else { "messages" };
        let Self { protocol, connections, depth, size, .. } = self;
        format!("{protocol}, {connections} × {depth} {what} of {size} bytes in flight")
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are not negative, and are printed as whole numbers"
    )]
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{} for {:.2} s\n\
             messages {:>14}   {:>14}/s\n\
             bytes    {:>14}   {:>14}/s",
            self.title(),
            self.seconds,
            HumanCount(self.messages).to_string(),
            HumanCount(self.messages_per_second.round() as u64).to_string(),
            HumanBytes(self.bytes).to_string(),
            HumanBytes(self.bytes_per_second.round() as u64).to_string(),
        );
        if self.errors > 0 {
            let _ = write!(text, "\nerrors   {:>14}", HumanCount(self.errors).to_string());
        }
        if let Some(latencies) = &self.latency_us {
            text += "\nlatency";
            for (name, micros) in latencies.rows() {
                let _ = write!(text, "\n  {name:<6} {:>14}", with_unit(micros));
            }
        }
        text
    }
}

impl Latencies {
    #[expect(clippy::cast_precision_loss, reason = "53 bits of nanoseconds are 104 days")]
    fn of(nanos: &Histogram<u64>) -> Self {
        let at = |quantile| nanos.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            min: nanos.min() as f64 / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: nanos.max() as f64 / 1e3,
            mean: nanos.mean().round() / 1e3,
        }
    }

    const fn rows(&self) -> [(&'static str, f64); 8] {
        let Self { min, p50, p90, p99, p99_9, p99_99, max, mean } = *self;
        [
            ("min", min),
            ("mean", mean),
            ("p50", p50),
            ("p90", p90),
            ("p99", p99),
            ("p99.9", p99_9),
            ("p99.99", p99_99),
            ("max", max),
        ]
    }
}

/// A time in three digits, which is how exact it is, and the unit that suits it.
pub(crate) fn with_unit(micros: f64) -> String {
    // Beside each unit where the next one begins, as three digits round.
    for (unit, factor, end) in [("µs", 1.0, 999.5), ("ms", 1e-3, 999.5), ("s", 1e-6, f64::INFINITY)]
    {
        let value = micros * factor;
        if value < end {
            let decimals = match value {
                _ if value < 9.995 => 2,
                _ if value < 99.95 => 1,
                _ => 0,
            };
            return format!("{value:.decimals$} {unit}");
        }
    }
    unreachable!("the last unit has no end")
}
