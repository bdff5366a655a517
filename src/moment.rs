//! Points in time, in half of the room that the system's take.

use std::{
    num::NonZeroU64,
    ops::Add,
    time::{Duration, Instant},
};

/// A moment of a reactor's life: nanoseconds since it was made.
///
/// An [`Instant`] takes 16 bytes, and a connection keeps ten of them; this takes 8, also as an
/// `Option`. It lasts for 584 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(NonZeroU64);

impl Moment {
    /// When the reactor was made.
    pub(crate) const START: Self = Self(NonZeroU64::MIN);

    /// The moment at which the clock shows `now`, if it showed `origin` when the reactor was made.
    #[inline]
    pub(crate) fn new(origin: Instant, now: Instant) -> Self {
        Self::START + now.saturating_duration_since(origin)
    }

    /// The clock's reading then; `None` if the system can't say it.
    pub(crate) fn to_instant(self, origin: Instant) -> Option<Instant> {
        origin.checked_add(self.saturating_duration_since(Self::START))
    }

    /// The time from `earlier` until this; zero if this is the earlier one.
    #[inline]
    pub(crate) const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }

    /// So much later; `None` beyond the end of time.
    #[inline]
    pub(crate) fn checked_add(self, duration: Duration) -> Option<Self> {
        let nanos = u64::try_from(duration.as_nanos()).ok()?;
        self.0.checked_add(nanos).map(Self)
    }

    /// So much earlier; `None` before the start.
    pub(crate) fn checked_sub(self, duration: Duration) -> Option<Self> {
        let nanos = u64::try_from(duration.as_nanos()).ok()?;
        self.0.get().checked_sub(nanos).and_then(NonZeroU64::new).map(Self)
    }

    /// Nanoseconds since the start.
    #[inline]
    pub(crate) const fn as_nanos(self) -> u64 {
        self.0.get() - 1
    }
}

/// So much later, or the end of time.
impl Add<Duration> for Moment {
    type Output = Self;

    #[inline]
    fn add(self, duration: Duration) -> Self {
        self.checked_add(duration).unwrap_or(Self(NonZeroU64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_optional_moment_takes_eight_bytes() {
        assert_eq!(size_of::<Option<Moment>>(), 8);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_moment_is_what_the_clock_showed() {
        let origin = Instant::now();
        let now = origin + Duration::from_nanos(1_234_567_890);
        assert_eq!(Moment::new(origin, now).to_instant(origin), Some(now));
        assert_eq!(Moment::new(now, origin), Moment::START);
    }

    #[test]
    fn moments_end_at_both_ends_of_time() {
        let nano = Duration::from_nanos(1);
        assert_eq!(Moment::START.checked_sub(nano), None);
        assert_eq!((Moment::START + nano).checked_sub(nano), Some(Moment::START));
        assert_eq!(Moment::START.checked_add(Duration::MAX), None);
        assert_eq!((Moment::START + Duration::MAX).checked_add(nano), None);
    }
}
