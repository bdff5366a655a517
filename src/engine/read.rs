//! From the sockets to the connections: reads within a budget.

use std::io;

use super::Engine;
use crate::{
    CloseReason, ConnId, Handler,
    core::{layered::WIRE_CHUNK, read_buffer::READ_CHUNK},
    error::NetworkError,
    net::{Net, SHORT_READ_DRAINS},
    table::{
        broadcasts::Source,
        slot::{PeersEnd, Phase},
    },
};

/// Bytes read from one connection in one turn, so that a busy one does not starve the others.
const BYTES_PER_TURN: usize = 256 * 1024;

/// Messages handled of one connection in one turn, for the same reason where they are small.
const MESSAGES_PER_TURN: usize = 1024;

/// The rest of one connection's share of a turn.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
    pub(super) messages: usize,
}

/// The result of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// So many bytes, and perhaps more behind them.
    Bytes(usize),
    /// Nothing is there now.
    Nothing,
    /// The peer sends no more.
    Eof,
    /// The connection is broken or ended, and that was handled.
    Broken,
}

impl<H: Handler, N: Net> Engine<H, N> {
    /// Gives every connection that has something to read its share.
    pub(super) fn read_all(&mut self) {
        self.state.fanouts.begin(Source::Message);
        for _ in 0..self.state.work.amounts().ready {
            if self.state.fanouts.is_step_over() {
                break;
            }
            let Some(slot) = self.state.work.pop_ready() else { break };
            let Some(entry) = self.state.slots.at_mut(slot as usize) else { continue };
            entry.lists.is_ready = false;
            let id = entry.id;
            self.state.serving.begin(id);
            if entry.phase == Phase::Lingering {
                self.discard_input(id);
            } else if !self.state.is_held_back(id) {
                self.read(id);
                self.flush_early(id);
                self.shared.bell.ring();
            }
            self.state.serving.end();
        }
        self.state.fanouts.begin(Source::Other);
    }

    fn read(&mut self, id: ConnId) {
        let mut reader = self.reader.take();
        let mut budget = Budget { bytes: BYTES_PER_TURN, messages: MESSAGES_PER_TURN };
        while let Some(slot) = self.state.get_mut(id)
            && slot.can_read()
            && (slot.io.is_readable || slot.link.has_waiting())
        {
            if budget.bytes == 0 || budget.messages == 0 {
                self.state.mark_ready(id);
                break;
            }
            if slot.link.has_waiting()
                && let Some(received) = slot.link.take_waiting(&mut reader)
            {
                self.handle_received(id, Ok(Some(received)), &mut budget);
                continue;
            }
            let found = if slot.link.is_layered() {
                self.read_layered(id, &mut reader, &mut budget)
            } else {
                self.read_socket(id, &mut reader, &mut budget)
            };
            if !matches!(found, Found::Bytes(_)) {
                break;
            }
        }
        self.reader.buf = reader;
        self.after_read(id);
    }

    /// Puts the connection on the lists for what reading left: output, and frames that wait.
    fn after_read(&mut self, id: ConnId) {
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.io.is_writable && slot.link.has_output() {
            self.state.mark_dirty(id);
        }
        let Some(slot) = self.state.get_mut(id) else { return };
        if slot.link.has_waiting() && slot.can_read() {
            self.state.mark_ready(id);
        }
    }

    /// One read of the socket, and the frames that it completes.
    fn read_socket(&mut self, id: ConnId, reader: &mut [u8], budget: &mut Budget) -> Found {
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        let room = slot.link.room(reader, budget.bytes);
        let asked = room.len();
        let result = self.sockets.read(id.slot(), room);
        let found = self.judge_read(id, result);
        match found {
            Found::Bytes(count) => {
                budget.bytes -= count;
                let now = self.state.clock.now();
                let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
                // A short read has drained the socket, unless an event told of the peer's end behind it.
                slot.io.is_readable =
                    !SHORT_READ_DRAINS || count == asked || slot.io.peers_end == PeersEnd::Told;
                let received = slot.link.receive(reader, count, &slot.profile.config, now);
                self.handle_received(id, received, budget);
            }
            Found::Eof => self.handle_eof(id, PeersEnd::Read),
            Found::Nothing | Found::Broken => {}
        }
        found
    }

