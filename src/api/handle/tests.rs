use std::{sync::mpsc::channel, thread};

use super::*;
use crate::{Conn, Message, Reactor};
use crate::{Handler, error::Fate};

struct Deaf;

impl Handler for Deaf {
    type Protocol = Native;

    fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
}

const LONG: Duration = Duration::from_secs(600);

fn connect(reactor: &mut Reactor<Deaf>) -> ConnId {
    let (_, addr) = reactor.listen("127.0.0.1:0").expect("a port is free");
    reactor.connect(addr).expect("an address")
}

#[test]
fn blocking_method_on_a_reactor_that_nobody_runs_fails_and_leaves_nothing() {
    let mut reactor = Reactor::new(Deaf).unwrap();
    let conn = connect(&mut reactor);
    let handle = reactor.handle();
    assert!(matches!(handle.ask(|_| ()), Err(Error::NotRunning)));
    let listening = handle.listen("127.0.0.1:0");
    assert!(matches!(listening, Err(Error::NotRunning)));
    let refused = handle.call(conn, "now", Duration::from_millis(1)).unwrap_err();
    assert_eq!((&refused, refused.fate()), (&CallError::NotRunning, Fate::NotSent));
    assert_eq!(handle.shared.mailbox.waiting(), 0);
    // One that was posted before is withdrawn.
    let call = handle.call_async(conn, "later", LONG);
    assert_eq!(call.wait(), Err(CallError::NotRunning));
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(reactor.stats().calls_in_flight, 0);
    assert_eq!(handle.shared.board.used(conn.slot()), 0);
}

#[test]
fn blocking_method_waits_for_a_thread_that_begins_to_run_the_reactor() {
    let mut reactor = Reactor::new(Deaf).unwrap();
    let handle = reactor.handle();
    handle.expect_run();
    let (begin, started) = channel();
    let asking = thread::spawn({
        let handle = handle.clone();
        move || {
            begin.send(()).unwrap();
            handle.ask(|_| 7)
        }
    });
    started.recv().unwrap();
    let running = thread::spawn(move || reactor.run());
    assert_eq!(asking.join().unwrap().unwrap(), 7);
    handle.stop();
    running.join().unwrap().unwrap();
    assert!(matches!(handle.ask(|_| ()), Err(Error::Stopped)));
}

#[test]
fn reactor_that_is_dropped_before_it_ran_has_stopped() {
    let handle = Reactor::new(Deaf).unwrap().handle();
    assert!(matches!(handle.ask(|_| ()), Err(Error::Stopped)));
}

#[test]
fn thread_that_ran_the_last_turn_may_not_block() {
    let mut reactor = Reactor::new(Deaf).unwrap();
    let conn = connect(&mut reactor);
    let handle = reactor.handle();
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert!(matches!(handle.ask(|_| ()), Err(Error::OnLoopThread)));
    assert_eq!(handle.call(conn, "", LONG), Err(CallError::OnLoopThread));
    assert_eq!(handle.call_async(conn, "", LONG).wait(), Err(CallError::OnLoopThread));
    let moved = thread::spawn(move || {
        reactor.turn(Some(Duration::ZERO)).unwrap();
        reactor.run()
    });
    // From its first turn there on.
    while matches!(handle.ask(|_| ()), Err(Error::OnLoopThread)) {
        thread::yield_now();
    }
    assert_eq!(handle.ask(|_| 7).unwrap(), 7);
    handle.stop();
    moved.join().unwrap().unwrap();
}

#[test]
fn turn_of_another_reactor_does_not_hide_whose_thread_it_is() {
    let (mut outer, mut inner) = (Reactor::new(Deaf).unwrap(), Reactor::new(Deaf).unwrap());
    let (handle, of_inner) = (outer.handle(), inner.handle());
    let (tell, told) = channel();
    let asking = handle.clone();
    of_inner.run(move |_| tell.send(asking.ask(|_| ())).unwrap()).unwrap();
    handle.run(move |_| _ = inner.turn(Some(Duration::ZERO)).unwrap()).unwrap();
    outer.turn(Some(Duration::ZERO)).unwrap();
    assert!(matches!(told.recv().unwrap(), Err(Error::OnLoopThread)));
}

#[test]
fn closure_that_panics_tells_its_asker_so() {
    let mut reactor = Reactor::new(Deaf).unwrap();
    let handle = reactor.handle();
    let running = thread::spawn(move || reactor.run());
    let asked = handle.ask(|_| -> u8 { panic!("no answer to {}", 42) });
    assert!(matches!(asked, Err(Error::Panicked(text)) if text == "no answer to 42"));
    assert_eq!(handle.ask(|cx| cx.stats().panics).unwrap(), 1);
    handle.stop();
    running.join().unwrap().unwrap();
}
