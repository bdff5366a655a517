//! One of the shipped formats, chosen at run time.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]
#![expect(
    clippy::inline_always,
    reason = "what is called for every frame is a jump to the format's own code, and no call before it"
)]

use std::{error, fmt, str::FromStr};

use super::{
    Correlation, DecodeError, Decoded, Goaway, Head, HeartbeatBy, Hello, Length, Native, NoId,
    Protocol, Qtk2, Qtk3, Tcpstream, Uuid,
};

/// One of the shipped formats, chosen at run time: by a command line, a configuration file.
///
/// Behaves as the chosen one, at the price of a jump for each frame that comes or goes: at most a tenth
/// more processor time a message than the format itself (docs/performance.md). Parses from the names in
/// [`NAMES`](Self::NAMES) and prints as them. Default: [`Native`].
///
/// # Examples
///
/// ```
/// use longhaul::protocol::{AnyProtocol, Native, Qtk3};
///
/// let protocol: AnyProtocol = "qtk3".parse()?;
/// assert_eq!(protocol, AnyProtocol::Qtk3(Qtk3));
/// assert_eq!(AnyProtocol::default(), AnyProtocol::from(Native));
/// # Ok::<(), longhaul::protocol::UnknownProtocol>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)] // a tag of its own, which is read as it is, in place of one hidden in a value of `Length`
pub enum AnyProtocol {
    /// Two longhaul peers.
    Native(Native),
    /// Peers of the Go library `kumustone/tcpstream`.
    Tcpstream(Tcpstream),
    /// Peers of `@qtk/tcp-framework` 3.x.
    Qtk3(Qtk3),
    /// Peers of `@qtk/tcp-framework` 2.x.
    Qtk2(Qtk2),
    /// Any length-delimited stream.
    Length(Length),
}

/// The id of a message of [`AnyProtocol`]: that of the chosen format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u64)] // so that all ids begin at one place, and are copied in whole words
pub enum AnyId {
    /// An id of [`Native`].
    Native(u64),
    /// A `seq` of [`Tcpstream`].
    Tcpstream(u64),
    /// A `uuid` of [`Qtk3`].
    Qtk3(Uuid<36>),
    /// A `uuid` of [`Qtk2`].
    Qtk2(Uuid<32>),
    /// The id that [`Length`] does not have.
    Length(NoId),
}

impl AnyProtocol {
    /// The names that parse.
    pub const NAMES: [&'static str; 5] = ["native", "tcpstream", "qtk3", "qtk2", "length"];
}

/// Does the same with whatever format was chosen: `each!(any, format => expression)`.
///
/// `each!(any, format: Id => expression)` calls the format's own variant of [`AnyId`] `Id`.
macro_rules! each {
    ($any:expr, $format:ident $(: $id:ident)? => $does:expr) => {
        match $any {
            AnyProtocol::Native($format) => { $(use AnyId::Native as $id;)? $does }
            AnyProtocol::Tcpstream($format) => { $(use AnyId::Tcpstream as $id;)? $does }
            AnyProtocol::Qtk3($format) => { $(use AnyId::Qtk3 as $id;)? $does }
            AnyProtocol::Qtk2($format) => { $(use AnyId::Qtk2 as $id;)? $does }
            AnyProtocol::Length($format) => { $(use AnyId::Length as $id;)? $does }
        }
    };
}

/// A head as the chosen format has it.
///
/// The id of another format can't be said in this one; it is sent as that of a push, which no reply
/// will match.
macro_rules! own_head {
    ($format:ident: $id:ident, $head:ident) => {{
        let id = match $head.id {
            $id(id) => id,
            _ => $format.push_id(0, 0),
        };
        Head { kind: $head.kind, id, tag: $head.tag, millis: $head.millis }
    }};
}

impl Protocol for AnyProtocol {
    type Id = AnyId;

    fn name(&self) -> &'static str {
        each!(self, format => format.name())
    }

