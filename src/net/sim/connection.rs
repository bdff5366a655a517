//! One simulated connection: two ends and a byte pipe each way.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    net::SocketAddr,
    time::Duration,
};

use crate::{Keepalive, net::Token};

/// Nanoseconds since the world began.
pub(super) type Nanos = u64;

/// One end of a connection, and the pipe that leads away from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndId(usize);

impl EndId {
    /// The end that connected.
    pub(super) const fn client(connection: usize) -> Self {
        Self(connection * 2)
    }

    /// The end that listened.
    pub(super) const fn server(connection: usize) -> Self {
        Self(connection * 2 + 1)
    }

    pub(super) const fn other(self) -> Self {
        Self(self.0 ^ 1)
    }

    pub(super) const fn connection(self) -> usize {
        self.0 / 2
    }

    pub(super) const fn side(self) -> usize {
        self.0 % 2
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ends: [End; 2],
    /// `pipes[side]` is what the end of that side writes to.
    pub(super) pipes: [Pipe; 2],
}

/// How an end stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Connecting,
    Up,
    /// The connect failed, or the connection was reset.
    Down,
    /// The connect reached its own socket.
    Itself,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that hold independently")]
pub(super) struct End {
    /// The process; none yet where nobody has listened.
    pub(super) host: Option<usize>,
    pub(super) addr: SocketAddr,
    pub(super) link: Link,
    /// Not yet closed, by the application or with its process. Also true in the backlog.
    pub(super) is_open: bool,
    /// The application has it, so that it is a descriptor.
    pub(super) is_held: bool,
    /// Given at registration.
    pub(super) token: Option<Token>,
    /// What the next call reports, once.
    pub(super) error: Option<io::ErrorKind>,
    /// The peer's FIN arrived.
    pub(super) has_fin: bool,
    /// We sent ours.
    pub(super) is_shut: bool,
    /// A write found no room, so that an event is due when there is some.
    pub(super) wants_room: bool,
    /// The hint of an end was withheld once and stays so.
    pub(super) hint_lost: bool,
    /// Ready flags that changed since the last event.
    pub(super) changed: u8,
    /// On its host's ready list.
    pub(super) is_queued: bool,
    /// Its place on its host's list of registered ends.
    pub(super) slot: usize,
    pub(super) user_timeout: Option<Duration>,
    /// First probe, interval and count of TCP's own keepalive.
    pub(super) keepalive: Option<Keepalive>,
    /// When the last thing was received, probes and their answers aside.
    pub(super) heard: Nanos,
    /// Probes that went unanswered since.
    pub(super) probes: u32,
    /// When the next probe is due. Known only since a cut made that matter.
    pub(super) probe_due: Option<Nanos>,
    /// An IPv4 peer of an IPv6 listener.
    pub(super) is_mapped: bool,
}

impl End {
    pub(super) const fn new(addr: SocketAddr) -> Self {
        Self {
            host: None,
            addr,
            link: Link::Connecting,
            is_open: false,
            is_held: false,
            token: None,
            error: None,
            has_fin: false,
            is_shut: false,
            wants_room: false,
            hint_lost: false,
            changed: 0,
            is_queued: false,
            slot: 0,
            user_timeout: None,
            keepalive: None,
            heard: 0,
            probes: 0,
            probe_due: None,
            is_mapped: false,
        }
    }

    /// Something came from the other end.
    pub(super) const fn hear(&mut self, now: Nanos) {
        self.heard = now;
        self.probes = 0;
    }

