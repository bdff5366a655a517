//! Long-lived TCP connections that carry messages: one thread, one poll loop, calls in both
//! directions.
//!
//! A [`Reactor`] owns every socket on one thread, parses frames as they arrive and calls your
//! [`Handler`]. A [`Handle`] reaches it from every other thread: to send, to call, to broadcast,
//! to stop. Accepted and dialled connections have the same API; dialled ones come back by
//! themselves. The wire format is a [`protocol`]; five are here, and yours can be the sixth.
//!
//! ```
//! use longhaul::{Conn, Handler, Message, Reactor, protocol::Native};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     type Protocol = Native;
//!
//!     fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
//!         let _ = conn.reply(&msg, msg.body()); // an error says why nothing was queued
//!     }
//! }
//!
//! # fn main() -> longhaul::Result<()> {
//! let mut reactor = Reactor::new(Echo)?;
//! reactor.listen("127.0.0.1:0")?;
//! # reactor.handle().stop();
//! reactor.run()
//! # }
//! ```
//!
//! # The house
//!
//! Floors, of which each imports only from those below: values; `core`, which decides for one connection,
//! driven by bytes and the time; `threads` and `net`, what is shared and the system; `table`, which decides
//! for all connections; `api`, the public face; `engine`, the loop. `docs/design.md` walks through them.

mod api;
mod audience;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod body;
mod builder;
mod client;
mod close_mode;
mod config;
mod core;
mod drop_quietly;
mod engine;
mod error;
mod id;
mod layer;
mod moment;
mod net;
pub mod protocol;
mod reactor;
mod role;
mod server;
mod stats;
mod table;
mod target;
mod threads;
mod worker;

/// The programs in the README and in the guides are tested, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/migrating.md")]
struct GuideExamples;

pub use bytes::Bytes;

pub use crate::{
    api::{
        call_refused::CallRefused,
        context::{Conn, Context},
        handle::{Handle, PendingCall},
        handler::{Handler, Message, Reply, Timer},
        responder::{ReplyError, Responder},
    },
    audience::{Audience, Candidate},
    body::{Body, Tagged},
    builder::ReactorBuilder,
    client::{Client, ClientBuilder, ClientState},
    config::{Config, Reconnect},
    error::{
        CallError, CloseReason, CloseReport, ClosedBy, ConfigError, DrainReport, Error, Fate,
        Incident, LimitBy, NetworkError, PeerText, Result, SendError, error_code,
    },
    id::{CallId, ConnId, ListenerId, TimerId},
    reactor::Reactor,
    server::Server,
    stats::{ConnStats, Stats},
    target::Target,
};
