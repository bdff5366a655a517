//! A peer that behaves as the Go library `kumustone/tcpstream`, against ours: its client and our
//! server, our client and its server.
//!
//! The peer is written from the bytes and from what the library does, with code of its own: a message
//! is one write; header and body are read apart, and block; calls are numbered from 1 in the whole
//! process; whatever has the number of a call is its reply. Only its 5 s between dials are shorter.
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
    collections::{HashMap, HashSet},
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{Event, PATIENCE, Running, Script, now, pair::NEVER, pass};
use longhaul::{
    CallError, CloseReason, Config, ConnId, Fate, LimitBy, ReactorBuilder, Reconnect, Responder,
    SendError, Tagged,
    protocol::{AnyId, AnyProtocol, DecodeError, Tcpstream},
};

/// The library's wait after a failed dial, 5 s, as these tests have it.
const RETRY: Duration = Duration::from_millis(50);

const MAX_BODY: usize = 1 << 23;

/// The first number of our calls.
const OURS: u64 = 1 << 63;

// ---- the library ----

/// A message, with what its header says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Msg {
    seq: u64,
    kind: u32,
    body: Vec<u8>,
}

impl Msg {
    fn new(kind: u32, body: impl AsRef<[u8]>) -> Self {
        Self { seq: 0, kind, body: body.as_ref().to_vec() }
    }

    fn reply_to(request: &Self, body: impl AsRef<[u8]>) -> Self {
        Self { seq: request.seq, ..Self::new(request.kind, body) }
    }

    fn encode(&self) -> Vec<u8> {
        let mut frame = vec![0xAD, 0x12];
        frame.extend_from_slice(&(self.body.len() as u32).to_be_bytes());
        frame.extend_from_slice(&self.seq.to_be_bytes());
        frame.extend_from_slice(&self.kind.to_be_bytes());
        frame.extend_from_slice(&self.body);
        frame
    }

    fn read(mut from: &TcpStream) -> io::Result<Self> {
        let mut head = [0; 18];
        from.read_exact(&mut head)?;
        let len = u32::from_be_bytes(head[2..6].try_into().unwrap()) as usize;
        if head[..2] != [0xAD, 0x12] || len > MAX_BODY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; len];
        from.read_exact(&mut body)?;
        let seq = u64::from_be_bytes(head[6..14].try_into().unwrap());
        let kind = u32::from_be_bytes(head[14..18].try_into().unwrap());
        Ok(Self { seq, kind, body })
    }
}

/// What the application is told. A server's is not told of connections; its test is.
#[derive(Debug, PartialEq)]
enum Told {
    Conn,
    DialFailed,
    /// A message that is no reply.
    Data(Msg),
    DisConn,
}

/// What an application does with a message that is no reply.
#[derive(Clone, Copy, PartialEq)]
enum App {
    Deaf,
    /// Sends it back, on the thread that reads.
    Echo,
}

/// A stream, and the sync client around it.
struct Stream {
    process: Arc<Process>,
    /// Present while the state says ESTAB.
    conn: Mutex<Option<Arc<TcpStream>>>,
    /// Held for a write: that of Go is whole, too.
    writing: Mutex<()>,
    /// The calls in flight.
    calls: Mutex<HashMap<u64, Sender<Msg>>>,
}

impl Stream {
    fn new(process: &Arc<Process>) -> Arc<Self> {
        let stream = Arc::new(Self {
            process: process.clone(),
            conn: Mutex::default(),
            writing: Mutex::default(),
            calls: Mutex::default(),
        });
        stream.process.streams.lock().unwrap().push(stream.clone());
        stream
    }

