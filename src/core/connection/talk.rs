//! Calls of ours and requests of the peer's.

use super::{CallRefusal, Connection, NewCall, Talk};
use crate::{
    body::Body,
    config::Config,
    core::{
        calls::{CallLine, Pending, PendingCalls},
        requests::OpenRequests,
        write_queue::{QueuePool, What},
    },
    protocol::{Correlation, Head, Kind, Protocol},
};

impl<P: Protocol, W, D: Clone> Connection<P, W, D> {
    // ---- calls of ours ----

    /// Whether a call may start now, and the number and id that it would have.
    pub(crate) fn next_call(
        &mut self,
        config: &Config,
        first: Option<u64>,
    ) -> Result<(u64, P::Id), CallRefusal> {
        if self.protocol.correlation() == Correlation::None {
            return Err(CallRefusal::NoCalls);
        }
        if self.last_handled().is_some() {
            return Err(CallRefusal::PeerDraining);
        }
        let limit = self.greeting.max_calls(config.max_calls);
        let salt = self.salt;
        let first = first.unwrap_or_else(|| self.protocol.first_call(salt));
        let calls = &mut self.talk_or_new().calls;
        // The peer still answers those that were given up, before any new one.
        let awaited = calls.line().map_or(0, CallLine::awaited);
        if calls.len() + awaited >= limit {
            return Err(CallRefusal::TooManyInFlight { limit });
        }
        let number = calls.next_number(first).ok_or(CallRefusal::IdsExhausted)?;
        let Some(id) = self.call_id(number) else { return Err(CallRefusal::NoCalls) };
        if self.talk_or_new().calls.contains(&id) {
            // The protocol gives an id twice: with this one the call before it would be lost.
            return Err(CallRefusal::IdsExhausted);
        }
        Ok((number, id))
    }

    /// Enters the call that [`next_call`](Self::next_call) allowed, and queues its request. In this
    /// order, so that it ends also where encoding it panics.
    pub(crate) fn push_call(
        &mut self,
        head: &Head<P::Id>,
        body: impl Body,
        call: NewCall<W>,
        pool: &mut QueuePool,
    ) {
        let queued = self.out.as_ref().map_or(0, |queue| queue.frame_bytes());
        let talk = self.talk.as_mut().expect("next_call made it");
        let starts_at = talk.written + queued as u64;
        let NewCall { number, timer, waiter } = call;
        let pending = Pending { number, starts_at, timer, waiter };
        if self.protocol.correlation() == Correlation::InOrder {
            talk.calls.insert_in_order(pending);
        } else {
            talk.calls.insert(head.id, pending);
        }
        self.push_frame(head, body, What::Request, pool);
    }

    /// The kind that a request has on the wire.
    pub(crate) fn request_kind(&self) -> Kind {
        if self.has_kinds() { Kind::Request } else { Kind::Plain }
    }

    /// The id on the wire of our call of that number. Where answers come in order it means nothing.
    fn call_id(&self, number: u64) -> Option<P::Id> {
        let id = self.protocol.call_id(number, self.salt);
        if id.is_none() && self.is_in_order() {
            return Some(self.protocol.push_id(number, self.salt));
        }
        id
    }

    /// Takes the call of that number before its answer, with its id on the wire.
    pub(crate) fn give_up_call(&mut self, number: u64) -> Option<(Pending<W>, P::Id)> {
        let (id, is_in_order) = (self.call_id(number)?, self.is_in_order());
        let calls = &mut self.talk.as_mut()?.calls;
        let pending =
            if is_in_order { calls.line_mut()?.take(number)? } else { calls.take(&id)? };
        Some((pending, id))
    }

    /// Takes every call in flight, oldest first: the epoch is over.
    pub(crate) fn take_calls(&mut self) -> Vec<Pending<W>> {
        let Some(talk) = &mut self.talk else { return Vec::new() };
        if let Some(line) = talk.calls.line_mut() {
            return line.take_where(|_| true);
        }
        if talk.calls.is_empty() { Vec::new() } else { talk.calls.take_all() }
    }

