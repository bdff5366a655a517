//! A declared length allocates nothing: only what has arrived is held.
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
    io::{Read, Write},
    net::TcpStream,
    sync::{Mutex, PoisonError},
    thread,
};

use common::{Peer, Running, Script};
use longhaul::{
    Bytes, Config, Conn, Handler, Message, ReactorBuilder,
    protocol::{AnyProtocol, Length, Native, Tcpstream},
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The memory of a process is one: only one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const KIB: usize = 1024;

/// By how much the memory of the process grew at the most while `run` ran.
fn peak_growth(run: impl FnOnce()) -> usize {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    run();
    MEMORY.peak_usage().saturating_sub(before)
}

fn assert_costs_nothing(
    protocol: impl Into<AnyProtocol>,
    max_body: usize,
    header: &[u8],
    is_legal: bool,
) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let protocol = protocol.into();
    let server = Running::server(protocol, Config::new().max_body(max_body), Script::echo());
    let mut peer = Peer::new(server.addr, protocol);
    peer.echo("warm");
    let before = server.ask(|cx| cx.stats().bytes_in);
    let growth = peak_growth(|| {
        peer.write(header);
        if is_legal {
            peer.write(b"hello");
            let all = before + header.len() as u64 + 5;
            server.until(move |cx| cx.stats().bytes_in == all);
        } else {
            assert_eq!(peer.stream.read(&mut [0; 16]).unwrap(), 0, "closed");
        }
    });
    assert!(growth < 64 * KIB, "{growth} bytes");
}

/// A push of 1 GiB.
const NATIVE_GIB: [u8; 24] =
    [0x40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A push of 4 MiB.
const NATIVE_4_MIB: [u8; 24] =
    [0, 0x40, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn native_gibibyte_over_the_maximum_allocates_nothing() {
    assert_costs_nothing(Native, (1 << 30) - 1, &NATIVE_GIB, false);
}

#[test]
fn native_gibibyte_within_the_maximum_allocates_nothing() {
    assert_costs_nothing(Native, u32::MAX as usize, &NATIVE_GIB, true);
}

#[test]
fn native_body_of_4_mib_that_has_not_come_allocates_nothing() {
    assert_costs_nothing(Native, 8 << 20, &NATIVE_4_MIB, true);
}

#[test]
fn length_gibibyte_over_the_maximum_allocates_nothing() {
    assert_costs_nothing(Length::default(), (1 << 30) - 1, &[0x40, 0, 0, 0], false);
}

#[test]
fn length_gibibyte_within_the_maximum_allocates_nothing() {
    assert_costs_nothing(Length::default(), u32::MAX as usize, &[0x40, 0, 0, 0], true);
}

#[test]
fn length_body_of_4_mib_that_has_not_come_allocates_nothing() {
    assert_costs_nothing(Length::default(), 8 << 20, &[0, 0x40, 0, 0], true);
}

#[test]
fn memory_of_a_body_is_at_most_twice_what_has_arrived() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Running::server(Native, Config::new().max_body(1 << 30), Script::echo());
    let mut peer = Peer::new(server.addr, Native);
    peer.echo("warm");
    peer.write(&NATIVE_GIB);
    let piece = vec![b'x'; 64 * KIB];
    let received = server.ask(|cx| cx.stats().bytes_in);
    let (before, arrived) = (MEMORY.current_usage(), 32 * piece.len());
    let peak = peak_growth(|| {
        for _ in 0..32 {
            peer.write(&piece);
        }
        server.until(move |cx| cx.stats().bytes_in >= received + arrived as u64);
    });
    let held = MEMORY.current_usage().saturating_sub(before);
    assert!(held < 2 * arrived + 128 * KIB, "{held} bytes");
    // Growing moves what is there: for a moment the old buffer and the new one exist.
    assert!(peak < 3 * arrived + 128 * KIB, "{peak} bytes");
}

#[test]
fn broadcast_to_a_hundred_peers_that_do_not_read_is_held_once() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let small = Config::new().socket_buffers(8 * KIB, 0);
    let server = Running::server(Tcpstream, small, Script::echo());
    let peers: Vec<_> = (0..100)
        .map(|_| {
            let mut peer = Peer::new(server.addr, Tcpstream);
            peer.echo("warm");
            peer
        })
        .collect();
    let body = Bytes::from(vec![b'x'; 8 * 1024 * KIB]);
    let growth = peak_growth(|| {
        server.handle.broadcast(body).unwrap();
        server.until(|cx| {
            let ids: Vec<_> = cx.connections().collect();
            ids.iter().all(|id| cx.conn(*id).is_some_and(|conn| conn.queued() > 0))
        });
    });
    // Encoded, it is held a second time; a copy for each would be 800 MiB.
    assert!(growth < 12 * 1024 * KIB, "{growth} bytes");
    assert_eq!(server.ask(|cx| cx.stats().encoded_broadcasts), 1);
    drop(peers);
}

/// Once nobody holds them: after the callback of a message that goes no further, and after the write of
/// one that is sent back.
#[test]
fn buffers_of_large_frames_are_kept_for_the_next_up_to_8_mib() {
    const MIB: usize = 1024 * KIB;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for script in [Script::new(), Script::echo()] {
        let server = Running::server(Native, Config::new(), script);
        let before = server.ask(|_| MEMORY.current_usage());
        for frames in [1, 20] {
            let mut peers: Vec<_> = (0..frames).map(|_| Peer::new(server.addr, Native)).collect();
            for peer in &mut peers {
                peer.send(vec![b'x'; MIB]);
                peer.half_close();
            }
            for mut peer in peers {
                while peer.receive().is_some() {}
            }
            server.until_empty();
        }
        // They have the bodies.
        drop(server.events.so_far());
        let kept = server.ask(|_| MEMORY.current_usage()).saturating_sub(before);
        assert!((MIB..9 * MIB).contains(&kept), "{kept} bytes");
    }
}

/// Sends back what it gets, and keeps nothing.
struct Echo;

impl Handler for Echo {
    type Protocol = Length;

    fn on_message(&mut self, conn: &mut Conn<'_, Length>, msg: Message<'_, Length>) {
        conn.reply(&msg, &msg).unwrap();
    }
}

/// Of every size that lies in the buffer that all connections share.
#[test]
fn echo_of_a_body_that_is_lent_allocates_nothing() {
    const ROUNDS: usize = 100;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut reactor = ReactorBuilder::new(Length::default()).build(Echo).unwrap();
    let mut cx = reactor.context();
    let (_, addr) = cx.listen("127.0.0.1:0").unwrap();
    let handle = reactor.handle();
    let server = thread::spawn(move || reactor.run());
    let mut peer = TcpStream::connect(addr).unwrap();
    for len in [100, 8 * KIB - 1, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB - 4] {
        let frame = [&u32::try_from(len).unwrap().to_be_bytes()[..], &vec![b'x'; len]].concat();
        let mut echo = vec![0; frame.len()];
        let mut exchange = || {
            peer.write_all(&frame).unwrap();
            peer.read_exact(&mut echo).unwrap();
        };
        // Until the buffers have their sizes.
        (0..10).for_each(|_| exchange());
        // A frame that comes in two reads is kept between them, and how it comes nobody can tell.
        let quiet = (0..ROUNDS).filter(|_| peak_growth(&mut exchange) < KIB).count();
        assert!(quiet > ROUNDS / 2, "{quiet} of {ROUNDS} rounds with {len} bytes");
        assert_eq!(echo, frame);
    }
    handle.stop();
    server.join().unwrap().unwrap();
}