    /// Dials until the process is killed: at once after a loss, after a wait when a dial failed.
    fn dial(&self, addr: SocketAddr, retry: Duration, killed: &Receiver<()>) {
        loop {
            if let Ok(conn) = TcpStream::connect_timeout(&addr, Duration::from_secs(5)) {
                self.serve(conn);
            } else {
                self.process.tell(Told::DialFailed);
                let _ = killed.recv_timeout(retry);
            }
            if self.process.is_killed.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Reads until that fails.
    fn serve(&self, conn: TcpStream) {
        conn.set_nodelay(true).unwrap();
        let conn = Arc::new(conn);
        *self.conn.lock().unwrap() = Some(conn.clone());
        if self.process.is_killed.load(Ordering::SeqCst) {
            return self.cut();
        }
        self.process.tell(Told::Conn);
        for msg in self.process.kept.lock().unwrap().drain(..) {
            self.write(&msg);
        }
        while let Ok(msg) = Msg::read(&conn) {
            self.on_data(msg);
        }
        self.process.tell(Told::DisConn);
        self.cut();
    }

    fn on_data(&self, msg: Msg) {
        // The sync client is asked first. It looks at the number, and at nothing else.
        let call = self.calls.lock().unwrap().remove(&msg.seq);
        if let Some(call) = call {
            let _ = call.send(msg);
            return;
        }
        if self.process.app == App::Echo {
            self.write(&msg);
        }
        self.process.tell(Told::Data(msg));
    }

    /// Blocks until the peer has taken it. While the stream is down, it is lost without a word.
    fn write(&self, msg: &Msg) {
        self.write_bytes(&msg.encode());
    }

    fn write_bytes(&self, bytes: &[u8]) {
        let conn = self.conn.lock().unwrap().clone();
        if let Some(conn) = conn {
            let _one_at_a_time = self.writing.lock().unwrap();
            // A write that fails closes nothing.
            let _ = (&*conn).write_all(bytes);
        }
    }

    /// The reply to a message, which gets the next number; `None` after the timeout, or while the
    /// stream is down.
    fn call(&self, msg: &Msg, timeout: Duration) -> Option<Msg> {
        self.conn.lock().unwrap().as_ref()?;
        let seq = self.process.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let (tell, reply) = channel();
        self.calls.lock().unwrap().insert(seq, tell);
        self.write(&Msg { seq, ..msg.clone() });
        let reply = reply.recv_timeout(timeout).ok();
        self.calls.lock().unwrap().remove(&seq);
        reply
    }

    fn in_flight(&self) -> HashSet<u64> {
        self.calls.lock().unwrap().keys().copied().collect()
    }

    fn cut(&self) {
        if let Some(conn) = self.conn.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = conn.shutdown(Shutdown::Both);
        }
    }
}

/// What the streams of a process share.
struct Process {
    app: App,
    tell: Mutex<Sender<Told>>,
    /// How many calls there were.
    calls: AtomicU64,
    /// What the application writes in `OnConn`: it keeps it itself, the library keeps nothing.
    kept: Mutex<Vec<Msg>>,
    streams: Mutex<Vec<Arc<Stream>>>,
    is_killed: AtomicBool,
}

impl Process {
    fn tell(&self, told: Told) {
        let _ = self.tell.lock().unwrap().send(told);
    }
}

/// A process that uses the library. Dropping it kills it.
struct Go {
    process: Arc<Process>,
    told: Receiver<Told>,
    kill: Option<Sender<()>>,
    /// Where it listens.
    addr: Option<SocketAddr>,
    thread: Option<JoinHandle<()>>,
}

impl Go {
    fn start(
        app: App,
        addr: Option<SocketAddr>,
        run: impl FnOnce(&Arc<Process>, Receiver<()>) + Send + 'static,
    ) -> Self {
        let (tell, told) = channel();
        let (kill, killed) = channel();
        let process = Arc::new(Process {
            app,
            tell: Mutex::new(tell),
            calls: AtomicU64::new(0),
            kept: Mutex::default(),
            streams: Mutex::default(),
            is_killed: AtomicBool::new(false),
        });
        let shared = process.clone();
        let thread = Some(std::thread::spawn(move || run(&shared, killed)));
        Self { process, told, kill: Some(kill), addr, thread }
    }

    /// A client, which may not be up yet.
    fn dial(addr: SocketAddr, app: App, retry: Duration) -> Self {
        Self::start(app, None, move |process, killed| {
            Stream::new(process).dial(addr, retry, &killed);
        })
    }

    /// A client that is up.
    fn client(addr: SocketAddr, app: App) -> Self {
        let go = Self::dial(addr, app, RETRY);
        go.expect(Told::Conn);
        go
    }

    fn server(addr: SocketAddr, app: App) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        Self::start(app, Some(addr), move |process, _| {
            let mut readers = Vec::new();
            while let Ok((conn, _)) = listener.accept() {
                if process.is_killed.load(Ordering::SeqCst) {
                    break;
                }
                let stream = Stream::new(process);
                readers.push(std::thread::spawn(move || stream.serve(conn)));
            }
            drop(listener);
            for reader in readers {
                reader.join().unwrap();
            }
        })
    }

    /// Its last stream.
    fn stream(&self) -> Arc<Stream> {
        self.process.streams.lock().unwrap().last().unwrap().clone()
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("the Go side tells something in time")
    }

    fn expect(&self, told: Told) {
        assert_eq!(self.next(), told);
    }

