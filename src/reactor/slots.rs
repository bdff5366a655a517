//! What the loop holds for each connection, and for all of them together.

use std::{
    any::Any,
    collections::{BTreeSet, HashMap, VecDeque},
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use slab::Slab;

use super::{dial::Dial, fanout::Fanout, listen::ListenerState};
use crate::{
    Bytes, Conn, ConnId, DrainReport, ListenerId, Tagged,
    board::{Board, LinkState, Published},
    call_cell::CallCell,
    config::Config,
    core::{
        calls::Pending,
        connection::{Connection, Role},
        moment::Moment,
        rng::Rng,
        spin::Spin,
        timer_wheel::{TimerKey, TimerWheel},
        write_queue::{FRAME_OVERHEAD, QueuePool},
    },
    error::{CallError, CloseReason, Fate, SendError},
    handle::Shared,
    handler::Reply,
    protocol::Protocol,
    stats::Stats,
};

/// A connection as the loop has it.
pub(crate) type Link<P> = Connection<P, Waiter<P>, Arc<AtomicBool>>;

/// What a callback of a call is: given the handler, the connection and how the call ended.
pub(crate) type Callback<P> =
    Box<dyn FnOnce(&mut dyn Any, &mut Conn<'_, P>, Result<Reply<'_>, CallError>) + Send>;

/// Who waits for the end of a call.
pub(crate) enum Waiter<P: Protocol> {
    /// Another thread, or a future.
    Cell(Arc<CallCell>),
    /// The loop itself.
    Callback(Callback<P>),
}

/// What connections that were made alike share.
#[derive(Debug)]
pub(crate) struct Profile<P> {
    pub(crate) protocol: P,
    pub(crate) config: Config,
}

/// Where a connection is in its life.
///
/// ```text
/// dialled:  Resolving ─▶ Connecting ─▶ Open          Waiting ─▶ Resolving …
///               └─────────────┴──▶ Waiting (or gone)    ▲
/// accepted:                        Open                 │ lost, to be dialled again
///                                   │                   │
///           Open ─▶ Draining ─▶ Closing ─▶ Lingering ─▶ gone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Dialled: its name is being looked up.
    Resolving,
    /// Dialled: an address is being tried.
    Connecting,
    /// Dialled: between two rounds of attempts.
    Waiting,
    /// Up.
    Open,
    /// No new work; what is in flight finishes.
    Draining,
    /// What is queued is written.
    Closing,
    /// All was written and the peer told; its end is awaited so that nothing is lost on the way.
    Lingering,
}

/// One connection.
#[expect(clippy::struct_excessive_bools, reason = "facts that hold side by side")]
pub(crate) struct Slot<P: Protocol> {
    pub(crate) id: ConnId,
    pub(crate) phase: Phase,
    /// Counts the times that the connection was up; 0: not yet.
    pub(crate) epoch: u32,
    /// In the list of those to flush.
    pub(crate) is_dirty: bool,
    /// In the list of those to read.
    pub(crate) is_ready: bool,
    /// There may be something to read: an event said so, and no read has found the opposite.
    pub(crate) is_readable: bool,
    pub(crate) is_writable: bool,
    /// The peer sends no more, as far as an event told.
    pub(crate) is_read_closed: bool,
    /// The end of what the peer sends was read.
    pub(crate) is_eof: bool,
    /// Whole frames wait in the connection's own buffer, where a budget or a pause left them, since
    /// they were read.
    pub(crate) input_since: Option<Moment>,
    /// The application paused reading.
    pub(crate) is_paused: bool,
    /// The write queue went above its high watermark and is not yet below the low one.
    pub(crate) is_above: bool,
    /// In the list of those to reap.
    pub(crate) is_doomed: bool,
    /// The handler knows that this epoch is up, and not yet that it has ended.
    pub(crate) is_told: bool,
    /// Not dialled again, whatever the policy says.
    pub(crate) is_final: bool,
    /// Calls of ours that ended with this epoch.
    pub(crate) cut_calls: u32,
    /// Why this epoch ends, once that is known.
    pub(crate) fate: Option<Box<CloseReason>>,
    pub(crate) link: Link<P>,
    pub(crate) profile: Arc<Profile<P>>,
    pub(crate) peer: PeerAddr,
    pub(crate) listener: Option<ListenerId>,
    /// The one timer of all deadlines of the connection, and when it fires.
    pub(crate) watch: Option<(TimerKey, Moment)>,
    /// What the board was last told.
    pub(crate) published: Published,
    pub(crate) own: Option<Box<Own>>,
    pub(crate) dial: Option<Box<Dial<P::Id>>>,
}

