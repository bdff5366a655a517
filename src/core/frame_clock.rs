//! How long the frame that is being received may take.
//!
//! The time counts from the frame's first byte, however its bytes drip in. A longer frame has longer,
//! also where its length becomes known only after its first bytes. So nothing is stored but when the
//! frame began; the deadline is computed from that and from its length, as far as it is known.

use std::time::Duration;

use crate::{config::Config, moment::Moment};

/// The clock of the frame at the front, which is half received; stopped while none is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FrameClock {
    began: Option<Moment>,
}

impl FrameClock {
    /// The start of a frame is there, and the rest is not. Whether the clock stood still before, and so
    /// has a deadline now that it did not have.
    pub(crate) fn start(&mut self, now: Moment) -> bool {
        let is_new = self.began.is_none();
        self.began.get_or_insert(now);
        is_new
    }

    /// No frame is half received, or not the one that was.
    pub(crate) const fn stop(&mut self) {
        self.began = None;
    }

    /// It was our doing that the frame was not read: its time counts from now.
    pub(crate) fn restart(&mut self, now: Moment) {
        self.began = self.began.map(|_| now);
    }

    /// When the frame, of `len` bytes as far as known, must be whole.
    pub(crate) fn deadline(self, len: usize, config: &Config) -> Option<Moment> {
        self.began?.checked_add(limit(len, config))
    }
}

/// How long a frame of this length may take; 0: its length is not known.
pub(crate) fn limit(len: usize, config: &Config) -> Duration {
    let at_rate = Duration::from_secs((len / config.frame_rate) as u64);
    config.frame_timeout.saturating_add(at_rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> Config {
        Config::new().frame_timeout(30 * SECOND).frame_rate(1000)
    }

    #[test]
    fn stands_still_while_no_frame_is_half_received() {
        let mut clock = FrameClock::default();
        assert_eq!(clock.deadline(0, &config()), None);
        clock.restart(Moment::START);
        assert_eq!(clock.deadline(0, &config()), None);
        clock.start(Moment::START);
        clock.stop();
        assert_eq!(clock.deadline(0, &config()), None);
    }

    #[test]
    fn counts_from_the_first_byte_however_often_more_arrive() {
        let mut clock = FrameClock::default();
        assert!(clock.start(Moment::START));
        assert!(!clock.start(Moment::START + SECOND));
        assert_eq!(clock.deadline(0, &config()), Some(Moment::START + 30 * SECOND));
    }

    #[test]
    fn length_is_added_at_the_frame_rate() {
        let mut clock = FrameClock::default();
        clock.start(Moment::START);
        assert_eq!(limit(500_000, &config()), 530 * SECOND);
        assert_eq!(clock.deadline(500_000, &config()), Some(Moment::START + 530 * SECOND));
    }

    #[test]
    fn pause_never_makes_the_deadline_sooner() {
        let mut clock = FrameClock::default();
        clock.start(Moment::START);
        clock.restart(Moment::START + SECOND);
        assert_eq!(clock.deadline(500_000, &config()), Some(Moment::START + 531 * SECOND));
    }

    #[test]
    fn timeout_without_end_is_no_deadline() {
        let config = config().frame_timeout(Duration::MAX);
        let mut clock = FrameClock::default();
        clock.start(Moment::START);
        assert_eq!(clock.deadline(1, &config), None);
    }
}
