//! The promises to other threads, by one who has only read them: blocking methods end, whoever stops,
//! drops or closes what they wait for; strangers on raw sockets cost themselves.
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
    net::{TcpListener, TcpStream},
    sync::{Arc, Barrier, mpsc::channel},
    thread,
    time::Duration,
};

use common::{
    Event, PATIENCE, Peer, Running, Script, descriptors, frame,
    pair::{NEVER, Pair, not_redialled},
    request,
};
use longhaul::{
    CallError, Client, ClientBuilder, Config, Conn, Error, Fate, Handler, Message, Reactor,
    ReactorBuilder, Reconnect, SendError, Server,
    protocol::{AnyId, AnyProtocol, Head, Kind, Native},
};

struct Deaf;

impl Handler for Deaf {
    type Protocol = Native;

    fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
}

/// What a thread returns, within the patience of a test.
fn in_time<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> impl FnOnce() -> T {
    let (tell, told) = channel();
    thread::spawn(move || tell.send(run()));
    move || told.recv_timeout(PATIENCE).expect("a blocking method ends")
}

/// Requests are kept and never answered.
fn keeping() -> Script {
    let mut kept = Vec::new();
    Script::new().on_message(move |conn, msg| kept.push(conn.defer(&msg)))
}

#[test]
fn blocked_call_without_a_timeout_ends_with_its_connection_and_with_its_reactor() {
    for mode in 0..4 {
        let pair = Pair::new(Native, keeping(), Script::new());
        let (handle, conn) = (pair.client.handle.clone(), pair.dialled);
        let ended = in_time(move || handle.call(conn, "held", Duration::MAX));
        pair.server.events.message();
        match mode {
            0 => pair.client.handle.abort(conn),
            1 => pair.server.handle.abort(pair.accepted),
            2 => pair.client.handle.stop_within(Duration::ZERO),
            _ => pair.server.handle.stop_within(Duration::ZERO),
        }
        let error = ended().unwrap_err();
        assert_eq!(error.fate(), Fate::MaybeSent, "{error}");
    }
}

#[test]
fn reactor_that_is_dropped_ends_every_wait_for_it() {
    let server = Running::server(Native, Config::new(), keeping());
    let mut reactor = Reactor::new(Deaf).unwrap();
    let conn = reactor.connect(server.addr).unwrap();
    let handle = reactor.handle();
    while !handle.is_up(conn) {
        reactor.turn(Some(Duration::from_millis(1))).unwrap();
    }
    // It is run by another thread, or its own thread could not wait.
    let start = Arc::new(Barrier::new(5));
    let waits: Vec<_> = (0..4)
        .map(|kind| {
            let (handle, start) = (handle.clone(), start.clone());
            in_time(move || {
                start.wait();
                match kind {
                    0 => handle.call(conn, "x", Duration::MAX).is_err(),
                    1 => handle.ask(|_| thread::current().id()).is_err(),
                    2 => {
                        let target = "127.0.0.1:1";
                        handle.connect_and_wait_with(target, &Native, &Config::new()).is_err()
                    }
                    _ => handle.call_async(conn, "y", Duration::MAX).wait().is_err(),
                }
            })
        })
        .collect();
    start.wait();
    for _ in 0..3 {
        reactor.turn(Some(Duration::ZERO)).unwrap();
    }
    drop(reactor);
    for (kind, wait) in waits.into_iter().enumerate() {
        // The closure may have been run just before the end.
        assert!(wait() || kind == 1, "{kind}");
    }
    assert!(handle.is_stopped());
    assert_eq!(handle.send(conn, "x"), Err(SendError::Stopped));
    assert!(matches!(handle.ask(|_| ()), Err(Error::Stopped)));
}

