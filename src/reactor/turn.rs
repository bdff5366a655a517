//! One turn of the loop.
//!
//! The numbers are those of `docs/design.md`.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{
    commands::Command,
    net::{Event, Net},
    read::Reader,
    slots::{Alarm, Phase, State, StopPhase},
    sockets::{Named, SocketTable},
};
use crate::{
    CloseReason, Conn, ConnId, Context, Error, Handler, Incident, TimerId,
    core::{moment::Moment, spin::Found},
    error::NetworkError,
    handler::Timer,
    mailbox::Post,
};

/// Timers that run in one turn. A million at the same tick must not keep the sockets waiting.
const TIMERS_PER_TURN: usize = 1024;

/// The reactor on one kind of network.
pub(crate) struct Engine<H: Handler, N: Net> {
    pub(crate) handler: H,
    pub(crate) state: State<H::Protocol>,
    pub(crate) sockets: SocketTable<N>,
    /// The commands of this turn that have not been run.
    pub(super) posts: VecDeque<Post<Command<H::Protocol>>>,
    pub(super) reader: Reader,
    events: Vec<Event>,
    has_started: bool,
}

impl<H: Handler, N: Net> Engine<H, N> {
    pub(super) fn new(handler: H, state: State<H::Protocol>, net: N) -> Self {
        Self {
            handler,
            state,
            sockets: SocketTable::new(net),
            posts: VecDeque::new(),
            reader: Reader::default(),
            events: Vec::new(),
            has_started: false,
        }
    }

    /// One pass. Waits for up to `max_wait` (`None`: for ever) if there is nothing to do.
    pub(crate) fn turn(&mut self, max_wait: Option<Duration>) -> Result<(), Error> {
        if !self.has_started {
            self.start();
        }
        self.events.clear();
        let spin = self.spin_limit(max_wait);
        let found = self.spin(spin)?;
        if found == Found::Nothing {
            // 1. How long to wait: not at all if work is left over, else until the next deadline.
            let timeout = self.timeout(max_wait.map(|wait| wait.saturating_sub(spin)));
            // 2. Wait for readiness.
            let polled = self.sockets.net.poll(&mut self.events, timeout);
            self.state.shared.mailbox.wake_up();
            polled?;
        }
        // 3. Read the clock, once.
        self.state.now = self.sockets.net.now();
        // 4. What other threads ask for.
        self.run_commands();
        // 5. Sockets.
        self.handle_events();
        self.accept_all();
        self.open_arrivals();
        self.read_all();
        // 6. Timers that are due. After the sockets: a reply that is here beats its own deadline.
        self.run_timers();
        // 7. One write for all that a connection has to send.
        self.flush_all();
        // 8. Connections that ended.
        self.reap_all();
        self.finish_stop();
        self.state.shared.bell.ring();
        if !spin.is_zero() {
            self.state.spin.learn(found);
        }
        self.state.stats.turns += 1;
        self.state.shared.stats.publish(&self.state.stats);
        Ok(())
    }

    fn timeout(&mut self, max_wait: Option<Duration>) -> Option<Duration> {
        if max_wait == Some(Duration::ZERO) || self.has_work() {
            return Some(Duration::ZERO);
        }
        let due_in = self.state.wheel.next_wake().map(|at| {
            // The last turn, or what the caller did since, took time that must not be waited again.
            // Rounded up to what the system can wait for, so that the loop does not spin until then.
            let wait = at.saturating_duration_since(self.sockets.net.now());
            Duration::from_millis(
                u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
            )
        });
        let wait = match (due_in, max_wait) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if wait != Some(Duration::ZERO) && !self.state.shared.mailbox.fall_asleep() {
            return Some(Duration::ZERO);
        }
        wait
    }

    /// How long to look for work before sleeping.
    fn spin_limit(&mut self, max_wait: Option<Duration>) -> Duration {
        if max_wait == Some(Duration::ZERO) || self.has_work() {
            return Duration::ZERO;
        }
        let limit = self.state.spin.limit(self.state.shared.has_blocked());
        limit.min(max_wait.unwrap_or(Duration::MAX))
    }

