//! Every setting of the length-delimited format.

use proptest::{prelude::any, prop_assert_eq, proptest};

use super::{Message, body, decode, decode_all, encode, hex, receive};
use crate::protocol::{
    DecodeError, Decoded, Head, Length, LengthBuilder, LengthError, NoId, Protocol,
};

const PLAIN: Head<NoId> = Head::plain(NoId);

fn build(set: impl FnOnce(LengthBuilder) -> LengthBuilder) -> Length {
    try_build(set).expect("legal settings")
}

fn try_build(set: impl FnOnce(LengthBuilder) -> LengthBuilder) -> Result<Length, LengthError> {
    set(Length::builder()).build()
}

/// The frame is these bytes, and these bytes are a frame of this body.
fn assert_bytes(length: Length, sent: &[u8], digits: &str, received: &[u8]) {
    assert_eq!(encode(&length, &[(PLAIN, sent.to_vec())]), hex(digits));
    assert_eq!(decode_all(&length, &hex(digits), 1024), [(PLAIN, received.to_vec())]);
}

/// As [`assert_bytes`] where what is received is what was sent.
fn assert_same_bytes(length: Length, body: &[u8], digits: &str) {
    assert_bytes(length, body, digits, body);
}

/// All combinations of the settings that leave a body.
fn all_settings() -> impl Iterator<Item = (String, Length)> {
    let mut all = Vec::new();
    for field_bytes in [1, 2, 3, 4, 8] {
        for little_endian in [false, true] {
            for offset in [0, 1, 7, 255] {
                for counts_header in [false, true] {
                    for adjustment in [-3, 0, 3] {
                        for extra_skip in [0, 5] {
                            let builder = Length::builder()
                                .field_bytes(field_bytes)
                                .little_endian(little_endian)
                                .offset(offset)
                                .counts_header(counts_header)
                                .adjustment(adjustment)
                                .skip(offset + field_bytes + extra_skip);
                            all.push((format!("{builder:?}"), builder.build()));
                        }
                    }
                }
            }
        }
    }
    all.into_iter().filter_map(|(name, built)| Some((name, built.ok()?)))
}

/// Messages that each of [`all_settings`] can carry: at least an adjustment long.
fn messages() -> Vec<Message<NoId>> {
    [3, 40, 4, 3].map(|len| (PLAIN, body(len))).into()
}

#[test]
fn messages_come_back_under_all_settings_and_cuts() {
    for (name, length) in all_settings() {
        let wire = encode(&length, &messages());
        for at in 0..=wire.len() {
            let (front, back) = wire.split_at(at);
            let received = receive(&length, [front, back], 40);
            assert_eq!(received.error, None, "{name}, cut at {at}");
            assert_eq!(received.messages, messages(), "{name}, cut at {at}");
        }
        let received = receive(&length, wire.chunks(1), 40);
        assert_eq!(received.messages, messages(), "{name}, byte by byte");
    }
}

#[test]
fn only_one_byte_that_counts_a_long_header_is_left_out_of_all_settings() {
    // 5 widths, 2 orders, 4 offsets, counted or not, 3 adjustments, 2 skips, less those where a
    // header of 256 bytes is counted in one byte.
    assert_eq!(all_settings().count(), 5 * 2 * 4 * 2 * 3 * 2 - 2 * 3 * 2);
}

#[test]
fn body_fits_up_to_the_maximum_under_all_settings() {
    for (name, length) in all_settings() {
        let mut header = Vec::new();
        length.clone().encode_header(&PLAIN, 100, &mut header);
        let frame = decode(&length, &header, 100).expect(&name);
        let Decoded::Frame { body, len, .. } = frame else { panic!("{name}: {frame:?}") };
        assert_eq!((body.len(), len - body.end), (100, 0), "{name}");
        let error = DecodeError::BodyTooLong { len: 100, max: 99 };
        assert_eq!(decode(&length, &header, 99), Err(error), "{name}");
    }
}

#[test]
fn largest_body_is_what_the_field_can_say() {
    for (name, length) in all_settings() {
        let largest = length.largest_body();
        let mut header = Vec::new();
        length.clone().encode_header(&PLAIN, largest, &mut header);
        let frame = decode(&length, &header, usize::MAX).expect(&name);
        let Decoded::Frame { body, .. } = frame else { panic!("{name}: {frame:?}") };
        assert_eq!(body.len(), largest, "{name}");
    }
}

