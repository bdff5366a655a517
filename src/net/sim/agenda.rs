//! What happens when, in a simulated world.

use std::{
    cmp::{Ordering, Reverse},
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{self},
    time::Duration,
};

use super::{
    connection::{EndId, Nanos},
    due::{Action, Due, Lookup, Socket},
    state::{Host, State, nanos},
    trace::Op,
};
use crate::net::Ticket;

impl State {
    pub(super) fn schedule(&mut self, at: Nanos, action: Action) {
        self.sequence += 1;
        self.agenda.push(Reverse(Due { at, sequence: self.sequence, action }));
    }

    pub(super) fn schedule_in(&mut self, after: Duration, action: Action) {
        self.schedule(self.now.saturating_add(nanos(after)), action);
    }

    /// The event that makes up for what a fault withheld.
    pub(super) fn signal_later(&mut self, socket: Socket, flags: u8) {
        let after = self.rng.duration(&self.faults.retry_after);
        self.schedule_in(after, Action::Signal(socket, flags));
    }

    /// Lets happen what is due until then.
    pub(super) fn run(&mut self, until: Nanos) {
        while self.agenda.peek().is_some_and(|Reverse(due)| due.at <= until)
            && let Some(Reverse(due)) = self.agenda.pop()
        {
            self.now = self.now.max(due.at);
            self.act(&due.action);
        }
        self.now = self.now.max(until);
    }

    /// When something happens next: now, if a host that runs has something to hear of.
    pub(super) fn next(&self) -> Option<Nanos> {
        if self.hosts.iter().any(Host::is_due) {
            return Some(self.now);
        }
        self.agenda.peek().map(|Reverse(due)| due.at.max(self.now))
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Deliver(end) => self.deliver(end),
            Action::Signal(socket, flags) => self.signal(socket, flags),
            Action::Syn(connection, attempt) => self.syn(connection, attempt),
            Action::Established(connection) => self.establish(connection),
            Action::Fail(connection, kind) => self.fail_connect(connection, kind),
            Action::SelfConnected(connection) => self.self_connected(connection),
            Action::FaultReset(connection) if self.is_calm => {
                let _ = connection;
            }
            Action::FaultReset(connection) => {
                // A router or the peer's kernel resets, or our own gives up.
                let gives_up = self.rng.chance(0.125);
                let kind =
                    if gives_up { io::ErrorKind::TimedOut } else { io::ErrorKind::ConnectionReset };
                self.reset(connection, kind);
            }
            Action::GiveUp(end, since) => self.give_up(end, since),
            Action::Probe(end) => self.probe(end),
            Action::Heal(a, b) => self.heal(a, b),
            Action::Answer(lookup) => self.answer(lookup),
        }
    }

    fn answer(&mut self, id: u64) {
        let Some(Lookup { host, ticket, name, port, fails, .. }) = self.lookups.remove(&id) else {
            return;
        };
        if !self.hosts[host].is_alive {
            return;
        }
        let ips = match name.parse::<IpAddr>() {
            Ok(ip) => Some(vec![ip]),
            Err(_) => self.names.get(&name).cloned(),
        };
        let found = match ips {
            Some(ips) if !fails => {
                Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect::<Vec<_>>())
            }
            _ => Err(io::Error::other("failed to look the name up")),
        };
        let found = self.noted(host, Op::Answer, id, found, Vec::len);
        self.hosts[host].answers.push_back((ticket, found));
        self.hosts[host].woken.store(true, atomic::Ordering::Release);
    }
}
