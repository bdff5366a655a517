//! Whether to read on from a peer that does not take what its own messages cause.
//!
//! A peer that asks and does not read the answers is not read from while they pile up. Two peers
//! that both stopped for the other would wait for ever, so there are three exceptions: what was sent
//! of our own accord stops nobody; a side that itself waits for answers reads on; and so does one
//! that made no progress for a while, as perhaps its peer waits in the same way. They hold up to
//! three quarters of the hard limit, so that reading alone never breaks it.

use std::time::Duration;

use crate::{config::Config, moment::Moment};

/// The load of a connection: bytes that are queued for the peer, with overhead, and calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// All of it.
    pub(crate) queued: usize,
    /// The part of it that the peer's own messages caused.
    pub(crate) caused: usize,
    /// Calls of ours that the peer has not answered.
    pub(crate) calls: usize,
}

/// Decides on reading, for one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intake {
    /// The part that the peer caused went above the high watermark, and is not yet down at the low one.
    is_choked: bool,
    /// While choked it took nothing for a while.
    is_stuck: bool,
}

impl Intake {
    /// More was queued, or some was written. Whether the peer is choked and was not before.
    #[inline]
    pub(crate) fn update(&mut self, caused: usize, config: &Config) -> bool {
        let was_choked = self.is_choked;
        let mark = config.choke_mark();
        if caused > mark {
            self.is_choked = true;
        } else if caused <= config.low_watermark.min(mark) {
            *self = Self { is_choked: false, is_stuck: false };
        }
        self.is_choked && !was_choked
    }

    /// Whether messages may be read and handled.
    #[inline]
    pub(crate) const fn is_open(self, load: Load, config: &Config) -> bool {
        !self.is_choked
            || (self.is_stuck || load.calls > 0) && load.queued <= config.hard_limit / 4 * 3
    }

    #[inline]
    pub(crate) const fn is_choked(self) -> bool {
        self.is_choked
    }

    /// When to look whether the peer still takes nothing.
    pub(crate) fn poll_timeout(self, stalled: Option<Moment>, config: &Config) -> Option<Moment> {
        if !self.is_choked || self.is_stuck {
            return None;
        }
        stalled?.checked_add(patience(config))
    }

    /// The peer has taken nothing since `stalled`. Whether that opens what was closed.
    pub(crate) fn handle_timeout(
        &mut self,
        stalled: Option<Moment>,
        config: &Config,
        now: Moment,
    ) -> bool {
        let is_due = self.poll_timeout(stalled, config).is_some_and(|at| now >= at);
        self.is_stuck |= is_due;
        is_due
    }
}

/// How long a peer takes nothing until it counts as stuck: well before it is given up.
fn patience(config: &Config) -> Duration {
    config.write_timeout / 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new().watermarks(10, 100).hard_limit(1000).write_timeout(Duration::from_secs(10))
    }

    fn load(queued: usize, caused: usize, calls: usize) -> Load {
        Load { queued, caused, calls }
    }

    fn after(caused: &[usize]) -> Intake {
        let mut intake = Intake::default();
        for caused in caused {
            intake.update(*caused, &config());
        }
        intake
    }

    #[test]
    fn answers_above_the_high_watermark_stop_reading_until_they_are_down_at_the_low_one() {
        let config = config();
        assert!(after(&[100]).is_open(load(100, 100, 0), &config));
        assert!(!after(&[101]).is_open(load(101, 101, 0), &config));
        assert!(!after(&[101, 11]).is_open(load(11, 11, 0), &config));
        assert!(after(&[101, 11, 10]).is_open(load(10, 10, 0), &config));
    }

    #[test]
    fn what_we_send_of_our_own_accord_stops_nobody() {
        assert!(after(&[0]).is_open(load(999, 0, 0), &config()));
    }

    #[test]
    fn a_side_that_waits_for_answers_reads_on_up_to_three_quarters_of_the_hard_limit() {
        let config = config();
        assert!(after(&[101]).is_open(load(750, 101, 1), &config));
        assert!(!after(&[101]).is_open(load(751, 101, 1), &config));
    }

    #[test]
    fn a_stuck_peer_is_read_from_again_until_it_takes_what_it_caused() {
        let start = Moment::START;
        let second = Duration::from_secs(1);
        let config = config();
        let mut intake = after(&[101]);
        assert_eq!(intake.poll_timeout(None, &config), None);
        assert_eq!(intake.poll_timeout(Some(start), &config), Some(start + second));
        assert!(!intake.handle_timeout(Some(start), &config, start + second / 2));
        assert!(intake.handle_timeout(Some(start), &config, start + second));
        assert!(intake.is_open(load(200, 200, 0), &config));
        assert!(!intake.is_open(load(751, 751, 0), &config));
        intake.update(10, &config);
        intake.update(101, &config);
        assert!(!intake.is_open(load(101, 101, 0), &config));
    }
}