/// What the application keeps with a connection.
#[derive(Default)]
pub(crate) struct Own {
    pub(crate) data: Option<Box<dyn Any + Send>>,
    pub(crate) groups: Vec<Arc<str>>,
    pub(crate) timers: Vec<TimerKey>,
}

/// A peer's address, in half of the room where it is one of IPv4.
#[derive(Clone, Debug)]
pub(crate) enum PeerAddr {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
}

impl PeerAddr {
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

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// A deadline of the connection.
    Watch(ConnId),
    /// A call's timeout.
    Call(ConnId, u64),
    /// The application's.
    User { token: u64, conn: Option<ConnId> },
    /// The next step of dialling: an attempt is over its time, or the next round begins.
    Dial(ConnId),
    /// A listener has rested.
    Accept(ListenerId),
    /// Stopping has taken long enough.
    Stop,
}

/// A call that ended while its callback could not be run.
pub(crate) struct EndedCall<P: Protocol> {
    pub(crate) conn: ConnId,
    pub(crate) callback: Callback<P>,
    pub(crate) error: CallError,
}

/// Told that a dialled connection is up (`None`), or why it failed.
pub(crate) type Awaiter = Box<dyn FnOnce(Option<CloseReason>) + Send>;

/// A listener that is closed, and whose connections are to end.
#[derive(Debug)]
pub(crate) struct Drain {
    pub(crate) listener: ListenerId,
    /// Connections that have not ended.
    pub(crate) left: usize,
    pub(crate) report: DrainReport,
}

/// How far stopping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopPhase {
    Running,
    /// Connections drain.
    Stopping,
    /// Every connection is gone.
    Stopped,
}

/// All that the loop decides on, without the sockets.
pub(crate) struct State<P: Protocol> {
    pub(crate) slots: Slab<Slot<P>>,
    pub(crate) wheel: TimerWheel<Alarm>,
    pub(crate) pool: QueuePool,
    pub(crate) shared: Arc<Shared<P>>,
    /// Slots with something to write or to finish.
    pub(crate) dirty: Vec<u32>,
    /// Slots with something to read.
    pub(crate) ready: VecDeque<u32>,
    /// Streams that the application brought, to be opened.
    pub(crate) arrivals: Vec<ConnId>,
    /// Connections whose epoch ends.
    pub(crate) doomed: Vec<ConnId>,
    pub(crate) ended: Vec<EndedCall<P>>,
    /// Threads that wait for a dialled connection to be up, or to fail.
    pub(crate) awaited: Vec<(ConnId, Awaiter)>,
    /// Messages that were accepted and found no connection.
    pub(crate) undelivered: Vec<(ConnId, Vec<Tagged<Bytes>>)>,
    /// Those of which the handler is just being told.
    pub(crate) handed_back: Vec<Tagged<Bytes>>,
    /// Listeners whose connections are to end.
    pub(crate) drains: Vec<Drain>,
    /// What stopping came to so far.
    pub(crate) stop_report: DrainReport,
    pub(crate) fanouts: VecDeque<Fanout<P>>,
    pub(crate) groups: HashMap<Arc<str>, BTreeSet<ConnId>>,
    pub(crate) listeners: Vec<ListenerState<P>>,
    pub(crate) next_listener: u32,
    /// Connections of each address, where a listener bounds them.
    pub(crate) per_peer: HashMap<IpAddr, usize>,
    pub(crate) profiles: Vec<Arc<Profile<P>>>,
    pub(crate) stats: Stats,
    pub(crate) rng: Rng,
    /// The connection of which a message is being handled, and causes what is sent to it meanwhile.
    pub(crate) handling: Option<ConnId>,
    /// The request that this message is.
    pub(crate) answering: Option<P::Id>,
    /// What the clock showed at [`Moment::START`].
    pub(crate) origin: Instant,
    /// The time of this turn.
    pub(crate) now: Moment,
    pub(crate) stop: StopPhase,
    pub(crate) stop_alarm: Option<TimerKey>,
    pub(crate) stop_timeout: Duration,
    pub(crate) spin: Spin,
    pub(crate) max_connections: usize,
    /// The type of the handler, for callbacks that name it.
    pub(crate) handler_type: std::any::TypeId,
    /// Where call numbers start in tests of their end.
    pub(crate) first_call: Option<u64>,
}

