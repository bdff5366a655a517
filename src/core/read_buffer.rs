//! The rest of a frame that one read did not complete.
//!
//! Reads go to one buffer that all connections share, and frames are parsed where they lie in it.
//! Only what is left of a split frame is kept here, so an idle connection holds nothing. A frame
//! that is longer than [`LARGE_FRAME`] is read straight into a buffer of its own, which grows with
//! what has arrived and never with what was declared, and is handed out without a copy.

use std::ops::Range;

use bytes::Bytes;

use super::spares::{LARGE_FRAME, Spares};
use crate::{
    moment::Moment,
    protocol::{Decoded, Head},
};

/// The most bytes that are read into the shared buffer at a time, behind what was kept. More costs cache,
/// less costs system calls.
pub(crate) const READ_CHUNK: usize = 64 * 1024;

/// The least that a large frame's buffer grows by.
const GROWTH: usize = 4 * 1024;

/// The most that is read at a time into a buffer that was used before.
const STEP: usize = 256 * 1024;

/// Bytes that a connection has received and not yet handled.
#[derive(Debug)]
pub(crate) struct ReadBuffer<Id>(Option<Box<Kept<Id>>>);

/// The rest of a frame, or frames that wait.
#[derive(Debug)]
struct Kept<Id> {
    /// Invariant: `bytes.len() >= filled`; what is behind `filled` is room for the next read.
    bytes: Vec<u8>,
    /// Invariant: not 0.
    filled: usize,
    /// Whether the frame at the front is being put together here.
    is_large: bool,
    front: Front<Id>,
}

/// The state of the frame at the front.
#[derive(Debug)]
pub(crate) enum Front<Id> {
    /// The decoder is asked when so many bytes are there.
    Needs(usize),
    /// The decoder's answer: the frame is not whole yet, and is not decoded again when it is.
    Frame(Frame<Id>),
    /// Frames that were received then and that a budget or a pause left. They were not decoded.
    Waits(Moment),
}

/// A frame as the decoder found it, counted from the front.
#[derive(Debug)]
pub(crate) struct Frame<Id> {
    pub(crate) head: Head<Id>,
    pub(crate) body: Range<usize>,
    pub(crate) len: usize,
}

impl<Id> From<Decoded<Id>> for Front<Id> {
    fn from(decoded: Decoded<Id>) -> Self {
        match decoded {
            Decoded::Need(total) => Self::Needs(total),
            Decoded::Frame { head, body, len } => Self::Frame(Frame { head, body, len }),
        }
    }
}

impl<Id> Default for ReadBuffer<Id> {
    fn default() -> Self {
        Self(None)
    }
}

impl<Id> ReadBuffer<Id> {
    /// Keeps what is left of a read, and what is known of it. What is to be put together here gets a
    /// buffer that was used before, if there is one.
    pub(crate) fn keep(&mut self, rest: &[u8], front: Front<Id>, spares: &mut Spares) {
        debug_assert!(self.is_empty());
        if rest.is_empty() {
            return;
        }
        let (is_large, mut bytes) = match &front {
            Front::Frame(frame) if frame.len > LARGE_FRAME => (true, spares.take(frame.len)),
            Front::Needs(_) => (rest.len() > LARGE_FRAME, Vec::new()),
            Front::Frame(_) | Front::Waits(_) => (false, Vec::new()),
        };
        bytes.extend_from_slice(rest);
        self.0 = Some(Box::new(Kept { bytes, filled: rest.len(), is_large, front }));
    }

    /// Since when whole frames wait in here, if some do.
    #[inline]
    pub(crate) fn waits_since(&self) -> Option<Moment> {
        match self.0.as_ref()?.front {
            Front::Waits(since) => Some(since),
            Front::Needs(_) | Front::Frame(_) => None,
        }
    }

