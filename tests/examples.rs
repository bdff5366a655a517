//! The examples as a newcomer runs them: the built programs, their lines and their exit status.
//!
//! `cargo test` builds them; `cargo test --test examples` alone does not, so run
//! `cargo build --examples` first.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test says so by panicking"
)]

mod common;

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use common::{PATIENCE, Peer, now, pass};
use longhaul::protocol::{Any, AnyId, Head, Kind, Length, Native};

/// An example that runs; dropping it ends it.
struct Program {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Program {
    fn start<A: AsRef<OsStr>>(name: &'static str, args: &[A]) -> Self {
        let mut child = Command::new(path_of(name))
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            name,
            input: child.stdin.take(),
            lines: read_lines(child.stdout.take().unwrap()),
            errors: read_lines(child.stderr.take().unwrap()),
            child,
        }
    }

    /// A server on a free port, and its address.
    fn serve(name: &'static str, args: &[&str]) -> (Self, String) {
        let program = Self::start(name, &[&["--listen", "127.0.0.1:0"], args].concat());
        let line = program.line();
        let addr = line.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next());
        let addr = addr.unwrap_or_else(|| panic!("the first line was {line:?}")).to_owned();
        (program, addr)
    }

    fn write(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The end of its input.
    fn end_input(&mut self) {
        self.input = None;
    }

    /// The next line of its output.
    fn line(&self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{} printed nothing in time", self.name),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("{} ended and said {:?}", self.name, self.errors.iter().collect::<Vec<_>>())
            }
        }
    }

    fn expect(&self, line: &str) {
        assert_eq!(self.line(), line, "{}", self.name);
    }

    /// Waits for a line with this in it, and drops those before it.
    fn wait_for(&self, part: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(part) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end: the status, and the rest of its output and of its errors.
    fn end(mut self) -> (ExitStatus, Vec<String>, Vec<String>) {
        let began = now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(now() - began < PATIENCE, "{} did not end in time", self.name);
            pass(Duration::from_millis(1));
        };
        (status, self.lines.iter().collect(), self.errors.iter().collect())
    }

    fn expect_success(self) -> Vec<String> {
        let name = self.name;
        let (status, lines, errors) = self.end();
        assert!(status.success(), "{name}: {status}, {errors:?}");
        assert!(errors.is_empty(), "{name}: {errors:?}");
        lines
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where cargo put an example: beside the directory of this test.
fn path_of(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

fn read_lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (read, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if read.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// It ends by itself, with one line that says why.
fn expect_refusal(name: &'static str, args: &[&str]) {
    let (status, lines, errors) = Program::start(name, args).end();
    assert!(status.code().is_some_and(|code| code != 0), "{args:?}: {status}");
    assert_eq!((lines.len(), errors.len()), (0, 1), "{args:?}: {lines:?} {errors:?}");
    assert!(errors[0].starts_with("error: "), "{args:?}: {errors:?}");
}

/// Lines there and back, and a graceful end of both.
fn talk_with_echo(protocol: &str) {
    let (echo, addr) = Program::serve("echo", &["--protocol", protocol, "--quiet"]);
    let mut talk = Program::start("talk", &[&*addr, "--protocol", protocol]);
    talk.expect("connected");
    talk.write("hello\n\n\u{e9}\n");
    talk.expect("message hello");
    talk.expect("message ");
    talk.expect("message \u{e9}");
    // Nothing waits for the answers to these but the program itself.
    let last: Vec<_> = (0..1000).map(|number| number.to_string()).collect();
    talk.write(&last.join("\n"));
    talk.end_input();
    for number in last {
        talk.expect(&format!("message {number}"));
    }
    assert_eq!(talk.expect_success(), ["disconnected closed"]);
    echo.signal("TERM");
    assert!(echo.expect_success().is_empty(), "a quiet server prints one line");
}

#[test]
fn talk_hears_its_lines_from_echo_on_native() {
    talk_with_echo("native");
}

#[test]
fn talk_hears_its_lines_from_echo_on_tcpstream() {
    talk_with_echo("tcpstream");
}

#[test]
fn talk_hears_its_lines_from_echo_on_qtk3() {
    talk_with_echo("qtk3");
}

#[test]
fn talk_hears_its_lines_from_echo_on_qtk2() {
    talk_with_echo("qtk2");
}

#[test]
fn talk_hears_its_lines_from_echo_on_length() {
    talk_with_echo("length");
}

#[test]
fn echo_greets_itself_on_every_protocol() {
    for protocol in Any::NAMES {
        let args = ["--listen", "127.0.0.1:0", "--protocol", protocol];
        let echo = Program::start("echo", &args);
        let line = echo.line();
        assert!(line.starts_with("listening on 127.0.0.1:"), "{line}");
        assert!(line.ends_with(&format!(" ({protocol})")), "{line}");
        echo.wait_for("'hello'");
        echo.signal("INT");
        echo.expect_success();
    }
}

#[test]
fn echo_counts_while_there_is_traffic() {
    let (echo, _) = Program::serve("echo", &[]);
    let line = echo.wait_for("bytes in");
    assert!(line.contains("messages 1,"), "the greeting is one message: {line}");
    echo.signal("TERM");
    echo.expect_success();
}

#[test]
fn echo_answers_requests_with_replies_and_pushes_with_pushes() {
    let (_echo, addr) = Program::serve("echo", &["--quiet"]);
    let mut peer = Peer::new(addr.parse().unwrap(), Native);
    for (kind, id, answer) in [(Kind::Request, 7, Kind::Reply), (Kind::Push, 0, Kind::Push)] {
        let head = Head { tag: 42, ..Head::new(kind, AnyId::Native(id)) };
        let frame = common::frame(&Native.into(), &head, b"body");
        peer.write(&frame);
        let (head, body) = loop {
            let (head, body) = peer.next_frame().unwrap();
            if head.kind != Kind::Hello {
                break (head, body);
            }
        };
        assert_eq!((head.kind, head.id, head.tag), (answer, AnyId::Native(id), 42));
        assert_eq!(body, b"body");
    }
}

#[test]
fn echo_refuses_longer_bodies_than_it_was_told_to_take() {
    let args = ["--quiet", "--max-body", "100", "--protocol", "length"];
    let (_echo, addr) = Program::serve("echo", &args);
    let mut peer = Peer::new(addr.parse().unwrap(), Length::default());
    peer.echo([b'x'; 100]);
    peer.send([b'x'; 101]);
    peer.expect_end();
}

#[test]
fn echo_serves_on_when_nobody_reads_its_output() {
    let (mut echo, addr) = Program::serve("echo", &[]);
    // Its own reader is what holds the pipe open, and ends with the next line.
    echo.lines = channel().1;
    let mut peer = Peer::new(addr.parse().unwrap(), Native);
    let began = now();
    while now() - began < Duration::from_millis(1500) {
        peer.echo("the statistics are written to nobody");
    }
    echo.signal("TERM");
    let (status, ..) = echo.end();
    assert!(status.success(), "{status}");
}

#[test]
fn unusable_arguments_end_echo_with_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    expect_refusal("echo", &["--listen", "nonsense"]);
    expect_refusal("echo", &["--listen", "127.0.0.1:99999"]);
    expect_refusal("echo", &["--listen", "192.0.2.1:0"]);
    expect_refusal("echo", &["--listen", &taken]);
    expect_refusal("echo", &["--listen"]);
    expect_refusal("echo", &["--protocol", "carrier-pigeon"]);
    expect_refusal("echo", &["--max-body", "0"]);
    expect_refusal("echo", &["--max-body", "many"]);
    expect_refusal("echo", &["--nonsense"]);
}

#[test]
fn talk_to_nobody_prints_an_error() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for addr in [&free.to_string(), "nonsense"] {
        let (status, lines, _) = Program::start("talk", &[addr]).end();
        assert!(!status.success());
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("error "), "{lines:?}");
    }
}

