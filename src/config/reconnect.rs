//! When a dialled connection is dialled again.

use std::{
    fmt,
    hash::{Hash, Hasher},
    mem,
    sync::Arc,
    time::Duration,
};

use crate::error::ConfigError;

/// When a dialled connection is dialled again after it failed or was lost.
///
/// The default: a random delay up to 100 ms, doubling to up to 30 s, endless; started anew after
/// the connection was up for 10 s.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use longhaul::{Config, Reconnect};
///
/// let config = Config::new().reconnect(Reconnect::fixed(Duration::from_secs(5)).max_attempts(3));
/// ```
#[derive(Clone)]
pub struct Reconnect {
    pub(crate) delay: Delay,
    /// Failed attempts in a row after which the connection is given up.
    pub(crate) max_attempts: Option<u32>,
    /// How long a connection must have been up for the count to start anew.
    pub(crate) healthy_after: Duration,
    /// The delay after a healthy connection was lost, where it is not that of the first attempt.
    pub(crate) after_loss: Option<Duration>,
    /// The longest time for which a peer can keep us from dialling it again.
    pub(crate) longest_hint: Duration,
}

/// A goaway can name any time up to 49 days.
const LONGEST_HINT: Duration = Duration::from_mins(5);

#[derive(Clone)]
pub(crate) enum Delay {
    Never,
    Fixed(Duration),
    Exponential { first: Duration, cap: Duration },
    Custom(Arc<dyn Fn(u32) -> Option<Duration> + Send + Sync>),
}

impl Reconnect {
    /// A random delay of up to `first`, doubling with each attempt to up to `cap` (full jitter).
    pub const fn exponential(first: Duration, cap: Duration) -> Self {
        Self::with(Delay::Exponential { first, cap })
    }

    /// Always the same delay. Zero: at once, which is as often as the peer's system refuses.
    pub const fn fixed(delay: Duration) -> Self {
        Self::with(Delay::Fixed(delay))
    }

    /// Never: the connection ends with its first epoch, or with its first failed attempt.
    pub const fn never() -> Self {
        Self::with(Delay::Never)
    }

    /// What the function says: it is given the number of attempts that failed in a row (1 after the
    /// first) and answers with the delay, or `None` to give up. Called on the loop. One that panics has
    /// given up: that connection is not dialled again, and nothing else is touched.
    pub fn custom(delay: impl Fn(u32) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Self::with(Delay::Custom(Arc::new(delay)))
    }

    /// Gives up after so many attempts in a row failed; a connection that was lost before it had been
    /// up for a [healthy spell](Self::healthy_after) counts as a failed attempt. At least 1. Default:
    /// endless.
    #[must_use]
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// How long a connection must have been up for the count of attempts to start anew, so that a
    /// peer that accepts and closes at once is not dialled without pause. Zero: being up is enough.
    /// Default: 10 s.
    #[must_use]
    pub const fn healthy_after(mut self, uptime: Duration) -> Self {
        self.healthy_after = uptime;
        self
    }

    /// The delay before a connection that was up for a [healthy spell](Self::healthy_after) is dialled
    /// again for the first time. Default: the policy's first delay.
    #[must_use]
    pub const fn after_loss(mut self, delay: Duration) -> Self {
        self.after_loss = Some(delay);
        self
    }

    /// The longest time for which a peer's goaway can keep us from dialling it again: a longer one that
    /// it names counts as this. Zero: what it names is ignored. Default: 5 minutes.
    #[must_use]
    pub const fn longest_hint(mut self, time: Duration) -> Self {
        self.longest_hint = time;
        self
    }

    const fn with(delay: Delay) -> Self {
        Self {
            delay,
            max_attempts: None,
            healthy_after: Duration::from_secs(10),
            after_loss: None,
            longest_hint: LONGEST_HINT,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let problem = match &self.delay {
            Delay::Exponential { first, cap } if first > cap => "the first delay is over the cap",
            Delay::Exponential { first, .. } if first.is_zero() => {
                "the first delay must not be zero"
            }
            _ if self.max_attempts == Some(0) => "max_attempts must be at least 1",
            _ => return Ok(()),
        };
        Err(ConfigError { setting: "reconnect", problem: problem.into() })
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::exponential(Duration::from_millis(100), Duration::from_secs(30))
    }
}

/// Two policies of the application are equal if they are clones of one.
impl PartialEq for Reconnect {
    fn eq(&self, other: &Self) -> bool {
        let is_same_delay = match (&self.delay, &other.delay) {
            (Delay::Never, Delay::Never) => true,
            (Delay::Fixed(a), Delay::Fixed(b)) => a == b,
            (Delay::Exponential { first: a, cap: b }, Delay::Exponential { first: c, cap: d }) => {
                a == c && b == d
            }
            (Delay::Custom(a), Delay::Custom(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        is_same_delay
            && self.max_attempts == other.max_attempts
            && self.healthy_after == other.healthy_after
            && self.after_loss == other.after_loss
            && self.longest_hint == other.longest_hint
    }
}

impl Eq for Reconnect {}

/// As [`PartialEq`]: a policy of the application is known by where it is.
impl Hash for Reconnect {
    fn hash<H: Hasher>(&self, state: &mut H) {
        mem::discriminant(&self.delay).hash(state);
        match &self.delay {
            Delay::Never => {}
            Delay::Fixed(delay) => delay.hash(state),
            Delay::Exponential { first, cap } => (first, cap).hash(state),
            Delay::Custom(policy) => Arc::as_ptr(policy).addr().hash(state),
        }
        (self.max_attempts, self.healthy_after, self.after_loss, self.longest_hint).hash(state);
    }
}

impl fmt::Debug for Reconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Reconnect");
        match &self.delay {
            Delay::Never => text.field("delay", &"never"),
            Delay::Fixed(delay) => text.field("delay", delay),
            Delay::Exponential { first, cap } => text.field("first", first).field("cap", cap),
            Delay::Custom(_) => text.field("delay", &"custom"),
        };
        text.field("max_attempts", &self.max_attempts)
            .field("healthy_after", &self.healthy_after)
            .field("after_loss", &self.after_loss)
            .field("longest_hint", &self.longest_hint)
            .finish()
    }
}
