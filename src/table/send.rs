//! What is sent, from callbacks and from the mailbox alike: messages, answers and calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{clock::Alarm, ended_call::AwaitsEnd, slot::Phase, state::State};
use crate::{
    CallId, ConnId, Tagged,
    body::Body,
    core::{
        connection::{CallRefusal, NewCall},
        write_queue::What,
    },
    error::{CallError, CloseReason, Fate, SendError},
    protocol::{Correlation, Head, Kind, Protocol},
};

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answer<B> {
    Reply(B),
    Error { code: u32, text: String },
}

/// A request that was deferred.
#[derive(Debug)]
pub(crate) struct Deferred {
    /// The epoch in which it came.
    pub(crate) epoch: u32,
    /// Its place among the answers, where they go in order.
    pub(crate) place: u32,
    /// Whether the format can answer with an error.
    pub(crate) has_errors: bool,
    /// Set when the peer cancels or the epoch ends.
    pub(crate) is_cancelled: Arc<AtomicBool>,
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    /// Sends a message that nobody answers, or keeps it while a dialled connection is down. The body
    /// of one that is refused is given back.
    pub(crate) fn send<B: Body>(
        &mut self,
        id: ConnId,
        wire_id: Option<P::Id>,
        body: B,
    ) -> Result<(), (SendError, B)> {
        self.catch_up(id);
        let Some(slot) = self.slots.get_mut(id) else {
            return Err((SendError::Closed, body));
        };
        if slot.must_keep() {
            return self.keep(id, wire_id, body);
        }
        let (tag, len) = (body.tag().unwrap_or(0), body.as_slice().len());
        if !slot.has_room(len) {
            return Err((self.refuse(id, len), body));
        }
        let what = What::Push { is_caused: self.serving.is_handling(id) };
        let wire_id = wire_id.unwrap_or_else(|| slot.link.next_push_id());
        let head = Head { tag, ..Head::new(slot.link.push_kind(), wire_id) };
        slot.link.push_frame(&head, body, what, &mut self.pool);
        if slot.note_push(&mut self.work) {
            self.note_crossing(id);
        }
        Ok(())
    }

    /// Keeps a message for the next epoch of a dialled connection, or until what was kept for this one is
    /// queued.
    pub(crate) fn keep<B: Body>(
        &mut self,
        id: ConnId,
        wire_id: Option<P::Id>,
        body: B,
    ) -> Result<(), (SendError, B)> {
        self.expire_offline(id);
        let now = self.clock.now();
        let Some(slot) = self.slots.get_mut(id) else { return Err((SendError::Closed, body)) };
        let is_up = slot.is_up();
        let (len, config) = (body.as_slice().len(), &slot.profile.config);
        let (max, limit) = slot.link.body_limit();
        if len > max {
            return Err((SendError::BodyTooLong { len, max, limit }, body));
        }
        match &mut slot.dial {
            Some(dial) if dial.offline.has_room(len, config.offline_bytes) => {
                let tag = body.tag().unwrap_or(0);
                dial.offline.push(wire_id, Tagged(tag, body.into_bytes()), now);
                slot.publish(&self.board);
                Ok(())
            }
            _ => Err((if is_up { SendError::Full } else { SendError::Offline }, body)),
        }
    }

    /// Queues what was kept for a connection that is up, but what is too old, up to its high watermark.
    /// The rest follows when the queue is down at the low one.
    pub(crate) fn send_kept(&mut self, id: ConnId) {
        self.expire_offline(id);
        while let Some(slot) = self.slots.get_mut(id)
            && slot.is_up()
            && let Some(dial) = &mut slot.dial
        {
            let (config, queued) = (&slot.profile.config, slot.link.queued_cost());
            let Some(cost) = dial.offline.next_cost() else {
                slot.epoch.has_backlog = false;
                break;
            };
            slot.epoch.has_backlog = true;
            if queued > 0 && queued + cost > config.high_watermark {
                break;
            }
            let Some(kept) = dial.offline.pop() else { break };
            let Tagged(tag, body) = kept.message;
            if body.len() > slot.link.max_body() {
                // The peer accepts less than it did when the message was taken.
                self.note_undelivered(id, Tagged(tag, body));
                continue;
            }
            let wire_id = kept.id.unwrap_or_else(|| slot.link.next_push_id());
            let head = Head { tag, ..Head::new(slot.link.push_kind(), wire_id) };
            let what = What::Push { is_caused: false };
            slot.link.push_frame(&head, body, what, &mut self.pool);
            self.mark_dirty(id);
            self.charge(id);
        }
        self.publish(id);
    }

