//! The settings of a listener or a dialled connection, with their defaults.
//!
//! Each default is a value to run in production; `docs/tuning.md` gives the reason, the trade and
//! what happens at each bound.

mod keepalive;
mod reconnect;
mod rules;

use std::time::Duration;

pub use keepalive::Keepalive;
pub(crate) use reconnect::Delay;
pub use reconnect::Reconnect;

use crate::layer::LayerMaker;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The most bytes that a limit can be about: more is in no address space. What is less than this
/// beyond a limit still fits a `usize`, so a queue at its limit and one more body can be added.
const MOST: usize = isize::MAX as usize - 64 * KIB;
/// The most that a format can declare, where the address space has as much.
const LARGEST_BODY: usize = if MOST as u64 > u32::MAX as u64 { u32::MAX as usize } else { MOST };

/// The ancestors' own: a ping each 20 s, and 30 s until a silent peer is given up.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(20);
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A time whose default depends on the protocol; `None`: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Timing {
    Default,
    Set(Option<Duration>),
}

impl Timing {
    /// The time that was set, if it is one.
    fn time(self) -> Option<Duration> {
        match self {
            Self::Default => None,
            Self::Set(time) => time,
        }
    }
}

/// The settings of a listener (and of what it accepts) or of a dialled connection.
///
/// The whole is checked once, where it is used to listen or to dial.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use longhaul::Config;
///
/// let config = Config::new().max_body(64 * 1024).idle_timeout(Duration::from_secs(60));
/// config.validate()?;
/// # Ok::<(), longhaul::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    pub(crate) heartbeat: Timing,
    pub(crate) idle_timeout: Timing,
    pub(crate) reconnect: Reconnect,
    pub(crate) connect_timeout: Duration,
    pub(crate) resolve_timeout: Duration,
    pub(crate) hello_timeout: Duration,
    pub(crate) frame_timeout: Duration,
    pub(crate) frame_rate: usize,
    pub(crate) max_body: usize,
    pub(crate) low_watermark: usize,
    pub(crate) high_watermark: usize,
    pub(crate) hard_limit: usize,
    pub(crate) write_timeout: Duration,
    pub(crate) max_calls: usize,
    pub(crate) max_requests: usize,
    pub(crate) offline_bytes: usize,
    pub(crate) offline_age: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) linger: Duration,
    pub(crate) max_connections: Option<usize>,
    pub(crate) max_connections_per_peer: Option<usize>,
    pub(crate) backlog: u32,
    pub(crate) reuse_address: bool,
    pub(crate) only_v6: bool,
    pub(crate) nodelay: bool,
    pub(crate) tcp_keepalive: Option<Keepalive>,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) receive_buffer: Option<usize>,
    /// What lies between the socket and the frames.
    pub(crate) layer: Option<LayerMaker>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Timing::Default,
            idle_timeout: Timing::Default,
            reconnect: Reconnect::default(),
            connect_timeout: Duration::from_secs(5),
            resolve_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(5),
            frame_timeout: Duration::from_secs(30),
            frame_rate: 16 * KIB,
            max_body: 8 * MIB,
            low_watermark: 256 * KIB,
            high_watermark: MIB,
            hard_limit: 16 * MIB,
            write_timeout: Duration::from_secs(30),
            max_calls: 4096,
            max_requests: 4096,
            offline_bytes: MIB,
            offline_age: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(1),
            max_connections: None,
            max_connections_per_peer: None,
            backlog: 1024,
            reuse_address: true,
            only_v6: false,
            nodelay: true,
            tcp_keepalive: Some(Keepalive::default()),
            tcp_user_timeout: Some(Duration::from_secs(30)),
            send_buffer: None,
            receive_buffer: None,
            layer: None,
        }
    }
}

impl Config {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The settings under which a connection behaves in time as one of the Go library
    /// `kumustone/tcpstream`, to be used with [`Tcpstream`](crate::protocol::Tcpstream): no heartbeat,
    /// no idle timeout, bodies of up to 8 MiB, 5 s to connect, dialled again at once after a loss and
    /// every 5 s after a failure, keepalive probes each 15 s.
    ///
    /// Not taken over: a peer that accepts and closes at once is dialled every 5 s and not thousands of
    /// times a second; half a frame, a peer that does not read and a queue have their bounds.
    pub fn go_tcpstream() -> Self {
        Self::default()
            .heartbeat(None)
            .idle_timeout(None)
            .max_body(8 * MIB)
            .connect_timeout(Duration::from_secs(5))
            .reconnect(Reconnect::fixed(Duration::from_secs(5)).after_loss(Duration::ZERO))
            .tcp_keepalive(Keepalive {
                idle: Duration::from_secs(15),
                interval: Duration::from_secs(15),
                probes: 9,
            })
    }

