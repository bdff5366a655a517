//! The load itself: a handler that dials, sends, compares and counts.

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use hdrhistogram::{CreationError, Histogram};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use longhaul::{
    Addr, CallError, CloseReport, Conn, ConnId, Context, Handler, Incident, Message, Reply, Target,
    Timer, protocol::AnyProtocol,
};

/// Connections that are made at a time: no more than a listener's backlog takes.
const DIALLED_AT_A_TIME: usize = 100;
const TICK_EVERY: Duration = Duration::from_millis(100);
/// The longest latency that is told from a longer one.
const LONGEST: Duration = Duration::from_hours(1);

/// What timers are for.
const TICK: u64 = 0;
const PHASE_ENDS: u64 = 1;

/// Whom to load, and how.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) connections: usize,
    pub(crate) depth: usize,
    pub(crate) size: usize,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    pub(crate) timeout: Duration,
    /// Whether calls are sent.
    pub(crate) is_calling: bool,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How long was measured; zero: nothing was.
    pub(crate) took: Duration,
    /// In nanoseconds, of each message that came back in that time.
    pub(crate) latencies: Histogram<u64>,
    /// Messages whose echo was wrong or never came.
    pub(crate) errors: u64,
    /// Why the run ended early, but for Ctrl-C.
    pub(crate) failure: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    WarmingUp,
    Measuring,
    /// Nothing new is sent; what is in flight comes back and is compared.
    Draining,
    Over,
}

#[derive(Debug)]
pub(crate) struct Generator {
    plan: Plan,
    phase: Phase,
    /// When it began.
    since: Instant,
    outcome: Outcome,
    progress: ProgressBar,
    /// Where the first connection found the server; the others go there, too.
    server: Option<Addr>,
    dialled: usize,
    /// Those that are up.
    conns: Vec<ConnId>,
    body: NumberedBody,
    /// The number of the next message, of any connection.
    next: u64,
    in_flight: usize,
    clock: Clock,
}

/// What is kept with each connection.
#[derive(Debug)]
struct Link {
    /// For people: from 1 on.
    number: usize,
    /// The messages whose echoes are awaited, in order; none of calls.
    sent: VecDeque<Sent>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    at: Instant,
}

impl Generator {
    pub(crate) fn new(plan: Plan) -> Result<Self, CreationError> {
        let longest = u64::try_from(LONGEST.as_nanos()).expect("an hour has fewer nanoseconds");
        let latencies = Histogram::new_with_bounds(1, longest, 3)?;
        let style =
            ProgressStyle::with_template("{bar:40} {msg}").expect("a template that is ours");
        Ok(Self {
            phase: Phase::Connecting,
            since: now(),
            outcome: Outcome { took: Duration::ZERO, latencies, errors: 0, failure: None },
            // Drawn on standard error, and not at all where that is no terminal.
            progress: ProgressBar::new(plan.connections as u64).with_style(style),
            server: None,
            dialled: 0,
            conns: Vec::with_capacity(plan.connections),
            body: NumberedBody::new(plan.size),
            next: 1,
            in_flight: 0,
            clock: Clock { read: None, now: now() },
            plan,
        })
    }

    /// Ctrl-C: ends early, and when asked again at once.
    pub(crate) fn interrupt(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        match self.phase {
            Phase::Connecting | Phase::WarmingUp => {
                self.fail(cx, 0, "interrupted before anything was measured".to_owned());
            }
            Phase::Measuring => self.drain(cx),
            Phase::Draining | Phase::Over => self.end(cx),
        }
    }

    pub(crate) fn take_outcome(&mut self) -> Outcome {
        let empty = Histogram::new_from(&self.outcome.latencies);
        let empty = Outcome { took: Duration::ZERO, latencies: empty, errors: 0, failure: None };
        mem::replace(&mut self.outcome, empty)
    }

    fn enter(&mut self, phase: Phase) {
        let now = now();
        if self.phase == Phase::Measuring {
            self.outcome.took = now - self.since;
        }
        self.phase = phase;
        self.since = now;
    }

    fn end(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        self.enter(Phase::Over);
        self.progress.finish_and_clear();
        cx.stop();
    }

    /// Ends for a reason that was not foreseen; the first one counts.
    fn fail(&mut self, cx: &mut Context<'_, AnyProtocol>, errors: usize, text: String) {
        if self.phase != Phase::Over {
            self.outcome.errors = errors as u64;
            self.outcome.failure = Some(text);
            self.end(cx);
        }
    }

    fn dial(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        if self.dialled == self.plan.connections || self.phase == Phase::Over {
            return;
        }
        self.dialled += 1;
        let target = self.server.as_ref().map_or_else(|| self.plan.target.clone(), Target::from);
        if let Err(error) = cx.connect(target) {
            self.cannot_connect(cx, &error.to_string());
        }
    }

    fn cannot_connect(&mut self, cx: &mut Context<'_, AnyProtocol>, why: &str) {
        let (count, all) = (self.conns.len() + 1, self.plan.connections);
        let which = if all > 1 { format!(" (connection {count} of {all})") } else { String::new() };
        self.fail(cx, 0, format!("can't connect to {}{which}: {why}", self.plan.target));
    }

