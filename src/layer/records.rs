//! A layer as bad as one may be: records of odd sizes, a handshake of two round trips, bytes that it holds
//! back on either side for a while, records of its own, and failures.

use std::{collections::VecDeque, io::IoSlice, time::Duration};

use super::{Failure, Layer, LayerMaker, MakeLayer, Wire};
use crate::{moment::Moment, net::sim::SimRng, role::Role};

/// How bad it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Records {
    /// The longest record, in bytes of frames.
    pub(crate) longest: usize,
    /// How often bytes are held back, or a record of the layer's own is sent.
    pub(crate) delays: f64,
    /// How often a record ends the connection.
    pub(crate) failures: f64,
    /// An end without the layer's own is a failure.
    pub(crate) is_strict: bool,
    /// What is planted in it.
    pub(crate) bug: Option<LayerBug>,
}

/// A bug in the layer, which the conversations must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerBug {
    /// The last record of a batch is said to carry all of it, so frames count as written too late.
    CountsLate,
    /// A record is thrown away.
    LosesRecord,
    /// Frames are sealed that the handshake has not allowed yet.
    SkipsHandshake,
}

impl Records {
    pub(crate) fn draw(rng: &mut SimRng) -> Self {
        Self {
            longest: [1, 7, 100, 5000][rng.below(4)],
            delays: if rng.chance(0.5) { 0.2 } else { 0.0 },
            failures: if rng.chance(0.3) { 0.01 } else { 0.0 },
            is_strict: rng.chance(0.5),
            bug: None,
        }
    }

    pub(crate) fn maker(self) -> LayerMaker {
        LayerMaker::new(self)
    }
}

impl MakeLayer for Records {
    fn make(&self, role: Role, salt: u64, out: &mut Wire, _: Moment) -> Box<dyn Layer> {
        let mut layer = RecordLayer {
            rules: *self,
            rng: SimRng::new(salt),
            role,
            flights: 0,
            is_up: false,
            inbox: Vec::new(),
            records: 0,
            plain: VecDeque::new(),
            hold_until: None,
            seal_at: None,
            is_ended: false,
        };
        if role == Role::Dialled {
            layer.send_flight(out);
        }
        Box::new(layer)
    }
}

/// The kinds of records; each has its kind, two bytes of length, and so many bytes.
const HANDSHAKE: u8 = 20;
const DATA: u8 = 23;
const END: u8 = 21;
const ASK: u8 = 24;
const ANSWER: u8 = 25;
const HEADER: usize = 3;

/// What bytes of frames are turned into.
const KEY: u8 = 0xA5;

#[derive(Debug)]
struct RecordLayer {
    rules: Records,
    rng: SimRng,
    role: Role,
    /// Those of the peer that came: each side sends two, the dialled one first.
    flights: usize,
    is_up: bool,
    inbox: Vec<u8>,
    /// Records that came.
    records: u64,
    plain: VecDeque<u8>,
    /// What is in `plain` is held back until then, or until more comes.
    hold_until: Option<Moment>,
    /// Nothing is sealed until then.
    seal_at: Option<Moment>,
    is_ended: bool,
}

/// A record of these bytes of frames.
pub(crate) fn data_record(plain: &[u8]) -> Vec<u8> {
    let len = u16::try_from(plain.len()).expect("records are short");
    [DATA].into_iter().chain(len.to_be_bytes()).chain(plain.iter().map(|byte| byte ^ KEY)).collect()
}

fn push(out: &mut Wire, kind: u8, plain: usize, bytes: impl ExactSizeIterator<Item = u8>) {
    out.push(plain, |wire| {
        let len = u16::try_from(bytes.len()).expect("records are short");
        wire.push(kind);
        wire.extend_from_slice(&len.to_be_bytes());
        wire.extend(bytes);
    });
}

impl RecordLayer {
    fn send_flight(&mut self, out: &mut Wire) {
        let len = self.rng.below(300);
        push(out, HANDSHAKE, 0, vec![self.role as u8; len].into_iter());
    }

    fn handle_flight(&mut self, out: &mut Wire) -> Result<(), Failure> {
        self.flights += 1;
        // D ─▶ A ─▶ D ─▶ A ─▶ D
        if self.flights > 2 {
            return Err("a third flight".into());
        }
        match self.role {
            Role::Accepted => self.send_flight(out),
            Role::Dialled if self.flights == 1 => self.send_flight(out),
            Role::Dialled => {}
        }
        self.is_up = self.flights == 2;
        Ok(())
    }