#[test]
fn largest_body_by_width_of_the_field() {
    let largest = |bytes| build(|builder| builder.field_bytes(bytes)).largest_body();
    assert_eq!(largest(1), 0xFF);
    assert_eq!(largest(2), 0xFFFF);
    assert_eq!(largest(3), 0xFF_FFFF);
    // Where an address space has that much.
    assert_eq!(largest(4), 0xFFFF_FFFF.min(isize::MAX as usize - 4));
    assert_eq!(largest(8), isize::MAX as usize - 8);
}

#[test]
fn largest_body_by_what_the_field_counts() {
    let counting = build(|builder| builder.field_bytes(1).offset(2).counts_header(true));
    assert_eq!(counting.largest_body(), 255 - 3);
    let less = build(|builder| builder.field_bytes(1).adjustment(-5));
    assert_eq!(less.largest_body(), 255 - 5);
    let more = build(|builder| builder.field_bytes(1).adjustment(5));
    assert_eq!(more.largest_body(), 255 + 5);
    let skipping = build(|builder| builder.field_bytes(1).skip(3));
    assert_eq!(skipping.largest_body(), 255 - 2);
}

#[test]
#[should_panic(expected = "bounded by largest_body")]
fn header_of_a_longer_body_is_a_bug_of_the_caller() {
    build(|builder| builder.field_bytes(1)).encode_header(&PLAIN, 256, &mut Vec::new());
}

#[test]
fn field_of_each_width_and_order() {
    let width =
        |bytes, is_little| build(|builder| builder.field_bytes(bytes).little_endian(is_little));
    assert_same_bytes(width(1, false), b"hi", "02 6869");
    assert_same_bytes(width(1, true), b"hi", "02 6869");
    assert_same_bytes(width(2, false), b"hi", "0002 6869");
    assert_same_bytes(width(2, true), b"hi", "0200 6869");
    assert_same_bytes(width(3, false), b"hi", "000002 6869");
    assert_same_bytes(width(3, true), b"hi", "020000 6869");
    assert_same_bytes(width(4, false), b"hi", "00000002 6869");
    assert_same_bytes(width(4, true), b"hi", "02000000 6869");
    assert_same_bytes(width(8, false), b"hi", "0000000000000002 6869");
    assert_same_bytes(width(8, true), b"hi", "0200000000000000 6869");
}

#[test]
fn all_bytes_of_a_field_count() {
    let len = |bytes, is_little, digits| {
        let length = build(|builder| builder.field_bytes(bytes).little_endian(is_little));
        // Refused, for it may be more than a `usize` holds, and the error tells it.
        let Err(DecodeError::BodyTooLong { len, .. }) = decode(&length, &hex(digits), 0) else {
            panic!("{digits} is no header");
        };
        len
    };
    assert_eq!(len(2, false, "0102"), 0x0102);
    assert_eq!(len(2, true, "0102"), 0x0201);
    assert_eq!(len(3, false, "010203"), 0x01_0203);
    assert_eq!(len(3, true, "010203"), 0x03_0201);
    assert_eq!(len(4, false, "01020304"), 0x0102_0304);
    assert_eq!(len(4, true, "01020304"), 0x0403_0201);
    assert_eq!(len(8, false, "0102030405060708"), 0x0102_0304_0506_0708);
    assert_eq!(len(8, true, "0102030405060708"), 0x0807_0605_0403_0201);
}

#[test]
fn bytes_before_the_field_are_written_as_zeros_and_ignored() {
    let length = build(|builder| builder.field_bytes(2).offset(2));
    assert_same_bytes(length, b"hi", "0000 0002 6869");
    assert_eq!(decode_all(&length, &hex("CAFE 0002 6869"), 1024), [(PLAIN, b"hi".to_vec())]);
}

#[test]
fn field_that_counts_its_header() {
    let length = build(|builder| builder.field_bytes(2).counts_header(true));
    assert_same_bytes(length, b"hi", "0004 6869");
    assert_same_bytes(length, b"", "0002");
}

