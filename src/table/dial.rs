//! Making connections: names, addresses, attempts, and when to try again.
//!
//! A round resolves the name anew and tries every address in turn, each within the connect
//! timeout. A round that failed, or a connection that was lost, is followed by another after the
//! policy's delay.

use std::{
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{
    clock::Alarm,
    desk::Desk,
    dialled::{Dial, Redial},
    ended_call::AwaitsEnd,
    slot::{Epoch, PeerAddr, Phase, Readiness},
    state::State,
};
use crate::{
    ConnId, Error,
    config::Config,
    core::connection::Connection,
    error::{CloseReason, NetworkError},
    moment::Moment,
    net::{Addrs, StreamOptions, Ticket},
    protocol::Protocol,
    role::Role,
    target::{Host, Target},
};

/// The options of a stream, as the settings have them.
pub(crate) fn stream_options(config: &Config) -> StreamOptions {
    StreamOptions {
        nodelay: config.nodelay,
        keepalive: config.tcp_keepalive,
        user_timeout: config.socket_user_timeout(),
        send_buffer: config.send_buffer,
        receive_buffer: config.receive_buffer,
    }
}

impl<P: Protocol, W: AwaitsEnd> Desk<'_, P, W> {
    /// Makes a dialled connection and starts its first round.
    pub(crate) fn dial(
        &mut self,
        target: Target,
        protocol: &P,
        config: &Config,
    ) -> Result<ConnId, Error> {
        let (profile, _) = self.state.profile(protocol, config)?;
        let id = self.state.insert(profile, Role::Dialled, Phase::Resolving, PeerAddr::NOWHERE)?;
        if let Some(slot) = self.state.get_mut(id) {
            slot.dial = Some(Box::new(Dial::new(target)));
            self.state.publish(id);
        }
        self.start_round(id);
        Ok(id)
    }

    /// A new round: finds the addresses.
    fn start_round(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        slot.phase = Phase::Resolving;
        let resolve_timeout = slot.profile.config.resolve_timeout;
        let Some(dial) = &mut slot.dial else { return };
        dial.round += 1;
        let round = dial.round;
        let Ok(host) = dial.target.host() else { return };
        match host.clone() {
            Host::Ip(addr) => self.try_addrs(id, vec![addr]),
            Host::Unix(_) => {}
            Host::Name(name, port) => {
                self.state.set_dial_alarm(id, resolve_timeout);
                self.sockets.resolve(Ticket { conn: id, round }, &name, port);
            }
        }
    }

    /// The name was looked up.
    pub(crate) fn on_resolved(&mut self, ticket: Ticket, found: Addrs) {
        let Ticket { conn: id, round } = ticket;
        let Some(slot) = self.state.get(id) else { return };
        let is_awaited = slot.phase == Phase::Resolving
            && slot.dial.as_ref().is_some_and(|dial| dial.round == round);
        if !is_awaited {
            return;
        }
        self.state.cancel_dial_alarm(id);
        match found {
            Ok(addrs) if addrs.is_empty() => {
                let error = NetworkError::new(io::ErrorKind::NotFound, "the name has no address");
                self.fail_round(id, error);
            }
            Ok(addrs) => self.try_addrs(id, addrs),
            Err(error) => self.fail_round(id, NetworkError::from(&error)),
        }
    }

    fn try_addrs(&mut self, id: ConnId, mut addrs: Vec<SocketAddr>) {
        addrs.reverse();
        if let Some(slot) = self.state.get_mut(id)
            && let Some(dial) = &mut slot.dial
        {
            dial.addrs = addrs;
        }
        self.try_next(id);
    }

    /// Tries the next address of the round.
    fn try_next(&mut self, id: ConnId) {
        loop {
            let Some(slot) = self.state.get_mut(id) else { return };
            let options = stream_options(&slot.profile.config);
            let timeout = slot.profile.config.connect_timeout;
            let Some(dial) = &mut slot.dial else { return };
            let Some(addr) = dial.addrs.pop() else {
                let error = dial.last_error.clone();
                return self.fail_round(id, error);
            };
            match self.sockets.connect(id, addr, &options) {
                Ok(()) => {
                    slot.phase = Phase::Connecting;
                    slot.io = Readiness::default();
                    slot.peer = addr.into();
                    return self.state.set_dial_alarm(id, timeout);
                }
                Err(error) => dial.last_error = NetworkError::from(&error),
            }
        }
    }

    /// The address that was being tried can't be reached.
    pub(crate) fn fail_attempt(&mut self, id: ConnId, error: NetworkError) {
        self.sockets.close(id.slot());
        self.state.cancel_dial_alarm(id);
        if let Some(slot) = self.state.get_mut(id)
            && let Some(dial) = &mut slot.dial
        {
            dial.last_error = error;
        }
        self.try_next(id);
    }

    /// No address of the round could be reached.
    fn fail_round(&mut self, id: ConnId, error: NetworkError) {
        if let Some(slot) = self.state.get_mut(id)
            && let Some(dial) = &mut slot.dial
        {
            dial.last_error = error.clone();
        }
        self.state.abort(id, CloseReason::DialFailed(error));
    }

    /// A timer of the dial is due.
    pub(crate) fn on_dial_alarm(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        let phase = slot.phase;
        if let Some(dial) = &mut slot.dial {
            dial.alarm = None;
        }
        self.state.expire_offline(id);
        let timed_out = |text| NetworkError::new(io::ErrorKind::TimedOut, text);
        match phase {
            Phase::Waiting => self.start_round(id),
            Phase::Resolving => self.fail_round(id, timed_out("the name took too long to resolve")),
            Phase::Connecting => self.fail_attempt(id, timed_out("connecting took too long")),
            _ => {}
        }
    }
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    /// Drops what was kept for too long, so that it does not take the room of what is new.
    pub(crate) fn expire_offline(&mut self, id: ConnId) {
        let now = self.clock.now();
        let Some(slot) = self.get_mut(id) else { return };
        let max_age = slot.profile.config.offline_age;
        let Some(dial) = &mut slot.dial else { return };
        let lost = dial.offline.expire(max_age, now);
        if lost.is_empty() {
            return;
        }
        for kept in lost {
            self.note_undelivered(id, kept.message);
        }
        self.publish(id);
    }

    /// The dialled connection is up: notes since when.
    pub(crate) fn dial_succeeded(&mut self, id: ConnId) {
        let now = self.clock.now();
        if let Some(slot) = self.get_mut(id)
            && let Some(dial) = &mut slot.dial
        {
            dial.connected_at = Some(now);
            dial.failed_rounds = 0;
            dial.addrs = Vec::new();
        }
    }

    /// The epoch, or the round, is over. In what time the next round begins, if there is to be one.
    /// That is decided once, before the handler is told.
    pub(crate) fn decide_redial(&mut self, id: ConnId) -> Option<Duration> {
        let (now, is_running) = (self.clock.now(), self.is_running());
        let slot = self.slots.get_mut(id)?;
        let policy = &slot.profile.config.reconnect;
        let dial = slot.dial.as_mut()?;
        if !is_running {
            dial.redial = Redial::Never;
        }
        if dial.redial == Redial::Open {
            let no_sooner = std::mem::take(&mut dial.redial_after).min(policy.longest_hint);
            let (connected_at, rng) = (dial.connected_at.take(), &mut self.rng);
            let backoff = &mut dial.backoff;
            // A policy may be the application's.
            let delay = catch_unwind(AssertUnwindSafe(|| match connected_at {
                Some(at) => backoff.lost(policy, no_sooner, rng, at, now),
                None => backoff.failed(policy, no_sooner, rng),
            }));
            let delay = delay.unwrap_or_else(|panic| {
                let text = crate::error::panic_text(&*panic);
                log::error!("connection {id}: the policy of redialling panicked: {text}");
                self.stats.panics += 1;
                None
            });
            dial.redial = match delay {
                Some(delay) => Redial::At(now + delay),
                None => Redial::Never,
            };
        }
        Some(dial.redial_at()?.saturating_duration_since(now))
    }

    /// Makes the connection ready for its next epoch, of which the first round begins then.
    pub(crate) fn await_round(&mut self, id: ConnId, at: Moment) {
        let salt = self.rng.next();
        let now = self.clock.now();
        let Some(slot) = self.get_mut(id) else { return };
        let protocol = slot.profile.protocol.clone();
        slot.link = Connection::new(protocol, Role::Dialled, &slot.profile.config, salt, now);
        slot.phase = Phase::Waiting;
        slot.io = Readiness::default();
        slot.epoch = Epoch::after(slot.epoch.number);
        if let Some(dial) = &mut slot.dial {
            dial.redial = Redial::Open;
        }
        let limit = slot.link.body_limit();
        self.board.set_max_body(id.slot(), limit);
        self.publish(id);
        self.set_dial_alarm(id, at.saturating_duration_since(now));
    }

    fn set_dial_alarm(&mut self, id: ConnId, after: Duration) {
        self.cancel_dial_alarm(id);
        let Some(deadline) = self.clock.after(after) else { return };
        let key = self.clock.arm(deadline, Alarm::Dial(id));
        if let Some(slot) = self.get_mut(id)
            && let Some(dial) = &mut slot.dial
        {
            dial.alarm = Some(key);
        }
    }

    pub(crate) fn cancel_dial_alarm(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id)
            && let Some(dial) = &mut slot.dial
            && let Some(key) = dial.alarm.take()
        {
            self.clock.disarm(key);
        }
    }
}
