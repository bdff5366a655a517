//! An outage between two network namespaces: packets vanish, nobody is told. Both sides notice, the
//! dialled side comes back, and every message is delivered once or accounted for.
//!
//! Each test makes two namespaces with a pair of virtual interfaces between them, and runs a server
//! in one and a client in the other, each in a process of its own. An outage is a wrong hardware
//! address in both neighbour tables: frames go out, and the other side drops them without a word. So
//! neither system reports an error, as a blackhole route or an interface that is down would make it.
//!
//! Where namespaces can't be made (it takes Linux, root and `ip` of iproute2) the tests are ignored.
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
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use common::now;
use longhaul::{
    Client, ClientBuilder, CloseReason, CloseReport, Config, Conn, Context, Handler, Incident,
    Keepalive, Message, ReactorBuilder, Reconnect, Server, Timer, protocol::Native,
};

const HEARTBEAT: Duration = Duration::from_millis(300);
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
const USER_TIMEOUT: Duration = Duration::from_secs(1);
/// TCP's own keepalive, and all of it.
const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(2), interval: Duration::from_secs(1), probes: 4 };
const KEEPALIVE_TIME: Duration = Duration::from_secs(2 + 4);
const BACKOFF_CAP: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// What the client asks for `SO_SNDBUF`, so that an outage soon fills it.
const SEND_BUFFER: usize = 16 * 1024;
/// What Linux takes then, at the most: twice as much, and one packet of 64 KiB that was begun below
/// that.
const TAKEN: usize = 2 * SEND_BUFFER + 64 * 1024;

/// What a busy machine may add to any of these.
const ALLOWANCE: Duration = Duration::from_secs(3);

/// How long anything is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

const SERVER: &str = "10.77.0.1:7001";

// ---- both processes ----

const ROLE: &str = "LONGHAUL_NAMESPACES_ROLE";

/// How often the loop looks whether bytes have come.
const LOOK: Duration = Duration::from_millis(20);

fn settings(role: &str) -> Config {
    let mut config = Config::new()
        .connect_timeout(CONNECT_TIMEOUT)
        .reconnect(Reconnect::exponential(Duration::from_millis(50), BACKOFF_CAP))
        .offline_queue(1024 * 1024, 2 * DEADLINE)
        .tcp_keepalive(None);
    if role.ends_with("user-timeout") || role.ends_with("keepalive") {
        config = config.heartbeat(None).idle_timeout(None).tcp_user_timeout(USER_TIMEOUT);
        if role.ends_with("keepalive") {
            config = config.tcp_keepalive(KEEPALIVE);
        }
    } else {
        config = config.heartbeat(HEARTBEAT).idle_timeout(IDLE_TIMEOUT);
    }
    if role.starts_with("client") {
        config = config.socket_buffers(SEND_BUFFER, 0);
    }
    config
}

/// Tells the test what it sees, a line each.
#[derive(Default)]
struct Teller {
    /// Bytes that had come when the loop looked last, and when that was.
    bytes: u64,
    looked: Option<Instant>,
    /// The last byte came in between.
    heard: Option<(Instant, Instant)>,
}

fn tell(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("@ {line}\n").as_bytes());
}

impl Teller {
    fn look(&mut self, conn: &mut Conn<'_, Native>) {
        let (bytes, now) = (conn.stats().bytes_in, conn.cx().now());
        if bytes != self.bytes {
            self.heard = Some((self.looked.unwrap_or(now), now));
        }
        (self.bytes, self.looked) = (bytes, Some(now));
    }
}

impl Handler for Teller {
    type Protocol = Native;

    fn on_connect(&mut self, conn: &mut Conn<'_, Native>) {
        *self = Self { looked: Some(conn.cx().now()), ..Self::default() };
        if conn.epoch() <= 1 {
            conn.set_timer(LOOK, 0);
        }
        tell(&format!("up {} {}", conn.id().as_u64(), conn.epoch()));
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Native>, timer: Timer) {
        if let Some(mut conn) = timer.conn.and_then(|id| cx.conn(id)) {
            if conn.stats().bytes_in > 0 {
                self.look(&mut conn);
            }
            conn.set_timer(LOOK, 0);
        }
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        let number = u64::from_le_bytes(msg.body()[..8].try_into().unwrap());
        tell(&format!("got {} {number}", conn.id().as_u64()));
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Native>, report: &CloseReport) {
        self.look(conn);
        let now = conn.cx().now();
        let (since, until) = self.heard.unwrap_or((now, now));
        let reason = match &report.reason {
            CloseReason::IdleTimeout(_) => "idle-timeout".to_owned(),
            CloseReason::Network(error) => format!("network-{:?}", error.kind()),
            other => format!("{other:?}").replace(' ', "-"),
        };
        tell(&format!(
            "down {} {reason} {} {} {} {}",
            conn.id().as_u64(),
            (now - until).as_micros(),
            (now - since).as_micros(),
            conn.stats().messages_out,
            report.unsent_messages,
        ));
    }

