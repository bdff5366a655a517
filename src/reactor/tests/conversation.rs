//! Random conversations over random faults, thousands of seeds of them.
//!
//! Clients and a server send, call, answer now or later, broadcast, close, abort, pause and panic,
//! as the seed has it; the ledger knows what must have come of each.

use std::{
    collections::HashMap,
    env,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::Duration,
};

use super::{
    fleet::Fleet,
    ledger::{NodeNumber, SharedLedger},
};
use crate::{
    Audience, CallError, CloseReason, CloseReport, Config, Conn, ConnId, Context, Handle, Handler,
    Incident, Message, ReactorBuilder, Reconnect, Reply, Responder, Tagged,
    handler::Timer,
    protocol::{Any, Kind, Protocol as _},
    reactor::net::sim::{ConnectionId, SimRng, SimWorld},
};

/// What a body is, in its first byte.
const PUSH: u8 = 1;
const REQUEST: u8 = 2;
const ANSWER: u8 = 3;
const NEWS: u8 = 4;

const RESUME: u64 = 1;
const ANSWER_LATER: u64 = 2;

/// How a run is set up.
#[derive(Clone, Debug)]
struct Plan {
    protocol: Any,
    has_calls: bool,
    /// Chances of what a callback does, in percent.
    rude: usize,
    clients: u8,
    rounds: usize,
    largest: usize,
}

/// One side of the conversation.
struct Talker {
    node: NodeNumber,
    world: SimWorld,
    ledger: SharedLedger,
    rng: SimRng,
    plan: Plan,
    /// The connections that are up, with their channel.
    up: HashMap<ConnId, ConnectionId>,
    /// Our and the peer's address of each channel.
    ends: HashMap<ConnectionId, (SocketAddr, SocketAddr)>,
    later: Vec<(u64, Responder<Any>, bool)>,
    last_news: HashMap<(NodeNumber, ConnId), u64>,
    news: u64,
}

type Link<'a> = Conn<'a, Any>;

impl Talker {
    fn body(&mut self, kind: u8, conn: ConnId, number: u64) -> Vec<u8> {
        let mut body = vec![kind];
        body.extend_from_slice(&self.node.to_be_bytes());
        body.extend_from_slice(&conn.as_u64().to_be_bytes());
        body.extend_from_slice(&number.to_be_bytes());
        let len = if self.rng.chance(0.05) { self.plan.largest } else { 200 };
        let filler = self.rng.below(len + 1);
        body.resize(body.len() + filler, (number % 251) as u8);
        body
    }

    fn push(&mut self, conn: &mut Link<'_>) {
        let number = self.ledger.borrow().next_number(self.node, conn.id());
        let body = self.body(PUSH, conn.id(), number);
        if conn.send(body).is_ok() {
            self.ledger.borrow_mut().accepted(self.node, conn.id());
        }
    }

    fn call(&mut self, conn: &mut Link<'_>) {
        let number = self.ledger.borrow_mut().start_call();
        let body = self.body(REQUEST, conn.id(), number);
        let timeout = self.rng.duration(&(Duration::ZERO..=Duration::from_secs(20)));
        let callback =
            move |talker: &mut Self, _: &mut Link<'_>, result: Result<Reply<'_>, CallError>| {
                let outcome = result.as_ref().map(|reply| Parsed::of(reply.body()).number);
                talker.ledger.borrow_mut().end_call(number, outcome);
            };
        if conn.call::<Self>(body, timeout, callback).is_err() {
            self.ledger.borrow_mut().refused_call(number);
        }
    }

    fn act(&mut self, conn: &mut Link<'_>) {
        match self.rng.below(100) {
            0..40 => self.push(conn),
            40..60 if self.plan.has_calls => self.call(conn),
            60..63 => {
                self.news += 1;
                let body = self.body(NEWS, conn.id(), self.news);
                let receivers = conn.broadcast(Audience::All, body);
                self.ledger.borrow_mut().broadcast(self.node, receivers);
            }
            63..66 => {
                conn.pause();
                let after = self.rng.duration(&(Duration::ZERO..=Duration::from_secs(2)));
                conn.set_timer(after, RESUME);
            }
            n if n >= 100 - self.plan.rude => match self.rng.below(6) {
                0 => conn.close(),
                1 => conn.drain(),
                2 => conn.abort(),
                3 => panic!("planned"),
                4 => {
                    let other = self.up.keys().min().copied();
                    if let Some(mut other) = other.and_then(|id| conn.conn(id)) {
                        other.close();
                    }
                }
                _ => conn.join("room"),
            },
            _ => {}
        }
    }

