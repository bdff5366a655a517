//! Calls on a format whose answers carry no id and come in the order of the requests.

use std::{cell::RefCell, rc::Rc, time::Duration};

use super::fleet::Fleet;
use crate::{
    CallError, CallId, CloseReport, Config, Conn, ConnId, Fate, Handler, Message, ReactorBuilder,
    Reconnect, Reply, Responder,
    net::sim::SimWorld,
    protocol::{Correlation, DecodeError, Decoded, Head, Kind, NoId, Protocol},
};

/// A letter for the kind, a length of two bytes, and the body. No frame has an id or a tag: the
/// decoder numbers frames of a kind, as a format would that has to know what an answer is to.
#[derive(Clone, Debug, PartialEq)]
struct Letters {
    has_errors: bool,
    seen: [u32; 3],
}

impl Letters {
    const fn new() -> Self {
        Self { has_errors: true, seen: [0; 3] }
    }
}

impl Protocol for Letters {
    type Id = NoId;

    fn name(&self) -> &'static str {
        "letters"
    }

    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<NoId>, DecodeError> {
        let Some(&[letter, high, low]) = buf.first_chunk() else { return Ok(Decoded::need(3)) };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len > max_body {
            return Err(DecodeError::BodyTooLong { len: len as u64, max: max_body as u64 });
        }
        let (kind, class) = match letter {
            b'q' => (Kind::Request, 0),
            b'r' => (Kind::Reply, 1),
            b'e' => (Kind::Error, 1),
            b'p' => (Kind::Push, 2),
            _ => return Err(DecodeError::custom("no such letter")),
        };
        self.seen[class] += 1;
        let tag = if kind == Kind::Error { 1 } else { self.seen[class] };
        Ok(Decoded::frame(Head { tag, ..Head::new(kind, NoId) }, 3, len))
    }

    fn encode_header(&mut self, head: &Head<NoId>, body_len: usize, out: &mut Vec<u8>) {
        out.push(match head.kind {
            Kind::Request => b'q',
            Kind::Reply => b'r',
            Kind::Error => b'e',
            _ => b'p',
        });
        out.extend(u16::try_from(body_len).expect("bounded by largest_body").to_be_bytes());
    }

    fn largest_body(&self) -> usize {
        u16::MAX.into()
    }

    fn correlation(&self) -> Correlation {
        Correlation::InOrder
    }

    fn has_errors(&self) -> bool {
        self.has_errors
    }

    fn push_id(&self, _: u64, _: u64) -> NoId {
        NoId
    }
}

/// Does with a request what its body says, and notes everything.
#[derive(Clone, Default)]
struct Talking {
    log: Rc<RefCell<Vec<String>>>,
    deferred: Rc<RefCell<Vec<Responder<Letters>>>>,
}

impl Talking {
    fn note(&self, line: String) {
        self.log.borrow_mut().push(line);
    }

    fn take(&self) -> Vec<String> {
        self.log.take()
    }

    /// The request that was deferred as the `place`th of those that are left.
    fn deferred(&self, place: usize) -> Responder<Letters> {
        self.deferred.borrow_mut().remove(place)
    }

    fn handled(&self) -> usize {
        self.log.borrow().iter().filter(|line| line.starts_with("request")).count()
    }
}

impl Handler for Talking {
    type Protocol = Letters;

    fn on_message(&mut self, conn: &mut Conn<'_, Letters>, msg: Message<'_, Letters>) {
        let text = msg.text().into_owned();
        if !msg.is_request() {
            return self.note(format!("push {}: {text}", msg.tag()));
        }
        self.note(format!("request {}: {text}", msg.tag()));
        if text.starts_with("later") {
            let responder = conn.defer(&msg).unwrap();
            self.deferred.borrow_mut().push(responder);
        } else if text.starts_with("push") {
            conn.send("news").unwrap();
            conn.reply(&msg, &msg).unwrap();
            conn.send("more news").unwrap();
        } else if text.starts_with("fail") {
            let _ = conn.fail(&msg, 300, "no");
        } else if !text.starts_with("nothing") {
            let _ = conn.reply(&msg, &msg);
        }
    }

    fn on_disconnect(&mut self, _: &mut Conn<'_, Letters>, report: &CloseReport) {
        self.note(format!("disconnect {report}"));
    }
}

