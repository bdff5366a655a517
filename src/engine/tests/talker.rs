//! One side of a random conversation.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    ledger::{NodeNumber, SharedLedger},
    plants::{Plant, Spoken},
    verdicts::{Check, PLANNED, Verdicts},
};
use crate::{
    Addr, Audience, CallError, CallId, CloseReason, CloseReport, Conn, ConnId, Context, Handler,
    Incident, Message, Reply, Responder,
    api::handler::Timer,
    layer::records::Records,
    net::sim::{ConnectionId, Flow, SimRng, SimWorld},
    protocol::{AnyId, AnyProtocol, Kind},
};

/// What a body is, in its first byte.
pub(super) const PUSH: u8 = 1;
pub(super) const REQUEST: u8 = 2;
pub(super) const ANSWER: u8 = 3;
pub(super) const NEWS: u8 = 4;
/// Sent to a connection of another reactor, and so to nobody.
pub(super) const FOREIGN: u8 = 5;

const RESUME: u64 = 1;
const ANSWER_ONE: u64 = 2;
const ANSWER_ALL: u64 = 3;
/// Set for so long that it never fires in a run.
const NEVER: u64 = 4;

/// The ports of the server, which speaks another format at each.
pub(super) const PORTS: [u16; 2] = [7001, 7002];

/// How a run is set up.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Those of the two ports of the server.
    pub(super) protocols: [AnyProtocol; 2],
    pub(super) has_calls: bool,
    /// Chances of what a callback does, in percent.
    pub(super) rude: usize,
    /// The chance that a callback panics at its end.
    pub(super) panics: f64,
    /// Whether hundreds of calls are made, and answered, at once.
    pub(super) has_bursts: bool,
    /// Whether the network loses no event, so that what a loop did not see is its own fault.
    pub(super) is_plain_speaking: bool,
    pub(super) clients: u8,
    pub(super) rounds: usize,
    pub(super) largest: usize,
    /// What lies between the sockets and the frames, if anything does.
    pub(super) layer: Option<Records>,
    /// The bug to be found, if any.
    pub(super) plant: Option<Plant>,
}

pub(super) type Link<'a> = Conn<'a, Spoken>;

/// One side of the conversation.
pub(super) struct Talker {
    pub(super) node: NodeNumber,
    world: SimWorld,
    verdicts: Verdicts,
    ledger: SharedLedger,
    rng: SimRng,
    plan: Arc<Plan>,
    /// The connections that are up.
    up: BTreeMap<ConnId, Epoch>,
    /// The latest calls.
    calls: VecDeque<Made>,
    pub(super) later: Vec<(u64, Responder<Spoken>, bool)>,
    last_news: HashMap<(NodeNumber, ConnId), u64>,
    news: u64,
    /// Bursts of calls, and dials from callbacks, that are left.
    bursts: u32,
    dials: u32,
    /// A message that a planted bug holds back.
    held: Option<((NodeNumber, ConnId), ConnectionId, u64)>,
}

/// A connection that is up.
struct Epoch {
    channel: ConnectionId,
    local: SocketAddr,
    peer: SocketAddr,
    /// Messages that the handler was given.
    handled: u64,
}

/// A call that was made.
#[derive(Clone, Copy)]
struct Made {
    conn: ConnId,
    id: CallId,
    number: u64,
}

impl Talker {
    pub(super) fn new(
        node: NodeNumber,
        world: SimWorld,
        verdicts: Verdicts,
        ledger: SharedLedger,
        rng: SimRng,
        plan: Arc<Plan>,
    ) -> Self {
        Self {
            node,
            world,
            verdicts,
            ledger,
            rng,
            plan,
            up: BTreeMap::new(),
            calls: VecDeque::new(),
            later: Vec::new(),
            last_news: HashMap::new(),
            news: 0,
            bursts: 2,
            dials: 3,
            held: None,
        }
    }

    /// Whether a planted bug strikes now: this one, and about every third time.
    fn is_struck(&mut self, plant: Plant) -> bool {
        self.plan.plant == Some(plant) && self.rng.chance(0.3)
    }

    /// The end of a callback, which panics now and then.
    fn maybe_panic(&mut self) {
        if self.rng.chance(self.plan.panics) {
            self.verdicts.plan_panic();
        }
    }

    fn body(&mut self, kind: u8, conn: ConnId, number: u64) -> Vec<u8> {
        let len = if self.rng.chance(0.05) { self.plan.largest } else { 200 };
        body(kind, (self.node, conn), number, self.rng.below(len + 1))
    }

    // ---- What it does.

