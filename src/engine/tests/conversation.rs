//! Random conversations over random faults, thousands of seeds of them.
//!
//! Clients and a server send, call, cancel, answer now or later, broadcast, close, abort, pause and
//! panic, in two formats at a time, as the seed has it; the ledger knows what must have come of each.

use std::{
    env,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{self, Poll, Waker},
    thread,
    time::Duration,
};

use super::{
    fleet::Fleet,
    ledger::{Ledger, SharedLedger},
    plants::{Plant, Spoken},
    talker::{FOREIGN, NEWS, PORTS, PUSH, Parsed, Plan, REQUEST, Talker, body},
    verdicts::{Check, PLANNED, Verdict, Verdicts},
};
use crate::{
    Audience, Config, ConnId, PendingCall, ReactorBuilder, Reconnect, SendError, Tagged,
    layer::{LayerMaker, records::Records},
    net::{
        BroughtListener, BroughtStream, ListenOptions, StreamOptions,
        sim::{SimRng, SimStream, SimWorld},
        sockets::Sockets,
    },
    protocol::{AnyProtocol, Protocol as _},
    table::{planted::Planted, stopping::StopPhase},
};

fn config(rng: &mut SimRng, layer: Option<&LayerMaker>) -> Config {
    let first = rng.duration(&(Duration::from_millis(1)..=Duration::from_secs(1)));
    let reconnect = Reconnect::exponential(first, Duration::from_secs(3));
    let mut config = Config::new().reconnect(reconnect).max_body(1 << 20);
    config.layer = layer.cloned();
    if rng.chance(0.5) {
        config = config.watermarks(500, 2000).hard_limit(200_000);
    }
    if rng.chance(0.3) {
        config = config.hard_limit(1 << 20).max_calls(3).max_requests(2);
    }
    if rng.chance(0.3) {
        config = config.heartbeat(Duration::from_secs(1)).idle_timeout(Duration::from_secs(3));
    }
    if rng.chance(0.3) {
        config = config.write_timeout(Duration::from_secs(1 + rng.below(3) as u64));
    }
    if rng.chance(0.3) {
        config = config.offline_queue(rng.below(3000), Duration::from_secs(1));
    }
    config
}

const SERVER: [u8; 4] = [10, 0, 0, 1];

/// The options of sockets that the application makes by itself.
const STREAM: StreamOptions = StreamOptions {
    nodelay: true,
    keepalive: None,
    user_timeout: None,
    send_buffer: None,
    receive_buffer: None,
};

const LISTEN: ListenOptions =
    ListenOptions { backlog: 16, reuse_address: true, only_v6: false, stream: STREAM };

impl Plan {
    fn draw(rng: &mut SimRng, world: &SimWorld, plant: Option<Plant>) -> Self {
        let names = AnyProtocol::NAMES;
        let first = names[rng.below(names.len())].parse().unwrap();
        let second =
            if rng.chance(0.4) { names[rng.below(names.len())].parse().unwrap() } else { first };
        let faults = world.faults();
        let has_calls = rng.chance(0.7);
        let mut layer = rng.chance(0.25).then(|| Records::draw(rng));
        if let Some(Plant::InLayer(bug)) = plant {
            let records = layer.unwrap_or_else(|| Records::draw(rng));
            layer = Some(Records { bug: Some(bug), ..records });
        }
        Self {
            layer,
            protocols: [first, second],
            has_calls,
            rude: rng.below(4),
            panics: if rng.chance(0.3) { 0.02 * rng.fraction() } else { 0.0 },
            has_bursts: has_calls && rng.chance(0.05),
            is_plain_speaking: faults.late_event + faults.would_block + faults.partial_write == 0.0,
            clients: 1 + u8::try_from(rng.below(4)).unwrap(),
            rounds: 20 + rng.below(60),
            largest: if rng.chance(0.1) { 100_000 } else { 5000 },
            plant,
        }
    }

    fn is_mixed(&self) -> bool {
        self.protocols[0] != self.protocols[1]
    }

