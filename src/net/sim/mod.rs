//! A simulated network and clock, for tests: the reactor runs over it as it does over the system.
//!
//! Everything that happens follows from a seed: how bytes are cut up, how long they take, what goes
//! wrong. Nothing waits, nothing asks the real clock but once for a base, there are no threads.
//!
//! - `world`: [`SimWorld`], what a test holds: time, hosts, scripted trouble, what to judge by;
//! - this file: [`SimNet`], what a reactor holds;
//! - `faults`: [`Faults`], what goes wrong at random;
//! - `state`: the hosts and their events; `agenda`: what happens when; `sockets`: what a process asks of
//!   its kernel; `connection`: two ends and two pipes;
//! - `connects`, `transport`, `silence`: what the network does as a connection is made, as bytes travel,
//!   and when they do not arrive;
//! - `rng`, `trace`: chance, and what happened.
//!
//! Not simulated: corruption, which TCP's checksum catches. TCP's own keepalive and its user timeout
//! are simulated where they matter, while hosts are cut off from one another.

#![allow(dead_code, unused_imports, reason = "a kit for tests, of which not all use all")]

mod agenda;
mod connection;
mod connects;
mod due;
mod faults;
mod rng;
mod silence;
mod sockets;
mod state;
#[cfg(test)]
mod tests;
mod trace;
mod transport;
mod world;

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use self::{connection::EndId, trace::Op};
use super::{
    Addrs, BroughtListener, BroughtStream, Event, ListenOptions, Net, StreamOptions, Ticket, Token,
};
use crate::{moment::Moment, threads::mailbox::Wake};

pub(crate) use self::{
    connection::Flow,
    faults::Faults,
    rng::SimRng,
    world::{ConnectionId, HostId, SimWorld},
};

/// The network as one simulated process sees it. Dropping it ends the process.
pub(crate) struct SimNet {
    world: SimWorld,
    id: HostId,
}

/// A stream socket. To drop it instead of closing it counts as a leak, unless its process ends or it is
/// still the application's.
pub(crate) struct SimStream {
    world: SimWorld,
    host: usize,
    end: EndId,
    /// The application made it, and no reactor has taken it over.
    is_applications: bool,
}

/// A listening socket; likewise.
pub(crate) struct SimListener {
    world: SimWorld,
    host: usize,
    index: usize,
    is_applications: bool,
}

struct SimWake(Arc<AtomicBool>);