    fn push(&mut self, conn: &mut Link<'_>) {
        let number = self.ledger.borrow().next_number(self.node, conn.id());
        if self.is_struck(Plant::SendsWhatWasRefused) {
            let body = self.body(PUSH, conn.id(), number + 1000);
            let _ = conn.send(body);
            return;
        }
        let body = self.body(PUSH, conn.id(), number);
        if conn.send(body).is_ok() {
            self.ledger.borrow_mut().accepted(self.node, conn.id());
        }
    }

    fn call(&mut self, conn: &mut Link<'_>) -> Option<Made> {
        let number = self.ledger.borrow_mut().start_call();
        let body = self.body(REQUEST, conn.id(), number);
        let timeout = self.rng.duration(&(Duration::ZERO..=Duration::from_secs(20)));
        let callback =
            move |talker: &mut Self, conn: &mut Link<'_>, result: Result<Reply<'_>, CallError>| {
                talker.end_call(number, &result);
                if talker.rng.chance(0.05) {
                    talker.act(conn);
                }
                talker.maybe_panic();
            };
        let Ok(id) = conn.call::<Self>(body, timeout, callback) else {
            self.ledger.borrow_mut().refused_call(number);
            return None;
        };
        let made = Made { conn: conn.id(), id, number };
        self.calls.push_back(made);
        if self.calls.len() > 8 {
            self.calls.pop_front();
        }
        Some(made)
    }

    fn end_call(&mut self, number: u64, result: &Result<Reply<'_>, CallError>) {
        if self.is_struck(Plant::ForgetsCall) {
            return;
        }
        if self.is_struck(Plant::SaysUnsent) && result.is_err() {
            return self.ledger.borrow_mut().end_call(number, Err(&CallError::PeerDraining));
        }
        let outcome = match result {
            Ok(reply) => match self.parse(reply.body()) {
                Some(parsed) => Ok(parsed.number),
                None => return,
            },
            Err(error) => Err(error),
        };
        self.ledger.borrow_mut().end_call(number, outcome);
        if self.is_struck(Plant::EndsCallTwice) {
            self.ledger.borrow_mut().end_call(number, outcome);
        }
    }

    /// Cancels one of the latest calls by its id: in flight, over, or of an older epoch.
    fn cancel_some(&mut self, cx: &mut Context<'_, Spoken>) {
        if self.calls.is_empty() {
            return;
        }
        let made = self.calls[self.rng.below(self.calls.len())];
        let Some(mut conn) = cx.conn(made.conn) else { return };
        let another = self.is_struck(Plant::CancelsAnother);
        self.ledger.borrow_mut().cancel_call(made.number + u64::from(another));
        conn.cancel_call(made.id);
    }

    /// The same with a call that is made now, on a connection that is aborted.
    fn call_and_abort(&mut self, conn: &mut Link<'_>) {
        let made = self.call(conn);
        conn.abort();
        if let Some(made) = made {
            self.ledger.borrow_mut().cancel_call(made.number);
            conn.cancel_call(made.id);
        }
    }

