//! Single rules by example, then all of them at once against a plain list.

use proptest::prelude::*;

use super::*;

const PUSH: What = What::Push { is_caused: true };

fn push(queue: &mut WriteQueue, bytes: &[u8]) {
    queue.push(PUSH, |out| out.extend_from_slice(bytes));
}

fn push_shared(queue: &mut WriteQueue, head: &[u8], body: &'static [u8]) {
    queue.push_shared(PUSH, |out| out.extend_from_slice(head), Bytes::from_static(body));
}

/// Writes up to `count` bytes, and returns what was written.
fn write(queue: &mut WriteQueue, count: usize) -> (Vec<u8>, Written) {
    let mut slices = [IoSlice::new(&[]); 8];
    let used = queue.slices(&mut slices);
    let mut bytes: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
    bytes.truncate(count);
    let written = queue.advance(bytes.len(), &mut Spares::default());
    queue.check();
    (bytes, written)
}

#[test]
fn many_small_frames_are_one_slice() {
    let mut queue = WriteQueue::default();
    push(&mut queue, b"ab");
    push(&mut queue, b"cd");
    let mut slices = [IoSlice::new(&[]); 8];
    assert_eq!(queue.slices(&mut slices), 1);
    assert_eq!(&*slices[0], b"abcd");
}

#[test]
fn shared_body_is_not_copied() {
    static BODY: [u8; 100] = [7; 100];
    let mut queue = WriteQueue::default();
    push_shared(&mut queue, b"h", &BODY);
    push(&mut queue, b"tail");
    let mut slices = [IoSlice::new(&[]); 8];
    assert_eq!(queue.slices(&mut slices), 3);
    assert_eq!(slices[1].as_ptr(), BODY.as_ptr());
    assert_eq!(write(&mut queue, 1000).0.len(), 105);
    assert!(queue.is_empty());
}

#[test]
fn urgent_goes_first_at_a_border() {
    let mut queue = WriteQueue::default();
    push(&mut queue, b"frame");
    queue.push_urgent(|out| out.extend_from_slice(b"!"));
    assert_eq!(write(&mut queue, 100).0, b"!frame");
}

#[test]
fn urgent_never_goes_inside_a_frame() {
    let mut queue = WriteQueue::default();
    push_shared(&mut queue, b"fr", b"ame");
    push(&mut queue, b"next");
    assert_eq!(write(&mut queue, 1).0, b"f");
    queue.push_urgent(|out| out.extend_from_slice(b"!"));
    assert_eq!(write(&mut queue, 100).0, b"rame!next");
}

#[test]
fn half_written_urgent_is_finished_before_the_next_frame() {
    let mut queue = WriteQueue::default();
    push(&mut queue, b"frame");
    queue.push_urgent(|out| out.extend_from_slice(b"!!"));
    assert_eq!(write(&mut queue, 1).0, b"!");
    queue.push_urgent(|out| out.extend_from_slice(b"?"));
    assert_eq!(write(&mut queue, 100).0, b"!?frame");
}

#[test]
fn messages_count_when_their_last_byte_is_written() {
    let mut queue = WriteQueue::default();
    push(&mut queue, b"one");
    push(&mut queue, b"two");
    assert_eq!(write(&mut queue, 5).1, Written { messages: 1, bytes: 5 });
    assert_eq!(queue.messages(), 1);
    assert_eq!(write(&mut queue, 5).1, Written { messages: 1, bytes: 1 });
}

#[test]
fn empty_frames_are_charged() {
    let mut queue = WriteQueue::default();
    for _ in 0..1000 {
        queue.push(PUSH, |_| {});
    }
    assert_eq!(queue.cost(), 1000 * FRAME_OVERHEAD);
}

#[test]
fn pooled_queue_comes_back_empty() {
    let mut pool = QueuePool::default();
    let mut queue = pool.take();
    push(&mut queue, b"left");
    queue.push_urgent(|out| out.extend_from_slice(b"!"));
    write(&mut queue, 2);
    pool.give(queue);
    let queue = pool.take();
    queue.check();
    assert_eq!((queue.is_empty(), queue.cost(), queue.messages()), (true, 0, 0));
}