impl Wake for SimWake {
    fn wake(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl SimNet {
    /// Which process it is.
    pub(crate) const fn id(&self) -> HostId {
        self.id
    }

    /// The world it is part of.
    pub(crate) const fn world(&self) -> &SimWorld {
        &self.world
    }

    /// Whether its waker was called since the last poll.
    pub(crate) fn is_woken(&self) -> bool {
        self.world.is_woken(self.id)
    }

    /// Starts to connect as an application does by itself, without the reactor: not registered.
    pub(crate) fn dial(&self, addr: SocketAddr, options: &StreamOptions) -> io::Result<SimStream> {
        let mut state = self.world.state.borrow_mut();
        let host = self.id.0;
        let result = state.connect(host, addr, options, None);
        let end = state.noted(host, Op::Connect, 0, result, |_| addr.port().into())?;
        let world = self.world.clone();
        Ok(SimStream { world, host, end, is_applications: true })
    }

    /// Binds as an application does by itself, without the reactor: not registered.
    pub(crate) fn bind(
        &self,
        addr: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<SimListener> {
        let mut state = self.world.state.borrow_mut();
        let host = self.id.0;
        let result = state.listen(host, addr, options, None);
        let (index, _) =
            state.noted(host, Op::Listen, 0, result, |(_, addr)| addr.port().into())?;
        let world = self.world.clone();
        Ok(SimListener { world, host, index, is_applications: true })
    }

    fn stream(&self, end: EndId) -> SimStream {
        let (world, host) = (self.world.clone(), self.id.0);
        SimStream { world, host, end, is_applications: false }
    }
}

impl Net for SimNet {
    type Stream = SimStream;
    type Listener = SimListener;

    fn origin(&self) -> Instant {
        self.world.origin()
    }

    fn now(&mut self) -> Moment {
        self.world.now()
    }

    fn seed(&mut self) -> u64 {
        self.world.state.borrow_mut().rng.next()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(SimWake(self.world.state.borrow().hosts[self.id.0].woken.clone()))
    }

    /// Never waits: what is due happens, and that is all.
    fn poll(&mut self, events: &mut Vec<Event>, _timeout: Option<Duration>) -> io::Result<()> {
        self.world.advance(Duration::ZERO);
        let mut state = self.world.state.borrow_mut();
        state.poll(self.id.0, events);
        state.hosts[self.id.0].woken.store(false, Ordering::Release);
        Ok(())
    }

    fn listen(
        &mut self,
        addr: SocketAddr,
        options: &ListenOptions,
        token: Token,
    ) -> io::Result<(SimListener, SocketAddr)> {
        let mut state = self.world.state.borrow_mut();
        let host = self.id.0;
        let result = state.listen(host, addr, options, Some(token));
        let (index, addr) =
            state
                .noted(host, Op::Listen, token.0 as u64, result, |(_, addr)| addr.port().into())?;
        let world = self.world.clone();
        Ok((SimListener { world, host, index, is_applications: false }, addr))
    }

    fn accept(&mut self, listener: &SimListener) -> io::Result<(SimStream, SocketAddr)> {
        let host = owned(self.id, listener.host);
        let mut state = self.world.state.borrow_mut();
        let token = state.listeners[listener.index].token.map_or(0, |token| token.0 as u64);
        let result = state.accept(listener.index);
        let (end, peer) =
            state.noted(host, Op::Accept, token, result, |(_, peer)| peer.port().into())?;
        Ok((self.stream(end), peer))
    }

    fn close_listener(&mut self, listener: SimListener) {
        let host = owned(self.id, listener.host);
        let mut state = self.world.state.borrow_mut();
        let token = state.listeners[listener.index].token.map_or(0, |token| token.0 as u64);
        state.note(host, Op::CloseListener, token, 0, None);
        state.close_listener(listener.index);
    }

    fn connect(
        &mut self,
        addr: SocketAddr,
        options: &StreamOptions,
        token: Token,
    ) -> io::Result<SimStream> {
        let mut state = self.world.state.borrow_mut();
        let host = self.id.0;
        let result = state.connect(host, addr, options, Some(token));
        let end = state.noted(host, Op::Connect, token.0 as u64, result, |_| addr.port().into())?;
        Ok(self.stream(end))
    }

    fn connected(&mut self, stream: &SimStream) -> io::Result<Option<SocketAddr>> {
        let host = owned(self.id, stream.host);
        let mut state = self.world.state.borrow_mut();
        let result = state.connected(stream.end);
        state.noted(host, Op::Connected, stream.subject(), result, |peer| peer.is_some().into())
    }

    fn register(&mut self, stream: &mut SimStream, token: Token) -> io::Result<()> {
        let host = owned(self.id, stream.host);
        let mut state = self.world.state.borrow_mut();
        let result = state.register(stream.end, token);
        state.noted(host, Op::Register, token.0 as u64, result, |()| stream.end.connection())
    }

    fn read(&mut self, stream: &mut SimStream, buf: &mut [u8]) -> io::Result<usize> {
        let host = owned(self.id, stream.host);
        let mut state = self.world.state.borrow_mut();
        let result = state.read(stream.end, buf);
        state.noted(host, Op::Read, stream.subject(), result, |&len| len)
    }

    fn write(&mut self, stream: &mut SimStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let host = owned(self.id, stream.host);
        let mut state = self.world.state.borrow_mut();
        let result = state.write(stream.end, slices);
        state.noted(host, Op::Write, stream.subject(), result, |&len| len)
    }

    fn shutdown(&mut self, stream: &mut SimStream) -> io::Result<()> {
        let host = owned(self.id, stream.host);
        let mut state = self.world.state.borrow_mut();
        let result = state.shutdown(stream.end);
        state.noted(host, Op::Shutdown, stream.subject(), result, |()| 0)
    }

    fn close(&mut self, stream: SimStream) {
        let host = owned(self.id, stream.host);
        let mut state = self.world.state.borrow_mut();
        state.note(host, Op::Close, stream.subject(), 0, None);
        state.close_end(stream.end);
    }

    fn local_addr(&self, stream: &SimStream) -> io::Result<SocketAddr> {
        Ok(self.world.state.borrow_mut().local_addr(stream.end))
    }

    fn resolve(&mut self, ticket: Ticket, host: &str, port: u16) {
        self.world.state.borrow_mut().resolve(self.id.0, ticket, host, port);
    }

    fn resolved(&mut self) -> Option<(Ticket, Addrs)> {
        self.world.state.borrow_mut().hosts[self.id.0].answers.pop_front()
    }

    fn has_resolved(&self) -> bool {
        !self.world.state.borrow().hosts[self.id.0].answers.is_empty()
    }

    fn adopt_stream(
        &mut self,
        stream: BroughtStream,
        options: &StreamOptions,
    ) -> io::Result<(SimStream, SocketAddr)> {
        let BroughtStream::Simulated(mut stream) = stream else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        stream.is_applications = false;
        owned(self.id, stream.host);
        let peer = self.world.state.borrow_mut().adopt_stream(stream.end, options);
        match peer {
            Ok(peer) => Ok((stream, peer)),
            Err(error) => {
                self.close(stream);
                Err(error)
            }
        }
    }

    fn adopt_listener(
        &mut self,
        listener: BroughtListener,
        options: &ListenOptions,
        token: Token,
    ) -> io::Result<(SimListener, SocketAddr)> {
        let BroughtListener::Simulated(mut listener) = listener else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        listener.is_applications = false;
        owned(self.id, listener.host);
        let addr = self.world.state.borrow_mut().adopt_listener(listener.index, options, token);
        Ok((listener, addr))
    }

    /// `None` unless the test set a limit.
    fn descriptor_limit(&self) -> Option<usize> {
        self.world.state.borrow().hosts[self.id.0].descriptor_limit
    }
}

impl Drop for SimNet {
    fn drop(&mut self) {
        // While a failed test unwinds, the world may be borrowed.
        let Ok(mut state) = self.world.state.try_borrow_mut() else {
            return;
        };
        state.hosts[self.id.0].recent_leaks = 0;
        if state.hosts[self.id.0].is_alive {
            state.end_process(self.id.0);
        }
    }
}

impl SimStream {
    /// The other end's address.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.world.state.borrow_mut().end(self.end.other()).addr
    }

    /// As its process closes it, without the reactor.
    pub(crate) fn close(self) {
        let mut state = self.world.state.borrow_mut();
        state.note(self.host, Op::Close, self.subject(), 0, None);
        state.close_end(self.end);
    }

    /// Whether its connect was decided, and the connection made.
    pub(crate) fn is_up(&self) -> Option<bool> {
        self.world.state.borrow_mut().is_up(self.end)
    }

    /// Its connection.
    pub(crate) const fn connection(&self) -> ConnectionId {
        ConnectionId(self.end.connection())
    }

    /// What the trace says of it.
    const fn subject(&self) -> u64 {
        (self.end.connection() * 2 + self.end.side()) as u64
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let Ok(mut state) = self.world.state.try_borrow_mut() else {
            return;
        };
        if state.end(self.end).is_open {
            state.hosts[self.host].recent_leaks += usize::from(!self.is_applications);
            state.note(self.host, Op::Drop, self.subject(), 0, None);
            state.close_end(self.end);
        }
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let Ok(mut state) = self.world.state.try_borrow_mut() else {
            return;
        };
        if state.listeners[self.index].is_open {
            state.hosts[self.host].recent_leaks += usize::from(!self.is_applications);
            state.note(self.host, Op::Drop, self.index as u64, 0, None);
            state.close_listener(self.index);
        }
    }
}

/// The owner of a socket, which is the process that uses it.
fn owned(user: HostId, owner: usize) -> usize {
    assert_eq!(user.0, owner, "a socket of another process");
    owner
}
