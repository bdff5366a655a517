//! What the handler is told of an end.

use std::{fmt, time::Duration};

use super::CloseReason;

/// What [`on_disconnect`](crate::Handler::on_disconnect) is told.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CloseReport {
    /// Why the connection ended.
    pub reason: CloseReason,
    /// How many accepted messages were not given to the system whole;
    /// [`Conn::take_unsent`](crate::Conn::take_unsent) hands them back.
    pub unsent_messages: u64,
    /// How many bytes of frames were not given to the system.
    pub unsent_bytes: u64,
    /// How many calls of ours ended with it; each was told so.
    pub calls: u64,
    /// How many deferred requests of the peer's were not answered; those that it had cancelled aside.
    pub requests: u64,
    /// When a dialled connection will be tried again, counted from now; `None`: never.
    pub redial_in: Option<Duration>,
}

impl fmt::Display for CloseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)?;
        if self.unsent_messages > 0 {
            write!(f, "; {} messages unsent ({} bytes)", self.unsent_messages, self.unsent_bytes)?;
        }
        if self.calls > 0 {
            write!(f, "; {} calls unanswered", self.calls)?;
        }
        if self.requests > 0 {
            write!(f, "; {} requests not answered", self.requests)?;
        }
        if let Some(delay) = self.redial_in {
            write!(f, "; redial in {delay:?}")?;
        }
        Ok(())
    }
}

/// What a graceful end of a listener's connections, or of all of a reactor's, came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Connections that ended.
    pub connections: u64,
    /// Those of them that had something unfinished when they ended.
    pub cut: u64,
    /// Accepted messages that were not given to the system whole.
    pub unsent_messages: u64,
    /// Bytes of frames that were not given to the system.
    pub unsent_bytes: u64,
    /// Calls of ours that ended without an answer.
    pub calls: u64,
    /// Deferred requests that were not answered; those that their peer had cancelled aside.
    pub requests: u64,
}

impl DrainReport {
    pub(crate) fn add(&mut self, closed: &CloseReport) {
        self.connections += 1;
        let is_cut = closed.unsent_messages > 0 || closed.calls > 0 || closed.requests > 0;
        self.cut += u64::from(is_cut);
        self.unsent_messages += closed.unsent_messages;
        self.unsent_bytes += closed.unsent_bytes;
        self.calls += closed.calls;
        self.requests += closed.requests;
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, cut, unsent_messages, unsent_bytes, calls, requests } = self;
        write!(f, "{connections} connections ended, {cut} of them cut")?;
        if *cut > 0 {
            write!(
                f,
                ": {unsent_messages} messages unsent ({unsent_bytes} bytes), {calls} calls \
                 unanswered, {requests} requests not answered"
            )?;
        }
        Ok(())
    }
}
