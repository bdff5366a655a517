//! The write queue of a connection: frames that the system has not taken yet, in order.
//!
//! Small frames are encoded one behind the other into one buffer; a large body stays where it is
//! and is only referred to. Control frames overtake: they go out at the next border between two
//! frames, but never inside of one.
//!
//! ```text
//! chunks   [ h b h b h b h | body ]  tail [ h b h b ]    h b: header and body of a frame
//!              ^ front_offset
//! frames   [ 3 × 80 | 1 × 9000 ]     run [ 2 × 80 ]      the same bytes, cut into frames
//!              ^ front_written
//! urgent   [ pong pong ]                                 goes out before the next frame starts
//! ```
//!
//! Of each message that nobody answers the queue knows the tag and where the body starts, so that
//! what was not sent can be handed back without parsing it. A format that transforms bodies has the
//! original kept beside the frame.

mod frame;
mod pool;
mod unsent;
mod written;

use std::{collections::VecDeque, mem};

use bytes::Bytes;

use self::frame::{Frame, Frames};
pub(crate) use self::{
    frame::{FRAME_OVERHEAD, What},
    pool::QueuePool,
    written::Written,
};
use super::spares::Spares;
use crate::{body::Body, moment::Moment};

/// Bodies from this size on are referred to, not copied. Below it a copy is cheaper than one more
/// slice of a vectored write and one more count of references.
pub(crate) const SHARE_BYTES: usize = 8 * 1024;

/// Where a buffer of small frames ends and the next begins.
const CHUNK_BYTES: usize = 64 * 1024;
/// Room for the header of a large frame whose body is copied; a longer one makes the buffer grow.
const HEADER_ROOM: usize = 256;

/// The largest buffer that an empty queue keeps.
const SPARE_BYTES: usize = 16 * 1024;
/// The longest list of frames, and of any other kind, that it keeps.
const SPARE_FRAMES: usize = 64;
const SPARE_ITEMS: usize = 16;
/// The largest of its other buffers that it keeps.
const SPARE_URGENT: usize = 1024;

/// The write queue of one connection. Drawn from a [`QueuePool`] while there is something in it.
#[derive(Debug, Default)]
pub(crate) struct WriteQueue {
    /// The buffers that go out before `tail`. None of them is empty.
    chunks: VecDeque<Chunk>,
    /// Small frames behind all that is in `chunks`, and where the next one goes.
    tail: Vec<u8>,
    /// Bytes that were written of the first chunk, or of `tail` if there is none.
    front_offset: usize,
    /// The frames before those of `run`. Invariant: the lengths of all add up to
    /// `bytes + front_written`.
    frames: VecDeque<Frames>,
    /// The last frames.
    run: Frames,
    /// The charge against the watermarks: the bytes that were not written, control frames
    /// included, and [`FRAME_OVERHEAD`] for each other frame that was not written whole.
    cost: usize,
    /// Bytes of the first frame that were written.
    front_written: usize,
    /// The first bytes of the first frame, where they are no longer in the chunks.
    front_head: Vec<u8>,
    /// Bytes in `chunks` and `tail` that were not written.
    bytes: usize,
    /// The charge of frames that the peer caused, of those not written whole.
    caused: usize,
    /// Control frames, not written from `urgent_offset` on.
    urgent: Vec<u8>,
    urgent_offset: usize,
    /// The bodies of the frames that do not contain them unchanged, in order.
    ///
    /// Invariant: one for each frame that has one and is not written whole. They are charged, too.
    originals: VecDeque<Bytes>,
    /// An encoder took bytes away that were there before: what is queued is not to be written.
    is_torn: bool,
    /// Since when bytes wait to be written and none was taken; kept for the connection.
    pub(crate) stalled_since: Option<Moment>,
    /// The state that [`check`](Self::check) last found right, so that a long queue is not gone through for nothing.
    #[cfg(test)]
    checked: std::cell::Cell<[usize; 6]>,
}

#[derive(Debug)]
enum Chunk {
    Small(Vec<u8>),
    Shared(Bytes),
}

