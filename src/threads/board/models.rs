//! The board under loom: threads reserve and ask for ends while the loop publishes, closes a connection
//! and opens the next one in its slot. Each model has a twin with a planted bug, which must fail.

use std::sync::Arc;

use loom::thread;

use super::*;

const UP: Published = Published { link: LinkState::Up, queued: 0 };
const COST: usize = 60;

fn open(board: &Board) -> ConnId {
    let id = board.open(0);
    board.set_max_body(0, (1000, LimitBy::Us));
    board.publish(id, Published::default(), UP, 100, 0);
    id
}

fn entry(board: &Board) -> &Entry {
    board.entry(0).unwrap()
}

/// A post for a connection that is replaced by the next one of its slot meanwhile.
fn replaced(close: fn(&Board, ConnId)) {
    loom::model(move || {
        let board = Arc::new(Board::new(ReactorNumber::fixed(3)));
        let old = open(&board);
        let poster = {
            let board = board.clone();
            thread::spawn(move || board.reserve(old, 0, COST).is_ok())
        };
        close(&board, old);
        assert!(board.reserve(old, 0, COST).is_err(), "accepted after the close");
        let new = open(&board);
        if poster.join().unwrap() {
            // The loop takes it and finds no connection.
            board.release(old.slot(), COST);
        }
        assert_eq!(board.used(0), 0, "the room drifts");
        assert!(board.reserve(old, 0, COST).is_err(), "accepted after the close");
        assert!(board.reserve(new, 0, COST).is_ok());
    });
}

#[test]
fn old_id_keeps_nothing_of_the_next_connections_room() {
    replaced(|board, old| board.close(old, UP));
}

#[test]
#[should_panic(expected = "the room drifts")]
fn close_that_sets_the_room_back_is_caught() {
    replaced(|board, old| {
        board.close(old, UP);
        entry(board).used.store(0, Ordering::Relaxed);
    });
}

#[test]
#[should_panic(expected = "accepted after the close")]
fn close_that_is_not_told_is_caught() {
    replaced(|board, old| board.publish(old, UP, UP, 100, 0));
}

/// Of three threads that reserve at the same time two pass: the second goes over the mark.
fn three_posters(reserve: fn(&Board, ConnId) -> bool) {
    loom::model(move || {
        let board = Arc::new(Board::new(ReactorNumber::fixed(3)));
        let id = open(&board);
        let posters = [0; 2].map(|_| {
            let board = board.clone();
            thread::spawn(move || reserve(&board, id))
        });
        let mut accepted = usize::from(reserve(&board, id));
        for poster in posters {
            accepted += usize::from(poster.join().unwrap());
        }
        assert_eq!(accepted, 2, "posts were accepted");
        assert_eq!(board.used(0), 2 * COST as i64);
    });
}

#[test]
fn one_post_goes_over_the_mark_and_no_other() {
    three_posters(|board, id| board.reserve(id, 0, COST).is_ok());
}

#[test]
#[should_panic(expected = "posts were accepted")]
fn reservation_that_looks_before_it_takes_is_caught() {
    three_posters(|board, _| {
        let used = &entry(board).used;
        let has_room = used.load(Ordering::Relaxed) < 100;
        if has_room {
            used.fetch_add(COST as i64, Ordering::Relaxed);
        }
        has_room
    });
}

/// The loop takes one of two posts, and queues it, while another thread wants to post.
fn taken(settle: fn(&Board, ConnId, Published)) {
    loom::model(move || {
        let board = Arc::new(Board::new(ReactorNumber::fixed(3)));
        let id = open(&board);
        assert!(board.reserve(id, 0, COST).is_ok() && board.reserve(id, 0, COST).is_ok());
        let poster = {
            let board = board.clone();
            thread::spawn(move || board.reserve(id, 0, COST))
        };
        let queued = Published { link: LinkState::Up, queued: COST as i64 };
        settle(&board, id, queued);
        assert_eq!(poster.join().unwrap(), Err(SendError::Full), "a third post");
        assert_eq!(board.used(0), 2 * COST as i64);
    });
}

#[test]
fn post_is_never_counted_as_nothing() {
    taken(|board, id, queued| board.publish(id, UP, queued, 100, COST));
}

#[test]
#[should_panic(expected = "a third post")]
fn release_before_the_growth_is_told_is_caught() {
    taken(|board, id, queued| {
        board.release(id.slot(), COST);
        board.publish(id, UP, queued, 100, 0);
    });
}

/// An end is asked for while the connection is replaced.
fn asked_of_an_old_one(ask: fn(&Board, ConnId) -> bool) {
    loom::model(move || {
        let board = Arc::new(Board::new(ReactorNumber::fixed(3)));
        let old = open(&board);
        let asker = {
            let board = board.clone();
            thread::spawn(move || ask(&board, old))
        };
        board.close(old, UP);
        let new = open(&board);
        asker.join().unwrap();
        assert!(board.ask_end(new, CloseMode::Drain), "the end of the next one is lost");
    });
}

#[test]
fn end_of_an_old_connection_is_not_asked_of_the_next() {
    asked_of_an_old_one(|board, id| board.ask_end(id, CloseMode::Abort));
}

#[test]
#[should_panic(expected = "the end of the next one is lost")]
fn ask_that_does_not_compare_is_caught() {
    asked_of_an_old_one(|board, id| {
        let state = &entry(board).state;
        let is_its = state.load(Ordering::Acquire) & !FLAGS == stamp(id);
        is_its && state.fetch_or(ENDS, Ordering::Relaxed) & ENDS == 0
    });
}

/// An end is asked for by two threads while the loop says that the queue is full.
fn asked_while_published(publish: fn(&Board, ConnId, Published)) {
    loom::model(move || {
        let board = Arc::new(Board::new(ReactorNumber::fixed(3)));
        let id = open(&board);
        let asker = {
            let board = board.clone();
            thread::spawn(move || board.ask_end(id, CloseMode::Close))
        };
        publish(&board, id, Published { link: LinkState::Full, queued: 0 });
        let asked = [board.ask_end(id, CloseMode::Close), asker.join().unwrap()];
        assert_eq!(asked.iter().filter(|is_news| **is_news).count(), 1, "times news");
        assert_eq!(board.reserve(id, 0, COST), Err(SendError::Full));
    });
}

#[test]
fn end_is_news_once_while_the_loop_publishes() {
    asked_while_published(|board, id, full| board.publish(id, UP, full, 100, 0));
}

#[test]
#[should_panic(expected = "times news")]
fn publishing_over_what_was_asked_is_caught() {
    asked_while_published(|board, id, full| {
        let held = stamp(id) | HELD | full.link.flags();
        entry(board).state.swap(held, Ordering::Release);
    });
}
