//! A closure that is put to the loop, and its answer.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use super::{
    command::{Closure, Command},
    shared::PATIENCE,
};
use crate::{Context, Error, Handle, Handler, SendError, error::panic_text, protocol::Protocol};

impl<P: Protocol> Handle<P> {
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
    pub(super) fn put<T: Send + 'static>(
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
}

/// Where a thread waits for the answer of a closure.
struct Question<T> {
    answer: Mutex<Option<Told<T>>>,
    told: Condvar,
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
pub(super) struct Asker<T>(Option<Arc<Question<T>>>);

impl<T> Asker<T> {
    pub(super) fn answer(self, value: T) {
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

/// What became of a closure.
enum Told<T> {
    Value(T),
    Panicked(String),
    /// It was not run.
    Nothing,
}
