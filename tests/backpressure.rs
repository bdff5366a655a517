//! Peers that read slowly or not at all: what they cost is bounded, and nobody else pays.
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
    net::{SocketAddr, TcpStream},
    sync::mpsc::channel,
    time::Duration,
};

use common::{Event, Peer, Running, Script, answer, frame, message, pair::Pair};
use longhaul::{
    CloseReason, Config, ConnId, Reconnect, SendError,
    protocol::{AnyId, AnyProtocol, Head, Kind, Native, Tcpstream},
};

const KIB: usize = 1024;

/// Low 16 KiB, high 64 KiB, and a system that buffers little.
fn tight() -> Config {
    Config::new().watermarks(16 * KIB, 64 * KIB).socket_buffers(8 * KIB, 0)
}

/// A peer for which the system buffers little.
fn slow_peer(addr: SocketAddr, protocol: impl Into<AnyProtocol>) -> Peer {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2 * KIB).unwrap();
    socket.connect(&addr.into()).unwrap();
    let mut peer = Peer::of(TcpStream::from(socket), protocol);
    let hello = common::hello(peer.protocol());
    peer.write(&hello);
    peer
}

/// Sends numbered messages of 4 KiB from outside until the queue is above its watermark; how many
/// were accepted.
fn fill(server: &Running, id: ConnId) -> u32 {
    let mut sent = 0_u32;
    loop {
        match server.handle.send(id, numbered(sent)) {
            Ok(()) => sent += 1,
            // What was posted and not yet taken counts, too: only the loop knows whether that is so.
            Err(SendError::Full) => {
                if server.ask(move |cx| !cx.conn(id).unwrap().is_writable()) {
                    return sent;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn numbered(number: u32) -> Vec<u8> {
    let mut body = vec![b'x'; 4 * KIB];
    body[..4].copy_from_slice(&number.to_be_bytes());
    body
}

#[test]
fn sends_from_outside_are_refused_above_the_high_watermark() {
    let server = Running::server(Native, tight(), Script::new());
    let _peer = slow_peer(server.addr, Native);
    let id = server.events.connected();
    fill(&server, id);
    assert_eq!(server.handle.send(id, "one more"), Err(SendError::Full));
    let queued = server.ask(move |cx| cx.conn(id).unwrap().queued());
    // The system may have taken a little since.
    assert!((16 * KIB..80 * KIB).contains(&queued), "{queued}");
}

#[test]
fn writable_is_told_exactly_once_when_the_peer_reads_again() {
    let server = Running::server(Native, tight(), Script::new());
    let mut peer = slow_peer(server.addr, Native);
    let id = server.events.connected();
    let sent = fill(&server, id);
    for number in 0..sent {
        peer.expect(numbered(number));
    }
    server.until(move |cx| cx.conn(id).unwrap().queued() == 0);
    let told = server.events.so_far();
    let writable = told.iter().filter(|event| matches!(event, Event::Writable(_))).count();
    assert_eq!(writable, 1, "{told:?}");
    server.handle.send(id, "after").unwrap();
    peer.expect("after");
}

#[test]
fn each_crossing_of_the_watermark_is_told() {
    let server = Running::server(Tcpstream, tight(), Script::new());
    let mut peer = slow_peer(server.addr, Tcpstream);
    let id = server.events.connected();
    for _ in 0..3 {
        for number in 0..fill(&server, id) {
            peer.expect(numbered(number));
        }
        server.events.wait(|event| matches!(event, Event::Writable(_)).then_some(()));
    }
}

#[test]
fn reading_pauses_above_the_high_watermark_and_resumes() {
    const REQUESTS: usize = 10_000;
    // The answers are 80 MB: without a pause the hard limit of 16 MiB would end it.
    let server = Running::server(
        Tcpstream,
        tight(),
        Script::new().on_message(|conn, msg| conn.reply(&msg, vec![b'y'; 8 * KIB]).unwrap()),
    );
    let mut peer = slow_peer(server.addr, Tcpstream);
    let id = server.events.connected();
    let flood = message(&Tcpstream.into(), b"?").repeat(REQUESTS);
    let mut writer = peer.stream.try_clone().unwrap();
    let writing =
        std::thread::spawn(move || std::io::Write::write_all(&mut writer, &flood).unwrap());
    server.until(move |cx| !cx.conn(id).unwrap().is_writable());
    let handled = server.ask(|cx| cx.stats().messages_in);
    assert!(handled < 1000, "{handled}");
    let mut good = Peer::new(server.addr, Tcpstream);
    good.send("are you there?");
    good.expect(vec![b'y'; 8 * KIB]);
    assert_eq!(server.ask(|cx| cx.stats().messages_in), handled + 1, "no request of it since");
    for _ in 0..REQUESTS {
        peer.expect(vec![b'y'; 8 * KIB]);
    }
    writing.join().unwrap();
}

#[test]
fn past_the_hard_limit_a_slow_consumer_is_cut_with_an_exact_report() {
    let settings = Config::new()
        .watermarks(16 * KIB, 64 * KIB)
        .hard_limit(256 * KIB)
        .socket_buffers(8 * KIB, 0);
    let (tell, told) = channel();
    let script = Script::echo().on_disconnect(move |conn, report| {
        tell.send((conn.stats().messages_out, report.unsent_messages)).unwrap();
    });
    let server = Running::server(Tcpstream, settings, script);
    let slow = slow_peer(server.addr, Tcpstream);
    let id = server.events.connected();
    let mut good = Peer::new(server.addr, Tcpstream);
    good.echo("before");
    // From the loop, sends are not refused at the watermark: one turn's worth each.
    let mut accepted = 0;
    loop {
        let (sent, refused) = server.ask(move |cx| {
            let Some(mut conn) = cx.conn(id) else { return (0, Some(SendError::Closed)) };
            for sent in 0..10_u64 {
                if let Err(error) = conn.send(vec![b'x'; 4 * KIB]) {
                    return (sent, Some(error));
                }
            }
            (10, None)
        });
        accepted += sent;
        if let Some(error) = refused {
            assert_eq!(error, SendError::SlowConsumer);
            break;
        }
    }
    match server.events.end_of(id) {
        CloseReason::SlowConsumer { queued, refused, limit } => {
            assert_eq!(refused, 4 * KIB + 32);
            assert!(queued + refused > limit, "{queued} + {refused} fits into {limit}");
            assert_eq!(limit, 256 * KIB);
            assert!(queued <= limit && queued + 5 * KIB > limit, "{queued}");
        }
        reason => panic!("{reason}"),
    }
    let (written, unsent) = told.recv_timeout(common::PATIENCE).unwrap();
    assert_eq!(written + unsent, accepted);
    assert_eq!(server.handle.send(id, "x"), Err(SendError::Closed));
    good.echo("after");
    assert_eq!(server.ask(|cx| cx.stats().slow_consumers), 1);
    drop((slow, good));
    server.until_empty();
}

#[test]
fn report_of_a_slow_consumer_counts_unsent_bytes() {
    let settings = Config::new()
        .watermarks(16 * KIB, 64 * KIB)
        .hard_limit(128 * KIB)
        .socket_buffers(8 * KIB, 0);
    let server = Running::server(Tcpstream, settings, Script::new());
    let _slow = slow_peer(server.addr, Tcpstream);
    let id = server.events.connected();
    let accepted = server.ask(move |cx| {
        let mut conn = cx.conn(id).unwrap();
        (0..1_000_000).take_while(|_| conn.send(vec![b'x'; 1000]).is_ok()).count() as u64
    });
    let (_, report) = server.events.disconnected();
    let written = server.ask(|cx| cx.stats().bytes_out);
    assert_eq!(written, 0, "of a connection that was dropped nothing more is written");
    assert_eq!(report.unsent_bytes, accepted * 1018);
    assert_eq!(report.unsent_messages, report.unsent_bytes.div_ceil(1018));
}

#[test]
fn peer_that_takes_no_byte_is_closed_after_the_write_timeout() {
    let timeout = Duration::from_millis(100);
    let settings = tight().write_timeout(timeout);
    let server = Running::server(Native, settings, Script::echo());
    let slow = slow_peer(server.addr, Native);
    let id = server.events.connected();
    let began = common::now();
    fill(&server, id);
    let (_, report) = server.events.disconnected();
    assert_eq!(report.reason, CloseReason::WriteStalled(timeout));
    assert!(report.unsent_messages > 0);
    assert!(common::now() - began >= timeout);
    drop(slow);
    server.until_empty();
}

#[test]
fn application_that_pauses_gets_what_was_sent_meanwhile_in_order() {
    let script = Script::new().on_message(|conn, msg| {
        let _ = answer(conn, &msg);
        conn.pause();
    });
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    let all: Vec<u8> = (0..50_u8).flat_map(|n| message(&Tcpstream.into(), &[n])).collect();
    peer.write(&all);
    for n in 0..50_u8 {
        assert_eq!(server.events.message(), [n]);
        server.ask(|_| ());
        assert!(server.events.so_far().is_empty(), "nothing is read while it is paused");
        server.ask(move |cx| cx.conn(id).unwrap().resume());
        peer.expect([n]);
    }
}

#[test]
fn end_of_a_paused_connection_is_told_after_what_came_before_it() {
    let script = Script::new().on_message(|conn, _| _ = conn.pause());
    let server = Running::server(Tcpstream, Config::new(), script);
    let mut peer = Peer::new(server.addr, Tcpstream);
    let id = server.events.connected();
    peer.write(&[message(&Tcpstream.into(), b"a"), message(&Tcpstream.into(), b"b")].concat());
    peer.half_close();
    assert_eq!(server.events.message(), b"a");
    server.ask(|_| ());
    server.ask(|_| ());
    assert!(server.events.so_far().is_empty());
    server.ask(move |cx| cx.conn(id).unwrap().resume());
    assert_eq!(server.events.message(), b"b");
    server.ask(move |cx| cx.conn(id).unwrap().resume());
    assert_eq!(server.events.end_of(id), CloseReason::PeerClosed);
}

#[test]
fn broadcasts_and_sends_of_one_thread_arrive_in_order_at_every_receiver() {
    const RECEIVERS: usize = 2000;
    const ROUNDS: usize = 5;
    let server = Running::server(Tcpstream, Config::new(), Script::new());
    let mut peers: Vec<_> = (0..RECEIVERS).map(|_| Peer::new(server.addr, Tcpstream)).collect();
    let ids: Vec<_> = (0..RECEIVERS).map(|_| server.events.connected()).collect();
    let patiently = |send: &dyn Fn() -> Result<(), SendError>| {
        while let Err(error) = send() {
            assert!(matches!(error, SendError::Full | SendError::MailboxFull), "{error}");
            std::thread::yield_now();
        }
    };
    for round in 0..ROUNDS {
        patiently(&|| server.handle.broadcast(format!("to all {round}")));
        for id in &ids {
            patiently(&|| server.handle.send(*id, format!("to one {round}")));
        }
        patiently(&|| server.handle.broadcast(format!("to all again {round}")));
    }
    for peer in &mut peers {
        for round in 0..ROUNDS {
            peer.expect(format!("to all {round}"));
            peer.expect(format!("to one {round}"));
            peer.expect(format!("to all again {round}"));
        }
    }
    assert_eq!(server.ask(|cx| cx.stats().encoded_broadcasts), 2 * ROUNDS as u64);
}

#[test]
fn broadcast_cuts_the_slow_consumer_and_reaches_the_others() {
    let settings = Config::new()
        .watermarks(16 * KIB, 64 * KIB)
        .hard_limit(128 * KIB)
        .socket_buffers(8 * KIB, 0);
    let server = Running::server(Tcpstream, settings, Script::new());
    let _slow = slow_peer(server.addr, Tcpstream);
    let slow_id = server.events.connected();
    let mut good = Peer::new(server.addr, Tcpstream);
    server.events.connected();
    let mut number = 0;
    while server.handle.is_up(slow_id) {
        server.handle.broadcast(numbered(number)).unwrap();
        good.expect(numbered(number));
        number += 1;
    }
    assert!(matches!(server.events.end_of(slow_id), CloseReason::SlowConsumer { .. }));
    server.handle.broadcast("still here").unwrap();
    good.expect("still here");
}

/// Both sides push more than sockets and queues hold, and each push causes another one: so both
/// stop reading with their queues full. Nothing but reading on gets them out of that.
#[test]
fn two_sides_that_wait_for_each_other_to_read_get_on() {
    const PUSHES: usize = 2000;
    let settings = Config::new()
        .watermarks(4 * KIB, 8 * KIB)
        .hard_limit(64 * 1024 * KIB)
        .socket_buffers(4 * KIB, 4 * KIB)
        .reconnect(Reconnect::never())
        .write_timeout(Duration::from_secs(2));
    let (tell, told) = channel();
    let script = || {
        let tell = tell.clone();
        Script::new().on_message(move |conn, msg| match msg.body()[0] {
            b'?' => conn.send([b"!", &msg.body()[1..]].concat()).unwrap(),
            _ => tell.send(msg.body().len()).unwrap(),
        })
    };
    let pair = Pair::with(Tcpstream, settings.clone(), script(), settings, script());
    for (side, conn) in [(&pair.server, pair.accepted), (&pair.client, pair.dialled)] {
        let push = move |cx: &mut longhaul::Context<'_, AnyProtocol>| {
            let mut conn = cx.conn(conn).unwrap();
            for _ in 0..PUSHES {
                conn.send([b"?", &[b'x'; KIB - 1][..]].concat()).unwrap();
            }
        };
        side.handle.run(push).unwrap();
    }
    for _ in 0..2 * PUSHES {
        assert_eq!(told.recv_timeout(common::PATIENCE), Ok(KIB));
    }
}

#[test]
fn pings_without_end_from_a_peer_that_does_not_read_cost_16_kib() {
    const PINGS: usize = 200_000;
    let server = Running::server(Native, tight(), Script::new());
    let mut peer = slow_peer(server.addr, Native);
    let id = server.events.connected();
    let ping = frame(&Native.into(), &Head::new(Kind::Ping, AnyId::Native(1)), b"are you there?");
    let flood = ping.repeat(PINGS);
    let all = flood.len() as u64;
    peer.write(&flood);
    server.until(move |cx| cx.conn(id).unwrap().stats().bytes_in >= all);
    let queued = server.ask(move |cx| cx.conn(id).unwrap().queued());
    assert!(queued <= 17 * KIB, "{queued}");
    let mut good = Peer::new(server.addr, Native);
    good.send("still here");
    assert_eq!(server.events.message(), b"still here");
}
