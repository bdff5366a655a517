//! Two connections that talk, without a reactor: bytes go from the one's `write` to the other's `room`.

mod fresh;

use std::{io::IoSlice, time::Duration};

use super::*;
use crate::{
    core::{spares::Spares, write_queue::What},
    layer::records::Records,
    protocol::{Head, Kind, Native},
};

const SECOND: Duration = Duration::from_secs(1);

type Talker = Connection<Native, &'static str, &'static str>;

/// One end, and what came out of it.
struct End {
    link: Talker,
    config: Config,
    pool: QueuePool,
    shared: Vec<u8>,
    heard: Vec<String>,
}

impl End {
    fn new(role: Role) -> Self {
        Self::with(Config::new(), role)
    }

    fn with(config: Config, role: Role) -> Self {
        let mut link = Talker::new(Native, role, &config, 7, Moment::START);
        let mut pool = QueuePool::default();
        link.open(&config, &mut pool, Moment::START);
        Self { link, config, pool, shared: vec![0; 256 * 1024], heard: Vec::new() }
    }

    /// The next bytes for the wire, up to `most`.
    fn write(&mut self, most: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.link.has_output() && wire.len() < most {
            let write = |slices: &[IoSlice<'_>]| {
                let room = most - wire.len();
                let taken = slices.iter().flat_map(|slice| slice.iter().copied()).take(room);
                let before = wire.len();
                wire.extend(taken);
                Ok(wire.len() - before)
            };
            self.link.write(&mut Spares::default(), Moment::START, write).unwrap();
        }
        wire
    }

    /// Takes bytes of the wire, and handles what they complete. Requests are answered with their body.
    fn read(&mut self, mut wire: &[u8], now: Moment) {
        while !wire.is_empty() {
            let room = self.link.room(&mut self.shared, wire.len());
            let count = room.len().min(wire.len());
            room[..count].copy_from_slice(&wire[..count]);
            wire = &wire[count..];
            self.link.note_heard(count, now);
            let received = self.link.receive(&mut self.shared, count, &self.config, now);
            let Some(mut received) = received.unwrap() else { continue };
            let (mut input, _) = received.take_apart();
            let mut answers = Vec::new();
            let mut known = input.known();
            while !input.is_empty() {
                let decoded = match known.take() {
                    Some(known) => known,
                    None => self.link.decode(&input, &self.config).unwrap(),
                };
                let Some((head, body)) = input.take(&decoded) else { break };
                self.heard.push(match self.link.accept(head) {
                    Incoming::Message => format!("message {}", text(body)),
                    Incoming::Request => {
                        answers.push((head.id, body.to_vec()));
                        format!("request {}", text(body))
                    }
                    Incoming::Duplicate => panic!("no id is used twice"),
                    Incoming::Other => {
                        match self.link.handle_frame(head, body, &mut self.pool, now).unwrap() {
                            Some(Route::Ended(pending, None)) => {
                                format!("{} ended with {}", pending.waiter, text(body))
                            }
                            Some(Route::Done) => format!("{:?}", head.kind),
                            other => panic!("{other:?}"),
                        }
                    }
                });
            }
            self.link.keep(input, &mut Spares::default(), now);
            for (id, body) in answers {
                let head = Head::new(Kind::Reply, id);
                self.link.push_answer(None, &head, &body[..], &mut self.pool);
            }
        }
    }

    fn write_all(&mut self) -> Vec<u8> {
        self.write(usize::MAX)
    }

    /// As [`read`](Self::read), through the layer.
    fn read_wire(&mut self, mut wire: Vec<u8>) {
        if !wire.is_empty() {
            self.link.receive_wire(&mut wire, Moment::START);
        }
        while self.link.has_plain() {
            let mut plain = vec![0; 256 * 1024];
            let count = self.link.read_plain(&mut plain, 1 << 16);
            plain.truncate(count);
            self.read(&plain, Moment::START);
        }
    }

