//! What a fresh look tried against the connection alone: every split, budgets, garbage, ends, and records
//! of given lengths.

#![allow(
    clippy::cast_possible_truncation,
    clippy::similar_names,
    reason = "its numbers are small, and a head is no heard"
)]

use std::{collections::VecDeque, io, io::IoSlice};

use super::*;
use crate::{
    core::{spares::Spares, write_queue::What},
    layer::{Failure, Layer, LayerMaker, MakeLayer, Wire},
    net::sim::SimRng,
    protocol::{DecodeError, Decoded, Head, Kind, Native, NoId},
};

type Link<P> = Connection<P, &'static str, ()>;

/// One end, and what it heard.
struct Ear<P: Protocol> {
    link: Link<P>,
    config: Config,
    pool: QueuePool,
    shared: Vec<u8>,
    heard: Vec<String>,
    error: Option<DecodeError>,
    /// Frames that are handled at a time.
    budget: usize,
}

impl<P: Protocol> Ear<P> {
    fn new(protocol: P, role: Role, config: Config) -> Self {
        let mut link = Link::new(protocol, role, &config, 7, Moment::START);
        let mut pool = QueuePool::default();
        link.open(&config, &mut pool, Moment::START);
        let (shared, heard) = (vec![0; 128 * 1024], Vec::new());
        Self { link, config, pool, shared, heard, error: None, budget: usize::MAX }
    }

    /// Takes these bytes in one go, as far as there is room for them at a time.
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.error.is_none() {
            while self.link.has_waiting() {
                self.go_on();
            }
            let room = self.link.room(&mut self.shared, bytes.len());
            assert!(!room.is_empty());
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            let Self { link, config, shared, heard, pool, .. } = self;
            match link.receive(shared, count, config, Moment::START) {
                Err(error) => self.error = Some(error),
                Ok(None) => {}
                Ok(Some(received)) => {
                    self.error = handle(link, config, pool, heard, received, self.budget);
                }
            }
        }
        while self.link.has_waiting() && self.error.is_none() {
            self.go_on();
        }
    }

    fn go_on(&mut self) {
        let Self { link, config, shared, heard, pool, .. } = self;
        if let Some(received) = link.take_waiting(shared) {
            self.error = handle(link, config, pool, heard, received, self.budget);
        }
    }

    /// All that is to be written.
    fn write(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.link.has_output() {
            let write = |slices: &[IoSlice<'_>]| {
                let before = wire.len();
                for slice in slices {
                    wire.extend_from_slice(slice);
                }
                Ok(wire.len() - before)
            };
            self.link.write(&mut Spares::default(), Moment::START, write).unwrap();
        }
        wire
    }

    fn write_one(&mut self) -> (u8, u64) {
        let mut byte = 0;
        let write = |slices: &[IoSlice<'_>]| {
            byte = slices[0][0];
            Ok(1)
        };
        let (count, written) =
            self.link.write(&mut Spares::default(), Moment::START, write).unwrap();
        assert_eq!(count, 1);
        (byte, written.messages)
    }

    fn send(&mut self, body: &[u8]) {
        let head = Head::new(self.link.push_kind(), self.link.next_push_id());
        self.link.push_frame(&head, body, What::Push { is_caused: false }, &mut self.pool);
    }

    fn call(&mut self, body: &[u8], waiter: &'static str) {
        let (number, id) = self.link.next_call(&self.config, None).unwrap();
        let head = Head::new(self.link.request_kind(), id);
        self.link.push_call(&head, body, NewCall { number, timer: None, waiter }, &mut self.pool);
    }
}

/// Handles frames up to the budget; what was wrong with one, if something was.
fn handle<P: Protocol>(
    link: &mut Link<P>,
    config: &Config,
    pool: &mut QueuePool,
    heard: &mut Vec<String>,
    mut received: Received<'_, P::Id>,
    mut budget: usize,
) -> Option<DecodeError> {
    let at = received.at();
    let mut error = None;
    let (mut input, _) = received.take_apart();
    let mut known = input.known();
    while !input.is_empty() {
        if budget == 0 && known.is_none() {
            input.wait(at);
            break;
        }
        let decoded = match known.take().map_or_else(|| link.decode(&input, config), Ok) {
            Ok(decoded) => decoded,
            Err(wrong) => {
                error = Some(wrong);
                break;
            }
        };
        let Some((head, body)) = input.take(&decoded) else { break };
        budget = budget.saturating_sub(1);
        let text = format!("{:?} {}", head.kind, sum(body));
        if link.accept(head) == Incoming::Other
            && let Err(wrong) = link.handle_frame(head, body, pool, Moment::START)
        {
            error = Some(wrong);
            break;
        }
        heard.push(text);
    }
    link.keep(input, &mut Spares::default(), Moment::START);
    error
}