/// Takes back what an encoder wrote, if that panics: half a frame must never be sent.
///
/// An encoder that takes away what was there before panics, too. What is lost can't be brought back; its
/// place stays, so that the accounts hold, and the queue is torn.
struct Undo<'a, const IS_URGENT: bool> {
    queue: &'a mut WriteQueue,
    before: usize,
}

impl<const IS_URGENT: bool> Undo<'_, IS_URGENT> {
    #[inline]
    const fn buffer(&mut self) -> &mut Vec<u8> {
        if IS_URGENT { &mut self.queue.urgent } else { &mut self.queue.tail }
    }
}

impl<const IS_URGENT: bool> Drop for Undo<'_, IS_URGENT> {
    #[cold]
    fn drop(&mut self) {
        let before = self.before;
        let is_torn = self.buffer().len() < before;
        self.buffer().resize(before, 0);
        self.queue.is_torn |= is_torn;
    }
}

/// A chunk, or the tail.
#[derive(Clone, Copy, Debug)]
enum Piece<'a> {
    Small(&'a [u8]),
    Shared(&'a Bytes),
}

impl Chunk {
    fn as_piece(&self) -> Piece<'_> {
        match self {
            Self::Small(bytes) => Piece::Small(bytes),
            Self::Shared(bytes) => Piece::Shared(bytes),
        }
    }
}

impl<'a> Piece<'a> {
    fn as_slice(self) -> &'a [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl WriteQueue {
    /// Appends what `encode` appends, and says how much that is. If `encode` panics nothing is appended.
    #[inline]
    fn append<const IS_URGENT: bool>(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let mut undo = Undo::<IS_URGENT> { queue: self, before: 0 };
        undo.before = undo.buffer().len();
        encode(undo.buffer());
        let len = undo.buffer().len().checked_sub(undo.before).expect("an encoder only appends");
        mem::forget(undo);
        len
    }

    /// Appends a frame that `encode` appends to the buffer, with a body of this length at its end.
    ///
    /// This and the others that push leave the queue as it was if `encode` panics.
    #[inline]
    pub(crate) fn push(
        &mut self,
        what: What,
        tag: u32,
        body_len: usize,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.tail.len() >= CHUNK_BYTES {
            self.begin_chunk(Vec::new());
        }
        let len = self.append::<false>(encode);
        self.account(Frame::new(len, what, tag, body_len));
    }

    /// Makes room for a large frame, of a body of this length, that will be copied: in a buffer
    /// that was used before, if it does not fit behind the frames that are there.
    pub(crate) fn make_room(&mut self, body_len: usize, spares: &mut Spares) {
        let need = body_len + HEADER_ROOM;
        if self.tail.len() + need > CHUNK_BYTES && !self.tail.is_empty() {
            self.begin_chunk(spares.take_chunk());
        }
        if self.tail.capacity() - self.tail.len() >= need {
            return;
        }
        if self.tail.capacity() <= SPARE_BYTES {
            let mut buffer = spares.take_chunk();
            buffer.reserve(self.tail.len() + need);
            buffer.extend_from_slice(&self.tail);
            self.tail = buffer;
        }
        self.tail.reserve(need);
    }

    /// Appends a frame of what `encode` appends to the buffer and a body that is referred to.
    pub(crate) fn push_shared(
        &mut self,
        what: What,
        tag: u32,
        encode: impl FnOnce(&mut Vec<u8>),
        body: Bytes,
    ) {
        let header_len = self.append::<false>(encode);
        let body_len = body.len();
        self.seal();
        if !body.is_empty() {
            self.chunks.push_back(Chunk::Shared(body));
        }
        self.account(Frame::new(header_len + body_len, what, tag, body_len));
    }

