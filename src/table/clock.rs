//! The time of the loop, and what is to happen when.

use std::time::{Duration, Instant};

use crate::{
    CallId, ConnId, ListenerId, core::timer_wheel::TimerWheel, id::TimerKey, moment::Moment,
};

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// A deadline of the connection.
    Watch(ConnId),
    /// A call's timeout.
    Call(ConnId, CallId),
    /// The application's.
    User { token: u64, conn: Option<ConnId> },
    /// The next step of dialling: an attempt is over its time, or the next round begins.
    Dial(ConnId),
    /// A listener has rested.
    Accept(ListenerId),
    /// Stopping has taken long enough.
    Stop,
}

/// The time of this turn, and the timers.
pub(crate) struct Clock {
    /// What the clock showed at [`Moment::START`].
    origin: Instant,
    now: Moment,
    wheel: TimerWheel<Alarm>,
}

impl Clock {
    pub(crate) fn new(origin: Instant, now: Moment) -> Self {
        Self { origin, now, wheel: TimerWheel::new() }
    }

    /// The time of this turn.
    #[inline]
    pub(crate) const fn now(&self) -> Moment {
        self.now
    }

    /// It is so late now. No timer fires before [`advance`](Self::advance).
    #[inline]
    pub(crate) const fn set(&mut self, now: Moment) {
        self.now = now;
    }

    /// So much later than now; `None` beyond the end of time.
    #[inline]
    pub(crate) fn after(&self, time: Duration) -> Option<Moment> {
        self.now.checked_add(time)
    }

    /// What the system's clock shows then; `None` if it can't say that.
    pub(crate) fn instant(&self, at: Moment) -> Option<Instant> {
        at.to_instant(self.origin)
    }

    /// What the system's clock showed when this turn began.
    pub(crate) fn now_as_instant(&self) -> Instant {
        self.instant(self.now).unwrap_or(self.origin)
    }

    // ---- timers ----

    #[inline]
    pub(crate) fn arm(&mut self, at: Moment, alarm: Alarm) -> TimerKey {
        self.wheel.insert(at, alarm)
    }

    /// Takes a timer back, if it has not fired.
    #[inline]
    pub(crate) fn disarm(&mut self, key: TimerKey) -> Option<Alarm> {
        self.wheel.cancel(key)
    }

    /// Finds what is due by now.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.wheel.advance(self.now);
    }

    /// The next timer of what is due.
    #[inline]
    pub(crate) fn pop_due(&mut self) -> Option<(TimerKey, Alarm)> {
        self.wheel.pop_due()
    }

    /// Whether something that is due is left.
    #[inline]
    pub(crate) fn has_due(&self) -> bool {
        self.wheel.has_due()
    }

    /// When there is something to do.
    #[inline]
    pub(crate) fn next_wake(&self) -> Option<Moment> {
        self.wheel.next_wake()
    }

    /// Timers that are armed or due.
    #[cfg(test)]
    pub(crate) fn timers(&self) -> usize {
        self.wheel.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarm_stays_small() {
        assert!(size_of::<Alarm>() <= 32, "{}", size_of::<Alarm>());
    }
}