    fn spoken(&self, port: usize) -> Spoken {
        Spoken { any: self.protocols[port], plant: self.plant }
    }
}

/// A conversation, and what a test does to it from outside of the reactors.
struct Outside {
    rng: SimRng,
    fleet: Fleet<Talker>,
    verdicts: Verdicts,
    ledger: SharedLedger,
    plan: Arc<Plan>,
    configs: Vec<Config>,
    /// What was dialled and adopted, by node.
    conns: Vec<(usize, ConnId)>,
    /// Calls of other threads.
    pending: Vec<(usize, ConnId, u64, PendingCall<Spoken>)>,
    /// Streams that the application connects, to hand them over.
    streams: Vec<(usize, SimStream)>,
    news: u64,
}

/// Runs the conversation of a seed. What callbacks find goes to the verdicts; what is found outside
/// of them, too, or panics.
fn run(seed: u64, world: &SimWorld, verdicts: &Verdicts, plant: Option<Plant>) {
    let _planted = Planted::new(match plant {
        Some(Plant::InReactor(bug)) => Some(bug),
        _ => None,
    });
    let mut rng = SimRng::new(seed ^ 0x5EED);
    let plan = Arc::new(Plan::draw(&mut rng, world, plant));
    let ledger = SharedLedger::new(Ledger::new(verdicts.clone()).into());
    ledger.borrow_mut().has_only_pushes = !plan.has_calls;
    let mut fleet = Fleet::new(world.clone());
    fleet.verdicts = verdicts.clone();
    let mut configs = Vec::new();
    let layer = plan.layer.map(Records::maker);
    for number in 0..=plan.clients {
        let talker = Talker::new(
            u64::from(number),
            world.clone(),
            verdicts.clone(),
            ledger.clone(),
            SimRng::new(rng.next()),
            plan.clone(),
        );
        let config = config(&mut rng, layer.as_ref());
        let mut builder =
            ReactorBuilder::new(plan.spoken(0)).config(config.clone()).seed(rng.next());
        // Where kinds tell replies from requests both sides may use the same ids.
        let is_native = |any: &AnyProtocol| any.name() == "native";
        if plan.protocols.iter().all(is_native) && rng.chance(0.2) {
            builder = builder.first_call(u64::MAX - 3);
        }
        fleet.add(number + 1, builder, talker);
        configs.push(config);
    }
    if plant == Some(Plant::WritesLess) {
        let mut faults = world.faults();
        faults.lost_by_write = 0.05;
        world.set_faults(faults);
    }
    let mut outside = Outside {
        rng,
        fleet,
        verdicts: verdicts.clone(),
        ledger,
        plan: plan.clone(),
        configs,
        conns: Vec::new(),
        pending: Vec::new(),
        streams: Vec::new(),
        news: 0,
    };
    outside.begin();
    for _ in 0..plan.rounds {
        let time = outside.rng.duration(&(Duration::ZERO..=Duration::from_secs(2)));
        outside.fleet.run_for(time);
        outside.act();
    }
    outside.end();
}

impl Outside {
    /// Listens at both ports, names the server, and dials.
    fn begin(&mut self) {
        let first = self.rng.below(2);
        for port in [first, 1 - first] {
            for _ in 0..100 {
                if self.listen(port) {
                    break;
                }
                self.fleet.run_for(Duration::from_millis(100));
                self.fleet.world.advance(Duration::from_millis(100));
            }
        }
        self.name_server();
        for client in 1..=usize::from(self.plan.clients) {
            self.connect(client);
        }
    }

    fn connect(&mut self, client: usize) {
        let port = self.rng.below(2);
        let host = if self.rng.chance(0.5) { "server" } else { "10.0.0.1" };
        let target = format!("{host}:{}", PORTS[port]);
        let (spoken, config) = (self.plan.spoken(port), self.configs[client].clone());
        let is_running = self.is_running(client);
        let mut cx = self.fleet.nodes[client].engine.context();
        let conn = if self.plan.is_mixed() && port == 1 {
            cx.connect_with(target, &spoken, &config)
        } else {
            cx.connect(target)
        };
        self.verdicts.check(Check::RefusesNew, conn.is_ok() == is_running, || format!("{conn:?}"));
        if let Ok(conn) = conn {
            self.conns.push((client, conn));
        }
    }

