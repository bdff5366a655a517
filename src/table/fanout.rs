//! Broadcasts: one body, encoded once for each protocol, given to many in slices over turns.
//!
//! A broadcast reaches those that are up when it is made. It is entered at the end of a log, and each
//! connection that is up knows how far in the log it has come. So a broadcast costs nothing for its
//! receivers before they are served, and whoever comes up later begins behind it. The oldest one says
//! who is served next; that receiver is given all that the log has for it, in one go, as far as its
//! queue has room. A broadcast leaves the log when it has no receiver left.
//!
//! Each receiver costs a number, and a broadcast under way costs its body, its frame for each protocol and
//! some 150 bytes; one to a group or a filter also a list of ids, which those to the same group share until
//! somebody comes or goes.
//!
//! Whatever else is sent to a connection makes it catch up with the log first, so that to each receiver
//! everything comes in the order in which it was sent.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    broadcasts::{Fanout, Receivers, Source, place},
    ended_call::AwaitsEnd,
    slot::Slot,
    state::State,
};
use crate::{
    ConnId, SendError, Tagged,
    audience::{Audience, Candidate},
    protocol::Protocol,
};

/// What a receiver whose queue is above its high watermark is given at a time all the same. It is less
/// than one turn writes, so that a peer which reads is not cut; one that does not read is soon, and
/// holds up nobody.
const BYTES_ABOVE_HIGH: usize = 256 * 1024;

/// How much may still be done.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// The number of the first broadcast that is not to be given out.
    until: u64,
    deliveries: usize,
    looks: usize,
    /// Whether each receiver stops above its high watermark.
    is_gentle: bool,
}

impl Share {
    /// All that there is.
    const fn unbounded(until: u64) -> Self {
        Self { until, deliveries: usize::MAX, looks: usize::MAX, is_gentle: false }
    }

    /// The deliveries that were made of all that there is.
    const fn delivered(&self) -> usize {
        usize::MAX - self.deliveries
    }

    #[inline]
    const fn look(&mut self) {
        self.looks = self.looks.saturating_sub(1);
    }

