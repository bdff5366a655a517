//! The rest of a frame that one read did not complete.
//!
//! Reads go to one buffer that all connections share, and frames are parsed where they lie in it.
//! Only what is left of a split frame is kept here, so an idle connection holds nothing. A frame
//! that is longer than [`LARGE_FRAME`] is read straight into a buffer of its own, which grows with
//! what has arrived and never with what was declared, and is handed out without a copy.

use bytes::Bytes;

use super::moment::Moment;

/// The longest frame, in bytes, that is put together in the shared buffer.
pub(crate) const LARGE_FRAME: usize = 64 * 1024;

/// The least that a large frame's buffer grows by.
const GROWTH: usize = 4 * 1024;

/// The most that is read at a time into a buffer that was used before.
const STEP: usize = 256 * 1024;

/// What a connection has received and not yet handled.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer(Option<Box<Kept>>);

/// The rest of a frame.
#[derive(Debug)]
struct Kept {
    /// Invariant: `bytes.len() >= filled`; what is behind `filled` is room for the next read.
    bytes: Vec<u8>,
    /// Invariant: not 0.
    filled: usize,
    /// Bytes of the frame at the front if it is being put together here; 0: it is not.
    large: usize,
    /// Bytes of the frame at the front, as far as known; 0: not yet.
    frame_len: usize,
    /// When the oldest of the whole frames in here was received, where a budget or a pause left some.
    waits_since: Option<Moment>,
}

/// The length of a frame that does not say where it ends.
const ENDLESS: usize = usize::MAX;

impl ReadBuffer {
    /// Keeps what is left of a read, the start of a frame of `frame_len` bytes (0: not known yet), to be
    /// put in front of the next one.
    pub(crate) fn keep(&mut self, rest: &[u8], frame_len: usize) {
        self.keep_in(Vec::new(), rest, 0);
        if let Some(kept) = &mut self.0 {
            kept.frame_len = frame_len;
        }
    }

    /// Keeps whole frames, which were received then and wait to be handled, and what is behind them.
    pub(crate) fn keep_waiting(&mut self, rest: &[u8], since: Moment) {
        self.keep_in(Vec::new(), rest, 0);
        if let Some(kept) = &mut self.0 {
            kept.waits_since = Some(since);
        }
    }

    /// Since when whole frames wait in here, if some do.
    #[inline]
    pub(crate) fn waits_since(&self) -> Option<Moment> {
        self.0.as_ref()?.waits_since
    }

    /// Bytes of the frame at the front, as far as known; 0: not yet, or there is none.
    pub(crate) fn frame_len(&self) -> usize {
        self.0.as_ref().map_or(0, |kept| kept.frame_len)
    }

    /// Keeps the start of a frame of `frame_len` bytes, to be completed here, in a buffer that is empty.
    pub(crate) fn keep_large(&mut self, rest: &[u8], frame_len: usize, buffer: Vec<u8>) {
        self.keep_in(buffer, rest, frame_len);
        if let Some(kept) = &mut self.0 {
            kept.frame_len = frame_len;
        }
    }

    /// Keeps the start of a frame that does not say where it ends, to be completed here.
    pub(crate) fn keep_endless(&mut self, rest: &[u8]) {
        self.keep_in(Vec::new(), rest, ENDLESS);
    }

    fn keep_in(&mut self, mut bytes: Vec<u8>, rest: &[u8], large: usize) {
        debug_assert!(self.is_empty() && bytes.is_empty());
        if !rest.is_empty() {
            bytes.extend_from_slice(rest);
            self.0 = Some(Box::new(Kept {
                bytes,
                filled: rest.len(),
                large,
                frame_len: 0,
                waits_since: None,
            }));
        }
    }

    /// Moves what was kept to the front of the shared buffer, and says how much that is.
    #[inline]
    pub(crate) fn restore(&mut self, shared: &mut [u8]) -> usize {
        debug_assert!(!self.is_large());
        let Some(kept) = self.0.take() else { return 0 };
        shared[..kept.filled].copy_from_slice(&kept.bytes[..kept.filled]);
        kept.filled
    }

