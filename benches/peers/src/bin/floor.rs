//! The floor: an edge-triggered epoll loop by hand, with no more system calls than an echo needs.
//!
//! One read per event and turn, into one buffer for all connections; every frame of it is checked
//! where it lies, and what is whole goes back with one write. A read that does not fill the buffer
//! has drained the socket, so there is no second one, and nothing is ever registered again. Only
//! the rest of a split frame is kept; one that is longer than the buffer is read into a buffer of its
//! own, which is then written as it is.

use std::{
    collections::VecDeque,
    io, mem,
    net::TcpListener,
    os::fd::{AsRawFd, RawFd},
    ptr,
};

use clap::Parser;
use peers::{serve::Serve, wire};

/// Of one read. Bodies over 64 KiB have a buffer of their own.
const BUFFER_LEN: usize = wire::HEADER_LEN + 64 * 1024;
/// Above so many queued bytes a connection is not read from.
const QUEUE_LIMIT: usize = 16 * 1024 * 1024;
/// Long buffers that are kept for the next long frame.
const SPARES: usize = 4;
const EVENTS: usize = 1024;

/// The floor: epoll by hand.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: Serve,
    /// Read on until there is nothing more, as a loop does that knows no short reads
    #[arg(long)]
    drain: bool,
    /// Send every message to all other connections instead of back
    #[arg(long)]
    broadcast: bool,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let listener = args.serve.bind()?;
    Floor::new(&listener, args.drain, args.broadcast)?.run()
}

struct Floor {
    epoll: RawFd,
    listener: RawFd,
    /// By descriptor.
    conns: Vec<Conn>,
    buf: Box<[u8]>,
    /// Connections that have, or may have, more to read.
    ready: Vec<RawFd>,
    spares: Vec<Vec<u8>>,
    drains: bool,
    broadcasts: bool,
}

#[derive(Default)]
struct Conn {
    is_open: bool,
    is_ready: bool,
    more: Option<Box<More>>,
}

/// What a connection has only while a frame is split or a write was not taken.
#[derive(Default)]
struct More {
    /// The first part of a frame.
    frame: Vec<u8>,
    /// Its whole length where it is read straight into `frame`, which has the capacity; else 0.
    frame_len: usize,
    out: VecDeque<Vec<u8>>,
    /// Of the first of `out`, so much is written.
    written: usize,
    queued: usize,
    is_paused: bool,
}

enum Read {
    /// The buffer was filled: there may be more.
    Full,
    /// It was not: the socket is drained.
    Short,
    /// There was nothing.
    Empty,
    /// Its queue is too long for more.
    Paused,
}

impl Floor {
    fn new(listener: &TcpListener, drains: bool, broadcasts: bool) -> io::Result<Self> {
        let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let floor = Self {
            epoll,
            listener: listener.as_raw_fd(),
            conns: Vec::new(),
            buf: vec![0; BUFFER_LEN].into(),
            ready: Vec::new(),
            spares: Vec::new(),
            drains,
            broadcasts,
        };
        floor.register(floor.listener, libc::EPOLLIN)?;
        Ok(floor)
    }