#[derive(Clone, Debug)]
enum Op {
    /// The frame lies in one piece, as one that was encoded for many.
    Whole(u8, usize),
    Push(u8, usize),
    Shared(u8, usize),
    Urgent(usize),
    Write(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        (any::<u8>(), 0..40_usize).prop_map(|(byte, len)| Op::Push(byte, len)),
        (any::<u8>(), 0..40_usize).prop_map(|(byte, len)| Op::Shared(byte, len)),
        (any::<u8>(), 0..40_usize).prop_map(|(byte, len)| Op::Whole(byte, len)),
        (1..5_usize).prop_map(Op::Urgent),
        (0..90_usize).prop_map(Op::Write),
    ];
    prop::collection::vec(op, 1..80)
}

proptest! {
    /// Every frame leaves whole and in order, with control frames only at borders; and what has
    /// not left whole can be had back whole at any time.
    #[test]
    fn frames_leave_whole_and_in_order(ops in ops()) {
        let mut queue = WriteQueue::default();
        let mut wire = Vec::new();
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut left = 0;
        let mut urgent = 0;
        for op in ops {
            match op {
                Op::Push(byte, len) => {
                    push(&mut queue, &frame(byte, len));
                    frames.push(frame(byte, len));
                }
                Op::Shared(byte, len) => {
                    let frame_of = frame(byte, len);
                    let body = Bytes::copy_from_slice(&frame_of[2..]);
                    queue.push_shared(PUSH, |out| out.extend_from_slice(&frame_of[..2]), body);
                    frames.push(frame(byte, len));
                }
                Op::Whole(byte, len) => {
                    queue.push_shared(PUSH, |_| {}, frame(byte, len).into());
                    frames.push(frame(byte, len));
                }
                Op::Urgent(count) => {
                    for _ in 0..count {
                        queue.push_urgent(|out| out.extend_from_slice(&URGENT));
                    }
                    urgent += count;
                }
                Op::Write(count) => {
                    let (bytes, written) = write(&mut queue, count);
                    wire.extend(bytes);
                    left += usize::try_from(written.messages).unwrap();
                }
            }
            queue.check();
            prop_assert_eq!(&unsent(&queue)[..], &frames[left..]);
        }
        while !queue.is_empty() {
            wire.extend(write(&mut queue, 64).0);
        }
        let mut rest = &wire[..];
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let (frame, behind) = rest.split_at(2 + usize::from(rest[1]));
            if frame == URGENT {
                urgent -= 1;
            } else {
                seen.push(frame.to_vec());
            }
            rest = behind;
        }
        prop_assert_eq!(urgent, 0);
        prop_assert_eq!(seen, frames);
    }
}

/// What is unsent, each frame in one piece.
fn unsent(queue: &WriteQueue) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    queue.for_each_unsent(|Unsent { head, shared }| {
        frames.push([&*head, shared.map_or(&[][..], |body| &body[..])].concat());
    });
    frames
}

#[test]
fn only_messages_that_nobody_answers_are_handed_back() {
    let mut queue = WriteQueue::default();
    for what in [What::Control, What::Push { is_caused: false }, What::Request, What::Answer] {
        queue.push(what, |out| out.extend_from_slice(format!("{what:?}").as_bytes()));
    }
    queue.push_shared(PUSH, |_| {}, Bytes::from_static(b"whole"));
    assert_eq!(unsent(&queue), [&b"Push { is_caused: false }"[..], b"whole"]);
}

const URGENT: [u8; 5] = [0xFF, 3, 0xFF, 0xFF, 0xFF];

/// A frame that is not the urgent one.
fn frame(byte: u8, len: usize) -> Vec<u8> {
    let byte = byte.min(0xFE);
    let mut frame = vec![byte, u8::try_from(len).unwrap()];
    frame.resize(2 + len, byte);
    frame
}
