//! The codes of a [`CallError::Remote`](super::CallError::Remote) that `native` gives a meaning. 256 and above are the
//! application's.

/// The handler failed the request and says why.
pub const FAILED: u32 = 1;
/// Too many requests are in flight; this one was not handled.
pub const BUSY: u32 = 2;
/// The handler gave no answer.
pub const UNANSWERED: u32 = 3;
/// The handler panicked.
pub const PANICKED: u32 = 4;
/// No new requests are taken; this one was not handled.
pub const DRAINING: u32 = 5;
/// The request's time was over before the handler saw it.
pub const EXPIRED: u32 = 6;
