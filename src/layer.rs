//! Layers between the socket and the frames, as TLS is one.
//!
//! A [`Layer`] turns bytes of the wire into bytes of frames, and back. It only computes: the loop reads
//! and writes the socket, and the connection has the frames.
//!
//! ```text
//! socket ─▶ receive ─▶ [ Layer ] ─▶ read ─▶ frames
//! socket ◀─ Wire    ◀─ [ Layer ] ◀─ seal ◀─ write queue
//! ```
//!
//! - A frame stays in the write queue until the records that carry it were written. So what was not
//!   sent can be handed back, and the fate of a call is known, as without a layer.
//! - The layer is asked for one batch at a time, and only when the one before it was written. So what is
//!   held twice is bounded.
//! - The next bytes of the wire are given to it only when all that it had was read. So what waits in it is
//!   bounded by one read, whatever it makes of that.

use std::{
    collections::VecDeque,
    fmt,
    hash::{Hash, Hasher},
    io::IoSlice,
    mem,
    sync::Arc,
};

use crate::{moment::Moment, role::Role};

/// A layer gave the connection up, for this reason.
pub(crate) type Failure = String;

/// One connection's layer.
pub(crate) trait Layer: fmt::Debug + Send {
    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// Bytes came from the peer. All that came before was [read](Self::read).
    fn receive(&mut self, wire: &mut [u8], out: &mut Wire, now: Moment) -> Result<(), Failure>;

    /// The peer's bytes have ended. May be told more than once.
    fn receive_end(&mut self) -> Result<(), Failure>;

    /// Moves bytes of frames to `room`; how many.
    fn read(&mut self, room: &mut [u8]) -> usize;

    /// Whether [`read`](Self::read) has something to give.
    fn has_plain(&self) -> bool;

    /// The record of which a part waits for the rest: how many there were before it.
    fn mid_record(&self) -> Option<u64>;

    /// Whether the peer has ended its direction in the layer's own way, and no bytes of frames follow.
    fn is_ended(&self) -> bool;

    /// Whether the handshake is over.
    fn is_up(&self) -> bool;

    /// Whether [`seal`](Self::seal) takes something now. Not before the handshake is over.
    fn can_seal(&self) -> bool;

