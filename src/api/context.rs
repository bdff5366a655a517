//! What a callback may do: with the loop ([`Context`]) and with its connection ([`Conn`]).

use std::{
    any::{Any, TypeId},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    handle::Shared,
    waiter::{Callback, LoopState, Waiter},
};
use crate::{
    Addr, Body, Bytes, CallError, CallId, CallRefused, Config, ConnId, ConnStats, DrainReport,
    Error, Handle, Handler, ListenerId, Message, Reply, Responder, SendError, Stats, Tagged,
    Target, TimerId,
    audience::Audience,
    close_mode::CloseMode,
    error::named,
    net::{BroughtListener, BroughtStream, ListenOptions, sockets::Sockets},
    protocol::{Head, Kind, Protocol},
    table::{
        clock::Alarm,
        desk::Desk,
        slot::{Phase, Slot},
    },
};

/// The loop, as a callback may use it. Nothing here blocks.
pub struct Context<'a, P: Protocol> {
    pub(crate) state: &'a mut LoopState<P>,
    pub(crate) sockets: &'a mut dyn Sockets,
    pub(crate) shared: &'a Arc<Shared<P>>,
}

impl<P: Protocol> Context<'_, P> {
    /// The loop without its handles.
    pub(crate) const fn desk(&mut self) -> Desk<'_, P, Waiter<P>> {
        Desk { state: self.state, sockets: self.sockets }
    }

    /// A connection that exists: is up, or dialled and waiting.
    pub fn conn(&mut self, id: ConnId) -> Option<Conn<'_, P>> {
        self.state.get(id).filter(|slot| slot.exists())?;
        Some(Conn {
            cx: Context { state: self.state, sockets: self.sockets, shared: self.shared },
            id,
        })
    }

    /// The connections that are up, by slot.
    pub fn connections(&self) -> impl Iterator<Item = ConnId> {
        self.state.slots.iter().filter(|slot| slot.is_up()).map(|slot| slot.id)
    }

    /// Sends a body to an audience: encoded once for each protocol, and fanned out over turns.
    /// To each receiver it comes in the order in which things were sent. Returns how many receivers
    /// there are: those that are up now.
    ///
    /// One turn does a bounded part of it, whatever is under way. A connection whose message made it is
    /// not read while 64 broadcasts of messages are under way; more than 65 536 in all make the oldest be
    /// given out at once. `docs/tuning.md` says what that costs.
    pub fn broadcast(&mut self, audience: Audience, body: impl Body) -> usize {
        let tag = body.tag().unwrap_or(0);
        self.state.broadcast(audience, tag, body.into_bytes())
    }

    /// The protocol and settings of what is given none of its own.
    pub(crate) fn defaults(&self) -> (P, Config) {
        let profile = self.state.profiles.defaults();
        (profile.protocol.clone(), profile.config.clone())
    }

    /// Dials with the default protocol and settings; see [`connect_with`](Self::connect_with).
    ///
    /// # Errors
    ///
    /// As [`connect_with`](Self::connect_with).
    pub fn connect<T>(&mut self, target: T) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let (protocol, config) = self.defaults();
        self.connect_with(target, &protocol, &config)
    }

    /// Dials a peer: `ip:port` or `host:port`.
    ///
    /// The id is there at once; [`on_connect`](Handler::on_connect) tells when the connection is up,
    /// [`on_error`](Handler::on_error) what failed. What is sent before goes to the offline queue.
    ///
    /// # Errors
    ///
    /// The target is no address, the settings can't work, or the reactor has 2²⁴ connections.
    pub fn connect_with<T>(
        &mut self,
        target: T,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        self.connect_target(target.try_into()?, protocol, config)
    }

    pub(crate) fn connect_target(
        &mut self,
        target: Target,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error> {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        self.state.slots.check_room()?;
        self.desk().dial(target, protocol, config)
    }

    /// Listens with the default protocol and settings; see [`listen_with`](Self::listen_with).
    ///
    /// # Errors
    ///
    /// As [`listen_with`](Self::listen_with).
    pub fn listen<T>(&mut self, addr: T) -> Result<(ListenerId, Addr), Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let (protocol, config) = self.defaults();
        self.listen_with(addr, &protocol, &config)
    }

    /// Listens on the first address that can be bound; the one returned has the real port. A name is
    /// resolved here and now, so give a literal address on the loop.
    ///
    /// # Errors
    ///
    /// The settings can't work; or no address could be bound, with the last one that was tried.
    pub fn listen_with<T>(
        &mut self,
        addr: T,
        protocol: &P,
        config: &Config,
    ) -> Result<(ListenerId, Addr), Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        self.listen_first(&addr.try_into()?.to_addrs()?, protocol, config)
    }

    /// Listens on the first of these addresses that can be bound.
    pub(crate) fn listen_first(
        &mut self,
        addrs: &[SocketAddr],
        protocol: &P,
        config: &Config,
    ) -> Result<(ListenerId, Addr), Error> {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "no address to listen on");
        for &addr in addrs {
            let bind = |sockets: &mut dyn Sockets, id, options: &ListenOptions| {
                sockets.listen(id, addr, options)
            };
            match self.desk().open_listener(protocol, config, bind) {
                Ok((id, addr)) => return Ok((id, addr.into())),
                Err(Error::Io(error)) => last = named(addr, &error),
                Err(error) => return Err(error),
            }
        }
        Err(last.into())
    }

    /// Takes over a listener that is bound already, from a supervisor for example.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the system refuses.
    pub fn adopt_listener(
        &mut self,
        listener: std::net::TcpListener,
        protocol: &P,
        config: &Config,
    ) -> Result<(ListenerId, Addr), Error> {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        let adopt = |sockets: &mut dyn Sockets, id, options: &ListenOptions| {
            sockets.adopt_listener(id, BroughtListener::System(listener), options)
        };
        let (id, addr) = self.desk().open_listener(protocol, config, adopt)?;
        Ok((id, addr.into()))
    }

    /// Takes over a stream that is connected already; it counts as accepted and is never redialled.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the system refuses.
    pub fn adopt_stream(
        &mut self,
        stream: std::net::TcpStream,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error> {
        self.adopt_brought(BroughtStream::System(stream), protocol, config)
    }

    pub(crate) fn adopt_brought(
        &mut self,
        stream: BroughtStream,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error> {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        self.desk().take_over(stream, protocol, config)
    }

    /// Stops listening; what was accepted stays. False if there is no such listener.
    pub fn close_listener(&mut self, id: ListenerId) -> bool {
        self.desk().drop_listener(id).is_some()
    }

    /// Stops listening, and drains every connection that the listener accepted, each within its
    /// [close timeout](Config::close_timeout);
    /// [`Incident::ListenerDrained`](crate::Incident::ListenerDrained) then says what was cut. False if
    /// there is no such listener.
    pub fn drain_listener(&mut self, id: ListenerId) -> bool {
        let connections = self.desk().drop_listener(id);
        if let Some(connections) = connections {
            self.state.stopping.begin_drain(id, connections);
        }
        connections.is_some()
    }

    /// Takes back the messages of which [`Incident::Undelivered`](crate::Incident::Undelivered) tells,
    /// in order. Only in [`on_error`](Handler::on_error), and once; else there are none.
    pub fn take_undelivered(&mut self) -> Vec<Tagged<Bytes>> {
        self.state.losses.take_back()
    }

    /// What stopping has come to so far; all of it in [`on_stop`](Handler::on_stop).
    pub const fn stop_report(&self) -> DrainReport {
        self.state.stopping.report()
    }

    /// The address of a listener, with the real port.
    pub fn listener_addr(&self, id: ListenerId) -> Option<Addr> {
        self.state.listeners.get(id).map(|listener| listener.addr.into())
    }

    /// Makes [`on_timer`](Handler::on_timer) be called once, after this time, with this token.
    pub fn set_timer(&mut self, after: Duration, token: u64) -> TimerId {
        self.insert_timer(after, token, None)
    }

    fn insert_timer(&mut self, after: Duration, token: u64, conn: Option<ConnId>) -> TimerId {
        let deadline = self.state.clock.after(after);
        // Too far for the clock: a century stands for never.
        let century = Duration::from_hours(100 * 365 * 24);
        let deadline = deadline.unwrap_or_else(|| self.state.clock.now() + century);
        TimerId(self.state.clock.arm(deadline, Alarm::User { token, conn }))
    }

    /// Cancels a timer. False if it has fired, or was cancelled.
    pub fn cancel_timer(&mut self, id: TimerId) -> bool {
        match self.state.clock.disarm(id.0) {
            Some(Alarm::User { conn: Some(conn), .. }) => {
                self.state.forget_timer(conn, id.0);
                true
            }
            Some(_) => true,
            None => false,
        }
    }

    /// Stops the reactor: no new work, what is in flight finishes, what is queued is flushed, for up
    /// to the reactor's stop timeout.
    pub fn stop(&mut self) {
        let timeout = self.state.stopping.timeout();
        self.desk().begin_stop(timeout);
    }

    /// What was counted so far.
    pub const fn stats(&self) -> Stats {
        self.state.stats
    }

    /// The time of this turn.
    pub fn now(&self) -> Instant {
        self.state.clock.now_as_instant()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle<P> {
        Handle::new(self.shared.clone())
    }
}

impl<P: Protocol> fmt::Debug for Context<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("connections", &self.state.slots.len())
            .finish_non_exhaustive()
    }
}