#[test]
fn talk_sends_a_line_of_two_megabytes() {
    let (_echo, addr) = Program::serve("echo", &["--quiet"]);
    let line = "x".repeat(2_000_000);
    let mut talk = Program::start("talk", &[addr]);
    talk.write(&line);
    talk.end_input();
    talk.expect("connected");
    assert!(talk.line() == format!("message {line}"));
    talk.expect_success();
}

#[test]
fn talk_ends_with_the_peer() {
    let (echo, addr) = Program::serve("echo", &["--quiet"]);
    let talk = Program::start("talk", &[addr]);
    talk.expect("connected");
    echo.signal("TERM");
    echo.expect_success();
    let lines = talk.expect_success();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("disconnected "), "{lines:?}");
}

#[test]
fn two_talks_talk_with_each_other() {
    let mut listening = Program::start("talk", &["127.0.0.1:0", "--listen"]);
    let line = listening.errors.recv_timeout(PATIENCE).unwrap();
    let addr = line.split(' ').nth(2).unwrap();
    listening.write("said before anyone was there\n");
    let mut dialling = Program::start("talk", &[addr]);
    dialling.expect("connected");
    dialling.expect("message said before anyone was there");
    dialling.write("and answered\ton one line\r\n");
    listening.expect("connected");
    listening.expect("message and answered\ton one line\u{fffd}");
    dialling.end_input();
    assert_eq!(dialling.expect_success(), ["disconnected closed"]);
    listening.expect("disconnected closed by the peer");
    listening.end_input();
    assert!(listening.expect_success().is_empty());
}

