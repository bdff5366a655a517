//! Buffers of large frames that were handled, for the large frames to come.
//!
//! To allocate a megabyte and give it back for each frame costs more than to read into it: the system
//! clears every page, and takes it away again. So a few buffers are kept, in the order in which they
//! came free, the last one first: it is still in the cache.

use std::ops::RangeInclusive;

use bytes::Bytes;

/// The longest frame, in bytes, that is put together in the buffer which all connections share. A longer
/// one has a buffer of its own.
pub(crate) const LARGE_FRAME: usize = 64 * 1024;

/// The most bytes that all kept buffers of large frames hold together.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// The most bytes that all kept buffers of write queues hold together.
const MOST_CHUNK_BYTES: usize = 2 * 1024 * 1024;

/// The smallest and the largest of them that is kept.
const CHUNK_BYTES: RangeInclusive<usize> = 8 * 1024..=160 * 1024;

/// The buffers that nobody uses.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    free: Vec<Vec<u8>>,
    bytes: usize,
    /// Buffers of write queues that frames were copied to.
    chunks: Vec<Vec<u8>>,
    chunk_bytes: usize,
}

impl Spares {
    /// An empty buffer for a frame of this length, perhaps one that was used before.
    ///
    /// Not one that is twice as long: the application may keep the body, and with it the buffer.
    pub(crate) fn take(&mut self, frame_len: usize) -> Vec<u8> {
        let fits = |buffer: &Vec<u8>| buffer.capacity() / 2 <= frame_len;
        let Some(place) = self.free.iter().rposition(fits) else { return Vec::new() };
        let buffer = self.free.remove(place);
        self.bytes -= buffer.capacity();
        buffer
    }

    /// Keeps the buffer of a frame that was handled, if it is large and nobody else holds it.
    pub(crate) fn give(&mut self, frame: Bytes) {
        if frame.len() <= LARGE_FRAME / 2 {
            return;
        }
        let Ok(mut frame) = frame.try_into_mut() else { return };
        frame.clear(); // so that nothing is moved to the front
        let buffer = Vec::from(frame);
        if self.bytes + buffer.capacity() <= MOST_BYTES {
            self.bytes += buffer.capacity();
            self.free.push(buffer);
        }
    }

    /// An empty buffer for a write queue, perhaps one that was used before.
    pub(crate) fn take_chunk(&mut self) -> Vec<u8> {
        let buffer = self.chunks.pop().unwrap_or_default();
        self.chunk_bytes -= buffer.capacity();
        buffer
    }

    /// Keeps the buffer of a write queue, of which all was written.
    pub(crate) fn give_chunk(&mut self, mut buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        if CHUNK_BYTES.contains(&bytes) && self.chunk_bytes + bytes <= MOST_CHUNK_BYTES {
            buffer.clear();
            self.chunk_bytes += bytes;
            self.chunks.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 100_000;

    fn frame() -> Bytes {
        Bytes::from(vec![7; LEN])
    }

    #[test]
    fn buffer_of_a_handled_frame_is_used_again_whole() {
        let mut spares = Spares::default();
        let frame = frame();
        let start = frame.as_ptr();
        // As the body that was sent on, of a frame that nobody holds any more.
        let body = frame.slice(18..);
        drop(frame);
        spares.give(body);
        let again = spares.take(LEN);
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (start, 0, LEN));
        assert_eq!(spares.take(LEN).capacity(), 0);
        assert_eq!(spares.bytes, 0);
    }

    #[test]
    fn buffer_that_the_application_keeps_is_left_alone() {
        let mut spares = Spares::default();
        let frame = frame();
        let kept = frame.slice(..10);
        spares.give(frame);
        assert_eq!(spares.take(LEN).capacity(), 0);
        assert_eq!(kept, [7; 10][..]);
    }

    #[test]
    fn short_frame_takes_no_long_buffer() {
        let mut spares = Spares::default();
        spares.give(frame());
        assert_eq!(spares.take(LEN / 2 - 1).capacity(), 0);
        assert_eq!(spares.take(LEN / 2).capacity(), LEN);
    }

    #[test]
    fn what_is_kept_is_bounded_and_never_small() {
        let mut spares = Spares::default();
        spares.give(Bytes::from(vec![7; LARGE_FRAME / 2]));
        assert_eq!(spares.bytes, 0);
        for _ in 0..200 {
            spares.give(frame());
        }
        assert!(spares.bytes <= MOST_BYTES && spares.bytes > MOST_BYTES - LEN);
        spares.give(Bytes::from(vec![7; MOST_BYTES + 1]));
        assert!(spares.bytes <= MOST_BYTES);
    }
    #[test]
    fn buffers_of_queues_are_used_again_and_bounded() {
        let mut spares = Spares::default();
        for len in [100, *CHUNK_BYTES.end() + 1] {
            spares.give_chunk(Vec::with_capacity(len));
            assert_eq!(spares.chunk_bytes, 0);
        }
        let buffer = vec![7; LEN];
        let start = buffer.as_ptr();
        spares.give_chunk(buffer);
        let again = spares.take_chunk();
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (start, 0, LEN));
        for _ in 0..100 {
            spares.give_chunk(Vec::with_capacity(LEN));
        }
        let most = MOST_CHUNK_BYTES;
        assert!((most - LEN..=most).contains(&spares.chunk_bytes), "{}", spares.chunk_bytes);
        while spares.chunk_bytes > 0 {
            spares.take_chunk();
        }
        assert_eq!(spares.take_chunk().capacity(), 0);
    }
}
