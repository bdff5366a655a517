//! Listening and accepting: in batches, within limits, and on through every error.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    clock::Alarm, desk::Desk, dial::stream_options, ended_call::AwaitsEnd, listeners::Listener,
    slot::Phase, state::State,
};
use crate::{
    ConnId, Error, ListenerId,
    config::Config,
    net::{BroughtStream, ListenOptions, sockets::Sockets},
    protocol::Protocol,
    role::Role,
};

impl<P: Protocol, W: AwaitsEnd> Desk<'_, P, W> {
    /// Makes a listener of what `bind` binds.
    pub(crate) fn open_listener(
        &mut self,
        protocol: &P,
        config: &Config,
        bind: impl FnOnce(&mut dyn Sockets, ListenerId, &ListenOptions) -> io::Result<SocketAddr>,
    ) -> Result<(ListenerId, SocketAddr), Error> {
        let (profile, name) = self.state.profile(protocol, config)?;
        let id = ListenerId::new(self.state.board.number(), self.state.listeners.next());
        let options = ListenOptions {
            backlog: config.backlog,
            reuse_address: config.reuse_address,
            only_v6: config.only_v6,
            stream: stream_options(config),
        };
        let addr = bind(self.sockets, id, &options)?;
        self.state.listeners.add(Listener::new(id, addr, profile));
        log::info!("listening on {addr} ({name})");
        Ok((id, addr))
    }

    /// Closes a listener; how many connections of it there are. `None` if there is no listener of that
    /// id.
    pub(crate) fn drop_listener(&mut self, id: ListenerId) -> Option<usize> {
        let listener = self.state.listeners.remove(id)?;
        if let Some(key) = listener.alarm() {
            self.state.clock.disarm(key);
        }
        self.sockets.close_listener(id);
        Some(listener.connections)
    }

    /// Makes a connection of a stream that the application brings.
    pub(crate) fn take_over(
        &mut self,
        stream: BroughtStream,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error> {
        self.state.slots.check_room()?;
        let (profile, _) = self.state.profile(protocol, config)?;
        let peer = self.sockets.peer_of(stream, &stream_options(config))?;
        let made = self.state.insert(profile, Role::Accepted, Phase::Connecting, peer);
        let id = made.inspect_err(|_| self.sockets.drop_stream())?;
        if let Err(error) = self.sockets.adopt_stream(id) {
            self.state.discard(id);
            return Err(error.into());
        }
        self.state.work.push_arrival(id);
        Ok(id)
    }
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    /// Why a connection from `peer` must be refused, if it must: the limit that is reached.
    pub(crate) fn accept_limit(&self, id: ListenerId, peer: IpAddr) -> Option<usize> {
        self.listeners.limit(id, peer, self.slots.len())
    }

    /// Takes a slot for a connection that a listener accepted. `None` if the protocol panics: there is no
    /// connection yet that this could end.
    pub(crate) fn insert_accepted(&mut self, id: ListenerId, peer: SocketAddr) -> Option<ConnId> {
        let profile = self.listeners.get(id)?.profile.clone();
        let is_counted = profile.config.max_connections_per_peer.is_some();
        let conn = self.insert(profile, Role::Accepted, Phase::Connecting, peer).ok()?;
        self.get_mut(conn)?.listener = Some(id);
        self.listeners.count(id, peer.ip(), is_counted);
        Some(conn)
    }

    /// Accepting failed: the listener rests. Edge-triggered readiness does not come again for a
    /// connection that already waits, so a timer and not an event ends the rest.
    pub(crate) fn rest_listener(&mut self, id: ListenerId) -> Duration {
        let Some(listener) = self.listeners.get_mut(id) else { return Duration::ZERO };
        let rest = listener.begin_rest();
        let alarm = self.clock.arm(self.clock.now() + rest, Alarm::Accept(id));
        if let Some(before) = listener.set_alarm(alarm) {
            self.clock.disarm(before);
        }
        rest
    }
}