#[test]
fn chat_cuts_off_who_does_not_read_and_nobody_else() {
    let args = ["--protocol", "length", "--hard-limit", "262144"];
    let (chat, addr) = Program::serve("chat", &args);
    let mut deaf = Peer::new(addr.parse().unwrap(), Length::default());
    deaf.send("/name deaf");
    chat_until(&mut deaf, "deaf");
    let mut alice = Peer::new(addr.parse().unwrap(), Length::default());
    let mut bob = Peer::new(addr.parse().unwrap(), Length::default());
    for (peer, name) in [(&mut alice, "alice"), (&mut bob, "bob")] {
        peer.send(format!("/name {name}"));
        peer.send("/who");
        chat_until(peer, name);
    }
    // In step with those who read, until the system and the server hold enough for who does not.
    let long = "x".repeat(4000);
    let line = format!("alice: {long}");
    loop {
        alice.send(&long);
        chat_until(&mut alice, &line);
        chat_until(&mut bob, &line);
        if let Ok(told) = chat.lines.try_recv()
            && told.contains("slow consumer")
        {
            assert!(told.contains("deaf"), "{told}");
            break;
        }
    }
    alice.send("/join elsewhere");
    alice.send("nobody hears this");
    chat_until(&mut alice, "alice: nobody hears this");
    bob.send("hi");
    chat_until(&mut bob, "bob: hi");
    chat.signal("TERM");
    chat.expect_success();
}

/// Waits until a peer receives a line with this in it.
fn chat_until(peer: &mut Peer, part: &str) {
    let part = part.as_bytes();
    loop {
        let line = peer.receive().expect("the chat goes on");
        if line.windows(part.len()).any(|window| window == part) {
            return;
        }
    }
}

#[test]
fn workers_answer_every_request_and_drop_what_nobody_waits_for() {
    let args = ["--threads", "3", "--requests", "50"];
    let lines = Program::start("workers", &args).expect_success();
    for request in 1..=50 {
        let start = format!("request {request}: ");
        let count = lines.iter().filter(|line| line.starts_with(&start)).count();
        assert_eq!(count, 1, "{start} in {lines:?}");
    }
    assert!(lines.iter().any(|line| line.contains("nobody waits")), "{lines:?}");
}

#[test]
fn delayed_echo_comes_late_on_the_old_protocols() {
    for protocol in ["qtk3", "qtk2"] {
        let args = ["--delay", "0.2", "--protocol", protocol];
        let lines = Program::start("delayed_echo", &args).expect_success();
        assert_eq!(lines.iter().filter(|line| line.contains("came back after")).count(), 2);
    }
}

#[test]
fn hundred_clients_and_their_server_count_the_same() {
    let lines = Program::start("hundred_clients", &["--seconds", "0.5"]).expect_success();
    assert!(lines.iter().any(|line| line.starts_with("server:  100 connected")), "{lines:?}");
}

#[test]
fn talk_calls_and_waits_for_late_answers() {
    let (_echo, addr) = Program::serve("echo", &["--delay", "0.7"]);
    let mut talk = Program::start("talk", &[&*addr, "--call"]);
    talk.write("one\ntwo\n");
    talk.end_input();
    let lines = talk.expect_success();
    assert_eq!(lines, ["connected", "reply one", "reply two", "disconnected closed"]);
    // Without calls it knows how many answers are missing.
    let mut talk = Program::start("talk", &[&*addr]);
    talk.write("one\n");
    talk.end_input();
    assert_eq!(talk.expect_success(), ["connected", "message one", "disconnected closed"]);
}

#[test]
fn talk_says_which_calls_failed_and_why() {
    let (_echo, addr) = Program::serve("echo", &["--delay", "60"]);
    let mut talk = Program::start("talk", &[&*addr, "--call", "--timeout", "0.1"]);
    talk.write("one\n");
    talk.expect("connected");
    talk.expect("failed no answer in time (maybe sent)");
    talk.end_input();
    assert_eq!(talk.end().0.code(), Some(1));
}

#[test]
fn talk_dials_again_and_says_when() {
    let (echo, addr) = Program::serve("echo", &[]);
    let mut talk = Program::start("talk", &[&*addr, "--reconnect", "fixed:50", "--stay"]);
    talk.expect("connected");
    echo.signal("TERM");
    echo.expect_success();
    talk.wait_for("disconnected");
    talk.expect("reconnecting in 50 ms");
    let _echo = Program::start("echo", &["--listen", &*addr, "--quiet"]);
    talk.wait_for("connected");
    talk.write("again\n");
    talk.expect("message again");
}

#[test]
fn silent_peer_is_closed_after_the_idle_timeout_of_the_command_line() {
    let (_echo, addr) = Program::serve("echo", &["--heartbeat", "0", "--idle-timeout", "0"]);
    let args = [&*addr, "--heartbeat", "0", "--idle-timeout", "0.3", "--stay"];
    let talk = Program::start("talk", &args);
    talk.expect("connected");
    talk.expect("disconnected nothing received for 300ms");
}

#[test]
fn load_verifies_every_echo_and_says_how_many_came() {
    let (_echo, addr) = Program::serve("echo", &["--quiet"]);
    for mode in [&[][..], &["--calls"]] {
        let args = [&[&*addr, "--duration", "0.3", "--warm-up", "0", "--json"], mode].concat();
        let lines = Program::start("load", &args).expect_success();
        let found: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(found["errors"], 0);
        assert!(found["messages"].as_u64().unwrap() > 0, "{found}");
    }
    let (status, _, _) = Program::start("load", &["127.0.0.1:1", "--duration", "1"]).end();
    assert_eq!(status.code(), Some(1));
    let (status, _, _) = Program::start("load", &[&*addr, "--connections", "0"]).end();
    assert_eq!(status.code(), Some(2));
}
