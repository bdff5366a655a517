//! What the simulated network does between two ends: carries, cuts up, holds back, loses, resets.

use std::io;

use super::{
    connection::{Connection, Content, EndId, Link, Nanos, Pipe, Segment},
    due::{Action, Socket},
    state::{END, READ, State, WRITE, nanos},
    trace::Op,
};

impl State {
    pub(super) fn pipe(&mut self, id: EndId) -> &mut Pipe {
        &mut self.connections[id.connection()].pipes[id.side()]
    }

    /// Whether nothing from this end reaches the other.
    pub(super) fn is_blocked(&self, id: EndId) -> bool {
        let ends = &self.connections[id.connection()].ends;
        let (Some(from), Some(to)) = (ends[id.side()].host, ends[id.other().side()].host) else {
            return false;
        };
        self.is_cut(self.hosts[from].machine, self.hosts[to].machine)
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.machines[from].is_off
            || self.machines[to].is_off
            || (!self.cuts.is_empty() && self.cuts.contains(&(from, to)))
    }

    // ---- Bytes travel.

    pub(super) fn latency(&mut self) -> Nanos {
        nanos(self.rng.duration(&self.faults.latency))
    }

    /// Cuts freshly written bytes into segments and sends them off.
    pub(super) fn send(&mut self, id: EndId, mut len: usize) {
        let at_least = len.div_ceil(64);
        while len > 0 {
            let size = self.rng.range(&self.faults.segment).max(at_least).min(len);
            self.push_segment(id, Content::Bytes(size));
            len -= size;
        }
        self.schedule_delivery(id);
    }

    pub(super) fn send_fin(&mut self, id: EndId) {
        self.push_segment(id, Content::Fin);
        self.schedule_delivery(id);
    }

    fn push_segment(&mut self, id: EndId, content: Content) {
        let due = self.now + self.latency();
        let pipe = self.pipe(id);
        pipe.last_due = pipe.last_due.max(due);
        pipe.segments.push_back(Segment { due: pipe.last_due, content });
    }

    /// Puts the pipe's next step on the agenda, if it can make one.
    pub(super) fn schedule_delivery(&mut self, id: EndId) {
        let now = self.now;
        let pipe = self.pipe(id);
        let Some(head) = pipe.segments.front() else {
            return;
        };
        if pipe.is_full || pipe.blocked_since.is_some() {
            return;
        }
        let at = head.due.max(pipe.stalled_until).max(now);
        if pipe.scheduled != Some(at) {
            pipe.scheduled = Some(at);
            self.schedule(at, Action::Deliver(id));
        }
    }

    /// What is due arrives.
    pub(super) fn deliver(&mut self, id: EndId) {
        let now = self.now;
        if self.pipe(id).scheduled != Some(now) {
            return;
        }
        self.pipe(id).scheduled = None;
        if self.rng.chance(self.faults.partition) {
            self.cut_by_fault(id);
        }
        if self.is_blocked(id) {
            self.block(id);
            return;
        }
        let before = self.pipe(id).flow.arrived;
        while let Some(&Segment { due, content }) = self.pipe(id).segments.front() {
            if due > now || self.pipe(id).stalled_until > now {
                break;
            }
            if self.rng.chance(self.faults.stall) {
                let time = self.rng.duration(&self.faults.stall_time);
                self.pipe(id).stalled_until = now + nanos(time);
                break;
            }
            match content {
                Content::Bytes(len) => {
                    if !self.takes_bytes(id.other()) {
                        // Nobody reads there: the other kernel answers with a reset.
                        self.pipe(id).clear_unsent();
                        self.abort(id.other());
                        return;
                    }
                    if !self.pipe(id).accept_segment(len) {
                        break;
                    }
                }
                Content::Fin => {
                    self.pipe(id).segments.pop_front();
                    self.end(id.other()).has_fin = true;
                    self.end(id.other()).hear(now);
                    self.signal(Socket::End(id.other()), READ | END);
                }
                Content::Reset => {
                    self.pipe(id).clear_unsent();
                    self.reset_end(id.other(), io::ErrorKind::ConnectionReset);
                    return;
                }
            }
        }
        if self.pipe(id).flow.arrived > before {
            // The bytes at one end, their acknowledgement at the other.
            self.end(id.other()).hear(now);
            self.end(id).hear(now);
            self.signal(Socket::End(id.other()), READ);
            let has_room = self.pipe(id).has_room();
            if has_room && std::mem::take(&mut self.end(id).wants_room) {
                self.signal(Socket::End(id), WRITE);
            }
        }
        self.schedule_delivery(id);
    }

    fn takes_bytes(&mut self, id: EndId) -> bool {
        if self.end(id).is_open && self.end(id).link == Link::Connecting {
            // The listener's answer was lost, and its first bytes tell as much.
            self.establish(id.connection());
        }
        self.end(id).is_open && self.end(id).link == Link::Up
    }

