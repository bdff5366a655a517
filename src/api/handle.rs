//! The remote control of a reactor, for every thread but its own.

use std::{fmt, io, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    command::Command,
    shared::{PATIENCE, POST_OVERHEAD, SOON, Shared, Unheard},
};
use crate::{
    Addr, Audience, Body, CallError, CloseReason, Config, ConnId, Context, Error, ListenerId,
    PendingCall, SendError, Stats, Target,
    close_mode::CloseMode,
    error::named,
    protocol::{Native, Protocol},
    threads::{call_cell::CallCell, sync::Ordering},
};

/// The remote control of a reactor: cheap to clone, for any thread.
///
/// Nothing here blocks but what says so. What one thread posts for one connection is done in the
/// order in which it was posted. A message that is accepted here is on its way to the loop; if its
/// connection ends before it is written, the close report, or
/// [`Incident::Undelivered`](crate::Incident::Undelivered), counts it. Dropping handles, the last
/// one too, changes nothing for the reactor.
///
/// # Examples
///
/// ```
/// # use longhaul::{Conn, Handler, Message, Reactor, protocol::Native};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Protocol = Native;
/// #     fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
/// # }
/// let mut reactor = Reactor::new(Echo)?;
/// let handle = reactor.handle();
/// let worker = std::thread::spawn(move || {
///     handle.broadcast("news")?;
///     handle.stop();
///     Ok::<(), longhaul::SendError>(())
/// });
/// reactor.run()?;
/// worker.join().unwrap().unwrap();
/// # Ok::<(), longhaul::Error>(())
/// ```
pub struct Handle<P: Protocol = Native> {
    pub(super) shared: Arc<Shared<P>>,
}

impl<P: Protocol> Handle<P> {
    pub(crate) const fn new(shared: Arc<Shared<P>>) -> Self {
        Self { shared }
    }

    /// Sends a message that nobody answers.
    ///
    /// # Errors
    ///
    /// Nothing was accepted: the connection is gone or of another reactor (`Closed`), its queue is above
    /// the high watermark
    /// (`Full`) or the mailbox is full (`MailboxFull`), the body is too long, or the reactor has
    /// stopped.
    pub fn send(&self, conn: ConnId, body: impl Body) -> Result<(), SendError> {
        self.post_send(conn, None, body)
    }

