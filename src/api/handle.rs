//! The remote control of a reactor, for every thread but its own.

use std::{
    any::{Any, TypeId},
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::command::{Closure, Command};
use crate::{
    Addr, Audience, Body, CallError, CallId, CloseReason, Config, ConnId, Context, Error, Handler,
    ListenerId, SendError, Stats, Target,
    close_mode::CloseMode,
    core::write_queue::FRAME_OVERHEAD,
    error::{Fate, named, panic_text},
    protocol::{Native, Protocol},
    stats::SharedStats,
    threads::{
        bell::Bell,
        board::Board,
        call_cell::{CallCell, Outcome},
        gate::Gate,
        mailbox::{Mailbox, Post, Refused, Wake},
        number::ReactorNumber,
        sync::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// What the loop and its handles share.
pub(crate) struct Shared<P: Protocol> {
    pub(crate) mailbox: Mailbox<Command<P>>,
    pub(crate) board: Arc<Board>,
    pub(crate) stats: SharedStats,
    /// Threads that are blocked until a call has ended.
    blocked: AtomicUsize,
    /// Where they wait.
    pub(crate) bell: Arc<Bell>,
    /// Where threads wait for what a turn may bring.
    pub(crate) gate: Gate,
    /// The number of the thread that ran the last turn, or runs this one.
    runner: AtomicU64,
    /// The stop that is posted and was not taken.
    stop: Mutex<Option<StopAsk>>,
    /// The type of the handler, for callbacks that name it.
    pub(crate) handler_type: TypeId,
}

/// How long a stop may take, as the handles asked since the loop last looked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StopAsk {
    /// Asked for the reactor's own stop timeout.
    is_default: bool,
    /// The shortest time that was named.
    within: Option<Duration>,
}

impl StopAsk {
    /// The strictest of what was asked.
    pub(crate) fn timeout(self, default: Duration) -> Duration {
        let default = self.is_default.then_some(default);
        default.into_iter().chain(self.within).min().unwrap_or_default()
    }
}

/// What a post costs beside its body, as charged to the mailbox and to the connection.
pub(crate) const POST_OVERHEAD: usize = FRAME_OVERHEAD;

/// How long a blocking method waits for a reactor that no thread has run yet.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });

/// In the place of a thread's number: no thread has run the reactor yet.
const NOBODY: u64 = 0;
/// No thread has yet, but one is about to.
const SOON: u64 = u64::MAX;

/// A number for this thread, which no other thread of the process has, or had.
fn this_thread() -> u64 {
    static LAST: Mutex<u64> = Mutex::new(NOBODY);
    thread_local! {
        static NUMBER: u64 = {
            let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            *last += 1;
            *last
        };
    }
    // A thread that ends runs no reactor any more.
    NUMBER.try_with(|number| *number).unwrap_or(SOON - 1)
}

/// Why a method may not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unheard {
    OnLoopThread,
    NotRunning,
    Stopped,
}

impl From<Unheard> for Error {
    fn from(why: Unheard) -> Self {
        match why {
            Unheard::OnLoopThread => Self::OnLoopThread,
            Unheard::NotRunning => Self::NotRunning,
            Unheard::Stopped => Self::Stopped,
        }
    }
}

impl From<Unheard> for CallError {
    fn from(why: Unheard) -> Self {
        match why {
            Unheard::OnLoopThread => Self::OnLoopThread,
            Unheard::NotRunning => Self::NotRunning,
            Unheard::Stopped => Self::Stopped { fate: Fate::NotSent },
        }
    }
}

impl<P: Protocol> Shared<P> {
    pub(crate) fn new(
        number: ReactorNumber,
        waker: Arc<dyn Wake>,
        max_commands: usize,
        max_bytes: usize,
        handler_type: TypeId,
    ) -> Self {
        Self {
            handler_type,
            mailbox: Mailbox::new(waker, max_commands, max_bytes),
            board: Arc::new(Board::new(number)),
            stats: SharedStats::default(),
            blocked: AtomicUsize::new(0),
            bell: Arc::new(Bell::new()),
            gate: Gate::new(),
            runner: AtomicU64::new(NOBODY),
            stop: Mutex::new(None),
        }
    }

    /// This thread runs the reactor from now on, if only for one turn.
    pub(crate) fn begin_run(&self) {
        let thread = this_thread();
        if self.runner.load(Ordering::Relaxed) != thread {
            self.runner.store(thread, Ordering::Relaxed);
            self.gate.open();
        }
    }

    /// Takes no more commands, and gives back those that wait.
    pub(crate) fn close(&self) -> VecDeque<Post<Command<P>>> {
        let posts = self.mailbox.close();
        self.gate.open();
        posts
    }

    /// Whether this thread runs the reactor, or ran its last turn.
    pub(crate) fn is_on_loop(&self) -> bool {
        self.runner.load(Ordering::Relaxed) == this_thread()
    }

    /// Whether this thread may block until the loop does something. Waits for a reactor that nobody runs
    /// yet, for up to `patience`.
    fn may_block(&self, patience: Duration) -> Result<(), Unheard> {
        let heard = || match self.runner.load(Ordering::Relaxed) {
            NOBODY if self.mailbox.is_closed() => Some(Err(Unheard::Stopped)),
            NOBODY => None,
            runner if runner != this_thread() => Some(Ok(())),
            _ if self.mailbox.is_closed() => Some(Err(Unheard::Stopped)),
            _ => Some(Err(Unheard::OnLoopThread)),
        };
        heard().or_else(|| self.gate.wait(patience, heard)).unwrap_or(Err(Unheard::NotRunning))
    }

    /// Blocks the thread until the call has ended.
    fn wait(&self, cell: &CallCell) -> Outcome {
        self.blocked.fetch_add(1, Ordering::Relaxed);
        let outcome = self.bell.wait(|| cell.listen(&self.bell)).unwrap_or_else(|| cell.wait());
        self.blocked.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    /// Whether threads are blocked in calls.
    pub(crate) fn has_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn post(&self, command: Command<P>, bytes: usize) -> Result<(), SendError> {
        self.post_with(|| command, bytes)
    }

    /// As [`post`](Self::post); the command is made only if it is taken.
    pub(crate) fn post_with(
        &self,
        command: impl FnOnce() -> Command<P>,
        bytes: usize,
    ) -> Result<(), SendError> {
        self.mailbox.post_with(command, bytes).map_err(|refused| match refused {
            Refused::Full => SendError::MailboxFull,
            Refused::Closed => SendError::Stopped,
        })
    }

    /// Reserves room for a post on a connection; see [`Board::reserve`].
    fn reserve(&self, conn: ConnId, len: usize, cost: usize) -> Result<(), SendError> {
        self.board.reserve(conn, len, cost).map_err(|error| self.or_stopped(error))
    }

    /// Reserves room for an answer; see [`Board::reserve_answer`].
    pub(crate) fn reserve_answer(
        &self,
        conn: ConnId,
        len: usize,
        cost: usize,
    ) -> Result<(), SendError> {
        self.board.reserve_answer(conn, len, cost).map_err(|error| self.or_stopped(error))
    }

    /// A reactor that has stopped has closed its connections, and that is the reason.
    fn or_stopped(&self, error: SendError) -> SendError {
        if self.mailbox.is_closed() { SendError::Stopped } else { error }
    }

    /// Gives back what was reserved for a post that was refused.
    pub(crate) fn release(&self, conn: ConnId, cost: usize) {
        self.board.release(conn.slot(), cost);
        // Another thread may have found no room because of it, and no turn would tell that one.
        self.gate.open();
    }

    /// Refuses an id that the loop would find nothing for.
    fn find(&self, conn: ConnId) -> Result<(), SendError> {
        match self.board.knows(conn) {
            true => Ok(()),
            false if self.mailbox.is_closed() => Err(SendError::Stopped),
            false => Err(SendError::Closed),
        }
    }

    /// Asks for a stop, within the reactor's own stop timeout or a given one. One post at a time says
    /// so, and carries the strictest of what was asked until the loop takes it.
    fn ask_stop(&self, within: Option<Duration>) {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        let is_posted = stop.is_some();
        let ask = stop.get_or_insert_default();
        ask.is_default |= within.is_none();
        ask.within = ask.within.into_iter().chain(within).min();
        if !is_posted {
            let _ = self.post_control(Command::Stop);
        }
    }

    /// The loop takes what was asked.
    pub(crate) fn take_stop(&self) -> Option<StopAsk> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Posts what ends something, and so must get through although the mailbox is full. There is a
    /// bound all the same: such a post is for something that exists, and is made a given number of times
    /// for it. Three for the end of a connection (one for each mode), one to cancel a call, one for each
    /// deferred request, one to stop.
    pub(crate) fn post_control(&self, command: Command<P>) -> Result<(), SendError> {
        self.mailbox.post_control(command).map_err(|_| SendError::Stopped)
    }
}

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
    shared: Arc<Shared<P>>,
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
            let (protocol, config) = cx.defaults();
            cx.listen_first(&addrs, &protocol, &config)
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
            let (protocol, config) = cx.defaults();
            cx.connect_target(target, &protocol, &config)
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
            let (protocol, config) = own.unwrap_or_else(|| cx.defaults());
            match cx.connect_target(target, &protocol, &config) {
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

    /// Runs a closure on the loop, some time later.
    ///
    /// # Errors
    ///
    /// The mailbox is full, or the reactor has stopped.
    pub fn run(
        &self,
        closure: impl FnOnce(&mut Context<'_, P>) + Send + 'static,
    ) -> Result<(), SendError> {
        self.post_run(Box::new(move |_: &mut dyn Any, cx: &mut Context<'_, P>| closure(cx)))
    }

    /// Runs a closure with the handler on the loop, some time later. One that names another type of
    /// handler than the reactor's is dropped, with an error in the log.
    ///
    /// # Errors
    ///
    /// The mailbox is full, or the reactor has stopped.
    pub fn run_with<H: Handler<Protocol = P>>(
        &self,
        closure: impl FnOnce(&mut H, &mut Context<'_, P>) + Send + 'static,
    ) -> Result<(), SendError> {
        self.post_run(Box::new(move |handler: &mut dyn Any, cx: &mut Context<'_, P>| match handler
            .downcast_mut::<H>()
        {
            Some(handler) => closure(handler, cx),
            None => log::error!("run_with names a handler that is not the reactor's"),
        }))
    }

    fn post_run(&self, closure: Closure<P>) -> Result<(), SendError> {
        self.shared.post(Command::Run(closure), 0)
    }

    /// Runs a closure on the loop, and blocks until it has returned.
    ///
    /// # Errors
    ///
    /// [`Panicked`](Error::Panicked): the closure did; the reactor goes on. [`Stopped`](Error::Stopped)
    /// and [`Full`](Error::Full): the closure was not run, as the reactor has stopped, or its mailbox is
    /// full. [`OnLoopThread`](Error::OnLoopThread): this thread would wait for itself.
    /// [`NotRunning`](Error::NotRunning): no thread has begun to run the reactor within 5 s, and the
    /// closure is not run.
    pub fn ask<T: Send + 'static>(
        &self,
        closure: impl FnOnce(&mut Context<'_, P>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.put(move |cx, asker| match catch_unwind(AssertUnwindSafe(|| closure(cx))) {
            Ok(value) => asker.answer(value),
            Err(panic) => {
                asker.tell(Told::Panicked(panic_text(&*panic)));
                // The loop counts it, as it does every panic of a callback.
                resume_unwind(panic);
            }
        })
    }

    /// Puts a question to the loop, and blocks until it is answered, now or later.
    fn put<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Context<'_, P>, Asker<T>) + Send + 'static,
    ) -> Result<T, Error> {
        self.shared.may_block(PATIENCE)?;
        let answer = Arc::new(Question { answer: Mutex::new(None), told: Condvar::new() });
        // Answers with nothing if it is dropped: the closure was never run.
        let asker = Asker(Some(answer.clone()));
        let closure = move |_: &mut dyn Any, cx: &mut Context<'_, P>| question(cx, asker);
        self.post_run(Box::new(closure)).map_err(|error| match error {
            SendError::MailboxFull => Error::Full,
            _ => Error::Stopped,
        })?;
        match answer.wait() {
            Told::Value(value) => Ok(value),
            Told::Panicked(text) => Err(Error::Panicked(text)),
            Told::Nothing => Err(Error::Stopped),
        }
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

/// A call under way, as a future. Dropping it cancels the call.
#[must_use = "dropping it cancels the call"]
pub struct PendingCall<P: Protocol> {
    shared: Arc<Shared<P>>,
    conn: ConnId,
    /// The call, or why it was not started.
    state: Result<Arc<CallCell>, Option<CallError>>,
}

impl<P: Protocol> PendingCall<P> {
    /// The id of the call, once the loop has queued its request and until it ends.
    pub fn id(&self) -> Option<CallId> {
        self.state.as_ref().ok()?.call()
    }

    /// Blocks this thread until the call has ended.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub fn wait(mut self) -> Result<Bytes, CallError> {
        if let Ok(cell) = &self.state
            && let Err(why) = self.shared.may_block(PATIENCE)
        {
            match why {
                // It was posted already, and ends with the reactor.
                Unheard::Stopped => {}
                // The loop has just taken it.
                Unheard::NotRunning if !cell.withdraw() => {}
                _ => return Err(why.into()),
            }
        }
        match std::mem::replace(&mut self.state, Err(None)) {
            Ok(cell) => self.shared.wait(&cell).map(|(_, body)| body),
            Err(error) => Err(error.unwrap_or(CallError::Cancelled { fate: Fate::NotSent })),
        }
    }
}

impl<P: Protocol> Future for PendingCall<P> {
    type Output = Result<Bytes, CallError>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.state {
            Ok(cell) => match cell.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(outcome) => outcome.map(|(_, body)| body),
            },
            Err(error) => Err(error.take().expect("a future is not polled after it was ready")),
        };
        self.state = Err(None);
        Poll::Ready(outcome)
    }
}

impl<P: Protocol> Drop for PendingCall<P> {
    fn drop(&mut self) {
        if let Ok(cell) = &self.state
            && let Some(call) = cell.abandon()
        {
            let conn = self.conn;
            let _ = self.shared.post_control(Command::CancelCall { conn, call });
        }
    }
}

impl<P: Protocol> fmt::Debug for PendingCall<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingCall")
            .field("conn", &self.conn)
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

/// Where a thread waits for the answer of a closure.
struct Question<T> {
    answer: Mutex<Option<Told<T>>>,
    told: Condvar,
}

/// What became of a closure.
enum Told<T> {
    Value(T),
    Panicked(String),
    /// It was not run.
    Nothing,
}

impl<T> Question<T> {
    fn wait(&self) -> Told<T> {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match answer.take() {
                Some(answer) => return answer,
                None => answer = self.told.wait(answer).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The side of a question that answers it, at the latest when it is dropped. The first answer counts.
struct Asker<T>(Option<Arc<Question<T>>>);

impl<T> Asker<T> {
    fn answer(self, value: T) {
        self.tell(Told::Value(value));
    }

    fn tell(mut self, answer: Told<T>) {
        self.tell_once(answer);
    }

    fn tell_once(&mut self, answer: Told<T>) {
        if let Some(question) = self.0.take() {
            *question.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
            question.told.notify_one();
        }
    }
}

impl<T> Drop for Asker<T> {
    fn drop(&mut self) {
        self.tell_once(Told::Nothing);
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use std::{sync::mpsc::channel, thread};

    use super::*;
    use crate::{Conn, Message, Reactor};

    struct Deaf;

    impl Handler for Deaf {
        type Protocol = Native;

        fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
    }

    const LONG: Duration = Duration::from_secs(600);

    fn connect(reactor: &mut Reactor<Deaf>) -> ConnId {
        let (_, addr) = reactor.listen("127.0.0.1:0").expect("a port is free");
        reactor.connect(addr).expect("an address")
    }

    #[test]
    fn blocking_method_on_a_reactor_that_nobody_runs_fails_and_leaves_nothing() {
        let mut reactor = Reactor::new(Deaf).unwrap();
        let conn = connect(&mut reactor);
        let handle = reactor.handle();
        assert!(matches!(handle.ask(|_| ()), Err(Error::NotRunning)));
        let listening = handle.listen("127.0.0.1:0");
        assert!(matches!(listening, Err(Error::NotRunning)));
        let refused = handle.call(conn, "now", Duration::from_millis(1)).unwrap_err();
        assert_eq!((&refused, refused.fate()), (&CallError::NotRunning, Fate::NotSent));
        assert_eq!(handle.shared.mailbox.waiting(), 0);
        // One that was posted before is withdrawn.
        let call = handle.call_async(conn, "later", LONG);
        assert_eq!(call.wait(), Err(CallError::NotRunning));
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(reactor.stats().calls_in_flight, 0);
        assert_eq!(handle.shared.board.used(conn.slot()), 0);
    }

    #[test]
    fn blocking_method_waits_for_a_thread_that_begins_to_run_the_reactor() {
        let mut reactor = Reactor::new(Deaf).unwrap();
        let handle = reactor.handle();
        handle.expect_run();
        let (begin, started) = channel();
        let asking = thread::spawn({
            let handle = handle.clone();
            move || {
                begin.send(()).unwrap();
                handle.ask(|_| 7)
            }
        });
        started.recv().unwrap();
        let running = thread::spawn(move || reactor.run());
        assert_eq!(asking.join().unwrap().unwrap(), 7);
        handle.stop();
        running.join().unwrap().unwrap();
        assert!(matches!(handle.ask(|_| ()), Err(Error::Stopped)));
    }

    #[test]
    fn reactor_that_is_dropped_before_it_ran_has_stopped() {
        let handle = Reactor::new(Deaf).unwrap().handle();
        assert!(matches!(handle.ask(|_| ()), Err(Error::Stopped)));
    }

    #[test]
    fn thread_that_ran_the_last_turn_may_not_block() {
        let mut reactor = Reactor::new(Deaf).unwrap();
        let conn = connect(&mut reactor);
        let handle = reactor.handle();
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert!(matches!(handle.ask(|_| ()), Err(Error::OnLoopThread)));
        assert_eq!(handle.call(conn, "", LONG), Err(CallError::OnLoopThread));
        assert_eq!(handle.call_async(conn, "", LONG).wait(), Err(CallError::OnLoopThread));
        let moved = thread::spawn(move || {
            reactor.turn(Some(Duration::ZERO)).unwrap();
            reactor.run()
        });
        // From its first turn there on.
        while matches!(handle.ask(|_| ()), Err(Error::OnLoopThread)) {
            thread::yield_now();
        }
        assert_eq!(handle.ask(|_| 7).unwrap(), 7);
        handle.stop();
        moved.join().unwrap().unwrap();
    }

    #[test]
    fn turn_of_another_reactor_does_not_hide_whose_thread_it_is() {
        let (mut outer, mut inner) = (Reactor::new(Deaf).unwrap(), Reactor::new(Deaf).unwrap());
        let (handle, of_inner) = (outer.handle(), inner.handle());
        let (tell, told) = channel();
        let asking = handle.clone();
        of_inner.run(move |_| tell.send(asking.ask(|_| ())).unwrap()).unwrap();
        handle.run(move |_| _ = inner.turn(Some(Duration::ZERO)).unwrap()).unwrap();
        outer.turn(Some(Duration::ZERO)).unwrap();
        assert!(matches!(told.recv().unwrap(), Err(Error::OnLoopThread)));
    }

    #[test]
    fn closure_that_panics_tells_its_asker_so() {
        let mut reactor = Reactor::new(Deaf).unwrap();
        let handle = reactor.handle();
        let running = thread::spawn(move || reactor.run());
        let asked = handle.ask(|_| -> u8 { panic!("no answer to {}", 42) });
        assert!(matches!(asked, Err(Error::Panicked(text)) if text == "no answer to 42"));
        assert_eq!(handle.ask(|cx| cx.stats().panics).unwrap(), 1);
        handle.stop();
        running.join().unwrap().unwrap();
    }
}
