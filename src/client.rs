//! A dialled connection, with a reactor on a thread of its own or as a guest of another's.

use std::{
    fmt, io,
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    Body, Bytes, CallError, CloseReason, CloseReport, Config, Conn, ConnId, Context, DrainReport,
    Error, Handle, Handler, Incident, Message, PendingCall, Reactor, ReactorBuilder, SendError,
    Tagged, Target,
    core::write_queue::FRAME_OVERHEAD,
    protocol::{Native, Protocol},
    worker::Worker,
};

/// A connection to a server that stays: it is dialled again whenever it is lost.
///
/// Any number of threads may use one client at the same time. Dropping it closes the connection
/// without waiting for that; [`stop`](Self::stop) waits.
///
/// # Examples
///
/// ```
/// # use longhaul::{Conn, Handler, Message, Server, protocol::Native};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Protocol = Native;
/// #     fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
/// #         let _ = conn.reply(&msg, &msg);
/// #     }
/// # }
/// # let server = Server::bind("127.0.0.1:0", Echo)?;
/// # let addr = server.addr();
/// use longhaul::Client;
/// use std::time::Duration;
///
/// let client = Client::connect(addr)?;
/// let reply = client.call("hello", Duration::from_secs(2))?; // blocks this thread
/// assert_eq!(reply, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Client<P: Protocol = Native> {
    handle: Handle<P>,
    conn: ConnId,
    /// The reactor, where it is the client's own.
    worker: Option<Worker<P>>,
    /// What a client without a handler can be asked.
    record: Option<Record>,
}

/// How a client's connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientState {
    /// It is up.
    Connected,
    /// It is being dialled, or waits to be.
    Connecting,
    /// It was closed, or given up.
    Closed,
}

impl Client {
    /// Connects with the native protocol and default settings, and blocks until the server has said
    /// hello or every address was tried. What the server pushes or asks is ignored.
    ///
    /// # Errors
    ///
    /// The target is no address, or could not be reached: see [`Error::Io`].
    pub fn connect<T>(target: T) -> Result<Self, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        ClientBuilder::new(Native).connect(target)
    }
}

