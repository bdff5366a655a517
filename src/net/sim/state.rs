//! The state of a simulated world: its time, its agenda, its hosts and what they are told.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    io, mem,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{self, AtomicBool},
    },
    time::{Duration, Instant},
};

use super::{
    Faults, SimRng,
    connection::{Connection, End, EndId, Link, Nanos},
    due::{Action, Due, Lookup, Socket},
    trace::{Entry, Op, Trace},
};
use crate::{
    moment::Moment,
    net::{Addrs, Event, ListenOptions, Ticket, Token},
};

pub(super) struct State {
    pub(super) origin: Instant,
    pub(super) now: Nanos,
    pub(super) rng: SimRng,
    pub(super) faults: Faults,
    pub(super) is_calm: bool,
    pub(super) trace: Trace,
    pub(super) machines: Vec<Machine>,
    pub(super) machine_of: BTreeMap<IpAddr, usize>,
    /// Processes. Like listeners and connections never removed, so that a number means one thing.
    pub(super) hosts: Vec<Host>,
    pub(super) listeners: Vec<Listener>,
    pub(super) connections: Vec<Connection>,
    /// The latest connection between two addresses, the client's first.
    pub(super) pairs: BTreeMap<(SocketAddr, SocketAddr), usize>,
    /// Machines from which nothing reaches the other.
    pub(super) cuts: BTreeSet<(usize, usize)>,
    /// Addresses that answer nothing.
    pub(super) holes: BTreeSet<IpAddr>,
    /// Addresses that no way leads to, as a connect finds at once.
    pub(super) unrouted: BTreeSet<IpAddr>,
    pub(super) names: BTreeMap<String, Vec<IpAddr>>,
    pub(super) lookups: BTreeMap<u64, Lookup>,
    pub(super) next_lookup: u64,
    pub(super) agenda: BinaryHeap<Reverse<Due>>,
    /// Breaks ties between what is due at the same time.
    pub(super) sequence: u64,
}

/// What has addresses; processes share it.
#[derive(Default)]
pub(super) struct Machine {
    pub(super) ips: Vec<IpAddr>,
    pub(super) is_off: bool,
    /// Those that are open.
    pub(super) listeners: Vec<usize>,
    pub(super) next_port: u16,
}

/// A process.
pub(super) struct Host {
    pub(super) machine: usize,
    pub(super) is_alive: bool,
    pub(super) is_paused: bool,
    pub(super) woken: Arc<AtomicBool>,
    /// What names resolved to, for who asked.
    pub(super) answers: VecDeque<(Ticket, Addrs)>,
    /// What the next poll looks at.
    pub(super) ready: Vec<Socket>,
    /// Everything registered and open.
    pub(super) sockets: Vec<Socket>,
    pub(super) descriptors: usize,
    pub(super) descriptor_limit: Option<usize>,
    pub(super) exhausted_until: Nanos,
    pub(super) leaks: usize,
    /// Leaks since the last poll: none if the whole process turns out to end.
    pub(super) recent_leaks: usize,
}

impl Host {
    /// Whether a poll would return at once.
    pub(super) fn is_due(&self) -> bool {
        let is_woken = || self.woken.load(atomic::Ordering::Acquire);
        self.is_alive && !self.is_paused && (!self.ready.is_empty() || is_woken())
    }
}

pub(super) struct Listener {
    pub(super) host: usize,
    pub(super) addr: SocketAddr,
    pub(super) options: ListenOptions,
    /// Given at registration.
    pub(super) token: Option<Token>,
    pub(super) is_open: bool,
    pub(super) backlog: VecDeque<EndId>,
    pub(super) is_queued: bool,
    pub(super) slot: usize,
}

/// Ready flags.
pub(super) const READ: u8 = 1;
pub(super) const WRITE: u8 = 2;
pub(super) const END: u8 = 4;

impl State {
    pub(super) fn new(origin: Instant, rng: SimRng, faults: Faults) -> Self {
        Self {
            origin,
            now: 0,
            rng,
            faults,
            is_calm: false,
            trace: Trace::new(),
            machines: Vec::new(),
            machine_of: BTreeMap::new(),
            hosts: Vec::new(),
            listeners: Vec::new(),
            connections: Vec::new(),
            pairs: BTreeMap::new(),
            cuts: BTreeSet::new(),
            holes: BTreeSet::new(),
            unrouted: BTreeSet::new(),
            names: BTreeMap::new(),
            lookups: BTreeMap::new(),
            next_lookup: 0,
            agenda: BinaryHeap::new(),
            sequence: 0,
        }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment::START + Duration::from_nanos(self.now)
    }

