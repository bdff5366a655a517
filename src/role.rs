//! The two sides of a connection.

/// Which side made the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Accepted,
    Dialled,
}
