//! The loop's own state of one connection.
//!
//! State of a socket is made anew with the socket ([`Readiness`]), state of an epoch with
//! the epoch ([`Epoch`]). So nothing has to be reset by hand when a connection is dialled again.

use std::{
    any::Any,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    sync::{Arc, atomic::AtomicBool},
};

use super::{dialled::Dial, profile::Profile, work::Work};
use crate::{
    ConnId, ListenerId,
    core::{connection::Connection, write_queue::FRAME_OVERHEAD},
    error::CloseReason,
    id::TimerKey,
    moment::Moment,
    protocol::Protocol,
    role::Role,
    threads::board::{Board, LinkState, Published},
};

/// A connection as the loop has it.
pub(crate) type Link<P, W> = Connection<P, W, Arc<AtomicBool>>;

/// Where a connection is in its life.
///
/// ```text
/// dialled:  Resolving ─▶ Connecting ─▶ Greeting ─▶ Open      Waiting ─▶ Resolving …
///               └─────────────┴────────────┴──▶ Dropped ────────▲
/// accepted:              Connecting ─▶ Greeting ─▶ Open
///
///           Open ─▶ Draining ─▶ Closing ─▶ Lingering ─▶ Dropped ─▶ gone, or Waiting
/// ```
///
/// How a connection ends, and by what, is in [`close`](super::close).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Dialled: its name is being looked up.
    Resolving,
    /// Dialled: an address is being tried. Accepted: it is registered in this turn.
    Connecting,
    /// Dialled: between two rounds of attempts.
    Waiting,
    /// The peers are connected, and the peer's hello is awaited. Only where the format has one.
    Greeting,
    /// Up.
    Open,
    /// No new work; what is in flight finishes.
    Draining,
    /// The queue is written.
    Closing,
    /// All was written and the peer told; its end is awaited so that nothing is lost on the way.
    Lingering,
    /// Nothing is read or written any more; put away in step 8.
    Dropped,
}

/// One connection.
pub(crate) struct Slot<P: Protocol, W> {
    pub(crate) id: ConnId,
    pub(crate) phase: Phase,
    pub(crate) io: Readiness,
    pub(crate) lists: Lists,
    pub(crate) epoch: Epoch,
    pub(crate) link: Link<P, W>,
    pub(crate) profile: Arc<Profile<P>>,
    pub(crate) peer: PeerAddr,
    pub(crate) listener: Option<ListenerId>,
    /// The one timer of all deadlines of the connection, and when it fires.
    pub(crate) watch: Option<(TimerKey, Moment)>,
    /// The state that was last published on the board.
    pub(crate) published: Published,
    pub(crate) own: Option<Box<Own>>,
    pub(crate) dial: Option<Box<Dial<P::Id>>>,
}

/// The readiness of one socket. It ends with the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// There may be something to read: an event said so, and no read has found the opposite.
    pub(crate) is_readable: bool,
    pub(crate) is_writable: bool,
    pub(crate) peers_end: PeersEnd,
}

/// The end of what the peer sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PeersEnd {
    #[default]
    Unknown,
    /// An event told of it; what is before it may still have to be read.
    Told,
    /// It said so, in the way of the layer that lies between: its socket may still be open.
    Said,
    /// It was read from the socket.
    Read,
}

impl Readiness {
    /// Whether the peer sends no more, and all that it sent was read.
    #[inline]
    pub(crate) fn is_eof(self) -> bool {
        self.peers_end >= PeersEnd::Said
    }
}

/// In which lists of the loop the connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    /// Of those to flush.
    pub(crate) is_dirty: bool,
    /// Of those to read.
    pub(crate) is_ready: bool,
    /// Of those that ended.
    pub(crate) is_ended: bool,
}

/// The state of one epoch, or of one round of dialling. It ends with it.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    /// Counts the times that the connection was up; 0: not yet.
    pub(crate) number: u32,
    pub(crate) told: Told,
    pub(crate) reading: Reading,
    /// The write queue went above its high watermark and is not yet below the low one.
    pub(crate) is_above_high: bool,
    /// It is up, and not all that was kept for it is queued yet: what is sent has to wait behind that.
    pub(crate) has_backlog: bool,
    /// Its end, once that is known; the first reason counts.
    end: Option<Box<End>>,
}

/// Whether messages are read, as far as others than the connection itself decide on that. One byte: it
/// is looked at for every message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading(u8);

impl Reading {
    /// The application paused it.
    const PAUSED: u8 = 1;
    /// Too many broadcasts are under way.
    const HELD: u8 = 2;
    /// Its messages have caused broadcasts.
    const BROADCASTS: u8 = 4;