    pub(super) fn end(&mut self, id: EndId) -> &mut End {
        &mut self.connections[id.connection()].ends[id.side()]
    }

    pub(super) fn note(
        &mut self,
        host: usize,
        op: Op,
        subject: u64,
        size: usize,
        error: Option<io::ErrorKind>,
    ) {
        self.trace.add(self.now, Entry { host, op, subject, size: size as u64, error });
    }

    /// Traces how a call ended, and passes the result on.
    pub(super) fn noted<T>(
        &mut self,
        host: usize,
        op: Op,
        subject: u64,
        result: io::Result<T>,
        size: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        match &result {
            Ok(value) => self.note(host, op, subject, size(value), None),
            Err(error) => self.note(host, op, subject, 0, Some(error.kind())),
        }
        result
    }

    // ---- What hosts are told.

    /// Something changed on a socket: its host's next poll looks at it.
    pub(super) fn signal(&mut self, socket: Socket, flags: u8) {
        let host = match socket {
            Socket::End(id) => {
                let end = self.end(id);
                if !end.is_open || end.token.is_none() {
                    return;
                }
                end.changed |= flags;
                if mem::replace(&mut end.is_queued, true) {
                    return;
                }
                end.host
            }
            Socket::Listener(index) => {
                let listener = &mut self.listeners[index];
                if !listener.is_open
                    || listener.token.is_none()
                    || mem::replace(&mut listener.is_queued, true)
                {
                    return;
                }
                Some(listener.host)
            }
        };
        self.hosts[host.expect("an open socket has a host")].ready.push(socket);
    }

    /// Appends what the host hears of.
    pub(super) fn poll(&mut self, host: usize, events: &mut Vec<Event>) {
        let entry = &mut self.hosts[host];
        entry.leaks += mem::take(&mut entry.recent_leaks);
        let first = events.len();
        // What is signalled meanwhile is for the next poll.
        let mut ready = mem::take(&mut entry.ready);
        for socket in ready.drain(..) {
            match socket {
                Socket::End(id) => self.report_end(id, events),
                Socket::Listener(index) => self.report_listener(index, events),
            }
        }
        let entry = &mut self.hosts[host];
        if entry.ready.is_empty() {
            entry.ready = ready;
        }
        if self.rng.chance(self.faults.spurious_event) {
            self.invent_events(host, events);
        }
        if events.len() - first > 1 && self.rng.chance(self.faults.reorder_events) {
            self.rng.shuffle(&mut events[first..]);
        }
        for event in &events[first..] {
            let flags = u8::from(event.readable) * READ
                + u8::from(event.writable) * WRITE
                + u8::from(event.read_closed) * END;
            self.note(host, Op::Event, event.token.0 as u64, flags.into(), None);
        }
    }

    /// As epoll does, an event has all flags that hold, not only those that changed.
    fn report_end(&mut self, id: EndId, events: &mut Vec<Event>) {
        let end = self.end(id);
        end.is_queued = false;
        let changed = mem::take(&mut end.changed);
        let Some(token) = end.token.filter(|_| end.is_open) else {
            return;
        };
        if self.rng.chance(self.faults.late_event) {
            self.signal_later(Socket::End(id), changed);
            return;
        }
        let holds = self.readiness(id);
        if changed & WRITE != 0 && holds & WRITE == 0 {
            // Somebody counts on an event for writing, and the room is gone again.
            self.end(id).wants_room = true;
        }
        let is_split = self.rng.chance(self.faults.split_event);
        let mut flags = if is_split { holds & changed } else { holds };
        if flags & READ != 0 {
            flags |= holds & END;
        }
        if flags & END != 0 && self.loses_hint(id) {
            flags &= !END;
        }
        if is_split && flags & WRITE != 0 && flags & !WRITE != 0 {
            events.push(event(token, WRITE));
            flags &= !WRITE;
        }
        if flags != 0 {
            events.push(event(token, flags));
        }
    }

    fn report_listener(&mut self, index: usize, events: &mut Vec<Event>) {
        self.listeners[index].is_queued = false;
        let Listener { is_open: true, token: Some(token), ref backlog, .. } = self.listeners[index]
        else {
            return;
        };
        if backlog.is_empty() {
            return;
        }
        if self.rng.chance(self.faults.late_event) {
            self.signal_later(Socket::Listener(index), READ);
        } else {
            events.push(event(token, READ));
        }
    }

