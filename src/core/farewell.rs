//! How a connection that comes to its end says goodbye, and what the peer's goodbye means.
//!
//! ```text
//! ours     None ─ drain ─▶ Noticed ─ pong, or 500 ms ─▶ Final
//! peer's   None ─ goaway ─▶ leaving: no new calls. It closes, or we do when nothing is in flight
//! ```

use std::time::Duration;

use crate::{config::Config, moment::Moment};

/// The body of the ping behind the notice of a goaway, to know its pong by.
pub(crate) const FAREWELL: &[u8] = b"goaway";

/// How long the answer to the notice of a goaway is waited for.
const NOTICE: Duration = Duration::from_millis(500);

/// How long a connection whose peer has said goaway goes on for what is in flight, counted from the
/// goaway or from the last answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// State that only a connection has that comes to its end.
#[derive(Debug)]
pub(crate) struct Farewell<Id> {
    ours: Ours,
    peers: Option<Peers<Id>>,
    closing: Option<CloseBy>,
}

/// How far we have come in saying that we take no new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    None,
    /// The notice went out, with a ping behind it: what the peer sent before it knew comes before
    /// the pong. A peer that does not answer is not waited for after this moment.
    Noticed {
        until: Moment,
    },
    /// The peer knows the last request that is handled.
    Final,
}

/// The peer takes no new requests.
#[derive(Clone, Copy, Debug)]
struct Peers<Id> {
    /// The last request of ours that it handles.
    last: Id,
    /// When it said so, or last answered.
    since: Moment,
}

/// When closing ends, whatever is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseBy {
    At(Moment),
    Never,
}

impl<Id> Default for Farewell<Id> {
    fn default() -> Self {
        Self { ours: Ours::None, peers: None, closing: None }
    }
}

impl<Id: Copy> Farewell<Id> {
    // ---- ours ----

    /// Whether the notice is still to be said; it is taken as said.
    pub(crate) fn notice(&mut self, now: Moment) -> bool {
        let is_first = self.ours == Ours::None;
        if is_first {
            self.ours = Ours::Noticed { until: now + NOTICE };
        }
        is_first
    }

    /// Whether the last request is still to be named; it is taken as named.
    pub(crate) fn finish(&mut self) -> bool {
        let is_due = self.is_noticed();
        if is_due {
            self.ours = Ours::Final;
        }
        is_due
    }

    /// Whether the peer knows that it may send no more requests, and not yet which is the last.
    pub(crate) const fn is_noticed(&self) -> bool {
        matches!(self.ours, Ours::Noticed { .. })
    }

    /// Whether the last request was named.
    pub(crate) const fn is_final(&self) -> bool {
        matches!(self.ours, Ours::Final)
    }

    /// Whether the answer to the notice was waited for long enough.
    pub(crate) fn is_notice_over(&self, now: Moment) -> bool {
        matches!(self.ours, Ours::Noticed { until } if now >= until)
    }

    // ---- the peer's ----

    /// The peer said that `last` is the last request of ours that it handles. `is_lower` compares it
    /// with what it said before. Whether that excludes more than before.
    pub(crate) fn handle_goaway(
        &mut self,
        last: Id,
        is_lower: impl FnOnce(&Id) -> bool,
        now: Moment,
    ) -> bool {
        let is_news = self.peers.as_ref().is_none_or(|before| is_lower(&before.last));
        if is_news {
            let since = self.peers.as_ref().map_or(now, |before| before.since);
            self.peers = Some(Peers { last, since });
        }
        is_news
    }

    /// The last request of ours that the peer handles, where it has said so.
    pub(crate) fn last_handled(&self) -> Option<Id> {
        Some(self.peers.as_ref()?.last)
    }

    /// The peer answered one of our calls.
    pub(crate) const fn handle_answer(&mut self, now: Moment) {
        if let Some(peers) = &mut self.peers {
            peers.since = now;
        }
    }

