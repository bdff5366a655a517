//! Calls as futures, under tokio.
#![allow(
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    reason = "a test says so by panicking"
)]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::{
    PATIENCE, Script,
    pair::{NEVER, Pair, keeping},
};
use longhaul::protocol::Native;

#[tokio::test]
async fn futures_complete_under_tokio_on_one_thread() {
    let pair = Pair::new(Native, Script::echo(), Script::echo());
    for (caller, _) in pair.both_ways() {
        let (first, second) =
            tokio::join!(caller.call_async("1", NEVER), caller.call_async("2", NEVER));
        assert_eq!((first.unwrap(), second.unwrap()), ("1".into(), "2".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn futures_complete_under_tokio_on_many_threads() {
    let pair = Pair::new(Native, Script::echo(), Script::new());
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let side = pair.dialling_side();
            tokio::spawn(async move {
                for call in 0..50 {
                    let body = format!("{task} {call}");
                    assert_eq!(side.call_async(&body, NEVER).await.unwrap(), body);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(pair.client.ask(|cx| cx.stats().calls_in_flight), 0);
}

#[tokio::test]
async fn future_dropped_by_a_timeout_of_tokio_cancels_the_request() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let call = pair.dialling_side().call_async("request", NEVER);
    tokio::time::timeout(Duration::from_millis(20), call).await.unwrap_err();
    let responder = kept.recv_timeout(PATIENCE).unwrap();
    assert_eq!(pair.server.events.cancelled(), responder.id());
}

#[tokio::test]
async fn future_aborted_with_its_task_cancels_the_request() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let side = pair.dialling_side();
    let task = tokio::spawn(async move { side.call_async("request", NEVER).await });
    while kept.try_recv().map(std::mem::forget).is_err() {
        tokio::task::yield_now().await;
    }
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    pair.server.events.cancelled();
}

#[tokio::test]
async fn the_first_of_two_replies_wins_and_the_other_call_is_cancelled() {
    let (server, kept) = keeping();
    let pair = Pair::new(Native, server, Script::new());
    let side = pair.dialling_side();
    let (slow, fast) = (side.call_async("slow", NEVER), side.call_async("fast", NEVER));
    let slow_responder = kept.recv_timeout(PATIENCE).unwrap();
    kept.recv_timeout(PATIENCE).unwrap().reply("won").unwrap();
    let won = tokio::select! {
        reply = slow => reply,
        reply = fast => reply,
    };
    assert_eq!(won.unwrap(), "won");
    assert_eq!(pair.server.events.cancelled(), slow_responder.id());
}
