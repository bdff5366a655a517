use super::*;
use crate::id::LAST_SLOT;

const UP: Published = Published { link: LinkState::Up, queued: 0 };

fn open(slot: u32, board: &Board) -> ConnId {
    let id = board.open(slot);
    board.set_max_body(slot, (1000, LimitBy::Us));
    board.publish(id, Published::default(), UP, 100, 0);
    id
}

#[test]
fn every_slot_has_a_place_of_its_own() {
    let mut expected = (0, 0);
    for slot in 0..100_000 {
        assert_eq!(place(slot), expected);
        expected.1 += 1;
        if expected.1 == FIRST << (expected.0 / ALIKE) {
            expected = (expected.0 + 1, 0);
        }
    }
    assert_eq!(place(LAST_SLOT).0, CHUNKS - 1);
}

#[test]
fn stale_id_is_refused_after_the_slot_was_reused() {
    let board = Board::new(ReactorNumber::fixed(3));
    let old = open(7, &board);
    board.close(old, UP);
    assert_eq!(board.reserve(old, 0, 1), Err(SendError::Closed));
    let new = open(7, &board);
    assert_ne!(old, new);
    assert_eq!(board.reserve(old, 0, 1), Err(SendError::Closed));
    assert_eq!(board.reserve(new, 0, 1), Ok(()));
}

#[test]
fn id_of_another_reactor_is_refused() {
    let (board, other) = (Board::new(ReactorNumber::fixed(3)), Board::new(ReactorNumber::fixed(4)));
    let (own, foreign) = (open(0, &board), open(0, &other));
    assert_eq!((own.slot(), own.generation()), (foreign.slot(), foreign.generation()));
    assert!(board.knows(own) && !board.knows(foreign));
    assert!(!board.is_open(foreign) && !board.is_up(foreign));
    assert_eq!(board.reserve_answer(foreign, 0, 1), Err(SendError::Closed));
    assert_eq!(board.reserve(foreign, 0, 1), Err(SendError::Closed));
    assert_eq!(board.used(0), 0);
    assert_eq!(board.reserve(own, 0, 1), Ok(()));
}

#[test]
fn posts_are_refused_when_the_room_is_used_up() {
    let board = Board::new(ReactorNumber::fixed(3));
    let id = open(0, &board);
    assert_eq!(board.reserve(id, 0, 60), Ok(()));
    assert_eq!(board.reserve(id, 0, 60), Ok(()));
    assert_eq!(board.reserve(id, 0, 60), Err(SendError::Full));
    assert_eq!(board.used(0), 120, "a refusal leaves no trace");
    board.release(0, 60);
    assert_eq!(board.reserve(id, 0, 60), Ok(()));
}

#[test]
fn queue_above_its_watermark_refuses_until_it_is_below_the_low_one() {
    let board = Board::new(ReactorNumber::fixed(3));
    let id = open(0, &board);
    let full = Published { link: LinkState::Full, queued: 50 };
    board.publish(id, UP, full, 100, 0);
    assert_eq!(board.reserve(id, 0, 1), Err(SendError::Full));
    board.publish(id, full, UP, 100, 0);
    assert_eq!(board.reserve(id, 0, 1), Ok(()));
}

#[test]
fn what_is_kept_for_a_connection_that_is_down_has_to_fit() {
    let board = Board::new(ReactorNumber::fixed(3));
    let id = open(0, &board);
    let down = Published { link: LinkState::Down, queued: 0 };
    board.publish(id, UP, down, 50, 0);
    assert!(board.is_open(id) && !board.is_up(id));
    assert_eq!(board.reserve(id, 0, 51), Err(SendError::Offline));
    assert_eq!(board.reserve(id, 0, 50), Ok(()));
    assert_eq!(board.reserve(id, 0, 1), Err(SendError::Offline));
}