    /// As [`read_socket`](Self::read_socket), where a layer lies between the socket and the frames.
    fn read_layered(&mut self, id: ConnId, reader: &mut [u8], budget: &mut Budget) -> Found {
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        if let Some(reason) = slot.link.take_failure() {
            self.state.close(id, reason);
            return Found::Broken;
        }
        if slot.link.take_end() {
            self.handle_eof(id, PeersEnd::Said);
            return Found::Eof;
        }
        if !slot.link.has_plain() {
            match self.feed_layer(id) {
                Found::Bytes(count) => budget.bytes = budget.bytes.saturating_sub(count),
                found => return found,
            }
        }
        let now = self.state.clock.now();
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        if !slot.can_read() {
            return Found::Bytes(0); // told that it is up, the handler has paused or closed it
        }
        let count = slot.link.read_plain(reader, budget.bytes);
        if count > 0 {
            budget.bytes -= count;
            let received = slot.link.receive(reader, count, &slot.profile.config, now);
            self.handle_received(id, received, budget);
        }
        if let Some(slot) = self.state.get_mut(id)
            && slot.link.note_record(now)
        {
            self.state.watch(id);
        }
        Found::Bytes(count)
    }

    /// One read of the socket, for the layer.
    fn feed_layer(&mut self, id: ConnId) -> Found {
        let wire = &mut self.reader.wire;
        wire.resize(WIRE_CHUNK, 0);
        let result = self.sockets.read(id.slot(), wire);
        let found = self.judge_read(id, result);
        let now = self.state.clock.now();
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        match found {
            Found::Bytes(count) => {
                slot.link.receive_wire(&mut self.reader.wire[..count], now);
                let is_full = count == WIRE_CHUNK;
                slot.io.is_readable =
                    !SHORT_READ_DRAINS || is_full || slot.io.peers_end == PeersEnd::Told;
            }
            Found::Eof => slot.link.receive_end(),
            Found::Nothing | Found::Broken => return found,
        }
        // What it had before it failed is handled first.
        if let Some(reason) = slot.link.take_failure() {
            if found == Found::Eof {
                slot.io.peers_end = PeersEnd::Read;
            }
            self.state.close(id, reason);
            return Found::Broken;
        }
        let has_plain = slot.link.has_plain();
        self.after_layer(id);
        match found {
            // The end lets out what the layer has held back.
            Found::Eof if has_plain => Found::Bytes(0),
            Found::Eof => {
                self.handle_eof(id, PeersEnd::Read);
                Found::Eof
            }
            _ => found,
        }
    }

    /// The layer has taken a step: perhaps its handshake is over, or it lets out what it held back.
    pub(super) fn after_layer(&mut self, id: ConnId) {
        if self.state.get(id).is_some_and(|slot| slot.link.has_waiting()) {
            self.state.mark_ready(id);
        }
        // It may have answered by itself.
        self.state.charge(id);
        self.state.watch(id);
        if let Some(slot) = self.state.get_mut(id)
            && slot.phase == Phase::Greeting
            && slot.link.is_greeted()
        {
            self.greeted(id);
        }
    }

    /// Notes the result of a read.
    #[inline]
    fn judge_read(&mut self, id: ConnId, result: io::Result<usize>) -> Found {
        let now = self.state.clock.now();
        let Some(slot) = self.state.get_mut(id) else { return Found::Broken };
        match result {
            Ok(0) => Found::Eof,
            Ok(count) => {
                slot.link.note_heard(count, now);
                self.state.stats.bytes_in += count as u64;
                Found::Bytes(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                slot.io.is_readable = false;
                Found::Nothing
            }
            Err(error) => {
                self.state.abort(id, CloseReason::Network(NetworkError::from(&error)));
                Found::Broken
            }
        }
    }

    /// The peer sends no more. What it asked for is still answered.
    fn handle_eof(&mut self, id: ConnId, end: PeersEnd) {
        let Some(slot) = self.state.get_mut(id) else { return };
        slot.io.is_readable = false;
        slot.io.peers_end = end;
        let reason = match slot.link.unfinished() {
            0 => CloseReason::PeerClosed,
            received => CloseReason::PeerClosedMidFrame { received },
        };
        // The first reason stays: the peer's goaway, for one, with which draining began.
        if matches!(reason, CloseReason::PeerClosed) {
            self.state.drain(id, reason);
            self.state.end_calls(id);
        } else {
            self.state.close(id, reason);
        }
        self.state.mark_dirty(id);
    }

    /// Reads on after everything was said, so that what the peer still sends does not make the
    /// system reset the connection and with it what we said last.
    fn discard_input(&mut self, id: ConnId) {
        let mut reader = self.reader.take();
        let mut budget = BYTES_PER_TURN;
        while budget > 0 {
            match self.sockets.read(id.slot(), &mut reader[..READ_CHUNK]) {
                Ok(count) if count > 0 => budget = budget.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {
                    self.state.abort(id, CloseReason::Closed);
                    break;
                }
            }
        }
        if budget == 0 {
            self.state.mark_ready(id);
        }
        self.reader.buf = reader;
    }
}
