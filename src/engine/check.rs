//! Questions of tests to a loop, and the invariants between two turns.

use super::Engine;
use crate::{
    Handler,
    net::Net,
    table::{slot::Phase, state::State},
};

impl<H: Handler, N: Net> Engine<H, N> {
    /// Whether another thread posted something that no turn has taken.
    pub(crate) fn has_post(&self) -> bool {
        self.shared.mailbox.has_post()
    }

    /// The work that keeps the loop from waiting.
    pub(crate) fn work(&self) -> String {
        let State { work, fanouts, clock, listeners, .. } = &self.state;
        let due = clock.next_wake().is_some_and(|at| at <= clock.now());
        format!(
            "{:?} fanouts {} timers {due} listeners {:?} posts {}",
            work.amounts(),
            fanouts.len(),
            listeners.iter().map(|listener| listener.is_ready).collect::<Vec<_>>(),
            self.shared.mailbox.has_post(),
        )
    }

    /// Checks the invariants that hold between two turns.
    pub(crate) fn check(&self) {
        let State { slots, clock, work, board, .. } = &self.state;
        let mut timers = 0;
        let mut calls = 0;
        for slot in slots.iter() {
            let config = &slot.profile.config;
            let most = config.hard_limit.saturating_add(config.max_body).saturating_add(4096);
            assert!(slot.link.queued_cost() <= most);
            slot.link.check();
            let (io, lists) = (slot.io, slot.lists);
            assert!(!lists.is_ready || work.is_ready(slot.id.slot()), "in no list to be read");
            assert!(!lists.is_dirty || work.is_dirty(slot.id.slot()), "in no list to be flushed");
            let is_ended = work.is_ended(slot.id);
            assert_eq!(lists.is_ended, is_ended, "in the list of those that ended, or not");
            assert!(slot.phase != Phase::Dropped || is_ended, "dropped and not to be put away");
            // Readiness that nobody will hear of again is not forgotten.
            assert!(
                !(slot.can_read() && (io.is_readable || slot.link.has_waiting())) || lists.is_ready,
                "{:?} could be read and is in no list: {:?}",
                slot.id,
                slot.phase
            );
            assert!(
                !(slot.is_up() && io.is_writable && slot.link.has_output()) || lists.is_dirty,
                "{:?} could be written and is in no list",
                slot.id
            );
            timers += usize::from(slot.watch.is_some())
                + slot.own.as_ref().map_or(0, |own| own.timers.len());
            calls += slot.link.calls_in_flight();
            assert_eq!(board.is_open(slot.id), slot.exists());
        }
        self.state.check_fanouts();
        assert_eq!(self.state.stats.calls_in_flight, calls as u64);
        assert_eq!(self.state.stats.connections, slots.len() as u64);
        assert!(clock.timers() >= timers, "a connection's timer is not in the wheel");
    }
}
