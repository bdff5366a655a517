//! Single rules by example, then all of them at once against a plain list.

use std::{
    io::IoSlice,
    panic::{self, AssertUnwindSafe},
};

use proptest::prelude::*;

use super::*;
use crate::Tagged;

const PUSH: What = What::Push { is_caused: true };

fn push(queue: &mut WriteQueue, bytes: &[u8]) {
    queue.push(PUSH, 0, bytes.len(), |out| out.extend_from_slice(bytes));
}

fn push_shared(queue: &mut WriteQueue, head: &[u8], body: &'static [u8]) {
    queue.push_shared(PUSH, 0, |out| out.extend_from_slice(head), Bytes::from_static(body));
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
        queue.push(PUSH, 0, 0, |_| {});
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

/// A header of two bytes and the body.
fn frame(byte: u8, body: &[u8]) -> Vec<u8> {
    [&[byte.min(0xFE), u8::try_from(body.len()).unwrap()], body].concat()
}

/// How a message is queued.
#[derive(Clone, Copy, Debug)]
enum Way {
    Copied,
    Shared,
    /// The frame lies in one piece, as one that was encoded for many.
    Encoded,
    /// The body is reversed on the wire.
    Transformed,
    TransformedForMany,
    /// It is not handed back.
    Request,
}

impl Way {
    const fn is_transformed(self) -> bool {
        matches!(self, Self::Transformed | Self::TransformedForMany)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Push(Way, u8, usize),
    Urgent(usize),
    Write(usize),
    /// The encoder of a frame panics after so many bytes.
    Panic(Way, usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    use Way::{Copied, Encoded, Request, Shared, Transformed, TransformedForMany};
    let way = || {
        prop::sample::select(vec![
            Copied,
            Shared,
            Encoded,
            Transformed,
            TransformedForMany,
            Request,
        ])
    };
    let op = prop_oneof![
        // Few lengths and tags, so that there are runs.
        4 => (way(), 0..3_u8, 0..3_usize).prop_map(|(way, tag, len)| Op::Push(way, tag, 20 * len)),
        2 => (way(), any::<u8>(), 0..40_usize).prop_map(|(way, tag, len)| Op::Push(way, tag, len)),
        1 => (1..5_usize).prop_map(Op::Urgent),
        3 => (0..90_usize).prop_map(Op::Write),
        1 => (way(), 0..10_usize).prop_map(|(way, after)| Op::Panic(way, after)),
    ];
    prop::collection::vec(op, 1..80)
}

/// Queues a message in one of the ways, and returns its frame.
fn push_by(queue: &mut WriteQueue, way: Way, tag: u8, body: &[u8]) -> Vec<u8> {
    let mut on_the_wire = body.to_vec();
    if way.is_transformed() {
        on_the_wire.reverse();
    }
    let frame = frame(tag, &on_the_wire);
    let (number, len) = (u32::from(tag), body.len());
    let whole = |out: &mut Vec<u8>| out.extend_from_slice(&frame);
    let body = Bytes::copy_from_slice(body);
    let encoded = Bytes::copy_from_slice(&frame);
    match way {
        Way::Copied => queue.push(PUSH, number, len, whole),
        Way::Request => queue.push(What::Request, number, len, whole),
        Way::Shared => {
            queue.push_shared(PUSH, number, |out| out.extend_from_slice(&frame[..2]), body);
        }
        Way::Encoded => queue.push_encoded(number, len, &encoded, None),
        Way::Transformed => queue.push_transformed(PUSH, number, body, |_, out| whole(out)),
        Way::TransformedForMany => queue.push_encoded(number, len, &encoded, Some(&body)),
    }
    frame
}

/// An encoder that panics after so many bytes.
fn break_after(count: usize) -> impl Fn(&mut Vec<u8>) {
    move |out| {
        for _ in 0..count {
            out.push(0xEE);
        }
        // Without a message of the hook's.
        panic::resume_unwind(Box::new("the encoder panics"));
    }
}

/// Queues a message in one of the ways, and is stopped by its encoder after so many bytes.
fn break_by(queue: &mut WriteQueue, way: Way, after: usize) {
    let body = Bytes::from_static(b"body");
    let encode = break_after(after);
    let broken = panic::catch_unwind(AssertUnwindSafe(|| match way {
        Way::Copied | Way::Request => queue.push(PUSH, 1, 4, encode),
        Way::Shared => queue.push_shared(PUSH, 1, encode, body),
        Way::Transformed => queue.push_transformed(PUSH, 1, body, |_, out| encode(out)),
        Way::Encoded | Way::TransformedForMany => queue.push_urgent(encode),
    }));
    assert!(broken.is_err());
}

proptest! {
    /// Every frame leaves whole and in order, with control frames only at borders; what has not left
    /// whole can be had back at any time as it was sent; and an encoder that panics changes nothing.
    #[test]
    fn frames_leave_whole_and_in_order(ops in ops()) {
        let mut queue = WriteQueue::default();
        let mut wire = Vec::new();
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut sent: Vec<Option<Tagged<Bytes>>> = Vec::new();
        let mut left = 0;
        let mut urgent = 0;
        for op in ops {
            match op {
                Op::Push(way, tag, len) => {
                    let body: Vec<u8> = (0..len).map(|n| u8::try_from(n).unwrap() ^ tag).collect();
                    frames.push(push_by(&mut queue, way, tag, &body));
                    let message = Tagged(u32::from(tag), body.into());
                    sent.push(Some(message).filter(|_| !matches!(way, Way::Request)));
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
                Op::Panic(way, after) => break_by(&mut queue, way, after),
            }
            queue.check();
            let unsent: Vec<_> = sent[left..].iter().flatten().cloned().collect();
            prop_assert_eq!(queue.unsent(), unsent);
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

#[test]
fn only_messages_that_nobody_answers_are_handed_back() {
    let mut queue = WriteQueue::default();
    for what in [What::Control, What::Push { is_caused: false }, What::Request, What::Answer] {
        let text = format!("{what:?}");
        queue.push(what, 1, text.len(), |out| out.extend_from_slice(text.as_bytes()));
    }
    queue.push_encoded(2, 4, &Bytes::from_static(b"whole"), None);
    let unsent = queue.take_unsent();
    let bodies: Vec<_> = unsent.iter().map(|Tagged(tag, body)| (*tag, &body[..])).collect();
    assert_eq!(bodies, [(1, &b"Push { is_caused: false }"[..]), (2, b"hole")]);
    queue.check();
    assert!(queue.is_empty() && queue.take_unsent().is_empty());
}

#[test]
fn frames_that_are_alike_are_one_entry() {
    let mut queue = WriteQueue::default();
    for _ in 0..1000 {
        push(&mut queue, b"same");
    }
    // Whatever the tags of what is not handed back.
    for tag in 0..1000 {
        queue.push(What::Answer, tag, 4, |out| out.extend_from_slice(b"same"));
    }
    assert_eq!((queue.frames.len(), queue.run.count), (1, 1000));
    assert!(size_of::<Frames>() <= 32, "{}", size_of::<Frames>());
}

#[test]
fn shared_body_is_handed_back_without_a_copy() {
    let mut queue = WriteQueue::default();
    let body = Bytes::from(vec![7; 100]);
    queue.push_shared(PUSH, 0, |out| out.extend_from_slice(b"head"), body.clone());
    let encoded = Bytes::from(vec![7; SHARE_BYTES]);
    queue.push_encoded(0, SHARE_BYTES - 10, &encoded, None);
    write(&mut queue, 50);
    let unsent = queue.take_unsent();
    assert_eq!(unsent[0].1.as_ptr(), body.as_ptr());
    assert_eq!(unsent[1].1.as_ptr(), encoded[10..].as_ptr());
}

#[test]
fn original_is_kept_only_where_the_frame_does_not_end_with_it() {
    let mut queue = WriteQueue::default();
    let body = "unchanged";
    queue.push_transformed(PUSH, 0, body, |body, out| out.extend_from_slice(body));
    assert_eq!((queue.originals.len(), queue.cost()), (0, 9 + FRAME_OVERHEAD));
    // One that takes a thousand bytes beside a frame of one is charged for them.
    let body = [7; 1000];
    queue.push_transformed(PUSH, 0, body, |_, out| out.push(0));
    assert_eq!(queue.cost(), 9 + 1 + 1000 + 2 * FRAME_OVERHEAD);
    assert_eq!(queue.caused(), queue.cost());
    queue.push_transformed(What::Answer, 0, body, |_, out| out.push(0));
    assert_eq!(queue.originals.len(), 1);
    queue.check();
    write(&mut queue, 10);
    assert_eq!((queue.originals.len(), queue.cost()), (0, 1 + FRAME_OVERHEAD));
}

#[test]
fn encoder_that_takes_away_what_was_there_tears_the_queue_and_not_its_accounts() {
    for is_urgent in [false, true] {
        let mut queue = WriteQueue::default();
        push(&mut queue, b"frame");
        queue.push_urgent(|out| out.extend_from_slice(b"!!"));
        let takes = |out: &mut Vec<u8>| out.truncate(1);
        let panics = panic::catch_unwind(AssertUnwindSafe(|| {
            if is_urgent {
                queue.push_urgent(takes);
            } else {
                queue.push(What::Answer, 0, 0, takes);
            }
        }));
        assert!(panics.is_err() && queue.is_torn());
        queue.check();
        assert_eq!((queue.messages(), queue.bytes()), (1, 7));
        assert!(queue.take_unsent().is_empty(), "what it took away can't be handed back");
        assert!(!queue.is_torn() && queue.is_empty(), "another connection can use it");
    }
}

/// At every byte of the frame, in every way to push, in every state of the queue.
#[test]
fn encoder_that_panics_leaves_the_queue_as_it_was() {
    use Way::{Copied, Encoded, Shared, Transformed};
    // The last of them pushes a control frame.
    for way in [Copied, Shared, Transformed, Encoded] {
        for after in 0..=20 {
            for (frames, written) in [(0, 0), (1, 0), (3, 0), (3, 1), (3, 6), (3, 15)] {
                let fill = |queue: &mut WriteQueue| {
                    for _ in 0..frames {
                        push(queue, b"frame");
                    }
                    queue.push_urgent(|out| out.extend_from_slice(b"!"));
                    write(queue, written);
                };
                let (mut queue, mut twin) = (WriteQueue::default(), WriteQueue::default());
                fill(&mut queue);
                fill(&mut twin);
                break_by(&mut queue, way, after);
                queue.check();
                for queue in [&mut queue, &mut twin] {
                    push(queue, b"next");
                }
                assert_eq!(queue.cost(), twin.cost());
                assert_eq!(queue.unsent(), twin.unsent());
                assert_eq!(write(&mut queue, 100), write(&mut twin, 100));
            }
        }
    }
}

#[test]
fn queue_of_an_encoder_that_panicked_gives_the_next_connection_nothing() {
    use Way::{Copied, Encoded, Shared, Transformed};
    for way in [Copied, Shared, Transformed, Encoded] {
        for after in 0..20 {
            let mut pool = QueuePool::default();
            let mut queue = pool.take();
            break_by(&mut queue, way, after);
            assert!(queue.is_empty());
            pool.give(queue);
            let mut queue = pool.take();
            push(&mut queue, b"clean");
            assert_eq!(write(&mut queue, 100).0, b"clean");
        }
    }
}

#[test]
fn frames_without_bytes_do_not_go_to_the_next_connection() {
    let mut pool = QueuePool::default();
    let mut queue = pool.take();
    queue.push(PUSH, 0, 0, |_| {});
    pool.give(queue);
    let queue = pool.take();
    assert_eq!((queue.cost(), queue.messages()), (0, 0));
}

/// A queue that had much of everything.
fn used(pool: &mut QueuePool) -> Box<WriteQueue> {
    let mut queue = pool.take();
    for number in 0..2048_u32 {
        queue.push_shared(PUSH, number, |out| out.push(0), Bytes::from_static(b"body"));
        queue.push_transformed(PUSH, 0, "body", |_, out| out.push(0));
        queue.push_urgent(|out| out.extend_from_slice(&[0; 100]));
    }
    queue.push(PUSH, 0, 0, |out| out.resize(CHUNK_BYTES, 0));
    // The beginning of a frame that is half written is kept when its chunk is gone.
    write(&mut queue, 1);
    queue.forget();
    queue.push(PUSH, 0, 0, |out| out.resize(SPARE_BYTES - 1, 0));
    let encode = |out: &mut Vec<u8>| out.extend_from_slice(&[0; SPARE_BYTES]);
    queue.push_shared(PUSH, 0, encode, Bytes::from_static(b"body"));
    write(&mut queue, SPARE_BYTES * 2);
    queue
}

#[test]
fn queue_that_had_much_gives_all_of_it_back() {
    let mut pool = QueuePool::default();
    let mut queue = used(&mut pool);
    assert!(queue.memory() > 200 * 1024, "{}: this proves nothing", queue.memory());
    assert!(queue.front_head.capacity() > SPARE_URGENT, "this proves nothing");
    queue.forget();
    queue.trim();
    assert!(queue.chunks.capacity() <= SPARE_ITEMS);
    assert!(queue.originals.capacity() <= SPARE_ITEMS);
    assert!(queue.frames.capacity() <= SPARE_FRAMES);
    assert!(queue.tail.capacity() <= SPARE_BYTES);
    assert!(queue.urgent.capacity() <= SPARE_URGENT);
    assert!(queue.front_head.capacity() <= SPARE_URGENT);
}

#[test]
fn copied_large_frames_use_one_buffer_over_and_over() {
    let mut spares = Spares::default();
    let mut buffer = None;
    for _ in 0..10 {
        let mut queue = WriteQueue::default();
        push(&mut queue, b"small");
        for len in [10_000, 20_000, 9_000] {
            queue.make_room(len, &mut spares);
            push(&mut queue, &vec![7; len]);
        }
        let place = (queue.tail.as_ptr(), queue.tail.capacity());
        assert_eq!(*buffer.get_or_insert(place), place);
        assert!(queue.chunks.is_empty());
        let len = queue.single().unwrap().len();
        queue.advance(len, &mut spares);
        assert_eq!(queue.tail.capacity(), 0, "an empty queue keeps no large buffer");
    }
}

#[test]
fn copied_large_frames_make_no_larger_buffer_than_small_ones() {
    let (mut queue, mut spares) = (WriteQueue::default(), Spares::default());
    for _ in 0..100 {
        queue.make_room(60_000, &mut spares);
        push(&mut queue, &vec![7; 60_000]);
        assert!(queue.tail.capacity() <= 2 * CHUNK_BYTES);
    }
    queue.check();
    assert_eq!(queue.chunks.len(), 99);
}

const URGENT: [u8; 5] = [0xFF, 3, 0xFF, 0xFF, 0xFF];
