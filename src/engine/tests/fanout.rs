//! Broadcasts on the simulated network: what a turn does for them, and what each receiver gets.
//!
//! Every message is a number. The numbers that a receiver got are judged after the run.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use super::fleet::Fleet;
use crate::{
    Audience, CloseReason, CloseReport, Config, Conn, ConnId, Context, Handler, Incident, Message,
    ReactorBuilder, Reconnect,
    net::sim::{SimRng, SimWorld},
    protocol::Length,
};

const SERVER: &str = "10.0.0.1:7001";
const SECOND: Duration = Duration::from_secs(1);

/// What all the handlers of a test saw.
#[derive(Default)]
struct Seen {
    /// What the readers got, by their own ids.
    got: BTreeMap<ConnId, Vec<u32>>,
    /// What the server was told that it was not sent, by its ids, in order.
    lost: BTreeMap<ConnId, Vec<u32>>,
    ended: Vec<(ConnId, CloseReason)>,
}

type OnConn = Box<dyn FnMut(&mut Conn<'_, Length>)>;
type OnMessage = Box<dyn FnMut(&mut Conn<'_, Length>, u32)>;

/// A server or a reader.
struct Party {
    seen: Rc<RefCell<Seen>>,
    is_server: bool,
    on_message: OnMessage,
    on_connect: OnConn,
}

impl Party {
    fn server(seen: &Rc<RefCell<Seen>>) -> Self {
        Self {
            seen: seen.clone(),
            is_server: true,
            on_message: Box::new(|_, _| {}),
            on_connect: Box::new(|_| {}),
        }
    }

    fn reader(seen: &Rc<RefCell<Seen>>) -> Self {
        Self { is_server: false, ..Self::server(seen) }
    }
}

fn number(body: &[u8]) -> u32 {
    body.first_chunk().copied().map_or(u32::MAX, u32::from_be_bytes)
}

impl Handler for Party {
    type Protocol = Length;

    fn on_connect(&mut self, conn: &mut Conn<'_, Length>) {
        (self.on_connect)(conn);
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Length>, msg: Message<'_, Length>) {
        let number = number(msg.body());
        if !self.is_server {
            self.seen.borrow_mut().got.entry(conn.id()).or_default().push(number);
        }
        (self.on_message)(conn, number);
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Length>, report: &CloseReport) {
        if self.is_server {
            let mut seen = self.seen.borrow_mut();
            seen.ended.push((conn.id(), report.reason.clone()));
            let unsent = conn.take_unsent();
            seen.lost.entry(conn.id()).or_default().extend(unsent.iter().map(|one| number(&one.1)));
        }
    }

    fn on_error(&mut self, cx: &mut Context<'_, Length>, incident: &Incident) {
        if let Incident::Undelivered { conn, .. } = incident {
            let lost = cx.take_undelivered();
            let mut seen = self.seen.borrow_mut();
            seen.lost.entry(*conn).or_default().extend(lost.iter().map(|one| number(&one.1)));
        }
    }
}

/// A server, and a node of so many readers of it.
fn hall(
    readers: usize,
    server: Party,
    reader: Party,
    config: &Config,
) -> (Fleet<Party>, Vec<ConnId>) {
    let mut fleet = Fleet::new(SimWorld::new(1));
    let builder = || ReactorBuilder::new(Length::default()).config(config.clone());
    fleet.add(1, builder().seed(1), server);
    fleet.add(2, builder().seed(2), reader);
    fleet.is_checked = readers < 50;
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let mut cx = fleet.nodes[1].engine.context();
    let ids = (0..readers).map(|_| cx.connect(SERVER).unwrap()).collect();
    fleet.run_for(SECOND);
    assert_eq!(fleet.nodes[0].engine.context().connections().count(), readers);
    (fleet, ids)
}

fn deliveries(fleet: &Fleet<Party>) -> usize {
    fleet.nodes[0].engine.state.fanouts.deliveries
}

/// Runs until this holds. A turn takes a while, or the network would stand still until there is no work.
fn run_until(fleet: &mut Fleet<Party>, mut holds: impl FnMut(&mut Fleet<Party>) -> bool) -> bool {
    fleet.run_until(60 * SECOND, |fleet| {
        fleet.world.advance(Duration::from_micros(20));
        holds(fleet)
    })
}

/// Runs until so many deliveries were made, checks that no turn makes more than `budget`, and says how
/// many there were when this first held.
fn run_within(
    fleet: &mut Fleet<Party>,
    total: usize,
    budget: usize,
    mut holds: impl FnMut() -> bool,
) -> Option<usize> {
    let (mut before, mut most, mut held_at) = (deliveries(fleet), 0, None);
    let is_done = run_until(fleet, |fleet| {
        let now = deliveries(fleet);
        most = most.max(now - before);
        before = now;
        if held_at.is_none() && holds() {
            held_at = Some(now);
        }
        now >= total
    });
    assert!(is_done, "{before} of {total}");
    assert!(most <= budget, "{most} deliveries in a turn");
    fleet.run_for(SECOND);
    assert!(fleet.nodes[0].engine.state.fanouts.is_empty());
    assert_eq!(deliveries(fleet), total);
    held_at.or_else(|| holds().then_some(total))
}

const READERS: usize = 400;
const BURST: u32 = 500;
const TOTAL: usize = READERS * BURST as usize;
const BUDGET: usize = 256;

fn assert_all_got(seen: &Seen, readers: &[ConnId], expected: &[u32]) {
    for id in readers {
        assert_eq!(seen.got.get(id).map_or(&[][..], |got| got), expected, "{id}");
    }
}

/// One more node with a connection to the server, and the server's id of it.
fn add_asker(fleet: &mut Fleet<Party>, number: u8, seen: &Rc<RefCell<Seen>>) -> (ConnId, ConnId) {
    let before: BTreeSet<_> = fleet.nodes[0].engine.context().connections().collect();
    let builder = ReactorBuilder::new(Length::default()).seed(3);
    let node = fleet.add(number, builder, Party::reader(seen));
    let asker = fleet.nodes[node].engine.context().connect(SERVER).unwrap();
    fleet.run_for(SECOND);
    let is_new = |id: &ConnId| !before.contains(id);
    let there = fleet.nodes[0].engine.context().connections().find(is_new);
    (asker, there.unwrap())
}

fn body(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn echo(conn: &mut Conn<'_, Length>, number: u32) {
    let _ = conn.send(body(number));
}

#[test]
fn burst_of_commands_is_given_out_within_the_budget_and_others_are_answered() {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let server = Party { on_message: Box::new(echo), ..Party::server(&seen) };
    let (mut fleet, readers) = hall(READERS, server, Party::reader(&seen), &Config::new());
    let (asker, there) = add_asker(&mut fleet, 3, &seen);
    for number in 0..BURST {
        fleet.handle(0).broadcast_to(Audience::AllBut(there), body(number)).unwrap();
    }
    fleet.handle(2).send(asker, body(7)).unwrap();
    let has_answer = || seen.borrow().got.contains_key(&asker);
    let answered_at = run_within(&mut fleet, TOTAL, BUDGET, has_answer).unwrap();
    assert!(answered_at < TOTAL / 2, "answered after {answered_at} deliveries");
    let seen = seen.borrow();
    assert_all_got(&seen, &readers, &(0..BURST).collect::<Vec<_>>());
    assert_eq!(seen.got[&asker], [7]);
    // The mark bounds what is under way: what is over it waits in the mailbox.
    assert_eq!(fleet.nodes[0].engine.state.stats.encoded_broadcasts, u64::from(BURST));
}

#[test]
fn commands_wait_in_the_mailbox_while_many_broadcasts_are_under_way() {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let (mut fleet, readers) =
        hall(READERS, Party::server(&seen), Party::reader(&seen), &Config::new());
    for number in 0..BURST {
        fleet.handle(0).broadcast(body(number)).unwrap();
        if number % 3 == 0 {
            // Of the same thread: it keeps its place.
            fleet
                .handle(0)
                .run(move |cx| _ = cx.broadcast(Audience::All, body(1000 + number)))
                .unwrap();
        }
    }
    let mut longest = 0;
    let total = TOTAL + READERS * (BURST as usize).div_ceil(3);
    assert!(run_until(&mut fleet, |fleet| {
        longest = longest.max(fleet.nodes[0].engine.state.fanouts.len());
        deliveries(fleet) >= total
    }));
    fleet.run_for(SECOND);
    assert_eq!(longest, 64);
    let with_run =
        |number| [number, 1000 + number].into_iter().take(1 + usize::from(number % 3 == 0));
    assert_all_got(&seen.borrow(), &readers, &(0..BURST).flat_map(with_run).collect::<Vec<_>>());
}

#[test]
fn burst_of_one_callback_holds_back_who_caused_it_and_nobody_else() {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut server = Party::server(&seen);
    let but = Rc::new(RefCell::new(None));
    let excepted = but.clone();
    server.on_message = Box::new(move |conn, number| {
        if number == 1 {
            for number in 0..BURST {
                let but = excepted.borrow().unwrap();
                conn.cx().broadcast(Audience::AllBut(but), body(number));
            }
        } else {
            echo(conn, number);
        }
    });
    let (mut fleet, readers) = hall(READERS - 1, server, Party::reader(&seen), &Config::new());
    let (asker, there) = add_asker(&mut fleet, 3, &seen);
    let (causer, _) = add_asker(&mut fleet, 4, &seen);
    but.replace(Some(there));
    fleet.handle(3).send(causer, body(1)).unwrap();
    fleet.handle(3).send(causer, body(8)).unwrap();
    fleet.handle(2).send(asker, body(7)).unwrap();
    let has_answer = || seen.borrow().got.contains_key(&asker);
    let answered_at = run_within(&mut fleet, TOTAL, BUDGET, has_answer).unwrap();
    assert!(answered_at < TOTAL / 2, "answered after {answered_at} deliveries");
    let seen = seen.borrow();
    assert_all_got(&seen, &readers, &(0..BURST).collect::<Vec<_>>());
    assert_eq!(seen.got[&asker], [7]);
    // It is read again when its burst is down to the mark, and then gets what is left with the answer.
    let expected: Vec<_> = (0..BURST).chain([8]).collect();
    assert_eq!(seen.got[&causer], expected);
}

#[test]
fn whoever_causes_broadcasts_is_read_no_faster_than_they_are_given_out() {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut server = Party::server(&seen);
    server.on_message =
        Box::new(|conn, number| _ = conn.cx().broadcast(Audience::All, body(number)));
    let (mut fleet, readers) = hall(20, server, Party::reader(&seen), &Config::new());
    let limits = &mut fleet.nodes[0].engine.state.fanouts.limits;
    (limits.deliveries_per_turn, limits.mark) = (10, 4);
    let mut longest_after = |numbers: std::ops::Range<u32>| {
        let (mut longest, total) = (0, deliveries(&fleet) + 20 * 20 * numbers.len());
        for number in numbers {
            for (reader, id) in (0..).zip(&readers) {
                fleet.handle(1).send(*id, body(100 * reader + number)).unwrap();
            }
        }
        assert!(run_until(&mut fleet, |fleet| {
            longest = longest.max(fleet.nodes[0].engine.state.fanouts.len());
            deliveries(fleet) >= total
        }));
        fleet.run_for(SECOND);
        longest
    };
    // Of those that have caused none so far, each causes one before it has to wait.
    assert!(longest_after(0..1) <= 20);
    assert_eq!(longest_after(1..50), 4);
    let seen = seen.borrow();
    let all = &seen.got[&readers[0]];
    assert_all_got(&seen, &readers, all);
    for reader in 0..20 {
        let of_one: Vec<_> = all.iter().copied().filter(|number| number / 100 == reader).collect();
        assert_eq!(of_one, (100 * reader..100 * reader + 50).collect::<Vec<_>>());
    }
    // Nobody has to wait for the end of another: when the first has ended, all have come far.
    let ends = |reader: u32| all.iter().position(|number| *number == 100 * reader + 49).unwrap();
    let first = (0..20).map(ends).min().unwrap();
    for reader in 0..20 {
        let of_one = all[..first].iter().filter(|number| **number / 100 == reader).count();
        assert!(of_one > 20, "{of_one} of {reader} when the first had ended");
    }
}

/// A long burst is under way, and something else is sent to everybody at once.
fn catch_up_all(send: impl Fn(&mut Fleet<Party>, &[ConnId], &[ConnId])) {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let server = Party { on_message: Box::new(echo), ..Party::server(&seen) };
    let (mut fleet, readers) = hall(READERS, server, Party::reader(&seen), &Config::new());
    let there: Vec<_> = fleet.nodes[0].engine.context().connections().collect();
    for number in 0..BURST {
        fleet.nodes[0].engine.context().broadcast(Audience::All, body(number));
    }
    send(&mut fleet, &readers, &there);
    // A step stops after 4096 of them; the last may take it over that.
    run_within(&mut fleet, TOTAL, 4096 + BURST as usize + BUDGET, || true);
    assert_all_got(&seen.borrow(), &readers, &(0..BURST).chain([7777]).collect::<Vec<_>>());
}

#[test]
fn answers_behind_a_burst_take_no_more_than_a_budget_of_each_turn() {
    catch_up_all(|fleet, readers, _| {
        for id in readers {
            fleet.handle(1).send(*id, body(7777)).unwrap();
        }
    });
}

#[test]
fn commands_behind_a_burst_take_no_more_than_a_budget_of_each_turn() {
    catch_up_all(|fleet, _, there| {
        for id in there {
            fleet.handle(0).send(*id, body(7777)).unwrap();
        }
    });
}

#[test]
fn reader_that_does_not_read_is_cut_and_holds_up_nobody() {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let count = Rc::new(RefCell::new(0));
    let mut reader = Party::reader(&seen);
    // The first one of them does not read.
    reader.on_connect = Box::new(move |conn| {
        if count.replace_with(|count| *count + 1) == 0 {
            conn.pause();
        }
    });
    // The burst is much longer than what may be queued.
    let config = Config::new().watermarks(8 * 1024, 16 * 1024).hard_limit(128 * 1024);
    let (mut fleet, mut readers) = hall(300, Party::server(&seen), reader, &config);
    let padded = |number: u32| [&body(number)[..], &[0; 4096]].concat();
    let mut cx = fleet.nodes[0].engine.context();
    for number in 0..BURST {
        assert_eq!(cx.broadcast(Audience::All, padded(number)), 300);
    }
    let mut most = 0;
    let mut before = 0;
    assert!(run_until(&mut fleet, |fleet| {
        let now = deliveries(fleet);
        most = most.max(now - before);
        before = now;
        fleet.nodes[0].engine.state.fanouts.is_empty()
    }));
    assert!(most <= BUDGET, "{most} deliveries in a turn");
    assert_eq!(deliveries(&fleet), 300 * BURST as usize);
    fleet.run_for(5 * SECOND);
    let seen = seen.borrow();
    assert_eq!(seen.ended.len(), 1, "{:?}", seen.ended);
    let (slow, reason) = &seen.ended[0];
    assert!(matches!(reason, CloseReason::SlowConsumer { .. }), "{reason}");
    readers.remove(0);
    assert_all_got(&seen, &readers, &(0..BURST).collect::<Vec<_>>());
    // What it was not sent is reported, to the last.
    let lost = &seen.lost[slow];
    assert!(lost.len() > 100 && lost.len() < BURST as usize);
    assert_eq!(*lost, (BURST - u32::try_from(lost.len()).unwrap()..BURST).collect::<Vec<_>>());
}

#[test]
fn more_broadcasts_than_there_is_room_for_are_given_out_at_once_the_oldest_first() {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let (mut fleet, readers) = hall(30, Party::server(&seen), Party::reader(&seen), &Config::new());
    let limits = &mut fleet.nodes[0].engine.state.fanouts.limits;
    (limits.deliveries_per_turn, limits.most) = (10, 5);
    let there: Vec<_> = fleet.nodes[0].engine.context().connections().collect();
    for number in 0..50 {
        let before = deliveries(&fleet);
        fleet.nodes[0].engine.context().broadcast(Audience::All, body(number));
        // One broadcast more, one less.
        assert!(deliveries(&fleet) - before <= 30);
        assert!(fleet.nodes[0].engine.state.fanouts.len() <= 5);
        if number == 3 {
            // What is left for one that went is given out, too: as a report.
            fleet.nodes[0].engine.context().conn(there[4]).unwrap().abort();
        }
    }
    fleet.run_for(SECOND);
    let seen = seen.borrow();
    assert_eq!(seen.lost[&there[4]], [0, 1, 2, 3]);
    let whole: Vec<_> = readers.iter().filter(|id| seen.got.contains_key(id)).copied().collect();
    assert_eq!(whole.len(), 29);
    assert_all_got(&seen, &whole, &(0..50).collect::<Vec<_>>());
}

#[test]
fn lost_connection_gets_what_is_left_of_broadcasts_when_it_is_up_again() {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut fleet = Fleet::new(SimWorld::new(1));
    let config = Config::new().reconnect(Reconnect::fixed(SECOND));
    let builder = || ReactorBuilder::new(Length::default()).config(config.clone());
    // Here the one that broadcasts has dialled.
    fleet.add(1, builder().seed(1), Party::server(&seen));
    fleet.add(2, builder().seed(2), Party::reader(&seen));
    fleet.nodes[1].engine.context().listen("10.0.0.2:7001").unwrap();
    let mut cx = fleet.nodes[0].engine.context();
    let ids: Vec<_> = (0..8).map(|_| cx.connect("10.0.0.2:7001").unwrap()).collect();
    fleet.run_for(SECOND);
    fleet.nodes[0].engine.state.fanouts.limits.deliveries_per_turn = 1;
    let mut cx = fleet.nodes[0].engine.context();
    for number in 0..5 {
        assert_eq!(cx.broadcast(Audience::All, body(number)), 8);
    }
    // Lost before anything of it was written.
    let state = &mut fleet.nodes[0].engine.state;
    state.abort(ids[5], CloseReason::PeerClosed);
    state.send(ids[5], None, body(5)).unwrap();
    state.broadcast(Audience::All, 0, body(6).into());
    fleet.run_for(5 * SECOND);
    let seen = seen.borrow();
    let mut got: Vec<_> = seen.got.values().cloned().collect();
    got.sort();
    let mut expected = vec![vec![0, 1, 2, 3, 4, 6]; 7];
    expected.insert(0, vec![0, 1, 2, 3, 4, 5]);
    assert_eq!(got, expected);
}

#[test]
fn connection_that_is_lost_twice_under_one_burst_misses_nothing_of_it() {
    const BURST: u32 = 40;
    const MORE: u32 = 2;
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut fleet = Fleet::new(SimWorld::new(1));
    let config = Config::new().reconnect(Reconnect::fixed(Duration::ZERO));
    let builder = || ReactorBuilder::new(Length::default()).config(config.clone());
    // Here the one that broadcasts has dialled.
    fleet.add(1, builder().seed(1), Party::server(&seen));
    fleet.add(2, builder().seed(2), Party::reader(&seen));
    fleet.nodes[1].engine.context().listen("10.0.0.2:7001").unwrap();
    let mut cx = fleet.nodes[0].engine.context();
    let ids: Vec<_> = (0..8).map(|_| cx.connect("10.0.0.2:7001").unwrap()).collect();
    fleet.run_for(SECOND);
    fleet.nodes[0].engine.state.fanouts.limits.deliveries_per_turn = 1;
    let mut cx = fleet.nodes[0].engine.context();
    for number in 0..BURST {
        assert_eq!(cx.broadcast(Audience::All, body(number)), 8);
    }
    let victim = ids[5];
    for epoch in [2, 3] {
        fleet.nodes[0].engine.state.abort(victim, CloseReason::PeerClosed);
        assert!(run_until(&mut fleet, |fleet| {
            fleet.nodes[0].engine.context().conn(victim).is_some_and(|conn| conn.epoch() == epoch)
        }));
        assert!(!fleet.nodes[0].engine.state.fanouts.is_empty(), "the burst is under way");
        let mut cx = fleet.nodes[0].engine.context();
        assert_eq!(cx.broadcast(Audience::All, body(BURST + epoch - 2)), 8);
    }
    fleet.run_for(5 * SECOND);
    let seen = seen.borrow();
    let reached = seen.got.values().chain(seen.lost.values()).flatten();
    let mut counts = BTreeMap::new();
    reached.for_each(|number| *counts.entry(*number).or_default() += 1);
    assert_eq!(counts, (0..BURST + MORE).map(|number| (number, 8)).collect());
    fleet.nodes[0].engine.check();
}

// ---- against a model ----

/// What each receiver is to get, kept in lists. Who has gone stays in the groups, and is not up.
#[derive(Default)]
struct Model {
    expected: BTreeMap<ConnId, Vec<u32>>,
    groups: [BTreeSet<ConnId>; 3],
}

const GROUPS: [&str; 3] = ["a", "b", "c"];

/// Does random things to a server with few connections and small budgets, and compares what everybody
/// got with the model.
fn run_model(run: u64) {
    let world = SimWorld::new(run);
    let mut rng = world.fork_rng();
    let seen = Rc::new(RefCell::new(Seen::default()));
    // Who it is to the server, is the first that a reader gets.
    let server = Party {
        on_connect: Box::new(|conn| _ = conn.send(body(conn.id().slot()))),
        ..Party::server(&seen)
    };
    let config = Config::new().reconnect(Reconnect::never());
    let mut fleet = Fleet::new(world);
    let builder = || ReactorBuilder::new(Length::default()).config(config.clone());
    fleet.add(1, builder().seed(run), server);
    fleet.add(2, builder().seed(run + 1), Party::reader(&seen));
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let limits = &mut fleet.nodes[0].engine.state.fanouts.limits;
    limits.deliveries_per_turn = 1 + rng.below(6);
    limits.looks_per_turn = 4 + rng.below(30);
    limits.mark = 1 + rng.below(6);
    limits.most = 4 + rng.below(30);
    limits.catch_ups_per_step = 1 + rng.below(10);
    let mut model = Model::default();
    let mut next = 1000;
    for _ in 0..300 {
        let up: Vec<_> = fleet.nodes[0].engine.context().connections().collect();
        for id in &up {
            model.expected.entry(*id).or_insert_with(|| vec![id.slot()]);
        }
        next += 1;
        act(&mut fleet, &mut model, &mut rng, &up, next);
    }
    fleet.run_for(5 * SECOND);
    assert!(fleet.nodes[0].engine.state.fanouts.is_empty());
    for id in fleet.nodes[0].engine.context().connections() {
        model.expected.entry(id).or_insert_with(|| vec![id.slot()]);
    }
    // All that was accepted was given to the system, or reported.
    let expected: usize = model.expected.values().map(Vec::len).sum();
    let stats = fleet.nodes[0].engine.state.stats;
    assert_eq!(expected as u64, stats.messages_out + stats.undelivered, "run {run}");
    let seen = seen.borrow();
    let open: BTreeSet<_> = fleet.nodes[0].engine.context().connections().collect();
    let mut of_open = Vec::new();
    for (id, expected) in &model.expected {
        let lost = seen.lost.get(id).map_or(&[][..], |lost| lost);
        assert!(expected.ends_with(lost), "run {run}: {id} was told {lost:?} of {expected:?}");
        if open.contains(id) {
            assert!(lost.is_empty());
            of_open.push(expected.clone());
        }
    }
    // The others may have lost what was on its way.
    let mut got: Vec<_> = seen.got.values().cloned().collect();
    for expected in &of_open {
        let place = got.iter().position(|got| got == expected);
        let place = place.unwrap_or_else(|| panic!("run {run}: nobody got {expected:?}"));
        got.swap_remove(place);
    }
    for got in &got {
        let is_start = model.expected.values().any(|expected| expected.starts_with(got));
        assert!(is_start, "run {run}: nobody was to get {got:?}");
    }
}

/// One random thing.
fn act(fleet: &mut Fleet<Party>, model: &mut Model, rng: &mut SimRng, up: &[ConnId], number: u32) {
    let one = (!up.is_empty()).then(|| up[rng.below(up.len())]);
    let group = rng.below(3);
    let mut cx = fleet.nodes[0].engine.context();
    match (rng.below(16), one) {
        (0, _) => {
            fleet.nodes[1].engine.context().connect(SERVER).unwrap();
        }
        (1, Some(id)) => {
            let mut conn = cx.conn(id).unwrap();
            match rng.below(4) {
                0 => conn.close(),
                1 => conn.drain(),
                _ => conn.abort(),
            }
        }
        (2 | 3, Some(id)) => {
            cx.conn(id).unwrap().join(GROUPS[group]);
            model.groups[group].insert(id);
        }
        (4, Some(id)) => {
            cx.conn(id).unwrap().leave(GROUPS[group]);
            model.groups[group].remove(&id);
        }
        (5, Some(id)) => {
            cx.conn(id).unwrap().send(body(number)).unwrap();
            model.expected.get_mut(&id).unwrap().push(number);
        }
        (6..=11, _) => {
            let is_even = |id: &ConnId| id.slot().is_multiple_of(2);
            let (audience, to): (_, Vec<_>) = match (rng.below(5), one) {
                (0, Some(but)) => {
                    (Audience::AllBut(but), up.iter().copied().filter(|id| *id != but).collect())
                }
                (1 | 2, _) => {
                    let is_member = |id: &ConnId| model.groups[group].contains(id);
                    (Audience::group(GROUPS[group]), up.iter().copied().filter(is_member).collect())
                }
                (3, _) => {
                    let filter =
                        Audience::filter(|candidate| candidate.id.slot().is_multiple_of(2));
                    (filter, up.iter().copied().filter(is_even).collect())
                }
                _ => (Audience::All, up.to_vec()),
            };
            assert_eq!(cx.broadcast(audience, body(number)), to.len());
            for id in to {
                model.expected.get_mut(&id).unwrap().push(number);
            }
        }
        (12, _) => fleet.run_for(Duration::from_micros(200)),
        _ => {
            let mut turns = rng.below(4);
            fleet.run_until(Duration::from_micros(50), |_| {
                turns = turns.saturating_sub(1);
                turns == 0
            });
        }
    }
}

#[test]
fn everybody_gets_what_a_model_with_lists_says() {
    for run in 0..300 {
        run_model(run);
    }
}
