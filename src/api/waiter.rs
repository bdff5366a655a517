//! Who waits for the end of a call.

use std::{any::Any, sync::Arc};

use super::handler::Reply;
use crate::{
    Conn,
    error::{CallError, CloseReason, Fate},
    protocol::Protocol,
    table::{ended_call::AwaitsEnd, state::State},
    threads::call_cell::{CallCell, Outcome},
};

/// All that the loop decides on, where threads and callbacks wait for the ends of calls.
pub(crate) type LoopState<P> = State<P, Waiter<P>>;

/// What a callback of a call is: given the handler, the connection and how the call ended.
pub(crate) type Callback<P> =
    Box<dyn FnOnce(&mut dyn Any, &mut Conn<'_, P>, Result<Reply<'_>, CallError>) + Send>;

/// Who waits for the end of a call.
pub(crate) enum Waiter<P: Protocol> {
    /// Another thread, or a future.
    Caller(Caller),
    /// The loop itself.
    Callback(Callback<P>),
}

/// Another thread, or a future, that waits for the end of a call. It hears of an end whatever happens: a
/// call that is lost because something of the application's panicked ends with that.
pub(crate) struct Caller(Option<Arc<CallCell>>);

impl Caller {
    pub(crate) const fn new(cell: Arc<CallCell>) -> Self {
        Self(Some(cell))
    }

    /// The call has ended.
    pub(crate) fn end(mut self, outcome: Outcome) {
        if let Some(cell) = self.0.take() {
            cell.end(outcome);
        }
    }
}

impl<P: Protocol> AwaitsEnd for Waiter<P> {
    fn end(self, error: CallError) -> Option<(Self, CallError)> {
        match self {
            Self::Caller(caller) => {
                caller.end(Err(error));
                None
            }
            Self::Callback(_) => Some((self, error)),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(cell) = self.0.take() {
            let reason = CloseReason::Aborted;
            cell.end(Err(CallError::Disconnected { reason, fate: Fate::MaybeSent }));
        }
    }
}
