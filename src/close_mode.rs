//! The ways to end a connection.

use crate::error::CloseReason;

/// How the application ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseMode {
    Drain,
    Close,
    Abort,
}

impl CloseMode {
    /// Why the connection ends, where the application has said no more.
    pub(crate) const fn reason(self) -> CloseReason {
        match self {
            Self::Drain | Self::Close => CloseReason::Closed,
            Self::Abort => CloseReason::Aborted,
        }
    }
}