    /// Appends a frame, which `encode` appends to the buffer, that may not contain the body
    /// unchanged: a body that is not found at its end is kept beside it.
    pub(crate) fn push_transformed<B: Body>(
        &mut self,
        what: What,
        tag: u32,
        body: B,
        encode: impl FnOnce(&[u8], &mut Vec<u8>),
    ) {
        let (before, body_len) = (self.tail.len(), body.as_slice().len());
        let encode = |out: &mut Vec<u8>| encode(body.as_slice(), out);
        let len = self.append::<false>(encode);
        let frame = Frame::new(len, what, tag, body_len.min(len));
        if what.is_push() && !self.tail[before..].ends_with(body.as_slice()) {
            self.account_with_original(frame, body.into_bytes());
        } else {
            self.account(frame);
        }
    }

    /// Appends a push that was encoded before. `original` is its body, if the frame may not end with
    /// that unchanged.
    pub(crate) fn push_encoded(
        &mut self,
        tag: u32,
        body_len: usize,
        frame: &Bytes,
        original: Option<&Bytes>,
    ) {
        if frame.len() >= SHARE_BYTES {
            self.seal();
            self.chunks.push_back(Chunk::Shared(frame.clone()));
        } else {
            if self.tail.len() >= CHUNK_BYTES {
                self.begin_chunk(Vec::new());
            }
            self.tail.extend_from_slice(frame);
        }
        let frame = Frame::new(
            frame.len(),
            What::Push { is_caused: false },
            tag,
            body_len.min(frame.len()),
        );
        match original {
            None => self.account(frame),
            Some(original) => self.account_with_original(frame, original.clone()),
        }
    }

    /// The tail is full, and there is more. The next one gets its whole length at once: queues that
    /// grow long then take and give back memory in pieces of one size, which serve each other.
    #[cold]
    fn begin_chunk(&mut self, buffer: Vec<u8>) {
        self.seal();
        self.tail = buffer;
        self.tail.reserve_exact(CHUNK_BYTES + SHARE_BYTES + HEADER_ROOM);
    }