#[test]
fn who_waits_to_be_connected_hears_that_it_will_never_be() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = nobody.local_addr().unwrap();
    drop(nobody);
    let config = Config::new().reconnect(Reconnect::fixed(NEVER));
    let client = Arc::new(ClientBuilder::new(Native).config(config).start(addr).unwrap());
    let waiting = client.clone();
    let waited = in_time(move || waiting.wait_connected(Duration::MAX));
    client.close();
    let Err(Error::Io(error)) = waited() else { panic!("it is closed") };
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
}

#[test]
fn who_dials_and_waits_hears_of_a_peer_that_resets_or_says_nonsense_or_nothing() {
    for nonsense in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0; 100], &[0xff; 100]] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(nonsense);
            // Closed with the hello unread: a reset.
        });
        let dialled = in_time(move || Client::connect(addr).map(|_| ()));
        assert!(matches!(dialled(), Err(Error::Io(_))));
    }
}

#[test]
fn blocking_methods_are_refused_in_every_callback() {
    let (tell, told) = channel();
    let tell_end = tell.clone();
    let (keep, kept) = channel();
    let server = Running::server(
        Native,
        Config::new(),
        Script::new()
            .on_message(move |conn, msg| {
                let (handle, id) = (conn.cx().handle(), conn.id());
                let responder = conn.defer(&msg).unwrap();
                let refused = [
                    matches!(handle.ask(|_| ()), Err(Error::OnLoopThread)),
                    matches!(handle.call(id, "x", NEVER), Err(CallError::OnLoopThread)),
                    matches!(
                        handle.call_async(id, "x", NEVER).wait(),
                        Err(CallError::OnLoopThread)
                    ),
                    matches!(
                        handle.listen_with("127.0.0.1:0", &Native.into(), &Config::new()),
                        Err(Error::OnLoopThread)
                    ),
                    matches!(
                        handle.connect_and_wait_with("127.0.0.1:1", &Native.into(), &Config::new()),
                        Err(Error::OnLoopThread)
                    ),
                ];
                let _ = tell.send(refused.to_vec());
                let refused = responder.reply_wait("answer", NEVER).unwrap_err();
                let _ = keep.send(*refused.error() == SendError::OnLoopThread);
                let (responder, body) = refused.take_back().unwrap();
                responder.reply(body).unwrap();
            })
            .on_stop(move |cx| {
                let asked = cx.handle().ask(|_| ());
                let _ =
                    tell_end.send(vec![matches!(asked, Err(Error::OnLoopThread | Error::Stopped))]);
            }),
    );
    let client = Client::connect(server.addr).unwrap();
    assert_eq!(client.call("hello", PATIENCE).unwrap(), "answer");
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), [true; 5]);
    assert!(kept.recv_timeout(PATIENCE).unwrap());
    server.handle.stop();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), [true]);
}

#[test]
fn stop_from_many_threads_says_the_same_to_all() {
    let server = Arc::new(Server::bind("127.0.0.1:0", Deaf).unwrap());
    let client = Client::connect(server.addr()).unwrap();
    let start = Arc::new(Barrier::new(4));
    let stops: Vec<_> = (0..4)
        .map(|_| {
            let (server, start) = (server.clone(), start.clone());
            in_time(move || {
                start.wait();
                server.stop().unwrap()
            })
        })
        .collect();
    let reports: Vec<_> = stops.into_iter().map(|stop| stop()).collect();
    assert!(reports.iter().all(|report| *report == reports[0]), "{reports:?}");
    assert_eq!(reports[0].connections, 1);
    drop(client);
}

