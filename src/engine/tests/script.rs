//! A handler that does what a test says, and notes what it saw; two of them on a simulated network.
//!
//! Callbacks of a test note what they find, and the test judges it afterwards: an assertion inside of a
//! callback would be caught by the reactor.

use std::{cell::RefCell, rc::Rc, time::Duration};

use super::fleet::Fleet;
use crate::{
    CallError, CallId, CloseReport, Config, Conn, ConnId, Context, Handler, Incident, Message,
    ReactorBuilder, Reconnect, Reply,
    api::handler::Timer,
    net::sim::SimWorld,
    protocol::{Native, Protocol},
};

/// What the callbacks saw, in order.
#[derive(Clone, Default)]
pub(super) struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    pub(super) fn note(&self, line: impl Into<String>) {
        self.0.borrow_mut().push(line.into());
    }

    pub(super) fn take(&self) -> Vec<String> {
        self.0.take()
    }

    /// The lines that begin so.
    pub(super) fn lines(&self, start: &str) -> Vec<String> {
        self.0.borrow().iter().filter(|line| line.starts_with(start)).cloned().collect()
    }

    pub(super) fn count(&self, start: &str) -> usize {
        self.lines(start).len()
    }
}

type OnConn<P> = Box<dyn FnMut(&mut Conn<'_, P>)>;
type OnMessage<P> = Box<dyn FnMut(&mut Conn<'_, P>, Message<'_, P>)>;
type OnDisconnect<P> = Box<dyn FnMut(&mut Conn<'_, P>, &CloseReport)>;
type OnTimer<P> = Box<dyn FnMut(&mut Context<'_, P>, Timer)>;
type OnError<P> = Box<dyn FnMut(&mut Context<'_, P>, &Incident)>;

/// Notes every callback, then does what the test has put in its place. Answers requests with their own
/// body unless the test says otherwise.
pub(super) struct Script<P: Protocol = Native> {
    pub(super) log: Log,
    /// The test is about a callback that panics.
    pub(super) may_panic: bool,
    pub(super) on_connect: OnConn<P>,
    pub(super) on_message: OnMessage<P>,
    pub(super) on_disconnect: OnDisconnect<P>,
    pub(super) on_writable: OnConn<P>,
    pub(super) on_timer: OnTimer<P>,
    pub(super) on_error: OnError<P>,
}

impl<P: Protocol> Default for Script<P> {
    fn default() -> Self {
        Self {
            log: Log::default(),
            may_panic: false,
            on_connect: Box::new(|_| {}),
            on_message: Box::new(|conn, msg| {
                if msg.is_request() {
                    let _ = conn.reply(&msg, &msg);
                }
            }),
            on_disconnect: Box::new(|_, _| {}),
            on_writable: Box::new(|_| {}),
            on_timer: Box::new(|_, _| {}),
            on_error: Box::new(|_, _| {}),
        }
    }
}

impl<P: Protocol> Script<P> {
    /// A handler that does no more than note, and its notes.
    pub(super) fn noting() -> (Self, Log) {
        let script = Self::default();
        let log = script.log.clone();
        (script, log)
    }
}

impl<P: Protocol> Handler for Script<P> {
    type Protocol = P;

    fn on_connect(&mut self, conn: &mut Conn<'_, P>) {
        self.log.note(format!("connect {}", conn.epoch()));
        (self.on_connect)(conn);
    }

    fn on_message(&mut self, conn: &mut Conn<'_, P>, msg: Message<'_, P>) {
        let text = msg.text();
        self.log.note(format!("message {}", &text[..text.floor_char_boundary(40)]));
        (self.on_message)(conn, msg);
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, P>, report: &CloseReport) {
        self.log.note(format!("disconnect {report}"));
        (self.on_disconnect)(conn, report);
    }

    fn on_writable(&mut self, conn: &mut Conn<'_, P>) {
        self.log.note("writable");
        (self.on_writable)(conn);
    }

    fn on_timer(&mut self, cx: &mut Context<'_, P>, timer: Timer) {
        self.log.note(format!("timer {}", timer.token));
        (self.on_timer)(cx, timer);
    }

    fn on_cancel(&mut self, _: &mut Conn<'_, P>, request: P::Id) {
        self.log.note(format!("cancel {request:?}"));
    }

    fn on_error(&mut self, cx: &mut Context<'_, P>, incident: &Incident) {
        self.log.note(format!("error {incident}"));
        (self.on_error)(cx, incident);
    }

    fn on_stop(&mut self, _: &mut Context<'_, P>) {
        self.log.note("stop");
    }
}

pub(super) const SERVER: &str = "10.0.0.1:7001";

/// Node 0, a server, and node 1, a client of it; connected after a second unless the world prevents it.
pub(super) fn pair(
    world: &SimWorld,
    server: Script,
    client: Script,
    config: &Config,
) -> (Fleet<Script>, ConnId) {
    pair_on(world, &Native, server, client, config)
}

/// As [`pair`], on another format.
pub(super) fn pair_on<P: Protocol>(
    world: &SimWorld,
    protocol: &P,
    server: Script<P>,
    client: Script<P>,
    config: &Config,
) -> (Fleet<Script<P>>, ConnId) {
    let mut fleet = Fleet::new(world.clone());
    fleet.may_panic = server.may_panic || client.may_panic;
    let builder = |seed| ReactorBuilder::new(protocol.clone()).config(config.clone()).seed(seed);
    fleet.add(1, builder(1), server);
    fleet.add(2, builder(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let conn = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(Duration::from_secs(1));
    (fleet, conn)
}

/// Calls, and has the outcome noted.
pub(super) fn call<P: Protocol>(
    conn: &mut Conn<'_, P>,
    body: &'static str,
    timeout: Duration,
) -> Result<CallId, CallError> {
    conn.call::<Script<P>>(body, timeout, move |script, _, result| {
        script.log.note(outcome(body, result));
    })
    .map_err(CallError::from)
}

fn outcome(body: &str, result: Result<Reply<'_>, CallError>) -> String {
    match result {
        Ok(reply) => format!("reply to {body}: {}", reply.text()),
        Err(error) => format!("call {body} failed: {error}"),
    }
}

/// The one connection of the server.
pub(super) fn accepted<P: Protocol>(fleet: &mut Fleet<Script<P>>) -> ConnId {
    let id = fleet.nodes[0].engine.context().connections().next();
    id.expect("a connection is up")
}

/// Settings of a connection that is dialled once.
pub(super) fn once() -> Config {
    Config::new().reconnect(Reconnect::never())
}
