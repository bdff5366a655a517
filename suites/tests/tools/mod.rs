//! Runs the tests of a file that needs a tool of the system: `harness = false` in Cargo.toml, as the
//! test harness of the standard library cannot leave a test out at run time.
//!
//! Where the tool is missing each test is reported as ignored, by its name; with
//! `LONGHAUL_REQUIRE_TOOLS=1` it fails.

#![allow(dead_code, reason = "each test file uses a part")]

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

/// Runs the tests, as the arguments of the process say. `missing` tells what is missing, if anything
/// is.
pub(crate) fn run(missing: impl FnOnce() -> Option<String>, tests: &[(&str, fn())]) -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = if arguments.list { None } else { missing() };
    let is_required = std::env::var("LONGHAUL_REQUIRE_TOOLS").is_ok_and(|text| text == "1");
    let trials = tests.iter().map(|&(name, test)| match missing.clone() {
        None => Trial::test(name, move || {
            test();
            Ok(())
        }),
        Some(what) => Trial::test(name, {
            let what = what.clone();
            move || Err(what.into())
        })
        .with_kind(what)
        .with_ignored_flag(!is_required),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Says that a command is missing, if it is.
pub(crate) fn missing_command(name: &str, package: &str) -> Option<String> {
    let found = Command::new(name).arg("--version").output();
    match found {
        Ok(output) if output.status.success() => None,
        _ => Some(format!("needs {name}: apt-get install {package}")),
    }
}