#[test]
fn counting_the_header_is_an_adjustment_by_its_length() {
    let counting = build(|builder| builder.field_bytes(2).offset(1).counts_header(true));
    let adjusting = build(|builder| builder.field_bytes(2).offset(1).adjustment(-3));
    let messages = messages();
    assert_eq!(encode(&counting, &messages), encode(&adjusting, &messages));
}

#[test]
fn header_that_is_not_skipped_comes_with_what_is_received() {
    let length = build(|builder| builder.field_bytes(2).skip(0));
    assert_bytes(length, b"hi", "0002 6869", b"\0\x02hi");
    let part = build(|builder| builder.field_bytes(2).offset(1).skip(1));
    assert_bytes(part, b"hi", "00 0002 6869", b"\0\x02hi");
}

#[test]
fn header_that_is_not_skipped_comes_on_top_of_the_maximum() {
    let length = build(|builder| builder.field_bytes(2).skip(0));
    assert_eq!(decode_all(&length, &hex("0002 6869"), 2), [(PLAIN, b"\0\x02hi".to_vec())]);
    let error = DecodeError::BodyTooLong { len: 3, max: 2 };
    assert_eq!(decode(&length, &hex("0003 686921"), 2), Err(error));
}

#[test]
fn bytes_between_header_and_body_are_written_as_zeros_and_ignored() {
    let length = build(|builder| builder.field_bytes(2).skip(4));
    assert_same_bytes(length, b"hi", "0004 0000 6869");
    assert_eq!(decode_all(&length, &hex("0004 CAFE 6869"), 1024), [(PLAIN, b"hi".to_vec())]);
}

#[test]
fn body_shorter_than_the_adjustment_is_filled_up_with_zeros() {
    let length = build(|builder| builder.field_bytes(2).adjustment(3));
    assert!(!length.is_header_then_body());
    assert_bytes(length, b"", "0000 000000", b"\0\0\0");
    assert_bytes(length, b"hi", "0000 686900", b"hi\0");
    assert_same_bytes(length, b"hi!", "0000 686921");
    assert_same_bytes(length, b"hi!!", "0001 68692121");
}

#[test]
fn body_is_not_filled_up_where_the_adjustment_is_skipped() {
    let length = build(|builder| builder.field_bytes(2).adjustment(3).skip(5));
    assert!(length.is_header_then_body());
    assert_same_bytes(length, b"", "0000 000000");
    assert_same_bytes(length, b"hi", "0002 000000 6869");
}

/// The examples in the documentation of Netty's decoder: "HELLO, WORLD" and what comes of it.
mod netty {
    use super::{PLAIN, assert_bytes, build, decode_all, hex};

    const HELLO: &[u8] = b"HELLO, WORLD";
    const HELLO_HEX: &str = "48454C4C4F2C20574F524C44";

    #[test]
    fn two_bytes_not_stripped() {
        let length = build(|builder| builder.field_bytes(2).skip(0));
        let received = [b"\x00\x0C", HELLO].concat();
        assert_bytes(length, HELLO, &format!("000C {HELLO_HEX}"), &received);
    }

    #[test]
    fn two_bytes_stripped() {
        let length = build(|builder| builder.field_bytes(2).skip(2));
        assert_bytes(length, HELLO, &format!("000C {HELLO_HEX}"), HELLO);
    }

    #[test]
    fn two_bytes_that_count_the_whole() {
        let length = build(|builder| builder.field_bytes(2).adjustment(-2).skip(0));
        let received = [b"\x00\x0E", HELLO].concat();
        assert_bytes(length, HELLO, &format!("000E {HELLO_HEX}"), &received);
    }

    #[test]
    fn three_bytes_behind_a_first_header() {
        let length = build(|builder| builder.field_bytes(3).offset(2).skip(0));
        let received = decode_all(&length, &hex(&format!("CAFE 00000C {HELLO_HEX}")), 1024);
        assert_eq!(received, [(PLAIN, [b"\xCA\xFE\x00\x00\x0C", HELLO].concat())]);
    }

    #[test]
    fn three_bytes_before_a_second_header() {
        let length = build(|builder| builder.field_bytes(3).adjustment(2).skip(0));
        let sent = [b"\xCA\xFE", HELLO].concat();
        let received = [b"\x00\x00\x0C\xCA\xFE", HELLO].concat();
        assert_bytes(length, &sent, &format!("00000C CAFE {HELLO_HEX}"), &received);
    }

