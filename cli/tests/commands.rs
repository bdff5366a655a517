//! The commands as a newcomer runs them: their lines and their exit status.

#![cfg(unix)]
#![allow(
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    reason = "a test says so by panicking"
)]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::{ffi::OsStr, net::TcpListener, path::Path, sync::mpsc::channel, time::Duration};

use common::{PATIENCE, Running, Script, program::Program};
use longhaul::{
    Config, ReactorBuilder,
    protocol::{AnyProtocol, Native},
};

fn start<A: AsRef<OsStr>>(args: &[A]) -> Program {
    Program::start(Path::new(env!("CARGO_BIN_EXE_longhaul")), args)
}

/// An echo server, and its address.
fn echo(protocol: impl Into<AnyProtocol>) -> (Running, String) {
    serve(protocol, Script::echo())
}

fn serve(protocol: impl Into<AnyProtocol>, script: Script) -> (Running, String) {
    let server = Running::server(protocol, Config::new(), script);
    let addr = server.addr.to_string();
    (server, addr)
}

/// Sends messages back after a while.
fn late_echo(delay: Duration) -> Script {
    let (keep, kept) = channel();
    Script::new()
        .on_message(move |conn, msg| {
            keep.send(msg.body().to_vec()).unwrap();
            conn.set_timer(delay, 0);
        })
        .on_timer(move |cx, timer| {
            let mut conn = cx.conn(timer.conn.unwrap()).unwrap();
            conn.send(kept.try_recv().unwrap()).unwrap();
        })
}

/// The status, and what it said of the arguments.
fn refusal(args: &[&str]) -> String {
    let (status, lines, errors) = start(args).end();
    assert_eq!(status.code(), Some(2), "{args:?}: {errors:?}");
    assert!(lines.is_empty(), "{args:?}: {lines:?}");
    errors.join("\n")
}

fn free_addr() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

// ---- all ----

#[test]
fn help_tells_of_every_command_and_each_command_of_its_options() {
    let help = start(&["--help"]).expect_success().join("\n");
    for command in ["talk", "call", "load"] {
        assert!(help.contains(&format!("\n  {command}  ")), "{help}");
        let help = start(&[command, "--help"]).expect_success().join("\n");
        assert!(help.contains(&format!("Usage: longhaul {command} [OPTIONS] <ADDR>")), "{help}");
        assert!(help.contains("--protocol") && help.contains("Exit status"), "{help}");
    }
    assert_eq!(start(&["--version"]).expect_success(), ["longhaul 0.1.0"]);
}

#[test]
fn what_is_mistyped_is_told_with_what_was_expected() {
    assert!(refusal(&["tlk"]).contains("'talk'"));
    assert!(refusal(&["nonsense"]).contains("<talk|call|load>"));
    assert!(refusal(&["talk", "127.0.0.1:1", "--protocl", "qtk2"]).contains("'--protocol'"));
    assert!(refusal(&["call", "127.0.0.1:1"]).contains("<TEXT>"));
    for command in [&["talk", "127.0.0.1:1"][..], &["call", "127.0.0.1:1", "x"]] {
        let told = refusal(&[command, &["--protocol", "carrier-pigeon"]].concat());
        assert!(told.contains("native, tcpstream, qtk3, qtk2, length"), "{told}");
    }
}

// ---- talk ----

/// Lines there and back, and a graceful end.
fn talk_with_echo(protocol: &str) {
    let (_echo, addr) = echo(protocol.parse::<AnyProtocol>().unwrap());
    let mut talk = start(&["talk", &*addr, "--protocol", protocol]);
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
}

#[test]
fn talk_hears_its_lines_on_native() {
    talk_with_echo("native");
}

#[test]
fn talk_hears_its_lines_on_tcpstream() {
    talk_with_echo("tcpstream");
}

#[test]
fn talk_hears_its_lines_on_qtk3() {
    talk_with_echo("qtk3");
}

#[test]
fn talk_hears_its_lines_on_qtk2() {
    talk_with_echo("qtk2");
}

#[test]
fn talk_hears_its_lines_on_length() {
    talk_with_echo("length");
}

#[test]
fn talk_to_nobody_prints_an_error() {
    for addr in [&*free_addr(), "nonsense"] {
        let (status, lines, _) = start(&["talk", addr]).end();
        assert_eq!(status.code(), Some(1));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("error "), "{lines:?}");
    }
}

#[test]
fn talk_sends_a_line_of_two_megabytes() {
    let (_echo, addr) = echo(Native);
    let line = "x".repeat(2_000_000);
    let mut talk = start(&["talk", &addr]);
    talk.write(&line);
    talk.end_input();
    talk.expect("connected");
    assert!(talk.line() == format!("message {line}"));
    talk.expect_success();
}

#[test]
fn talk_ends_with_the_peer() {
    let (echo, addr) = echo(Native);
    let talk = start(&["talk", &addr]);
    talk.expect("connected");
    echo.handle.stop();
    let lines = talk.expect_success();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("disconnected "), "{lines:?}");
}