#[test]
fn client_that_is_dropped_on_its_own_loop_blocks_nothing() {
    let server = Server::bind("127.0.0.1:0", Deaf).unwrap();
    let client = Arc::new(Client::connect(server.addr()).unwrap());
    let (tell, told) = channel();
    let handle = client.handle();
    let inner = client.clone();
    handle
        .run(move |_| {
            let refused = inner.stop().is_err();
            drop(inner);
            let _ = tell.send(refused);
        })
        .unwrap();
    drop(client);
    assert!(told.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn calls_that_race_with_the_end_of_their_connection_end_once_and_never_as_answered() {
    for round in 0..20 {
        let pair = Pair::new(Native, Script::echo(), Script::new());
        let start = Arc::new(Barrier::new(4));
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let (handle, conn, start) =
                    (pair.client.handle.clone(), pair.dialled, start.clone());
                in_time(move || {
                    start.wait();
                    let calls: Vec<_> =
                        (0..50).map(|_| handle.call_async(conn, "x", NEVER)).collect();
                    let mut answered = 0;
                    for (index, call) in calls.into_iter().enumerate() {
                        if index % 7 == 0 {
                            drop(call);
                            continue;
                        }
                        match call.wait() {
                            Ok(body) => {
                                assert_eq!(body, "x");
                                answered += 1;
                            }
                            Err(error) => assert_ne!(error.fate(), Fate::Answered, "{error}"),
                        }
                    }
                    answered
                })
            })
            .collect();
        start.wait();
        match round % 4 {
            0 => pair.client.handle.abort(pair.dialled),
            1 => pair.server.handle.drain(pair.accepted),
            2 => pair.client.handle.close(pair.dialled),
            _ => pair.server.handle.stop(),
        }
        for caller in callers {
            let answered = caller();
            assert!(answered <= 50);
        }
        pair.client.until_empty();
        assert_eq!(pair.client.ask(|cx| cx.stats().calls_in_flight), 0);
    }
}

#[test]
fn answer_of_a_thread_that_comes_an_epoch_too_late_goes_nowhere() {
    let (keep, kept) = channel();
    let server = Running::server(
        Native,
        Config::new(),
        Script::new().on_message(move |conn, msg| keep.send(conn.defer(&msg).unwrap()).unwrap()),
    );
    let quick = Config::new().reconnect(Reconnect::fixed(Duration::ZERO));
    let client = Running::client(Native, quick.clone(), Script::new());
    let conn = client.handle.connect_and_wait_with(server.addr, &Native.into(), &quick).unwrap();
    let first = client.handle.call_async(conn, "first", NEVER);
    let old = kept.recv_timeout(PATIENCE).unwrap();
    server.handle.abort(old.conn());
    assert!(first.wait().is_err());
    client.until(move |cx| cx.conn(conn).is_some_and(|conn| conn.epoch() == 2));
    assert!(old.is_cancelled());
    client.until(move |cx| cx.conn(conn).is_some_and(|conn| conn.is_writable()));
    let second = loop {
        let call = client.handle.call_async(conn, "second", NEVER);
        match kept.recv_timeout(Duration::from_millis(500)) {
            Ok(new) => break (call, new),
            Err(_) => assert!(call.wait().is_err()),
        }
    };
    assert_eq!(old.reply("wrong").map_err(SendError::from), Err(SendError::Closed));
    second.1.reply("right").unwrap();
    assert_eq!(second.0.wait().unwrap(), "right");
}

