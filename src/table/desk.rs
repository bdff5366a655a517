//! What needs both what the loop decides on and its sockets.

use super::state::State;
use crate::{net::sockets::Sockets, protocol::Protocol};

/// Where connections are dialled, listeners opened and stops begun: all of it without the handler.
pub(crate) struct Desk<'a, P: Protocol, W> {
    pub(crate) state: &'a mut State<P, W>,
    pub(crate) sockets: &'a mut dyn Sockets,
}