/// One connection, as a callback may use it; with [`cx`](Self::cx) the whole [`Context`].
///
/// Accepted and dialled connections have the same methods. Nothing here blocks.
pub struct Conn<'a, P: Protocol> {
    pub(crate) cx: Context<'a, P>,
    pub(crate) id: ConnId,
}

impl<'a, P: Protocol> Conn<'a, P> {
    /// The reactor that the connection belongs to: its other connections, its listeners, its timers.
    pub const fn cx(&mut self) -> &mut Context<'a, P> {
        &mut self.cx
    }

    /// The connection's id, which a [`Handle`] takes from any thread.
    pub const fn id(&self) -> ConnId {
        self.id
    }

    /// Sends a message that nobody answers.
    ///
    /// It is written at the end of this turn, together with what else is queued.
    ///
    /// # Errors
    ///
    /// Nothing was queued: the connection is closing, the body is too long, a dialled connection is
    /// down and its offline queue is full, or the queue is past its hard limit, which closes it.
    pub fn send(&mut self, body: impl Body) -> Result<(), SendError> {
        self.cx.state.send(self.id, None, body).map_err(|(error, _)| error)
    }

    /// Sends a message with an id of the application's, on protocols whose messages carry one.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_as(&mut self, id: P::Id, body: impl Body) -> Result<(), SendError> {
        self.cx.state.send(self.id, Some(id), body).map_err(|(error, _)| error)
    }

    /// Answers a message: with its id, and its tag if the body has none.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); `NotAwaited` if the format says that no answer is awaited, or if one
    /// was given.
    pub fn reply(&mut self, msg: &Message<'_, P>, body: impl Body) -> Result<(), SendError> {
        let kind = self.settle(msg)?;
        let tag = body.tag().unwrap_or(msg.head.tag);
        let head = Head { tag, ..Head::new(kind, msg.head.id) };
        let sent = self.cx.state.send_frame(self.id, &head, body);
        if sent.is_err() && kind == Kind::Reply {
            self.cx.state.serving.take_answer_back(msg.head.id);
        }
        sent
    }

    /// Answers a request with an error: a code of the application's (256 and above, or
    /// [`error_code::FAILED`](crate::error_code::FAILED)) and a reason, cut at 4096 bytes.
    ///
    /// The other codes below 256 are reserved. They are sent as they are, but the caller acts on
    /// [those that it knows](crate::error_code): after `BUSY`, `DRAINING` and `EXPIRED` it takes the request
    /// for one that was not handled.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply); `NotAwaited` also on protocols that have no errors.
    pub fn fail(&mut self, msg: &Message<'_, P>, code: u32, text: &str) -> Result<(), SendError> {
        let slot = self.cx.state.get(self.id);
        if slot.is_some_and(|slot| !slot.link.protocol().has_errors()) {
            return Err(SendError::NotAwaited);
        }
        self.settle(msg)?;
        self.cx.state.send_error(self.id, None, msg.head.id, code, text)
    }

    /// Keeps a request for an answer after this callback: from a timer, or from another thread.
    ///
    /// # Errors
    ///
    /// `NotAwaited` if no answer is awaited, or if one was given.
    pub fn defer(&mut self, msg: &Message<'_, P>) -> Result<Responder<P>, SendError> {
        self.settle(msg)?;
        if self.cx.state.get(self.id).is_none() {
            return Err(SendError::Closed);
        }
        let deferred = self.cx.state.defer(self.id, msg.head);
        let deadline = msg
            .asked
            .and_then(|asked| asked.deadline.get())
            .and_then(|at| self.cx.state.clock.instant(at));
        let shared = self.cx.shared.clone();
        Ok(Responder::new(shared, self.id, *msg.head, deadline, deferred))
    }

    /// The message is being answered: the kind of the answer.
    fn settle(&mut self, msg: &Message<'_, P>) -> Result<Kind, SendError> {
        let is_own = msg.arrival.conn == self.id;
        match msg.asked {
            Some(_) if is_own && self.cx.state.serving.answer() => Ok(Kind::Reply),
            None if is_own && msg.head.kind == Kind::Plain => Ok(Kind::Plain),
            _ => Err(SendError::NotAwaited),
        }
    }

    /// Calls the peer; `callback` is given the handler, the connection and the reply or why there
    /// is none, later, exactly once.
    ///
    /// A `timeout` of zero is over in this turn or the next: the request is sent, and the call ends as timed
    /// out, unless the answer is there already. [`Duration::MAX`] is never over.
    ///
    /// # Errors
    ///
    /// The call was not started. The callback was not called: the error has it, with all that was moved into
    /// it, and can [run](CallRefused::run) it.
    ///
    /// # Panics
    ///
    /// If `H` is not the type of the reactor's handler.
    ///
    /// # Examples
    ///
    /// A request that is passed on. Its responder is moved into the callback, which so answers in any case:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use longhaul::{Conn, ConnId, Handler, Message, error_code, protocol::Native};
    /// struct Relay {
    ///     upstream: ConnId,
    /// }
    ///
    /// impl Handler for Relay {
    ///     type Protocol = Native;
    ///
    ///     fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
    ///         let Ok(responder) = conn.defer(&msg) else { return };
    ///         let Some(mut upstream) = conn.cx().conn(self.upstream) else { return };
    ///         let timeout = Duration::from_secs(2);
    ///         let called = upstream.call(&msg, timeout, |_: &mut Self, _, result| match result {
    ///             Ok(reply) => drop(responder.reply(reply.to_bytes())),
    ///             Err(error) => drop(responder.fail(error_code::FAILED, &error.to_string())),
    ///         });
    ///         if let Err(refused) = called {
    ///             refused.run(self, &mut upstream);
    ///         }
    ///     }
    /// }
    /// ```
    pub fn call<H: Handler<Protocol = P>>(
        &mut self,
        body: impl Body,
        timeout: Duration,
        callback: impl FnOnce(&mut H, &mut Conn<'_, P>, Result<Reply<'_>, CallError>) + Send + 'static,
    ) -> Result<CallId, CallRefused<P>> {
        assert!(
            self.cx.shared.handler_type == TypeId::of::<H>(),
            "the callback of a call must name the reactor's own handler"
        );
        let callback: Callback<P> = Box::new(move |handler, conn, result| {
            let handler = handler.downcast_mut::<H>().expect("asserted when the call started");
            callback(handler, conn, result);
        });
        let waiter = Waiter::Callback(callback);
        self.cx.state.call(self.id, body, timeout, waiter).map_err(|(error, waiter)| match waiter {
            Waiter::Callback(callback) => CallRefused::new(error, callback),
            Waiter::Caller(_) => unreachable!("the waiter that was given is given back"),
        })
    }

    /// Gives up a call of ours: it ends as cancelled, and the peer is told where the format can.
    ///
    /// False if there is no such call in flight: it has ended, is another connection's, or this one is gone.
    pub fn cancel_call(&mut self, call: CallId) -> bool {
        self.cx.state.give_up(self.id, call, false)
    }

    /// Closes the connection for good: nothing more is received, what is queued is flushed for up to
    /// the close timeout. A dialled connection is not dialled again.
    pub fn close(&mut self) {
        self.end(CloseMode::Close);
    }

    /// As [`close`](Self::close), but lets what is in flight finish first.
    pub fn drain(&mut self) {
        self.end(CloseMode::Drain);
    }

    /// Drops the connection for good, with what is queued.
    pub fn abort(&mut self) {
        self.end(CloseMode::Abort);
    }

    fn end(&mut self, mode: CloseMode) {
        self.cx.state.end_for_good(self.id, mode, mode.reason());
    }

    /// Takes back the messages that were accepted and not given to the system whole, oldest first:
    /// those of [`send`](Self::send) and of broadcasts, without an id that they were given. Calls end with an error of their own, and for
    /// answers there is nobody left.
    ///
    /// Only in [`on_disconnect`](Handler::on_disconnect), and once; else there are none. What is sent
    /// there to a dialled connection that comes back waits for that, so sending them again there
    /// keeps them in order. The system, or the peer, may have lost what was given to the system: that
    /// nobody can tell.
    pub fn take_unsent(&mut self) -> Vec<Tagged<Bytes>> {
        match self.cx.state.get_mut(self.id) {
            Some(slot) if slot.phase == Phase::Dropped => slot.link.take_unsent(),
            _ => Vec::new(),
        }
    }

    /// The connection, unless nothing more comes of it.
    fn living(&mut self) -> Option<&mut Slot<P, Waiter<P>>> {
        self.cx.state.get_mut(self.id).filter(|slot| !slot.is_gone())
    }

    /// Stops reading from the peer; what arrives waits in the system, and slows the peer down.
    ///
    /// While something waits there unread, that counts as life, and no deadline of the peer's runs. So a
    /// paused connection does not notice that its peer is gone, nor that TCP has given it up: that is
    /// found by the first read after [`resume`](Self::resume), or by a write.
    ///
    /// False if the connection is gone.
    pub fn pause(&mut self) -> bool {
        let Some(slot) = self.living() else { return false };
        slot.epoch.reading.pause();
        true
    }

    /// Goes on reading. False if the connection is gone.
    pub fn resume(&mut self) -> bool {
        let now = self.cx.state.clock.now();
        let Some(slot) = self.living() else { return false };
        let was_paused = slot.epoch.reading.resume();
        if was_paused && slot.io.is_readable {
            // What waited did so because of us: that does not count against the peer.
            slot.link.handle_unread(now);
        }
        self.cx.state.mark_ready(self.id);
        true
    }

    /// Makes [`on_timer`](Handler::on_timer) be called once, after this time, with this token and
    /// this connection, if it still exists then.
    pub fn set_timer(&mut self, after: Duration, token: u64) -> TimerId {
        let timer = self.cx.insert_timer(after, token, Some(self.id));
        if let Some(slot) = self.cx.state.get_mut(self.id) {
            slot.own.get_or_insert_default().timers.insert(timer.0);
        }
        timer
    }

    /// Makes the connection a member of a group, to be reached by [`Audience::Group`]; across
    /// reconnects, until it leaves or its id ends. False if the connection is gone.
    pub fn join(&mut self, group: impl Into<Arc<str>>) -> bool {
        let group = group.into();
        let Some(slot) = self.living() else { return false };
        let own = slot.own.get_or_insert_default();
        if !own.groups.contains(&group) {
            own.groups.push(group.clone());
            self.cx.state.fanouts.groups.join(self.id, group);
        }
        true
    }

    /// Ends the membership. False if there was none, or if the connection is gone.
    pub fn leave(&mut self, group: &str) -> bool {
        let Some(slot) = self.cx.state.get_mut(self.id) else { return false };
        let Some(own) = &mut slot.own else { return false };
        let before = own.groups.len();
        own.groups.retain(|name| &**name != group);
        let is_member = own.groups.len() < before;
        if is_member {
            self.cx.state.fanouts.groups.leave(self.id, group);
        }
        is_member
    }

    /// The groups that the connection is a member of.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.cx
            .state
            .get(self.id)
            .into_iter()
            .filter_map(|slot| slot.own.as_ref())
            .flat_map(|own| own.groups.iter().map(|name| &**name))
    }

    /// Keeps a value of the application's with the connection, across reconnects, until its id ends.
    pub fn set_data<T: Any + Send>(&mut self, data: T) {
        if let Some(slot) = self.cx.state.get_mut(self.id) {
            slot.own.get_or_insert_default().data = Some(Box::new(data));
        }
    }

    /// What the application keeps with the connection, if it is of this type.
    pub fn data<T: Any>(&self) -> Option<&T> {
        self.cx.state.get(self.id)?.own.as_ref()?.data.as_deref()?.downcast_ref()
    }

    /// What the application keeps with the connection, if it is of this type.
    pub fn data_mut<T: Any>(&mut self) -> Option<&mut T> {
        self.cx.state.get_mut(self.id)?.own.as_mut()?.data.as_deref_mut()?.downcast_mut()
    }

    /// The peer's address. Of a dialled connection that is not up, the one that was tried last; `None`
    /// before the first, while its name is looked up, and if the connection is gone.
    pub fn peer_addr(&self) -> Option<Addr> {
        self.cx.state.get(self.id)?.peer.known().map(Addr::from)
    }

    /// Our end's address, while there is a socket.
    pub fn local_addr(&self) -> Option<Addr> {
        self.cx.sockets.local_addr(self.id.slot()).ok().map(Addr::from)
    }

    /// Whether this side dialled.
    pub fn is_dialled(&self) -> bool {
        self.cx.state.get(self.id).is_some_and(Slot::is_dialled)
    }

    /// The listener that accepted the connection.
    pub fn listener(&self) -> Option<ListenerId> {
        self.cx.state.get(self.id)?.listener
    }

    /// How many times the connection was established: 1 the first time, more after reconnects, 0
    /// before.
    pub fn epoch(&self) -> u32 {
        self.cx.state.get(self.id).map_or(0, |slot| slot.epoch.number)
    }

    /// Bytes queued and not yet written, with the overhead that each frame is charged.
    pub fn queued(&self) -> usize {
        self.cx.state.get(self.id).map_or(0, |slot| slot.link.queued_cost())
    }

    /// Whether the queue is below its watermark: if not,
    /// [`on_writable`](Handler::on_writable) will say when to go on.
    pub fn is_writable(&self) -> bool {
        self.cx.state.get(self.id).is_some_and(|slot| slot.is_up() && !slot.epoch.is_above_high)
    }

    /// What the present epoch has counted.
    pub fn stats(&self) -> ConnStats {
        let Some(slot) = self.cx.state.get(self.id) else { return ConnStats::default() };
        let counts = slot.link.counts();
        ConnStats {
            messages_in: counts.messages_in,
            messages_out: counts.messages_out,
            bytes_in: counts.bytes_in,
            queued: slot.link.queued_cost(),
            calls_in_flight: slot.link.calls_in_flight(),
            requests_in_flight: slot.link.requests_in_flight(),
            late_replies: counts.late_replies,
            round_trip: Some(counts.round_trip_us)
                .filter(|micros| *micros > 0)
                .map(|micros| Duration::from_micros(u64::from(micros))),
        }
    }

    /// The wire format of this connection.
    pub fn protocol(&self) -> Option<&P> {
        self.cx.state.get(self.id).map(|slot| &slot.profile.protocol)
    }
}

impl<P: Protocol> fmt::Debug for Conn<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("id", &self.id).finish_non_exhaustive()
    }
}
