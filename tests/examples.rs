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

use std::{ffi::OsStr, path::PathBuf, sync::mpsc::channel, time::Duration};

use common::{Peer, now, program::Program};
use longhaul::protocol::{AnyId, AnyProtocol, Head, Kind, Length, Native};

/// Runs an example.
fn start<A: AsRef<OsStr>>(name: &str, args: &[A]) -> Program {
    Program::start(&path_of(name), args)
}

/// A server on a free port, and its address.
fn serve(name: &str, args: &[&str]) -> (Program, String) {
    let program = start(name, &[&["--listen", "127.0.0.1:0"], args].concat());
    let line = program.line();
    let addr = line.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next());
    let addr = addr.unwrap_or_else(|| panic!("the first line was {line:?}")).to_owned();
    (program, addr)
}

/// Where cargo put an example: beside the directory of this test.
fn path_of(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

/// It ends by itself, with one line that says why.
fn expect_refusal(name: &str, args: &[&str]) {
    let (status, lines, errors) = start(name, args).end();
    assert!(status.code().is_some_and(|code| code != 0), "{args:?}: {status}");
    assert_eq!((lines.len(), errors.len()), (0, 1), "{args:?}: {lines:?} {errors:?}");
    assert!(errors[0].starts_with("error: "), "{args:?}: {errors:?}");
}

#[test]
fn echo_greets_itself_on_every_protocol() {
    for protocol in AnyProtocol::NAMES {
        let args = ["--listen", "127.0.0.1:0", "--protocol", protocol];
        let echo = start("echo", &args);
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
    let (echo, _) = serve("echo", &[]);
    let line = echo.wait_for("bytes in");
    assert!(line.contains("messages 1,"), "the greeting is one message: {line}");
    echo.signal("TERM");
    echo.expect_success();
}

#[test]
fn echo_answers_requests_with_replies_and_pushes_with_pushes() {
    let (_echo, addr) = serve("echo", &["--quiet"]);
    let mut peer = Peer::new(&addr, Native);
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
fn echo_answers_after_its_delay() {
    let (_echo, addr) = serve("echo", &["--quiet", "--delay", "0.3"]);
    let mut peer = Peer::new(&addr, Native);
    let began = now();
    peer.echo("a push");
    assert!(now() - began >= Duration::from_millis(300));
}

#[test]
fn echo_closes_a_silent_peer_after_the_idle_timeout_of_the_command_line() {
    let args = ["--protocol", "length", "--quiet", "--heartbeat", "0", "--idle-timeout", "0.3"];
    let (_echo, addr) = serve("echo", &args);
    Peer::new(&addr, Length::default()).expect_end();
}

#[test]
fn echo_refuses_longer_bodies_than_it_was_told_to_take() {
    let args = ["--quiet", "--max-body", "100", "--protocol", "length"];
    let (_echo, addr) = serve("echo", &args);
    let mut peer = Peer::new(&addr, Length::default());
    peer.echo([b'x'; 100]);
    peer.send([b'x'; 101]);
    peer.expect_end();
}

#[test]
fn echo_serves_on_when_nobody_reads_its_output() {
    let (mut echo, addr) = serve("echo", &[]);
    // Its own reader is what holds the pipe open, and ends with the next line.
    echo.lines = channel().1;
    let mut peer = Peer::new(&addr, Native);
    let began = now();
    while now() - began < Duration::from_millis(1500) {
        peer.echo("the statistics are written to nobody");
    }
    echo.signal("TERM");
    let (status, ..) = echo.end();
    assert!(status.success(), "{status}");
}

const EXAMPLES: [&str; 6] =
    ["both_ways", "chat", "delayed_echo", "echo", "hundred_clients", "workers"];

#[test]
fn help_of_every_example_tells_its_options_and_their_defaults() {
    for name in EXAMPLES {
        let help = start(name, &["--help"]).expect_success().join("\n");
        assert!(help.contains(&format!("Usage: {name} [OPTIONS]")), "{help}");
        assert!(help.contains("\n      --") && help.contains("[default: "), "{help}");
        assert_eq!(start(name, &["-h"]).expect_success().join("\n"), help);
    }
}

#[test]
fn unusable_arguments_end_every_example_with_one_line_and_status_2() {
    let told = |name, args: &[&str]| {
        let (status, lines, errors) = start(name, args).end();
        assert_eq!(status.code(), Some(2), "{name} {args:?}: {errors:?}");
        assert_eq!((lines.len(), errors.len()), (0, 1), "{name} {args:?}: {lines:?} {errors:?}");
        errors[0].clone()
    };
    for name in EXAMPLES {
        let error = told(name, &["--nonsense"]);
        assert!(
            error.starts_with("error: unexpected argument '--nonsense': there is --"),
            "{error}"
        );
        told(name, &["stray"]);
    }
    assert_eq!(
        told("workers", &["--threads=65"]),
        "error: invalid value '65' for '--threads <N>': 65 is not in 1..=64"
    );
    assert!(told("both_ways", &["--calls", "many"]).contains("'--calls <CALLS>'"));
    assert!(told("hundred_clients", &["--clients", "0"]).contains("0 is not in 1.."));
    assert!(told("delayed_echo", &["--delay", "-1"]).contains("'--delay <SECS>'"));
    assert!(told("chat", &["--hard-limit"]).contains("a value is required"));
    assert!(told("echo", &["--quiet=yes"]).contains("'--quiet' takes no value"));
    assert!(told("echo", &["--protocol", "carrier-pigeon"]).contains("native, tcpstream"));
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
fn chat_cuts_off_who_does_not_read_and_nobody_else() {
    let args = ["--protocol", "length", "--hard-limit", "262144"];
    let (chat, addr) = serve("chat", &args);
    let mut deaf = Peer::new(&addr, Length::default());
    deaf.send("/name deaf");
    chat_until(&mut deaf, "deaf");
    let mut alice = Peer::new(&addr, Length::default());
    let mut bob = Peer::new(&addr, Length::default());
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
    let lines = start("workers", &args).expect_success();
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
        let args = ["--delay=0.2", "--protocol", protocol];
        let lines = start("delayed_echo", &args).expect_success();
        assert_eq!(lines.iter().filter(|line| line.contains("came back after")).count(), 2);
    }
}

#[test]
fn hundred_clients_and_their_server_count_the_same() {
    let lines = start("hundred_clients", &["--seconds", "0.5"]).expect_success();
    assert!(lines.iter().any(|line| line.starts_with("server:  100 connected")), "{lines:?}");
}
