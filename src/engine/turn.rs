//! One turn of the loop.
//!
//! The numbers are those of `docs/design.md`.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use super::{Engine, Step};
use crate::{
    CloseReason, Error, Handler, core::spin::Found, drop_quietly::drop_quietly, error::error_code,
    moment::Moment, net::Net, table::slot::Phase,
};

impl<H: Handler, N: Net> Engine<H, N> {
    /// One pass. Waits for up to `max_wait` (`None`: for ever) if there is nothing to do.
    pub(crate) fn turn(&mut self, max_wait: Option<Duration>) -> Result<(), Error> {
        if !self.has_started {
            self.start();
        }
        self.events.clear();
        let spin = self.spin_limit(max_wait);
        let found = self.spin(spin)?;
        if found == Found::Nothing {
            // 1. How long to wait: not at all if work is left over, else until the next deadline.
            let timeout = self.timeout(max_wait.map(|wait| wait.saturating_sub(spin)));
            // 2. Wait for readiness.
            let polled = self.sockets.net.poll(&mut self.events, timeout);
            self.shared.mailbox.wake_up();
            polled?;
        }
        // 3. Read the clock, once.
        self.state.clock.set(self.sockets.net.now());
        // 4. to 8. The steps, each to its end.
        self.step = Step::Commands;
        self.next_event = 0;
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run_steps())) {
            self.contain(panic);
        }
        self.shared.bell.ring();
        self.shared.gate.open();
        if !spin.is_zero() {
            self.spin.learn(found);
        }
        self.state.stats.turns += 1;
        self.shared.stats.publish(&self.state.stats);
        Ok(())
    }

    /// Steps 4 to 8. Each takes its work from a list, one after the other, so that it goes on with the
    /// rest where a panic left it.
    fn run_steps(&mut self) {
        // 4. Names that were looked up, and what other threads ask for.
        if self.reaches(Step::Commands) {
            self.take_names();
            self.run_commands();
        }
        // 5. Sockets.
        if self.reaches(Step::Events) {
            self.handle_events();
        }
        if self.reaches(Step::Accept) {
            self.accept_all();
        }
        if self.reaches(Step::Arrivals) {
            self.open_arrivals();
        }
        if self.reaches(Step::Read) {
            self.read_all();
        }
        // 6. Timers that are due. After the sockets: a reply that is here beats its own deadline.
        if self.reaches(Step::Timers) {
            self.run_timers();
        }
        // 7. One write for all that a connection has to send.
        if self.reaches(Step::Flush) {
            self.flush_all();
        }
        // 8. Connections that ended.
        if self.reaches(Step::Reap) {
            self.reap_all();
            self.finish_stop();
        }
    }

    /// The turn has come to this step, or a panic has left it here; false if it was farther.
    #[inline]
    fn reaches(&mut self, step: Step) -> bool {
        let is_due = self.step <= step;
        if is_due {
            self.step = step;
        }
        is_due
    }

    /// Something panicked: a callback, or what else the application gave (a protocol, a body with an
    /// owner of its own). That costs the connection that was being served, and the turn goes on.
    #[cold]
    fn contain(&mut self, panic: Box<dyn Any + Send>) {
        let Some(id) = self.state.serving.take() else {
            resume_unwind(panic) // nobody's: a bug of ours
        };
        if let Some((conn, charged)) = self.state.serving.take_charge() {
            self.state.board.release(conn.slot(), charged);
        }
        let unanswered = self.state.serving.end_request();
        self.handle_panic(id, &*panic);
        if self
            .state
            .get(id)
            .is_some_and(|slot| slot.phase == Phase::Dropped && !slot.lists.is_ended)
        {
            // It was being put away.
            return drop_quietly(|| self.finish(id));
        }
        if let Some(request) = unanswered {
            let (code, text) = (error_code::PANICKED, "the handler panicked");
            let answer = || self.state.send_last_error(id, request, code, text);
            if catch_unwind(AssertUnwindSafe(answer)).is_err() {
                self.state.abort(id, CloseReason::Aborted);
            }
        }
    }

    fn timeout(&mut self, max_wait: Option<Duration>) -> Option<Duration> {
        if max_wait == Some(Duration::ZERO) || self.has_work() {
            return Some(Duration::ZERO);
        }
        let due_in = self.state.clock.next_wake().map(|at| {
            // Measured from the clock, not from the turn's `now`: the turn itself took time. Rounded up to
            // a millisecond, which is what the system can wait for, so that the loop does not spin.
            let wait = at.saturating_duration_since(self.sockets.net.now());
            Duration::from_millis(
                u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
            )
        });
        let wait = match (due_in, max_wait) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if wait != Some(Duration::ZERO) && !self.shared.mailbox.fall_asleep() {
            return Some(Duration::ZERO);
        }
        wait
    }

    /// How long to look for work before sleeping.
    fn spin_limit(&mut self, max_wait: Option<Duration>) -> Duration {
        if max_wait == Some(Duration::ZERO) || self.has_work() {
            return Duration::ZERO;
        }
        let limit = self.spin.limit(self.shared.has_blocked());
        limit.min(max_wait.unwrap_or(Duration::MAX))
    }

    /// Looks for work without sleeping, for up to `limit`.
    fn spin(&mut self, limit: Duration) -> Result<Found, Error> {
        if limit.is_zero() {
            return Ok(Found::Nothing);
        }
        let net = &mut self.sockets.net;
        let until = net.now() + limit;
        let until = self.state.clock.next_wake().map_or(until, |due| due.min(until));
        loop {
            net.poll(&mut self.events, Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                return Ok(Found::Event);
            }
            if self.shared.mailbox.has_post() || net.has_resolved() {
                return Ok(Found::Post);
            }
            if net.now() >= until {
                return Ok(Found::Nothing);
            }
            // Other threads of this core come first; perhaps one of them is the peer.
            std::thread::yield_now();
        }
    }

    /// The caller may wait elsewhere until the next turn: posts must wake the poll from now on.
    pub(crate) fn rest(&self) {
        if !self.has_work() && !self.shared.mailbox.fall_asleep() {
            self.sockets.net.waker().wake();
        }
    }

    pub(crate) fn has_work(&self) -> bool {
        self.state.has_work()
            || !self.posts.is_empty()
            || self.shared.mailbox.has_post()
            || self.sockets.net.has_resolved()
    }

    /// When the next turn has something to do without an event.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        if self.has_work() || !self.has_started {
            return Some(self.state.clock.now());
        }
        self.state.clock.next_wake()
    }

    fn start(&mut self) {
        self.has_started = true;
        self.state.clock.set(self.sockets.net.now());
        self.with_context("on_start", H::on_start);
    }
}
