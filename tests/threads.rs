//! Many threads and one loop: what they send arrives whole and in each thread's order, and no bound
//! is passed.
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

use std::{sync::mpsc::channel, thread, time::Duration};

use common::{PATIENCE, Peer, Running, Script};
use longhaul::{
    Bytes, CallError, Config, Error, Handle, Reactor, ReactorBuilder, SendError,
    protocol::{AnyProtocol, Native, Tcpstream},
};

const KIB: usize = 1024;

/// A generator that gives the same numbers for the same seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Thread, number, sum of the rest, and the rest.
fn stamped(thread: u8, number: u32, fill: u8, len: usize) -> Vec<u8> {
    let mut body = vec![thread];
    body.extend_from_slice(&number.to_be_bytes());
    body.extend_from_slice(&(u64::from(fill) * len as u64).to_be_bytes());
    body.resize(13 + len, fill);
    body
}

fn check(body: &[u8]) -> (u8, u32) {
    let sum = u64::from_be_bytes(body[5..13].try_into().unwrap());
    let found: u64 = body[13..].iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(found, sum, "a message of {} bytes is damaged", body.len());
    (body[0], u32::from_be_bytes(body[1..5].try_into().unwrap()))
}

fn eight_threads_send_to_one_connection(protocol: impl Into<AnyProtocol>) {
    const THREADS: u8 = 8;
    const EACH: u32 = 100;
    let protocol = protocol.into();
    let server = Running::server(protocol, Config::new(), Script::new());
    let mut peer = Peer::new(server.addr, protocol);
    let id = server.events.connected();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let handle = server.handle.clone();
            thread::spawn(move || {
                let mut numbers = Numbers(0x5851_f42d_4c95_7f2d + u64::from(thread));
                for number in 0..EACH {
                    let len = numbers.below(300 * KIB);
                    let body = Bytes::from(stamped(thread, number, numbers.next() as u8, len));
                    while let Err(error) = handle.send(id, body.clone()) {
                        let is_full = matches!(error, SendError::Full | SendError::MailboxFull);
                        assert!(is_full, "{error}");
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut next = [0; THREADS as usize];
    for _ in 0..u32::from(THREADS) * EACH {
        let (thread, number) = check(&peer.receive().unwrap());
        assert_eq!(number, next[thread as usize], "thread {thread} out of order");
        next[thread as usize] += 1;
    }
    assert_eq!(next, [EACH; THREADS as usize]);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn native_messages_of_eight_threads_arrive_whole_and_in_each_threads_order() {
    eight_threads_send_to_one_connection(Native);
}

#[test]
fn tcpstream_messages_of_eight_threads_arrive_whole_and_in_each_threads_order() {
    eight_threads_send_to_one_connection(Tcpstream);
}

#[test]
fn messages_of_eight_threads_come_in_whole_and_in_order() {
    // The other direction: eight peers, one loop that reads.
    let server = Running::server(Tcpstream, Config::new(), Script::new());
    let addr = server.addr;
    let threads: Vec<_> = (0..8_u8)
        .map(|thread| {
            thread::spawn(move || {
                let mut peer = Peer::new(addr, Tcpstream);
                let mut numbers = Numbers(0x2545_f491_4f6c_dd1d + u64::from(thread));
                for number in 0..100 {
                    let len = numbers.below(300 * KIB);
                    peer.send(stamped(thread, number, numbers.next() as u8, len));
                }
                peer
            })
        })
        .collect();
    let mut next = [0; 8];
    for _ in 0..800 {
        let (thread, number) = check(&server.events.message());
        assert_eq!(number, next[thread as usize]);
        next[thread as usize] += 1;
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

// ---- the mailbox ----

fn idle(builder: ReactorBuilder<AnyProtocol>) -> (Reactor<Script>, Handle<AnyProtocol>) {
    let reactor = builder.build(Script::new()).unwrap();
    let handle = reactor.handle();
    (reactor, handle)
}

#[test]
fn mailbox_of_a_loop_that_does_not_run_takes_65536_commands_and_works_afterwards() {
    let (mut reactor, handle) = idle(ReactorBuilder::new(Native.into()));
    reactor.turn(Some(Duration::ZERO)).unwrap();
    let (tell, told) = channel();
    for number in 0..65_536 {
        let tell = tell.clone();
        handle.run(move |_| tell.send(number).unwrap()).unwrap();
    }
    assert_eq!(handle.run(|_| ()), Err(SendError::MailboxFull));
    assert_eq!(handle.broadcast("x"), Err(SendError::MailboxFull));
    let asked = thread::scope(|scope| scope.spawn(|| handle.ask(|_| ())).join().unwrap());
    assert!(matches!(asked, Err(Error::Full)));
    for _ in 0..65_536 / 1024 {
        reactor.turn(Some(Duration::ZERO)).unwrap();
    }
    assert!(told.try_iter().eq(0..65_536), "all of them, in order");
    handle.run(move |_| tell.send(0).unwrap()).unwrap();
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(told.try_recv(), Ok(0));
}

#[test]
fn mailbox_is_bounded_in_bytes() {
    let (mut reactor, handle) = idle(ReactorBuilder::new(Native.into()).mailbox(1000, 1000 * KIB));
    let body = Bytes::from(vec![0; 100 * KIB]);
    for _ in 0..10 {
        handle.broadcast(body.clone()).unwrap();
    }
    assert_eq!(handle.broadcast("x"), Err(SendError::MailboxFull));
    reactor.turn(Some(Duration::ZERO)).unwrap();
    handle.broadcast(body).unwrap();
}

/// What a turn leaves in the mailbox still counts: the bounds hold for all that waits.
#[test]
fn turn_makes_room_for_what_it_has_run() {
    let (mut reactor, handle) = idle(ReactorBuilder::new(Native.into()).mailbox(2000, 1500 * KIB));
    let body = Bytes::from(vec![0; KIB]);
    let post = || (0..3000).take_while(|_| handle.broadcast(body.clone()).is_ok()).count();
    assert_eq!(post(), 1500, "bounded in bytes");
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(post(), 1024);
    while reactor.next_deadline().is_some() {
        reactor.turn(Some(Duration::ZERO)).unwrap();
    }
    let post = || (0..3000).take_while(|_| handle.run(|_| ()).is_ok()).count();
    assert_eq!(post(), 2000, "bounded in commands");
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(post(), 1024);
}

#[test]
fn stop_gets_through_a_full_mailbox() {
    let (mut reactor, handle) = idle(ReactorBuilder::new(Native.into()).mailbox(1, 1));
    handle.run(|_| ()).unwrap();
    assert_eq!(handle.run(|_| ()), Err(SendError::MailboxFull));
    handle.stop();
    reactor.run().unwrap();
    assert!(handle.is_stopped());
}

#[test]
fn no_question_of_many_threads_is_lost() {
    let server = Running::server(Native, Config::new(), Script::new());
    let threads: Vec<_> = (0..4_u32)
        .map(|thread| {
            let handle = server.handle.clone();
            thread::spawn(move || {
                for number in 0..2000 {
                    assert_eq!(handle.ask(move |_| (thread, number)).unwrap(), (thread, number));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn question_is_answered_when_the_reactor_is_dropped() {
    let (reactor, handle) = idle(ReactorBuilder::new(Native.into()));
    let (tell, told) = channel();
    let asking = {
        let handle = handle;
        thread::spawn(move || tell.send(handle.ask(|_| ()).is_err()).unwrap())
    };
    // Posted before the drop or refused after it: an error in both cases.
    drop(reactor);
    assert!(told.recv_timeout(PATIENCE).unwrap());
    asking.join().unwrap();
}

#[test]
fn blocking_calls_on_the_loops_own_thread_are_refused() {
    let server = Running::server(Native, Config::new(), Script::new());
    let _peer = Peer::new(server.addr, Native);
    let id = server.events.connected();
    let handle = server.handle.clone();
    let (asked, called) = server.ask(move |_| {
        let called = handle.call(id, "x", Duration::from_secs(1));
        (handle.ask(|_| ()).map_err(|error| error.to_string()), called)
    });
    assert_eq!(asked.unwrap_err(), Error::OnLoopThread.to_string());
    assert_eq!(called, Err(CallError::OnLoopThread));
}

#[test]
fn handle_is_for_every_thread() {
    fn assert_send_sync<T: Send + Sync + Clone>() {}
    fn assert_send<T: Send>() {}
    assert_send_sync::<Handle<AnyProtocol>>();
    assert_send::<Reactor<Script>>();
    assert_send::<longhaul::Responder<AnyProtocol>>();
}

#[test]
fn panic_of_a_closure_on_the_loop_ends_neither_the_loop_nor_the_asker() {
    let server = Running::server(Native, Config::new(), Script::echo());
    let mut peer = Peer::new(server.addr, Native);
    let asked = server.handle.ask(|_| -> () { panic!("in a closure") });
    assert!(asked.is_err());
    peer.echo("unharmed");
    assert_eq!(server.ask(|cx| cx.stats().panics), 1);
}

#[test]
fn message_for_a_connection_that_ended_meanwhile_is_reported() {
    let (script, events) = Script::new().telling();
    let mut reactor = ReactorBuilder::new(AnyProtocol::from(Tcpstream)).build(script).unwrap();
    let (_, addr) = reactor.listen("127.0.0.1:0").unwrap();
    let handle = reactor.handle();
    let _peer = Peer::new(addr, Tcpstream);
    while reactor.stats().connections == 0 {
        reactor.turn(Some(PATIENCE)).unwrap();
    }
    let id = events.connected();
    handle.abort(id);
    for _ in 0..3 {
        handle.send(id, "too late").unwrap();
    }
    reactor.turn(Some(Duration::ZERO)).unwrap();
    match events.incident() {
        longhaul::Incident::Undelivered { conn, messages } => assert_eq!((conn, messages), (id, 3)),
        incident => panic!("{incident}"),
    }
    assert_eq!(reactor.stats().undelivered, 3);
    assert_eq!(handle.send(id, "x"), Err(SendError::Closed));
}

#[test]
fn body_over_the_limit_is_refused_where_it_is_sent() {
    let server = Running::server(Tcpstream, Config::new().max_body(1000), Script::echo());
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    let refused = server.handle.send(id, vec![0; 1001]);
    assert!(matches!(refused, Err(SendError::BodyTooLong { len: 1001, max: 1000, .. })));
    peer.echo(vec![0; 1000]);
}
