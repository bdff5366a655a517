//! A reactor on a thread of its own.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use crate::{DrainReport, Error, Handle, Handler, Reactor, error::panic_text, protocol::Protocol};

/// Runs a reactor, and waits for its end when asked to.
pub(crate) struct Worker<P: Protocol> {
    handle: Handle<P>,
    /// `None` only while the thread is being joined, under the lock.
    state: Mutex<Option<State>>,
}

enum State {
    Running(JoinHandle<Result<DrainReport, Error>>),
    Ended(Result<DrainReport, Error>),
}

impl<P: Protocol> Worker<P> {
    /// Starts the thread.
    pub(crate) fn spawn<H>(name: &str, mut reactor: Reactor<H>) -> Result<Self, Error>
    where
        H: Handler<Protocol = P> + Send,
    {
        let handle = reactor.handle();
        // A blocking method needs not wonder whether the thread that is just starting will run it.
        handle.expect_run();
        let run = move || reactor.run().map(|()| reactor.stop_report());
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { handle, state: Mutex::new(Some(State::Running(thread))) })
    }

    pub(crate) const fn handle(&self) -> &Handle<P> {
        &self.handle
    }

    /// Stops the reactor, and blocks until its thread has ended: what was cut, or why the loop failed,
    /// a panic included. Repeated, it returns the same at once.
    pub(crate) fn stop(&self) -> Result<DrainReport, Error> {
        if self.handle.is_on_loop() {
            return Err(Error::OnLoopThread);
        }
        self.handle.stop();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match state.take() {
            Some(State::Ended(result)) => result,
            Some(State::Running(thread)) => match thread.join() {
                Ok(result) => result,
                Err(panic) => Err(Error::Panicked(panic_text(&*panic))),
            },
            None => Ok(DrainReport::default()),
        };
        let answer = match &result {
            Ok(report) => Ok(*report),
            Err(error) => Err(error.again()),
        };
        *state = Some(State::Ended(result));
        answer
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

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;
    use crate::{Conn, Message, protocol::Native};

    struct Deaf;

    impl Handler for Deaf {
        type Protocol = Native;

        fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
    }

    fn worker(end: fn() -> Result<DrainReport, Error>) -> Worker<Native> {
        let handle = Reactor::new(Deaf).expect("a poll").handle();
        Worker { handle, state: Mutex::new(Some(State::Running(thread::spawn(end)))) }
    }

    #[test]
    fn stop_says_the_same_each_time() {
        let report = DrainReport { connections: 3, ..DrainReport::default() };
        let good = worker(|| Ok(DrainReport { connections: 3, ..DrainReport::default() }));
        let failed = worker(|| Err(std::io::Error::from_raw_os_error(9).into()));
        let panicked = worker(|| panic!("the loop is broken"));
        for _ in 0..2 {
            assert_eq!(good.stop().unwrap(), report);
            assert!(matches!(failed.stop(), Err(Error::Io(why)) if why.raw_os_error() == Some(9)));
            let end = panicked.stop();
            assert!(matches!(end, Err(Error::Panicked(text)) if text == "the loop is broken"));
        }
    }
}
