//! An answer that comes later.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::{
    Body, Bytes, ConnId, SendError, Tagged,
    error::error_code,
    handle::Shared,
    protocol::{Head, Kind, Protocol},
    reactor::{commands::Command, send::Answer},
};

/// Answers one request, later and from any thread; does not block.
///
/// Made by [`Conn::defer`](crate::Conn::defer). A connection that drains waits for it. Dropped
/// unanswered it answers with the error `unanswered`, where the format has errors. After the epoch in
/// which the request came has ended, its answer goes nowhere.
pub struct Responder<P: Protocol> {
    shared: Arc<Shared<P>>,
    conn: ConnId,
    epoch: u32,
    request: Head<P::Id>,
    deadline: Option<Instant>,
    /// Set when the peer cancels or the epoch ends.
    is_cancelled: Arc<AtomicBool>,
    is_answered: bool,
}

impl<P: Protocol> Responder<P> {
    pub(crate) const fn new(
        shared: Arc<Shared<P>>,
        conn: ConnId,
        epoch: u32,
        request: Head<P::Id>,
        deadline: Option<Instant>,
        is_cancelled: Arc<AtomicBool>,
    ) -> Self {
        Self { shared, conn, epoch, request, deadline, is_cancelled, is_answered: false }
    }

    /// Answers; with the request's tag, if the body has none.
    ///
    /// # Errors
    ///
    /// The connection or its epoch has ended, or the caller gave up (`Closed`); the body is too long,
    /// the mailbox is full, or the reactor has stopped: the caller is told with an error then, where
    /// the format has errors.
    pub fn reply(mut self, body: impl Body) -> Result<(), SendError> {
        if !self.is_open() {
            // Dropped unanswered, it gives its place among the requests in flight back.
            return Err(SendError::Closed);
        }
        let (tag, len) = (body.tag().unwrap_or(self.request.tag), body.as_slice().len());
        if let Err(error) = self.shared.board.check(self.conn, len) {
            if self.request.kind == Kind::Request {
                let text = "the reply is too long".to_owned();
                let _ = self.answer(Answer::Error { code: error_code::FAILED, text });
            }
            return Err(error);
        }
        let answer = Answer::Reply(Tagged(tag, body.into_bytes()));
        // Not accepted, it is dropped unanswered, and the caller is told that.
        self.shared.post(self.command(answer), len)?;
        self.is_answered = true;
        Ok(())
    }

    /// Answers with an error; see [`Conn::fail`](crate::Conn::fail).
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply); `NotAwaited` where the format has no errors.
    pub fn fail(mut self, code: u32, text: &str) -> Result<(), SendError> {
        if self.request.kind != Kind::Request {
            return Err(SendError::NotAwaited);
        }
        if !self.is_open() {
            return Err(SendError::Closed);
        }
        self.answer(Answer::Error { code, text: text.to_owned() })
    }

    /// Answers with what is short, and so gets through although the mailbox is full. Of a request
    /// that was cancelled the loop only takes the place back.
    fn answer(&mut self, answer: Answer<Tagged<Bytes>>) -> Result<(), SendError> {
        self.is_answered = true;
        let is_open = self.is_open();
        self.shared.post_control(self.command(answer))?;
        if is_open { Ok(()) } else { Err(SendError::Closed) }
    }

    const fn command(&self, answer: Answer<Tagged<Bytes>>) -> Command<P> {
        let Self { conn, epoch, request, .. } = *self;
        Command::Respond { conn, epoch, request, answer }
    }

    /// Whether an answer could still be awaited: the caller did not give up, and its connection is the
    /// one on which it asked.
    pub fn is_open(&self) -> bool {
        !self.is_cancelled()
    }

    /// Whether the caller gave up, or its connection ended: the work can stop.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire) || !self.shared.board.is_open(self.conn)
    }

    /// When the caller stops waiting, where it said so.
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The connection on which the request came.
    pub const fn conn(&self) -> ConnId {
        self.conn
    }

    /// The request's id on the wire.
    pub const fn id(&self) -> P::Id {
        self.request.id
    }

    /// The request's tag.
    pub const fn tag(&self) -> u32 {
        self.request.tag
    }
}

impl<P: Protocol> Drop for Responder<P> {
    fn drop(&mut self) {
        if !self.is_answered {
            let text = "the responder was dropped".to_owned();
            let _ = self.answer(Answer::Error { code: error_code::UNANSWERED, text });
        }
    }
}

impl<P: Protocol> fmt::Debug for Responder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("conn", &self.conn)
            .field("id", &self.request.id)
            .finish_non_exhaustive()
    }
}
