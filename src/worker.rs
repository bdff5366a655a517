//! A reactor on a thread of its own.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use crate::{DrainReport, Error, Handle, Handler, Reactor, protocol::Protocol};

/// Runs a reactor, and waits for its end when asked to.
pub(crate) struct Worker<P: Protocol> {
    handle: Handle<P>,
    state: Mutex<State>,
}

enum State {
    /// `None` while it is being joined.
    Running(Option<JoinHandle<Result<DrainReport, Error>>>),
    Ended(DrainReport),
}

impl<P: Protocol> Worker<P> {
    /// Starts the thread.
    pub(crate) fn spawn<H>(name: &str, mut reactor: Reactor<H>) -> Result<Self, Error>
    where
        H: Handler<Protocol = P> + Send,
    {
        let handle = reactor.handle();
        let run = move || reactor.run().map(|()| reactor.stop_report());
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { handle, state: Mutex::new(State::Running(Some(thread))) })
    }

    pub(crate) const fn handle(&self) -> &Handle<P> {
        &self.handle
    }

    /// Stops the reactor, and blocks until its thread has ended: what was cut. Repeated, it returns
    /// the same at once.
    pub(crate) fn stop(&self) -> Result<DrainReport, Error> {
        if self.handle.is_on_loop() {
            return Err(Error::OnLoopThread);
        }
        self.handle.stop();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let report = match &mut *state {
            State::Ended(report) => return Ok(*report),
            State::Running(thread) => match thread.take().map(JoinHandle::join) {
                // It failed, and that was told.
                None => DrainReport::default(),
                Some(Ok(result)) => result?,
                Some(Err(panic)) => std::panic::resume_unwind(panic),
            },
        };
        *state = State::Ended(report);
        Ok(report)
    }
}

/// Neither blocks nor fails: the thread ends by itself.
impl<P: Protocol> Drop for Worker<P> {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

impl<P: Protocol> fmt::Debug for Worker<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
