//! All that the loop decides on, for all connections together, without the sockets.

use std::{
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    awaiters::Awaiters,
    broadcasts::Fanouts,
    clock::{Alarm, Clock},
    ended_call::AwaitsEnd,
    listeners::Listeners,
    losses::Losses,
    planted::{Bug, is_planted},
    profile::{Profile, Profiles},
    serving::Serving,
    slot::{Epoch, Link, Lists, Phase, Readiness, Slot},
    slots::Slots,
    stopping::Stopping,
    work::Work,
};
use crate::{
    Bytes, Config, ConnId, Error, Tagged,
    core::{
        rng::Rng,
        write_queue::{FRAME_OVERHEAD, QueuePool},
    },
    error::{CloseReason, SendError, panic_text},
    id::TimerKey,
    protocol::Protocol,
    role::Role,
    stats::Stats,
    threads::board::{Board, Published},
};

/// All that the loop decides on, without the sockets.
pub(crate) struct State<P: Protocol, W> {
    pub(crate) slots: Slots<P, W>,
    /// What other threads may know of the connections.
    pub(crate) board: Arc<Board>,
    pub(crate) clock: Clock,
    pub(crate) work: Work<W>,
    pub(crate) serving: Serving<P::Id>,
    pub(crate) fanouts: Fanouts<P>,
    pub(crate) listeners: Listeners<P>,
    pub(crate) awaiters: Awaiters,
    pub(crate) losses: Losses,
    pub(crate) stopping: Stopping,
    pub(crate) profiles: Profiles<P>,
    pub(crate) pool: QueuePool,
    pub(crate) stats: Stats,
    pub(crate) rng: Rng,
    /// Where call numbers start in tests of their end.
    pub(crate) first_call: Option<u64>,
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    #[inline]
    pub(crate) fn get(&self, id: ConnId) -> Option<&Slot<P, W>> {
        self.slots.get(id)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Slot<P, W>> {
        self.slots.get_mut(id)
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
        let (salt, now) = (self.rng.next(), self.clock.now());
        let link = self.ask_protocol(|_| {
            Link::new(profile.protocol.clone(), role, &profile.config, salt, now)
        })?;
        let slot = self.slots.next();
        let board = &*self.board;
        let id = board.open(slot);
        board.set_max_body(slot, link.body_limit());
        board.set_answer_room(slot, profile.config.hard_limit / 4 * 3);
        self.slots.insert(Slot {
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
        if let Some(slot) = self.slots.get_mut(id) {
            slot.publish(&self.board);
        }
    }

    /// Flushes the connection, or finishes closing it, in this turn.
    #[inline]
    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id)
            && !slot.lists.is_dirty
        {
            slot.lists.is_dirty = true;
            self.work.push_dirty(id.slot());
        }
    }

    /// Reads from the connection when its turn comes.
    pub(crate) fn mark_ready(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id)
            && !slot.lists.is_ready
        {
            slot.lists.is_ready = true;
            self.work.push_ready(id.slot());
        }
    }

    /// Sets the connection's timer for its next deadline, if that is sooner than it is set for.
    pub(crate) fn watch(&mut self, id: ConnId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let Some(deadline) = slot.link.poll_timeout(&slot.profile.config) else { return };
        match slot.watch {
            Some((_, set_for)) if set_for <= deadline => return,
            Some((key, _)) => {
                self.clock.disarm(key);
            }
            None => {}
        }
        slot.watch = Some((self.clock.arm(deadline, Alarm::Watch(id)), deadline));
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
        let Self { slots, pool, work, .. } = self;
        let Some(slot) = slots.get_mut(id) else {
            return Err(SendError::Closed);
        };
        if !slot.has_room(len) {
            return Err(self.refuse(id, len));
        }
        push(slot, pool);
        if slot.note_push(work) {
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
        let Some(slot) = self.slots.get_mut(id) else { return };
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
        let Some((conn, charged)) = self.serving.take_charge() else { return };
        match self.slots.get_mut(conn) {
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
        let Some(mut slot) = self.slots.remove(id) else { return };
        self.board.close(id, slot.published);
        self.stats.connections -= 1;
        if let Some((key, _)) = slot.watch {
            self.clock.disarm(key);
        }
        if let Some(listener) = slot.listener {
            let is_counted = slot.profile.config.max_connections_per_peer.is_some();
            self.listeners.discount(listener, slot.peer.get().ip(), is_counted);
        }
        slot.link.give_queue(&mut self.pool);
        if let Some(own) = &mut slot.own {
            if is_planted(Bug::KeepsTimers) {
                own.timers.clear();
            }
            for key in std::mem::take(&mut own.timers) {
                self.clock.disarm(key);
            }
            for group in std::mem::take(&mut own.groups) {
                self.fanouts.groups.leave(id, &group);
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

    /// Notes that an accepted message found no connection.
    pub(crate) fn note_undelivered(&mut self, id: ConnId, message: Tagged<Bytes>) {
        self.stats.undelivered += 1;
        self.stopping.count_unsent();
        self.losses.note(id, message);
    }

    /// Whether a turn would find something to do without waiting.
    pub(crate) fn has_work(&self) -> bool {
        !self.work.is_empty()
            || self.stopping.has_work()
            || !self.fanouts.is_empty()
            || !self.losses.is_empty()
            || self.listeners.iter().any(|listener| listener.is_ready)
            || self.clock.has_due()
    }
}
