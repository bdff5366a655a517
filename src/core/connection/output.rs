//! The way out: frames into the write queue, and bytes from there to the wire.

use std::io::{self, IoSlice};

use bytes::Bytes;

use super::{Connection, MAX_TEXT, cut};
use crate::{
    Tagged,
    body::Body,
    config::Config,
    core::{
        intake::Load,
        requests::Held,
        spares::{LARGE_FRAME, Spares},
        write_queue::{QueuePool, SHARE_BYTES, What, Written},
    },
    error::LimitBy,
    moment::Moment,
    protocol::{Correlation, Head, Kind, Protocol},
};

/// Slices of one vectored write. Small frames share a slice, so only large bodies need many.
pub(super) const SLICES: usize = 64;

impl<P: Protocol, W, D: Clone> Connection<P, W, D> {
    /// The longest body that may be sent.
    #[inline]
    pub(crate) const fn max_body(&self) -> usize {
        self.greeting.max_body()
    }

    /// The longest body that may be sent, and whose limit that is.
    pub(crate) const fn body_limit(&self) -> (usize, LimitBy) {
        self.greeting.body_limit()
    }

    /// Queues a frame. If the format's encoder panics nothing is queued.
    #[inline]
    pub(crate) fn push_frame(
        &mut self,
        head: &Head<P::Id>,
        body: impl Body,
        what: What,
        pool: &mut QueuePool,
    ) {
        let len = body.as_slice().len();
        let is_plain = self.protocol.is_header_then_body();
        let protocol = &mut self.protocol;
        let queue = self.out.get_or_insert_with(|| pool.take());
        if what.is_push() && !is_plain {
            let encode = |body: &[u8], out: &mut Vec<u8>| protocol.encode(head, body, out);
            queue.push_transformed(what, head.tag, body, encode);
        } else if len < SHARE_BYTES || !is_plain {
            queue.push(what, head.tag, len, |out| protocol.encode(head, body.as_slice(), out));
        } else if body.is_shared() || len > LARGE_FRAME {
            let encode = |out: &mut Vec<u8>| protocol.encode_header(head, len, out);
            queue.push_shared(what, head.tag, encode, body.into_bytes());
        } else {
            queue.make_room(len, &mut pool.spares);
            queue.push(what, head.tag, len, |out| protocol.encode(head, body.as_slice(), out));
        }
    }

    /// Encodes a push, for this connection and for others of its format.
    pub(crate) fn encode_push(&mut self, tag: u32, body: &[u8]) -> Bytes {
        let head = Head { tag, ..Head::new(self.push_kind(), self.next_push_id()) };
        let mut frame = Vec::new();
        self.protocol.encode(&head, body, &mut frame);
        frame.into()
    }

    /// Queues a push that was encoded before, with this body.
    pub(crate) fn push_encoded(
        &mut self,
        tag: u32,
        body: &Bytes,
        frame: &Bytes,
        pool: &mut QueuePool,
    ) {
        let original = if self.protocol.is_header_then_body() { None } else { Some(body) };
        let queue = self.out.get_or_insert_with(|| pool.take());
        queue.push_encoded(tag, body.len(), frame, original);
    }

    /// Whether answers carry no id and go in the order of the requests.
    #[inline]
    pub(crate) fn is_in_order(&self) -> bool {
        self.protocol.correlation() == Correlation::InOrder
    }

    /// Queues a frame as the answer to a request, once those before it are answered where answers go in
    /// order. `place` is that of a request that was deferred there; `None`: it is the newest request.
    #[inline]
    pub(crate) fn push_answer(
        &mut self,
        place: Option<u32>,
        head: &Head<P::Id>,
        body: impl Body,
        pool: &mut QueuePool,
    ) {
        if self.is_in_order() && matches!(head.kind, Kind::Reply | Kind::Error) {
            self.push_in_order(place, head, body, pool);
        } else {
            self.push_frame(head, body, What::Answer, pool);
        }
    }

    fn push_in_order(
        &mut self,
        place: Option<u32>,
        head: &Head<P::Id>,
        body: impl Body,
        pool: &mut QueuePool,
    ) {
        let requests = &mut self.talk_or_new().requests;
        if !requests.is_next(place) {
            requests.hold(place, *head, body.into_bytes());
            self.note_charges();
            return;
        }
        if place.is_some() {
            requests.advance();
        }
        self.push_frame(head, body, What::Answer, pool);
        while let Some((head, body)) = self.talk_or_new().requests.take_answer() {
            self.note_charges();
            self.push_frame(&head, body, What::Answer, pool);
        }
    }

