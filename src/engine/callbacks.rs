//! Calls of the application, which may panic.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::Engine;
use crate::{
    Conn, ConnId, Context, Handler, Incident, api::waiter::Waiter, error::panic_text, net::Net,
    table::desk::Desk,
};

impl<H: Handler, N: Net> Engine<H, N> {
    /// The context of a callback, between two turns.
    pub(crate) fn context(&mut self) -> Context<'_, H::Protocol> {
        self.state.clock.set(self.sockets.net.now());
        self.cx()
    }

    /// The loop without the handler and its handles.
    pub(super) fn desk(&mut self) -> Desk<'_, H::Protocol, Waiter<H::Protocol>> {
        Desk { state: &mut self.state, sockets: &mut self.sockets }
    }

    /// The loop without the handler, within a turn.
    pub(super) fn cx(&mut self) -> Context<'_, H::Protocol> {
        Context { state: &mut self.state, sockets: &mut self.sockets, shared: &self.shared }
    }

    /// Runs a callback for a connection. One that panics closes it. Whether it returned.
    #[inline]
    pub(super) fn with_conn(
        &mut self,
        id: ConnId,
        callback: impl FnOnce(&mut H, &mut Conn<'_, H::Protocol>),
    ) -> bool {
        let cx =
            Context { state: &mut self.state, sockets: &mut self.sockets, shared: &self.shared };
        let mut conn = Conn { cx, id };
        let handler = &mut self.handler;
        match catch_unwind(AssertUnwindSafe(|| callback(handler, &mut conn))) {
            Ok(()) => true,
            Err(panic) => {
                self.handle_panic(id, &*panic);
                false
            }
        }
    }

    /// Something that was done for a connection panicked.
    #[cold]
    pub(super) fn handle_panic(&mut self, id: ConnId, panic: &(dyn Any + Send)) {
        let text = panic_text(panic);
        log::error!("serving connection {id} panicked: {text}");
        self.state.stats.panics += 1;
        self.state.end_panicked(id, text);
    }

    /// Runs a callback that is for no connection. The panic's message, if it panicked.
    pub(super) fn with_context(
        &mut self,
        name: &'static str,
        callback: impl FnOnce(&mut H, &mut Context<'_, H::Protocol>),
    ) -> Option<String> {
        let mut cx =
            Context { state: &mut self.state, sockets: &mut self.sockets, shared: &self.shared };
        let handler = &mut self.handler;
        let panic = catch_unwind(AssertUnwindSafe(|| callback(handler, &mut cx))).err()?;
        let text = panic_text(&*panic);
        log::error!("{name} panicked: {text}");
        self.state.stats.panics += 1;
        // Nothing is called after `on_stop`, not even for it.
        if !matches!(name, "on_error" | "on_stop") {
            self.report(&Incident::Panicked { callback: name, text: text.clone() });
        }
        Some(text)
    }

    pub(super) fn report(&mut self, incident: &Incident) {
        self.with_context("on_error", |handler, cx| handler.on_error(cx, incident));
    }
}
