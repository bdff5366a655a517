//! The peer's hello, and its consequences: limits on what we send, and heartbeats.
//!
//! Where the format has no hello, the peer's limits are taken to be our own.

use std::time::Duration;

use super::heartbeat::Rules;
use crate::{
    config::Config,
    error::LimitBy,
    protocol::{DecodeError, HeartbeatBy, Hello, Kind, Protocol},
};

/// A heartbeat is never faster than this, whatever idle timeout the peer names.
const FASTEST: Duration = Duration::from_secs(1);

/// The peer's hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// The format has none.
    Never,
    /// It is the first frame.
    First,
    /// It came.
    NoMore,
}

/// The peer's limits and habits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Greeting {
    hello: Awaited,
    /// The protocol's answer. It is asked once: it is the application's and may panic, and deadlines are looked
    /// at where no connection is served that this could end.
    heartbeat_by: HeartbeatBy,
    /// The longest body that may be sent, and whether that is the peer's limit.
    max_body: u32,
    is_peers: bool,
    max_in_flight: u32,
    /// Whether the peer itself asks whether we are alive.
    is_probing: bool,
    idle_timeout_ms: u32,
}

impl Greeting {
    /// Before the peer has said anything.
    pub(crate) fn new(protocol: &impl Protocol, config: &Config) -> Self {
        let max_body = config.max_body.min(protocol.largest_body());
        Self {
            hello: if protocol.has_hello() { Awaited::First } else { Awaited::Never },
            heartbeat_by: protocol.heartbeat(),
            max_body: u32::try_from(max_body).unwrap_or(u32::MAX),
            is_peers: false,
            max_in_flight: u32::try_from(config.max_calls).unwrap_or(u32::MAX),
            is_probing: true,
            idle_timeout_ms: 0,
        }
    }

    /// The peer's hello came.
    pub(crate) const fn handle_hello(&mut self, hello: &Hello) {
        *self = Self {
            hello: Awaited::NoMore,
            heartbeat_by: self.heartbeat_by,
            max_body: if hello.max_body < self.max_body { hello.max_body } else { self.max_body },
            is_peers: hello.max_body < self.max_body,
            max_in_flight: hello.max_in_flight,
            is_probing: hello.heartbeat_ms > 0,
            idle_timeout_ms: hello.idle_timeout_ms,
        };
    }

    /// The side that sends heartbeats.
    pub(crate) const fn heartbeat_by(&self) -> HeartbeatBy {
        self.heartbeat_by
    }

    /// Whether the peer's hello came, or there is none to wait for.
    #[inline]
    pub(crate) const fn is_done(&self) -> bool {
        !matches!(self.hello, Awaited::First)
    }

    /// Checks that the first frame is a hello, and no other.
    #[inline]
    pub(crate) fn check(&self, kind: Kind) -> Result<(), DecodeError> {
        match self.hello {
            Awaited::First if kind != Kind::Hello => Err(DecodeError::HelloMissing { found: kind }),
            Awaited::NoMore if kind == Kind::Hello => Err(DecodeError::SecondHello),
            _ => Ok(()),
        }
    }

    /// The longest body that may be sent.
    #[inline]
    pub(crate) const fn max_body(&self) -> usize {
        self.max_body as usize
    }

    /// The longest body that may be sent, and whose limit that is.
    pub(crate) const fn body_limit(&self) -> (usize, LimitBy) {
        (self.max_body(), if self.is_peers { LimitBy::Peer } else { LimitBy::Us })
    }

    /// The most calls that may be in flight, where our own limit is `ours`.
    pub(crate) fn max_calls(&self, ours: usize) -> usize {
        ours.min(self.max_in_flight as usize)
    }