    /// The next message that is no reply.
    fn data(&self) -> Msg {
        match self.next() {
            Told::Data(msg) => msg,
            other => panic!("{other:?}, not a message"),
        }
    }

    /// Waits until this is told, through what is told of connections.
    fn wait(&self, told: Told) {
        loop {
            let next = self.next();
            if next == told {
                return;
            }
            assert!(!matches!(next, Told::Data(_)), "{next:?}, not {told:?}");
        }
    }
}

impl Drop for Go {
    fn drop(&mut self) {
        self.process.is_killed.store(true, Ordering::SeqCst);
        self.kill.take();
        let streams = self.process.streams.lock().map(|mut streams| std::mem::take(&mut *streams));
        for stream in streams.unwrap_or_default() {
            stream.cut();
        }
        if let Some(addr) = self.addr {
            // The thread that accepts looks up.
            let _ = TcpStream::connect(addr);
        }
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            result.unwrap().unwrap();
        }
    }
}

// ---- ours ----

/// Our settings for such peers, with their 5 s as short as here, and no healthy spell, which no
/// connection of a test would reach.
fn settings() -> Config {
    Config::go_tcpstream()
        .reconnect(Reconnect::fixed(RETRY).after_loss(Duration::ZERO).healthy_after(Duration::ZERO))
}

fn server(script: Script) -> Running {
    Running::server(Tcpstream, Config::go_tcpstream(), script)
}

fn server_at(addr: SocketAddr, script: Script) -> Running {
    let builder = ReactorBuilder::new(AnyProtocol::from(Tcpstream)).config(Config::go_tcpstream());
    Running::start(builder, script, |reactor| reactor.listen(addr).unwrap().1)
}

/// A client of ours, up.
fn client(go: &Go, script: Script) -> (Running, ConnId) {
    client_with(go, &settings(), script)
}

fn client_with(go: &Go, settings: &Config, script: Script) -> (Running, ConnId) {
    let client = Running::client(Tcpstream, settings.clone(), script);
    let conn = client.handle.connect_with(go.addr.unwrap(), &Tcpstream.into(), settings).unwrap();
    client.events.connected();
    go.expect(Told::Conn);
    (client, conn)
}

/// Waits until our client is up to their restarted server. That it is up may be told before, of the
/// killed one: our client dials at once, and a listener that is about to go still takes it.
fn until_up(client: &Running, conn: ConnId, go: &Go) {
    go.expect(Told::Conn);
    client.until(move |cx| cx.connections().any(|id| id == conn));
}

/// A loopback address that no other test binds and no socket dials from, so that its port stays free
/// while a server there is down.
fn address_of_its_own(number: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 71, number), 0))
}

fn anywhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// A handler that answers nothing, and gives each message to the test as a request to answer.
fn keeping() -> (Script, Receiver<Kept>) {
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        let responder = conn.defer(&msg).unwrap();
        let _ = keep.send(Kept { seq: seq(msg.id()), body: msg.body().to_vec(), responder });
    });
    (script, kept)
}

struct Kept {
    seq: u64,
    body: Vec<u8>,
    responder: Responder<AnyProtocol>,
}

fn take(kept: &Receiver<Kept>) -> Kept {
    kept.recv_timeout(PATIENCE).expect("the message comes in time")
}

fn seq(id: AnyId) -> u64 {
    match id {
        AnyId::Tcpstream(seq) => seq,
        other => panic!("{other:?} is no number"),
    }
}

/// Waits for something that nobody tells.
fn until(is_so: impl Fn() -> bool) {
    let began = now();
    while !is_so() {
        assert!(now() - began < PATIENCE, "it never came to that");
        pass(Duration::from_millis(1));
    }
}