    fn is_running(&mut self, node: usize) -> bool {
        let is_running = self.fleet.nodes[node].engine.state.stopping.phase() == StopPhase::Running;
        let is_planted = self.plan.plant == Some(Plant::TakesRunningForStopping);
        is_running && !(is_planted && self.rng.chance(0.3))
    }

    /// Tries to listen at a port; false where a fault prevented that.
    fn listen(&mut self, port: usize) -> bool {
        let addr = SocketAddr::from((SERVER, PORTS[port]));
        let engine = &mut self.fleet.nodes[0].engine;
        if engine.state.listeners.iter().any(|listener| listener.addr == addr) {
            return true;
        }
        let config = &self.configs[0];
        let is_planted = self.plan.plant == Some(Plant::ListensInAnother);
        let own = if is_planted { 1 - port } else { port };
        let spoken = self.plan.spoken(own);
        if self.rng.chance(0.2) {
            let Ok(listener) = engine.sockets.net.bind(addr, &LISTEN) else { return false };
            let adopt = |sockets: &mut dyn Sockets, id, options: &ListenOptions| {
                sockets.adopt_listener(id, BroughtListener::Simulated(listener), options)
            };
            return engine.context().desk().open_listener(&spoken, config, adopt).is_ok();
        }
        if self.plan.is_mixed() && port == 1 {
            engine.context().listen_with(addr, &spoken, config).is_ok()
        } else {
            engine.context().listen(addr).is_ok()
        }
    }

    /// The server's name leads to it, and before that perhaps to where nobody answers.
    fn name_server(&mut self) {
        let world = &self.fleet.world;
        let mut ips = Vec::new();
        if self.rng.chance(0.5) {
            let (hole, unrouted) = ([10, 9, 9, 8], [10, 9, 9, 9]);
            world.black_hole(hole);
            world.unroute(unrouted);
            // A host that refuses, one that swallows, no way as found at once and as found later.
            let mut others = [[10, 0, 0, 2], hole, unrouted, [10, 9, 9, 7]];
            self.rng.shuffle(&mut others);
            ips.extend(others.into_iter().take(self.rng.below(4)));
        }
        ips.push(SERVER);
        world.add_name("server", ips.into_iter().map(Into::into).collect());
    }

    // ---- What another thread, or the application itself, might do.

    fn act(&mut self) {
        let (client, conn) = self.conns[self.rng.below(self.conns.len())];
        self.send(client, conn);
        if self.plan.has_calls && self.rng.chance(0.3) {
            self.call(client, conn);
        }
        self.tend_calls();
        if self.rng.chance(0.1) {
            self.broadcast();
        }
        if self.rng.below(100) < self.plan.rude {
            let handle = self.fleet.handle(client);
            self.ledger.borrow_mut().end(client as u64, conn);
            match self.rng.below(3) {
                0 => handle.close(conn),
                1 => handle.abort(conn),
                _ => handle.drain(conn),
            }
        }
        if self.rng.chance(0.02) {
            let node = self.rng.below(self.fleet.nodes.len());
            let longest = if self.rng.chance(0.5) { 100 } else { 90_000 };
            let range = Duration::from_millis(1)..=Duration::from_millis(longest);
            let time = self.rng.duration(&range);
            self.fleet.send_away(node, time);
        }
        if self.rng.chance(0.03) {
            self.dial();
        }
        if self.rng.chance(0.02) {
            self.connect(client);
        }
        self.hand_over();
        self.use_foreign_id(client, conn);
    }