    /// Looks for work without sleeping, for up to `limit`.
    fn spin(&mut self, limit: Duration) -> Result<Found, Error> {
        if limit.is_zero() {
            return Ok(Found::Nothing);
        }
        let net = &mut self.sockets.net;
        let until = net.now() + limit;
        let until = self.state.wheel.next_wake().map_or(until, |due| due.min(until));
        loop {
            net.poll(&mut self.events, Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                return Ok(Found::Event);
            }
            if self.state.shared.mailbox.has_post() {
                return Ok(Found::Post);
            }
            if net.now() >= until {
                return Ok(Found::Nothing);
            }
            // Whoever has something else to do on this core comes first; perhaps it is the peer.
            std::thread::yield_now();
        }
    }

    /// The caller may wait elsewhere until the next turn: posts must wake the poll from now on.
    pub(crate) fn rest(&self) {
        if !self.has_work() && !self.state.shared.mailbox.fall_asleep() {
            self.sockets.net.waker().wake();
        }
    }

    pub(crate) fn has_work(&self) -> bool {
        self.state.has_work() || self.state.shared.mailbox.has_post()
    }

    /// When the next turn has something to do without an event.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        if self.has_work() || !self.has_started {
            return Some(self.state.now);
        }
        self.state.wheel.next_wake()
    }

    fn start(&mut self) {
        self.has_started = true;
        self.state.now = self.sockets.net.now();
        self.with_context("on_start", H::on_start);
    }

    fn handle_events(&mut self) {
        let events = std::mem::take(&mut self.events);
        for event in &events {
            match Named::from(event.token) {
                Named::Listener(id) => {
                    if let Some(listener) = self.state.listener_mut(id) {
                        listener.is_ready |= !listener.is_resting();
                    }
                }
                Named::Conn(id) => self.handle_event(id, *event),
            }
        }
        self.events = events;
    }

    fn handle_event(&mut self, id: ConnId, event: Event) {
        let Some(slot) = self.state.get_mut(id) else { return };
        slot.is_readable |= event.readable;
        slot.is_read_closed |= event.read_closed;
        if slot.phase < Phase::Open {
            // What has arrived is read when the connection is open; no other event will tell of it.
            if slot.phase == Phase::Connecting && slot.is_dialled() {
                self.handle_connect(id);
            }
            return;
        }
        slot.is_writable |= event.writable;
        if event.writable && slot.link.has_output() {
            self.state.mark_dirty(id);
        }
        if event.readable {
            self.state.mark_ready(id);
        }
    }

    /// A connect may be decided.
    fn handle_connect(&mut self, id: ConnId) {
        let Some((net, stream)) = self.sockets.stream(id.slot()) else { return };
        match net.connected(stream) {
            Ok(None) => {}
            Ok(Some(peer)) => {
                if let Some(slot) = self.state.get_mut(id) {
                    slot.peer = peer.into();
                }
                self.state.dial_succeeded(id);
                self.state.stats.dialled += 1;
                self.open(id);
            }
            Err(error) => self.context().fail_attempt(id, NetworkError::from(&error)),
        }
    }

    fn open_arrivals(&mut self) {
        for id in std::mem::take(&mut self.state.arrivals) {
            self.open(id);
        }
    }

    /// A connection is up: says so to the peer, then to the handler, then what was kept for it.
    pub(super) fn open(&mut self, id: ConnId) {
        let State { slots, pool, now, shared, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return;
        };
        slot.phase = Phase::Open;
        slot.epoch += 1;
        slot.is_told = true;
        slot.is_writable = true;
        slot.link.open(&slot.profile.config, pool, *now);
        slot.publish(&shared.board);
        if slot.is_readable {
            self.state.mark_ready(id);
        }
        self.state.mark_dirty(id);
        self.state.watch(id);
        self.state.tell_awaiters(id, None);
        self.with_conn(id, H::on_connect);
        self.send_kept(id);
    }

    /// Sends what waited for the connection, but what is too old.
    fn send_kept(&mut self, id: ConnId) {
        self.state.expire_offline(id);
        let Some(slot) = self.state.get_mut(id) else { return };
        let Some(dial) = &mut slot.dial else { return };
        if dial.offline.len() == 0 {
            return;
        }
        let mut offline = std::mem::take(&mut dial.offline);
        while let Some(kept) = offline.pop() {
            if let Err((_, message)) = self.state.send(id, kept.id, kept.message) {
                self.state.note_undelivered(id, message);
            }
        }
    }

    fn run_timers(&mut self) {
        self.state.wheel.advance(self.state.now);
        for _ in 0..TIMERS_PER_TURN {
            let Some((key, alarm)) = self.state.wheel.pop_due() else { return };
            match alarm {
                Alarm::Watch(id) => self.on_watch(id),
                Alarm::Call(id, number) => self.state.give_up(id, number, true),
                Alarm::User { token, conn } => {
                    if let Some(conn) = conn {
                        self.state.forget_timer(conn, key);
                    }
                    let timer = Timer { id: TimerId(key), token, conn };
                    self.with_context("on_timer", |handler, cx| handler.on_timer(cx, timer));
                }
                Alarm::Dial(id) => self.context().on_dial_alarm(id),
                Alarm::Accept(id) => self.state.on_accept_alarm(id),
                Alarm::Stop => self.cut_stop(),
            }
        }
    }

    /// A deadline of the connection may be due.
    fn on_watch(&mut self, id: ConnId) {
        let State { slots, pool, now, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return;
        };
        slot.watch = None;
        if slot.phase < Phase::Open {
            return;
        }
        if slot.link.close_by().is_some_and(|by| *now >= by) {
            self.state.doom(id, CloseReason::Closed);
            return;
        }
        // Bytes that wait to be read are life, although nobody has looked at them yet.
        if slot.is_readable && !slot.can_read() || slot.is_ready || slot.input_since.is_some() {
            slot.link.handle_unread(&slot.profile.config, *now);
        }
        match slot.link.handle_timeout(&slot.profile.config, pool, *now) {
            Some(reason @ (CloseReason::WriteStalled(_) | CloseReason::IdleTimeout(_))) => {
                self.state.doom(id, reason);
            }
            Some(reason) => self.state.close(id, Phase::Closing, reason),
            None => {
                if slot.link.has_output() || slot.link.close_by().is_some() {
                    self.state.mark_dirty(id);
                }
                self.state.resume_choked(id);
            }
        }
        self.state.watch(id);
    }

    // ---- callbacks ----

    /// The loop without the handler.
    pub(crate) fn context(&mut self) -> Context<'_, H::Protocol> {
        Context { state: &mut self.state, sockets: &mut self.sockets }
    }

    /// Runs a callback for a connection. One that panics closes it. Whether it returned.
    #[inline]
    pub(super) fn with_conn(
        &mut self,
        id: ConnId,
        callback: impl FnOnce(&mut H, &mut Conn<'_, H::Protocol>),
    ) -> bool {
        let cx = Context { state: &mut self.state, sockets: &mut self.sockets };
        let mut conn = Conn { cx, id };
        let handler = &mut self.handler;
        match catch_unwind(AssertUnwindSafe(|| callback(handler, &mut conn))) {
            Ok(()) => true,
            Err(panic) => {
                self.handle_panic(id, &*panic);
                false
            }
        }
    }

    /// A callback of a connection panicked.
    #[cold]
    pub(super) fn handle_panic(&mut self, id: ConnId, panic: &(dyn Any + Send)) {
        let text = panic_text(panic);
        log::error!("a callback of connection {id} panicked: {text}");
        self.state.stats.panics += 1;
        self.state.close(id, Phase::Closing, CloseReason::Panicked(text));
    }

    /// Runs a callback that is for no connection.
    pub(super) fn with_context(
        &mut self,
        name: &'static str,
        callback: impl FnOnce(&mut H, &mut Context<'_, H::Protocol>),
    ) {
        let mut cx = Context { state: &mut self.state, sockets: &mut self.sockets };
        let handler = &mut self.handler;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| callback(handler, &mut cx))) {
            let text = panic_text(&*panic);
            log::error!("{name} panicked: {text}");
            self.state.stats.panics += 1;
            if name != "on_error" {
                self.report(&Incident::Panicked { callback: name, text });
            }
        }
    }

    pub(super) fn report(&mut self, incident: &Incident) {
        self.with_context("on_error", |handler, cx| handler.on_error(cx, incident));
    }

    pub(crate) const fn is_stopped(&self) -> bool {
        matches!(self.state.stop, StopPhase::Stopped)
    }
}

