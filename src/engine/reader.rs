//! The buffers that all connections read into.

use crate::core::{read_buffer::READ_CHUNK, spares::LARGE_FRAME};

/// The one buffer that all connections read into.
pub(crate) struct Reader {
    /// Room for the start of a frame that was kept, and one read behind it.
    pub(super) buf: Box<[u8]>,
    /// Bytes that are read for a layer. Empty until there is one.
    pub(super) wire: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { buf: new_buffer(), wire: Vec::new() }
    }
}

impl Reader {
    /// The buffer, to be given back after the read; a new one where a panic lost it.
    pub(super) fn take(&mut self) -> Box<[u8]> {
        let buf = std::mem::take(&mut self.buf);
        if buf.is_empty() { new_buffer() } else { buf }
    }
}

fn new_buffer() -> Box<[u8]> {
    vec![0; LARGE_FRAME + READ_CHUNK].into()
}