#[test]
fn stranger_costs_no_descriptor_and_no_slot_whatever_it_says() {
    let server = Running::server(Native, Config::new(), Script::echo());
    let mut good = Peer::new(server.addr, Native);
    good.echo("before");
    let before = descriptors();
    let tag = |kind, id| Head::new(kind, AnyId::Native(id));
    let native: AnyProtocol = Native.into();
    let starts = [
        frame(&native, &tag(Kind::Hello, 0), b""),
        frame(&native, &tag(Kind::Hello, 0), &[0; 20]),
        frame(&native, &tag(Kind::Hello, 0), &[0xff; 1025]),
        frame(&native, &tag(Kind::Ping, 0), b"x"),
        frame(&native, &tag(Kind::Goaway, 0), b""),
        frame(&native, &tag(Kind::Cancel, 1), b""),
        request(1, b"x"),
        vec![0; 24],
        vec![0xff; 24],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(),
        vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    for bytes in &starts {
        let mut stranger = Peer::mute(server.addr, Native);
        stranger.write(bytes);
        stranger.expect_end();
        server.events.ended();
    }
    server.until(|cx| cx.stats().connections == 1);
    assert!(descriptors() <= before);
    good.echo("after");
}

#[test]
fn peer_that_resets_in_the_middle_of_anything_ends_only_itself() {
    let server = Running::server(Native, Config::new(), keeping());
    for part in 1..40 {
        let mut peer = Peer::new(server.addr, Native);
        let bytes = request(1, &[b'x'; 40]).repeat(2);
        // A number of requests that the server keeps, and then a part of one.
        peer.write(&bytes[..part]);
        let socket = socket2::SockRef::from(&peer.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
    }
    server.until_empty();
    let stats = server.ask(|cx| cx.stats());
    assert_eq!(stats.panics, 0);
}

#[test]
fn adopted_stream_that_is_dead_already_ends_like_any_other() {
    let reactor = Running::client(Native, Config::new(), Script::new());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for reset in [false, true] {
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (here, _) = listener.accept().unwrap();
        if reset {
            socket2::SockRef::from(&there).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(there);
        let adopted = reactor.ask(move |cx| {
            cx.adopt_stream(here, &Native.into(), &Config::new()).map(|id| id.as_u64()).is_ok()
        });
        if adopted {
            reactor.events.wait(|event| {
                matches!(event, Event::Incident(_) | Event::Disconnected(..)).then_some(())
            });
        }
    }
    reactor.until_empty();
}

#[test]
fn adopted_streams_are_within_the_limit_of_the_reactor_or_refused() {
    let builder = ReactorBuilder::new(AnyProtocol::from(Native)).max_connections(1);
    let reactor = Running::start(builder, Script::echo(), |reactor| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let native = Native.into();
        reactor.adopt_listener(listener, &native, &Config::new()).unwrap().1
    });
    let mut first = Peer::new(reactor.addr, Native);
    first.echo("served");
    let mut second = Peer::mute(reactor.addr, Native);
    second.expect_end();
    drop(first);
    reactor.until_empty();
    let mut third = Peer::new(reactor.addr, Native);
    third.echo("served again");
}

#[test]
fn sends_of_many_threads_to_a_peer_that_does_not_read_stay_within_the_watermark() {
    let small =
        Config::new().watermarks(1000, 10_000).hard_limit(20_000).socket_buffers(4096, 4096);
    let server = Running::server(Native, small, Script::new());
    let _peer = Peer::new(server.addr, Native);
    let conn = server.events.connected();
    let start = Arc::new(Barrier::new(5));
    let senders: Vec<_> = (0..4)
        .map(|_| {
            let (handle, start) = (server.handle.clone(), start.clone());
            in_time(move || {
                start.wait();
                let mut full = 0;
                while full < 1000 {
                    match handle.send(conn, vec![b'x'; 500]) {
                        Ok(()) => {}
                        Err(SendError::Full) => full += 1,
                        Err(error) => panic!("{error}"),
                    }
                    thread::yield_now();
                }
            })
        })
        .collect();
    start.wait();
    for sender in senders {
        sender();
    }
    let queued = server.ask(move |cx| cx.conn(conn).map(|conn| conn.queued()));
    assert!(queued.is_some_and(|queued| queued <= 10_000 + 600), "{queued:?}");
}

#[test]
fn stop_within_no_time_cuts_a_peer_that_takes_nothing() {
    let mut pair = Pair::with(Native, Config::new(), keeping(), not_redialled(), Script::new());
    let held = pair.client.handle.call_async(pair.dialled, vec![1; 100], Duration::MAX);
    pair.server.events.message();
    pair.client.handle.stop_within(Duration::MAX);
    pair.client.handle.stop_within(Duration::from_secs(u64::MAX));
    pair.client.handle.stop_within(Duration::ZERO);
    pair.client.join();
    let error = held.wait().unwrap_err();
    assert_eq!(error.fate(), Fate::MaybeSent, "{error}");
}
