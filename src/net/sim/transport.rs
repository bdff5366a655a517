//! What the simulated network does between two ends: carries, cuts up, holds back, loses, resets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    connection::{Connection, Content, EndId, Link, Nanos, Pipe, Segment},
    state::{Action, END, READ, Socket, State, WRITE, nanos},
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

    // ---- A connection comes to be.

    /// The connect reaches the listener's machine, or does not.
    pub(super) fn syn(&mut self, connection: usize, attempt: u32) {
        let [client, server] = &self.connections[connection].ends;
        let Some(host) = client.host.filter(|_| client.is_open) else {
            return;
        };
        let (target, peer) = (server.addr, client.addr);
        let machine = self.hosts[host].machine;
        let Some(other) = self.route(machine, target.ip()) else {
            self.decide_later(connection, io::ErrorKind::HostUnreachable);
            return;
        };
        if self.is_cut(machine, other) || self.is_cut(other, machine) {
            self.retry_syn(connection, attempt);
            return;
        }
        let Some(listener) = self.find_listener(other, target) else {
            self.decide_later(connection, io::ErrorKind::ConnectionRefused);
            return;
        };
        let entry = &self.listeners[listener];
        if entry.backlog.len() >= usize::try_from(entry.options.backlog.max(1)).unwrap_or(1) {
            self.retry_syn(connection, attempt);
            return;
        }
        let (host, options) = (entry.host, entry.options.stream);
        let is_mapped = entry.addr.is_ipv6() && peer.is_ipv4();
        let (send_limit, receive_limit) = self.buffers(&options);
        let due = self.now + self.latency();
        let id = EndId::server(connection);
        let pipe = self.pipe(id);
        pipe.send_limit = send_limit;
        pipe.last_due = due;
        self.pipe(id.other()).receive_limit = receive_limit;
        let end = self.end(id);
        end.host = Some(host);
        end.is_open = true;
        end.is_mapped = is_mapped;
        end.link = Link::Up;
        end.user_timeout = options.user_timeout;
        end.keepalive = options.keepalive;
        end.heard = due;
        self.listeners[listener].backlog.push_back(id);
        self.signal(Socket::Listener(listener), READ);
        self.schedule(due, Action::Established(connection));
    }

    /// The same intervals as Linux: 1, 2, 4 … seconds, and 127 in all.
    fn retry_syn(&mut self, connection: usize, attempt: u32) {
        let after = Duration::from_secs(1 << attempt);
        if attempt < 6 {
            self.schedule_in(after, Action::Syn(connection, attempt + 1));
        } else {
            self.schedule_in(after, Action::Fail(connection, io::ErrorKind::TimedOut));
        }
    }

    /// The other machine's answer is on its way.
    fn decide_later(&mut self, connection: usize, kind: io::ErrorKind) {
        let due = self.now + self.latency();
        self.schedule(due, Action::Fail(connection, kind));
    }

    pub(super) fn establish(&mut self, connection: usize) {
        let client = EndId::client(connection);
        if self.end(client).link != Link::Connecting {
            return;
        }
        if !self.end(client).is_open {
            self.abort(client);
            return;
        }
        if self.is_blocked(client.other()) {
            self.schedule_in(Duration::from_secs(1), Action::Established(connection));
            return;
        }
        let now = self.now;
        self.end(client).link = Link::Up;
        self.end(client).heard = now;
        self.signal(Socket::End(client), WRITE);
        if self.rng.chance(self.faults.connect_reset) {
            let due = self.now + self.latency();
            self.schedule(due, Action::FaultReset(connection));
        }
    }

    pub(super) fn fail_connect(&mut self, connection: usize, kind: io::ErrorKind) {
        let id = EndId::client(connection);
        let end = self.end(id);
        if end.is_open && end.link == Link::Connecting {
            end.link = Link::Down;
            end.error = Some(kind);
            self.signal(Socket::End(id), READ | WRITE | END);
        }
    }

    pub(super) fn self_connected(&mut self, connection: usize) {
        let id = EndId::client(connection);
        let end = self.end(id);
        if end.is_open && end.link == Link::Connecting {
            end.link = Link::Itself;
            self.signal(Socket::End(id), WRITE);
        }
    }

    /// The machine that an address leads to.
    pub(super) fn route(&self, from: usize, ip: IpAddr) -> Option<usize> {
        if ip.is_loopback() || ip.is_unspecified() {
            return Some(from);
        }
        self.machine_of.get(&ip).copied()
    }

    pub(super) fn find_listener(&self, machine: usize, addr: SocketAddr) -> Option<usize> {
        let takes = |&&index: &&usize| {
            let listener = &self.listeners[index];
            let (own, ip) = (listener.addr.ip(), addr.ip());
            let is_any = own.is_unspecified()
                && (own.is_ipv4() == ip.is_ipv4() || own.is_ipv6() && !listener.options.only_v6);
            listener.addr.port() == addr.port() && (own == ip || is_any)
        };
        self.machines[machine].listeners.iter().find(takes).copied()
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

    // ---- Cuts.

    fn cut_by_fault(&mut self, id: EndId) {
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
                let Some((first, ..)) = end.keepalive else { continue };
                let first = nanos(first).max(1);
                // The last probe that was answered.
                end.heard += now.saturating_sub(end.heard) / first * first;
                let due = end.heard.saturating_add(first);
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
        let Some((first, interval, count)) = end.keepalive.filter(|_| end.is_open) else { return };
        if end.link != Link::Up {
            return;
        }
        if is_heard {
            self.answer_probe(id);
            return;
        }
        let silence = Duration::from_nanos(now - end.heard);
        if is_busy || silence < first {
            // What is under way will be acknowledged, or time out.
            let last = if is_busy { now } else { end.heard };
            self.schedule_probe(id, last.saturating_add(nanos(first)));
            return;
        }
        // A user timeout takes the place of the count.
        let is_over = match end.user_timeout {
            Some(timeout) => end.probes > 0 && silence >= timeout,
            None => end.probes >= count,
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
    fn block(&mut self, id: EndId) {
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

    fn reset_end(&mut self, id: EndId, kind: io::ErrorKind) {
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

/// After how long without acknowledgement Linux gives a connection up, at its default settings.
const GIVE_UP: Duration = Duration::from_secs(924);
