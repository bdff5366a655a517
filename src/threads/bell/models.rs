//! The bell under loom: no thread that waits at it is forgotten, however it meets the end of its call.

use std::sync::Arc;

use bytes::Bytes;
use loom::thread;

use super::*;
use crate::threads::call_cell::{CallCell, Outcome};

/// The loop ends two calls, of which one has a thread that waits at the bell.
fn two_calls(of_loop: fn(&Bell, [&CallCell; 2])) {
    loom::model(move || {
        let bell = Arc::new(Bell::new());
        let cells = [Arc::new(CallCell::new()), Arc::new(CallCell::new())];
        let ends = {
            let (bell, cells) = (bell.clone(), cells.clone());
            thread::spawn(move || of_loop(&bell, [&cells[0], &cells[1]]))
        };
        let outcome = bell.wait(|| cells[0].listen(&bell)).unwrap_or_else(|| cells[0].wait());
        assert_eq!(outcome, reply());
        ends.join().unwrap();
    });
}

fn reply() -> Outcome {
    Ok((1, Bytes::from_static(b"reply")))
}

#[test]
fn thread_hears_of_its_call_from_one_ring_for_both() {
    two_calls(|bell, [ours, other]| {
        ours.end(reply());
        other.end(reply());
        bell.ring();
    });
}

/// The other call's end rings while ours goes on.
#[test]
fn thread_that_was_woken_in_vain_hears_of_its_call() {
    two_calls(|bell, [ours, other]| {
        other.end(reply());
        bell.mark();
        bell.ring();
        ours.end(reply());
        bell.ring();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn ring_before_the_end_is_caught() {
    two_calls(|bell, [ours, _]| {
        bell.mark();
        bell.ring();
        ours.end(reply());
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn ring_without_the_door_is_caught() {
    two_calls(|bell, [ours, _]| {
        ours.end(reply());
        if bell.is_due.load(Ordering::Relaxed) {
            bell.rung.notify_all();
        }
    });
}
