//! Measures longhaul beside its peers, and writes tables and charts.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml --bin compare -- --help
//! ```

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use peers::{
    chart::{self, Bar},
    measure::{self, Settings},
    peer::{self, Peer},
    report::{self, Row, Table},
    system::{self, Awake, Cores},
    workload::{BUILD, WORKLOADS, Workload},
};

/// Measures longhaul beside its peers.
#[derive(Parser)]
struct Args {
    /// How often each peer takes its turn
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long each turn is measured
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these workloads; may be repeated [default: all but `build`]
    #[arg(long, value_name = "NAME", value_parser = workload)]
    workload: Vec<Workload>,
    /// Only these peers, and those they are compared with; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    peer: Vec<String>,
    /// Also longhaul as it is elsewhere, whose programs are in this folder; may be repeated
    #[arg(long, value_name = "NAME=FOLDER", value_parser = beside)]
    beside: Vec<Peer>,
    /// Where to write tables and charts [default: docs/performance, if everything is measured]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// One short round: that everything works, no figures
    #[arg(long)]
    quick: bool,
    /// Keep the processors awake, by threads of the lowest priority
    #[arg(long)]
    awake: bool,
}

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.rounds, args.seconds) = (1, 0.2);
    }
    ensure!(args.rounds > 0 && args.seconds > 0.0, "nothing to measure");
    system::raise_descriptors(10_100)?;
    build()?;

    let plan = plan(&args)?;
    let turns = plan.iter().map(|table| table.rows.len()).sum::<usize>() * args.rounds;
    let bar = ProgressBar::new(turns as u64).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} {elapsed} (about {eta} left) {msg}",
    )?);
    let cores = Cores::find()?;
    let settings = Settings {
        warm_up: Duration::from_secs_f64((args.seconds / 4.0).min(0.5)),
        window: Duration::from_secs_f64(args.seconds),
        cores,
    };
    let _awake = args.awake.then(|| Awake::new(cores));
    let out = out(&args);
    let mut tables: Vec<Table> = Vec::new();
    for mut table in plan {
        fill(&mut table, &args, settings, &bar);
        bar.suspend(|| {
            println!("{}: {}\n\n{}", table.workload.name, table.workload.title, table.markdown());
        });
        tables.push(table);
        // After each workload: whoever interrupts a long run keeps what there is.
        if let Some(out) = &out {
            write(&tables, &args, out)?;
        }
    }
    bar.finish_and_clear();
    if let Some(out) = &out {
        println!("written to {}", out.display());
    }
    let failed = tables.iter().flat_map(|table| &table.rows).flat_map(|row| &row.rounds);
    let failed = failed.filter(|round| round.is_none()).count();
    ensure!(failed == 0, "{failed} of {turns} turns failed");
    Ok(())
}

/// Builds all programs; cargo has built only this one.
fn build() -> anyhow::Result<()> {
    let folder = measure::own_folder()?;
    ensure!(folder.ends_with("release"), "a debug build measures nothing: run it with --release");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--bins", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir") // where they are looked for, however this one was started
        .arg(folder.parent().context("a program is in a folder")?)
        .status()
        .context("can't run cargo")?;
    ensure!(status.success(), "the peers do not build");
    Ok(())
}

/// The tables to fill.
fn plan(args: &Args) -> anyhow::Result<Vec<Table>> {
    let known = peer::all();
    for name in &args.peer {
        ensure!(known.iter().any(|peer| peer.name == *name), "no peer is called {name}");
    }
    let workloads = match &args.workload[..] {
        [] => &WORKLOADS,
        chosen => chosen,
    };
    let tables = workloads.iter().map(|workload| {
        let base = peer::baseline(workload.kind);
        let is_chosen = |peer: &Peer| {
            args.peer.is_empty() || peer.name == base || args.peer.contains(&peer.name)
        };
        let peers = known.iter().filter(|peer| is_chosen(peer)).chain(&args.beside);
        let peers = peers.filter(|peer| peer.cast(workload.kind).is_some()).cloned();
        let rows = peers.map(|peer| Row { peer, rounds: Vec::new() }).collect();
        Table { workload: *workload, rows }
    });
    Ok(tables.collect())
}

/// Round by round, every peer in turn, each round beginning with another.
fn fill(table: &mut Table, args: &Args, settings: Settings, bar: &ProgressBar) {
    let kind = table.workload.kind;
    let count = table.rows.len();
    for round in 0..args.rounds {
        for turn in 0..count {
            let row = &mut table.rows[(round + turn) % count];
            bar.set_message(format!("{} {}", table.workload.name, row.peer.name));
            let cast = row.peer.cast(kind).expect("only those that take part have a row");
            let values = measure::run(kind, &cast, settings);
            if let Err(error) = &values {
                bar.suspend(|| {
                    eprintln!("{} {}: {error:#}", table.workload.name, row.peer.name);
                });
            }
            row.rounds.push(values.ok());
            bar.inc(1);
        }
    }
}

fn out(args: &Args) -> Option<PathBuf> {
    let is_whole = args.workload.is_empty() && args.peer.is_empty() && !args.quick;
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance");
    args.out.clone().or_else(|| is_whole.then_some(own))
}

fn write(tables: &[Table], args: &Args, out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out)?;
    let mut charts = Vec::new();
    for table in tables {
        let name = format!("peers-{}.svg", table.workload.name);
        let column = measure::columns(table.workload.kind)[0].title;
        let bars: Vec<Bar> = table
            .rows
            .iter()
            .filter_map(|row| {
                let is_ours = row.peer.name.starts_with("longhaul");
                Some(Bar { name: row.peer.name.clone(), spread: table.spread(row, 0)?, is_ours })
            })
            .collect();
        chart::draw(&out.join(&name), table.workload.title, column, &bars)?;
        charts.push(Some(name));
    }
    let how = format!(
        "Server and load on one core each, {} rounds of {} s for each peer, in turn.{}",
        args.rounds,
        args.seconds,
        if args.awake { " Both cores were kept awake." } else { "" },
    );
    report::write(out, &report::markdown(tables, &how, &charts))
}

fn workload(name: &str) -> Result<Workload, String> {
    let all = WORKLOADS.iter().chain([&BUILD]);
    all.clone().find(|workload| workload.name == name).copied().ok_or_else(|| {
        let names: Vec<_> = all.map(|workload| workload.name).collect();
        format!("there are {}", names.join(", "))
    })
}

fn beside(text: &str) -> Result<Peer, String> {
    let (name, folder) = text.split_once('=').ok_or("NAME=FOLDER")?;
    Peer::beside(name, folder.into()).ok_or_else(|| "there is no longhaul".into())
}
