//! mio without `unsafe`, as its users write it: one loop, one read buffer, a slab of connections.
//!
//! Registered once for both directions, and readiness is remembered; one read per event, one write
//! per read. A read that does not fill the buffer has drained the socket.

use std::{
    io::{self, Read, Write},
    mem,
};

use clap::Parser;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use peers::{serve::Serve, wire};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);
/// Room for a body of 64 KiB.
const BUFFER_LEN: usize = wire::HEADER_LEN + 64 * 1024;
/// A long frame is read in steps: each is zeroed first, and then still in the cache.
const STEP: usize = 256 * 1024;
/// Above so many queued bytes a connection is not read from.
const QUEUE_LIMIT: usize = 16 * 1024 * 1024;

/// A loop over mio.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: Serve,
}

fn main() -> io::Result<()> {
    let mut listener = TcpListener::from_std(Args::parse().serve.bind()?);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut conns: Slab<Conn> = Slab::new();
    let mut buf = vec![0; BUFFER_LEN];
    // Connections that may have more to read, and those of this turn.
    let (mut ready, mut now) = (Vec::new(), Vec::new());
    loop {
        let timeout = (!ready.is_empty()).then_some(std::time::Duration::ZERO);
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        mem::swap(&mut ready, &mut now);
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut conns)?;
                continue;
            }
            let key = event.token().0;
            let Some(conn) = conns.get_mut(key) else { continue };
            conn.has_ended |= event.is_read_closed() || event.is_error();
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                now.push(key);
            }
            if event.is_writable() && !conn.out.is_empty() {
                now.push(key);
            }
        }
        for key in now.drain(..) {
            let Some(conn) = conns.get_mut(key) else { continue };
            match conn.turn(&mut buf) {
                Ok(true) => ready.push(key),
                Ok(false) => {}
                Err(_) => {
                    conns.remove(key);
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, conns: &mut Slab<Conn>) -> io::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        stream.set_nodelay(true)?;
        let entry = conns.vacant_entry();
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(entry.key()), both)?;
        entry.insert(Conn {
            stream,
            rest: Vec::new(),
            out: Vec::new(),
            written: 0,
            has_ended: false,
        });
    }
}

struct Conn {
    stream: TcpStream,
    /// The first part of a frame.
    rest: Vec<u8>,
    /// What the system did not take, and how much of it went out since.
    out: Vec<u8>,
    written: usize,
    has_ended: bool,
}

impl Conn {
    /// Writes what is queued, and reads once. Whether there may be more to read; an error ends the
    /// connection.
    fn turn(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        if !self.out.is_empty() {
            self.written += write(&mut self.stream, &self.out[self.written..])?;
            if self.written == self.out.len() {
                (self.out, self.written) = (Vec::new(), 0); // an idle connection has no buffers
            }
        }
        if self.out.len() - self.written > QUEUE_LIMIT {
            return Ok(false); // the event that it is writable comes back here
        }
        let is_long = wire::frame_len(&self.rest)?.is_some_and(|len| len > buf.len());
        let (n, is_full) = if is_long { self.read_long()? } else { self.read(buf)? };
        if n == Some(0) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Once the peer has closed no event will tell of more.
        Ok(n.is_some() && (is_full || self.has_ended))
    }

    /// Into the shared buffer, behind the rest of a split frame.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<(Option<usize>, bool)> {
        let kept = self.rest.len();
        let Some(n) = retried(|| self.stream.read(&mut buf[kept..]))? else {
            return Ok((None, false));
        };
        buf[..kept].copy_from_slice(&self.rest);
        let len = kept + n;
        let found = wire::frames(&buf[..len])?;
        self.rest.clear();
        if found.whole < len {
            self.rest.extend_from_slice(&buf[found.whole..len]);
        } else if kept > 0 {
            self.rest = Vec::new();
        }
        self.send(&buf[..found.whole])?;
        Ok((Some(n), len == buf.len()))
    }

    /// To the end of a long frame, which then goes out as it is.
    fn read_long(&mut self) -> io::Result<(Option<usize>, bool)> {
        let len = wire::frame_len(&self.rest)?.expect("its header is there");
        let at = self.rest.len();
        let asked = (len - at).min(STEP);
        self.rest.reserve_exact(len - at);
        self.rest.resize(at + asked, 0);
        let n = retried(|| self.stream.read(&mut self.rest[at..]));
        self.rest.truncate(at + n.as_ref().map_or(0, |n| n.unwrap_or(0)));
        let n = n?;
        if self.rest.len() == len {
            let frame = mem::take(&mut self.rest);
            if self.out.is_empty() {
                self.written = write(&mut self.stream, &frame)?;
                if self.written == len {
                    self.written = 0;
                } else {
                    self.out = frame;
                }
            } else {
                self.out.extend_from_slice(&frame);
            }
        }
        Ok((n, n == Some(asked)))
    }

    fn send(&mut self, frames: &[u8]) -> io::Result<()> {
        let n = if self.out.is_empty() { write(&mut self.stream, frames)? } else { 0 };
        self.out.extend_from_slice(&frames[n..]);
        Ok(())
    }
}

/// How much was taken, which may be nothing.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    Ok(retried(|| stream.write(bytes))?.unwrap_or(0))
}

/// `None` if the socket is not ready.
fn retried(mut io: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match io() {
            Ok(n) => return Ok(Some(n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
