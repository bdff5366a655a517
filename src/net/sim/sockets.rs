//! What a process asks of its simulated kernel.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::{
    connection::{Connection, End, EndId, Link, Nanos, Pipe},
    due::{Action, Lookup, Socket},
    state::{END, FIRST_PORT, Listener, READ, State, WRITE, nanos},
    trace::Op,
};
use crate::net::{ListenOptions, StreamOptions, Ticket, Token};

/// A receive buffer that is shorter takes time to be filled again, as a window that is shorter than a segment
/// does. Else a long body would come through it at one moment, a turn for each piece, as in a loop that spins.
const SHORT: usize = 1460;

/// How long that takes, in nanoseconds.
const REFILL: Nanos = 1000;

impl State {
    // ---- Listeners.

    pub(super) fn listen(
        &mut self,
        host: usize,
        addr: SocketAddr,
        options: &ListenOptions,
        token: Option<Token>,
    ) -> io::Result<(usize, SocketAddr)> {
        self.take_descriptor(host)?;
        let machine = self.hosts[host].machine;
        let ip = addr.ip();
        let is_own = ip.is_unspecified() || ip.is_loopback();
        if !is_own && !self.machines[machine].ips.contains(&ip) {
            return Err(ErrorKind::AddrNotAvailable.into());
        }
        let port = if addr.port() == 0 { self.free_port(machine, None) } else { addr.port() };
        let clashes = |&index: &usize| {
            let other = self.listeners[index].addr;
            let either_any = other.ip().is_unspecified() || ip.is_unspecified();
            other.port() == port
                && (other.ip() == ip || either_any && other.is_ipv4() == addr.is_ipv4())
        };
        if self.machines[machine].listeners.iter().any(clashes) {
            return Err(ErrorKind::AddrInUse.into());
        }
        let addr = SocketAddr::new(ip, port);
        let index = self.listeners.len();
        self.listeners.push(Listener {
            host,
            addr,
            options: *options,
            token,
            is_open: true,
            backlog: VecDeque::new(),
            is_queued: false,
            slot: 0,
        });
        self.machines[machine].listeners.push(index);
        self.hosts[host].descriptors += 1;
        if token.is_some() {
            self.enlist(host, Socket::Listener(index));
        }
        Ok((index, addr))
    }

    /// Registers a listener that the application bound.
    pub(super) fn adopt_listener(
        &mut self,
        index: usize,
        options: &ListenOptions,
        token: Token,
    ) -> SocketAddr {
        let listener = &mut self.listeners[index];
        assert!(listener.token.replace(token).is_none(), "a listener is adopted once");
        // What waits in the backlog has the options of before.
        listener.options.stream = options.stream;
        let (host, addr) = (listener.host, listener.addr);
        self.enlist(host, Socket::Listener(index));
        self.signal(Socket::Listener(index), READ);
        addr
    }

    pub(super) fn accept(&mut self, index: usize) -> io::Result<(EndId, SocketAddr)> {
        let host = self.listeners[index].host;
        // The kernel takes the descriptor first, before it looks whether anybody waits.
        self.take_descriptor(host)?;
        if self.listeners[index].backlog.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.interrupt(Socket::Listener(index), READ)?;
        if self.rng.chance(self.faults.accept_error) {
            let kinds = [
                ErrorKind::OutOfMemory,
                ErrorKind::PermissionDenied,
                ErrorKind::NetworkDown,
                ErrorKind::Other,
            ];
            return Err(kinds[self.rng.below(kinds.len())].into());
        }
        let id = self.listeners[index].backlog.pop_front().expect("it is not empty");
        if self.rng.chance(self.faults.accept_aborted) {
            self.drop_waiting(id);
            return Err(ErrorKind::ConnectionAborted.into());
        }
        self.end(id).is_held = true;
        self.hosts[host].descriptors += 1;
        let peer = self.end(id.other()).addr;
        Ok((id, if self.end(id).is_mapped { mapped(peer) } else { peer }))
    }

    /// Resets a connection that nobody accepted.
    fn drop_waiting(&mut self, id: EndId) {
        self.end(id).is_open = false;
        self.pipe(id.other()).clear();
        self.abort(id);
    }

