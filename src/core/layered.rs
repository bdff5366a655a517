//! A connection's [layer](crate::layer), and what goes through it.

use std::io::IoSlice;

use super::spares::Spares;
use crate::{
    layer::{Failure, Layer, LayerMaker, Wire},
    moment::Moment,
    role::Role,
};

/// Bytes of frames that are sealed at a time, at most.
const BATCH: usize = 64 * 1024;

/// Bytes of the wire that are given to a layer at a time.
pub(crate) const WIRE_CHUNK: usize = 16 * 1024;

/// A layer, and what the connection keeps with it.
#[derive(Debug)]
pub(crate) struct Layered {
    layer: Box<dyn Layer>,
    wire: Wire,
    /// It gave the connection up: only its last words are written.
    has_failed: bool,
    /// Why it did, until the connection is closed for it.
    failure: Option<Failure>,
    /// The end was said.
    is_finished: bool,
    /// The peer's end was taken.
    is_end_taken: bool,
    /// The record of which a part was last seen to wait.
    record: Option<u64>,
    /// Control frames that were queued while a batch is under way: they come behind it.
    pub(crate) late: Vec<u8>,
    /// Since when bytes wait to be written and none was taken.
    pub(crate) stalled_since: Option<Moment>,
}

impl Layered {
    pub(crate) fn new(maker: &LayerMaker, role: Role, salt: u64, now: Moment) -> Self {
        let mut wire = Wire::default();
        Self {
            layer: maker.make(role, salt, &mut wire, now),
            wire,
            has_failed: false,
            failure: None,
            is_finished: false,
            record: None,
            is_end_taken: false,
            late: Vec::new(),
            stalled_since: None,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.layer.name()
    }

    // ---- in ----

    pub(crate) fn receive(&mut self, wire: &mut [u8], now: Moment) {
        let received = self.layer.receive(wire, &mut self.wire, now);
        self.note(received);
    }

    pub(crate) fn receive_end(&mut self) {
        let received = self.layer.receive_end();
        self.note(received);
    }

    /// Takes the reason for which the layer gave the connection up, once all that came before was read.
    pub(crate) fn take_failure(&mut self) -> Option<Failure> {
        if self.has_plain() { None } else { self.failure.take() }
    }

    pub(crate) fn read(&mut self, room: &mut [u8]) -> usize {
        self.layer.read(room)
    }

    pub(crate) fn has_plain(&self) -> bool {
        self.layer.has_plain() && self.layer.is_up()
    }

    pub(crate) fn is_mid_record(&self) -> bool {
        self.layer.mid_record().is_some()
    }

    /// Notes the record of which a part waits. Whether it is another than before.
    pub(crate) fn note_record(&mut self) -> bool {
        let before = std::mem::replace(&mut self.record, self.layer.mid_record());
        before != self.record
    }

    /// Whether the loop has something to take here: bytes of frames, a failure, or the peer's end.
    pub(crate) fn has_input(&self) -> bool {
        self.has_plain() || self.failure.is_some() || self.layer.is_ended() && !self.is_end_taken
    }

    /// Takes the peer's end, once all that came before was read. Whether it is there, once.
    pub(crate) fn take_end(&mut self) -> bool {
        let is_due = self.layer.is_ended() && !self.has_plain() && !self.is_end_taken;
        self.is_end_taken |= is_due;
        is_due
    }

    pub(crate) fn is_up(&self) -> bool {
        self.layer.is_up()
    }

    // ---- out ----

    /// Whether something can be written now, where `has_frames` says whether frames are queued.
    pub(crate) fn has_output(&self, has_frames: bool) -> bool {
        !self.wire.is_empty() || has_frames && self.takes_frames() && self.layer.can_seal()
    }

    /// Whether something is left to be written, now or later.
    pub(crate) fn holds_output(&self, has_frames: bool) -> bool {
        !self.wire.is_empty() || has_frames && self.takes_frames()
    }

    /// Whether frames may still be sealed, now or later.
    fn takes_frames(&self) -> bool {
        self.layer.is_up() && !self.has_failed && !self.is_finished
    }

    /// Whether frames were sealed that were not written.
    pub(crate) const fn has_batch(&self) -> bool {
        self.wire.plain() > 0
    }

    /// Whether the next batch can be sealed.
    pub(crate) fn wants_batch(&self) -> bool {
        self.wire.is_empty() && self.takes_frames() && self.layer.can_seal()
    }

    pub(crate) fn seal(&mut self, plain: &[IoSlice<'_>], now: Moment) {
        self.layer.seal(plain, BATCH, &mut self.wire, now);
    }

    /// Bytes that the wire is to take next.
    pub(crate) fn output(&self) -> &[u8] {
        self.wire.rest()
    }

    /// The wire took the next `count` bytes. How many bytes of frames that finished.
    pub(crate) fn advance(&mut self, count: usize, spares: &mut Spares) -> usize {
        let plain = self.wire.advance(count);
        if self.wire.is_empty() {
            // An idle connection holds no buffer.
            spares.give_chunk(self.wire.take_buffer());
        }
        plain
    }

    /// Bytes of frames of which the peer may have a part, beside those that were written.
    pub(crate) fn begun(&self) -> usize {
        self.wire.begun()
    }

    /// Bytes of frames that will still be written, if that is not all of the queue.
    pub(crate) fn last_plain(&self) -> Option<usize> {
        if self.takes_frames() { None } else { Some(self.wire.plain()) }
    }

    /// The charge for bytes that wait here and belong to no frame of the queue.
    pub(crate) fn cost(&self) -> usize {
        self.wire.control() + self.late.len()
    }

    // ---- the end, and time ----

    /// Says that nothing follows, if that was not said. Whether it was not.
    pub(crate) fn finish(&mut self) -> bool {
        if self.is_finished || self.has_failed || !self.layer.is_up() {
            return false;
        }
        self.is_finished = true;
        self.layer.finish(&mut self.wire);
        true
    }

    pub(crate) fn poll_timeout(&self) -> Option<Moment> {
        if self.has_failed { None } else { self.layer.poll_timeout() }
    }

    pub(crate) fn handle_timeout(&mut self, now: Moment) {
        if self.poll_timeout().is_some_and(|at| now >= at) {
            let handled = self.layer.handle_timeout(&mut self.wire, now);
            self.note(handled);
        }
    }

    fn note(&mut self, result: Result<(), Failure>) {
        let result = match result {
            Ok(()) if self.layer.has_plain() && !self.layer.is_up() => {
                // Nobody may be heard before the handshake is over.
                Err("bytes of frames in the handshake".to_owned())
            }
            result => result,
        };
        if let Err(failure) = result {
            self.has_failed = true;
            self.failure.get_or_insert(failure);
        }
    }
}
