//! What fits and what does not, to the byte.

use super::{body, decode, decode_all, encode, head, hex};
use crate::protocol::{
    Correlation, DecodeError, Decoded, Head, HeartbeatBy, Kind, Length, Native, NoId, Protocol,
    Qtk2, Qtk3, Tcpstream, Uuid,
};

const MAX_BODY: usize = 300;

/// A body of the maximum is a frame, one byte more is refused by its header alone.
fn assert_fits<P: Protocol>(protocol: &P, head: Head<P::Id>) {
    let longest = [(head, body(MAX_BODY))];
    let wire = encode(protocol, &longest);
    assert_eq!(decode_all(protocol, &wire, MAX_BODY), longest);

    let mut header = Vec::new();
    protocol.clone().encode_header(&head, MAX_BODY + 1, &mut header);
    let error = DecodeError::BodyTooLong { len: 301, max: 300 };
    assert_eq!(decode(protocol, &header, MAX_BODY), Err(error));
}

#[test]
fn native_body_fits_up_to_the_maximum() {
    assert_fits(&Native, head(Kind::Push, 0, 1, 0));
    assert_fits(&Native, head(Kind::Request, 1, 1, 1));
    assert_fits(&Native, head(Kind::Reply, 1, 1, 0));
}

#[test]
fn tcpstream_body_fits_up_to_the_maximum() {
    assert_fits(&Tcpstream, head(Kind::Plain, 1, 1, 0));
}

#[test]
fn qtk_body_fits_up_to_the_maximum() {
    assert_fits(&Qtk3, Head::plain(Uuid::from([b'x'; 36])));
    assert_fits(&Qtk2, Head::plain(Uuid::from([b'x'; 32])));
}

#[test]
fn length_body_fits_up_to_the_maximum() {
    assert_fits(&Length::default(), Head::plain(NoId));
}

#[test]
fn empty_body_fits_where_the_maximum_is_zero() {
    let push = [(head(Kind::Push, 0, 1, 0), Vec::new())];
    assert_eq!(decode_all(&Native, &encode(&Native, &push), 0), push);
    let plain = [(Head::plain(NoId), Vec::new())];
    assert_eq!(decode_all(&Length::default(), &hex("00000000"), 0), plain);
}

#[test]
fn native_control_frames_have_their_own_maximum() {
    let longest = [
        (head(Kind::Hello, 0, 0, 0), body(1024)),
        (head(Kind::Error, 1, 1, 0), body(4096)),
        (head(Kind::Goaway, 1, 0, 1), body(4096)),
        (head(Kind::Ping, 1, 0, 0), body(125)),
        (head(Kind::Pong, 1, 0, 0), body(125)),
        (head(Kind::Cancel, 1, 0, 0), Vec::new()),
    ];
    assert_eq!(decode_all(&Native, &encode(&Native, &longest), 0), longest);
}

#[test]
fn qtk_ping_has_its_own_maximum() {
    let longest = [(Head::new(Kind::Ping, Uuid::from([b'x'; 36])), body(125))];
    assert_eq!(decode_all(&Qtk3, &encode(&Qtk3, &longest), 0), longest);
    let longest = [(Head::new(Kind::Ping, Uuid::from([b'x'; 32])), body(125))];
    assert_eq!(decode_all(&Qtk2, &encode(&Qtk2, &longest), 0), longest);
}

#[test]
fn native_carries_up_to_two_to_the_32_less_one() {
    assert_eq!(Native.largest_body(), u32::MAX as usize);
    let header = hex("FFFFFFFF 01 00 0000 00000000 00000000 0000000000000000");
    let frame = Decoded::frame(Head::new(Kind::Push, 0), 24, u32::MAX as usize);
    assert_eq!(decode(&Native, &header, u32::MAX as usize), Ok(frame));
}

#[test]
fn tcpstream_carries_up_to_eight_mebibytes_whatever_the_maximum_is() {
    assert_eq!(Tcpstream.largest_body(), 1 << 23);
    let header = |len: &str| hex(&format!("AD12 {len} 0000000000000000 00000000"));
    let frame = Decoded::frame(Head::plain(0), 18, 1 << 23);
    assert_eq!(decode(&Tcpstream, &header("00800000"), usize::MAX), Ok(frame));
    let error = DecodeError::BodyTooLong { len: (1 << 23) + 1, max: 1 << 23 };
    assert_eq!(decode(&Tcpstream, &header("00800001"), usize::MAX), Err(error));
}

#[test]
fn qtk_carries_up_to_two_to_the_32_less_one_whatever_the_maximum_is() {
    let largest = u32::MAX as usize;
    assert_eq!((Qtk3.largest_body(), Qtk2.largest_body()), (largest, largest));
    let uuid = Uuid::from([b'x'; 36]);
    let mut header = Vec::new();
    Qtk3.encode_header(&Head::plain(uuid), largest, &mut header);
    let frame = Decoded::frame(Head::plain(uuid), 45, largest);
    assert_eq!(decode(&Qtk3, &header, usize::MAX), Ok(frame));
    header[37..].copy_from_slice(&4_294_967_296_f64.to_be_bytes());
    let error = DecodeError::BodyTooLong { len: 1 << 32, max: (1 << 32) - 1 };
    assert_eq!(decode(&Qtk3, &header, usize::MAX), Err(error));
}

#[test]
fn header_alone_tells_where_the_body_will_stand() {
    let header = hex("000003E8 02 00 0000 00000000 00000000 0000000000000001");
    let frame = Decoded::Frame { head: head(Kind::Request, 1, 0, 0), body: 24..1024, len: 1024 };
    assert_eq!(decode(&Native, &header, 1000), Ok(frame));
}

#[test]
fn each_format_says_how_it_correlates_and_beats() {
    let says =
        |protocol: crate::protocol::AnyProtocol| (protocol.correlation(), protocol.heartbeat());
    assert_eq!(says(Native.into()), (Correlation::ByKind, HeartbeatBy::Both));
    assert_eq!(says(Tcpstream.into()), (Correlation::ByPendingTable, HeartbeatBy::Nobody));
    assert_eq!(says(Qtk3.into()), (Correlation::ByPendingTable, HeartbeatBy::Dialler));
    assert_eq!(says(Qtk2.into()), (Correlation::ByPendingTable, HeartbeatBy::Dialler));
    assert_eq!(says(Length::default().into()), (Correlation::None, HeartbeatBy::Nobody));
}