    /// Sends a message with an id of the application's, on protocols whose messages carry one.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_as(&self, conn: ConnId, id: P::Id, body: impl Body) -> Result<(), SendError> {
        self.post_send(conn, Some(id), body)
    }

    fn post_send(&self, conn: ConnId, id: Option<P::Id>, body: impl Body) -> Result<(), SendError> {
        let len = body.as_slice().len();
        let charged = len + POST_OVERHEAD;
        self.shared.reserve(conn, len, charged)?;
        let (tag, body) = (body.tag().unwrap_or(0), body.into_bytes());
        let posted = self.shared.post(Command::Send { conn, id, tag, body, charged }, len);
        if posted.is_err() {
            self.shared.release(conn, charged);
        }
        posted
    }

    /// Sends a body to every connection that is up when the loop takes it.
    ///
    /// # Errors
    ///
    /// The mailbox is full, or the reactor has stopped.
    pub fn broadcast(&self, body: impl Body) -> Result<(), SendError> {
        self.broadcast_to(Audience::All, body)
    }

    /// Sends a body to an audience: encoded once for each protocol, fanned out over turns.
    ///
    /// While 64 broadcasts of handles are under way, the next one stays in the mailbox, and what is
    /// posted after it, by any thread, waits behind it. A mailbox that is full meanwhile refuses more.
    ///
    /// # Errors
    ///
    /// The mailbox is full, or the reactor has stopped.
    pub fn broadcast_to(&self, audience: Audience, body: impl Body) -> Result<(), SendError> {
        let (tag, body) = (body.tag().unwrap_or(0), body.into_bytes());
        let len = body.len();
        self.shared.post(Command::Broadcast { audience, tag, body }, len)
    }

    /// Makes a connection a member of a group, some time later but before what this thread posts next.
    ///
    /// # Errors
    ///
    /// The connection is of another reactor, or gone for so long that its slot has another (`Closed`);
    /// the mailbox is full, or the reactor has stopped.
    pub fn join(&self, conn: ConnId, group: impl Into<Arc<str>>) -> Result<(), SendError> {
        let group = group.into();
        self.shared.find(conn)?;
        self.run(move |cx| {
            if let Some(mut conn) = cx.conn(conn) {
                conn.join(group);
            }
        })
    }

    /// Ends the membership of a connection in a group, as [`join`](Self::join) begins it.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    pub fn leave(&self, conn: ConnId, group: impl Into<Arc<str>>) -> Result<(), SendError> {
        let group = group.into();
        self.shared.find(conn)?;
        self.run(move |cx| {
            if let Some(mut conn) = cx.conn(conn) {
                conn.leave(&group);
            }
        })
    }

    /// Calls a peer and blocks this thread until the call has ended, which it does: with the reply,
    /// or after `timeout`, or when the connection or the reactor ends. Meanwhile the loop looks for the
    /// reply for up to 50 µs before it sleeps, as long as replies come that soon.
    ///
    /// The timeout counts from when the loop takes the call. That is at once, but for a callback that
    /// keeps the loop. One of zero is over then: the request is sent, and its answer is not
    /// waited for.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`CallError::fate`] tells whether the request may have left.
    pub fn call(
        &self,
        conn: ConnId,
        body: impl Body,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        self.call_tagged(conn, body, timeout).map(|(_, body)| body)
    }

    /// As [`call`](Self::call), and tells the tag of the reply, too.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn call_tagged(
        &self,
        conn: ConnId,
        body: impl Body,
        timeout: Duration,
    ) -> Result<(u32, Bytes), CallError> {
        // An id that is gone, or of another reactor, is refused without waiting for anybody.
        if self.is_open(conn) || self.is_on_loop() {
            self.shared.may_block(timeout.min(PATIENCE))?;
        }
        let cell = self.post_call(conn, body, timeout)?;
        self.shared.wait(&cell)
    }

    /// Calls a peer; the future ends with the reply. Any executor will do. Dropping it cancels the
    /// call.
    pub fn call_async(&self, conn: ConnId, body: impl Body, timeout: Duration) -> PendingCall<P> {
        let posted = self.post_call(conn, body, timeout);
        PendingCall { shared: self.shared.clone(), conn, state: posted.map_err(Some) }
    }

    fn post_call(
        &self,
        conn: ConnId,
        body: impl Body,
        timeout: Duration,
    ) -> Result<Arc<CallCell>, CallError> {
        let len = body.as_slice().len();
        let charged = len + POST_OVERHEAD;
        self.shared.reserve(conn, len, charged).map_err(|error| CallError::from(&error))?;
        let cell = Arc::new(CallCell::new());
        let (tag, body) = (body.tag().unwrap_or(0), body.into_bytes());
        let command = Command::Call { conn, tag, body, timeout, cell: cell.clone(), charged };
        match self.shared.post(command, len) {
            Ok(()) => Ok(cell),
            Err(error) => {
                self.shared.release(conn, charged);
                Err(CallError::from(&error))
            }
        }
    }

    /// Closes a connection for good, after what is queued was flushed. Closing one that is gone or of
    /// another reactor, or again, does nothing and costs nothing. A stricter end
    /// ([`drain`](Self::drain), `close`, [`abort`](Self::abort) in this order) gets through.
    pub fn close(&self, conn: ConnId) {
        self.post_close(conn, CloseMode::Close);
    }

    /// Closes a connection for good, after what is in flight has finished.
    pub fn drain(&self, conn: ConnId) {
        self.post_close(conn, CloseMode::Drain);
    }

    /// Drops a connection for good, with what is queued.
    pub fn abort(&self, conn: ConnId) {
        self.post_close(conn, CloseMode::Abort);
    }

    fn post_close(&self, conn: ConnId, mode: CloseMode) {
        if self.shared.board.ask_end(conn, mode) {
            // A reactor that has stopped has closed it.
            let _ = self.shared.post_control(Command::Close { conn, mode });
        }
    }

    /// Listens with the reactor's own protocol and settings; see [`listen_with`](Self::listen_with).
    ///
    /// # Errors
    ///
    /// As [`listen_with`](Self::listen_with).
    pub fn listen<T>(&self, addr: T) -> Result<(ListenerId, Addr), Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let addrs = addr.try_into()?.to_addrs()?;
        self.ask(move |cx| {
            let defaults = cx.defaults();
            cx.listen_first(&addrs, &defaults.protocol, &defaults.config)
        })?
    }

    /// Listens with a protocol and settings of this listener's own, and blocks until the loop has bound
    /// the address; see [`Context::listen_with`].
    ///
    /// # Errors
    ///
    /// The settings can't work, no address could be bound, the reactor has stopped, or this is its
    /// own thread.
    pub fn listen_with<T>(
        &self,
        addr: T,
        protocol: &P,
        config: &Config,
    ) -> Result<(ListenerId, Addr), Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let addrs = addr.try_into()?.to_addrs()?;
        let (protocol, config) = (protocol.clone(), config.clone());
        self.ask(move |cx| cx.listen_first(&addrs, &protocol, &config))?
    }

    /// Stops listening; see [`Context::close_listener`]. Returns at once.
    ///
    /// # Errors
    ///
    /// The mailbox is full, or the reactor has stopped.
    pub fn close_listener(&self, listener: ListenerId) -> Result<(), SendError> {
        self.run(move |cx| _ = cx.close_listener(listener))
    }

    /// Stops listening, and drains what the listener accepted; see [`Context::drain_listener`]. Returns
    /// at once.
    ///
    /// # Errors
    ///
    /// The mailbox is full, or the reactor has stopped.
    pub fn drain_listener(&self, listener: ListenerId) -> Result<(), SendError> {
        self.run(move |cx| _ = cx.drain_listener(listener))
    }

    /// Dials with the reactor's own protocol and settings; see [`connect_with`](Self::connect_with).
    ///
    /// # Errors
    ///
    /// As [`connect_with`](Self::connect_with).
    pub fn connect<T>(&self, target: T) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let target: Target = target.try_into()?;
        self.ask(move |cx| {
            let defaults = cx.defaults();
            cx.connect_target(target, &defaults.protocol, &defaults.config)
        })?
    }

    /// Dials with a protocol and settings of this connection's own, and blocks until the loop has begun
    /// to; see [`Context::connect_with`].
    ///
    /// # Errors
    ///
    /// The target is no address, the settings can't work, the reactor has stopped, or this is its
    /// own thread.
    pub fn connect_with<T>(&self, target: T, protocol: &P, config: &Config) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let target: Target = target.try_into()?;
        let (protocol, config) = (protocol.clone(), config.clone());
        self.ask(move |cx| cx.connect_target(target, &protocol, &config))?
    }

    /// Dials with the reactor's own protocol and settings, and waits; see
    /// [`connect_and_wait_with`](Self::connect_and_wait_with).
    ///
    /// # Errors
    ///
    /// As [`connect_and_wait_with`](Self::connect_and_wait_with).
    pub fn connect_and_wait<T>(&self, target: T) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        self.dial_and_wait(target.try_into()?, None)
    }

    /// Dials with a protocol and settings of this connection's own, and blocks until the connection is up,
    /// or its first round of attempts has failed. Where the format has a hello, up means that the peer's
    /// has come.
    ///
    /// # Errors
    ///
    /// As [`connect_with`](Self::connect_with); [`Error::Io`], with the target, if it can't be reached, says
    /// no hello in time (`TimedOut`) or something that is none (`InvalidData`). The connection is gone then.
    pub fn connect_and_wait_with<T>(
        &self,
        target: T,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        self.dial_and_wait(target.try_into()?, Some((protocol.clone(), config.clone())))
    }

    pub(crate) fn dial_and_wait(
        &self,
        target: Target,
        own: Option<(P, Config)>,
    ) -> Result<ConnId, Error> {
        let name = target.to_string();
        self.put(move |cx: &mut Context<'_, P>, asker| {
            let dialled = if let Some((protocol, config)) = own {
                cx.connect_target(target, &protocol, &config)
            } else {
                let defaults = cx.defaults();
                cx.connect_target(target, &defaults.protocol, &defaults.config)
            };
            match dialled {
                Ok(conn) => cx.state.awaiters.add(
                    conn,
                    Box::new(move |failure: Option<CloseReason>| {
                        asker.answer(failure.map_or(Ok(conn), |why| {
                            Err(Error::Io(named(name, &io::Error::from(why))))
                        }));
                    }),
                ),
                Err(error) => asker.answer(Err(error)),
            }
        })?
    }

    /// Stops the reactor: no new work, what is in flight finishes, what is queued is flushed, for up
    /// to the reactor's stop timeout. Returns at once.
    pub fn stop(&self) {
        self.shared.ask_stop(None);
    }

    /// As [`stop`](Self::stop), for up to `timeout`; zero: what is queued is dropped.
    pub fn stop_within(&self, timeout: Duration) {
        self.shared.ask_stop(Some(timeout));
    }

    /// Whether the reactor has stopped.
    pub fn is_stopped(&self) -> bool {
        self.shared.mailbox.is_closed()
    }

    /// What the reactor has counted, as of the end of its last turn.
    pub fn stats(&self) -> Stats {
        self.shared.stats.read()
    }

    /// Whether the connection exists: is up, or dialled and waiting.
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.shared.board.is_open(conn)
    }

    /// Whether the connection is up, and not about to end: one that drains is not.
    pub fn is_up(&self, conn: ConnId) -> bool {
        self.shared.board.is_up(conn)
    }

    /// The number that the ids of the reactor's connections name.
    #[cfg(test)]
    pub(crate) fn number(&self) -> u8 {
        self.shared.board.number()
    }

    /// Blocks until the connection is up, or gone (false), or the time is over (`None`).
    pub(crate) fn wait_up(&self, conn: ConnId, timeout: Duration) -> Result<Option<bool>, Unheard> {
        let look = || {
            let is_up = self.is_up(conn);
            (is_up || !self.is_open(conn)).then_some(is_up)
        };
        if let Some(found) = look() {
            return Ok(Some(found));
        }
        self.shared.may_block(timeout.min(PATIENCE))?;
        Ok(self.shared.gate.wait(timeout, look))
    }

    /// Whether this thread runs the reactor, or ran its last turn.
    pub(crate) fn is_on_loop(&self) -> bool {
        self.shared.is_on_loop()
    }

    /// A thread is about to run the reactor, for which a blocking method may wait without an end.
    pub(crate) fn expect_run(&self) {
        self.shared.runner.store(SOON, Ordering::Relaxed);
    }
}

impl<P: Protocol> Clone for Handle<P> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<P: Protocol> fmt::Debug for Handle<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(model)))]
mod tests;
