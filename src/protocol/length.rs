//! Any stream whose frames begin with their length.
//!
//! ```text
//! ┌──────── offset ────────┬─ field_bytes ─┬──────────────────────┐
//! │ zeros, ignored on read │ length field  │ body                 │
//! └────────────────────────┴───────────────┴──────────────────────┘
//! ├─────────────── header ────────────────┤
//! ```
//!
//! The settings are those of Netty's `LengthFieldBasedFrameDecoder`, whose names and those of
//! tokio-util's `LengthDelimitedCodec` stand at the setters of [`LengthBuilder`]. By the value of
//! the field, the bytes behind it are
//!
//! ```text
//! value - (header, if counts_header) + adjustment
//! ```
//!
//! The format has no ids: messages one way only, calls are refused.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::{error, fmt};

use super::{DecodeError, Decoded, Head, NoId, Protocol};

/// Frames that begin with the length of their body: 4 bytes, big-endian, unless built otherwise.
///
/// Messages go one way, calls are refused; no heartbeat, no tag.
///
/// # Examples
///
/// A type byte, a length of 2 bytes that counts these 3, and the body:
///
/// ```
/// use longhaul::protocol::{Head, Length, NoId, Protocol};
///
/// let mut length = Length::builder().field_bytes(2).offset(1).counts_header(true).build()?;
/// let mut wire = Vec::new();
/// length.encode(&Head::plain(NoId), b"hi", &mut wire);
/// assert_eq!(wire, b"\x00\x00\x05hi");
/// # Ok::<(), longhaul::protocol::LengthError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Invariant: within `±MAX_ADJUSTMENT`.
    adjustment: i32,
    /// The header, bytes of field included. Invariant: at least `field_bytes`.
    header_len: u16,
    /// Bytes at the front of a frame that are not handed out.
    skip: u16,
    /// Invariant: 1, 2, 3, 4 or 8.
    field_bytes: u8,
    is_little_endian: bool,
    counts_header: bool,
}

impl Default for Length {
    fn default() -> Self {
        Self {
            adjustment: 0,
            header_len: 4,
            skip: 4,
            field_bytes: 4,
            is_little_endian: false,
            counts_header: false,
        }
    }
}

impl Length {
    /// A builder with the defaults.
    pub fn builder() -> LengthBuilder {
        LengthBuilder::default()
    }

    fn header_len(&self) -> usize {
        usize::from(self.header_len)
    }

    fn offset(&self) -> usize {
        self.header_len().saturating_sub(usize::from(self.field_bytes))
    }

    /// The bytes that the field counts beside those behind it.
    fn counted(&self) -> u64 {
        if self.counts_header { u64::from(self.header_len) } else { 0 }
    }

    /// Bytes behind the field that are not handed out either.
    fn gap(&self) -> usize {
        usize::from(self.skip.saturating_sub(self.header_len))
    }

    /// The header that is written before a body.
    fn lead(&self) -> usize {
        usize::from(self.skip.max(self.header_len))
    }

    /// The shortest body that a field of this adjustment can declare: the field can't be negative.
    fn shortest_body(&self) -> usize {
        usize::try_from(self.adjustment).unwrap_or(0).saturating_sub(self.gap())
    }

    /// The longest body that the field can declare; `None` where not even an empty one fits.
    fn longest_body(&self) -> Option<u64> {
        let largest_value = u64::MAX >> 64_u32.saturating_sub(u32::from(self.field_bytes) * 8);
        largest_value
            .checked_sub(self.counted())?
            .saturating_add_signed(i64::from(self.adjustment))
            .checked_sub(self.gap() as u64)
    }

    /// The value of the field for a body of this length.
    fn value_for(&self, body_len: usize) -> u64 {
        (body_len.saturating_add(self.gap()) as u64)
            .checked_sub_signed(i64::from(self.adjustment))
            .unwrap_or(0)
            .saturating_add(self.counted())
    }

    /// The bytes of body that this value of the field declares: what stands behind the lead.
    #[inline]
    fn body_len(&self, value: u64) -> Result<u64, DecodeError> {
        let Some(behind) = value.checked_sub(self.counted()) else {
            let header = u64::from(self.header_len);
            return Err(DecodeError::LengthBelowHeader { len: value, header });
        };
        let adjustment = i64::from(self.adjustment);
        behind
            .checked_add_signed(adjustment)
            .and_then(|behind| behind.checked_sub(self.gap() as u64))
            .ok_or(DecodeError::LengthOutOfRange { len: value, adjustment })
    }