    #[inline]
    pub(crate) const fn is_off(self) -> bool {
        self.0 & (Self::PAUSED | Self::HELD) != 0
    }

    pub(crate) const fn pause(&mut self) {
        self.0 |= Self::PAUSED;
    }

    /// Whether it was paused.
    pub(crate) const fn resume(&mut self) -> bool {
        let was_paused = self.0 & Self::PAUSED != 0;
        self.0 &= !Self::PAUSED;
        was_paused
    }

    /// Whether it was not held before.
    pub(crate) const fn hold(&mut self) -> bool {
        let is_new = self.0 & Self::HELD == 0;
        self.0 |= Self::HELD;
        is_new
    }

    /// Whether it was held.
    pub(crate) const fn release(&mut self) -> bool {
        let was_held = self.0 & Self::HELD != 0;
        self.0 &= !Self::HELD;
        was_held
    }

    pub(crate) const fn note_broadcast(&mut self) {
        self.0 |= Self::BROADCASTS;
    }

    pub(crate) const fn has_broadcast(self) -> bool {
        self.0 & Self::BROADCASTS != 0
    }
}

/// The end of an epoch.
#[derive(Debug)]
struct End {
    reason: CloseReason,
    /// Calls of ours that ended with it.
    cut_calls: u32,
}

/// The last callback of an epoch that the handler was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Told {
    #[default]
    Nothing,
    /// That it is up.
    Up,
    /// That it has ended, or never began.
    End,
}

/// State that the application keeps with a connection.
#[derive(Default)]
pub(crate) struct Own {
    pub(crate) data: Option<Box<dyn Any + Send>>,
    pub(crate) groups: Vec<Arc<str>>,
    pub(crate) timers: BTreeSet<TimerKey>,
}

/// A peer's address, in half of the room where it is one of IPv4.
#[derive(Clone, Debug)]
pub(crate) enum PeerAddr {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
}

impl PeerAddr {
    /// The peer of a connection for which no address was tried yet.
    pub(crate) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

    /// The address, if one was tried.
    pub(crate) fn known(&self) -> Option<SocketAddr> {
        Some(self.get()).filter(|addr| *addr != Self::NOWHERE)
    }

    pub(crate) fn get(&self) -> SocketAddr {
        match self {
            Self::V4(addr) => SocketAddr::V4(*addr),
            Self::V6(addr) => SocketAddr::V6(**addr),
        }
    }
}

impl From<SocketAddr> for PeerAddr {
    fn from(addr: SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(addr) => Self::V4(addr),
            SocketAddr::V6(addr) => Self::V6(Box::new(addr)),
        }
    }
}

impl Phase {
    /// Whether the peers are connected: there is a socket that can be read or written.
    #[inline]
    pub(crate) const fn is_connected(self) -> bool {
        matches!(
            self,
            Self::Greeting | Self::Open | Self::Draining | Self::Closing | Self::Lingering
        )
    }

    /// Whether frames are read and handled.
    #[inline]
    const fn is_reading(self) -> bool {
        matches!(self, Self::Greeting | Self::Open | Self::Draining)
    }

    /// Whether what is queued is written.
    #[inline]
    pub(crate) const fn is_writing(self) -> bool {
        matches!(self, Self::Greeting | Self::Open | Self::Draining | Self::Closing)
    }
}

impl Epoch {
    /// A new epoch, or round of dialling, after this many epochs.
    pub(crate) fn after(number: u32) -> Self {
        Self { number, ..Self::default() }
    }

    /// Why it ends, once that is known.
    pub(crate) fn end_reason(&self) -> Option<&CloseReason> {
        Some(&self.end.as_ref()?.reason)
    }

