//! The listeners, without their sockets.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::profile::Profile;
use crate::{ListenerId, id::TimerKey, net::Token};

/// How long a listener rests after its first error in a row, and at the most.
const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// A listener.
#[derive(Debug)]
pub(crate) struct Listener<P> {
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

/// The listeners of a reactor, and how much of their limits is used.
#[derive(Debug)]
pub(crate) struct Listeners<P> {
    list: Vec<Listener<P>>,
    /// The number of the next one.
    next: u32,
    /// Connections of each listener from each address, where it bounds them.
    per_peer: HashMap<(ListenerId, IpAddr), usize>,
    /// The most connections of the reactor.
    most: usize,
}

impl<P> Listener<P> {
    pub(crate) const fn new(id: ListenerId, addr: SocketAddr, profile: Arc<Profile<P>>) -> Self {
        Self {
            id,
            addr,
            profile,
            connections: 0,
            is_ready: true,
            rest: Duration::ZERO,
            alarm: None,
        }
    }

    /// An event said that the backlog may hold more. While it rests that is left to the end of the rest.
    pub(crate) const fn note_event(&mut self) {
        self.is_ready |= self.alarm.is_none();
    }

    /// Accepting failed: for how long it is to rest, longer with each failure in a row.
    pub(crate) fn begin_rest(&mut self) -> Duration {
        self.is_ready = false;
        self.rest = (self.rest * 2).clamp(FIRST_REST, LONGEST_REST);
        self.rest
    }

    /// This timer ends the rest. The one that would have before.
    pub(crate) const fn set_alarm(&mut self, key: TimerKey) -> Option<TimerKey> {
        self.alarm.replace(key)
    }

    /// The rest is over: the backlog may hold connections of which no event will tell.
    pub(crate) const fn end_rest(&mut self) {
        self.alarm = None;
        self.is_ready = true;
    }

    /// Accepting works again.
    pub(crate) const fn note_success(&mut self) {
        self.rest = Duration::ZERO;
    }

    /// The timer that ends its rest, if it rests.
    pub(crate) const fn alarm(&self) -> Option<TimerKey> {
        self.alarm
    }
}

impl<P> Listeners<P> {
    /// None yet; together they let in so many connections.
    pub(crate) fn new(most: usize) -> Self {
        Self { list: Vec::new(), next: 0, per_peer: HashMap::new(), most }
    }

    /// The number of the next listener.
    pub(crate) const fn next(&self) -> u32 {
        self.next
    }

    /// Adds the listener that has the number that [`next`](Self::next) gave.
    pub(crate) fn add(&mut self, listener: Listener<P>) {
        self.next += 1;
        self.list.push(listener);
    }

    pub(crate) fn remove(&mut self, id: ListenerId) -> Option<Listener<P>> {
        let place = self.list.iter().position(|listener| listener.id == id)?;
        Some(self.list.remove(place))
    }

    pub(crate) fn get(&self, id: ListenerId) -> Option<&Listener<P>> {
        self.list.iter().find(|listener| listener.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: ListenerId) -> Option<&mut Listener<P>> {
        self.list.iter_mut().find(|listener| listener.id == id)
    }

    /// The listener that an event is about.
    pub(crate) fn of_token(&mut self, token: Token) -> Option<&mut Listener<P>> {
        self.list.iter_mut().find(|listener| Token::from(listener.id) == token)
    }

    /// The one at this place in the order of their numbers.
    pub(crate) fn at(&self, place: usize) -> Option<&Listener<P>> {
        self.list.get(place)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Listener<P>> {
        self.list.iter()
    }

    pub(crate) const fn len(&self) -> usize {
        self.list.len()
    }

    /// Why a connection from `peer` must be refused, if it must, where there are so many already: the
    /// limit that is reached.
    pub(crate) fn limit(&self, id: ListenerId, peer: IpAddr, connections: usize) -> Option<usize> {
        let listener = self.get(id)?;
        let config = &listener.profile.config;
        if connections >= self.most {
            return Some(self.most);
        }
        if let Some(max) = config.max_connections
            && listener.connections >= max
        {
            return Some(max);
        }
        let of_peer = self.per_peer.get(&(id, peer.to_canonical())).copied().unwrap_or(0);
        config.max_connections_per_peer.filter(|max| of_peer >= *max)
    }

    /// A connection was accepted from this address; `is_counted`: the listener bounds those.
    pub(crate) fn count(&mut self, id: ListenerId, peer: IpAddr, is_counted: bool) {
        if let Some(listener) = self.get_mut(id) {
            listener.connections += 1;
        }
        if is_counted {
            *self.per_peer.entry((id, peer.to_canonical())).or_default() += 1;
        }
    }

    /// A connection that was [counted](Self::count) is gone.
    pub(crate) fn discount(&mut self, id: ListenerId, peer: IpAddr, is_counted: bool) {
        if let Some(listener) = self.get_mut(id) {
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

    /// Addresses of which connections are counted.
    #[cfg(test)]
    pub(crate) fn peers(&self) -> usize {
        self.per_peer.len()
    }
}
