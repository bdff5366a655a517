//! Frames as bytes, written by hand from the description of each format.

use super::{Message, decode_all, encode, head, hex, uuid_2, uuid_3};
use crate::protocol::{Head, Kind, Length, Native, NoId, Protocol, Qtk2, Qtk3, Tcpstream};

/// The message is these bytes, and these bytes are the message.
fn assert_bytes<P: Protocol>(protocol: &P, message: Message<P::Id>, digits: &str) {
    let messages = [message];
    assert_eq!(encode(protocol, &messages), hex(digits));
    assert_eq!(decode_all(protocol, &hex(digits), 1024), messages);
}

#[test]
fn native_push() {
    assert_bytes(
        &Native,
        (head(Kind::Push, 0, 7, 0), b"hi".to_vec()),
        "00000002 01 00 0000 00000007 00000000 0000000000000000 6869",
    );
}

#[test]
fn native_request() {
    assert_bytes(
        &Native,
        (head(Kind::Request, 0x0102_0304_0506_0708, 0xA1B2_C3D4, 1500), b"hi".to_vec()),
        "00000002 02 00 0000 A1B2C3D4 000005DC 0102030405060708 6869",
    );
}

#[test]
fn native_reply() {
    assert_bytes(
        &Native,
        (head(Kind::Reply, 1, 0, 0), b"ok".to_vec()),
        "00000002 03 00 0000 00000000 00000000 0000000000000001 6F6B",
    );
}

#[test]
fn native_error() {
    assert_bytes(
        &Native,
        (head(Kind::Error, 1, 2, 0), b"busy".to_vec()),
        "00000004 04 00 0000 00000002 00000000 0000000000000001 62757379",
    );
}

#[test]
fn native_ping() {
    assert_bytes(
        &Native,
        (head(Kind::Ping, 3, 0, 0), Vec::new()),
        "00000000 05 00 0000 00000000 00000000 0000000000000003",
    );
}

#[test]
fn native_pong() {
    assert_bytes(
        &Native,
        (head(Kind::Pong, 3, 0, 0), b"x".to_vec()),
        "00000001 06 00 0000 00000000 00000000 0000000000000003 78",
    );
}

#[test]
fn native_goaway() {
    assert_bytes(
        &Native,
        (head(Kind::Goaway, 5, 0, 250), b"bye".to_vec()),
        "00000003 07 00 0000 00000000 000000FA 0000000000000005 627965",
    );
}

#[test]
fn native_cancel() {
    assert_bytes(
        &Native,
        (head(Kind::Cancel, 5, 0, 0), Vec::new()),
        "00000000 08 00 0000 00000000 00000000 0000000000000005",
    );
}

#[test]
fn native_writes_plain_as_a_push() {
    let wire = encode(&Native, &[(Head::plain(0), b"hi".to_vec())]);
    assert_eq!(wire, encode(&Native, &[(Head::new(Kind::Push, 0), b"hi".to_vec())]));
}

#[test]
fn tcpstream_message() {
    assert_bytes(
        &Tcpstream,
        (head(Kind::Plain, 0x8000_0000_0000_0001, 7, 0), b"hi".to_vec()),
        "AD12 00000002 8000000000000001 00000007 6869",
    );
}

#[test]
fn tcpstream_empty_message() {
    assert_bytes(
        &Tcpstream,
        (head(Kind::Plain, 0, 0, 0), Vec::new()),
        "AD12 00000000 0000000000000000 00000000",
    );
}

#[test]
fn tcpstream_writes_every_kind_alike() {
    let plain = encode(&Tcpstream, &[(head(Kind::Plain, 5, 7, 0), b"hi".to_vec())]);
    for kind in [Kind::Push, Kind::Request, Kind::Reply, Kind::Error] {
        let wire = encode(&Tcpstream, &[(head(kind, 5, 7, 0), b"hi".to_vec())]);
        assert_eq!(wire, plain, "{kind:?}");
    }
}

#[test]
fn qtk3_message() {
    let uuid = "31323365 34353637 2D 65383962 2D 31326433 2D 61343536 2D 343236363134313734303030";
    assert_bytes(
        &Qtk3,
        (Head::plain(uuid_3()), b"hi".to_vec()),
        &format!("11 {uuid} 4000000000000000 6869"),
    );
}

#[test]
fn qtk3_ping() {
    let uuid = "31323365 34353637 2D 65383962 2D 31326433 2D 61343536 2D 343236363134313734303030";
    assert_bytes(
        &Qtk3,
        (Head::new(Kind::Ping, uuid_3()), Vec::new()),
        &format!("01 {uuid} 0000000000000000"),
    );
}

#[test]
fn qtk2_message() {
    let uuid = "3132336534353637 65383962 31326433 61343536 343236363134313734303030";
    assert_bytes(
        &Qtk2,
        (Head::plain(uuid_2()), b"hi".to_vec()),
        &format!("11 {uuid} 00000002 6869"),
    );
}

#[test]
fn qtk2_ping() {
    let uuid = "3132336534353637 65383962 31326433 61343536 343236363134313734303030";
    assert_bytes(
        &Qtk2,
        (Head::new(Kind::Ping, uuid_2()), Vec::new()),
        &format!("01 {uuid} 00000000"),
    );
}

#[test]
fn qtk_pong_is_the_ping_again() {
    let wire_3 = |kind| encode(&Qtk3, &[(Head::new(kind, uuid_3()), b"x".to_vec())]);
    assert_eq!(wire_3(Kind::Pong), wire_3(Kind::Ping));
    let wire_2 = |kind| encode(&Qtk2, &[(Head::new(kind, uuid_2()), b"x".to_vec())]);
    assert_eq!(wire_2(Kind::Pong), wire_2(Kind::Ping));
}

#[test]
fn qtk3_negative_zero_is_an_empty_body() {
    let wire = [b"\x11".to_vec(), [b'x'; 36].to_vec(), hex("8000000000000000")].concat();
    assert_eq!(decode_all(&Qtk3, &wire, 1024), [(Head::plain([b'x'; 36].into()), Vec::new())]);
}

#[test]
fn length_by_default_is_four_bytes_big_endian() {
    assert_bytes(&Length::default(), (Head::plain(NoId), b"hi".to_vec()), "00000002 6869");
}

#[test]
fn header_then_body_is_the_frame() {
    let mut wire = Vec::new();
    Native.encode_header(&head(Kind::Push, 0, 7, 0), 2, &mut wire);
    wire.extend_from_slice(b"hi");
    assert_eq!(wire, encode(&Native, &[(head(Kind::Push, 0, 7, 0), b"hi".to_vec())]));
    assert!(Native.is_header_then_body());
}

#[test]
fn frame_is_appended() {
    let mut wire = b"before".to_vec();
    Qtk2.encode(&Head::plain(uuid_2()), b"hi", &mut wire);
    assert_eq!(wire[..6], *b"before");
    assert_eq!(wire[6..], encode(&Qtk2, &[(Head::plain(uuid_2()), b"hi".to_vec())]));
}
