//! The frames of the format `tcpstream`: a header of 18 bytes, then the body.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 2 | magic, 0xAD12 |
//! | 2 | 4 | bytes of body, at most 8 MiB |
//! | 6 | 8 | sequence number |
//! | 14 | 4 | message type |

use std::{error::Error, fmt, io};

pub const HEADER_LEN: usize = 18;
pub const MAGIC: u16 = 0xAD12;
pub const LARGEST_BODY: usize = 8 * 1024 * 1024;

/// The bytes are no frame: the connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFrame {
    Magic(u16),
    TooLong(usize),
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "magic {found:#06x} instead of {MAGIC:#06x}"),
            Self::TooLong(len) => write!(f, "a body of {len} bytes, more than {LARGEST_BODY}"),
        }
    }
}

impl Error for BadFrame {}

impl From<BadFrame> for io::Error {
    fn from(bad: BadFrame) -> Self {
        Self::new(io::ErrorKind::InvalidData, bad)
    }
}

/// The length of the frame that begins here, with its header; `None` until the header is there.
#[inline]
pub fn frame_len(buf: &[u8]) -> Result<Option<usize>, BadFrame> {
    let Some(header) = buf.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let magic = u16::from_be_bytes([header[0], header[1]]);
    if magic != MAGIC {
        return Err(BadFrame::Magic(magic));
    }
    let len = u32::from_be_bytes([header[2], header[3], header[4], header[5]]) as usize;
    if len > LARGEST_BODY {
        return Err(BadFrame::TooLong(len));
    }
    Ok(Some(HEADER_LEN + len))
}

/// What a buffer begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// So many bytes are whole frames.
    pub whole: usize,
    /// The length of the frame that begins behind them, 0 while its header is not there.
    pub next: usize,
}

/// Checks every frame of the buffer.
#[inline]
pub fn frames(buf: &[u8]) -> Result<Frames, BadFrame> {
    let mut whole = 0;
    while let Some(len) = frame_len(&buf[whole..])? {
        if buf.len() - whole < len {
            return Ok(Frames { whole, next: len });
        }
        whole += len;
    }
    Ok(Frames { whole, next: 0 })
}

/// The header of a frame.
pub fn header(body_len: usize, seq: u64, msg_type: u32) -> [u8; HEADER_LEN] {
    let len = u32::try_from(body_len).expect("bounded by LARGEST_BODY");
    let mut header = [0; HEADER_LEN];
    header[0..2].copy_from_slice(&MAGIC.to_be_bytes());
    header[2..6].copy_from_slice(&len.to_be_bytes());
    header[6..14].copy_from_slice(&seq.to_be_bytes());
    header[14..18].copy_from_slice(&msg_type.to_be_bytes());
    header
}
