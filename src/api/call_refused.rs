//! A call that was not started.

use std::{error, fmt};

use super::waiter::Callback;
use crate::{CallError, Conn, Handler, protocol::Protocol};

/// A call with a callback was refused: why, and the callback.
///
/// [`error`](Self::error) lends the reason, and [`into`](Into::into) a [`CallError`] keeps nothing else. The
/// callback is dropped then, and a [`Responder`](crate::Responder) that was moved into it answers as
/// unanswered.
pub struct CallRefused<P: Protocol> {
    error: CallError,
    callback: Callback<P>,
}

impl<P: Protocol> CallRefused<P> {
    pub(crate) const fn new(error: CallError, callback: Callback<P>) -> Self {
        Self { error, callback }
    }

    /// Why not.
    pub const fn error(&self) -> &CallError {
        &self.error
    }

    /// Runs the callback with the error, here and now, as if the call had started and ended so.
    ///
    /// # Panics
    ///
    /// If `H` is not the type of the handler that the callback names.
    pub fn run<H: Handler<Protocol = P>>(self, handler: &mut H, conn: &mut Conn<'_, P>) {
        (self.callback)(handler, conn, Err(self.error));
    }
}

/// Drops the callback.
impl<P: Protocol> From<CallRefused<P>> for CallError {
    fn from(refused: CallRefused<P>) -> Self {
        refused.error
    }
}

impl<P: Protocol> error::Error for CallRefused<P> {}

impl<P: Protocol> fmt::Display for CallRefused<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<P: Protocol> fmt::Debug for CallRefused<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallRefused").field("error", &self.error).finish_non_exhaustive()
    }
}
