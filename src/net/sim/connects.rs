//! How a connection comes to be, or does not.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    connection::{EndId, Link},
    due::{Action, Socket},
    state::{END, READ, State, WRITE},
};

impl State {
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
}
