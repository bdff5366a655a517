//! The rules that follow from the settings, and the settings that can't work.

use std::time::Duration;

use super::{Config, DEFAULT_HEARTBEAT, DEFAULT_IDLE_TIMEOUT, Keepalive, LARGEST_BODY, Timing};
use crate::{
    error::ConfigError,
    protocol::{HeartbeatBy, Protocol},
};

impl Config {
    /// The longest time until a peer that vanished without a word is noticed, with these settings on
    /// this protocol; `None`: never.
    ///
    /// By the idle timeout and one heartbeat interval, which a loop that was away itself grants on top.
    /// Without an idle timeout by TCP's own keepalive: the first probe and all that follow it. On Linux a
    /// [user timeout](Self::tcp_user_timeout) that is longer decides instead, at the next probe.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use longhaul::{Config, protocol::{Native, Tcpstream}};
    ///
    /// let config = Config::new();
    /// assert_eq!(config.worst_case_detection(&Native), Some(Duration::from_secs(50)));
    /// assert_eq!(config.worst_case_detection(&Tcpstream), Some(Duration::from_secs(120)));
    /// ```
    pub fn worst_case_detection(&self, protocol: &impl Protocol) -> Option<Duration> {
        let by = protocol.heartbeat();
        let grace = self.heartbeat_for(by).unwrap_or_default();
        let by_silence = self.idle_timeout_for(by).map(|limit| limit.saturating_add(grace));
        by_silence.into_iter().chain(self.detection_by_keepalive()).min()
    }

    /// How long TCP's own keepalive takes to give a peer up.
    fn detection_by_keepalive(&self) -> Option<Duration> {
        let Keepalive { idle, interval, .. } = self.tcp_keepalive?;
        let by_probes = self.keepalive_time()?;
        let timeout = self.socket_user_timeout().filter(|_| cfg!(target_os = "linux"));
        let over = timeout.unwrap_or_default().saturating_sub(idle);
        if interval.is_zero() || timeout.is_none_or(|timeout| timeout <= by_probes) {
            return Some(by_probes);
        }
        // Linux looks at the user timeout when a probe is due.
        let probes = u32::try_from(over.as_nanos().div_ceil(interval.as_nanos()));
        Some(idle.saturating_add(interval.saturating_mul(probes.unwrap_or(u32::MAX))))
    }

    /// The first probe and all that follow it.
    fn keepalive_time(&self) -> Option<Duration> {
        self.tcp_keepalive.map(Keepalive::time_to_give_up)
    }

    /// What `TCP_USER_TIMEOUT` is set to: no less than what the probes take. Linux counts no probes
    /// where it is set (`tcp_keepalive_timer`): the first one without an answer would end a connection
    /// that has been silent for longer than the user timeout.
    pub(crate) fn socket_user_timeout(&self) -> Option<Duration> {
        let timeout = self.tcp_user_timeout?;
        // Less than the system counts in would be its own default.
        let least = Duration::from_millis(1);
        Some(timeout.max(self.keepalive_time().unwrap_or_default()).max(least))
    }

    /// Checks that the settings can work together.
    ///
    /// Called where the settings are used; call it to know sooner.
    ///
    /// # Errors
    ///
    /// Names the setting and what is wrong with it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong =
            |setting, problem: &'static str| Err(ConfigError { setting, problem: problem.into() });
        if self.low_watermark >= self.high_watermark {
            return wrong("watermarks", "low must be below high");
        }
        if self.high_watermark > self.hard_limit {
            return wrong("hard_limit", "must not be below the high watermark");
        }
        for (setting, time) in [
            ("heartbeat", self.heartbeat.time()),
            ("idle_timeout", self.idle_timeout.time()),
            ("tcp_user_timeout", self.tcp_user_timeout),
        ] {
            if time == Some(Duration::ZERO) {
                return wrong(setting, "must not be zero; None switches it off");
            }
        }
        if let (Some(beats), Some(idle)) = (self.heartbeat.time(), self.idle_timeout.time())
            && beats >= idle
        {
            return wrong("heartbeat", "must be shorter than idle_timeout");
        }
        if self.max_body == 0 || self.max_body > LARGEST_BODY {
            let problem = format!("must be 1 to {LARGEST_BODY} bytes").into();
            return Err(ConfigError { setting: "max_body", problem });
        }
        if self.frame_rate == 0 {
            return wrong("frame_rate", "must be at least 1 byte a second");
        }
        for (setting, number) in [
            ("max_requests", Some(self.max_requests)),
            ("max_connections", self.max_connections),
            ("max_connections_per_peer", self.max_connections_per_peer),
            ("backlog", Some(self.backlog as usize)),
        ] {
            if number == Some(0) {
                return wrong(setting, "must be at least 1");
            }
        }
        if self.offline_bytes > 0 && self.offline_age.is_zero() {
            return wrong("offline_queue", "an age of zero keeps nothing, for which 0 bytes are");
        }
        self.validate_timeouts()?;
        if let Some(problem) = self.tcp_keepalive.and_then(Keepalive::problem) {
            return wrong("tcp_keepalive", problem);
        }
        if u32::try_from(self.max_requests).is_err() {
            return wrong("max_requests", "must fit in 32 bits");
        }
        self.reconnect.validate()
    }

    fn validate_timeouts(&self) -> Result<(), ConfigError> {
        for (setting, timeout) in [
            ("connect_timeout", self.connect_timeout),
            ("resolve_timeout", self.resolve_timeout),
            ("hello_timeout", self.hello_timeout),
            ("frame_timeout", self.frame_timeout),
            ("write_timeout", self.write_timeout),
        ] {
            if timeout.is_zero() {
                return Err(ConfigError { setting, problem: "must not be zero".into() });
            }
        }
        Ok(())
    }

    /// Above how much of what a peer's own messages caused, in bytes with overhead, reading from it
    /// pauses: the high watermark, or half the hard limit where that is lower, so that there is room
    /// left for what comes before reading stops.
    #[inline]
    pub(crate) fn choke_mark(&self) -> usize {
        self.high_watermark.min(self.hard_limit / 2)
    }

    /// The interval of heartbeats on a protocol; `None`: never.
    pub(crate) fn heartbeat_for(&self, by: HeartbeatBy) -> Option<Duration> {
        let default = self
            .idle_timeout
            .time()
            .map_or(DEFAULT_HEARTBEAT, |idle| DEFAULT_HEARTBEAT.min(idle.saturating_sub(idle / 3)));
        Self::timing(self.heartbeat, by, default).filter(|_| by != HeartbeatBy::Nobody)
    }

    /// The idle timeout on a protocol; `None`: never.
    pub(crate) fn idle_timeout_for(&self, by: HeartbeatBy) -> Option<Duration> {
        let beats = self.heartbeat.time().unwrap_or_default();
        let default = DEFAULT_IDLE_TIMEOUT.max(beats.saturating_mul(3) / 2);
        Self::timing(self.idle_timeout, by, default)
    }

    fn timing(timing: Timing, by: HeartbeatBy, default: Duration) -> Option<Duration> {
        match timing {
            Timing::Set(time) => time,
            Timing::Default => Some(default).filter(|_| by != HeartbeatBy::Nobody),
        }
    }
}