    fn answer(&mut self, conn: &mut Link<'_>, msg: &Message<'_, Any>, number: u64) {
        self.ledger.borrow_mut().saw_request(number);
        let body = self.body(ANSWER, conn.id(), number);
        match self.rng.below(10) {
            0 => {}
            1 => {
                let _ = conn.fail(msg, 300, "no");
            }
            2 | 3 => {
                if let Ok(responder) = conn.defer(msg) {
                    let after = self.rng.duration(&(Duration::ZERO..=Duration::from_secs(8)));
                    self.later.push((number, responder, self.rng.chance(0.2)));
                    conn.set_timer(after, ANSWER_LATER);
                }
            }
            _ => {
                if conn.reply(msg, body).is_ok() {
                    self.ledger.borrow_mut().answered(number);
                }
            }
        }
    }
}

struct Parsed {
    kind: u8,
    from: (NodeNumber, ConnId),
    number: u64,
}

impl Parsed {
    fn of(body: &[u8]) -> Self {
        let word = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
        let number = word(17);
        assert!(body[25..].iter().all(|byte| *byte == (number % 251) as u8), "a torn body");
        Self { kind: body[0], from: (word(1), ConnId::from_u64(word(9))), number }
    }
}

impl Handler for Talker {
    type Protocol = Any;

    fn on_connect(&mut self, conn: &mut Link<'_>) {
        let (local, peer) = (conn.local_addr().unwrap(), conn.peer_addr().unwrap());
        let channel = self.world.find(local, peer).expect("the world knows the connection");
        assert!(self.up.insert(conn.id(), channel).is_none(), "connected twice");
        self.ends.insert(channel, (local, peer));
        // What is sent here goes before what was kept, which the numbers of pushes don't allow for.
        if self.plan.has_calls && self.rng.chance(0.5) {
            self.call(conn);
        }
    }

    fn on_message(&mut self, conn: &mut Link<'_>, msg: Message<'_, Any>) {
        let channel = *self.up.get(&conn.id()).expect("messages come within an epoch");
        let parsed = Parsed::of(msg.body());
        match parsed.kind {
            PUSH => self.ledger.borrow_mut().received(parsed.from, channel, parsed.number),
            REQUEST => self.answer(conn, &msg, parsed.number),
            NEWS => {
                let last = self.last_news.entry((parsed.from.0, conn.id())).or_default();
                assert!(parsed.number > *last, "news came twice or late");
                *last = parsed.number;
            }
            // The late answer to a call that is over, which the format can't tell from a message.
            ANSWER => assert!(msg.kind() == Kind::Plain, "{:?}", msg.kind()),
            other => panic!("a body of kind {other}"),
        }
        for _ in 0..self.rng.below(3) {
            self.act(conn);
        }
    }

    fn on_disconnect(&mut self, conn: &mut Link<'_>, report: &CloseReport) {
        let channel = self.up.remove(&conn.id()).expect("disconnected exactly once");
        assert!(!matches!(report.reason, CloseReason::Protocol(_)), "{report}");
        let stats = conn.conn_stats();
        let mut ledger = self.ledger.borrow_mut();
        let from = (self.node, conn.id());
        ledger.sent(from, channel, stats.messages_out, report.unsent_messages);
        // The network may lose what a peer wrote before it closed; what it brought must be handled.
        let (local, peer) = self.ends[&channel];
        let flow = self.world.flow(peer, local).expect("the world knows the connection");
        let is_whole = report.reason == CloseReason::PeerClosed && flow.read == flow.written;
        ledger.read(self.node, channel, stats.messages_in, is_whole);
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Any>, timer: Timer) {
        match timer.token {
            RESUME => {
                if let Some(mut conn) = timer.conn.and_then(|id| cx.conn(id)) {
                    conn.resume();
                }
            }
            ANSWER_LATER if !self.later.is_empty() => {
                let at = self.rng.below(self.later.len());
                let (number, responder, is_dropped) = self.later.swap_remove(at);
                let body = self.body(ANSWER, responder.conn(), number);
                if !is_dropped {
                    // Said before, as the answer may be refused later on the loop.
                    self.ledger.borrow_mut().answered(number);
                    let _ = responder.reply(body);
                }
            }
            _ => {}
        }
    }

