//! A reactor in a loop of somebody else's, and callbacks that do what callbacks may do.
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
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use common::{Event, Events, PATIENCE, Peer, Running, Script, answer, now, pass, request};
use longhaul::{
    Client, CloseReason, Config, Conn, ConnId, Error, Incident, Reactor, ReactorBuilder, SendError,
    error_code,
    protocol::{AnyProtocol, Kind, Native, Protocol, Tcpstream},
};
use mio::{Interest, Poll, Token, unix::SourceFd};

const NOW: Option<Duration> = Some(Duration::ZERO);

fn reactor(protocol: impl Into<AnyProtocol>, script: Script) -> (Reactor<Script>, Events) {
    let (script, events) = script.telling();
    (ReactorBuilder::new(protocol.into()).build(script).unwrap(), events)
}

fn listening(
    protocol: impl Into<AnyProtocol>,
    script: Script,
) -> (Reactor<Script>, Events, SocketAddr) {
    let (mut reactor, events) = reactor(protocol, script);
    let (_, addr) = reactor.listen("127.0.0.1:0").unwrap();
    (reactor, events, addr.socket_addr().unwrap())
}

/// Turns until that is so.
fn turn_until(reactor: &mut Reactor<Script>, mut is_so: impl FnMut(&mut Reactor<Script>) -> bool) {
    let began = now();
    while !is_so(reactor) {
        assert!(now() - began < PATIENCE, "it never came to that");
        reactor.turn(Some(Duration::from_millis(10))).unwrap();
    }
}

// ---- turns ----

#[test]
fn turn_without_time_returns_at_once() {
    let (mut reactor, _, _) = listening(Native, Script::new());
    for _ in 0..100 {
        assert!(reactor.turn(NOW).unwrap());
    }
    assert_eq!(reactor.stats().turns, 100);
}

#[test]
fn turn_ends_when_its_time_is_over() {
    let (mut reactor, _, _) = listening(Native, Script::new());
    turn_until(&mut reactor, |reactor| reactor.next_deadline().is_none());
    let began = now();
    assert!(reactor.turn(Some(Duration::from_millis(30))).unwrap());
    assert!(now() - began >= Duration::from_millis(30));
}

#[test]
fn next_deadline_is_none_without_work_and_never_after_a_timer() {
    let (mut reactor, events, _) = listening(Native, Script::new());
    assert!(reactor.next_deadline().unwrap() <= now(), "on_start waits to be called");
    reactor.turn(NOW).unwrap();
    assert_eq!(reactor.next_deadline(), None);
    let set_at = reactor.context().now();
    reactor.context().set_timer(Duration::from_millis(30), 7);
    let mut turns = 0;
    loop {
        let deadline = reactor.next_deadline().expect("a timer is set");
        assert!(deadline <= set_at + Duration::from_millis(31));
        pass(deadline.saturating_duration_since(now()));
        reactor.turn(NOW).unwrap();
        turns += 1;
        let told = events.so_far();
        if told.iter().any(|event| matches!(event, Event::Timer(7))) {
            break;
        }
    }
    // Whoever waits for the deadline each time does not spin.
    assert!(turns < 10, "{turns} turns");
    assert_eq!(reactor.next_deadline(), None);
}

#[test]
fn turn_after_a_long_break_does_not_wait_past_a_deadline() {
    let (mut reactor, events, _) = listening(Native, Script::new());
    reactor.turn(NOW).unwrap();
    reactor.context().set_timer(Duration::from_millis(1500), 1);
    reactor.turn(NOW).unwrap();
    // Whoever owns the loop was busy elsewhere.
    pass(Duration::from_millis(1000));
    let began = now();
    while events.so_far().is_empty() || began == now() {
        reactor.turn(None).unwrap();
        if reactor.next_deadline().is_none() {
            break;
        }
    }
    let waited = now() - began;
    assert!(waited < Duration::from_millis(1400), "{waited:?} for what was due in 500 ms");
}