    pub(super) fn close_listener(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        if !std::mem::take(&mut listener.is_open) {
            return;
        }
        let (host, slot, is_registered) = (listener.host, listener.slot, listener.token.is_some());
        for id in std::mem::take(&mut listener.backlog) {
            self.drop_waiting(id);
        }
        if is_registered {
            self.delist(host, slot);
        }
        self.hosts[host].descriptors -= 1;
        let machine = self.hosts[host].machine;
        self.machines[machine].listeners.retain(|&open| open != index);
    }

    // ---- Connecting.

    pub(super) fn connect(
        &mut self,
        host: usize,
        addr: SocketAddr,
        options: &StreamOptions,
        token: Option<Token>,
    ) -> io::Result<EndId> {
        self.take_descriptor(host)?;
        if self.unrouted.contains(&addr.ip()) {
            return Err(ErrorKind::NetworkUnreachable.into());
        }
        if self.rng.chance(self.faults.connect_error) {
            let kinds = [ErrorKind::AddrNotAvailable, ErrorKind::NetworkUnreachable];
            return Err(kinds[self.rng.below(kinds.len())].into());
        }
        let machine = self.hosts[host].machine;
        let ip = self.local_ip(machine, addr.ip()).ok_or(ErrorKind::NetworkUnreachable)?;
        let local = SocketAddr::new(ip, self.free_port(machine, Some((ip, addr))));

        let index = self.connections.len();
        let id = EndId::client(index);
        let (send_limit, receive_limit) = self.buffers(options);
        self.connections.push(Connection {
            ends: [
                End {
                    host: Some(host),
                    is_open: true,
                    is_held: true,
                    token,
                    user_timeout: options.user_timeout,
                    keepalive: options.keepalive,
                    ..End::new(local)
                },
                End::new(addr),
            ],
            pipes: [
                Pipe { send_limit, ..Pipe::default() },
                Pipe { receive_limit, ..Pipe::default() },
            ],
        });
        self.pairs.insert((local, addr), index);
        self.hosts[host].descriptors += 1;
        if token.is_some() {
            self.enlist(host, Socket::End(id));
        }
        self.decide(index, machine, addr);
        Ok(id)
    }

    /// What becomes of a connect.
    fn decide(&mut self, index: usize, machine: usize, addr: SocketAddr) {
        let faults = &self.faults;
        let is_hole = self.rng.chance(faults.black_hole) || self.holes.contains(&addr.ip());
        let times_out = self.rng.chance(faults.connect_timeout);
        let is_refused = self.rng.chance(faults.connect_refused);
        let is_unreachable = self.rng.chance(faults.connect_unreachable);
        let mut after = self.rng.duration(&faults.latency);
        if times_out || self.rng.chance(faults.connect_delay) {
            after += self.rng.duration(&faults.connect_delay_time);
        }
        if is_hole {
            return;
        }
        let action = if times_out {
            Action::Fail(index, ErrorKind::TimedOut)
        } else if is_refused {
            Action::Fail(index, ErrorKind::ConnectionRefused)
        } else if is_unreachable {
            Action::Fail(index, ErrorKind::HostUnreachable)
        } else if self.reaches_itself(machine, addr) {
            Action::SelfConnected(index)
        } else {
            Action::Syn(index, 0)
        };
        self.schedule_in(after, action);
    }

    fn reaches_itself(&mut self, machine: usize, addr: SocketAddr) -> bool {
        addr.port() >= FIRST_PORT
            && self.route(machine, addr.ip()) == Some(machine)
            && self.find_listener(machine, addr).is_none()
            && self.rng.chance(self.faults.self_connect)
    }

    pub(super) fn connected(&mut self, id: EndId) -> io::Result<Option<SocketAddr>> {
        let peer = self.end(id.other()).addr;
        let end = self.end(id);
        if let Some(kind) = end.error.take() {
            return Err(kind.into());
        }
        match end.link {
            Link::Itself => {
                Err(io::Error::new(ErrorKind::ConnectionRefused, "connected to itself"))
            }
            Link::Connecting | Link::Down => Ok(None),
            Link::Up => Ok(Some(peer)),
        }
    }

    /// Whether a started connect has led to a connection; none while that is undecided.
    pub(super) fn is_up(&mut self, id: EndId) -> Option<bool> {
        match self.end(id).link {
            Link::Connecting => None,
            link => Some(link == Link::Up),
        }
    }

