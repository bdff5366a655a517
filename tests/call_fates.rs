//! A call that ends as `NotSent` is not written afterwards.
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

use std::{sync::mpsc::channel, time::Duration};

use common::{PATIENCE, Peer, Running, Script, frame};
use longhaul::{
    CallError, Config, Fate, ReactorBuilder,
    protocol::{AnyProtocol, Head, Kind, Native},
};

/// Everything that the peer gets until the end.
fn requests(peer: &mut Peer) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| peer.receive()).collect()
}

#[test]
fn call_that_a_close_ends_as_not_sent_does_not_leave() {
    let (tell, ended) = channel();
    let script = Script::new().on_connect(move |conn| {
        let tell = tell.clone();
        conn.call("x", Duration::from_secs(60), move |_: &mut Script, _, result| {
            tell.send(result.unwrap_err().fate()).unwrap();
        })
        .unwrap();
        conn.close();
    });
    let server = Running::server(Native, Config::new(), script);
    let mut peer = Peer::new(server.addr, Native);
    let fate = ended.recv_timeout(PATIENCE).unwrap();
    let got = requests(&mut peer);
    assert!(fate != Fate::NotSent || got.is_empty(), "{fate:?}, and the peer got {got:?}");
}

#[test]
fn call_that_the_peers_half_close_ends_as_not_sent_does_not_leave() {
    let (tell, ended) = channel();
    let script = Script::new().on_message(move |conn, _| {
        let tell = tell.clone();
        conn.call("x", Duration::from_secs(60), move |_: &mut Script, _, result| {
            tell.send(result.unwrap_err().fate()).unwrap();
        })
        .unwrap();
    });
    let mut reactor = ReactorBuilder::new(AnyProtocol::from(Native)).build(script).unwrap();
    let (_, addr) = reactor.listen("127.0.0.1:0").unwrap();
    let mut peer = Peer::new(addr, Native);
    while reactor.stats().accepted == 0 {
        reactor.turn(Some(PATIENCE)).unwrap();
    }
    peer.send("call me");
    peer.half_close();
    while reactor.stats().connections > 0 {
        reactor.turn(Some(PATIENCE)).unwrap();
    }
    let fate = ended.recv_timeout(PATIENCE).unwrap();
    let got = requests(&mut peer);
    assert!(fate != Fate::NotSent || got.is_empty(), "{fate:?}, and the peer got {got:?}");
}

/// A call behind more than the system buffers, of which the caller is told that it was not sent while
/// it is still queued.
fn call_behind_a_full_queue(end: impl FnOnce(&Running, longhaul::ConnId) -> Fate) {
    let settings =
        Config::new().watermarks(1, 32 << 20).hard_limit(64 << 20).write_timeout(PATIENCE);
    let server = Running::server(Native, settings, Script::new());
    let mut peer = Peer::new(server.addr, Native);
    let id = server.events.connected();
    server.ask(move |cx| {
        for _ in 0..16 {
            cx.conn(id).unwrap().send(vec![0; 1 << 20]).unwrap();
        }
    });
    let fate = end(&server, id);
    server.handle.close(id);
    let got = requests(&mut peer);
    let is_there = got.iter().any(|body| body == b"x");
    assert!(fate != Fate::NotSent || !is_there, "{fate:?}, and the peer got it");
}

#[test]
fn call_that_times_out_as_not_sent_does_not_leave() {
    call_behind_a_full_queue(|server, id| {
        server.handle.call(id, "x", Duration::from_millis(50)).unwrap_err().fate()
    });
}

#[test]
fn call_that_is_cancelled_as_not_sent_does_not_leave() {
    call_behind_a_full_queue(|server, id| {
        let (tell, ended) = channel();
        let call = server.ask(move |cx| {
            let mut conn = cx.conn(id).unwrap();
            conn.call("x", Duration::from_secs(60), move |_: &mut Script, _, result| {
                tell.send(result.unwrap_err().fate()).unwrap();
            })
            .unwrap()
        });
        server.ask(move |cx| cx.conn(id).unwrap().cancel_call(call));
        ended.recv_timeout(PATIENCE).unwrap()
    });
}

/// The goaway of a peer names the last request that it handles: what came behind is proven unhandled
/// and ends at once, what came before is still answered, and nothing more is asked.
#[test]
fn goaway_proves_which_calls_were_not_handled() {
    let server = Running::server(Native, Config::new(), Script::new());
    let mut peer = Peer::new(server.addr, Native);
    let conn = server.events.connected();
    let calls = ["first", "second"].map(|body| server.handle.call_async(conn, body, PATIENCE));
    let mut next_request = || loop {
        let (head, body) = peer.next_frame().expect("a request");
        if head.kind == Kind::Request {
            return (head, body);
        }
    };
    let [(first, _), (second, _)] = [next_request(), next_request()];
    assert_ne!(first.id, second.id);
    peer.write(&frame(&Native.into(), &Head::new(Kind::Goaway, first.id), b"maintenance"));
    let [handled, excluded] = calls;
    let error = excluded.wait().unwrap_err();
    assert_eq!((&error, error.fate()), (&CallError::PeerDraining, Fate::NotSent));
    let refused = server.handle.call(conn, "third", PATIENCE).unwrap_err();
    assert_eq!(refused, CallError::PeerDraining);
    peer.write(&frame(&Native.into(), &Head::new(Kind::Reply, first.id), b"done"));
    assert_eq!(handled.wait().unwrap(), "done");
    peer.half_close();
    assert_eq!(requests(&mut peer), [b""; 0], "nothing more was asked");
}
