//! A process that is out of descriptors: accepting rests and says so, what is connected is served on,
//! and when there are descriptors again all goes on by itself.
//!
//! The reactor runs in a process of its own, whose limit is low, and which opens files until it has
//! none left when it is told to.
#![cfg(target_os = "linux")]
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
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use common::{Event, PATIENCE, Peer, Running, Script, hello, now};
use longhaul::{
    Config, Incident, ReactorBuilder, Reconnect,
    protocol::{AnyProtocol, Native},
};

/// The descriptors that the process may have, and those of them that the reactor leaves to others.
const LIMIT: usize = 128;
const RESERVED: usize = 32;

/// "Too many open files" of a process.
const EMFILE: i32 = 24;

// ---- the process that runs out ----

const CHILD: &str = "LONGHAUL_FD_LIMIT_CHILD";

/// Not a test of its own: an echo server that does what its standard input says until that ends, and
/// tells what its reactor reports.
#[test]
fn process_of_few_descriptors() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let settings = Config::new().reconnect(Reconnect::fixed(Duration::from_millis(50)));
    let builder = ReactorBuilder::new(AnyProtocol::from(Native)).config(settings.clone());
    let mut server =
        Running::start(builder, Script::echo(), |reactor| reactor.listen("127.0.0.1:0").unwrap().1);
    let events = std::mem::replace(&mut server.events, Script::new().telling().1);
    std::thread::spawn(move || {
        loop {
            match events.next_within(Duration::from_secs(3600)) {
                Some(Event::Incident(Incident::AcceptFailed { error, retry_in, .. })) => {
                    println!("\naccept-failed {:?} {}", error.kind(), retry_in.as_millis());
                }
                Some(Event::Incident(Incident::Refused { limit, .. })) => {
                    println!("\nrefused {limit}");
                }
                Some(Event::Incident(Incident::DialFailed { error, .. })) => {
                    println!("\ndial-failed {}", error.os_code().unwrap_or_default());
                }
                _ => {}
            }
        }
    });
    println!("\nserving {}", server.addr);
    let mut files = Vec::new();
    for line in std::io::stdin().lines() {
        match line.unwrap().split_once(' ').unwrap() {
            ("take", _) => {
                files.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
                println!("\ntook {}", files.len());
            }
            ("free", _) => files.clear(),
            ("dial", addr) => {
                let addr: SocketAddr = addr.parse().unwrap();
                server.handle.connect_with(addr, &Native.into(), &settings).unwrap();
            }
            ("count", _) => {
                let stats = server.handle.stats();
                println!("\ncounts {} {} {}", stats.turns, stats.accepted, stats.accept_errors);
            }
            (other, _) => panic!("{other}?"),
        }
    }
}

struct Process {
    child: Child,
    lines: Receiver<String>,
    addr: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    turns: u64,
    accepted: u64,
    accept_errors: u64,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -n $0 && exec \"$@\"", &LIMIT.to_string()])
            .arg(std::env::current_exe().unwrap())
            .args(["process_of_few_descriptors", "--exact", "--nocapture"])
            .env(CHILD, "yes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        let addr = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut process = Self { child, lines, addr };
        process.addr = process.next("serving ").parse().unwrap();
        process
    }

    fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The rest of the next line that begins so.
    fn next(&self, start: &str) -> String {
        let deadline = now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("'{start}' did not come"));
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    /// Leaves it no descriptor.
    fn take_all(&mut self) {
        self.say("take all");
        assert_ne!(self.next("took "), "0");
    }

    /// How long accepting rests after the next time that it failed.
    fn failed_accept(&self) -> Duration {
        let told = self.next("accept-failed ");
        let (_, millis) = told.split_once(' ').unwrap();
        Duration::from_millis(millis.parse().unwrap())
    }

    fn counts(&mut self) -> Counts {
        self.say("count all");
        let told = self.next("counts ");
        let mut numbers = told.split(' ').map(|number| number.parse().unwrap());
        let mut next = || numbers.next().unwrap();
        Counts { turns: next(), accepted: next(), accept_errors: next() }
    }

    fn connect(&self, count: usize) -> Vec<Peer> {
        (0..count).map(|_| Peer::new(self.addr, Native)).collect()
    }
}