    fn broadcast(&mut self, conn: &mut Link<'_>) {
        self.news += 1;
        let body = self.body(NEWS, conn.id(), self.news);
        let audience = match self.rng.below(4) {
            0 => Audience::AllBut(conn.id()),
            1 => Audience::group("room"),
            2 => {
                let panics = self.rng.chance(self.plan.panics * 4.0);
                let planner = self.verdicts.planner();
                let odd = u32::from(self.rng.chance(0.5));
                Audience::filter(move |candidate| {
                    if panics {
                        planner.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(!panics, "{PLANNED}");
                    candidate.id.slot() % 2 == odd
                })
            }
            _ => Audience::All,
        };
        let receivers = conn.cx().broadcast(audience, body);
        self.ledger.borrow_mut().broadcast(self.node, receivers);
    }

    /// Another connection that is up, if there is one; else perhaps the same.
    fn other<'a>(&mut self, conn: &'a mut Link<'_>) -> Option<Link<'a>> {
        let at = self.rng.below(self.up.len());
        let id = *self.up.keys().nth(at)?;
        conn.cx().conn(id)
    }

    fn act(&mut self, conn: &mut Link<'_>) {
        match self.rng.below(100) {
            0..40 => self.push(conn),
            40..60 if self.plan.has_calls => {
                self.call(conn);
            }
            60..63 => self.broadcast(conn),
            63..66 => {
                conn.pause();
                let after = self.rng.duration(&(Duration::ZERO..=Duration::from_secs(2)));
                conn.set_timer(after, RESUME);
            }
            66..70 => self.cancel_some(conn.cx()),
            70 if self.plan.has_bursts && self.bursts > 0 => {
                self.bursts -= 1;
                for _ in 0..200 {
                    self.call(conn);
                }
            }
            n if n >= 100 - self.plan.rude => self.be_rude(conn),
            _ => {}
        }
    }

    /// A connection was ended for good.
    fn note_end(&self, conn: &Link<'_>) {
        self.ledger.borrow_mut().end(self.node, conn.id());
    }

    fn be_rude(&mut self, conn: &mut Link<'_>) {
        let way = self.rng.below(12);
        if way < 4 {
            self.note_end(conn);
        }
        match way {
            0 | 1 => conn.close(),
            2 => conn.drain(),
            3 => conn.abort(),
            4 => self.verdicts.plan_panic(),
            5 if self.plan.has_calls => self.call_and_abort(conn),
            6 => {
                if let Some(mut other) = self.other(conn) {
                    self.note_end(&other);
                    other.close();
                }
            }
            7 => {
                if let Some(mut other) = self.other(conn) {
                    self.note_end(&other);
                    other.abort();
                }
            }
            8 => {
                if let Some(mut other) = self.other(conn) {
                    self.push(&mut other);
                    other.drain();
                    self.push(&mut other);
                }
            }
            9 if self.rng.chance(0.1) => conn.cx().stop(),
            _ => _ = conn.join("room"),
        }
    }

    fn answer(&mut self, conn: &mut Link<'_>, msg: &Message<'_, Spoken>, number: u64) {
        self.ledger.borrow_mut().saw_request(number);
        let body = self.body(ANSWER, conn.id(), number);
        match self.rng.below(10) {
            0 => {}
            1 => {
                let _ = conn.fail(msg, 300, "no");
            }
            way if way < 4 || self.plan.has_bursts => {
                if let Ok(responder) = conn.defer(msg) {
                    let after = self.rng.duration(&(Duration::ZERO..=Duration::from_secs(8)));
                    self.later.push((number, responder, self.rng.chance(0.2)));
                    let is_last = self.rng.chance(0.02);
                    let token = if is_last { ANSWER_ALL } else { ANSWER_ONE };
                    if way < 4 || is_last {
                        conn.set_timer(after, token);
                    }
                }
            }
            _ => {
                if conn.reply(msg, body).is_ok() && !self.is_struck(Plant::AnswersUnasked) {
                    self.ledger.borrow_mut().answered(number);
                }
            }
        }
    }

    fn answer_one(&mut self) {
        let at = self.rng.below(self.later.len());
        let (number, responder, is_dropped) = self.later.swap_remove(at);
        let body = self.body(ANSWER, responder.conn(), number);
        if !is_dropped {
            // Said before, as the answer may be refused later on the loop.
            self.ledger.borrow_mut().answered(number);
            let _ = responder.reply(body);
        }
    }

    // ---- What it checks.

    /// What a body says, if it is whole.
    fn parse(&self, body: &[u8]) -> Option<Parsed> {
        let parsed = Parsed::of(body);
        self.verdicts.check(Check::Whole, parsed.is_some(), || format!("a torn body: {body:?}"));
        parsed
    }

    /// A push arrived, or, if a bug is planted there, one that came before.
    fn receive(&mut self, from: (NodeNumber, ConnId), channel: ConnectionId, number: u64) {
        if self.plan.plant == Some(Plant::HandsMessageLate) && self.held.is_none() {
            self.held = Some((from, channel, number));
            return;
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.received(from, channel, number);
        if let Some((from, channel, number)) = self.held.take() {
            ledger.received(from, channel, number);
        }
    }

    /// The format is that of the port of the server.
    fn check_format(&self, conn: &Link<'_>, ports: [u16; 2]) {
        let place = PORTS.iter().position(|port| ports.contains(port));
        let expected = place.map(|place| self.plan.protocols[place]);
        let spoken = conn.protocol().map(|spoken| spoken.any);
        self.verdicts.check(Check::Speaks, spoken == expected, || {
            format!("{} of ports {ports:?}: {spoken:?}", conn.id())
        });
    }

    /// A peer of which something has arrived, or which has taken everything, is not at fault.
    fn check_health(&self, report: &CloseReport, incoming: Flow, outgoing: Flow) {
        let is_planted = self.plan.plant == Some(Plant::CutsTheHealthy);
        if !self.plan.is_plain_speaking && !is_planted {
            return;
        }
        let is_healthy = match report.reason {
            CloseReason::IdleTimeout(_) => incoming.arrived > incoming.read || is_planted,
            CloseReason::WriteStalled(_) => outgoing.written == outgoing.arrived,
            _ => false,
        };
        self.verdicts.check(Check::HealthyStays, !is_healthy, || {
            format!("{report}: {incoming:?} {outgoing:?}")
        });
    }
}

/// A body that says what it is, who sent it, to which connection, and its number.
pub(super) fn body(kind: u8, from: (NodeNumber, ConnId), number: u64, filler: usize) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend_from_slice(&from.0.to_be_bytes());
    body.extend_from_slice(&from.1.as_u64().to_be_bytes());
    body.extend_from_slice(&number.to_be_bytes());
    body.resize(body.len() + filler, (number % 251) as u8);
    body
}

/// What a body says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parsed {
    pub(super) kind: u8,
    pub(super) from: (NodeNumber, ConnId),
    pub(super) number: u64,
}

