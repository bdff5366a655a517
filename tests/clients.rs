//! `Client` and `Server`: a reactor on a thread of its own, or one for many clients.
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
    io,
    net::TcpListener,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

use common::{PATIENCE, now, pair::NEVER};
use longhaul::{
    CallError, Client, ClientBuilder, ClientState, CloseReport, Config, Conn, ConnId, Error, Fate,
    Handle, Handler, Message, PendingCall, Reactor, ReactorBuilder, Reconnect, Responder,
    SendError, Server,
    protocol::{AnyProtocol, Kind, Native, Tcpstream},
};

/// Sends back what it gets, and tells of connections and pushes.
struct Echo<P> {
    tell: Sender<Told>,
    protocol: std::marker::PhantomData<P>,
}

#[derive(Debug, PartialEq)]
enum Told {
    Connected(ConnId),
    Message(Vec<u8>),
    Disconnected(ConnId),
}

impl<P: longhaul::protocol::Protocol> Handler for Echo<P> {
    type Protocol = P;

    fn on_connect(&mut self, conn: &mut Conn<'_, P>) {
        let _ = self.tell.send(Told::Connected(conn.id()));
    }

    fn on_message(&mut self, conn: &mut Conn<'_, P>, msg: Message<'_, P>) {
        let _ = self.tell.send(Told::Message(msg.body().to_vec()));
        if msg.kind() != Kind::Push {
            conn.reply(&msg, &msg).unwrap();
        }
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, P>, _: &CloseReport) {
        let _ = self.tell.send(Told::Disconnected(conn.id()));
    }
}

fn echo<P>() -> (Echo<P>, Receiver<Told>) {
    let (tell, told) = channel();
    (Echo { tell, protocol: std::marker::PhantomData }, told)
}

fn server() -> (Server, Receiver<Told>) {
    let (handler, told) = echo();
    (Server::bind("127.0.0.1:0", handler).unwrap(), told)
}

fn next(told: &Receiver<Told>) -> Told {
    told.recv_timeout(PATIENCE).expect("the handler tells something in time")
}

/// What the handler tells until it is dropped, by the thread that had it, when that ends.
fn until_dropped(told: &Receiver<Told>) -> Vec<Told> {
    let mut all = Vec::new();
    loop {
        match told.recv_timeout(PATIENCE) {
            Ok(told) => all.push(told),
            Err(RecvTimeoutError::Disconnected) => return all,
            Err(RecvTimeoutError::Timeout) => panic!("the handler is still there"),
        }
    }
}

/// An address on which nobody listens: it was taken, and given back.
fn nobody() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

// ---- what they do ----

#[test]
fn client_sends_and_calls_and_closes() {
    let (server, told) = server();
    let client = Client::connect(server.addr()).unwrap();
    let Told::Connected(accepted) = next(&told) else { panic!("connected first") };
    assert_eq!(client.state(), ClientState::Connected);
    client.send("push").unwrap();
    assert_eq!(next(&told), Told::Message(b"push".to_vec()));
    assert_eq!(client.call("call", NEVER).unwrap(), "call");
    assert_eq!(client.call_tagged(longhaul::Tagged(3, "tag"), NEVER).unwrap().0, 3);
    assert_eq!(common::pair::block_on(client.call_async("async", NEVER)).unwrap(), "async");
    client.close();
    client.stop().unwrap();
    assert_eq!(client.state(), ClientState::Closed);
    server.stop().unwrap();
    assert_eq!(until_dropped(&told).last(), Some(&Told::Disconnected(accepted)));
}

#[test]
fn server_calls_its_client_through_the_same_handle() {
    let (server, told) = server();
    let (handler, client_told) = echo::<Native>();
    let _client = ClientBuilder::new(Native).connect_with(server.addr(), handler).unwrap();
    let Told::Connected(accepted) = next(&told) else { panic!("connected first") };
    assert_eq!(server.handle().call(accepted, "who are you?", NEVER).unwrap(), "who are you?");
    server.handle().send(accepted, "push").unwrap();
    let seen: Vec<_> = client_told.iter().skip(1).take(2).collect();
    assert_eq!(seen, [Told::Message(b"who are you?".to_vec()), Told::Message(b"push".to_vec())]);
}