const SERVER: &str = "10.0.0.1:7001";
const MINUTE: Duration = Duration::from_mins(1);

/// A server and a client that talk.
struct Scene {
    world: SimWorld,
    fleet: Fleet<Talking>,
    /// The connection as the server and as the client know it.
    conns: [ConnId; 2],
    server: Talking,
    client: Talking,
}

impl Scene {
    fn new(protocol: &Letters, config: &Config) -> Self {
        Self::on(SimWorld::new(1), protocol, config)
    }

    fn on(world: SimWorld, protocol: &Letters, config: &Config) -> Self {
        let (server, client) = (Talking::default(), Talking::default());
        let mut fleet = Fleet::new(world.clone());
        for (number, handler) in [(1, &server), (2, &client)] {
            let builder = ReactorBuilder::new(protocol.clone()).config(config.clone());
            fleet.add(number, builder.seed(number.into()), handler.clone());
        }
        fleet.nodes[0].engine.context().listen(SERVER).unwrap();
        let dialled = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
        let mut accepted = None;
        let is_up = fleet.run_until(MINUTE, |fleet| {
            accepted = fleet.nodes[0].engine.context().connections().next();
            accepted.is_some()
                && fleet.nodes[1]
                    .engine
                    .context()
                    .conn(dialled)
                    .is_some_and(|conn| conn.epoch() > 0)
        });
        assert!(is_up, "not connected");
        // The reactors learn what time it is.
        fleet.run_for(Duration::from_millis(1));
        let accepted = accepted.unwrap();
        Self { world, fleet, conns: [accepted, dialled], server, client }
    }

    /// Calls from this side; the end of the call is noted there.
    fn call(
        &mut self,
        side: usize,
        body: impl Into<String>,
        timeout: Duration,
    ) -> Result<CallId, CallError> {
        let mut cx = self.fleet.nodes[side].engine.context();
        let mut conn = cx.conn(self.conns[side]).unwrap();
        let body = body.into();
        let asked = body.clone();
        let callback = move |talking: &mut Talking,
                             _: &mut Conn<'_, Letters>,
                             result: Result<Reply<'_>, CallError>| {
            talking.note(match result {
                Ok(reply) => format!("reply {} to {asked}: {}", reply.tag(), reply.text()),
                Err(error) => format!("no reply to {asked}: {error}"),
            });
        };
        conn.call::<Talking>(body, timeout, callback).map_err(CallError::from)
    }

    /// Calls from the client's side, patiently.
    fn ask(&mut self, body: impl Into<String>) -> CallId {
        self.call(1, body, 60 * MINUTE).unwrap()
    }

    fn run(&mut self) {
        self.fleet.run_for(Duration::from_secs(1));
    }
}

fn scene() -> Scene {
    Scene::new(&Letters::new(), &Config::new())
}

#[test]
fn reply_ends_the_oldest_call_and_pushes_come_in_between() {
    let mut scene = scene();
    for body in ["a", "push", "fail", "b"] {
        scene.ask(body);
    }
    scene.run();
    assert_eq!(
        scene.client.take(),
        [
            "reply 1 to a: a",
            "push 1: news",
            "reply 2 to push: push",
            "push 2: more news",
            "no reply to fail: the peer failed: no (code 1)",
            "reply 4 to b: b"
        ]
    );
}

#[test]
fn both_sides_call_at_the_same_time() {
    let mut scene = scene();
    for number in 0..3 {
        scene.call(0, format!("down {number}"), MINUTE).unwrap();
        scene.call(1, format!("up {number}"), MINUTE).unwrap();
    }
    scene.run();
    for (talking, own, others) in [(&scene.server, "down", "up"), (&scene.client, "up", "down")] {
        let mut lines = talking.take();
        lines.sort();
        let replies = (0..3).map(|i| format!("reply {} to {own} {i}: {own} {i}", i + 1));
        let requests = (0..3).map(|i| format!("request {}: {others} {i}", i + 1));
        assert_eq!(lines, replies.chain(requests).collect::<Vec<_>>());
    }
}

