//! All that the loop decides on, for all connections together, without the sockets.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use slab::Slab;

use super::{
    ended_call::{AwaitsEnd, EndedCall},
    fanout::{Fanouts, Group},
    listen::ListenerState,
    planted::{Bug, is_planted},
    profile::{Profile, Profiles},
    slot::{Epoch, Link, Lists, Phase, Readiness, Slot},
    stop::{Drain, StopPhase, Sweep},
};
use crate::{
    Bytes, CallId, Config, ConnId, DrainReport, Error, ListenerId, Tagged,
    core::{
        connection::Role,
        moment::Moment,
        rng::Rng,
        spin::Spin,
        timer_wheel::TimerWheel,
        write_queue::{FRAME_OVERHEAD, QueuePool},
    },
    error::{CloseReason, SendError, panic_text},
    id::TimerKey,
    protocol::Protocol,
    stats::Stats,
    threads::board::{Board, Published},
};

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// A deadline of the connection.
    Watch(ConnId),
    /// A call's timeout.
    Call(ConnId, CallId),
    /// The application's.
    User { token: u64, conn: Option<ConnId> },
    /// The next step of dialling: an attempt is over its time, or the next round begins.
    Dial(ConnId),
    /// A listener has rested.
    Accept(ListenerId),
    /// Stopping has taken long enough.
    Stop,
}

/// Told that a dialled connection is up (`None`), or why it failed.
pub(crate) type Awaiter = Box<dyn FnOnce(Option<CloseReason>) + Send>;