#[test]
fn client_without_a_handler_leaves_requests_unanswered() {
    let (server, told) = server();
    let _client = Client::connect(server.addr()).unwrap();
    let Told::Connected(accepted) = next(&told) else { panic!("connected first") };
    server.handle().send(accepted, "ignored").unwrap();
    let error = server.handle().call(accepted, "anyone?", NEVER).unwrap_err();
    let unanswered = longhaul::error_code::UNANSWERED;
    assert!(matches!(error, CallError::Remote { code, .. } if code == unanswered), "{error}");
}

#[test]
fn client_of_another_protocol_is_made_by_its_builder() {
    let (handler, _told) = echo::<Tcpstream>();
    let server = Server::bind_with("127.0.0.1:0", ReactorBuilder::new(Tcpstream), handler).unwrap();
    let client = ClientBuilder::new(Tcpstream).connect(server.addr()).unwrap();
    assert_eq!(client.call("hello", NEVER).unwrap(), "hello");
}

#[test]
fn many_clients_share_one_reactor() {
    const CLIENTS: usize = 20;
    let (server, told) = server();
    let (handler, _) = echo::<Native>();
    let mut reactor = Reactor::new(handler).unwrap();
    let handle = reactor.handle();
    let running = std::thread::spawn(move || reactor.run().unwrap());
    let connect =
        || Client::connect_on_with(&handle, server.addr(), &Native, &Config::new()).unwrap();
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();
    std::thread::scope(|scope| {
        for (number, client) in clients.iter().enumerate() {
            scope.spawn(move || {
                for call in 0..50 {
                    let body = format!("{number} {call}");
                    assert_eq!(client.call(&body, NEVER).unwrap(), body);
                }
            });
        }
    });
    // Each has a connection of its own, and stopping or dropping one ends only that.
    let mut clients = clients.into_iter();
    clients.next().unwrap().stop().unwrap();
    drop(clients.next());
    let mut gone = 0;
    while gone < 2 {
        gone += usize::from(matches!(next(&told), Told::Disconnected(_)));
    }
    for client in clients {
        assert_eq!(client.call("still here", NEVER).unwrap(), "still here");
    }
    handle.stop();
    running.join().unwrap();
}

#[test]
fn client_on_a_reactor_that_has_stopped_fails() {
    let (handler, _) = echo::<Native>();
    let reactor = Reactor::new(handler).unwrap();
    let handle = reactor.handle();
    drop(reactor);
    let failed = Client::connect_on_with(&handle, nobody(), &Native, &Config::new());
    assert!(matches!(failed, Err(Error::Stopped)), "{failed:?}");
}

#[test]
fn client_is_not_made_on_the_loop_that_it_would_wait_for() {
    let (server, _told) = server();
    let handle = server.handle();
    let addr = server.addr().clone();
    let failed = server
        .handle()
        .ask(move |_| Client::connect_on_with(&handle, addr, &Native, &Config::new()).map(drop))
        .unwrap();
    assert!(matches!(failed, Err(Error::OnLoopThread)), "{failed:?}");
}

// ---- connecting ----

#[test]
fn connecting_to_a_closed_port_fails_at_once_with_the_systems_error() {
    let began = now();
    let Err(Error::Io(error)) = Client::connect(nobody()) else { panic!("nobody listens") };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(now() - began < PATIENCE, "it did not wait for a second attempt");
}

#[test]
fn connecting_on_a_reactor_to_a_closed_port_leaves_nothing_behind() {
    let (server, _told) = server();
    let failed = Client::connect_on_with(&server.handle(), nobody(), &Native, &Config::new());
    assert!(matches!(failed, Err(Error::Io(_))), "{failed:?}");
    assert_eq!(server.handle().ask(|cx| cx.stats().connections).unwrap(), 0);
}

#[test]
fn settings_that_can_not_work_are_refused() {
    let failed =
        ClientBuilder::new(Native).config(Config::new().watermarks(2, 1)).connect("127.0.0.1:1");
    assert!(matches!(failed, Err(Error::Config(_))), "{failed:?}");
    assert!(matches!(Client::connect("no address"), Err(Error::Address(_))));
}