    fn on_error(&mut self, _: &mut Context<'_, Native>, incident: &Incident) {
        match incident {
            Incident::DialFailed { error, .. } => tell(&format!("dial-failed {:?}", error.kind())),
            Incident::Undelivered { messages, .. } => tell(&format!("undelivered {messages}")),
            other => tell(&format!("incident {other}")),
        }
    }
}

/// One of the two processes, which does what its standard input says until that ends.
fn process_in_a_namespace(role: &str) {
    let builder =
        ReactorBuilder::new(Native).config(settings(role)).stop_timeout(Duration::from_secs(10));
    let lines = std::io::stdin().lines().map(|line| line.unwrap());
    if role.starts_with("server") {
        let server = Server::bind_with(SERVER, builder, Teller::default()).unwrap();
        tell("listening");
        assert_eq!(lines.count(), 0);
        server.stop().unwrap();
        return;
    }
    let client: Client = ClientBuilder::new(Native)
        .reactor(builder)
        .connect_with(SERVER, Teller::default())
        .unwrap();
    let mut number = 0_u64;
    for line in lines {
        // `COUNT BYTES`: that many messages, numbered on.
        let (count, len) = line.split_once(' ').unwrap();
        let mut body = vec![0; len.parse().unwrap()];
        for _ in 0..count.parse().unwrap() {
            body[..8].copy_from_slice(&number.to_le_bytes());
            client.send(&body).unwrap();
            number += 1;
        }
        tell(&format!("sent {number}"));
    }
    client.stop().unwrap();
}

// ---- the world that they live in ----

/// Runs `ip`, and says what was wrong.
fn ip(args: &str) -> Result<(), String> {
    let output = Command::new("ip").args(args.split(' ')).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("`ip {args}`: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("`ip` of iproute2: {error}")),
    }
}

/// Two namespaces and the link between them. Dropping it removes both, and what is in them.
struct World {
    server: String,
    client: String,
}

const SERVER_MAC: &str = "02:00:00:00:00:01";
const CLIENT_MAC: &str = "02:00:00:00:00:02";
/// Nobody's.
const NO_MAC: &str = "02:00:00:00:00:ff";

impl World {
    fn new() -> Self {
        Self::try_new().unwrap()
    }