    /// Reads the field.
    #[inline]
    fn value(&self, field: &[u8]) -> u64 {
        let append = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        if self.is_little_endian {
            field.iter().rev().fold(0, append)
        } else {
            field.iter().fold(0, append)
        }
    }

    /// Appends the field; the value fits.
    #[inline]
    fn write_value(&self, value: u64, out: &mut Vec<u8>) {
        let width = usize::from(self.field_bytes);
        let (little, big) = (value.to_le_bytes(), value.to_be_bytes());
        let field = if self.is_little_endian {
            little.get(..width)
        } else {
            big.get(big.len().saturating_sub(width)..)
        };
        out.extend_from_slice(field.expect("a field has at most 8 bytes"));
    }
}

impl Protocol for Length {
    type Id = NoId;

    fn name(&self) -> &'static str {
        "length"
    }

    #[inline]
    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<NoId>, DecodeError> {
        let Some(field) = buf.get(self.offset()..self.header_len()) else {
            return Ok(Decoded::need(self.header_len()));
        };
        let body_len = self.body_len(self.value(field))?;
        let end = usize::try_from(body_len)
            .ok()
            .filter(|&len| len <= max_body)
            .and_then(|len| len.checked_add(self.lead()))
            .ok_or(DecodeError::BodyTooLong { len: body_len, max: max_body as u64 })?;
        // Not beyond the end: what is skipped is part of the lead.
        Ok(Decoded::Frame { head: Head::plain(NoId), body: usize::from(self.skip)..end, len: end })
    }

    #[inline]
    fn encode_header(&mut self, _: &Head<NoId>, body_len: usize, out: &mut Vec<u8>) {
        assert!(body_len <= self.largest_body(), "bounded by largest_body");
        let start = out.len();
        out.resize(start.saturating_add(self.offset()), 0);
        self.write_value(self.value_for(body_len), out);
        out.resize(start.saturating_add(self.lead()), 0);
    }

    fn encode(&mut self, head: &Head<NoId>, body: &[u8], out: &mut Vec<u8>) {
        let body_len = body.len().max(self.shortest_body());
        self.encode_header(head, body_len, out);
        let end = out.len().saturating_add(body_len);
        out.extend_from_slice(body);
        out.resize(end, 0);
    }

    /// No where a short body is filled up with zeros.
    fn is_header_then_body(&self) -> bool {
        self.shortest_body() == 0
    }

    fn largest_body(&self) -> usize {
        // No vector is longer than `isize::MAX`, and the frame is one.
        let room = isize::MAX.unsigned_abs().saturating_sub(self.lead());
        self.longest_body()
            .and_then(|len| usize::try_from(len).ok())
            .map_or(room, |len| len.min(room))
    }

    fn push_id(&self, _: u64, _: u64) -> NoId {
        NoId
    }
}

/// Sets up a [`Length`].
///
/// The maximum of a body is none of its settings: it is that of the listener or the dialled
/// connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct LengthBuilder {
    field_bytes: Option<usize>,
    is_little_endian: bool,
    offset: usize,
    counts_header: bool,
    adjustment: i64,
    skip: Option<usize>,
}

impl LengthBuilder {
    /// The bytes of the length field: 1, 2, 3, 4 or 8. Default: 4.
    ///
    /// Netty's `lengthFieldLength`, tokio-util's `length_field_length`.
    #[must_use]
    pub const fn field_bytes(mut self, bytes: usize) -> Self {
        self.field_bytes = Some(bytes);
        self
    }

    /// Whether the field's lowest byte comes first. Default: no, big-endian.
    #[must_use]
    pub const fn little_endian(mut self, is_on: bool) -> Self {
        self.is_little_endian = is_on;
        self
    }

    /// How many bytes stand before the field, at most 255. Default: 0.
    ///
    /// They are written as zeros, and ignored when read. Netty's `lengthFieldOffset`, tokio-util's
    /// `length_field_offset`.
    #[must_use]
    pub const fn offset(mut self, bytes: usize) -> Self {
        self.offset = bytes;
        self
    }

