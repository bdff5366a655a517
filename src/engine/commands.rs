//! Runs what other threads ask for, and takes what names resolved to.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::Engine;
use crate::{
    ConnId, Handler, Tagged,
    api::{
        command::Command,
        waiter::{Caller, Waiter},
    },
    audience::Audience,
    close_mode::CloseMode,
    drop_quietly::drop_quietly,
    error::{CallError, Fate},
    net::Net,
    protocol::{Head, Protocol},
    table::{broadcasts::Source, send::Answer},
    threads::call_cell::CallCell,
};

/// Commands run in one turn.
pub(crate) const COMMANDS_PER_TURN: usize = 1024;

impl<H: Handler, N: Net> Engine<H, N> {
    /// Takes the answers of names that were looked up, within the same budget as commands.
    pub(super) fn take_names(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            let Some((ticket, found)) = self.sockets.net.resolved() else { return };
            self.state.serving.begin(ticket.conn);
            self.desk().on_resolved(ticket, found);
            self.state.serving.end();
        }
    }

    /// Takes what was posted and runs it, in order and within the budget. While too many broadcasts are
    /// under way it stops before what could make another: what is behind it has to wait, too, as the
    /// commands of a thread are run in their order.
    pub(super) fn run_commands(&mut self) {
        // Some are left if the turn before stopped early.
        if self.posts.is_empty() {
            self.shared.mailbox.take(&mut self.posts, COMMANDS_PER_TURN);
        }
        self.state.fanouts.begin(Source::Command);
        while let Some(post) = self.posts.front()
            && !self.state.fanouts.is_step_over()
            && !(self.state.fanouts.is_full(Source::Command) && post.command.may_broadcast())
            && let Some(post) = self.posts.pop_front()
        {
            self.state.stats.commands += 1;
            self.run(post.command);
            self.state.serving.end();
        }
        self.state.fanouts.begin(Source::Other);
    }

    /// Takes no more commands, and ends those that wait: the loop has stopped. The messages among
    /// them, which were accepted.
    pub(super) fn refuse_commands(&mut self) -> Vec<(ConnId, Tagged<Bytes>)> {
        let mut messages = Vec::new();
        for post in self.posts.drain(..).chain(self.shared.close()) {
            match post.command {
                Command::Call { cell, .. } => {
                    cell.end(Err(CallError::Stopped { fate: Fate::NotSent }));
                }
                Command::Send { conn, tag, body, .. } => messages.push((conn, Tagged(tag, body))),
                // Closures and bodies are the application's.
                other => drop_quietly(|| drop(other)),
            }
        }
        messages
    }

    fn run(&mut self, command: Command<H::Protocol>) {
        match command {
            Command::Send { conn, id, tag, body, charged } => {
                self.on_send(conn, id, Tagged(tag, body), charged);
            }
            Command::Broadcast { audience, tag, body } => {
                self.on_broadcast(audience, tag, body);
            }
            Command::Call { conn, tag, body, timeout, cell, charged } => {
                self.on_call(conn, Tagged(tag, body), timeout, &cell, charged);
            }
            Command::CancelCall { conn, call } => {
                self.state.serving.begin(conn);
                self.state.give_up(conn, call, false);
            }
            Command::Respond { conn, epoch, place, request, answer, charged } => {
                self.on_respond(conn, (epoch, place), &request, answer, charged);
            }
            Command::Close { conn, mode } => self.on_close(conn, mode),
            Command::Run(closure) => {
                self.with_context("a closure", |handler, cx| closure(handler.as_any(), cx));
            }
            Command::Stop => {
                if let Some(ask) = self.shared.take_stop() {
                    let timeout = ask.timeout(self.state.stopping.timeout());
                    self.desk().begin_stop(timeout);
                }
            }
        }
    }

    fn on_send(
        &mut self,
        conn: ConnId,
        id: Option<<H::Protocol as Protocol>::Id>,
        body: Tagged<Bytes>,
        charged: usize,
    ) {
        self.begin_charged(conn, charged);
        let sent = self.state.send(conn, id, body);
        self.state.release_charge();
        if let Err((_, body)) = sent {
            self.state.note_undelivered(conn, body);
        }
    }

    /// A command is run for which room was reserved on the board. It is given back when what the command
    /// queued is published, so that in between nobody sees room that is not there.
    fn begin_charged(&mut self, conn: ConnId, charged: usize) {
        self.state.serving.begin(conn);
        self.state.serving.charge(conn, charged);
    }

    fn on_broadcast(&mut self, audience: Audience, tag: u32, body: Bytes) {
        // A filter is the application's code.
        self.with_context("a broadcast's filter", |_, cx| {
            cx.state.broadcast(audience, tag, body);
        });
    }

    fn on_call(
        &mut self,
        conn: ConnId,
        body: Tagged<Bytes>,
        timeout: Duration,
        cell: &Arc<CallCell>,
        charged: usize,
    ) {
        self.begin_charged(conn, charged);
        if cell.take_up() {
            match self.state.call(conn, body, timeout, Waiter::Caller(Caller::new(cell.clone()))) {
                Ok(id) => {
                    if !cell.started(id) {
                        self.state.give_up(conn, id, false);
                    }
                }
                Err((error, _)) => cell.end(Err(error)),
            }
        }
        self.state.release_charge();
    }

    fn on_respond(
        &mut self,
        conn: ConnId,
        at: (u32, u32),
        request: &Head<<H::Protocol as Protocol>::Id>,
        answer: Answer<Tagged<Bytes>>,
        charged: usize,
    ) {
        self.begin_charged(conn, charged);
        if let Err(error) = self.state.respond(conn, at, request, answer) {
            log::debug!("connection {conn}: an answer went nowhere: {error}");
        }
        self.state.release_charge();
    }

    fn on_close(&mut self, conn: ConnId, mode: CloseMode) {
        self.state.serving.begin(conn);
        self.state.end_for_good(conn, mode, mode.reason());
    }
}
