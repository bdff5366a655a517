//! The format between two longhaul peers.
//!
//! A header of 24 bytes, then `len` bytes of body. All integers are big-endian.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | `len` | bytes of body |
//! | 4 | 1 | `kind` | see below |
//! | 5 | 1 | `flags` | 0 |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 4 | `tag` | the application's message type; on an error its code |
//! | 12 | 4 | `millis` | on a request how long the caller waits, on a goaway how long not to redial |
//! | 16 | 8 | `id` | ties a reply to its request |
//!
//! | kind | name | body, in bytes | | kind | name | body, in bytes |
//! |---|---|---|---|---|---|---|
//! | 0 | hello | 20 to 1024 | | 5 | ping | 0 to 125 |
//! | 1 | push | any | | 6 | pong | 0 to 125 |
//! | 2 | request | any | | 7 | goaway | 0 to 4096 |
//! | 3 | reply | any | | 8 | cancel | 0 |
//! | 4 | error | 0 to 4096 | | | | |
//!
//! All that can be wrong with a header stands in its first 8 bytes and is refused as soon as these
//! are there. Which frame may come when is not checked here: the decoder keeps no state.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::ops::RangeInclusive;

use super::{Correlation, DecodeError, Decoded, Goaway, Head, HeartbeatBy, Hello, Kind, Protocol};

const HEADER_LEN: usize = 24;
/// The part of the header that can be wrong.
const FRONT_LEN: usize = 8;

/// The format between two longhaul peers; the default.
///
/// Calls in both directions at the same time, errors with a code, deadlines that travel along,
/// cancels, heartbeats from either side, and a hello in which each side names its limits. A body
/// can have up to 4 GiB - 1; `docs/wire.md` shows the bytes.
///
/// A peer whose first bytes are those of HTTP, TLS or SSH is refused as [`DecodeError::Foreign`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Native;

impl Protocol for Native {
    type Id = u64;

    fn name(&self) -> &'static str {
        "native"
    }

    #[inline]
    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<u64>, DecodeError> {
        let words = buf.as_chunks().0;
        let &[len, info, tag, millis, id_high, id_low, ..] = words else {
            // Peers of another protocol may send less than a header and wait for an answer.
            return match words {
                [len, info, ..] => {
                    decode_front(*len, *info, max_body).map(|_| Decoded::need(HEADER_LEN))
                }
                _ => Ok(Decoded::need(FRONT_LEN)),
            };
        };
        let (kind, body_len) = decode_front(len, info, max_body)?;
        let (high, low) = (u32::from_be_bytes(id_high), u32::from_be_bytes(id_low));
        let head = Head {
            kind,
            id: u64::from(high) << 32 | u64::from(low),
            tag: u32::from_be_bytes(tag),
            millis: u32::from_be_bytes(millis),
        };
        Ok(Decoded::frame(head, HEADER_LEN, body_len))
    }

    #[inline]
    fn encode_header(&mut self, head: &Head<u64>, body_len: usize, out: &mut Vec<u8>) {
        let len = u32::try_from(body_len).expect("bounded by largest_body");
        // Put together in registers: small stores that are read back as large ones stall.
        let front = u64::from(len) << 32 | u64::from(code_of(head.kind)) << 24;
        let back = u64::from(head.tag) << 32 | u64::from(head.millis);
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&front.to_be_bytes());
        header[8..16].copy_from_slice(&back.to_be_bytes());
        header[16..].copy_from_slice(&head.id.to_be_bytes());
        out.extend_from_slice(&header);
    }

    fn largest_body(&self) -> usize {
        u32::MAX as usize
    }

    fn correlation(&self) -> Correlation {
        Correlation::ByKind
    }

    fn heartbeat(&self) -> HeartbeatBy {
        HeartbeatBy::Both
    }

    fn call_id(&self, n: u64, _: u64) -> Option<u64> {
        Some(n)
    }

    /// 0 always: nothing finds its way by the id of a push, and pings go one at a time.
    fn push_id(&self, _: u64, _: u64) -> u64 {
        0
    }

    fn goaway_id(&self, goaway: Goaway<u64>) -> Option<u64> {
        Some(match goaway {
            Goaway::Notice => u64::MAX,
            Goaway::Final { last } => last.unwrap_or(0),
        })
    }

    fn may_be_handled(&self, id: &u64, last: &u64) -> bool {
        id <= last
    }

    fn has_hello(&self) -> bool {
        true
    }

    fn encode_hello(&mut self, hello: &Hello, out: &mut Vec<u8>) {
        let mut body = [0; Hello::LEN];
        body[0..2].copy_from_slice(&hello.version.to_be_bytes());
        body[4..8].copy_from_slice(&hello.max_body.to_be_bytes());
        body[8..12].copy_from_slice(&hello.max_in_flight.to_be_bytes());
        body[12..16].copy_from_slice(&hello.heartbeat_ms.to_be_bytes());
        body[16..20].copy_from_slice(&hello.idle_timeout_ms.to_be_bytes());
        self.encode(&Head::new(Kind::Hello, 0), &body, out);
    }

    fn decode_hello(&self, body: &[u8]) -> Result<Hello, DecodeError> {
        let &[first, max_body, max_in_flight, heartbeat, idle, ..] = body.as_chunks().0 else {
            let len = body.len() as u64;
            return Err(control_length(Kind::Hello, len, &HELLO_LENGTHS));
        };
        let [v0, v1, f0, f1] = first;
        let version = u16::from_be_bytes([v0, v1]);
        let flags = u16::from_be_bytes([f0, f1]);
        match version {
            0 => Err(DecodeError::HelloVersion(version)),
            1 if flags != 0 => Err(DecodeError::HelloFlags(flags)),
            _ => Ok(Hello {
                version,
                max_body: u32::from_be_bytes(max_body),
                max_in_flight: u32::from_be_bytes(max_in_flight),
                heartbeat_ms: u32::from_be_bytes(heartbeat),
                idle_timeout_ms: u32::from_be_bytes(idle),
            }),
        }
    }
}