impl<P: Protocol> Slot<P> {
    /// Whether messages may be read and handled.
    #[inline]
    pub(crate) fn can_read(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining)
            && !self.is_paused
            && !self.is_doomed
            && !self.is_eof
            && self.link.is_intake_open(&self.profile.config)
    }

    /// Whether a body of this length may be queued. The first message may be longer than the hard
    /// limit: there is nobody yet to be slow.
    #[inline]
    pub(crate) fn has_room(&self, len: usize) -> bool {
        let (config, queued) = (&self.profile.config, self.link.queued_cost());
        self.is_up()
            && len <= self.link.body_limit(config).0
            && (queued + len + FRAME_OVERHEAD <= config.hard_limit || queued == 0)
    }

    /// Notes that the queue has grown. Whether that brought it, or what the peer caused in it, above
    /// the high watermark.
    #[inline]
    fn crosses_a_watermark(&mut self) -> bool {
        let config = &self.profile.config;
        // What the peer caused is no more than all of it; a frame that is half written aside, which
        // flushing looks at.
        if self.link.queued_cost() <= config.high_watermark {
            return false;
        }
        let is_newly_choked = self.link.update_intake(config);
        is_newly_choked || !self.is_above && self.link.queued_cost() > config.high_watermark
    }

    /// Whether something may be sent.
    #[inline]
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining) && !self.is_doomed
    }

    /// Dialled, not up, and to be up again: what is sent waits for that.
    pub(crate) fn is_down(&self) -> bool {
        self.dial.is_some() && !self.is_final && !self.is_up()
    }

    pub(crate) fn is_dialled(&self) -> bool {
        self.link.role() == Role::Dialled
    }

    /// Tells other threads how the connection is, if that has changed.
    pub(crate) fn publish(&mut self, board: &Board) {
        let config = &self.profile.config;
        let (link, capacity) = if self.is_down() {
            (LinkState::Down, config.high_watermark.min(config.offline_bytes))
        } else if !self.is_up() {
            (LinkState::Closed, config.high_watermark)
        } else if self.is_above {
            (LinkState::Full, config.high_watermark)
        } else {
            (LinkState::Up, config.high_watermark)
        };
        let kept = self.dial.as_ref().map_or(0, |dial| dial.offline.cost());
        let now = Published::new(link, capacity, self.link.queued_cost() + kept);
        if now != self.published {
            board.publish(self.id, self.published, now);
            self.published = now;
        }
    }
}

