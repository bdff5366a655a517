//! An answer that comes later.

use std::{
    error, fmt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    command::Command,
    shared::{POST_OVERHEAD, Shared},
};
use crate::{
    Body, Bytes, ConnId, SendError, Tagged,
    core::connection::MAX_TEXT,
    error::error_code,
    protocol::{Head, Kind, Protocol},
    table::send::{Answer, Deferred},
};

/// Answers one request, later and from any thread. Does not block, but for
/// [`reply_wait`](Self::reply_wait).
///
/// Made by [`Conn::defer`](crate::Conn::defer). A connection that drains waits for it, unless the peer has
/// cancelled the request. Dropped unanswered it answers with the error `unanswered`, where the format has errors. After the epoch in
/// which the request came has ended, its answer goes nowhere.
///
/// Where answers carry no id and go in order ([`Correlation::InOrder`]) an answer waits for those of the
/// requests before it. Dropped unanswered on such a format that has no errors, it closes the connection
/// as [`Unanswered`](crate::CloseReason::Unanswered).
///
/// [`Correlation::InOrder`]: crate::protocol::Correlation::InOrder
#[must_use = "dropping it answers with an error"]
pub struct Responder<P: Protocol> {
    shared: Arc<Shared<P>>,
    conn: ConnId,
    request: Head<P::Id>,
    deadline: Option<Instant>,
    deferred: Deferred,
    is_answered: bool,
}

impl<P: Protocol> Responder<P> {
    pub(crate) const fn new(
        shared: Arc<Shared<P>>,
        conn: ConnId,
        request: Head<P::Id>,
        deadline: Option<Instant>,
        deferred: Deferred,
    ) -> Self {
        Self { shared, conn, request, deadline, deferred, is_answered: false }
    }

    /// Answers; with the request's tag, if the body has none.
    ///
    /// Answers may go over the high watermark, as they were asked for. They are accepted while what is
    /// queued for the connection and posted to it stays within three quarters of its
    /// [hard limit](crate::Config::hard_limit), and one is always accepted when nothing is. So answers
    /// alone never make a peer a slow consumer.
    ///
    /// # Errors
    ///
    /// [`Full`](SendError::Full), [`MailboxFull`](SendError::MailboxFull): there is no room now. The error
    /// gives the responder and the body [back](ReplyError::take_back); dropped with them it answers as
    /// unanswered. [`reply_wait`](Self::reply_wait) waits for room.
    ///
    /// All others are final: the connection or its epoch has ended, or the caller gave up (`Closed`); the
    /// body is too long, or the reactor has stopped. The caller is told with an error then, where the
    /// format has errors.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use longhaul::{ReplyError, Responder, protocol::Native};
    ///
    /// /// Answers, or puts the answer aside for later.
    /// fn answer(responder: Responder<Native>, aside: &mut Vec<(Responder<Native>, String)>) {
    ///     let body = "done".to_owned();
    ///     if let Err(refused) = responder.reply(&body) {
    ///         match refused.take_back() {
    ///             Ok((responder, _)) => aside.push((responder, body)),
    ///             Err(error) => eprintln!("{error}"),
    ///         }
    ///     }
    /// }
    /// ```
    pub fn reply(mut self, body: impl Body) -> Result<(), ReplyError<P>> {
        if !self.is_open() {
            // Dropped unanswered, it gives its place among the requests in flight back.
            return Err(SendError::Closed.into());
        }
        let (tag, len) = (body.tag().unwrap_or(self.request.tag), body.as_slice().len());
        let charged = len + POST_OVERHEAD;
        if let Err(error) = self.shared.reserve_answer(self.conn, len, charged) {
            if matches!(error, SendError::BodyTooLong { .. }) && self.request.kind == Kind::Request
            {
                let text = "the reply is too long".to_owned();
                let _ = self.answer(Answer::Error { code: error_code::FAILED, text });
            }
            return Err(self.refused(error, || Tagged(tag, body.into_bytes())));
        }
        let mut body = Some(Tagged(tag, body.into_bytes()));
        let posted = self.shared.post_with(
            || {
                let body = body.take().unwrap_or_else(|| Tagged(tag, Bytes::new()));
                self.command(Answer::Reply(body), charged)
            },
            len,
        );
        if let Err(error) = posted {
            self.shared.release(self.conn, charged);
            return Err(self.refused(error, || body.unwrap_or_else(|| Tagged(tag, Bytes::new()))));
        }
        self.is_answered = true;
        Ok(())
    }

