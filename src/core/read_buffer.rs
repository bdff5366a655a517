//! The rest of a frame that one read did not complete.
//!
//! Reads go to one buffer that all connections share, and frames are parsed where they lie in it.
//! Only what is left of a split frame is kept here, so an idle connection holds nothing. A frame
//! that is longer than [`LARGE_FRAME`] is read straight into a buffer of its own, which grows with
//! what has arrived and never with what was declared, and is handed out without a copy.

use bytes::Bytes;

/// The longest frame, in bytes, that is put together in the shared buffer.
pub(crate) const LARGE_FRAME: usize = 64 * 1024;

/// The least that a large frame's buffer grows by.
const GROWTH: usize = 4 * 1024;

/// What a connection has received and not yet handled.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    /// Invariant: `bytes.len() >= filled`; what is behind `filled` is room for the next read.
    bytes: Vec<u8>,
    filled: usize,
    /// Bytes of the frame at the front if it is being put together here; 0: it is not.
    large: usize,
}

/// The length of a frame that does not say where it ends.
const ENDLESS: usize = usize::MAX;

impl ReadBuffer {
    /// Keeps what is left of a read, to be put in front of the next one.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        debug_assert!(self.is_empty());
        self.bytes.extend_from_slice(rest);
        self.filled = rest.len();
    }

    /// Keeps the start of a frame of `frame_len` bytes, to be completed here.
    pub(crate) fn keep_large(&mut self, rest: &[u8], frame_len: usize) {
        self.keep(rest);
        self.large = frame_len;
    }

    /// Keeps the start of a frame that does not say where it ends, to be completed here.
    pub(crate) fn keep_endless(&mut self, rest: &[u8]) {
        self.keep_large(rest, ENDLESS);
    }

    /// Moves what was kept to the front of the shared buffer, and says how much that is.
    pub(crate) fn restore(&mut self, shared: &mut [u8]) -> usize {
        debug_assert!(!self.is_large());
        let len = self.filled;
        if len > 0 {
            shared[..len].copy_from_slice(&self.bytes[..len]);
            *self = Self::default();
        }
        len
    }

    /// Where the next bytes of a large frame go. Never reaches beyond the frame.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.is_large() && !self.is_whole());
        if self.bytes.len() == self.filled {
            let grown = self.filled + self.filled.max(GROWTH);
            let len = grown.min(self.large);
            self.bytes.reserve_exact(len - self.filled);
            self.bytes.resize(len, 0);
        }
        &mut self.bytes[self.filled..]
    }

    /// The next `count` bytes of the room were filled.
    pub(crate) fn filled(&mut self, count: usize) {
        self.filled += count;
        debug_assert!(self.filled <= self.bytes.len());
    }

    /// Takes the large frame, and what came behind one that does not say where it ends.
    pub(crate) fn take(&mut self) -> Bytes {
        let mut bytes = std::mem::take(self);
        bytes.bytes.truncate(bytes.filled);
        Bytes::from(bytes.bytes)
    }

    /// What arrived of a large frame.
    pub(crate) fn arrived(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    pub(crate) const fn is_endless(&self) -> bool {
        self.large == ENDLESS
    }

    pub(crate) const fn is_large(&self) -> bool {
        self.large > 0
    }

    /// Whether a large frame has arrived to its end.
    pub(crate) const fn is_whole(&self) -> bool {
        self.filled >= self.large
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    pub(crate) const fn len(&self) -> usize {
        self.filled
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(crate) const fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(buffer: &mut ReadBuffer, mut count: usize) {
        while count > 0 {
            let room = buffer.room();
            let len = room.len().min(count);
            room[..len].fill(b'x');
            buffer.filled(len);
            count -= len;
        }
    }

    #[test]
    fn what_is_kept_comes_back_in_front() {
        let mut buffer = ReadBuffer::default();
        buffer.keep(b"abc");
        let mut shared = [0; 8];
        assert_eq!(buffer.restore(&mut shared), 3);
        assert_eq!(&shared[..3], b"abc");
        assert_eq!((buffer.len(), buffer.capacity()), (0, 0));
    }

    #[test]
    fn declared_length_allocates_nothing() {
        let mut buffer = ReadBuffer::default();
        buffer.keep_large(&[0; 29], 1 << 30);
        assert!(buffer.capacity() < 64);
        buffer.room();
        assert!(buffer.capacity() <= 2 * GROWTH, "{}", buffer.capacity());
    }

    #[test]
    fn memory_is_at_most_twice_what_arrived() {
        let mut buffer = ReadBuffer::default();
        buffer.keep_large(&[0; 100], 1 << 22);
        for _ in 0..1000 {
            fill(&mut buffer, 4000);
            assert!(buffer.capacity() <= 2 * buffer.len() + GROWTH);
        }
    }

    #[test]
    fn room_ends_with_the_frame() {
        let mut buffer = ReadBuffer::default();
        buffer.keep_large(b"head", 10_000);
        fill(&mut buffer, 9_995);
        assert!(!buffer.is_whole());
        assert_eq!(buffer.room().len(), 1);
        fill(&mut buffer, 1);
        assert!(buffer.is_whole());
        let frame = buffer.take();
        assert_eq!(frame.len(), 10_000);
        assert!(frame.starts_with(b"headx"));
        assert!(buffer.is_empty() && !buffer.is_large());
    }
}
