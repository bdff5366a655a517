//! TCP's own keepalive.

use std::time::Duration;

/// The longest time that the system can be told.
const LONGEST: Duration = Duration::from_secs(32_767);

/// TCP's own keepalive: when the system probes a silent connection, and when it gives the peer up.
///
/// The default: after 60 s of silence a probe each 10 s, 6 of them, so that a peer that is gone is noticed
/// after 2 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// How long nothing was received before the first probe: 1 s to 32 767 s, counted in whole seconds.
    pub idle: Duration,
    /// The time between two probes, and after the last one: 1 s to 32 767 s, counted in whole seconds.
    pub interval: Duration,
    /// How many probes without an answer end the connection: 1 to 127. Windows has a number of its own.
    pub probes: u32,
}

impl Keepalive {
    /// How long a peer that is gone may go unnoticed.
    pub(super) const fn time_to_give_up(self) -> Duration {
        self.idle.saturating_add(self.interval.saturating_mul(self.probes))
    }

    /// Why it can't be set. The limits are those of Linux; others take as much.
    pub(super) fn problem(self) -> Option<&'static str> {
        let times = Duration::from_secs(1)..=LONGEST;
        if !times.contains(&self.idle) || !times.contains(&self.interval) {
            Some("times must be 1 s to 32767 s; None switches it off")
        } else if !(1..=127).contains(&self.probes) {
            Some("must be 1 to 127 probes; None switches it off")
        } else {
            None
        }
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_mins(1), interval: Duration::from_secs(10), probes: 6 }
    }
}
