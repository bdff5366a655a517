//! The receivers of a broadcast.

use std::{any::Any, fmt, sync::Arc};

use crate::{Addr, ConnId, ListenerId};

/// The receivers of a broadcast.
#[non_exhaustive]
pub enum Audience {
    /// Every connection that is up.
    All,
    /// Every one but this.
    AllBut(ConnId),
    /// The members of a group.
    Group(Arc<str>),
    /// Those for which the function says yes. It is asked for every connection that is up, at once and on
    /// the loop, whenever such a broadcast is made: for what is sent often a group costs less.
    Filter(Box<dyn FnMut(&Candidate<'_>) -> bool + Send>),
}

/// A connection that a broadcast may reach.
#[derive(Debug)]
#[non_exhaustive]
pub struct Candidate<'a> {
    /// Its id.
    pub id: ConnId,
    /// The listener that accepted it; `None` if it was dialled.
    pub listener: Option<ListenerId>,
    /// The peer's address.
    pub peer_addr: Addr,
    /// The application's value that is kept with it.
    pub data: Option<&'a (dyn Any + Send)>,
}

impl Audience {
    /// The members of a group.
    pub fn group(name: impl Into<Arc<str>>) -> Self {
        Self::Group(name.into())
    }

    /// Those for which the function says yes.
    pub fn filter(accepts: impl FnMut(&Candidate<'_>) -> bool + Send + 'static) -> Self {
        Self::Filter(Box::new(accepts))
    }
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("All"),
            Self::AllBut(id) => write!(f, "AllBut({id})"),
            Self::Group(name) => write!(f, "Group({name})"),
            Self::Filter(_) => f.write_str("Filter"),
        }
    }
}
