//! One turn of the loop.
//!
//! The numbers are those of `docs/design.md`.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    desk::Desk,
    fanout::Source,
    net::{Event, Net, Token},
    read::Reader,
    slot::{PeersEnd, Phase, Told},
    slots::{Alarm, State},
    sockets::SocketTable,
    stop::StopPhase,
};
use crate::{
    CloseReason, Conn, ConnId, Context, Error, Handler, Incident, TimerId,
    command::Command,
    core::{connection::Overdue, heartbeat::AWAY, moment::Moment, spin::Found},
    drop_quietly::drop_quietly,
    error::{NetworkError, error_code, panic_text},
    handle::Shared,
    handler::Timer,
    mailbox::Post,
    waiter::{LoopState, Waiter},
};

/// Timers that run in one turn. A million at the same tick must not keep the sockets waiting.
const TIMERS_PER_TURN: usize = 1024;

/// How far a turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Commands,
    Events,
    Accept,
    Arrivals,
    Read,
    Timers,
    Flush,
    Reap,
}

/// The reactor on one kind of network.
pub(crate) struct Engine<H: Handler, N: Net> {
    pub(crate) handler: H,
    pub(crate) state: LoopState<H::Protocol>,
    pub(crate) sockets: SocketTable<N>,
    /// What handles have of the loop.
    pub(crate) shared: Arc<Shared<H::Protocol>>,
    /// The commands of this turn that have not been run.
    pub(super) posts: VecDeque<Post<Command<H::Protocol>>>,
    pub(super) reader: Reader,
    events: Vec<Event>,
    /// The first event that was not looked at.
    next_event: usize,
    step: Step,
    has_started: bool,
}

