//! What other threads ask for, on the simulated network: what is admitted, and what it may cost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use super::fleet::Fleet;
use crate::{
    Config, Conn, ConnId, Handler, Message, ReactorBuilder, SendError, protocol::Native,
    reactor::net::sim::SimWorld,
};

/// Answers requests with their own body.
struct Echo;

impl Handler for Echo {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        if msg.is_request() {
            let _ = conn.reply(&msg, &msg);
        }
    }
}

const SERVER: &str = "10.0.0.1:7001";

/// A server, and a client that is connected to it.
fn pair<H: Handler<Protocol = Native>>(
    server: H,
    client: H,
    builder: impl Fn() -> ReactorBuilder<Native>,
) -> (Fleet<H>, ConnId) {
    let mut fleet = Fleet::new(SimWorld::new(1));
    fleet.add(1, builder().seed(1), server);
    fleet.add(2, builder().seed(2), client);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let conn = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(Duration::from_secs(1));
    (fleet, conn)
}

fn builder() -> ReactorBuilder<Native> {
    ReactorBuilder::new(Native)
}

#[test]
fn turn_admits_no_second_watermark_of_posts() {
    let mut config = Config::new();
    config.watermarks(1000, 10_000);
    let (mut fleet, conn) = pair(Echo, Echo, || builder().config(config.clone()));
    let handle = fleet.handle(1);
    let fill =
        move || (0..1000).find(|_| handle.send(conn, &[0; 68]) == Err(SendError::Full)).unwrap();
    let first = fill();
    // In the same turn, after the loop has taken those and before it writes.
    let second = Arc::new(AtomicUsize::new(usize::MAX));
    let count = second.clone();
    fleet.handle(1).run(move |_| count.store(fill(), Ordering::Relaxed)).unwrap();
    fleet.run_for(Duration::from_secs(1));
    assert_eq!((first, second.load(Ordering::Relaxed)), (100, 0));
    // Nothing of it is left when all was written.
    assert_eq!(fleet.nodes[1].engine.state.shared.board.used(conn.slot()), 0);
}

#[test]
fn what_ends_something_is_posted_a_few_times_at_most() {
    let (mut fleet, conn) = pair(Echo, Echo, || builder().mailbox(10, 1000));
    let handle = fleet.handle(1);
    let waiting = |fleet: &Fleet<Echo>| fleet.nodes[1].engine.state.shared.mailbox.waiting();
    for _ in 0..1000 {
        handle.drain(conn);
        handle.close(conn);
        handle.abort(conn);
    }
    assert_eq!(waiting(&fleet), 3);
    fleet.run_for(Duration::from_secs(1));
    for _ in 0..1000 {
        handle.close(conn);
        handle.close(ConnId::new(conn.reactor(), 5, 1));
    }
    assert_eq!(waiting(&fleet), 0, "the connection is gone");
    for _ in 0..1000 {
        handle.stop();
        handle.stop_within(Duration::ZERO);
    }
    assert_eq!(waiting(&fleet), 1);
    fleet.run_for(Duration::from_secs(1));
    assert!(fleet.nodes[1].engine.is_stopped());
}

#[test]
fn connection_that_closes_can_still_be_dropped_from_outside() {
    let (mut fleet, conn) = pair(Echo, Echo, builder);
    let (world, hosts) = (fleet.world.clone(), [0, 1].map(|node| fleet.nodes[node].host));
    world.cut(hosts[0], hosts[1]);
    let handle = fleet.handle(1);
    for _ in 0..100 {
        let _ = handle.send(conn, vec![0; 10_000]);
    }
    handle.close(conn);
    fleet.run_for(Duration::from_millis(10));
    assert!(!handle.is_open(conn) && fleet.nodes[1].engine.state.get(conn).is_some());
    handle.abort(conn);
    fleet.run_for(Duration::from_millis(10));
    assert!(fleet.nodes[1].engine.state.get(conn).is_none());
}

#[test]
fn stop_takes_the_strictest_of_what_was_asked() {
    let (mut fleet, conn) = pair(Echo, Echo, || builder().stop_timeout(Duration::from_mins(1)));
    let (world, hosts) = (fleet.world.clone(), [0, 1].map(|node| fleet.nodes[node].host));
    world.cut(hosts[0], hosts[1]);
    let handle = fleet.handle(1);
    handle.send(conn, vec![0; 1_000_000]).unwrap();
    handle.stop_within(Duration::from_secs(20));
    handle.stop_within(Duration::from_secs(2));
    handle.stop();
    fleet.run_for(Duration::from_millis(1900));
    assert!(!fleet.nodes[1].engine.is_stopped());
    fleet.run_for(Duration::from_millis(200));
    assert!(fleet.nodes[1].engine.is_stopped());
}

#[test]
fn panic_in_the_waker_of_a_call_does_not_end_the_loop() {
    struct Bomb;
    impl std::task::Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("the executor is gone");
        }
    }
    let (mut fleet, conn) = pair(Echo, Echo, builder);
    let handle = fleet.handle(1);
    let second = Duration::from_secs(1);
    let mut call = std::pin::pin!(handle.call_async(conn, "first", second));
    let waker = std::task::Waker::from(Arc::new(Bomb));
    assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    fleet.run_for(second);
    assert!(handle.is_up(conn));
    let ended = call.poll(&mut Context::from_waker(std::task::Waker::noop()));
    assert_eq!(ended, Poll::Ready(Ok("first".into())));
    let mut next = std::pin::pin!(handle.call_async(conn, "next", second));
    fleet.run_for(second);
    let ended = next.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
    assert_eq!(ended, Poll::Ready(Ok("next".into())));
}