fn sum(body: &[u8]) -> String {
    let sum = body.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
    format!("{} {sum}", body.len())
}

fn native(kind: Kind, id: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Native.encode(&Head::new(kind, id), body, &mut out);
    out
}

fn hello() -> Vec<u8> {
    Ear::new(Native, Role::Dialled, Config::new()).write()
}

fn accepting() -> Ear<Native> {
    Ear::new(Native, Role::Accepted, Config::new())
}

fn talk() -> Vec<u8> {
    [
        hello(),
        native(Kind::Push, 0, b"news"),
        native(Kind::Request, 1, b""),
        native(Kind::Ping, 9, b"ping"),
        native(Kind::Request, 2, &[b'q'; 300]),
        native(Kind::Cancel, 1, b""),
        native(Kind::Push, 0, b"last"),
    ]
    .concat()
}

// ---- bytes in ----

#[test]
fn every_split_in_three_gives_the_same_messages() {
    let bytes = talk();
    let mut whole = accepting();
    whole.take(&bytes);
    assert_eq!((whole.heard.len(), &whole.error), (7, &None));
    for first in 0..bytes.len() {
        for second in
            [first, first + 1, first + 24, usize::midpoint(first, bytes.len()), bytes.len()]
        {
            let second = second.clamp(first, bytes.len());
            let mut ear = accepting();
            for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                ear.take(part);
            }
            assert_eq!(ear.heard, whole.heard, "{first} {second}");
            assert_eq!(ear.link.unfinished(), 0);
        }
    }
}

#[test]
fn budget_of_any_size_gives_the_same_messages() {
    let bytes = talk();
    let mut whole = accepting();
    whole.take(&bytes);
    for budget in [1, 2, 3] {
        for step in [1, 30, 1000] {
            let mut ear = accepting();
            ear.budget = budget;
            bytes.chunks(step).for_each(|part| ear.take(part));
            assert_eq!(ear.heard, whole.heard, "{budget} {step}");
        }
    }
}

/// The bound between what is put together in the shared buffer and what has a buffer of its own.
#[test]
fn large_frames_come_whole_whatever_is_around_them() {
    const LARGE: usize = 64 * 1024;
    for len in [LARGE - 25, LARGE - 24, LARGE - 23, LARGE, LARGE + 1, 2 * LARGE, 3 * LARGE + 5] {
        let body: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let bytes = [
            hello(),
            native(Kind::Push, 0, b"before"),
            native(Kind::Push, 0, &body),
            native(Kind::Push, 0, &body),
            native(Kind::Push, 0, b"behind"),
        ]
        .concat();
        for step in [997, 4096, LARGE - 1, LARGE, LARGE + 1, usize::MAX] {
            for budget in [1, usize::MAX] {
                let mut ear = accepting();
                ear.budget = budget;
                bytes.chunks(step.min(bytes.len())).for_each(|part| ear.take(part));
                assert_eq!(ear.error, None);
                let large = format!("Push {}", sum(&body));
                assert_eq!(ear.heard.len(), 5, "{len} {step}");
                assert_eq!(ear.heard[2..4], [large.clone(), large], "{len} {step}");
                assert_eq!(ear.link.unfinished(), 0);
            }
        }
    }
}

/// "Bytes from the network never panic."
#[test]
fn garbage_in_any_pieces_is_refused_or_waited_for() {
    for seed in 0..3000 {
        let mut rng = SimRng::new(seed);
        let mut bytes = talk();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len());
            match rng.below(3) {
                0 => bytes[at] = rng.below(256) as u8,
                1 => drop(bytes.drain(at..(at + 1 + rng.below(30)).min(bytes.len()))),
                _ => bytes.insert(at, rng.below(256) as u8),
            }
        }
        let mut ear = accepting();
        ear.budget = 1 + rng.below(3);
        let step = 1 + rng.below(bytes.len());
        for part in bytes.chunks(step) {
            ear.take(part);
        }
        ear.link.check();
    }
}

