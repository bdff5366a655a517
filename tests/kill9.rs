//! A server that is killed with SIGKILL and started again on the same port, a hundred times under
//! load: each call ends once and its error tells the truth, each accepted message is delivered once
//! and in order, or handed back.
//!
//! `LONGHAUL_KILLS=N` sets how often. What is compared: what the clients were told, and a file to
//! which every server of the series appends what it handles, before it answers. The page cache
//! outlives a killed process, so the file has all that was handled.
//!
//! For each epoch of a client's connection, with
//!
//! ```text
//! written      messages and calls given to the system whole   (ConnStats::messages_out at its end)
//! handed back  messages that were not                         (Conn::take_unsent)
//! delivered    what a server handled                          (the file)
//! ```
//!
//! `delivered <= written`; in the last epoch, which ends well, `delivered = written` and nothing is
//! handed back. Over all epochs of a client that only sends, and with what came back by
//! [`Incident::Undelivered`]: `accepted = written + handed back + undelivered`. So each message was
//! delivered, or came back, or is one of the `written − delivered` of which this side can't know:
//! bytes that the system took and no server read.
#![cfg(unix)]
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
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::channel,
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{now, pass};
use longhaul::{
    Bytes, CallError, Client, ClientBuilder, CloseReport, Config, Conn, Context, Fate, Handler,
    Incident, Message, ReactorBuilder, Reconnect, Responder, SendError, Server, Tagged, Timer,
    protocol::Native,
};

const KILLS: u64 = 100;

/// How long anything is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

const KIB: usize = 1024;

// ---- what is sent, and what is written down of it ----

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum What {
    /// The first message of an epoch; its number is the epoch.
    Mark,
    Message,
    Call,
}

/// A message's name, unique over the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name {
    client: u8,
    what: What,
    sender: u8,
    number: u64,
}

impl Name {
    const BYTES: usize = 16;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..3].copy_from_slice(&[self.client, self.what as u8, self.sender]);
        bytes[8..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let what = [What::Mark, What::Message, What::Call][usize::from(bytes[1])];
        let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        Self { client: bytes[0], what, sender: bytes[2], number }
    }

    /// A body of `len` bytes that begins with the name.
    fn body(self, len: usize) -> Bytes {
        let mut body = vec![0; len.max(Self::BYTES)];
        body[..Self::BYTES].copy_from_slice(&self.encode());
        body.into()
    }
}

/// What one server handled on one connection.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Which server of the series.
    life: u64,
    conn: u64,
    name: Name,
}

impl Entry {
    /// A divisor of the page size, so that no entry lies on two pages and can be cut.
    const BYTES: usize = 32;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.life.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.conn.to_le_bytes());
        bytes[16..].copy_from_slice(&self.name.encode());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self { life: number(0), conn: number(8), name: Name::decode(&bytes[16..]) }
    }
}

// ---- the server, in a process of its own ----

const ADDR: &str = "LONGHAUL_KILL9_ADDR";
const LIFE: &str = "LONGHAUL_KILL9_LIFE";
const LOG: &str = "LONGHAUL_KILL9_LOG";

/// The client whose calls are answered late, so that a kill finds one that was handled and not
/// answered, with nothing sent behind it.
const PATIENT: u8 = 3;

/// Writes down what it gets, then answers.
struct Writing {
    life: u64,
    log: File,
    late: VecDeque<(Responder<Native>, Name)>,
}

impl Handler for Writing {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        let name = Name::decode(msg.body());
        let entry = Entry { life: self.life, conn: conn.id().as_u64(), name };
        self.log.write_all(&entry.encode()).unwrap();
        if msg.is_request() && name.client == PATIENT {
            self.late.push_back((conn.defer(&msg).unwrap(), name));
            conn.set_timer(Duration::from_millis(2), 0);
        } else if msg.is_request() {
            conn.reply(&msg, name.encode()).unwrap();
        }
    }

    fn on_timer(&mut self, _: &mut Context<'_, Native>, _: Timer) {
        let (responder, name) = self.late.pop_front().unwrap();
        responder.reply(name.encode()).unwrap();
    }
}

