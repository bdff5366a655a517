//! A listening reactor on a thread of its own.

use crate::{
    Addr, DrainReport, Error, Handle, Handler, ListenerId, Reactor, ReactorBuilder, Target,
    protocol::{Native, Protocol},
    worker::Worker,
};

/// A reactor that listens, on a thread of its own.
///
/// Its [`handle`](Self::handle) sends to its clients and calls them. Dropping it stops the reactor without
/// waiting for that; [`stop`](Self::stop) waits.
///
/// # Examples
///
/// ```
/// use longhaul::{Client, Conn, Handler, Message, Server, protocol::Native};
/// use std::time::Duration;
///
/// struct Upper;
///
/// impl Handler for Upper {
///     type Protocol = Native;
///
///     fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
///         let _ = conn.reply(&msg, msg.text().to_uppercase());
///     }
/// }
///
/// let server = Server::bind("127.0.0.1:0", Upper)?;
/// let client = Client::connect(server.addr())?;
/// assert_eq!(client.call("hello", Duration::from_secs(2))?, "HELLO");
/// client.stop()?;
/// server.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server<P: Protocol = Native> {
    listener: ListenerId,
    addr: Addr,
    worker: Worker<P>,
}

impl<P: Protocol> Server<P> {
    /// Listens with the protocol's default and default settings, and serves on a new thread.
    ///
    /// A name is resolved here, and blocks for as long.
    ///
    /// # Errors
    ///
    /// No address could be bound, or the system refuses a thread or a poll descriptor.
    pub fn bind<T, H>(addr: T, handler: H) -> Result<Self, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
        P: Default,
        H: Handler<Protocol = P> + Send,
    {
        Self::bind_with(addr, ReactorBuilder::new(P::default()), handler)
    }

    /// Listens with settings of the caller's, and serves on a new thread.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind), or the settings can't work.
    pub fn bind_with<T, H>(addr: T, builder: ReactorBuilder<P>, handler: H) -> Result<Self, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
        H: Handler<Protocol = P> + Send,
    {
        let mut reactor: Reactor<H> = builder.build(handler)?;
        let (listener, addr) = reactor.listen(addr)?;
        Ok(Self { listener, addr, worker: Worker::spawn("longhaul-server", reactor)? })
    }

    /// Where it listens, with the real port.
    pub const fn addr(&self) -> &Addr {
        &self.addr
    }

    /// The id of its listener.
    pub const fn listener(&self) -> ListenerId {
        self.listener
    }

    /// A handle to its reactor.
    pub fn handle(&self) -> Handle<P> {
        self.worker.handle().clone()
    }

    /// Stops gracefully, within the reactor's stop timeout, and blocks until its thread has ended;
    /// says what was cut. Repeated, it returns the same at once, an error, too.
    ///
    /// # Errors
    ///
    /// The loop failed, or its thread [panicked](Error::Panicked), or this is that thread.
    pub fn stop(&self) -> Result<DrainReport, Error> {
        self.worker.stop()
    }
}
