//! All that the loop decides, for all connections together, without the handler and without the system.

pub(crate) mod close;
pub(crate) mod desk;
pub(crate) mod dial;
pub(crate) mod ended_call;
pub(crate) mod fanout;
pub(crate) mod listen;
pub(crate) mod planted;
pub(crate) mod profile;
pub(crate) mod send;
pub(crate) mod slot;
pub(crate) mod state;
pub(crate) mod stop;
