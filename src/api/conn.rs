//! What a callback may do with its connection.

use std::{
    any::{Any, TypeId},
    fmt,
    sync::Arc,
    time::Duration,
};

use super::waiter::{Callback, Waiter};
use crate::{
    Addr, Body, Bytes, CallError, CallId, CallRefused, ConnId, ConnStats, Context, Handler,
    ListenerId, Message, Reply, Responder, SendError, Tagged, TimerId,
    close_mode::CloseMode,
    protocol::{Head, Kind, Protocol},
    table::slot::{Phase, Slot},
};

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

    /// The connection's id, which a [`Handle`](crate::Handle) takes from any thread.
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
    /// Only in [`on_disconnect`](crate::Handler::on_disconnect), and once; else there are none. What is sent
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

    /// Makes [`on_timer`](crate::Handler::on_timer) be called once, after this time, with this token and
    /// this connection, if it still exists then.
    pub fn set_timer(&mut self, after: Duration, token: u64) -> TimerId {
        let timer = self.cx.insert_timer(after, token, Some(self.id));
        if let Some(slot) = self.cx.state.get_mut(self.id) {
            slot.own.get_or_insert_default().timers.insert(timer.0);
        }
        timer
    }

    /// Makes the connection a member of a group, to be reached by [`Audience::Group`](crate::Audience::Group); across
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
    /// [`on_writable`](crate::Handler::on_writable) will say when to go on.
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
