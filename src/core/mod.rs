//! Decisions only: bytes and the time in, frames and verdicts out.
//!
//! Nothing here can reach a socket, the clock, a thread or a lock; `now` is an argument, always
//! the last. So every rule in here is tested without a network.

pub(crate) mod backoff;
pub(crate) mod calls;
pub(crate) mod connection;
pub(crate) mod farewell;
pub(crate) mod frame_clock;
pub(crate) mod greeting;
pub(crate) mod heartbeat;
pub(crate) mod intake;
pub(crate) mod layered;
pub(crate) mod offline;
pub(crate) mod read_buffer;
pub(crate) mod requests;
pub(crate) mod rng;
pub(crate) mod spares;
pub(crate) mod spin;
pub(crate) mod timer_wheel;
pub(crate) mod write_queue;