#[test]
fn descriptor_becomes_readable_on_a_post_of_another_thread() {
    let (mut reactor, _, _) = listening(Native, Script::new());
    turn_until(&mut reactor, |reactor| reactor.next_deadline().is_none());
    let mut poll = Poll::new().unwrap();
    let fd = reactor.as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
    let mut events = mio::Events::with_capacity(8);
    let ran = Arc::new(AtomicUsize::new(0));
    for round in 1..=50 {
        let (handle, ran_there) = (reactor.handle(), ran.clone());
        let posting = thread::spawn(move || {
            handle
                .run(move |_| {
                    ran_there.fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
        });
        poll.poll(&mut events, Some(PATIENCE)).unwrap();
        assert!(!events.is_empty(), "round {round}: nothing woke the outer loop");
        posting.join().unwrap();
        while ran.load(Ordering::Relaxed) < round {
            reactor.turn(NOW).unwrap();
        }
        while reactor.next_deadline().is_some() {
            reactor.turn(NOW).unwrap();
        }
    }
}

#[test]
fn descriptor_becomes_readable_when_a_peer_speaks() {
    let (mut reactor, events, addr) = listening(Tcpstream, Script::echo());
    let mut poll = Poll::new().unwrap();
    let fd = reactor.as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
    let mut ready = mio::Events::with_capacity(8);
    let mut peer = Peer::new(addr, Tcpstream);
    turn_until(&mut reactor, |reactor| {
        reactor.stats().accepted == 1 && reactor.next_deadline().is_none()
    });
    events.connected();
    peer.send("hello");
    poll.poll(&mut ready, Some(PATIENCE)).unwrap();
    assert!(!ready.is_empty());
    turn_until(&mut reactor, |reactor| reactor.stats().messages_out == 1);
    peer.expect("hello");
}

#[test]
fn idle_reactor_wakes_zero_times() {
    let server = Running::server(Tcpstream, Config::new(), Script::echo());
    let mut peers: Vec<_> = (0..10).map(|_| Peer::new(server.addr, Tcpstream)).collect();
    for peer in &mut peers {
        peer.echo("here");
    }
    // Whatever was left to do is done soon; then nothing happens.
    let mut before = server.handle.stats().turns;
    let began = now();
    loop {
        pass(Duration::from_millis(300));
        let after = server.handle.stats().turns;
        if after == before {
            break;
        }
        before = after;
        assert!(now() - began < PATIENCE, "it wakes again and again: {after} turns");
    }
    pass(Duration::from_millis(700));
    assert_eq!(server.handle.stats().turns, before);
}

#[test]
fn reactor_is_moved_to_another_thread_between_turns() {
    let (mut reactor, _, addr) = listening(Tcpstream, Script::echo());
    let mut peer = Peer::new(addr, Tcpstream);
    turn_until(&mut reactor, |reactor| reactor.stats().accepted == 1);
    peer.send("hello");
    let mut reactor = thread::spawn(move || {
        turn_until(&mut reactor, |reactor| reactor.stats().messages_out == 1);
        reactor
    })
    .join()
    .unwrap();
    peer.expect("hello");
    reactor.turn(NOW).unwrap();
}

// ---- addresses, and sockets that are brought along ----

#[test]
fn reactor_listens_on_several_addresses_and_tells_the_real_ports() {
    let (mut reactor, _) = reactor(Tcpstream, Script::echo());
    let addrs: Vec<_> = ["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"]
        .map(|addr| reactor.listen(addr).unwrap())
        .into_iter()
        .collect();
    for (id, addr) in &addrs {
        assert_ne!(addr.port(), Some(0));
        assert_eq!(reactor.context().listener_addr(*id), Some(addr.clone()));
    }
    let handle = reactor.handle();
    let serving = thread::spawn(move || reactor.run().unwrap());
    for (_, addr) in &addrs {
        Peer::new(addr, Tcpstream).echo("hello");
    }
    handle.stop();
    serving.join().unwrap();
}

#[test]
fn handle_listens_and_dials_with_what_the_reactor_was_built_with() {
    let server = Running::server(Tcpstream, Config::new().max_body(10), Script::echo());
    let (_, addr) = server.handle.listen("127.0.0.1:0").unwrap();
    let waited = server.handle.connect_and_wait(addr.clone()).unwrap();
    let client = Client::connect_on(&server.handle, addr.clone()).unwrap();
    let dialled = server.handle.connect(addr).unwrap();
    for id in [waited, client.conn(), dialled] {
        let name = server.ask(move |cx| cx.conn(id).unwrap().protocol().unwrap().name());
        assert_eq!(name, "tcpstream");
        let too_long = server.handle.send(id, "longer than ten");
        assert!(matches!(too_long, Err(SendError::BodyTooLong { max: 10, .. })), "{too_long:?}");
    }
}

#[test]
fn each_listener_has_its_own_protocol_and_settings() {
    let (mut reactor, _) = reactor(Tcpstream, Script::echo());
    let (_, plain) = reactor.listen("127.0.0.1:0").unwrap();
    let small = Config::new().max_body(10);
    let (_, native) = reactor.listen_with("127.0.0.1:0", &Native.into(), &small).unwrap();
    let handle = reactor.handle();
    let serving = thread::spawn(move || reactor.run().unwrap());
    Peer::new(plain, Tcpstream).echo([b'x'; 100]);
    let mut peer = Peer::new(native, Native);
    peer.echo("hello");
    peer.send([b'x'; 100]);
    peer.expect_end();
    handle.stop_within(Duration::ZERO);
    serving.join().unwrap();
}

#[test]
fn address_that_is_taken_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut reactor, _) = reactor(Native, Script::new());
    assert!(reactor.listen(taken.local_addr().unwrap()).is_err());
}

