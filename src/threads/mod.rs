//! State that threads share: the commands that they post, the board of connections, the places to wait.
//!
//! - [`mailbox`]: the commands for the loop, and the wake;
//! - [`board`]: how each connection is, and how much room it has; [`number`]: whose they are;
//! - [`call_cell`]: where a thread and the loop meet at the end of a call; [`bell`]: where threads wait
//!   for such ends together;
//! - [`gate`]: where threads wait for what a turn may bring;
//! - [`sync`]: the primitives under all of these, which the model checks replace.

pub(crate) mod bell;
pub(crate) mod board;
pub(crate) mod call_cell;
pub(crate) mod gate;
pub(crate) mod mailbox;
pub(crate) mod number;
pub(crate) mod sync;