#[test]
fn what_a_post_reserved_is_used_until_what_became_of_it_is() {
    let board = Board::new(ReactorNumber::fixed(3));
    let id = open(0, &board);
    board.reserve(id, 0, 60).unwrap();
    board.reserve(id, 0, 60).unwrap();
    // The loop took the first and queued it: one step, in which the use does not change.
    let one = Published { link: LinkState::Up, queued: 60 };
    board.publish(id, UP, one, 100, 60);
    assert_eq!(board.used(0), 120);
    assert_eq!(board.reserve(id, 0, 1), Err(SendError::Full));
    // The second was written at once.
    board.publish(id, one, one, 100, 60);
    assert_eq!(board.used(0), 60);
}

#[test]
fn use_adds_up_over_the_generations_of_a_slot() {
    let board = Board::new(ReactorNumber::fixed(3));
    let old = open(0, &board);
    board.reserve(old, 0, 30).unwrap();
    board.close(old, UP);
    let new = open(0, &board);
    assert_eq!(board.used(0), 30);
    board.release(0, 30);
    assert_eq!(board.used(0), 0);
    board.close(new, UP);
    assert_eq!(board.used(0), 0);
}

#[test]
fn answers_go_over_the_watermark_up_to_a_bound_of_their_own() {
    let board = Board::new(ReactorNumber::fixed(3));
    let id = open(0, &board);
    board.set_answer_room(0, 150);
    assert_eq!(board.reserve_answer(id, 0, 151), Ok(()), "into an empty queue");
    assert_eq!(board.reserve_answer(id, 0, 1), Err(SendError::Full));
    board.release(0, 151);
    let full = Published { link: LinkState::Full, queued: 101 };
    board.publish(id, UP, full, 100, 0);
    assert_eq!(board.reserve(id, 0, 1), Err(SendError::Full));
    assert_eq!(board.reserve_answer(id, 0, 50), Err(SendError::Full));
    assert_eq!(board.reserve_answer(id, 0, 49), Ok(()));
    assert!(matches!(board.reserve_answer(id, 1001, 0), Err(SendError::BodyTooLong { .. })));
    let down = Published { link: LinkState::Down, queued: 0 };
    board.publish(id, full, down, 50, 49);
    assert_eq!(board.reserve_answer(id, 0, 1), Err(SendError::Closed));
}

#[test]
fn end_is_news_once_for_each_stricter_mode_of_a_connection_that_is_there() {
    let board = Board::new(ReactorNumber::fixed(3));
    assert!(!board.ask_end(ConnId::new(3, 0, 1), CloseMode::Close), "there never was one");
    let old = open(0, &board);
    let ask = |id| {
        [CloseMode::Drain, CloseMode::Drain, CloseMode::Close, CloseMode::Drain]
            .map(|mode| board.ask_end(id, mode))
    };
    assert_eq!(ask(old), [true, false, true, false]);
    // It is closing, and may still be dropped.
    let closing = Published { link: LinkState::Closed, queued: 10 };
    board.publish(old, UP, closing, 100, 0);
    assert_eq!(ask(old), [false; 4]);
    assert!(board.ask_end(old, CloseMode::Abort) && !board.ask_end(old, CloseMode::Abort));
    board.close(old, closing);
    let new = open(0, &board);
    assert_eq!(ask(old), [false; 4]);
    assert!(board.ask_end(new, CloseMode::Abort));
    board.close(new, UP);
    assert!(!board.ask_end(new, CloseMode::Abort), "it is gone");
}

#[test]
fn long_body_names_whose_limit_it_is() {
    let board = Board::new(ReactorNumber::fixed(3));
    let id = open(0, &board);
    board.set_max_body(0, (10, LimitBy::Peer));
    let refused = board.reserve(id, 11, 1);
    let expected = SendError::BodyTooLong { len: 11, max: 10, limit: LimitBy::Peer };
    assert_eq!(refused, Err(expected));
    assert_eq!(board.used(0), 0);
}
