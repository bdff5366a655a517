//! The public face: what the application implements, what its callbacks may do, and what other threads
//! use.
//!
//! This is the one circle of imports in the crate, and it is wanted: a handler is given a context, a
//! context gives handles, a handle posts closures that are given a context again. So the files of this
//! circle lie in one folder.

pub(crate) mod ask;
pub(crate) mod call_refused;
pub(crate) mod command;
pub(crate) mod conn;
pub(crate) mod context;
pub(crate) mod handle;
pub(crate) mod handler;
pub(crate) mod pending_call;
pub(crate) mod responder;
pub(crate) mod shared;
pub(crate) mod waiter;