    /// The charge beside the queue has changed.
    pub(super) fn note_charges(&mut self) {
        self.charged_beside = u32::try_from(self.cost_beside()).unwrap_or(u32::MAX);
    }

    /// The charge of answers that wait for those before them, and of the layer's own bytes.
    fn cost_beside(&self) -> usize {
        self.held().cost() + self.layer.as_ref().map_or(0, |layer| layer.cost())
    }

    /// Queues a control frame that overtakes.
    pub(super) fn push_urgent(
        &mut self,
        pool: &mut QueuePool,
        encode: impl FnOnce(&mut P, &mut Vec<u8>),
    ) {
        let protocol = &mut self.protocol;
        if let Some(layer) = &mut self.layer
            && layer.has_batch()
        {
            // A batch is sealed in the order in which the queue has it now.
            let mut frame = Vec::new();
            encode(protocol, &mut frame);
            layer.late.extend_from_slice(&frame);
            return self.note_charges();
        }
        let queue = self.out.get_or_insert_with(|| pool.take());
        queue.push_urgent(|out| encode(protocol, out));
    }

    /// Bytes of control frames that wait.
    pub(super) fn urgent_bytes(&self) -> usize {
        let late = self.layer.as_ref().map_or(0, |layer| layer.late.len());
        self.out.as_ref().map_or(0, |queue| queue.urgent_bytes()) + late
    }

    /// Answers that wait for those before them.
    pub(crate) fn held(&self) -> Held {
        self.talk.as_ref().map_or_else(Held::default, |talk| talk.requests.held())
    }

    /// Queues an error as the answer to a request; `place` as for [`push_answer`](Self::push_answer).
    pub(crate) fn push_error(
        &mut self,
        place: Option<u32>,
        id: P::Id,
        code: u32,
        text: &str,
        pool: &mut QueuePool,
    ) {
        let head = Head { tag: code, ..Head::new(Kind::Error, id) };
        let text = cut(text, MAX_TEXT.min(self.protocol.largest_body()));
        self.push_answer(place, &head, text, pool);
    }

    /// The id of a message that nobody answers.
    pub(crate) fn next_push_id(&mut self) -> P::Id {
        self.pushes += 1;
        self.protocol.push_id(self.pushes, self.salt)
    }

    /// Whether the kind of a frame tells requests, replies and other messages apart.
    pub(super) fn has_kinds(&self) -> bool {
        matches!(self.protocol.correlation(), Correlation::ByKind | Correlation::InOrder)
    }

    /// The kind of a message that nobody answers, on this protocol.
    pub(crate) fn push_kind(&self) -> Kind {
        if self.has_kinds() { Kind::Push } else { Kind::Plain }
    }

    // ---- onto the wire ----

    /// Writes what one call of `write` takes of what waits. How many bytes of the wire that was, and what
    /// it finished.
    ///
    /// # Errors
    ///
    /// That of `write`, and `WriteZero` where it takes nothing: that is not progress, and a loop that took
    /// it for that would spin.
    #[inline]
    pub(crate) fn write(
        &mut self,
        spares: &mut Spares,
        now: Moment,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<(usize, Written)> {
        if self.layer.is_some() {
            return self.write_layered(spares, now, write);
        }
        let Some(queue) = &mut self.out else { return Ok(Default::default()) };
        let result = if let Some(bytes) = queue.single() {
            write(&[IoSlice::new(bytes)])
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = queue.slices(&mut slices);
            write(&slices[..count])
        };
        match result {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                let written = self.advance(count, spares);
                if let Some(queue) = &mut self.out {
                    queue.stalled_since = if queue.is_empty() { None } else { Some(now) };
                }
                Ok((count, written))
            }
            Err(error) => {
                queue.stalled_since.get_or_insert(now);
                Err(error)
            }
        }
    }

    /// So many bytes of the queue's slices were written.
    #[inline]
    pub(super) fn advance(&mut self, count: usize, spares: &mut Spares) -> Written {
        let Some(queue) = &mut self.out else { return Written::default() };
        let written = queue.advance(count, spares);
        if let Some(talk) = &mut self.talk {
            talk.written += written.bytes as u64;
        }
        self.counts.messages_out += written.messages;
        written
    }