    /// When we leave by ourselves, if the peer that said goaway has not closed until then.
    pub(crate) fn leave_by(&self, is_in_flight: bool, config: &Config) -> Option<Moment> {
        let peers = self.peers.as_ref()?;
        let patience = if is_in_flight { PATIENCE } else { config.close_timeout };
        peers.since.checked_add(patience)
    }

    // ---- closing ----

    /// Closing has begun, and takes this long at the most; what was said before holds.
    pub(crate) fn close_within(&mut self, time: Duration, now: Moment) {
        if self.closing.is_none() {
            self.close_anew(time, now);
        }
    }

    /// Closing takes this long at the most, counted anew.
    pub(crate) fn close_anew(&mut self, time: Duration, now: Moment) {
        self.closing = Some(now.checked_add(time).map_or(CloseBy::Never, CloseBy::At));
    }

    /// Whether the connection is closing: then it has only its end to wait for.
    #[inline]
    pub(crate) const fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// When closing ends, whatever is left; `None` if it has not begun, or takes as long as it takes.
    #[inline]
    pub(crate) const fn close_by(&self) -> Option<Moment> {
        match self.closing {
            Some(CloseBy::At(by)) => Some(by),
            _ => None,
        }
    }

    /// When a connection that is closing has to be looked at.
    pub(crate) fn poll_timeout(&self) -> Option<Moment> {
        let notice = match self.ours {
            Ours::Noticed { until } => Some(until),
            _ => None,
        };
        self.close_by().into_iter().chain(notice).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::START;
    const SECOND: Duration = Duration::from_secs(1);

    fn farewell() -> Farewell<u64> {
        Farewell::default()
    }

    #[test]
    fn goodbye_is_said_once_in_two_steps() {
        let mut farewell = farewell();
        assert!(!farewell.finish());
        assert!(farewell.notice(START));
        assert!(!farewell.notice(START));
        assert!(!farewell.is_notice_over(START));
        assert!(farewell.is_notice_over(START + NOTICE));
        assert!(farewell.finish());
        assert!(!farewell.finish());
        assert!(farewell.is_final());
    }

    #[test]
    fn repeated_goaway_is_news_only_where_it_excludes_more() {
        let mut farewell = farewell();
        let mut hears = |last: u64| farewell.handle_goaway(last, |before| last < *before, START);
        assert_eq!(
            [u64::MAX, u64::MAX, 7, 7, 9, 3].map(&mut hears),
            [true, false, true, false, false, true]
        );
        assert_eq!(farewell.last_handled(), Some(3));
    }

    #[test]
    fn peer_that_said_goaway_and_does_not_close_is_left() {
        let config = Config::new();
        let mut farewell = farewell();
        assert_eq!(farewell.leave_by(false, &config), None);
        farewell.handle_goaway(u64::MAX, |_| false, START);
        assert_eq!(farewell.leave_by(false, &config), Some(START + config.close_timeout));
        assert_eq!(farewell.leave_by(true, &config), Some(START + PATIENCE));
        // Repeating it does not hold us; answering does.
        farewell.handle_goaway(1, |_| true, START + SECOND);
        assert_eq!(farewell.leave_by(true, &config), Some(START + PATIENCE));
        farewell.handle_answer(START + SECOND);
        assert_eq!(farewell.leave_by(true, &config), Some(START + SECOND + PATIENCE));
    }

    #[test]
    fn closing_without_end_is_closing_all_the_same() {
        let mut farewell = farewell();
        farewell.close_within(Duration::MAX, START);
        assert!(farewell.is_closing());
        assert_eq!(farewell.poll_timeout(), None);
    }

    #[test]
    fn first_limit_of_closing_holds() {
        let mut farewell = farewell();
        farewell.close_within(SECOND, START);
        farewell.close_within(3 * SECOND, START);
        assert_eq!(farewell.close_by(), Some(START + SECOND));
        farewell.close_anew(3 * SECOND, START);
        assert_eq!(farewell.close_by(), Some(START + 3 * SECOND));
    }
}
