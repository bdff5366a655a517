//! How the smallest echo server builds: how large it is, of how many crates, for how much work.

use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::system;

/// What was built.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// Bytes of the stripped program.
    pub size: u64,
    /// Crates, its own package counted.
    pub crates: usize,
    /// Processor time of the whole build, in seconds.
    pub cpu: f64,
}

/// Builds a package of ours from nothing.
pub fn build(package: &str) -> anyhow::Result<Built> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(package);
    let manifest = folder.join("Cargo.toml");
    let target = env::temp_dir().join(format!("peers-build-{}", process::id()));
    fetch(&manifest)?;
    let before = system::children_cpu_time()?;
    let status = cargo("build", &manifest)
        .args(["--release", "--quiet", "--locked", "--offline", "--target-dir"])
        .arg(&target)
        .status()?;
    ensure!(status.success(), "{package} does not build");
    let cpu = system::children_cpu_time()?.saturating_sub(before).as_secs_f64();
    let program = fs::read_dir(target.join("release"))?
        .filter_map(Result::ok)
        .find(|entry| {
            entry.file_name().to_string_lossy().starts_with("minimal-")
                && entry.path().extension().is_none()
        })
        .context("nothing was built")?;
    let size = program.metadata()?.len();
    fs::remove_dir_all(&target)?;

    let tree = cargo("tree", &manifest)
        .args(["--locked", "--offline", "--prefix", "none", "--edges", "normal,build"])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(tree.status.success(), "{package} has no tree");
    let tree = String::from_utf8(tree.stdout)?;
    let crates: BTreeSet<_> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    Ok(Built { size, crates: crates.len(), cpu })
}

/// So that what is measured does not depend on what was downloaded before.
fn fetch(manifest: &Path) -> anyhow::Result<()> {
    let status = cargo("fetch", manifest).args(["--quiet", "--locked"]).status()?;
    ensure!(status.success(), "{} can't be fetched", manifest.display());
    Ok(())
}

fn cargo(what: &str, manifest: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(what).arg("--manifest-path").arg(manifest);
    cargo
}