impl<P: Protocol> Client<P> {
    /// Connects on a reactor that runs already, with its protocol and settings; see
    /// [`connect_on_with`](Self::connect_on_with).
    ///
    /// # Errors
    ///
    /// As [`connect_on_with`](Self::connect_on_with).
    pub fn connect_on<T>(handle: &Handle<P>, target: T) -> Result<Self, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let conn = handle.connect_and_wait(target)?;
        Ok(Self { handle: handle.clone(), conn, worker: None, record: None })
    }

    /// Connects on a reactor that runs already, with a protocol and settings of this connection's own, and
    /// blocks until that has succeeded or every address was tried. What the server pushes or asks goes to
    /// that reactor's handler.
    ///
    /// # Errors
    ///
    /// As [`connect`](Client::connect); or the reactor has stopped, or this is its own thread.
    pub fn connect_on_with<T>(
        handle: &Handle<P>,
        target: T,
        protocol: &P,
        config: &Config,
    ) -> Result<Self, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let conn = handle.connect_and_wait_with(target, protocol, config)?;
        Ok(Self { handle: handle.clone(), conn, worker: None, record: None })
    }

    /// Sends a message that nobody answers; one sent while the connection is down waits for it,
    /// within the bounds of [`Config::offline_queue`]. Does not block.
    ///
    /// # Errors
    ///
    /// As [`Handle::send`].
    pub fn send(&self, body: impl Body) -> Result<(), SendError> {
        self.handle.send(self.conn, body)
    }

    /// Calls the server, and blocks this thread until the call has ended.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub fn call(&self, body: impl Body, timeout: Duration) -> Result<Bytes, CallError> {
        self.handle.call(self.conn, body, timeout)
    }

    /// As [`call`](Self::call), and tells the tag of the reply, too.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub fn call_tagged(
        &self,
        body: impl Body,
        timeout: Duration,
    ) -> Result<(u32, Bytes), CallError> {
        self.handle.call_tagged(self.conn, body, timeout)
    }

    /// Calls the server; the future ends with the reply. Any executor will do. Dropping it cancels
    /// the call.
    pub fn call_async(&self, body: impl Body, timeout: Duration) -> PendingCall<P> {
        self.handle.call_async(self.conn, body, timeout)
    }

    /// How the connection is.
    pub fn state(&self) -> ClientState {
        match (self.handle.is_open(self.conn), self.handle.is_up(self.conn)) {
            (_, true) => ClientState::Connected,
            (true, false) => ClientState::Connecting,
            (false, false) => ClientState::Closed,
        }
    }

    /// Blocks until the connection is up, for up to `timeout`; returns at once if it is.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: it was not up in time (of the kind `TimedOut`), or is closed for good
    /// (`NotConnected`), with the last reason where that is known. [`Error::OnLoopThread`],
    /// [`Error::NotRunning`]: as [`Handle::ask`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use longhaul::{ClientBuilder, protocol::Native};
    /// use std::time::Duration;
    ///
    /// let client = ClientBuilder::new(Native).start("server.example:7001")?;
    /// client.wait_connected(Duration::from_secs(10))?;
    /// # Ok::<(), longhaul::Error>(())
    /// ```
    pub fn wait_connected(&self, timeout: Duration) -> Result<(), Error> {
        let (kind, what) = match self.handle.wait_up(self.conn, timeout)? {
            Some(true) => return Ok(()),
            Some(false) => (io::ErrorKind::NotConnected, "closed".to_owned()),
            None => (io::ErrorKind::TimedOut, format!("not connected within {timeout:?}")),
        };
        let text = match self.last_close() {
            Some(reason) => format!("{what}: {reason}"),
            None => what,
        };
        Err(io::Error::new(kind, text).into())
    }

    /// Why the connection was last lost, or could not be made; `None` if that never happened. For a
    /// client with a handler, or on a reactor of another's, always `None`: the handler is told.
    pub fn last_close(&self) -> Option<CloseReason> {
        self.record.as_ref()?.lock().last_close.clone()
    }

    /// How many messages were accepted by [`send`](Self::send) and not given to the system, in all. For
    /// a client with a handler, or on a reactor of another's, always 0: the handler is told.
    pub fn undelivered(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.lock().undelivered)
    }

    /// Takes those messages, oldest first: each is handed back once. Up to as many bytes are kept as the
    /// [offline queue](Config::offline_queue) may hold (1 MiB by default); once that is full, newer ones
    /// are dropped until this is called, and only counted.
    pub fn take_undelivered(&self) -> Vec<Tagged<Bytes>> {
        self.record.as_ref().map(|record| record.lock().take()).unwrap_or_default()
    }

    /// The id of the connection, the same across reconnects.
    pub const fn conn(&self) -> ConnId {
        self.conn
    }

    /// A handle to the reactor under it.
    pub fn handle(&self) -> Handle<P> {
        self.handle.clone()
    }

    /// Closes the connection for good, after what is queued was flushed. Does not wait for that.
    pub fn close(&self) {
        self.handle.close(self.conn);
    }

    /// Closes the connection, and where the reactor is the client's own stops it, within its stop
    /// timeout, and blocks until its thread has ended; says what was cut. Repeated, it returns the same
    /// at once, an error, too. On a reactor of another's it does not wait, and there is nothing to say yet.
    ///
    /// # Errors
    ///
    /// The loop failed, or its thread [panicked](Error::Panicked), or this is that thread.
    pub fn stop(&self) -> Result<DrainReport, Error> {
        if let Some(worker) = &self.worker {
            return worker.stop();
        }
        self.close();
        Ok(DrainReport::default())
    }
}

/// Neither blocks nor fails.
impl<P: Protocol> Drop for Client<P> {
    fn drop(&mut self) {
        if self.worker.is_none() {
            self.close();
        }
    }
}

impl<P: Protocol> fmt::Debug for Client<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("conn", &self.conn)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Settings of a client.
///
/// # Examples
///
/// ```no_run
/// use longhaul::{ClientBuilder, protocol::Tcpstream};
///
/// let client = ClientBuilder::new(Tcpstream).start("server.example:7001")?;
/// client.send("waits for the connection")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClientBuilder<P: Protocol> {
    builder: ReactorBuilder<P>,
    /// The settings of the connection, where they are not those of the reactor.
    config: Option<Config>,
}

impl<P: Protocol> ClientBuilder<P> {
    /// The defaults, on a protocol.
    pub fn new(protocol: P) -> Self {
        Self { builder: ReactorBuilder::new(protocol), config: None }
    }

    /// The settings of the connection. Default: those of the [reactor](Self::reactor).
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// The protocol and settings of the client's own reactor. What [`config`](Self::config) sets holds,
    /// before this or after it.
    #[must_use]
    pub fn reactor(mut self, builder: ReactorBuilder<P>) -> Self {
        self.builder = builder;
        self
    }

    fn into_reactor(self) -> ReactorBuilder<P> {
        match self.config {
            Some(config) => self.builder.config(config),
            None => self.builder,
        }
    }

    /// A handler for a client that has none.
    fn deaf(&self) -> (Deaf<P>, Record) {
        let record = Record::default();
        let config = self.config.as_ref().unwrap_or_else(|| self.builder.default_config());
        (Deaf::new(record.clone(), config), record)
    }

