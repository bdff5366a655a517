//! Long-lived TCP connections that carry messages: one thread, one poll loop, calls in both
//! directions.
//!
//! A [`Reactor`] owns every socket on one thread, parses frames as they arrive and calls your
//! [`Handler`]. A [`Handle`] reaches it from every other thread: to send, to call, to broadcast, to stop.
//! Accepted and dialled connections have the same methods; dialled ones come back by themselves. The wire
//! format is a [`protocol`]; five are here, and yours can be the sixth.
//!
//! ```sh
//! cargo add longhaul
//! ```
//!
//! # A server
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
//! [`Server`] is a reactor on a thread of its own, for programs whose main thread has something else to do.
//!
//! # A client, and a call
//!
//! A [`Client`] is one connection on a thread of its own. A call is a request that waits for its reply; each
//! end says whether the peer may have got it.
//!
//! ```
//! # use longhaul::{Conn, Handler, Message, Server, protocol::Native};
//! use std::time::Duration;
//!
//! use longhaul::Client;
//!
//! # struct Echo;
//! # impl Handler for Echo {
//! #     type Protocol = Native;
//! #     fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
//! #         let _ = conn.reply(&msg, msg.body());
//! #     }
//! # }
//! # fn main() -> longhaul::Result<()> {
//! # let server = Server::bind("127.0.0.1:0", Echo)?;
//! let client: Client<Native> = Client::connect(server.addr())?;
//! let reply = client.call("hello", Duration::from_secs(1))?;
//! assert_eq!(&reply[..], b"hello");
//! # drop(client);
//! # Ok(())
//! # }
//! ```
//!
//! A handler calls its peer with [`Conn::call`] and is told of the reply in a callback; another thread calls
//! with [`Handle::call`], or with [`Handle::call_async`], which is a future.
//!
//! # Guides
//!
//! In the repository's `docs`:
//!
//! - [tuning](https://docs.rs/crate/longhaul/latest/source/docs/tuning.md): the settings, their defaults, and
//!   what happens at each bound
//! - [migrating](https://docs.rs/crate/longhaul/latest/source/docs/migrating.md): from the Go and the Node
//!   library, one side at a time
//! - [wire](https://docs.rs/crate/longhaul/latest/source/docs/wire.md): the five formats, byte by byte
//! - [performance](https://docs.rs/crate/longhaul/latest/source/docs/performance.md): what was measured, beside
//!   what, and how to repeat it
//! - [design](https://docs.rs/crate/longhaul/latest/source/docs/design.md): how it is built;
//!   [decisions](https://docs.rs/crate/longhaul/latest/source/docs/decisions.md): why, and what was rejected
//! - [testing](https://docs.rs/crate/longhaul/latest/source/docs/testing.md): the simulator, the models, the
//!   fuzzers
//!
//! A reactor can also be run turn by turn in a loop of your own: see [`Reactor::turn`] and the example
//! `own_loop`.
//!
//! # The house
//!
//! Floors, of which each imports only from those below: values; `core`, which decides for one connection,
//! driven by bytes and the time; `threads` and `net`, what is shared and the system; `table`, which decides
//! for all connections; `api`, the public face; `engine`, the loop. `docs/design.md` walks through them.

mod addr;
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
    addr::Addr,
    api::{
        call_refused::CallRefused,
        conn::Conn,
        context::Context,
        handle::Handle,
        handler::{Handler, Message, Reply, Timer},
        pending_call::PendingCall,
        responder::{ReplyError, Responder},
    },
    audience::{Audience, Candidate},
    body::{Body, Tagged},
    builder::ReactorBuilder,
    client::{Client, ClientBuilder, ClientState},
    config::{Config, Keepalive, Reconnect},
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
