//! Wire formats: bytes into frames, and back.
//!
//! A [`Protocol`] knows one wire format and nothing else: it sees slices, never a socket, a queue
//! or a clock. Everything above it (calls, heartbeats, limits, backpressure) works for any type
//! that implements the trait, so a format of your own gets all of it.
//!
//! | type | for peers | calls | heartbeat |
//! |---|---|---|---|
//! | [`Native`] | two longhaul peers; the default | `u64`, told apart by kind | both sides ping |
//! | [`Tcpstream`] | the Go library `kumustone/tcpstream` | `u64`, by the pending table | none |
//! | [`Qtk3`] | `@qtk/tcp-framework` 3.x | 36 bytes of text, by the pending table | the dialler pings |
//! | [`Qtk2`] | `@qtk/tcp-framework` 2.x | 32 bytes of text, by the pending table | the dialler pings |
//! | [`Length`] | any length-delimited stream | none | none |
//! | [`AnyProtocol`] | one of these, chosen at run time | as the chosen one | as the chosen one |
//!
//! The bytes of each are in `docs/wire.md`.

mod any;
mod decode_error;
mod frame;
mod hello;
mod length;
mod native;
mod qtk;
mod tcpstream;
#[cfg(test)]
mod tests;

use std::{fmt, hash::Hash};

pub use any::{AnyId, AnyProtocol, UnknownProtocol};
pub use decode_error::DecodeError;
pub use frame::{Correlation, Decoded, Goaway, Head, HeartbeatBy, Kind, NoId};
pub use hello::Hello;
pub use length::{Length, LengthBuilder, LengthError};
pub use native::Native;
pub use qtk::{Qtk2, Qtk3, Uuid};
pub use tcpstream::Tcpstream;