#[test]
fn listener_that_was_closed_keeps_what_it_accepted() {
    let server = Running::server(Tcpstream, Config::new(), Script::echo());
    let mut peer = Peer::new(server.addr, Tcpstream);
    peer.echo("before");
    let id = server.events.connected();
    let closed = server.ask(move |cx| {
        let listener = cx.conn(id).unwrap().listener().unwrap();
        (cx.close_listener(listener), cx.close_listener(listener))
    });
    assert_eq!(closed, (true, false));
    assert!(TcpStream::connect(server.addr).is_err());
    peer.echo("after");
}

#[test]
fn listener_that_is_brought_along_is_served_with_what_waits_in_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut early = Peer::new(addr, Tcpstream);
    early.send("early");
    let (mut reactor, _) = reactor(Tcpstream, Script::echo());
    let adopted = reactor.adopt_listener(listener, &Tcpstream.into(), &Config::new()).unwrap();
    assert_eq!(adopted.1, addr);
    turn_until(&mut reactor, |reactor| reactor.stats().messages_out == 1);
    early.expect("early");
}

#[test]
fn stream_that_is_brought_along_is_served_with_what_waits_in_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = Peer::new(listener.local_addr().unwrap(), Tcpstream);
    let (stream, from) = listener.accept().unwrap();
    peer.send("early");
    let (mut reactor, events) = reactor(Tcpstream, Script::echo());
    let id = reactor.adopt_stream(stream, &Tcpstream.into(), &Config::new()).unwrap();
    turn_until(&mut reactor, |reactor| reactor.stats().messages_out == 1);
    peer.expect("early");
    assert_eq!(events.connected(), id);
    let mut context = reactor.context();
    let conn = context.conn(id).unwrap();
    assert_eq!(conn.peer_addr(), Some(from.into()));
    assert!(!conn.is_dialled() && conn.listener().is_none());
}

#[test]
fn stream_that_is_brought_along_from_a_callback_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut brought = Peer::new(listener.local_addr().unwrap(), Tcpstream);
    brought.send("early");
    let mut stream = Some(listener.accept().unwrap().0);
    let script = Script::new().on_message(move |conn, msg| {
        answer(conn, &msg).unwrap();
        if let Some(stream) = stream.take() {
            conn.cx().adopt_stream(stream, &Tcpstream.into(), &Config::new()).unwrap();
        }
    });
    let server = Running::server(Tcpstream, Config::new(), script);
    Peer::new(server.addr, Tcpstream).echo("go");
    brought.expect("early");
    brought.echo("hello");
}

#[test]
fn nothing_can_be_brought_along_to_a_reactor_that_stops() {
    let server = Running::server(Tcpstream, Config::new(), Script::echo());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _peer = Peer::new(listener.local_addr().unwrap(), Tcpstream);
    let (stream, _) = listener.accept().unwrap();
    let refused = server.ask(move |cx| {
        cx.stop();
        let listener = cx.adopt_listener(listener, &Tcpstream.into(), &Config::new());
        let stream = cx.adopt_stream(stream, &Tcpstream.into(), &Config::new());
        [matches!(listener, Err(Error::Stopped)), matches!(stream, Err(Error::Stopped))]
    });
    assert_eq!(refused, [true, true]);
}