/// "A declared length allocates nothing", and one over the limit is refused at its header.
#[test]
fn length_that_is_declared_is_judged_by_its_header() {
    let mut ear = Ear::new(Native, Role::Accepted, Config::new().max_body(1000));
    ear.take(&hello());
    let mut header = native(Kind::Push, 0, &[b'x'; 1001]);
    header.truncate(24);
    ear.take(&header[..3]);
    assert_eq!(ear.error, None);
    ear.take(&header[3..]);
    assert!(matches!(ear.error, Some(DecodeError::BodyTooLong { len: 1001, max: 1000 })));

    let mut ear = accepting();
    ear.take(&hello());
    let mut header = native(Kind::Push, 0, b"");
    header[..4].copy_from_slice(&(8_u32 << 20).to_be_bytes());
    ear.take(&header);
    assert_eq!((ear.error.clone(), ear.link.unfinished()), (None, 24));
    let room = ear.link.room(&mut ear.shared, usize::MAX).len();
    assert!(room <= 8192, "{room}");
}

#[test]
fn what_is_unfinished_is_known_at_every_byte() {
    let bytes = talk();
    let mut borders = Vec::new();
    let mut ear = accepting();
    for (count, byte) in bytes.iter().enumerate() {
        let before = ear.heard.len();
        ear.take(&[*byte]);
        if ear.heard.len() > before {
            borders.push(count + 1);
        }
        let whole = borders.last().copied().unwrap_or(0);
        assert_eq!(ear.link.unfinished(), count + 1 - whole);
    }
    assert_eq!(borders.last(), Some(&bytes.len()));
}

/// A format that needs all of a frame before it says anything of it: a byte of length, times 1000.
#[derive(Clone, Debug, PartialEq)]
struct Needier;

impl Protocol for Needier {
    type Id = NoId;

    fn name(&self) -> &'static str {
        "needy"
    }

    fn decode(&mut self, buf: &[u8], _: usize) -> Result<Decoded<NoId>, DecodeError> {
        let needs = NEEDS.with(std::cell::Cell::get);
        assert!(buf.len() >= needs, "asked with {} where it needs {needs}", buf.len());
        let Some(&len) = buf.first() else { return Ok(Decoded::need(1)) };
        let total = 1 + usize::from(len) * 1000;
        if buf.len() < total {
            NEEDS.with(|needs| needs.set(total));
            return Ok(Decoded::need(total));
        }
        NEEDS.with(|needs| needs.set(0));
        Ok(Decoded::frame(Head::plain(NoId), 1, total - 1))
    }

    fn encode_header(&mut self, _: &Head<NoId>, body_len: usize, out: &mut Vec<u8>) {
        out.push(u8::try_from(body_len / 1000).unwrap());
    }

    fn largest_body(&self) -> usize {
        255_000
    }

    fn push_id(&self, _: u64, _: u64) -> NoId {
        NoId
    }
}

thread_local! {
    static NEEDS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// "A decoder that needs more is not asked before as much is there."
#[test]
fn decoder_that_needs_a_whole_large_frame_is_asked_when_it_is_there() {
    let lens = [1_u8, 200, 0, 66, 65, 255, 3];
    let bytes: Vec<u8> = lens
        .iter()
        .flat_map(|len| [*len].into_iter().chain(vec![*len; usize::from(*len) * 1000]))
        .collect();
    for step in [100, 1000, 65_000, 70_000, usize::MAX] {
        for budget in [1, usize::MAX] {
            NEEDS.with(|needs| needs.set(0));
            let mut ear = Ear::new(Needier, Role::Accepted, Config::new());
            ear.budget = budget;
            bytes.chunks(step.min(bytes.len())).for_each(|part| ear.take(part));
            assert_eq!(ear.error, None);
            let lens: Vec<_> =
                lens.iter().map(|len| format!("Plain {}", usize::from(*len) * 1000)).collect();
            assert_eq!(ear.heard.len(), lens.len(), "{step} {budget}");
            for (heard, len) in ear.heard.iter().zip(&lens) {
                assert!(heard.starts_with(len.as_str()), "{heard} {len}");
            }
        }
    }
}

// ---- bytes out ----

#[test]
fn write_that_takes_nothing_is_an_error_and_one_that_would_block_changes_nothing() {
    let mut ear = accepting();
    ear.send(b"news");
    let (cost, spares) = (ear.link.queued_cost(), &mut Spares::default());
    let result = ear.link.write(spares, Moment::START, |_| Ok(0));
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WriteZero);
    let blocks = |_: &[IoSlice<'_>]| Err(io::ErrorKind::WouldBlock.into());
    assert!(ear.link.write(spares, Moment::START, blocks).is_err());
    assert_eq!(ear.link.queued_cost(), cost);
    let mut other = Ear::new(Native, Role::Dialled, Config::new());
    other.take(&ear.write());
    assert_eq!(other.heard.len(), 2);
}

#[test]
fn control_frames_go_between_frames_at_every_byte_of_one() {
    for cut in 0..60 {
        let mut ear = accepting();
        ear.write();
        ear.send(b"first message");
        ear.send(b"second message");
        let mut wire: Vec<u8> = (0..cut).map(|_| ear.write_one().0).collect();
        ear.take(&hello());
        ear.take(&native(Kind::Ping, 5, b"ping"));
        wire.extend(ear.write());
        let mut other = Ear::new(Native, Role::Dialled, Config::new());
        other.take(&hello());
        other.take(&wire);
        assert_eq!((other.error, other.heard.len()), (None, 4), "{cut}");
    }
}

// ---- records of a given length ----

/// Cuts what it is given into records of this length, each behind a byte of its own, and is up at once.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    len: usize,
}