    fn try_new() -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static BUILDING: Mutex<()> = Mutex::new(());
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("longhaul-{}-{number}-{side}", std::process::id());
        let world = Self { server: name("server"), client: name("client") };
        // One at a time: the first one mounts the directory of the names.
        let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        world.build().map(|()| world)
    }

    fn build(&self) -> Result<(), String> {
        let Self { server, client } = self;
        ip(&format!("netns add {server}"))?;
        ip(&format!("netns add {client}"))?;
        ip(&format!(
            "link add wire netns {server} address {SERVER_MAC} type veth \
             peer name wire netns {client} address {CLIENT_MAC}"
        ))?;
        ip(&format!("-n {server} addr add 10.77.0.1/30 dev wire"))?;
        ip(&format!("-n {client} addr add 10.77.0.2/30 dev wire"))?;
        for side in [server, client] {
            ip(&format!("-n {side} link set wire up"))?;
        }
        ip(&format!("netns exec {server} true"))?;
        self.set_neighbours(CLIENT_MAC, SERVER_MAC)
    }

    /// The hardware address that each side takes for the other's.
    fn set_neighbours(&self, of_client: &str, of_server: &str) -> Result<(), String> {
        let set = |side, addr, mac| {
            ip(&format!("-n {side} neigh replace {addr} lladdr {mac} dev wire nud permanent"))
        };
        set(&self.server, "10.77.0.2", of_client)?;
        set(&self.client, "10.77.0.1", of_server)
    }

    /// From now on every packet vanishes.
    fn cut(&self) -> Instant {
        self.set_neighbours(NO_MAC, NO_MAC).unwrap();
        now()
    }

    /// From now on every packet to the client vanishes, or every one to the server.
    fn cut_way_to(&self, side: &str) -> Instant {
        let cut = match side {
            "client" => self.set_neighbours(NO_MAC, SERVER_MAC),
            _ => self.set_neighbours(CLIENT_MAC, NO_MAC),
        };
        cut.unwrap();
        now()
    }

    /// When the way was free again.
    fn heal(&self) -> Instant {
        self.set_neighbours(CLIENT_MAC, SERVER_MAC).unwrap();
        now()
    }

    /// How many keepalive probes the system of a side has sent.
    fn probes(&self, side: &str) -> u64 {
        let namespace = if side == "client" { &self.client } else { &self.server };
        let output = Command::new("ip")
            .args(["netns", "exec", namespace, "cat", "/proc/net/netstat"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // A line of names, and the line of their values.
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let place = names.split(' ').position(|name| name == "TCPKeepAlive").unwrap();
        values.split(' ').nth(place).unwrap().parse().unwrap()
    }

    /// Waits until a side has sent as many probes; returns when it had not yet.
    #[expect(clippy::disallowed_methods, reason = "nothing tells of a probe but a counter")]
    fn until_probes(&self, side: &str, count: u64) -> Instant {
        let deadline = now() + DEADLINE;
        let mut before = now();
        loop {
            let look = now();
            let probes = self.probes(side);
            if probes >= count {
                return before;
            }
            assert!(look < deadline, "{side}: {probes} probes, not {count}");
            before = look;
            std::thread::sleep(LOOK);
        }
    }

    /// Starts both, connected. `kind` tells which settings they run with.
    fn start(&self, kind: &str) -> (Process, Process) {
        let mut server = Process::start(&self.server, &format!("server{kind}"));
        server.next("listening");
        let mut client = Process::start(&self.client, &format!("client{kind}"));
        client.next("up");
        server.next("up");
        (server, client)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.server));
        let _ = ip(&format!("netns del {}", self.client));
    }
}

/// A line that a process told.
#[derive(Clone, Debug)]
struct Line {
    at: Instant,
    words: Vec<String>,
}

impl Line {
    fn number(&self, place: usize) -> u64 {
        self.words[place].parse().unwrap()
    }
}

/// One side; killed when it is dropped.
struct Process {
    child: Child,
    lines: Receiver<Line>,
    /// All that it told.
    told: Vec<Line>,
}

/// What one side told of an end.
#[derive(Debug)]
struct Down {
    at: Instant,
    reason: String,
    /// How long nothing had come: at least, and at most.
    silence: (Duration, Duration),
    written: u64,
    unsent: u64,
}