#[test]
fn late_answer_of_a_call_that_timed_out_is_not_given_to_the_next() {
    let mut scene = scene();
    scene.call(1, "later", Duration::from_secs(2)).unwrap();
    scene.ask("next");
    scene.fleet.run_for(Duration::from_secs(5));
    assert_eq!(scene.client.take(), ["no reply to later: no answer in time (maybe sent)"]);
    scene.server.deferred(0).reply("late").unwrap();
    scene.run();
    assert_eq!(scene.client.take(), ["reply 2 to next: next"]);
    assert_eq!(scene.fleet.nodes[1].engine.state.stats.late_replies, 1);
}

#[test]
fn late_answer_of_a_call_that_was_cancelled_is_not_given_to_the_next() {
    let mut scene = scene();
    let calls = ["later 1", "later 2", "last"].map(|body| scene.ask(body));
    scene.run();
    let conn = scene.conns[1];
    let mut cx = scene.fleet.nodes[1].engine.context();
    // Twice is as good as once.
    cx.conn(conn).unwrap().cancel_call(calls[1]);
    cx.conn(conn).unwrap().cancel_call(calls[1]);
    scene.run();
    assert_eq!(scene.client.take(), ["no reply to later 2: cancelled (maybe sent)"]);
    for answer in ["first", "second"] {
        scene.server.deferred(0).reply(answer).unwrap();
    }
    scene.run();
    assert_eq!(scene.client.take(), ["reply 1 to later 1: first", "reply 3 to last: last"]);
}

#[test]
fn calls_that_ended_before_their_answer_count_as_in_flight_until_it_comes() {
    let config = Config::new().max_calls(2);
    let mut scene = Scene::new(&Letters::new(), &config);
    scene.call(1, "later", Duration::from_secs(2)).unwrap();
    scene.call(1, "b", Duration::from_secs(2)).unwrap();
    scene.fleet.run_for(Duration::from_secs(5));
    assert_eq!(scene.call(1, "c", MINUTE), Err(CallError::TooManyInFlight { limit: 2 }));
    scene.server.deferred(0).reply("late").unwrap();
    scene.run();
    scene.client.take();
    scene.ask("d");
    scene.run();
    assert_eq!(scene.client.take(), ["reply 3 to d: d"]);
}

#[test]
fn reply_that_nobody_asked_for_is_dropped() {
    let mut scene = scene();
    scene.ask("a");
    scene.run();
    let (id, head) = (scene.conns[0], Head::new(Kind::Reply, NoId));
    scene.fleet.nodes[0].engine.state.send_frame(id, &head, "again").unwrap();
    scene.run();
    scene.ask("b");
    scene.run();
    assert_eq!(scene.client.take(), ["reply 1 to a: a", "reply 3 to b: b"]);
    assert_eq!(scene.fleet.nodes[1].engine.state.stats.late_replies, 1);
}

#[test]
fn answers_go_in_the_order_of_the_requests_whoever_answers_first() {
    let mut scene = scene();
    for body in ["later 1", "now", "later 2", "fail", "push", "later 3"] {
        scene.ask(body);
    }
    scene.run();
    // Only the pushes, which answer nothing.
    assert_eq!(scene.client.take(), ["push 1: news", "push 2: more news"]);
    let conn = scene.conns[0];
    let mut cx = scene.fleet.nodes[0].engine.context();
    let stats = cx.conn(conn).unwrap().stats();
    assert_eq!((stats.requests_in_flight, stats.queued), (6, 3 + 2 + 4 + 3 * 32));
    scene.server.deferred(2).reply("c").unwrap();
    scene.server.deferred(1).reply("b").unwrap();
    scene.run();
    assert!(scene.client.take().is_empty());
    scene.server.deferred(0).reply("a").unwrap();
    scene.run();
    assert_eq!(
        scene.client.take(),
        [
            "reply 1 to later 1: a",
            "reply 2 to now: now",
            "reply 3 to later 2: b",
            "no reply to fail: the peer failed: no (code 1)",
            "reply 5 to push: push",
            "reply 6 to later 3: c",
        ]
    );
    let mut cx = scene.fleet.nodes[0].engine.context();
    let stats = cx.conn(conn).unwrap().stats();
    assert_eq!((stats.requests_in_flight, stats.queued), (0, 0));
}

