//! Headers that are refused: at once, with the right error, however they are cut.

use super::{decode, hex, receive};
use crate::protocol::{
    AnyProtocol, DecodeError, Decoded, Kind, Length, LengthBuilder, Native, Qtk2, Qtk3, Tcpstream,
};

const MAX_BODY: usize = 1000;

/// What is wrong, the header and the error.
type Case = (&'static str, Vec<u8>, DecodeError);

/// Each header is refused without a byte of body, and by the same error when it comes in pieces.
fn assert_refused(protocol: impl Into<AnyProtocol>, cases: &[Case]) {
    let protocol = protocol.into();
    for (name, header, expected) in cases {
        // A double that is NaN equals nothing, its text does.
        let expected = format!("{expected:?}");
        let error = decode(&protocol, header, MAX_BODY).expect_err(name);
        assert_eq!(format!("{error:?}"), expected, "{name}");
        for at in 1..header.len() {
            let (front, back) = header.split_at(at);
            let received = receive(&protocol, [front, back], MAX_BODY);
            let error = received.error.unwrap_or_else(|| panic!("{name}, cut at {at}"));
            assert_eq!(format!("{error:?}"), expected, "{name}, cut at {at}");
        }
        let received = receive(&protocol, header.chunks(1), MAX_BODY);
        let error = received.error.unwrap_or_else(|| panic!("{name}, byte by byte"));
        assert_eq!(format!("{error:?}"), expected, "{name}, byte by byte");
        let behind = [&header[..], &[0x11; 64]].concat();
        let error = decode(&protocol, &behind, MAX_BODY).expect_err(name);
        assert_eq!(format!("{error:?}"), expected, "{name}, with bytes behind");
    }
}

const fn too_long(len: u64) -> DecodeError {
    DecodeError::BodyTooLong { len, max: MAX_BODY as u64 }
}

const fn control(kind: Kind, len: u64, min: u64, max: u64) -> DecodeError {
    DecodeError::ControlLength { kind, len, min, max }
}

/// A native header that says this in its first 8 bytes.
fn native(front: &str) -> Vec<u8> {
    hex(&format!("{front} 00000000 00000000 0000000000000001"))
}

#[test]
fn native_refuses_a_body_over_the_maximum() {
    let longest = u64::from(u32::MAX);
    assert_refused(
        Native,
        &[
            ("push of 1001", native("000003E9 01 00 0000"), too_long(1001)),
            ("request of 1001", native("000003E9 02 00 0000"), too_long(1001)),
            ("reply of 1001", native("000003E9 03 00 0000"), too_long(1001)),
            ("1 GiB", native("40000000 01 00 0000"), too_long(1 << 30)),
            ("2^31", native("80000000 01 00 0000"), too_long(1 << 31)),
            ("2^32 - 1", native("FFFFFFFF 01 00 0000"), too_long(longest)),
        ],
    );
}

#[test]
fn native_refuses_unknown_kinds_flags_and_reserved_bits() {
    let kind = DecodeError::UnknownKind;
    let flags = DecodeError::UnknownFlags;
    let reserved = DecodeError::ReservedNotZero;
    assert_refused(
        Native,
        &[
            ("first kind", native("00000000 09 00 0000"), kind(9)),
            ("last kind", native("00000000 FF 00 0000"), kind(255)),
            ("lowest flag", native("00000000 01 01 0000"), flags(1)),
            ("highest flag", native("00000000 01 80 0000"), flags(0x80)),
            ("lowest bit", native("00000000 01 00 0001"), reserved(1)),
            ("highest bit", native("00000000 01 00 8000"), reserved(0x8000)),
            ("flag of a hello", native("00000014 00 01 0000"), flags(1)),
        ],
    );
}

#[test]
fn native_refuses_a_control_frame_of_a_wrong_length() {
    let hello = |len| control(Kind::Hello, len, 20, 1024);
    let error = |len| control(Kind::Error, len, 0, 4096);
    let ping = |len| control(Kind::Ping, len, 0, 125);
    let echo = |len| control(Kind::Pong, len, 0, 125);
    let goaway = |len| control(Kind::Goaway, len, 0, 4096);
    let cancel = |len| control(Kind::Cancel, len, 0, 0);
    let longest = u64::from(u32::MAX);
    assert_refused(
        Native,
        &[
            ("empty hello", native("00000000 00 00 0000"), hello(0)),
            ("hello of 19", native("00000013 00 00 0000"), hello(19)),
            ("hello of 1025", native("00000401 00 00 0000"), hello(1025)),
            ("error of 4097", native("00001001 04 00 0000"), error(4097)),
            ("goaway of 4097", native("00001001 07 00 0000"), goaway(4097)),
            ("goaway of 2^32 - 1", native("FFFFFFFF 07 00 0000"), goaway(longest)),
            ("ping of 126", native("0000007E 05 00 0000"), ping(126)),
            ("ping of 2^32 - 1", native("FFFFFFFF 05 00 0000"), ping(longest)),
            ("pong of 126", native("0000007E 06 00 0000"), echo(126)),
            ("cancel of 1", native("00000001 08 00 0000"), cancel(1)),
        ],
    );
}

#[test]
fn native_names_foreign_peers() {
    let case = |name, bytes: &[u8], peer| (name, bytes.to_vec(), DecodeError::Foreign(peer));
    assert_refused(
        Native,
        &[
            case("GET", b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
            case("POST", b"POST /rpc HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP"),
            case("HEAD", b"HEAD / HTTP/1.0\r\n\r\n", "HTTP"),
            case("PUT", b"PUT /key HTTP/1.1\r\n\r\n", "HTTP"),
            case("a response", b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
            case("SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
            case("TLS 1.0 record", &hex("1603010200 01 0001FC 0303 00000000"), "TLS"),
            case("TLS 1.2 record", &hex("1603030045 01 000041 0303 00000000"), "TLS"),
        ],
    );
}

#[test]
fn legal_native_frame_is_not_taken_for_a_foreign_peer() {
    // "GET " is also a length, of a push with nothing wrong where bodies may be that long.
    let header = native("47455420 01 00 0000");
    let max_body = 0x4745_5420;
    let frame = decode(&Native, &header, max_body).expect("a legal header");
    assert!(matches!(frame, Decoded::Frame { len, .. } if len == max_body + 24));
    let error = decode(&Native, &header, max_body - 1);
    assert_eq!(error, Err(DecodeError::Foreign("HTTP")));
}

#[test]
fn native_refuses_at_the_eighth_byte() {
    let header = native("00000000 09 00 0000");
    assert_eq!(decode(&Native, &header[..7], MAX_BODY), Ok(Decoded::need(8)));
    assert_eq!(decode(&Native, &header[..8], MAX_BODY), Err(DecodeError::UnknownKind(9)));
}

#[test]
fn tcpstream_refuses_bad_headers() {
    let magic = |found| DecodeError::BadMagic { found, expected: 0xAD12 };
    let header = |front: &str| hex(&format!("{front} 0000000000000001 00000000"));
    assert_refused(
        Tcpstream,
        &[
            ("magic of zeros", header("0000 00000000"), magic(0)),
            ("magic of ones", header("FFFF 00000000"), magic(0xFFFF)),
            ("first byte of the magic", header("AC12 00000000"), magic(0xAC12)),
            ("second byte of the magic", header("AD13 00000000"), magic(0xAD13)),
            ("magic in the other order", header("12AD 00000000"), magic(0x12AD)),
            ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), magic(0x4745)),
            ("over the maximum", header("AD12 000003E9"), too_long(1001)),
            ("length of 1 GiB", header("AD12 40000000"), too_long(1 << 30)),
            ("length of 2^32 - 1", header("AD12 FFFFFFFF"), too_long(u64::from(u32::MAX))),
        ],
    );
}

#[test]
fn tcpstream_refuses_a_magic_at_the_second_byte() {
    assert_eq!(decode(&Tcpstream, &[0], MAX_BODY), Ok(Decoded::need(2)));
    let error = DecodeError::BadMagic { found: 0xAD, expected: 0xAD12 };
    assert_eq!(decode(&Tcpstream, &[0, 0xAD], MAX_BODY), Err(error));
}

/// A header of qtk3 with this sign and length.
fn qtk3(sign: u8, len: f64) -> Vec<u8> {
    [&[sign][..], &[b'x'; 36], &len.to_be_bytes()].concat()
}

#[test]
fn qtk3_refuses_bad_headers() {
    let not_bytes = |name, len| (name, qtk3(0x11, len), DecodeError::BadLength(len));
    assert_refused(
        Qtk3,
        &[
            ("sign 0", qtk3(0, 0.0), DecodeError::BadSign(0)),
            ("sign 0x10", qtk3(0x10, 0.0), DecodeError::BadSign(0x10)),
            ("sign 0x11 with a bit more", qtk3(0x91, 0.0), DecodeError::BadSign(0x91)),
            ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), DecodeError::BadSign(b'G')),
            not_bytes("NaN", f64::NAN),
            not_bytes("negative NaN", -f64::NAN),
            not_bytes("infinity", f64::INFINITY),
            not_bytes("negative infinity", f64::NEG_INFINITY),
            not_bytes("-1", -1.0),
            not_bytes("-10, which the library takes for 35 bytes", -10.0),
            not_bytes("-45, which stops the library", -45.0),
            not_bytes("-1e300", -1e300),
            not_bytes("1.5", 1.5),
            not_bytes("a fraction under the maximum", 999.5),
            not_bytes("a fraction over the maximum", 1000.5),
            not_bytes("a fraction over 2^32", 4_294_967_296.5),
            not_bytes("the smallest number above 0", 5e-324),
            not_bytes("the smallest below 0", -5e-324),
            ("over the maximum", qtk3(0x11, 1001.0), too_long(1001)),
            ("2^32 - 1", qtk3(0x11, 4_294_967_295.0), too_long((1 << 32) - 1)),
            ("2^32", qtk3(0x11, 4_294_967_296.0), too_long(1 << 32)),
            ("2^53", qtk3(0x11, 9_007_199_254_740_992.0), too_long(1 << 53)),
            ("2^63", qtk3(0x11, 9_223_372_036_854_775_808.0), too_long(1 << 63)),
            ("2^64", qtk3(0x11, 18_446_744_073_709_551_616.0), too_long(u64::MAX)),
            ("1e300", qtk3(0x11, 1e300), too_long(u64::MAX)),
            ("ping of 126", qtk3(0x01, 126.0), control(Kind::Ping, 126, 0, 125)),
            ("ping of 1e300", qtk3(0x01, 1e300), control(Kind::Ping, u64::MAX, 0, 125)),
            ("ping of NaN", qtk3(0x01, f64::NAN), DecodeError::BadLength(f64::NAN)),
        ],
    );
}

