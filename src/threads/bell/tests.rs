use std::{sync::Arc, thread};

use bytes::Bytes;

use super::*;
use crate::threads::call_cell::{CallCell, Outcome};

const REPLY: Outcome = Ok((1, Bytes::from_static(b"reply")));

/// So many threads wait, each for its own call; returns when all of them do.
fn wait_all(bell: &Arc<Bell>, cells: &[Arc<CallCell>]) -> Vec<thread::JoinHandle<Option<Outcome>>> {
    let spawn = |cell: &Arc<CallCell>| {
        let (bell, cell) = (bell.clone(), cell.clone());
        thread::spawn(move || bell.wait(|| cell.listen(&bell)))
    };
    let threads = cells.iter().map(spawn).collect();
    while !cells.iter().all(|cell| cell.is_listened_for()) {
        thread::yield_now();
    }
    // The listener holds the lock until it waits.
    drop(lock(&bell.door));
    threads
}

fn cells(count: usize) -> Vec<Arc<CallCell>> {
    (0..count).map(|_| Arc::new(CallCell::new())).collect()
}

#[test]
fn one_ring_wakes_all_whose_calls_have_ended() {
    let (bell, cells) = (Arc::new(Bell::new()), cells(8));
    let threads = wait_all(&bell, &cells);
    for cell in &cells {
        cell.end(REPLY);
    }
    bell.ring();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Some(REPLY));
    }
    assert_eq!(bell.luck.load(Ordering::Relaxed), MOST_LUCK);
}

#[test]
fn threads_wait_alone_where_most_are_woken_in_vain() {
    let (bell, cells) = (Arc::new(Bell::new()), cells(MOST_LUCK + 2));
    let threads = wait_all(&bell, &cells);
    cells[0].end(REPLY);
    bell.ring();
    let outcomes = threads.into_iter().map(|thread| {
        // Those that have luck left wait on until it is used up.
        while !thread.is_finished() {
            bell.mark();
            bell.ring();
        }
        thread.join().unwrap()
    });
    assert_eq!(outcomes.flatten().count(), 1);
    let tries = (0..2 * TRIES).filter(|_| bell.is_worth_it()).count();
    assert_eq!(tries, 2);
}

#[test]
fn nobody_is_woken_without_an_end() {
    let (bell, cells) = (Arc::new(Bell::new()), cells(1));
    let threads = wait_all(&bell, &cells);
    bell.ring();
    assert!(!threads[0].is_finished());
    cells[0].end(REPLY);
    bell.ring();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Some(REPLY));
    }
}