    /// The tail takes no more.
    #[cold]
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(Chunk::Small(mem::take(&mut self.tail)));
        }
    }

    /// A frame was appended.
    #[inline]
    fn account(&mut self, frame: Frame) {
        self.bytes += frame.len;
        self.cost += frame.cost();
        if frame.what.is_caused() {
            self.caused += frame.cost();
        }
        if frame.is_like(&self.run.alike) {
            self.run.count += 1;
        } else {
            self.begin_run(Frames { alike: frame, count: 1 });
        }
    }

    /// A frame was appended whose body is kept beside it.
    fn account_with_original(&mut self, frame: Frame, original: Bytes) {
        self.cost += original.len();
        if frame.what.is_caused() {
            self.caused += original.len();
        }
        self.originals.push_back(original);
        self.account(Frame { body_at: 0, has_original: true, ..frame });
    }

    fn begin_run(&mut self, run: Frames) {
        let ended = mem::replace(&mut self.run, run);
        if ended.count > 0 {
            self.frames.push_back(ended);
        }
    }

    /// Appends control frames that overtake what is queued.
    pub(crate) fn push_urgent(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.cost += self.append::<true>(encode);
    }

    /// The frames at the front, if there are any.
    fn front_frames(&mut self) -> Option<&mut Frames> {
        match self.frames.front_mut() {
            None if self.run.count > 0 => Some(&mut self.run),
            front => front,
        }
    }

    /// The length of the frame at the front.
    fn front_len(&self) -> usize {
        self.frames.front().unwrap_or(&self.run).alike.len
    }

    /// All that is to be written, in pieces, from the start of the first.
    fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let tail = Some(Piece::Small(&self.tail)).filter(|_| !self.tail.is_empty());
        self.chunks.iter().map(Chunk::as_piece).chain(tail)
    }

    /// Forgets what is left to write.
    pub(crate) fn forget(&mut self) {
        self.urgent.clear();
        self.urgent_offset = 0;
        self.empty();
        self.is_torn = false;
        self.stalled_since = None;
    }

    /// All frames were written, or are not to be.
    fn empty(&mut self) {
        self.frames.clear();
        if !self.originals.is_empty() {
            self.originals.clear();
        }
        self.run.count = 0;
        self.cost = self.urgent_bytes();
        self.front_written = 0;
        self.front_head.clear();
        self.bytes = 0;
        self.caused = 0;
        self.drop_chunks();
    }

    /// Gives back the memory of a time when there was much; for a queue that is empty.
    #[inline]
    fn trim(&mut self) {
        debug_assert!(self.is_empty());
        trim_list(&mut self.chunks, SPARE_ITEMS);
        trim_list(&mut self.originals, SPARE_ITEMS);
        trim_list(&mut self.frames, SPARE_FRAMES);
        trim_buffer(&mut self.tail, SPARE_BYTES);
        trim_buffer(&mut self.urgent, SPARE_URGENT);
        trim_buffer(&mut self.front_head, SPARE_URGENT);
    }

    /// Bytes of memory held, those of shared bodies aside.
    fn memory(&self) -> usize {
        size_of::<Self>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.originals.capacity() * size_of::<Bytes>()
            + self.frames.capacity() * size_of::<Frames>()
            + self.tail.capacity()
            + self.urgent.capacity()
            + self.front_head.capacity()
    }

    #[inline]
    const fn has_urgent(&self) -> bool {
        self.urgent.len() > self.urgent_offset
    }

    /// Whether an encoder took away what was queued. Then nothing may be written, and the bodies of what is
    /// queued are not known.
    #[inline]
    pub(crate) const fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// Whether nothing is left to write, control frames included.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes == 0 && !self.has_urgent()
    }

    /// Bytes left to write, control frames included.
    #[inline]
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes + self.urgent_bytes()
    }

    /// Bytes of frames left to write, those of control frames that overtake aside.
    pub(crate) const fn frame_bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of control frames left to write.
    #[inline]
    pub(crate) const fn urgent_bytes(&self) -> usize {
        self.urgent.len() - self.urgent_offset
    }

    /// The charge against the watermarks: the bytes, and the overhead of each frame.
    #[inline]
    pub(crate) const fn cost(&self) -> usize {
        self.cost
    }

    /// The part of it that the peer's own messages caused, charged like [`cost`](Self::cost).
    #[inline]
    pub(crate) const fn caused(&self) -> usize {
        self.caused
    }

    /// Messages that were not written whole.
    pub(crate) fn messages(&self) -> u64 {
        let messages = self.all_frames().filter(|frames| frames.alike.what != What::Control);
        messages.map(|frames| frames.count as u64).sum()
    }

    fn all_frames(&self) -> impl Iterator<Item = &Frames> {
        self.frames.iter().chain([&self.run])
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let Self { bytes, cost, caused, front_written, .. } = *self;
        let now = [bytes, cost, caused, front_written, self.chunks.len(), self.originals.len()];
        if self.checked.replace(now) == now {
            return;
        }
        let in_pieces: usize = self.pieces().map(|piece| piece.as_slice().len()).sum();
        let in_frames: usize = self.all_frames().map(|run| run.alike.len * run.count).sum();
        assert_eq!(in_pieces - self.front_offset, self.bytes);
        assert_eq!(in_frames - self.front_written, self.bytes);
        let (mut cost, mut caused, mut originals) = (self.bytes(), 0, self.originals.iter());
        for Frames { alike, count } in self.all_frames() {
            let beside = if alike.has_original { *count } else { 0 };
            let beside: usize = originals.by_ref().take(beside).map(Bytes::len).sum();
            let overhead = count * FRAME_OVERHEAD + beside;
            cost += overhead;
            caused += if alike.what.is_caused() { count * alike.len + overhead } else { 0 };
        }
        assert_eq!((cost, caused), (self.cost, self.caused));
        assert_eq!(originals.next(), None);
        assert!(self.urgent_offset <= self.urgent.len());
    }
}

fn trim_buffer(buffer: &mut Vec<u8>, most: usize) {
    if buffer.capacity() > most {
        *buffer = Vec::new();
    }
}

fn trim_list<T>(list: &mut VecDeque<T>, most: usize) {
    if list.capacity() > most {
        *list = VecDeque::new();
    }
}

#[cfg(test)]
mod tests;