    /// Queues a frame of the given head: an answer, or a cancel.
    #[inline]
    pub(crate) fn send_frame(
        &mut self,
        id: ConnId,
        head: &Head<P::Id>,
        body: impl Body,
    ) -> Result<(), SendError> {
        self.catch_up(id);
        let what = if head.kind == Kind::Cancel { What::Control } else { What::Answer };
        self.queue(id, body.as_slice().len(), |slot, pool| {
            if what == What::Answer {
                slot.link.push_answer(None, head, body, pool);
            } else {
                slot.link.push_frame(head, body, what, pool);
            }
        })
    }

    /// Queues an answer that has reserved its room: it does not end the connection as a slow consumer,
    /// unless the queue is past its hard limit without it.
    fn send_reserved(
        &mut self,
        id: ConnId,
        place: Option<u32>,
        head: &Head<P::Id>,
        body: impl Body,
    ) -> Result<(), SendError> {
        self.catch_up(id);
        let Some(slot) = self.get(id).filter(|slot| slot.is_up()) else {
            return Err(SendError::Closed);
        };
        let (len, (max, limit)) = (body.as_slice().len(), slot.link.body_limit());
        if len > max {
            return Err(SendError::BodyTooLong { len, max, limit });
        }
        self.queue(id, 0, |slot, pool| slot.link.push_answer(place, head, body, pool))
    }

    /// Queues an error as a deferred answer. One with a text has reserved its room, and those without are
    /// short and no more than the requests in flight: so none ends the connection as a slow consumer.
    fn send_reserved_error(
        &mut self,
        id: ConnId,
        place: Option<u32>,
        request: P::Id,
        code: u32,
        text: &str,
    ) -> Result<(), SendError> {
        self.catch_up(id);
        let slot = self.slots.get_mut(id);
        let Some(slot) = slot.filter(|slot| slot.is_up()) else { return Err(SendError::Closed) };
        if !slot.link.protocol().has_errors() {
            return Err(self.note_unanswered(id));
        }
        slot.link.push_error(place, request, code, text, &mut self.pool);
        self.mark_dirty(id);
        self.charge(id);
        Ok(())
    }

    /// A request gets no answer, on a format that has no errors. Where answers go in order, those behind
    /// it would wait for ever, or be taken for its own: the connection ends.
    #[cold]
    fn note_unanswered(&mut self, id: ConnId) -> SendError {
        if self.get(id).is_some_and(|slot| slot.link.is_in_order()) {
            self.close(id, CloseReason::Unanswered);
        }
        SendError::NotAwaited
    }

    /// Queues an error as the answer to a request; `place` is that of one that was deferred where answers
    /// go in order.
    pub(crate) fn send_error(
        &mut self,
        id: ConnId,
        place: Option<u32>,
        request: P::Id,
        code: u32,
        text: &str,
    ) -> Result<(), SendError> {
        let slot = self.get(id).ok_or(SendError::Closed)?;
        if !slot.link.protocol().has_errors() {
            return Err(self.note_unanswered(id));
        }
        self.catch_up(id);
        self.queue(id, 0, |slot, pool| slot.link.push_error(place, request, code, text, pool))
    }