    /// Bytes of the frame at the front, as far as known; 0: not yet, or there is none.
    pub(crate) fn frame_len(&self) -> usize {
        match self.0.as_ref().map(|kept| &kept.front) {
            Some(Front::Frame(frame)) => frame.len,
            Some(Front::Needs(total)) => *total,
            Some(Front::Waits(_)) | None => 0,
        }
    }

    /// Moves what was kept to the front of the shared buffer. How much that is, and what is known of
    /// it.
    #[inline]
    pub(crate) fn restore(&mut self, shared: &mut [u8]) -> (usize, Option<Front<Id>>) {
        debug_assert!(!self.is_large());
        let Some(kept) = self.0.take() else { return (0, None) };
        shared[..kept.filled].copy_from_slice(&kept.bytes[..kept.filled]);
        (kept.filled, Some(kept.front))
    }

    /// Where the next bytes go, at most `most` of them: into the shared buffer behind what is kept, or into
    /// that of a large frame.
    #[inline]
    pub(crate) fn room_for<'r>(&'r mut self, shared: &'r mut [u8], most: usize) -> &'r mut [u8] {
        if self.is_large() {
            let room = self.room();
            let len = room.len().min(most);
            &mut room[..len]
        } else {
            let kept = self.len();
            &mut shared[kept..kept + READ_CHUNK.min(most)]
        }
    }

