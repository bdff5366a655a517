//! The connection and its layer, where it has one.

use std::io::{self, IoSlice};

use super::{Connection, output::SLICES};
use crate::{
    config::Config,
    core::{layered::Layered, spares::Spares, write_queue::Written},
    error::CloseReason,
    moment::Moment,
    protocol::Protocol,
};

impl<P: Protocol, W, D: Clone> Connection<P, W, D> {
    /// Puts the layer between the socket and the frames that the settings ask for.
    pub(super) fn add_layer(&mut self, config: &Config, now: Moment) {
        if let Some(maker) = &config.layer {
            let layered = Layered::new(maker, self.role, self.salt, now);
            self.layer = Some(Box::new(layered));
            self.note_charges();
        }
    }

    /// Whether bytes of the socket are not bytes of frames.
    #[inline]
    pub(crate) const fn is_layered(&self) -> bool {
        self.layer.is_some()
    }

    /// Whether the layer's handshake is over, or there is none.
    pub(super) fn is_secured(&self) -> bool {
        self.layer.as_ref().is_none_or(|layer| layer.is_up())
    }

    /// Bytes of the wire came. The layer has no others.
    pub(crate) fn receive_wire(&mut self, wire: &mut [u8], now: Moment) {
        self.with_layer(|layer| layer.receive(wire, now));
    }

    /// The peer's bytes of the wire have ended.
    pub(crate) fn receive_end(&mut self) {
        self.with_layer(Layered::receive_end);
    }

    /// Why the layer gave the connection up, once all that came before was handled; told once.
    pub(crate) fn take_failure(&mut self) -> Option<CloseReason> {
        let layer = self.layer.as_mut()?;
        let problem = layer.take_failure()?;
        Some(CloseReason::Layer { layer: layer.name(), problem })
    }

    /// Whether bytes of frames wait in the layer.
    pub(crate) fn has_plain(&self) -> bool {
        self.layer.as_ref().is_some_and(|layer| layer.has_plain())
    }

    /// Whether the peer has said, in the layer's way, that nothing follows; told once.
    pub(crate) fn take_end(&mut self) -> bool {
        self.layer.as_mut().is_some_and(|layer| layer.take_end())
    }

    /// Moves bytes of frames from the layer to the [`room`](Self::room); how many.
    pub(crate) fn read_plain(&mut self, shared: &mut [u8], most: usize) -> usize {
        let Self { layer, read, .. } = self;
        layer.as_mut().map_or(0, |layer| layer.read(read.room_for(shared, most)))
    }

    /// The frames that were received are handled. A record that has begun has its time, as a frame has;
    /// returns whether that is a new deadline.
    pub(crate) fn note_record(&mut self, now: Moment) -> bool {
        let Some(layer) = &mut self.layer else { return false };
        let is_another = layer.note_record();
        if !layer.is_up() || !self.read.is_empty() {
            return false;
        }
        if is_another {
            self.frame.stop();
        }
        layer.is_mid_record() && self.frame.start(now)
    }

    /// Writes a part of what waits, through the layer.
    pub(super) fn write_layered(
        &mut self,
        spares: &mut Spares,
        now: Moment,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<(usize, Written)> {
        let Some(layer) = &mut self.layer else { return Ok(Default::default()) };
        if layer.wants_batch()
            && let Some(queue) = &self.out
        {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = queue.slices(&mut slices);
            if count > 0 {
                layer.seal(&slices[..count], now);
            }
            self.note_charges();
        }
        let Some(layer) = &mut self.layer else { return Ok(Default::default()) };
        if layer.output().is_empty() {
            return Ok(Default::default());
        }
        let result = write(&[IoSlice::new(layer.output())]);
        let count = match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(error) => {
                layer.stalled_since.get_or_insert(now);
                return Err(error);
            }
        };
        let plain = layer.advance(count, spares);
        let mut written = Written::default();
        if plain > 0 {
            written = self.advance(plain, spares);
        }
        self.end_batch();
        self.note_charges();
        if let Some(layer) = &mut self.layer {
            // A layer that holds frames back is no peer that takes nothing.
            layer.stalled_since = if layer.output().is_empty() { None } else { Some(now) };
        }
        Ok((count, written))
    }

    /// The control frames that came while a batch was under way have waited long enough.
    fn end_batch(&mut self) {
        let Some(layer) = &mut self.layer else { return };
        if layer.has_batch() || layer.late.is_empty() {
            return;
        }
        let late = std::mem::take(&mut layer.late);
        self.out.get_or_insert_default().push_urgent(|out| out.extend_from_slice(&late));
    }

    /// Says in the layer's way that nothing follows, once all frames were written. Whether there is
    /// something to write for that.
    pub(crate) fn finish_layer(&mut self) -> bool {
        let Some(layer) = &mut self.layer else { return false };
        let is_news = layer.finish();
        self.note_charges();
        is_news && self.has_output()
    }

    /// A deadline of the layer's may have passed. Why the layer gave the connection up, if it did.
    pub(super) fn handle_layer_timeout(&mut self, now: Moment) -> Option<CloseReason> {
        self.with_layer(|layer| layer.handle_timeout(now));
        self.take_failure()
    }

    fn with_layer(&mut self, act: impl FnOnce(&mut Layered)) {
        if let Some(layer) = &mut self.layer {
            act(layer);
            self.note_charges();
        }
    }
}
