//! How the peer's life is watched: arguments that several examples have.

use std::time::Duration;

use clap::Args;
use longhaul::Config;

use crate::seconds::seconds;

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
            config.heartbeat(interval);
        }
        if let Some(timeout) = self.idle_timeout {
            config.idle_timeout(timeout);
        }
        config
    }
}
