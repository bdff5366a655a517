//! The one seam to the operating system.
//!
//! All that the reactor asks of the system goes through [`Net`]: readiness, sockets, names, the
//! time, a random seed. [`system`] answers with mio and socket2, `sim` (in tests) with a simulated
//! network and clock; the reactor above is the same code in both.

mod clock;
mod resolver;
#[cfg(test)]
pub(crate) mod sim;
pub(crate) mod sockets;
pub(crate) mod system;

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    ConnId, Keepalive, ListenerId,
    id::{MAX_SLOTS, SLOT_BITS},
    moment::Moment,
    threads::mailbox::Wake,
};

/// The seam: all that the reactor asks of the system.
///
/// Nothing here blocks but [`poll`](Self::poll). `WouldBlock` and `Interrupted` mean what they mean
/// in `std::io`. Readiness is edge-triggered: an event says that something changed, it may be
/// spurious, and it is not repeated.
pub(crate) trait Net {
    /// A stream socket, connected or connecting.
    type Stream;
    /// A listening socket.
    type Listener;

    /// The clock's reading at [`Moment::START`].
    fn origin(&self) -> Instant;

    /// The time. Read once a turn.
    fn now(&mut self) -> Moment;

    /// Random bits that nobody can foresee, or the same ones every time where the run is seeded.
    fn seed(&mut self) -> u64;

    /// Wakes a sleeping [`poll`](Self::poll) from any thread, and is remembered if none sleeps.
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

    /// Looks a name up, without blocking. The answer rouses a [`poll`](Self::poll), and
    /// [`resolved`](Self::resolved) has it then.
    fn resolve(&mut self, ticket: Ticket, host: &str, port: u16);

    /// The next answer, and what it was asked for.
    fn resolved(&mut self) -> Option<(Ticket, Addrs)>;

    /// Whether there is an answer that [`resolved`](Self::resolved) has not given.
    fn has_resolved(&self) -> bool;

    /// How many descriptors the process may have, where there is a bound.
    fn descriptor_limit(&self) -> Option<usize>;

    /// Takes over a stream that the application connected or accepted; not yet registered.
    fn adopt_stream(
        &mut self,
        stream: BroughtStream,
        options: &StreamOptions,
    ) -> io::Result<(Self::Stream, SocketAddr)>;

    /// Takes over a listener that the application bound.
    fn adopt_listener(
        &mut self,
        listener: BroughtListener,
        options: &ListenOptions,
        token: Token,
    ) -> io::Result<(Self::Listener, SocketAddr)>;
}

/// A stream that the application brings.
pub(crate) enum BroughtStream {
    System(std::net::TcpStream),
    #[cfg(test)]
    Simulated(sim::SimStream),
}

/// A listener that the application brings.
pub(crate) enum BroughtListener {
    System(std::net::TcpListener),
    #[cfg(test)]
    Simulated(sim::SimListener),
}

/// Names a look-up: the connection that dials, and its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) conn: ConnId,
    pub(crate) round: u32,
}

/// The addresses of a name, or why it has none.
pub(crate) type Addrs = io::Result<Vec<SocketAddr>>;

/// Names the subject of an event. Given at registration, and never read by the [`Net`].
///
/// ```text
/// a listener:    its number                      1
/// a connection:  generation │ slot (24 bits) │   0
/// ```
///
/// `usize` is what systems give back. Where it has 32 bits the lowest 7 of the generation are all
/// that a token holds. It finds the slot, and whoever has that compares the token with the one of
/// the whole id there.
///
/// So an event may be taken for one of a later connection in the slot, 128 uses or a multiple of that
/// later. But there is none to be taken for one: a socket that is closed has no more events, as its
/// descriptor leaves the poll with that; and of the events of one batch all are handled before a
/// slot of a registered socket is given back, which step 8 of the turn does. Only a stream that was
/// taken over, and of which the application keeps a copy of the descriptor, has events for longer.
/// They are spurious ones then, as any may be: to read, to write or to look at a connect finds
/// nothing and changes nothing.
///
/// A dialled connection keeps its id from one address, or epoch, to the next, so an event of the socket
/// before is a spurious one, too, of any width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(pub(crate) usize);

/// The bit that tells listeners and connections apart.
const IS_LISTENER: usize = 1;

impl Token {
    /// The slot of the connection, if it is not about a listener.
    pub(crate) const fn slot(self) -> Option<usize> {
        if self.0 & IS_LISTENER == 0 { Some((self.0 >> 1) & (MAX_SLOTS - 1)) } else { None }
    }
}

impl From<ConnId> for Token {
    fn from(id: ConnId) -> Self {
        // Of the generation what is too wide for the token is cut off at its top.
        let generation = (id.generation() as usize) << SLOT_BITS;
        Self((generation | id.slot() as usize) << 1)
    }
}

impl From<ListenerId> for Token {
    fn from(id: ListenerId) -> Self {
        Self((id.number() as usize) << 1 | IS_LISTENER)
    }
}

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

impl Event {
    /// What a system tells. An end is something to read, also where the system says only that it is
    /// there: whoever is not in the list to be read would never find it.
    pub(crate) const fn new(
        token: Token,
        readable: bool,
        writable: bool,
        read_closed: bool,
    ) -> Self {
        Self { token, readable: readable || read_closed, writable, read_closed }
    }
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

/// The options of every stream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamOptions {
    pub(crate) nodelay: bool,
    /// TCP's own keepalive.
    pub(crate) keepalive: Option<Keepalive>,
    /// How long sent data may stay unacknowledged (Linux).
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) receive_buffer: Option<usize>,
}

/// The options of a listening socket; its streams inherit or are given the rest.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::LAST_SLOT;

    #[test]
    fn token_finds_the_slot_and_is_of_one_generation() {
        for (slot, generation) in [(0, 1), (5, 3), (5, 127), (LAST_SLOT, u32::MAX)] {
            let token = Token::from(ConnId::new(9, slot, generation));
            assert_eq!(token.slot(), Some(slot as usize));
            let next = generation.wrapping_add(1);
            assert_ne!(token, Token::from(ConnId::new(9, slot, next)), "{slot} {generation}");
        }
    }

    #[test]
    fn end_that_is_told_alone_is_something_to_read() {
        let event = Event::new(Token(2), false, false, true);
        assert!(event.readable && event.read_closed && !event.writable);
        assert!(!Event::new(Token(2), false, true, false).readable);
    }

    #[test]
    fn listeners_are_no_connections() {
        let tokens = [0, 1, 2, 77].map(|number| Token::from(ListenerId::new(3, number)));
        assert!(tokens.iter().all(|token| token.slot().is_none()));
        assert!(tokens.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