impl<P: Protocol> State<P> {
    pub(crate) fn get(&self, id: ConnId) -> Option<&Slot<P>> {
        self.slots.get(id.slot() as usize).filter(|slot| slot.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Slot<P>> {
        self.slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id)
    }

    /// Settings and protocol that connections share, found again where they are the same.
    pub(crate) fn profile(&mut self, protocol: &P, config: &Config) -> Arc<Profile<P>> {
        let is_same =
            |profile: &&Arc<Profile<P>>| profile.protocol == *protocol && profile.config == *config;
        if let Some(profile) = self.profiles.iter().find(is_same) {
            return profile.clone();
        }
        // Those that no connection uses any more make room.
        self.profiles.retain(|profile| Arc::strong_count(profile) > 1);
        let profile = Arc::new(Profile { protocol: protocol.clone(), config: config.clone() });
        self.profiles.push(profile.clone());
        profile
    }

    /// Takes a slot for a new connection.
    pub(crate) fn insert(
        &mut self,
        profile: Arc<Profile<P>>,
        role: Role,
        phase: Phase,
        peer: SocketAddr,
    ) -> ConnId {
        let entry = self.slots.vacant_entry();
        let slot = u32::try_from(entry.key()).expect("descriptors are fewer than 2^32");
        let board = &self.shared.board;
        let id = ConnId::new(slot, board.open(slot));
        let salt = self.rng.next();
        let protocol = profile.protocol.clone();
        let link = Link::new(protocol, role, &profile.config, salt, self.now);
        board.set_max_body(slot, link.body_limit(&profile.config));
        entry.insert(Slot {
            id,
            phase,
            epoch: 0,
            is_dirty: false,
            is_ready: false,
            is_readable: false,
            is_writable: false,
            is_read_closed: false,
            is_eof: false,
            input_since: None,
            is_paused: false,
            is_above: false,
            is_doomed: false,
            is_told: false,
            is_final: false,
            cut_calls: 0,
            fate: None,
            link,
            profile,
            peer: peer.into(),
            listener: None,
            watch: None,
            published: Published::default(),
            own: None,
            dial: None,
        });
        self.stats.connections += 1;
        id
    }

    /// Tells other threads how the connection is.
    pub(crate) fn publish(&mut self, id: ConnId) {
        if let Some(slot) = self.slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) {
            slot.publish(&self.shared.board);
        }
    }

    /// Tells those who wait for a dialled connection that it is up, or why it failed.
    pub(crate) fn tell_awaiters(&mut self, id: ConnId, failure: Option<&CloseReason>) {
        let mut place = 0;
        while let Some((conn, _)) = self.awaited.get(place) {
            if *conn == id {
                let (_, awaiter) = self.awaited.swap_remove(place);
                awaiter(failure.cloned());
            } else {
                place += 1;
            }
        }
    }

