//! What a connection has still to give to the system, in order.
//!
//! Small frames are encoded one behind the other into one buffer; a large body stays where it is
//! and is only referred to. Control frames overtake: they go out at the next border between two
//! frames, but never inside of one.
//!
//! ```text
//! chunks   [ h b h b h b h | body | h b h ]      h b: header and body of a frame
//!              ^ front_offset
//! frames   [ 2 | 2 | 2 | 1+body | 2 ]            the same bytes, cut into frames
//!              ^ front_written
//! urgent   [ pong pong ]                         goes out before the next frame starts
//! ```

use std::{borrow::Cow, collections::VecDeque, io::IoSlice, iter};

use bytes::Bytes;

/// Bodies from this size on are referred to, not copied. Below it a copy is cheaper than one more
/// slice of a vectored write and one more count of references.
pub(crate) const SHARE_BYTES: usize = 8 * 1024;

/// What every queued frame is charged beside its bytes, so that empty messages cost too.
pub(crate) const FRAME_OVERHEAD: usize = 32;

/// Where a buffer of small frames ends and the next begins.
const CHUNK_BYTES: usize = 64 * 1024;

/// The largest buffer that an empty queue keeps.
const SPARE_BYTES: usize = 16 * 1024;

/// The write queue of one connection. Drawn from a [`QueuePool`] while there is something in it.
#[derive(Debug, Default)]
pub(crate) struct WriteQueue {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that were written.
    front_offset: usize,
    /// The frames in the chunks. Invariant: their lengths add up to `bytes + front_written`.
    frames: VecDeque<Frames>,
    /// How many they are.
    count: usize,
    /// Bytes of the first frame that were written.
    front_written: usize,
    /// The first bytes of the first frame, where they are no longer in the chunks.
    front_head: Vec<u8>,
    /// Bytes in `chunks` that were not written.
    bytes: usize,
    /// What frames that the peer caused are charged, those not written whole.
    caused: usize,
    /// Control frames, not written from `urgent_offset` on.
    urgent: Vec<u8>,
    urgent_offset: usize,
}

#[derive(Debug)]
enum Chunk {
    Small(Vec<u8>),
    Shared(Bytes),
}

/// Frames of one length and kind in a row, as an echo and a broadcast have them.
#[derive(Clone, Copy, Debug)]
struct Frames {
    len: usize,
    what: What,
    count: usize,
}

/// What a queued frame is to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// No message of its own.
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

impl Chunk {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl WriteQueue {
    /// Appends a frame that `encode` writes: what it appends to the buffer, then what it returns.
    pub(crate) fn push(
        &mut self,
        what: What,
        encode: impl FnOnce(&mut Vec<u8>) -> Option<Bytes>,
    ) -> usize {
        let needs_chunk = match self.chunks.back() {
            Some(Chunk::Small(bytes)) => bytes.len() >= CHUNK_BYTES,
            _ => true,
        };
        if needs_chunk {
            self.chunks.push_back(Chunk::Small(Vec::new()));
        }
        let Some(Chunk::Small(tail)) = self.chunks.back_mut() else {
            unreachable!("a small chunk was just made sure of")
        };
        let before = tail.len();
        let body = encode(tail);
        let mut len = tail.len() - before;
        if let Some(body) = body {
            len += body.len();
            self.chunks.push_back(Chunk::Shared(body));
        }
        self.bytes += len;
        self.count += 1;
        match self.frames.back_mut() {
            Some(last) if last.len == len && last.what == what => last.count += 1,
            _ => self.frames.push_back(Frames { len, what, count: 1 }),
        }
        if what.is_caused() {
            self.caused += len + FRAME_OVERHEAD;
        }
        len
    }

    /// Appends control frames that overtake what is queued.
    pub(crate) const fn urgent(&mut self) -> &mut Vec<u8> {
        &mut self.urgent
    }