    fn send(&mut self, body: &[u8]) {
        let head = Head::new(Kind::Push, self.link.next_push_id());
        let what = What::Push { is_caused: false };
        self.link.push_frame(&head, body, what, &mut self.pool);
    }

    fn call(&mut self, body: &[u8], waiter: &'static str) {
        let (number, id) = self.link.next_call(&self.config, None).unwrap();
        let head = Head::new(self.link.request_kind(), id);
        self.link.push_call(&head, body, NewCall { number, timer: None, waiter }, &mut self.pool);
    }

    fn heard(&mut self) -> Vec<String> {
        std::mem::take(&mut self.heard)
    }
}

fn text(body: &[u8]) -> String {
    if body.len() > 20 { body.len().to_string() } else { String::from_utf8(body.into()).unwrap() }
}

/// Moves bytes both ways, so many at a time, until nothing is left to write.
fn exchange(one: &mut End, other: &mut End, step: usize) {
    while one.link.has_output() || other.link.has_output() {
        let (wire, back) = (one.write(step), other.write(step));
        other.read(&wire, Moment::START);
        one.read(&back, Moment::START);
    }
}

#[test]
fn two_connections_talk_whatever_pieces_their_bytes_come_in() {
    for step in [1, 2, 3, 7, 100, 5000, usize::MAX / 2] {
        let (mut dialled, mut accepted) = (End::new(Role::Dialled), End::new(Role::Accepted));
        assert!(!dialled.link.is_greeted());
        exchange(&mut dialled, &mut accepted, step);
        assert!(dialled.link.is_greeted() && accepted.link.is_greeted());
        assert_eq!(
            (dialled.heard(), accepted.heard()),
            (vec!["Hello".into()], vec!["Hello".into()])
        );

        dialled.send(b"news");
        dialled.call(b"question", "first");
        accepted.call(b"and you?", "second");
        dialled.send(&vec![b'x'; 200_000]);
        exchange(&mut dialled, &mut accepted, step);
        let (mut heard, mut there) = (dialled.heard(), accepted.heard());
        heard.sort();
        there.sort();
        assert_eq!(heard, ["first ended with question", "request and you?"], "step {step}");
        let expected = ["message 200000", "message news", "request question"];
        assert_eq!(there[..3], expected);
        assert_eq!(there[3], "second ended with and you?");
        assert_eq!(dialled.link.calls_in_flight() + accepted.link.calls_in_flight(), 0);
        for end in [&dialled, &accepted] {
            end.link.check();
            assert_eq!((end.link.unfinished(), end.link.queued_cost()), (0, 0));
        }
        assert_eq!(accepted.link.counts().messages_in, 4);
        assert_eq!(dialled.link.counts().messages_out, 4);
    }
}

#[test]
fn call_whose_request_was_written_in_part_may_be_handled_and_the_next_not() {
    let (mut dialled, mut accepted) = (End::new(Role::Dialled), End::new(Role::Accepted));
    exchange(&mut dialled, &mut accepted, 1000);
    dialled.call(b"question", "first");
    dialled.call(b"question", "second");
    assert_eq!(dialled.write(1).len(), 1);
    let calls = dialled.link.take_calls();
    let may_be = |waiter| {
        let pending = calls.iter().find(|pending| pending.waiter == waiter).unwrap();
        dialled.link.may_be_handled(pending, false)
    };
    assert_eq!((may_be("first"), may_be("second")), (true, false));
}

#[test]
fn silent_peer_is_pinged_and_then_given_up() {
    let (mut dialled, mut accepted) = (End::new(Role::Dialled), End::new(Role::Accepted));
    exchange(&mut dialled, &mut accepted, 1000);
    accepted.heard();
    let mut now = Moment::START;
    let mut pings = 0;
    let overdue = loop {
        now = dialled.link.poll_timeout(&dialled.config).expect("a deadline is set").max(now);
        let overdue = dialled.link.handle_timeout(&dialled.config, &mut dialled.pool, now);
        let wire = dialled.write(1000);
        accepted.read(&wire, now);
        pings += usize::from(accepted.heard() == ["Ping"]);
        if let Some(overdue) = overdue {
            break overdue;
        }
        assert!(now < Moment::START + 1000 * SECOND);
    };
    assert!(matches!(overdue, Overdue::Abort(CloseReason::IdleTimeout(_))), "{overdue:?}");
    assert_eq!(pings, 1, "a ping, and no answer to it");
}

