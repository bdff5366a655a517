//! Peers that break the rules: that connection ends with a reason that says what was wrong, and
//! the others go on.
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
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{Event, Peer, Running, Script, frame, hello, message, pass, request};
use longhaul::{
    CloseReason, Config,
    protocol::{
        AnyId, AnyProtocol, DecodeError, Head, Kind, Length, LengthBuilder, Native, Qtk2, Qtk3,
        Tcpstream,
    },
};

const MAX_BODY: u64 = 8 << 20;

/// The peer that sends this is closed with that error, and another is served before and after.
fn assert_refused(protocol: impl Into<AnyProtocol>, bytes: &[u8], expected: &DecodeError) {
    let protocol = protocol.into();
    let server = Running::server(protocol, Config::new(), Script::echo());
    let mut good = Peer::new(server.addr, protocol);
    good.echo("before");
    let mut bad = Peer::mute(server.addr, protocol);
    bad.write(bytes);
    bad.expect_end();
    let reason = server.events.ended();
    // NaN equals nothing, its text does.
    let wanted = format!("{:?}", CloseReason::Protocol(expected.clone()));
    assert_eq!(format!("{reason:?}"), wanted);
    good.echo("after");
}

macro_rules! refused {
    ($($rule:ident: $protocol:expr, $bytes:expr => $error:expr;)*) => {$(
        #[test]
        fn $rule() {
            assert_refused($protocol, &$bytes, &$error);
        }
    )*};
}

const fn too_long(len: u64) -> DecodeError {
    DecodeError::BodyTooLong { len, max: MAX_BODY }
}

/// A native header that says this, behind a hello.
fn native(len: u32, kind: u8, flags: u8, reserved: u16) -> Vec<u8> {
    let mut bytes = hello(&Native.into());
    bytes.extend_from_slice(&native_header(len, kind, flags, reserved));
    bytes
}

fn native_header(len: u32, kind: u8, flags: u8, reserved: u16) -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&len.to_be_bytes());
    header[4] = kind;
    header[5] = flags;
    header[6..8].copy_from_slice(&reserved.to_be_bytes());
    header
}

