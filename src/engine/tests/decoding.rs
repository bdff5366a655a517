//! When the decoder is asked, and what it is shown.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::fleet::Fleet;
use crate::{
    CloseReason, CloseReport, Config, Conn, ConnId, Context, Handler, Message, ReactorBuilder,
    api::handler::Timer,
    net::sim::SimWorld,
    protocol::{DecodeError, Decoded, Head, NoId, Protocol},
};

/// What the decoders of a test were asked, all together.
#[derive(Debug, Default)]
struct Counts {
    calls: AtomicUsize,
    /// Bytes that they were shown.
    shown: AtomicUsize,
    /// Bytes that they looked at.
    looked_at: AtomicUsize,
    /// Answers that were frames.
    frames: AtomicUsize,
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    /// A length of four bytes and the body. The frame is known with its header.
    Early,
    /// The same. The frame is known when it is whole, and the decoder says how long it is before.
    Late,
    /// The body ends with a line feed. The decoder remembers how far it has looked.
    Marked,
    /// It asks for this much, whatever it is shown.
    Asks(usize),
    /// A frame whose body is so long, behind a header of that length.
    Finds(usize, usize),
    /// Reads nothing, and writes bodies as they are.
    Raw,
}

/// Counts what its decoder is asked.
#[derive(Clone, Debug)]
struct Counting {
    format: Format,
    looked: usize,
    counts: Arc<Counts>,
}

impl PartialEq for Counting {
    fn eq(&self, other: &Self) -> bool {
        self.format == other.format
    }
}

impl Counting {
    fn new(format: Format) -> Self {
        Self { format, looked: 0, counts: Arc::default() }
    }
}

impl Protocol for Counting {
    type Id = NoId;

    fn name(&self) -> &'static str {
        "counting"
    }

    fn decode(&mut self, buf: &[u8], _: usize) -> Result<Decoded<NoId>, DecodeError> {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        self.counts.shown.fetch_add(buf.len(), Ordering::Relaxed);
        let found = if self.format == Format::Marked {
            let new = &buf[self.looked..];
            let end = new.iter().position(|&byte| byte == b'\n');
            self.counts
                .looked_at
                .fetch_add(end.map_or(new.len(), |end| end + 1), Ordering::Relaxed);
            let before = std::mem::replace(&mut self.looked, buf.len());
            end.map_or(Decoded::need(0), |end| Decoded::Frame {
                head: Head::plain(NoId),
                body: 0..before + end,
                len: before + end + 1,
            })
        } else if let Format::Asks(total) = self.format {
            Decoded::need(total)
        } else if let Format::Finds(header, body) = self.format {
            Decoded::frame(Head::plain(NoId), header, body)
        } else if let Some(len) = buf.first_chunk() {
            let len = u32::from_be_bytes(*len) as usize;
            if self.format == Format::Late && buf.len() < 4 + len {
                Decoded::need(4 + len)
            } else {
                Decoded::frame(Head::plain(NoId), 4, len)
            }
        } else {
            Decoded::need(4)
        };
        if matches!(found, Decoded::Frame { .. }) {
            self.looked = 0;
            self.counts.frames.fetch_add(1, Ordering::Relaxed);
        }
        Ok(found)
    }

    fn encode_header(&mut self, _: &Head<NoId>, _: usize, _: &mut Vec<u8>) {}

    fn largest_body(&self) -> usize {
        u32::MAX as usize
    }

    fn push_id(&self, _: u64, _: u64) -> NoId {
        NoId
    }
}

/// Notes the length of what comes.
#[derive(Clone, Default)]
struct Noting {
    lens: Rc<RefCell<Vec<usize>>>,
    ends: Rc<RefCell<Vec<CloseReason>>>,
    /// Pauses reading for so long after a message.
    pause: Option<Duration>,
}

impl Handler for Noting {
    type Protocol = Counting;

    fn on_message(&mut self, conn: &mut Conn<'_, Counting>, msg: Message<'_, Counting>) {
        self.lens.borrow_mut().push(msg.body().len());
        if let Some(pause) = self.pause {
            conn.pause();
            conn.set_timer(pause, 0);
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Counting>, timer: Timer) {
        if let Some(mut conn) = timer.conn.and_then(|id| cx.conn(id)) {
            conn.resume();
        }
    }

    fn on_disconnect(&mut self, _: &mut Conn<'_, Counting>, report: &CloseReport) {
        self.ends.borrow_mut().push(report.reason.clone());
    }
}

const SERVER: &str = "10.0.0.1:7001";

/// A server whose decoder counts, and a client that sends it segments.
struct Scene {
    fleet: Fleet<Noting>,
    conn: ConnId,
    server: Noting,
    counts: Arc<Counts>,
}

impl Scene {
    fn new(format: Format, server: Noting) -> Self {
        let config = Config::new().watermarks(1 << 20, 8 << 20);
        let protocol = Counting::new(format);
        let counts = protocol.counts.clone();
        let mut fleet = Fleet::new(SimWorld::new(1));
        let reading = ReactorBuilder::new(protocol).config(config.clone()).seed(1);
        fleet.add(1, reading, server.clone());
        let sending = ReactorBuilder::new(Counting::new(Format::Raw)).config(config).seed(2);
        fleet.add(2, sending, Noting::default());
        fleet.nodes[0].engine.context().listen(SERVER).unwrap();
        let conn = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
        fleet.run_for(Duration::from_secs(1));
        Self { fleet, conn, server, counts }
    }

