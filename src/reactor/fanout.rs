//! Broadcasts: one body, encoded once for each protocol, given to many in slices over turns.
//!
//! A broadcast reaches those that are up when it is made. Whatever else is sent to one of them
//! before its slice has come makes the broadcast catch up with that connection first, so that to
//! each receiver everything arrives in the order in which it was sent.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;

use super::{profile::Profile, slot::Slot, slots::State};
use crate::{
    ConnId, Tagged,
    error::panic_text,
    handler::{Audience, Candidate},
    protocol::{Head, Protocol},
};

/// Receivers of a broadcast that are served in one turn: at about 100 ns each a turn grows by some
/// 25 µs, and 10 000 receivers take 40 turns.
pub(crate) const RECEIVERS_PER_TURN: usize = 256;

/// Broadcasts under way at a time; one more makes the oldest be finished at once.
const MAX_FANOUTS: usize = 64;

/// A broadcast under way.
#[derive(Debug)]
pub(crate) struct Fanout<P> {
    tag: u32,
    body: Bytes,
    /// The receivers, by slot. One that was served out of turn has generation 0.
    receivers: Vec<ConnId>,
    next: usize,
    /// The frame, for each protocol that was met; `None` if encoding it panicked.
    frames: Vec<(Arc<Profile<P>>, Option<Bytes>)>,
}

impl<P: Protocol> State<P> {
    /// Starts a broadcast; returns how many it will reach.
    pub(crate) fn broadcast(&mut self, audience: Audience, tag: u32, body: Bytes) -> usize {
        let receivers = self.receivers(audience);
        let count = receivers.len();
        let mut fanout = Fanout { tag, body, receivers, next: 0, frames: Vec::new() };
        if self.fanouts.is_empty() && count <= RECEIVERS_PER_TURN {
            // A small audience is served at once, so that the watermarks see what waits for it.
            for receiver in std::mem::take(&mut fanout.receivers) {
                self.serve(&mut fanout, receiver);
            }
            return count;
        }
        if self.fanouts.len() >= MAX_FANOUTS {
            self.fan_out_oldest();
        }
        self.fanouts.push_back(fanout);
        count
    }

    fn receivers(&self, audience: Audience) -> Vec<ConnId> {
        let is_up = |id: &ConnId| self.get(*id).is_some_and(Slot::is_up);
        let all = || self.slots.iter().map(|(_, slot)| slot.id).filter(is_up);
        match audience {
            Audience::All => all().collect(),
            Audience::AllBut(but) => all().filter(|id| *id != but).collect(),
            Audience::Group(name) => {
                let members = self.groups.get(&name);
                members.into_iter().flatten().copied().filter(is_up).collect()
            }
            Audience::Filter(mut accepts) => all()
                .filter(|id| {
                    self.get(*id).is_some_and(|slot| {
                        accepts(&Candidate {
                            id: *id,
                            listener: slot.listener,
                            peer_addr: slot.peer.get(),
                            data: slot.own.as_ref().and_then(|own| own.data.as_deref()),
                        })
                    })
                })
                .collect(),
        }
    }

    /// Serves all that are left of the oldest broadcast.
    fn fan_out_oldest(&mut self) {
        if let Some(mut fanout) = self.fanouts.pop_front() {
            for receiver in fanout.receivers.split_off(fanout.next) {
                self.serve(&mut fanout, receiver);
            }
        }
    }

    /// Serves the next receivers of the broadcasts under way.
    pub(crate) fn fan_out(&mut self) {
        let mut budget = RECEIVERS_PER_TURN;
        while budget > 0
            && let Some(mut fanout) = self.fanouts.pop_front()
        {
            while budget > 0
                && let Some(&receiver) = fanout.receivers.get(fanout.next)
            {
                fanout.next += 1;
                budget -= 1;
                self.serve(&mut fanout, receiver);
            }
            if fanout.next < fanout.receivers.len() {
                self.fanouts.push_front(fanout);
            }
        }
    }

    /// Serves this connection from every broadcast that has not come to it.
    #[inline]
    pub(crate) fn catch_up(&mut self, id: ConnId) {
        if !self.fanouts.is_empty() {
            self.catch_up_now(id);
        }
    }

    #[cold]
    fn catch_up_now(&mut self, id: ConnId) {
        let mut fanouts = std::mem::take(&mut self.fanouts);
        for fanout in &mut fanouts {
            let waiting = &mut fanout.receivers[fanout.next..];
            if let Ok(place) = waiting.binary_search_by_key(&id.slot(), |id| id.slot())
                && waiting[place] == id
            {
                // The slot stays, so that the list stays sorted; no connection has generation 0.
                waiting[place] = id.vacated();
                self.serve(fanout, id);
            }
        }
        self.fanouts = fanouts;
    }

    fn serve(&mut self, fanout: &mut Fanout<P>, id: ConnId) {
        if id.generation() == 0 {
            return;
        }
        let Some(slot) = self.slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return self.note_undelivered(id, Tagged(fanout.tag, fanout.body.clone()));
        };
        if slot.must_keep() {
            // It comes behind what was kept for the connection.
            let message = Tagged(fanout.tag, fanout.body.clone());
            if let Err((_, message)) = self.keep(id, None, message) {
                self.note_undelivered(id, message);
            }
            return;
        }
        if !slot.has_room(fanout.body.len()) {
            self.refuse(id, fanout.body.len());
            return self.note_undelivered(id, Tagged(fanout.tag, fanout.body.clone()));
        }
        let is_known = |(profile, _): &&(Arc<Profile<P>>, _)| {
            Arc::ptr_eq(profile, &slot.profile) || profile.protocol == slot.profile.protocol
        };
        let frame = match fanout.frames.iter().find(is_known) {
            Some((_, frame)) => frame.clone(),
            None => self.encode(fanout, id),
        };
        match (frame, self.slots.get_mut(id.slot() as usize)) {
            (Some(frame), Some(slot)) => {
                slot.link.push_encoded(fanout.tag, &fanout.body, &frame, &mut self.pool);
                self.mark_dirty(id);
                self.charge(id);
            }
            _ => self.note_undelivered(id, Tagged(fanout.tag, fanout.body.clone())),
        }
    }

    /// Encodes the body for the protocol of a receiver. A protocol of the application's that panics costs
    /// its receivers this message.
    #[cold]
    fn encode(&mut self, fanout: &mut Fanout<P>, id: ConnId) -> Option<Bytes> {
        let slot = self.slots.get_mut(id.slot() as usize)?;
        let encoded = catch_unwind(AssertUnwindSafe(|| {
            let head = Head {
                tag: fanout.tag,
                ..Head::new(slot.link.push_kind(), slot.link.next_push_id())
            };
            let mut out = Vec::new();
            slot.link.protocol.encode(&head, &fanout.body, &mut out);
            Bytes::from(out)
        }));
        let frame = match encoded {
            Ok(frame) => Some(frame),
            Err(panic) => {
                log::error!("encoding a broadcast panicked: {}", panic_text(&*panic));
                self.stats.panics += 1;
                None
            }
        };
        self.stats.encoded_broadcasts += 1;
        fanout.frames.push((slot.profile.clone(), frame.clone()));
        frame
    }
}
