//! The queue towards the system: the slices that it is shown, and the bytes that it took.

use std::{io::IoSlice, mem};

use super::{
    Chunk, FRAME_OVERHEAD, SPARE_BYTES, WriteQueue,
    frame::{Frames, What},
};
use crate::core::spares::Spares;

/// The messages that [`WriteQueue::advance`] finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Messages whose last byte was written.
    pub(crate) messages: u64,
    /// Bytes of frames in the queue's order, without the control frames that overtook.
    pub(crate) bytes: usize,
}

impl WriteQueue {
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

    /// How many of the next `count` bytes of what [`slices`](Self::slices) shows are of frames in the queue's
    /// order, and not of control frames that overtake.
    pub(crate) fn frame_bytes_in(&self, count: usize) -> usize {
        let until_border =
            if self.front_written > 0 { self.front_len() - self.front_written } else { 0 };
        count - count.saturating_sub(until_border).min(self.urgent_bytes())
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
            self.recycle_all(spares);
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
            match chunk {
                Chunk::Small(buffer) => spares.give_chunk(buffer),
                Chunk::Shared(bytes) => spares.give(bytes),
            }
        }
    }

    /// All was written.
    fn recycle_all(&mut self, spares: &mut Spares) {
        if !self.chunks.is_empty() {
            self.recycle(self.chunks.len(), spares);
        }
        if self.tail.capacity() > SPARE_BYTES {
            spares.give_chunk(mem::take(&mut self.tail));
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
            && front_written >= frames.alike.len
        {
            let done = front_written.checked_div(frames.alike.len).unwrap_or(frames.count);
            let done = done.min(frames.count);
            frames.count -= done;
            let Frames { alike, count } = *frames;
            front_written -= done * alike.len;
            if alike.what != What::Control {
                written.messages += done as u64;
            }
            if alike.what.is_caused() {
                self.caused -= done * alike.cost();
            }
            if alike.has_original {
                self.drop_originals(done, alike.what);
            }
            self.front_head.clear();
            self.cost -= done * FRAME_OVERHEAD;
            if count == 0 {
                // If `frames` is empty this was `run`, which stays, with a count of 0.
                self.frames.pop_front();
            }
        }
        self.front_written = front_written;
        self.front_offset += count;
        if self.bytes == 0 {
            self.recycle_all(spares);
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

    /// The first so many frames whose bodies are kept beside them were written.
    fn drop_originals(&mut self, count: usize, what: What) {
        for original in self.originals.drain(..count) {
            self.cost -= original.len();
            if what.is_caused() {
                self.caused -= original.len();
            }
        }
    }

    /// All was written: keeps the buffer for the next time.
    pub(super) fn drop_chunks(&mut self) {
        self.front_offset = 0;
        self.chunks.clear();
        self.tail.clear();
        if self.tail.capacity() > SPARE_BYTES {
            self.tail = Vec::new();
        }
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