impl Parsed {
    /// None of a body that is torn.
    pub(super) fn of(body: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_be_bytes(body.get(at..at + 8)?.try_into().ok()?));
        let number = word(17)?;
        let is_whole = body[25..].iter().all(|byte| *byte == (number % 251) as u8);
        is_whole.then_some(Self {
            kind: body[0],
            from: (word(1)?, ConnId::from_u64(word(9)?)),
            number,
        })
    }
}

impl Handler for Talker {
    type Protocol = Spoken;

    fn on_start(&mut self, _: &mut Context<'_, Spoken>) {
        self.maybe_panic();
    }

    fn on_stop(&mut self, _: &mut Context<'_, Spoken>) {
        self.maybe_panic();
    }

    fn on_connect(&mut self, conn: &mut Link<'_>) {
        if self.is_struck(Plant::SkipsConnect) {
            return;
        }
        let socket_addr = |addr: Option<Addr>| addr.unwrap().socket_addr().unwrap();
        let (local, peer) = (socket_addr(conn.local_addr()), socket_addr(conn.peer_addr()));
        let channel = self.world.find(local, peer).expect("the world knows the connection");
        let epoch = || Epoch { channel, local, peer, handled: 0 };
        let mut before = self.up.insert(conn.id(), epoch());
        if self.is_struck(Plant::ConnectsTwice) {
            before = self.up.insert(conn.id(), epoch());
        }
        self.ledger.borrow().connected(self.node, conn.id());
        self.verdicts.check(Check::ConnectsOnce, before.is_none(), || conn.id().to_string());
        self.check_format(conn, [local.port(), peer.port()]);
        let panics = self.is_struck(Plant::Panics);
        assert!(!panics, "{PLANNED}");
        // What is sent here goes before what was kept, which the numbers of pushes don't allow for.
        if self.plan.has_calls && self.rng.chance(0.5) {
            self.call(conn);
        }
        if self.rng.chance(0.1) {
            conn.set_timer(Duration::from_hours(24), NEVER);
        }
        if self.rng.below(1000) < self.plan.rude {
            self.cancel_some(conn.cx());
            conn.abort();
        }
        self.maybe_panic();
    }

    fn on_message(&mut self, conn: &mut Link<'_>, msg: Message<'_, Spoken>) {
        let Some(epoch) = self.up.get_mut(&conn.id()) else {
            return self.verdicts.note(Check::WithinEpoch, format!("{} {msg:?}", conn.id()));
        };
        epoch.handled += 1;
        let channel = epoch.channel;
        if self.is_struck(Plant::HandsTooFew) {
            self.up.get_mut(&conn.id()).expect("it was there").handled -= 1;
        }
        let Some(parsed) = self.parse(msg.body()) else { return };
        match parsed.kind {
            PUSH => self.receive(parsed.from, channel, parsed.number),
            REQUEST => self.answer(conn, &msg, parsed.number),
            NEWS => {
                let last = self.last_news.entry((parsed.from.0, conn.id())).or_default();
                let is_newer = parsed.number > *last;
                *last = parsed.number;
                self.verdicts.check(Check::News, is_newer, || format!("{parsed:?} twice or late"));
            }
            // The late answer to a call that is over, which the format can't tell from a message.
            ANSWER => {
                let is_plain = msg.kind() == Kind::Plain;
                self.verdicts.check(Check::Kind, is_plain, || format!("an answer as {msg:?}"));
            }
            FOREIGN => self.verdicts.note(Check::OwnIds, format!("{parsed:?}")),
            _ => self.verdicts.note(Check::Kind, format!("{parsed:?}")),
        }
        let mut acts = self.rng.below(3);
        if self.plan.plant == Some(Plant::DrawsFromOutside) {
            acts += usize::from(RandomState::new().hash_one(0).is_multiple_of(2));
        }
        for _ in 0..acts {
            self.act(conn);
        }
        self.maybe_panic();
    }