    /// Whether the peer may have handled a request of ours, or still may: a byte of it was given to the
    /// system, or will be, and no goaway proves the opposite.
    pub(crate) fn may_be_handled(&self, pending: &Pending<W>, is_flushed: bool) -> bool {
        let is_excluded = self.last_handled().is_some_and(|last| {
            self.call_id(pending.number).is_some_and(|id| !self.protocol.may_be_handled(&id, &last))
        });
        let written = self.talk.as_ref().map_or(0, |talk| talk.written);
        let is_within = |plain: usize| {
            let frames = self.out.as_ref().map_or(0, |queue| queue.frame_bytes_in(plain));
            pending.starts_at < written + frames as u64
        };
        let is_written = match &self.layer {
            None => is_flushed || pending.starts_at < written,
            // A layer that has given up writes what it has sealed, and no more.
            Some(layer) => match layer.last_plain() {
                None => is_flushed || is_within(layer.begun()),
                Some(last) if is_flushed => is_within(last),
                Some(_) => is_within(layer.begun()),
            },
        };
        is_written && !is_excluded
    }

    pub(crate) fn calls_in_flight(&self) -> usize {
        let Some(talk) = &self.talk else { return 0 };
        if self.is_in_order() {
            talk.calls.line().map_or(0, CallLine::in_flight)
        } else {
            talk.calls.len()
        }
    }

    /// How often all calls in flight were looked at.
    #[cfg(test)]
    pub(crate) fn call_scans(&self) -> u32 {
        self.talk.as_ref().map_or(0, |talk| talk.calls.scans)
    }

    // ---- requests of the peer's ----

    /// The request outlives its callback.
    pub(crate) fn defer(&mut self, id: P::Id, deferred: D) {
        self.talk_or_new().requests.insert(id, deferred);
    }

    /// As [`defer`](Self::defer), where answers go in order: the place of this one.
    pub(crate) fn defer_in_order(&mut self, deferred: D) -> u32 {
        self.talk_or_new().requests.insert_in_order(deferred)
    }

    /// Whether the request of that place, where answers go in order, has no answer.
    pub(crate) fn is_awaited(&self, place: u32) -> bool {
        self.talk.as_ref().is_some_and(|talk| talk.requests.is_awaited(place))
    }

    /// A request that the format does not mark as one outlives its callback. What is told of the end
    /// of the epoch: this, or what was given before.
    pub(crate) fn defer_unmarked(&mut self, deferred: D) -> D {
        self.talk_or_new().requests.insert_unmarked(deferred).clone()
    }

    /// The request is being answered; `None` if that was done already.
    pub(crate) fn take_request(&mut self, id: &P::Id) -> Option<D> {
        self.talk.as_mut()?.requests.remove(id)
    }

    /// A request that the format does not mark is being answered, or will not be.
    pub(crate) fn take_unmarked_request(&mut self) {
        if let Some(talk) = &mut self.talk {
            talk.requests.remove_unmarked();
        }
    }

    pub(crate) fn requests_in_flight(&self) -> usize {
        self.talk.as_ref().map_or(0, |talk| talk.requests.len())
    }

    /// Requests in flight for whose answers the peer waits; those that it has cancelled aside.
    pub(crate) fn requests_awaited(&self) -> usize {
        self.talk.as_ref().map_or(0, |talk| talk.requests.awaited())
    }

    /// Takes every request in flight: the epoch is over.
    pub(crate) fn take_requests(&mut self) -> Vec<D> {
        let requests =
            self.talk.as_mut().map_or_else(Vec::new, |talk| talk.requests.drain().collect());
        self.note_charges();
        requests
    }

    pub(super) fn talk_or_new(&mut self) -> &mut Talk<P::Id, W, D> {
        self.talk.get_or_insert_with(|| {
            Box::new(Talk {
                calls: PendingCalls::default(),
                requests: OpenRequests::default(),
                written: 0,
            })
        })
    }
}
