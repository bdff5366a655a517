//! A call of another thread, as a future.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;

use super::{
    command::Command,
    shared::{PATIENCE, Shared, Unheard},
};
use crate::{
    CallError, CallId, ConnId, error::Fate, protocol::Protocol, threads::call_cell::CallCell,
};

/// A call under way, as a future. Dropping it cancels the call.
#[must_use = "dropping it cancels the call"]
pub struct PendingCall<P: Protocol> {
    pub(super) shared: Arc<Shared<P>>,
    pub(super) conn: ConnId,
    /// The call, or why it was not started.
    pub(super) state: Result<Arc<CallCell>, Option<CallError>>,
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
    /// As [`Handle::call`](crate::Handle::call).
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
