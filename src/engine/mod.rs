//! The loop: one thread, one poll, every socket. What a turn does, in steps, a file each.

mod accept;
mod callbacks;
#[cfg(test)]
mod check;
mod closing;
pub(crate) mod commands;
mod events;
mod flush;
mod frames;
mod opening;
mod read;
mod reader;
mod reap;
mod stopping;
#[cfg(test)]
mod tests;
mod timers;
mod turn;

use std::{collections::VecDeque, sync::Arc};

use self::reader::Reader;
use crate::{
    CloseReason, Handler,
    api::{command::Command, shared::Shared, waiter::LoopState},
    core::spin::Spin,
    drop_quietly::drop_quietly,
    net::{Event, Net, sockets::SocketTable},
    table::stopping::StopPhase,
    threads::mailbox::Post,
};

/// How far a turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Commands,
    Events,
    Accept,
    Arrivals,
    Read,
    Timers,
    Flush,
    Reap,
}

/// The reactor on one kind of network.
pub(crate) struct Engine<H: Handler, N: Net> {
    pub(crate) handler: H,
    pub(crate) state: LoopState<H::Protocol>,
    pub(crate) sockets: SocketTable<N>,
    /// The part of the loop that handles share.
    pub(crate) shared: Arc<Shared<H::Protocol>>,
    /// How long to look for work before sleeping.
    spin: Spin,
    /// The commands of this turn that have not been run.
    posts: VecDeque<Post<Command<H::Protocol>>>,
    reader: Reader,
    events: Vec<Event>,
    /// The first event that was not looked at.
    next_event: usize,
    step: Step,
    has_started: bool,
}

impl<H: Handler, N: Net> Engine<H, N> {
    pub(crate) fn new(
        handler: H,
        state: LoopState<H::Protocol>,
        net: N,
        shared: Arc<Shared<H::Protocol>>,
        spin: Spin,
    ) -> Self {
        Self {
            handler,
            state,
            sockets: SocketTable::new(net),
            shared,
            spin,
            posts: VecDeque::new(),
            reader: Reader::default(),
            events: Vec::new(),
            next_event: 0,
            step: Step::Commands,
            has_started: false,
        }
    }

    pub(crate) const fn is_stopped(&self) -> bool {
        matches!(self.state.stopping.phase(), StopPhase::Stopped)
    }
}

/// A loop that ends with work left fails every call, so that nobody waits for ever.
impl<H: Handler, N: Net> Drop for Engine<H, N> {
    fn drop(&mut self) {
        self.refuse_commands();
        for id in self.state.slots.ids() {
            self.state.abort(id, CloseReason::Stopped);
            self.state.end_calls(id);
            drop_quietly(|| self.state.discard(id));
        }
        self.shared.bell.ring();
        // Callbacks that would need the handler are dropped: it can't be called any more.
        while let Some(call) = self.state.work.pop_ended_call() {
            drop_quietly(|| drop(call));
        }
        self.sockets.close_all();
    }
}
