//! When to probe a silent peer, and when to give it up.
//!
//! Anything received counts as life; anything sent does not. Nothing is done per message but to
//! note the time: the connection's one timer looks here when it fires, and is set anew for what is
//! left.
//!
//! Where only one side probes, its probes are all that the other may ever hear of it. So that side
//! probes at each interval, whatever it receives.
//!
//! ```text
//! heard ──── interval ───▶ ping ──── … ───▶ heard + idle timeout: dead
//!   ▲                                │
//!   └────────── anything received ───┘
//! ```

use std::time::Duration;

use crate::moment::Moment;

/// The rules of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Probe after this long without anything received; `None`: never.
    pub(crate) interval: Option<Duration>,
    /// Probe at each interval, although something was received.
    pub(crate) is_periodic: bool,
    /// Give up after this long without anything received; `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
}

/// The action that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Ping,
    Dead,
}

/// A loop that comes this much too late was away itself; its peers are given one more round.
pub(crate) const AWAY: Duration = Duration::from_secs(1);

/// The signs of life of the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heartbeat {
    /// When something was last received.
    heard: Moment,
    /// When the ping in flight was sent. Invariant: none was received since.
    pinged: Option<Moment>,
    /// When a ping was last sent, or the connection began.
    last_ping: Moment,
}

impl Heartbeat {
    pub(crate) const fn new(now: Moment) -> Self {
        Self { heard: now, pinged: None, last_ping: now }
    }

    /// The connection begins now.
    pub(crate) const fn begin(&mut self, now: Moment) {
        *self = Self::new(now);
    }

    /// When the connection began, if no ping was sent since.
    pub(crate) const fn began(&self) -> Moment {
        self.last_ping
    }

    /// Something was received.
    pub(crate) const fn heard(&mut self, now: Moment) {
        self.heard = now;
    }

    /// The pong came. How long it took, if a ping was in flight.
    pub(crate) fn ponged(&mut self, now: Moment) -> Option<Duration> {
        Some(now.saturating_duration_since(self.pinged.take()?))
    }

    /// The action that is due. A ping is taken as sent.
    pub(crate) fn handle_timeout(&mut self, rules: Rules, now: Moment) -> Due {
        let silence = now.saturating_duration_since(self.heard);
        if let Some(limit) = rules.idle_timeout
            && silence >= limit
        {
            if silence.saturating_sub(limit) < AWAY {
                return Due::Dead;
            }
            // What the peer sent meanwhile has been read by now, if it sent anything; if it did
            // not, it had no ping of ours to answer. One interval is left to it.
            let grace = rules.interval.unwrap_or(limit).min(limit);
            self.heard = now.checked_sub(limit.saturating_sub(grace)).unwrap_or(now);
            if rules.interval.is_none() {
                return Due::Nothing;
            }
            return self.ping(now);
        }
        if self.next_ping(rules).is_some_and(|at| now >= at) {
            return self.ping(now);
        }
        Due::Nothing
    }

    fn ping(&mut self, now: Moment) -> Due {
        self.pinged = Some(now);
        self.last_ping = now;
        Due::Ping
    }

    fn next_ping(&self, rules: Rules) -> Option<Moment> {
        let interval = rules.interval?;
        if rules.is_periodic {
            return self.last_ping.checked_add(interval);
        }
        let is_pinged = self.pinged.is_some_and(|at| at >= self.heard);
        if is_pinged { None } else { self.heard.checked_add(interval) }
    }

    /// When to look again.
    pub(crate) fn poll_timeout(&self, rules: Rules) -> Option<Moment> {
        let dead = rules.idle_timeout.and_then(|limit| self.heard.checked_add(limit));
        self.next_ping(rules).into_iter().chain(dead).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        interval: Some(Duration::from_secs(20)),
        is_periodic: false,
        idle_timeout: Some(Duration::from_secs(30)),
    };

    fn start() -> Moment {
        Moment::START
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn ping_only_after_silence() {
        let start = start();
        let mut beat = Heartbeat::new(start);
        beat.heard(start + secs(15));
        assert_eq!(beat.handle_timeout(RULES, start + secs(20)), Due::Nothing);
        assert_eq!(beat.poll_timeout(RULES), Some(start + secs(35)));
        assert_eq!(beat.handle_timeout(RULES, start + secs(35)), Due::Ping);
    }

    /// A server that only receives pings would otherwise give up a client that only listens.
    #[test]
    fn side_that_alone_probes_does_so_at_each_interval_whatever_it_receives() {
        let rules = Rules { is_periodic: true, ..RULES };
        let start = start();
        let mut beat = Heartbeat::new(start);
        for second in 1..100 {
            beat.heard(start + secs(second));
            let due = if second % 20 == 0 { Due::Ping } else { Due::Nothing };
            assert_eq!(beat.handle_timeout(rules, start + secs(second)), due);
        }
        assert_eq!(beat.poll_timeout(rules), Some(start + secs(100)));
    }

    #[test]
    fn one_ping_is_in_flight_at_most() {
        let start = start();
        let mut beat = Heartbeat::new(start);
        assert_eq!(beat.handle_timeout(RULES, start + secs(20)), Due::Ping);
        assert_eq!(beat.handle_timeout(RULES, start + secs(25)), Due::Nothing);
        assert_eq!(beat.poll_timeout(RULES), Some(start + secs(30)));
        assert_eq!(beat.handle_timeout(RULES, start + secs(30)), Due::Dead);
    }

    #[test]
    fn pong_tells_the_round_trip_once() {
        let start = start();
        let mut beat = Heartbeat::new(start);
        beat.handle_timeout(RULES, start + secs(20));
        beat.heard(start + secs(21));
        assert_eq!(beat.ponged(start + secs(21)), Some(secs(1)));
        assert_eq!(beat.ponged(start + secs(22)), None);
        assert_eq!(beat.handle_timeout(RULES, start + secs(41)), Due::Ping);
    }

    #[test]
    fn loop_that_was_away_grants_one_more_round() {
        let start = start();
        let mut beat = Heartbeat::new(start);
        assert_eq!(beat.handle_timeout(RULES, start + secs(90)), Due::Ping);
        assert_eq!(beat.poll_timeout(RULES), Some(start + secs(110)));
        assert_eq!(beat.handle_timeout(RULES, start + secs(110)), Due::Dead);
    }

    #[test]
    fn year_of_suspend_does_not_panic() {
        let start = start();
        let mut beat = Heartbeat::new(start);
        assert_eq!(beat.handle_timeout(RULES, start + secs(31_536_000)), Due::Ping);
    }

    #[test]
    fn without_rules_nothing_is_ever_due() {
        let rules = Rules { interval: None, idle_timeout: None, ..RULES };
        let start = start();
        let mut beat = Heartbeat::new(start);
        assert_eq!(beat.poll_timeout(rules), None);
        assert_eq!(beat.handle_timeout(rules, start + secs(1_000_000)), Due::Nothing);
    }

    #[test]
    fn idle_timeout_alone_closes_without_a_ping() {
        let rules = Rules { interval: None, ..RULES };
        let start = start();
        let mut beat = Heartbeat::new(start);
        assert_eq!(beat.poll_timeout(rules), Some(start + secs(30)));
        assert_eq!(beat.handle_timeout(rules, start + secs(30)), Due::Dead);
    }
}