/// Not a test of its own: a server of the series, which serves until its standard input ends.
#[test]
fn server_in_a_process_of_its_own() {
    let Ok(addr) = std::env::var(ADDR) else { return };
    let life = std::env::var(LIFE).unwrap().parse().unwrap();
    let log = OpenOptions::new().append(true).open(std::env::var(LOG).unwrap()).unwrap();
    let settings = Config::new().socket_buffers(0, 16 * KIB);
    let builder = ReactorBuilder::new(Native).config(settings).stop_timeout(DEADLINE);
    let handler = Writing { life, log, late: VecDeque::new() };
    let server = Server::bind_with(addr.as_str(), builder, handler).unwrap();
    println!("\nserving {}", server.addr());
    assert_eq!(std::io::stdin().lines().count(), 0);
    server.stop().unwrap();
}

/// A server of the series; killed when it is dropped.
struct Life {
    child: Child,
    addr: SocketAddr,
    /// Held open for what it says at its end.
    output: Option<BufReader<ChildStdout>>,
}

impl Life {
    fn start(addr: SocketAddr, life: u64, log: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["server_in_a_process_of_its_own", "--exact", "--nocapture"])
            .env(ADDR, addr.to_string())
            .env(LIFE, life.to_string())
            .env(LOG, log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // From here on it is killed, whatever happens.
        let mut started = Self { child, addr, output: None };
        let output = started.child.stdout.take().unwrap();
        let output = started.output.insert(BufReader::new(output));
        let mut lines = output.lines();
        let serving = lines.find_map(|line| line.unwrap().strip_prefix("serving ")?.parse().ok());
        started.addr = serving.expect("the server listens");
        started
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the process, without ending it: nothing is read, and nothing closed.
    fn freeze(&self) {
        let freeze = format!("kill -STOP {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &freeze]).status().unwrap().success());
    }

    /// Lets it finish.
    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success(), "the last server ends well");
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- the clients ----

/// What a client was told of one epoch.
#[derive(Clone, Debug)]
struct Epoch {
    number: u32,
    written: u64,
    /// The messages, not the calls, that were not written.
    handed_back: Vec<Name>,
    report: CloseReport,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    NotSent,
    MaybeSent,
}

/// What a client has been told so far.
#[derive(Debug, Default)]
struct Told {
    epochs: Vec<Epoch>,
    /// Marks that were accepted.
    marks: u64,
    undelivered: Vec<Name>,
    /// What must not happen.
    faults: Vec<String>,
    /// For each caller and number, how often the call ended and how.
    calls: HashMap<(u8, u64), Vec<Outcome>>,
}

/// One connection, and the threads that load it.
struct Load {
    number: u8,
    client: Arc<Client>,
    told: Arc<Mutex<Told>>,
    gauges: Arc<Gauges>,
    /// Each returns how many messages it sent, or calls it started.
    senders: Vec<JoinHandle<u64>>,
    callers: Vec<JoinHandle<u64>>,
}

/// What the main thread waits for.
#[derive(Debug, Default)]
struct Gauges {
    answered: AtomicU64,
    full: AtomicU64,
    offline: AtomicU64,
    is_over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Watch {
    client: u8,
    told: Arc<Mutex<Told>>,
}

impl Handler for Watch {
    type Protocol = Native;

    fn on_message(&mut self, _: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        lock(&self.told).faults.push(format!("a message from the server: {msg:?}"));
    }

    fn on_connect(&mut self, conn: &mut Conn<'_, Native>) {
        let number = u64::from(conn.epoch());
        let mark = Name { client: self.client, what: What::Mark, sender: 0, number };
        conn.send(mark.body(0)).unwrap();
        lock(&self.told).marks += 1;
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Native>, report: &CloseReport) {
        let epoch = Epoch {
            number: conn.epoch(),
            written: conn.stats().messages_out,
            handed_back: names_of(conn.take_unsent()),
            report: report.clone(),
        };
        lock(&self.told).epochs.push(epoch);
    }

    fn on_error(&mut self, cx: &mut Context<'_, Native>, incident: &Incident) {
        match incident {
            Incident::DialFailed { retry_in: Some(_), .. } => {}
            Incident::Undelivered { messages, .. } => {
                let names = names_of(cx.take_undelivered());
                assert_eq!(names.len() as u64, *messages);
                lock(&self.told).undelivered.extend(names);
            }
            other => lock(&self.told).faults.push(other.to_string()),
        }
    }
}

fn names_of(messages: Vec<Tagged<Bytes>>) -> Vec<Name> {
    messages.into_iter().map(|Tagged(_, body)| Name::decode(&body)).collect()
}

/// How a call that the server was to answer with its name ended.
fn outcome(name: Name, result: Result<&[u8], &CallError>) -> Outcome {
    match result {
        Ok(reply) => {
            assert_eq!(reply, name.encode(), "the answer to another call");
            Outcome::Answered
        }
        Err(error) => match error.fate() {
            Fate::NotSent => Outcome::NotSent,
            Fate::MaybeSent => {
                let is_disconnect = matches!(error, CallError::Disconnected { .. });
                assert!(is_disconnect, "{name:?}: {error}");
                Outcome::MaybeSent
            }
            Fate::Answered => panic!("{name:?}: {error}"),
        },
    }
}

impl Load {
    fn start(number: u8, addr: SocketAddr) -> Self {
        let told = Arc::<Mutex<Told>>::default();
        let gauges = Arc::<Gauges>::default();
        let settings: Config = Config::new()
            .reconnect(Reconnect::exponential(Duration::from_millis(1), Duration::from_millis(20)))
            .watermarks(32 * KIB, 128 * KIB)
            .offline_queue(48 * KIB, DEADLINE * 10)
            .socket_buffers(16 * KIB, 0);
        let builder = ReactorBuilder::new(Native).config(settings).stop_timeout(DEADLINE);
        let watch = Watch { client: number, told: told.clone() };
        let client = ClientBuilder::new(Native).reactor(builder).start_with(addr, watch).unwrap();
        Self {
            number,
            client: Arc::new(client),
            told,
            gauges,
            senders: Vec::new(),
            callers: Vec::new(),
        }
    }

    /// With two threads that send messages of this length.
    fn sending(mut self, len: usize) -> Self {
        for sender in 0..2 {
            self.add_sender(self.number, sender, len);
        }
        self
    }

    /// With a thread that calls and blocks.
    fn calling(mut self) -> Self {
        self.add_blocking_caller(self.number, 0);
        self
    }

    /// With three threads that call, each in another way.
    fn calling_three_ways(mut self) -> Self {
        self = self.calling();
        self.add_caller_of_futures(self.number, 1);
        self.add_caller_with_callbacks(self.number, 2);
        self
    }

    fn add_sender(&mut self, client: u8, sender: u8, len: usize) {
        let (conn, gauges) = (self.client.clone(), self.gauges.clone());
        self.senders.push(std::thread::spawn(move || {
            let mut number = 0;
            while !gauges.is_over.load(Ordering::Relaxed) {
                // A burst, and then a pause, so that the file does not grow without end.
                for _ in 0..8 {
                    let name = Name { client, what: What::Message, sender, number };
                    match conn.send(name.body(len)) {
                        Ok(()) => number += 1,
                        Err(SendError::Full) => {
                            gauges.full.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        Err(SendError::Offline) => {
                            gauges.offline.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        Err(error) => panic!("{name:?}: {error}"),
                    }
                }
                pass(Duration::from_millis(1));
            }
            number
        }));
    }

    /// Runs `call` until the end: given the number of the next call, it returns that after its own.
    fn add_caller(&mut self, mut call: impl FnMut(u64, &Calls) -> u64 + Send + 'static) {
        let (told, gauges) = (self.told.clone(), self.gauges.clone());
        let conn = self.client.clone();
        self.callers.push(std::thread::spawn(move || {
            let calls = Calls { client: conn, told, gauges };
            let mut number = 0;
            while !calls.gauges.is_over.load(Ordering::Relaxed) {
                number = call(number, &calls);
            }
            number
        }));
    }

    fn add_blocking_caller(&mut self, client: u8, sender: u8) {
        self.add_caller(move |number, calls| {
            let name = Name { client, what: What::Call, sender, number };
            let result = calls.client.call(name.body(0), DEADLINE);
            calls.ended(name, result.as_deref());
            rest_after(result.is_err());
            number + 1
        });
    }

    fn add_caller_of_futures(&mut self, client: u8, sender: u8) {
        self.add_caller(move |number, calls| {
            let name = |number| Name { client, what: What::Call, sender, number };
            let pending: Vec<_> = (number..number + 32)
                .map(|number| {
                    (name(number), calls.client.call_async(name(number).body(100), DEADLINE))
                })
                .collect();
            let mut has_failed = false;
            for (name, call) in pending {
                let result = common::pair::block_on(call);
                calls.ended(name, result.as_deref());
                has_failed |= result.is_err();
            }
            rest_after(has_failed);
            number + 32
        });
    }

    fn add_caller_with_callbacks(&mut self, client: u8, sender: u8) {
        let (tell, ended) = channel();
        self.add_caller(move |number, calls| {
            let count = 16;
            let tell = tell.clone();
            let (conn, ending) = (calls.client.conn(), calls.clone());
            let started = calls.client.handle().run(move |cx| {
                let mut conn = cx.conn(conn).unwrap();
                for number in number..number + count {
                    let name = Name { client, what: What::Call, sender, number };
                    let (told, ending_too) = (tell.clone(), ending.clone());
                    let start =
                        conn.call(name.body(2 * KIB), DEADLINE, move |_: &mut Watch, _, result| {
                            ending_too.ended(name, result.as_ref().map(|reply| reply.body()));
                            let _ = told.send(result.is_err());
                        });
                    if let Err(error) = start {
                        ending.ended(name, Err(error.error()));
                        let _ = tell.send(true);
                    }
                }
            });
            started.unwrap();
            let mut has_failed = false;
            for _ in 0..count {
                has_failed |= ended.recv_timeout(2 * DEADLINE).expect("each call ends");
            }
            rest_after(has_failed);
            number + count
        });
    }

    /// Ends the load, then the connection, and tells how many messages of each sender were accepted
    /// and how many calls of each caller started.
    fn finish(self) -> (Vec<u64>, Vec<u64>, Arc<Mutex<Told>>) {
        self.gauges.is_over.store(true, Ordering::Relaxed);
        let join = |threads: Vec<JoinHandle<u64>>| {
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        };
        let (sent, called) = (join(self.senders), join(self.callers));
        self.client.stop().unwrap();
        (sent, called, self.told)
    }
}

/// What a calling thread needs.
#[derive(Clone)]
struct Calls {
    client: Arc<Client>,
    told: Arc<Mutex<Told>>,
    gauges: Arc<Gauges>,
}

impl Calls {
    fn ended(&self, name: Name, result: Result<&[u8], &CallError>) {
        let outcome = outcome(name, result);
        lock(&self.told).calls.entry((name.sender, name.number)).or_default().push(outcome);
        if outcome == Outcome::Answered {
            self.gauges.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// So that a caller does not spin while the connection is down.
fn rest_after(is_failure: bool) {
    if is_failure {
        pass(Duration::from_millis(1));
    }
}

// ---- the run ----

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let began = now();
    while !is_so() {
        assert!(now() - began < DEADLINE, "waited for {what}");
        pass(Duration::from_micros(200));
    }
}

struct LogFile(PathBuf);

impl LogFile {
    fn new() -> Self {
        let name = format!("kill9-{}.log", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        File::create(&path).unwrap();
        Self(path)
    }

    fn entries(&self) -> Vec<Entry> {
        let bytes = std::fs::read(&self.0).unwrap();
        assert_eq!(bytes.len() % Entry::BYTES, 0, "an entry was cut");
        bytes.chunks_exact(Entry::BYTES).map(Entry::decode).collect()
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn server_that_is_killed_and_restarted_under_load_loses_nothing_uncounted() {
    let kills = std::env::var("LONGHAUL_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let log = LogFile::new();
    // An address that no other program uses, so that none takes the port while no server has it.
    let pid = std::process::id();
    let host = [127, 64 + (pid >> 16) as u8 % 128, (pid >> 8) as u8, pid as u8];
    let mut server = Life::start(SocketAddr::from((host, 0)), 0, &log.0);
    let addr = server.addr;
    // Sends alone, so that the sum is exact, of messages that are copied and of others that are not;
    // and sends with calls between them.
    let loads = [
        Load::start(0, addr).sending(100),
        Load::start(1, addr).sending(20 * KIB),
        Load::start(2, addr).sending(9 * KIB).calling_three_ways(),
        Load::start(PATIENT, addr).calling(),
    ];
    let is_up = |load: &Load| load.client.handle().is_up(load.client.conn());
    let answered = || loads[2].gauges.answered.load(Ordering::Relaxed);
    // Every load that sends has seen one more of these.
    let wait_for_one_more = |what, gauge: fn(&Gauges) -> &AtomicU64| {
        for load in loads.iter().filter(|load| !load.senders.is_empty()) {
            let read = || gauge(&load.gauges).load(Ordering::Relaxed);
            let before = read();
            wait_for(what, || read() > before);
        }
    };
    for round in 1..=kills {
        // Killed after more or fewer calls were answered; in each fifth round as soon as it listens.
        if round % 5 != 0 {
            wait_for("all connections", || loads.iter().all(is_up));
            let goal = answered() + 1 + round * 37 % 101;
            wait_for("an answer", || answered() >= goal);
        }
        // One that has hung for a while: what the system buffers is full, and our queues, too.
        if round % 4 == 1 {
            // One that hangs before it has said hello fills no queue: nobody is up.
            wait_for("all connections", || loads.iter().all(is_up));
            server.freeze();
            wait_for_one_more("a full queue", |gauges| &gauges.full);
        }
        server.kill();
        // Away for long enough that no more is kept for later.
        if round % 8 == 3 {
            wait_for_one_more("a full offline queue", |gauges| &gauges.offline);
        }
        server = Life::start(addr, round, &log.0);
        assert_eq!(server.addr, addr, "the same port");
    }
    let goal = answered() + 1;
    wait_for("an answer of the last server", || answered() >= goal);
    wait_for("all connections", || loads.iter().all(is_up));
    let ends: Vec<_> = loads.into_iter().map(Load::finish).collect();
    server.end();

    let delivered = Delivered::new(&log.entries());
    println!("{kills} kills, {} entries of the servers", log.entries().len());
    for (client, (sent, called, told)) in ends.iter().enumerate() {
        println!("{}", check(client as u8, sent, called, &lock(told), &delivered, kills));
    }
}

// ---- what must add up ----

/// What the servers handled.
struct Delivered {
    /// For each client and epoch, in order.
    epochs: BTreeMap<(u8, u64), Vec<Name>>,
    /// How often each message was handled.
    times: HashMap<Name, u32>,
}

impl Delivered {
    fn new(entries: &[Entry]) -> Self {
        let mut times = HashMap::new();
        let mut conns = BTreeMap::<_, Vec<Name>>::new();
        for entry in entries {
            *times.entry(entry.name).or_default() += 1;
            conns.entry((entry.life, entry.conn)).or_default().push(entry.name);
        }
        let mut epochs = BTreeMap::new();
        for (conn, names) in conns {
            let first = names[0];
            assert_eq!(first.what, What::Mark, "{conn:?} begins with what on_connect sent");
            assert!(names.iter().all(|name| name.client == first.client));
            let is_new = epochs.insert((first.client, first.number), names).is_none();
            assert!(is_new, "{first:?}: one epoch on two connections");
        }
        Self { epochs, times }
    }

    fn times(&self, name: Name) -> u32 {
        self.times.get(&name).copied().unwrap_or(0)
    }
}

fn check(
    client: u8,
    sent: &[u64],
    called: &[u64],
    told: &Told,
    delivered: &Delivered,
    kills: u64,
) -> String {
    assert!(told.faults.is_empty(), "{:?}", told.faults);

    // None twice, and none that was not accepted.
    for (name, times) in delivered.times.iter().filter(|(name, _)| name.client == client) {
        assert_eq!(*times, 1, "{name:?} was delivered {times} times");
        let bound = match name.what {
            What::Mark => told.marks + 1,
            What::Message => sent[usize::from(name.sender)],
            What::Call => called[usize::from(name.sender)],
        };
        assert!(name.number < bound, "{name:?} was delivered and not accepted, as {bound} were");
    }

    // Each epoch ended once and in turn, with a report that what was delivered does not contradict.
    let numbers: Vec<_> = told.epochs.iter().map(|epoch| u64::from(epoch.number)).collect();
    assert_eq!(numbers, (1..=told.marks).collect::<Vec<_>>());
    let mut last = HashMap::<u8, u64>::new();
    let mut sums = Sums::default();
    for epoch in &told.epochs {
        let key = (client, u64::from(epoch.number));
        let names = delivered.epochs.get(&key).map_or(&[][..], Vec::as_slice);
        let (count, report) = (names.len() as u64, &epoch.report);
        assert!(count <= epoch.written, "{count} delivered of {epoch:?}");
        sums.written += epoch.written;
        sums.handed_back += epoch.handed_back.len() as u64;
        sums.delivered += count;
        assert!(report.unsent_messages == 0 || report.unsent_bytes > 0, "{report}");
        // The rest are calls, each of which ended with an error of its own.
        let calls = report.unsent_messages.checked_sub(epoch.handed_back.len() as u64);
        let is_right = calls.is_some_and(|calls| calls == 0 || !called.is_empty());
        sums.half_calls += u64::from(calls != Some(0));
        assert!(is_right, "{} handed back: {report}", epoch.handed_back.len());
        if epoch.number as usize == told.epochs.len() {
            assert_eq!((count, report.unsent_messages), (epoch.written, 0), "the last: {report}");
        }
        // In order for each sender. Between epochs messages may be missing.
        let mut in_epoch = HashMap::<u8, u64>::new();
        for name in names.iter().filter(|name| name.what == What::Message) {
            if let Some(before) = in_epoch.insert(name.sender, name.number) {
                sums.missing += name.number.saturating_sub(before + 1);
            }
            let before = last.insert(name.sender, name.number);
            assert!(before.is_none_or(|before| before < name.number), "{name:?} after {before:?}");
        }
        // And behind that, in the same order, what was not written.
        for name in epoch.handed_back.iter().filter(|name| name.what == What::Message) {
            let before = in_epoch.insert(name.sender, name.number);
            assert!(before.is_none_or(|before| before < name.number), "{name:?} after {before:?}");
        }
    }

    // What was handed back is that once, and nothing of it was delivered.
    let mut handed_back = HashSet::new();
    let of_epochs = told.epochs.iter().flat_map(|epoch| &epoch.handed_back);
    for name in of_epochs.chain(&told.undelivered) {
        assert_eq!(name.client, client);
        assert!(handed_back.insert(name), "{name:?} was handed back twice");
        assert_eq!(delivered.times(*name), 0, "{name:?} was handed back and delivered");
    }

    // Inside of an epoch only those may be missing that found the offline queue full: they were posted
    // behind what it keeps, and before what is sent when the connection is up again.
    let undelivered = told.undelivered.len() as u64;
    assert!(sums.missing <= undelivered, "{} missing inside of epochs", sums.missing);

    // Each call ended once, and what its end says is so.
    let mut outcomes = [0; 3];
    for (caller, count) in called.iter().enumerate() {
        for number in 0..*count {
            let name = Name { client, what: What::Call, sender: caller as u8, number };
            let ends = told.calls.get(&(name.sender, number)).map_or(&[][..], Vec::as_slice);
            let [outcome] = ends else { panic!("{name:?} ended {} times: {ends:?}", ends.len()) };
            let times = delivered.times(name);
            match outcome {
                Outcome::Answered => assert_eq!(times, 1, "{name:?} was answered by nobody"),
                Outcome::NotSent => assert_eq!(times, 0, "{name:?} was not sent, but arrived"),
                Outcome::MaybeSent => {}
            }
            outcomes[*outcome as usize] += 1;
        }
    }
    let started: u64 = called.iter().sum();
    assert_eq!(outcomes.iter().sum::<u64>(), started);
    assert_eq!(told.calls.len() as u64, started, "a call ended that was not started");

    // Whatever was accepted was given to the system, or handed back; without calls that is exact. A
    // call that was written in part, or given up while it was queued, may have been sent: it may be in
    // neither.
    let [answered, not_sent, maybe_sent] = outcomes;
    let accounted = sums.written + sums.handed_back + undelivered;
    let accepted = sent.iter().sum::<u64>() + told.marks + answered + maybe_sent;
    let least = accepted - maybe_sent.max(sums.half_calls);
    let most = accepted;
    assert!((least..=most).contains(&accounted), "{accounted} accounted for, {accepted} accepted");

    // The run was what it was to be.
    if kills >= 10 {
        assert!(sums.handed_back > 0 || sent.is_empty(), "no kill found a message in the queue");
        assert!(sums.delivered < sums.written, "no kill lost what was under way");
        let is_mixed = outcomes.iter().all(|count| *count > 0);
        assert!(is_mixed || called.is_empty(), "{outcomes:?}");
    }
    format!(
        "client {client}: {} epochs; {accepted} accepted, {} delivered, {} written, {} handed \
         back, {undelivered} undelivered; calls: {answered} answered, {not_sent} not sent, {maybe_sent} maybe sent",
        told.epochs.len(),
        sums.delivered,
        sums.written,
        sums.handed_back,
    )
}

#[derive(Default)]
struct Sums {
    written: u64,
    handed_back: u64,
    delivered: u64,
    /// Epochs that ended with calls that were not written whole: one of them may be so in part.
    half_calls: u64,
    /// Not delivered in an epoch that delivered an earlier and a later one of the same sender.
    missing: u64,
}
