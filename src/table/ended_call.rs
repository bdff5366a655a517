//! Calls that end without a reply.

use crate::{ConnId, error::CallError};

/// A waiter for the end of a call.
pub(crate) trait AwaitsEnd: Sized {
    /// The call has ended without a reply. A waiter on another thread hears of it here and now. One that is to
    /// be told with the handler at hand is given back, and the loop does that when it is.
    fn end(self, error: CallError) -> Option<(Self, CallError)>;
}

/// A call that ended while whoever waits for it could not be told.
pub(crate) struct EndedCall<W> {
    pub(crate) conn: ConnId,
    pub(crate) waiter: W,
    pub(crate) error: CallError,
}
