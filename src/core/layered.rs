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
    /// The end was said.
    is_finished: bool,
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
            is_finished: false,
            late: Vec::new(),
            stalled_since: None,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.layer.name()
    }

    // ---- in ----

    pub(crate) fn receive(&mut self, wire: &mut [u8], now: Moment) -> Result<(), Failure> {
        let received = self.layer.receive(wire, &mut self.wire, now);
        self.note(received)
    }

    pub(crate) fn receive_end(&mut self) -> Result<(), Failure> {
        let received = self.layer.receive_end();
        self.note(received)
    }

    pub(crate) fn read(&mut self, room: &mut [u8]) -> usize {
        self.layer.read(room)
    }

    pub(crate) fn has_plain(&self) -> bool {
        self.layer.has_plain()
    }

    pub(crate) fn is_mid_record(&self) -> bool {
        self.layer.is_mid_record()
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.layer.is_ended() && !self.layer.has_plain()
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

    pub(crate) fn handle_timeout(&mut self, now: Moment) -> Result<(), Failure> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return Ok(());
        }
        let handled = self.layer.handle_timeout(&mut self.wire, now);
        self.note(handled)
    }

    fn note(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        self.has_failed |= result.is_err();
        result
    }
}