    /// Gives a stream that the application connected the options of those that the reactor does.
    pub(super) fn adopt_stream(
        &mut self,
        id: EndId,
        options: &StreamOptions,
    ) -> io::Result<SocketAddr> {
        let peer = self.end(id.other()).addr;
        let end = self.end(id);
        if end.link != Link::Up {
            return Err(ErrorKind::NotConnected.into());
        }
        end.user_timeout = options.user_timeout;
        end.keepalive = options.keepalive;
        Ok(peer)
    }

    pub(super) fn local_addr(&mut self, id: EndId) -> SocketAddr {
        let end = self.end(id);
        if end.is_mapped { mapped(end.addr) } else { end.addr }
    }

    pub(super) fn register(&mut self, id: EndId, token: Token) -> io::Result<()> {
        let end = self.end(id);
        if end.token.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let Some(host) = end.host.filter(|_| end.is_open) else {
            return Err(ErrorKind::NotFound.into());
        };
        if self.rng.chance(self.faults.register_error) {
            return Err(ErrorKind::OutOfMemory.into());
        }
        self.end(id).token = Some(token);
        self.enlist(host, Socket::End(id));
        // As the system does, it tells at once of what is there already.
        self.signal(Socket::End(id), READ | WRITE | END);
        Ok(())
    }

    // ---- Bytes.

    pub(super) fn read(&mut self, id: EndId, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let available = self.pipe(id.other()).arrived;
        if available > 0 || self.end(id).ends() {
            self.interrupt(Socket::End(id), READ)?;
        }
        if available == 0 {
            let end = self.end(id);
            return match end.error.take() {
                Some(kind) => Err(kind.into()),
                None if end.ends() || !end.is_open => Ok(0),
                None => Err(ErrorKind::WouldBlock.into()),
            };
        }
        let mut len = available.min(buf.len());
        if self.rng.chance(self.faults.short_read) {
            len = self.rng.part_of(len);
        }
        let now = self.now;
        let pipe = self.pipe(id.other());
        pipe.take(&mut buf[..len]);
        if std::mem::take(&mut pipe.is_full) {
            if pipe.receive_limit < SHORT {
                pipe.stalled_until = pipe.stalled_until.max(now + REFILL);
            }
            self.schedule_delivery(id.other());
        }
        let end = self.end(id);
        if len < buf.len() && (len < available || end.hint_lost && end.ends()) {
            // The reader takes a short read for the last, as if the rest had not been there yet.
            self.signal(Socket::End(id), READ);
        }
        Ok(len)
    }

    pub(super) fn write(&mut self, id: EndId, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let end = self.end(id);
        if let Some(kind) = end.error.take() {
            return Err(kind.into());
        }
        match end.link {
            Link::Connecting | Link::Itself => return Err(ErrorKind::WouldBlock.into()),
            Link::Up if end.is_open && !end.is_shut => {}
            Link::Up | Link::Down => return Err(ErrorKind::BrokenPipe.into()),
        }
        if total == 0 {
            return Ok(0);
        }
        let room = self.pipe(id).room();
        if room < total {
            self.end(id).wants_room = true;
        }
        if room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.interrupt(Socket::End(id), WRITE)?;
        let mut len = room.min(total);
        if self.rng.chance(self.faults.partial_write) {
            let all = len;
            len = self.rng.part_of(len);
            if len < all {
                self.signal_later(Socket::End(id), WRITE);
            }
        }
        let is_lost = len > 1 && self.rng.chance(self.faults.lost_by_write);
        let taken = len - usize::from(is_lost);
        self.pipe(id).put(slices, taken);
        self.send(id, taken);
        if self.rng.chance(self.faults.reset) {
            let after = self.rng.duration(&self.faults.latency) * 2;
            self.schedule_in(after, Action::FaultReset(id.connection()));
        }
        Ok(len)
    }

    pub(super) fn shutdown(&mut self, id: EndId) -> io::Result<()> {
        if self.rng.chance(self.faults.shutdown_error) && self.end(id).link == Link::Up {
            self.reset(id.connection(), ErrorKind::ConnectionReset);
        }
        let end = self.end(id);
        if end.link != Link::Up || !end.is_open {
            return Err(ErrorKind::NotConnected.into());
        }
        if !std::mem::replace(&mut end.is_shut, true) {
            self.send_fin(id);
        }
        Ok(())
    }