    fn delay(&mut self, now: Moment) -> Option<Moment> {
        let longest = Duration::from_millis(50);
        self.rng
            .chance(self.rules.delays)
            .then(|| now + self.rng.duration(&(Duration::from_millis(1)..=longest)))
    }

    fn handle_record(&mut self, kind: u8, bytes: &[u8], out: &mut Wire) -> Result<(), Failure> {
        if self.rng.chance(self.rules.failures) {
            return Err("it was to be expected".into());
        }
        if self.is_ended {
            return Err("a record behind the end".into());
        }
        match kind {
            HANDSHAKE => return self.handle_flight(out),
            _ if !self.is_up => return Err(format!("a record of kind {kind} in the handshake")),
            DATA => {
                let loses = self.rules.bug == Some(LayerBug::LosesRecord) && self.rng.chance(0.1);
                if !loses {
                    self.plain.extend(bytes.iter().map(|byte| byte ^ KEY));
                }
            }
            END => self.is_ended = true,
            ASK => push(out, ANSWER, 0, bytes.iter().copied()),
            ANSWER => {}
            _ => return Err(format!("no record is of kind {kind}")),
        }
        Ok(())
    }
}

impl Layer for RecordLayer {
    fn name(&self) -> &'static str {
        "records"
    }

    fn receive(&mut self, wire: &mut [u8], out: &mut Wire, now: Moment) -> Result<(), Failure> {
        assert!(!self.has_plain(), "what came before was read");
        self.hold_until = None;
        self.inbox.extend_from_slice(wire);
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        while let Some((&[kind, high, low], behind)) = rest.split_first_chunk::<HEADER>()
            && let Some((bytes, behind)) =
                behind.split_at_checked(u16::from_be_bytes([high, low]).into())
        {
            rest = behind;
            self.records += 1;
            self.handle_record(kind, bytes, out)?;
        }
        self.inbox = rest.to_vec();
        self.hold_until = self.delay(now);
        Ok(())
    }

    fn receive_end(&mut self) -> Result<(), Failure> {
        self.hold_until = None;
        if self.plain.is_empty() && self.rules.is_strict && !self.is_ended {
            return Err("cut off".into());
        }
        Ok(())
    }

    fn read(&mut self, room: &mut [u8]) -> usize {
        let count = room.len().min(self.plain.len());
        for (place, byte) in room.iter_mut().zip(self.plain.drain(..count)) {
            *place = byte;
        }
        count
    }

    fn has_plain(&self) -> bool {
        !self.plain.is_empty() && self.hold_until.is_none()
    }

    fn mid_record(&self) -> Option<u64> {
        (!self.inbox.is_empty()).then_some(self.records)
    }

    fn is_ended(&self) -> bool {
        self.is_ended && self.plain.is_empty()
    }

    fn is_up(&self) -> bool {
        self.is_up || self.rules.bug == Some(LayerBug::SkipsHandshake)
    }

    fn can_seal(&self) -> bool {
        self.is_up() && self.seal_at.is_none()
    }

    fn seal(&mut self, plain: &[IoSlice<'_>], most: usize, out: &mut Wire, now: Moment) {
        assert!(self.can_seal());
        let mut bytes: Vec<u8> =
            plain.iter().flat_map(|slice| slice.iter().copied()).take(most).collect();
        assert!(!bytes.is_empty());
        if self.rng.chance(self.rules.delays) {
            push(out, ASK, 0, vec![0; self.rng.below(20)].into_iter());
        }
        // A few records at a time, or records of a byte each make a batch of 64 KiB long.
        let mut counted = 0;
        for left in (0..64).rev() {
            let len = (1 + self.rng.below(self.rules.longest)).min(bytes.len());
            counted += len;
            let record: Vec<_> = bytes.drain(..len).map(|byte| byte ^ KEY).collect();
            let is_last = left == 0 || bytes.is_empty();
            let is_late = self.rules.bug == Some(LayerBug::CountsLate) && !is_last;
            let count = if is_late { 0 } else { std::mem::take(&mut counted) };
            push(out, DATA, count, record.into_iter());
            if is_last {
                break;
            }
        }
        self.seal_at = self.delay(now);
    }

    fn finish(&mut self, out: &mut Wire) {
        push(out, END, 0, [].into_iter());
    }

    fn poll_timeout(&self) -> Option<Moment> {
        self.hold_until.into_iter().chain(self.seal_at).min()
    }

    fn handle_timeout(&mut self, _: &mut Wire, now: Moment) -> Result<(), Failure> {
        self.hold_until = self.hold_until.filter(|until| now < *until);
        self.seal_at = self.seal_at.filter(|at| now < *at);
        Ok(())
    }
}
