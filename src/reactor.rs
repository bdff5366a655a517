//! The loop: one thread, one poll, every socket.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    Addr, Config, ConnId, Context, DrainReport, Error, Handle, Handler, ListenerId, ReactorBuilder,
    Stats, Target, engine::Engine, net::system::System, protocol::Protocol,
};

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
    pub(crate) engine: Engine<H, System>,
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
    pub fn listen<T>(&mut self, addr: T) -> Result<(ListenerId, Addr), Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        self.context().listen(addr)
    }

    /// Listens with a protocol and settings of this listener's own.
    ///
    /// # Errors
    ///
    /// The settings can't work, or no address could be bound.
    pub fn listen_with<T>(
        &mut self,
        addr: T,
        protocol: &H::Protocol,
        config: &Config,
    ) -> Result<(ListenerId, Addr), Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
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
    ) -> Result<(ListenerId, Addr), Error> {
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
        self.engine.state.clock.instant(self.engine.next_deadline()?)
    }

    /// What was counted so far.
    pub const fn stats(&self) -> Stats {
        self.engine.state.stats
    }

    /// What stopping came to; nothing yet while the reactor runs.
    pub const fn stop_report(&self) -> DrainReport {
        self.engine.state.stopping.report()
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

impl<P: Protocol> ReactorBuilder<P> {
    /// Makes the reactor.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the system refuses a poll descriptor.
    pub fn build<H: Handler<Protocol = P>>(self, handler: H) -> Result<Reactor<H>, Error> {
        Ok(Reactor { engine: self.build_on(handler, System::new()?)? })
    }
}