    /// As [`reply`](Self::reply), and blocks until there is room, for up to `timeout`. For the threads of
    /// a pool, which so take no more work than the peer takes answers.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply), where `Full` and `MailboxFull` mean that there was no room within
    /// `timeout`. [`OnLoopThread`](SendError::OnLoopThread): this is the reactor's own thread, which
    /// would wait for itself; the responder and the body are given back.
    pub fn reply_wait(self, body: impl Body, timeout: Duration) -> Result<(), ReplyError<P>> {
        if self.shared.is_on_loop() {
            let tag = body.tag().unwrap_or(self.request.tag);
            return Err(self.refused(SendError::OnLoopThread, || Tagged(tag, body.into_bytes())));
        }
        let shared = self.shared.clone();
        let mut refused = match self.reply(body) {
            Err(refused) if refused.back.is_some() => refused,
            done => return done,
        };
        let done = shared.gate.wait(timeout, || {
            let (responder, body) = *refused.back.take()?;
            match responder.reply(body) {
                Err(again) if again.back.is_some() => {
                    refused = again;
                    None
                }
                done => Some(done),
            }
        });
        done.unwrap_or(Err(refused))
    }

    /// An answer that was refused; with responder and body, if it may be tried again.
    fn refused(self, error: SendError, body: impl FnOnce() -> Tagged<Bytes>) -> ReplyError<P> {
        let is_for_now =
            matches!(error, SendError::Full | SendError::MailboxFull | SendError::OnLoopThread);
        ReplyError { back: is_for_now.then(|| Box::new((self, body()))), error }
    }

    /// Answers with an error; see [`Conn::fail`](crate::Conn::fail). Where there is no room for the text,
    /// the code goes alone.
    ///
    /// # Errors
    ///
    /// The connection or its epoch has ended, or the caller gave up (`Closed`); the reactor has stopped;
    /// `NotAwaited` where the format has no errors.
    pub fn fail(mut self, code: u32, text: &str) -> Result<(), SendError> {
        if self.request.kind != Kind::Request || !self.deferred.has_errors {
            return Err(SendError::NotAwaited);
        }
        if !self.is_open() {
            return Err(SendError::Closed);
        }
        let text = &text[..text.floor_char_boundary(MAX_TEXT)];
        let charged = text.len() + POST_OVERHEAD;
        if self.shared.reserve_answer(self.conn, 0, charged).is_err() {
            return self.answer(Answer::Error { code, text: String::new() });
        }
        let posted = self.post_answer(Answer::Error { code, text: text.to_owned() }, charged);
        if posted.is_err() {
            self.shared.release(self.conn, charged);
        }
        posted
    }

    /// Answers with what is short, and so needs no room.
    fn answer(&mut self, answer: Answer<Tagged<Bytes>>) -> Result<(), SendError> {
        let is_open = self.is_open();
        self.post_answer(answer, 0)?;
        if is_open { Ok(()) } else { Err(SendError::Closed) }
    }

    /// Posts an answer that gets through although the mailbox is full. Of a request that was cancelled
    /// the loop only takes the place back.
    fn post_answer(
        &mut self,
        answer: Answer<Tagged<Bytes>>,
        charged: usize,
    ) -> Result<(), SendError> {
        self.is_answered = true;
        self.shared.post_control(self.command(answer, charged))
    }

    const fn command(&self, answer: Answer<Tagged<Bytes>>, charged: usize) -> Command<P> {
        let Self { conn, request, deferred: Deferred { epoch, place, .. }, .. } = *self;
        Command::Respond { conn, epoch, place, request, answer, charged }
    }

    /// Whether an answer could still be awaited: the caller did not give up, and its connection is the
    /// one on which it asked.
    pub fn is_open(&self) -> bool {
        !self.is_cancelled()
    }

    /// Whether the caller gave up, or its connection ended: the work can stop.
    pub fn is_cancelled(&self) -> bool {
        self.deferred.is_cancelled.load(Ordering::Acquire) || !self.shared.board.is_open(self.conn)
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

/// An answer was not accepted.
///
/// Becomes the [`SendError`] in it where that is all that is asked for.
pub struct ReplyError<P: Protocol> {
    error: SendError,
    /// What may be tried again.
    back: Option<Box<(Responder<P>, Tagged<Bytes>)>>,
}

impl<P: Protocol> ReplyError<P> {
    /// Why not.
    pub const fn error(&self) -> &SendError {
        &self.error
    }

    /// Takes the responder and the body back, to try again later; the tag is the one that the answer
    /// would have had.
    ///
    /// # Errors
    ///
    /// The reason, if it is final: the responder is gone.
    pub fn take_back(self) -> Result<(Responder<P>, Tagged<Bytes>), SendError> {
        self.back.map(|back| *back).ok_or(self.error)
    }
}

impl<P: Protocol> From<SendError> for ReplyError<P> {
    fn from(error: SendError) -> Self {
        Self { error, back: None }
    }
}

/// Drops the responder, if there is one: its caller is told that there will be no answer.
impl<P: Protocol> From<ReplyError<P>> for SendError {
    fn from(refused: ReplyError<P>) -> Self {
        refused.error
    }
}

impl<P: Protocol> error::Error for ReplyError<P> {}

impl<P: Protocol> fmt::Display for ReplyError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            SendError::Full => {
                f.write_str("what is queued leaves this answer no room below 3/4 of the hard limit")
            }
            error => error.fmt(f),
        }
    }
}

impl<P: Protocol> fmt::Debug for ReplyError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyError").field("error", &self.error).finish_non_exhaustive()
    }
}
