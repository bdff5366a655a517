//! The Node library that `qtk2` replaces, as it is on npm, against ours: its client and our server, our
//! client and its server.
//!
//! `npm ci` installs it under the target folder, once. Its own clock is sped up where a test would
//! wait for its 20 and 30 seconds; see `interop/clock.js`. Without Node.js or npm the tests are ignored.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    clippy::needless_pass_by_value,
    clippy::redundant_closure_for_method_calls,
    clippy::similar_names,
    reason = "a test says so by panicking, and its numbers are small"
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod tools;

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use common::{PATIENCE, Running, Script, now, pass};
use longhaul::{
    Config, Conn, ReactorBuilder,
    protocol::{AnyId, AnyProtocol, Qtk2, Uuid},
};
use tools::missing_command;

/// How much faster than real the library's clock runs, where it does.
const SPEED: u32 = 25;

/// The library's heartbeat and idle timeout on that clock.
const BEAT: Duration = Duration::from_millis(20_000 / SPEED as u64);
const IDLE: Duration = Duration::from_millis(30_000 / SPEED as u64);

/// Where the library is, with the programs that use it.
fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop");
        std::fs::create_dir_all(&folder).unwrap();
        for file in std::fs::read_dir(source).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        // What was installed by this lock file stays.
        let lock = std::fs::read(folder.join("package-lock.json")).unwrap();
        let stamp = folder.join("installed-by.json");
        if std::fs::read(&stamp).is_ok_and(|last| last == lock) {
            return folder;
        }
        let installed = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(&folder)
            .output()
            .expect("npm and Node.js are needed: apt-get install nodejs npm");
        assert!(
            installed.status.success(),
            "npm ci: {}",
            String::from_utf8_lossy(&installed.stderr)
        );
        std::fs::write(stamp, lock).unwrap();
        folder
    })
}

/// A program that uses the library. Killed when dropped.
struct Node {
    child: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
}