#[test]
fn qtk2_refuses_bad_headers() {
    let header = |sign: u8, len: u32| [&[sign][..], &[b'x'; 32], &len.to_be_bytes()].concat();
    assert_refused(
        Qtk2,
        &[
            ("sign 0", header(0, 0), DecodeError::BadSign(0)),
            ("sign 0x02", header(2, 0), DecodeError::BadSign(2)),
            ("over the maximum", header(0x11, 1001), too_long(1001)),
            ("2^31", header(0x11, 1 << 31), too_long(1 << 31)),
            ("2^32 - 1", header(0x11, u32::MAX), too_long(u64::from(u32::MAX))),
            ("ping of 126", header(0x01, 126), control(Kind::Ping, 126, 0, 125)),
        ],
    );
}

#[test]
fn qtk_refuses_a_sign_at_the_first_byte() {
    assert_eq!(decode(&Qtk3, &[0x12], MAX_BODY), Err(DecodeError::BadSign(0x12)));
    assert_eq!(decode(&Qtk2, &[0x12], MAX_BODY), Err(DecodeError::BadSign(0x12)));
}

fn length(set: impl FnOnce(LengthBuilder) -> LengthBuilder) -> Length {
    set(Length::builder()).build().expect("legal settings")
}

#[test]
fn length_refuses_bad_headers() {
    assert_refused(
        Length::default(),
        &[
            ("over the maximum", hex("000003E9"), too_long(1001)),
            ("1 GiB", hex("40000000"), too_long(1 << 30)),
            ("2^31", hex("80000000"), too_long(1 << 31)),
            ("2^32 - 1", hex("FFFFFFFF"), too_long(u64::from(u32::MAX))),
        ],
    );
}

