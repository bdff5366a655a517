//! What a connection has still to give to the system, in order.
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

use std::{borrow::Cow, collections::VecDeque, io::IoSlice, iter};

use bytes::Bytes;

use super::{moment::Moment, spares::Spares};

/// Bodies from this size on are referred to, not copied. Below it a copy is cheaper than one more
/// slice of a vectored write and one more count of references.
pub(crate) const SHARE_BYTES: usize = 8 * 1024;

/// What every queued frame is charged beside its bytes, so that empty messages cost too.
pub(crate) const FRAME_OVERHEAD: usize = 32;

/// Where a buffer of small frames ends and the next begins.
const CHUNK_BYTES: usize = 64 * 1024;

/// The largest buffer that an empty queue keeps.
const SPARE_BYTES: usize = 16 * 1024;
/// The longest list of frames and the largest buffer of control frames that it keeps.
const SPARE_FRAMES: usize = 64;
const SPARE_URGENT: usize = 1024;

/// The write queue of one connection. Drawn from a [`QueuePool`] while there is something in it.
#[derive(Debug, Default)]
pub(crate) struct WriteQueue {
    /// What goes out before `tail`. None of them is empty.
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
    /// What is charged against the watermarks: the bytes that were not written, control frames
    /// included, and [`FRAME_OVERHEAD`] for each other frame that was not written whole.
    cost: usize,
    /// Bytes of the first frame that were written.
    front_written: usize,
    /// The first bytes of the first frame, where they are no longer in the chunks.
    front_head: Vec<u8>,
    /// Bytes in `chunks` and `tail` that were not written.
    bytes: usize,
    /// What frames that the peer caused are charged, those not written whole.
    caused: usize,
    /// Control frames, not written from `urgent_offset` on.
    urgent: Vec<u8>,
    urgent_offset: usize,
    /// Since when bytes wait to be written and none was taken; kept for the connection.
    pub(crate) stalled_since: Option<Moment>,
}

#[derive(Debug)]
enum Chunk {
    Small(Vec<u8>),
    Shared(Bytes),
}

/// Frames of one length and kind in a row, as an echo and a broadcast have them.
#[derive(Clone, Copy, Debug, Default)]
struct Frames {
    len: usize,
    what: What,
    count: usize,
}

/// What a queued frame is to the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum What {
    /// No message of its own.
    #[default]
    Control,
    /// A message that nobody answers.
    Push {
        /// A message of the peer's made the application send it.
        is_caused: bool,
    },
    /// The request of a call.
    Request,
    /// The answer to a request of the peer's.
    Answer,
}

impl What {
    const fn is_caused(self) -> bool {
        matches!(self, Self::Answer | Self::Push { is_caused: true })
    }
}

/// A frame that was not written whole.
#[derive(Debug)]
pub(crate) struct Unsent<'a> {
    /// Its bytes, or those before its body.
    pub(crate) head: Cow<'a, [u8]>,
    /// Its body, where that was referred to; or the whole frame, if `head` is empty.
    pub(crate) shared: Option<&'a Bytes>,
}

