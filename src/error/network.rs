//! Failures of the network.

use std::{borrow::Cow, error, fmt, io};

/// An error of the system that can be kept, compared and given to many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkError {
    kind: io::ErrorKind,
    os_code: Option<i32>,
    text: Cow<'static, str>,
}

impl NetworkError {
    pub(crate) const fn new(kind: io::ErrorKind, text: &'static str) -> Self {
        Self { kind, os_code: None, text: Cow::Borrowed(text) }
    }

    /// The kind, as the standard library sorts it.
    pub const fn kind(&self) -> io::ErrorKind {
        self.kind
    }

    /// The system's own number, where there was one.
    pub const fn os_code(&self) -> Option<i32> {
        self.os_code
    }
}

impl error::Error for NetworkError {}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&io::Error> for NetworkError {
    fn from(error: &io::Error) -> Self {
        Self {
            kind: error.kind(),
            os_code: error.raw_os_error(),
            text: Cow::Owned(error.to_string()),
        }
    }
}