    /// All connections are up.
    fn begin(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        self.enter(Phase::WarmingUp);
        let whole = self.plan.warm_up.saturating_add(self.plan.duration);
        self.progress.set_length(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX));
        self.progress.set_position(0);
        cx.set_timer(self.plan.warm_up, PHASE_ENDS);
        for id in mem::take(&mut self.conns) {
            let Some(mut conn) = cx.conn(id) else { continue };
            self.clock.set(now());
            for _ in 0..self.plan.depth {
                self.send(&mut conn);
            }
            self.conns.push(id);
        }
    }

    fn send(&mut self, conn: &mut Conn<'_, AnyProtocol>) {
        let sent = Sent { number: self.next, at: self.clock.now };
        self.next += 1;
        let body = self.body.numbered(sent.number);
        let accepted = if self.plan.is_calling {
            let on_reply = move |this: &mut Self,
                                 conn: &mut Conn<'_, AnyProtocol>,
                                 reply: Result<Reply<'_>, CallError>| {
                this.on_reply(conn, sent, reply);
            };
            conn.call(body, self.plan.timeout, on_reply)
                .map(drop)
                .map_err(|error| error.to_string())
        } else {
            if let Some(link) = conn.data_mut::<Link>() {
                link.sent.push_back(sent);
            }
            conn.send(body).map_err(|error| error.to_string())
        };
        match accepted {
            Ok(()) => self.in_flight += 1,
            Err(why) => self.fail_on(conn, 1, &format!("message {sent} was not accepted: {why}")),
        }
    }

    fn on_reply(
        &mut self,
        conn: &mut Conn<'_, AnyProtocol>,
        sent: Sent,
        reply: Result<Reply<'_>, CallError>,
    ) {
        match reply {
            Ok(reply) => self.on_echo(conn, sent, reply.body()),
            // `on_disconnect` says more.
            Err(CallError::Disconnected { .. } | CallError::Stopped { .. }) => {}
            Err(CallError::Timeout { .. }) => self.miss(conn, sent, 1),
            Err(error) => self.fail_on(conn, 1, &format!("call {sent} failed: {error}")),
        }
    }

    /// An echo is there: counts it, and sends the next message.
    fn on_echo(&mut self, conn: &mut Conn<'_, AnyProtocol>, sent: Sent, echo: &[u8]) {
        self.in_flight -= 1;
        if let Some(difference) = self.body.difference(sent.number, echo) {
            let text = format!("the echo of message {sent} is wrong: it {difference}");
            return self.fail_on(conn, 1, &text);
        }
        let now = self.clock.of_read(conn);
        if self.phase == Phase::Measuring {
            let nanos = u64::try_from((now - sent.at).as_nanos()).unwrap_or(u64::MAX);
            self.outcome.latencies.saturating_record(nanos);
        }
        match self.phase {
            Phase::WarmingUp | Phase::Measuring => self.send(conn),
            Phase::Draining if self.in_flight == 0 => self.end(conn.cx()),
            _ => {}
        }
    }

    fn miss(&mut self, conn: &mut Conn<'_, AnyProtocol>, sent: Sent, errors: usize) {
        let timeout = self.plan.timeout;
        self.fail_on(conn, errors, &format!("no echo of message {sent} within {timeout:?}"));
    }

    fn fail_on(&mut self, conn: &mut Conn<'_, AnyProtocol>, errors: usize, text: &str) {
        let text = format!("connection {}: {text}", number_of(conn));
        self.fail(conn.cx(), errors, text);
    }

    /// What is measured was.
    fn drain(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        self.enter(Phase::Draining);
        if self.in_flight == 0 {
            self.end(cx);
        }
    }

    fn tick(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        self.show_progress();
        if !self.plan.is_calling {
            self.find_missing(cx);
        }
        if self.phase != Phase::Over {
            cx.set_timer(TICK_EVERY, TICK);
        }
    }

    /// Fails if an echo has been awaited for too long. Calls have their own timers.
    fn find_missing(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        let now = now();
        let timeout = self.plan.timeout;
        let missing = self.conns.iter().find_map(|&id| {
            let conn = cx.conn(id)?;
            let link = conn.data::<Link>()?;
            let oldest = *link.sent.front().filter(|sent| now - sent.at >= timeout)?;
            Some((id, oldest, link.sent.len()))
        });
        if let Some((id, oldest, count)) = missing
            && let Some(mut conn) = cx.conn(id)
        {
            self.miss(&mut conn, oldest, count);
        }
    }

    fn show_progress(&self) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let elapsed = now() - self.since;
        match self.phase {
            Phase::Connecting => {
                let (up, all) = (self.conns.len(), self.plan.connections);
                self.progress.set_position(up as u64);
                self.progress.set_message(format!("{up} of {all} connections"));
            }
            Phase::WarmingUp => {
                self.progress.set_position(millis(elapsed));
                self.progress.set_message("warming up");
            }
            Phase::Measuring => {
                self.progress.set_position(millis(self.plan.warm_up.saturating_add(elapsed)));
                let left = self.plan.duration.saturating_sub(elapsed).as_secs_f64();
                let rate = HumanCount(rate(self.outcome.latencies.len(), elapsed));
                self.progress.set_message(format!("{rate} messages/s, {left:.0} s left"));
            }
            Phase::Draining => self.progress.set_message("waiting for the last echoes"),
            Phase::Over => {}
        }
    }
}