    /// Where the next bytes of a large frame go; never reaches beyond the frame. Empty if there is no
    /// such frame.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.is_large() && !self.is_whole());
        let Some(kept) = &mut self.0 else { return &mut [] };
        if kept.bytes.len() == kept.filled {
            // What the buffer has already is cleared step by step, so that it is in the cache.
            let grown = match kept.bytes.capacity() - kept.filled {
                0 => kept.filled + kept.filled.max(GROWTH),
                spare => kept.filled + spare.min(STEP),
            };
            let len = grown.min(kept.large);
            kept.bytes.reserve_exact(len - kept.filled);
            kept.bytes.resize(len, 0);
        }
        &mut kept.bytes[kept.filled..]
    }

    /// The next `count` bytes of the room were filled.
    pub(crate) fn filled(&mut self, count: usize) {
        if let Some(kept) = &mut self.0 {
            kept.filled += count;
            debug_assert!(kept.filled <= kept.bytes.len());
        }
    }

    /// Takes the large frame, and what came behind one that does not say where it ends.
    pub(crate) fn take(&mut self) -> Bytes {
        let Some(mut kept) = self.0.take() else { return Bytes::new() };
        kept.bytes.truncate(kept.filled);
        Bytes::from(kept.bytes)
    }

    /// What arrived of a large frame.
    pub(crate) fn arrived(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |kept| &kept.bytes[..kept.filled])
    }

    pub(crate) fn is_endless(&self) -> bool {
        self.large() == ENDLESS
    }

    #[inline]
    pub(crate) fn is_large(&self) -> bool {
        self.large() > 0
    }

    /// Whether a large frame has arrived to its end.
    pub(crate) fn is_whole(&self) -> bool {
        self.len() >= self.large()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |kept| kept.filled)
    }

    #[inline]
    fn large(&self) -> usize {
        self.0.as_ref().map_or(0, |kept| kept.large)
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.0.as_ref().map_or(0, |kept| kept.bytes.capacity())
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
        buffer.keep(b"abc", 7);
        assert_eq!((buffer.frame_len(), buffer.waits_since()), (7, None));
        let mut shared = [0; 8];
        assert_eq!(buffer.restore(&mut shared), 3);
        assert_eq!(&shared[..3], b"abc");
        assert_eq!((buffer.len(), buffer.capacity()), (0, 0));
    }

    #[test]
    fn declared_length_allocates_nothing() {
        let mut buffer = ReadBuffer::default();
        buffer.keep_large(&[0; 29], 1 << 30, Vec::new());
        assert!(buffer.capacity() < 64);
        buffer.room();
        assert!(buffer.capacity() <= 2 * GROWTH, "{}", buffer.capacity());
    }

    #[test]
    fn memory_is_at_most_twice_what_arrived() {
        let mut buffer = ReadBuffer::default();
        buffer.keep_large(&[0; 100], 1 << 22, Vec::new());
        for _ in 0..1000 {
            fill(&mut buffer, 4000);
            assert!(buffer.capacity() <= 2 * buffer.len() + GROWTH);
        }
    }

    #[test]
    fn buffer_that_was_used_before_is_not_grown() {
        let mut buffer = ReadBuffer::default();
        let used = Vec::with_capacity(1 << 20);
        let start = used.as_ptr();
        buffer.keep_large(b"head", 900_000, used);
        assert!(buffer.room().len() <= STEP);
        fill(&mut buffer, 900_000 - 4);
        assert!(buffer.is_whole());
        let frame = buffer.take();
        assert_eq!((frame.as_ptr(), frame.len()), (start, 900_000));
    }

    #[test]
    fn room_ends_with_the_frame() {
        let mut buffer = ReadBuffer::default();
        buffer.keep_large(b"head", 10_000, Vec::new());
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