impl Process {
    fn start(namespace: &str, role: &str) -> Self {
        let test = std::env::current_exe().unwrap();
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(test)
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix("@ ") {
                    let words = line.split(' ').map(str::to_owned).collect();
                    let _ = tell.send(Line { at: now(), words });
                }
            }
        });
        Self { child, lines, told: Vec::new() }
    }

    /// Waits for the next line that begins with this word.
    fn next(&mut self, word: &str) -> Line {
        let deadline = now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("'{word}' did not come, but this: {}", self.so_far());
            };
            self.told.push(line.clone());
            if line.words[0] == word {
                return line;
            }
        }
    }

    /// Waits for the end of a connection.
    fn down(&mut self) -> Down {
        let line = self.next("down");
        Down {
            at: line.at,
            reason: line.words[2].clone(),
            silence: (Duration::from_micros(line.number(3)), Duration::from_micros(line.number(4))),
            written: line.number(5),
            unsent: line.number(6),
        }
    }

    /// Makes the client send messages, and waits until they were accepted.
    fn send(&mut self, count: u64, len: usize) -> u64 {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(format!("{count} {len}\n").as_bytes()).unwrap();
        self.next("sent").number(1)
    }

    /// Waits until the server got a message.
    fn until_got(&mut self, number: u64) {
        while self.next("got").number(2) != number {}
    }

    /// Lets it finish, and returns all that it told.
    fn end(mut self) -> Vec<Line> {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success(), "{}", self.so_far());
        self.told.extend(self.lines.iter());
        std::mem::take(&mut self.told)
    }

    fn so_far(&self) -> String {
        self.told.iter().fold(String::new(), |mut text, line| {
            let _ = write!(text, "\n{}", line.words.join(" "));
            text
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The silence was noticed for what it is, not too early and in time.
fn assert_noticed(side: &str, cut: Instant, down: &Down) {
    let noticed = down.at.saturating_duration_since(cut);
    assert_eq!(down.reason, "idle-timeout", "{side}");
    assert!(down.silence.1 >= IDLE_TIMEOUT, "{side} gave up too early: {down:?}");
    let limit = IDLE_TIMEOUT + HEARTBEAT + ALLOWANCE;
    assert!(down.silence.0 <= limit, "{side} noticed too late: {down:?}");
    assert!(noticed <= limit, "{side} noticed {noticed:?} after the cut");
}

fn all<'a>(lines: &'a [Line], word: &'a str) -> impl Iterator<Item = &'a Line> {
    lines.iter().filter(move |line| line.words[0] == word)
}

// ---- the tests ----

fn silence_is_noticed_by_both_sides_and_the_dialled_side_comes_back() {
    let world = World::new();
    let (mut server, mut client) = world.start("");
    client.send(1, 100);
    server.until_got(0);
    // At first until the backoff is at its cap.
    for (round, failures) in [(1, 6), (2, 1)] {
        let cut = world.cut();
        assert_noticed("server", cut, &server.down());
        assert_noticed("client", cut, &client.down());
        for _ in 0..failures {
            assert_eq!(client.next("dial-failed").words[1], "TimedOut");
        }
        let healed = world.heal();
        let back = client.next("up").at - healed;
        assert!(back <= BACKOFF_CAP + CONNECT_TIMEOUT + ALLOWANCE, "back after {back:?}");
        // And it is of use.
        server.next("up");
        client.send(1, 100);
        server.until_got(round);
    }
    let told = client.end();
    server.end();
    assert_eq!(all(&told, "up").map(|line| line.number(2)).collect::<Vec<_>>(), [1, 2, 3]);
}

fn loss_in_one_direction_is_noticed_by_both_sides() {
    let world = World::new();
    let (mut server, mut client) = world.start("");
    for deaf in ["client", "server"] {
        let cut = world.cut_way_to(deaf);
        let (first, other) = match deaf {
            "client" => (client.down(), server.down()),
            _ => (server.down(), client.down()),
        };
        assert_noticed(deaf, cut, &first);
        // The other hears one more ping. Then it is told, or hears nothing either: a system that gets
        // no acknowledgement sends only what it has sent before.
        let limit = IDLE_TIMEOUT + 2 * HEARTBEAT + ALLOWANCE;
        assert!(other.at - cut <= limit, "{:?} after the cut: {other:?}", other.at - cut);
        let ends = ["idle-timeout", "PeerClosed", "network-ConnectionReset"];
        assert!(ends.contains(&&*other.reason), "{other:?}");
        assert_eq!(client.next("dial-failed").words[1], "TimedOut");
        world.heal();
        client.next("up");
        server.next("up");
    }
    client.end();
    server.end();
}

fn message_of_any_moment_of_an_outage_is_delivered_once_or_counted() {
    const LONG: usize = 4096;
    let world = World::new();
    let (mut server, mut client) = world.start("");

    let before = client.send(100, 100);
    server.until_got(before - 1);
    let cut = world.cut();
    // Accepted, for nobody knows yet.
    let unnoticed = client.send(200, LONG);
    let (first_end, server_end) = (client.down(), server.down());
    assert_noticed("server", cut, &server_end);
    assert_noticed("client", cut, &first_end);
    let kept = client.send(100, 100);
    client.next("dial-failed");
    world.heal();
    client.next("up");
    let accepted = client.send(100, 100);
    server.until_got(accepted - 1);
    let client_told = client.end();
    let server_told = server.end();

    let ends: Vec<_> = all(&client_told, "down").collect();
    let [first, second] = ends[..] else { panic!("{ends:?}") };
    let (written, unsent) = (first.number(5), first.number(6));
    let undelivered: u64 = all(&client_told, "undelivered").map(|line| line.number(1)).sum();
    // Each message that was accepted was given to the system once, or counted once.
    assert_eq!((second.number(6), undelivered), (0, 0));
    assert_eq!(written + unsent + second.number(5), accepted);

    let conns: Vec<_> = all(&server_told, "up").map(|line| line.number(1)).collect();
    assert_eq!(conns.len(), 2, "{conns:?}");
    let got = |conn| -> Vec<u64> {
        let of_conn = all(&server_told, "got").filter(|line| line.number(1) == conn);
        of_conn.map(|line| line.number(2)).collect()
    };
    // The first epoch delivered the beginning of what was written, in order and once.
    let (got_first, got_second) = (got(conns[0]), got(conns[1]));
    let delivered = got_first.len() as u64;
    assert_eq!(got_first, (0..delivered).collect::<Vec<_>>());
    assert!((before..=written).contains(&delivered), "{delivered} of {written}");
    // The second, all from where the first had stopped to accept; what was sent while the connection
    // was known to be down is in it.
    assert_eq!(got_second, (written + unsent..accepted).collect::<Vec<_>>());
    assert!(written + unsent <= unnoticed && unnoticed < kept);
    // What is neither delivered nor counted is what the system had taken, and that is as much as its
    // buffer holds.
    let lost = written - delivered;
    assert!(lost as usize * LONG <= TAKEN, "{lost} messages lost and not counted");
    assert!(unsent > 0, "the outage left nothing in the queue");
}

fn data_that_nobody_acknowledges_ends_a_connection_without_heartbeats() {
    let world = World::new();
    let (mut server, mut client) = world.start("-user-timeout");
    client.send(1, 100);
    server.until_got(0);
    let cut = world.cut();
    client.send(1, 100);
    let down = client.down();
    let noticed = down.at.saturating_duration_since(cut);
    assert_eq!(down.reason, "network-TimedOut");
    assert_eq!((down.written, down.unsent), (2, 0), "the system had taken the message");
    assert!(noticed >= USER_TIMEOUT / 2, "noticed after {noticed:?}");
    assert!(noticed <= 2 * USER_TIMEOUT + ALLOWANCE, "noticed after {noticed:?}");
    world.heal();
    client.next("up");
    client.send(1, 100);
    server.until_got(2);
    client.end();
    server.end();
}

fn keepalive_outlives_a_lost_probe() {
    let world = World::new();
    let (mut server, mut client) = world.start("-keepalive");
    // By then all is acknowledged that was sent.
    world.until_probes("client", 1);
    world.cut();
    world.until_probes("client", 2);
    world.heal();
    // This one is answered. By then the silence is longer than the user timeout.
    world.until_probes("client", 3);
    client.send(1, 100);
    server.until_got(0);
    for told in [client.end(), server.end()] {
        assert_eq!(all(&told, "up").count(), 1, "{told:?}");
    }
}

fn dead_peer_is_noticed_when_every_probe_was_lost() {
    let world = World::new();
    let (mut server, mut client) = world.start("-keepalive");
    // Both hear the answer to their first probe, and nothing more.
    let answered = ["client", "server"].map(|side| world.until_probes(side, 1));
    let cut = world.cut();
    let ends = [("client", client.down(), answered[0]), ("server", server.down(), answered[1])];
    for (side, down, heard) in ends {
        let noticed = down.at.saturating_duration_since(cut);
        assert_eq!(down.reason, "network-TimedOut", "{side}");
        let silence = down.at.saturating_duration_since(heard);
        assert!(silence >= KEEPALIVE_TIME, "{side}: noticed after a silence of {silence:?}");
        assert!(noticed <= KEEPALIVE_TIME + ALLOWANCE, "{side}: noticed after {noticed:?}");
    }
    client.end();
    server.end();
}

const TESTS: &[(&str, fn())] = &[
    (
        "silence_is_noticed_by_both_sides_and_the_dialled_side_comes_back",
        silence_is_noticed_by_both_sides_and_the_dialled_side_comes_back,
    ),
    (
        "loss_in_one_direction_is_noticed_by_both_sides",
        loss_in_one_direction_is_noticed_by_both_sides,
    ),
    (
        "message_of_any_moment_of_an_outage_is_delivered_once_or_counted",
        message_of_any_moment_of_an_outage_is_delivered_once_or_counted,
    ),
    (
        "data_that_nobody_acknowledges_ends_a_connection_without_heartbeats",
        data_that_nobody_acknowledges_ends_a_connection_without_heartbeats,
    ),
    ("keepalive_outlives_a_lost_probe", keepalive_outlives_a_lost_probe),
    (
        "dead_peer_is_noticed_when_every_probe_was_lost",
        dead_peer_is_noticed_when_every_probe_was_lost,
    ),
];

/// What is missing here, if anything is.
fn missing() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("needs Linux".to_owned());
    }
    World::try_new().err().map(|error| format!("needs root and iproute2: {error}"))
}

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(ROLE) {
        process_in_a_namespace(&role);
        return ExitCode::SUCCESS;
    }
    tools::run(missing, TESTS)
}