impl MakeLayer for Blocks {
    fn make(&self, _: Role, _: u64, _: &mut Wire, _: Moment) -> Box<dyn Layer> {
        Box::new(BlockLayer { len: self.len, plain: VecDeque::new(), left: 0 })
    }
}

#[derive(Debug)]
struct BlockLayer {
    len: usize,
    plain: VecDeque<u8>,
    left: u8,
}

impl Layer for BlockLayer {
    fn name(&self) -> &'static str {
        "blocks"
    }

    fn receive(&mut self, wire: &mut [u8], _: &mut Wire, _: Moment) -> Result<(), Failure> {
        for byte in wire {
            if self.left == 0 {
                self.left = *byte;
            } else {
                self.left -= 1;
                self.plain.push_back(*byte);
            }
        }
        Ok(())
    }

    fn receive_end(&mut self) -> Result<(), Failure> {
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
        !self.plain.is_empty()
    }

    fn mid_record(&self) -> Option<u64> {
        (self.left > 0).then_some(0)
    }

    fn is_ended(&self) -> bool {
        false
    }

    fn is_up(&self) -> bool {
        true
    }

    fn can_seal(&self) -> bool {
        true
    }

    fn seal(&mut self, plain: &[IoSlice<'_>], most: usize, out: &mut Wire, _: Moment) {
        let bytes: Vec<u8> =
            plain.iter().flat_map(|slice| slice.iter().copied()).take(most).collect();
        for part in bytes.chunks(self.len) {
            out.push(part.len(), |out| {
                out.push(u8::try_from(part.len()).unwrap());
                out.extend_from_slice(part);
            });
        }
    }

    fn finish(&mut self, _: &mut Wire) {}

    fn poll_timeout(&self) -> Option<Moment> {
        None
    }

    fn handle_timeout(&mut self, _: &mut Wire, _: Moment) -> Result<(), Failure> {
        Ok(())
    }
}

fn in_blocks(len: usize, role: Role) -> Ear<Native> {
    let mut config = Config::new();
    config.layer = Some(LayerMaker::new(Blocks { len }));
    Ear::new(Native, role, config)
}

/// The wire in these pieces, through the layer.
fn take_wire(ear: &mut Ear<Native>, wire: &[u8], step: usize) {
    for part in wire.chunks(step) {
        ear.link.receive_wire(&mut part.to_vec(), Moment::START);
        while ear.link.has_plain() {
            let Ear { link, config, shared, heard, pool, .. } = &mut *ear;
            let count = link.read_plain(shared, 1000);
            assert!(count > 0);
            match link.receive(shared, count, config, Moment::START) {
                Err(error) => ear.error = Some(error),
                Ok(None) => {}
                Ok(Some(received)) => {
                    ear.error = handle(link, config, pool, heard, received, usize::MAX);
                }
            }
        }
    }
}

#[test]
fn records_of_any_length_in_any_pieces_carry_the_same_messages() {
    for len in [1, 2, 23, 24, 25, 100, 255] {
        for step in [1, 3, 24, 10_000] {
            let mut one = in_blocks(len, Role::Dialled);
            one.send(b"news");
            one.send(&[b'y'; 3000]);
            one.call(b"question", "first");
            let wire = one.write();
            let mut other = in_blocks(len, Role::Accepted);
            take_wire(&mut other, &wire, step);
            assert_eq!((other.heard.len(), &other.error), (4, &None), "{len} {step}");
            assert_eq!(one.link.counts().messages_out, 3);
            one.link.check();
            assert_eq!(one.link.queued_cost(), 0);
        }
    }
}

