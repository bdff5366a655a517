//! A reactor on a thread of its own.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use crate::{Error, Handle, Handler, Reactor, protocol::Protocol};

/// Runs a reactor, and waits for its end when asked to.
pub(crate) struct Worker<P: Protocol> {
    handle: Handle<P>,
    thread: Mutex<Option<JoinHandle<Result<(), Error>>>>,
}

impl<P: Protocol> Worker<P> {
    /// Starts the thread.
    pub(crate) fn spawn<H>(name: &str, mut reactor: Reactor<H>) -> Result<Self, Error>
    where
        H: Handler<Protocol = P> + Send,
    {
        let handle = reactor.handle();
        let thread = thread::Builder::new().name(name.into()).spawn(move || reactor.run())?;
        Ok(Self { handle, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) const fn handle(&self) -> &Handle<P> {
        &self.handle
    }

    /// Stops the reactor, and blocks until its thread has ended. Repeated, it returns at once.
    pub(crate) fn stop(&self) -> Result<(), Error> {
        if self.handle.is_on_loop() {
            return Err(Error::OnLoopThread);
        }
        self.handle.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
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
