//! The hello of the native format.

use super::{decode_all, hex};
use crate::protocol::{DecodeError, Hello, Kind, Length, Native, Protocol, Qtk2, Qtk3, Tcpstream};

const HELLO: Hello = Hello::new(8 * 1024 * 1024, 4096, 20_000, 30_000);

fn decode(digits: &str) -> Result<Hello, DecodeError> {
    Native.decode_hello(&hex(digits))
}

#[test]
fn hello_has_a_header_and_twenty_bytes() {
    let mut wire = Vec::new();
    Native.encode_hello(&HELLO, &mut wire);
    let header = "00000014 00 00 0000 00000000 00000000 0000000000000000";
    let body = "0001 0000 00800000 00001000 00004E20 00007530";
    assert_eq!(wire, hex(&format!("{header} {body}")));
}

#[test]
fn hello_comes_back_as_it_was() {
    let mut wire = Vec::new();
    Native.encode_hello(&HELLO, &mut wire);
    let [(head, body)] = &decode_all(&Native, &wire, 0)[..] else { panic!("not one frame") };
    assert_eq!((head.kind, head.id), (Kind::Hello, 0));
    assert_eq!(Native.decode_hello(body), Ok(HELLO));
}

#[test]
fn longer_hello_is_read_and_the_rest_ignored() {
    let hello = decode("0001 0000 00800000 00001000 00004E20 00007530 FFFFFF");
    assert_eq!(hello, Ok(HELLO));
}

#[test]
fn short_hello_is_refused() {
    let error = DecodeError::ControlLength { kind: Kind::Hello, len: 19, min: 20, max: 1024 };
    assert_eq!(decode("0001 0000 00800000 00001000 00004E20 000075"), Err(error));
}

#[test]
fn empty_hello_is_refused() {
    let error = DecodeError::ControlLength { kind: Kind::Hello, len: 0, min: 20, max: 1024 };
    assert_eq!(decode(""), Err(error));
}

#[test]
fn hello_of_version_zero_is_refused() {
    let hello = decode("0000 0000 00800000 00001000 00004E20 00007530");
    assert_eq!(hello, Err(DecodeError::HelloVersion(0)));
}

#[test]
fn unknown_flag_of_version_one_is_refused() {
    let hello = decode("0001 8000 00800000 00001000 00004E20 00007530");
    assert_eq!(hello, Err(DecodeError::HelloFlags(0x8000)));
}

#[test]
fn later_version_may_have_flags() {
    let hello = decode("0002 8000 00800000 00001000 00004E20 00007530").expect("a hello");
    assert_eq!(hello, Hello { version: 2, ..HELLO });
}

#[test]
fn only_native_has_a_hello() {
    assert!(Native.has_hello());
    assert!(!Tcpstream.has_hello());
    assert!(!Qtk3.has_hello());
    assert!(!Qtk2.has_hello());
    assert!(!Length::default().has_hello());
}
