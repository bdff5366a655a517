//! The ids that we make: calls differ, and no push has the id of a call.

use std::collections::HashSet;

use proptest::{prelude::any, prop_assert, prop_assert_eq, prop_assert_ne, proptest};

use super::uuid_3;
use crate::protocol::{AnyProtocol, Length, Native, NoId, Protocol, Qtk2, Qtk3, Tcpstream, Uuid};

/// Call numbers around each power of two.
fn edges() -> impl Iterator<Item = u64> {
    (0..64)
        .map(|bit| 1 << bit)
        .chain([0])
        .flat_map(|n: u64| [n.wrapping_sub(1), n, n.wrapping_add(1)])
        .collect::<HashSet<_>>()
        .into_iter()
}

fn assert_calls_differ<P: Protocol>(protocol: &P, salt: u64) {
    let ids: HashSet<_> = edges().map(|n| protocol.call_id(n, salt)).collect();
    assert_eq!(ids.len(), edges().count(), "{}", protocol.name());
    for n in edges() {
        let push = Some(protocol.push_id(n, salt));
        assert!(!ids.contains(&push), "{} {n}: {push:?}", protocol.name());
    }
}

#[test]
fn qtk_call_ids_differ_and_are_no_push_ids() {
    for salt in [0, 1, 0x0123_4567_89AB_CDEF, u64::MAX] {
        assert_calls_differ(&Qtk3, salt);
        assert_calls_differ(&Qtk2, salt);
    }
}

#[test]
fn native_call_id_is_its_number() {
    assert_eq!(Native.first_call(u64::MAX), 1);
    assert_eq!(Native.call_id(1, u64::MAX), Some(1));
    assert_eq!(Native.call_id(u64::MAX, 0), Some(u64::MAX));
}

#[test]
fn native_and_tcpstream_pushes_have_id_zero() {
    assert_eq!(Native.push_id(5, u64::MAX), 0);
    assert_eq!(Tcpstream.push_id(5, u64::MAX), 0);
}

#[test]
fn native_goaway_excludes_the_requests_above_its_id() {
    assert!(Native.may_be_handled(&6, &7));
    assert!(Native.may_be_handled(&7, &7));
    assert!(!Native.may_be_handled(&8, &7));
    assert!(!Native.may_be_handled(&1, &0));
}

#[test]
fn formats_without_a_goaway_exclude_no_request() {
    assert!(Tcpstream.may_be_handled(&8, &7));
    assert!(Qtk3.may_be_handled(&uuid_3(), &Uuid::from([0; 36])));
}

#[test]
fn length_has_no_calls() {
    assert_eq!(Length::default().call_id(1, 1), None);
    assert_eq!(Length::default().push_id(1, 1), NoId);
}

#[test]
fn qtk_ids_are_made_of_salt_and_number() {
    let id = Qtk3.call_id(0xFEDC_BA98_7654_3210, 0x0123_4567_89AB_CDEF).expect("has calls");
    assert_eq!(id.to_string(), "48d159e2-6af3-47bf-bedc-ba9876543210");
    let id = Qtk2.call_id(0xFEDC_BA98_7654_3210, 0x0123_4567_89AB_CDEF).expect("has calls");
    assert_eq!(id.to_string(), "48d159e26af347bfbedcba9876543210");
}

#[test]
fn uuid_prints_as_its_text() {
    assert_eq!(uuid_3().to_string(), "123e4567-e89b-12d3-a456-426614174000");
    assert_eq!(format!("{:?}", uuid_3()), "Uuid(123e4567-e89b-12d3-a456-426614174000)");
    assert_eq!(uuid_3().as_bytes(), b"123e4567-e89b-12d3-a456-426614174000");
}

#[test]
fn uuid_of_other_bytes_prints_them_too() {
    let uuid = Uuid::from(*b"a\xFF\n\0");
    assert_eq!(uuid.to_string(), "a\u{FFFD}\n\0");
    assert_eq!(format!("{uuid:?}"), r"Uuid(a\xff\n\x00)");
}

proptest! {
    #[test]
    fn tcpstream_calls_start_in_the_upper_half_with_room_above(salt in any::<u64>()) {
        let first = Tcpstream.first_call(salt);
        prop_assert!(first >= 1 << 63);
        prop_assert!(u64::MAX - first >= 1 << 62);
    }

    #[test]
    fn tcpstream_call_ids_keep_their_number_and_stay_in_the_upper_half(
        salt in any::<u64>(),
        count in 0..1_u64 << 62,
    ) {
        let n = Tcpstream.first_call(salt) + count;
        prop_assert_eq!(Tcpstream.call_id(n, salt), Some(n));
    }

    #[test]
    fn tcpstream_number_that_wrapped_stays_in_the_upper_half(n in any::<u64>()) {
        prop_assert!(Tcpstream.call_id(n, 0).is_some_and(|id| id >= 1 << 63));
    }

    #[test]
    fn tcpstream_starts_differ_by_salt(salt in any::<u64>(), other in any::<u64>()) {
        let is_same = Tcpstream.first_call(salt) == Tcpstream.first_call(other);
        prop_assert_eq!(is_same, salt >> 2 == other >> 2);
    }

    #[test]
    fn qtk_ids_of_different_numbers_differ(n in any::<u64>(), m in any::<u64>(), salt in any::<u64>()) {
        prop_assert_eq!(Qtk3.call_id(n, salt) == Qtk3.call_id(m, salt), n == m);
        prop_assert_eq!(Qtk2.call_id(n, salt) == Qtk2.call_id(m, salt), n == m);
        prop_assert_ne!(Qtk3.call_id(n, salt), Some(Qtk3.push_id(m, salt)));
        prop_assert_ne!(Qtk2.call_id(n, salt), Some(Qtk2.push_id(m, salt)));
        prop_assert_ne!(Qtk3.call_id(n, salt), Some(Qtk3.push_id(n, salt)));
        prop_assert_ne!(Qtk2.call_id(n, salt), Some(Qtk2.push_id(n, salt)));
    }

    #[test]
    fn qtk_ids_are_uuids_of_version_four(n in any::<u64>(), salt in any::<u64>()) {
        let with_hyphens = Qtk3.push_id(n, salt).to_string();
        let groups: Vec<_> = with_hyphens.split('-').collect();
        let lengths: Vec<_> = groups.iter().map(|group| group.len()).collect();
        prop_assert_eq!(lengths, [8, 4, 4, 4, 12]);
        prop_assert!(groups[2].starts_with('4'));
        prop_assert!(groups[3].starts_with(['8', '9', 'a', 'b']));
        let digits = groups.concat();
        prop_assert!(digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')));
        prop_assert_eq!(digits, Qtk2.push_id(n, salt).to_string());
    }

    #[test]
    fn ids_of_any_are_those_of_its_format(n in any::<u64>(), salt in any::<u64>()) {
        let any = AnyProtocol::from(Qtk3);
        prop_assert_eq!(any.call_id(n, salt), Qtk3.call_id(n, salt).map(crate::protocol::AnyId::Qtk3));
    }
}
