//! The handle that a test holds a simulated world by.

use std::{
    cell::{RefCell, RefMut},
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    Faults, Flow, SimNet, SimRng,
    connection::{Connection, EndId, Link},
    state::{State, nanos},
    trace::Op,
};
use crate::moment::Moment;

/// Several hosts, the network between them, and the time; clones are the same world.
///
/// A test runs its reactors in turns, none of which waits, until [`next_event`](Self::next_event)
/// and all their deadlines lie ahead; then it jumps to the earliest with
/// [`advance_to`](Self::advance_to). The same seed and the same calls give the same world.
#[derive(Clone)]
pub(crate) struct SimWorld {
    pub(super) state: Rc<RefCell<State>>,
}

/// A simulated process. Those that were started with one address share a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(pub(super) usize);

/// A connection, from its connect on and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(pub(super) usize);

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) id: ConnectionId,
    /// Its address and process on the side that connected.
    pub(crate) client: (SocketAddr, HostId),
    /// On the side that listens; no process before the connect reached one.
    pub(crate) server: (SocketAddr, Option<HostId>),
    /// Both ends are connected and neither was closed.
    pub(crate) is_up: bool,
    pub(crate) to_server: Flow,
    pub(crate) to_client: Flow,
}

impl SimWorld {
    /// An empty world without faults.
    #[expect(clippy::disallowed_methods, reason = "the simulated clock needs one base")]
    pub(crate) fn new(seed: u64) -> Self {
        let state = State::new(Instant::now(), SimRng::new(seed), Faults::none());
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// An empty world with the faults that the seed draws.
    pub(crate) fn with_faults(seed: u64) -> Self {
        let world = Self::new(seed);
        let faults = Faults::from_seed(&mut world.fork_rng());
        world.set_faults(faults);
        world
    }

    fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// A generator of the test's own, drawn from the world's.
    pub(crate) fn fork_rng(&self) -> SimRng {
        SimRng::new(self.state().rng.next())
    }

    // ---- Hosts.

    /// Starts a process on the machine with this address; a new machine if there is none. The
    /// process ends when its `SimNet` is dropped.
    pub(crate) fn host(&self, ip: impl Into<IpAddr>) -> SimNet {
        let id = self.state().add_host(ip.into());
        SimNet { world: self.clone(), id: HostId(id) }
    }

    /// Gives the host's machine one more address.
    pub(crate) fn add_address(&self, host: HostId, ip: impl Into<IpAddr>) {
        let (state, ip) = (&mut *self.state(), ip.into());
        let machine = state.hosts[host.0].machine;
        state.machines[machine].ips.push(ip);
        assert!(state.machine_of.insert(ip, machine).is_none(), "{ip} is taken");
    }

    /// Ends the process at once, as a SIGKILL does: its kernel closes what it had.
    pub(crate) fn kill_host(&self, host: HostId) {
        let mut state = self.state();
        state.note(host.0, Op::Kill, 0, 0, None);
        state.end_process(host.0);
    }

    /// The host's machine loses power with all its processes; nobody is told.
    pub(crate) fn power_off(&self, host: HostId) {
        let mut state = self.state();
        state.note(host.0, Op::Power, 0, 0, None);
        let machine = state.hosts[host.0].machine;
        state.power_off(machine);
    }

    /// The host's machine runs again, without processes. It answers with resets until
    /// [`host`](Self::host) starts some.
    pub(crate) fn power_on(&self, host: HostId) {
        let mut state = self.state();
        state.note(host.0, Op::Power, 0, 1, None);
        let machine = state.hosts[host.0].machine;
        state.machines[machine].is_off = false;
        state.unblock();
    }

    /// A paused host does not count for [`next_event`](Self::next_event): its test runs it no turns.
    pub(crate) fn pause(&self, host: HostId, is_paused: bool) {
        self.state().hosts[host.0].is_paused = is_paused;
    }

    /// Whether a poll of the host would return at once.
    pub(crate) fn is_due(&self, host: HostId) -> bool {
        self.state.borrow().hosts[host.0].is_due()
    }

    /// Whether the host's waker was called since its last poll.
    pub(crate) fn is_woken(&self, host: HostId) -> bool {
        self.state.borrow().hosts[host.0].woken.load(Ordering::Acquire)
    }

    // ---- Time.

    /// What a clock showed when the world began.
    pub(super) fn origin(&self) -> Instant {
        self.state.borrow().origin
    }

    /// The time.
    pub(crate) fn now(&self) -> Moment {
        self.state.borrow().moment()
    }

    /// The time since the world began.
    pub(crate) fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.state.borrow().now)
    }

    /// When something may happen next, sockets and names being all that is looked at. Now, if a
    /// host has events or a wake to hear of; `None` if nothing ever happens again.
    pub(crate) fn next_event(&self) -> Option<Moment> {
        let state = self.state.borrow();
        state.next().map(|at| Moment::START + Duration::from_nanos(at))
    }

    /// Moves the time on, never back, and lets happen what is due meanwhile, in order.
    pub(crate) fn advance_to(&self, moment: Moment) {
        self.state().run(moment.as_nanos());
    }

    /// Moves the time on by so much.
    pub(crate) fn advance(&self, by: Duration) {
        self.advance_to(self.now() + by);
    }

    // ---- Names.

    /// What a name resolves to from now on.
    pub(crate) fn add_name(&self, name: &str, ips: Vec<IpAddr>) {
        self.state().names.insert(name.to_owned(), ips);
    }

    pub(crate) fn remove_name(&self, name: &str) {
        self.state().names.remove(name);
    }

    // ---- Faults.

    pub(crate) fn faults(&self) -> Faults {
        self.state.borrow().faults.clone()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        state.is_calm = false;
    }

    /// Ends all faults: stalls and cuts heal, descriptors come back, lost lookups are answered.
    /// What was reset, killed or powered off remains so, and a connect into a hole undecided.
    pub(crate) fn calm(&self) {
        self.state().calm();
    }

    /// Resets a connection: both ends see it at once.
    pub(crate) fn reset(&self, connection: ConnectionId) {
        self.state().reset(connection.0, io::ErrorKind::ConnectionReset);
    }

    /// The direction from this address delivers nothing for a while.
    pub(crate) fn stall(&self, from: SocketAddr, to: SocketAddr, time: Duration) {
        let mut state = self.state();
        let until = state.now + nanos(time);
        if let Some(id) = find_end(&state, from, to) {
            state.pipe(id).stalled_until = until;
            state.schedule_delivery(id);
        }
    }

    /// Nothing passes between the machines of two hosts, either way, until they
    /// [`heal`](Self::heal). Connects between them hang.
    pub(crate) fn cut(&self, a: HostId, b: HostId) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Nothing passes from the first to the second.
    pub(crate) fn cut_one_way(&self, from: HostId, to: HostId) {
        let mut state = self.state();
        let pair = (state.hosts[from.0].machine, state.hosts[to.0].machine);
        if pair.0 != pair.1 {
            state.cut(pair.0, pair.1);
        }
    }

    /// Undoes cuts between the machines of two hosts. What was sent arrives.
    pub(crate) fn heal(&self, a: HostId, b: HostId) {
        let mut state = self.state();
        let (a, b) = (state.hosts[a.0].machine, state.hosts[b.0].machine);
        state.heal(a, b);
        state.heal(b, a);
    }

    /// Connects to this address are never decided.
    pub(crate) fn black_hole(&self, ip: impl Into<IpAddr>) {
        self.state().holes.insert(ip.into());
    }

    /// Connects to this address fail at once: no way leads there.
    pub(crate) fn unroute(&self, ip: impl Into<IpAddr>) {
        self.state().unrouted.insert(ip.into());
    }

    /// The process is out of descriptors for a while: accept, connect and listen fail.
    pub(crate) fn exhaust_descriptors(&self, host: HostId, time: Duration) {
        self.state().exhaust(host.0, time);
    }

    /// The process may have so many descriptors.
    pub(crate) fn limit_descriptors(&self, host: HostId, limit: Option<usize>) {
        self.state().hosts[host.0].descriptor_limit = limit;
    }

    // ---- What a test judges by.

    /// Every connection that has an end which is not closed, those still connecting included.
    pub(crate) fn connections(&self) -> Vec<ConnectionId> {
        let state = self.state.borrow();
        let all = state.connections.iter().enumerate();
        let open = all.filter(|(_, connection)| connection.ends.iter().any(|end| end.is_open));
        open.map(|(index, _)| ConnectionId(index)).collect()
    }

    /// How many connects there ever were; their ids count from 0.
    pub(crate) fn connect_count(&self) -> usize {
        self.state.borrow().connections.len()
    }

    /// What is known of a connection, also after its end.
    pub(crate) fn connection(&self, id: ConnectionId) -> ConnectionInfo {
        let Connection { ends: [client, server], pipes: [to_server, to_client] } =
            &self.state.borrow().connections[id.0];
        ConnectionInfo {
            id,
            client: (client.addr, HostId(client.host.expect("a host connected"))),
            server: (server.addr, server.host.map(HostId)),
            is_up: [client, server].iter().all(|end| end.is_open && end.link == Link::Up),
            to_server: to_server.flow,
            to_client: to_client.flow,
        }
    }

    /// The latest connection between two addresses, whichever of them connected.
    pub(crate) fn find(&self, a: SocketAddr, b: SocketAddr) -> Option<ConnectionId> {
        find_end(&self.state.borrow(), a, b).map(|end| ConnectionId(end.connection()))
    }

    /// How much went from one address to the other on their latest connection.
    pub(crate) fn flow(&self, from: SocketAddr, to: SocketAddr) -> Option<Flow> {
        let mut state = self.state();
        let id = find_end(&state, from, to)?;
        Some(state.pipe(id).flow)
    }

    /// Streams and listeners, of all hosts, that were not closed.
    pub(crate) fn open_descriptors(&self) -> usize {
        self.state.borrow().hosts.iter().map(|host| host.descriptors).sum()
    }

    /// Streams and listeners that the host did not close.
    pub(crate) fn open_descriptors_of(&self, host: HostId) -> usize {
        self.state.borrow().hosts[host.0].descriptors
    }

    /// Streams and listeners that were dropped but not closed, though their process lived on.
    pub(crate) fn leaks(&self) -> usize {
        self.state.borrow().hosts.iter().map(|host| host.leaks + host.recent_leaks).sum()
    }

    /// A number made of every visible action so far: two runs that differ in it differ.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.state.borrow().trace.hash()
    }

    /// Whether to keep each visible action from now on, as a line of text.
    pub(crate) fn keep_trace(&self, keeps: bool) {
        self.state().trace.keep(keeps);
    }

    /// The kept actions.
    pub(crate) fn trace(&self) -> Vec<String> {
        self.state.borrow().trace.lines().to_vec()
    }
}

/// The end with the first address, of the latest connection to the second.
fn find_end(state: &State, from: SocketAddr, to: SocketAddr) -> Option<EndId> {
    let client = state.pairs.get(&(from, to)).map(|&index| EndId::client(index));
    let server = state.pairs.get(&(to, from)).map(|&index| EndId::server(index));
    client.max(server)
}
