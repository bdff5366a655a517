//! How long the loop looks for work before it sleeps.
//!
//! To sleep and to be woken takes longer than a short round trip. So the loop looks for work first: for
//! as long as the setting says, and for a moment while threads are blocked in calls. That moment is
//! only spent where it pays: where most of the replies lately came within it.

use std::time::Duration;

/// How long the loop looks for the replies of blocked threads. A sleeping core takes some 30 µs to be
/// woken on a virtual machine, and at this limit a wait that is in vain costs no more than two of those.
const FOR_CALLERS: Duration = Duration::from_micros(50);

/// After so many looks in vain, with no reply between, the loop sleeps at once.
pub(crate) const MOST_LUCK: u32 = 16;

/// Every 255th wait is a probe, to notice when replies get faster. Odd on purpose: waits for a call and
/// waits for its reply alternate, and an even period would always probe the same kind.
const TRIES: u32 = 255;

/// The result of looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing: the loop slept.
    Nothing,
    /// Another thread has posted something.
    Post,
    /// A socket is ready.
    Event,
}

/// Decides before each wait, and learns from it.
#[derive(Debug)]
pub(crate) struct Spin {
    setting: Duration,
    /// How well it went lately: up by one for each time that a reply came, down by one for each that
    /// was in vain.
    luck: u32,
    /// Counts the waits that were not tried.
    avoided: u32,
    has_reply: bool,
}

impl Spin {
    pub(crate) const fn new(setting: Duration) -> Self {
        Self { setting, luck: MOST_LUCK, avoided: 0, has_reply: false }
    }

    /// How long to look before the wait that comes. `is_awaited`: threads are blocked in calls.
    pub(crate) fn limit(&mut self, is_awaited: bool) -> Duration {
        self.has_reply = false;
        if is_awaited && self.is_worth_it() { self.setting.max(FOR_CALLERS) } else { self.setting }
    }

    const fn is_worth_it(&mut self) -> bool {
        if self.luck > 0 {
            return true;
        }
        self.avoided = self.avoided.wrapping_add(1);
        self.avoided.is_multiple_of(TRIES)
    }

    /// A call has ended for which a thread may be blocked.
    pub(crate) const fn note_reply(&mut self) {
        self.has_reply = true;
    }

    /// The work that was found has been done.
    pub(crate) fn learn(&mut self, found: Found) {
        self.luck = match found {
            Found::Post | Found::Event if self.has_reply => (self.luck + 1).min(MOST_LUCK),
            // Perhaps the call whose reply is looked for next.
            Found::Post => self.luck,
            Found::Nothing | Found::Event => self.luck.saturating_sub(1),
        };
    }

    #[cfg(test)]
    pub(crate) const fn luck(&self) -> u32 {
        self.luck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many waits while threads are blocked, each with this end; in how many the loop looked.
    fn waits(spin: &mut Spin, count: u32, found: Found, is_reply: bool) -> u32 {
        let looks = (0..count).filter(|_| {
            let limit = spin.limit(true);
            if is_reply {
                spin.note_reply();
            }
            if !limit.is_zero() {
                spin.learn(found);
            }
            !limit.is_zero()
        });
        u32::try_from(looks.count()).unwrap()
    }

    #[test]
    fn loop_looks_for_replies_as_long_as_they_come() {
        let mut spin = Spin::new(Duration::ZERO);
        assert_eq!(waits(&mut spin, 1000, Found::Event, true), 1000);
    }

    #[test]
    fn loop_that_nobody_waits_for_sleeps_at_once() {
        let mut spin = Spin::new(Duration::ZERO);
        assert_eq!(spin.limit(false), Duration::ZERO);
    }

    #[test]
    fn loop_sleeps_at_once_where_replies_take_long() {
        let mut spin = Spin::new(Duration::ZERO);
        assert_eq!(waits(&mut spin, MOST_LUCK + 2 * TRIES, Found::Nothing, true), MOST_LUCK + 2);
    }

    /// As on a server that is busy with others.
    #[test]
    fn loop_sleeps_at_once_where_other_work_comes_first() {
        let mut spin = Spin::new(Duration::ZERO);
        assert_eq!(waits(&mut spin, MOST_LUCK + 2 * TRIES, Found::Event, false), MOST_LUCK + 2);
    }

    #[test]
    fn loop_notices_that_replies_come_soon_again() {
        for before in [0, 1] {
            let mut spin = Spin::new(Duration::ZERO);
            waits(&mut spin, MOST_LUCK + before, Found::Nothing, true);
            // Before each reply there is a call.
            for _ in 0..TRIES {
                waits(&mut spin, 1, Found::Post, false);
                waits(&mut spin, 1, Found::Event, true);
            }
            assert_eq!(waits(&mut spin, 1000, Found::Event, true), 1000);
        }
    }

    #[test]
    fn setting_holds_whatever_was_learned() {
        let setting = Duration::from_micros(200);
        let mut spin = Spin::new(setting);
        waits(&mut spin, 2 * MOST_LUCK, Found::Nothing, true);
        assert_eq!([spin.limit(false), spin.limit(true)], [setting; 2]);
    }
}
