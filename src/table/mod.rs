//! All that the loop decides, for all connections together, without the handler and without the system.
//!
//! [`state`] is all of it, in parts that have a file each: the connections in their [`slots`], the
//! [`clock`] with the timers, the lists of [`work`] from which the steps of a turn take, and so on. What is
//! done with it stands in the files that are named as verbs: [`send`], [`dial`], [`listen`], [`fanout`],
//! [`close`], [`stop`].

pub(crate) mod awaiters;
pub(crate) mod broadcasts;
#[cfg(test)]
mod check;
pub(crate) mod clock;
pub(crate) mod close;
pub(crate) mod desk;
pub(crate) mod dial;
pub(crate) mod dialled;
pub(crate) mod ended_call;
pub(crate) mod fanout;
pub(crate) mod groups;
pub(crate) mod listen;
pub(crate) mod listeners;
pub(crate) mod losses;
pub(crate) mod planted;
pub(crate) mod profile;
pub(crate) mod send;
pub(crate) mod serving;
pub(crate) mod slot;
pub(crate) mod slots;
pub(crate) mod state;
pub(crate) mod stop;
pub(crate) mod stopping;
pub(crate) mod work;
