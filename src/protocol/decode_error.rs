//! Why bytes are not a frame.

use std::{borrow::Cow, error, fmt};

use super::Kind;

/// The bytes that a peer sent can't be a frame; the connection closes with this as its reason.
///
/// Each variant names the fault and the value that was found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DecodeError {
    /// A body longer than the maximum was declared.
    BodyTooLong {
        /// The declared bytes of body.
        len: u64,
        /// The most that is accepted, in bytes.
        max: u64,
    },
    /// The first bytes are not the format's magic number.
    BadMagic {
        /// The bytes that stood there.
        found: u16,
        /// The bytes that should have.
        expected: u16,
    },
    /// `native`: no such kind of frame.
    UnknownKind(u8),
    /// `native`: flag bits that version 1 does not know.
    UnknownFlags(u8),
    /// `native`: the reserved field is not 0.
    ReservedNotZero(u16),
    /// `native`: the first frame is not a hello.
    HelloMissing {
        /// The kind that came instead.
        found: Kind,
    },
    /// `native`: a hello that is not the first frame.
    SecondHello,
    /// `native`: a hello of version 0.
    HelloVersion(u16),
    /// `native`: flag bits in a hello of version 1.
    HelloFlags(u16),
    /// A control frame whose body has a length that its kind can't have.
    ControlLength {
        /// The kind of the frame.
        kind: Kind,
        /// The declared bytes of body.
        len: u64,
        /// The fewest bytes that such a frame carries.
        min: u64,
        /// The most.
        max: u64,
    },
    /// `qtk`: the first byte is neither a ping's nor a message's.
    BadSign(u8),
    /// `qtk3`: the length, a double, is no whole number of bytes.
    BadLength(f64),
    /// `length`: the field counts its own header, but says less than that.
    LengthBelowHeader {
        /// The declared length.
        len: u64,
        /// The bytes that it must at least count.
        header: u64,
    },
    /// `length`: with the adjustment the length is below zero or does not fit.
    LengthOutOfRange {
        /// The declared length.
        len: u64,
        /// The number that the settings add to it.
        adjustment: i64,
    },
    /// A request whose id is in flight already.
    DuplicateRequest,
    /// The bytes are the start of another protocol.
    Foreign(
        /// Its name.
        &'static str,
    ),
    /// The protocol broke its contract: a frame of no bytes, or a body outside of its frame.
    Contract(
        /// The fault.
        &'static str,
    ),
    /// A fault that a protocol of the application found.
    Custom(
        /// The fault, as text.
        Cow<'static, str>,
    ),
}

impl DecodeError {
    /// An error of a protocol of your own.
    pub fn custom(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Custom(text.into())
    }
}

impl error::Error for DecodeError {}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BodyTooLong { len, max } => {
                write!(f, "a body of {len} bytes was declared, the maximum is {max}")
            }
            Self::BadMagic { found, expected } => {
                write!(f, "bad magic 0x{found:04X}, expected 0x{expected:04X}")
            }
            Self::UnknownKind(kind) => write!(f, "unknown frame kind {kind}"),
            Self::UnknownFlags(flags) => write!(f, "unknown flags 0x{flags:02X}"),
            Self::ReservedNotZero(found) => write!(f, "reserved field is 0x{found:04X}, not 0"),
            Self::HelloMissing { found } => {
                write!(f, "the first frame is not a hello but of kind {found:?}")
            }
            Self::SecondHello => f.write_str("a second hello"),
            Self::HelloVersion(version) => write!(f, "hello of unknown version {version}"),
            Self::HelloFlags(flags) => write!(f, "unknown hello flags 0x{flags:04X}"),
            Self::ControlLength { kind, len, min, max } => write!(
                f,
                "a frame of kind {kind:?} with a body of {len} bytes, it has {min} to {max}"
            ),
            Self::BadSign(sign) => write!(f, "bad sign 0x{sign:02X}, expected 0x01 or 0x11"),
            Self::BadLength(len) => write!(f, "the length {len} is no whole number of bytes"),
            Self::LengthBelowHeader { len, header } => {
                write!(f, "the length {len} counts its header, which alone has {header} bytes")
            }
            Self::LengthOutOfRange { len, adjustment } => {
                write!(f, "the length {len} adjusted by {adjustment} is out of range")
            }
            Self::DuplicateRequest => f.write_str("a request whose id is in flight already"),
            Self::Foreign(name) => write!(f, "the peer speaks {name}"),
            Self::Contract(what) => write!(f, "the protocol broke its contract: {what}"),
            Self::Custom(text) => f.write_str(text),
        }
    }
}
