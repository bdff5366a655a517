//! The load: one thread that keeps many connections busy, and compares every byte that comes back.
//!
//! Frames are never kept: they differ in nothing but their sequence number, so what is to be sent
//! next, and what must come next, is a window on a ring of prepared frames.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    mem,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use socket2::SockRef;

use crate::wire;

/// Bytes of one read, and of prepared frames.
const BUFFER_LEN: usize = 256 * 1024;
const EVENTS: usize = 1024;
/// Nothing happened for so long: the server has lost something.
const STALL: Duration = Duration::from_secs(10);

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Tcpstream,
    /// longhaul's own: requests, answered by replies.
    Native,
}

/// Whom to load, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub addr: SocketAddr,
    pub format: Format,
    pub connections: usize,
    /// Messages under way on each connection.
    pub depth: usize,
    /// Bytes of body.
    pub size: usize,
    pub warm_up: Duration,
    pub window: Duration,
}

/// What happened in the window.
#[derive(Debug)]
pub struct Outcome {
    /// Messages that came back; at a broadcast, that were received.
    pub messages: u64,
    pub elapsed: Duration,
    /// By how much the sample grew.
    pub server_cpu: Duration,
    /// In nanoseconds, of each message; at a broadcast, until the last has it.
    pub latency: Histogram<u64>,
}