#[test]
fn length_of_eight_bytes_refuses_what_overflows() {
    assert_refused(
        length(|builder| builder.field_bytes(8)),
        &[
            ("over the maximum", hex("00000000000003E9"), too_long(1001)),
            ("2^63", hex("8000000000000000"), too_long(1 << 63)),
            ("2^64 - 1", hex("FFFFFFFFFFFFFFFF"), too_long(u64::MAX)),
        ],
    );
}

#[test]
fn length_that_counts_its_header_refuses_less() {
    let below = |len| DecodeError::LengthBelowHeader { len, header: 6 };
    assert_refused(
        length(|builder| builder.offset(2).counts_header(true)),
        &[
            ("nothing", hex("0000 00000000"), below(0)),
            ("less than the field", hex("0000 00000003"), below(3)),
            ("one less than the header", hex("0000 00000005"), below(5)),
            ("over the maximum", hex("0000 000003EF"), too_long(1001)),
        ],
    );
}

#[test]
fn length_adjusted_below_zero_is_refused() {
    let range = |len| DecodeError::LengthOutOfRange { len, adjustment: -4 };
    assert_refused(
        length(|builder| builder.adjustment(-4)),
        &[
            ("nothing", hex("00000000"), range(0)),
            ("one less", hex("00000003"), range(3)),
            ("over the maximum", hex("000003ED"), too_long(1001)),
        ],
    );
}

#[test]
fn length_adjusted_over_two_to_the_64_is_refused() {
    assert_refused(
        length(|builder| builder.field_bytes(8).adjustment(1)),
        &[(
            "2^64",
            hex("FFFFFFFFFFFFFFFF"),
            DecodeError::LengthOutOfRange { len: u64::MAX, adjustment: 1 },
        )],
    );
}

#[test]
fn length_below_what_is_skipped_is_refused() {
    let range = |len| DecodeError::LengthOutOfRange { len, adjustment: 0 };
    assert_refused(
        length(|builder| builder.skip(6)),
        &[
            ("nothing", hex("00000000"), range(0)),
            ("one less", hex("00000001"), range(1)),
            ("over the maximum", hex("000003EB"), too_long(1001)),
        ],
    );
}

#[test]
fn length_that_overflows_memory_is_refused_without_a_maximum() {
    let length = length(|builder| builder.field_bytes(8));
    let error = decode(&length, &hex("FFFFFFFFFFFFFFFF"), usize::MAX);
    assert_eq!(error, Err(DecodeError::BodyTooLong { len: u64::MAX, max: usize::MAX as u64 }));
}