/// Killed, as it may have no descriptor left to end well with.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn echo_all(peers: &mut [Peer]) {
    for peer in peers {
        peer.echo("still there?");
    }
}

// ---- the tests ----

#[test]
fn accepting_rests_without_a_busy_loop_and_goes_on_by_itself() {
    const FIRST: usize = 10;
    const LATER: usize = 20;
    let mut process = Process::start();
    let mut first = process.connect(FIRST);
    echo_all(&mut first);
    process.take_all();
    // This one waits in the backlog.
    let began = now();
    let mut later = process.connect(1);
    let mut rests: Vec<_> = (0..3).map(|_| process.failed_accept()).collect();
    assert_eq!(rests, [10, 20, 40].map(Duration::from_millis), "longer each time");

    // Nothing happens but that accepting is tried again: then and then only there are turns, and each
    // rest is as long as was told.
    let before = process.counts();
    rests.extend((0..3).map(|_| process.failed_accept()));
    let after = process.counts();
    let (turns, tries) = (after.turns - before.turns, after.accept_errors - before.accept_errors);
    println!("{turns} turns for {tries} tries, which came after {rests:?}");
    assert!(turns <= 4 * tries + 4, "{turns} turns for {tries} tries");
    assert!(now() - began >= rests[..5].iter().sum(), "tried too early");
    assert_eq!(after.accepted, FIRST as u64);

    // Whoever is connected is served, and whoever comes waits.
    echo_all(&mut first);
    later.extend(process.connect(LATER - 1));
    echo_all(&mut first);

    // Two go: their descriptors are for those that wait, at the next try.
    first.truncate(FIRST - 2);
    echo_all(&mut later[..2]);

    process.say("free all");
    echo_all(&mut later);
    echo_all(&mut first);
    let healed = process.counts();
    assert_eq!(healed.accepted, (FIRST + LATER) as u64);
    // And it is forgotten: accepting is as quick as before, and the next rest a short one.
    let mut last = process.connect(1);
    echo_all(&mut last);
    assert_eq!(process.counts().accept_errors, healed.accept_errors);
    process.take_all();
    let _waits = process.connect(1);
    assert_eq!(process.failed_accept(), Duration::from_millis(10));
}

#[test]
fn reactor_leaves_descriptors_for_others_and_refuses_what_is_over() {
    const ROOM: usize = LIMIT - RESERVED;
    let process = Process::start();
    let mut served = process.connect(ROOM);
    echo_all(&mut served);
    for _ in 0..5 {
        // Says nothing, which could find the connection reset.
        Peer::mute(process.addr, Native).expect_end();
        assert_eq!(process.next("refused "), ROOM.to_string());
    }
    echo_all(&mut served);
    // There is room again as soon as the reactor knows that one has gone.
    drop(served.pop());
    let deadline = now() + PATIENCE;
    loop {
        let mut peer = Peer::mute(process.addr, Native);
        if peer.next_frame().is_some() {
            peer.write(&hello(&Native.into()));
            peer.echo("room again");
            break;
        }
        assert!(now() < deadline, "no room again");
    }
}

#[test]
fn dial_without_a_descriptor_fails_and_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut process = Process::start();
    process.take_all();
    process.say(&format!("dial {}", listener.local_addr().unwrap()));
    for _ in 0..3 {
        assert_eq!(process.next("dial-failed "), EMFILE.to_string());
    }
    process.say("free all");
    let (tell, accepted) = channel();
    std::thread::spawn(move || tell.send(listener.accept().unwrap().0));
    let mut peer = Peer::of(accepted.recv_timeout(PATIENCE).expect("it is dialled again"), Native);
    peer.write(&hello(&Native.into()));
    peer.echo("there you are");
}
#[test]
fn rest_is_kept_while_more_peers_come() {
    let mut process = Process::start();
    process.take_all();
    let began = now();
    let mut waiting = Vec::new();
    let rests: Vec<_> = (0..6)
        .map(|_| {
            waiting.extend(process.connect(1));
            process.failed_accept()
        })
        .collect();
    assert!(now() - began >= rests[..5].iter().sum(), "tried too early: {rests:?}");
}
