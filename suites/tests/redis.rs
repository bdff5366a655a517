//! A real `redis-server`, with a protocol of a user's own: RESP, whose replies carry no id and come in
//! the order of the requests.
//!
//! Where `redis-server` is missing the tests are ignored.
#![allow(
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    reason = "a test says so by panicking, and its numbers are small"
)]

mod tools;

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use longhaul::{
    CallError, Client, ClientBuilder, Conn, Handler, Message,
    protocol::{Correlation, DecodeError, Decoded, Head, Kind, NoId, Protocol},
};

/// RESP 3, as a client speaks it. A body that is sent is a command, its words separated by spaces; one
/// that comes is the value without its type and line ends, an array or map as it is on the wire.
#[derive(Clone, Debug, PartialEq)]
struct Resp;

/// How deep arrays may be nested.
const DEPTH: u32 = 8;

/// Where the value at `at` ends; `Err`: so many bytes are needed to go on.
fn end_of(buf: &[u8], at: usize, depth: u32) -> Result<Result<usize, usize>, DecodeError> {
    let Some(len) = buf.get(at..).and_then(|rest| rest.windows(2).position(|two| two == b"\r\n"))
    else {
        return Ok(Err(buf.len() + 1));
    };
    let line = &buf[at..at + len];
    let mut end = at + len + 2;
    let number = || -> Result<usize, DecodeError> {
        let text = std::str::from_utf8(&line[1..]).ok().and_then(|text| text.parse::<i32>().ok());
        // -1 is nothing, where a length is expected.
        let number = text.ok_or_else(|| DecodeError::custom("no length"))?;
        Ok(usize::try_from(number).unwrap_or(0))
    };
    let values = match line.first() {
        Some(b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(') => 0,
        Some(b'$') if line == b"$-1" => 0,
        Some(b'$' | b'=') => {
            end += number()? + 2;
            return Ok(if buf.len() < end { Err(end) } else { Ok(end) });
        }
        Some(b'*' | b'>' | b'~') => number()?,
        Some(b'%') => 2 * number()?,
        _ => return Err(DecodeError::custom("no such type")),
    };
    if depth == DEPTH {
        return Err(DecodeError::custom("nested too deep"));
    }
    for _ in 0..values {
        match end_of(buf, end, depth + 1)? {
            Ok(next) => end = next,
            Err(need) => return Ok(Err(need)),
        }
    }
    Ok(Ok(end))
}

impl Protocol for Resp {
    type Id = NoId;

    fn name(&self) -> &'static str {
        "resp"
    }

    fn decode(&mut self, buf: &[u8], _: usize) -> Result<Decoded<NoId>, DecodeError> {
        let len = match end_of(buf, 0, 0)? {
            Ok(len) => len,
            Err(total) => return Ok(Decoded::need(total)),
        };
        let kind = match buf[0] {
            b'-' => Kind::Error,
            b'>' => Kind::Push,
            _ => Kind::Reply,
        };
        let start = match buf[0] {
            b'$' => {
                buf.iter().position(|&byte| byte == b'\n').map_or(len, |at| (at + 1).min(len - 2))
            }
            b'*' | b'>' | b'~' | b'%' => 0,
            _ => 1,
        };
        let end = if start == 0 { len } else { len - 2 };
        Ok(Decoded::Frame { head: Head::new(kind, NoId), body: start..end, len })
    }

    fn is_header_then_body(&self) -> bool {
        false
    }

    fn encode_header(&mut self, _: &Head<NoId>, _: usize, _: &mut Vec<u8>) {}

    fn encode(&mut self, _: &Head<NoId>, body: &[u8], out: &mut Vec<u8>) {
        let words: Vec<_> = body.split(|&byte| byte == b' ').collect();
        out.extend(format!("*{}\r\n", words.len()).bytes());
        for word in words {
            out.extend(format!("${}\r\n", word.len()).bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
    }

    fn largest_body(&self) -> usize {
        512 * 1024 * 1024
    }

    fn correlation(&self) -> Correlation {
        Correlation::InOrder
    }

    fn push_id(&self, _: u64, _: u64) -> NoId {
        NoId
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

/// A `redis-server` of the test's own, in memory only.
struct Redis {
    process: Child,
    addr: String,
}

impl Redis {
    fn start() -> Self {
        // A port that was free a moment ago.
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(process.stdout.take().unwrap()).lines();
        let is_ready = told.by_ref().any(|line| line.unwrap().contains("Ready to accept"));
        assert!(is_ready, "redis-server ended");
        // What it tells later is read, too, so that it never waits for that.
        std::thread::spawn(move || told.count());
        Self { process, addr: format!("127.0.0.1:{port}") }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Passes pushes on.
struct Listener(Sender<String>);

impl Handler for Listener {
    type Protocol = Resp;

    fn on_message(&mut self, _: &mut Conn<'_, Resp>, msg: Message<'_, Resp>) {
        let _ = self.0.send(msg.text().into_owned());
    }
}

fn call(client: &Client<Resp>, command: &str) -> Result<String, CallError> {
    let reply = client.call(command, PATIENCE)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

fn calls_are_answered_in_order_and_errors_are_errors() {
    let redis = Redis::start();
    let client = ClientBuilder::new(Resp).connect(redis.addr.as_str()).unwrap();
    assert_eq!(call(&client, "SET greeting hello").unwrap(), "OK");
    assert_eq!(call(&client, "GET greeting").unwrap(), "hello");
    assert_eq!(call(&client, "GET nothing").unwrap(), "");
    let CallError::Remote { text, .. } = call(&client, "INCR greeting").unwrap_err() else {
        panic!("an error of the server's is one of the call")
    };
    assert_eq!(text, "ERR value is not an integer or out of range");
    let list = call(&client, "EVAL return{1,{2,'x'}} 0").unwrap();
    assert_eq!(list, "*2\r\n:1\r\n*2\r\n:2\r\n$1\r\nx\r\n");
    let long = "x".repeat(300_000);
    assert_eq!(call(&client, &format!("SET long {long}")).unwrap(), "OK");
    assert_eq!(call(&client, "GET long").unwrap(), long);
}

fn many_threads_share_a_connection() {
    let redis = Redis::start();
    let client = ClientBuilder::new(Resp).connect(redis.addr.as_str()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let client = &client;
            scope.spawn(move || {
                for number in 0..200 {
                    let body = format!("{thread}-{number}");
                    assert_eq!(call(client, &format!("ECHO {body}")).unwrap(), body);
                }
            });
        }
    });
}

fn late_answer_is_not_given_to_the_next_call() {
    let redis = Redis::start();
    let client = ClientBuilder::new(Resp).connect(redis.addr.as_str()).unwrap();
    // An answer that comes after its timeout: nobody pushes to that list for 300 ms.
    let late = client.call("BLPOP list 0.3", Duration::from_millis(50));
    assert!(matches!(late, Err(CallError::Timeout { .. })), "{late:?}");
    assert_eq!(call(&client, "ECHO next").unwrap(), "next");
}

fn pushes_come_between_replies() {
    let redis = Redis::start();
    let (pushes, received) = channel();
    let client =
        ClientBuilder::new(Resp).connect_with(redis.addr.as_str(), Listener(pushes)).unwrap();
    assert!(call(&client, "HELLO 3").unwrap().contains("proto\r\n:3"));
    // Its confirmation is a push, so it is no call.
    client.send("SUBSCRIBE news").unwrap();
    let next = || received.recv_timeout(PATIENCE).unwrap();
    assert!(next().contains("subscribe"));
    assert_eq!(call(&client, "PUBLISH news hello").unwrap(), "1");
    assert!(next().ends_with("$4\r\nnews\r\n$5\r\nhello\r\n"));
    assert_eq!(call(&client, "ECHO still").unwrap(), "still");
}

const TESTS: &[(&str, fn())] = &[
    (
        "calls_are_answered_in_order_and_errors_are_errors",
        calls_are_answered_in_order_and_errors_are_errors,
    ),
    ("many_threads_share_a_connection", many_threads_share_a_connection),
    ("late_answer_is_not_given_to_the_next_call", late_answer_is_not_given_to_the_next_call),
    ("pushes_come_between_replies", pushes_come_between_replies),
];

fn main() -> ExitCode {
    tools::run(|| tools::missing_command("redis-server", "redis-server"), TESTS)
}
