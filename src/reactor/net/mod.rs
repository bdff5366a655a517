//! The one seam to the operating system.
//!
//! All that the reactor asks of the system goes through [`Net`]: readiness, sockets, names, the
//! time, a random seed. [`system`] answers with mio and socket2, `sim` (in tests) with a simulated
//! network and clock; the reactor above is the same code in both.

#[cfg(test)]
pub(crate) mod sim;
pub(crate) mod system;

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::core::moment::Moment;

/// What the reactor asks of the system.
///
/// Nothing here blocks but [`poll`](Self::poll). `WouldBlock` and `Interrupted` mean what they mean
/// in `std::io`. Readiness is edge-triggered: an event says that something changed, it may be
/// spurious, and it is not repeated.
pub(crate) trait Net {
    /// A stream socket, connected or connecting.
    type Stream;
    /// A listening socket.
    type Listener;

    /// What the clock showed at [`Moment::START`].
    fn origin(&self) -> Instant;

    /// The time. Read once a turn.
    fn now(&mut self) -> Moment;

    /// Random bits that nobody can foresee, or the same ones every time where the run is seeded.
    fn seed(&mut self) -> u64;

    /// What rouses a sleeping [`poll`](Self::poll) from any thread, and is remembered if none sleeps.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Appends what became ready, waiting for up to `timeout` (`None`: for ever) until there is
    /// something. May return early, with nothing.
    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()>;

    /// Binds and listens; the address has the real port.
    fn listen(
        &mut self,
        addr: SocketAddr,
        options: &ListenOptions,
        token: Token,
    ) -> io::Result<(Self::Listener, SocketAddr)>;

    /// Takes one connection from the backlog. Not yet registered.
    fn accept(&mut self, listener: &Self::Listener) -> io::Result<(Self::Stream, SocketAddr)>;

    /// Stops listening. What waits in the backlog is reset.
    fn close_listener(&mut self, listener: Self::Listener);

    /// Starts to connect; registered, and an event comes when it is decided.
    fn connect(
        &mut self,
        addr: SocketAddr,
        options: &StreamOptions,
        token: Token,
    ) -> io::Result<Self::Stream>;

    /// How a started connect stands: `None` while undecided, the peer's address once connected.
    /// A connection to itself counts as failed.
    fn connected(&mut self, stream: &Self::Stream) -> io::Result<Option<SocketAddr>>;

    /// Asks for events, of both kinds, once and for all.
    fn register(&mut self, stream: &mut Self::Stream, token: Token) -> io::Result<()>;

    /// Reads what is there; 0 means that the peer sends no more.
    fn read(&mut self, stream: &mut Self::Stream, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes the slices one behind the other, or a first part of them.
    fn write(&mut self, stream: &mut Self::Stream, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Tells the peer that we send no more.
    fn shutdown(&mut self, stream: &mut Self::Stream) -> io::Result<()>;

    /// Gives the socket back to the system. No event for it comes after this.
    fn close(&mut self, stream: Self::Stream);

    /// Our end's address.
    fn local_addr(&self, stream: &Self::Stream) -> io::Result<SocketAddr>;

    /// Looks a name up, without blocking: `answer` is called later, on any thread.
    fn resolve(&mut self, host: &str, port: u16, answer: Answer);

    /// How many descriptors the process may have, where there is a bound.
    fn descriptor_limit(&self) -> Option<usize>;

    /// Takes over a stream that the application connected or accepted; not yet registered.
    fn adopt_stream(
        &mut self,
        stream: std::net::TcpStream,
        options: &StreamOptions,
    ) -> io::Result<(Self::Stream, SocketAddr)> {
        let _ = (stream, options);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Takes over a listener that the application bound.
    fn adopt_listener(
        &mut self,
        listener: std::net::TcpListener,
        options: &ListenOptions,
        token: Token,
    ) -> io::Result<(Self::Listener, SocketAddr)> {
        let _ = (listener, options, token);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Called with what a name resolved to.
pub(crate) type Answer = Box<dyn FnOnce(io::Result<Vec<SocketAddr>>) + Send>;

/// Rouses a reactor that waits in [`Net::poll`].
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

/// What an event is about; given at registration and not read by the [`Net`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(pub(crate) u64);

/// Something changed on a socket; each flag is a hint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) token: Token,
    /// There may be something to read or to accept, an end or an error included.
    pub(crate) readable: bool,
    /// There may be room to write, or a connect may be decided.
    pub(crate) writable: bool,
    /// The peer sends no more: read on to the end, however short a read was.
    pub(crate) read_closed: bool,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:x}", self.token.0)?;
        for (is_set, letter) in
            [(self.readable, " r"), (self.writable, " w"), (self.read_closed, " c")]
        {
            if is_set {
                f.write_str(letter)?;
            }
        }
        f.write_str(")")
    }
}

/// What every stream socket gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamOptions {
    pub(crate) nodelay: bool,
    /// First probe, interval and count of TCP's own keepalive.
    pub(crate) keepalive: Option<(Duration, Duration, u32)>,
    /// How long sent data may stay unacknowledged (Linux).
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) receive_buffer: Option<usize>,
}

/// What a listening socket gets; its streams inherit or are given the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenOptions {
    pub(crate) backlog: u32,
    pub(crate) reuse_address: bool,
    /// An IPv6 listener takes IPv6 peers only.
    pub(crate) only_v6: bool,
    pub(crate) stream: StreamOptions,
}

/// Whether a read that filled less than its buffer has drained the socket, so that the next read
/// would only find `WouldBlock`. So with epoll and kqueue; elsewhere mio promises nothing less than
/// `WouldBlock`.
pub(crate) const SHORT_READ_DRAINS: bool = cfg!(unix);