    fn on_disconnect(&mut self, conn: &mut Link<'_>, report: &CloseReport) {
        let Some(epoch) = self.up.remove(&conn.id()) else {
            return self.verdicts.note(Check::Disconnects, format!("{} {report}", conn.id()));
        };
        let is_format_kept = !matches!(report.reason, CloseReason::Protocol(_));
        self.verdicts.check(Check::Format, is_format_kept, || report.to_string());
        if let CloseReason::Panicked(text) = &report.reason {
            self.verdicts.check(Check::Panics, text == PLANNED, || report.to_string());
        }
        let stats = conn.stats();
        if !self.plan.has_calls {
            self.verdicts.check(Check::Counts, epoch.handled == stats.messages_in, || {
                format!("{} of {} messages were handled", epoch.handled, stats.messages_in)
            });
        }
        let fewer = u64::from(self.is_struck(Plant::ReportsFewerUnsent));
        let unsent = report.unsent_messages.saturating_sub(fewer);
        let from = (self.node, conn.id());
        let channel = epoch.channel;
        self.ledger.borrow_mut().sent(from, channel, stats.messages_out, unsent);
        // The network may lose what a peer wrote before it closed; what it brought must be handled.
        let incoming = self.world.flow(epoch.peer, epoch.local).expect("the world knows it");
        let outgoing = self.world.flow(epoch.local, epoch.peer).expect("the world knows it");
        let is_whole =
            report.reason == CloseReason::PeerClosed && incoming.read == incoming.written;
        self.ledger.borrow_mut().read(self.node, channel, stats.messages_in, is_whole);
        self.check_health(report, incoming, outgoing);
        if report.redial_in.is_none() || self.is_struck(Plant::EndsInWordOnly) {
            self.note_end(conn);
        }
        if self.is_struck(Plant::ReportsWrittenTwice) {
            self.ledger.borrow_mut().sent(from, channel, 0, 0);
        }
        if self.is_struck(Plant::ReportsReadTwice) {
            self.ledger.borrow_mut().read(self.node, channel, 0, false);
        }
        if self.plan.plant == Some(Plant::DisconnectsTwice) {
            self.on_disconnect(conn, report);
        }
        // What is sent to a connection that comes back waits for that.
        match self.rng.below(8) {
            0 => self.push(conn),
            1 if self.plan.has_calls => {
                self.call(conn);
            }
            2 => self.cancel_some(conn.cx()),
            3 if self.rng.below(100) < self.plan.rude => self.be_rude(conn),
            _ => {}
        }
        self.maybe_panic();
    }

    fn on_writable(&mut self, conn: &mut Link<'_>) {
        if self.rng.chance(0.5) {
            self.act(conn);
        }
        self.maybe_panic();
    }

    fn on_cancel(&mut self, conn: &mut Link<'_>, _: AnyId) {
        if self.rng.chance(0.2) {
            self.act(conn);
        }
        self.maybe_panic();
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Spoken>, timer: Timer) {
        match timer.token {
            RESUME => {
                if let Some(mut conn) = timer.conn.and_then(|id| cx.conn(id)) {
                    conn.resume();
                }
            }
            ANSWER_ONE if !self.later.is_empty() => self.answer_one(),
            ANSWER_ALL => {
                while !self.later.is_empty() {
                    self.answer_one();
                }
            }
            _ => {}
        }
        self.maybe_panic();
    }

    fn on_error(&mut self, cx: &mut Context<'_, Spoken>, incident: &Incident) {
        match incident {
            Incident::Undelivered { conn, messages } => {
                self.ledger.borrow_mut().undelivered((self.node, *conn), *messages);
            }
            Incident::Panicked { text, .. } => {
                self.verdicts.check(Check::Panics, text == PLANNED, || incident.to_string());
            }
            Incident::DialFailed { conn, target, .. } if self.dials > 0 => {
                // Another one, in the format of that one.
                let spoken = cx.conn(*conn).and_then(|conn| conn.protocol().cloned());
                if self.rng.chance(0.1)
                    && let Some(spoken) = spoken
                {
                    self.dials -= 1;
                    let _ = cx.connect_with(target.as_str(), &spoken, &crate::Config::new());
                }
            }
            _ => {}
        }
        self.maybe_panic();
    }
}