impl<H: Handler, N: Net> Engine<H, N> {
    pub(super) fn new(
        handler: H,
        state: LoopState<H::Protocol>,
        net: N,
        shared: Arc<Shared<H::Protocol>>,
    ) -> Self {
        Self {
            handler,
            state,
            sockets: SocketTable::new(net),
            shared,
            posts: VecDeque::new(),
            reader: Reader::default(),
            events: Vec::new(),
            next_event: 0,
            step: Step::Commands,
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
            self.shared.mailbox.wake_up();
            polled?;
        }
        // 3. Read the clock, once.
        self.state.now = self.sockets.net.now();
        // 4. to 8. The steps, each to its end.
        self.step = Step::Commands;
        self.next_event = 0;
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run_steps())) {
            self.contain(panic);
        }
        self.shared.bell.ring();
        self.shared.gate.open();
        if !spin.is_zero() {
            self.state.spin.learn(found);
        }
        self.state.stats.turns += 1;
        self.shared.stats.publish(&self.state.stats);
        Ok(())
    }

    /// Steps 4 to 8. Each takes its work from a list, one after the other, so that it goes on with the
    /// rest where a panic left it.
    fn run_steps(&mut self) {
        // 4. Names that were looked up, and what other threads ask for.
        if self.reaches(Step::Commands) {
            self.take_names();
            self.run_commands();
        }
        // 5. Sockets.
        if self.reaches(Step::Events) {
            self.handle_events();
        }
        if self.reaches(Step::Accept) {
            self.accept_all();
        }
        if self.reaches(Step::Arrivals) {
            self.open_arrivals();
        }
        if self.reaches(Step::Read) {
            self.read_all();
        }
        // 6. Timers that are due. After the sockets: a reply that is here beats its own deadline.
        if self.reaches(Step::Timers) {
            self.run_timers();
        }
        // 7. One write for all that a connection has to send.
        if self.reaches(Step::Flush) {
            self.flush_all();
        }
        // 8. Connections that ended.
        if self.reaches(Step::Reap) {
            self.reap_all();
            self.finish_stop();
        }
    }

    /// The turn has come to this step, or a panic has left it here; false if it was farther.
    #[inline]
    fn reaches(&mut self, step: Step) -> bool {
        let is_due = self.step <= step;
        if is_due {
            self.step = step;
        }
        is_due
    }

    /// Something panicked: a callback, or what else the application gave (a protocol, a body with an
    /// owner of its own). That costs the connection that was being served, and the turn goes on.
    #[cold]
    fn contain(&mut self, panic: Box<dyn Any + Send>) {
        let Some(id) = self.state.serving.take() else {
            resume_unwind(panic) // nobody's: a bug of ours
        };
        self.state.handling = None;
        if let Some((conn, charged)) = self.state.charged.take() {
            self.state.board.release(conn.slot(), charged);
        }
        let unanswered = self.state.answering.take();
        self.handle_panic(id, &*panic);
        if self
            .state
            .get(id)
            .is_some_and(|slot| slot.phase == Phase::Dropped && !slot.lists.is_ended)
        {
            // It was being put away.
            return drop_quietly(|| self.finish(id));
        }
        if let Some(request) = unanswered {
            let (code, text) = (error_code::PANICKED, "the handler panicked");
            let answer = || self.state.send_last_error(id, request, code, text);
            if catch_unwind(AssertUnwindSafe(answer)).is_err() {
                self.state.abort(id, CloseReason::Aborted);
            }
        }
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
        if wait != Some(Duration::ZERO) && !self.shared.mailbox.fall_asleep() {
            return Some(Duration::ZERO);
        }
        wait
    }

    /// How long to look for work before sleeping.
    fn spin_limit(&mut self, max_wait: Option<Duration>) -> Duration {
        if max_wait == Some(Duration::ZERO) || self.has_work() {
            return Duration::ZERO;
        }
        let limit = self.state.spin.limit(self.shared.has_blocked());
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
            if self.shared.mailbox.has_post() || net.has_resolved() {
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
        if !self.has_work() && !self.shared.mailbox.fall_asleep() {
            self.sockets.net.waker().wake();
        }
    }

    pub(crate) fn has_work(&self) -> bool {
        self.state.has_work()
            || !self.posts.is_empty()
            || self.shared.mailbox.has_post()
            || self.sockets.net.has_resolved()
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
        while let Some(&event) = self.events.get(self.next_event) {
            self.next_event += 1;
            if let Some(slot) = event.token.slot() {
                self.handle_event(slot, event);
            } else if let Some(listener) = self.state.listener_of(event.token) {
                listener.is_ready |= !listener.is_resting();
            }
        }
    }

    fn handle_event(&mut self, slot: usize, event: Event) {
        let found = self.state.slots.get_mut(slot);
        let Some(slot) = found.filter(|slot| Token::from(slot.id) == event.token) else { return };
        let id = slot.id;
        slot.io.is_readable |= event.readable;
        if event.read_closed {
            slot.io.peers_end = slot.io.peers_end.max(PeersEnd::Told);
        }
        if !slot.phase.is_connected() {
            // What has arrived is read when the connection is open; no other event will tell of it.
            if slot.phase == Phase::Connecting && slot.is_dialled() {
                self.state.serving = Some(id);
                self.handle_connect(id);
                self.state.serving = None;
            }
            return;
        }
        slot.io.is_writable |= event.writable;
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
                self.state.cancel_dial_alarm(id);
                if let Some(slot) = self.state.get_mut(id) {
                    slot.peer = peer.into();
                }
                self.establish(id);
            }
            Err(error) => self.desk().fail_attempt(id, NetworkError::from(&error)),
        }
    }

    fn open_arrivals(&mut self) {
        for _ in 0..self.state.arrivals.len() {
            let Some(id) = self.state.arrivals.pop_front() else { return };
            self.establish(id);
        }
    }

    /// The peers are connected: says hello, and waits for the peer's, where the format has one.
    pub(super) fn establish(&mut self, id: ConnId) {
        let State { slots, pool, now, serving, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return;
        };
        if slot.phase != Phase::Connecting {
            return; // it ended before it began
        }
        let outer = serving.replace(id);
        slot.phase = Phase::Greeting;
        slot.io.is_writable = true;
        slot.link.open(&slot.profile.config, pool, *now);
        let (is_readable, is_greeted) = (slot.io.is_readable, slot.link.is_greeted());
        if is_readable {
            self.state.mark_ready(id);
        }
        self.state.mark_dirty(id);
        self.state.watch(id);
        if is_greeted {
            self.greeted(id);
        }
        self.state.serving = outer;
    }

    /// The connection is up: the handler is told, and then what was kept for it is sent.
    pub(super) fn greeted(&mut self, id: ConnId) {
        // What was broadcast in an earlier epoch comes behind what is kept since.
        self.state.catch_up(id);
        let board = &*self.state.board;
        let slots = &mut self.state.slots;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return;
        };
        if slot.phase != Phase::Greeting {
            return;
        }
        slot.phase = Phase::Open;
        self.state.fanouts.came(id);
        slot.epoch.number += 1;
        slot.epoch.told = Told::Up;
        // The peer's limits hold from now on, for other threads, too.
        board.set_max_body(id.slot(), slot.link.body_limit());
        slot.publish(board);
        if slot.is_dialled() {
            self.state.stats.dialled += 1;
            self.state.dial_succeeded(id);
        }
        self.state.watch(id);
        self.state.tell_awaiters(id, None);
        self.with_conn(id, H::on_connect);
        self.state.send_kept(id);
        if !self.state.is_running() {
            // It came while all others were being drained.
            self.state.drain(id, CloseReason::Stopped);
        }
    }

    fn run_timers(&mut self) {
        self.state.wheel.advance(self.state.now);
        self.state.fanouts.begin(Source::Other);
        for _ in 0..TIMERS_PER_TURN {
            if self.state.fanouts.is_step_over() {
                return;
            }
            let Some((key, alarm)) = self.state.wheel.pop_due() else { return };
            match alarm {
                Alarm::Watch(id) => {
                    self.state.serving = Some(id);
                    self.on_watch(id);
                    self.state.serving = None;
                }
                Alarm::Call(id, call) => {
                    self.state.serving = Some(id);
                    self.state.give_up(id, call, true);
                    self.state.serving = None;
                }
                Alarm::User { token, conn } => {
                    if let Some(conn) = conn {
                        self.state.forget_timer(conn, key);
                    }
                    let timer = Timer { id: TimerId(key), token, conn };
                    let panicked =
                        self.with_context("on_timer", |handler, cx| handler.on_timer(cx, timer));
                    if let (Some(text), Some(conn)) = (panicked, conn) {
                        self.state.end_panicked(conn, text);
                    }
                }
                Alarm::Dial(id) => {
                    self.state.serving = Some(id);
                    self.desk().on_dial_alarm(id);
                    self.state.serving = None;
                }
                Alarm::Accept(id) => self.state.on_accept_alarm(id),
                Alarm::Stop => self.cut_stop(),
            }
        }
    }

    /// A deadline of the connection may be due.
    fn on_watch(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        slot.watch = None;
        if !slot.phase.is_connected() {
            return;
        }
        // What the socket takes now was not taken sooner because of us: this step comes before the one
        // that writes, and the loop may have been away. So nobody is judged before one more try.
        let before = slot.link.queued_cost();
        if before > 0 && slot.phase.is_writing() {
            slot.io.is_writable = true;
            self.flush(id);
        }
        let State { slots, pool, now, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return;
        };
        if let Some(by) = slot.link.close_by()
            && *now >= by
        {
            let is_away = now.saturating_duration_since(by) >= AWAY;
            if !is_away || slot.link.queued_cost() >= before || slot.phase == Phase::Lingering {
                self.state.abort(id, CloseReason::Closed);
                return;
            }
            // We were away, and the peer takes what is left.
            slot.link.close_anew(slot.profile.config.close_timeout, *now);
        }
        // Bytes that wait to be read are life, although nobody has looked at them yet.
        if slot.io.is_readable && !slot.can_read() || slot.lists.is_ready || slot.link.has_waiting()
        {
            slot.link.handle_unread(*now);
        }
        match slot.link.handle_timeout(&slot.profile.config, pool, *now) {
            Some(Overdue::Abort(reason)) => self.state.abort(id, reason),
            Some(Overdue::Close(reason)) => self.state.close(id, reason),
            Some(Overdue::Leave) => self.state.drain(id, CloseReason::Closed),
            None => {
                if slot.link.has_output() || slot.link.close_by().is_some() {
                    self.state.mark_dirty(id);
                }
                if self.state.get(id).is_some_and(|slot| slot.link.is_layered()) {
                    self.after_layer(id);
                }
                self.state.resume_choked(id);
            }
        }
        self.state.watch(id);
    }

    // ---- callbacks ----

    /// What a callback could do, between two turns.
    pub(crate) fn context(&mut self) -> Context<'_, H::Protocol> {
        self.state.now = self.sockets.net.now();
        self.cx()
    }

    /// The loop without the handler and its handles.
    pub(super) fn desk(&mut self) -> Desk<'_, H::Protocol, Waiter<H::Protocol>> {
        Desk { state: &mut self.state, sockets: &mut self.sockets }
    }

    /// The loop without the handler, within a turn.
    pub(super) fn cx(&mut self) -> Context<'_, H::Protocol> {
        Context { state: &mut self.state, sockets: &mut self.sockets, shared: &self.shared }
    }

    /// Runs a callback for a connection. One that panics closes it. Whether it returned.
    #[inline]
    pub(super) fn with_conn(
        &mut self,
        id: ConnId,
        callback: impl FnOnce(&mut H, &mut Conn<'_, H::Protocol>),
    ) -> bool {
        let cx =
            Context { state: &mut self.state, sockets: &mut self.sockets, shared: &self.shared };
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

    /// What is done for a connection panicked.
    #[cold]
    pub(super) fn handle_panic(&mut self, id: ConnId, panic: &(dyn Any + Send)) {
        let text = panic_text(panic);
        log::error!("serving connection {id} panicked: {text}");
        self.state.stats.panics += 1;
        self.state.end_panicked(id, text);
    }

    /// Runs a callback that is for no connection. The panic's message, if it panicked.
    pub(super) fn with_context(
        &mut self,
        name: &'static str,
        callback: impl FnOnce(&mut H, &mut Context<'_, H::Protocol>),
    ) -> Option<String> {
        let mut cx =
            Context { state: &mut self.state, sockets: &mut self.sockets, shared: &self.shared };
        let handler = &mut self.handler;
        let panic = catch_unwind(AssertUnwindSafe(|| callback(handler, &mut cx))).err()?;
        let text = panic_text(&*panic);
        log::error!("{name} panicked: {text}");
        self.state.stats.panics += 1;
        // Nothing is called after `on_stop`, not even for it.
        if !matches!(name, "on_error" | "on_stop") {
            self.report(&Incident::Panicked { callback: name, text: text.clone() });
        }
        Some(text)
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
        self.shared.mailbox.has_post()
    }

    /// What keeps the loop from waiting.
    pub(crate) fn work(&self) -> String {
        let State { dirty, ready, arrivals, ended, ended_calls, fanouts, wheel, now, .. } =
            &self.state;
        let due = wheel.next_wake().is_some_and(|at| at <= *now);
        format!(
            "dirty {dirty:?} ready {ready:?} arrivals {arrivals:?} ended {ended:?} calls {} \
             fanouts {} timers {due} listeners {:?} posts {}",
            ended_calls.len(),
            fanouts.len(),
            self.state.listeners.iter().map(|listener| listener.is_ready).collect::<Vec<_>>(),
            self.shared.mailbox.has_post(),
        )
    }

    /// Checks the invariants that hold between two turns.
    pub(crate) fn check(&self) {
        let State { slots, wheel, dirty, ready, board, .. } = &self.state;
        let mut timers = 0;
        let mut calls = 0;
        for (index, slot) in slots {
            assert_eq!(slot.id.slot() as usize, index);
            let config = &slot.profile.config;
            let most = config.hard_limit.saturating_add(config.max_body).saturating_add(4096);
            assert!(slot.link.queued_cost() <= most);
            slot.link.check();
            let (io, lists) = (slot.io, slot.lists);
            assert!(!lists.is_ready || ready.contains(&slot.id.slot()), "in no list to be read");
            assert!(!lists.is_dirty || dirty.contains(&slot.id.slot()), "in no list to be flushed");
            let is_ended = self.state.ended.contains(&slot.id);
            assert_eq!(lists.is_ended, is_ended, "in the list of those that ended, or not");
            assert!(slot.phase != Phase::Dropped || is_ended, "dropped and not to be put away");
            // Readiness that nobody will hear of again is not forgotten.
            assert!(
                !(slot.can_read() && (io.is_readable || slot.link.has_waiting())) || lists.is_ready,
                "{:?} could be read and is in no list: {:?}",
                slot.id,
                slot.phase
            );
            assert!(
                !(slot.is_up() && io.is_writable && slot.link.has_output()) || lists.is_dirty,
                "{:?} could be written and is in no list",
                slot.id
            );
            timers += usize::from(slot.watch.is_some())
                + slot.own.as_ref().map_or(0, |own| own.timers.len());
            calls += slot.link.calls_in_flight();
            assert_eq!(board.is_open(slot.id), slot.exists());
        }
        self.state.check_fanouts();
        assert_eq!(self.state.stats.calls_in_flight, calls as u64);
        assert_eq!(self.state.stats.connections, slots.len() as u64);
        assert!(wheel.len() >= timers, "a connection's timer is not in the wheel");
    }
}

/// A loop that ends with work left fails every call, so that nobody waits for ever.
impl<H: Handler, N: Net> Drop for Engine<H, N> {
    fn drop(&mut self) {
        self.refuse_commands();
        let ids: Vec<_> = self.state.slots.iter().map(|(_, slot)| slot.id).collect();
        for id in ids {
            self.state.abort(id, CloseReason::Stopped);
            self.state.end_calls(id);
            drop_quietly(|| self.state.discard(id));
        }
        self.shared.bell.ring();
        // Callbacks that would need the handler are dropped: it can't be called any more.
        while let Some(call) = self.state.ended_calls.pop_front() {
            drop_quietly(|| drop(call));
        }
        self.sockets.close_all();
    }
}