    /// Fills `slices` with what is to be written next, and says with how many.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let urgent = &self.urgent[self.urgent_offset..];
        let mut sink = Sink { slices, count: 0 };
        // Bytes until the control frames may go between.
        let mut until_border = match self.frames.front() {
            Some(frame) if self.front_written > 0 => frame.len - self.front_written,
            _ => 0,
        };
        let mut is_urgent_done = urgent.is_empty();
        if !is_urgent_done && until_border == 0 {
            sink.push(urgent);
            is_urgent_done = true;
        }
        let mut skip = self.front_offset;
        for chunk in &self.chunks {
            let mut rest = &chunk.as_slice()[skip..];
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

    /// All that is to be written, where it lies in one piece.
    pub(crate) fn single(&self) -> Option<&[u8]> {
        match &self.chunks.front() {
            Some(chunk) if self.chunks.len() == 1 && !self.has_urgent() => {
                Some(&chunk.as_slice()[self.front_offset..])
            }
            _ => None,
        }
    }

    /// The next `count` bytes of what [`slices`](Self::slices) showed were written.
    pub(crate) fn advance(&mut self, mut count: usize) -> Written {
        let mut written = Written::default();
        if self.has_urgent() && self.front_written > 0 {
            let until_border =
                self.frames.front().map_or(0, |frame| frame.len) - self.front_written;
            let inside = count.min(until_border);
            self.advance_frames(inside, &mut written);
            count -= inside;
        }
        if self.has_urgent() {
            let urgent = count.min(self.urgent.len() - self.urgent_offset);
            self.urgent_offset += urgent;
            count -= urgent;
            if self.urgent_offset == self.urgent.len() {
                self.urgent.clear();
                self.urgent_offset = 0;
            }
        }
        self.advance_frames(count, &mut written);
        written
    }

    fn advance_frames(&mut self, count: usize, written: &mut Written) {
        debug_assert!(count <= self.bytes);
        self.bytes -= count;
        written.bytes += count;
        self.front_written += count;
        while let Some(frames) = self.frames.front_mut()
            && self.front_written >= frames.len
        {
            let done = self.front_written.checked_div(frames.len).unwrap_or(frames.count);
            let done = done.min(frames.count);
            self.front_written -= done * frames.len;
            if frames.what != What::Control {
                written.messages += done as u64;
            }
            if frames.what.is_caused() {
                self.caused -= done * (frames.len + FRAME_OVERHEAD);
            }
            self.front_head.clear();
            self.count -= done;
            frames.count -= done;
            if frames.count == 0 {
                self.frames.pop_front();
            }
        }
        self.front_offset += count;
        if self.bytes == 0 {
            self.drop_chunks();
            return;
        }
        while let Some(chunk) = self.chunks.front()
            && self.front_offset >= chunk.as_slice().len()
        {
            self.front_offset -= chunk.as_slice().len();
            // The frame at the front may have begun in this chunk.
            let begun = self.front_written.saturating_sub(self.front_offset);
            if begun > self.front_head.len() {
                let tail = chunk.as_slice().len() - (begun - self.front_head.len());
                self.front_head.extend_from_slice(&chunk.as_slice()[tail..]);
            }
            self.chunks.pop_front();
        }
    }

    /// All was written: keeps one buffer for the next time.
    fn drop_chunks(&mut self) {
        self.front_offset = 0;
        self.chunks.truncate(1);
        match self.chunks.front_mut() {
            Some(Chunk::Small(bytes)) if bytes.capacity() <= SPARE_BYTES => bytes.clear(),
            _ => self.chunks.clear(),
        }
    }

    /// Forgets what is left to write.
    pub(crate) fn forget(&mut self) {
        self.chunks.clear();
        self.front_offset = 0;
        self.clear();
    }

    /// Makes an empty queue, of whatever was left, for the next connection.
    fn clear(&mut self) {
        self.frames.clear();
        self.frames.shrink_to(64);
        self.count = 0;
        self.front_written = 0;
        self.front_head.clear();
        self.bytes = 0;
        self.caused = 0;
        self.urgent.clear();
        self.urgent.shrink_to(1024);
        self.urgent_offset = 0;
        self.drop_chunks();
    }

    const fn has_urgent(&self) -> bool {
        self.urgent.len() > self.urgent_offset
    }

    /// Whether nothing is left to write, control frames included.
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes == 0 && !self.has_urgent()
    }