#[test]
fn stream_that_is_closed_already_ends_and_harms_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = Peer::new(listener.local_addr().unwrap(), Tcpstream);
    let (stream, _) = listener.accept().unwrap();
    drop(peer);
    let (mut reactor, events) = reactor(Tcpstream, Script::echo());
    reactor.adopt_stream(stream, &Tcpstream.into(), &Config::new()).unwrap();
    turn_until(&mut reactor, |reactor| reactor.stats().connections == 0);
    events.connected();
    assert_eq!(events.disconnected().1.reason, CloseReason::PeerClosed);
}

// ---- callbacks ----

#[test]
fn callbacks_of_a_connection_come_in_order() {
    let server = Running::server(Tcpstream, Config::new(), Script::new());
    let mut peer = Peer::new(server.addr, Tcpstream);
    for n in 0..10_u8 {
        peer.send([n]);
    }
    peer.half_close();
    assert!(matches!(server.events.next(), Event::Started));
    let Event::Connected(id, 1) = server.events.next() else { panic!("connected comes first") };
    for n in 0..10_u8 {
        let Event::Message(from, _, body) = server.events.next() else { panic!("a message") };
        assert_eq!((from, &body[..]), (id, &[n][..]));
    }
    assert!(matches!(server.events.next(), Event::Disconnected(ended, _) if ended == id));
    drop(peer);
    server.until_empty();
    assert!(server.events.so_far().is_empty(), "exactly once, and the last");
}

#[test]
fn user_data_stays_with_its_connection() {
    let script = Script::new()
        .on_connect(|conn| conn.set_data(0_u32))
        .on_message(|conn, _| {
            let count = conn.data_mut::<u32>().unwrap();
            *count += 1;
            let count = *count;
            conn.send(count.to_be_bytes()).unwrap();
        })
        .on_disconnect(|conn, _| assert!(conn.data::<u32>().is_some()));
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut one = Peer::new(server.addr, Tcpstream);
    let mut other = Peer::new(server.addr, Tcpstream);
    for count in 1..4_u32 {
        one.send("x");
        one.expect(count.to_be_bytes());
    }
    other.send("x");
    other.expect(1_u32.to_be_bytes());
    drop((one, other));
    server.until_empty();
    assert_eq!(server.ask(|cx| cx.stats().panics), 0);
}

#[test]
fn close_inside_on_connect_ends_without_a_message() {
    let script = Script::new().on_connect(|conn| {
        conn.send("sorry").unwrap();
        conn.close();
    });
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut peer = Peer::new(server.addr, Tcpstream);
    peer.send("hello?");
    peer.expect("sorry");
    peer.expect_end();
    drop(peer);
    server.until_empty();
    assert!(matches!(server.events.next(), Event::Started));
    assert!(matches!(server.events.next(), Event::Connected(..)));
    let Event::Disconnected(_, report) = server.events.next() else { panic!("and no message") };
    assert_eq!(report.reason, CloseReason::Closed);
    assert!(server.events.so_far().is_empty());
}

#[test]
fn callback_may_close_another_connection() {
    let script = Script::new().on_message(|conn, msg| {
        let victim = ConnId::from_u64(msg.text().parse().unwrap());
        conn.cx().conn(victim).unwrap().close();
        conn.send("done").unwrap();
    });
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut victim = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    let mut other = Peer::new(server.addr, Tcpstream);
    other.send(id.as_u64().to_string());
    other.expect("done");
    victim.expect_end();
    assert_eq!(server.events.end_of(id), CloseReason::Closed);
}

#[test]
fn callback_may_abort_its_own_connection_in_the_middle_of_a_batch() {
    let script = Script::new().on_message(|conn, _| conn.abort());
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut peer = Peer::new(server.addr, Tcpstream);
    peer.write(&common::message(&Tcpstream.into(), b"x").repeat(100));
    peer.expect_end();
    server.until_empty();
    let told = server.events.so_far();
    let messages = told.iter().filter(|event| matches!(event, Event::Message(..))).count();
    assert_eq!(messages, 1, "none after the abort");
}

#[test]
fn callback_may_send_to_all_others_and_to_itself() {
    let script = Script::new().on_message(|conn, msg| {
        let everybody: Vec<_> = conn.cx().connections().collect();
        for id in everybody {
            conn.cx().conn(id).unwrap().send(&msg).unwrap();
        }
    });
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut peers: Vec<_> = (0..10).map(|_| Peer::new(server.addr, Tcpstream)).collect();
    for _ in &peers {
        server.events.connected();
    }
    peers[3].send("to all");
    for peer in &mut peers {
        peer.expect("to all");
    }
}