/// What [`WriteQueue::advance`] finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Messages whose last byte was written.
    pub(crate) messages: u64,
    /// Bytes of frames in the queue's order, without the control frames that overtook.
    pub(crate) bytes: usize,
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
    /// Appends a frame that `encode` appends to the buffer.
    #[inline]
    pub(crate) fn push(&mut self, what: What, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.tail.len() >= CHUNK_BYTES {
            self.seal();
        }
        let before = self.tail.len();
        encode(&mut self.tail);
        self.account(what, self.tail.len() - before);
    }

    /// Appends a frame of what `encode` appends to the buffer and a body that is referred to.
    pub(crate) fn push_shared(
        &mut self,
        what: What,
        encode: impl FnOnce(&mut Vec<u8>),
        body: Bytes,
    ) {
        let before = self.tail.len();
        encode(&mut self.tail);
        let len = self.tail.len() - before + body.len();
        self.seal();
        if !body.is_empty() {
            self.chunks.push_back(Chunk::Shared(body));
        }
        self.account(what, len);
    }

    /// The tail takes no more.
    #[cold]
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(Chunk::Small(std::mem::take(&mut self.tail)));
        }
    }

    /// A frame was appended.
    #[inline]
    fn account(&mut self, what: What, len: usize) {
        self.bytes += len;
        self.cost += len + FRAME_OVERHEAD;
        if what.is_caused() {
            self.caused += len + FRAME_OVERHEAD;
        }
        if self.run.len == len && self.run.what == what {
            self.run.count += 1;
        } else {
            self.begin_run(Frames { len, what, count: 1 });
        }
    }

    fn begin_run(&mut self, run: Frames) {
        let ended = std::mem::replace(&mut self.run, run);
        if ended.count > 0 {
            self.frames.push_back(ended);
        }
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
        self.frames.front().unwrap_or(&self.run).len
    }

    /// What is to be written, in pieces, from the start of the first.
    fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let tail = Some(Piece::Small(&self.tail)).filter(|_| !self.tail.is_empty());
        self.chunks.iter().map(Chunk::as_piece).chain(tail)
    }

    /// Appends control frames that overtake what is queued.
    pub(crate) fn push_urgent(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.urgent.len();
        encode(&mut self.urgent);
        self.cost += self.urgent.len() - before;
    }

    /// Fills `slices` with what is to be written next, and says with how many.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let urgent = &self.urgent[self.urgent_offset..];
        let mut sink = Sink { slices, count: 0 };
        // Bytes until the control frames may go between.
        let mut until_border =
            if self.front_written > 0 { self.front_len() - self.front_written } else { 0 };
        let mut is_urgent_done = urgent.is_empty();
        if !is_urgent_done && until_border == 0 {
            sink.push(urgent);
            is_urgent_done = true;
        }
        let mut skip = self.front_offset;
        for piece in self.pieces() {
            let mut rest = &piece.as_slice()[skip..];
            skip = 0;
            if !is_urgent_done && until_border <= rest.len() {
                let (inside, behind) = rest.split_at(until_border);
                sink.push(inside);
                sink.push(urgent);
                is_urgent_done = true;
                rest = behind;
            } else {
                until_border = until_border.saturating_sub(rest.len());
            }
            sink.push(rest);
            if sink.is_full() {
                break;
            }
        }
        sink.count
    }

    /// All that is to be written, where that is small frames and nothing else.
    #[inline]
    pub(crate) fn single(&self) -> Option<&[u8]> {
        let is_single = self.chunks.is_empty() && self.urgent.is_empty();
        is_single.then(|| &self.tail[self.front_offset..])
    }

    /// The next `count` bytes of what [`slices`](Self::slices) showed were written.
    pub(crate) fn advance(&mut self, mut count: usize, spares: &mut Spares) -> Written {
        if count == self.bytes && !self.has_urgent() {
            let written = Written { messages: self.messages(), bytes: count };
            self.recycle(self.chunks.len(), spares);
            self.empty();
            return written;
        }
        let mut written = Written::default();
        if self.has_urgent() && self.front_written > 0 {
            let until_border = self.front_len() - self.front_written;
            let inside = count.min(until_border);
            self.advance_frames(inside, &mut written, spares);
            count -= inside;
        }
        if self.has_urgent() {
            let urgent = count.min(self.urgent.len() - self.urgent_offset);
            self.urgent_offset += urgent;
            self.cost -= urgent;
            count -= urgent;
            if self.urgent_offset == self.urgent.len() {
                self.urgent.clear();
                self.urgent_offset = 0;
            }
        }
        self.advance_frames(count, &mut written, spares);
        written
    }

    /// The first `count` chunks were written.
    fn recycle(&mut self, count: usize, spares: &mut Spares) {
        for chunk in self.chunks.drain(..count) {
            if let Chunk::Shared(bytes) = chunk {
                spares.give(bytes);
            }
        }
    }

    fn advance_frames(&mut self, count: usize, written: &mut Written, spares: &mut Spares) {
        debug_assert!(count <= self.bytes);
        self.bytes -= count;
        self.cost -= count;
        written.bytes += count;
        self.front_written += count;
        let mut front_written = self.front_written;
        while let Some(frames) = self.front_frames()
            && front_written >= frames.len
        {
            let done = front_written.checked_div(frames.len).unwrap_or(frames.count);
            let done = done.min(frames.count);
            frames.count -= done;
            let Frames { len, what, count } = *frames;
            front_written -= done * len;
            if what != What::Control {
                written.messages += done as u64;
            }
            if what.is_caused() {
                self.caused -= done * (len + FRAME_OVERHEAD);
            }
            self.front_head.clear();
            self.cost -= done * FRAME_OVERHEAD;
            if count == 0 {
                // Of `run`, if there are no others, which then stays as it is, without frames.
                self.frames.pop_front();
            }
        }
        self.front_written = front_written;
        self.front_offset += count;
        if self.bytes == 0 {
            self.recycle(self.chunks.len(), spares);
            self.empty();
            return;
        }
        while let Some(chunk) = self.chunks.front().map(|chunk| chunk.as_piece().as_slice())
            && self.front_offset >= chunk.len()
        {
            self.front_offset -= chunk.len();
            // The frame at the front may have begun in this chunk.
            let begun = self.front_written.saturating_sub(self.front_offset);
            if begun > self.front_head.len() {
                let tail = chunk.len() - (begun - self.front_head.len());
                self.front_head.extend_from_slice(&chunk[tail..]);
            }
            self.recycle(1, spares);
        }
    }

    /// All was written: keeps the buffer for the next time.
    fn drop_chunks(&mut self) {
        self.front_offset = 0;
        self.chunks.clear();
        self.tail.clear();
        if self.tail.capacity() > SPARE_BYTES {
            self.tail = Vec::new();
        }
    }

    /// Forgets what is left to write.
    pub(crate) fn forget(&mut self) {
        self.urgent.clear();
        self.urgent_offset = 0;
        self.empty();
        self.stalled_since = None;
    }

    /// All frames were written, or are not to be.
    fn empty(&mut self) {
        self.frames.clear();
        self.run.count = 0;
        self.cost = self.urgent_bytes();
        self.front_written = 0;
        self.front_head.clear();
        self.bytes = 0;
        self.caused = 0;
        self.drop_chunks();
    }

    /// Gives back the memory of a time when there was much.
    fn trim(&mut self) {
        if self.frames.capacity() > SPARE_FRAMES {
            self.frames.shrink_to(SPARE_FRAMES);
        }
        if self.urgent.capacity() > SPARE_URGENT {
            self.urgent.shrink_to(SPARE_URGENT);
        }
    }

    #[inline]
    const fn has_urgent(&self) -> bool {
        self.urgent.len() > self.urgent_offset
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

    /// What counts against the watermarks: the bytes, and the overhead of each frame.
    #[inline]
    pub(crate) const fn cost(&self) -> usize {
        self.cost
    }

    /// What the peer's own messages caused, charged like [`cost`](Self::cost).
    #[inline]
    pub(crate) const fn caused(&self) -> usize {
        self.caused
    }

    /// Messages that were not written whole.
    pub(crate) fn messages(&self) -> u64 {
        let messages = self.all_frames().filter(|frames| frames.what != What::Control);
        messages.map(|frames| frames.count as u64).sum()
    }

    fn all_frames(&self) -> impl Iterator<Item = &Frames> {
        self.frames.iter().chain([&self.run])
    }

    /// Shows the messages that nobody answers and that were not written whole, oldest first.
    pub(crate) fn for_each_unsent(&self, mut show: impl FnMut(Unsent<'_>)) {
        let mut kept = &self.front_head[..];
        let mut offset = self.front_offset - (self.front_written - kept.len());
        let mut pieces = self.pieces().peekable();
        for frame in self.all_frames().flat_map(|frames| iter::repeat_n(frames, frames.count)) {
            let mut left = frame.len - kept.len();
            let mut head = Cow::Borrowed(std::mem::take(&mut kept));
            let mut shared = None;
            while left > 0
                && let Some(&piece) = pieces.peek()
            {
                let part = match piece {
                    Piece::Small(bytes) => {
                        let part = left.min(bytes.len() - offset);
                        let bytes = &bytes[offset..offset + part];
                        if head.is_empty() {
                            head = Cow::Borrowed(bytes);
                        } else {
                            head.to_mut().extend_from_slice(bytes);
                        }
                        part
                    }
                    Piece::Shared(body) => {
                        shared = Some(body).filter(|body| !body.is_empty());
                        body.len()
                    }
                };
                left -= part;
                offset += part;
                if offset >= piece.as_slice().len() {
                    offset = 0;
                    pieces.next();
                }
            }
            if matches!(frame.what, What::Push { .. }) {
                show(Unsent { head, shared });
            }
        }
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let in_pieces: usize = self.pieces().map(|piece| piece.as_slice().len()).sum();
        let in_frames: usize = self.all_frames().map(|frames| frames.len * frames.count).sum();
        assert_eq!(in_pieces - self.front_offset, self.bytes);
        assert_eq!(in_frames - self.front_written, self.bytes);
        let caused = self.all_frames().filter(|frames| frames.what.is_caused());
        let caused = caused.map(|frames| frames.count * (frames.len + FRAME_OVERHEAD));
        assert_eq!(caused.sum::<usize>(), self.caused);
        let count: usize = self.all_frames().map(|frames| frames.count).sum();
        assert_eq!(self.bytes() + count * FRAME_OVERHEAD, self.cost);
        assert!(self.urgent_offset <= self.urgent.len());
    }
}

/// Takes slices until there is no room for more.
struct Sink<'s, 'a> {
    slices: &'s mut [IoSlice<'a>],
    count: usize,
}

