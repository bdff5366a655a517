//! What other threads ask for. Each command is named as the [`Handle`](crate::Handle)'s method that
//! posts it, and run by the `on_` method of that name.

use std::{any::Any, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    CallId, ConnId, Context, Tagged,
    audience::Audience,
    close_mode::CloseMode,
    protocol::{Head, Protocol},
    table::send::Answer,
    threads::call_cell::CallCell,
};

/// What a closure on the loop is given.
pub(crate) type Closure<P> = Box<dyn FnOnce(&mut dyn Any, &mut Context<'_, P>) + Send>;

/// What a handle or a responder asks of the loop.
pub(crate) enum Command<P: Protocol> {
    /// `charged` was taken from the board's room for it.
    Send {
        conn: ConnId,
        id: Option<P::Id>,
        tag: u32,
        body: Bytes,
        charged: usize,
    },
    Broadcast {
        audience: Audience,
        tag: u32,
        body: Bytes,
    },
    Call {
        conn: ConnId,
        tag: u32,
        body: Bytes,
        timeout: Duration,
        cell: Arc<CallCell>,
        charged: usize,
    },
    CancelCall {
        conn: ConnId,
        call: CallId,
    },
    /// `place`: where answers go in order, that of the request.
    Respond {
        conn: ConnId,
        epoch: u32,
        place: u32,
        request: Head<P::Id>,
        answer: Answer<Tagged<Bytes>>,
        charged: usize,
    },
    Close {
        conn: ConnId,
        mode: CloseMode,
    },
    Run(Closure<P>),
    /// As the handles asked; see `Shared::ask_stop`.
    Stop,
}

impl<P: Protocol> Command<P> {
    pub(crate) const fn may_broadcast(&self) -> bool {
        matches!(self, Self::Broadcast { .. } | Self::Run(_))
    }
}