    /// Reading finds an end or an error sooner or later.
    pub(super) fn ends(&self) -> bool {
        self.has_fin || self.error.is_some() || self.link == Link::Down
    }
}

/// One direction: what was written and has not been read.
///
/// The first `arrived` bytes lie in the reader's receive buffer. The rest lies in the writer's send
/// buffer or on the way, cut into segments.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    /// Invariant: as many as `arrived` and the segments add up to.
    pub(super) bytes: VecDeque<u8>,
    pub(super) arrived: usize,
    pub(super) segments: VecDeque<Segment>,
    pub(super) send_limit: usize,
    pub(super) receive_limit: usize,
    /// When the last segment is due; the next one is not due before.
    pub(super) last_due: Nanos,
    /// When the delivery is that is scheduled; any other is out of date.
    pub(super) scheduled: Option<Nanos>,
    pub(super) stalled_until: Nanos,
    /// The receive buffer is full; the next read lets the delivery go on.
    pub(super) is_full: bool,
    /// Since when its hosts are cut off from one another while something was due.
    pub(super) blocked_since: Option<Nanos>,
    /// A reset is among the segments, as the last.
    pub(super) has_reset: bool,
    pub(super) flow: Flow,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) due: Nanos,
    pub(super) content: Content,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    Bytes(usize),
    Fin,
    Reset,
}

impl Content {
    /// How many of the pipe's bytes it stands for.
    pub(super) const fn len(self) -> usize {
        match self {
            Self::Bytes(len) => len,
            Self::Fin | Self::Reset => 0,
        }
    }
}

/// How much went one way on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Bytes that writes took.
    pub(crate) written: u64,
    /// Bytes that reached the other host.
    pub(crate) arrived: u64,
    /// Bytes that reads returned.
    pub(crate) read: u64,
}

impl Pipe {
    /// Bytes that take up the send buffer.
    pub(super) fn unsent(&self) -> usize {
        self.bytes.len() - self.arrived
    }

    pub(super) fn room(&self) -> usize {
        self.send_limit.saturating_sub(self.unsent())
    }

    /// Enough room to tell the writer of; Linux waits for a third.
    pub(super) fn has_room(&self) -> bool {
        self.unsent() == 0 || self.room() >= self.send_limit.div_ceil(3)
    }

    /// Writes the first `len` bytes of the slices.
    pub(super) fn put(&mut self, slices: &[IoSlice<'_>], len: usize) {
        let mut rest = len;
        for slice in slices {
            let part = &slice[..rest.min(slice.len())];
            self.bytes.extend(part);
            rest -= part.len();
        }
        self.flow.written += len as u64;
    }

    /// Fills the buffer with bytes that have arrived.
    pub(super) fn take(&mut self, buf: &mut [u8]) {
        let (front, back) = self.bytes.as_slices();
        let split = front.len().min(buf.len());
        let (first, second) = buf.split_at_mut(split);
        first.copy_from_slice(&front[..split]);
        second.copy_from_slice(&back[..second.len()]);
        self.bytes.drain(..buf.len());
        self.arrived -= buf.len();
        self.flow.read += buf.len() as u64;
    }

    /// The next segment, of so many bytes, arrives as far as there is room; false if there is none.
    pub(super) fn accept_segment(&mut self, len: usize) -> bool {
        let taken = self.receive_limit.saturating_sub(self.arrived).min(len);
        if taken == 0 && self.has_reset {
            // No kernel sends beyond the window, so the reset comes next, and what lay between is lost.
            self.segments.drain(..self.segments.len() - 1);
            self.bytes.truncate(self.arrived);
            return true;
        }
        if taken == len {
            self.segments.pop_front();
        } else {
            self.is_full = !self.has_reset;
            self.segments[0].content = Content::Bytes(len - taken);
        }
        self.arrived += taken;
        self.flow.arrived += taken as u64;
        !self.is_full
    }

    /// Loses what has not arrived, control segments included.
    pub(super) fn clear_unsent(&mut self) {
        self.bytes.truncate(self.arrived);
        self.segments.clear();
        self.has_reset = false;
        self.is_full = false;
        self.scheduled = None;
    }

    /// Checks the invariant.
    pub(super) fn check(&self) {
        let segments = self.segments.iter().map(|segment| segment.content.len()).sum::<usize>();
        assert_eq!(self.bytes.len(), self.arrived + segments, "{self:?}");
    }

    /// Loses everything, and gives the memory back.
    pub(super) fn clear(&mut self) {
        self.bytes = VecDeque::new();
        self.segments = VecDeque::new();
        self.arrived = 0;
        self.has_reset = false;
        self.is_full = false;
        self.scheduled = None;
    }
}