#[test]
fn frame_that_drips_in_is_given_up() {
    let (mut dialled, mut accepted) = (End::new(Role::Dialled), End::new(Role::Accepted));
    exchange(&mut dialled, &mut accepted, 1000);
    dialled.send(b"news");
    let mut now = Moment::START;
    let overdue = loop {
        let wire = dialled.write(1);
        accepted.read(&wire, now);
        now = now + 7 * SECOND;
        if let Some(overdue) =
            accepted.link.handle_timeout(&accepted.config, &mut accepted.pool, now)
        {
            break overdue;
        }
    };
    assert!(matches!(overdue, Overdue::Close(CloseReason::FrameTimeout(_))), "{overdue:?}");
}

/// Two ends that speak through records, after the handshake and the greeting.
fn layered_ends() -> (End, End) {
    let records = Records { longest: 5000, delays: 0.0, failures: 0.0, is_strict: true, bug: None };
    let layered = |role| {
        let mut config = Config::new();
        config.layer = Some(records.maker());
        End::with(config, role)
    };
    let (mut dialled, mut accepted) = (layered(Role::Dialled), layered(Role::Accepted));
    for _ in 0..10 {
        let (wire, back) = (dialled.write_all(), accepted.write_all());
        accepted.read_wire(wire);
        dialled.read_wire(back);
    }
    assert!(dialled.link.is_greeted() && accepted.link.is_greeted());
    (dialled, accepted)
}

/// Nobody knows what a peer makes of a part of a record.
#[test]
fn call_whose_record_was_written_in_part_may_be_handled() {
    let (mut dialled, _) = layered_ends();
    dialled.call(b"question", "first");
    assert_eq!(dialled.write(1).len(), 1);
    dialled.call(b"question", "second");
    let calls = dialled.link.take_calls();
    let may_be = |waiter| {
        let pending = calls.iter().find(|pending| pending.waiter == waiter).unwrap();
        dialled.link.may_be_handled(pending, false)
    };
    assert_eq!((may_be("first"), may_be("second")), (true, false));
    assert_eq!(dialled.link.unsent().0, 2, "neither was written whole");
}

#[test]
fn nothing_is_sealed_after_the_layer_has_given_up() {
    let (mut dialled, _) = layered_ends();
    dialled.send(b"news");
    assert!(dialled.link.has_output());
    dialled.link.receive_wire(&mut [99, 0, 0], Moment::START);
    let failed = dialled.link.take_failure();
    assert!(matches!(failed, Some(CloseReason::Layer { layer: "records", .. })), "{failed:?}");
    assert!(!dialled.link.has_output() && !dialled.link.holds_output());
    assert_eq!(dialled.link.unsent().0, 1);
}

/// The queue puts a ping before the frames that wait, and a batch of them is sealed already.
#[test]
fn ping_that_comes_while_a_batch_is_written_goes_behind_it() {
    let (mut dialled, mut accepted) = layered_ends();
    accepted.heard();
    dialled.send(b"first");
    dialled.send(b"second");
    let mut wire = dialled.write(1);
    let at = Moment::START + 100 * SECOND;
    dialled.link.handle_unread(Moment::START + 80 * SECOND);
    dialled.link.handle_timeout(&dialled.config, &mut dialled.pool, at);
    wire.extend(dialled.write_all());
    accepted.read_wire(wire);
    assert_eq!(accepted.heard(), ["message first", "message second", "Ping"]);
}
