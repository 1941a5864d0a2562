//! Plain-data types with a fixed layout.

use crate::packet::Ports;

/// A map type: its size, and its bytes exactly as the kernel sees them.
pub trait Layout: Sized {
    /// The byte array, `[u8; N]` with `N` the size of the type.
    type Bytes: AsRef<[u8]>;

    /// The bytes of this value, as they stand in the map.
    fn to_bytes(&self) -> Self::Bytes;

    /// The value that stands in the map as `bytes`; `None` if there are not exactly as many as it needs.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

/// Defines a `repr(C)` struct of integers and byte arrays, and refuses at compile time one with padding.
macro_rules! plain {
    ($(#[$meta:meta])* pub struct $name:ident [$size:literal] { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        const _: () = assert!(size_of::<$name>() == $size, "size differs from what the maps are made with");
        const _: () = assert!(0 $(+ size_of::<$type>())* == $size, "implicit padding");

        impl $crate::layout::Layout for $name {
            type Bytes = [u8; $size];

            fn to_bytes(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                let mut rest = &mut bytes[..];
                $(rest = $crate::layout::Field::put(&self.$field, rest);)*
                debug_assert!(rest.is_empty());
                bytes
            }

            fn from_bytes(bytes: &[u8]) -> Option<Self> {
                let rest = bytes;
                $(let ($field, rest) = <$type as $crate::layout::Field>::take(rest)?;)*
                rest.is_empty().then_some(Self { $($field),* })
            }
        }
    };
}
pub(crate) use plain;

/// A field of a plain struct.
pub(crate) trait Field: Sized {
    fn put<'a>(&self, to: &'a mut [u8]) -> &'a mut [u8];
    fn take(from: &[u8]) -> Option<(Self, &[u8])>;
}

macro_rules! integer_field {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn put<'a>(&self, to: &'a mut [u8]) -> &'a mut [u8] {
                self.to_ne_bytes().put(to)
            }
            fn take(from: &[u8]) -> Option<(Self, &[u8])> {
                let (bytes, rest) = from.split_first_chunk()?;
                Some((Self::from_ne_bytes(*bytes), rest))
            }
        }
    )*};
}
integer_field!(u8, u16, u32, u64);

impl Field for Ports {
    fn put<'a>(&self, to: &'a mut [u8]) -> &'a mut [u8] {
        self.to_word().put(to)
    }
    fn take(from: &[u8]) -> Option<(Self, &[u8])> {
        let (word, rest) = u32::take(from)?;
        Some((Self::from_word(word), rest))
    }
}

impl<const N: usize> Field for [u8; N] {
    fn put<'a>(&self, to: &'a mut [u8]) -> &'a mut [u8] {
        match to.split_first_chunk_mut() {
            Some((place, rest)) => {
                *place = *self;
                rest
            }
            None => &mut [],
        }
    }
    fn take(from: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, rest) = from.split_first_chunk()?;
        Some((*bytes, rest))
    }
}

impl Field for crate::Address {
    fn put<'a>(&self, to: &'a mut [u8]) -> &'a mut [u8] {
        self.0.put(to)
    }
    fn take(from: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, rest) = <[u8; 16]>::take(from)?;
        Some((Self(bytes), rest))
    }
}