    fn send(&mut self, client: usize, conn: ConnId) {
        let handle = self.fleet.handle(client);
        let node = client as u64;
        for _ in 0..self.rng.below(8) {
            let number = self.ledger.borrow().next_number(node, conn);
            let body = body(PUSH, (node, conn), number, self.rng.below(300));
            if handle.send(conn, Tagged(3, body)).is_ok() {
                self.ledger.borrow_mut().accepted(node, conn);
            }
        }
    }

    fn call(&mut self, client: usize, conn: ConnId) {
        let number = self.ledger.borrow_mut().start_call();
        let body = body(REQUEST, (client as u64, conn), number, self.rng.below(300));
        let timeout = self.rng.duration(&(Duration::ZERO..=Duration::from_secs(20)));
        let call = self.fleet.handle(client).call_async(conn, body, timeout);
        self.pending.push((client, conn, number, call));
    }

    /// Looks at the calls of other threads; drops one now and then, or cancels it by its id.
    fn tend_calls(&mut self) {
        for (client, conn, number, call) in std::mem::take(&mut self.pending) {
            if self.rng.chance(0.1) {
                // Dropped, and so cancelled.
                self.ledger.borrow_mut().abandon_call(number);
                continue;
            }
            if self.rng.chance(0.05)
                && let Some(id) = call.id()
                && let Some(mut conn) = self.fleet.nodes[client].engine.context().conn(conn)
            {
                self.ledger.borrow_mut().cancel_call(number);
                conn.cancel_call(id);
            }
            if let Some(call) = self.look_at(number, call) {
                self.pending.push((client, conn, number, call));
            }
        }
    }

    /// Notes how a call has ended, or gives it back.
    fn look_at(&self, number: u64, mut call: PendingCall<Spoken>) -> Option<PendingCall<Spoken>> {
        let mut context = task::Context::from_waker(Waker::noop());
        let Poll::Ready(outcome) = Pin::new(&mut call).poll(&mut context) else {
            return Some(call);
        };
        let mut ledger = self.ledger.borrow_mut();
        match outcome {
            Err(error) => ledger.end_call(number, Err(&error)),
            Ok(reply) => match Parsed::of(&reply) {
                Some(parsed) => ledger.end_call(number, Ok(parsed.number)),
                None => self.verdicts.note(Check::Whole, format!("a torn reply: {reply:?}")),
            },
        }
        None
    }

    /// A broadcast of which the filter counts the receivers, and perhaps panics on the way.
    fn broadcast(&mut self) {
        self.news += 1;
        let node = self.rng.below(self.fleet.nodes.len());
        let conn = ConnId::from_u64(0);
        let body = body(NEWS, (100 + node as u64, conn), self.news, self.rng.below(300));
        let panics = self.rng.chance(self.plan.panics * 4.0);
        let (planner, receivers) = (self.verdicts.planner(), Arc::new(AtomicU64::new(0)));
        let counted = receivers.clone();
        let filter = Audience::filter(move |_| {
            if panics {
                planner.fetch_add(1, Ordering::Relaxed);
            }
            assert!(!panics, "{PLANNED}");
            counted.fetch_add(1, Ordering::Relaxed);
            true
        });
        if self.fleet.handle(node).broadcast_to(filter, body).is_ok() {
            self.ledger.borrow_mut().counted_broadcast(node as u64, receivers);
        }
    }

    /// The application connects by itself.
    fn dial(&mut self) {
        let client = 1 + self.rng.below(usize::from(self.plan.clients));
        let addr = (SERVER, PORTS[self.rng.below(2)]).into();
        if let Ok(stream) = self.fleet.nodes[client].engine.sockets.net.dial(addr, &STREAM) {
            self.streams.push((client, stream));
        }
    }