    #[test]
    fn two_bytes_between_two_headers_the_first_stripped() {
        let length = build(|builder| builder.field_bytes(2).offset(1).adjustment(1).skip(3));
        let sent = [b"\xFE", HELLO].concat();
        assert_bytes(length, &sent, &format!("00 000C FE {HELLO_HEX}"), &sent);
    }

    #[test]
    fn two_bytes_that_count_the_whole_between_two_headers() {
        let length = build(|builder| builder.field_bytes(2).offset(1).adjustment(-3).skip(3));
        let sent = [b"\xFE", HELLO].concat();
        assert_bytes(length, &sent, &format!("00 0010 FE {HELLO_HEX}"), &sent);
    }
}

#[test]
fn width_of_the_field_is_one_of_five() {
    for bytes in [0, 5, 6, 7, 9, usize::MAX] {
        let error = try_build(|builder| builder.field_bytes(bytes)).expect_err("no such width");
        assert_eq!(error, LengthError::FieldBytes(bytes));
    }
}

#[test]
fn settings_are_refused_one_above_their_range() {
    let built = try_build(|builder| builder.offset(256));
    assert_eq!(built, Err(LengthError::Offset(256)));
    let built = try_build(|builder| builder.skip(65_536));
    assert_eq!(built, Err(LengthError::Skip(65_536)));
    let built = try_build(|builder| builder.adjustment(65_536));
    assert_eq!(built, Err(LengthError::Adjustment(65_536)));
    let built = try_build(|builder| builder.adjustment(-65_536));
    assert_eq!(built, Err(LengthError::Adjustment(-65_536)));
    let built = try_build(|builder| builder.adjustment(i64::MIN));
    assert_eq!(built, Err(LengthError::Adjustment(i64::MIN)));
}

#[test]
fn settings_at_the_end_of_their_range_are_accepted() {
    try_build(|builder| builder.offset(255).skip(65_535).adjustment(65_535)).expect("legal");
    try_build(|builder| builder.adjustment(-65_535)).expect("legal");
}

#[test]
fn settings_that_leave_no_body_are_refused() {
    let one_byte =
        |set: fn(LengthBuilder) -> LengthBuilder| try_build(|builder| set(builder.field_bytes(1)));
    let refused = Err(LengthError::NoBody);
    assert_eq!(one_byte(|builder| builder.offset(254).counts_header(true)), refused);
    assert_eq!(one_byte(|builder| builder.offset(255).counts_header(true)), refused);
    assert_eq!(one_byte(|builder| builder.adjustment(-255)), refused);
    assert_eq!(one_byte(|builder| builder.skip(256)), refused);
    assert!(one_byte(|builder| builder.offset(253).counts_header(true)).is_ok());
    assert!(one_byte(|builder| builder.adjustment(-254)).is_ok());
    assert!(one_byte(|builder| builder.skip(255)).is_ok());
}

#[test]
fn error_names_the_setting() {
    let text = |error: LengthError| error.to_string();
    assert!(text(LengthError::FieldBytes(5)).contains("field_bytes: 5"));
    assert!(text(LengthError::Offset(256)).contains("offset: 256"));
    assert!(text(LengthError::Skip(65_536)).contains("skip: 65536"));
    assert!(text(LengthError::Adjustment(-65_536)).contains("adjustment: -65536"));
}

#[test]
fn value_is_small() {
    assert!(size_of::<Length>() <= 24);
}

proptest! {
    #[test]
    fn any_value_of_the_field_is_a_frame_that_ends_where_it_says(
        value in any::<u32>(),
        counts_header in any::<bool>(),
        adjustment in -65_535..=65_535_i64,
        skip in 0..100_usize,
    ) {
        let length = build(|builder| {
            builder.counts_header(counts_header).adjustment(adjustment).skip(skip)
        });
        let decoded = decode(&length, &value.to_be_bytes(), usize::MAX).ok();
        let counted = if counts_header { 4 } else { 0 };
        let end = i64::from(value) - counted + adjustment + 4;
        let is_frame = i64::from(value) >= counted && end >= 4.max(i64::try_from(skip)?);
        let end = usize::try_from(end).unwrap_or(0);
        let frame = Decoded::Frame { head: PLAIN, body: skip..end, len: end };
        prop_assert_eq!(decoded, is_frame.then_some(frame));
    }
}
