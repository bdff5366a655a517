//! What other threads ask for, on the simulated network: what is admitted, and what it may cost.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use super::fleet::Fleet;
use crate::{
    CallError, CloseReason, CloseReport, Config, Conn, ConnId, Handler, Message, PendingCall,
    ReactorBuilder, Reconnect, Responder, SendError, Tagged,
    client::{Deaf, Record},
    error::error_code,
    net::sim::SimWorld,
    protocol::Native,
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
    let config = Config::new().watermarks(1000, 10_000);
    let (mut fleet, conn) = pair(Echo, Echo, || builder().config(config.clone()));
    let handle = fleet.handle(1);
    let fill =
        move || (0..1000).find(|_| handle.send(conn, [0; 68]) == Err(SendError::Full)).unwrap();
    let first = fill();
    // In the same turn, after the loop has taken those and before it writes.
    let second = Arc::new(AtomicUsize::new(usize::MAX));
    let count = second.clone();
    fleet.handle(1).run(move |_| count.store(fill(), Ordering::Relaxed)).unwrap();
    fleet.run_for(Duration::from_secs(1));
    assert_eq!((first, second.load(Ordering::Relaxed)), (100, 0));
    // Nothing of it is left when all was written.
    assert_eq!(fleet.nodes[1].engine.shared.board.used(conn.slot()), 0);
}

#[test]
fn what_ends_something_is_posted_a_few_times_at_most() {
    let (mut fleet, conn) = pair(Echo, Echo, || builder().mailbox(10, 1000));
    let handle = fleet.handle(1);
    let waiting = |fleet: &Fleet<Echo>| fleet.nodes[1].engine.shared.mailbox.waiting();
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

/// Keeps every request for an answer later.
#[derive(Clone, Default)]
struct Keeping(Rc<RefCell<Vec<Responder<Native>>>>, Rc<RefCell<Vec<CloseReason>>>);

impl Handler for Keeping {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        self.0.borrow_mut().push(conn.defer(&msg).unwrap());
    }

    fn on_disconnect(&mut self, _: &mut Conn<'_, Native>, report: &CloseReport) {
        self.1.borrow_mut().push(report.reason.clone());
    }
}

/// So many requests, each deferred by the server; and the calls.
fn deferred(count: usize, config: &Config) -> (Fleet<Keeping>, Keeping, Vec<PendingCall<Native>>) {
    let server = Keeping::default();
    let (mut fleet, conn) =
        pair(server.clone(), Keeping::default(), || builder().config(config.clone()));
    let (handle, minute) = (fleet.handle(1), Duration::from_mins(1));
    let calls = (0..count).map(|_| handle.call_async(conn, "", minute)).collect();
    fleet.run_for(Duration::from_secs(1));
    assert_eq!(server.0.borrow().len(), count);
    (fleet, server, calls)
}

fn reply_lens(calls: Vec<PendingCall<Native>>) -> Vec<Result<usize, CallError>> {
    let len = |mut call: PendingCall<Native>| {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(&mut call).poll(&mut context) {
            Poll::Ready(outcome) => outcome.map(|body| body.len()),
            Poll::Pending => panic!("a call is still in flight"),
        }
    };
    calls.into_iter().map(len).collect()
}

#[test]
fn pool_that_answers_all_at_once_makes_no_slow_consumer() {
    let (mut fleet, server, calls) = deferred(4096, &Config::new());
    let mut waiting: Vec<_> = server.0.take().into_iter().map(|r| (r, vec![0; 8000])).collect();
    let mut refusals = 0;
    while !waiting.is_empty() {
        for (responder, body) in std::mem::take(&mut waiting) {
            if let Err(refused) = responder.reply(&body) {
                assert_eq!(refused.error(), &SendError::Full);
                refusals += 1;
                waiting.push((refused.take_back().unwrap().0, body));
            }
        }
        fleet.run_for(Duration::from_millis(1));
    }
    fleet.run_for(Duration::from_secs(1));
    assert!(refusals > 0);
    assert_eq!(reply_lens(calls), vec![Ok(8000); 4096]);
    assert_eq!(server.1.take(), []);
}

