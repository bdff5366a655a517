//! How a connection comes to its end: what we say, what the peer says, and until when.

use std::time::Duration;

use super::Connection;
use crate::{
    core::{calls::Pending, farewell::FAREWELL, write_queue::QueuePool},
    moment::Moment,
    protocol::{Goaway, Head, Kind, Protocol},
};

impl<P: Protocol, W, D: Clone> Connection<P, W, D> {
    /// Tells the peer, where the format can, that soon no new requests are taken.
    pub(crate) fn begin_farewell(&mut self, pool: &mut QueuePool, now: Moment) {
        let Some(id) = self.protocol.goaway_id(Goaway::Notice) else { return };
        if !self.farewell.get_or_insert_default().notice(now) {
            return;
        }
        let ping = self.next_push_id();
        self.push_urgent(pool, |protocol, out| {
            protocol.encode(&Head::new(Kind::Goaway, id), &[], out);
        });
        self.push_urgent(pool, |protocol, out| {
            protocol.encode(&Head::new(Kind::Ping, ping), FAREWELL, out);
        });
    }

    /// Tells the peer which request is the last that is handled, once it knows of the notice.
    pub(super) fn finish_farewell(&mut self, pool: &mut QueuePool) {
        if !self.farewell.as_mut().is_some_and(|farewell| farewell.finish()) {
            return;
        }
        let last = self.last_request;
        if let Some(id) = self.protocol.goaway_id(Goaway::Final { last }) {
            self.push_urgent(pool, |protocol, out| {
                protocol.encode(&Head::new(Kind::Goaway, id), &[], out);
            });
        }
    }

    /// Whether requests are still taken although the connection drains.
    pub(crate) fn is_noticed(&self) -> bool {
        self.farewell.as_ref().is_some_and(|farewell| farewell.is_noticed())
    }

    /// The last request of ours that the peer handles, where it has said so.
    pub(super) fn last_handled(&self) -> Option<P::Id> {
        self.farewell.as_ref()?.last_handled()
    }

    /// Whether the peer said that it goes away.
    pub(crate) fn is_left(&self) -> bool {
        self.last_handled().is_some()
    }

    /// When closing ends, whatever is left; `None` also where it takes as long as it takes.
    #[inline]
    pub(crate) fn close_by(&self) -> Option<Moment> {
        self.farewell.as_ref()?.close_by()
    }

    /// Closing has begun, and takes this long at the most; what was said before holds.
    pub(crate) fn close_within(&mut self, time: Duration, now: Moment) {
        self.farewell.get_or_insert_default().close_within(time, now);
    }

    /// Closing takes this long at the most, counted anew.
    pub(crate) fn close_anew(&mut self, time: Duration, now: Moment) {
        self.farewell.get_or_insert_default().close_anew(time, now);
    }

    /// Takes the calls of ours that the peer's goaway says it will not handle.
    pub(crate) fn take_excluded_calls(&mut self) -> Vec<Pending<W>> {
        let (Some(last), Some(talk)) = (self.last_handled(), &mut self.talk) else {
            return Vec::new();
        };
        let (protocol, salt) = (&self.protocol, self.salt);
        if let Some(line) = talk.calls.line_mut() {
            return line.take_where(|number| {
                let id = protocol.call_id(number, salt);
                id.is_some_and(|id| !protocol.may_be_handled(&id, &last))
            });
        }
        talk.calls.take_where(|id| !protocol.may_be_handled(id, &last))
    }
}
