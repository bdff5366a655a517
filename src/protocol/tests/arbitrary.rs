//! Any bytes and any messages: no panic, no claim outside of the frame, nothing lost on the way.

use proptest::{
    collection::vec,
    prelude::any,
    prop_assert_eq, prop_oneof, proptest,
    sample::Index,
    strategy::{Just, Strategy},
};

use super::{
    Message, decode_all, encode, head, length_messages, native_messages, qtk_messages, receive,
    tcpstream_messages, uuid_2, uuid_3,
};
use crate::protocol::{
    AnyProtocol, Head, Kind, Length, Native, NoId, Protocol, Qtk2, Qtk3, Tcpstream, Uuid,
};

/// The formats, with any legal settings of [`Length`].
fn protocols() -> impl Strategy<Value = AnyProtocol> {
    prop_oneof![
        Just(AnyProtocol::Native(Native)),
        Just(AnyProtocol::Tcpstream(Tcpstream)),
        Just(AnyProtocol::Qtk3(Qtk3)),
        Just(AnyProtocol::Qtk2(Qtk2)),
        lengths().prop_map(AnyProtocol::Length),
    ]
}

/// Any legal settings.
fn lengths() -> impl Strategy<Value = Length> {
    let field_bytes = prop_oneof![Just(1_usize), Just(2), Just(3), Just(4), Just(8)];
    let skip = prop_oneof![Just(None), (0..20_usize).prop_map(Some)];
    let settings = (field_bytes, any::<bool>(), 0..6_usize, any::<bool>(), -20..20_i64, skip);
    settings.prop_filter_map("settings that leave a body", |settings| {
        let (field_bytes, little_endian, offset, counts_header, adjustment, skip) = settings;
        let mut builder = Length::builder()
            .field_bytes(field_bytes)
            .little_endian(little_endian)
            .offset(offset)
            .counts_header(counts_header)
            .adjustment(adjustment);
        if let Some(skip) = skip {
            builder = builder.skip(skip);
        }
        builder.build().ok()
    })
}

fn max_bodies() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 0..300_usize, Just(u32::MAX as usize), Just(usize::MAX)]
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..200)
}

/// Streams that begin well, of each format.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(encode(&Native, &native_messages(130))),
        Just(encode(&Tcpstream, &tcpstream_messages(130))),
        Just(encode(&Qtk3, &qtk_messages(uuid_3(), 130))),
        Just(encode(&Qtk2, &qtk_messages(uuid_2(), 130))),
        Just(encode(&Length::default(), &length_messages(130))),
    ]
}

/// The whole and the pieces give the same; [`receive`] panics at a claim outside of the frame.
fn assert_same_in_pieces(protocol: AnyProtocol, bytes: &[u8], max_body: usize, len: usize) {
    let whole = receive(&protocol, [bytes], max_body);
    let pieces = receive(&protocol, bytes.chunks(len), max_body);
    assert_eq!(pieces.messages, whole.messages);
    assert_eq!(format!("{:?}", pieces.error), format!("{:?}", whole.error));
}

fn assert_round_trip<P: Protocol>(protocol: &P, messages: &[Message<P::Id>]) {
    let wire = encode(protocol, messages);
    assert_eq!(decode_all(protocol, &wire, 200), messages);
}

fn native_kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Push),
        Just(Kind::Request),
        Just(Kind::Reply),
        Just(Kind::Error),
        Just(Kind::Goaway),
    ]
}

fn messages<Id: std::fmt::Debug + Copy>(
    heads: impl Strategy<Value = Head<Id>>,
) -> impl Strategy<Value = Vec<Message<Id>>> {
    vec((heads, bodies()), 0..8)
}

fn uuids<const N: usize>() -> impl Strategy<Value = Head<Uuid<N>>> {
    any::<[u8; N]>().prop_map(|text| Head::plain(Uuid::from(text)))
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_frames_or_an_error_however_they_are_cut(
        protocol in protocols(),
        bytes in vec(any::<u8>(), 0..300),
        max_body in max_bodies(),
        len in 1..50_usize,
    ) {
        assert_same_in_pieces(protocol, &bytes, max_body, len);
    }

    #[test]
    fn low_bytes_are_frames_or_an_error_however_they_are_cut(
        protocol in protocols(),
        bytes in vec(prop_oneof![Just(0), Just(1), Just(0x11), any::<u8>()], 0..300),
        max_body in max_bodies(),
        len in 1..50_usize,
    ) {
        assert_same_in_pieces(protocol, &bytes, max_body, len);
    }

    #[test]
    fn damaged_stream_is_frames_or_an_error_however_it_is_cut(
        protocol in protocols(),
        mut bytes in streams(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        max_body in max_bodies(),
        len in 1..50_usize,
    ) {
        for (index, byte) in damage {
            *index.get_mut(&mut bytes) = byte;
        }
        assert_same_in_pieces(protocol, &bytes, max_body, len);
    }

    #[test]
    fn native_messages_come_back_as_they_were(
        messages in messages(
            (native_kinds(), any::<u64>(), any::<u32>(), any::<u32>())
                .prop_map(|(kind, id, tag, millis)| head(kind, id, tag, millis)),
        ),
    ) {
        assert_round_trip(&Native, &messages);
    }

    #[test]
    fn tcpstream_messages_come_back_as_they_were(
        messages in messages(
            (any::<u64>(), any::<u32>()).prop_map(|(id, tag)| head(Kind::Plain, id, tag, 0)),
        ),
    ) {
        assert_round_trip(&Tcpstream, &messages);
    }

    #[test]
    fn qtk3_messages_come_back_as_they_were(messages in messages(uuids::<36>())) {
        assert_round_trip(&Qtk3, &messages);
    }

    #[test]
    fn qtk2_messages_come_back_as_they_were(messages in messages(uuids::<32>())) {
        assert_round_trip(&Qtk2, &messages);
    }

    #[test]
    fn length_messages_come_back_as_they_were(messages in messages(Just(Head::plain(NoId)))) {
        assert_round_trip(&Length::default(), &messages);
    }

    #[test]
    fn qtk3_length_is_a_whole_number_or_refused(bits in any::<u64>(), max_body in max_bodies()) {
        let len = f64::from_bits(bits);
        let header = [&[0x11][..], &[b'x'; 36], &len.to_be_bytes()].concat();
        let is_frame = Qtk3.decode(&header, max_body).is_ok();
        let max = f64::from(u32::try_from(max_body).unwrap_or(u32::MAX));
        prop_assert_eq!(is_frame, len >= 0.0 && len.fract() == 0.0 && len <= max);
    }

    #[test]
    fn qtk3_length_of_any_u32_is_exact(len in any::<u32>()) {
        let mut header = Vec::new();
        Qtk3.encode_header(&Head::plain(uuid_3()), len as usize, &mut header);
        let frame = crate::protocol::Decoded::frame(Head::plain(uuid_3()), 45, len as usize);
        prop_assert_eq!(Qtk3.decode(&header, usize::MAX), Ok(frame));
    }
}
