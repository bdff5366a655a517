//! The loop: one thread, one poll, every socket.

mod accept;
mod close;
pub(crate) mod commands;
pub(crate) mod desk;
mod dial;
pub(crate) mod ended_call;
mod fanout;
mod flush;
mod listen;
pub(crate) mod net;
pub(crate) mod number;
mod planted;
mod profile;
mod read;
mod reap;
pub(crate) mod send;
pub(crate) mod slot;
pub(crate) mod slots;
pub(crate) mod sockets;
mod stop;
mod turn;

#[cfg(test)]
mod tests;

use std::{
    any::TypeId,
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::{Duration, Instant},
};

use slab::Slab;

use self::{
    net::{Net, system::System},
    number::ReactorNumber,
    profile::Profiles,
    slots::State,
    stop::StopPhase,
    turn::Engine,
};
use crate::{
    Config, ConfigError, ConnId, Context, DrainReport, Error, Handle, Handler, ListenerId, Stats,
    Target,
    config::at_most,
    core::{rng::Rng, spin::Spin, timer_wheel::TimerWheel, write_queue::QueuePool},
    handle::Shared,
    id::MAX_SLOTS,
    protocol::Protocol,
};

/// Descriptors that connections leave to the rest of the process.
const RESERVED_DESCRIPTORS: usize = 32;

/// One thread's loop that owns sockets, and calls a [`Handler`].
///
/// Made and set up on any thread, then run on one. Other threads reach it through its [`Handle`]. The
/// thread that runs it, or ran its last turn, may not wait for it: the blocking methods are refused there
/// as [`OnLoopThread`](Error::OnLoopThread). Where no thread has run it yet they wait for that, for up to
/// 5 s, and then fail as [`NotRunning`](Error::NotRunning). Who moves a reactor to another thread between
/// two turns may block on it after its first turn there.
/// Dropping it closes every connection at once and fails what is in flight.
///
/// # Examples
///
/// ```
/// use longhaul::{Conn, Handler, Message, Reactor, protocol::Native};
///
/// struct Echo;
///
/// impl Handler for Echo {
///     type Protocol = Native;
///
///     fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
///         let _ = conn.reply(&msg, msg.body()); // an error says why nothing was queued
///     }
/// }
///
/// fn main() -> longhaul::Result<()> {
///     let mut reactor = Reactor::new(Echo)?;
///     let (_, addr) = reactor.listen("127.0.0.1:0")?;
///     println!("listening on {addr}");
///     # reactor.handle().stop();
///     reactor.run()
/// }
/// ```
pub struct Reactor<H: Handler> {
    engine: Engine<H, System>,
}

impl<H: Handler> Reactor<H> {
    /// A reactor with the default protocol and settings.
    ///
    /// # Errors
    ///
    /// The system refuses a poll descriptor.
    pub fn new(handler: H) -> Result<Self, Error>
    where
        H::Protocol: Default,
    {
        ReactorBuilder::new(H::Protocol::default()).build(handler)
    }

    /// Listens with the default protocol and settings; any number of times.
    ///
    /// The address returned has the real port. A name is resolved here, and blocks for as long.
    ///
    /// # Errors
    ///
    /// No address could be bound.
    pub fn listen(
        &mut self,
        addr: impl ToSocketAddrs + fmt::Debug,
    ) -> Result<(ListenerId, SocketAddr), Error> {
        self.context().listen(addr)
    }

    /// Listens with a protocol and settings of this listener's own.
    ///
    /// # Errors
    ///
    /// The settings can't work, or no address could be bound.
    pub fn listen_with(
        &mut self,
        addr: impl ToSocketAddrs + fmt::Debug,
        protocol: &H::Protocol,
        config: &Config,
    ) -> Result<(ListenerId, SocketAddr), Error> {
        self.context().listen_with(addr, protocol, config)
    }

