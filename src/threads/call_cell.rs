//! Where another thread waits for the end of a call: one allocation a call, shared by both sides.
//!
//! ```text
//!            reply, error, close, timeout             taken by the waiter
//! Waiting ─────────────────────────────────▶ Done ───────────────────────▶ Over
//!    └──────────────────────── dropped by the waiter ──────────────────────▶ Over
//! ```

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    bell::Bell,
    sync::{self, Mutex, lock},
};
use crate::{
    CallId,
    error::{CallError, panic_text},
};

/// How a call ended: the reply's tag and body, or why there is none.
pub(crate) type Outcome = Result<(u32, Bytes), CallError>;

/// The meeting point of a waiter and the loop.
#[derive(Debug)]
pub(crate) struct CallCell {
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Waiting { step: Step, sleeper: Sleeper },
    Done(Outcome),
    Over,
}

/// How far the loop has come with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Posted,
    /// The loop is about to queue it.
    TakenUp,
    /// Queued, under this id.
    Started(CallId),
}

impl Step {
    const fn call(self) -> Option<CallId> {
        match self {
            Self::Started(id) => Some(id),
            _ => None,
        }
    }
}

/// The waiter that is to be woken.
#[derive(Debug)]
enum Sleeper {
    Nobody,
    Thread(sync::Thread),
    Task(Waker),
    /// A thread that waits with others.
    Bell(Arc<Bell>),
}

impl CallCell {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State::Waiting { step: Step::Posted, sleeper: Sleeper::Nobody }) }
    }

    // ---- the loop's side ----

    /// The call is queued under this id. False if nobody waits any more.
    pub(crate) fn started(&self, id: CallId) -> bool {
        match &mut *lock(&self.state) {
            State::Waiting { step, .. } => {
                *step = Step::Started(id);
                true
            }
            _ => false,
        }
    }

    /// The loop is about to queue the call. False if nobody waits any more.
    pub(crate) fn take_up(&self) -> bool {
        match &mut *lock(&self.state) {
            State::Waiting { step, .. } => {
                *step = Step::TakenUp;
                true
            }
            _ => false,
        }
    }

    /// The call has ended. Only the first end counts.
    pub(crate) fn end(&self, outcome: Outcome) {
        let before = {
            let mut state = lock(&self.state);
            match &*state {
                State::Waiting { .. } => std::mem::replace(&mut *state, State::Done(outcome)),
                _ => return,
            }
        };
        if let State::Waiting { sleeper, .. } = before {
            match sleeper {
                Sleeper::Nobody => {}
                Sleeper::Thread(thread) => thread.unpark(),
                Sleeper::Task(waker) => wake(waker),
                Sleeper::Bell(bell) => bell.mark(),
            }
        }
    }

    // ---- the waiter's side ----

    /// Blocks the thread until the call has ended.
    pub(crate) fn wait(&self) -> Outcome {
        loop {
            let mut state = lock(&self.state);
            let before = match &mut *state {
                State::Waiting { sleeper: Sleeper::Thread(_), .. } => None,
                // Perhaps the task that polled it before, or the bell that was rung in vain.
                State::Waiting { sleeper, .. } => {
                    Some(std::mem::replace(sleeper, Sleeper::Thread(sync::current())))
                }
                _ => return take(&mut state),
            };
            drop(state);
            drop(before);
            sync::park();
        }
    }

    /// The end, if it is there; else the bell is rung when it is.
    pub(crate) fn listen(&self, bell: &Arc<Bell>) -> Option<Outcome> {
        let mut state = lock(&self.state);
        let before = match &mut *state {
            State::Waiting { sleeper, .. } => {
                std::mem::replace(sleeper, Sleeper::Bell(bell.clone()))
            }
            _ => return Some(take(&mut state)),
        };
        drop(state);
        drop(before);
        None
    }

    /// Whether a thread waits for the end at a bell.
    #[cfg(all(test, not(model)))]
    pub(crate) fn is_listened_for(&self) -> bool {
        matches!(&*lock(&self.state), State::Waiting { sleeper: Sleeper::Bell(_), .. })
    }

    /// The end, if it is there; else the task is roused when it is.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Outcome> {
        // A waker may run anything when it is cloned or dropped, so not under the lock.
        let task = Sleeper::Task(context.waker().clone());
        let mut state = lock(&self.state);
        let before = match &mut *state {
            State::Waiting { sleeper, .. } => std::mem::replace(sleeper, task),
            _ => return Poll::Ready(take(&mut state)),
        };
        drop(state);
        drop(before);
        Poll::Pending
    }

    /// The id of the call, once the loop has queued it and until it ends.
    pub(crate) fn call(&self) -> Option<CallId> {
        match &*lock(&self.state) {
            State::Waiting { step, .. } => step.call(),
            _ => None,
        }
    }

    /// Nobody waits any more, unless the loop has taken the call up. Whether that is so: then no byte of
    /// it will be sent.
    pub(crate) fn withdraw(&self) -> bool {
        let mut state = lock(&self.state);
        let before = match &*state {
            State::Waiting { step: Step::Posted, .. } => {
                std::mem::replace(&mut *state, State::Over)
            }
            _ => return false,
        };
        drop(state);
        drop(before);
        true
    }

    /// Nobody waits any more. The id under which the loop has the call, if it is in flight.
    pub(crate) fn abandon(&self) -> Option<CallId> {
        // Its waker is dropped after the lock is released.
        let before = std::mem::replace(&mut *lock(&self.state), State::Over);
        match before {
            State::Waiting { step, .. } => step.call(),
            _ => None,
        }
    }
}

/// Wakes a task. What a waker runs is the application's, so a panic in it costs its own call, whose
/// task is not woken, and not the loop.
fn wake(waker: Waker) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        log::error!("the waker of a call panicked: {}", panic_text(&*panic));
    }
}

fn take(state: &mut State) -> Outcome {
    match std::mem::replace(state, State::Over) {
        State::Done(outcome) => outcome,
        _ => panic!("the end of a call was taken twice"),
    }
}

#[cfg(all(test, model))]
mod models;
