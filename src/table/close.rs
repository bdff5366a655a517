//! How a connection ends.
//!
//! There are three ways, each stricter than the one before it. What is stricter may follow, what is less
//! strict is ignored, and the first reason is the one that is reported.
//!
//! | verb | phase | what goes on | ends when |
//! |---|---|---|---|
//! | [`drain`](State::drain) | `Draining` | no new work, what is in flight finishes | nothing is in flight or queued |
//! | [`close`](State::close) | `Closing` | calls end, nothing is read, what is queued is written | the queue is empty |
//! | – | `Lingering` | our direction is shut, what still comes is thrown away | the peer has closed, too |
//! | [`abort`](State::abort) | `Dropped` | nothing | step 8 puts it away |
//!
//! The first three are bound in time, by the close timeout and then by the linger time, and end in
//! `Dropped`. The handler is told of the end once, in step 8 after `Lingering` or `Dropped` has begun:
//! see `engine/reap.rs`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{
    ended_call::{AwaitsEnd, EndedCall},
    planted::{Bug, is_planted},
    slot::{Phase, Slot},
    state::State,
};
use crate::{
    ConnId,
    close_mode::CloseMode,
    core::calls::Pending,
    error::{CallError, CloseReason, Fate, PeerText, panic_text},
    protocol::Protocol,
};

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    /// Ends a connection in one of the three ways. If it was dialled, it is not dialled again.
    pub(crate) fn end_for_good(&mut self, id: ConnId, mode: CloseMode, reason: CloseReason) {
        let Some(slot) = self.get_mut(id) else { return };
        if let Some(dial) = &mut slot.dial {
            dial.give_up();
        }
        match mode {
            CloseMode::Drain => self.drain(id, reason),
            CloseMode::Close => self.close(id, reason),
            CloseMode::Abort => self.abort(id, reason),
        }
        self.publish(id);
    }

    /// No new work: what is in flight finishes, what is queued is written, and then it closes.
    pub(crate) fn drain(&mut self, id: ConnId, reason: CloseReason) {
        self.catch_up(id);
        let now = self.clock.now();
        let Some(slot) = self.get_mut(id) else { return };
        match slot.phase {
            Phase::Open => {}
            Phase::Draining | Phase::Closing | Phase::Lingering | Phase::Dropped => return,
            // Nothing is in flight.
            Phase::Greeting => return self.close(id, reason),
            Phase::Resolving | Phase::Connecting | Phase::Waiting => return self.abort(id, reason),
        }
        slot.phase = Phase::Draining;
        self.begin_end(id, reason);
        let Self { slots, pool, .. } = self;
        if let Some(slot) = slots.get_mut(id)
            && !slot.io.is_eof()
        {
            slot.link.begin_farewell(pool, now);
        }
    }

    /// What is queued is written, and then it closes. Calls end now.
    pub(crate) fn close(&mut self, id: ConnId, reason: CloseReason) {
        self.catch_up(id);
        let Some(slot) = self.get_mut(id) else { return };
        match slot.phase {
            Phase::Greeting | Phase::Open | Phase::Draining => {}
            Phase::Closing | Phase::Lingering | Phase::Dropped => return,
            Phase::Resolving | Phase::Connecting | Phase::Waiting => return self.abort(id, reason),
        }
        slot.phase = Phase::Closing;
        self.fanouts.went(id);
        self.begin_end(id, reason);
        self.end_calls(id);
    }

    /// Drops it now, with what is queued.
    pub(crate) fn abort(&mut self, id: ConnId, reason: CloseReason) {
        let Some(slot) = self.get_mut(id) else { return };
        if slot.phase == Phase::Dropped {
            return;
        }
        slot.phase = Phase::Dropped;
        slot.epoch.end(reason);
        self.fanouts.went(id);
        self.publish(id);
        self.note_end(id);
    }

    /// What was done for the connection panicked. It closes, or where it closes already it is dropped;
    /// a second panic must not find the same work again.
    #[cold]
    pub(crate) fn end_panicked(&mut self, id: ConnId, text: String) {
        let reason = CloseReason::Panicked(text);
        match self.get(id).map(|slot| slot.phase) {
            Some(Phase::Closing | Phase::Lingering) => self.abort(id, reason),
            Some(_) => self.close(id, reason),
            None => {}
        }
    }

    /// The peer takes no new requests; it will close, and then that is why. `excludes`: it handles fewer
    /// of ours than it said before.
    pub(crate) fn handle_goaway(
        &mut self,
        id: ConnId,
        text: PeerText,
        redial_after: Duration,
        excludes: bool,
    ) {
        let Some(slot) = self.get_mut(id) else { return };
        slot.epoch.end(CloseReason::PeerGoaway { text });
        if let Some(dial) = &mut slot.dial {
            dial.redial_after = redial_after;
        }
        if excludes {
            for pending in slot.link.take_excluded_calls() {
                self.end_call(id, pending, CallError::PeerDraining);
            }
        }
        self.mark_dirty(id);
        self.watch(id);
    }

    /// Draining or closing has begun: its time counts, and the first reason is kept.
    fn begin_end(&mut self, id: ConnId, reason: CloseReason) {
        let now = self.clock.now();
        let Some(slot) = self.get_mut(id) else { return };
        slot.epoch.end(reason);
        slot.link.close_within(slot.profile.config.close_timeout, now);
        self.publish(id);
        self.mark_dirty(id);
        self.watch(id);
    }

    /// Step 8 has to look at the connection: it lingers or was dropped.
    pub(crate) fn note_end(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id)
            && !slot.lists.is_ended
        {
            slot.lists.is_ended = true;
            self.work.push_ended(id);
        }
    }

    // ---- calls ----

    /// Ends every call of an epoch that is over, with the reason of its end.
    pub(crate) fn end_calls(&mut self, id: ConnId) {
        let Some(slot) = self.get_mut(id) else { return };
        let calls = slot.link.take_calls();
        if calls.is_empty() {
            return;
        }
        let reason = slot.epoch.end_reason().cloned().unwrap_or(CloseReason::Aborted);
        slot.epoch.note_cut_calls(calls.len());
        for pending in calls {
            let fate = self.fate_of(id, &pending);
            let error = match &reason {
                CloseReason::Stopped => CallError::Stopped { fate },
                reason => CallError::Disconnected { reason: reason.clone(), fate },
            };
            self.end_call(id, pending, error);
        }
    }

    /// Whether a call's request may have reached the peer.
    pub(crate) fn fate_of(&self, id: ConnId, pending: &Pending<W>) -> Fate {
        // What is queued is still written, but for a connection that was dropped.
        let may_be =
            |slot: &Slot<P, W>| slot.link.may_be_handled(pending, slot.phase != Phase::Dropped);
        // The protocol is asked, and every call has to end whatever it does.
        let asked = catch_unwind(AssertUnwindSafe(|| self.get(id).is_some_and(may_be)));
        let may_be = asked.unwrap_or_else(|panic| {
            log::error!("a protocol panicked: {}", panic_text(&*panic));
            true
        });
        let may_be = may_be && !is_planted(Bug::SaysNotSent);
        if may_be { Fate::MaybeSent } else { Fate::NotSent }
    }

    /// Ends a call that was taken out of the pending table; who is to be told with the handler is
    /// told later in this turn.
    pub(crate) fn end_call(&mut self, id: ConnId, pending: Pending<W>, error: CallError) {
        if let Some(key) = pending.timer {
            self.clock.disarm(key);
        }
        self.stats.calls_in_flight -= 1;
        if let Some((waiter, error)) = pending.waiter.end(error)
            && !is_planted(Bug::ForgetsCalls)
        {
            self.work.push_ended_call(EndedCall { conn: id, waiter, error });
        }
    }
}