    fn on_error(&mut self, _: &mut Context<'_, Any>, incident: &Incident) {
        if let Incident::Undelivered { conn, messages } = incident {
            self.ledger.borrow_mut().undelivered((self.node, *conn), *messages);
        }
    }
}

fn config(rng: &mut SimRng) -> Config {
    let mut config = Config::new();
    let first = rng.duration(&(Duration::from_millis(1)..=Duration::from_secs(1)));
    config.reconnect(Reconnect::exponential(first, Duration::from_secs(3)));
    config.max_body(1 << 20);
    if rng.chance(0.5) {
        config.watermarks(500, 2000).hard_limit(200_000);
    }
    if rng.chance(0.3) {
        config.hard_limit(1 << 20).max_calls(3).max_requests(2);
    }
    if rng.chance(0.3) {
        config.heartbeat(Duration::from_secs(1)).idle_timeout(Duration::from_secs(3));
    }
    if rng.chance(0.3) {
        config.offline_queue(rng.below(3000), Duration::from_secs(1));
    }
    config
}

fn run(seed: u64, world: &SimWorld) {
    let mut rng = SimRng::new(seed ^ 0x5EED);
    let names = Any::NAMES;
    let plan = Plan {
        protocol: names[rng.below(names.len())].parse().unwrap(),
        has_calls: rng.chance(0.7),
        rude: rng.below(4),
        clients: 1 + u8::try_from(rng.below(4)).unwrap(),
        rounds: 20 + rng.below(60),
        largest: if rng.chance(0.1) { 100_000 } else { 5000 },
    };
    let ledger = SharedLedger::default();
    ledger.borrow_mut().has_only_pushes = !plan.has_calls;
    let mut fleet = Fleet::new(world.clone());
    let builder = |rng: &mut SimRng| {
        let builder = ReactorBuilder::new(plan.protocol).config(config(rng)).seed(rng.next());
        // Where kinds tell replies from requests both sides may use the same ids.
        let is_near_end = plan.protocol.name() == "native" && rng.chance(0.2);
        if is_near_end { builder.first_call(u64::MAX - 3) } else { builder }
    };
    for number in 0..=plan.clients {
        let talker = Talker {
            node: u64::from(number),
            world: world.clone(),
            ledger: ledger.clone(),
            rng: SimRng::new(rng.next()),
            plan: plan.clone(),
            up: HashMap::new(),
            ends: HashMap::new(),
            later: Vec::new(),
            last_news: HashMap::new(),
            news: 0,
        };
        fleet.add(number + 1, builder(&mut rng), talker);
    }
    let server = ([10, 0, 0, 1], 7001).into();
    let _ = listen(&mut fleet, server);
    world.add_name("server", vec![[10, 0, 0, 1].into()]);
    let mut conns = Vec::new();
    for client in 1..=usize::from(plan.clients) {
        let engine = &mut fleet.nodes[client].engine;
        let conn = if rng.chance(0.5) {
            engine.context().connect("server:7001")
        } else {
            engine.context().connect(server)
        };
        conns.push((client, conn.unwrap()));
    }
    for _ in 0..plan.rounds {
        let time = rng.duration(&(Duration::ZERO..=Duration::from_secs(2)));
        fleet.run_for(time);
        let (client, conn) = conns[rng.below(conns.len())];
        outside(&mut rng, &fleet, client, conn, &ledger, &plan);
    }
    // The network recovers, and whoever was not closed for good comes back.
    world.calm();
    fleet.run_for(Duration::from_secs(60));
    let alive = |fleet: &Fleet<Talker>| {
        conns.iter().all(|(client, conn)| {
            let handle = fleet.handle(*client);
            !handle.is_open(*conn) || handle.is_up(*conn)
        })
    };
    assert!(
        fleet.nodes[0].engine.state.listeners.is_empty()
            || fleet.run_until(Duration::from_secs(600), |fleet| alive(fleet)),
        "a client did not come back"
    );
    assert!(fleet.stop(), "stopping took too long");
    for node in &mut fleet.nodes {
        node.engine.handler.later.clear();
    }
    fleet.assert_empty();
    ledger.borrow().settle();
}