    /// Sends the bytes, each segment after the one before it was read.
    fn send(&mut self, bytes: &[u8], segment: usize) {
        for segment in bytes.chunks(segment) {
            self.fleet.handle(1).send(self.conn, segment.to_vec()).unwrap();
            self.fleet.run_for(Duration::from_millis(20));
        }
    }

    fn lens(&self) -> Vec<usize> {
        self.server.lens.take()
    }
}

/// A frame of the formats that begin with a length.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = u32::try_from(len).unwrap().to_be_bytes().to_vec();
    frame.resize(4 + len, b'x');
    frame
}

#[test]
fn decoder_is_not_asked_before_as_much_is_there_as_it_needs() {
    let mut scene = Scene::new(Format::Late, Noting::default());
    scene.send(&frame(200_000), 1000);
    assert_eq!(scene.lens(), [200_000]);
    let (calls, shown) = (count(&scene.counts.calls), count(&scene.counts.shown));
    assert_eq!((calls, shown), (2, 1000 + 200_004));
}

#[test]
fn frame_that_ends_with_a_mark_is_looked_at_once() {
    let mut scene = Scene::new(Format::Marked, Noting::default());
    let mut line = vec![b'x'; 200_000];
    line.push(b'\n');
    line.extend(b"short\n");
    scene.send(&line, 1000);
    assert_eq!(scene.lens(), [200_000, 5]);
    assert_eq!(count(&scene.counts.looked_at), line.len());
}

#[test]
fn need_of_no_more_than_was_shown_counts_as_one_byte_more() {
    let mut scene = Scene::new(Format::Marked, Noting::default());
    scene.send(b"ab\ncd\n", 1);
    assert_eq!(scene.lens(), [2, 2]);
    assert_eq!(count(&scene.counts.calls), 6);
}

#[test]
fn need_of_more_than_a_frame_can_have_closes_the_connection() {
    let max = Config::new().max_body;
    let total = max + 64 * 1024 + 1;
    let mut scene = Scene::new(Format::Asks(total), Noting::default());
    scene.send(b"x", 1);
    let error = DecodeError::BodyTooLong { len: total as u64, max: max as u64 };
    assert_eq!(scene.server.ends.take(), [CloseReason::Protocol(error)]);
}

#[test]
fn body_of_more_than_may_be_closes_the_connection_also_where_the_decoder_lets_it_pass() {
    const MAX: usize = 8 << 20;
    const MOST: usize = MAX + (64 << 10);
    assert_eq!(Config::new().max_body, MAX);
    for (header, body, too_long) in [
        (4, MAX, None),
        (4, MAX + 1, Some(MAX + 1)),
        (0, MAX + 1, Some(MAX + 1)),
        (MOST - MAX, MAX, None),
        (MOST, 1, Some(MOST + 1)),
        (4, usize::MAX - 4, Some(usize::MAX - 4)),
    ] {
        let mut scene = Scene::new(Format::Finds(header, body), Noting::default());
        scene.send(b"x", 1);
        let closed = too_long.map(|len| {
            let error = DecodeError::BodyTooLong { len: len as u64, max: MAX as u64 };
            CloseReason::Protocol(error)
        });
        assert_eq!(scene.server.ends.take(), Vec::from_iter(closed), "{header} + {body}");
    }
}

#[test]
fn frame_is_decoded_once_in_however_many_segments_it_comes() {
    for segment in [1, 3, 7, 100] {
        let mut scene = Scene::new(Format::Early, Noting::default());
        let bytes = [frame(10), frame(0), frame(500), frame(1)].concat();
        scene.send(&bytes, segment);
        assert_eq!(scene.lens(), [10, 0, 500, 1]);
        assert_eq!(count(&scene.counts.frames), 4, "segments of {segment}");
    }
}

#[test]
fn large_frame_is_decoded_once_whole_or_in_segments() {
    for segment in [1000, 50_000, 1 << 20] {
        let mut scene = Scene::new(Format::Early, Noting::default());
        let bytes = [frame(70_000), frame(3), frame(300_000)].concat();
        scene.send(&bytes, segment);
        assert_eq!(scene.lens(), [70_000, 3, 300_000]);
        assert_eq!(count(&scene.counts.frames), 3, "segments of {segment}");
    }
}

#[test]
fn frame_that_a_pause_left_is_decoded_when_it_is_handled() {
    let server = Noting { pause: Some(Duration::from_secs(10)), ..Noting::default() };
    let mut scene = Scene::new(Format::Early, server);
    let bytes = frame(1).repeat(3);
    scene.fleet.handle(1).send(scene.conn, bytes).unwrap();
    for handled in 1..=3 {
        scene.fleet.run_for(Duration::from_secs(5));
        assert_eq!((scene.lens(), count(&scene.counts.frames)), (vec![1], handled));
        scene.fleet.run_for(Duration::from_secs(5));
    }
}

#[test]
fn frames_that_a_budget_left_are_decoded_once() {
    let mut scene = Scene::new(Format::Early, Noting::default());
    scene.send(&frame(2).repeat(20_000), 1 << 20);
    assert_eq!(scene.lens().len(), 20_000);
    assert_eq!(count(&scene.counts.frames), 20_000);
}
