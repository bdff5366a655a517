//! Listening and accepting: in batches, within limits, and on through every error.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{
    desk::Desk,
    dial::stream_options,
    ended_call::AwaitsEnd,
    profile::Profile,
    slot::Phase,
    state::{Alarm, State},
};
use crate::{
    ConnId, Error, ListenerId,
    config::Config,
    core::connection::Role,
    id::TimerKey,
    net::{BroughtStream, ListenOptions, Token, sockets::Sockets},
    protocol::Protocol,
};

/// Connections accepted from one listener in one turn, so that a storm of them does not starve
/// those that are up: at about 10 µs each a turn grows by less than 1 ms.
pub(crate) const ACCEPTS_PER_TURN: usize = 64;

/// How long a listener rests after its first error in a row, and at the most.
const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// A listener, without its socket.
#[derive(Debug)]
pub(crate) struct ListenerState<P> {
    pub(crate) id: ListenerId,
    pub(crate) addr: SocketAddr,
    pub(crate) profile: Arc<Profile<P>>,
    /// Connections that it accepted and that still exist.
    pub(crate) connections: usize,
    /// The backlog may hold more: an event said so and no accept has found the opposite.
    pub(crate) is_ready: bool,
    /// The rest after the last error, and the timer that ends it.
    rest: Duration,
    alarm: Option<TimerKey>,
}

impl<P> ListenerState<P> {
    /// An error made it rest, for as long as was told.
    pub(crate) const fn is_resting(&self) -> bool {
        self.alarm.is_some()
    }
}

impl<P: Protocol, W: AwaitsEnd> Desk<'_, P, W> {
    /// Makes a listener of what `bind` binds.
    pub(crate) fn open_listener(
        &mut self,
        protocol: &P,
        config: &Config,
        bind: impl FnOnce(&mut dyn Sockets, ListenerId, &ListenOptions) -> io::Result<SocketAddr>,
    ) -> Result<(ListenerId, SocketAddr), Error> {
        let (profile, name) = self.state.profile(protocol, config)?;
        let id = ListenerId::new(self.state.board.number(), self.state.next_listener);
        let options = ListenOptions {
            backlog: config.backlog,
            reuse_address: config.reuse_address,
            only_v6: config.only_v6,
            stream: stream_options(config),
        };
        let addr = bind(self.sockets, id, &options)?;
        self.state.next_listener += 1;
        self.state.listeners.push(ListenerState {
            id,
            addr,
            profile,
            connections: 0,
            is_ready: true,
            rest: Duration::ZERO,
            alarm: None,
        });
        log::info!("listening on {addr} ({name})");
        Ok((id, addr))
    }

    /// Closes a listener; how many connections of it there are. `None` if there is no listener of that
    /// id.
    pub(crate) fn drop_listener(&mut self, id: ListenerId) -> Option<usize> {
        let place = self.state.listeners.iter().position(|listener| listener.id == id)?;
        let listener = self.state.listeners.remove(place);
        if let Some(key) = listener.alarm {
            self.state.wheel.cancel(key);
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
        self.state.find_slot()?;
        let (profile, _) = self.state.profile(protocol, config)?;
        let peer = self.sockets.peer_of(stream, &stream_options(config))?;
        let made = self.state.insert(profile, Role::Accepted, Phase::Connecting, peer);
        let id = made.inspect_err(|_| self.sockets.drop_stream())?;
        if let Err(error) = self.sockets.adopt_stream(id) {
            self.state.discard(id);
            return Err(error.into());
        }
        self.state.arrivals.push_back(id);
        Ok(id)
    }
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    pub(crate) fn listener_mut(&mut self, id: ListenerId) -> Option<&mut ListenerState<P>> {
        self.listeners.iter_mut().find(|listener| listener.id == id)
    }

    /// The listener that an event is about.
    pub(crate) fn listener_of(&mut self, token: Token) -> Option<&mut ListenerState<P>> {
        self.listeners.iter_mut().find(|listener| Token::from(listener.id) == token)
    }

    /// Why a connection from `peer` must be refused, if it must: the limit that is reached.
    pub(crate) fn accept_limit(&self, id: ListenerId, peer: IpAddr) -> Option<usize> {
        let listener = self.listeners.iter().find(|listener| listener.id == id)?;
        let config = &listener.profile.config;
        if self.slots.len() >= self.max_connections {
            return Some(self.max_connections);
        }
        if let Some(max) = config.max_connections
            && listener.connections >= max
        {
            return Some(max);
        }
        let of_peer = self.per_peer.get(&(id, peer.to_canonical())).copied().unwrap_or(0);
        config.max_connections_per_peer.filter(|max| of_peer >= *max)
    }

    /// Takes a slot for a connection that a listener accepted. `None` if the protocol panics: there is no
    /// connection yet that this could end.
    pub(crate) fn insert_accepted(&mut self, id: ListenerId, peer: SocketAddr) -> Option<ConnId> {
        let profile = self.listener_mut(id)?.profile.clone();
        let is_counted = profile.config.max_connections_per_peer.is_some();
        let conn = self.insert(profile, Role::Accepted, Phase::Connecting, peer).ok()?;
        self.listener_mut(id)?.connections += 1;
        self.slots[conn.slot() as usize].listener = Some(id);
        if is_counted {
            *self.per_peer.entry((id, peer.ip().to_canonical())).or_default() += 1;
        }
        Some(conn)
    }

    /// A connection that a listener accepted is gone.
    pub(crate) fn release_accepted(&mut self, id: ListenerId, peer: IpAddr, is_counted: bool) {
        if let Some(listener) = self.listener_mut(id) {
            listener.connections -= 1;
        }
        let key = (id, peer.to_canonical());
        if is_counted && let Some(count) = self.per_peer.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&key);
            }
        }
    }

    /// Accepting failed: the listener rests. Edge-triggered readiness does not come again for a
    /// connection that already waits, so a timer and not an event ends the rest.
    pub(crate) fn rest_listener(&mut self, id: ListenerId) -> Duration {
        let now = self.now;
        let Some(listener) = self.listeners.iter_mut().find(|listener| listener.id == id) else {
            return Duration::ZERO;
        };
        listener.is_ready = false;
        listener.rest = (listener.rest * 2).clamp(FIRST_REST, LONGEST_REST);
        if let Some(key) = listener.alarm.take() {
            self.wheel.cancel(key);
        }
        listener.alarm = Some(self.wheel.insert(now + listener.rest, Alarm::Accept(id)));
        listener.rest
    }

    /// The rest is over: the backlog may hold connections of which no event will tell.
    pub(crate) fn on_accept_alarm(&mut self, id: ListenerId) {
        if let Some(listener) = self.listener_mut(id) {
            listener.alarm = None;
            listener.is_ready = true;
        }
    }

    /// Accepting works again.
    pub(crate) fn accept_succeeded(&mut self, id: ListenerId) {
        if let Some(listener) = self.listener_mut(id) {
            listener.rest = Duration::ZERO;
        }
    }
}