    /// Where the next bytes of a large frame go; never reaches beyond the frame, where its length is
    /// known. Empty if there is no such frame.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.is_large() && !self.is_whole());
        let Some(kept) = &mut self.0 else { return &mut [] };
        let end = match &kept.front {
            Front::Frame(frame) => frame.len,
            Front::Needs(_) | Front::Waits(_) => usize::MAX,
        };
        if kept.bytes.len() == kept.filled {
            // Room that the buffer has already is cleared step by step, so that it is in the cache.
            let grown = match kept.bytes.capacity() - kept.filled {
                0 => kept.filled + kept.filled.max(GROWTH),
                spare => kept.filled + spare.min(STEP),
            };
            let len = grown.min(end);
            kept.bytes.reserve_exact(len - kept.filled);
            kept.bytes.resize(len, 0);
        }
        let end = end.min(kept.bytes.len());
        &mut kept.bytes[kept.filled..end]
    }

    /// The next `count` bytes of the room were filled.
    pub(crate) fn filled(&mut self, count: usize) {
        if let Some(kept) = &mut self.0 {
            kept.filled += count;
            debug_assert!(kept.filled <= kept.bytes.len());
        }
    }

    /// The bytes of a large frame, if the decoder has to be asked about them.
    pub(crate) fn undecoded(&self) -> Option<&[u8]> {
        let kept = self.0.as_ref()?;
        match kept.front {
            Front::Needs(total) if kept.filled >= total => Some(&kept.bytes[..kept.filled]),
            _ => None,
        }
    }

    /// Notes the decoder's answer about [`undecoded`](Self::undecoded).
    pub(crate) fn note(&mut self, decoded: Decoded<Id>) {
        if let Some(kept) = &mut self.0 {
            kept.front = decoded.into();
        }
    }

    /// Takes everything, and what is known of it.
    pub(crate) fn take(&mut self) -> (Bytes, Option<Front<Id>>) {
        let Some(kept) = self.0.take() else { return (Bytes::new(), None) };
        let Kept { mut bytes, filled, front, .. } = *kept;
        bytes.truncate(filled);
        (Bytes::from(bytes), Some(front))
    }

    #[inline]
    pub(crate) fn is_large(&self) -> bool {
        self.0.as_ref().is_some_and(|kept| kept.is_large)
    }

    /// Whether the frame at the front is known and has arrived to its end.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.as_ref().is_some_and(|kept| match &kept.front {
            Front::Frame(frame) => kept.filled >= frame.len,
            Front::Needs(_) | Front::Waits(_) => false,
        })
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |kept| kept.filled)
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
    use crate::protocol::NoId;

    fn buffer() -> ReadBuffer<NoId> {
        ReadBuffer::default()
    }

    /// The start of a frame of this length.
    fn frame(len: usize) -> Front<NoId> {
        Decoded::frame(Head::plain(NoId), 4, len - 4).into()
    }

    fn keep(buffer: &mut ReadBuffer<NoId>, rest: &[u8], front: Front<NoId>) {
        buffer.keep(rest, front, &mut Spares::default());
    }

    fn fill(buffer: &mut ReadBuffer<NoId>, mut count: usize) {
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
        let mut buffer = buffer();
        keep(&mut buffer, b"abc", frame(7));
        assert_eq!((buffer.frame_len(), buffer.waits_since()), (7, None));
        let mut shared = [0; 8];
        let (len, front) = buffer.restore(&mut shared);
        assert_eq!(len, 3);
        assert!(matches!(front, Some(Front::Frame(Frame { len: 7, .. }))), "{front:?}");
        assert_eq!(&shared[..3], b"abc");
        assert_eq!((buffer.len(), buffer.capacity()), (0, 0));
    }

    #[test]
    fn declared_length_allocates_nothing() {
        let mut buffer = buffer();
        keep(&mut buffer, &[0; 29], frame(1 << 30));
        assert!(buffer.capacity() < 64);
        buffer.room();
        assert!(buffer.capacity() <= 2 * GROWTH, "{}", buffer.capacity());
    }

    #[test]
    fn memory_is_at_most_twice_what_arrived() {
        let mut buffer = buffer();
        keep(&mut buffer, &[0; 100], frame(1 << 23));
        for _ in 0..1000 {
            fill(&mut buffer, 4000);
            assert!(buffer.capacity() <= 2 * buffer.len() + GROWTH);
        }
    }

    #[test]
    fn buffer_that_was_used_before_is_not_grown() {
        let mut buffer = buffer();
        let used = Bytes::from(vec![0; 1 << 20]);
        let start = used.as_ptr();
        let mut spares = Spares::default();
        spares.give(used);
        buffer.keep(b"head", frame(900_000), &mut spares);
        assert!(buffer.room().len() <= STEP);
        fill(&mut buffer, 900_000 - 4);
        assert!(buffer.is_whole());
        let (frame, _) = buffer.take();
        assert_eq!((frame.as_ptr(), frame.len()), (start, 900_000));
    }

    #[test]
    fn room_ends_with_the_frame() {
        let mut buffer = buffer();
        keep(&mut buffer, b"head", frame(100_000));
        fill(&mut buffer, 99_995);
        assert!(!buffer.is_whole());
        assert_eq!(buffer.room().len(), 1);
        fill(&mut buffer, 1);
        assert!(buffer.is_whole());
        let (frame, front) = buffer.take();
        assert!(matches!(front, Some(Front::Frame(Frame { len: 100_000, .. }))), "{front:?}");
        assert_eq!(frame.len(), 100_000);
        assert!(frame.starts_with(b"headx"));
        assert!(buffer.is_empty() && !buffer.is_large());
    }

    #[test]
    fn decoder_is_asked_when_as_much_is_there_as_it_needs() {
        let mut buffer = buffer();
        keep(&mut buffer, &vec![b'x'; LARGE_FRAME + 1], Front::Needs(LARGE_FRAME + 3));
        assert!(buffer.is_large() && !buffer.is_whole());
        fill(&mut buffer, 1);
        assert_eq!(buffer.undecoded(), None);
        fill(&mut buffer, 1);
        assert_eq!(buffer.undecoded().map(<[u8]>::len), Some(LARGE_FRAME + 3));
        buffer.note(Decoded::frame(Head::plain(NoId), 4, LARGE_FRAME));
        assert_eq!((buffer.undecoded(), buffer.frame_len()), (None, LARGE_FRAME + 4));
        assert_eq!(buffer.room().len(), 1, "the room ends with the frame that is known now");
        fill(&mut buffer, 1);
        assert!(buffer.is_whole());
    }
}