/// Sends and awaits echoes. `sample` is asked for the server's processor time.
pub fn echo(
    plan: &Plan,
    sample: &mut dyn FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Outcome> {
    let mut load = Load::open(plan)?;
    for index in 0..load.conns.len() {
        load.conns[index].due = plan.depth;
        load.send(index)?;
    }
    let mut window = Window::new(plan)?;
    while !window.is_over(sample)? {
        load.turn(&mut |load, index, count| {
            let now = window.now();
            let conn = &mut load.conns[index];
            let mut left = count;
            while left > 0 {
                let (sent, n) = conn.sent.front_mut().context("more came than was sent")?;
                let some = left.min(*n);
                window.record((now - *sent).as_nanos() as u64, some as u64);
                left -= some;
                *n -= some;
                if *n == 0 {
                    conn.sent.pop_front();
                }
            }
            conn.due += count;
            load.send(index)
        })?;
    }
    Ok(window.outcome())
}

/// One connection sends, all others must receive it; then again.
pub fn broadcast(
    plan: &Plan,
    sample: &mut dyn FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Outcome> {
    // The numbers of such frames are the server's to choose: longhaul says 0.
    let mut load = Load { numbers: false, ..Load::open(plan)? };
    let sender = Plan { connections: 1, ..*plan };
    let mut sender = Load { numbers: false, ..Load::open(&sender)? };
    let mut window = Window::new(plan)?;
    while !window.is_over(sample)? {
        let begun = Instant::now();
        sender.conns[0].due = 1;
        sender.send(0)?;
        let mut missing = plan.connections;
        while missing > 0 {
            load.turn(&mut |_, _, count| {
                missing = missing.checked_sub(count).context("more came than was sent")?;
                Ok(())
            })?;
        }
        let now = window.now();
        window.messages += plan.connections as u64;
        window.latency.saturating_record((now - begun).as_nanos() as u64);
    }
    Ok(window.outcome())
}

/// Connections that only are; and one echo over each, when asked for.
#[derive(Debug)]
pub struct Idle(Load);

impl Idle {
    pub fn open(plan: &Plan) -> anyhow::Result<Self> {
        Ok(Self(Load::open(plan)?))
    }

    pub fn use_once(&mut self) -> anyhow::Result<()> {
        for index in 0..self.0.conns.len() {
            self.0.conns[index].due = 1;
            self.0.send(index)?;
        }
        let mut missing = self.0.conns.len();
        while missing > 0 {
            self.0.turn(&mut |_, _, count| {
                missing = missing.checked_sub(count).context("more came than was sent")?;
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// When is measured, and what.
struct Window {
    messages: u64,
    latency: Histogram<u64>,
    starts: Instant,
    len: Duration,
    /// When it really began, and what the server had used then.
    begun: Option<(Instant, Duration)>,
    ended: Option<(Instant, Duration)>,
    now: Instant,
}

impl Window {
    fn new(plan: &Plan) -> anyhow::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            messages: 0,
            latency: histogram()?,
            starts: now + plan.warm_up,
            len: plan.window,
            begun: None,
            ended: None,
            now,
        })
    }

    fn now(&mut self) -> Instant {
        self.now = Instant::now();
        self.now
    }

    fn record(&mut self, nanos: u64, count: u64) {
        self.messages += count;
        self.latency.saturating_record_n(nanos, count);
    }

    fn is_over(
        &mut self,
        sample: &mut dyn FnMut() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<bool> {
        match self.begun {
            None if self.now >= self.starts => {
                self.messages = 0;
                self.latency.reset();
                self.begun = Some((Instant::now(), sample()?));
            }
            Some((begun, _)) if self.now >= begun + self.len => {
                self.ended = Some((Instant::now(), sample()?));
            }
            _ => {}
        }
        Ok(self.ended.is_some())
    }

    fn outcome(self) -> Outcome {
        let (begun, before) = self.begun.expect("it is over");
        let (ended, after) = self.ended.expect("it is over");
        Outcome {
            messages: self.messages,
            elapsed: ended - begun,
            server_cpu: after.saturating_sub(before),
            latency: self.latency,
        }
    }
}

/// Of nanoseconds, up to a minute.
pub(crate) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

#[derive(Debug)]
struct Load {
    epoll: Epoll,
    conns: Vec<Conn>,
    requests: Ring,
    replies: Ring,
    buf: Box<[u8]>,
    /// Connections whose last read filled the buffer.
    ready: Vec<usize>,
    /// Whether frames are numbered, or are all number 0.
    numbers: bool,
}

#[derive(Debug)]
struct Conn {
    stream: TcpStream,
    /// Frames that may be sent.
    due: usize,
    /// The frame that is sent next, and how much of it is sent.
    tx: (u64, usize),
    /// The frame that is received next, and how much of it is received.
    rx: (u64, usize),
    is_writable: bool,
    /// When how many were sent.
    sent: VecDeque<(Instant, usize)>,
}

impl Load {
    fn open(plan: &Plan) -> anyhow::Result<Self> {
        let mut load = Self {
            epoll: Epoll::new()?,
            conns: Vec::with_capacity(plan.connections),
            requests: Ring::new(plan.format, true, plan.size),
            replies: Ring::new(plan.format, false, plan.size),
            buf: vec![0; BUFFER_LEN].into(),
            ready: Vec::new(),
            numbers: true,
        };
        for index in 0..plan.connections {
            let stream = connect(plan.addr, plan.format).context("can't connect")?;
            load.epoll.add(&stream, index)?;
            load.conns.push(Conn {
                stream,
                due: 0,
                tx: (1, 0),
                rx: (1, 0),
                is_writable: true,
                sent: VecDeque::with_capacity(2),
            });
        }
        Ok(load)
    }

    /// Waits, and reads once where something has come: one connection does not starve another.
    /// `on_frames` is told how many frames have become whole where.
    fn turn(
        &mut self,
        on_frames: &mut dyn FnMut(&mut Self, usize, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let ready = mem::take(&mut self.ready);
        let timeout = if ready.is_empty() { STALL } else { Duration::ZERO };
        let count = self.epoll.wait(&mut events, timeout)?;
        ensure!(count > 0 || !ready.is_empty(), "nothing came back for {STALL:?}");
        for index in ready {
            self.receive(index, on_frames)?;
        }
        for event in &events[..count] {
            let (index, events) = (event.u64 as usize, event.events.cast_signed());
            if events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
                bail!("the server has closed connection {index}");
            }
            if events & libc::EPOLLOUT != 0 && !self.conns[index].is_writable {
                self.conns[index].is_writable = true;
                self.send(index)?;
            }
            if events & libc::EPOLLIN != 0 {
                self.receive(index, on_frames)?;
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        index: usize,
        on_frames: &mut dyn FnMut(&mut Self, usize, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let conn = &mut self.conns[index];
        let n = match (&conn.stream).read(&mut self.buf) {
            Ok(0) => bail!("the server has closed connection {index}"),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error.into()),
        };
        let (mut at, mut count) = (0, 0);
        while at < n {
            let expected = self.replies.from(conn.rx, n - at, self.numbers);
            let len = expected.len();
            ensure!(
                self.buf[at..at + len] == *expected,
                "connection {index}: what came back for frame {} is not what was sent",
                conn.rx.0
            );
            at += len;
            count += self.replies.advance(&mut conn.rx, len);
        }
        if n == self.buf.len() || n == 0 {
            self.ready.push(index);
        }
        if count > 0 { on_frames(self, index, count) } else { Ok(()) }
    }

    /// Sends what is due, as far as the system takes it.
    fn send(&mut self, index: usize) -> anyhow::Result<()> {
        let conn = &mut self.conns[index];
        while conn.due > 0 && conn.is_writable {
            let len = conn.due * self.requests.frame_len - conn.tx.1;
            let bytes = self.requests.from(conn.tx, len, self.numbers);
            let asked = bytes.len();
            // Before the write: the other side may answer while it returns.
            let now = Instant::now();
            match (&conn.stream).write(bytes) {
                Ok(n) => {
                    // The time of a frame is that of the write that ended it.
                    let count = self.requests.advance(&mut conn.tx, n);
                    conn.due -= count;
                    if count > 0 {
                        conn.sent.push_back((now, count));
                    }
                    conn.is_writable = n == asked;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    conn.is_writable = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Equal frames, one behind the other, whose numbers are set when they are looked at.
#[derive(Debug)]
struct Ring {
    bytes: Vec<u8>,
    frame_len: usize,
    /// Where in a frame its number is.
    number_at: usize,
}

impl Ring {
    fn new(format: Format, is_request: bool, size: usize) -> Self {
        let body = (0..size).map(|at| (at * 31 + at / 251) as u8);
        let mut frame = match format {
            Format::Tcpstream => wire::header(size, 0, 7).to_vec(),
            Format::Native => {
                let mut header = vec![0; 24];
                header[..4].copy_from_slice(&(size as u32).to_be_bytes());
                header[4] = if is_request { 2 } else { 3 };
                header[11] = 7;
                header
            }
        };
        frame.extend(body);
        let number_at = match format {
            Format::Tcpstream => 6,
            Format::Native => 16,
        };
        let count = (BUFFER_LEN / frame.len()).max(1);
        Self { frame_len: frame.len(), bytes: frame.repeat(count), number_at }
    }

    /// What follows on `(number, offset)`, up to `len` bytes, and no more than there is room for.
    fn from(&mut self, (number, offset): (u64, usize), len: usize, numbers: bool) -> &[u8] {
        let end = (offset + len).min(self.bytes.len());
        let count = end.div_ceil(self.frame_len);
        if numbers {
            for (number, frame) in
                (number..).zip(self.bytes.chunks_exact_mut(self.frame_len)).take(count)
            {
                frame[self.number_at..self.number_at + 8].copy_from_slice(&number.to_be_bytes());
            }
        }
        &self.bytes[offset..end]
    }

    /// So many bytes went by; returns how many frames ended with them.
    fn advance(&self, at: &mut (u64, usize), len: usize) -> usize {
        let offset = at.1 + len;
        let count = offset / self.frame_len;
        *at = (at.0 + count as u64, offset % self.frame_len);
        count
    }
}

fn connect(addr: SocketAddr, format: Format) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    // Closing leaves no port behind in TIME_WAIT, which tens of thousands would.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    if format == Format::Native {
        greet(&mut stream)?;
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The hellos of longhaul's own format, ours and the server's.
fn greet(stream: &mut TcpStream) -> io::Result<()> {
    let mut hello = vec![0; 24];
    hello[3] = 20;
    hello.extend([0, 1, 0, 0]); // the version, no flags
    hello.extend((wire::LARGEST_BODY as u32).to_be_bytes());
    hello.extend(4096_u32.to_be_bytes());
    hello.extend([0; 8]); // no heartbeats, no idle timeout
    stream.write_all(&hello)?;
    let mut header = [0; 24];
    stream.read_exact(&mut header)?;
    let len = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    if header[4] != 0 || len > 1024 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the server says no hello"));
    }
    stream.read_exact(&mut vec![0; len as usize])
}

#[derive(Debug)]
struct Epoll(std::os::fd::OwnedFd);

impl Epoll {
    fn new() -> io::Result<Self> {
        use std::os::fd::{FromRawFd, OwnedFd};
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was made just now, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Once, for both directions, edge-triggered.
    fn add(&self, stream: &TcpStream, index: usize) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: index as u64 };
        let (epoll, fd) = (self.0.as_raw_fd(), stream.as_raw_fd());
        let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if added < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn wait(&self, events: &mut [libc::epoll_event], timeout: Duration) -> io::Result<usize> {
        let (epoll, len) = (self.0.as_raw_fd(), events.len() as i32);
        let millis = timeout.as_millis() as i32;
        loop {
            let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), len, millis) };
            if count >= 0 {
                return Ok(count.cast_unsigned() as usize);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}