    fn invent_events(&mut self, host: usize, events: &mut Vec<Event>) {
        let count = self.hosts[host].sockets.len();
        if count == 0 {
            return;
        }
        for _ in 0..=self.rng.below(3) {
            match self.hosts[host].sockets[self.rng.below(count)] {
                Socket::Listener(index) => {
                    events.push(event(self.listeners[index].token.expect("registered"), READ));
                }
                Socket::End(id) => {
                    let flags = [READ, WRITE, READ | WRITE][self.rng.below(3)];
                    let token = self.end(id).token.expect("registered");
                    events.push(event(token, flags));
                }
            }
        }
    }

    /// Whether an event goes without its hint. If so, a plain one follows.
    fn loses_hint(&mut self, id: EndId) -> bool {
        if self.end(id).hint_lost {
            return true;
        }
        if !self.rng.chance(self.faults.missing_hint) {
            return false;
        }
        self.end(id).hint_lost = true;
        self.signal_later(Socket::End(id), READ);
        true
    }

    /// The flags that hold for an end.
    fn readiness(&self, id: EndId) -> u8 {
        let Connection { ends, pipes } = &self.connections[id.connection()];
        let end = &ends[id.side()];
        match end.link {
            Link::Connecting => 0,
            Link::Itself => WRITE,
            Link::Down => READ | WRITE | END,
            Link::Up => {
                let has_room = end.is_shut || pipes[id.side()].has_room();
                let has_input = end.has_fin || pipes[id.other().side()].arrived > 0;
                u8::from(has_input) * READ
                    + u8::from(has_room) * WRITE
                    + u8::from(end.has_fin) * END
            }
        }
    }

    // ---- Hosts.

    /// Starts a process on the machine with this address, a new one if there is none.
    pub(super) fn add_host(&mut self, ip: IpAddr) -> usize {
        let machine = self.machine_of.get(&ip).copied().unwrap_or_else(|| {
            self.machines.push(Machine {
                ips: vec![ip],
                next_port: FIRST_PORT,
                ..Machine::default()
            });
            self.machine_of.insert(ip, self.machines.len() - 1);
            self.machines.len() - 1
        });
        self.hosts.push(Host {
            machine,
            is_alive: true,
            is_paused: false,
            woken: Arc::default(),
            answers: VecDeque::new(),
            ready: Vec::new(),
            sockets: Vec::new(),
            descriptors: 0,
            descriptor_limit: None,
            exhausted_until: 0,
            leaks: 0,
            recent_leaks: 0,
        });
        self.hosts.len() - 1
    }

    /// Registers a socket with its host.
    pub(super) fn enlist(&mut self, host: usize, socket: Socket) {
        let slot = self.hosts[host].sockets.len();
        self.hosts[host].sockets.push(socket);
        self.set_slot(socket, slot);
    }

    pub(super) fn delist(&mut self, host: usize, slot: usize) {
        let sockets = &mut self.hosts[host].sockets;
        sockets.swap_remove(slot);
        if let Some(&moved) = sockets.get(slot) {
            self.set_slot(moved, slot);
        }
    }

    fn set_slot(&mut self, socket: Socket, slot: usize) {
        match socket {
            Socket::End(id) => self.end(id).slot = slot,
            Socket::Listener(index) => self.listeners[index].slot = slot,
        }
    }

    /// Ends every fault that lasts, and lets no new ones happen.
    pub(super) fn calm(&mut self) {
        self.note(0, Op::Calm, 0, 0, None);
        self.faults = Faults::none();
        self.is_calm = true;
        for host in &mut self.hosts {
            host.exhausted_until = 0;
        }
        for (a, b) in self.cuts.clone() {
            self.heal(a, b);
        }
        for connection in 0..self.connections.len() {
            for id in [EndId::client(connection), EndId::server(connection)] {
                self.connections[connection].pipes[id.side()].stalled_until = 0;
                self.schedule_delivery(id);
            }
        }
        let lost = self.lookups.iter_mut().filter(|(_, lookup)| lookup.is_lost);
        let lost = lost.map(|(&id, lookup)| {
            lookup.is_lost = false;
            id
        });
        for id in lost.collect::<Vec<_>>() {
            self.schedule(self.now, Action::Answer(id));
        }
    }
}

/// The first port that a machine gives out, as on Linux; the last is 60,999.
pub(super) const FIRST_PORT: u16 = 32_768;

fn event(token: Token, flags: u8) -> Event {
    Event {
        token,
        readable: flags & (READ | END) != 0,
        writable: flags & WRITE != 0,
        read_closed: flags & END != 0,
    }
}

pub(super) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