#[test]
fn callback_may_listen_and_dial() {
    let script = Script::new().on_message(|conn, msg| {
        if msg.body() == b"open" {
            let (_, addr) = conn.cx().listen("127.0.0.1:0").unwrap();
            conn.cx().connect(addr).unwrap();
        } else {
            answer(conn, &msg).unwrap();
        }
    });
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut peer = Peer::new(server.addr, Tcpstream);
    server.events.connected();
    peer.send("open");
    // Both ends of the new connection.
    server.events.connected();
    server.events.connected();
    peer.echo("after");
}

#[test]
fn send_after_close_is_refused() {
    let (tell, told) = channel();
    let script = Script::new().on_connect(move |conn| {
        conn.close();
        tell.send(conn.send("x")).unwrap();
    });
    let server = Running::server(Native, Config::new(), script);
    let _peer = Peer::new(server.addr, Native);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(SendError::Closed));
}

#[test]
fn reconnecting_client_is_greeted_before_what_it_kept() {
    let script = Script::new().on_connect(|conn| conn.send("first").unwrap());
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Running::client(Tcpstream, Config::new(), script);
    let addr = server.local_addr().unwrap();
    let id = client.ask(move |cx| {
        let id = cx.connect(addr).unwrap();
        cx.conn(id).unwrap().send("second").unwrap();
        id
    });
    let mut peer = Peer::of(server.accept().unwrap().0, Tcpstream);
    peer.expect("first");
    peer.expect("second");
    client.handle.send(id, "third").unwrap();
    peer.expect("third");
}

// ---- panics ----

/// A hundred connections are served before and after `provoke` makes a callback panic.
fn assert_isolated(script: Script, provoke: impl FnOnce(&Running)) -> Running {
    assert_isolated_on(Tcpstream, script, provoke)
}

fn assert_isolated_on(
    protocol: impl Into<AnyProtocol>,
    script: Script,
    provoke: impl FnOnce(&Running),
) -> Running {
    let protocol = protocol.into();
    let server = Running::server(protocol, Config::new(), script);
    let mut good: Vec<_> = (0..100).map(|_| Peer::new(server.addr, protocol)).collect();
    for peer in &mut good {
        peer.echo("before");
    }
    provoke(&server);
    for peer in &mut good {
        peer.echo("after");
    }
    assert_eq!(server.ask(|cx| cx.stats().panics), 1);
    drop(good);
    server.until_empty();
    server
}