    // ---- A connection ends.

    /// A kernel sends a reset: what did not leave yet is lost, the rest arrives before it.
    pub(super) fn abort(&mut self, id: EndId) {
        if self.pipe(id).has_reset {
            return;
        }
        if self.is_blocked(id) {
            self.pipe(id).clear_unsent();
            return;
        }
        let count = self.pipe(id).segments.len();
        let keep = if count == 0 { 0 } else { self.rng.below(count + 1) };
        let pipe = self.pipe(id);
        let lost = pipe.segments.drain(keep..).map(|segment| segment.content.len()).sum::<usize>();
        pipe.bytes.truncate(pipe.bytes.len() - lost);
        pipe.is_full = false;
        pipe.has_reset = true;
        self.push_segment(id, Content::Reset);
        self.schedule_delivery(id);
    }

    /// The network resets both ends at once.
    pub(super) fn reset(&mut self, connection: usize, kind: io::ErrorKind) {
        self.note(0, Op::Reset, connection as u64, 0, Some(kind));
        for id in [EndId::client(connection), EndId::server(connection)] {
            self.reset_end(id, kind);
        }
    }

    pub(super) fn reset_end(&mut self, id: EndId, kind: io::ErrorKind) {
        self.pipe(id).clear_unsent();
        self.pipe(id.other()).clear_unsent();
        let loses = self.rng.chance(self.faults.reset_loses_unread);
        let end = self.end(id);
        let error = match end.link {
            _ if !end.is_open => return,
            Link::Down => return,
            Link::Connecting | Link::Itself => io::ErrorKind::ConnectionRefused,
            // As Linux has it in CLOSE_WAIT.
            Link::Up if end.has_fin && kind == io::ErrorKind::ConnectionReset => {
                io::ErrorKind::BrokenPipe
            }
            Link::Up => kind,
        };
        end.link = Link::Down;
        end.error = Some(error);
        if loses {
            self.pipe(id.other()).clear();
        }
        self.signal(Socket::End(id), READ | WRITE | END);
    }

    /// What a kernel does when a process closes its socket, or ends.
    pub(super) fn close_end(&mut self, id: EndId) {
        let end = self.end(id);
        if !std::mem::take(&mut end.is_open) {
            return;
        }
        let (host, slot, link, is_shut) = (end.host, end.slot, end.link, end.is_shut);
        let is_registered = end.token.take().is_some();
        let is_held = std::mem::take(&mut end.is_held);
        let host = host.expect("an open end has a host");
        self.hosts[host].descriptors -= usize::from(is_held);
        if is_registered {
            self.delist(host, slot);
        }
        let is_last = !self.end(id.other()).is_open;
        if link == Link::Connecting {
            return;
        }
        if link != Link::Up || is_last {
            self.pipe(id.other()).clear();
            if is_last {
                self.pipe(id).clear();
            }
            return;
        }
        let incoming = self.pipe(id.other());
        let unread = std::mem::take(&mut incoming.arrived);
        incoming.bytes.drain(..unread);
        incoming.is_full = false;
        self.schedule_delivery(id.other());
        if unread > 0 {
            self.abort(id);
        } else if !is_shut {
            self.send_fin(id);
        }
    }

    /// A process ends: its kernel closes what it had.
    pub(super) fn end_process(&mut self, host: usize) {
        self.hosts[host].is_alive = false;
        for index in 0..self.listeners.len() {
            if self.listeners[index].host == host {
                self.close_listener(index);
            }
        }
        for id in self.ends_of(|_, owner| owner == host) {
            self.close_end(id);
        }
    }

    /// A machine loses power: nobody is told anything.
    pub(super) fn power_off(&mut self, machine: usize) {
        self.machines[machine].is_off = true;
        self.expect_silence(|a, b| a == machine || b == machine);
        self.machines[machine].listeners.clear();
        for id in self.ends_of(|state, owner| state.hosts[owner].machine == machine) {
            self.end(id).is_open = false;
            self.end(id).token = None;
            self.pipe(id).clear();
            self.pipe(id.other()).clear_unsent();
        }
        for host in self.hosts.iter_mut().filter(|host| host.machine == machine) {
            host.is_alive = false;
            host.descriptors = 0;
            host.sockets.clear();
        }
        for listener in &mut self.listeners {
            if self.hosts[listener.host].machine == machine {
                listener.is_open = false;
                listener.backlog.clear();
            }
        }
    }

    /// The open ends whose process is one of these.
    fn ends_of(&self, is_one: impl Fn(&Self, usize) -> bool) -> Vec<EndId> {
        let mut found = Vec::new();
        for (connection, Connection { ends, .. }) in self.connections.iter().enumerate() {
            for (end, id) in ends.iter().zip([EndId::client(connection), EndId::server(connection)])
            {
                if end.is_open && end.host.is_some_and(|host| is_one(self, host)) {
                    found.push(id);
                }
            }
        }
        found
    }
}