/// A body in which no part looks like the next.
fn varied(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Starts a call of theirs on a thread of its own.
fn call_of_theirs(stream: &Arc<Stream>, body: String) -> JoinHandle<Option<Msg>> {
    let stream = stream.clone();
    std::thread::spawn(move || stream.call(&Msg::new(0, body), NEVER))
}

/// Twenty calls each way, all in flight at once, and answered last first: theirs are numbered 1 to 20.
fn call_both_ways(go: &Go, ours: &Running, conn: ConnId, kept: &Receiver<Kept>) {
    const COUNT: usize = 20;
    let stream = go.stream();
    let theirs: Vec<_> = (0..COUNT)
        .map(|number| (number, call_of_theirs(&stream, format!("their question {number}"))))
        .collect();
    let asked_of_us: Vec<_> = (0..COUNT).map(|_| take(kept)).collect();
    let numbers: HashSet<_> = asked_of_us.iter().map(|request| request.seq).collect();
    assert_eq!(numbers, (1..=COUNT as u64).collect());

    let our_calls: Vec<_> = (0..COUNT)
        .map(|number| {
            let body = format!("our question {number}");
            (number, ours.handle.call_async(conn, body, NEVER))
        })
        .collect();
    let asked_of_them: Vec<_> = (0..COUNT).map(|_| go.data()).collect();
    let numbers: HashSet<_> = asked_of_them.iter().map(|request| request.seq).collect();
    assert_eq!(numbers.len(), COUNT);
    assert!(numbers.iter().all(|&seq| seq >= OURS), "{numbers:?}");

    // Neither side took the other's requests for replies.
    assert_eq!(stream.in_flight().len(), COUNT);
    assert_eq!(ours.ask(move |cx| cx.conn(conn).unwrap().stats().calls_in_flight), COUNT);

    for request in asked_of_them.iter().rev() {
        let question = String::from_utf8_lossy(&request.body);
        stream.write(&Msg::reply_to(request, format!("answer to {question}")));
    }
    for (number, call) in our_calls {
        let expected = format!("answer to our question {number}");
        assert_eq!(call.wait().unwrap(), expected);
    }
    for request in asked_of_us.into_iter().rev() {
        let question = String::from_utf8(request.body).unwrap();
        request.responder.reply(format!("answer to {question}")).unwrap();
    }
    for (number, call) in theirs {
        let reply = call.join().unwrap().unwrap();
        assert_eq!(reply.body, format!("answer to their question {number}").as_bytes());
    }
}

// ---- their client, our server ----

/// Two processes, so that the same numbers are in flight on two connections.
#[test]
fn their_calls_are_answered_under_their_own_numbers_and_types() {
    let server = server(Script::echo());
    std::thread::scope(|scope| {
        for name in ["first", "second"] {
            let go = Go::client(server.addr, App::Deaf);
            scope.spawn(move || {
                for number in 1..=100 {
                    let msg = Msg::new(number, format!("{name} {number}"));
                    let reply = go.stream().call(&msg, NEVER).unwrap();
                    assert_eq!(reply, Msg { seq: u64::from(number), ..msg });
                }
            });
        }
    });
}

#[test]
fn their_bodies_of_any_length_come_back_whole_up_to_the_longest() {
    let server = server(Script::echo());
    let go = Go::client(server.addr, App::Deaf);
    for len in [0, 1, 1 << 20, MAX_BODY] {
        let body = varied(len);
        let reply = go.stream().call(&Msg::new(0, &body), NEVER).unwrap();
        assert!(reply.body == body, "{len} bytes came back as {}", reply.body.len());
    }
}

/// The library limits only what it reads: its own frame of a byte more leaves, costs it the
/// connection, and it dials again.
#[test]
fn their_too_long_frame_costs_them_the_connection_and_they_come_back() {
    let server = server(Script::echo());
    let go = Go::client(server.addr, App::Deaf);
    let conn = server.events.connected();
    go.stream().write(&Msg::new(0, vec![0; MAX_BODY + 1]));
    let (len, max) = (MAX_BODY as u64 + 1, MAX_BODY as u64);
    assert_eq!(
        server.events.end_of(conn),
        CloseReason::Protocol(DecodeError::BodyTooLong { len, max })
    );
    go.expect(Told::DisConn);
    go.expect(Told::Conn);
    assert_eq!(go.stream().call(&Msg::new(0, "again"), NEVER).unwrap().body, b"again");
}

#[test]
fn their_call_is_answered_late_from_a_timer() {
    let delay = Duration::from_millis(300);
    let server = server(Script::delayed_echo(delay));
    let go = Go::client(server.addr, App::Deaf);
    let began = now();
    assert_eq!(go.stream().call(&Msg::new(0, "late"), NEVER).unwrap().body, b"late");
    assert!(now() - began >= delay);
}

#[test]
fn our_answer_after_their_timeout_ends_no_other_call_of_theirs() {
    let (script, kept) = keeping();
    let server = server(script);
    let go = Go::client(server.addr, App::Deaf);
    assert_eq!(go.stream().call(&Msg::new(5, "first"), Duration::from_millis(20)), None);
    let second = call_of_theirs(&go.stream(), "second".into());
    let (first_request, second_request) = (take(&kept), take(&kept));
    first_request.responder.reply("too late").unwrap();
    assert_eq!(go.data(), Msg { seq: 1, ..Msg::new(5, "too late") });
    assert_eq!(go.stream().in_flight(), HashSet::from([2]));
    second_request.responder.reply("in time").unwrap();
    assert_eq!(second.join().unwrap().unwrap().body, b"in time");
}

#[test]
fn calls_in_flight_both_ways_end_with_their_own_answers_on_our_server() {
    let (script, kept) = keeping();
    let server = server(script);
    let go = Go::client(server.addr, App::Deaf);
    let conn = server.events.connected();
    call_both_ways(&go, &server, conn, &kept);
}

/// Their sync client takes whatever has the number of a call for its reply. Nothing that we send by
/// ourselves has one.
#[test]
fn what_we_send_unasked_ends_no_call_of_theirs() {
    const CALLS: u64 = 50;
    let (script, kept) = keeping();
    let server = server(script);
    let go = Go::client(server.addr, App::Deaf);
    let conn = server.events.connected();
    let stream = go.stream();
    let mut calls: Vec<_> =
        (0..CALLS).map(|_| call_of_theirs(&stream, "question".into())).collect();
    let requests: Vec<_> = (0..CALLS).map(|_| take(&kept)).collect();

    let mut ours = Vec::new();
    for number in 0..CALLS as u32 {
        server.handle.send(conn, Tagged(number, "to one")).unwrap();
        server.handle.broadcast(Tagged(number, "to all")).unwrap();
        ours.push(server.handle.call_async(conn, Tagged(number, "to be answered"), NEVER));
        assert_eq!(go.data(), Msg::new(number, "to one"));
        assert_eq!(go.data(), Msg::new(number, "to all"));
        let request = go.data();
        assert_eq!((request.kind, &*request.body), (number, &b"to be answered"[..]));
        assert!(request.seq > CALLS, "{} is a number of theirs", request.seq);
    }
    assert_eq!(stream.in_flight(), (1..=CALLS).collect());
    assert!(calls.iter().all(|call| !call.is_finished()));

    // Had one of ours such a number, it would show.
    server.handle.send_as(conn, AnyId::Tcpstream(7), "unasked").unwrap();
    until(|| calls.iter().any(|call| call.is_finished()));
    let ended = calls.iter().position(|call| call.is_finished()).unwrap();
    let reply = calls.remove(ended).join().unwrap().unwrap();
    assert_eq!(reply, Msg { seq: 7, ..Msg::new(0, "unasked") });

    for request in requests {
        request.responder.reply("answer").unwrap();
    }
    assert!(calls.into_iter().all(|call| call.join().unwrap().unwrap().body == b"answer"));
}

#[test]
fn their_messages_with_any_number_are_messages_for_our_handler() {
    let (script, kept) = keeping();
    let server = server(script);
    let go = Go::client(server.addr, App::Deaf);
    let conn = server.events.connected();
    let call = server.handle.call_async(conn, "question", NEVER);
    let request = go.data();
    for seq in [0, 1, 2, OURS - 1, OURS, u64::MAX] {
        assert_ne!(seq, request.seq);
        go.stream().write(&Msg { seq, ..Msg::new(0, "news") });
        assert_eq!(take(&kept).seq, seq);
    }
    go.stream().write(&Msg::reply_to(&request, "answer"));
    assert_eq!(call.wait().unwrap(), "answer");
}

/// Their wait is for failed dials only; here it is longer than any test.
#[test]
fn their_client_is_back_at_once_when_we_cut_it() {
    let server = server(Script::echo());
    let go = Go::dial(server.addr, App::Deaf, NEVER);
    for _ in 0..5 {
        go.expect(Told::Conn);
        let conn = server.events.connected();
        assert_eq!(go.stream().call(&Msg::new(0, "up"), NEVER).unwrap().body, b"up");
        server.handle.abort(conn);
        go.expect(Told::DisConn);
    }
    go.expect(Told::Conn);
}

#[test]
fn their_client_comes_back_to_our_restarted_server_with_what_its_application_kept() {
    let server = server_at(address_of_its_own(1), Script::echo());
    let addr = server.addr;
    let go = Go::client(addr, App::Deaf);
    assert_eq!(go.stream().call(&Msg::new(0, "before"), NEVER).unwrap().body, b"before");
    drop(server);
    go.wait(Told::DialFailed);
    go.expect(Told::DialFailed);
    assert_eq!(go.stream().call(&Msg::new(0, "while down"), NEVER), None);
    let kept = (0..50).map(|number| Msg::new(number, format!("kept {number}")));
    go.process.kept.lock().unwrap().extend(kept);

    let server = server_at(addr, Script::new());
    for number in 0..50 {
        assert_eq!(server.events.message(), format!("kept {number}").as_bytes());
    }
    go.wait(Told::Conn);
    go.stream().write(&Msg::new(0, "last"));
    assert_eq!(server.events.message(), b"last", "after each came once");
}

#[test]
fn half_a_frame_of_a_killed_client_is_no_part_of_the_next() {
    let server = server(Script::echo());
    let go = Go::client(server.addr, App::Deaf);
    let conn = server.events.connected();
    let frame = Msg::new(0, vec![b'x'; 1000]).encode();
    go.stream().write_bytes(&frame[..500]);
    server.until(move |cx| cx.conn(conn).unwrap().stats().bytes_in == 500);
    drop(go);
    assert_eq!(server.events.end_of(conn), CloseReason::PeerClosedMidFrame { received: 500 });
    let go = Go::client(server.addr, App::Deaf);
    let reply = go.stream().call(&Msg::new(0, "whole"), NEVER).unwrap();
    assert_eq!(reply, Msg { seq: 1, ..Msg::new(0, "whole") });
}

// ---- our client, their server ----

#[test]
fn our_calls_are_answered_by_their_echo() {
    let go = Go::server(anywhere(), App::Echo);
    let (client, conn) = client(&go, Script::new());
    for number in 0..100 {
        let body = format!("question {number}");
        let reply = client.handle.call_tagged(conn, Tagged(number, &body), NEVER).unwrap();
        assert_eq!(reply, (number, body.into()));
    }
    for len in [0, 1 << 20, MAX_BODY] {
        let body = varied(len);
        assert!(client.handle.call(conn, &body, NEVER).unwrap() == body, "{len} bytes");
    }
}

/// They would close on it, and take it for the network's fault.
#[test]
fn what_they_would_refuse_as_too_long_is_refused_on_our_side() {
    let go = Go::server(anywhere(), App::Echo);
    let large = settings().max_body(2 * MAX_BODY);
    let (client, conn) = client_with(&go, &large, Script::new());
    let body = vec![0; MAX_BODY + 1];
    let (len, max) = (body.len(), MAX_BODY);
    let limit = LimitBy::Us;
    assert_eq!(client.handle.send(conn, &body), Err(SendError::BodyTooLong { len, max, limit }));
    assert_eq!(
        client.handle.call(conn, &body, NEVER),
        Err(CallError::BodyTooLong { len, max, limit })
    );
    assert_eq!(client.handle.call(conn, "still up", NEVER).unwrap(), "still up");
}

#[test]
fn calls_in_flight_both_ways_end_with_their_own_answers_on_our_client() {
    let go = Go::server(anywhere(), App::Deaf);
    let (script, kept) = keeping();
    let (client, conn) = client(&go, script);
    call_both_ways(&go, &client, conn, &kept);
}

#[test]
fn our_client_hears_what_their_server_pushes() {
    let go = Go::server(anywhere(), App::Deaf);
    let (script, kept) = keeping();
    let (client, conn) = client(&go, script);
    // Their application knows a client from what it said.
    client.handle.send(conn, Tagged(3, "hello")).unwrap();
    assert_eq!(go.data(), Msg::new(3, "hello"));
    for number in 0..50 {
        go.stream().write(&Msg::new(0, format!("news {number}")));
    }
    for number in 0..50 {
        assert_eq!(take(&kept).body, format!("news {number}").as_bytes());
    }
}

#[test]
fn their_answer_after_our_timeout_is_a_message_and_ends_no_other_call() {
    let go = Go::server(anywhere(), App::Deaf);
    let (client, conn) = client(&go, Script::new());
    let first = client.handle.call_async(conn, "first", Duration::from_millis(500));
    let first_request = go.data();
    assert_eq!(first.wait(), Err(CallError::Timeout { fate: Fate::MaybeSent }));
    let second = client.handle.call_async(conn, "second", NEVER);
    let second_request = go.data();
    go.stream().write(&Msg::reply_to(&first_request, "too late"));
    assert_eq!(client.events.message(), b"too late");
    assert_eq!(client.ask(move |cx| cx.conn(conn).unwrap().stats().calls_in_flight), 1);
    go.stream().write(&Msg::reply_to(&second_request, "in time"));
    assert_eq!(second.wait().unwrap(), "in time");
}

/// Their server echoes on the thread that reads, and blocks in its write: it reads no further until
/// we do.
#[test]
fn their_server_that_blocks_in_its_writes_does_not_stop_us() {
    const COUNT: usize = 64;
    const LEN: usize = 256 * 1024;
    let go = Go::server(anywhere(), App::Echo);
    let roomy = settings().watermarks(16 << 20, 32 << 20).hard_limit(64 << 20);
    let (client, conn) = client_with(&go, &roomy, Script::new());
    for number in 0..COUNT {
        client.handle.send(conn, vec![number as u8; LEN]).unwrap();
    }
    for number in 0..COUNT {
        let body = client.events.message();
        assert!(body == [number as u8; LEN], "message {number}");
    }
}

#[test]
fn our_client_comes_back_to_their_restarted_server_with_what_it_queued() {
    let go = Go::server(address_of_its_own(2), App::Echo);
    let (client, conn) = client(&go, Script::new());
    let addr = go.addr.unwrap();
    assert_eq!(client.handle.call(conn, "before", NEVER).unwrap(), "before");
    drop(go);
    // Before a dial has failed, the killed one may still take what it will never read.
    client.events.incident();
    for number in 0..50 {
        client.handle.send(conn, Tagged(number, format!("queued {number}"))).unwrap();
    }
    // Another dial fails, so that what waits has to last.
    client.events.incident();

    let go = Go::server(addr, App::Echo);
    client.events.connected();
    assert_eq!(client.handle.call(conn, "after", NEVER).unwrap(), "after");
    go.expect(Told::Conn);
    for number in 0..50 {
        let body = format!("queued {number}");
        assert_eq!(go.data(), Msg::new(number, &body));
        assert_eq!(client.events.message(), body.as_bytes());
    }
    assert_eq!(go.data().body, b"after", "after each came once");
    assert!(!client.events.so_far().iter().any(|event| matches!(event, Event::Message(..))));
}

#[test]
fn our_call_ends_when_their_server_dies_and_no_answer_of_the_next_is_taken_for_its() {
    let go = Go::server(address_of_its_own(3), App::Deaf);
    let (client, conn) = client(&go, Script::new());
    let addr = go.addr.unwrap();
    let call = client.handle.call_async(conn, "question", NEVER);
    let request = go.data();
    drop(go);
    let Err(CallError::Disconnected { fate: Fate::MaybeSent, .. }) = call.wait() else {
        panic!("the call ends with its connection")
    };

    let go = Go::server(addr, App::Deaf);
    until_up(&client, conn, &go);
    let next = client.handle.call_async(conn, "next question", NEVER);
    let next_request = go.data();
    assert_ne!(next_request.seq, request.seq);
    go.stream().write(&Msg::reply_to(&request, "of the former life"));
    assert_eq!(client.events.message(), b"of the former life");
    go.stream().write(&Msg::reply_to(&next_request, "of this one"));
    assert_eq!(next.wait().unwrap(), "of this one");
}

#[test]
fn half_a_frame_of_a_killed_server_is_no_part_of_the_next() {
    let go = Go::server(address_of_its_own(4), App::Echo);
    let (client, conn) = client(&go, Script::new());
    let addr = go.addr.unwrap();
    let frame = Msg::new(0, vec![b'x'; 1000]).encode();
    go.stream().write_bytes(&frame[..500]);
    client.until(move |cx| cx.conn(conn).unwrap().stats().bytes_in == 500);
    drop(go);
    assert_eq!(client.events.end_of(conn), CloseReason::PeerClosedMidFrame { received: 500 });
    let go = Go::server(addr, App::Echo);
    until_up(&client, conn, &go);
    assert_eq!(client.handle.call(conn, "whole", NEVER).unwrap(), "whole");
}

// ---- a thousand calls, the times, the end ----

/// A thousand calls each way at once, on one connection. Their sync client and our pending table both
/// go by the number alone: a number of ours among theirs would end a call with a question.
fn call_a_thousand_each_way(go: &Go, ours: &Running, conn: ConnId, asked_of_us: &Receiver<Msg>) {
    const COUNT: u32 = 1000;
    const THREADS: u32 = 8;
    let stream = go.stream();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let stream = &stream;
                scope.spawn(move || {
                    for number in (thread..COUNT).step_by(THREADS as usize) {
                        let msg = Msg::new(number, format!("their question {number}"));
                        let reply = stream.call(&msg, PATIENCE).expect("an answer to their call");
                        assert_eq!((reply.kind, reply.body), (msg.kind, msg.body));
                    }
                })
            })
            .collect();
        let calls: Vec<_> = (0..COUNT)
            .map(|number| {
                let body = Tagged(number, format!("our question {number}"));
                ours.handle.call_async(conn, body, PATIENCE)
            })
            .collect();
        for (number, call) in calls.into_iter().enumerate() {
            assert_eq!(call.wait().unwrap(), format!("our question {number}"));
        }
        for caller in callers {
            caller.join().unwrap();
        }
    });
    // Each side was asked what the other asked, and nothing else.
    let theirs: HashSet<_> =
        asked_of_us.try_iter().map(|msg| (msg.seq, msg.kind, msg.body)).collect();
    assert_eq!(theirs.len(), COUNT as usize);
    let mut seqs: Vec<_> = theirs.iter().map(|(seq, ..)| *seq).collect();
    seqs.sort_unstable();
    assert!(seqs.into_iter().eq(1..=u64::from(COUNT)));
    for number in 0..COUNT {
        let request = go.data();
        assert!(request.seq >= OURS, "{} is a number of theirs", request.seq);
        assert_eq!(
            (request.kind, request.body),
            (number, format!("our question {number}").into_bytes())
        );
    }
    assert!(go.told.try_recv().is_err(), "nothing else was told");
}