/// All that the loop decides on, without the sockets.
pub(crate) struct State<P: Protocol, W> {
    pub(crate) slots: Slab<Slot<P, W>>,
    pub(crate) wheel: TimerWheel<Alarm>,
    pub(crate) pool: QueuePool,
    pub(crate) board: Arc<Board>,
    /// Slots with something to write or to finish.
    pub(crate) dirty: VecDeque<u32>,
    /// Slots with something to read.
    pub(crate) ready: VecDeque<u32>,
    /// Streams that the application brought, to be opened.
    pub(crate) arrivals: VecDeque<ConnId>,
    /// Connections that linger or were dropped: the handler is to be told, or they are to be put away.
    pub(crate) ended: VecDeque<ConnId>,
    pub(crate) ended_calls: VecDeque<EndedCall<W>>,
    /// Threads that wait for a dialled connection to be up, or to fail.
    pub(crate) awaited: Vec<(ConnId, Awaiter)>,
    /// Messages that were accepted and found no connection.
    pub(crate) undelivered: Vec<(ConnId, Vec<Tagged<Bytes>>)>,
    /// Those of which the handler is just being told.
    pub(crate) handed_back: Vec<Tagged<Bytes>>,
    /// Listeners whose connections are to end.
    pub(crate) drains: Vec<Drain>,
    /// Walks over the connections that are to drain.
    pub(crate) sweeps: VecDeque<Sweep>,
    /// What stopping came to so far.
    pub(crate) stop_report: DrainReport,
    pub(crate) fanouts: Fanouts<P>,
    pub(crate) groups: HashMap<Arc<str>, Group>,
    pub(crate) listeners: Vec<ListenerState<P>>,
    pub(crate) next_listener: u32,
    /// Connections of each listener from each address, where it bounds them.
    pub(crate) per_peer: HashMap<(ListenerId, IpAddr), usize>,
    pub(crate) profiles: Profiles<P>,
    pub(crate) stats: Stats,
    pub(crate) rng: Rng,
    /// The connection that is being served: what panics now costs it, and no other.
    pub(crate) serving: Option<ConnId>,
    /// What the command that is being run has reserved on the board, and not given back.
    pub(crate) charged: Option<(ConnId, usize)>,
    /// The connection of which a message is being handled, and causes what is sent to it meanwhile.
    pub(crate) handling: Option<ConnId>,
    /// The request that this message is.
    pub(crate) answering: Option<P::Id>,
    /// What the clock showed at [`Moment::START`].
    pub(crate) origin: Instant,
    /// The time of this turn.
    pub(crate) now: Moment,
    pub(crate) stop: StopPhase,
    /// When stopping is cut, and the timer of that.
    pub(crate) stop_alarm: Option<(TimerKey, Moment)>,
    pub(crate) stop_timeout: Duration,
    pub(crate) spin: Spin,
    pub(crate) max_connections: usize,
    /// As many as ids can name.
    pub(crate) max_slots: usize,
    /// The type of the handler, for callbacks that name it.
    pub(crate) handler_type: std::any::TypeId,
    /// Where call numbers start in tests of their end.
    pub(crate) first_call: Option<u64>,
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    pub(crate) fn get(&self, id: ConnId) -> Option<&Slot<P, W>> {
        self.slots.get(id.slot() as usize).filter(|slot| slot.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Slot<P, W>> {
        self.slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id)
    }

    /// Whether there is a slot for one more connection; else why not.
    pub(crate) fn find_slot(&self) -> io::Result<()> {
        if self.slots.len() < self.max_slots {
            return Ok(());
        }
        let text = format!("{} connections are all that ids can name", self.max_slots);
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, text))
    }

    /// The profile of this protocol and these settings, and the protocol's name.
    pub(crate) fn profile(
        &mut self,
        protocol: &P,
        config: &Config,
    ) -> Result<(Arc<Profile<P>>, &'static str), Error> {
        self.ask_protocol(|state| (state.profiles.get(protocol, config), protocol.name()))
    }

    /// Asks the application's protocol something while there is no connection that a panic could end: one
    /// is an error for who wants a connection or a listener.
    fn ask_protocol<T>(&mut self, ask: impl FnOnce(&mut Self) -> T) -> Result<T, Error> {
        catch_unwind(AssertUnwindSafe(|| ask(self))).map_err(|panic| {
            let text = panic_text(&*panic);
            log::error!("a protocol panicked: {text}");
            self.stats.panics += 1;
            Error::Panicked(text)
        })
    }

    /// Takes a slot for a new connection; there is one.
    pub(crate) fn insert(
        &mut self,
        profile: Arc<Profile<P>>,
        role: Role,
        phase: Phase,
        peer: SocketAddr,
    ) -> Result<ConnId, Error> {
        let (salt, now) = (self.rng.next(), self.now);
        let link = self.ask_protocol(|_| {
            Link::new(profile.protocol.clone(), role, &profile.config, salt, now)
        })?;
        let entry = self.slots.vacant_entry();
        let slot = u32::try_from(entry.key()).expect("ids name the slot");
        let board = &*self.board;
        let id = board.open(slot);
        board.set_max_body(slot, link.body_limit());
        board.set_answer_room(slot, profile.config.hard_limit / 4 * 3);
        entry.insert(Slot {
            id,
            phase,
            io: Readiness::default(),
            lists: Lists::default(),
            epoch: Epoch::default(),
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
        Ok(id)
    }

    /// Tells other threads how the connection is.
    pub(crate) fn publish(&mut self, id: ConnId) {
        if let Some(slot) = self.slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) {
            slot.publish(&self.board);
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
            && !slot.lists.is_dirty
        {
            slot.lists.is_dirty = true;
            self.dirty.push_back(id.slot());
        }
    }

    /// Reads from the connection when its turn comes.
    pub(crate) fn mark_ready(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id)
            && !slot.lists.is_ready
        {
            slot.lists.is_ready = true;
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
        push: impl FnOnce(&mut Slot<P, W>, &mut QueuePool),
    ) -> Result<(), SendError> {
        let Self { slots, pool, dirty, .. } = self;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return Err(SendError::Closed);
        };
        if !slot.has_room(len) {
            return Err(self.refuse(id, len));
        }
        push(slot, pool);
        if slot.note_push(dirty) {
            self.note_crossing(id);
        }
        Ok(())
    }

    /// Why a body of `len` bytes may not be queued.
    #[cold]
    pub(crate) fn refuse(&mut self, id: ConnId, len: usize) -> SendError {
        let Some(slot) = self.get(id).filter(|slot| slot.is_up()) else { return SendError::Closed };
        let config = &slot.profile.config;
        let (max, by) = slot.link.body_limit();
        if len > max {
            return SendError::BodyTooLong { len, max, limit: by };
        }
        let (queued, limit) = (slot.link.queued_cost(), config.hard_limit);
        self.stats.slow_consumers += 1;
        let refused = len.saturating_add(FRAME_OVERHEAD);
        self.abort(id, CloseReason::SlowConsumer { queued, refused, limit });
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
    pub(crate) fn note_crossing(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id) {
            slot.epoch.is_above_high |=
                slot.link.queued_cost() > slot.profile.config.high_watermark;
        }
        self.publish(id);
        self.watch(id);
    }

    /// What a command has reserved on the board is given back in the step that publishes what the loop
    /// holds.
    #[inline]
    pub(crate) fn release_charge(&mut self) {
        let Some((conn, charged)) = self.charged.take() else { return };
        match self.slots.get_mut(conn.slot() as usize).filter(|slot| slot.id == conn) {
            Some(slot) => slot.settle(&self.board, charged),
            None => self.board.release(conn.slot(), charged),
        }
    }

    /// Reads on, if only the queue was in the way and is not any more.
    pub(crate) fn resume_choked(&mut self, id: ConnId) {
        if self.get(id).is_some_and(|slot| slot.link.is_choked() && slot.can_read()) {
            self.mark_ready(id);
        }
    }

    /// Gives a slot back. Nothing of the connection is left anywhere after this.
    pub(crate) fn discard(&mut self, id: ConnId) {
        self.cancel_dial_alarm(id);
        if self.get(id).is_none() {
            return;
        }
        let mut slot = self.slots.remove(id.slot() as usize);
        self.board.close(id, slot.published);
        self.stats.connections -= 1;
        if let Some((key, _)) = slot.watch {
            self.wheel.cancel(key);
        }
        if let Some(listener) = slot.listener {
            let is_counted = slot.profile.config.max_connections_per_peer.is_some();
            self.release_accepted(listener, slot.peer.get().ip(), is_counted);
        }
        slot.link.give_queue(&mut self.pool);
        if let Some(own) = &mut slot.own {
            if is_planted(Bug::KeepsTimers) {
                own.timers.clear();
            }
            for key in std::mem::take(&mut own.timers) {
                self.wheel.cancel(key);
            }
            for group in std::mem::take(&mut own.groups) {
                self.leave_group(id, &group);
            }
        }
        // Dropped last: it holds what the application gave, which may panic when it is dropped.
        drop(slot);
    }

    /// A timer of the application's for this connection is no longer armed.
    pub(crate) fn forget_timer(&mut self, id: ConnId, key: TimerKey) {
        if let Some(own) = self.get_mut(id).and_then(|slot| slot.own.as_mut()) {
            own.timers.remove(&key);
        }
    }

    /// Takes a connection out of a group.
    pub(crate) fn leave_group(&mut self, id: ConnId, group: &str) {
        if let Some(members) = self.groups.get_mut(group) {
            members.remove(id);
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
            || !self.ended.is_empty()
            || !self.ended_calls.is_empty()
            || !self.sweeps.is_empty()
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

    #[test]
    fn alarm_stays_small() {
        assert!(size_of::<Alarm>() <= 32, "{}", size_of::<Alarm>());
    }
}
