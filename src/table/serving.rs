//! The connection that is being served now.

use crate::ConnId;

/// The connection for which something is being done, and what that has taken. If it panics, this says
/// whom that costs, and what is to be given back.
#[derive(Debug)]
pub(crate) struct Serving<Id> {
    /// A panic now costs this one, and no other.
    conn: Option<ConnId>,
    /// The room on the board that the running command has reserved, and not given back.
    charged: Option<(ConnId, usize)>,
    /// The connection of which a message is being handled, and causes what is sent to it meanwhile.
    handling: Option<ConnId>,
    /// The request that this message is, while it has no answer.
    unanswered: Option<Id>,
}

impl<Id> Default for Serving<Id> {
    fn default() -> Self {
        Self { conn: None, charged: None, handling: None, unanswered: None }
    }
}

impl<Id> Serving<Id> {
    /// Something is done for this connection.
    #[inline]
    pub(crate) const fn begin(&mut self, id: ConnId) {
        self.conn = Some(id);
    }

    #[inline]
    pub(crate) const fn end(&mut self) {
        self.conn = None;
    }

    /// Something is done for this connection, within what is done for another. That one, to be given to
    /// [`resume`](Self::resume).
    pub(crate) const fn interrupt(&mut self, id: ConnId) -> Option<ConnId> {
        self.conn.replace(id)
    }

    pub(crate) const fn resume(&mut self, outer: Option<ConnId>) {
        self.conn = outer;
    }

    /// The connection that is being served.
    pub(crate) const fn conn(&self) -> Option<ConnId> {
        self.conn
    }

    /// What was being done panicked. Whom that costs; nobody is served any more.
    pub(crate) const fn take(&mut self) -> Option<ConnId> {
        self.conn.take()
    }

    // ---- commands ----

    /// The command that is run has reserved so much on the board.
    pub(crate) const fn charge(&mut self, id: ConnId, bytes: usize) {
        self.charged = Some((id, bytes));
    }

    /// What it has reserved is to be given back.
    #[inline]
    pub(crate) const fn take_charge(&mut self) -> Option<(ConnId, usize)> {
        self.charged.take()
    }

    // ---- messages ----

    /// A message is handled.
    #[inline]
    pub(crate) const fn begin_message(&mut self, id: ConnId) {
        self.handling = Some(id);
    }

    #[inline]
    pub(crate) const fn end_message(&mut self) {
        self.handling = None;
    }

    /// A message is handled whose answer is awaited.
    #[inline]
    pub(crate) fn begin_request(&mut self, id: ConnId, request: Id) {
        self.handling = Some(id);
        self.unanswered = Some(request);
    }

    /// The request was handled. Its id, if it has no answer.
    #[inline]
    pub(crate) const fn end_request(&mut self) -> Option<Id>
    where
        Id: Copy,
    {
        self.handling = None;
        self.unanswered.take()
    }

    /// Whether a message of this connection is being handled.
    #[inline]
    pub(crate) fn is_handling(&self, id: ConnId) -> bool {
        self.handling == Some(id)
    }

    /// The request that is handled is being answered. False if it is none, or was answered.
    #[inline]
    pub(crate) fn answer(&mut self) -> bool {
        self.unanswered.take().is_some()
    }

    /// The answer to this request, which is being handled, was not taken.
    pub(crate) fn take_answer_back(&mut self, request: Id) {
        self.unanswered = Some(request);
    }
}