/// Binds the server, through the errors that the seed may have planned for that.
fn listen(fleet: &mut Fleet<Talker>, addr: SocketAddr) -> Result<(), crate::Error> {
    for _ in 0..100 {
        match fleet.nodes[0].engine.context().listen(addr) {
            Ok(_) => return Ok(()),
            Err(_) => fleet.run_for(Duration::from_millis(100)),
        }
        fleet.world.advance(Duration::from_millis(100));
    }
    fleet.nodes[0].engine.context().listen(addr).map(|_| ())
}

/// What another thread might do.
fn outside(
    rng: &mut SimRng,
    fleet: &Fleet<Talker>,
    client: usize,
    conn: ConnId,
    ledger: &SharedLedger,
    plan: &Plan,
) {
    let handle: Handle<Any> = fleet.handle(client);
    let talker = &fleet.nodes[client].engine.handler;
    for _ in 0..rng.below(8) {
        let number = ledger.borrow().next_number(talker.node, conn);
        let mut body = vec![PUSH];
        body.extend_from_slice(&talker.node.to_be_bytes());
        body.extend_from_slice(&conn.as_u64().to_be_bytes());
        body.extend_from_slice(&number.to_be_bytes());
        body.resize(body.len() + rng.below(300), (number % 251) as u8);
        if handle.send(conn, Tagged(3, body)).is_ok() {
            ledger.borrow_mut().accepted(talker.node, conn);
        }
    }
    if plan.has_calls && rng.chance(0.2) {
        // Dropped at once, or later with the rest: cancelled either way.
        drop(handle.call_async(conn, vec![NEWS; 0], Duration::from_secs(1)));
    }
    if rng.below(100) < plan.rude {
        match rng.below(3) {
            0 => handle.close(conn),
            1 => handle.abort(conn),
            _ => handle.drain(conn),
        }
    }
}

/// Runs a seed; a failure names it.
fn run_seed(seed: u64) -> u64 {
    let world = SimWorld::with_faults(seed);
    let is_replay = env::var("LONGHAUL_SEED").is_ok();
    world.keep_trace(is_replay);
    let result = catch_unwind(AssertUnwindSafe(|| run(seed, &world)));
    if let Err(panic) = result {
        if is_replay {
            for line in world.trace() {
                eprintln!("{line}");
            }
        }
        eprintln!(
            "seed {seed} failed; LONGHAUL_SEED={seed} cargo test --lib conversation replays it"
        );
        resume_unwind(panic);
    }
    world.trace_hash()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Planned panics are not printed, and neither is a message for each.
fn hush() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref::<&str>() != Some(&"planned") {
                print(panic);
            }
        }));
    });
}

#[test]
fn every_message_and_call_is_accounted_for_over_thousands_of_seeds() {
    hush();
    if let Some(seed) = number("LONGHAUL_SEED") {
        run_seed(seed);
        return;
    }
    let count = number("LONGHAUL_SEEDS").unwrap_or(3000);
    // Most seeds are always the same, one in sixteen is new each time.
    let fixed = count - count / 16;
    let fresh = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ()) >> 16;
    eprintln!("{count} seeds: 0 to {fixed}, and {fresh} on");
    let threads = thread::available_parallelism().map_or(2, |count| count.get() as u64);
    thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for seed in (first..count).step_by(usize::try_from(threads).unwrap()) {
                    run_seed(if seed < fixed { seed } else { fresh + seed });
                }
            });
        }
    });
}

#[test]
fn same_seed_gives_the_same_trace() {
    hush();
    for seed in 0..20 {
        assert_eq!(run_seed(seed), run_seed(seed), "seed {seed}");
    }
    assert_ne!(run_seed(1), run_seed(2));
}