#[test]
fn request_without_an_answer_gets_an_error_in_its_place() {
    let mut scene = scene();
    for body in ["later", "nothing", "now"] {
        scene.ask(body);
    }
    scene.run();
    drop(scene.server.deferred(0));
    scene.run();
    assert_eq!(
        scene.client.take(),
        [
            "no reply to later: the peer failed: the responder was dropped (code 1)",
            "no reply to nothing: the peer failed: the handler gave no answer (code 1)",
            "reply 3 to now: now",
        ]
    );
}

#[test]
fn request_without_an_answer_ends_the_connection_of_a_format_that_has_no_errors() {
    for body in ["nothing", "fail", "later"] {
        let config = Config::new().reconnect(Reconnect::never());
        let mut scene = Scene::new(&Letters { has_errors: false, ..Letters::new() }, &config);
        for body in ["before", body, "behind"] {
            scene.ask(body);
        }
        scene.run();
        scene.server.deferred.take();
        scene.run();
        let told = scene.server.take();
        let end = told.last().unwrap();
        assert!(end.starts_with("disconnect a request was left unanswered"), "{told:?}");
        let told = scene.client.take();
        assert_eq!(told[0], "reply 1 to before: before");
        let start = format!("no reply to {body}: disconnected: ");
        assert!(told[1].starts_with(&start) && told[1].ends_with("(maybe sent)"), "{told:?}");
        assert!(told[2].starts_with("no reply to behind: disconnected: "), "{told:?}");
    }
}

#[test]
fn answer_that_is_too_long_becomes_an_error_in_its_place() {
    let mut scene = scene();
    for body in ["later", "now"] {
        scene.ask(body);
    }
    scene.run();
    scene.server.deferred(0).reply(vec![0; 70_000]).unwrap_err();
    scene.run();
    assert_eq!(
        scene.client.take(),
        [
            "no reply to later: the peer failed: the reply is too long (code 1)",
            "reply 2 to now: now",
        ]
    );
}

#[test]
fn calls_of_a_lost_connection_end_and_the_next_one_begins_anew() {
    let config = Config::new().reconnect(Reconnect::fixed(Duration::from_secs(1)));
    let mut scene = Scene::new(&Letters::new(), &config);
    scene.ask("a");
    scene.run();
    for body in ["later", "b", "c"] {
        scene.ask(body);
    }
    scene.run();
    // An answer of this epoch that is given in the next goes nowhere.
    let old = scene.server.deferred(0);
    scene.world.reset(scene.world.connections()[0]);
    scene.fleet.run_for(Duration::from_millis(10));
    let told = scene.client.take();
    assert_eq!(told[0], "reply 1 to a: a");
    for (line, body) in told[1..].iter().zip(["later", "b", "c"]) {
        assert!(line.starts_with(&format!("no reply to {body}: disconnected: ")), "{told:?}");
        assert!(line.ends_with("(maybe sent)"), "{told:?}");
    }
    let told = scene.server.take();
    let end = told.last().unwrap();
    assert!(end.ends_with("; 2 messages unsent (2 bytes); 1 requests not answered"), "{end}");
    scene.fleet.run_for(Duration::from_secs(5));
    scene.ask("d");
    scene.run();
    assert!(old.reply("old").is_err());
    scene.run();
    let told = scene.client.take();
    assert_eq!(told.last().unwrap(), "reply 1 to d: d", "{told:?}");
}

#[test]
fn call_that_did_not_leave_is_known_as_not_sent() {
    let mut scene = scene();
    let (server, client) = (scene.fleet.nodes[0].host, scene.fleet.nodes[1].host);
    scene.world.cut(server, client);
    scene.ask("left");
    scene.run();
    // Larger than what the network takes meanwhile.
    for _ in 0..40 {
        scene.ask("x".repeat(60_000));
    }
    scene.ask("stayed");
    scene.run();
    let conn = scene.conns[1];
    scene.fleet.handle(1).abort(conn);
    scene.run();
    let told = scene.client.take();
    let end = |body: &str| {
        let start = format!("no reply to {body}: ");
        told.iter().find(|line| line.starts_with(&start)).unwrap().as_str()
    };
    assert!(end("left").ends_with("(maybe sent)"), "{}", end("left"));
    assert!(end("stayed").ends_with("(not sent)"), "{}", end("stayed"));
    assert_eq!(Fate::NotSent.to_string(), "not sent");
}

