//! The queue's records of the frames in it.

/// The charge of every queued frame beside its bytes, so that empty messages cost, too.
pub(crate) const FRAME_OVERHEAD: usize = 32;

/// Frames that are alike, in a row, as an echo and a broadcast have them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frames {
    pub(super) alike: Frame,
    pub(super) count: usize,
}

/// The queue's record of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) len: usize,
    /// The tag of a push, and where its body starts, which goes on to the end; else 0.
    pub(super) tag: u32,
    pub(super) body_at: u32,
    pub(super) what: What,
    /// The body is not in the frame, but the next of `originals`.
    pub(super) has_original: bool,
}

impl Frame {
    #[inline]
    pub(super) fn new(len: usize, what: What, tag: u32, body_len: usize) -> Self {
        debug_assert!(body_len <= len || !what.is_push(), "a frame contains its body");
        let has_original = false;
        if what.is_push() {
            #[expect(clippy::cast_possible_truncation, reason = "no header is as long as 4 GiB")]
            let body_at = len.wrapping_sub(body_len) as u32;
            Self { len, tag, body_at, what, has_original }
        } else {
            // Frames that are not handed back are alike whatever their tags.
            Self { len, tag: 0, body_at: 0, what, has_original }
        }
    }

    /// Its charge, an original aside.
    pub(super) const fn cost(&self) -> usize {
        self.len + FRAME_OVERHEAD
    }

    /// Whether the two are one run. What is no push has no more to compare.
    #[inline]
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.len == other.len && self.what == other.what && (!self.what.is_push() || self == other)
    }
}

/// The meaning of a queued frame for the application.
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
    pub(super) const fn is_caused(self) -> bool {
        matches!(self, Self::Answer | Self::Push { is_caused: true })
    }

    /// Whether it is handed back if it was not sent.
    pub(crate) const fn is_push(self) -> bool {
        matches!(self, Self::Push { .. })
    }
}
