//! A peer that behaves as the Node library `@qtk/tcp-framework` 3, which is not on npm, against ours:
//! its client and our server, our client and its server.
//!
//! The peer is written from the bytes and from what the library does, with code of its own: the length
//! is a double; the client pings at each interval, under traffic too, and the server sends the same
//! bytes back; the client dials again each 200 ms, with the receive buffer that it had, and writes
//! what it queued before its application hears of the connection. Only its clock is faster.
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
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{Event, PATIENCE, Running, Script, now, pair::NEVER, pass};
use longhaul::{
    CallError, CloseReason, Config, ConnId, Fate, ReactorBuilder, Responder,
    protocol::{AnyId, AnyProtocol, Qtk3, Uuid},
};

/// A tick of the library's clock, 1 s, as these tests have it.
const TICK: Duration = Duration::from_millis(50);

/// The library's heartbeat and timeout.
const BEAT_TICKS: u32 = 20;
const IDLE_TICKS: u32 = 30;
const BEAT: Duration = Duration::from_millis(50 * BEAT_TICKS as u64);
const IDLE: Duration = Duration::from_millis(50 * IDLE_TICKS as u64);

/// The library's wait before it dials again.
const REDIAL: Duration = Duration::from_millis(200);

const PING: u8 = 0x01;
const DATA: u8 = 0x11;
const HEAD: usize = 45;

// ---- the library ----

/// The id of a message, as it is on the wire.
type Id = [u8; 36];

/// A UUID of version 1, as the library makes them.
fn uuid(number: u32) -> Id {
    let text = format!("{number:08x}-11ea-11ea-8d3d-0242ac130003");
    text.into_bytes().try_into().unwrap()
}