    /// Seals up to `most` bytes of frames, from the start of the first slice on and at least one: as
    /// records into `out`.
    fn seal(&mut self, plain: &[IoSlice<'_>], most: usize, out: &mut Wire, now: Moment);

    /// Says that nothing follows. Called once, when the last frame was sealed and written.
    fn finish(&mut self, out: &mut Wire);

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    fn poll_timeout(&self) -> Option<Moment>;

    /// That time has come.
    fn handle_timeout(&mut self, out: &mut Wire, now: Moment) -> Result<(), Failure>;
}

/// Makes the layers of the connections of a listener, or of those that are dialled.
pub(crate) trait MakeLayer: fmt::Debug + Send + Sync {
    /// A layer for a new connection. `salt` is random, and one connection's own.
    fn make(&self, role: Role, salt: u64, out: &mut Wire, now: Moment) -> Box<dyn Layer>;
}

/// A maker in the settings. Two are equal if they are one.
#[derive(Clone, Debug)]
pub(crate) struct LayerMaker(Arc<dyn MakeLayer>);

impl LayerMaker {
    #[cfg_attr(not(test), expect(dead_code, reason = "TLS and WebSocket are to come"))]
    pub(crate) fn new(maker: impl MakeLayer + 'static) -> Self {
        Self(Arc::new(maker))
    }

    /// A layer for a new connection.
    pub(crate) fn make(
        &self,
        role: Role,
        salt: u64,
        out: &mut Wire,
        now: Moment,
    ) -> Box<dyn Layer> {
        self.0.make(role, salt, out, now)
    }
}

impl PartialEq for LayerMaker {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for LayerMaker {}

impl Hash for LayerMaker {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}

/// Bytes for the wire, in records, which remember how many bytes of frames they carry.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    bytes: Vec<u8>,
    /// How many of them were written.
    written: usize,
    records: VecDeque<Record>,
    /// Bytes of frames that the records carry which were not written whole.
    plain: usize,
    /// Bytes on the wire of those that carry none.
    control: usize,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Bytes of it that are left to write, and whether that is all of it.
    left: usize,
    is_whole: bool,
    /// The bytes of frames in it.
    plain: usize,
}

impl Wire {
    /// Appends a record, which `write` appends, of so many bytes of frames; 0: it is the layer's own.
    #[cfg_attr(not(test), expect(dead_code, reason = "TLS and WebSocket are to come"))]
    pub(crate) fn push(&mut self, plain: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        write(&mut self.bytes);
        let left = self.bytes.len() - before;
        self.plain += plain;
        if plain == 0 {
            self.control += left;
        }
        self.records.push_back(Record { left, is_whole: true, plain });
    }

    /// The next `count` bytes were written. How many bytes of frames are in the records that this
    /// finished.
    pub(crate) fn advance(&mut self, mut count: usize) -> usize {
        self.written += count;
        let mut plain = 0;
        while let Some(record) = self.records.front_mut() {
            let part = count.min(record.left);
            record.left -= part;
            record.is_whole &= part == 0;
            count -= part;
            if record.plain == 0 {
                self.control -= part;
            }
            if record.left > 0 {
                break;
            }
            plain += record.plain;
            self.records.pop_front();
        }
        self.plain -= plain;
        plain
    }

    /// Bytes of frames in the record that was written in part, if one was: the peer may have them.
    pub(crate) fn begun(&self) -> usize {
        self.records.front().map_or(0, |record| if record.is_whole { 0 } else { record.plain })
    }

    /// What was not written.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Whether all was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Bytes of frames in what was not written.
    pub(crate) const fn plain(&self) -> usize {
        self.plain
    }

    /// Bytes that carry no frames in what was not written.
    pub(crate) const fn control(&self) -> usize {
        self.control
    }

    /// All was written: its buffer, empty, for others to use.
    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        self.written = 0;
        let mut buffer = mem::take(&mut self.bytes);
        buffer.clear();
        buffer
    }
}

#[cfg(test)]
pub(crate) mod records;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(wire: &mut Wire, plain: usize, bytes: usize) {
        wire.push(plain, |out| out.resize(out.len() + bytes, 7));
    }

    #[test]
    fn frames_count_as_written_with_the_last_byte_of_their_record() {
        let mut wire = Wire::default();
        record(&mut wire, 10, 15);
        record(&mut wire, 20, 25);
        assert_eq!(wire.advance(14), 0);
        assert_eq!(wire.advance(1), 10);
        assert_eq!(wire.advance(24), 0);
        assert!(!wire.is_empty());
        assert_eq!((wire.advance(1), wire.is_empty(), wire.plain), (20, true, 0));
    }

    #[test]
    fn record_of_which_a_byte_was_written_may_have_reached_the_peer() {
        let mut wire = Wire::default();
        record(&mut wire, 10, 15);
        record(&mut wire, 20, 25);
        assert_eq!(wire.begun(), 0);
        wire.advance(1);
        assert_eq!(wire.begun(), 10);
        wire.advance(14);
        assert_eq!(wire.begun(), 0);
        wire.advance(1);
        assert_eq!(wire.begun(), 20);
    }

    #[test]
    fn records_of_the_layers_own_are_charged_until_they_are_written() {
        let mut wire = Wire::default();
        record(&mut wire, 0, 100);
        record(&mut wire, 10, 15);
        assert_eq!(wire.control, 100);
        wire.advance(60);
        assert_eq!(wire.control, 40);
        assert_eq!(wire.advance(55), 10);
        assert_eq!(wire.control, 0);
    }
}
