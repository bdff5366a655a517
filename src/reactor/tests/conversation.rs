//! Random conversations over random faults, thousands of seeds of them.
//!
//! Clients and a server send, call, answer now or later, broadcast, close, abort, pause and panic,
//! as the seed has it; the ledger knows what must have come of each.

use std::{
    env,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{
    fleet::Fleet,
    ledger::{Ledger, SharedLedger},
    plants::{Plant, Spoken},
    talker::{NEWS, PUSH, Plan, Talker, body},
    verdicts::{Check, PLANNED, Verdict, Verdicts},
};
use crate::{
    Config, ConnId, Handle, ReactorBuilder, Reconnect, Tagged,
    protocol::{Any, Protocol as _},
    reactor::net::sim::{SimRng, SimWorld},
};

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

const SERVER: &str = "10.0.0.1:7001";

/// Runs the conversation of a seed. What callbacks find goes to the verdicts; what is found outside
/// of them, too, or panics.
fn run(seed: u64, world: &SimWorld, verdicts: &Verdicts, plant: Option<Plant>) {
    let mut rng = SimRng::new(seed ^ 0x5EED);
    let names = Any::NAMES;
    let plan = Arc::new(Plan {
        protocol: names[rng.below(names.len())].parse().unwrap(),
        has_calls: rng.chance(0.7),
        rude: rng.below(4),
        clients: 1 + u8::try_from(rng.below(4)).unwrap(),
        rounds: 20 + rng.below(60),
        largest: if rng.chance(0.1) { 100_000 } else { 5000 },
        plant,
    });
    let ledger = SharedLedger::new(Ledger::new(verdicts.clone()).into());
    ledger.borrow_mut().has_only_pushes = !plan.has_calls;
    let mut fleet = Fleet::new(world.clone());
    fleet.verdicts = verdicts.clone();
    let builder = |rng: &mut SimRng| {
        let spoken = Spoken { any: plan.protocol, plant };
        let builder = ReactorBuilder::new(spoken).config(config(rng)).seed(rng.next());
        // Where kinds tell replies from requests both sides may use the same ids.
        let is_near_end = plan.protocol.name() == "native" && rng.chance(0.2);
        if is_near_end { builder.first_call(u64::MAX - 3) } else { builder }
    };
    for number in 0..=plan.clients {
        let talker = Talker::new(
            u64::from(number),
            world.clone(),
            verdicts.clone(),
            ledger.clone(),
            SimRng::new(rng.next()),
            plan.clone(),
        );
        fleet.add(number + 1, builder(&mut rng), talker);
    }
    let server = SERVER.parse().unwrap();
    let _ = listen(&mut fleet, server);
    if plant == Some(Plant::WritesLess) {
        let mut faults = world.faults();
        faults.lost_by_write = 0.05;
        world.set_faults(faults);
    }
    world.add_name("server", vec![server.ip()]);
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
    if plant == Some(Plant::NeverRecovers) {
        world.black_hole(server.ip());
    }
    fleet.run_for(Duration::from_secs(60));
    let alive = |fleet: &Fleet<Talker>| {
        conns.iter().all(|(client, conn)| {
            let handle = fleet.handle(*client);
            !handle.is_open(*conn) || handle.is_up(*conn)
        })
    };
    let is_back = fleet.nodes[0].engine.state.listeners.is_empty()
        || fleet.run_until(Duration::from_secs(600), |fleet| alive(fleet));
    verdicts.check(Check::ComesBack, is_back, || "a client did not come back".into());
    let is_stopped = fleet.stop();
    verdicts.check(Check::Stops, is_stopped, || "stopping took too long".into());
    for node in &mut fleet.nodes {
        node.engine.handler.later.clear();
    }
    fleet.check_empty();
    ledger.borrow().settle();
    fleet.judge();
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
    let handle: Handle<Spoken> = fleet.handle(client);
    let talker = &fleet.nodes[client].engine.handler;
    for _ in 0..rng.below(8) {
        let number = ledger.borrow().next_number(talker.node, conn);
        let body = body(PUSH, (talker.node, conn), number, rng.below(300));
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
    run_seed(seed, None).unwrap_or_else(|Failure { verdict, panic }| {
        eprintln!(
            "seed {seed} failed; LONGHAUL_SEED={seed} cargo test --lib conversation replays it"
        );
        if let Some(Verdict { check, text }) = verdict {
            eprintln!("{check:?}: {text}");
        }
        resume_unwind(panic);
    })
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
    thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for seed in (first..count).step_by(usize::try_from(threads).unwrap()) {
                    pass_seed(if seed < fixed { seed } else { fresh + seed });
                }
            });
        }
    });
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