    /// Queues an error as the answer to a request whose callback left none, although the connection
    /// may be closing because of it.
    pub(crate) fn send_last_error(&mut self, id: ConnId, request: P::Id, code: u32, text: &str) {
        self.catch_up(id);
        if let Some(slot) = self.slots.get_mut(id)
            && slot.phase.is_writing()
        {
            if slot.link.is_in_order() && !slot.link.protocol().has_errors() {
                self.note_unanswered(id);
                return;
            }
            slot.link.push_error(None, request, code, text, &mut self.pool);
            self.mark_dirty(id);
            self.charge(id);
        }
    }

    /// Answers a request that was deferred in this epoch. Where the format has no errors, an error only
    /// says that there will be no answer.
    pub(crate) fn respond(
        &mut self,
        id: ConnId,
        (epoch, place): (u32, u32),
        request: &Head<P::Id>,
        answer: Answer<impl Body>,
    ) -> Result<(), SendError> {
        let slot = self.get_mut(id).ok_or(SendError::Closed)?;
        if slot.epoch.number != epoch {
            return Err(SendError::Closed);
        }
        let is_marked = request.kind == Kind::Request;
        let is_in_order = is_marked && slot.link.is_in_order();
        let place = is_in_order.then_some(place);
        let is_cancelled = self.take_deferred(id, place, request)?;
        let slot = self.get_mut(id).ok_or(SendError::Closed)?;
        if slot.phase == Phase::Draining {
            self.mark_dirty(id);
        }
        if is_cancelled {
            // The caller would drop it as late.
            return Err(SendError::Closed);
        }
        let sent = match answer {
            Answer::Reply(body) => {
                let kind = if is_marked { Kind::Reply } else { Kind::Plain };
                let tag = body.tag().unwrap_or(request.tag);
                let sent = self.send_reserved(
                    id,
                    place,
                    &Head { tag, ..Head::new(kind, request.id) },
                    body,
                );
                if let Err(SendError::BodyTooLong { .. }) = &sent
                    && is_marked
                {
                    let _ = self.send_error(id, place, request.id, 1, "the reply is too long");
                }
                sent
            }
            Answer::Error { code, text } => {
                self.send_reserved_error(id, place, request.id, code, &text)
            }
        };
        if is_in_order {
            self.resume_requests(id);
        }
        sent
    }

    /// Takes a deferred request out of those in flight, if its answer is awaited. Whether its caller has
    /// cancelled it. Where answers go in order it stays in its place until the answer is there.
    fn take_deferred(
        &mut self,
        id: ConnId,
        place: Option<u32>,
        request: &Head<P::Id>,
    ) -> Result<bool, SendError> {
        let slot = self.get_mut(id).ok_or(SendError::Closed)?;
        if let Some(place) = place {
            return if slot.link.is_awaited(place) {
                Ok(false)
            } else {
                Err(SendError::NotAwaited)
            };
        }
        if request.kind == Kind::Request {
            let is_cancelled = slot.link.take_request(&request.id).ok_or(SendError::NotAwaited)?;
            return Ok(is_cancelled.load(Ordering::Acquire));
        }
        slot.link.take_unmarked_request();
        self.resume_requests(id);
        Ok(false)
    }

    /// A request that could not be refused was answered: perhaps that makes room for what is to be read
    /// next.
    fn resume_requests(&mut self, id: ConnId) {
        if let Some(slot) = self.get(id)
            && slot.can_read()
            && (slot.io.is_readable || slot.link.has_waiting())
        {
            self.mark_ready(id);
        }
    }

    /// Keeps a request for an answer after its callback.
    pub(crate) fn defer(&mut self, id: ConnId, request: &Head<P::Id>) -> Deferred {
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let mut deferred = Deferred { epoch: 0, place: 0, has_errors: true, is_cancelled };
        let Some(slot) = self.get_mut(id) else { return deferred };
        deferred.epoch = slot.epoch.number;
        deferred.has_errors = slot.link.protocol().has_errors();
        let is_cancelled = deferred.is_cancelled.clone();
        if request.kind != Kind::Request {
            deferred.is_cancelled = slot.link.defer_unmarked(is_cancelled);
        } else if slot.link.is_in_order() {
            deferred.place = slot.link.defer_in_order(is_cancelled);
        } else {
            slot.link.defer(request.id, is_cancelled);
        }
        deferred
    }

