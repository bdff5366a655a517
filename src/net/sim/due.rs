//! What is due in a simulated world, and when.

use std::{cmp::Ordering, io};

use super::connection::{EndId, Nanos};
use crate::net::Ticket;

#[derive(Clone, Copy)]
pub(super) enum Socket {
    End(EndId),
    Listener(usize),
}

/// Something on the agenda.
pub(super) enum Action {
    /// The pipe of this end moves on.
    Deliver(EndId),
    Signal(Socket, u8),
    /// A connect reaches the other machine, for the nth time.
    Syn(usize, u32),
    /// A connect's answer reaches the client.
    Established(usize),
    /// A connect fails.
    Fail(usize, io::ErrorKind),
    SelfConnected(usize),
    /// A fault resets the connection, unless the world is calm by then.
    FaultReset(usize),
    /// The pipe of this end was blocked since then and may have timed out.
    GiveUp(EndId, Nanos),
    /// The keepalive of this end may send a probe.
    Probe(EndId),
    /// A partition by a fault heals.
    Heal(usize, usize),
    Answer(u64),
}

pub(super) struct Due {
    pub(super) at: Nanos,
    pub(super) sequence: u64,
    pub(super) action: Action,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

pub(super) struct Lookup {
    pub(super) host: usize,
    pub(super) ticket: Ticket,
    pub(super) name: String,
    pub(super) port: u16,
    /// Fails, or is never answered.
    pub(super) fails: bool,
    pub(super) is_lost: bool,
}