impl Handler for Generator {
    type Protocol = AnyProtocol;

    fn on_start(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        self.dial(cx);
        cx.set_timer(TICK_EVERY, TICK);
    }

    fn on_connect(&mut self, conn: &mut Conn<'_, AnyProtocol>) {
        self.conns.push(conn.id());
        conn.set_data(Link { number: self.conns.len(), sent: VecDeque::new() });
        let count = if self.server.is_none() { DIALLED_AT_A_TIME } else { 1 };
        if self.server.is_none() {
            self.server = conn.peer_addr();
        }
        for _ in 0..count {
            self.dial(conn.cx());
        }
        if self.conns.len() == self.plan.connections && self.phase == Phase::Connecting {
            self.begin(conn.cx());
        }
    }

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        if self.phase == Phase::Over {
            return;
        }
        match conn.data_mut::<Link>().and_then(|link| link.sent.pop_front()) {
            Some(sent) => self.on_echo(conn, sent, msg.body()),
            None => self.fail_on(conn, 1, "a message came that is no echo"),
        }
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, AnyProtocol>, report: &CloseReport) {
        let awaited = conn.data::<Link>().map_or(0, |link| link.sent.len());
        let calls = usize::try_from(report.calls).unwrap_or(usize::MAX);
        let number = number_of(conn);
        let text = format!("connection {number} was lost: {}", report.reason);
        self.fail(conn.cx(), awaited + calls, text);
    }

    fn on_timer(&mut self, cx: &mut Context<'_, AnyProtocol>, timer: Timer) {
        match (timer.token, self.phase) {
            (PHASE_ENDS, Phase::WarmingUp) => {
                self.enter(Phase::Measuring);
                cx.set_timer(self.plan.duration, PHASE_ENDS);
            }
            (PHASE_ENDS, Phase::Measuring) => self.drain(cx),
            (PHASE_ENDS, _) => {}
            _ => self.tick(cx),
        }
    }

    fn on_error(&mut self, cx: &mut Context<'_, AnyProtocol>, incident: &Incident) {
        match incident {
            Incident::DialFailed { error, .. } => self.cannot_connect(cx, &error.to_string()),
            // Of a connection whose end was reported, or is about to be.
            Incident::Undelivered { .. } => {}
            other => self.fail(cx, 0, other.to_string()),
        }
    }
}

fn number_of(conn: &Conn<'_, AnyProtocol>) -> usize {
    conn.data::<Link>().map_or(0, |link| link.number)
}

impl std::fmt::Display for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.number.fmt(f)
    }
}

/// One body that is all bodies: they differ in the number at their front, as far as there is room.
#[derive(Debug)]
struct NumberedBody(Vec<u8>);

impl NumberedBody {
    fn new(size: usize) -> Self {
        // Such that a piece that is missing or comes twice does not look right.
        let byte = |at: usize| u8::try_from((at * 31 + at / 251) % 256).unwrap_or_default();
        Self((0..size).map(byte).collect())
    }

    fn numbered(&mut self, number: u64) -> &[u8] {
        for (byte, number) in self.0.iter_mut().zip(number.to_le_bytes()) {
            *byte = number;
        }
        &self.0
    }

    /// In what an echo differs from the body of this number.
    fn difference(&mut self, number: u64, echo: &[u8]) -> Option<String> {
        let body = self.numbered(number);
        if body == echo {
            return None;
        }
        if body.len() != echo.len() {
            return Some(format!("has {} bytes and not {}", echo.len(), body.len()));
        }
        let at = body.iter().zip(echo).position(|(ours, theirs)| ours != theirs)?;
        let other = echo.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Some(match other {
            Some(other) if self.numbered(other) == echo => format!("is that of message {other}"),
            _ => format!("differs from byte {at} on"),
        })
    }
}

/// The time, looked at once for all that a connection has received in one turn: it was read together.
#[derive(Debug)]
struct Clock {
    /// The turn and the connection of the last look.
    read: Option<(u64, ConnId)>,
    now: Instant,
}

impl Clock {
    fn set(&mut self, now: Instant) {
        *self = Self { read: None, now };
    }

    fn of_read(&mut self, conn: &mut Conn<'_, AnyProtocol>) -> Instant {
        let read = Some((conn.cx().stats().turns, conn.id()));
        if self.read != read {
            *self = Self { read, now: now() };
        }
        self.now
    }
}

/// How many a second; rounded.
fn rate(count: u64, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    let rate = (u128::from(count) * 1_000_000_000 + nanos / 2) / nanos;
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this measures the crate from outside")]
fn now() -> Instant {
    Instant::now()
}