    /// The settings under which a connection behaves in time as one of the Node library
    /// `@qtk/tcp-framework`, to be used with [`Qtk3`](crate::protocol::Qtk3) or
    /// [`Qtk2`](crate::protocol::Qtk2): a ping each 20 s, closed after 30 s without a byte, 30 s to
    /// connect, dialled again every 200 ms.
    ///
    /// Not taken over: bodies and queues without bounds.
    pub fn qtk() -> Self {
        Self::default()
            .heartbeat(DEFAULT_HEARTBEAT)
            .idle_timeout(DEFAULT_IDLE_TIMEOUT)
            .connect_timeout(DEFAULT_IDLE_TIMEOUT)
            .reconnect(Reconnect::fixed(Duration::from_millis(200)))
    }

    /// Sends a ping when nothing was received for this long. `None`: never. Zero is refused.
    ///
    /// Default: on protocols with heartbeats 20 s, or two thirds of a shorter idle timeout; else never.
    #[must_use]
    pub fn heartbeat(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.heartbeat = Timing::Set(interval.into());
        self
    }

    /// Closes a connection on which nothing was received for this long. `None`: never. Zero is refused.
    ///
    /// Whatever is received counts as life, what is sent does not. Default: on protocols with
    /// heartbeats 30 s, or one and a half of a longer heartbeat's interval; else never.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.idle_timeout = Timing::Set(timeout.into());
        self
    }

    /// When a dialled connection is dialled again. Default: [`Reconnect::default`].
    #[must_use]
    pub fn reconnect(mut self, policy: Reconnect) -> Self {
        self.reconnect = policy;
        self
    }

    /// How long one address may take to connect. Default: 5 s.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a name may take to resolve. Default: 5 s.
    #[must_use]
    pub const fn resolve_timeout(mut self, timeout: Duration) -> Self {
        self.resolve_timeout = timeout;
        self
    }

    /// How long the peer's hello may take, on protocols that have one. Default: 5 s.
    #[must_use]
    pub const fn hello_timeout(mut self, timeout: Duration) -> Self {
        self.hello_timeout = timeout;
        self
    }

    /// How long a frame that has begun may take to be whole, however its bytes drip in; its length
    /// at [`frame_rate`](Self::frame_rate) is added. Default: 30 s.
    #[must_use]
    pub const fn frame_timeout(mut self, timeout: Duration) -> Self {
        self.frame_timeout = timeout;
        self
    }

    /// The bytes a second at which a long frame must at least arrive. Default: 16 KiB.
    #[must_use]
    pub const fn frame_rate(mut self, bytes_per_second: usize) -> Self {
        self.frame_rate = bytes_per_second;
        self
    }

    /// The largest body, in bytes, that is sent or accepted; a longer one that a peer declares
    /// closes the connection. At most 4 GiB − 1, on 32-bit targets 2 GiB − 64 KiB − 1. Default: 8 MiB.
    #[must_use]
    pub const fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// The write queue's watermarks, in bytes with overhead. Above `high` sends from outside are
    /// refused as `Full`, and reading from a peer whose own messages caused that much pauses; down at
    /// `low` (0: when it is empty) both resume.
    /// Default: 256 KiB, 1 MiB.
    #[must_use]
    pub const fn watermarks(mut self, low: usize, high: usize) -> Self {
        self.high_watermark = at_most(high);
        let is_cut = low < high && low >= self.high_watermark;
        self.low_watermark = if is_cut { self.high_watermark - 1 } else { low };
        self
    }

    /// Above this many queued bytes, with overhead, the connection is closed as a slow consumer.
    /// Default: 16 MiB.
    #[must_use]
    pub const fn hard_limit(mut self, bytes: usize) -> Self {
        self.hard_limit = at_most(bytes);
        self
    }

    /// Closes a connection whose peer took no byte of a non-empty queue for this long.
    /// Default: 30 s.
    #[must_use]
    pub const fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// The most calls of ours in flight on a connection; one more is refused. 0: there are none.
    /// Default: 4096.
    #[must_use]
    pub const fn max_calls(mut self, calls: usize) -> Self {
        self.max_calls = calls;
        self
    }

    /// The most requests of the peer's in flight on a connection; one more is answered `busy`. Where the
    /// format does not mark requests, deferred messages count, and a peer with so many of them is not
    /// read from. One that was cancelled counts until its responder is gone. At least 1. Default: 4096.
    #[must_use]
    pub const fn max_requests(mut self, requests: usize) -> Self {
        self.max_requests = requests;
        self
    }

    /// What a dialled connection keeps while it is down: up to so many bytes, with overhead, each
    /// message for so long. 0 bytes: sends are refused as `Offline`; else the time must not be zero.
    /// Default: 1 MiB, 30 s.
    #[must_use]
    pub const fn offline_queue(mut self, bytes: usize, age: Duration) -> Self {
        self.offline_bytes = at_most(bytes);
        self.offline_age = age;
        self
    }

    /// How long a graceful close may take until what is in flight and queued is cut. Zero: at once, so
    /// only what the system takes without waiting goes out. Default: 5 s.
    #[must_use]
    pub const fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// How long, after all was flushed, to wait for the peer to close too. Zero: not at all. Default: 1 s.
    ///
    /// Closing a socket while input is under way resets it, and the peer may lose what was flushed.
    #[must_use]
    pub const fn linger(mut self, timeout: Duration) -> Self {
        self.linger = timeout;
        self
    }

    /// The most connections that this listener holds at a time; at least 1. Default: no limit but the
    /// descriptors.
    #[must_use]
    pub const fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = Some(connections);
        self
    }

    /// The most connections of this listener from one IP address; at least 1. Default: no limit.
    #[must_use]
    pub const fn max_connections_per_peer(mut self, connections: usize) -> Self {
        self.max_connections_per_peer = Some(connections);
        self
    }

    /// The backlog of the listening socket, capped by the system; at least 1. Default: 1024.
    #[must_use]
    pub const fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// `SO_REUSEADDR` on the listening socket. Default: on.
    #[must_use]
    pub const fn reuse_address(mut self, is_on: bool) -> Self {
        self.reuse_address = is_on;
        self
    }

    /// Whether an IPv6 listener refuses IPv4 peers. Default: no.
    #[must_use]
    pub const fn only_v6(mut self, is_on: bool) -> Self {
        self.only_v6 = is_on;
        self
    }

    /// `TCP_NODELAY`. Default: on.
    #[must_use]
    pub const fn nodelay(mut self, is_on: bool) -> Self {
        self.nodelay = is_on;
        self
    }

    /// TCP's own keepalive, which finds dead peers on protocols that have no heartbeat of their own.
    /// `None`: off. Default: [`Keepalive::default`], 2 minutes in all.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use longhaul::{Config, Keepalive};
    ///
    /// let config = Config::new().tcp_keepalive(Keepalive {
    ///     idle: Duration::from_secs(30),
    ///     interval: Duration::from_secs(5),
    ///     probes: 3,
    /// });
    /// let off = Config::new().tcp_keepalive(None);
    /// ```
    #[must_use]
    pub fn tcp_keepalive(mut self, keepalive: impl Into<Option<Keepalive>>) -> Self {
        self.tcp_keepalive = keepalive.into();
        self
    }

    /// `TCP_USER_TIMEOUT`: how long sent data may stay unacknowledged; Linux only. `None`: the
    /// system's own, about 15 minutes. Zero is refused. Default: 30 s.
    ///
    /// Beside [`tcp_keepalive`](Self::tcp_keepalive) the socket gets the longer of this and the time that
    /// all probes take, so 2 minutes by default: with a shorter one Linux does not count the probes, and
    /// one that is lost ends an idle connection. What this side's system does not take from the queue
    /// meanwhile is bounded by [`write_timeout`](Self::write_timeout), and silence by
    /// [`idle_timeout`](Self::idle_timeout) where there is one. Without a keepalive a short user timeout
    /// holds as it is.
    #[must_use]
    pub fn tcp_user_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.tcp_user_timeout = timeout.into();
        self
    }

    /// `SO_SNDBUF` and `SO_RCVBUF` in bytes; 0 leaves the system's own. Default: the system's own.
    #[must_use]
    pub const fn socket_buffers(mut self, send: usize, receive: usize) -> Self {
        self.send_buffer = if send == 0 { None } else { Some(send) };
        self.receive_buffer = if receive == 0 { None } else { Some(receive) };
        self
    }
}