#[test]
fn failures_with_long_texts_make_no_slow_consumer() {
    let (mut fleet, server, calls) = deferred(4096, &Config::new());
    let text = "x".repeat(5000);
    for responder in server.0.take() {
        responder.fail(700, &text).unwrap();
    }
    fleet.run_for(Duration::from_secs(1));
    let outcomes = reply_lens(calls);
    let with_text = |outcome: &Result<usize, CallError>| match outcome {
        Err(CallError::Remote { code: 700, text }) => {
            [0, 4096].contains(&text.len()).then_some(!text.is_empty())
        }
        _ => None,
    };
    let told: Vec<_> = outcomes.iter().filter_map(with_text).collect();
    assert_eq!(told.len(), 4096);
    // The code of those for whose text there was no room.
    assert!(told[0] && !told[4095]);
    assert_eq!(server.1.take(), []);
}

#[test]
fn one_answer_is_taken_however_long_it_is() {
    let config = Config::new().watermarks(1000, 2000).hard_limit(3000);
    let (mut fleet, server, calls) = deferred(50, &config);
    let mut responders = server.0.take();
    let (next, long) = (responders.pop().unwrap(), responders.pop().unwrap());
    long.reply(vec![0; 100_000]).unwrap();
    let refused = next.reply("short").unwrap_err();
    assert_eq!(refused.error(), &SendError::Full);
    // Given up, it is told as unanswered.
    drop(refused);
    drop(responders);
    fleet.run_for(Duration::from_secs(1));
    let outcomes = reply_lens(calls);
    assert_eq!(outcomes[48], Ok(100_000));
    assert!(matches!(outcomes[49], Err(CallError::Remote { code: error_code::UNANSWERED, .. })));
    assert_eq!(server.1.take(), []);
}

#[test]
fn client_without_a_handler_remembers_what_was_not_delivered() {
    let config = Config::new()
        .offline_queue(300_000, Duration::from_secs(5))
        .reconnect(Reconnect::fixed(Duration::from_mins(10)));
    let deaf = |record: &Record| Deaf::<Native>::new(record.clone(), &config);
    let record = Record::default();
    let (mut fleet, conn) =
        pair(deaf(&Record::default()), deaf(&record), || builder().config(config.clone()));
    let (world, hosts) = (fleet.world.clone(), [0, 1].map(|node| fleet.nodes[node].host));
    let handle = fleet.handle(1);
    world.cut(hosts[0], hosts[1]);
    let accepted = (0..100_u8).take_while(|n| handle.send(conn, vec![*n; 100_000]).is_ok()).count();
    fleet.run_for(Duration::from_secs(1));
    world.reset(world.connections()[0]);
    fleet.run_for(Duration::from_secs(1));
    assert!(matches!(record.lock().last_close, Some(CloseReason::Network(_))));
    let unsent = record.lock().undelivered;
    assert!((3..=accepted as u64).contains(&unsent), "{unsent} of {accepted}");
    // The oldest two, in order, are what fits.
    let bodies = record.lock().take();
    let first = accepted - usize::try_from(unsent).unwrap();
    let numbers: Vec<_> = bodies.iter().map(|body| usize::from(body.1[0])).collect();
    assert_eq!(numbers, [first, first + 1]);
    // What is kept while the connection is down, for so long that it is too old.
    handle.send(conn, "kept").unwrap();
    fleet.run_for(Duration::from_mins(20));
    assert_eq!(record.lock().undelivered, unsent + 1);
    assert_eq!(record.lock().take(), [Tagged(0, "kept".into())]);
    assert_eq!(record.lock().take(), []);
    assert!(matches!(record.lock().last_close, Some(CloseReason::DialFailed(_))));
}