fn encode(sign: u8, id: &Id, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![sign];
    frame.extend_from_slice(id);
    frame.extend_from_slice(&f64::from(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

struct Frame {
    sign: u8,
    id: Id,
    payload: Vec<u8>,
    raw: Vec<u8>,
}

/// Takes a frame off the buffer, if one is whole.
fn parse(buffer: &mut Vec<u8>) -> Option<Frame> {
    let (head, _) = buffer.split_first_chunk::<HEAD>()?;
    let (sign, id) = (head[0], head[1..37].try_into().unwrap());
    assert!([PING, DATA].contains(&sign), "a frame that starts with {sign:#04x}");
    let length = f64::from_be_bytes(head[37..].try_into().unwrap());
    assert!((0.0..1e9).contains(&length) && length.fract() == 0.0, "a frame of {length} bytes");
    #[expect(clippy::cast_sign_loss, reason = "checked")]
    let len = HEAD + length as usize;
    if buffer.len() < len {
        return None;
    }
    let raw: Vec<u8> = buffer.drain(..len).collect();
    Some(Frame { sign, id, payload: raw[HEAD..].to_vec(), raw })
}

/// What the application hears.
#[derive(Debug, PartialEq)]
enum Told {
    Connected,
    Data(Id, Vec<u8>),
    Exception,
    Closed,
}

/// A process that uses the library; one connection at a time. Dropping it kills it.
struct Node {
    shared: Arc<Shared>,
    told: Receiver<Told>,
    kill: Option<Sender<()>>,
    /// Where it listens.
    addr: Option<SocketAddr>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    is_client: bool,
    options: Options,
    tell: Mutex<Sender<Told>>,
    state: Mutex<State>,
    /// How many pings there were, and their bytes: those written and those that came.
    pings: AtomicU32,
    written: Mutex<Vec<Vec<u8>>>,
    came: Mutex<Vec<Vec<u8>>>,
    is_killed: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Present while connected.
    socket: Option<Arc<TcpStream>>,
    /// What a client was given to send while it was not.
    queue: Vec<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Options {
    heartbeat: u32,
    timeout: u32,
    /// Whether the application sends back what it gets.
    echoes: bool,
    /// What a client's application sends when it hears of the connection.
    greets: bool,
    /// Whether a server has stopped to answer pings, as one that hangs.
    hangs: bool,
}

const OPTIONS: Options = Options {
    heartbeat: BEAT_TICKS,
    timeout: IDLE_TICKS,
    echoes: false,
    greets: false,
    hangs: false,
};

const ECHO: Options = Options { echoes: true, ..OPTIONS };

impl Shared {
    fn new(is_client: bool, options: Options) -> (Arc<Self>, Receiver<Told>) {
        let (tell, told) = channel();
        let shared = Self {
            is_client,
            options,
            tell: Mutex::new(tell),
            state: Mutex::default(),
            pings: AtomicU32::new(0),
            written: Mutex::default(),
            came: Mutex::default(),
            is_killed: AtomicBool::new(false),
        };
        (Arc::new(shared), told)
    }

    fn tell(&self, told: Told) {
        let _ = self.tell.lock().unwrap().send(told);
    }

    fn send(&self, id: &Id, payload: &[u8]) {
        let frame = encode(DATA, id, payload);
        let mut state = self.state.lock().unwrap();
        match &state.socket {
            Some(socket) => _ = (&**socket).write_all(&frame),
            None if self.is_client => state.queue.push(frame),
            None => {}
        }
    }

    fn ping(&self, socket: &TcpStream) {
        let number = self.pings.fetch_add(1, Ordering::SeqCst);
        let ping = encode(PING, &uuid(0xBEA7_0000 + number), b"");
        self.written.lock().unwrap().push(ping.clone());
        let _state = self.state.lock().unwrap();
        let _ = (&*socket).write_all(&ping);
    }

    /// The life of a socket. What it leaves in the buffer, a client finds there the next time.
    fn serve(&self, socket: TcpStream, buffer: &mut Vec<u8>) {
        socket.set_nodelay(true).unwrap();
        let socket = Arc::new(socket);
        {
            let mut state = self.state.lock().unwrap();
            state.socket = Some(socket.clone());
            for frame in state.queue.drain(..) {
                let _ = (&*socket).write_all(&frame);
            }
        }
        if self.is_killed.load(Ordering::SeqCst) {
            return self.cut();
        }
        self.tell(Told::Connected);
        if self.options.greets {
            self.send(&uuid(0), b"greeting");
        }
        self.run(&socket, buffer);
        self.cut();
        self.tell(Told::Closed);
    }

    /// One thread reads and ticks, as one loop does.
    fn run(&self, socket: &TcpStream, buffer: &mut Vec<u8>) {
        let mut chunk = vec![0; 64 * 1024];
        let (mut ticks, mut beat, mut active) = (0, 0, 0);
        let mut next_tick = now() + TICK;
        loop {
            let left = next_tick.saturating_duration_since(now()).max(Duration::from_millis(1));
            socket.set_read_timeout(Some(left)).unwrap();
            match (&*socket).read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => {
                    buffer.extend_from_slice(&chunk[..count]);
                    active = ticks;
                    self.process(socket, buffer);
                }
                Err(error)
                    if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
                Err(_) => return,
            }
            if now() < next_tick {
                continue;
            }
            // One that is late is not made up for, as in Node.js.
            next_tick = now() + TICK;
            ticks += 1;
            if self.is_client && ticks - beat >= self.options.heartbeat {
                self.ping(socket);
                beat = ticks;
            }
            if ticks - active >= self.options.timeout {
                return;
            }
        }
    }

    fn process(&self, socket: &TcpStream, buffer: &mut Vec<u8>) {
        while let Some(frame) = parse(buffer) {
            if frame.sign == DATA {
                if self.options.echoes {
                    self.send(&frame.id, &frame.payload);
                }
                self.tell(Told::Data(frame.id, frame.payload));
                continue;
            }
            self.came.lock().unwrap().push(frame.raw.clone());
            if !self.is_client && !self.options.hangs {
                let _state = self.state.lock().unwrap();
                let _ = (&*socket).write_all(&frame.raw);
            }
        }
    }

    fn cut(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = state.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Node {
    /// A client; whether it gets through is told.
    fn client(addr: SocketAddr, options: Options) -> Self {
        let (shared, told) = Shared::new(true, options);
        let (kill, killed) = channel();
        let client = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            loop {
                if let Ok(socket) = TcpStream::connect(addr) {
                    client.serve(socket, &mut buffer);
                } else {
                    client.tell(Told::Exception);
                    client.tell(Told::Closed);
                }
                if killed.recv_timeout(REDIAL) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        });
        Self { shared, told, kill: Some(kill), addr: None, thread: Some(thread) }
    }

    fn server(addr: SocketAddr, options: Options) -> Self {
        let (shared, told) = Shared::new(false, options);
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let server = shared.clone();
        let thread = std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                if server.is_killed.load(Ordering::SeqCst) {
                    return;
                }
                server.serve(socket, &mut Vec::new());
            }
        });
        Self { shared, told, kill: None, addr: Some(addr), thread: Some(thread) }
    }

    fn send(&self, id: &Id, payload: impl AsRef<[u8]>) {
        self.shared.send(id, payload.as_ref());
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("the Node side tells something in time")
    }

    fn expect(&self, told: Told) {
        assert_eq!(self.next(), told);
    }

    /// Waits until this is told, through what is told of dials that fail and of the end before them.
    fn wait(&self, told: Told) {
        loop {
            let next = self.next();
            if next == told {
                return;
            }
            assert!([Told::Exception, Told::Closed].contains(&next), "{next:?}, not {told:?}");
        }
    }

    /// The next message.
    fn data(&self) -> (Id, Vec<u8>) {
        match self.next() {
            Told::Data(id, payload) => (id, payload),
            other => panic!("{other:?}, not a message"),
        }
    }

    fn so_far(&self) -> Vec<Told> {
        self.told.try_iter().collect()
    }

    fn pings_written(&self) -> Vec<Vec<u8>> {
        self.shared.written.lock().unwrap().clone()
    }

    fn pings_that_came(&self) -> Vec<Vec<u8>> {
        self.shared.came.lock().unwrap().clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.is_killed.store(true, Ordering::SeqCst);
        self.kill.take();
        self.shared.cut();
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

fn server(script: Script) -> Running {
    server_with(&Config::qtk(), script)
}

fn server_with(settings: &Config, script: Script) -> Running {
    Running::server(Qtk3, settings.clone(), script)
}

fn server_at(addr: SocketAddr, script: Script) -> Running {
    let builder = ReactorBuilder::new(AnyProtocol::from(Qtk3)).config(Config::qtk());
    Running::start(builder, script, |reactor| reactor.listen(addr).unwrap().1)
}

/// A client of ours, up.
fn client(node: &Node, script: Script) -> (Running, ConnId) {
    client_with(node, &Config::qtk(), script)
}

fn client_with(node: &Node, settings: &Config, script: Script) -> (Running, ConnId) {
    let client = Running::client(Qtk3, settings.clone(), script);
    let conn = client.handle.connect_with(node.addr.unwrap(), &Qtk3.into(), settings).unwrap();
    client.events.connected();
    node.expect(Told::Connected);
    (client, conn)
}

/// Our settings on the faster clock. We give up later than they do: it is their patience that counts.
fn fast() -> Config {
    Config::qtk().heartbeat(BEAT).idle_timeout(2 * IDLE)
}

/// A loopback address that no other test binds and no socket dials from, so that its port stays free
/// while a server there is down.
fn address_of_its_own(number: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 73, number), 0))
}

