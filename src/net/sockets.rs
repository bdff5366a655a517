//! The sockets, by the slot of their connection and the id of their listener.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
};

use super::{BroughtListener, BroughtStream, ListenOptions, Net, StreamOptions, Ticket, Token};
use crate::{ConnId, ListenerId};

/// The part of the system that a callback may use, whichever network is under it.
pub(crate) trait Sockets {
    fn listen(
        &mut self,
        id: ListenerId,
        addr: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<SocketAddr>;

    fn adopt_listener(
        &mut self,
        id: ListenerId,
        listener: BroughtListener,
        options: &ListenOptions,
    ) -> io::Result<SocketAddr>;

    fn close_listener(&mut self, id: ListenerId);

    fn connect(&mut self, id: ConnId, addr: SocketAddr, options: &StreamOptions) -> io::Result<()>;

    /// The peer's address of a stream that was taken over.
    fn peer_of(&mut self, stream: BroughtStream, options: &StreamOptions)
    -> io::Result<SocketAddr>;

    /// Gives the stream that [`peer_of`](Self::peer_of) took over to its connection.
    fn adopt_stream(&mut self, id: ConnId) -> io::Result<()>;

    /// Closes the stream that [`peer_of`](Self::peer_of) took over, of which no connection comes.
    fn drop_stream(&mut self);

    /// Closes the socket of a slot, if there is one.
    fn close(&mut self, slot: u32);

    fn local_addr(&self, slot: u32) -> io::Result<SocketAddr>;

    fn resolve(&mut self, ticket: Ticket, host: &str, port: u16);
}

/// The sockets of a reactor on one kind of network.
pub(crate) struct SocketTable<N: Net> {
    pub(crate) net: N,
    streams: Vec<Option<N::Stream>>,
    listeners: Vec<(ListenerId, N::Listener)>,
    adopted: Option<N::Stream>,
}

impl<N: Net> SocketTable<N> {
    pub(crate) const fn new(net: N) -> Self {
        Self { net, streams: Vec::new(), listeners: Vec::new(), adopted: None }
    }

    /// The network and the socket of a slot.
    #[inline]
    pub(crate) fn stream(&mut self, slot: u32) -> Option<(&mut N, &mut N::Stream)> {
        let stream = self.streams.get_mut(slot as usize)?.as_mut()?;
        Some((&mut self.net, stream))
    }

    /// Reads from the socket of a slot, through interrupts.
    #[inline]
    pub(crate) fn read(&mut self, slot: u32, buf: &mut [u8]) -> io::Result<usize> {
        let (net, stream) = self.stream(slot).ok_or(io::ErrorKind::NotConnected)?;
        loop {
            match net.read(stream, buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Writes to the socket of a slot, through interrupts.
    #[inline]
    pub(crate) fn write(&mut self, slot: u32, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let (net, stream) = self.stream(slot).ok_or(io::ErrorKind::NotConnected)?;
        loop {
            match net.write(stream, slices) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Takes one connection from a listener's backlog.
    pub(crate) fn accept(&mut self, id: ListenerId) -> Option<io::Result<(N::Stream, SocketAddr)>> {
        let (_, listener) = self.listeners.iter().find(|(other, _)| *other == id)?;
        Some(self.net.accept(listener))
    }

    /// Gives a slot its socket.
    pub(crate) fn insert(&mut self, id: ConnId, mut stream: N::Stream) -> io::Result<()> {
        if let Err(error) = self.net.register(&mut stream, Token::from(id)) {
            self.net.close(stream);
            return Err(error);
        }
        self.put(id, stream);
        Ok(())
    }

    fn put(&mut self, id: ConnId, stream: N::Stream) {
        let slot = id.slot() as usize;
        if self.streams.len() <= slot {
            self.streams.resize_with(slot + 1, || None);
        }
        debug_assert!(self.streams[slot].is_none());
        self.streams[slot] = Some(stream);
    }

    /// Closes every socket.
    pub(crate) fn close_all(&mut self) {
        for stream in self.streams.drain(..).flatten().chain(self.adopted.take()) {
            self.net.close(stream);
        }
        for (_, listener) in self.listeners.drain(..) {
            self.net.close_listener(listener);
        }
    }
}

impl<N: Net> Sockets for SocketTable<N> {
    fn listen(
        &mut self,
        id: ListenerId,
        addr: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<SocketAddr> {
        let (listener, addr) = self.net.listen(addr, options, Token::from(id))?;
        self.listeners.push((id, listener));
        Ok(addr)
    }

    fn adopt_listener(
        &mut self,
        id: ListenerId,
        listener: BroughtListener,
        options: &ListenOptions,
    ) -> io::Result<SocketAddr> {
        let (listener, addr) = self.net.adopt_listener(listener, options, Token::from(id))?;
        self.listeners.push((id, listener));
        Ok(addr)
    }

    fn close_listener(&mut self, id: ListenerId) {
        if let Some(place) = self.listeners.iter().position(|(other, _)| *other == id) {
            let (_, listener) = self.listeners.swap_remove(place);
            self.net.close_listener(listener);
        }
    }

    fn connect(&mut self, id: ConnId, addr: SocketAddr, options: &StreamOptions) -> io::Result<()> {
        let stream = self.net.connect(addr, options, Token::from(id))?;
        self.put(id, stream);
        Ok(())
    }

    fn peer_of(
        &mut self,
        stream: BroughtStream,
        options: &StreamOptions,
    ) -> io::Result<SocketAddr> {
        let (stream, peer) = self.net.adopt_stream(stream, options)?;
        self.adopted = Some(stream);
        Ok(peer)
    }

    fn adopt_stream(&mut self, id: ConnId) -> io::Result<()> {
        match self.adopted.take() {
            Some(stream) => self.insert(id, stream),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn drop_stream(&mut self) {
        if let Some(stream) = self.adopted.take() {
            self.net.close(stream);
        }
    }

    fn close(&mut self, slot: u32) {
        if let Some(stream) = self.streams.get_mut(slot as usize).and_then(Option::take) {
            self.net.close(stream);
        }
    }

    fn local_addr(&self, slot: u32) -> io::Result<SocketAddr> {
        match self.streams.get(slot as usize) {
            Some(Some(stream)) => self.net.local_addr(stream),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn resolve(&mut self, ticket: Ticket, host: &str, port: u16) {
        self.net.resolve(ticket, host, port);
    }
}