    #[inline]
    const fn is_spent(&self) -> bool {
        self.deliveries == 0 || self.looks == 0
    }
}

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    /// Starts a broadcast; returns how many it will reach.
    pub(crate) fn broadcast(&mut self, audience: Audience, tag: u32, body: Bytes) -> usize {
        let (to, count) = self.receivers(audience);
        if count == 0 {
            return 0;
        }
        let source = self.fanouts.source;
        let is_first = self.fanouts.log.is_empty();
        self.fanouts.push(Fanout {
            tag,
            body,
            to,
            left: count,
            next: 0,
            source,
            frames: Vec::new(),
        });
        let limits = self.fanouts.limits;
        let is_small = count <= limits.deliveries_per_turn
            && self.fanouts.heard.len() <= limits.looks_per_turn;
        if is_first && is_small || self.fanouts.log.len() > limits.most {
            // A small audience is served at once, so that the watermarks see what waits for it.
            self.fan_out_oldest();
        }
        if source == Source::Message
            && let Some(id) = self.serving.conn()
            && let Some(slot) = self.get_mut(id)
        {
            slot.epoch.reading.note_broadcast();
            if self.fanouts.is_full(source) {
                self.hold(id);
            }
        }
        count
    }

    fn receivers(&mut self, audience: Audience) -> (Receivers, usize) {
        let list: Arc<[ConnId]> = match audience {
            Audience::All => return (Receivers::All, self.fanouts.up),
            Audience::AllBut(but) => {
                let is_up = self.get(but).is_some_and(Slot::is_up);
                return (Receivers::AllBut(but), self.fanouts.up - usize::from(is_up));
            }
            Audience::Group(name) => self.list_group(&name),
            Audience::Filter(mut accepts) => {
                // Nothing bounds what that costs, but the step ends the sooner for it.
                self.fanouts.catch_ups += self.slots.len() / 4;
                self.slots
                    .iter()
                    .filter(|slot| {
                        slot.is_up()
                            && accepts(&Candidate {
                                id: slot.id,
                                listener: slot.listener,
                                peer_addr: slot.peer.get().into(),
                                data: slot.own.as_ref().and_then(|own| own.data.as_deref()),
                            })
                    })
                    .map(|slot| slot.id)
                    .collect()
            }
        };
        let count = list.len();
        (Receivers::Only(list), count)
    }

    /// The members of a group that are up. Broadcasts share the list until somebody comes or goes.
    fn list_group(&mut self, name: &str) -> Arc<[ConnId]> {
        let Self { slots, fanouts, .. } = self;
        let is_up = |id: &ConnId| slots.get(*id).is_some_and(Slot::is_up);
        let (list, is_new) = fanouts.groups.list(name, fanouts.version, is_up);
        if is_new {
            fanouts.catch_ups += fanouts.groups.size(name) / 4;
        }
        list
    }

    /// Serves all that are left of the oldest broadcast, and of no other.
    fn fan_out_oldest(&mut self) {
        let mut share = Share::unbounded(self.fanouts.first + 1);
        let gone: Vec<_> = self.fanouts.gone.keys().copied().collect();
        for id in gone {
            self.give_up_broadcasts(id, &mut share);
        }
        match self.fanouts.log.front().map(|fanout| &fanout.to) {
            Some(Receivers::Only(list)) => {
                for id in list.clone().iter() {
                    self.serve(*id, &mut share);
                }
            }
            Some(_) => {
                for slot in 0..self.fanouts.heard.len() {
                    self.serve_at(slot, &mut share);
                }
            }
            None => {}
        }
        self.fanouts.drop_finished();
    }

    /// Serves the next receivers of the broadcasts under way.
    pub(crate) fn fan_out(&mut self) {
        let mut share = Share {
            until: self.fanouts.end(),
            deliveries: self.fanouts.limits.deliveries_per_turn,
            looks: self.fanouts.limits.looks_per_turn,
            is_gentle: true,
        };
        while !share.is_spent()
            && let Some((&id, _)) = self.fanouts.gone.first_key_value()
        {
            self.give_up_broadcasts(id, &mut share);
        }
        // Nobody is served twice in a turn: between two goes there is a write.
        let mut walked = 0;
        while !share.is_spent() {
            self.fanouts.drop_finished();
            let Some(oldest) = self.fanouts.log.front() else { break };
            let goes_on = match &oldest.to {
                Receivers::Only(_) => self.serve_next_of_list(&mut share),
                _ => self.serve_next_slots(&mut share, &mut walked),
            };
            if !goes_on {
                break;
            }
        }
        self.fanouts.drop_finished();
        self.release_held();
    }

    /// Serves the next one in the list of the oldest broadcast; false if its end is reached.
    fn serve_next_of_list(&mut self, share: &mut Share) -> bool {
        let Some(oldest) = self.fanouts.log.front_mut() else { return false };
        let Receivers::Only(list) = &oldest.to else { return false };
        let Some(&id) = list.get(oldest.next) else {
            oldest.next = 0;
            return false;
        };
        self.serve(id, share);
        share.look();
        if !share.is_spent()
            && let Some(oldest) = self.fanouts.log.front_mut()
        {
            oldest.next += 1;
        }
        true
    }

    /// Serves the next ones of all, until the oldest broadcast has no receiver left or the share is spent;
    /// false if all slots were `walked` in this turn.
    fn serve_next_slots(&mut self, share: &mut Share, walked: &mut usize) -> bool {
        while self.fanouts.log.front().is_some_and(|oldest| oldest.left > 0) {
            if *walked >= self.fanouts.heard.len() {
                return false;
            }
            if self.fanouts.walk >= self.fanouts.heard.len() {
                self.fanouts.walk = 0;
            }
            let slot = self.fanouts.walk;
            self.serve_at(slot, share);
            share.look();
            if share.is_spent() {
                break;
            }
            *walked += 1;
            self.fanouts.walk += 1;
        }
        true
    }

    /// Serves this connection from every broadcast that has not come to it.
    #[inline]
    pub(crate) fn catch_up(&mut self, id: ConnId) {
        if !self.fanouts.log.is_empty() {
            self.catch_up_now(id);
        }
    }

    #[cold]
    fn catch_up_now(&mut self, id: ConnId) {
        let mut share = Share::unbounded(self.fanouts.end());
        self.serve(id, &mut share);
        self.give_up_broadcasts(id, &mut share);
        self.fanouts.catch_ups += share.delivered();
        if self.fanouts.is_step_over()
            && self.fanouts.source == Source::Message
            && let Some(id) = self.serving.conn()
        {
            // Its other messages are left to the next turn.
            self.hold(id);
        }
    }

    /// Serves the connection that is in this slot, if it is up and has not come so far.
    fn serve_at(&mut self, slot: usize, share: &mut Share) {
        if self.fanouts.heard[slot] < share.until
            && let Some(id) = self.slots.at(slot).map(|slot| slot.id)
        {
            self.serve(id, share);
        }
    }

    /// Serves a connection, if it is up, from the broadcasts that it has not got.
    fn serve(&mut self, id: ConnId, share: &mut Share) {
        while let Some(number) = self.push_broadcasts(id, share) {
            self.serve_otherwise(id, number);
        }
    }

    /// Queues broadcasts for a connection until its share is spent, or there are no more. The number of
    /// one that can't be queued, if that ends it.
    fn push_broadcasts(&mut self, id: ConnId, share: &mut Share) -> Option<u64> {
        let Self { slots, fanouts, pool, stats, work, .. } = self;
        let slot = slots.get_mut(id)?;
        let heard = fanouts.heard.get_mut(id.slot() as usize)?;
        // What is behind nobody's place is above every share.
        *heard = (*heard).max(fanouts.first);
        let queued = slot.link.queued_cost();
        // Broadcasts that follow each other often have the same list.
        let mut last_list: Option<(*const ConnId, bool)> = None;
        let mut stuck = None;
        let mut pushed = 0;
        while *heard < share.until && !share.is_spent() {
            if pushed > 0 && share.is_gentle && is_above(slot, queued) {
                break;
            }
            let fanout = &mut fanouts.log[place(*heard, fanouts.first)];
            share.look();
            let is_included = match (&fanout.to, last_list) {
                (Receivers::All, _) => true,
                (Receivers::Only(list), Some((latest, known))) if latest == list.as_ptr() => known,
                (Receivers::Only(list), _) => {
                    let is_in = fanout.to.include(id);
                    last_list = Some((list.as_ptr(), is_in));
                    is_in
                }
                (to @ Receivers::AllBut(_), _) => to.include(id),
            };
            if !is_included {
                *heard += 1;
                continue;
            }
            share.deliveries -= 1;
            if slot.must_keep() || !slot.has_room(fanout.body.len()) {
                stuck = Some(*heard);
                break;
            }
            let frame = fanout.encode_for(slot, stats);
            let Some(frame) = &fanout.frames[frame].1 else {
                stuck = Some(*heard);
                break;
            };
            *heard += 1;
            fanout.left -= 1;
            pushed += 1;
            slot.link.push_encoded(fanout.tag, &fanout.body, frame, pool);
        }
        #[cfg(test)]
        {
            fanouts.deliveries += pushed;
        }
        if pushed > 0 && slot.note_push(work) {
            self.note_crossing(id);
        }
        stuck
    }

    /// Serves a connection that is up from one broadcast that can't simply be queued for it.
    #[cold]
    fn serve_otherwise(&mut self, id: ConnId, number: u64) {
        let Some(slot) = self.get(id) else { return };
        let fanout = &self.fanouts.log[place(number, self.fanouts.first)];
        let (len, message) = (fanout.body.len(), fanout.message());
        let must_keep = slot.must_keep();
        if !must_keep
            && !slot.has_room(len)
            && !matches!(self.refuse(id, len), SendError::BodyTooLong { .. })
        {
            // Its peer was too slow, and it went with what is left for it.
            return;
        }
        self.fanouts.heard[id.slot() as usize] = number + 1;
        self.fanouts.tick_off(number);
        self.keep_or_report(id, must_keep, message);
    }

    /// What a connection that went has not got is kept for it, where it is dialled and comes back, or
    /// reported.
    fn give_up_broadcasts(&mut self, id: ConnId, share: &mut Share) {
        let Some(Range { start, end }) = self.fanouts.gone.remove(&id) else { return };
        let mut number = start.max(self.fanouts.first);
        while number < end.min(share.until) && !share.is_spent() {
            share.look();
            let fanout = &self.fanouts.log[place(number, self.fanouts.first)];
            if fanout.to.include(id) {
                share.deliveries -= 1;
                let message = fanout.message();
                self.fanouts.tick_off(number);
                let must_keep = self.get(id).is_some_and(Slot::must_keep);
                self.keep_or_report(id, must_keep, message);
            }
            number += 1;
        }
        if number < end {
            self.fanouts.gone.insert(id, number..end);
        }
    }

    /// A message that can't be queued now comes behind what was kept for the connection, if it has a
    /// place there.
    fn keep_or_report(&mut self, id: ConnId, must_keep: bool, message: Tagged<Bytes>) {
        let refused = if must_keep {
            self.keep(id, None, message)
        } else {
            Err((SendError::Closed, message))
        };
        if let Err((_, message)) = refused {
            self.note_undelivered(id, message);
        }
    }

    // ---- those who cause broadcasts ----

    /// A connection is not read for now, because of what it causes.
    fn hold(&mut self, id: ConnId) {
        if let Some(slot) = self.get_mut(id)
            && slot.epoch.reading.hold()
        {
            self.fanouts.sated.push(id);
        }
    }

    /// Whether a connection is not to be read now: its messages have caused broadcasts, and too many of
    /// those are under way.
    #[inline]
    pub(crate) fn is_held_back(&mut self, id: ConnId) -> bool {
        if !self.fanouts.is_full(Source::Message) {
            return false;
        }
        let Some(slot) = self.get_mut(id) else { return false };
        if !slot.epoch.reading.has_broadcast() {
            return false;
        }
        if slot.epoch.reading.hold() {
            self.fanouts.held.push(id);
        }
        true
    }

    /// Those that were held back are read again, if there is room: the ones that had to wait first.
    fn release_held(&mut self) {
        if self.fanouts.is_full(Source::Message) {
            return;
        }
        let now = self.clock.now();
        let mut held = std::mem::take(&mut self.fanouts.held);
        held.append(&mut self.fanouts.sated);
        for id in held {
            if let Some(slot) = self.get_mut(id)
                && slot.epoch.reading.release()
            {
                if slot.io.is_readable {
                    // What waited did so because of us: that does not count against the peer.
                    slot.link.handle_unread(now);
                }
                self.mark_ready(id);
            }
        }
    }
}

/// Whether a receiver that had so much queued before was given enough for now.
fn is_above<P: Protocol, W>(slot: &Slot<P, W>, queued: usize) -> bool {
    let (high, most) = (slot.profile.config.high_watermark, slot.profile.config.hard_limit);
    let more = BYTES_ABOVE_HIGH.min(most.saturating_sub(high) / 4);
    slot.link.queued_cost() > high.max(queued + more)
}