    /// Bytes left to write, control frames included.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes + self.urgent_bytes()
    }

    /// Bytes of control frames left to write.
    pub(crate) const fn urgent_bytes(&self) -> usize {
        self.urgent.len() - self.urgent_offset
    }

    /// What counts against the watermarks: the bytes, and the overhead of each frame.
    pub(crate) fn cost(&self) -> usize {
        self.bytes() + self.count * FRAME_OVERHEAD
    }

    /// What the peer's own messages caused, charged like [`cost`](Self::cost).
    pub(crate) const fn caused(&self) -> usize {
        self.caused
    }

    /// Messages that were not written whole.
    pub(crate) fn messages(&self) -> u64 {
        let messages = self.frames.iter().filter(|frames| frames.what != What::Control);
        messages.map(|frames| frames.count as u64).sum()
    }

    /// Shows the messages that nobody answers and that were not written whole, oldest first.
    pub(crate) fn for_each_unsent(&self, mut show: impl FnMut(Unsent<'_>)) {
        let mut kept = &self.front_head[..];
        let mut offset = self.front_offset - (self.front_written - kept.len());
        let mut chunks = self.chunks.iter().peekable();
        let frames = self.frames.iter().flat_map(|frames| iter::repeat_n(frames, frames.count));
        for frame in frames {
            let mut left = frame.len - kept.len();
            let mut head = Cow::Borrowed(std::mem::take(&mut kept));
            let mut shared = None;
            while left > 0
                && let Some(chunk) = chunks.peek()
            {
                let part = match chunk {
                    Chunk::Small(bytes) => {
                        let part = left.min(bytes.len() - offset);
                        let bytes = &bytes[offset..offset + part];
                        if head.is_empty() {
                            head = Cow::Borrowed(bytes);
                        } else {
                            head.to_mut().extend_from_slice(bytes);
                        }
                        part
                    }
                    Chunk::Shared(body) => {
                        shared = Some(body).filter(|body| !body.is_empty());
                        body.len()
                    }
                };
                left -= part;
                offset += part;
                if offset >= chunk.as_slice().len() {
                    offset = 0;
                    chunks.next();
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
        let in_chunks: usize = self.chunks.iter().map(|chunk| chunk.as_slice().len()).sum();
        let in_frames: usize = self.frames.iter().map(|frames| frames.len * frames.count).sum();
        assert_eq!(in_chunks - self.front_offset, self.bytes);
        assert_eq!(in_frames - self.front_written, self.bytes);
        let caused = self.frames.iter().filter(|frames| frames.what.is_caused());
        let caused = caused.map(|frames| frames.count * (frames.len + FRAME_OVERHEAD));
        assert_eq!(caused.sum::<usize>(), self.caused);
        assert_eq!(self.frames.iter().map(|frames| frames.count).sum::<usize>(), self.count);
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
}

impl QueuePool {
    /// The most queues that are kept; with [`SPARE_BYTES`] each at most 8 MiB.
    const CAPACITY: usize = 512;

    pub(crate) fn take(&mut self) -> Box<WriteQueue> {
        self.free.pop().unwrap_or_default()
    }

    pub(crate) fn give(&mut self, mut queue: Box<WriteQueue>) {
        if self.free.len() < Self::CAPACITY {
            queue.clear();
            self.free.push(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PUSH: What = What::Push { is_caused: true };

    fn push(queue: &mut WriteQueue, bytes: &[u8]) {
        queue.push(PUSH, |out| {
            out.extend_from_slice(bytes);
            None
        });
    }

    fn push_shared(queue: &mut WriteQueue, head: &[u8], body: &'static [u8]) {
        queue.push(PUSH, |out| {
            out.extend_from_slice(head);
            Some(Bytes::from_static(body))
        });
    }

    /// Writes up to `count` bytes, and returns what was written.
    fn write(queue: &mut WriteQueue, count: usize) -> (Vec<u8>, Written) {
        let mut slices = [IoSlice::new(&[]); 8];
        let used = queue.slices(&mut slices);
        let mut bytes: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
        bytes.truncate(count);
        let written = queue.advance(bytes.len());
        queue.check();
        (bytes, written)
    }

    #[test]
    fn many_small_frames_are_one_slice() {
        let mut queue = WriteQueue::default();
        push(&mut queue, b"ab");
        push(&mut queue, b"cd");
        let mut slices = [IoSlice::new(&[]); 8];
        assert_eq!(queue.slices(&mut slices), 1);
        assert_eq!(&*slices[0], b"abcd");
    }

    #[test]
    fn shared_body_is_not_copied() {
        static BODY: [u8; 100] = [7; 100];
        let mut queue = WriteQueue::default();
        push_shared(&mut queue, b"h", &BODY);
        push(&mut queue, b"tail");
        let mut slices = [IoSlice::new(&[]); 8];
        assert_eq!(queue.slices(&mut slices), 3);
        assert_eq!(slices[1].as_ptr(), BODY.as_ptr());
        assert_eq!(write(&mut queue, 1000).0.len(), 105);
        assert!(queue.is_empty());
    }

    #[test]
    fn urgent_goes_first_at_a_border() {
        let mut queue = WriteQueue::default();
        push(&mut queue, b"frame");
        queue.urgent().extend_from_slice(b"!");
        assert_eq!(write(&mut queue, 100).0, b"!frame");
    }

    #[test]
    fn urgent_never_goes_inside_a_frame() {
        let mut queue = WriteQueue::default();
        push_shared(&mut queue, b"fr", b"ame");
        push(&mut queue, b"next");
        assert_eq!(write(&mut queue, 1).0, b"f");
        queue.urgent().extend_from_slice(b"!");
        assert_eq!(write(&mut queue, 100).0, b"rame!next");
    }

    #[test]
    fn half_written_urgent_is_finished_before_the_next_frame() {
        let mut queue = WriteQueue::default();
        push(&mut queue, b"frame");
        queue.urgent().extend_from_slice(b"!!");
        assert_eq!(write(&mut queue, 1).0, b"!");
        queue.urgent().extend_from_slice(b"?");
        assert_eq!(write(&mut queue, 100).0, b"!?frame");
    }

    #[test]
    fn messages_count_when_their_last_byte_is_written() {
        let mut queue = WriteQueue::default();
        push(&mut queue, b"one");
        push(&mut queue, b"two");
        assert_eq!(write(&mut queue, 5).1, Written { messages: 1, bytes: 5 });
        assert_eq!(queue.messages(), 1);
        assert_eq!(write(&mut queue, 5).1, Written { messages: 1, bytes: 1 });
    }

    #[test]
    fn empty_frames_are_charged() {
        let mut queue = WriteQueue::default();
        for _ in 0..1000 {
            queue.push(PUSH, |_| None);
        }
        assert_eq!(queue.cost(), 1000 * FRAME_OVERHEAD);
    }

    #[test]
    fn pooled_queue_comes_back_empty() {
        let mut pool = QueuePool::default();
        let mut queue = pool.take();
        push(&mut queue, b"left");
        queue.urgent().extend_from_slice(b"!");
        write(&mut queue, 2);
        pool.give(queue);
        let queue = pool.take();
        queue.check();
        assert_eq!((queue.is_empty(), queue.cost(), queue.messages()), (true, 0, 0));
    }

    #[derive(Clone, Debug)]
    enum Op {
        /// The frame lies in one piece, as one that was encoded for many.
        Whole(u8, usize),
        Push(u8, usize),
        Shared(u8, usize),
        Urgent(usize),
        Write(usize),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            (any::<u8>(), 0..40_usize).prop_map(|(byte, len)| Op::Push(byte, len)),
            (any::<u8>(), 0..40_usize).prop_map(|(byte, len)| Op::Shared(byte, len)),
            (any::<u8>(), 0..40_usize).prop_map(|(byte, len)| Op::Whole(byte, len)),
            (1..5_usize).prop_map(Op::Urgent),
            (0..90_usize).prop_map(Op::Write),
        ];
        prop::collection::vec(op, 1..80)
    }

    proptest! {
        /// Every frame leaves whole and in order, with control frames only at borders; and what has
        /// not left whole can be had back whole at any time.
        #[test]
        fn frames_leave_whole_and_in_order(ops in ops()) {
            let mut queue = WriteQueue::default();
            let mut wire = Vec::new();
            let mut frames: Vec<Vec<u8>> = Vec::new();
            let mut left = 0;
            let mut urgent = 0;
            for op in ops {
                match op {
                    Op::Push(byte, len) => {
                        push(&mut queue, &frame(byte, len));
                        frames.push(frame(byte, len));
                    }
                    Op::Shared(byte, len) => {
                        queue.push(PUSH, |out| {
                            out.extend_from_slice(&frame(byte, len)[..2]);
                            Some(Bytes::copy_from_slice(&frame(byte, len)[2..]))
                        });
                        frames.push(frame(byte, len));
                    }
                    Op::Whole(byte, len) => {
                        queue.push(PUSH, |_| Some(frame(byte, len).into()));
                        frames.push(frame(byte, len));
                    }
                    Op::Urgent(count) => {
                        for _ in 0..count {
                            queue.urgent().extend_from_slice(&URGENT);
                        }
                        urgent += count;
                    }
                    Op::Write(count) => {
                        let (bytes, written) = write(&mut queue, count);
                        wire.extend(bytes);
                        left += usize::try_from(written.messages).unwrap();
                    }
                }
                queue.check();
                prop_assert_eq!(&unsent(&queue)[..], &frames[left..]);
            }
            while !queue.is_empty() {
                wire.extend(write(&mut queue, 64).0);
            }
            let mut rest = &wire[..];
            let mut seen = Vec::new();
            while !rest.is_empty() {
                let (frame, behind) = rest.split_at(2 + usize::from(rest[1]));
                if frame == URGENT {
                    urgent -= 1;
                } else {
                    seen.push(frame.to_vec());
                }
                rest = behind;
            }
            prop_assert_eq!(urgent, 0);
            prop_assert_eq!(seen, frames);
        }
    }

    /// What is unsent, each frame in one piece.
    fn unsent(queue: &WriteQueue) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        queue.for_each_unsent(|Unsent { head, shared }| {
            frames.push([&*head, shared.map_or(&[][..], |body| &body[..])].concat());
        });
        frames
    }

    #[test]
    fn only_messages_that_nobody_answers_are_handed_back() {
        let mut queue = WriteQueue::default();
        for what in [What::Control, What::Push { is_caused: false }, What::Request, What::Answer] {
            queue.push(what, |out| {
                out.extend_from_slice(format!("{what:?}").as_bytes());
                None
            });
        }
        queue.push(What::Push { is_caused: true }, |_| Some(Bytes::from_static(b"whole")));
        assert_eq!(unsent(&queue), [&b"Push { is_caused: false }"[..], b"whole"]);
    }

    const URGENT: [u8; 5] = [0xFF, 3, 0xFF, 0xFF, 0xFF];

    /// A frame that is not the urgent one.
    fn frame(byte: u8, len: usize) -> Vec<u8> {
        let byte = byte.min(0xFE);
        let mut frame = vec![byte, u8::try_from(len).unwrap()];
        frame.resize(2 + len, byte);
        frame
    }
}
