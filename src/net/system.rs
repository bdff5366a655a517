//! The real network and clock: mio for readiness, socket2 for what a socket is set to.

use std::{
    hash::{BuildHasher, RandomState},
    io::{self, IoSlice, Read, Write},
    net::{self, Shutdown, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, net::TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{
    Addrs, BroughtListener, BroughtStream, Event, ListenOptions, Net, StreamOptions, Ticket, Token,
    clock::clock, resolver::Resolver,
};
use crate::{Keepalive, moment::Moment, threads::mailbox::Wake};

/// The token of mio's waker; no connection has it, and no listener but the 2³¹th where a
/// token has 32 bits.
const WAKER: mio::Token = mio::Token(usize::MAX);

/// Events taken from the system at a time. Doubles when a poll fills it, up to 16 times.
const EVENTS: usize = 1024;

/// The system, through mio and socket2.
#[derive(Debug)]
pub(crate) struct System {
    poll: Poll,
    events: Events,
    capacity: usize,
    /// Held for as long as the poll: a wake is delivered only while the waker lives.
    waker: Arc<SystemWaker>,
    resolver: Resolver,
    origin: Instant,
}

#[derive(Debug)]
struct SystemWaker(mio::Waker);

impl Wake for SystemWaker {
    fn wake(&self) {
        if let Err(error) = self.0.wake() {
            log::error!("waking the loop failed: {error}");
        }
    }
}

impl System {
    pub(crate) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(SystemWaker(mio::Waker::new(poll.registry(), WAKER)?));
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS),
            capacity: EVENTS,
            resolver: Resolver::of_system(waker.clone()),
            waker,
            origin: clock(),
        })
    }

    /// The descriptor that another loop can wait on.
    #[cfg(unix)]
    pub(crate) fn raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.poll)
    }

    /// Likewise, borrowed.
    #[cfg(unix)]
    pub(crate) fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(self.poll.registry())
    }

    fn listener(
        &self,
        listener: net::TcpListener,
        options: StreamOptions,
        token: Token,
    ) -> io::Result<(Listener, SocketAddr)> {
        let addr = listener.local_addr()?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        self.poll.registry().register(&mut listener, mio::Token(token.0), Interest::READABLE)?;
        Ok((Listener { listener, options }, addr))
    }
}

/// A listening socket, and what it gives to the streams that it accepts.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: mio::net::TcpListener,
    options: StreamOptions,
}

/// Whether an accepted socket has the options of its listener, which saves a system call for each.
const ACCEPTED_INHERITS: bool = cfg!(target_os = "linux");

impl Net for System {
    type Stream = TcpStream;
    type Listener = Listener;

    fn origin(&self) -> Instant {
        self.origin
    }

    fn now(&mut self) -> Moment {
        Moment::new(self.origin, clock())
    }

    fn seed(&mut self) -> u64 {
        // The standard library's only source of random bits; each state has keys of its own.
        RandomState::new().hash_one(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        let before = events.len();
        for event in &self.events {
            if event.token() == WAKER {
                continue;
            }
            // An error is found by reading or writing, so it counts as readiness for both.
            let is_error = event.is_error();
            events.push(Event::new(
                Token(event.token().0),
                event.is_readable() || is_error,
                event.is_writable() || is_error,
                event.is_read_closed() || is_error,
            ));
        }
        if events.len() - before == self.capacity && self.capacity < 16 * EVENTS {
            self.capacity *= 2;
            self.events = Events::with_capacity(self.capacity);
        }
        Ok(())
    }

    fn listen(
        &mut self,
        addr: SocketAddr,
        options: &ListenOptions,
        token: Token,
    ) -> io::Result<(Listener, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        // On Windows SO_REUSEADDR would let another process take the port over.
        if cfg!(unix) {
            socket.set_reuse_address(options.reuse_address)?;
        }
        if addr.is_ipv6() {
            socket.set_only_v6(options.only_v6)?;
        }
        set_options(&SockRef::from(&socket), &options.stream)?;
        socket.bind(&addr.into())?;
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        self.listener(socket.into(), options.stream, token)
    }

    fn accept(&mut self, listener: &Listener) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = listener.listener.accept()?;
        if !ACCEPTED_INHERITS {
            set_options(&SockRef::from(&stream), &listener.options)?;
        }
        Ok((stream, peer))
    }