    #[inline(always)]
    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<AnyId>, DecodeError> {
        each!(self, format: Id => match format.decode(buf, max_body)? {
            Decoded::Need(total) => Ok(Decoded::Need(total)),
            Decoded::Frame { head: Head { kind, id, tag, millis }, body, len } => {
                Ok(Decoded::Frame { head: Head { kind, id: Id(id), tag, millis }, body, len })
            }
        })
    }

    #[inline(always)]
    fn encode_header(&mut self, head: &Head<AnyId>, body_len: usize, out: &mut Vec<u8>) {
        each!(self, format: Id => {
            format.encode_header(&own_head!(format: Id, head), body_len, out);
        });
    }

    #[inline(always)]
    fn encode(&mut self, head: &Head<AnyId>, body: &[u8], out: &mut Vec<u8>) {
        each!(self, format: Id => format.encode(&own_head!(format: Id, head), body, out));
    }

    #[inline(always)]
    fn is_header_then_body(&self) -> bool {
        each!(self, format => format.is_header_then_body())
    }

    fn largest_body(&self) -> usize {
        each!(self, format => format.largest_body())
    }

    #[inline(always)]
    fn correlation(&self) -> Correlation {
        each!(self, format => format.correlation())
    }

    #[inline(always)]
    fn has_errors(&self) -> bool {
        each!(self, format => format.has_errors())
    }

    fn heartbeat(&self) -> HeartbeatBy {
        each!(self, format => format.heartbeat())
    }

    fn call_id(&self, n: u64, salt: u64) -> Option<AnyId> {
        each!(self, format: Id => format.call_id(n, salt).map(Id))
    }

    fn first_call(&self, salt: u64) -> u64 {
        each!(self, format => format.first_call(salt))
    }

    #[inline(always)]
    fn push_id(&self, n: u64, salt: u64) -> AnyId {
        each!(self, format: Id => Id(format.push_id(n, salt)))
    }

    fn goaway_id(&self, goaway: Goaway<AnyId>) -> Option<AnyId> {
        each!(self, format: Id => match goaway {
            Goaway::Notice => format.goaway_id(Goaway::Notice),
            Goaway::Final { last: Some(Id(last)) } => {
                format.goaway_id(Goaway::Final { last: Some(last) })
            }
            Goaway::Final { .. } => format.goaway_id(Goaway::Final { last: None }),
        }
        .map(Id))
    }

    fn may_be_handled(&self, id: &AnyId, last: &AnyId) -> bool {
        each!(self, format: Id => match (id, last) {
            (Id(id), Id(last)) => format.may_be_handled(id, last),
            _ => true,
        })
    }

    #[inline(always)]
    fn has_hello(&self) -> bool {
        each!(self, format => format.has_hello())
    }

    fn encode_hello(&mut self, hello: &Hello, out: &mut Vec<u8>) {
        each!(self, format => format.encode_hello(hello, out));
    }

    fn decode_hello(&self, body: &[u8]) -> Result<Hello, DecodeError> {
        each!(self, format => format.decode_hello(body))
    }
}

impl Default for AnyProtocol {
    fn default() -> Self {
        Self::Native(Native)
    }
}

impl FromStr for AnyProtocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, UnknownProtocol> {
        match name {
            "native" => Ok(Native.into()),
            "tcpstream" => Ok(Tcpstream.into()),
            "qtk3" => Ok(Qtk3.into()),
            "qtk2" => Ok(Qtk2.into()),
            "length" => Ok(Length::default().into()),
            _ => Err(UnknownProtocol { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for AnyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

macro_rules! from_format {
    ($($format:ident),*) => {$(
        impl From<$format> for AnyProtocol {
            fn from(format: $format) -> Self {
                Self::$format(format)
            }
        }
    )*};
}

from_format!(Native, Tcpstream, Qtk3, Qtk2, Length);

/// A name that no shipped format has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownProtocol {
    name: String,
}

impl error::Error for UnknownProtocol {}

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown protocol {:?}, choose one of {}",
            self.name,
            AnyProtocol::NAMES.join(", ")
        )
    }
}