/// Reads what can be wrong, the first 8 bytes: the kind and the length of the body.
#[inline]
fn decode_front(
    first: [u8; 4],
    info: [u8; 4],
    max_body: usize,
) -> Result<(Kind, usize), DecodeError> {
    let len = u32::from_be_bytes(first);
    let [code, flags, r0, r1] = info;
    let reserved = u16::from_be_bytes([r0, r1]);
    let error = match kind_of(code) {
        None => DecodeError::UnknownKind(code),
        Some(_) if flags != 0 => DecodeError::UnknownFlags(flags),
        Some(_) if reserved != 0 => DecodeError::ReservedNotZero(reserved),
        Some(kind) => match control_lengths(kind) {
            Some(lengths) if !lengths.contains(&len) => {
                control_length(kind, u64::from(len), &lengths)
            }
            None if len as usize > max_body => {
                DecodeError::BodyTooLong { len: u64::from(len), max: max_body as u64 }
            }
            _ => return Ok((kind, len as usize)),
        },
    };
    Err(foreign(first).unwrap_or(error))
}

/// The protocol of which these bytes, that are no header of ours, are the start.
#[cold]
fn foreign(first: [u8; 4]) -> Option<DecodeError> {
    let name = match &first {
        b"GET " | b"POST" | b"HEAD" | b"PUT " | b"HTTP" => "HTTP",
        b"SSH-" => "SSH",
        // A handshake record of any TLS version.
        [0x16, 0x03, ..] => "TLS",
        _ => return None,
    };
    Some(DecodeError::Foreign(name))
}

#[inline]
const fn kind_of(code: u8) -> Option<Kind> {
    Some(match code {
        0 => Kind::Hello,
        1 => Kind::Push,
        2 => Kind::Request,
        3 => Kind::Reply,
        4 => Kind::Error,
        5 => Kind::Ping,
        6 => Kind::Pong,
        7 => Kind::Goaway,
        8 => Kind::Cancel,
        _ => return None,
    })
}

#[inline]
const fn code_of(kind: Kind) -> u8 {
    match kind {
        Kind::Hello => 0,
        Kind::Push | Kind::Plain => 1,
        Kind::Request => 2,
        Kind::Reply => 3,
        Kind::Error => 4,
        Kind::Ping => 5,
        Kind::Pong => 6,
        Kind::Goaway => 7,
        Kind::Cancel => 8,
    }
}

/// The bytes of body that a control frame may have, whatever the maximum for the other kinds is.
#[inline]
const fn control_lengths(kind: Kind) -> Option<RangeInclusive<u32>> {
    match kind {
        Kind::Hello => Some(HELLO_LENGTHS),
        Kind::Error | Kind::Goaway => Some(0..=4096),
        Kind::Ping | Kind::Pong => Some(0..=125),
        Kind::Cancel => Some(0..=0),
        Kind::Push | Kind::Request | Kind::Reply | Kind::Plain => None,
    }
}

#[cold]
fn control_length(kind: Kind, len: u64, lengths: &RangeInclusive<u32>) -> DecodeError {
    let (min, max) = (u64::from(*lengths.start()), u64::from(*lengths.end()));
    DecodeError::ControlLength { kind, len, min, max }
}

const HELLO_LENGTHS: RangeInclusive<u32> = 20..=1024;
