//! From the write queues to the sockets: one write for all that a connection has to send.

use std::io::{self, IoSlice};

use super::{
    net::Net,
    slots::{Phase, State},
    turn::Engine,
};
use crate::{CloseReason, ConnId, Handler, error::NetworkError};

/// Slices of one vectored write. Small frames share a slice, so only large bodies need many.
const SLICES: usize = 64;

/// Bytes written to one connection in one turn, so that a fast reader of a long queue does not keep
/// the others waiting.
const BYTES_PER_TURN: usize = 1024 * 1024;

impl<H: Handler, N: Net> Engine<H, N> {
    /// Serves broadcasts, then flushes every connection that became dirty.
    pub(super) fn flush_all(&mut self) {
        self.state.fan_out();
        let mut dirty = std::mem::take(&mut self.state.dirty);
        for slot in dirty.drain(..) {
            let Some(entry) = self.state.slots.get_mut(slot as usize) else { continue };
            let is_dirty = std::mem::take(&mut entry.is_dirty);
            let id = entry.id;
            if is_dirty && entry.phase >= Phase::Open {
                self.flush(id);
            }
        }
        // What callbacks made dirty meanwhile is flushed in the next turn, which does not wait.
        if self.state.dirty.is_empty() {
            self.state.dirty = dirty;
        }
    }

    /// Flushes a connection that was just read: what it caused goes out while its socket is in the
    /// cache, and its peer can go on while others are read.
    pub(super) fn flush_early(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.is_dirty && slot.is_writable && slot.link.has_output() && !slot.is_doomed {
            slot.is_dirty = false; // its place in the list means nothing now
            self.flush(id);
        }
    }

    fn flush(&mut self, id: ConnId) {
        let mut budget = BYTES_PER_TURN;
        while let Some(slot) = self.state.get_mut(id)
            && slot.is_writable
            && slot.link.has_output()
        {
            if budget == 0 {
                self.state.mark_dirty(id);
                break;
            }
            match self.write(id) {
                Ok(count) => budget = budget.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.handle_write_blocked(id);
                    break;
                }
                Err(error) => {
                    self.state.doom(id, CloseReason::Network(NetworkError::from(&error)));
                    return;
                }
            }
        }
        self.after_flush(id);
    }

    /// One system call.
    fn write(&mut self, id: ConnId) -> io::Result<usize> {
        let State { slots, stats, pool, now, .. } = &mut self.state;
        let slot = &mut slots[id.slot() as usize];
        let Some(queue) = &slot.link.out else { return Ok(0) };
        stats.writes += 1;
        let result = if let Some(bytes) = queue.single() {
            self.sockets.write(id.slot(), &[IoSlice::new(bytes)])
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = queue.slices(&mut slices);
            self.sockets.write(id.slot(), &slices[..count])
        };
        match result {
            // Not progress, and a loop that took it for that would spin.
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                let written = slot.link.handle_written(count, &mut pool.spares, *now);
                stats.messages_out += written.messages;
                stats.bytes_out += count as u64;
                Ok(count)
            }
            Err(error) => Err(error),
        }
    }

    fn handle_write_blocked(&mut self, id: ConnId) {
        let now = self.state.now;
        if let Some(slot) = self.state.get_mut(id) {
            slot.is_writable = false;
            slot.link.handle_write_blocked(now);
            self.state.watch(id);
        }
    }

    /// What flushing leaves to do: give the queue back, resume what the watermark stopped, go on
    /// closing.
    fn after_flush(&mut self, id: ConnId) {
        let State { slots, pool, shared, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id) else {
            return;
        };
        if !slot.link.has_output()
            && let Some(queue) = slot.link.out.take()
        {
            pool.give(queue);
        }
        let queued = slot.link.queued_cost();
        let was_choked = slot.link.is_choked();
        let is_newly_choked = slot.link.update_intake(&slot.profile.config);
        let is_resumed = was_choked && slot.can_read();
        slot.publish(&shared.board);
        if slot.is_above && queued <= slot.profile.config.low_watermark && !slot.is_doomed {
            slot.is_above = false;
            if slot.is_up() {
                slot.publish(&shared.board);
                self.with_conn(id, H::on_writable);
            }
        }
        if is_resumed {
            self.state.mark_ready(id);
        }
        if is_newly_choked {
            self.state.watch(id);
        }
        self.go_on_closing(id);
    }

    /// A connection that closes takes its next step when there is nothing left to write.
    fn go_on_closing(&mut self, id: ConnId) {
        let now = self.state.now;
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.is_doomed || slot.link.has_output() {
            return;
        }
        let is_idle = slot.link.requests_in_flight() == 0
            && slot.link.calls_in_flight() == 0
            && (slot.is_eof || !slot.link.is_noticed());
        match slot.phase {
            Phase::Closing => {}
            Phase::Draining if is_idle => {}
            _ => return,
        }
        if slot.is_eof {
            self.state.doom(id, CloseReason::Closed);
            return;
        }
        slot.phase = Phase::Lingering;
        slot.link.set_close_by(now.checked_add(slot.profile.config.linger));
        slot.is_readable = true;
        let shut = self.sockets.stream(id.slot()).map(|(net, stream)| net.shutdown(stream));
        if !matches!(shut, Some(Ok(()))) {
            self.state.doom(id, CloseReason::Closed);
            return;
        }
        self.state.publish(id);
        self.state.end_calls(id);
        self.state.watch(id);
        self.state.mark_ready(id);
        // The handler is told now; the socket stays until the peer has closed, too.
        self.state.doomed.push(id);
    }
}
