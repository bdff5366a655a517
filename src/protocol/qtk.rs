//! The formats of the Node library `@qtk/tcp-framework`, versions 3 and 2.
//!
//! A header, then `len` bytes of payload. All numbers are big-endian.
//!
//! | offset in 3 | in 2 | size in 3 | in 2 | field | meaning |
//! |---|---|---|---|---|---|
//! | 0 | 0 | 1 | 1 | `sign` | 0x01 a ping, 0x11 a message |
//! | 1 | 1 | 36 | 32 | `uuid` | text that a reply carries back: with hyphens in 3, without in 2 |
//! | 37 | 33 | 8 | 4 | `len` | bytes of payload: in 3 an IEEE-754 **double**, in 2 an integer |
//! | 45 | 37 | | | | the payload |
//!
//! The dialler pings and the server sends the same bytes back, so a pong looks like a ping. Nothing
//! tells a reply from a request but that its `uuid` is one we wait for. The `uuid` of a peer may be
//! any bytes.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::fmt;

use super::{Correlation, DecodeError, Decoded, Head, HeartbeatBy, Kind, Protocol};

const PING: u8 = 0x01;
const MESSAGE: u8 = 0x11;
const HEADER_LEN_3: usize = 45;
const HEADER_LEN_2: usize = 37;
/// The most bytes of payload in a ping; the library sends none.
const MAX_PING: usize = 125;
/// The double could say more, but no setting allows a longer body.
const LARGEST_BODY: u32 = u32::MAX;

/// The format of the Node library `@qtk/tcp-framework`, version 3.
///
/// Calls in both directions, told apart by the pending table; the dialler pings; no tag, no errors.
/// A length that is no whole number is refused; a body has at most 4 GiB - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Qtk3;

impl Protocol for Qtk3 {
    type Id = Uuid<36>;

    fn name(&self) -> &'static str {
        "qtk3"
    }

    #[inline]
    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<Self::Id>, DecodeError> {
        let kind = decode_sign(buf)?;
        let Some(&[_, ref uuid @ .., l0, l1, l2, l3, l4, l5, l6, l7]) =
            buf.first_chunk::<HEADER_LEN_3>()
        else {
            return Ok(Decoded::need(HEADER_LEN_3));
        };
        let len = f64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        let len = whole(len).ok_or(DecodeError::BadLength(len))?;
        frame(kind, uuid, HEADER_LEN_3, len, max_body)
    }

    #[inline]
    fn encode_header(&mut self, head: &Head<Self::Id>, body_len: usize, out: &mut Vec<u8>) {
        let len = u32::try_from(body_len).expect("bounded by largest_body");
        let mut header = [0; HEADER_LEN_3];
        header[0] = sign_of(head.kind);
        header[1..37].copy_from_slice(&head.id.0);
        header[37..45].copy_from_slice(&f64::from(len).to_be_bytes());
        out.extend_from_slice(&header);
    }

    fn largest_body(&self) -> usize {
        LARGEST_BODY as usize
    }

    fn correlation(&self) -> Correlation {
        Correlation::ByPendingTable
    }

    fn heartbeat(&self) -> HeartbeatBy {
        HeartbeatBy::Dialler
    }

    fn call_id(&self, n: u64, salt: u64) -> Option<Self::Id> {
        Some(Uuid::hyphenated(uuid_digits(n, salt)))
    }

    /// As a call's, of the inverted salt: a push never has the id of a call in flight.
    fn push_id(&self, n: u64, salt: u64) -> Self::Id {
        Uuid::hyphenated(uuid_digits(n, !salt))
    }
}

/// The format of the Node library `@qtk/tcp-framework`, version 2.
///
/// As [`Qtk3`], with ids of 32 bytes and the length as an integer. The versions can't be told apart
/// by their first bytes, and can't talk to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Qtk2;

impl Protocol for Qtk2 {
    type Id = Uuid<32>;

    fn name(&self) -> &'static str {
        "qtk2"
    }

    #[inline]
    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<Self::Id>, DecodeError> {
        let kind = decode_sign(buf)?;
        let Some(&[_, ref uuid @ .., l0, l1, l2, l3]) = buf.first_chunk::<HEADER_LEN_2>() else {
            return Ok(Decoded::need(HEADER_LEN_2));
        };
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        frame(kind, uuid, HEADER_LEN_2, u64::from(len), max_body)
    }

    #[inline]
    fn encode_header(&mut self, head: &Head<Self::Id>, body_len: usize, out: &mut Vec<u8>) {
        let len = u32::try_from(body_len).expect("bounded by largest_body");
        let mut header = [0; HEADER_LEN_2];
        header[0] = sign_of(head.kind);
        header[1..33].copy_from_slice(&head.id.0);
        header[33..37].copy_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&header);
    }

    fn largest_body(&self) -> usize {
        LARGEST_BODY as usize
    }

    fn correlation(&self) -> Correlation {
        Correlation::ByPendingTable
    }

    fn heartbeat(&self) -> HeartbeatBy {
        HeartbeatBy::Dialler
    }

    fn call_id(&self, n: u64, salt: u64) -> Option<Self::Id> {
        Some(Uuid(uuid_digits(n, salt)))
    }

    /// As a call's, of the inverted salt: a push never has the id of a call in flight.
    fn push_id(&self, n: u64, salt: u64) -> Self::Id {
        Uuid(uuid_digits(n, !salt))
    }
}

