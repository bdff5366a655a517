//! The format of the Go library `kumustone/tcpstream`.
//!
//! A header of 18 bytes, then `len` bytes of body. All integers are big-endian.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 2 | `magic` | 0xAD12 |
//! | 2 | 4 | `len` | bytes of body, at most 8 388 608 |
//! | 6 | 8 | `seq` | a reply carries its request's |
//! | 14 | 4 | `msg_type` | the application's message type: our tag |
//!
//! Nothing tells a reply from a request but that its `seq` is one we wait for. That library numbers
//! its calls 1, 2, 3, …; ours are in the upper half of the numbers, so that a request of the peer's
//! is not taken for the reply to a call.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::{Correlation, DecodeError, Decoded, Head, Protocol};

const HEADER_LEN: usize = 18;
const MAGIC: u16 = 0xAD12;
const LARGEST_BODY: usize = 8_388_608;
/// Set in the ids of our calls.
const OURS: u64 = 1 << 63;

/// The format of the Go library `kumustone/tcpstream`.
///
/// Calls in both directions, told apart by the pending table; no heartbeat, no errors. The message
/// type is the tag. A body has at most 8 388 608 bytes, also where the settings allow more: the
/// library refuses what is longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcpstream;

impl Protocol for Tcpstream {
    type Id = u64;

    fn name(&self) -> &'static str {
        "tcpstream"
    }

    #[inline]
    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<u64>, DecodeError> {
        let Some((magic, rest)) = buf.split_first_chunk() else {
            return Ok(Decoded::need(2));
        };
        match u16::from_be_bytes(*magic) {
            MAGIC => {}
            found => {
                return Err(DecodeError::BadMagic { found, expected: MAGIC });
            }
        }
        let &[len, seq_high, seq_low, msg_type, ..] = rest.as_chunks().0 else {
            return Ok(Decoded::need(HEADER_LEN));
        };
        let len = u32::from_be_bytes(len);
        let max = max_body.min(LARGEST_BODY);
        if len as usize > max {
            return Err(DecodeError::BodyTooLong { len: u64::from(len), max: max as u64 });
        }
        let (high, low) = (u32::from_be_bytes(seq_high), u32::from_be_bytes(seq_low));
        let seq = u64::from(high) << 32 | u64::from(low);
        let head = Head { tag: u32::from_be_bytes(msg_type), ..Head::plain(seq) };
        Ok(Decoded::frame(head, HEADER_LEN, len as usize))
    }

    #[inline]
    fn encode_header(&mut self, head: &Head<u64>, body_len: usize, out: &mut Vec<u8>) {
        let len = u32::try_from(body_len).expect("bounded by largest_body");
        // Put together in registers: small stores that are read back as large ones stall.
        let front = u64::from(MAGIC) << 48 | u64::from(len) << 16 | head.id >> 48;
        let back = head.id << 16 | u64::from(head.tag >> 16);
        let [.., third, fourth] = head.tag.to_be_bytes();
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&front.to_be_bytes());
        header[8..16].copy_from_slice(&back.to_be_bytes());
        header[16..].copy_from_slice(&[third, fourth]);
        out.extend_from_slice(&header);
    }

    fn largest_body(&self) -> usize {
        LARGEST_BODY
    }

    fn correlation(&self) -> Correlation {
        Correlation::ByPendingTable
    }

    fn call_id(&self, n: u64, _: u64) -> Option<u64> {
        Some(n | OURS)
    }

    /// A random start, in the lower half of our half: 2^62 numbers at least are left above it.
    fn first_call(&self, salt: u64) -> u64 {
        OURS | salt >> 2
    }

    /// 0 always, as that library sends where no `seq` was set.
    fn push_id(&self, _: u64, _: u64) -> u64 {
        0
    }
}
