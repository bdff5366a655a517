//! The deadlines of a connection, and their consequences.

use super::{Connection, Overdue};
use crate::{
    config::Config,
    core::{
        frame_clock,
        greeting::own_rules,
        heartbeat::{AWAY, Due, Rules},
        write_queue::QueuePool,
    },
    error::CloseReason,
    moment::Moment,
    protocol::{Head, Kind, Protocol},
    role::Role,
};

impl<P: Protocol, W, D: Clone> Connection<P, W, D> {
    /// The earliest moment at which [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn poll_timeout(&self, config: &Config) -> Option<Moment> {
        let layers = self.layer.as_ref().and_then(|layer| layer.poll_timeout());
        // A connection that closes has only its end to wait for.
        if let Some(farewell) = &self.farewell
            && farewell.is_closing()
        {
            return farewell.poll_timeout().into_iter().chain(layers).min();
        }
        let since = self.stalled_since();
        [
            self.hello_by(config),
            since.and_then(|since| since.checked_add(config.write_timeout)),
            self.frame.deadline(self.read.frame_len(), config),
            self.heartbeat.poll_timeout(self.rules(config)),
            self.intake.poll_timeout(since, config),
            self.leave_by(config),
            layers,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Judges the deadlines, and queues a ping that is due. What must be done because of one, if
    /// something must.
    pub(crate) fn handle_timeout(
        &mut self,
        config: &Config,
        pool: &mut QueuePool,
        now: Moment,
    ) -> Option<Overdue> {
        if self.layer.is_some()
            && let Some(reason) = self.handle_layer_timeout(now)
        {
            return Some(Overdue::Close(reason));
        }
        if let Some(farewell) = &self.farewell
            && farewell.is_closing()
        {
            if farewell.is_notice_over(now) {
                self.finish_farewell(pool);
            }
            return None;
        }
        let overdue = self.overdue_input(config, now);
        if overdue.is_some() {
            return overdue;
        }
        if let Some(since) = self.stalled_since()
            && let Some(limit) = since.checked_add(config.write_timeout)
            && now >= limit
        {
            if now.saturating_duration_since(limit) < AWAY {
                return Some(Overdue::Abort(CloseReason::WriteStalled(config.write_timeout)));
            }
            // We were away, and perhaps the peer was, too: it is given as much time again.
            self.restart_stall(now);
        }
        let stalled_since = self.stalled_since();
        if self.leave_by(config).is_some_and(|by| now >= by) {
            return Some(Overdue::Leave);
        }
        self.intake.handle_timeout(stalled_since, config, now);
        let rules = self.rules(config);
        match self.heartbeat.handle_timeout(rules, now) {
            Due::Nothing => None,
            Due::Dead => {
                rules.idle_timeout.map(|limit| Overdue::Abort(CloseReason::IdleTimeout(limit)))
            }
            Due::Ping => {
                let id = self.next_push_id();
                self.push_urgent(pool, |protocol, out| {
                    protocol.encode(&Head::new(Kind::Ping, id), &[], out);
                });
                None
            }
        }
    }

    /// What follows, if the peer should have said something by now and has not: a hello, or
    /// the rest of a frame.
    fn overdue_input(&self, config: &Config, now: Moment) -> Option<Overdue> {
        let is_over = |limit: Option<Moment>| limit.is_some_and(|limit| now >= limit);
        if is_over(self.hello_by(config)) {
            let limit = config.hello_timeout;
            return Some(if self.is_secured() {
                Overdue::Close(CloseReason::HelloTimeout(limit))
            } else {
                // Nothing that is left to be written would mean anything.
                Overdue::Abort(CloseReason::HandshakeTimeout(limit))
            });
        }
        let frame_len = self.read.frame_len();
        if is_over(self.frame.deadline(frame_len, config)) {
            let limit = frame_clock::limit(frame_len, config);
            return Some(Overdue::Close(CloseReason::FrameTimeout(limit)));
        }
        None
    }

    /// When the peer's hello must have come, if it has not.
    fn hello_by(&self, config: &Config) -> Option<Moment> {
        if self.is_greeted() {
            None
        } else {
            self.heartbeat.began().checked_add(config.hello_timeout)
        }
    }

    /// When we leave a peer that said goaway and does not close.
    fn leave_by(&self, config: &Config) -> Option<Moment> {
        let is_in_flight =
            self.calls_in_flight() > 0 || self.requests_awaited() > 0 || self.holds_output();
        self.farewell.as_ref()?.leave_by(is_in_flight, config)
    }

    /// Our rules, as the settings have them.
    pub(super) fn own_rules(&self, config: &Config) -> Rules {
        own_rules(self.greeting.heartbeat_by(), self.role == Role::Dialled, config)
    }

    /// Our rules, faster where the peer would otherwise give us up.
    fn rules(&self, config: &Config) -> Rules {
        self.greeting.rules(self.own_rules(config))
    }
}