/// "A frame stays in the write queue until the records that carry it were written."
#[test]
fn frame_is_sent_with_the_last_byte_of_its_last_record() {
    for len in [5, 24, 28, 60, 255] {
        let mut ear = in_blocks(len, Role::Dialled);
        ear.write();
        ear.send(b"news");
        ear.send(b"more");
        // Each is of 28 bytes, and so many records carry it.
        let total = 56 + 56_usize.div_ceil(len);
        let mut done = Vec::new();
        for count in 1..=total {
            let (_, messages) = ear.write_one();
            let left = ear.link.unsent().0;
            done.extend((0..messages).map(|_| count));
            assert_eq!(left, 2 - done.len() as u64);
        }
        let ends = |plain: usize| {
            let records = plain.div_ceil(len);
            let end = (records * len).min(56);
            end + records
        };
        assert_eq!(done, [ends(28), ends(56)], "{len}");
    }
}

/// "The peer may have a part of the record that was written in part, so a call in it may have been
/// sent": and one behind it may not. A pong of 24 bytes and the first call of 32 are one record.
#[test]
fn call_behind_a_record_with_a_control_frame_was_not_sent() {
    let mut ear = in_blocks(56, Role::Dialled);
    ear.write();
    ear.take(&hello());
    ear.call(b"question", "first");
    ear.call(b"question", "second");
    ear.take(&native(Kind::Ping, 5, b""));
    ear.write_one();
    let calls = ear.link.take_calls();
    let may_be = |waiter| {
        let pending = calls.iter().find(|pending| pending.waiter == waiter).unwrap();
        ear.link.may_be_handled(pending, false)
    };
    assert_eq!((may_be("first"), may_be("second")), (true, false));
}

/// As above, at every byte of the wire: what the peer can't have is known not to have been sent.
#[test]
fn fate_of_calls_is_exact_at_every_byte_of_the_wire() {
    for len in [7, 32, 33, 64, 100] {
        let total = 96 + 96_usize.div_ceil(len);
        for cut in 0..=total {
            let mut ear = in_blocks(len, Role::Dialled);
            ear.write();
            ear.take(&hello());
            for waiter in ["first", "second", "third"] {
                ear.call(b"question", waiter);
            }
            (0..cut).for_each(|_| _ = ear.write_one());
            // Bytes of frames in all records of which a byte was written.
            let begun = (cut.div_ceil(len + 1) * len).min(96);
            for (number, pending) in ear.link.take_calls().iter().enumerate() {
                let expected = begun > number * 32;
                assert_eq!(ear.link.may_be_handled(pending, false), expected, "{len} {cut}");
            }
        }
    }
}

/// "A peer that pings faster than it takes our pongs gets fewer of them", also while a batch is written.
#[test]
fn pongs_that_wait_behind_a_batch_are_bounded_and_charged() {
    let mut ear = in_blocks(100, Role::Accepted);
    ear.write();
    ear.take(&hello());
    ear.send(&[b'x'; 1000]);
    ear.write_one();
    let before = ear.link.queued_cost();
    for _ in 0..10_000 {
        ear.take(&native(Kind::Ping, 5, &[0; 100]));
    }
    ear.link.check();
    let more = ear.link.queued_cost() - before;
    assert!((16 * 1024 - 124..17 * 1024).contains(&more), "{more}");
    let mut other = in_blocks(100, Role::Dialled);
    let wire = ear.write();
    // The first byte of the batch was taken above: its length.
    take_wire(&mut other, &[&[100], &wire[..]].concat(), 1000);
    assert_eq!(ear.link.queued_cost(), 0);
}

#[test]
fn layer_costs_nothing_once_all_was_written() {
    let mut ear = in_blocks(10, Role::Accepted);
    for _ in 0..50 {
        ear.send(&[b'x'; 500]);
        (0..37).for_each(|_| _ = ear.write_one());
        ear.link.check();
    }
    ear.write();
    ear.link.check();
    assert_eq!((ear.link.queued_cost(), ear.link.unsent()), (0, (0, 0)));
    assert!(!ear.link.holds_output());
}