#[test]
fn what_is_sent_before_the_connection_is_up_is_delivered_in_order() {
    const MESSAGES: u32 = 1000;
    let addr = nobody();
    let again = Config::new().reconnect(Reconnect::fixed(Duration::from_millis(5)));
    let client = ClientBuilder::new(Native).config(again).start(addr).unwrap();
    assert_eq!(client.state(), ClientState::Connecting);
    for number in 0..MESSAGES {
        client.send(number.to_be_bytes()).unwrap();
    }
    let refused = client.call("not kept", NEVER).unwrap_err();
    assert!(matches!(refused, CallError::Disconnected { .. }), "{refused}");
    assert_eq!(refused.fate(), Fate::NotSent);

    let (handler, told) = echo();
    let _server: Server = Server::bind(addr, handler).unwrap();
    assert!(matches!(next(&told), Told::Connected(_)));
    for number in 0..MESSAGES {
        assert_eq!(next(&told), Told::Message(number.to_be_bytes().to_vec()));
    }
    assert_eq!(client.call("up", NEVER).unwrap(), "up");
    assert_eq!(client.state(), ClientState::Connected);
}

#[test]
fn client_comes_back_by_itself_with_the_same_id() {
    let (server, told) = server();
    let soon = Config::new().reconnect(Reconnect::fixed(Duration::ZERO));
    let (handler, client_told) = echo::<Native>();
    let client =
        ClientBuilder::new(Native).config(soon).connect_with(server.addr(), handler).unwrap();
    for _ in 0..5 {
        assert_eq!(next(&client_told), Told::Connected(client.conn()));
        let Told::Connected(accepted) = next(&told) else { panic!("connected first") };
        assert_eq!(client.call("hello", NEVER).unwrap(), "hello");
        assert_eq!(next(&told), Told::Message(b"hello".to_vec()));
        server.handle().abort(accepted);
        assert_eq!(next(&told), Told::Disconnected(accepted));
        assert_eq!(next(&client_told), Told::Disconnected(client.conn()));
    }
}

// ---- the end ----

#[test]
fn stopping_joins_and_twice_is_fine() {
    let (server, told) = server();
    let client = Client::connect(server.addr()).unwrap();
    for _ in 0..2 {
        client.stop().unwrap();
        assert!(client.handle().is_stopped());
    }
    for _ in 0..2 {
        server.stop().unwrap();
        assert!(server.handle().is_stopped());
    }
    assert!(matches!(until_dropped(&told)[..], [Told::Connected(_), Told::Disconnected(_)]));
    assert_eq!(client.send("late"), Err(SendError::Stopped));
    assert_eq!(client.call("late", NEVER), Err(CallError::Stopped { fate: Fate::NotSent }));
}

#[test]
fn stopping_from_many_threads_is_fine() {
    let (server, _told) = server();
    let client = Client::connect(server.addr()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| client.stop().unwrap());
            scope.spawn(|| server.stop().unwrap());
        }
    });
}

#[test]
fn stopping_on_its_own_thread_is_refused() {
    let (server, _told) = server();
    let client = std::sync::Arc::new(Client::connect(server.addr()).unwrap());
    let inside = client.clone();
    let outcome = client.handle().ask(move |_| inside.stop()).unwrap();
    assert!(matches!(outcome, Err(Error::OnLoopThread)), "{outcome:?}");
    client.stop().unwrap();
}

#[test]
fn dropping_neither_blocks_nor_fails_and_the_threads_end() {
    let (server, told) = server();
    let (handler, client_told) = echo::<Native>();
    let client = ClientBuilder::new(Native).connect_with(server.addr(), handler).unwrap();
    let (client_handle, server_handle) = (client.handle(), server.handle());
    // Also on their own loops, where nobody could wait for them.
    client_handle.run(move |_| drop(client)).unwrap();
    server_handle.run(move |_| drop(server)).unwrap();
    until_dropped(&told);
    until_dropped(&client_told);
    assert!(server_handle.is_stopped() && client_handle.is_stopped());
}

