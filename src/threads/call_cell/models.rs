//! The cell of a call under loom: every order in which the ends of a call and its waiter can meet.
//!
//! On the loop the ends of a call come one after the other; here each is a thread of its own, which
//! allows more orders and not fewer. A waiter that is forgotten is reported by loom as a deadlock.
//! Each model has a twin with a planted bug, which must fail: so the model would notice.

use std::{sync::Arc, task::Wake};

use loom::{
    sync::{Condvar, atomic::AtomicUsize},
    thread,
};

use super::*;
use crate::{
    error::{CloseReason, Fate},
    threads::sync::Ordering,
};

const CALL: CallId = CallId::new(1, 7);

/// The reply, the timeout and the close of the connection.
fn ends() -> [Outcome; 3] {
    [
        Ok((1, Bytes::from_static(b"reply"))),
        Err(CallError::Timeout { fate: Fate::MaybeSent }),
        Err(CallError::Disconnected { reason: CloseReason::PeerClosed, fate: Fate::MaybeSent }),
    ]
}

fn spawn_ends(
    cell: &Arc<CallCell>,
    ends: Vec<Outcome>,
    end: fn(&CallCell, Outcome),
) -> Vec<thread::JoinHandle<()>> {
    let spawn = |outcome| {
        let cell = cell.clone();
        thread::spawn(move || end(&cell, outcome))
    };
    ends.into_iter().map(spawn).collect()
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Blocks a thread on a call that ends in several ways at once.
fn blocked_thread(ends: Vec<Outcome>, end: fn(&CallCell, Outcome)) {
    loom::model(move || {
        let cell = Arc::new(CallCell::new());
        let threads = spawn_ends(&cell, ends.clone(), end);
        let outcome = cell.wait();
        assert!(ends.contains(&outcome));
        join(threads);
        // What came after the first end left nothing behind.
        assert!(matches!(*lock(&cell.state), State::Over));
    });
}

#[test]
fn blocked_thread_sees_one_end_of_three() {
    blocked_thread(ends().into(), CallCell::end);
}

#[test]
#[should_panic(expected = "deadlock")]
fn end_that_rouses_before_it_tells_is_caught() {
    let rouse_then_tell = |cell: &CallCell, outcome| {
        let sleeper = match &mut *lock(&cell.state) {
            State::Waiting { sleeper, .. } => std::mem::replace(sleeper, Sleeper::Nobody),
            _ => return,
        };
        if let Sleeper::Thread(thread) = sleeper {
            thread.unpark();
        }
        *lock(&cell.state) = State::Done(outcome);
    };
    blocked_thread(ends()[..1].into(), rouse_then_tell);
}

#[test]
#[should_panic(expected = "State::Over")]
fn end_that_overwrites_another_is_caught() {
    let overwrite = |cell: &CallCell, outcome| {
        let before = std::mem::replace(&mut *lock(&cell.state), State::Done(outcome));
        if let State::Waiting { sleeper: Sleeper::Thread(thread), .. } = before {
            thread.unpark();
        }
    };
    blocked_thread(ends()[..2].into(), overwrite);
}

/// A task's waker, and the executor that waits for it.
#[derive(Default)]
struct Task {
    is_woken: Mutex<bool>,
    told: Condvar,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        *lock(&self.is_woken) = true;
        self.told.notify_one();
    }
}