    /// Streams that are up are handed to their reactors; the others are closed.
    fn hand_over(&mut self) {
        for (client, stream) in std::mem::take(&mut self.streams) {
            let is_running = self.is_running(client);
            let engine = &mut self.fleet.nodes[client].engine;
            match stream.is_up() {
                None => self.streams.push((client, stream)),
                Some(true) if !engine.is_stopped() => {
                    let port = usize::from(stream.peer().port() == PORTS[1]);
                    let spoken = self.plan.spoken(port);
                    let stream = BroughtStream::Simulated(stream);
                    let config = &self.configs[client];
                    if let Ok(conn) = engine.context().adopt_brought(stream, &spoken, config) {
                        let id = || format!("{conn} was adopted");
                        self.verdicts.check(Check::RefusesNew, is_running, id);
                        self.conns.push((client, conn));
                    }
                }
                _ => stream.close(),
            }
        }
    }

    /// An id of one reactor names nothing in another.
    fn use_foreign_id(&mut self, client: usize, conn: ConnId) {
        let is_planted = self.plan.plant == Some(Plant::TakesOwnIdForForeign);
        if self.rng.chance(0.8) {
            return;
        }
        let mut other = self.rng.below(self.fleet.nodes.len());
        if is_planted {
            other = client;
        } else if other == client {
            return;
        }
        let handle = self.fleet.handle(other);
        let foreign = body(FOREIGN, (client as u64, conn), 1, 10);
        let sent = handle.send(conn, foreign.clone());
        let is_refused = matches!(sent, Err(SendError::Closed | SendError::Stopped));
        self.verdicts.check(Check::OwnIds, is_refused, || format!("{conn} to {other}: {sent:?}"));
        let is_found = handle.is_open(conn)
            || handle.is_up(conn)
            || self.fleet.nodes[other].engine.context().conn(conn).is_some();
        self.verdicts.check(Check::OwnIds, !is_found, || format!("{conn} exists in {other}"));
        match self.rng.below(4) {
            0 => handle.close(conn),
            1 => handle.abort(conn),
            2 => handle.drain(conn),
            _ => {
                let call = handle.call_async(conn, foreign, Duration::from_secs(1));
                drop(call);
            }
        }
    }

    /// The network recovers, whoever was not closed for good comes back, and all is accounted for.
    fn end(mut self) {
        let plant = self.plan.plant;
        let world = self.fleet.world.clone();
        world.calm();
        if plant == Some(Plant::NeverRecovers) {
            world.black_hole(SERVER);
        }
        self.fleet.call_back(true);
        for (_, stream) in self.streams.drain(..) {
            stream.close();
        }
        self.fleet.run_for(Duration::from_secs(60));
        // Each at some time: what has nothing to say in a format without pings comes and goes.
        let mut missing = self.conns.clone();
        let is_back = self.fleet.run_until(Duration::from_secs(600), |fleet| {
            missing.retain(|(client, conn)| {
                let handle = fleet.handle(*client);
                handle.is_open(*conn) && !handle.is_up(*conn)
            });
            // Unless there is nothing to come back to: a callback may stop the server even now.
            missing.is_empty() || fleet.nodes[0].engine.state.listeners.len() < PORTS.len()
        });
        self.verdicts.check(Check::ComesBack, is_back, || "a client did not come back".into());
        if plant == Some(Plant::NeverComesBack) {
            self.fleet.send_away(0, Duration::from_secs(100));
        }
        let is_stopped = self.fleet.stop();
        self.verdicts.check(Check::Stops, is_stopped, || "stopping took too long".into());
        for node in &mut self.fleet.nodes {
            node.engine.handler.later.clear();
        }
        for (_, _, number, call) in std::mem::take(&mut self.pending) {
            let is_over = self.look_at(number, call).is_none();
            self.verdicts.check(Check::Ends, is_over, || format!("call {number} still waits"));
        }
        self.fleet.check_empty();
        self.ledger.borrow().settle();
        self.fleet.judge();
    }
}

/// How a run failed: the verdict, if it is one, and the panic that it ended with.
struct Failure {
    verdict: Option<Verdict>,
    panic: Box<dyn std::any::Any + Send>,
}