#[test]
fn dropping_a_client_that_never_connected_ends_its_thread() {
    let (handler, told) = echo::<Native>();
    let client = ClientBuilder::new(Native).start_with(nobody(), handler).unwrap();
    client.send("never").unwrap();
    drop(client);
    assert_eq!(until_dropped(&told), []);
}

// ---- types ----

#[test]
fn what_threads_share_can_be_shared() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Send + Sync>() {}
    fn is_error<T: std::error::Error + Send + Sync + 'static>() {}
    fn is_cloned<T: Clone + Send + Sync + 'static>() {}

    is_cloned::<Handle<Native>>();
    is_cloned::<Handle<AnyProtocol>>();
    is_sync::<Client<AnyProtocol>>();
    is_sync::<Server<AnyProtocol>>();
    is_sync::<PendingCall<AnyProtocol>>();
    is_send::<Responder<AnyProtocol>>();
    is_send::<Reactor<Echo<AnyProtocol>>>();
    is_sync::<ReactorBuilder<AnyProtocol>>();
    is_sync::<ClientBuilder<AnyProtocol>>();
    is_error::<Error>();
    is_error::<CallError>();
    is_error::<SendError>();
    is_error::<longhaul::ConfigError>();
    is_error::<longhaul::NetworkError>();
    is_error::<longhaul::protocol::DecodeError>();
    is_cloned::<longhaul::CloseReason>();
    is_cloned::<CloseReport>();
}

#[test]
fn client_can_be_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let config = Config::new().reconnect(Reconnect::fixed(Duration::from_millis(20)));
    let client = ClientBuilder::new(Native).config(config).start(addr).unwrap();
    while client.last_close().is_none() {
        std::thread::yield_now();
    }
    let Err(Error::Io(late)) = client.wait_connected(Duration::from_millis(1)) else {
        panic!("nobody listens")
    };
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    assert!(late.to_string().contains("could not connect"), "{late}");
    let server = Server::<Native>::bind(addr, Silent).unwrap();
    client.wait_connected(PATIENCE).unwrap();
    assert_eq!(client.state(), ClientState::Connected);
    client.stop().unwrap();
    let Err(Error::Io(closed)) = client.wait_connected(NEVER) else { panic!("it was stopped") };
    assert_eq!(closed.kind(), io::ErrorKind::NotConnected);
    assert_eq!((client.undelivered(), client.take_undelivered()), (0, vec![]));
    server.stop().unwrap();
}

/// Does nothing.
struct Silent;

impl Handler for Silent {
    type Protocol = Native;

    fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
}

#[test]
fn errors_of_binding_and_dialling_name_the_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let Err(Error::Io(error)) = Server::<Native>::bind(addr, Silent) else { panic!("it is taken") };
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().starts_with(&format!("{addr}: ")), "{error}");
    let Err(error @ Error::Address(_)) = Server::<Native>::bind("localhost", Silent) else {
        panic!("there is no port")
    };
    assert!(error.to_string().contains("localhost"), "{error}");
    assert!(error.to_string().contains("expected ip:port or host:port"), "{error}");
    drop(taken);
    let Err(Error::Io(error)) = Client::connect(addr) else { panic!("nobody listens") };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().starts_with(&format!("{addr}: could not connect: ")), "{error}");
}

/// Accepts one connection, and does this with it.
fn stranger(serve: fn(std::net::TcpStream)) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || serve(listener.accept().unwrap().0));
    addr
}

#[test]
fn port_that_accepts_and_says_nothing_is_no_connection() {
    let addr = stranger(|stream| {
        // Until the client has given up.
        let _ = io::copy(&mut &stream, &mut io::sink());
    });
    let config = Config::new().hello_timeout(Duration::from_millis(50));
    let connected = ClientBuilder::new(Native).config(config).connect(addr);
    let Err(Error::Io(error)) = connected else { panic!("it said no hello") };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("no hello within 50ms"), "{error}");
}

#[test]
fn port_that_answers_with_garbage_is_no_connection() {
    let addr = stranger(|mut stream| {
        io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let _ = io::copy(&mut &stream, &mut io::sink());
    });
    let Err(Error::Io(error)) = Client::connect(addr) else { panic!("it said no hello") };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("protocol error"), "{error}");
}