/// Echoes, and gives each message to the test.
fn echoing() -> (Script, Receiver<Msg>) {
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        let _ = keep.send(Msg { seq: seq(msg.id()), ..Msg::new(msg.tag(), msg.body()) });
        common::answer(conn, &msg).unwrap();
    });
    (script, kept)
}

#[test]
fn a_thousand_calls_each_way_at_once_keep_apart_on_our_server() {
    let (script, asked_of_us) = echoing();
    let server = server(script);
    let go = Go::client(server.addr, App::Echo);
    let conn = server.events.connected();
    call_a_thousand_each_way(&go, &server, conn, &asked_of_us);
}

#[test]
fn a_thousand_calls_each_way_at_once_keep_apart_on_our_client() {
    let go = Go::server(anywhere(), App::Echo);
    let (script, asked_of_us) = echoing();
    let (client, conn) = client(&go, script);
    call_a_thousand_each_way(&go, &client, conn, &asked_of_us);
}

/// What our client tells of its next dial after its connection was lost.
fn redial_in(client: &Running) -> Option<Duration> {
    client.events.disconnected().1.redial_in
}

/// What our client tells of its next dial after one failed.
fn retry_in(client: &Running) -> Option<Duration> {
    match client.events.incident() {
        longhaul::Incident::DialFailed { retry_in, .. } => retry_in,
        other => panic!("{other}, not a failed dial"),
    }
}

