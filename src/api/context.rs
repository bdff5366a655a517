//! What a callback may do: with the loop ([`Context`]) and with its connection ([`Conn`]).

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    shared::Shared,
    waiter::{LoopState, Waiter},
};
use crate::{
    Addr, Body, Bytes, Config, Conn, ConnId, DrainReport, Error, Handle, ListenerId, Stats, Tagged,
    Target, TimerId,
    audience::Audience,
    error::named,
    net::{BroughtListener, BroughtStream, ListenOptions, sockets::Sockets},
    protocol::Protocol,
    table::{clock::Alarm, desk::Desk, profile::Profile},
};

/// The loop, as a callback may use it. Nothing here blocks.
pub struct Context<'a, P: Protocol> {
    pub(crate) state: &'a mut LoopState<P>,
    pub(crate) sockets: &'a mut dyn Sockets,
    pub(crate) shared: &'a Arc<Shared<P>>,
}

impl<P: Protocol> Context<'_, P> {
    /// The loop without its handles.
    pub(crate) const fn desk(&mut self) -> Desk<'_, P, Waiter<P>> {
        Desk { state: self.state, sockets: self.sockets }
    }

    /// A connection that exists: is up, or dialled and waiting.
    pub fn conn(&mut self, id: ConnId) -> Option<Conn<'_, P>> {
        self.state.get(id).filter(|slot| slot.exists())?;
        Some(Conn {
            cx: Context { state: self.state, sockets: self.sockets, shared: self.shared },
            id,
        })
    }

    /// The connections that are up, by slot.
    pub fn connections(&self) -> impl Iterator<Item = ConnId> {
        self.state.slots.iter().filter(|slot| slot.is_up()).map(|slot| slot.id)
    }

    /// Sends a body to an audience: encoded once for each protocol, and fanned out over turns.
    /// To each receiver it comes in the order in which things were sent. Returns how many receivers
    /// there are: those that are up now.
    ///
    /// One turn does a bounded part of it, whatever is under way. A connection whose message made it is
    /// not read while 64 broadcasts of messages are under way; more than 65 536 in all make the oldest be
    /// given out at once. `docs/tuning.md` says what that costs.
    pub fn broadcast(&mut self, audience: Audience, body: impl Body) -> usize {
        let tag = body.tag().unwrap_or(0);
        self.state.broadcast(audience, tag, body.into_bytes())
    }

    /// The protocol and settings of what is given none of its own.
    pub(crate) fn defaults(&self) -> Arc<Profile<P>> {
        self.state.profiles.defaults().clone()
    }

    /// Dials with the default protocol and settings; see [`connect_with`](Self::connect_with).
    ///
    /// # Errors
    ///
    /// As [`connect_with`](Self::connect_with).
    pub fn connect<T>(&mut self, target: T) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let defaults = self.defaults();
        self.connect_with(target, &defaults.protocol, &defaults.config)
    }

    /// Dials a peer: `ip:port` or `host:port`.
    ///
    /// The id is there at once; [`on_connect`](crate::Handler::on_connect) tells when the connection is up,
    /// [`on_error`](crate::Handler::on_error) what failed. What is sent before goes to the offline queue.
    ///
    /// # Errors
    ///
    /// The target is no address, the settings can't work, or the reactor has 2²⁴ connections.
    pub fn connect_with<T>(
        &mut self,
        target: T,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        self.connect_target(target.try_into()?, protocol, config)
    }

    pub(crate) fn connect_target(
        &mut self,
        target: Target,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error> {
        target.host()?;
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        self.state.slots.check_room()?;
        self.desk().dial(target, protocol, config)
    }

    /// Listens with the default protocol and settings; see [`listen_with`](Self::listen_with).
    ///
    /// # Errors
    ///
    /// As [`listen_with`](Self::listen_with).
    pub fn listen<T>(&mut self, addr: T) -> Result<(ListenerId, Addr), Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        let defaults = self.defaults();
        self.listen_with(addr, &defaults.protocol, &defaults.config)
    }

    /// Listens on the first address that can be bound; the one returned has the real port. A name is
    /// resolved here and now, so give a literal address on the loop.
    ///
    /// # Errors
    ///
    /// The settings can't work; or no address could be bound, with the last one that was tried.
    pub fn listen_with<T>(
        &mut self,
        addr: T,
        protocol: &P,
        config: &Config,
    ) -> Result<(ListenerId, Addr), Error>
    where
        T: TryInto<Target>,
        Error: From<T::Error>,
    {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        self.listen_first(&addr.try_into()?.to_addrs()?, protocol, config)
    }

    /// Listens on the first of these addresses that can be bound.
    pub(crate) fn listen_first(
        &mut self,
        addrs: &[SocketAddr],
        protocol: &P,
        config: &Config,
    ) -> Result<(ListenerId, Addr), Error> {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "no address to listen on");
        for &addr in addrs {
            let bind = |sockets: &mut dyn Sockets, id, options: &ListenOptions| {
                sockets.listen(id, addr, options)
            };
            match self.desk().open_listener(protocol, config, bind) {
                Ok((id, addr)) => return Ok((id, addr.into())),
                Err(Error::Io(error)) => last = named(addr, &error),
                Err(error) => return Err(error),
            }
        }
        Err(last.into())
    }

    /// Takes over a listener that is bound already, from a supervisor for example.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the system refuses.
    pub fn adopt_listener(
        &mut self,
        listener: std::net::TcpListener,
        protocol: &P,
        config: &Config,
    ) -> Result<(ListenerId, Addr), Error> {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        let adopt = |sockets: &mut dyn Sockets, id, options: &ListenOptions| {
            sockets.adopt_listener(id, BroughtListener::System(listener), options)
        };
        let (id, addr) = self.desk().open_listener(protocol, config, adopt)?;
        Ok((id, addr.into()))
    }

    /// Takes over a stream that is connected already; it counts as accepted and is never redialled.
    ///
    /// # Errors
    ///
    /// The settings can't work, or the system refuses.
    pub fn adopt_stream(
        &mut self,
        stream: std::net::TcpStream,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error> {
        self.adopt_brought(BroughtStream::System(stream), protocol, config)
    }

    pub(crate) fn adopt_brought(
        &mut self,
        stream: BroughtStream,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error> {
        config.validate()?;
        if !self.state.is_running() {
            return Err(Error::Stopped);
        }
        self.desk().take_over(stream, protocol, config)
    }

    /// Stops listening; what was accepted stays. False if there is no such listener.
    pub fn close_listener(&mut self, id: ListenerId) -> bool {
        self.desk().drop_listener(id).is_some()
    }

    /// Stops listening, and drains every connection that the listener accepted, each within its
    /// [close timeout](Config::close_timeout);
    /// [`Incident::ListenerDrained`](crate::Incident::ListenerDrained) then says what was cut. False if
    /// there is no such listener.
    pub fn drain_listener(&mut self, id: ListenerId) -> bool {
        let connections = self.desk().drop_listener(id);
        if let Some(connections) = connections {
            self.state.stopping.begin_drain(id, connections);
        }
        connections.is_some()
    }

    /// Takes back the messages of which [`Incident::Undelivered`](crate::Incident::Undelivered) tells,
    /// in order. Only in [`on_error`](crate::Handler::on_error), and once; else there are none.
    pub fn take_undelivered(&mut self) -> Vec<Tagged<Bytes>> {
        self.state.losses.take_back()
    }

    /// What stopping has come to so far; all of it in [`on_stop`](crate::Handler::on_stop).
    pub const fn stop_report(&self) -> DrainReport {
        self.state.stopping.report()
    }

    /// The address of a listener, with the real port.
    pub fn listener_addr(&self, id: ListenerId) -> Option<Addr> {
        self.state.listeners.get(id).map(|listener| listener.addr.into())
    }

    /// Makes [`on_timer`](crate::Handler::on_timer) be called once, after this time, with this token.
    pub fn set_timer(&mut self, after: Duration, token: u64) -> TimerId {
        self.insert_timer(after, token, None)
    }

    pub(super) fn insert_timer(
        &mut self,
        after: Duration,
        token: u64,
        conn: Option<ConnId>,
    ) -> TimerId {
        let deadline = self.state.clock.after(after);
        // Too far for the clock: a century stands for never.
        let century = Duration::from_hours(100 * 365 * 24);
        let deadline = deadline.unwrap_or_else(|| self.state.clock.now() + century);
        TimerId(self.state.clock.arm(deadline, Alarm::User { token, conn }))
    }

    /// Cancels a timer. False if it has fired, or was cancelled.
    pub fn cancel_timer(&mut self, id: TimerId) -> bool {
        match self.state.clock.disarm(id.0) {
            Some(Alarm::User { conn: Some(conn), .. }) => {
                self.state.forget_timer(conn, id.0);
                true
            }
            Some(_) => true,
            None => false,
        }
    }

    /// Stops the reactor: no new work, what is in flight finishes, what is queued is flushed, for up
    /// to the reactor's stop timeout.
    pub fn stop(&mut self) {
        let timeout = self.state.stopping.timeout();
        self.desk().begin_stop(timeout);
    }

    /// What was counted so far.
    pub const fn stats(&self) -> Stats {
        self.state.stats
    }

    /// The time of this turn.
    pub fn now(&self) -> Instant {
        self.state.clock.now_as_instant()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle<P> {
        Handle::new(self.shared.clone())
    }
}

impl<P: Protocol> fmt::Debug for Context<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("connections", &self.state.slots.len())
            .finish_non_exhaustive()
    }
}
