//! What becomes of connections whose bytes do not arrive: cuts, keepalive, time-outs.

use std::{io, time::Duration};

use super::{
    connection::{EndId, Link, Nanos},
    due::Action,
    state::{State, nanos},
    trace::Op,
};
use crate::Keepalive;

/// After how long without acknowledgement Linux gives a connection up, at its default settings.
const GIVE_UP: Duration = Duration::from_secs(924);

impl State {
    // ---- Cuts.

    pub(super) fn cut_by_fault(&mut self, id: EndId) {
        let ends = &self.connections[id.connection()].ends;
        let [Some(a), Some(b)] = [&ends[0], &ends[1]].map(|end| end.host) else {
            return;
        };
        let (a, b) = (self.hosts[a].machine, self.hosts[b].machine);
        if a == b {
            return;
        }
        let time = self.rng.duration(&self.faults.partition_time);
        let ways =
            [[true, true], [true, true], [true, true], [true, true], [true, false], [false, true]];
        let ways = ways[self.rng.below(ways.len())];
        for ((from, to), is_cut) in [(a, b), (b, a)].into_iter().zip(ways) {
            if is_cut && self.cut(from, to) {
                self.schedule_in(time, Action::Heal(from, to));
            }
        }
    }

    /// Nothing passes from one machine to the other from now on. False if that is so already.
    pub(super) fn cut(&mut self, from: usize, to: usize) -> bool {
        let is_new = self.cuts.insert((from, to));
        if is_new {
            self.note(from, Op::Cut, to as u64, 0, None);
            self.expect_silence(|a, b| [(a, b), (b, a)].contains(&(from, to)));
        }
        is_new
    }

    // ---- Keepalive.

    /// From now on probes between such machines may go unanswered. Until now all were answered, so
    /// that none had to be simulated.
    pub(super) fn expect_silence(&mut self, concerns: impl Fn(usize, usize) -> bool) {
        for connection in 0..self.connections.len() {
            let [Some(a), Some(b)] =
                [0, 1].map(|side| self.connections[connection].ends[side].host)
            else {
                continue;
            };
            if !concerns(self.hosts[a].machine, self.hosts[b].machine) {
                continue;
            }
            for id in [EndId::client(connection), EndId::server(connection)] {
                let now = self.now;
                let end = self.end(id);
                if !end.is_open || end.link != Link::Up || end.probe_due.is_some() {
                    continue;
                }
                let Some(Keepalive { idle, .. }) = end.keepalive else { continue };
                let idle = nanos(idle).max(1);
                // The last probe that was answered.
                end.heard += now.saturating_sub(end.heard) / idle * idle;
                let due = end.heard.saturating_add(idle);
                self.schedule_probe(id, due);
            }
        }
    }

    fn schedule_probe(&mut self, id: EndId, due: Nanos) {
        self.end(id).probe_due = Some(due);
        self.schedule(due, Action::Probe(id));
    }

    /// The keepalive timer of an end fires, as Linux has it.
    pub(super) fn probe(&mut self, id: EndId) {
        let now = self.now;
        let is_busy = !self.pipe(id).segments.is_empty();
        let is_heard = !self.is_blocked(id) && !self.is_blocked(id.other());
        let end = self.end(id);
        if end.probe_due != Some(now) {
            return;
        }
        end.probe_due = None;
        let Some(keepalive) = end.keepalive.filter(|_| end.is_open) else { return };
        let Keepalive { idle, interval, probes } = keepalive;
        if end.link != Link::Up {
            return;
        }
        if is_heard {
            self.answer_probe(id);
            return;
        }
        let silence = Duration::from_nanos(now - end.heard);
        if is_busy || silence < idle {
            // What is under way will be acknowledged, or time out.
            let last = if is_busy { now } else { end.heard };
            self.schedule_probe(id, last.saturating_add(nanos(idle)));
            return;
        }
        // A user timeout takes the place of the count.
        let is_over = match end.user_timeout {
            Some(timeout) => end.probes > 0 && silence >= timeout,
            None => end.probes >= probes,
        };
        if is_over {
            self.reset_end(id, io::ErrorKind::TimedOut);
            self.abort(id);
        } else {
            end.probes += 1;
            self.schedule_probe(id, now.saturating_add(nanos(interval)));
        }
    }

    /// A probe reached the other machine, and its answer comes back.
    fn answer_probe(&mut self, id: EndId) {
        let now = self.now;
        let is_known = self.end(id.other()).is_open
            || self.end(id).has_fin
            || !self.pipe(id.other()).segments.is_empty();
        if is_known {
            self.end(id).hear(now);
        } else {
            // It lost power since, and with it the socket.
            self.reset_end(id, io::ErrorKind::ConnectionReset);
        }
    }

    /// The pipe waits for the cut to heal. A kernel sends a reset once and nothing else.
    pub(super) fn block(&mut self, id: EndId) {
        let now = self.now;
        if self.pipe(id).has_reset {
            self.pipe(id).clear_unsent();
            return;
        }
        if self.pipe(id).blocked_since.replace(now).is_none() {
            let timeout = self.end(id).user_timeout.unwrap_or(GIVE_UP);
            self.schedule_in(timeout, Action::GiveUp(id, now));
        }
    }

    pub(super) fn heal(&mut self, from: usize, to: usize) {
        if !self.cuts.remove(&(from, to)) {
            return;
        }
        self.note(from, Op::Heal, to as u64, 0, None);
        self.unblock();
    }

    /// Lets pipes move on that are no longer blocked.
    pub(super) fn unblock(&mut self) {
        for connection in 0..self.connections.len() {
            for id in [EndId::client(connection), EndId::server(connection)] {
                if self.pipe(id).blocked_since.is_some() && !self.is_blocked(id) {
                    self.pipe(id).blocked_since = None;
                    self.schedule_delivery(id);
                }
            }
        }
    }

    /// What was sent went unacknowledged for too long.
    pub(super) fn give_up(&mut self, id: EndId, since: Nanos) {
        if self.pipe(id).blocked_since == Some(since) && !self.pipe(id).segments.is_empty() {
            self.reset_end(id, io::ErrorKind::TimedOut);
        }
    }
}