    /// Dials with the default protocol and settings: `ip:port` or `host:port`. Does not wait.
    ///
    /// # Errors
    ///
    /// The target is no address.
    pub fn connect<T>(&mut self, target: T) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        self.context().connect(target)
    }

    /// Dials with a protocol and settings of this connection's own. Does not wait.
    ///
    /// # Errors
    ///
    /// The target is no address, or the settings can't work.
    pub fn connect_with<T>(
        &mut self,
        target: T,
        protocol: &H::Protocol,
        config: &Config,
    ) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        self.context().connect_with(target, protocol, config)
    }

    /// Takes over a listener that is bound already, from a supervisor for example.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the system refuses.
    pub fn adopt_listener(
        &mut self,
        listener: std::net::TcpListener,
        protocol: &H::Protocol,
        config: &Config,
    ) -> Result<(ListenerId, SocketAddr), Error> {
        self.context().adopt_listener(listener, protocol, config)
    }

    /// Takes over a stream that is connected already; it counts as accepted.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the system refuses.
    pub fn adopt_stream(
        &mut self,
        stream: std::net::TcpStream,
        protocol: &H::Protocol,
        config: &Config,
    ) -> Result<ConnId, Error> {
        self.context().adopt_stream(stream, protocol, config)
    }

    /// What a callback could do, between two turns.
    pub fn context(&mut self) -> Context<'_, H::Protocol> {
        self.engine.context()
    }

    /// The handler, between two turns.
    pub const fn handler(&mut self) -> &mut H {
        &mut self.engine.handler
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle<H::Protocol> {
        Handle::new(self.engine.shared.clone())
    }

    /// Runs until it is stopped.
    ///
    /// # Errors
    ///
    /// The system's poll fails, which nothing can be done about.
    pub fn run(&mut self) -> Result<(), Error> {
        self.engine.shared.begin_run();
        while !self.engine.is_stopped() {
            self.engine.turn(None)?;
        }
        Ok(())
    }

    /// Runs one turn, for those who own their loop: waits for up to `timeout` (`None`: for ever) if
    /// there is nothing to do. Whether the reactor goes on; false once it has stopped.
    ///
    /// Between two turns another loop may wait for the [poll descriptor](std::os::fd::AsRawFd::as_raw_fd) to become
    /// readable, for up to [`next_deadline`](Self::next_deadline).
    ///
    /// # Errors
    ///
    /// The system's poll fails, which nothing can be done about.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<bool, Error> {
        if self.engine.is_stopped() {
            return Ok(false);
        }
        self.engine.shared.begin_run();
        self.engine.turn(timeout)?;
        // The caller may wait elsewhere now: the next post must make the descriptor readable.
        self.engine.rest();
        Ok(!self.engine.is_stopped())
    }

    /// When the next turn has something to do without an event on the poll descriptor; an instant
    /// that is past if it has work left over, `None` if it has nothing to wait for.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.engine.next_deadline()?.to_instant(self.engine.state.origin)
    }

    /// What was counted so far.
    pub const fn stats(&self) -> Stats {
        self.engine.state.stats
    }

    /// What stopping came to; nothing yet while the reactor runs.
    pub const fn stop_report(&self) -> DrainReport {
        self.engine.state.stop_report
    }

    /// The protocol and settings of what is given none of its own.
    pub(crate) fn defaults(&self) -> (H::Protocol, Config) {
        let profile = self.engine.state.profiles.defaults();
        (profile.protocol.clone(), profile.config.clone())
    }
}

/// The descriptor of the poll, to be watched for reading by another loop.
#[cfg(unix)]
impl<H: Handler> std::os::fd::AsRawFd for Reactor<H> {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.engine.sockets.net.raw_fd()
    }
}

/// Likewise.
#[cfg(unix)]
impl<H: Handler> std::os::fd::AsFd for Reactor<H> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.engine.sockets.net.as_fd()
    }
}

impl<H: Handler> fmt::Debug for Reactor<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Settings of a reactor, as against those of its connections.
///
/// # Examples
///
/// ```
/// # use longhaul::{Conn, Handler, Message};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Protocol = Length;
/// #     fn on_message(&mut self, _: &mut Conn<'_, Length>, _: Message<'_, Length>) {}
/// # }
/// use longhaul::{ReactorBuilder, protocol::Length};
///
/// let reactor = ReactorBuilder::new(Length::default()).max_connections(100).build(Echo)?;
/// # Ok::<(), longhaul::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ReactorBuilder<P> {
    protocol: P,
    config: Config,
    mailbox_commands: usize,
    mailbox_bytes: usize,
    max_connections: Option<usize>,
    stop_timeout: Duration,
    busy_poll: Duration,
    seed: Option<u64>,
    first_call: Option<u64>,
    /// The reactor's number, where a test has fixed it.
    #[cfg(test)]
    number: Option<u8>,
}

impl<P: Protocol> ReactorBuilder<P> {
    /// The defaults, and the protocol of listeners and dialled connections that are given none of
    /// their own.
    pub fn new(protocol: P) -> Self {
        Self {
            protocol,
            config: Config::default(),
            mailbox_commands: 65_536,
            mailbox_bytes: 64 * 1024 * 1024,
            max_connections: None,
            stop_timeout: Duration::from_secs(5),
            busy_poll: Duration::ZERO,
            seed: None,
            first_call: None,
            #[cfg(test)]
            number: None,
        }
    }

