//! Ids name their reactor: one of another reactor is refused, although slot and generation are the
//! same, and reaches nobody.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use super::fleet::Fleet;
use crate::{
    CallError, Conn, ConnId, Error, Handle, Handler, Message, ReactorBuilder, SendError,
    audience::Audience, net::sim::SimWorld, protocol::Tcpstream,
};

/// Notes which bodies came, and which connections ended.
#[derive(Clone, Default)]
struct Noting(Rc<RefCell<Vec<String>>>);

impl Handler for Noting {
    type Protocol = Tcpstream;

    fn on_message(&mut self, _: &mut Conn<'_, Tcpstream>, msg: Message<'_, Tcpstream>) {
        self.0.borrow_mut().push(msg.text().into_owned());
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Tcpstream>, _: &crate::CloseReport) {
        self.0.borrow_mut().push(format!("{} ended", conn.id()));
    }
}

/// Two clients, each on a reactor of its own, connected to a server.
struct Twins {
    fleet: Fleet<Noting>,
    server: Noting,
    own: ConnId,
    foreign: ConnId,
}

/// The twin whose id is the foreign one.
const OTHER: usize = 1;
/// The twin that is given it.
const ASKED: usize = 2;

impl Twins {
    fn new() -> Self {
        let mut fleet = Fleet::new(SimWorld::new(1));
        let server = Noting::default();
        fleet.add(1, ReactorBuilder::new(Tcpstream).seed(1), server.clone());
        fleet.add(2, ReactorBuilder::new(Tcpstream).seed(2), Noting::default());
        fleet.add(3, ReactorBuilder::new(Tcpstream).seed(3), Noting::default());
        fleet.nodes[0].engine.context().listen("10.0.0.1:7001").unwrap();
        let mut dial = |node: usize| fleet.nodes[node].engine.context().connect("10.0.0.1:7001");
        let (foreign, own) = (dial(OTHER).unwrap(), dial(ASKED).unwrap());
        fleet.run_for(Duration::from_secs(1));
        let mut twins = Self { fleet, server, own, foreign };
        assert_eq!((own.slot(), own.generation()), (foreign.slot(), foreign.generation()));
        assert!(twins.handle().is_up(own) && twins.fleet.handle(OTHER).is_up(foreign));
        twins.settle();
        twins
    }

    fn handle(&self) -> Handle<Tcpstream> {
        self.fleet.handle(ASKED)
    }

    /// Lets everything happen that was asked for, and returns what the server saw of it.
    fn settle(&mut self) -> Vec<String> {
        self.fleet.run_for(Duration::from_secs(1));
        self.server.0.take()
    }

    /// Nothing happened, and both connections are as they were.
    fn assert_untouched(&mut self) {
        assert_eq!(self.settle(), Vec::<String>::new());
        assert!(self.handle().is_up(self.own));
        assert!(self.fleet.handle(OTHER).is_up(self.foreign));
    }
}

#[test]
fn id_of_another_reactor_is_neither_open_nor_up() {
    let mut twins = Twins::new();
    let (handle, foreign) = (twins.handle(), twins.foreign);
    assert!(!handle.is_open(foreign) && !handle.is_up(foreign));
    assert!(twins.fleet.nodes[ASKED].engine.context().conn(foreign).is_none());
    let own = twins.own;
    assert!(twins.fleet.nodes[ASKED].engine.context().conn(own).is_some());
}

#[test]
fn message_to_an_id_of_another_reactor_is_refused() {
    let mut twins = Twins::new();
    let (handle, foreign) = (twins.handle(), twins.foreign);
    assert_eq!(handle.send(foreign, "strange"), Err(SendError::Closed));
    assert_eq!(handle.send_as(foreign, 7, "strange"), Err(SendError::Closed));
    twins.assert_untouched();
    handle.send(twins.own, "own").unwrap();
    assert_eq!(twins.settle(), ["own"]);
}

#[test]
fn call_to_an_id_of_another_reactor_is_refused() {
    let mut twins = Twins::new();
    let (handle, foreign) = (twins.handle(), twins.foreign);
    let timeout = Duration::from_secs(1);
    let is_refused = |error: &CallError| {
        matches!(error, CallError::Disconnected { .. }) && error.fate() == crate::Fate::NotSent
    };
    // Before those that block: they would wait for ever for a call that was accepted.
    let mut call = handle.call_async(foreign, "strange", timeout);
    let polled = Pin::new(&mut call).poll(&mut std::task::Context::from_waker(Waker::noop()));
    assert!(matches!(&polled, Poll::Ready(Err(error)) if is_refused(error)), "{polled:?}");
    let refused = handle.call(foreign, "strange", timeout).unwrap_err();
    assert!(is_refused(&refused), "{refused:?}");
    let refused = handle.call_tagged(foreign, "strange", timeout).unwrap_err();
    assert!(is_refused(&refused), "{refused:?}");
    twins.assert_untouched();
}

#[test]
fn connection_is_not_closed_by_an_id_of_another_reactor() {
    let mut twins = Twins::new();
    let (handle, foreign) = (twins.handle(), twins.foreign);
    for close in [Handle::close, Handle::drain, Handle::abort] {
        close(&handle, foreign);
        twins.assert_untouched();
        twins.assert_untouched();
    }
    handle.close(twins.own);
    assert_eq!(twins.settle().len(), 1);
}

#[test]
fn id_of_another_reactor_joins_no_group() {
    let mut twins = Twins::new();
    let (handle, foreign) = (twins.handle(), twins.foreign);
    assert_eq!(handle.join(foreign, "group"), Err(SendError::Closed));
    handle.broadcast_to(Audience::Group("group".into()), "strange").unwrap();
    twins.assert_untouched();
    handle.join(twins.own, "group").unwrap();
    assert_eq!(handle.leave(foreign, "group"), Err(SendError::Closed));
    handle.broadcast_to(Audience::Group("group".into()), "to the group").unwrap();
    assert_eq!(twins.settle(), ["to the group"]);
}

#[test]
fn broadcast_leaves_nobody_out_for_an_id_of_another_reactor() {
    let mut twins = Twins::new();
    twins.handle().broadcast_to(Audience::AllBut(twins.foreign), "news").unwrap();
    assert_eq!(twins.settle(), ["news"]);
}

#[test]
fn connection_beyond_what_ids_can_name_is_refused() {
    let mut twins = Twins::new();
    twins.fleet.nodes[ASKED].engine.state.slots.limit(2);
    let mut cx = twins.fleet.nodes[ASKED].engine.context();
    cx.connect("10.0.0.1:7001").unwrap();
    let refused = cx.connect("10.0.0.1:7001").unwrap_err();
    let Error::Io(refused) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.kind(), std::io::ErrorKind::QuotaExceeded);
    // One that ends makes room.
    twins.handle().abort(twins.own);
    twins.settle();
    twins.fleet.nodes[ASKED].engine.context().connect("10.0.0.1:7001").unwrap();
}
