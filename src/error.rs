//! One error type for each kind of question: was it accepted, how did the call end, why did the
//! connection end.

mod call;
mod close;
pub mod error_code;
mod incident;
mod network;
mod peer_text;
mod report;
mod send;

use std::{any::Any, borrow::Cow, error, fmt, io};

pub use self::{
    call::{CallError, Fate},
    close::{CloseReason, ClosedBy},
    incident::Incident,
    network::NetworkError,
    peer_text::PeerText,
    report::{CloseReport, DrainReport},
    send::{LimitBy, SendError},
};

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is no text".to_owned()
    }
}

/// The result of what can fail as a whole: building, listening, running.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a reactor could not be built, bound, dialled or run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    Io(io::Error),
    /// A setting is out of its range, or two contradict each other.
    Config(ConfigError),
    /// An address is none of the forms that a [`Target`](crate::Target) takes.
    Address(String),
    /// An address is of a kind that this version does not have.
    Unsupported(String),
    /// The reactor has stopped.
    Stopped,
    /// A blocking method was called on the reactor's own thread, which would wait for itself.
    OnLoopThread,
    /// The mailbox is full.
    Full,
    /// A blocking method was called on a reactor that no thread has run yet, and none began to within
    /// 5 s. Nothing was done, and nothing will be.
    NotRunning,
    /// A closure that was put to the loop panicked, or the loop's thread did, or the protocol as a connection
    /// or a listener was to be made; with the panic's message.
    Panicked(String),
    /// A message was not accepted.
    Send(SendError),
    /// A call ended without a reply.
    Call(CallError),
}

impl Error {
    /// The same error once more, for who asks again.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Io(error) => Self::Io(match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
            Self::Config(error) => Self::Config(error.clone()),
            Self::Address(text) => Self::Address(text.clone()),
            Self::Unsupported(text) => Self::Unsupported(text.clone()),
            Self::Panicked(text) => Self::Panicked(text.clone()),
            Self::Stopped => Self::Stopped,
            Self::OnLoopThread => Self::OnLoopThread,
            Self::Full => Self::Full,
            Self::NotRunning => Self::NotRunning,
            Self::Send(error) => Self::Send(error.clone()),
            Self::Call(error) => Self::Call(error.clone()),
        }
    }
}

/// An error of the system that names what it is about, and keeps its kind.
pub(crate) fn named(what: impl fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            // What is shown is the inner error itself, so its own source is the next in the chain.
            Self::Io(error) => error.source(),
            Self::Config(error) => error.source(),
            Self::Send(error) => error.source(),
            Self::Call(error) => error.source(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
            Self::Address(text) => {
                write!(f, "'{text}' is no address, expected ip:port or host:port")
            }
            Self::Unsupported(text) => write!(f, "this version has no support for '{text}'"),
            Self::Stopped => f.write_str("the reactor has stopped"),
            Self::OnLoopThread => f.write_str("blocking call on the reactor's own thread"),
            Self::Full => f.write_str("the mailbox is full"),
            Self::NotRunning => f.write_str("no thread runs the reactor"),
            Self::Panicked(text) => write!(f, "panicked: {text}"),
            Self::Send(error) => error.fmt(f),
            Self::Call(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// For targets that are addresses already.
impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        Self::Send(error)
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// A setting that can't work, found when it is used to listen or to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the setting.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: Cow<'static, str>,
}

impl error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "setting {}: {}", self.setting, self.problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_is_none_is_named_with_what_was_expected() {
        let error = "localhost".parse::<crate::Target>().unwrap_err();
        let expected = "'localhost' is no address, expected ip:port or host:port";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn only_what_time_can_mend_is_transient() {
        let fate = Fate::NotSent;
        let disconnected = |reason| CallError::Disconnected { reason, fate };
        let remote = |code| CallError::Remote { code, text: String::new() };
        for error in [
            CallError::Timeout { fate: Fate::MaybeSent },
            CallError::PeerDraining,
            CallError::TooManyInFlight { limit: 1 },
            CallError::QueueFull,
            CallError::NotRunning,
            disconnected(CloseReason::PeerClosed),
            remote(error_code::BUSY),
        ] {
            assert!(error.is_transient(), "{error}");
        }
        for error in [
            CallError::BodyTooLong { len: 2, max: 1, limit: LimitBy::Peer },
            CallError::NoCalls { protocol: "length" },
            CallError::IdsExhausted,
            CallError::OnLoopThread,
            CallError::Stopped { fate },
            disconnected(CloseReason::Closed),
            remote(error_code::FAILED),
            remote(700),
        ] {
            assert!(!error.is_transient(), "{error}");
        }
    }
}
