//! Unsent messages, to be handed back.

use std::{borrow::Cow, iter, mem};

use bytes::Bytes;

use super::{Piece, WriteQueue, frame::Frame};
use crate::Tagged;

impl WriteQueue {
    /// Takes the messages that nobody answers and that were not written whole, oldest first, with
    /// their tags; none of a queue that is torn. Nothing of what is queued will be written.
    pub(crate) fn take_unsent(&mut self) -> Vec<Tagged<Bytes>> {
        let unsent = if self.is_torn { Vec::new() } else { self.unsent() };
        self.forget();
        unsent
    }

    pub(super) fn unsent(&self) -> Vec<Tagged<Bytes>> {
        let mut unsent = Vec::new();
        let mut originals = self.originals.iter();
        self.for_each_frame(|frame, bytes| {
            let body = if frame.has_original {
                originals.next().cloned()
            } else {
                frame.what.is_push().then(|| bytes.to_body(frame.body_at as usize))
            };
            unsent.extend(body.map(|body| Tagged(frame.tag, body)));
        });
        unsent
    }

    /// Shows the frames that were not written whole.
    fn for_each_frame(&self, mut show: impl FnMut(&Frame, FrameBytes<'_>)) {
        let mut kept = &self.front_head[..];
        let mut offset = self.front_offset - (self.front_written - kept.len());
        let mut pieces = self.pieces().peekable();
        for frame in self.all_frames().flat_map(|run| iter::repeat_n(&run.alike, run.count)) {
            let mut left = frame.len - kept.len();
            let mut copied = Cow::Borrowed(mem::take(&mut kept));
            let mut shared = None;
            while left > 0
                && let Some(&piece) = pieces.peek()
            {
                let part = match piece {
                    Piece::Small(bytes) => {
                        let part = left.min(bytes.len() - offset);
                        let bytes = &bytes[offset..offset + part];
                        if copied.is_empty() {
                            copied = Cow::Borrowed(bytes);
                        } else {
                            copied.to_mut().extend_from_slice(bytes);
                        }
                        part
                    }
                    Piece::Shared(bytes) => {
                        shared = Some(bytes);
                        bytes.len()
                    }
                };
                left -= part;
                offset += part;
                if offset >= piece.as_slice().len() {
                    offset = 0;
                    pieces.next();
                }
            }
            show(frame, FrameBytes { copied, shared });
        }
    }
}

/// The bytes of a frame.
#[derive(Debug)]
struct FrameBytes<'a> {
    /// Those that were encoded into the buffer.
    copied: Cow<'a, [u8]>,
    /// Those behind them that are referred to.
    shared: Option<&'a Bytes>,
}

impl FrameBytes<'_> {
    /// The body, which starts there; what was referred to still is.
    fn to_body(&self, at: usize) -> Bytes {
        match self.shared {
            Some(shared) => shared.slice(at.saturating_sub(self.copied.len()).min(shared.len())..),
            None => Bytes::copy_from_slice(&self.copied[at.min(self.copied.len())..]),
        }
    }
}