    /// The settings of listeners and dialled connections that are given none of their own.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    pub(crate) const fn default_config(&self) -> &Config {
        &self.config
    }

    /// The commands, and the bytes of bodies in them, that wait in the mailbox at most; more are
    /// refused as full. One body is taken even if it is longer than that. Both at least 1. Default: 65 536,
    /// 64 MiB.
    ///
    /// What ends something waits beside them, in a number that is bounded by what exists: at most three
    /// for a connection, one for a call or a deferred request, and one to stop.
    #[must_use]
    pub const fn mailbox(mut self, commands: usize, bytes: usize) -> Self {
        self.mailbox_commands = commands;
        self.mailbox_bytes = at_most(bytes);
        self
    }

    /// The most connections; more that are accepted are refused. Default: the process' descriptors
    /// less 32; in no case more than 2²⁴, for which ids have room. At least 1.
    #[must_use]
    pub const fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = Some(connections);
        self
    }

    /// How long stopping may take until what is left is cut. Zero: at once. Default: 5 s.
    #[must_use]
    pub const fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.stop_timeout = timeout;
        self
    }

    /// How long the loop looks for work, again and again, before it sleeps. Default: zero, it sleeps
    /// at once.
    ///
    /// Saves the time that the system takes to wake the loop, and costs a processor that is busy for
    /// that long after every message. Worth it where a message comes sooner than that most of the
    /// time, and a core is to spare; `docs/performance.md` has figures. The loop yields between two
    /// looks, so it takes no time from other threads of its core.
    #[must_use]
    pub const fn busy_poll(mut self, duration: Duration) -> Self {
        self.busy_poll = duration;
        self
    }

    /// The seed of what is random here: jitter and ids. Default: from the system.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Where call numbers start, to test their end.
    #[cfg(test)]
    pub(crate) const fn first_call(mut self, number: u64) -> Self {
        self.first_call = Some(number);
        self
    }

    /// Fixes the number that the ids of the connections name, so that a run can be repeated.
    #[cfg(test)]
    pub(crate) const fn number(mut self, number: u8) -> Self {
        self.number = Some(number);
        self
    }

    /// Makes the reactor.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the system refuses a poll descriptor.
    pub fn build<H: Handler<Protocol = P>>(self, handler: H) -> Result<Reactor<H>, Error> {
        Ok(Reactor { engine: self.build_on(handler, System::new()?)? })
    }

    /// Checks that the settings can work.
    fn validate(&self) -> Result<(), ConfigError> {
        for (setting, number) in [
            ("mailbox", Some(self.mailbox_commands)),
            ("mailbox", Some(self.mailbox_bytes)),
            ("max_connections", self.max_connections),
        ] {
            if number == Some(0) {
                return Err(ConfigError { setting, problem: "must be at least 1".into() });
            }
        }
        self.config.validate()
    }

    /// Makes the reactor on a network.
    pub(crate) fn build_on<H: Handler<Protocol = P>, N: Net>(
        self,
        handler: H,
        mut net: N,
    ) -> Result<Engine<H, N>, Error> {
        self.validate()?;
        let descriptors = net.descriptor_limit().unwrap_or(usize::MAX);
        let of_system = descriptors.saturating_sub(RESERVED_DESCRIPTORS).clamp(1, MAX_SLOTS);
        let now = net.now();
        let seed = self.seed.unwrap_or_else(|| net.seed());
        #[cfg(not(test))]
        let number = ReactorNumber::take();
        #[cfg(test)]
        let number = self.number.map_or_else(ReactorNumber::take, ReactorNumber::fixed);
        let shared = Shared::new(number, net.waker(), self.mailbox_commands, self.mailbox_bytes);
        let shared = Arc::new(shared);
        let state = State {
            slots: Slab::new(),
            wheel: TimerWheel::new(),
            pool: QueuePool::default(),
            board: shared.board.clone(),
            dirty: std::collections::VecDeque::new(),
            ready: std::collections::VecDeque::new(),
            arrivals: std::collections::VecDeque::new(),
            ended: std::collections::VecDeque::new(),
            ended_calls: std::collections::VecDeque::new(),
            awaited: Vec::new(),
            undelivered: Vec::new(),
            handed_back: Vec::new(),
            drains: Vec::new(),
            sweeps: std::collections::VecDeque::new(),
            stop_report: DrainReport::default(),
            fanouts: fanout::Fanouts::default(),
            groups: std::collections::HashMap::new(),
            listeners: Vec::new(),
            next_listener: 0,
            per_peer: std::collections::HashMap::new(),
            profiles: Profiles::new(self.protocol, self.config),
            stats: Stats::default(),
            rng: Rng::new(seed),
            serving: None,
            charged: None,
            handling: None,
            answering: None,
            origin: net.origin(),
            now,
            stop: StopPhase::Running,
            stop_alarm: None,
            stop_timeout: self.stop_timeout,
            spin: Spin::new(self.busy_poll),
            max_connections: self.max_connections.unwrap_or(of_system).min(of_system),
            max_slots: MAX_SLOTS,
            handler_type: handler_type::<H>(),
            first_call: self.first_call,
        };
        Ok(Engine::new(handler, state, net, shared))
    }
}

fn handler_type<H: Handler>() -> TypeId {
    TypeId::of::<H>()
}

#[cfg(test)]
mod settings {
    use super::*;
    use crate::protocol::Native;

    #[test]
    fn zero_that_means_nothing_is_refused_by_the_name_of_its_setting() {
        let refused = |builder: ReactorBuilder<Native>| builder.validate().err();
        let new = || ReactorBuilder::new(Native);
        for (setting, builder) in [
            ("mailbox", new().mailbox(0, 1)),
            ("mailbox", new().mailbox(1, 0)),
            ("max_connections", new().max_connections(0)),
        ] {
            assert_eq!(refused(builder).map(|error| error.setting), Some(setting));
        }
        let least = new().mailbox(1, 1).max_connections(1);
        assert_eq!(refused(least.stop_timeout(Duration::ZERO).busy_poll(Duration::ZERO)), None);
    }
}
