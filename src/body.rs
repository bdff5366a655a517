//! Bodies: the values that can be sent as messages.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

/// Something that can be sent: bytes, and perhaps a tag.
///
/// Borrowed bytes are copied once, straight into the write buffer where the sender is on the loop.
/// Owned ones and a [`Bytes`] are not copied where they are large: they are held until they are
/// written. A body without a
/// tag gets tag 0, or the request's own where it is an answer; [`Tagged`] sets one.
///
/// The trait is sealed; what implements it is listed below.
pub trait Body: sealed::Sealed {
    /// The bytes.
    fn as_slice(&self) -> &[u8];

    /// The bytes as something that can be kept; copies borrowed ones.
    fn into_bytes(self) -> Bytes
    where
        Self: Sized;

    /// Whether [`into_bytes`](Self::into_bytes) hands over or shares the bytes, instead of copying
    /// them.
    fn is_shared(&self) -> bool;

    /// The tag, where one was given.
    fn tag(&self) -> Option<u32> {
        None
    }
}

/// A body with a tag, the application's message type.
///
/// # Examples
///
/// ```
/// use longhaul::{Body, Tagged};
///
/// let body = Tagged(7, "hello");
/// assert_eq!(body.tag(), Some(7));
/// assert_eq!(body.as_slice(), b"hello");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged<B>(
    /// The tag.
    pub u32,
    /// The body.
    pub B,
);

impl<B: Body> Body for Tagged<B> {
    fn as_slice(&self) -> &[u8] {
        self.1.as_slice()
    }

    fn into_bytes(self) -> Bytes {
        self.1.into_bytes()
    }

    fn is_shared(&self) -> bool {
        self.1.is_shared()
    }

    fn tag(&self) -> Option<u32> {
        Some(self.0)
    }
}

impl Body for Bytes {
    fn as_slice(&self) -> &[u8] {
        self
    }

    fn into_bytes(self) -> Bytes {
        self
    }

    fn is_shared(&self) -> bool {
        true
    }
}

/// Shares the bytes.
impl Body for &Bytes {
    fn as_slice(&self) -> &[u8] {
        self
    }

    fn into_bytes(self) -> Bytes {
        self.clone()
    }

    fn is_shared(&self) -> bool {
        true
    }
}

macro_rules! owned_body {
    ($($owned:ty),*) => {$(
        impl Body for $owned {
            fn as_slice(&self) -> &[u8] {
                self.as_ref()
            }

            fn into_bytes(self) -> Bytes {
                self.into()
            }

            fn is_shared(&self) -> bool {
                true
            }
        }
    )*};
}

macro_rules! borrowed_body {
    ($($borrowed:ty),*) => {$(
        impl Body for $borrowed {
            fn as_slice(&self) -> &[u8] {
                self.as_ref()
            }

            fn into_bytes(self) -> Bytes {
                Bytes::copy_from_slice(self.as_ref())
            }

            fn is_shared(&self) -> bool {
                false
            }
        }
    )*};
}

owned_body!(Vec<u8>, Box<[u8]>, String, BytesMut);
borrowed_body!(&[u8], &str, &Vec<u8>, &String);

/// Of text of which only a part had to be made anew, as [`Message::text`](crate::Message::text) gives it.
impl Body for Cow<'_, str> {
    fn as_slice(&self) -> &[u8] {
        self.as_bytes()
    }

    fn into_bytes(self) -> Bytes {
        self.into_owned().into()
    }

    fn is_shared(&self) -> bool {
        matches!(self, Cow::Owned(_))
    }
}

macro_rules! array_body {
    ($($array:ty),*) => {$(
        impl<const N: usize> Body for $array {
            fn as_slice(&self) -> &[u8] {
                self.as_ref()
            }

            fn into_bytes(self) -> Bytes {
                Bytes::copy_from_slice(self.as_ref())
            }

            fn is_shared(&self) -> bool {
                false
            }
        }
    )*};
}

array_body!([u8; N], &[u8; N]);

pub(crate) mod sealed {
    use super::{Body, Bytes, BytesMut, Cow, Tagged};

    #[allow(unnameable_types, reason = "sealed")]
    pub trait Sealed {}

    impl<B: Body> Sealed for Tagged<B> {}
    impl Sealed for Bytes {}
    impl Sealed for &Bytes {}
    impl Sealed for Vec<u8> {}
    impl Sealed for Box<[u8]> {}
    impl Sealed for String {}
    impl Sealed for BytesMut {}
    impl Sealed for &[u8] {}
    impl Sealed for &str {}
    impl Sealed for &Vec<u8> {}
    impl Sealed for &String {}
    impl Sealed for Cow<'_, str> {}
    impl<const N: usize> Sealed for [u8; N] {}
    impl<const N: usize> Sealed for &[u8; N] {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_bytes_and_arrays_are_bodies_owned_or_lent() {
        fn is_hi(body: impl Body, is_shared: bool) {
            assert_eq!((body.as_slice(), body.is_shared()), (&b"hi"[..], is_shared));
            assert_eq!(body.into_bytes(), "hi");
        }
        let (text, bytes, shared) = ("hi".to_owned(), b"hi".to_vec(), Bytes::from("hi"));
        is_hi("hi", false);
        is_hi(&text, false);
        is_hi(&bytes, false);
        is_hi(&shared, true);
        is_hi(text, true);
        is_hi(*b"hi", false);
        is_hi(b"hi", false);
        is_hi(&b"hi"[..], false);
        is_hi(bytes, true);
        is_hi(Box::<[u8]>::from(*b"hi"), true);
        is_hi(Cow::Borrowed("hi"), false);
        is_hi(Cow::<str>::Owned("hi".to_owned()), true);
        is_hi(shared, true);
        is_hi(BytesMut::from("hi"), true);
        is_hi(Tagged(7, *b"hi"), false);
    }
}
