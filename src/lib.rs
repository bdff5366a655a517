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
//! Above, what touches the system: [`Reactor`] and its loop, [`Handle`] and its mailbox. Below,
//! what only decides: `core`, driven by bytes and the time. `docs/design.md` walks through it.

mod audience;
mod bell;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod board;
mod body;
mod call_cell;
mod call_refused;
mod client;
mod close_mode;
mod command;
mod config;
mod context;
mod core;
mod drop_quietly;
mod error;
mod gate;
mod handle;
mod handler;
mod id;
mod mailbox;
pub mod protocol;
mod reactor;
mod responder;
mod server;
mod stats;
mod sync;
mod target;
mod waiter;
mod worker;

/// The programs in the README and in the guides are tested, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/migrating.md")]
struct GuideExamples;

pub use bytes::Bytes;

pub use crate::{
    audience::{Audience, Candidate},
    body::{Body, Tagged},
    call_refused::CallRefused,
    client::{Client, ClientBuilder, ClientState},
    config::{Config, Reconnect},
    context::{Conn, Context},
    error::{
        CallError, CloseReason, CloseReport, ClosedBy, ConfigError, DrainReport, Error, Fate,
        Incident, LimitBy, NetworkError, PeerText, Result, SendError, error_code,
    },
    handle::{Handle, PendingCall},
    handler::{Handler, Message, Reply, Timer},
    id::{CallId, ConnId, ListenerId, TimerId},
    reactor::{Reactor, ReactorBuilder},
    responder::{ReplyError, Responder},
    server::Server,
    stats::{ConnStats, Stats},
    target::Target,
};