    /// Whether the field counts the whole frame: the bytes before it, its own, and what follows.
    /// Default: no, only what follows.
    ///
    /// The same as an [`adjustment`](Self::adjustment) by the header's length below zero.
    #[must_use]
    pub const fn counts_header(mut self, is_on: bool) -> Self {
        self.counts_header = is_on;
        self
    }

    /// The number that is added to the field's value to get the bytes behind the field: -65535 to 65535.
    /// Default: 0.
    ///
    /// Above 0 every frame has at least that many bytes behind the field; a shorter body is filled
    /// up with zeros at its end when sent. Netty's `lengthAdjustment`, tokio-util's
    /// `length_adjustment`.
    #[must_use]
    pub const fn adjustment(mut self, bytes: i64) -> Self {
        self.adjustment = bytes;
        self
    }

    /// How many bytes at the front of a frame are not part of the body that is handed out, at most
    /// 65535. Default: the header, up to the end of the field.
    ///
    /// With fewer, the rest of the header comes with each body that is received, on top of the
    /// maximum; a body that is sent is always put behind a header of its own. With more, the bytes
    /// between the header and the body are written as zeros. Netty's `initialBytesToStrip`;
    /// tokio-util's `num_skip`, which also moves the point from where its adjusted length counts.
    #[must_use]
    pub const fn skip(mut self, bytes: usize) -> Self {
        self.skip = Some(bytes);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// Names the setting that is out of its range, or [`LengthError::NoBody`] if by all of them
    /// together no frame could carry a byte of body.
    pub fn build(self) -> Result<Length, LengthError> {
        let field_bytes = match self.field_bytes {
            Some(1) => 1,
            Some(2) => 2,
            Some(3) => 3,
            None | Some(4) => 4,
            Some(8) => 8,
            Some(bytes) => return Err(LengthError::FieldBytes(bytes)),
        };
        let offset = u8::try_from(self.offset).map_err(|_| LengthError::Offset(self.offset))?;
        let header_len = u16::from(offset).saturating_add(u16::from(field_bytes));
        let skip = match self.skip {
            Some(skip) => u16::try_from(skip).map_err(|_| LengthError::Skip(skip))?,
            None => header_len,
        };
        let adjustment = i32::try_from(self.adjustment)
            .ok()
            .filter(|adjustment| adjustment.unsigned_abs() <= MAX_ADJUSTMENT)
            .ok_or(LengthError::Adjustment(self.adjustment))?;
        let length = Length {
            adjustment,
            header_len,
            skip,
            field_bytes,
            is_little_endian: self.is_little_endian,
            counts_header: self.counts_header,
        };
        match length.longest_body() {
            None | Some(0) => Err(LengthError::NoBody),
            Some(_) => Ok(length),
        }
    }
}

/// Settings of a [`Length`] that can't work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LengthError {
    /// [`field_bytes`](LengthBuilder::field_bytes) is none of 1, 2, 3, 4 and 8.
    FieldBytes(usize),
    /// [`offset`](LengthBuilder::offset) is above 255.
    Offset(usize),
    /// [`skip`](LengthBuilder::skip) is above 65535.
    Skip(usize),
    /// [`adjustment`](LengthBuilder::adjustment) is not within -65535 to 65535.
    Adjustment(i64),
    /// No value of the field leaves room for a body.
    NoBody,
}

impl error::Error for LengthError {}

impl fmt::Display for LengthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FieldBytes(bytes) => {
                write!(f, "setting field_bytes: {bytes} is none of 1, 2, 3, 4 and 8")
            }
            Self::Offset(bytes) => write!(f, "setting offset: {bytes} is above 255"),
            Self::Skip(bytes) => write!(f, "setting skip: {bytes} is above 65535"),
            Self::Adjustment(bytes) => {
                write!(f, "setting adjustment: {bytes} is not within -65535 to 65535")
            }
            Self::NoBody => f.write_str(
                "settings field_bytes, offset, adjustment and skip together leave no body",
            ),
        }
    }
}

/// Bounds the zeros that fill up a short body.
const MAX_ADJUSTMENT: u32 = 65_535;