    fn register(&self, fd: RawFd, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: fd as u64 };
        check(unsafe { libc::epoll_ctl(self.epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let mut ready = Vec::new();
        loop {
            let timeout = if self.ready.is_empty() { -1 } else { 0 };
            let count = unsafe {
                libc::epoll_wait(self.epoll, events.as_mut_ptr(), EVENTS as i32, timeout)
            };
            let count = match check(count) {
                Ok(count) => count.cast_unsigned() as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            mem::swap(&mut ready, &mut self.ready);
            for event in &events[..count] {
                self.on_event(event.u64 as RawFd, event.events.cast_signed());
            }
            for fd in ready.drain(..) {
                if mem::take(&mut self.conns[fd as usize].is_ready) {
                    self.on_readable(fd, false);
                }
            }
        }
    }

    fn on_event(&mut self, fd: RawFd, events: i32) {
        if fd == self.listener {
            self.accept();
            return;
        }
        let conn = &mut self.conns[fd as usize];
        if !conn.is_open {
            return;
        }
        if events & libc::EPOLLOUT != 0
            && conn.more.as_ref().is_some_and(|more| !more.out.is_empty())
            && self.flush(fd).is_err()
        {
            self.close(fd);
            return;
        }
        let ends = libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;
        if events & (libc::EPOLLIN | ends) != 0 {
            self.conns[fd as usize].is_ready = false; // one read a turn
            self.on_readable(fd, events & ends != 0);
        }
    }

    fn accept(&mut self) {
        loop {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd =
                unsafe { libc::accept4(self.listener, ptr::null_mut(), ptr::null_mut(), flags) };
            let Ok(fd) = check(fd) else { return };
            let on: libc::c_int = 1;
            unsafe {
                libc::setsockopt(
                    fd,
                    libc::IPPROTO_TCP,
                    libc::TCP_NODELAY,
                    (&raw const on).cast(),
                    size_of_val(&on) as libc::socklen_t,
                );
            }
            let index = fd as usize;
            if self.conns.len() <= index {
                self.conns.resize_with(index + 1, Conn::default);
            }
            self.conns[index] = Conn { is_open: true, ..Conn::default() };
            let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
            if self.register(fd, events).is_err() {
                self.close(fd);
            }
        }
    }

    /// Reads once; to the end where the peer has closed, because no further event will tell.
    fn on_readable(&mut self, fd: RawFd, has_ended: bool) {
        loop {
            match self.read(fd) {
                Ok(Read::Short) if !has_ended && !self.drains => return,
                Ok(Read::Full) if !has_ended && !self.drains => {
                    self.mark_ready(fd);
                    return;
                }
                Ok(Read::Short | Read::Full) => {}
                Ok(Read::Empty | Read::Paused) => return,
                Err(_) => {
                    self.close(fd);
                    return;
                }
            }
        }
    }

    fn mark_ready(&mut self, fd: RawFd) {
        let conn = &mut self.conns[fd as usize];
        if !mem::replace(&mut conn.is_ready, true) {
            self.ready.push(fd);
        }
    }

    /// One read. An error ends the connection.
    fn read(&mut self, fd: RawFd) -> io::Result<Read> {
        let mut kept = 0;
        if let Some(more) = &mut self.conns[fd as usize].more {
            if more.queued > QUEUE_LIMIT {
                more.is_paused = true;
                return Ok(Read::Paused);
            }
            if more.frame_len > 0 {
                return self.read_long(fd);
            }
            kept = more.frame.len();
            self.buf[..kept].copy_from_slice(&more.frame);
            more.frame.clear();
        }
        let room = &mut self.buf[kept..];
        let (asked, read) = (room.len(), read(fd, room.as_mut_ptr(), room.len()));
        let len = kept + read.as_ref().map_or(0, |&n| n);
        let found = wire::frames(&self.buf[..len])?;
        self.keep(fd, found.whole, len, found.next);
        let n = match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Empty),
            Err(error) => return Err(error),
        };
        if found.whole > 0 {
            let buf = mem::take(&mut self.buf);
            let sent = self.answer(fd, &buf[..found.whole]);
            self.buf = buf;
            sent?;
        }
        self.tidy(fd);
        Ok(if n < asked { Read::Short } else { Read::Full })
    }

    /// Keeps the rest of a split frame, `buf[from..to]`.
    fn keep(&mut self, fd: RawFd, from: usize, to: usize, frame_len: usize) {
        if from == to {
            return;
        }
        let more = self.conns[fd as usize].more.get_or_insert_default();
        if frame_len > BUFFER_LEN {
            more.frame = self.spares.pop().unwrap_or_default();
            more.frame.reserve_exact(frame_len); // no page of it is touched before it is read into
            more.frame_len = frame_len;
        }
        more.frame.extend_from_slice(&self.buf[from..to]);
    }

    /// Reads the rest of a long frame to where it belongs.
    fn read_long(&mut self, fd: RawFd) -> io::Result<Read> {
        let more = self.conns[fd as usize].more.as_mut().expect("it has begun a frame");
        let at = more.frame.len();
        let asked = more.frame_len - at;
        // SAFETY: `keep` has reserved `frame_len` bytes, and `n` more of them are written now.
        let n = match read(fd, unsafe { more.frame.as_mut_ptr().add(at) }, asked) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Empty),
            Err(error) => return Err(error),
        };
        unsafe { more.frame.set_len(at + n) };
        if n < asked {
            return Ok(Read::Short);
        }
        more.frame_len = 0;
        let frame = mem::take(&mut more.frame);
        if self.broadcasts {
            self.answer(fd, &frame)?;
            self.recycle(frame);
        } else {
            self.send_owned(fd, frame)?;
        }
        self.tidy(fd);
        Ok(Read::Full)
    }

    fn answer(&mut self, from: RawFd, frames: &[u8]) -> io::Result<()> {
        if !self.broadcasts {
            return self.send(from, frames);
        }
        for fd in 0..self.conns.len() {
            let fd = fd as RawFd;
            if self.conns[fd as usize].is_open && fd != from && self.send(fd, frames).is_err() {
                self.close(fd);
            }
        }
        Ok(())
    }

    fn send(&mut self, fd: RawFd, bytes: &[u8]) -> io::Result<()> {
        let conn = &mut self.conns[fd as usize];
        let is_queued = conn.more.as_ref().is_some_and(|more| !more.out.is_empty());
        let n = if is_queued { 0 } else { write(fd, bytes)? };
        if n < bytes.len() {
            let more = conn.more.get_or_insert_default();
            more.queued += bytes.len() - n;
            more.out.push_back(bytes[n..].to_vec());
        }
        Ok(())
    }

    fn send_owned(&mut self, fd: RawFd, frame: Vec<u8>) -> io::Result<()> {
        let more = self.conns[fd as usize].more.get_or_insert_default();
        let n = if more.out.is_empty() { write(fd, &frame)? } else { 0 };
        if n == frame.len() {
            self.recycle(frame);
        } else {
            if more.out.is_empty() {
                more.written = n;
            }
            more.queued += frame.len() - n;
            more.out.push_back(frame);
        }
        Ok(())
    }

    fn flush(&mut self, fd: RawFd) -> io::Result<()> {
        while let Some(more) = &mut self.conns[fd as usize].more
            && let Some(first) = more.out.front()
        {
            let n = write(fd, &first[more.written..])?;
            more.written += n;
            more.queued -= n;
            if more.written < first.len() {
                return Ok(());
            }
            more.written = 0;
            let first = more.out.pop_front().expect("it was there");
            self.recycle(first);
        }
        if let Some(more) = &mut self.conns[fd as usize].more
            && mem::take(&mut more.is_paused)
        {
            self.mark_ready(fd);
        }
        self.tidy(fd);
        Ok(())
    }

    fn recycle(&mut self, mut frame: Vec<u8>) {
        if frame.capacity() > BUFFER_LEN && self.spares.len() < SPARES {
            frame.clear();
            self.spares.push(frame);
        }
    }

    fn tidy(&mut self, fd: RawFd) {
        let conn = &mut self.conns[fd as usize];
        if conn.more.as_ref().is_some_and(|more| more.frame.is_empty() && more.out.is_empty()) {
            conn.more = None;
        }
    }

    fn close(&mut self, fd: RawFd) {
        self.conns[fd as usize] = Conn::default();
        unsafe { libc::close(fd) };
    }
}

fn read(fd: RawFd, buf: *mut u8, len: usize) -> io::Result<usize> {
    loop {
        let n = unsafe { libc::read(fd, buf.cast(), len) };
        if n >= 0 {
            return Ok(n.cast_unsigned());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// How much was taken, which may be nothing.
fn write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        // Not `write`, which a peer that is gone answers with SIGPIPE.
        let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        if n >= 0 {
            return Ok(n.cast_unsigned());
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(0),
            _ => return Err(error),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
