//! From the write queues to the sockets: one write for all that a connection has to send.

use std::io::{self, IoSlice};

use super::Engine;
use crate::{
    CloseReason, ConnId, Handler,
    error::NetworkError,
    net::Net,
    table::{
        planted::{Bug, is_planted},
        state::State,
    },
};

/// Bytes written to one connection in one turn, so that a fast reader of a long queue does not keep
/// the others waiting.
const BYTES_PER_TURN: usize = 1024 * 1024;

impl<H: Handler, N: Net> Engine<H, N> {
    /// Serves broadcasts, then flushes every connection that became dirty.
    pub(super) fn flush_all(&mut self) {
        if self.state.stopping.has_sweeps() {
            self.state.sweep();
        }
        if !self.state.fanouts.is_empty() {
            self.state.fan_out();
        }
        // Connections that callbacks make dirty meanwhile are flushed in the next turn, which does not wait.
        for _ in 0..self.state.work.amounts().dirty {
            let Some(slot) = self.state.work.pop_dirty() else { return };
            let Some(entry) = self.state.slots.at_mut(slot as usize) else { continue };
            let is_dirty = std::mem::take(&mut entry.lists.is_dirty);
            let id = entry.id;
            if is_dirty {
                self.state.serving.begin(id);
                self.flush(id);
                self.state.serving.end();
            }
        }
    }

    /// Flushes a connection that was just read: what it caused goes out while its socket is in the
    /// cache, and its peer can go on while others are read.
    pub(super) fn flush_early(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.lists.is_dirty && slot.io.is_writable && slot.link.has_output() {
            // Its entry in the list of those to flush stays, and is skipped.
            slot.lists.is_dirty = false;
            self.flush(id);
        }
    }

    /// Writes what the socket takes, in the phases in which something is written at all.
    pub(super) fn flush(&mut self, id: ConnId) {
        let mut budget = BYTES_PER_TURN;
        while let Some(slot) = self.state.get_mut(id)
            && (slot.phase.is_writing() || is_planted(Bug::WritesDropped))
            && slot.io.is_writable
            && slot.link.has_output()
        {
            if budget == 0 {
                self.state.mark_dirty(id);
                break;
            }
            if slot.link.is_torn() {
                let text = "an encoder took away what was queued".to_owned();
                return self.state.abort(id, CloseReason::Panicked(text));
            }
            match self.write(id) {
                Ok(0) => break,
                Ok(count) => budget = budget.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(slot) = self.state.get_mut(id) {
                        slot.io.is_writable = false;
                    }
                    self.state.watch(id);
                    break;
                }
                Err(error) => {
                    self.state.abort(id, CloseReason::Network(NetworkError::from(&error)));
                    return;
                }
            }
        }
        self.after_flush(id);
    }

    /// One system call.
    fn write(&mut self, id: ConnId) -> io::Result<usize> {
        let State { slots, stats, pool, clock, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id) else { return Ok(0) };
        stats.writes += 1;
        let sockets = &mut self.sockets;
        let write = |slices: &[IoSlice<'_>]| sockets.write(id.slot(), slices);
        let (count, written) = slot.link.write(&mut pool.spares, clock.now(), write)?;
        stats.messages_out += written.messages;
        stats.bytes_out += count as u64;
        Ok(count)
    }

    /// What flushing leaves to do: give the queue back, resume what the watermark stopped, go on
    /// closing.
    fn after_flush(&mut self, id: ConnId) {
        let State { slots, pool, board, .. } = &mut self.state;
        let Some(slot) = slots.get_mut(id) else {
            return;
        };
        if !slot.phase.is_connected() {
            return;
        }
        if !slot.link.has_frames() {
            slot.link.give_queue(pool);
        }
        let queued = slot.link.queued_cost();
        let was_choked = slot.link.is_choked();
        let is_newly_choked = slot.link.update_intake(&slot.profile.config);
        let is_resumed = was_choked && slot.can_read();
        slot.publish(board);
        let is_low = queued <= slot.profile.config.low_watermark;
        let has_backlog = slot.epoch.has_backlog;
        let is_layered = slot.link.is_layered();
        if slot.epoch.is_above_high && is_low {
            slot.epoch.is_above_high = false;
            if slot.is_up() {
                slot.publish(board);
                self.with_conn(id, H::on_writable);
            }
        }
        if has_backlog && is_low {
            self.state.send_kept(id);
        }
        if is_resumed {
            self.state.mark_ready(id);
        }
        if is_newly_choked || is_layered {
            self.state.watch(id);
        }
        self.go_on_closing(id);
    }
}
