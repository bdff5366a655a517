//! The hello: the limits that peers tell each other before anything else.

/// The first frame in each direction of [`Native`](super::Native): what its sender accepts.
///
/// The body of 20 bytes, big-endian; what a peer of a later version appends is ignored.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 2 | `version`, 1 |
/// | 2 | 2 | flags, 0 in version 1 |
/// | 4 | 4 | `max_body` |
/// | 8 | 4 | `max_in_flight` |
/// | 12 | 4 | `heartbeat_ms` |
/// | 16 | 4 | `idle_timeout_ms` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hello {
    /// The version of the format: 1 here, or above where the peer is newer.
    pub version: u16,
    /// The largest body that the sender accepts, in bytes.
    pub max_body: u32,
    /// The most requests that the sender will hold at a time.
    pub max_in_flight: u32,
    /// After how many milliseconds of silence the sender pings; 0: never.
    pub heartbeat_ms: u32,
    /// After how many milliseconds of silence the sender closes; 0: never.
    pub idle_timeout_ms: u32,
}

impl Hello {
    /// Bytes of the body in version 1.
    pub(super) const LEN: usize = 20;

    /// A hello of version 1.
    pub const fn new(
        max_body: u32,
        max_in_flight: u32,
        heartbeat_ms: u32,
        idle_timeout_ms: u32,
    ) -> Self {
        Self { version: 1, max_body, max_in_flight, heartbeat_ms, idle_timeout_ms }
    }
}