    fn close_listener(&mut self, mut listener: Listener) {
        let _ = self.poll.registry().deregister(&mut listener.listener);
    }

    fn connect(
        &mut self,
        addr: SocketAddr,
        options: &StreamOptions,
        token: Token,
    ) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        set_options(&SockRef::from(&socket), options)?;
        match socket.connect(&addr.into()) {
            Ok(()) => {}
            Err(error) if is_in_progress(&error) => {}
            Err(error) => return Err(error),
        }
        let mut stream = TcpStream::from_std(socket.into());
        self.register(&mut stream, token)?;
        Ok(stream)
    }

    fn connected(&mut self, stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(peer) if stream.local_addr()? == peer => {
                Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connected to itself"))
            }
            Ok(peer) => Ok(Some(peer)),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn register(&mut self, stream: &mut TcpStream, token: Token) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(stream, mio::Token(token.0), both)
    }

    #[inline]
    fn read(&mut self, stream: &mut TcpStream, buf: &mut [u8]) -> io::Result<usize> {
        stream.read(buf)
    }

    #[inline]
    fn write(&mut self, stream: &mut TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            [one] => stream.write(one),
            many => stream.write_vectored(many),
        }
    }

    fn shutdown(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        stream.shutdown(Shutdown::Write)
    }

    fn close(&mut self, stream: TcpStream) {
        // Closing the descriptor takes it out of the poll; no other descriptor shares the socket.
        drop(stream);
    }

    fn local_addr(&self, stream: &TcpStream) -> io::Result<SocketAddr> {
        stream.local_addr()
    }

    fn resolve(&mut self, ticket: Ticket, host: &str, port: u16) {
        self.resolver.resolve(ticket, host, port);
    }

    #[inline]
    fn resolved(&mut self) -> Option<(Ticket, Addrs)> {
        self.resolver.resolved()
    }

    #[inline]
    fn has_resolved(&self) -> bool {
        self.resolver.has_resolved()
    }

    fn descriptor_limit(&self) -> Option<usize> {
        // The crate has no unsafe code and libc no safe getrlimit; Linux has a file for it.
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
        line.split_whitespace().nth(3)?.parse().ok()
    }

    fn adopt_stream(
        &mut self,
        stream: BroughtStream,
        options: &StreamOptions,
    ) -> io::Result<(TcpStream, SocketAddr)> {
        #[cfg(not(test))]
        let BroughtStream::System(stream) = stream;
        #[cfg(test)]
        let BroughtStream::System(stream) = stream else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        stream.set_nonblocking(true)?;
        set_options(&SockRef::from(&stream), options)?;
        let peer = stream.peer_addr()?;
        Ok((TcpStream::from_std(stream), peer))
    }

    fn adopt_listener(
        &mut self,
        listener: BroughtListener,
        options: &ListenOptions,
        token: Token,
    ) -> io::Result<(Listener, SocketAddr)> {
        #[cfg(not(test))]
        let BroughtListener::System(listener) = listener;
        #[cfg(test)]
        let BroughtListener::System(listener) = listener else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        listener.set_nonblocking(true)?;
        set_options(&SockRef::from(&listener), &options.stream)?;
        self.listener(listener, options.stream, token)
    }
}

/// Whether a connect goes on by itself. `EINPROGRESS` has no stable `ErrorKind`: 115 on Linux, 36 on
/// the BSDs and macOS.
fn is_in_progress(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || cfg!(unix) && matches!(error.raw_os_error(), Some(115 | 36))
}

/// Linux refuses a longer one.
#[cfg(target_os = "linux")]
const LONGEST_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// Options of a stream; of a listener on Linux, whose streams inherit them.
fn set_options(socket: &SockRef<'_>, options: &StreamOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(options.nodelay)?;
    if let Some(Keepalive { idle, interval, probes }) = options.keepalive {
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
        #[cfg(unix)]
        let keepalive = keepalive.with_retries(probes);
        let _ = probes;
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout.min(LONGEST_USER_TIMEOUT)))?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}