    /// It ends, for this reason if none was given before.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.end.get_or_insert_with(|| Box::new(End { reason, cut_calls: 0 }));
    }

    /// Calls of ours ended with it.
    pub(crate) fn note_cut_calls(&mut self, count: usize) {
        if let Some(end) = &mut self.end {
            end.cut_calls = end.cut_calls.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    /// How many calls of ours ended with it.
    pub(crate) fn cut_calls(&self) -> u32 {
        self.end.as_ref().map_or(0, |end| end.cut_calls)
    }
}

impl<P: Protocol, W> Slot<P, W> {
    /// Whether messages may be read and handled.
    #[inline]
    pub(crate) fn can_read(&self) -> bool {
        self.phase.is_reading()
            && !self.epoch.reading.is_off()
            && !self.io.is_eof()
            && self.link.is_intake_open(&self.profile.config)
            && self.link.has_request_room(&self.profile.config)
    }

    /// Whether a body of this length may be queued. The first message may be longer than the hard
    /// limit: there is nobody yet to be slow.
    #[inline]
    pub(crate) fn has_room(&self, len: usize) -> bool {
        let (config, queued) = (&self.profile.config, self.link.queued_cost());
        self.is_up()
            && len <= self.link.max_body()
            && (queued + len + FRAME_OVERHEAD <= config.hard_limit || queued == 0)
    }

    /// A frame was queued: it is to be flushed. Whether that brought the queue, or what the peer caused in
    /// it, above its mark.
    #[inline]
    pub(crate) fn note_push(&mut self, work: &mut Work<W>) -> bool {
        if !self.lists.is_dirty {
            self.lists.is_dirty = true;
            work.push_dirty(self.id.slot());
        }
        self.crosses_a_watermark()
    }

    /// Notes that the queue has grown. Whether that brought it, or what the peer caused in it, above
    /// its mark.
    #[inline]
    pub(crate) fn crosses_a_watermark(&mut self) -> bool {
        // `caused <= cost`, except for a half-written frame; `after_flush` looks at that case again.
        if self.link.queued_cost() <= self.profile.choke_mark {
            return false;
        }
        let config = &self.profile.config;
        let is_newly_choked = self.link.update_intake(config);
        is_newly_choked
            || !self.epoch.is_above_high && self.link.queued_cost() > config.high_watermark
    }

    /// Whether something may be sent.
    #[inline]
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining)
    }

    /// Dialled, not up, and to be up again: what is sent waits for that.
    pub(crate) fn is_down(&self) -> bool {
        !self.is_up() && self.dial.as_ref().is_some_and(|dial| dial.is_to_go_on())
    }

    /// Whether the connection exists, as far as the application is concerned: it is up, or dialled and
    /// to be up.
    pub(crate) fn exists(&self) -> bool {
        self.is_up() || self.is_down()
    }

    /// Whether nothing more comes of the connection: its last epoch is over.
    pub(crate) fn is_gone(&self) -> bool {
        self.phase == Phase::Dropped && !self.dial.as_ref().is_some_and(|dial| dial.is_to_go_on())
    }

    /// Whether what is sent has to wait: until the connection is up, or until what was kept is queued.
    #[inline]
    pub(crate) fn must_keep(&self) -> bool {
        self.dial.is_some() && (self.epoch.has_backlog || self.is_down())
    }

    pub(crate) fn is_dialled(&self) -> bool {
        self.link.role() == Role::Dialled
    }

    /// Tells other threads how the connection is, if that has changed.
    pub(crate) fn publish(&mut self, board: &Board) {
        self.settle(board, 0);
    }

    /// As [`publish`](Self::publish), and gives back what a post had reserved that was taken.
    pub(crate) fn settle(&mut self, board: &Board, reserved: usize) {
        let config = &self.profile.config;
        let (link, capacity) = if self.is_down() {
            (LinkState::Down, config.high_watermark.min(config.offline_bytes))
        } else if !self.is_up() {
            (LinkState::Closed, config.high_watermark)
        } else if self.epoch.is_above_high {
            (LinkState::Full, config.high_watermark)
        } else if self.phase == Phase::Draining {
            (LinkState::Leaving, config.high_watermark)
        } else {
            (LinkState::Up, config.high_watermark)
        };
        let kept = self.dial.as_ref().map_or(0, |dial| dial.offline.cost());
        let now = Published::new(link, self.link.queued_cost() + kept);
        if now != self.published || reserved != 0 {
            board.publish(self.id, self.published, now, capacity, reserved);
            self.published = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::waiter::Waiter,
        protocol::{Native, Qtk3, Tcpstream},
    };

    /// An idle connection is little more than its slot.
    #[test]
    fn slot_stays_small() {
        assert!(
            size_of::<Slot<Native, Waiter<Native>>>() <= 272,
            "{}",
            size_of::<Slot<Native, Waiter<Native>>>()
        );
        assert!(size_of::<Slot<Tcpstream, Waiter<Tcpstream>>>() <= 272);
        assert!(size_of::<Slot<Qtk3, Waiter<Qtk3>>>() <= 296);
    }

    #[test]
    fn peers_address_comes_back() {
        for addr in ["1.2.3.4:5", "[fe80::1%7]:8"] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(PeerAddr::from(addr).get(), addr);
        }
    }
}