#[test]
fn two_talks_talk_with_each_other() {
    let mut listening = start(&["talk", "127.0.0.1:0", "--listen"]);
    let line = listening.errors.recv_timeout(PATIENCE).unwrap();
    let addr = line.split(' ').nth(2).unwrap();
    listening.write("said before anyone was there\n");
    let mut dialling = start(&["talk", addr]);
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
fn talk_calls_and_waits_for_late_answers() {
    let delay = Duration::from_millis(700);
    let (_echo, addr) = serve(Native, Script::delayed_echo(delay));
    let mut talk = start(&["talk", &addr, "--call"]);
    talk.write("one\ntwo\n");
    talk.end_input();
    let lines = talk.expect_success();
    assert_eq!(lines, ["connected", "reply one", "reply two", "disconnected closed"]);
    // Without calls it knows how many answers are missing.
    let (_echo, addr) = serve(Native, late_echo(delay));
    let mut talk = start(&["talk", &addr]);
    talk.write("one\n");
    talk.end_input();
    assert_eq!(talk.expect_success(), ["connected", "message one", "disconnected closed"]);
}

#[test]
fn talk_says_which_calls_failed_and_why() {
    let (_echo, addr) = serve(Native, Script::delayed_echo(Duration::from_secs(60)));
    let mut talk = start(&["talk", &addr, "--call", "--timeout", "0.1"]);
    talk.write("one\n");
    talk.expect("connected");
    talk.expect("failed no answer in time (maybe sent)");
    talk.end_input();
    assert_eq!(talk.end().0.code(), Some(1));
}

#[test]
fn talk_dials_again_and_says_when() {
    let (first, addr) = echo(Native);
    let mut talk = start(&["talk", &addr, "--reconnect", "fixed:50", "--stay"]);
    talk.expect("connected");
    drop(first);
    talk.wait_for("disconnected");
    talk.expect("reconnecting in 50 ms");
    let builder = ReactorBuilder::new(Native.into());
    let _second =
        Running::start(builder, Script::echo(), |reactor| reactor.listen(&addr).unwrap().1);
    talk.wait_for("connected");
    talk.write("again\n");
    talk.expect("message again");
}

#[test]
fn silent_peer_is_closed_after_the_idle_timeout_of_the_command_line() {
    let silent = Config::new().heartbeat(None).idle_timeout(None);
    let echo = Running::server(Native, silent, Script::echo());
    let addr = echo.addr.to_string();
    let talk = start(&["talk", &addr, "--heartbeat", "0", "--idle-timeout", "0.3", "--stay"]);
    talk.expect("connected");
    talk.expect("disconnected nothing received for 300ms");
}

// ---- call ----

#[test]
fn call_prints_the_reply_or_the_rate_of_many() {
    let (_echo, addr) = echo(Native);
    assert_eq!(start(&["call", &addr, "hello"]).expect_success(), ["hello"]);
    let args = ["--repeat", "100", "--threads", "3", "--connections", "2", "hello"];
    let lines = start(&[&["call", &*addr], &args[..]].concat()).expect_success();
    assert!(lines[0].starts_with("100 calls in "), "{lines:?}");
    assert_eq!(lines.len(), 6, "a line each for p50, p90, p99, p99.9 and max: {lines:?}");
}

#[test]
fn call_that_fails_tells_in_one_line_whether_the_request_may_have_left() {
    let (_silent, addr) = serve(Native, Script::delayed_echo(Duration::from_secs(60)));
    let (status, lines, errors) = start(&["call", &addr, "--timeout", "0.1", "hello"]).end();
    assert_eq!(status.code(), Some(1));
    assert!(lines.is_empty(), "{lines:?}");
    assert_eq!(errors, ["error: no answer in time (maybe sent)"]);
    let (status, _, errors) = start(&["call", &free_addr(), "hello"]).end();
    assert_eq!((status.code(), errors.len()), (Some(1), 1), "{errors:?}");
}

// ---- load ----

#[test]
fn load_verifies_every_echo_and_says_how_many_came() {
    let (_echo, addr) = echo(Native);
    for mode in [&[][..], &["--calls"]] {
        let args = ["load", &*addr, "--duration", "0.3", "--warm-up", "0", "--json"];
        let lines = start(&[&args, mode].concat()).expect_success();
        let found: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(found["errors"], 0);
        assert!(found["messages"].as_u64().unwrap() > 0, "{found}");
    }
}

#[test]
fn load_fails_where_an_echo_is_wrong() {
    let wrong = Script::new().on_message(|conn, _| conn.send("something else").unwrap());
    let (_wrong, addr) = serve(Native, wrong);
    let (status, _, errors) = start(&["load", &addr, "--connections", "1"]).end();
    assert_eq!(status.code(), Some(1));
    assert!(errors[0].contains("is wrong: it has 14 bytes and not 64"), "{errors:?}");
}

#[test]
fn load_refuses_what_cannot_work_with_status_2_and_fails_with_1() {
    let addr = free_addr();
    let told = |args: &[&str]| refusal(&[&["load", &*addr], args].concat());
    assert!(told(&["--connections", "0"]).contains("must be at least 1"));
    assert!(told(&["--duration", "0"]).contains("must be more than 0"));
    assert!(told(&["--calls", "--protocol", "length"]).contains("length has no calls"));
    assert!(told(&["--size", "1000000000", "--depth", "100"]).contains("error: "));
    assert!(told(&["--plot", "/nowhere/to/be/found.svg"]).contains("can't write"));
    let (status, _, errors) = start(&["load", &addr, "--duration", "1"]).end();
    assert_eq!((status.code(), errors.len()), (Some(1), 1), "{errors:?}");
}
