//! Connections that come and go leave nothing behind.
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

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{PATIENCE, Peer, Script, descriptors, message, request};
use longhaul::{
    Config, ConnId, Reactor, ReactorBuilder, Reconnect, SendError,
    protocol::{AnyProtocol, Native, Tcpstream},
};

/// Descriptors are counted for the process: only one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const CONNECTIONS: usize = 100_000;

/// The slot of an id: the 24 bits above those of its generation.
fn slot_of(id: ConnId) -> u64 {
    (id.as_u64() >> 32) & 0xff_ffff
}

/// Runs turns on a thread of its own until the flag is set, and gives the reactor back.
fn turning(
    mut reactor: Reactor<Script>,
    is_over: Arc<AtomicBool>,
) -> std::thread::JoinHandle<Reactor<Script>> {
    std::thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) || reactor.stats().connections > 0 {
            reactor.turn(Some(Duration::from_millis(20))).unwrap();
        }
        reactor
    })
}

/// A connection from an address of our choice, since one has not ports enough for so many.
fn connect_from(last: u8, addr: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
    socket.connect(&addr.into()).unwrap();
    TcpStream::from(socket)
}

#[test]
fn connections_that_were_used_and_closed_leave_no_descriptor_slot_or_timer() {
    const THREADS: usize = 4;
    let _alone = alone();
    let before = descriptors();
    // Native: each connection has a hello timeout and a heartbeat, and each request an answer.
    let mut reactor = ReactorBuilder::new(AnyProtocol::from(Native)).build(Script::echo()).unwrap();
    let (_, addr) = reactor.listen("127.0.0.1:0").unwrap();
    let addr = addr.socket_addr().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let serving = turning(reactor, is_over.clone());
    let clients: Vec<_> = (0..THREADS)
        .map(|thread| {
            std::thread::spawn(move || {
                let mut hello = common::hello(&Native.into());
                hello.extend_from_slice(&request(1, b"ping"));
                // The server's hello and its reply.
                let mut answer = [0; 44 + 28];
                for number in 0..CONNECTIONS / THREADS {
                    let source = 2 + (number % 5 + 5 * thread) as u8;
                    let mut stream = connect_from(source, addr);
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.write_all(&hello).unwrap();
                    stream.read_exact(&mut answer).unwrap();
                    assert_eq!(&answer[68..], b"ping");
                    // Half of them end with a reset.
                    if number % 2 == 0 {
                        let socket = socket2::SockRef::from(&stream);
                        socket.set_linger(Some(Duration::ZERO)).unwrap();
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    let reactor = serving.join().unwrap();
    let stats = reactor.stats();
    assert_eq!(stats.accepted, CONNECTIONS as u64);
    assert_eq!(stats.disconnected, CONNECTIONS as u64);
    assert_eq!(stats.messages_in, CONNECTIONS as u64);
    assert_eq!((stats.connections, stats.calls_in_flight, stats.undelivered), (0, 0, 0));
    assert_eq!(reactor.next_deadline(), None, "a timer is left");
    drop(reactor);
    assert_eq!(descriptors(), before);
}

#[test]
fn dialled_connections_that_were_closed_leave_no_descriptor_slot_or_timer() {
    const ROUNDS: u64 = 2000;
    let _alone = alone();
    let before = descriptors();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let accepting = std::thread::spawn(move || {
        for _ in 0..ROUNDS {
            let mut peer = Peer::of(listener.accept().unwrap().0, Tcpstream);
            peer.expect("hello");
            peer.expect_end();
        }
    });
    let script = Script::new().on_connect(|conn| {
        conn.send("hello").unwrap();
        conn.close();
    });
    let mut reactor = ReactorBuilder::new(AnyProtocol::from(Tcpstream)).build(script).unwrap();
    for _ in 0..ROUNDS {
        let id = reactor.connect(addr).unwrap();
        assert!(slot_of(id) < 8, "slots are used again");
        while reactor.stats().connections > 0 {
            reactor.turn(Some(PATIENCE)).unwrap();
        }
    }
    accepting.join().unwrap();
    assert_eq!(reactor.stats().dialled, ROUNDS);
    assert_eq!(reactor.next_deadline(), None, "a timer is left");
    drop(reactor);
    assert_eq!(descriptors(), before);
}

#[test]
fn dials_that_failed_leave_no_descriptor_slot_or_timer() {
    let _alone = alone();
    let before = descriptors();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut reactor = ReactorBuilder::new(AnyProtocol::from(Native)).build(Script::new()).unwrap();
    let settings = Config::new().reconnect(Reconnect::fixed(Duration::ZERO).max_attempts(3));
    for _ in 0..100 {
        reactor.connect_with(nobody, &Native.into(), &settings).unwrap();
    }
    while reactor.stats().connections > 0 {
        reactor.turn(Some(PATIENCE)).unwrap();
    }
    assert_eq!(reactor.next_deadline(), None, "a timer is left");
    drop(reactor);
    assert_eq!(descriptors(), before);
}

#[test]
fn close_and_reopen_inside_one_batch_never_delivers_to_the_wrong_connection() {
    const PEERS: usize = 40;
    const ROUNDS: usize = 60;
    let _alone = alone();
    // The first message of a connection names it; what comes later must have that name. The first
    // that says so ends all the others.
    let script = Script::new().on_message(|conn, msg| {
        let text = msg.text().into_owned();
        let (name, verb) = text.split_once(' ').unwrap();
        match conn.data::<String>() {
            Some(known) => assert_eq!(known, name, "delivered to the wrong connection"),
            None => conn.set_data(name.to_owned()),
        }
        if verb == "alone" {
            let own = conn.id();
            let others: Vec<_> = conn.cx().connections().filter(|id| *id != own).collect();
            for id in others {
                conn.cx().conn(id).unwrap().abort();
            }
        }
        conn.send(&msg).unwrap();
    });
    let (script, events) = script.telling();
    let mut reactor = ReactorBuilder::new(AnyProtocol::from(Tcpstream)).build(script).unwrap();
    let (_, addr) = reactor.listen("127.0.0.1:0").unwrap();
    let addr = addr.socket_addr().unwrap();
    let handle = reactor.handle();
    let mut old: Vec<Peer> = Vec::new();
    let mut stale = Vec::new();
    for round in 0..ROUNDS {
        // All of this is one batch: old ones speak, new ones come and speak, and one of the old
        // ends the rest.
        for (number, peer) in old.iter_mut().enumerate() {
            let verb = if number == 0 { "alone" } else { "speaks" };
            let frame = format!("{}.{number} {verb}", round - 1);
            // Some were ended in the round before.
            let _ = peer.stream.write_all(&message(&Tcpstream.into(), frame.as_bytes()));
        }
        let mut new: Vec<_> = (0..PEERS).map(|_| Peer::new(addr, Tcpstream)).collect();
        for (number, peer) in new.iter_mut().enumerate() {
            peer.send(format!("{round}.{number} speaks"));
        }
        reactor.turn(Some(PATIENCE)).unwrap();
        while reactor.next_deadline().is_some_and(|at| at <= common::now())
            || reactor.stats().accepted < ((round + 1) * PEERS) as u64
        {
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        reactor.turn(Some(Duration::ZERO)).unwrap();
        for event in events.so_far() {
            match event {
                common::Event::Disconnected(id, _) => stale.push(id),
                common::Event::Incident(incident) => panic!("{incident}"),
                _ => {}
            }
        }
        for id in &stale {
            assert_eq!(handle.send(*id, "x"), Err(SendError::Closed), "{id} is gone");
        }
        // Whatever came back is what was sent.
        for (number, peer) in new.iter_mut().enumerate() {
            peer.stream.set_nonblocking(true).unwrap();
            let mut answer = [0; 256];
            if let Ok(count @ 1..) = peer.stream.read(&mut answer) {
                let sent =
                    message(&Tcpstream.into(), format!("{round}.{number} speaks").as_bytes());
                assert_eq!(answer[18..count], sent[18..]);
            }
            peer.stream.set_nonblocking(false).unwrap();
        }
        old = new;
    }
    assert_eq!(reactor.stats().panics, 0);
    assert!(stale.len() >= (ROUNDS - 1) * (PEERS - 1), "{} ended", stale.len());
}

#[test]
fn reactors_that_come_and_go_leave_no_descriptor() {
    let _alone = alone();
    let before = descriptors();
    for _ in 0..100 {
        let mut reactor = ReactorBuilder::new(AnyProtocol::from(Native))
            .config(Config::new())
            .build(Script::echo())
            .unwrap();
        let (_, addr) = reactor.listen("127.0.0.1:0").unwrap();
        let addr = addr.socket_addr().unwrap();
        reactor.connect(addr).unwrap();
        let _peer = Peer::new(addr, Native);
        for _ in 0..3 {
            reactor.turn(Some(Duration::from_millis(1))).unwrap();
        }
    }
    assert_eq!(descriptors(), before);
}