/// The connection that a callback panicked for is closed with the panic's text.
fn assert_ends_panicked(server: &Running) {
    let text = server.events.wait(|event| match event {
        Event::Disconnected(_, report) => match report.reason {
            CloseReason::Panicked(text) => Some(text),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(text, "provoked");
}

fn is_marked(conn: &Conn<'_, AnyProtocol>) -> bool {
    conn.data::<()>().is_some()
}

#[test]
fn panic_in_on_message_ends_only_that_connection() {
    let script = Script::new().on_message(|conn, msg| {
        assert!(msg.body() != b"panic", "provoked");
        answer(conn, &msg).unwrap();
    });
    assert_isolated(script, |server| {
        let mut bad = Peer::new(server.addr, Tcpstream);
        bad.send("panic");
        bad.expect_end();
        assert_ends_panicked(server);
    });
}

#[test]
fn panic_in_on_connect_ends_only_that_connection() {
    let mut count = 0;
    let script = Script::echo().on_connect(move |_| {
        count += 1;
        assert!(count != 101, "provoked");
    });
    assert_isolated(script, |server| {
        Peer::new(server.addr, Tcpstream).expect_end();
        assert_ends_panicked(server);
    });
}

#[test]
fn panic_in_on_disconnect_leaves_nothing_behind() {
    let script = Script::new()
        .on_message(|conn, msg| {
            conn.set_data(());
            if msg.body() != b"mark" {
                conn.set_data(0_u8);
            }
            answer(conn, &msg).unwrap();
        })
        .on_disconnect(|conn, _| assert!(!is_marked(conn), "provoked"));
    assert_isolated(script, |server| Peer::new(server.addr, Tcpstream).echo("mark"));
}

#[test]
fn panic_in_on_writable_ends_only_that_connection() {
    let script = Script::echo().on_writable(|_| panic!("provoked"));
    assert_isolated(script, |server| {
        let mut bad = Peer::new(server.addr, Tcpstream);
        bad.echo("here");
        server.ask(|cx| {
            let last = cx.connections().last().unwrap();
            // Above the high watermark of 1 MiB, and on its way at once.
            for _ in 0..3 {
                cx.conn(last).unwrap().send(vec![b'x'; 1 << 19]).unwrap();
            }
        });
        for _ in 0..3 {
            bad.expect(vec![b'x'; 1 << 19]);
        }
        bad.expect_end();
        assert_ends_panicked(server);
    });
}

#[test]
fn panic_in_on_timer_is_reported() {
    let script = Script::echo().on_timer(|_, _| panic!("provoked"));
    assert_isolated(script, |server| {
        server.ask(|cx| cx.set_timer(Duration::ZERO, 1));
        match server.events.incident() {
            Incident::Panicked { callback, text } => {
                assert_eq!((callback, &text[..]), ("on_timer", "provoked"));
            }
            incident => panic!("{incident}"),
        }
    });
}

#[test]
fn panic_in_a_filter_is_reported() {
    assert_isolated(Script::echo(), |server| {
        let picky = longhaul::Audience::filter(|_| panic!("provoked"));
        server.handle.broadcast_to(picky, "x").unwrap();
        assert!(matches!(server.events.incident(), Incident::Panicked { .. }));
    });
}

#[test]
fn panic_in_on_start_does_not_stop_the_loop() {
    let script = Script::echo().on_start(|_| panic!("provoked"));
    assert_isolated(script, |_| ());
}

#[test]
fn panic_in_on_stop_does_not_keep_the_loop_from_ending() {
    let mut server =
        Running::server(Native, Config::new(), Script::new().on_stop(|_| panic!("provoked")));
    server.handle.stop();
    server.join();
    assert_eq!(server.handle.stats().panics, 1);
}

/// Of what was read together: answers that were given go out, the one that panicked is told so, and
/// what came behind it is not handled.
#[test]
fn panic_ends_the_messages_of_a_read_where_it_is() {
    for answers_first in [false, true] {
        let script = Script::new().on_message(move |conn, msg| {
            let is_bad = msg.body() == b"panic";
            if !is_bad || answers_first {
                answer(conn, &msg).unwrap();
            }
            assert!(!is_bad, "provoked");
        });
        assert_isolated_on(Native, script, |server| {
            let mut bad = Peer::new(server.addr, Native);
            let bodies = ["one", "two", "panic", "behind"];
            let read: Vec<u8> =
                (1..).zip(bodies).flat_map(|(id, body)| request(id, body.as_bytes())).collect();
            bad.write(&read);
            for body in bodies.into_iter().take(2) {
                bad.expect(body);
            }
            let (head, body) = bad.next_frame().expect("the one that panicked is answered");
            if answers_first {
                assert_eq!((head.kind, &body[..]), (Kind::Reply, &b"panic"[..]));
            } else {
                assert_eq!((head.kind, head.tag), (Kind::Error, error_code::PANICKED));
            }
            bad.expect_end();
            assert_ends_panicked(server);
        });
    }
}

#[test]
fn panic_after_an_answer_does_not_lose_it() {
    let script = Script::new().on_message(|conn, msg| {
        answer(conn, &msg).unwrap();
        panic!("provoked");
    });
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut peer = Peer::new(server.addr, Tcpstream);
    peer.echo("answered");
    peer.expect_end();
}

// ---- fairness ----

#[test]
fn firehose_does_not_starve_a_quiet_peer() {
    let server = Running::server(
        Tcpstream,
        Config::new(),
        Script::new().on_message(|conn, msg| {
            if msg.body() != b"noise" {
                answer(conn, &msg).unwrap();
            }
        }),
    );
    let (done, is_done) = channel::<()>();
    let addr = server.addr;
    let firehose = thread::spawn(move || {
        let noise = common::message(&Tcpstream.into(), b"noise").repeat(3000);
        let mut peer = Peer::new(addr, Tcpstream);
        while is_done.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            peer.stream.write_all(&noise).unwrap();
        }
    });
    let mut quiet = Peer::new(server.addr, Tcpstream);
    for _ in 0..100 {
        quiet.echo("still served");
    }
    drop(done);
    firehose.join().unwrap();
}
