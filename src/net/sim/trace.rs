//! What happened in a simulated world, as a number that two runs can be compared by.

use std::{fmt, io, time::Duration};

/// A hash of every visible action, and on request the actions themselves.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

/// One visible action.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) host: usize,
    pub(super) op: Op,
    /// The token, connection or listener that it is about.
    pub(super) subject: u64,
    /// Bytes, flags or a port.
    pub(super) size: u64,
    pub(super) error: Option<io::ErrorKind>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Listen,
    CloseListener,
    Accept,
    Connect,
    Connected,
    Register,
    Event,
    Read,
    Write,
    Shutdown,
    Close,
    Drop,
    Resolve,
    Answer,
    Reset,
    Cut,
    Heal,
    Exhaust,
    Kill,
    Power,
    Calm,
}

impl Trace {
    pub(super) const fn new() -> Self {
        Self { hash: 0xCBF2_9CE4_8422_2325, lines: None }
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    /// Starts to keep lines, or drops them.
    pub(super) fn keep(&mut self, keeps: bool) {
        self.lines = keeps.then(|| self.lines.take().unwrap_or_default());
    }

    pub(super) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }

    pub(super) fn add(&mut self, nanos: u64, entry: Entry) {
        let what = (entry.host as u64) << 16
            | (entry.op as u64) << 8
            | entry.error.map_or(0, |kind| kind as u64 + 1);
        for number in [nanos, what, entry.subject, entry.size] {
            self.hash = (self.hash ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:?} {entry}", Duration::from_nanos(nanos)));
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {} {:?} {:x} {}", self.host, self.op, self.subject, self.size)?;
        self.error.map_or(Ok(()), |kind| write!(f, " {kind:?}"))
    }
}
