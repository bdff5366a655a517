//! Arguments that several commands have.

use std::time::Duration;

use clap::Args;
use longhaul::Config;

/// A time in seconds, perhaps with a fraction.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// On a command line 0 stands for never.
fn unless_zero(time: Duration) -> Option<Duration> {
    Some(time).filter(|time| !time.is_zero())
}

/// A number that is not 0.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("not a number that fits".to_owned()),
    }
}

/// How the peer's life is watched.
#[derive(Args, Debug)]
pub(crate) struct Liveness {
    /// Ping a silent peer after this long; fractions are fine, 0 is off [default: the protocol's own]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    heartbeat: Option<Duration>,
    /// Close a connection that was silent for this long; fractions are fine, 0 is off [default: the
    /// protocol's own]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    idle_timeout: Option<Duration>,
}

impl Liveness {
    /// The default settings, but for what was given.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        if let Some(interval) = self.heartbeat {
            config = config.heartbeat(unless_zero(interval));
        }
        if let Some(timeout) = self.idle_timeout {
            config = config.idle_timeout(unless_zero(timeout));
        }
        config
    }
}
