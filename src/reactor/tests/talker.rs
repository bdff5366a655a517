//! One side of a random conversation.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    ledger::{NodeNumber, SharedLedger},
    plants::{Plant, Spoken},
    verdicts::{Check, PLANNED, Verdicts},
};
use crate::{
    Audience, CallError, CloseReason, CloseReport, Conn, ConnId, Context, Handler, Incident,
    Message, Reply, Responder,
    handler::Timer,
    protocol::{Any, Kind},
    reactor::net::sim::{ConnectionId, SimRng, SimWorld},
};

/// What a body is, in its first byte.
pub(super) const PUSH: u8 = 1;
pub(super) const REQUEST: u8 = 2;
pub(super) const ANSWER: u8 = 3;
pub(super) const NEWS: u8 = 4;

const RESUME: u64 = 1;
const ANSWER_LATER: u64 = 2;

/// How a run is set up.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) protocol: Any,
    pub(super) has_calls: bool,
    /// Chances of what a callback does, in percent.
    pub(super) rude: usize,
    pub(super) clients: u8,
    pub(super) rounds: usize,
    pub(super) largest: usize,
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
    up: HashMap<ConnId, Epoch>,
    pub(super) later: Vec<(u64, Responder<Spoken>, bool)>,
    last_news: HashMap<(NodeNumber, ConnId), u64>,
    news: u64,
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
            up: HashMap::new(),
            later: Vec::new(),
            last_news: HashMap::new(),
            news: 0,
            held: None,
        }
    }

    /// Whether a planted bug strikes now: this one, and about every third time.
    fn is_struck(&mut self, plant: Plant) -> bool {
        self.plan.plant == Some(plant) && self.rng.chance(0.3)
    }

    fn body(&mut self, kind: u8, conn: ConnId, number: u64) -> Vec<u8> {
        let len = if self.rng.chance(0.05) { self.plan.largest } else { 200 };
        body(kind, (self.node, conn), number, self.rng.below(len + 1))
    }

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

    fn call(&mut self, conn: &mut Link<'_>) {
        let number = self.ledger.borrow_mut().start_call();
        let body = self.body(REQUEST, conn.id(), number);
        let timeout = self.rng.duration(&(Duration::ZERO..=Duration::from_secs(20)));
        let callback =
            move |talker: &mut Self, _: &mut Link<'_>, result: Result<Reply<'_>, CallError>| {
                talker.end_call(number, &result);
            };
        if conn.call::<Self>(body, timeout, callback).is_err() {
            self.ledger.borrow_mut().refused_call(number);
        }
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
                3 => self.verdicts.plan_panic(),
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

    fn answer(&mut self, conn: &mut Link<'_>, msg: &Message<'_, Spoken>, number: u64) {
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
                if conn.reply(msg, body).is_ok() && !self.is_struck(Plant::AnswersUnasked) {
                    self.ledger.borrow_mut().answered(number);
                }
            }
        }
    }

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

    fn on_connect(&mut self, conn: &mut Link<'_>) {
        if self.is_struck(Plant::SkipsConnect) {
            return;
        }
        let (local, peer) = (conn.local_addr().unwrap(), conn.peer_addr().unwrap());
        let channel = self.world.find(local, peer).expect("the world knows the connection");
        let epoch = Epoch { channel, local, peer, handled: 0 };
        let mut before = self.up.insert(conn.id(), epoch);
        if self.is_struck(Plant::ConnectsTwice) {
            let epoch = Epoch { channel, local, peer, handled: 0 };
            before = self.up.insert(conn.id(), epoch);
        }
        self.verdicts.check(Check::ConnectsOnce, before.is_none(), || conn.id().to_string());
        let panics = self.is_struck(Plant::Panics);
        assert!(!panics, "{PLANNED}");
        // What is sent here goes before what was kept, which the numbers of pushes don't allow for.
        if self.plan.has_calls && self.rng.chance(0.5) {
            self.call(conn);
        }
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
            _ => self.verdicts.note(Check::Kind, format!("{parsed:?}")),
        }
        let mut acts = self.rng.below(3);
        if self.plan.plant == Some(Plant::DrawsFromOutside) {
            acts += usize::from(RandomState::new().hash_one(0).is_multiple_of(2));
        }
        for _ in 0..acts {
            self.act(conn);
        }
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
        let stats = conn.conn_stats();
        if !self.plan.has_calls {
            self.verdicts.check(Check::Counts, epoch.handled == stats.messages_in, || {
                format!("{} of {} messages were handled", epoch.handled, stats.messages_in)
            });
        }
        let fewer = u64::from(self.is_struck(Plant::ReportsFewerUnsent));
        let unsent = report.unsent_messages.saturating_sub(fewer);
        let mut ledger = self.ledger.borrow_mut();
        let from = (self.node, conn.id());
        let channel = epoch.channel;
        ledger.sent(from, channel, stats.messages_out, unsent);
        // The network may lose what a peer wrote before it closed; what it brought must be handled.
        let flow = self.world.flow(epoch.peer, epoch.local).expect("the world knows it");
        let is_whole = report.reason == CloseReason::PeerClosed && flow.read == flow.written;
        ledger.read(self.node, channel, stats.messages_in, is_whole);
        drop(ledger);
        if self.is_struck(Plant::ReportsWrittenTwice) {
            self.ledger.borrow_mut().sent(from, channel, 0, 0);
        }
        if self.is_struck(Plant::ReportsReadTwice) {
            self.ledger.borrow_mut().read(self.node, channel, 0, false);
        }
        if self.plan.plant == Some(Plant::DisconnectsTwice) {
            self.on_disconnect(conn, report);
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Spoken>, timer: Timer) {
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

    fn on_error(&mut self, _: &mut Context<'_, Spoken>, incident: &Incident) {
        match incident {
            Incident::Undelivered { conn, messages } => {
                self.ledger.borrow_mut().undelivered((self.node, *conn), *messages);
            }
            Incident::Panicked { text, .. } => {
                self.verdicts.check(Check::Panics, text == PLANNED, || incident.to_string());
            }
            _ => {}
        }
    }
}