impl<'a> Sink<'_, 'a> {
    fn push(&mut self, slice: &'a [u8]) {
        if !slice.is_empty()
            && let Some(place) = self.slices.get_mut(self.count)
        {
            *place = IoSlice::new(slice);
            self.count += 1;
        }
    }

    const fn is_full(&self) -> bool {
        self.count == self.slices.len()
    }
}

/// Empty queues with their buffers, for the connections that have something to write next.
#[derive(Debug, Default)]
pub(crate) struct QueuePool {
    #[expect(clippy::vec_box, reason = "a connection holds its queue by pointer, to be small")]
    free: Vec<Box<WriteQueue>>,
    /// Buffers of large frames, which the bodies that are referred to may have been the last to hold.
    pub(crate) spares: Spares,
}

impl QueuePool {
    /// The most queues that are kept; with [`SPARE_BYTES`] each at most 8 MiB.
    const CAPACITY: usize = 512;

    pub(crate) fn take(&mut self) -> Box<WriteQueue> {
        self.free.pop().unwrap_or_default()
    }

    pub(crate) fn give(&mut self, mut queue: Box<WriteQueue>) {
        if self.free.len() < Self::CAPACITY {
            if !queue.is_empty() {
                queue.forget();
            }
            queue.trim();
            self.free.push(queue);
        }
    }
}

#[cfg(test)]
mod tests;
