//! What the loop and its handles share.

use std::{
    any::TypeId,
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::command::Command;
use crate::{
    CallError, ConnId, Error, SendError,
    core::write_queue::FRAME_OVERHEAD,
    error::Fate,
    protocol::Protocol,
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
    pub(super) runner: AtomicU64,
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
pub(super) const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });

/// In the place of a thread's number: no thread has run the reactor yet.
const NOBODY: u64 = 0;

/// No thread has yet, but one is about to.
pub(super) const SOON: u64 = u64::MAX;

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
    pub(super) fn may_block(&self, patience: Duration) -> Result<(), Unheard> {
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
    pub(super) fn wait(&self, cell: &CallCell) -> Outcome {
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
    pub(super) fn reserve(&self, conn: ConnId, len: usize, cost: usize) -> Result<(), SendError> {
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
    pub(super) fn find(&self, conn: ConnId) -> Result<(), SendError> {
        match self.board.knows(conn) {
            true => Ok(()),
            false if self.mailbox.is_closed() => Err(SendError::Stopped),
            false => Err(SendError::Closed),
        }
    }

    /// Asks for a stop, within the reactor's own stop timeout or a given one. One post at a time says
    /// so, and carries the strictest of what was asked until the loop takes it.
    pub(super) fn ask_stop(&self, within: Option<Duration>) {
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