/// A wire format.
///
/// One value is the prototype that a listener or a dialled connection was given; every connection
/// works on its own clone, made anew for each epoch, so a decoder may keep state. Two prototypes
/// that are equal must write the same bytes: a broadcast is encoded once for all that are equal.
///
/// # What is to be encoded
///
/// Only some [`Kind`]s come to the encoder, by what the format says of itself; it need not know the others.
///
/// | kind | comes where | when |
/// |---|---|---|
/// | `Plain` | [`Correlation::None`], [`Correlation::ByPendingTable`] | for every message, request and answer |
/// | `Push` | [`Correlation::ByKind`], [`Correlation::InOrder`] | a message that nobody answers |
/// | `Request`, `Reply` | as `Push` | a call, and its answer |
/// | `Error` | as `Push`, and [`has_errors`](Self::has_errors) | a request failed. The code is the head's tag, the body a text of up to 4096 bytes |
/// | `Cancel` | `ByKind` | a call of ours timed out or was given up; without a body |
/// | `Ping` | [`heartbeat`](Self::heartbeat) is `Both`, or `Dialler` and we dialled | a heartbeat is due; without a body |
/// | `Pong` | always, but for the dialler where it is `Dialler` | the decoder found a `Ping`; with its head and its body |
/// | `Goaway` | [`goaway_id`](Self::goaway_id) gives an id | a connection drains, in [two steps](Goaway). A `Ping` with the body `goaway` follows the first, whose pong must bring that body back |
/// | `Hello` | never here | by [`encode_hello`](Self::encode_hello), where [`has_hello`](Self::has_hello) |
///
/// # Panics
///
/// A format may panic, wherever it is asked. Nobody else pays for that:
///
/// - In a decoder or an encoder it closes the connection, as [`Panicked`](crate::CloseReason::Panicked). The
///   message that was being encoded is lost, and nothing torn is sent. Encoding a broadcast it costs the
///   message for those who were to get that frame.
/// - As a connection is made it is an [error](crate::Error::Panicked) for who dials, listens or adopts. One
///   that would be accepted is refused, and one that would be dialled again has ended.
/// - Asked whether a request may have been handled, it counts as yes.
///
/// # Examples
///
/// A format with one length byte and no calls:
///
/// ```
/// use longhaul::protocol::{Decoded, DecodeError, Head, Kind, NoId, Protocol};
///
/// #[derive(Clone, Debug, Default, PartialEq)]
/// struct Short;
///
/// impl Protocol for Short {
///     type Id = NoId;
///
///     fn name(&self) -> &'static str {
///         "short"
///     }
///
///     fn decode(&mut self, buf: &[u8], _: usize) -> Result<Decoded<NoId>, DecodeError> {
///         let Some(&len) = buf.first() else { return Ok(Decoded::need(1)) };
///         Ok(Decoded::frame(Head::plain(NoId), 1, usize::from(len)))
///     }
///
///     fn encode_header(&mut self, _: &Head<NoId>, body_len: usize, out: &mut Vec<u8>) {
///         out.push(u8::try_from(body_len).expect("bounded by largest_body"));
///     }
///
///     fn largest_body(&self) -> usize {
///         255
///     }
///
///     fn push_id(&self, _: u64, _: u64) -> NoId {
///         NoId
///     }
/// }
///
/// let mut wire = Vec::new();
/// Short.encode(&Head::plain(NoId), b"hi", &mut wire);
/// assert_eq!(Short.decode(&wire, 255)?, Decoded::frame(Head::plain(NoId), 1, 2));
/// # Ok::<(), DecodeError>(())
/// ```
pub trait Protocol: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The id that ties a reply to its request on the wire.
    type Id: Copy + Eq + Hash + fmt::Debug + Send + 'static;

    /// The name on the command line and in logs.
    fn name(&self) -> &'static str;

    /// Looks at the front of `buf` for one frame.
    ///
    /// Called with what was received since the last frame's end. As soon as the header is there, it
    /// answers with a [`Decoded::Frame`], although the body may still be missing: the caller waits for
    /// it and knows how much to expect. [`Decoded::Need`] asks for more bytes.
    ///
    /// Each frame is decoded once, in the order in which frames came, and each answer counts: a frame
    /// that was answered is not shown again, and the next call begins behind it. Only after `Need` is the
    /// call repeated, with the same bytes and more behind them, when as many are there as were asked
    /// for. So a decoder may keep state: what it knows of frames changes only when it answers with a
    /// frame, and after `Need` it may remember how far it has looked. A format whose frames end with a
    /// mark should do that, or a long frame is searched from its start with every read.
    ///
    /// Calls may be ahead of the handler by the frame at whose body they wait. After an error there is no
    /// further call.
    ///
    /// Nothing may be allocated by a length that the peer declared.
    ///
    /// # Errors
    ///
    /// The bytes can't be a frame, or declare a body of more than `max_body` bytes. The connection
    /// then closes with the error as its reason.
    ///
    /// The caller checks `max_body`, too, and closes the connection as
    /// [`BodyTooLong`](DecodeError::BodyTooLong): where the body of a message is longer, and where a frame,
    /// or what `Need` asks for, is more than 64 KiB above it.
    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<Self::Id>, DecodeError>;

    /// Appends what stands before a body of `body_len` bytes.
    ///
    /// `body_len` is at most [`largest_body`](Self::largest_body), which the caller has checked.
    fn encode_header(&mut self, head: &Head<Self::Id>, body_len: usize, out: &mut Vec<u8>);

    /// Appends a whole frame, as does [`encode_header`](Self::encode_header) what is before the body: what
    /// stands in `out` belongs to other frames. One that takes some of it away has panicked, and the
    /// connection is dropped with all that was queued.
    ///
    /// A format whose frames are not a header and then the body as it is overrides this, and
    /// [`is_header_then_body`](Self::is_header_then_body) to say so.
    #[inline]
    fn encode(&mut self, head: &Head<Self::Id>, body: &[u8], out: &mut Vec<u8>) {
        self.encode_header(head, body.len(), out);
        out.extend_from_slice(body);
    }

    /// Whether a frame is what [`encode_header`](Self::encode_header) wrote and then the body
    /// unchanged, so that a large body can be sent without copying it. Default: yes.
    fn is_header_then_body(&self) -> bool {
        true
    }

    /// The largest body that the format can carry, in bytes.
    fn largest_body(&self) -> usize;

    /// How replies find their calls. Default: there are no calls.
    fn correlation(&self) -> Correlation {
        Correlation::None
    }

    /// Whether a request can be answered with a frame of [`Kind::Error`]. Default: yes, where the kind of
    /// a frame tells requests from replies.
    #[inline]
    fn has_errors(&self) -> bool {
        matches!(self.correlation(), Correlation::ByKind | Correlation::InOrder)
    }

    /// The side that sends heartbeats. Default: nobody.
    fn heartbeat(&self) -> HeartbeatBy {
        HeartbeatBy::Nobody
    }

    /// The id on the wire of our call number `n`.
    ///
    /// `salt` is random, drawn once an epoch, so that ids of different connections differ. Must
    /// differ for different `n`. `None` where the format has no calls, or calls without ids
    /// ([`Correlation::InOrder`]); those are sent with a [`push_id`](Self::push_id).
    fn call_id(&self, n: u64, salt: u64) -> Option<Self::Id> {
        let _ = (n, salt);
        None
    }

    /// The first call number of an epoch. Default: 1.
    fn first_call(&self, salt: u64) -> u64 {
        let _ = salt;
        1
    }

    /// The id of a message or a ping that nobody answers: number `n` of this connection.
    fn push_id(&self, n: u64, salt: u64) -> Self::Id;

    /// The id of a goaway frame of ours. Default: the format has none.
    fn goaway_id(&self, goaway: Goaway<Self::Id>) -> Option<Self::Id> {
        let _ = goaway;
        None
    }

    /// Whether a peer whose goaway names `last` may have handled our request `id`. Default: yes.
    fn may_be_handled(&self, id: &Self::Id, last: &Self::Id) -> bool {
        let _ = (id, last);
        true
    }

    /// Whether the first frame in each direction is a hello. Default: no.
    fn has_hello(&self) -> bool {
        false
    }

    /// Appends our hello frame; called only where [`has_hello`](Self::has_hello).
    fn encode_hello(&mut self, hello: &Hello, out: &mut Vec<u8>) {
        let _ = (hello, out);
    }

    /// Reads the body of a frame of [`Kind::Hello`]; called only where [`has_hello`](Self::has_hello).
    ///
    /// # Errors
    ///
    /// The body is not a hello.
    fn decode_hello(&self, body: &[u8]) -> Result<Hello, DecodeError> {
        let _ = body;
        Err(DecodeError::custom("this protocol has no hello"))
    }
}