fn block_on(cell: &CallCell, poll: fn(&CallCell, &Context<'_>) -> Poll<Outcome>) -> Outcome {
    let task = Arc::new(Task::default());
    let waker = Waker::from(task.clone());
    loop {
        if let Poll::Ready(outcome) = poll(cell, &Context::from_waker(&waker)) {
            return outcome;
        }
        let mut is_woken = lock(&task.is_woken);
        while !*is_woken {
            is_woken = task.told.wait(is_woken).unwrap();
        }
        *is_woken = false;
    }
}

fn awaiting_task(poll: fn(&CallCell, &Context<'_>) -> Poll<Outcome>) {
    loom::model(move || {
        let cell = Arc::new(CallCell::new());
        let threads = spawn_ends(&cell, ends()[..2].into(), CallCell::end);
        let outcome = block_on(&cell, poll);
        assert!(ends()[..2].contains(&outcome));
        join(threads);
    });
}

#[test]
fn awaiting_task_sees_one_end_of_two() {
    awaiting_task(CallCell::poll);
}

#[test]
#[should_panic(expected = "deadlock")]
fn poll_that_looks_before_it_leaves_its_waker_is_caught() {
    awaiting_task(|cell, context| {
        if let state @ State::Done(_) = &mut *lock(&cell.state) {
            return Poll::Ready(take(state));
        }
        if let State::Waiting { sleeper, .. } = &mut *lock(&cell.state) {
            *sleeper = Sleeper::Task(context.waker().clone());
        }
        Poll::Pending
    });
}

/// The loop's pending table, for one call: counts how often it was entered and taken out.
#[derive(Default)]
struct Table {
    entered: AtomicUsize,
    is_in_flight: Mutex<bool>,
    taken: AtomicUsize,
}

impl Table {
    fn enter(&self) {
        *lock(&self.is_in_flight) = true;
        self.entered.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes the call out, if nobody has.
    fn take(&self) -> bool {
        let was_in_flight = std::mem::take(&mut *lock(&self.is_in_flight));
        self.taken.fetch_add(usize::from(was_in_flight), Ordering::SeqCst);
        was_in_flight
    }
}

/// The loop takes the command that starts a call, whose waiter gives it up meanwhile. With `reply`,
/// the peer answers, too.
fn given_up(started: fn(&CallCell) -> bool, reply: bool) {
    loom::model(move || {
        let cell = Arc::new(CallCell::new());
        let table = Arc::new(Table::default());
        let of_loop = {
            let (cell, table) = (cell.clone(), table.clone());
            thread::spawn(move || {
                if !cell.take_up() {
                    return;
                }
                table.enter();
                if !started(&cell) {
                    table.take();
                }
                if reply && table.take() {
                    cell.end(ends()[0].clone());
                }
            })
        };
        if let Some(call) = cell.abandon() {
            assert_eq!(call, CALL);
            table.take();
        }
        of_loop.join().unwrap();
        let entered = table.entered.load(Ordering::SeqCst);
        assert_eq!(table.taken.load(Ordering::SeqCst), entered, "left in the table");
        assert_eq!(cell.call(), None);
        assert!(matches!(*lock(&cell.state), State::Over));
    });
}

#[test]
fn call_that_is_given_up_leaves_the_table_once() {
    given_up(|cell| cell.started(CALL), false);
}

#[test]
fn call_that_is_given_up_against_its_reply_leaves_the_table_once() {
    given_up(|cell| cell.started(CALL), true);
}

#[test]
#[should_panic(expected = "left in the table")]
fn start_that_does_not_see_the_waiter_gone_is_caught() {
    given_up(
        |cell| {
            cell.started(CALL);
            true
        },
        false,
    );
}

/// The waiter withdraws the call while the loop takes it up.
fn withdrawn(withdraw: fn(&CallCell) -> bool) {
    loom::model(move || {
        let cell = Arc::new(CallCell::new());
        let of_loop = {
            let cell = cell.clone();
            thread::spawn(move || {
                // What is entered is sent.
                let is_entered = cell.take_up();
                if is_entered {
                    cell.started(CALL);
                }
                is_entered
            })
        };
        let is_withdrawn = withdraw(&cell);
        assert_ne!(is_withdrawn, of_loop.join().unwrap(), "sent and withdrawn, or neither");
    });
}

#[test]
fn call_is_withdrawn_or_sent() {
    withdrawn(CallCell::withdraw);
}

#[test]
#[should_panic(expected = "sent and withdrawn")]
fn withdrawal_that_looks_for_an_id_is_caught() {
    withdrawn(|cell| {
        if cell.call().is_some() {
            return false;
        }
        cell.abandon();
        true
    });
}

/// A task that polled once is dropped, against a reply and a timeout.
#[test]
fn dropped_task_is_roused_once_at_most() {
    loom::model(|| {
        let cell = Arc::new(CallCell::new());
        cell.started(CALL);
        let threads = spawn_ends(&cell, ends()[..2].into(), CallCell::end);
        let task = Arc::new(Task::default());
        let waker = Waker::from(task.clone());
        let polled = cell.poll(&Context::from_waker(&waker));
        let call = cell.abandon();
        // Ended before it was polled, or dropped in time to be cancelled, or in between.
        assert!(polled.is_pending() || call.is_none());
        join(threads);
        assert!(matches!(*lock(&cell.state), State::Over));
        drop(waker);
        assert_eq!(Arc::strong_count(&task), 1, "the cell keeps no waker");
    });
}