impl Node {
    fn start(program: &str, addr: SocketAddr, delay: Duration, speed: u32) -> Self {
        let mut child = Command::new("node")
            .args(["--no-deprecation", "--require", "./clock.js", program])
            .args([addr.ip().to_string(), addr.port().to_string(), delay.as_millis().to_string()])
            .env("SPEED", speed.to_string())
            .current_dir(programs())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node.js is needed: apt-get install nodejs");
        let commands = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).all(|line| tell.send(line).is_ok())
        });
        Self { child, commands, lines }
    }

    fn client(addr: SocketAddr) -> Self {
        Self::start("client.js", addr, Duration::ZERO, 1)
    }

    /// A server that listens when this returns.
    fn server(addr: SocketAddr, delay: Duration, speed: u32) -> Self {
        let node = Self::start("server.js", addr, delay, speed);
        node.expect("started");
        node
    }

    fn command(&mut self, line: &str) {
        writeln!(self.commands, "{line}").unwrap();
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the Node side tells something in time")
    }

    fn expect(&self, line: &str) {
        assert_eq!(self.next(), line);
    }

    /// Waits for a line, through those of connections that come and go.
    fn wait(&self, line: &str) {
        loop {
            let next = self.next();
            if next == line {
                return;
            }
            let is_passing =
                ["connected", "closed"].contains(&&*next) || next.starts_with("exception");
            assert!(is_passing, "{next}, not {line}");
        }
    }

    fn so_far(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A uuid as the library writes it.
fn uuid(number: usize) -> String {
    format!("{number:032x}")
}

fn id(number: usize) -> AnyId {
    AnyId::Qtk2(Uuid::from(*uuid(number).as_bytes().first_chunk::<32>().unwrap()))
}

/// A loopback address that no other test binds and no socket dials from, so that its port is free
/// until a server takes it, and while that is down.
fn address_of_its_own() -> SocketAddr {
    static TAKEN: AtomicU8 = AtomicU8::new(0);
    let number = TAKEN.fetch_add(1, Ordering::SeqCst) + 1;
    TcpListener::bind((Ipv4Addr::new(127, 0, 72, number), 0)).unwrap().local_addr().unwrap()
}

/// A client of ours to a server of theirs, up.
fn client_to(addr: SocketAddr, settings: &Config) -> (Running, longhaul::ConnId) {
    let client = Running::client(Qtk2, settings.clone(), Script::new());
    let conn = client.handle.connect_with(addr, &Qtk2.into(), settings).unwrap();
    client.events.connected();
    (client, conn)
}

// ---- their client, our server ----

fn their_client_gets_its_messages_echoed_under_their_ids() {
    let server = Running::server(Qtk2, Config::qtk(), Script::echo());
    let mut node = Node::client(server.addr);
    node.expect("connected");
    for number in 0..100 {
        node.command(&format!("send {} text {number}", uuid(number)));
    }
    node.command(&format!("large {} 1048576", uuid(100)));
    for number in 0..100 {
        node.expect(&format!("data {} text {number}", uuid(number)));
    }
    node.expect(&format!("data {} 1048576 bytes", uuid(100)));
}

fn their_client_gets_a_delayed_echo_from_a_timer() {
    let delay = Duration::from_millis(300);
    let server = Running::server(Qtk2, Config::qtk(), Script::delayed_echo(delay));
    let mut node = Node::client(server.addr);
    node.expect("connected");
    let began = now();
    node.command(&format!("send {} delayed_echo", uuid(7)));
    node.expect(&format!("data {} delayed_echo", uuid(7)));
    assert!(now() - began >= delay);
}

fn our_server_pushes_to_their_client() {
    let server = Running::server(Qtk2, Config::qtk(), Script::new());
    let node = Node::client(server.addr);
    node.expect("connected");
    let conn = server.events.connected();
    server.handle.send_as(conn, id(1), "to one").unwrap();
    server.handle.broadcast("to all").unwrap();
    node.expect(&format!("data {} to one", uuid(1)));
    let news = node.next();
    assert!(news.starts_with("data ") && news.ends_with(" to all"), "{news}");
    assert_eq!(news.len(), "data  to all".len() + 32, "an id as long as theirs: {news}");
}

fn our_server_calls_their_client_which_answers_by_the_id() {
    // Their client sends back what it gets as soon as the test tells it to.
    let server = Running::server(Qtk2, Config::qtk(), Script::new());
    let mut node = Node::client(server.addr);
    node.expect("connected");
    let conn = server.events.connected();
    let call = server.handle.call_async(conn, "who are you?", PATIENCE);
    let asked = node.next();
    let asked_id = asked.strip_suffix(" who are you?").and_then(|line| line.strip_prefix("data "));
    node.command(&format!("send {} node", asked_id.unwrap()));
    assert_eq!(call.wait().unwrap(), "node");
}

/// Their client pings each 20 s and closes after 30 s without a byte; our server answers the pings
/// with the same bytes and closes after 30 s without one.
fn their_client_and_our_server_keep_a_silent_connection_up() {
    let settings = Config::new().heartbeat(BEAT).idle_timeout(2 * IDLE);
    let server = Running::server(Qtk2, settings, Script::new());
    let node = Node::start("client.js", server.addr, Duration::ZERO, SPEED);
    node.expect("connected");
    let conn = server.events.connected();
    // Five pings of 37 bytes are more than three idle timeouts.
    server.until(move |cx| cx.conn(conn).is_some_and(|conn| conn.stats().bytes_in >= 5 * 37));
    assert_eq!(node.so_far(), [""; 0]);
    assert!(server.events.so_far().is_empty());
}

fn their_client_comes_back_to_our_restarted_server_with_what_it_queued() {
    let serve = |addr: SocketAddr| {
        let builder = ReactorBuilder::new(AnyProtocol::from(Qtk2)).config(Config::qtk());
        Running::start(builder, Script::echo(), |reactor| reactor.listen(addr).unwrap().1)
    };
    let server = serve(address_of_its_own());
    let addr = server.addr;
    let mut node = Node::client(addr);
    node.expect("connected");
    drop(server);
    node.wait("closed");
    for number in 0..20 {
        node.command(&format!("send {} queued {number}", uuid(number)));
    }
    node.wait(&format!("exception connect ECONNREFUSED {addr}"));
    let _server = serve(addr);
    for number in 0..20 {
        node.wait(&format!("data {} queued {number}", uuid(number)));
    }
    node.command(&format!("send {} last", uuid(20)));
    node.expect(&format!("data {} last", uuid(20)));
}

// ---- our client, their server ----

fn our_calls_are_answered_by_their_echo_at_once_and_late() {
    for delay in [Duration::ZERO, Duration::from_millis(300)] {
        let addr = address_of_its_own();
        let node = Node::server(addr, delay, 1);
        let (client, conn) = client_to(addr, &Config::qtk());
        let began = now();
        assert_eq!(client.handle.call(conn, "echo", PATIENCE).unwrap(), "echo");
        assert!(now() - began >= delay);
        let large = vec![b'x'; 1 << 20];
        assert_eq!(client.handle.call(conn, &large, PATIENCE).unwrap(), large);
        node.wait("connected");
    }
}

fn our_client_hears_what_their_server_pushes() {
    let addr = address_of_its_own();
    let mut node = Node::server(addr, Duration::ZERO, 1);
    let (client, conn) = client_to(addr, &Config::qtk());
    node.expect("connected");
    client.handle.send_as(conn, id(9), "hello").unwrap();
    node.expect(&format!("data {} hello", uuid(9)));
    assert_eq!(client.events.message(), b"hello");
    node.command(&format!("push {} unasked", uuid(1)));
    assert_eq!(client.events.message(), b"unasked");
}

/// Their server closes a client that was silent for 30 s, whatever it says to it itself.
fn our_pings_keep_their_server_from_giving_us_up_silent_or_talked_to() {
    let addr = address_of_its_own();
    let mut node = Node::server(addr, Duration::ZERO, SPEED);
    // The round trip of a ping shows their echo.
    let settings = Config::new().heartbeat(BEAT).idle_timeout(2 * IDLE);
    let (client, conn) = client_to(addr, &settings);
    node.expect("connected");
    let pings = |client: &Running, bytes: u64| {
        client.until(move |cx| cx.conn(conn).unwrap().stats().bytes_in >= bytes);
    };
    pings(&client, 5 * 37);
    assert!(client.ask(move |cx| cx.conn(conn).unwrap().stats().round_trip.is_some()));
    // More than two idle timeouts in which only the server talks.
    let began = now();
    while now() - began < IDLE * 5 / 2 {
        node.command(&format!("push {} news", uuid(1)));
        assert_eq!(client.events.message(), b"news");
        pass(BEAT / 10);
    }
    assert_eq!(node.so_far(), [""; 0]);
    assert_eq!(client.ask(move |cx| cx.conn(conn).unwrap().epoch()), 1);
}

fn our_client_comes_back_to_their_restarted_server_with_what_it_queued() {
    let addr = address_of_its_own();
    let node = Node::server(addr, Duration::ZERO, 1);
    let (client, conn) = client_to(addr, &Config::qtk());
    node.expect("connected");
    drop(node);
    client.events.disconnected();
    for number in 0..20 {
        client.handle.send_as(conn, id(number), format!("queued {number}")).unwrap();
    }
    let node = Node::server(addr, Duration::ZERO, 1);
    node.expect("connected");
    for number in 0..20 {
        node.expect(&format!("data {} queued {number}", uuid(number)));
        assert_eq!(client.events.message(), format!("queued {number}").as_bytes());
    }
    client.handle.send_as(conn, id(20), "last").unwrap();
    node.expect(&format!("data {} last", uuid(20)));
    assert_eq!(client.events.message(), b"last");
}

fn goodbye_of_either_side_is_seen_by_the_other() {
    let server = Running::server(Qtk2, Config::qtk(), Script::new());
    let mut node = Node::client(server.addr);
    node.expect("connected");
    let conn = server.events.connected();
    node.command("close");
    assert_eq!(server.events.end_of(conn), longhaul::CloseReason::PeerClosed);

    let addr = address_of_its_own();
    let node = Node::server(addr, Duration::ZERO, 1);
    let (client, conn) = client_to(addr, &Config::qtk());
    node.expect("connected");
    let close = |conn: &mut Conn<'_, AnyProtocol>| conn.close();
    client.ask(move |cx| close(&mut cx.conn(conn).unwrap()));
    node.expect("closed");
}

const TESTS: &[(&str, fn())] = &[
    (
        "their_client_gets_its_messages_echoed_under_their_ids",
        their_client_gets_its_messages_echoed_under_their_ids,
    ),
    (
        "their_client_gets_a_delayed_echo_from_a_timer",
        their_client_gets_a_delayed_echo_from_a_timer,
    ),
    ("our_server_pushes_to_their_client", our_server_pushes_to_their_client),
    (
        "our_server_calls_their_client_which_answers_by_the_id",
        our_server_calls_their_client_which_answers_by_the_id,
    ),
    (
        "their_client_and_our_server_keep_a_silent_connection_up",
        their_client_and_our_server_keep_a_silent_connection_up,
    ),
    (
        "their_client_comes_back_to_our_restarted_server_with_what_it_queued",
        their_client_comes_back_to_our_restarted_server_with_what_it_queued,
    ),
    (
        "our_calls_are_answered_by_their_echo_at_once_and_late",
        our_calls_are_answered_by_their_echo_at_once_and_late,
    ),
    ("our_client_hears_what_their_server_pushes", our_client_hears_what_their_server_pushes),
    (
        "our_pings_keep_their_server_from_giving_us_up_silent_or_talked_to",
        our_pings_keep_their_server_from_giving_us_up_silent_or_talked_to,
    ),
    (
        "our_client_comes_back_to_their_restarted_server_with_what_it_queued",
        our_client_comes_back_to_their_restarted_server_with_what_it_queued,
    ),
    ("goodbye_of_either_side_is_seen_by_the_other", goodbye_of_either_side_is_seen_by_the_other),
];

fn main() -> ExitCode {
    let missing = || missing_command("node", "nodejs").or_else(|| missing_command("npm", "npm"));
    tools::run(missing, TESTS)
}