    // ---- Names.

    pub(super) fn resolve(&mut self, host: usize, ticket: Ticket, name: &str, port: u16) {
        let fails = self.rng.chance(self.faults.resolve_error);
        let is_lost = self.rng.chance(self.faults.resolve_never);
        let after = self.rng.duration(&self.faults.resolve_time);
        let id = self.next_lookup;
        self.next_lookup += 1;
        self.note(host, Op::Resolve, id, port.into(), None);
        let name = name.to_owned();
        self.lookups.insert(id, Lookup { host, ticket, name, port, fails, is_lost });
        if !is_lost {
            self.schedule_in(after, Action::Answer(id));
        }
    }

    // ---- Common parts.

    /// An invented `Interrupted` or `WouldBlock`, the latter with the event that follows it.
    fn interrupt(&mut self, socket: Socket, flag: u8) -> io::Result<()> {
        if self.rng.chance(self.faults.interrupted) {
            return Err(ErrorKind::Interrupted.into());
        }
        if self.rng.chance(self.faults.would_block) {
            self.signal_later(socket, flag);
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Fails where the process has no descriptor left.
    fn take_descriptor(&mut self, host: usize) -> io::Result<()> {
        if self.rng.chance(self.faults.exhausted) {
            let time = self.rng.duration(&self.faults.exhausted_time);
            self.exhaust(host, time);
        }
        let entry = &self.hosts[host];
        if !entry.is_alive {
            return Err(ErrorKind::NotConnected.into());
        }
        let is_at_limit = entry.descriptor_limit.is_some_and(|limit| entry.descriptors >= limit);
        if is_at_limit || entry.exhausted_until > self.now {
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        Ok(())
    }

    pub(super) fn exhaust(&mut self, host: usize, time: Duration) {
        let until = self.now.saturating_add(nanos(time));
        let entry = &mut self.hosts[host];
        entry.exhausted_until = entry.exhausted_until.max(until);
        self.note(host, Op::Exhaust, 0, 0, None);
    }

    /// Send and receive buffer of a new end.
    pub(super) fn buffers(&mut self, options: &StreamOptions) -> (usize, usize) {
        let Self { rng, faults, .. } = self;
        let mut draw = |option: Option<usize>, range| match option {
            Some(bytes) if !faults.ignore_buffer_options => bytes.max(1),
            _ => rng.range(range),
        };
        let send = draw(options.send_buffer, &faults.send_buffer);
        (send, draw(options.receive_buffer, &faults.receive_buffer))
    }

    /// Where a connect to there would come from.
    fn local_ip(&self, machine: usize, to: IpAddr) -> Option<IpAddr> {
        let ips = &self.machines[machine].ips;
        if to.is_unspecified() {
            let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
            return Some(if to.is_ipv4() { v4 } else { Ipv6Addr::LOCALHOST.into() });
        }
        if to.is_loopback() || ips.contains(&to) {
            return Some(to);
        }
        ips.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()).copied()
    }

    /// A port that no listener of the machine has, nor a connection from there to the same peer.
    fn free_port(&mut self, machine: usize, pair: Option<(IpAddr, SocketAddr)>) -> u16 {
        const COUNT: u16 = 61_000 - FIRST_PORT;
        for _ in 0..COUNT {
            let port = self.machines[machine].next_port;
            let after = port - FIRST_PORT + 1;
            self.machines[machine].next_port = FIRST_PORT + after % COUNT;
            let listens = |&index: &usize| self.listeners[index].addr.port() == port;
            let connects = || {
                let pair = pair.map(|(ip, peer)| (SocketAddr::new(ip, port), peer));
                let index = pair.and_then(|pair| self.pairs.get(&pair));
                index.is_some_and(|&index| self.connections[index].ends.iter().any(|e| e.is_open))
            };
            if !self.machines[machine].listeners.iter().any(listens) && !connects() {
                return port;
            }
        }
        panic!("machine {machine} has no port left");
    }
}

/// As an IPv6 listener sees an IPv4 address.
fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// "Too many open files", or what Winsock calls so.
const EMFILE: i32 = if cfg!(windows) { 10_024 } else { 24 };