    /// The connection has an empty queue, or none that will be written: another may have it.
    pub(crate) fn give_queue(&mut self, pool: &mut QueuePool) {
        if let Some(queue) = self.out.take() {
            pool.give(queue);
        }
    }

    /// Takes the messages that nobody answers and that were not written whole, with their tags. The
    /// epoch is over: what is queued will not be written.
    pub(crate) fn take_unsent(&mut self) -> Vec<Tagged<Bytes>> {
        self.out.as_mut().map_or_else(Vec::new, |queue| queue.take_unsent())
    }

    /// Messages that were not written whole, and the bytes that were not written.
    pub(crate) fn unsent(&self) -> (u64, usize) {
        self.out.as_ref().map_or((0, 0), |queue| (queue.messages(), queue.bytes()))
    }

    /// Since when bytes wait to be written and none was taken.
    pub(super) fn stalled_since(&self) -> Option<Moment> {
        match &self.layer {
            None => self.out.as_ref()?.stalled_since,
            Some(layer) => layer.stalled_since,
        }
    }

    /// The time for the bytes that wait to be written begins anew.
    pub(super) fn restart_stall(&mut self, now: Moment) {
        match (&mut self.layer, &mut self.out) {
            (Some(layer), _) => layer.stalled_since = Some(now),
            (None, Some(queue)) => queue.stalled_since = Some(now),
            (None, None) => {}
        }
    }

    /// Whether an encoder took away what was queued, so that nothing may be written.
    #[inline]
    pub(crate) fn is_torn(&self) -> bool {
        self.out.as_ref().is_some_and(|queue| queue.is_torn())
    }

    /// Whether something can be written now.
    #[inline]
    pub(crate) fn has_output(&self) -> bool {
        let has_frames = self.has_frames();
        match &self.layer {
            None => has_frames,
            Some(layer) => layer.has_output(has_frames),
        }
    }

    /// Whether something is left to be written, now or when the layer lets it out.
    #[inline]
    pub(crate) fn holds_output(&self) -> bool {
        let has_frames = self.has_frames();
        match &self.layer {
            None => has_frames,
            Some(layer) => layer.holds_output(has_frames),
        }
    }

    /// Whether frames are queued.
    #[inline]
    pub(crate) fn has_frames(&self) -> bool {
        self.out.as_ref().is_some_and(|queue| !queue.is_empty())
    }

    /// The queue has grown or shrunk. Whether that choked the peer.
    #[inline]
    pub(crate) fn update_intake(&mut self, config: &Config) -> bool {
        let caused = self.caused_cost();
        self.intake.update(caused, config)
    }

    /// Whether messages may be read and handled, as far as the queue is concerned.
    #[inline]
    pub(crate) fn is_intake_open(&self, config: &Config) -> bool {
        if !self.intake.is_choked() {
            return true;
        }
        let load = Load {
            queued: self.queued_cost(),
            caused: self.caused_cost(),
            calls: self.calls_in_flight(),
        };
        self.intake.is_open(load, config)
    }

    /// Whether another message may be handled, as far as deferred requests are concerned that can't be
    /// refused: those that the format does not mark as such, and those whose answers go in order. One
    /// too many of them is not read.
    #[inline]
    pub(crate) fn has_request_room(&self, config: &Config) -> bool {
        self.talk.as_ref().is_none_or(|talk| talk.requests.unrefusable() < config.max_requests)
    }

    pub(crate) const fn is_choked(&self) -> bool {
        self.intake.is_choked()
    }

    /// The charge of all that is queued: frames, answers that wait for others, the layer's own bytes.
    #[inline]
    pub(crate) fn queued_cost(&self) -> usize {
        self.out.as_ref().map_or(0, |queue| queue.cost()) + self.charged_beside as usize
    }

    /// As [`queued_cost`](Self::queued_cost), of what the peer's own messages caused.
    #[inline]
    fn caused_cost(&self) -> usize {
        self.out.as_ref().map_or(0, |queue| queue.caused()) + self.charged_beside as usize
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert_eq!(self.charged_beside as usize, self.cost_beside());
        if let Some(queue) = &self.out {
            queue.check();
        }
    }
}
