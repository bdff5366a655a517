//! The gate under loom: whoever waits hears of every change. One that is missed leaves the thread asleep
//! for ever, which loom reports as a deadlock.

use std::sync::Arc;

use loom::thread;

use super::*;

/// What a turn brings: set by the loop, and looked for by two threads.
fn change(of_loop: fn(&Gate, &AtomicUsize), wait: fn(&Gate, &AtomicUsize) -> usize) {
    loom::model(move || {
        let (gate, room) = (Arc::new(Gate::new()), Arc::new(AtomicUsize::new(0)));
        let waiter = {
            let (gate, room) = (gate.clone(), room.clone());
            thread::spawn(move || wait(&gate, &room))
        };
        of_loop(&gate, &room);
        assert_eq!(waiter.join().unwrap(), 7);
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    });
}

fn change_then_open(gate: &Gate, room: &AtomicUsize) {
    // A turn that brings nothing comes first.
    gate.open();
    room.store(7, Ordering::Relaxed);
    gate.open();
}

fn look(room: &AtomicUsize) -> Option<usize> {
    Some(room.load(Ordering::Relaxed)).filter(|room| *room > 0)
}

fn wait(gate: &Gate, room: &AtomicUsize) -> usize {
    gate.wait(Duration::MAX, || look(room)).unwrap()
}

#[test]
fn no_change_is_missed() {
    change(change_then_open, wait);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loop_that_asks_before_it_changes_is_caught() {
    change(
        |gate, room| {
            gate.open();
            room.store(7, Ordering::Relaxed);
        },
        wait,
    );
}

#[test]
#[should_panic(expected = "deadlock")]
fn waiter_that_looks_before_it_says_so_is_caught() {
    change(change_then_open, |gate, room| {
        if let Some(found) = look(room) {
            return found;
        }
        let mut is_first = true;
        // The look in the gate finds nothing the first time: it was done before.
        gate.wait(Duration::MAX, || if std::mem::take(&mut is_first) { None } else { look(room) })
            .unwrap()
    });
}
