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
    let fill = move || (0..).find(|_| handle.send(conn, &[0; 68]) == Err(SendError::Full)).unwrap();
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