    /// Connects, and blocks until that has succeeded or every address was tried.
    ///
    /// # Errors
    ///
    /// The settings can't work, the target is no address, or it could not be reached.
    pub fn connect<T>(self, target: T) -> Result<Client<P>, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let (deaf, record) = self.deaf();
        let mut client = self.connect_with(target, deaf)?;
        client.record = Some(record);
        Ok(client)
    }

    /// Connects, and gives what the server pushes or asks to `handler`, on the client's own thread.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_with<T, H>(self, target: T, handler: H) -> Result<Client<P>, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
        H: Handler<Protocol = P> + Send,
    {
        let target: Target = target.try_into()?;
        let reactor: Reactor<H> = self.into_reactor().build(handler)?;
        let worker = Worker::spawn("longhaul-client", reactor)?;
        let handle = worker.handle().clone();
        let conn = handle.dial_and_wait(target, None)?;
        Ok(Client { handle, conn, worker: Some(worker), record: None })
    }

    /// Starts to connect, and returns at once. Until the connection is up messages wait, and calls
    /// are refused.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the target is no address.
    pub fn start<T>(self, target: T) -> Result<Client<P>, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let (deaf, record) = self.deaf();
        let mut client = self.start_with(target, deaf)?;
        client.record = Some(record);
        Ok(client)
    }

    /// As [`start`](Self::start), with a handler.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with<T, H>(self, target: T, handler: H) -> Result<Client<P>, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
        H: Handler<Protocol = P> + Send,
    {
        let mut reactor: Reactor<H> = self.into_reactor().build(handler)?;
        let conn = reactor.connect(target)?;
        let worker = Worker::spawn("longhaul-client", reactor)?;
        Ok(Client { handle: worker.handle().clone(), conn, worker: Some(worker), record: None })
    }
}

/// What a client without a handler remembers of its connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record(Arc<Mutex<Remembered>>);

#[derive(Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) last_close: Option<CloseReason>,
    pub(crate) undelivered: u64,
    /// The oldest of them.
    bodies: Vec<Tagged<Bytes>>,
    /// Their length, each with the overhead of a frame.
    cost: usize,
    /// A body did not fit: what comes later is newer, and dropped, too.
    is_full: bool,
}

impl Record {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn note_undelivered(&mut self, count: u64, bodies: Vec<Tagged<Bytes>>, max_cost: usize) {
        self.undelivered += count;
        for body in bodies {
            let cost = self.cost + body.1.len() + FRAME_OVERHEAD;
            self.is_full |= cost > max_cost;
            if self.is_full {
                return;
            }
            self.cost = cost;
            self.bodies.push(body);
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Tagged<Bytes>> {
        (self.cost, self.is_full) = (0, false);
        std::mem::take(&mut self.bodies)
    }
}

/// Hears nothing of what the server pushes, and remembers what went wrong.
pub(crate) struct Deaf<P> {
    record: Record,
    /// The most that is kept of what was not delivered.
    offline_bytes: usize,
    protocol: PhantomData<P>,
}

impl<P> Deaf<P> {
    pub(crate) const fn new(record: Record, config: &Config) -> Self {
        Self { record, offline_bytes: config.offline_bytes, protocol: PhantomData }
    }
}

impl<P: Protocol> Handler for Deaf<P> {
    type Protocol = P;

    fn on_message(&mut self, _: &mut Conn<'_, P>, _: Message<'_, P>) {}

    fn on_disconnect(&mut self, conn: &mut Conn<'_, P>, report: &CloseReport) {
        let (unsent, max_cost) = (conn.take_unsent(), self.offline_bytes);
        let mut record = self.record.lock();
        record.last_close = Some(report.reason.clone());
        record.note_undelivered(report.unsent_messages, unsent, max_cost);
    }

    fn on_error(&mut self, cx: &mut Context<'_, P>, incident: &Incident) {
        log::debug!("{incident}");
        match incident {
            Incident::Undelivered { messages, .. } => {
                let (bodies, max_cost) = (cx.take_undelivered(), self.offline_bytes);
                self.record.lock().note_undelivered(*messages, bodies, max_cost);
            }
            Incident::DialFailed { error, .. } => {
                self.record.lock().last_close = Some(CloseReason::DialFailed(error.clone()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_connection_hold_whenever_the_reactor_is_set() {
        let config = Config::new().max_body(7);
        let reactor = || ReactorBuilder::new(Native).seed(1);
        let new = || ClientBuilder::new(Native);
        for builder in [
            new().config(config.clone()).reactor(reactor()),
            new().reactor(reactor()).config(config.clone()),
            new().reactor(reactor().config(config.clone())),
        ] {
            assert_eq!(builder.deaf().0.offline_bytes, config.offline_bytes);
            assert_eq!(builder.into_reactor().default_config(), &config);
        }
    }
}