/// Runs a seed and returns the hash of its trace.
fn run_seed(seed: u64, plant: Option<Plant>) -> Result<u64, Failure> {
    let world = SimWorld::with_faults(seed);
    let verdicts = Verdicts::default();
    let is_replay = plant.is_none() && env::var("LONGHAUL_SEED").is_ok();
    world.keep_trace(is_replay);
    let result = catch_unwind(AssertUnwindSafe(|| run(seed, &world, &verdicts, plant)));
    if is_replay && result.is_err() {
        for line in world.trace() {
            eprintln!("{line}");
        }
    }
    match result {
        Ok(()) => Ok(world.trace_hash()),
        Err(panic) => Err(Failure { verdict: verdicts.first(), panic }),
    }
}

/// Runs a seed that must not fail; a failure names it.
fn pass_seed(seed: u64) -> u64 {
    run_seed(seed, None).unwrap_or_else(|failure| {
        report(seed, &failure);
        resume_unwind(failure.panic);
    })
}

fn report(seed: u64, failure: &Failure) {
    eprintln!("seed {seed} failed; LONGHAUL_SEED={seed} cargo test --lib conversation replays it");
    if let Some(Verdict { check, text }) = &failure.verdict {
        eprintln!("{check:?}: {text}");
    }
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
            let text = panic.payload().downcast_ref::<&str>();
            let text = text
                .copied()
                .or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str));
            if text != Some(PLANNED) {
                print(panic);
            }
        }));
    });
}

#[test]
fn every_message_and_call_is_accounted_for_over_thousands_of_seeds() {
    hush();
    if let Some(seed) = number("LONGHAUL_SEED") {
        pass_seed(seed);
        return;
    }
    let count = number("LONGHAUL_SEEDS").unwrap_or(3000);
    // Most seeds are always the same, one in sixteen is new each time.
    let fixed = count - count / 16;
    let fresh = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ()) >> 16;
    eprintln!("{count} seeds: 0 to {fixed}, and {fresh} on");
    let threads = thread::available_parallelism().map_or(2, |count| count.get() as u64);
    // All are run, so that one look shows how common a failure is and whether there are others.
    let failures = AtomicU64::new(0);
    thread::scope(|scope| {
        for first in 0..threads {
            let failures = &failures;
            scope.spawn(move || {
                for seed in (first..count).step_by(usize::try_from(threads).unwrap()) {
                    let seed = if seed < fixed { seed } else { fresh + seed };
                    if let Err(failure) = run_seed(seed, None) {
                        failures.fetch_add(1, Ordering::Relaxed);
                        report(seed, &failure);
                    }
                }
            });
        }
    });
    assert_eq!(failures.into_inner(), 0, "seeds failed");
}

#[test]
fn same_seed_gives_the_same_trace() {
    hush();
    for seed in 0..20 {
        assert_eq!(pass_seed(seed), pass_seed(seed), "seed {seed}");
    }
    assert_ne!(pass_seed(1), pass_seed(2));
}

#[test]
fn run_that_draws_from_elsewhere_gives_another_trace() {
    hush();
    let run = |seed| run_seed(seed, Some(Plant::DrawsFromOutside)).ok();
    assert!((0..20).any(|seed| run(seed) != run(seed)));
}

/// Each check is not blind: it finds the bug that is planted for it.
#[test]
fn every_check_finds_its_planted_bug() {
    hush();
    let missed: Vec<_> = Plant::ALL
        .into_iter()
        .filter_map(|(plant, check, seeds)| {
            let mut others = Vec::new();
            for seed in 0..seeds {
                let Err(failure) = run_seed(seed, Some(plant)) else { continue };
                match failure.verdict {
                    Some(verdict) if verdict.check == check => {
                        eprintln!("{plant:?} was found by {check:?} with seed {seed}");
                        return None;
                    }
                    other => others.push((seed, other)),
                }
            }
            others.truncate(3);
            Some(format!("{plant:?} was not found by {check:?}: {others:?}"))
        })
        .collect();
    assert!(missed.is_empty(), "{missed:#?}");
}
