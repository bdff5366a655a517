//! What was measured, as tables.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    measure,
    peer::{self, Peer},
    workload::Workload,
};

/// All rounds of a workload.
#[derive(Debug)]
pub struct Table {
    pub workload: Workload,
    pub rows: Vec<Row>,
}

/// All rounds of a peer; a round that failed has no values.
#[derive(Debug)]
pub struct Row {
    pub peer: Peer,
    pub rounds: Vec<Option<Vec<f64>>>,
}

/// The middle and the ends of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { min, median, max })
    }
}

impl Table {
    /// A value of a peer, over the rounds.
    pub fn spread(&self, row: &Row, column: usize) -> Option<Spread> {
        Spread::of(row.rounds.iter().flatten().map(|values| values[column]).collect())
    }

    /// A value of a peer, divided by that of the baseline in the same round, over the rounds.
    pub fn ratio(&self, row: &Row, column: usize) -> Option<Spread> {
        let name = peer::baseline(self.workload.kind);
        let base = self.rows.iter().find(|row| row.peer.name == name)?;
        let pairs = row.rounds.iter().zip(&base.rounds);
        let ratios = pairs.filter_map(|(values, base)| {
            let (value, base) = (values.as_ref()?[column], base.as_ref()?[column]);
            (base > 0.0).then_some(value / base)
        });
        Spread::of(ratios.collect())
    }

    /// The table, for people and for Markdown.
    pub fn markdown(&self) -> String {
        let columns = measure::columns(self.workload.kind);
        let mut head = vec!["peer".to_owned()];
        let base = peer::baseline(self.workload.kind);
        for column in columns {
            head.push(column.title.into());
            if column.is_compared {
                head.push(format!("× {base} (min–max)"));
            }
        }
        let mut lines = vec![head];
        for row in &self.rows {
            let mut line = vec![row.peer.name.clone()];
            for (index, column) in columns.iter().enumerate() {
                let spread = self.spread(row, index);
                line.push(spread.map_or("failed".into(), |spread| number(spread.median)));
                if column.is_compared {
                    line.push(self.ratio(row, index).map_or("–".into(), |ratio| {
                        let Spread { min, median, max } = ratio;
                        format!("{median:.2} ({min:.2}–{max:.2})")
                    }));
                }
            }
            lines.push(line);
        }
        aligned(&lines)
    }
}

/// The whole report.
pub fn markdown(tables: &[Table], how: &str, charts: &[Option<String>]) -> String {
    let mut text = String::from("# Beside others\n\n");
    let _ = writeln!(text, "{how}\n\n{}", machine());
    text.push_str(
        "Each cell is the median of the rounds. A ratio is taken within a round, to the same\n",
    );
    text.push_str(
        "value of the baseline, and then its median, smallest and largest are shown.\n\n",
    );
    let mut peers: Vec<&Peer> = Vec::new();
    for row in tables.iter().flat_map(|table| &table.rows) {
        if !peers.iter().any(|peer| peer.name == row.peer.name) {
            peers.push(&row.peer);
        }
    }
    let mut lines = vec![vec!["peer".to_owned(), "what it is".to_owned()]];
    lines.extend(peers.iter().map(|peer| vec![peer.name.clone(), peer.what.clone()]));
    text.push_str(&aligned(&lines));
    for (table, chart) in tables.iter().zip(charts) {
        let Workload { name, title, .. } = table.workload;
        let _ = write!(text, "\n## {name}: {title}\n\n{}", table.markdown());
        if let Some(chart) = chart {
            let _ = writeln!(text, "\n![{title}]({chart})");
        }
    }
    text
}

/// What it was measured on, and with what.
pub fn machine() -> String {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = file("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let said = |program: &str, args: &[&str]| {
        let folder = env!("CARGO_MANIFEST_DIR");
        let output = Command::new(program).args(args).current_dir(folder).output().ok();
        let output = output.filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // What is measured writes there itself.
    let rest = ["status", "--porcelain", "--", ":/", ":(top,exclude)docs/performance"];
    let is_dirty = said("git", &rest).is_some_and(|changes| !changes.is_empty());
    let commit = said("git", &["describe", "--always"]).unwrap_or_default();
    let commit = if is_dirty { format!("{commit}-dirty") } else { commit };
    let lines = [
        vec![String::new(), String::new()],
        vec!["date".into(), today()],
        vec!["processor".into(), format!("{}, {cores} cores", model.map_or("?", |(_, name)| name))],
        vec!["system".into(), format!("Linux {}", file("/proc/sys/kernel/osrelease").trim())],
        vec!["compiler".into(), said("rustc", &["--version"]).unwrap_or_default()],
        vec!["longhaul".into(), format!("{} ({commit})", version("longhaul"))],
        vec![
            "others".into(),
            ["mio", "tokio", "tokio-util", "bytes", "message-io"]
                .map(|name| format!("{name} {}", version(name)))
                .join(", "),
        ],
    ];
    aligned(&lines)
}

/// The version of a crate that is built in; of several the newest, for message-io has an old mio.
fn version(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let package = lock
        .rsplit("[[package]]")
        .find(|text| text.lines().any(|line| line == format!("name = \"{name}\"")));
    let version = package
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("version = ")))
        .unwrap_or("?");
    version.trim_matches('"').to_owned()
}

/// The date, in UTC.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Years that begin in March have their leap day at the end.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{}-{month:02}-{day:02}", era * 400 + year + later)
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 100.0 || value.fract() == 0.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let Some((sign, digits)) = (decimals == 0).then(|| text.split_at(usize::from(value < 0.0)))
    else {
        return text;
    };
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{sign}{}", groups.join(" "))
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0).max(3))
        .collect();
    let is_text = |at| at == 0 || columns == 2;
    let mut text = String::new();
    for (row, line) in lines.iter().enumerate() {
        for (at, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let _ = if is_text(at) {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if row == 0 {
            for (at, &width) in widths.iter().enumerate() {
                let end = if is_text(at) { '-' } else { ':' };
                let _ = write!(text, "|{:-<width$}-{end}", "");
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Writes the report.
pub fn write(folder: &Path, text: &str) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    Ok(fs::write(folder.join("peers.md"), text)?)
}