/// The id of a message of [`Qtk3`] (`N` = 36) or [`Qtk2`] (`N` = 32): text, by agreement a UUID.
///
/// Ours are UUIDs of version 4, in lower case. A peer's may be any bytes: prints as text, with
/// U+FFFD where it is none; `Debug` escapes instead.
///
/// # Examples
///
/// ```
/// use longhaul::protocol::Uuid;
///
/// let id = Uuid::from(*b"123e4567-e89b-12d3-a456-426614174000");
/// assert_eq!(id.to_string(), "123e4567-e89b-12d3-a456-426614174000");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid<const N: usize>([u8; N]);

impl Uuid<36> {
    /// Puts hyphens between the digits: 8-4-4-4-12.
    fn hyphenated(digits: [u8; 32]) -> Self {
        let mut text = [b'-'; 36];
        text[0..8].copy_from_slice(&digits[0..8]);
        text[9..13].copy_from_slice(&digits[8..12]);
        text[14..18].copy_from_slice(&digits[12..16]);
        text[19..23].copy_from_slice(&digits[16..20]);
        text[24..36].copy_from_slice(&digits[20..32]);
        Self(text)
    }
}

impl<const N: usize> Uuid<N> {
    /// The bytes, as they are on the wire.
    pub const fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> From<[u8; N]> for Uuid<N> {
    fn from(text: [u8; N]) -> Self {
        Self(text)
    }
}

impl<const N: usize> fmt::Debug for Uuid<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uuid({})", self.0.escape_ascii())
    }
}

impl<const N: usize> fmt::Display for Uuid<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

/// Reads the first byte; the rest of the header may be missing, as that byte may.
#[inline]
const fn decode_sign(buf: &[u8]) -> Result<Kind, DecodeError> {
    match buf.first() {
        Some(&PING) => Ok(Kind::Ping),
        Some(&MESSAGE) | None => Ok(Kind::Plain),
        Some(&sign) => Err(DecodeError::BadSign(sign)),
    }
}

#[inline]
const fn sign_of(kind: Kind) -> u8 {
    match kind {
        Kind::Ping | Kind::Pong => PING,
        _ => MESSAGE,
    }
}

/// The fields of a header.
#[inline]
fn frame<const N: usize>(
    kind: Kind,
    uuid: &[u8; N],
    header_len: usize,
    len: u64,
    max_body: usize,
) -> Result<Decoded<Uuid<N>>, DecodeError> {
    let is_ping = kind == Kind::Ping;
    let max = if is_ping { MAX_PING } else { max_body.min(LARGEST_BODY as usize) };
    match usize::try_from(len) {
        Ok(body_len) if body_len <= max => {
            Ok(Decoded::frame(Head::new(kind, Uuid(*uuid)), header_len, body_len))
        }
        _ if is_ping => Err(DecodeError::ControlLength { kind, len, min: 0, max: max as u64 }),
        _ => Err(DecodeError::BodyTooLong { len, max: max as u64 }),
    }
}

/// The bytes that a double says; `None` where it is no whole number of bytes.
#[inline]
fn whole(len: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::float_cmp,
        reason = "the cast saturates, and only a number that it kept exactly compares equal"
    )]
    let exact = Some(len as u32).filter(|&bytes| f64::from(bytes) == len);
    exact.map(u64::from).or_else(|| whole_above_u32(len))
}

/// As [`whole`] for what no frame can have, to tell too long from nonsense.
#[cold]
fn whole_above_u32(len: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and u64::MAX says too long as well as 1e300 does"
    )]
    let saturated = len as u64;
    // NaN and infinity have no fraction that is 0.
    (len > 0.0 && len.fract() == 0.0).then_some(saturated)
}

/// The hex digits of a UUID of version 4 made of all 64 bits of `n` and the lower 58 of `salt`.
///
/// Differs for every `n`, and for every salt that differs in its lower 58 bits.
fn uuid_digits(n: u64, salt: u64) -> [u8; 32] {
    // The 122 bits that are free, from the top: 58 of the salt, 64 of n.
    let free = u128::from(salt) << 64 | u128::from(n);
    let below_version = free >> 62 & 0xFFF;
    let below_variant = free & ((1 << 62) - 1);
    let above = free >> 74 & 0xFFFF_FFFF_FFFF;
    let uuid = above << 80 | 4 << 76 | below_version << 64 | 0b10 << 62 | below_variant;
    let mut digits = [0; 32];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(uuid.to_be_bytes()) {
        *pair = [hex_digit(byte >> 4), hex_digit(byte & 0xF)];
    }
    digits
}

const fn hex_digit(nibble: u8) -> u8 {
    match nibble {
        0..=9 => b'0' | nibble,
        _ => (b'a' - 10).wrapping_add(nibble),
    }
}