    /// Flushes the connection, or finishes closing it, in this turn.
    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id)
            && !slot.is_dirty
        {
            slot.is_dirty = true;
            self.dirty.push(id.slot());
        }
    }

    /// Reads from the connection when its turn comes.
    pub(crate) fn mark_ready(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id)
            && !slot.is_ready
        {
            slot.is_ready = true;
            self.ready.push_back(id.slot());
        }
    }

    /// Sets the connection's timer for its next deadline, if that is sooner than it is set for.
    pub(crate) fn watch(&mut self, id: ConnId) {
        let Some(slot) = self.slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return;
        };
        let Some(deadline) = slot.link.poll_timeout(&slot.profile.config) else { return };
        match slot.watch {
            Some((_, set_for)) if set_for <= deadline => return,
            Some((key, _)) => {
                self.wheel.cancel(key);
            }
            None => {}
        }
        slot.watch = Some((self.wheel.insert(deadline, Alarm::Watch(id)), deadline));
    }

    /// Queues a frame of a body of `len` bytes, which `push` encodes, for a connection that is up. One
    /// that would take the queue past its hard limit ends the connection instead: its peer does not
    /// keep up.
    #[inline]
    pub(crate) fn queue(
        &mut self,
        id: ConnId,
        len: usize,
        push: impl FnOnce(&mut Slot<P>, &mut QueuePool),
    ) -> Result<(), SendError> {
        let Self { slots, pool, dirty, .. } = self;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return Err(SendError::Closed);
        };
        if !slot.has_room(len) {
            return Err(self.refuse(id, len));
        }
        push(slot, pool);
        if !slot.is_dirty {
            slot.is_dirty = true;
            dirty.push(id.slot());
        }
        if slot.crosses_a_watermark() {
            self.note_crossing(id);
        }
        Ok(())
    }

    /// Why a body of `len` bytes may not be queued.
    #[cold]
    pub(crate) fn refuse(&mut self, id: ConnId, len: usize) -> SendError {
        let Some(slot) = self.get(id).filter(|slot| slot.is_up()) else { return SendError::Closed };
        let config = &slot.profile.config;
        let (max, by) = slot.link.body_limit(config);
        if len > max {
            return SendError::BodyTooLong { len, max, limit: by };
        }
        let (queued, limit) = (slot.link.queued_cost(), config.hard_limit);
        self.stats.slow_consumers += 1;
        self.doom(id, CloseReason::SlowConsumer { queued, limit });
        SendError::SlowConsumer
    }

    /// Accounts for a frame that was queued.
    #[inline]
    pub(crate) fn charge(&mut self, id: ConnId) {
        let Some(slot) = self.slots.get_mut(id.slot() as usize) else { return };
        if slot.crosses_a_watermark() {
            self.note_crossing(id);
        }
    }

    /// The queue went above its high watermark, or what the peer caused in it did.
    #[cold]
    fn note_crossing(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id) {
            slot.is_above |= slot.link.queued_cost() > slot.profile.config.high_watermark;
        }
        self.publish(id);
        self.watch(id);
    }

    /// Reads on, if only the queue was in the way and is not any more.
    pub(crate) fn resume_choked(&mut self, id: ConnId) {
        if self.get(id).is_some_and(|slot| slot.link.is_choked() && slot.can_read()) {
            self.mark_ready(id);
        }
    }

    /// Ends the epoch of a connection in this turn, without flushing. The first reason counts.
    pub(crate) fn doom(&mut self, id: ConnId, reason: CloseReason) {
        let Some(slot) = self.get_mut(id) else { return };
        slot.fate.get_or_insert_with(|| Box::new(reason));
        if !slot.is_doomed {
            slot.is_doomed = true;
            self.doomed.push(id);
            self.publish(id);
        }
    }

    /// Closes a connection: what is queued is flushed first (`Closing`), or what is in flight is
    /// finished, too (`Draining`). Repeated, it can only get stricter.
    pub(crate) fn close(&mut self, id: ConnId, phase: Phase, reason: CloseReason) {
        self.catch_up(id);
        let now = self.now;
        let Some(slot) = self.get_mut(id) else { return };
        if slot.phase < Phase::Open {
            self.doom(id, reason);
            return;
        }
        if slot.phase >= phase {
            return;
        }
        let is_first = slot.phase == Phase::Open;
        slot.phase = phase;
        slot.fate.get_or_insert_with(|| Box::new(reason));
        let by = now.checked_add(slot.profile.config.close_timeout);
        slot.link.set_close_by(slot.link.close_by().or(by));
        self.publish(id);
        let Self { slots, pool, .. } = self;
        if phase == Phase::Draining
            && let Some(slot) = slots.get_mut(id.slot() as usize)
            && !slot.is_eof
        {
            slot.link.begin_farewell(pool, now);
        }
        if is_first || phase == Phase::Closing {
            self.mark_dirty(id);
            self.watch(id);
        }
        if phase == Phase::Closing {
            self.end_calls(id);
        }
    }

    /// The peer takes no new requests; it will close, and then that is why.
    pub(crate) fn handle_goaway(&mut self, id: ConnId, text: String, redial_after: Duration) {
        let Some(slot) = self.get_mut(id) else { return };
        slot.fate.get_or_insert_with(|| Box::new(CloseReason::PeerGoaway { text }));
        if let Some(dial) = &mut slot.dial {
            dial.redial_after = redial_after;
        }
        for pending in slot.link.take_excluded_calls() {
            self.end_call(id, pending, CallError::PeerDraining);
        }
        self.mark_dirty(id);
    }

    /// Ends every call of an epoch that is over, with the reason of its end.
    pub(crate) fn end_calls(&mut self, id: ConnId) {
        let Some(slot) = self.get_mut(id) else { return };
        let reason = slot.fate.as_deref().cloned().unwrap_or(CloseReason::Aborted);
        let calls = slot.link.take_calls();
        slot.cut_calls += u32::try_from(calls.len()).unwrap_or(u32::MAX);
        for pending in calls {
            let fate = self.fate_of(id, &pending);
            let error = match &reason {
                CloseReason::Stopped => CallError::Stopped { fate },
                reason => CallError::Disconnected { reason: reason.clone(), fate },
            };
            self.end_call(id, pending, error);
        }
    }

    /// Whether a call's request may have reached the peer.
    pub(crate) fn fate_of(&self, id: ConnId, pending: &Pending<Waiter<P>>) -> Fate {
        match self.get(id) {
            // What is queued is still flushed, but for a connection that is dropped.
            Some(slot) if slot.link.may_be_handled(pending, !slot.is_doomed) => Fate::MaybeSent,
            _ => Fate::NotSent,
        }
    }

    /// Ends a call that was taken out of the pending table; a callback runs later in this turn.
    pub(crate) fn end_call(&mut self, id: ConnId, pending: Pending<Waiter<P>>, error: CallError) {
        if let Some(key) = pending.timer {
            self.wheel.cancel(key);
        }
        self.stats.calls_in_flight -= 1;
        match pending.waiter {
            Waiter::Cell(cell) => cell.end(Err(error)),
            Waiter::Callback(callback) => self.ended.push(EndedCall { conn: id, callback, error }),
        }
    }

    /// Gives a slot back. Nothing of the connection is left anywhere after this.
    pub(crate) fn discard(&mut self, id: ConnId) {
        self.cancel_dial_alarm(id);
        if self.get(id).is_none() {
            return;
        }
        let mut slot = self.slots.remove(id.slot() as usize);
        if let Some((key, _)) = slot.watch {
            self.wheel.cancel(key);
        }
        if let Some(own) = slot.own {
            for key in own.timers {
                self.wheel.cancel(key);
            }
            for group in own.groups {
                self.leave_group(id, &group);
            }
        }
        if let Some(listener) = slot.listener {
            let is_counted = slot.profile.config.max_connections_per_peer.is_some();
            self.release_accepted(listener, slot.peer.get().ip(), is_counted);
        }
        if let Some(queue) = slot.link.out.take() {
            self.pool.give(queue);
        }
        self.shared.board.close(id, slot.published);
        self.stats.connections -= 1;
    }

    /// The drain of a listener, if there is one.
    pub(crate) fn drain_mut(&mut self, listener: Option<ListenerId>) -> Option<&mut Drain> {
        self.drains.iter_mut().find(|drain| Some(drain.listener) == listener)
    }

    /// A timer of the application's for this connection is no longer armed.
    pub(crate) fn forget_timer(&mut self, id: ConnId, key: TimerKey) {
        if let Some(own) = self.get_mut(id).and_then(|slot| slot.own.as_mut()) {
            own.timers.retain(|other| *other != key);
        }
    }

    /// Takes a connection out of a group.
    pub(crate) fn leave_group(&mut self, id: ConnId, group: &str) {
        if let Some(members) = self.groups.get_mut(group) {
            members.remove(&id);
            if members.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    /// Notes that an accepted message found no connection.
    pub(crate) fn note_undelivered(&mut self, id: ConnId, message: Tagged<Bytes>) {
        self.stats.undelivered += 1;
        if self.stop != StopPhase::Running {
            self.stop_report.unsent_messages += 1;
        }
        match self.undelivered.last_mut() {
            Some((last, bodies)) if *last == id => bodies.push(message),
            _ => self.undelivered.push((id, vec![message])),
        }
    }

    /// Whether a turn would find something to do without waiting.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
            || !self.dirty.is_empty()
            || !self.arrivals.is_empty()
            || !self.doomed.is_empty()
            || !self.ended.is_empty()
            || !self.fanouts.is_empty()
            || !self.undelivered.is_empty()
            || self.drains.iter().any(|drain| drain.left == 0)
            || self.listeners.iter().any(|listener| listener.is_ready)
            || self.wheel.has_due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Native, Qtk3, Tcpstream};

    /// An idle connection is little more than its slot.
    #[test]
    fn slot_stays_small() {
        assert!(size_of::<Slot<Native>>() <= 264, "{}", size_of::<Slot<Native>>());
        assert!(size_of::<Slot<Tcpstream>>() <= 264);
        assert!(size_of::<Slot<Qtk3>>() <= 288);
        assert!(size_of::<Alarm>() <= 24);
    }

    #[test]
    fn peers_address_comes_back() {
        for addr in ["1.2.3.4:5", "[fe80::1%7]:8"] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(PeerAddr::from(addr).get(), addr);
        }
    }
}
