//! A format chosen at run time.

use super::{
    Message, encode, length_messages, native_messages, qtk_messages, receive, tcpstream_messages,
    uuid_2, uuid_3,
};
use crate::protocol::{
    AnyId, AnyProtocol, Head, Hello, Kind, Length, Native, NoId, Protocol, Qtk2, Qtk3, Tcpstream,
};

/// What the format does, `AnyProtocol` of it does too.
fn assert_same<P: Protocol>(format: &P, wrap: fn(P::Id) -> AnyId, messages: &[Message<P::Id>])
where
    AnyProtocol: From<P>,
{
    let any = AnyProtocol::from(format.clone());
    let wrapped: Vec<_> = messages
        .iter()
        .map(|&(Head { kind, id, tag, millis }, ref body)| {
            (Head { kind, id: wrap(id), tag, millis }, body.clone())
        })
        .collect();
    let wire = encode(format, messages);
    assert_eq!(encode(&any, &wrapped), wire);
    assert_eq!(receive(&any, [&wire[..]], 130).messages, wrapped);

    let (mut header, mut header_of_any) = (Vec::new(), Vec::new());
    format.clone().encode_header(&messages[0].0, 99, &mut header);
    any.clone().encode_header(&wrapped[0].0, 99, &mut header_of_any);
    assert_eq!(header_of_any, header);

    let hello = Hello::new(1, 2, 3, 4);
    let (mut hello_wire, mut hello_of_any) = (Vec::new(), Vec::new());
    format.clone().encode_hello(&hello, &mut hello_wire);
    any.clone().encode_hello(&hello, &mut hello_of_any);
    assert_eq!(hello_of_any, hello_wire);
    let body = [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
    assert_eq!(any.decode_hello(&body), format.decode_hello(&body));
    assert_eq!(any.has_hello(), format.has_hello());

    assert_eq!(any.name(), format.name());
    assert_eq!(any.is_header_then_body(), format.is_header_then_body());
    assert_eq!(any.largest_body(), format.largest_body());
    assert_eq!(any.correlation(), format.correlation());
    assert_eq!(any.heartbeat(), format.heartbeat());
    assert_eq!(any.call_id(7, 99), format.call_id(7, 99).map(wrap));
    assert_eq!(any.first_call(99), format.first_call(99));
    assert_eq!(any.push_id(7, 99), wrap(format.push_id(7, 99)));
    if let (Some(one), Some(two)) = (format.call_id(1, 99), format.call_id(2, 99)) {
        assert_eq!(any.may_be_handled(&wrap(one), &wrap(two)), format.may_be_handled(&one, &two));
        assert_eq!(any.may_be_handled(&wrap(two), &wrap(one)), format.may_be_handled(&two, &one));
    }
}

#[test]
fn any_native_is_native() {
    assert_same(&Native, AnyId::Native, &native_messages(130));
}

#[test]
fn any_tcpstream_is_tcpstream() {
    assert_same(&Tcpstream, AnyId::Tcpstream, &tcpstream_messages(130));
}

#[test]
fn any_qtk3_is_qtk3() {
    assert_same(&Qtk3, AnyId::Qtk3, &qtk_messages(uuid_3(), 130));
}

#[test]
fn any_qtk2_is_qtk2() {
    assert_same(&Qtk2, AnyId::Qtk2, &qtk_messages(uuid_2(), 130));
}

#[test]
fn any_length_is_length() {
    let length = Length::builder().adjustment(2).build().expect("legal settings");
    assert_same(&length, AnyId::Length, &[(Head::plain(NoId), b"hi".to_vec())]);
    assert_same(&Length::default(), AnyId::Length, &length_messages(130));
}

#[test]
fn names_parse_and_print_alike() {
    for name in AnyProtocol::NAMES {
        let protocol: AnyProtocol = name.parse().expect(name);
        assert_eq!(protocol.to_string(), name);
    }
}

#[test]
fn default_is_native() {
    assert_eq!(AnyProtocol::default(), AnyProtocol::Native(Native));
}

#[test]
fn length_parses_with_its_defaults() {
    assert_eq!("length".parse(), Ok(AnyProtocol::Length(Length::default())));
}

#[test]
fn unknown_name_is_refused_with_the_choices() {
    let error = "Native".parse::<AnyProtocol>().expect_err("names are lower case");
    let text = "unknown protocol \"Native\", choose one of native, tcpstream, qtk3, qtk2, length";
    assert_eq!(error.to_string(), text);
}

#[test]
fn id_of_another_format_is_sent_as_that_of_a_push() {
    let foreign = (Head::new(Kind::Plain, AnyId::Qtk3(uuid_3())), b"hi".to_vec());
    let push = (Head::new(Kind::Plain, AnyId::Qtk2(Qtk2.push_id(0, 0))), b"hi".to_vec());
    assert_eq!(
        encode(&AnyProtocol::Qtk2(Qtk2), &[foreign]),
        encode(&AnyProtocol::Qtk2(Qtk2), &[push])
    );
}

#[test]
fn goaway_of_another_format_excludes_no_request() {
    assert!(AnyProtocol::Native(Native).may_be_handled(&AnyId::Native(8), &AnyId::Tcpstream(7)));
}
