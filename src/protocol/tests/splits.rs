//! Where the stream is cut does not matter: the same messages, the same error.

use super::{
    Message, encode, length_messages, native_messages, qtk_messages, receive, tcpstream_messages,
    uuid_2, uuid_3,
};
use crate::protocol::{AnyId, AnyProtocol, Head, Length, Native, Protocol, Qtk2, Qtk3, Tcpstream};

/// Above what a ping may have, so that the control frames are no exception.
const MAX_BODY: usize = 130;

fn assert_every_cut<P: Protocol>(protocol: &P, messages: &[Message<P::Id>]) {
    let wire = encode(protocol, messages);
    let assert_same = |pieces: &mut dyn Iterator<Item = &[u8]>, how: &str, at: usize| {
        let received = receive(protocol, pieces, MAX_BODY);
        assert_eq!(received.error, None, "{how} {at}");
        assert_eq!(received.messages, messages, "{how} {at}");
        assert_eq!(received.rest, 0, "{how} {at}");
    };
    for at in 0..=wire.len() {
        let (front, back) = wire.split_at(at);
        assert_same(&mut [front, back].into_iter(), "cut at", at);
    }
    for len in 1..=wire.len() {
        assert_same(&mut wire.chunks(len), "in pieces of", len);
    }
}

#[test]
fn native_messages_survive_every_cut() {
    assert_every_cut(&Native, &native_messages(MAX_BODY));
}

#[test]
fn tcpstream_messages_survive_every_cut() {
    assert_every_cut(&Tcpstream, &tcpstream_messages(MAX_BODY));
}

#[test]
fn qtk3_messages_survive_every_cut() {
    assert_every_cut(&Qtk3, &qtk_messages(uuid_3(), MAX_BODY));
}

#[test]
fn qtk2_messages_survive_every_cut() {
    assert_every_cut(&Qtk2, &qtk_messages(uuid_2(), MAX_BODY));
}

#[test]
fn length_messages_survive_every_cut() {
    assert_every_cut(&Length::default(), &length_messages(MAX_BODY));
}

#[test]
fn length_with_every_setting_survives_every_cut() {
    let length = Length::builder()
        .field_bytes(3)
        .little_endian(true)
        .offset(2)
        .counts_header(true)
        .adjustment(-4)
        .skip(9)
        .build()
        .expect("legal settings");
    assert_every_cut(&length, &length_messages(MAX_BODY));
}

#[test]
fn messages_of_any_survive_every_cut() {
    let messages: Vec<_> = native_messages(MAX_BODY)
        .into_iter()
        .map(|(head, body)| {
            let Head { kind, id, tag, millis } = head;
            (Head { kind, id: AnyId::Native(id), tag, millis }, body)
        })
        .collect();
    assert_every_cut(&AnyProtocol::default(), &messages);
}
