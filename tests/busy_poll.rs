//! A loop that looks for work before it sleeps misses nothing that a sleeping one would be woken for.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    clippy::needless_pass_by_value,
    clippy::redundant_closure_for_method_calls,
    clippy::similar_names,
    reason = "a test says so by panicking, and its numbers are small"
)]

mod common;

use std::{sync::mpsc, thread, time::Duration};

use common::now;
use longhaul::{
    ClientBuilder, Conn, Context, Handler, Message, Reactor, ReactorBuilder, Server, Timer,
    protocol::Native,
};

/// Longer than any test: what does not end the looking is not seen at all.
const LONG: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);

/// Echoes, and tells of its timer.
struct Echo(mpsc::Sender<u64>);

impl Handler for Echo {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        let _ = conn.reply(&msg, &msg);
    }

    fn on_timer(&mut self, _: &mut Context<'_, Native>, timer: Timer) {
        self.0.send(timer.token).unwrap();
    }
}

fn builder() -> ReactorBuilder<Native> {
    ReactorBuilder::new(Native).busy_poll(LONG)
}

fn reactor() -> (Reactor<Echo>, mpsc::Receiver<u64>) {
    let (told, timers) = mpsc::channel();
    (builder().build(Echo(told)).unwrap(), timers)
}

/// Of sockets (the messages), of the mailbox (the calls and the stop) and of a name that was looked
/// up (the dialling).
#[test]
fn looking_ends_with_readiness_and_with_a_post() {
    let (told, _) = mpsc::channel();
    let server = Server::bind_with("127.0.0.1:0", builder(), Echo(told)).unwrap();
    let target = format!("localhost:{}", server.addr().port().unwrap());
    let client = ClientBuilder::new(Native).reactor(builder()).connect(target.as_str()).unwrap();
    for number in 0..100 {
        let body = format!("call {number}");
        assert_eq!(client.call(body.clone(), PATIENCE).unwrap(), body);
    }
    client.stop().unwrap();
    server.stop().unwrap();
}

#[test]
fn looking_ends_when_a_timer_is_due() {
    let (mut reactor, timers) = reactor();
    reactor.context().set_timer(Duration::from_millis(20), 7);
    while reactor.turn(None).unwrap() {
        if let Ok(token) = timers.try_recv() {
            assert_eq!(token, 7);
            return;
        }
    }
}

#[test]
fn turn_waits_no_longer_than_it_was_allowed_to() {
    let (mut reactor, _timers) = reactor();
    let before = now();
    reactor.turn(Some(Duration::ZERO)).unwrap();
    reactor.turn(Some(Duration::from_millis(20))).unwrap();
    let waited = before.elapsed();
    assert!(waited >= Duration::from_millis(20), "{waited:?}");
    assert!(waited < LONG / 2, "{waited:?}");
}

/// A loop that has looked for long enough sleeps, and is woken.
#[test]
fn loop_that_gave_up_looking_is_woken_by_a_post() {
    let (told, _timers) = mpsc::channel();
    let builder = ReactorBuilder::new(Native).busy_poll(Duration::from_micros(1));
    let mut reactor = builder.build(Echo(told)).unwrap();
    let handle = reactor.handle();
    let stopper = thread::spawn(move || {
        common::pass(Duration::from_millis(50));
        handle.stop();
    });
    reactor.run().unwrap();
    stopper.join().unwrap();
}