#[test]
fn no_more_requests_are_read_than_may_wait_for_an_answer() {
    let config = Config::new().max_requests(3);
    let mut scene = Scene::new(&Letters::new(), &config);
    scene.ask("later");
    for number in 0..5 {
        scene.ask(format!("now {number}"));
    }
    scene.run();
    assert_eq!(scene.server.handled(), 3);
    scene.server.deferred(0).reply("first").unwrap();
    scene.run();
    assert_eq!((scene.server.handled(), scene.client.take().len()), (6, 6));
}

#[test]
fn answers_that_wait_for_another_stop_the_reading_at_the_watermark() {
    let config = Config::new().watermarks(10_000, 100_000).hard_limit(1_000_000);
    let mut scene = Scene::new(&Letters::new(), &config);
    scene.ask("later");
    for number in 0..15 {
        scene.ask(format!("now {number:2} {}", "x".repeat(60_000)));
    }
    scene.run();
    assert_eq!(scene.server.handled(), 3, "one deferred, and two answers of 60 KB");
    scene.server.deferred(0).reply("first").unwrap();
    scene.run();
    assert_eq!((scene.server.handled(), scene.client.take().len()), (16, 16));
}

#[test]
fn connection_that_drains_waits_for_deferred_answers_in_order() {
    let mut scene = scene();
    for body in ["later", "now"] {
        scene.ask(body);
    }
    scene.run();
    let conn = scene.conns[0];
    scene.fleet.handle(0).drain(conn);
    scene.run();
    scene.ask("too late");
    scene.run();
    scene.server.deferred(0).reply("first").unwrap();
    scene.run();
    let told = scene.client.take();
    assert_eq!(
        told[..3],
        [
            "reply 1 to later: first",
            "reply 2 to now: now",
            "no reply to too late: the peer failed: no new requests are taken (code 1)",
        ]
    );
    assert!(told[3].starts_with("disconnect "), "{told:?}");
}

#[test]
fn every_reply_is_that_of_its_request_over_many_seeds() {
    let config = Config::new().reconnect(Reconnect::fixed(Duration::from_millis(200)));
    let mut replies = 0;
    for seed in 0..200 {
        let world = SimWorld::with_faults(seed);
        let mut rng = world.fork_rng();
        let faults = world.faults();
        world.calm();
        let mut scene = Scene::on(world, &Letters::new(), &config);
        scene.world.set_faults(faults);
        let mut asked = 0;
        for number in 0..60 {
            let what = if rng.below(4) == 0 { "later" } else { "now" };
            let timeout = rng.duration(&(Duration::from_millis(50)..=Duration::from_secs(5)));
            let is_up = |node: &mut super::fleet::Node<Talking>, conn| {
                node.engine.context().conn(conn).is_some_and(|conn| conn.is_writable())
            };
            if is_up(&mut scene.fleet.nodes[1], scene.conns[1]) {
                let body = format!("{what} {number}");
                asked += usize::from(scene.call(1, body, timeout).is_ok());
            }
            scene.fleet.run_for(rng.duration(&(Duration::ZERO..=Duration::from_millis(300))));
            let waiting = scene.server.deferred.borrow().len();
            if waiting > 0 && rng.below(2) == 0 {
                let place = rng.below(waiting);
                let responder = scene.server.deferred(place);
                // What it asked for stands in the log; the tag is its number there.
                let _ = responder.fail(300, "enough");
            }
        }
        scene.server.deferred.take();
        scene.fleet.run_for(Duration::from_secs(60));
        let told = scene.client.take();
        let ends: Vec<_> = told.iter().filter_map(|line| line.split_once(" to ")).collect();
        assert_eq!(ends.len(), asked, "seed {seed}: each call ends once");
        for (_, end) in ends.iter().filter(|(start, _)| start.starts_with("reply")) {
            let (asked, answer) = end.split_once(": ").unwrap();
            assert_eq!(asked, answer, "seed {seed}");
            replies += 1;
        }
        for (_, end) in ends {
            let is_error = end.contains("the peer failed");
            assert!(!is_error || end.starts_with("later"), "seed {seed}: {end}");
        }
    }
    assert!(replies > 2000, "{replies} replies in all");
}