fn native_hello(version: u16, flags: u16) -> Vec<u8> {
    let mut bytes = native_header(20, 0, 0, 0).to_vec();
    bytes.extend_from_slice(&version.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes
}

fn tcpstream(magic: u16, len: u32) -> Vec<u8> {
    let mut header = vec![0; 18];
    header[..2].copy_from_slice(&magic.to_be_bytes());
    header[2..6].copy_from_slice(&len.to_be_bytes());
    header
}

fn qtk3(sign: u8, len: f64) -> Vec<u8> {
    let mut header = vec![b'0'; 45];
    header[0] = sign;
    header[37..].copy_from_slice(&len.to_be_bytes());
    header
}

fn qtk2(sign: u8, len: u32) -> Vec<u8> {
    let mut header = vec![b'0'; 37];
    header[0] = sign;
    header[33..].copy_from_slice(&len.to_be_bytes());
    header
}

fn length(set: impl FnOnce(LengthBuilder) -> LengthBuilder) -> Length {
    set(Length::builder()).build().unwrap()
}

const fn control(kind: Kind, len: u64, min: u64, max: u64) -> DecodeError {
    DecodeError::ControlLength { kind, len, min, max }
}

refused! {
    native_body_of_4_gib: Native, native(u32::MAX, 1, 0, 0) => too_long(u64::from(u32::MAX));
    native_body_one_over_the_maximum: Native, native((8 << 20) + 1, 2, 0, 0) => too_long(MAX_BODY + 1);
    native_unknown_kind: Native, native(0, 9, 0, 0) => DecodeError::UnknownKind(9);
    native_unknown_flags: Native, native(0, 1, 0x80, 0) => DecodeError::UnknownFlags(0x80);
    native_reserved_field: Native, native(0, 1, 0, 7) => DecodeError::ReservedNotZero(7);
    native_long_ping: Native, native(126, 5, 0, 0) => control(Kind::Ping, 126, 0, 125);
    native_long_error: Native, native(4097, 4, 0, 0) => control(Kind::Error, 4097, 0, 4096);
    native_cancel_with_a_body: Native, native(1, 8, 0, 0) => control(Kind::Cancel, 1, 0, 0);
    native_second_hello: Native, [native_hello(1, 0), native_hello(1, 0)].concat() => DecodeError::SecondHello;
    native_hello_of_version_0: Native, native_hello(0, 0) => DecodeError::HelloVersion(0);
    native_hello_with_flags: Native, native_hello(1, 3) => DecodeError::HelloFlags(3);
    native_short_hello: Native, native_header(19, 0, 0, 0) => control(Kind::Hello, 19, 20, 1024);
    native_message_before_the_hello: Native, native_header(0, 1, 0, 0) => DecodeError::HelloMissing { found: Kind::Push };
    native_http_request: Native, *b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" => DecodeError::Foreign("HTTP");
    native_tls_client_hello: Native, [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3] => DecodeError::Foreign("TLS");
    native_ssh_banner: Native, *b"SSH-2.0-OpenSSH_9.2\r\n" => DecodeError::Foreign("SSH");

    tcpstream_body_of_4_gib: Tcpstream, tcpstream(0xad12, u32::MAX) => too_long(u64::from(u32::MAX));
    tcpstream_body_one_over_the_maximum: Tcpstream, tcpstream(0xad12, (8 << 20) + 1) => too_long(MAX_BODY + 1);
    tcpstream_bad_magic: Tcpstream, tcpstream(0xad13, 0) => DecodeError::BadMagic { found: 0xad13, expected: 0xad12 };

    qtk3_length_1e300: Qtk3, qtk3(0x11, 1e300) => too_long(u64::MAX);
    qtk3_length_nan: Qtk3, qtk3(0x11, f64::NAN) => DecodeError::BadLength(f64::NAN);
    qtk3_length_infinite: Qtk3, qtk3(0x11, f64::INFINITY) => DecodeError::BadLength(f64::INFINITY);
    qtk3_length_below_zero: Qtk3, qtk3(0x11, -1.0) => DecodeError::BadLength(-1.0);
    qtk3_length_with_a_fraction: Qtk3, qtk3(0x11, 1.5) => DecodeError::BadLength(1.5);
    qtk3_body_one_over_the_maximum: Qtk3, qtk3(0x11, 8_388_609.0) => too_long(MAX_BODY + 1);
    qtk3_bad_sign: Qtk3, qtk3(0x12, 0.0) => DecodeError::BadSign(0x12);
    qtk3_long_ping: Qtk3, qtk3(0x01, 126.0) => control(Kind::Ping, 126, 0, 125);

    qtk2_body_of_4_gib: Qtk2, qtk2(0x11, u32::MAX) => too_long(u64::from(u32::MAX));
    qtk2_body_one_over_the_maximum: Qtk2, qtk2(0x11, (8 << 20) + 1) => too_long(MAX_BODY + 1);
    qtk2_bad_sign: Qtk2, qtk2(0, 0) => DecodeError::BadSign(0);

    length_body_of_4_gib: Length::default(), [0xff; 4] => too_long(u64::from(u32::MAX));
    length_body_one_over_the_maximum: Length::default(), ((8 << 20) + 1_u32).to_be_bytes() => too_long(MAX_BODY + 1);
    length_of_8_bytes_all_ones: length(|length| length.field_bytes(8)), [0xff; 8] => too_long(u64::MAX);
    length_of_2_to_the_63: length(|length| length.field_bytes(8)), (1_u64 << 63).to_be_bytes() => too_long(1 << 63);
    length_below_its_own_header:
        length(|length| length.counts_header(true)), 3_u32.to_be_bytes()
        => DecodeError::LengthBelowHeader { len: 3, header: 4 };
    length_adjusted_below_zero:
        length(|length| length.adjustment(-4)), 3_u32.to_be_bytes()
        => DecodeError::LengthOutOfRange { len: 3, adjustment: -4 };
}

#[test]
fn request_whose_id_is_in_flight_ends_the_connection() {
    let held = Script::new().on_message(|conn, msg| {
        let responder = conn.defer(&msg).unwrap();
        conn.set_data(responder);
    });
    let server = Running::server(Native, Config::new(), held);
    let mut peer = Peer::new(server.addr, Native);
    peer.write(&request(5, b"once"));
    peer.write(&request(5, b"twice"));
    let (_, report) = server.events.disconnected();
    assert_eq!(report.reason, CloseReason::Protocol(DecodeError::DuplicateRequest));
}

/// What was whole before the fault is answered, in the same write.
fn assert_valid_frame_is_answered(protocol: impl Into<AnyProtocol>, fault: &[u8]) {
    let protocol = protocol.into();
    let server = Running::server(protocol, Config::new(), Script::echo());
    let mut peer = Peer::mute(server.addr, protocol);
    peer.write(&[&hello(&protocol), &message(&protocol, b"fine")[..], fault].concat());
    peer.expect("fine");
    peer.expect_end();
    let (_, report) = server.events.disconnected();
    assert!(matches!(report.reason, CloseReason::Protocol(_)), "{report}");
}

#[test]
fn valid_native_frame_before_a_bad_header_is_answered() {
    assert_valid_frame_is_answered(Native, &native_header(0, 99, 0, 0));
}

#[test]
fn valid_tcpstream_frame_before_a_bad_header_is_answered() {
    assert_valid_frame_is_answered(Tcpstream, &tcpstream(1, 0));
}

#[test]
fn valid_qtk3_frame_before_a_bad_header_is_answered() {
    assert_valid_frame_is_answered(Qtk3, &qtk3(0x11, f64::NAN));
}

#[test]
fn valid_qtk2_frame_before_a_bad_header_is_answered() {
    assert_valid_frame_is_answered(Qtk2, &qtk2(0x22, 0));
}

#[test]
fn valid_length_frame_before_a_bad_header_is_answered() {
    assert_valid_frame_is_answered(Length::default(), &[0xff; 4]);
}

#[test]
fn answer_reaches_a_peer_that_goes_on_sending_after_its_fault() {
    let server = Running::server(Tcpstream, Config::new(), Script::echo());
    let mut peer = Peer::new(server.addr, Tcpstream);
    peer.write(&message(&Tcpstream.into(), &[b'x'; 200_000]));
    peer.write(&tcpstream(1, 0));
    // Unread input would make the system reset the connection, and the answer be lost.
    let mut writer = peer.stream.try_clone().unwrap();
    let noise = std::thread::spawn(move || while writer.write_all(&[0; 65_536]).is_ok() {});
    peer.expect([b'x'; 200_000]);
    peer.expect_end();
    drop(peer);
    drop(server);
    noise.join().unwrap();
}

// ---- ends ----

#[test]
fn end_in_the_middle_of_a_header_is_told_as_such() {
    let server = Running::server(Tcpstream, Config::new(), Script::echo());
    let mut peer = Peer::new(server.addr, Tcpstream);
    peer.write(&tcpstream(0xad12, 100)[..7]);
    peer.half_close();
    peer.expect_end();
    let (_, report) = server.events.disconnected();
    assert_eq!(report.reason, CloseReason::PeerClosedMidFrame { received: 7 });
}

#[test]
fn end_in_the_middle_of_a_body_is_told_as_such() {
    let server = Running::server(Native, Config::new(), Script::echo());
    let mut peer = Peer::new(server.addr, Native);
    let whole = message(&Native.into(), &[b'x'; 300_000]);
    peer.write(&whole[..200_000]);
    peer.half_close();
    peer.expect_end();
    let (_, report) = server.events.disconnected();
    assert_eq!(report.reason, CloseReason::PeerClosedMidFrame { received: 200_000 });
    assert!(!server.events.so_far().iter().any(|event| matches!(event, Event::Message(..))));
}

#[test]
fn whole_frame_and_end_at_once_is_answered_then_closed() {
    for protocol in
        [AnyProtocol::from(Native), Tcpstream.into(), Qtk3.into(), Length::default().into()]
    {
        let server = Running::server(protocol, Config::new(), Script::echo());
        let mut peer = Peer::mute(server.addr, protocol);
        peer.write(&[hello(&protocol), message(&protocol, b"last words")].concat());
        peer.half_close();
        peer.expect("last words");
        peer.expect_end();
        let (_, report) = server.events.disconnected();
        assert_eq!(report.reason, CloseReason::PeerClosed);
    }
}

#[test]
fn reply_that_was_deferred_reaches_a_peer_that_has_half_closed() {
    let script = Script::new().on_message(|conn, msg| {
        let responder = conn.defer(&msg).unwrap();
        conn.set_data(responder);
    });
    let server = Running::server(Native, Config::new(), script);
    let mut peer = Peer::new(server.addr, Native);
    let id = server.events.connected();
    peer.write(&request(7, b"how much?"));
    peer.half_close();
    assert_eq!(server.events.message(), b"how much?");
    // A turn takes what other threads ask for before it looks at the sockets: after the first, the
    // end that the peer sent is known.
    server.ask(|_| ());
    server.ask(move |cx| {
        let mut conn = cx.conn(id).expect("it drains, as a request is in flight");
        let responder = conn.data_mut::<longhaul::Responder<AnyProtocol>>();
        assert!(responder.is_some());
        conn.set_data(());
    });
    let mut kinds = Vec::new();
    while let Some((head, _)) = peer.next_frame() {
        kinds.push(head.kind);
    }
    assert_eq!(kinds.last(), Some(&Kind::Error), "dropping the responder answers: {kinds:?}");
    assert_eq!(server.events.end_of(id), CloseReason::PeerClosed);
}

#[test]
fn reset_in_the_middle_of_a_frame_ends_only_that_connection() {
    let server = Running::server(Tcpstream, Config::new(), Script::echo());
    let mut good = Peer::new(server.addr, Tcpstream);
    good.echo("before");
    let mut bad = Peer::new(server.addr, Tcpstream);
    bad.write(&tcpstream(0xad12, 100));
    socket2::SockRef::from(&bad.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(bad);
    let (_, report) = server.events.disconnected();
    assert!(matches!(report.reason, CloseReason::Network(_)), "{report}");
    good.echo("after");
    drop(good);
    server.until_empty();
}

// ---- time ----

#[test]
fn peer_without_a_hello_is_closed_after_the_hello_timeout() {
    let timeout = Duration::from_millis(50);
    let server = Running::server(Native, Config::new().hello_timeout(timeout), Script::echo());
    let mut peer = Peer::mute(server.addr, Native);
    peer.expect_end();
    assert_eq!(server.events.ended(), CloseReason::HelloTimeout(timeout));
}

#[test]
fn half_a_hello_is_closed_after_the_hello_timeout() {
    let timeout = Duration::from_millis(50);
    let server = Running::server(Native, Config::new().hello_timeout(timeout), Script::echo());
    let mut peer = Peer::mute(server.addr, Native);
    peer.write(&hello(&Native.into())[..30]);
    peer.expect_end();
    assert_eq!(server.events.ended(), CloseReason::HelloTimeout(timeout));
}

#[test]
fn frame_that_drips_in_is_closed_at_its_absolute_deadline() {
    let timeout = Duration::from_millis(100);
    let server = Running::server(Tcpstream, Config::new().frame_timeout(timeout), Script::echo());
    let mut peer = Peer::new(server.addr, Tcpstream);
    peer.write(&tcpstream(0xad12, 1000));
    // A byte every 10 ms would put off for ever a timeout that counted from the last one.
    for _ in 0..1000 {
        if peer.stream.write_all(b"x").is_err() {
            break;
        }
        if let Some(event) = server.events.next_within(Duration::from_millis(10))
            && let Event::Disconnected(_, report) = event
        {
            assert_eq!(report.reason, CloseReason::FrameTimeout(timeout));
            return;
        }
    }
    panic!("it was never closed");
}

#[test]
fn silence_after_a_whole_frame_is_never_cut() {
    let timeout = Duration::from_millis(100);
    let server = Running::server(Tcpstream, Config::new().frame_timeout(timeout), Script::echo());
    let mut peer = Peer::new(server.addr, Tcpstream);
    let whole = message(&Tcpstream.into(), b"quiet from now on");
    let (front, back) = whole.split_at(20);
    peer.write(front);
    peer.write(back);
    peer.expect("quiet from now on");
    assert!(matches!(server.events.next(), Event::Started));
    server.events.connected();
    server.events.message();
    pass(3 * timeout);
    assert!(server.events.so_far().is_empty());
    peer.echo("still here");
}

#[test]
fn large_frame_that_moves_has_the_time_that_its_length_needs() {
    let timeout = Duration::from_millis(50);
    let server = Running::server(
        Tcpstream,
        Config::new().frame_timeout(timeout).frame_rate(100_000),
        Script::echo(),
    );
    let mut peer = Peer::new(server.addr, Tcpstream);
    // 300 000 bytes at 100 000 a second: three seconds more.
    let whole = message(&Tcpstream.into(), &[b'x'; 300_000]);
    let (front, back) = whole.split_at(150_000);
    peer.write(front);
    pass(4 * timeout);
    peer.write(back);
    peer.expect([b'x'; 300_000]);
}

#[test]
fn nonsense_of_every_length_ends_or_waits_and_never_harms() {
    let server = Running::server(Native, Config::new(), Script::echo());
    let mut good = Peer::new(server.addr, Native);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for len in 1..200 {
        let mut bad = Peer::mute(server.addr, Native);
        let noise: Vec<u8> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        bad.write(&noise);
        bad.half_close();
        bad.expect_end();
    }
    good.echo("unharmed");
    drop(good);
    server.until_empty();
}

// ---- memory ----

const CHILD: &str = "LONGHAUL_TEST_SERVER";

/// Not a test of its own: the server of the test below, in a process of its own, which serves until
/// its standard input ends.
#[test]
fn server_in_a_process_of_its_own() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let server = Running::server(Tcpstream, Config::new(), Script::echo());
    println!("\nserving {}", server.addr);
    for line in std::io::stdin().lines() {
        if line.is_err() {
            return;
        }
        println!("\nhas {}", server.ask(|cx| cx.stats().bytes_in));
    }
}

struct Server {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    addr: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["server_in_a_process_of_its_own", "--exact", "--nocapture"])
            .env(CHILD, "yes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let addr = answer(&mut output, "serving ").parse().unwrap();
        Self { child, output, addr }
    }

    /// Waits until it has read so many bytes in all.
    fn wait_for(&mut self, bytes: usize) {
        loop {
            self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            let has: usize = answer(&mut self.output, "has ").parse().unwrap();
            if has >= bytes {
                assert_eq!(has, bytes);
                return;
            }
            pass(Duration::from_millis(10));
        }
    }

    /// Resident memory, in bytes.
    fn memory(&self) -> usize {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024 * line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The rest of the next line of output that begins so.
fn answer(output: &mut impl BufRead, start: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the server ended early");
        if let Some(rest) = line.trim().strip_prefix(start) {
            return rest.to_owned();
        }
    }
}

#[test]
fn peers_that_declare_a_mebibyte_and_send_five_bytes_cost_at_most_8_kib_each() {
    let mut server = Server::start();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let limit: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    // Ten thousand; as many as fit where the system allows fewer descriptors.
    let count = 10_000.min(limit.saturating_sub(200));
    assert!(count >= 500, "a descriptor limit of {limit} is too low to measure anything");
    let addr = server.addr;
    let connect = |number: usize| {
        // Several addresses: one has not enough free ports everywhere.
        let source = SocketAddr::from(([127, 0, 0, 2 + (number % 4) as u8], 0));
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.bind(&source.into()).unwrap();
        socket.connect(&addr.into()).unwrap();
        let mut peer = TcpStream::from(socket);
        peer.write_all(&tcpstream(0xad12, 1 << 20)).unwrap();
        peer.write_all(b"hello").unwrap();
        peer
    };
    // What the first ones cost is the process', not theirs.
    let mut peers: Vec<_> = (0..100).map(connect).collect();
    server.wait_for(100 * 23);
    let before = server.memory();
    peers.extend((0..count).map(connect));
    server.wait_for((100 + count) * 23);
    let each = server.memory().saturating_sub(before) / count;
    println!("{count} peers cost {each} bytes each");
    assert!(each <= 8 * 1024, "{each} bytes each");
}

#[test]
fn tag_and_id_of_a_message_come_back_unchanged() {
    let server = Running::server(Native, Config::new(), Script::echo());
    let mut peer = Peer::new(server.addr, Native);
    let head = Head { tag: 77, ..Head::new(Kind::Request, AnyId::Native(u64::MAX)) };
    peer.write(&frame(&Native.into(), &head, b"x"));
    let (head, body) = loop {
        let next = peer.next_frame().unwrap();
        if next.0.kind == Kind::Reply {
            break next;
        }
    };
    assert_eq!((head.id, head.tag, &body[..]), (AnyId::Native(u64::MAX), 77, &b"x"[..]));
}
