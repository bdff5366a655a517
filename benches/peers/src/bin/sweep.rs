//! How the server's processor time per message grows with size, depth and connections.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml --bin sweep -- --help
//! ```

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::ensure;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use peers::{
    chart::{self, Line},
    measure::{self, Settings},
    peer::{self, Peer},
    report::{self, Spread},
    system::{self, Cores},
    workload::{Kind, On},
};

/// Measures how the server's processor time per message grows. The programs must have been built,
/// as `compare` does.
#[derive(Parser)]
struct Args {
    /// How often each point is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each time
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Where to write tables and charts [default: docs/performance]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What grows, and what stays as it is.
struct Axis {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    points: &'static [usize],
    kind: fn(usize) -> Kind,
}

const AXES: [Axis; 3] = [
    Axis {
        name: "size",
        title: "4 connections, depth 4: CPU per message by size",
        unit: "bytes of body",
        points: &[16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576],
        kind: |size| echo(4, 4, size),
    },
    Axis {
        name: "depth",
        title: "16 connections, 64 B: CPU per message by depth",
        unit: "messages under way on each connection",
        points: &[1, 4, 16, 64, 256],
        kind: |depth| echo(16, depth, 64),
    },
    Axis {
        name: "connections",
        title: "depth 1, 64 B: CPU per message by connections",
        unit: "connections",
        points: &[1, 8, 64, 512, 4096, 10_000],
        kind: |connections| echo(connections, 1, 64),
    },
];

const PEERS: [&str; 3] = ["floor", "tokio_framed", "longhaul"];

const fn echo(connections: usize, depth: usize, size: usize) -> Kind {
    Kind::Echo { connections, depth, size, cores: On::TwoCores }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.rounds > 0 && args.seconds > 0.0, "nothing to measure");
    system::raise_descriptors(10_100)?;
    let window = Duration::from_secs_f64(args.seconds);
    let settings = Settings { warm_up: window / 4, window, cores: Cores::find()? };
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance");
    let out = args.out.unwrap_or(own);
    fs::create_dir_all(&out)?;
    let peers: Vec<Peer> =
        peer::all().into_iter().filter(|peer| PEERS.contains(&&*peer.name)).collect();

    let points: usize = AXES.iter().map(|axis| axis.points.len()).sum();
    let bar = ProgressBar::new((points * PEERS.len() * args.rounds) as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} (about {eta} left) {msg}")?,
    );
    let mut text = format!(
        "# How the cost grows\n\nServer CPU per message in µs, medians of {} rounds of {} s, in turn.\n{}\n",
        args.rounds,
        args.seconds,
        report::machine(),
    );
    for axis in &AXES {
        let lines = measure(axis, &peers, args.rounds, settings, &bar)?;
        let file = format!("sweep-{}.svg", axis.name);
        chart::draw_lines(&out.join(&file), axis.title, axis.unit, &lines)?;
        write!(
            text,
            "\n## {}\n\n![{}]({file})\n\n{}",
            axis.title,
            axis.title,
            table(axis, &lines)
        )?;
        fs::write(out.join("sweeps.md"), &text)?;
    }
    bar.finish_and_clear();
    println!("{text}\nwritten to {}", out.display());
    Ok(())
}

/// Every point by every peer in turn, round by round.
fn measure(
    axis: &Axis,
    peers: &[Peer],
    rounds: usize,
    settings: Settings,
    bar: &ProgressBar,
) -> anyhow::Result<Vec<Line>> {
    let line = |peer: &Peer| Line {
        name: peer.name.clone(),
        points: Vec::new(),
        is_ours: peer.name == "longhaul",
    };
    let mut lines: Vec<Line> = peers.iter().map(line).collect();
    for &point in axis.points {
        let kind = (axis.kind)(point);
        let mut values = vec![Vec::new(); peers.len()];
        for round in 0..rounds {
            for turn in 0..peers.len() {
                let which = (round + turn) % peers.len();
                bar.set_message(format!("{} {point} {}", axis.name, peers[which].name));
                let cast = peers[which].cast(kind).expect("each of them echoes");
                values[which].push(measure::run(kind, &cast, settings)?[0]);
                bar.inc(1);
            }
        }
        for (line, values) in lines.iter_mut().zip(values) {
            let median = Spread::of(values).expect("there is a round").median;
            line.points.push((point as f64, median));
        }
    }
    Ok(lines)
}

fn table(axis: &Axis, lines: &[Line]) -> String {
    let mut text = format!("| {} |", axis.unit);
    let mut rule = "|---:|".to_owned();
    for line in lines {
        let _ = write!(text, " {} |", line.name);
        rule.push_str("---:|");
    }
    text = format!("{text}\n{rule}\n");
    for (row, point) in axis.points.iter().enumerate() {
        let _ = write!(text, "| {point} |");
        for line in lines {
            let _ = write!(text, " {} |", report::number(line.points[row].1));
        }
        text.push('\n');
    }
    text
}