/// The preset but for the healthy spell, which no test waits for.
#[test]
fn our_client_dials_at_once_after_a_healthy_connection_and_then_every_5_s() {
    const THEIRS: Duration = Duration::from_secs(5);
    let policy = Reconnect::fixed(THEIRS).after_loss(Duration::ZERO);
    let settings = Config::go_tcpstream().reconnect(policy.clone());
    assert_eq!(settings, Config::go_tcpstream());
    let settings = settings.reconnect(policy.healthy_after(Duration::ZERO));

    let go = Go::server(address_of_its_own(5), App::Deaf);
    let (client, _) = client_with(&go, &settings, Script::new());
    for _ in 0..3 {
        go.stream().cut();
        assert_eq!(redial_in(&client), Some(Duration::ZERO));
        client.events.connected();
        go.wait(Told::Conn);
    }
    drop(go);
    assert_eq!(redial_in(&client), Some(Duration::ZERO));
    assert_eq!(retry_in(&client), Some(THEIRS));
}

/// The library itself would dial without a pause for as long as the peer accepts and closes.
#[test]
fn our_client_lost_before_a_healthy_spell_waits_5_s_as_after_a_failed_dial() {
    let go = Go::server(anywhere(), App::Deaf);
    let (client, _) = client_with(&go, &Config::go_tcpstream(), Script::new());
    go.stream().cut();
    assert_eq!(redial_in(&client), Some(Duration::from_secs(5)));
}

/// Their own server leaves them open, and goes on to answer. Here no timeout would cut them.
#[test]
fn our_server_closes_what_it_accepted_when_it_stops() {
    let mut server = server_at(address_of_its_own(6), Script::echo());
    let clients = [(); 3].map(|()| Go::client(server.addr, App::Deaf));
    for go in &clients {
        assert_eq!(go.stream().call(&Msg::new(0, "up"), PATIENCE).unwrap().body, b"up");
    }
    server.handle.stop_within(NEVER);
    for go in &clients {
        go.expect(Told::DisConn);
        go.expect(Told::DialFailed);
        assert_eq!(go.stream().call(&Msg::new(0, "down"), PATIENCE), None);
    }
    server.join();
    assert!(server.handle.is_stopped());
}