/// A limit of bytes, as far as one can be reached.
pub(crate) const fn at_most(bytes: usize) -> usize {
    if bytes > MOST { MOST } else { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::HeartbeatBy;
    use crate::protocol::Tcpstream;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn user_timeout_of_the_socket_lets_every_probe_be_sent() {
        let mut config = Config::new();
        assert_eq!(config.socket_user_timeout(), Some(secs(120)));
        assert_eq!(Config::go_tcpstream().socket_user_timeout(), Some(secs(150)));
        config = config.tcp_user_timeout(secs(300));
        assert_eq!(config.socket_user_timeout(), Some(secs(300)));
        config = config.tcp_user_timeout(secs(1)).tcp_keepalive(None);
        assert_eq!(config.socket_user_timeout(), Some(secs(1)));
        config = config.tcp_user_timeout(None).tcp_keepalive(Keepalive::default());
        assert_eq!(config.socket_user_timeout(), None);
    }

    #[test]
    fn zero_that_means_nothing_is_refused_by_the_name_of_its_setting() {
        const ZERO: Duration = Duration::ZERO;
        let refused = |set: fn(Config) -> Config| {
            set(Config::new()).validate().err().map(|error| error.setting)
        };
        for (setting, set) in [
            ("max_body", (|c| c.max_body(0)) as fn(Config) -> Config),
            ("frame_rate", |c| c.frame_rate(0)),
            ("max_requests", |c| c.max_requests(0)),
            ("max_connections", |c| c.max_connections(0)),
            ("max_connections_per_peer", |c| c.max_connections_per_peer(0)),
            ("backlog", |c| c.backlog(0)),
            ("offline_queue", |c| c.offline_queue(1, ZERO)),
            ("reconnect", |c| c.reconnect(Reconnect::default().max_attempts(0))),
            ("connect_timeout", |c| c.connect_timeout(ZERO)),
            ("resolve_timeout", |c| c.resolve_timeout(ZERO)),
            ("hello_timeout", |c| c.hello_timeout(ZERO)),
            ("frame_timeout", |c| c.frame_timeout(ZERO)),
            ("write_timeout", |c| c.write_timeout(ZERO)),
            ("heartbeat", |c| c.heartbeat(ZERO)),
            ("idle_timeout", |c| c.idle_timeout(ZERO)),
            ("tcp_user_timeout", |c| c.tcp_user_timeout(ZERO)),
            ("tcp_keepalive", |c| {
                c.tcp_keepalive(Keepalive { idle: ZERO, ..Keepalive::default() })
            }),
        ] {
            assert_eq!(refused(set), Some(setting));
        }
        for set in [
            (|c| c.max_calls(0)) as fn(Config) -> Config,
            |c| c.watermarks(0, 1),
            |c| c.offline_queue(0, ZERO),
            |c| c.close_timeout(ZERO),
            |c| c.linger(ZERO),
            |c| c.socket_buffers(0, 0),
            |c| c.reconnect(Reconnect::fixed(ZERO).after_loss(ZERO).healthy_after(ZERO)),
        ] {
            assert_eq!(refused(set), None);
        }
    }

    #[test]
    fn never_is_none_and_an_error_about_zero_says_so() {
        let config = Config::new().heartbeat(None).idle_timeout(None).tcp_keepalive(None);
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.worst_case_detection(&crate::protocol::Native), None);
        assert_eq!(config.heartbeat_for(HeartbeatBy::Both), None);
        let error = config.idle_timeout(Duration::ZERO).validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "setting idle_timeout: must not be zero; None switches it off"
        );
        let secs = Config::new().heartbeat(Some(secs(3))).heartbeat_for(HeartbeatBy::Both);
        assert_eq!(secs, Some(Duration::from_secs(3)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn user_timeout_beyond_the_probes_decides_at_the_next_probe() {
        let mut config = Config::new().tcp_user_timeout(secs(125));
        assert_eq!(config.worst_case_detection(&Tcpstream), Some(secs(130)));
        config = config.tcp_user_timeout(secs(140));
        assert_eq!(config.worst_case_detection(&Tcpstream), Some(secs(140)));
        config = config.tcp_user_timeout(secs(119));
        assert_eq!(config.worst_case_detection(&Tcpstream), Some(secs(120)));
        config = config.tcp_user_timeout(None);
        assert_eq!(config.worst_case_detection(&Tcpstream), Some(secs(120)));
        config = config.tcp_user_timeout(Duration::MAX);
        assert!(config.worst_case_detection(&Tcpstream) > Some(secs(1 << 30)));
    }

    #[test]
    fn limits_of_bytes_can_be_added_up() {
        let mut config =
            Config::new().watermarks(1, usize::MAX).hard_limit(usize::MAX).max_body(LARGEST_BODY);
        assert!(config.validate().is_ok());
        // A full queue, one more body, and what each costs beside its bytes.
        let sum =
            config.hard_limit.checked_add(config.max_body).and_then(|sum| sum.checked_add(KIB));
        assert!(sum.is_some());
        config = config.max_body(LARGEST_BODY + 1);
        let problem = config.validate().unwrap_err().problem;
        assert_eq!(problem, format!("must be 1 to {LARGEST_BODY} bytes"));
    }
}
