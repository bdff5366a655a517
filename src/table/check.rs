//! What holds for broadcasts between two turns.

use super::{
    broadcasts::{Fanouts, NOBODY, Source},
    ended_call::AwaitsEnd,
    slot::Slot,
    state::State,
};
use crate::{ConnId, protocol::Protocol};

impl<P: Protocol, W: AwaitsEnd> State<P, W> {
    /// Checks what holds between two turns: each broadcast has as many receivers left as there are
    /// connections that have not come to it.
    pub(crate) fn check_fanouts(&self) {
        let Fanouts { log, heard, gone, first, .. } = &self.fanouts;
        let heard_of = |slot: &Slot<P, W>| heard.get(slot.id.slot() as usize).copied();
        let up = || self.slots.iter().filter(|slot| slot.is_up());
        for slot in self.slots.iter() {
            let is_known = heard_of(slot).unwrap_or(NOBODY) != NOBODY;
            assert_eq!(slot.is_up(), is_known, "up, and it is not known how far it has come");
        }
        assert_eq!(self.fanouts.up, up().count());
        assert_eq!(heard.iter().filter(|heard| **heard != NOBODY).count(), self.fanouts.up);
        for (fanout, number) in log.iter().zip(*first..) {
            let to = |id: &ConnId| fanout.to.include(*id);
            let is_left = |slot: &&Slot<P, W>| heard_of(slot) <= Some(number) && to(&slot.id);
            let left = up().filter(is_left).count()
                + gone.iter().filter(|(id, range)| range.contains(&number) && to(id)).count();
            assert_eq!(fanout.left, left, "receivers left");
        }
        for source in [Source::Command, Source::Message, Source::Other] {
            let waiting = log.iter().filter(|fanout| fanout.source == source).count();
            assert_eq!(self.fanouts.waiting[source as usize], waiting);
        }
    }
}