    /// How we look after the connection: by our own rules, and so that the peer does not give us up.
    ///
    /// - Two thirds of the peer's idle timeout are the most that a probe may be away from the last; else
    ///   it comes at a third.
    /// - A peer that does not probe by itself hears only what we send. What we receive from it says
    ///   nothing of that, so the probes come at each interval.
    pub(crate) fn rules(&self, own: Rules) -> Rules {
        if !self.is_done() {
            // The peer has its hello to send, within the time for that.
            return Rules { interval: None, ..own };
        }
        if self.idle_timeout_ms == 0 {
            return own;
        }
        let peers = Duration::from_millis(u64::from(self.idle_timeout_ms));
        let third = (peers / 3).max(FASTEST);
        let interval = match own.interval {
            Some(interval) if interval.saturating_mul(3) > peers * 2 => Some(third.min(interval)),
            None if !self.is_probing => Some(third),
            interval if !self.is_probing => interval.map(|interval| interval.min(third)),
            interval => interval,
        };
        Rules { interval, is_periodic: own.is_periodic || !self.is_probing, ..own }
    }
}

/// Our own rules, as the settings have them. `is_dialled`: this side made the connection.
pub(crate) fn own_rules(by: HeartbeatBy, is_dialled: bool, config: &Config) -> Rules {
    let pings = match by {
        HeartbeatBy::Nobody => false,
        HeartbeatBy::Dialler => is_dialled,
        HeartbeatBy::Both => true,
    };
    Rules {
        interval: config.heartbeat_for(by).filter(|_| pings),
        is_periodic: by == HeartbeatBy::Dialler,
        idle_timeout: config.idle_timeout_for(by),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Native;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn greeted(heartbeat_ms: u32, idle_timeout_ms: u32) -> Greeting {
        let mut greeting = Greeting::new(&Native, &Config::new());
        greeting.handle_hello(&Hello::new(1000, 10, heartbeat_ms, idle_timeout_ms));
        greeting
    }

    fn interval(heartbeat_ms: u32, idle_timeout_ms: u32) -> Option<Duration> {
        greeted(heartbeat_ms, idle_timeout_ms)
            .rules(own_rules(Native.heartbeat(), true, &Config::new()))
            .interval
    }

    #[test]
    fn peers_limits_hold_once_it_has_told_them() {
        let config = Config::new().max_body(5000);
        assert_eq!(Greeting::new(&Native, &config).body_limit(), (5000, LimitBy::Us));
        assert_eq!(greeted(0, 0).body_limit(), (1000, LimitBy::Peer));
        let mut greeting = Greeting::new(&Native, &config.max_body(900));
        greeting.handle_hello(&Hello::new(1000, 10, 0, 0));
        assert_eq!(greeting.body_limit(), (900, LimitBy::Us));
        assert_eq!(greeted(0, 0).max_calls(4096), 10);
    }

    #[test]
    fn probes_come_at_our_own_interval_where_the_peer_is_patient_enough() {
        assert_eq!(interval(20_000, 30_000), Some(secs(20)));
        assert_eq!(interval(20_000, 0), Some(secs(20)));
    }

    #[test]
    fn impatient_peer_is_probed_at_a_third_of_its_idle_timeout() {
        assert_eq!(interval(5000, 6000), Some(secs(2)));
    }

    /// Both would otherwise come to their end at the same moment.
    #[test]
    fn idle_timeout_as_long_as_our_interval_is_too_short_for_it() {
        assert_eq!(interval(20_000, 20_000), Some(Duration::from_millis(20_000) / 3));
    }

    #[test]
    fn no_idle_timeout_makes_us_probe_faster_than_once_a_second() {
        for idle in 1..3000 {
            assert_eq!(interval(1000, idle), Some(secs(1)), "{idle} ms");
        }
    }

    #[test]
    fn peer_that_does_not_probe_is_probed_whatever_is_received() {
        let rules = greeted(0, 30_000).rules(own_rules(Native.heartbeat(), true, &Config::new()));
        assert_eq!((rules.interval, rules.is_periodic), (Some(secs(10)), true));
        let quiet = Config::new().heartbeat(None);
        let rules = greeted(0, 30_000).rules(own_rules(Native.heartbeat(), true, &quiet));
        assert_eq!((rules.interval, rules.is_periodic), (Some(secs(10)), true));
        let rules = greeted(20_000, 30_000).rules(own_rules(Native.heartbeat(), true, &quiet));
        assert_eq!(rules.interval, None, "the peer probes by itself");
    }

    #[test]
    fn nobody_is_probed_before_its_hello() {
        let rules = Greeting::new(&Native, &Config::new());
        assert_eq!(rules.rules(own_rules(Native.heartbeat(), true, &Config::new())).interval, None);
    }
}
