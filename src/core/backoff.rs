//! How long to wait before the next attempt to connect.

use std::time::Duration;

use super::rng::Rng;
use crate::{
    config::{Delay, Reconnect},
    moment::Moment,
};

/// Counts the failed attempts of one dialled connection.
///
/// A connection that was up for less than the policy's healthy spell counts as one more failed
/// attempt: a peer that accepts and closes at once must not be dialled without pause.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    /// Failed attempts in a row.
    attempts: u32,
}

impl Backoff {
    /// An attempt failed. The delay until the next, or `None` to give up.
    ///
    /// `no_sooner` is what the peer asked for when it went away.
    pub(crate) fn failed(
        &mut self,
        policy: &Reconnect,
        no_sooner: Duration,
        rng: &mut Rng,
    ) -> Option<Duration> {
        self.attempts = self.attempts.saturating_add(1);
        if policy.max_attempts.is_some_and(|max| self.attempts >= max) {
            return None;
        }
        delay(policy, self.attempts, no_sooner, rng)
    }

    /// A connection that was up since `connected_at` was lost. As [`failed`](Self::failed).
    pub(crate) fn lost(
        &mut self,
        policy: &Reconnect,
        no_sooner: Duration,
        rng: &mut Rng,
        connected_at: Moment,
        now: Moment,
    ) -> Option<Duration> {
        if now.saturating_duration_since(connected_at) < policy.healthy_after {
            return self.failed(policy, no_sooner, rng);
        }
        self.attempts = 0;
        match (&policy.delay, policy.after_loss) {
            (Delay::Never, _) => None,
            (_, Some(delay)) => Some(delay.max(no_sooner)),
            (_, None) => delay(policy, 1, no_sooner, rng),
        }
    }

    #[cfg(test)]
    const fn attempts(&self) -> u32 {
        self.attempts
    }
}

/// The delay after so many failed attempts.
fn delay(
    policy: &Reconnect,
    attempts: u32,
    no_sooner: Duration,
    rng: &mut Rng,
) -> Option<Duration> {
    let delay = match &policy.delay {
        Delay::Never => return None,
        Delay::Fixed(delay) => *delay,
        Delay::Exponential { first, cap } => {
            let doublings = (attempts - 1).min(31);
            jittered(first.saturating_mul(1 << doublings).min(*cap), rng)
        }
        Delay::Custom(delay) => delay(attempts)?,
    };
    Some(delay.max(no_sooner))
}

/// Full jitter: anything up to the ceiling, but never nothing.
fn jittered(ceiling: Duration, rng: &mut Rng) -> Duration {
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.up_to(nanos).max(nanos / 100).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn start() -> Moment {
        Moment::START
    }

    fn delays(policy: &Reconnect, count: usize) -> Vec<Option<Duration>> {
        let mut backoff = Backoff::default();
        let mut rng = Rng::new(3);
        (0..count).map(|_| backoff.failed(policy, Duration::ZERO, &mut rng)).collect()
    }

    #[test]
    fn delays_double_up_to_the_cap_and_are_never_zero() {
        let policy = Reconnect::default();
        for (attempt, delay) in delays(&policy, 100).into_iter().enumerate() {
            let ceiling = Duration::from_millis(100)
                .saturating_mul(1 << attempt.min(20))
                .min(Duration::from_secs(30));
            let delay = delay.unwrap();
            assert!(delay <= ceiling && delay >= ceiling / 101, "attempt {attempt}: {delay:?}");
        }
    }

    #[test]
    fn jitter_spreads_the_very_first_delay() {
        let policy = Reconnect::default();
        let first =
            |seed| Backoff::default().failed(&policy, Duration::ZERO, &mut Rng::new(seed)).unwrap();
        let mut all: Vec<_> = (0..100).map(first).collect();
        all.sort();
        all.dedup();
        assert!(all.len() > 90);
        assert!(all[89] > all[9] + Duration::from_millis(50));
    }

    #[test]
    fn attempt_limit_gives_up() {
        let policy = Reconnect::fixed(HOUR).max_attempts(3);
        assert_eq!(delays(&policy, 4), [Some(HOUR), Some(HOUR), None, None]);
    }

    #[test]
    fn healthy_connection_that_is_lost_is_no_failed_attempt() {
        let policy = Reconnect::fixed(HOUR).max_attempts(1);
        let (start, mut rng) = (start(), Rng::new(1));
        let mut backoff = Backoff::default();
        let lost = backoff.lost(&policy, Duration::ZERO, &mut rng, start, start + HOUR);
        assert_eq!(lost, Some(HOUR));
        assert_eq!(backoff.failed(&policy, Duration::ZERO, &mut rng), None);
    }

    #[test]
    fn own_delay_after_a_loss_holds_for_healthy_connections_only() {
        let policy = Reconnect::fixed(HOUR).after_loss(Duration::ZERO);
        let (start, mut rng) = (start(), Rng::new(1));
        let mut lost_after = |uptime| {
            let mut backoff = Backoff::default();
            backoff.lost(&policy, Duration::ZERO, &mut rng, start, start + uptime)
        };
        assert_eq!(lost_after(HOUR), Some(Duration::ZERO));
        assert_eq!(lost_after(Duration::from_secs(1)), Some(HOUR));
    }

    #[test]
    fn never_gives_up_at_once() {
        assert_eq!(delays(&Reconnect::never(), 1), [None]);
    }

    #[test]
    fn custom_policy_is_told_the_attempt() {
        let policy = Reconnect::custom(|attempt| (attempt < 3).then(|| HOUR * attempt));
        assert_eq!(delays(&policy, 3), [Some(HOUR), Some(HOUR * 2), None]);
    }

    #[test]
    fn short_uptime_carries_the_count_over_and_a_healthy_one_resets_it() {
        let policy = Reconnect::exponential(Duration::from_secs(1), HOUR);
        let (mut backoff, mut rng) = (Backoff::default(), Rng::new(1));
        let start = start();
        for expected in 1..=5 {
            backoff.lost(&policy, Duration::ZERO, &mut rng, start, start + Duration::from_secs(9));
            assert_eq!(backoff.attempts(), expected);
        }
        let delay =
            backoff.lost(&policy, Duration::ZERO, &mut rng, start, start + Duration::from_secs(10));
        assert_eq!(backoff.attempts(), 0);
        assert!(delay.unwrap() <= Duration::from_secs(1));
    }

    #[test]
    fn peers_hint_is_a_lower_bound() {
        let delay = Backoff::default().failed(&Reconnect::default(), HOUR, &mut Rng::new(1));
        assert_eq!(delay, Some(HOUR));
    }

    #[test]
    fn attempts_saturate() {
        let mut backoff = Backoff { attempts: u32::MAX };
        let delay = backoff.failed(&Reconnect::default(), Duration::ZERO, &mut Rng::new(1));
        assert!(delay.unwrap() <= Duration::from_secs(30));
        assert_eq!(backoff.attempts(), u32::MAX);
    }
}