    /// Starts a call, or says at once why not; the waiter is given back then.
    pub(crate) fn call(
        &mut self,
        id: ConnId,
        body: impl Body,
        timeout: Duration,
        waiter: W,
    ) -> Result<CallId, (CallError, W)> {
        self.catch_up(id);
        let (first_call, now, is_running) = (self.first_call, self.clock.now(), self.is_running());
        let Some(slot) = self.slots.get_mut(id) else {
            return Err((gone(CloseReason::Closed), waiter));
        };
        if slot.phase != Phase::Open || !is_running {
            let end_reason = slot.epoch.end_reason();
            if !is_running || end_reason == Some(&CloseReason::Stopped) {
                return Err((CallError::Stopped { fate: Fate::NotSent }, waiter));
            }
            let reason = match (end_reason, &slot.dial) {
                (Some(reason), _) => reason.clone(),
                (None, Some(dial)) => dial.reason(),
                (None, None) => CloseReason::Closed,
            };
            return Err((gone(reason), waiter));
        }
        if !slot.has_room(body.as_slice().len()) {
            let refused = self.refuse(id, body.as_slice().len());
            return Err((CallError::from(&refused), waiter));
        }
        let config = &slot.profile.config;
        let (number, wire_id) = match slot.link.next_call(config, first_call) {
            Ok(next) => next,
            Err(refusal) => {
                let protocol = slot.link.protocol().name();
                return Err((refused(refusal, protocol), waiter));
            }
        };
        let head = Head {
            kind: slot.link.request_kind(),
            id: wire_id,
            tag: body.tag().unwrap_or(0),
            millis: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1),
        };
        let call = CallId::new(slot.epoch.number, number);
        let deadline = now.checked_add(timeout);
        let timer = deadline.map(|at| self.clock.arm(at, Alarm::Call(id, call)));
        self.stats.calls_in_flight += 1;
        slot.link.push_call(&head, body, NewCall { number, timer, waiter }, &mut self.pool);
        self.mark_dirty(id);
        self.charge(id);
        // Who waits for answers reads on.
        self.resume_choked(id);
        Ok(call)
    }

    /// Ends a call of ours before its answer, and tells the peer where the format can. A call of another
    /// epoch finds nothing: numbers start anew in each. False if there is none in flight.
    pub(crate) fn give_up(&mut self, id: ConnId, call: CallId, is_timeout: bool) -> bool {
        let Some(slot) = self.get_mut(id).filter(|slot| slot.epoch.number == call.epoch()) else {
            return false;
        };
        let Some((pending, wire_id)) = slot.link.give_up_call(call.as_u64()) else { return false };
        let is_marked = slot.link.protocol().correlation() == Correlation::ByKind;
        let fate = self.fate_of(id, &pending);
        if is_timeout {
            self.stats.calls_timed_out += 1;
        }
        let error =
            if is_timeout { CallError::Timeout { fate } } else { CallError::Cancelled { fate } };
        self.end_call(id, pending, error);
        if is_marked {
            let _ = self.send_frame(id, &Head::new(Kind::Cancel, wire_id), &[][..]);
        }
        self.mark_dirty(id);
        true
    }
}

fn gone(reason: CloseReason) -> CallError {
    CallError::Disconnected { reason, fate: Fate::NotSent }
}

fn refused(refusal: CallRefusal, protocol: &'static str) -> CallError {
    match refusal {
        CallRefusal::NoCalls => CallError::NoCalls { protocol },
        CallRefusal::PeerDraining => CallError::PeerDraining,
        CallRefusal::TooManyInFlight { limit } => CallError::TooManyInFlight { limit },
        CallRefusal::IdsExhausted => CallError::IdsExhausted,
    }
}