fn anywhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// A handler that answers nothing, and gives each message to the test as a request to answer.
fn keeping() -> (Script, Receiver<Kept>) {
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        let responder = conn.defer(&msg).unwrap();
        let _ = keep.send(Kept { id: msg.id(), body: msg.body().to_vec(), responder });
    });
    (script, kept)
}

struct Kept {
    id: AnyId,
    body: Vec<u8>,
    responder: Responder<AnyProtocol>,
}

fn take(kept: &Receiver<Kept>) -> Kept {
    kept.recv_timeout(PATIENCE).expect("the message comes in time")
}

fn id(number: u32) -> AnyId {
    AnyId::Qtk3(Uuid::from(uuid(number)))
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

/// Hyphens where a UUID has them, hex digits everywhere else.
fn is_uuid(id: &Id) -> bool {
    id.iter().enumerate().all(|(at, &byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// Twenty calls each way, all in flight at once, and answered last first.
fn call_both_ways(node: &Node, ours: &Running, conn: ConnId, kept: &Receiver<Kept>) {
    const COUNT: u32 = 20;
    for number in 0..COUNT {
        node.send(&uuid(number), format!("their question {number}"));
    }
    let asked_of_us: Vec<_> = (0..COUNT).map(|_| take(kept)).collect();
    for (number, request) in (0..).zip(&asked_of_us) {
        assert_eq!(request.id, id(number));
    }
    let our_calls: Vec<_> = (0..COUNT)
        .map(|number| ours.handle.call_async(conn, format!("our question {number}"), NEVER))
        .collect();
    let asked_of_them: Vec<_> = (0..COUNT).map(|_| node.data()).collect();
    let ids: HashSet<_> = asked_of_them.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), COUNT as usize);
    assert!(ids.iter().all(is_uuid));

    for (id, question) in asked_of_them.iter().rev() {
        node.send(id, format!("answer to {}", String::from_utf8_lossy(question)));
    }
    for (number, call) in our_calls.into_iter().enumerate() {
        let expected = format!("answer to our question {number}");
        assert_eq!(call.wait().unwrap(), expected);
    }
    for request in asked_of_us.into_iter().rev() {
        let question = String::from_utf8(request.body).unwrap();
        request.responder.reply(format!("answer to {question}")).unwrap();
    }
    for number in (0..COUNT).rev() {
        let answer = format!("answer to their question {number}");
        assert_eq!(node.data(), (uuid(number), answer.into_bytes()));
    }
}

// ---- their client, our server ----

#[test]
fn their_client_gets_its_messages_echoed_under_their_ids() {
    let server = server(Script::echo());
    let node = Node::client(server.addr, OPTIONS);
    node.expect(Told::Connected);
    let bodies: Vec<_> = (0..100)
        .map(|number| format!("text {number}").into_bytes())
        .chain([Vec::new(), varied(1 << 20)])
        .collect();
    for (number, body) in (0..).zip(&bodies) {
        node.send(&uuid(number), body);
    }
    for (number, body) in (0..).zip(bodies) {
        let echo = node.data();
        assert!(echo == (uuid(number), body), "message {number}");
    }
}

/// The library fills up an id that is too short, and sends whatever text it is given.
#[test]
fn their_ids_that_are_no_uuids_come_back_as_they_were() {
    let server = server(Script::echo());
    let node = Node::client(server.addr, OPTIONS);
    node.expect(Told::Connected);
    for text in ["1", "", "id with spaces and an \u{e4}", "no uuid, but as long as one would be"] {
        let mut id = [0; 36];
        id[..text.len()].copy_from_slice(text.as_bytes());
        node.send(&id, "body");
        assert_eq!(node.data(), (id, b"body".to_vec()));
    }
}

#[test]
fn their_client_gets_a_delayed_echo_from_a_timer() {
    let delay = Duration::from_millis(300);
    let server = server(Script::delayed_echo(delay));
    let node = Node::client(server.addr, OPTIONS);
    node.expect(Told::Connected);
    let began = now();
    node.send(&uuid(7), "delayed");
    assert_eq!(node.data(), (uuid(7), b"delayed".to_vec()));
    assert!(now() - began >= delay);
}

#[test]
fn our_server_pushes_to_their_client_under_ids_as_theirs() {
    let server = server(Script::new());
    let node = Node::client(server.addr, OPTIONS);
    node.expect(Told::Connected);
    let conn = server.events.connected();
    server.handle.send_as(conn, id(1), "chosen").unwrap();
    server.handle.send(conn, "to one").unwrap();
    server.handle.broadcast("to all").unwrap();
    assert_eq!(node.data(), (uuid(1), b"chosen".to_vec()));
    for expected in ["to one", "to all"] {
        let (id, body) = node.data();
        assert!(is_uuid(&id), "{}", id.escape_ascii());
        assert_eq!(body, expected.as_bytes());
    }
}

#[test]
fn calls_in_flight_both_ways_end_with_their_own_answers_on_our_server() {
    let (script, kept) = keeping();
    let server = server(script);
    let node = Node::client(server.addr, OPTIONS);
    node.expect(Told::Connected);
    let conn = server.events.connected();
    call_both_ways(&node, &server, conn, &kept);
}

/// Five intervals are more than three timeouts of either side's, had there been no pings.
#[test]
fn their_pings_keep_a_silent_connection_up_and_come_back_as_they_were() {
    let server = server_with(&fast(), Script::new());
    let node = Node::client(server.addr, OPTIONS);
    node.expect(Told::Connected);
    until(|| node.pings_that_came().len() >= 5);
    let (echoes, written) = (node.pings_that_came(), node.pings_written());
    assert_eq!(echoes[..5], written[..5]);
    assert_eq!(node.so_far(), []);
    assert!(!server.events.so_far().iter().any(|event| matches!(event, Event::Disconnected(..))));
}

#[test]
fn their_pings_under_traffic_come_back_as_they_were() {
    let server = server_with(&fast(), Script::echo());
    let node = Node::client(server.addr, OPTIONS);
    node.expect(Told::Connected);
    server.events.connected();
    let mut number = 0;
    while node.pings_that_came().len() < 3 {
        number += 1;
        node.send(&uuid(number), "question");
        server.handle.broadcast("news").unwrap();
        let answers = [node.data().1, node.data().1];
        assert!(answers.contains(&b"question".to_vec()) && answers.contains(&b"news".to_vec()));
        pass(TICK / 10);
    }
    assert_eq!(node.pings_that_came()[..3], node.pings_written()[..3]);
}

#[test]
fn their_client_that_no_longer_pings_is_given_up_and_may_come_back() {
    let settings = Config::new().heartbeat(BEAT).idle_timeout(IDLE);
    let server = server_with(&settings, Script::echo());
    let hanging = Options { heartbeat: u32::MAX, timeout: u32::MAX, ..OPTIONS };
    let node = Node::client(server.addr, hanging);
    node.expect(Told::Connected);
    let conn = server.events.connected();
    assert_eq!(server.events.end_of(conn), CloseReason::IdleTimeout(IDLE));
    node.expect(Told::Closed);
    node.expect(Told::Connected);
    node.send(&uuid(1), "again");
    assert_eq!(node.data(), (uuid(1), b"again".to_vec()));
}

/// What was queued goes before what the application sends when it hears of the connection.
#[test]
fn their_client_comes_back_to_our_restarted_server_with_what_it_queued() {
    let server = server_at(address_of_its_own(1), Script::new());
    let addr = server.addr;
    let node = Node::client(addr, Options { greets: true, ..OPTIONS });
    assert_eq!(server.events.message(), b"greeting");
    drop(server);
    node.expect(Told::Connected);
    node.expect(Told::Closed);
    for number in 0..50 {
        node.send(&uuid(number), format!("queued {number}"));
    }
    node.expect(Told::Exception);
    node.wait(Told::Exception);

    let server = server_at(addr, Script::new());
    for number in 0..50 {
        assert_eq!(server.events.message(), format!("queued {number}").as_bytes());
    }
    assert_eq!(server.events.message(), b"greeting", "after each came once");
    node.wait(Told::Connected);
    node.send(&uuid(50), "last");
    assert_eq!(server.events.message(), b"last");
}

/// Their client keeps its receive buffer across connections: half a frame would spoil all that
/// follows it.
#[test]
fn our_graceful_close_leaves_no_half_frame_in_their_buffer() {
    const LEN: usize = 256 * 1024;
    let server = server_with(&Config::new().watermarks(1 << 20, 8 << 20), Script::echo());
    let node = Node::client(server.addr, OPTIONS);
    for round in 0..3 {
        node.expect(Told::Connected);
        let conn = server.events.connected();
        for number in 0..16 {
            server.handle.send_as(conn, id(number), vec![b'x'; LEN]).unwrap();
        }
        server.handle.close(conn);
        for number in 0..16 {
            let (id, body) = node.data();
            assert!(id == uuid(number) && body == [b'x'; LEN], "round {round}, message {number}");
        }
        node.expect(Told::Closed);
    }
    node.expect(Told::Connected);
    node.send(&uuid(1), "in step");
    assert_eq!(node.data(), (uuid(1), b"in step".to_vec()));
}

// ---- our client, their server ----

#[test]
fn our_calls_are_answered_by_their_echo() {
    let node = Node::server(anywhere(), ECHO);
    let (client, conn) = client(&node, Script::new());
    for number in 0..100 {
        let body = format!("question {number}");
        assert_eq!(client.handle.call(conn, &body, NEVER).unwrap(), body);
    }
    for len in [0, 1 << 20] {
        let body = varied(len);
        assert!(client.handle.call(conn, &body, NEVER).unwrap() == body, "{len} bytes");
    }
}

#[test]
fn calls_in_flight_both_ways_end_with_their_own_answers_on_our_client() {
    let node = Node::server(anywhere(), OPTIONS);
    let (script, kept) = keeping();
    let (client, conn) = client(&node, script);
    call_both_ways(&node, &client, conn, &kept);
}

#[test]
fn our_client_hears_what_their_server_pushes() {
    let node = Node::server(anywhere(), OPTIONS);
    let (script, kept) = keeping();
    let (_client, _) = client(&node, script);
    for number in 0..50 {
        node.send(&uuid(number), format!("news {number}"));
    }
    for number in 0..50 {
        let news = take(&kept);
        assert_eq!((news.id, &*news.body), (id(number), format!("news {number}").as_bytes()));
    }
}

#[test]
fn their_answer_after_our_timeout_is_a_message_and_ends_no_other_call() {
    let node = Node::server(anywhere(), OPTIONS);
    let (client, conn) = client(&node, Script::new());
    let first = client.handle.call_async(conn, "first", Duration::from_millis(500));
    let (first_id, _) = node.data();
    assert_eq!(first.wait(), Err(CallError::Timeout { fate: Fate::MaybeSent }));
    let second = client.handle.call_async(conn, "second", NEVER);
    let (second_id, _) = node.data();
    node.send(&first_id, "too late");
    assert_eq!(client.events.message(), b"too late");
    assert_eq!(client.ask(move |cx| cx.conn(conn).unwrap().stats().calls_in_flight), 1);
    node.send(&second_id, "in time");
    assert_eq!(second.wait().unwrap(), "in time");
}

/// What comes back looks like a ping. Were it answered, the two would go on for ever.
#[test]
fn our_pings_keep_a_silent_connection_up_and_their_echo_is_not_answered() {
    let node = Node::server(anywhere(), OPTIONS);
    let (client, conn) = client_with(&node, &fast(), Script::new());
    until(|| node.pings_that_came().len() >= 5);
    let pings = node.pings_that_came();
    let different: HashSet<_> = pings.iter().collect();
    assert_eq!(different.len(), pings.len(), "a ping came twice");
    assert!(
        pings.iter().all(|ping| ping.len() == HEAD && is_uuid(ping[1..37].try_into().unwrap()))
    );
    assert!(client.ask(move |cx| cx.conn(conn).unwrap().stats().round_trip.is_some()));
    assert_eq!(node.so_far(), []);
    assert!(!client.events.so_far().iter().any(|event| matches!(event, Event::Disconnected(..))));
}

/// Their server gives up whom it does not hear, however much it says itself.
#[test]
fn our_pings_under_their_traffic_keep_their_server_from_giving_us_up() {
    let node = Node::server(anywhere(), OPTIONS);
    let (client, conn) = client_with(&node, &fast(), Script::new());
    let (began, mut sent) = (now(), 0);
    while now() - began < 3 * IDLE {
        node.send(&uuid(sent), "news");
        sent += 1;
        pass(TICK);
        assert_eq!(node.so_far(), [], "after {:?}", now() - began);
    }
    for _ in 0..sent {
        assert_eq!(client.events.message(), b"news");
    }
    assert!(node.pings_that_came().len() >= 2);
    assert_eq!(client.ask(move |cx| cx.conn(conn).unwrap().epoch()), 1);
}

#[test]
fn their_server_that_hangs_is_given_up_and_dialled_again() {
    let hanging = Options { timeout: u32::MAX, hangs: true, ..ECHO };
    let node = Node::server(anywhere(), hanging);
    let settings = Config::qtk().heartbeat(BEAT).idle_timeout(IDLE);
    let (client, conn) = client_with(&node, &settings, Script::new());
    assert_eq!(client.events.end_of(conn), CloseReason::IdleTimeout(IDLE));
    assert_eq!(node.pings_that_came().len(), 1);
    client.events.connected();
    assert_eq!(client.handle.call(conn, "again", NEVER).unwrap(), "again");
}

#[test]
fn our_client_comes_back_to_their_restarted_server_with_what_it_queued() {
    let node = Node::server(address_of_its_own(2), ECHO);
    let (client, conn) = client(&node, Script::new());
    let addr = node.addr.unwrap();
    assert_eq!(client.handle.call(conn, "before", NEVER).unwrap(), "before");
    drop(node);
    client.events.disconnected();
    for number in 0..50 {
        client.handle.send_as(conn, id(number), format!("queued {number}")).unwrap();
    }
    // More than one dial fails, so that what waits has to last.
    client.events.incident();
    client.events.incident();

    let node = Node::server(addr, ECHO);
    client.events.connected();
    assert_eq!(client.handle.call(conn, "after", NEVER).unwrap(), "after");
    node.expect(Told::Connected);
    for number in 0..50 {
        let body = format!("queued {number}");
        assert_eq!(node.data(), (uuid(number), body.clone().into_bytes()));
        assert_eq!(client.events.message(), body.as_bytes());
    }
    assert_eq!(node.data().1, b"after", "after each came once");
    assert!(!client.events.so_far().iter().any(|event| matches!(event, Event::Message(..))));
}

#[test]
fn our_call_ends_when_their_server_dies_and_no_answer_of_the_next_is_taken_for_its() {
    let node = Node::server(address_of_its_own(3), OPTIONS);
    let (client, conn) = client(&node, Script::new());
    let addr = node.addr.unwrap();
    let call = client.handle.call_async(conn, "question", NEVER);
    let (former, _) = node.data();
    drop(node);
    let Err(CallError::Disconnected { fate: Fate::MaybeSent, .. }) = call.wait() else {
        panic!("the call ends with its connection")
    };

    let node = Node::server(addr, OPTIONS);
    node.expect(Told::Connected);
    client.events.connected();
    let next = client.handle.call_async(conn, "next question", NEVER);
    let (present, _) = node.data();
    assert_ne!(present, former);
    node.send(&former, "of the former life");
    assert_eq!(client.events.message(), b"of the former life");
    node.send(&present, "of this one");
    assert_eq!(next.wait().unwrap(), "of this one");
}

// ---- what the pings are for ----

/// Their server gives up whom it does not hear, so that the tests above can fail.
#[test]
fn our_client_without_pings_is_given_up_by_their_server() {
    let node = Node::server(anywhere(), OPTIONS);
    let settings = Config::qtk().heartbeat(None).idle_timeout(None);
    let began = now();
    let (client, conn) = client_with(&node, &settings, Script::new());
    assert_eq!(client.events.end_of(conn), CloseReason::PeerClosed);
    assert!(now() - began >= IDLE);
    node.expect(Told::Closed);
    assert!(node.pings_that_came().is_empty());
    node.expect(Told::Connected);
}

/// Five intervals are more than three timeouts in which their client says nothing but its pings.
#[test]
fn their_client_that_only_listens_is_kept_up_by_its_pings() {
    let settings = Config::new().heartbeat(BEAT).idle_timeout(2 * IDLE);
    let server = server_with(&settings, Script::new());
    let node = Node::client(server.addr, OPTIONS);
    node.expect(Told::Connected);
    let conn = server.events.connected();
    let began = now();
    while node.pings_that_came().len() < 5 {
        assert!(now() - began < PATIENCE, "their pings do not come back");
        server.handle.send_as(conn, id(1), "news").unwrap();
        assert_eq!(node.data(), (uuid(1), b"news".to_vec()));
        pass(TICK / 2);
    }
    assert_eq!(node.pings_that_came()[..5], node.pings_written()[..5]);
    assert_eq!(node.so_far(), []);
    assert!(server.ask(move |cx| cx.conn(conn).is_some()));
}
