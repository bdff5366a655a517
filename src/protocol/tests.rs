//! The formats against their contract: a file per topic, and here what these share.

mod any;
mod arbitrary;
mod bad_headers;
mod golden;
mod hello;
mod ids;
mod length;
mod limits;
mod splits;

use super::{DecodeError, Decoded, Head, Kind, NoId, Protocol, Uuid};

fn uuid_3() -> Uuid<36> {
    Uuid::from(*b"123e4567-e89b-12d3-a456-426614174000")
}

fn uuid_2() -> Uuid<32> {
    Uuid::from(*b"123e4567e89b12d3a456426614174000")
}

/// A frame with its body.
type Message<Id> = (Head<Id>, Vec<u8>);

/// A head with all fields set.
const fn head<Id>(kind: Kind, id: Id, tag: u32, millis: u32) -> Head<Id> {
    Head { kind, id, tag, millis }
}

/// What these messages are on the wire.
fn encode<P: Protocol>(protocol: &P, messages: &[Message<P::Id>]) -> Vec<u8> {
    let mut protocol = protocol.clone();
    let mut wire = Vec::new();
    for (head, body) in messages {
        protocol.encode(head, body, &mut wire);
    }
    wire
}

/// What came of a stream of bytes.
#[derive(Debug)]
struct Received<Id> {
    messages: Vec<Message<Id>>,
    error: Option<DecodeError>,
    /// Bytes behind the last frame.
    rest: usize,
}

/// Decodes what arrives in pieces, as a connection does: with everything since the last frame's
/// end, again as soon as more is there, until the first error.
///
/// Panics where the format breaks its contract.
fn receive<'a, P: Protocol>(
    protocol: &P,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    max_body: usize,
) -> Received<P::Id> {
    let mut protocol = protocol.clone();
    let mut received = Received { messages: Vec::new(), error: None, rest: 0 };
    let mut buf = Vec::new();
    let mut needed = 0;
    for piece in pieces {
        buf.extend_from_slice(piece);
        while !buf.is_empty() && received.error.is_none() {
            match protocol.decode(&buf, max_body) {
                Ok(Decoded::Need(total)) => {
                    assert!(total > buf.len(), "needs {total} bytes, {} are there", buf.len());
                    needed = total;
                    break;
                }
                Ok(Decoded::Frame { head, body, len }) => {
                    assert!(body.start <= body.end && body.end <= len && len > 0);
                    assert!(needed <= len, "needed {needed} bytes for a frame of {len}");
                    if buf.len() < len {
                        break;
                    }
                    received.messages.push((head, buf[body].to_vec()));
                    buf.drain(..len);
                    needed = 0;
                }
                Err(error) => received.error = Some(error),
            }
        }
    }
    received.rest = buf.len();
    received
}

/// The messages in bytes that are nothing but whole frames.
fn decode_all<P: Protocol>(protocol: &P, wire: &[u8], max_body: usize) -> Vec<Message<P::Id>> {
    let received = receive(protocol, [wire], max_body);
    assert_eq!(received.error, None);
    assert_eq!(received.rest, 0, "bytes are left");
    received.messages
}

/// What the front of these bytes is.
fn decode<P: Protocol>(
    protocol: &P,
    bytes: &[u8],
    max_body: usize,
) -> Result<Decoded<P::Id>, DecodeError> {
    protocol.clone().decode(bytes, max_body)
}

/// Bytes from hex digits; blanks are for the reader.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .chars()
        .filter(|digit| !digit.is_whitespace())
        .map(|digit| u8::try_from(digit.to_digit(16).expect("a hex digit")).expect("below 16"))
        .collect();
    assert_eq!(digits.len() % 2, 0, "half a byte");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A body of this length, no two neighbours equal.
fn body(len: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len).collect()
}

/// One of each of what the head of a native frame can say, with bodies from none to `max_body`.
fn native_messages(max_body: usize) -> Vec<Message<u64>> {
    vec![
        (head(Kind::Hello, 0, 0, 0), body(20)),
        (head(Kind::Push, 0, 7, 0), b"push".to_vec()),
        (head(Kind::Push, 0, 0, 0), Vec::new()),
        (head(Kind::Request, 1, u32::MAX, 1500), b"request".to_vec()),
        (head(Kind::Request, u64::MAX, 0, u32::MAX), body(max_body)),
        (head(Kind::Reply, 1, 0x0102_0304, 0), body(max_body - 1)),
        (head(Kind::Error, 0x0102_0304_0506_0708, 2, 0), b"busy".to_vec()),
        (head(Kind::Error, 3, 3, 0), Vec::new()),
        (head(Kind::Ping, 9, 0, 0), body(125)),
        (head(Kind::Pong, 9, 0, 0), body(125)),
        (head(Kind::Ping, 0, 0, 0), Vec::new()),
        (head(Kind::Goaway, 4, 0, 250), b"restart".to_vec()),
        (head(Kind::Cancel, 4, 0, 0), Vec::new()),
        (head(Kind::Push, 0, 0, 0), Vec::new()),
    ]
}

fn tcpstream_messages(max_body: usize) -> Vec<Message<u64>> {
    vec![
        (head(Kind::Plain, 0, 0, 0), Vec::new()),
        (head(Kind::Plain, 1 << 63, 7, 0), b"call".to_vec()),
        (head(Kind::Plain, u64::MAX, u32::MAX, 0), body(max_body)),
        (head(Kind::Plain, 0x0102_0304_0506_0708, 1, 0), Vec::new()),
    ]
}

fn qtk_messages<const N: usize>(id: Uuid<N>, max_body: usize) -> Vec<Message<Uuid<N>>> {
    vec![
        (Head::new(Kind::Ping, id), Vec::new()),
        (Head::plain(id), b"hi".to_vec()),
        (Head::plain(Uuid::from([0; N])), Vec::new()),
        (Head::plain(Uuid::from([0xFF; N])), body(max_body)),
        (Head::new(Kind::Ping, Uuid::from([b'x'; N])), body(125)),
        (Head::plain(id), Vec::new()),
    ]
}

fn length_messages(max_body: usize) -> Vec<Message<NoId>> {
    vec![
        (Head::plain(NoId), b"hi".to_vec()),
        (Head::plain(NoId), Vec::new()),
        (Head::plain(NoId), body(max_body)),
        (Head::plain(NoId), Vec::new()),
    ]
}
