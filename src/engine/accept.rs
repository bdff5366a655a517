//! Takes connections from the backlogs.

use std::io;

use super::Engine;
use crate::{Handler, Incident, ListenerId, net::Net};

/// Connections accepted from one listener in one turn, so that a storm of them does not starve
/// those that are up: at about 10 µs each a turn grows by less than 1 ms.
const ACCEPTS_PER_TURN: usize = 64;

impl<H: Handler, N: Net> Engine<H, N> {
    /// Gives every listener that is ready its share.
    pub(super) fn accept_all(&mut self) {
        for place in 0..self.state.listeners.len() {
            // A callback may have closed listeners meanwhile.
            let Some(listener) = self.state.listeners.at(place) else { return };
            if listener.is_ready {
                let id = listener.id;
                self.accept(id);
            }
        }
    }

    fn accept(&mut self, id: ListenerId) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.sockets.accept(id) {
                None => return,
                Some(Ok((stream, peer))) => {
                    if let Some(listener) = self.state.listeners.get_mut(id) {
                        listener.note_success();
                    }
                    if let Some(limit) = self.state.accept_limit(id, peer.ip()) {
                        self.sockets.net.close(stream);
                        self.state.stats.refused += 1;
                        self.report(&Incident::Refused { listener: id, peer: peer.into(), limit });
                        continue;
                    }
                    let Some(conn) = self.state.insert_accepted(id, peer) else {
                        self.sockets.net.close(stream);
                        continue;
                    };
                    if let Err(error) = self.sockets.insert(conn, stream) {
                        self.state.discard(conn);
                        return self.accept_failed(id, error);
                    }
                    self.state.stats.accepted += 1;
                    self.establish(conn);
                }
                Some(Err(error)) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        if let Some(listener) = self.state.listeners.get_mut(id) {
                            listener.is_ready = false;
                        }
                        return;
                    }
                    // The peer gave up while it waited, or a signal came: the next may be fine.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => return self.accept_failed(id, error),
                },
            }
        }
    }

    fn accept_failed(&mut self, listener: ListenerId, error: io::Error) {
        self.state.stats.accept_errors += 1;
        let retry_in = self.state.rest_listener(listener);
        self.report(&Incident::AcceptFailed { listener, error, retry_in });
    }
}