#[cfg(test)]
impl<H: Handler, N: Net> Engine<H, N> {
    /// Whether another thread posted something that no turn has taken.
    pub(crate) fn has_post(&self) -> bool {
        self.state.shared.mailbox.has_post()
    }

    /// What keeps the loop from waiting.
    pub(crate) fn work(&self) -> String {
        let State { dirty, ready, arrivals, doomed, ended, fanouts, wheel, now, .. } = &self.state;
        let due = wheel.next_wake().is_some_and(|at| at <= *now);
        format!(
            "dirty {dirty:?} ready {ready:?} arrivals {arrivals:?} doomed {doomed:?} ended {} \
             fanouts {} timers {due} listeners {:?} posts {}",
            ended.len(),
            fanouts.len(),
            self.state.listeners.iter().map(|listener| listener.is_ready).collect::<Vec<_>>(),
            self.state.shared.mailbox.has_post(),
        )
    }

    /// Checks the invariants that hold between two turns.
    pub(crate) fn check(&self) {
        let State { slots, wheel, dirty, ready, shared, .. } = &self.state;
        let mut timers = 0;
        let mut calls = 0;
        for (index, slot) in slots {
            assert_eq!(slot.id.slot() as usize, index);
            let config = &slot.profile.config;
            if let Some(queue) = &slot.link.out {
                queue.check();
            }
            assert!(slot.link.queued_cost() <= config.hard_limit + config.max_body + 4096);
            assert!(!slot.is_ready || ready.contains(&slot.id.slot()), "in no list to be read");
            assert!(!slot.is_dirty || dirty.contains(&slot.id.slot()), "in no list to be flushed");
            assert!(!slot.is_doomed, "doomed and not reaped");
            // Readiness that nobody will hear of again is not forgotten.
            assert!(
                !(slot.can_read() && (slot.is_readable || slot.input_since.is_some()))
                    || slot.is_ready,
                "{:?} could be read and is in no list: {:?}",
                slot.id,
                slot.phase
            );
            assert!(
                !(slot.is_up() && slot.is_writable && slot.link.has_output()) || slot.is_dirty,
                "{:?} could be written and is in no list",
                slot.id
            );
            timers += usize::from(slot.watch.is_some())
                + slot.own.as_ref().map_or(0, |own| own.timers.len());
            calls += slot.link.calls_in_flight();
            assert!(shared.board.is_open(slot.id) == (slot.is_up() || slot.is_down()));
        }
        assert_eq!(self.state.stats.calls_in_flight, calls as u64);
        assert_eq!(self.state.stats.connections, slots.len() as u64);
        assert!(wheel.len() >= timers, "a connection's timer is not in the wheel");
    }
}

/// The message of a panic.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is no text".to_owned()
    }
}

/// A loop that ends with work left fails every call, so that nobody waits for ever.
impl<H: Handler, N: Net> Drop for Engine<H, N> {
    fn drop(&mut self) {
        self.refuse_commands();
        let ids: Vec<_> = self.state.slots.iter().map(|(_, slot)| slot.id).collect();
        for id in ids {
            self.state.doom(id, CloseReason::Stopped);
            self.state.end_calls(id);
            self.state.discard(id);
        }
        self.state.shared.bell.ring();
        // Callbacks that would need the handler are dropped: it can't be called any more.
        self.state.ended.clear();
        self.sockets.close_all();
    }
}
