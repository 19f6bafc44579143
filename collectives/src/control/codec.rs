//! Fields of control messages as bytes: little-endian, bounded, checked when read.

use super::recorder::{Entry, Operation, State, Stream, pack_stream, unpack_stream};
use super::verdict::{Awaited, Death, Place, Side};
use crate::record::CallRecord;

/// Longest text in a message; longer ones are cut.
pub(super) const MAX_TEXT_BYTES: usize = 512;

/// Longest list in a message; longer ones are cut, since the first elements tell enough.
pub(super) const MAX_LIST: usize = 1024;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message ends too early.
    #[error("the message ends within a field")]
    Truncated,
    /// The message goes on after its last field.
    #[error("{bytes} bytes follow the message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// The message is of another version.
    #[error("the message is of version {version}")]
    Version {
        /// Which.
        version: u8,
    },
    /// A field holds a value that it cannot have.
    #[error("the message's {field} is invalid")]
    Invalid {
        /// Which.
        field: &'static str,
    },
}

/// A field of a message.
pub(super) trait Field: Sized {
    /// Appends the field.
    fn write(&self, out: &mut Vec<u8>);
    /// Takes the field from the front of `input`.
    fn read(input: &mut &[u8]) -> Result<Self, WireError>;
}

/// Takes `N` bytes from the front of `input`.
fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (front, rest) = input.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
    *input = rest;
    Ok(*front)
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn read(input: &mut &[u8]) -> Result<Self, WireError> {
                Ok(<$type>::from_le_bytes(take(input)?))
            }
        }
    )*};
}
number!(u8, u16, u32, u64);

impl Field for bool {
    fn write(&self, out: &mut Vec<u8>) {
        u8::from(*self).write(out);
    }
    fn read(input: &mut &[u8]) -> Result<Self, WireError> {
        match u8::read(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Invalid { field: "flag" }),
        }
    }
}

impl Field for String {
    fn write(&self, out: &mut Vec<u8>) {
        let mut len = self.len().min(MAX_TEXT_BYTES);
        while !self.is_char_boundary(len) {
            len -= 1;
        }
        (len as u16).write(out);
        out.extend_from_slice(&self.as_bytes()[..len]);
    }
    fn read(input: &mut &[u8]) -> Result<Self, WireError> {
        let len = usize::from(u16::read(input)?);
        if len > MAX_TEXT_BYTES {
            return Err(WireError::Invalid { field: "text length" });
        }
        let (text, rest) = input.split_at_checked(len).ok_or(WireError::Truncated)?;
        *input = rest;
        let text = str::from_utf8(text).map_err(|_| WireError::Invalid { field: "text" })?;
        Ok(text.to_owned())
    }
}

impl<T: Field> Field for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }
    fn read(input: &mut &[u8]) -> Result<Self, WireError> {
        Ok(if bool::read(input)? { Some(T::read(input)?) } else { None })
    }
}

impl<T: Field> Field for Box<T> {
    fn write(&self, out: &mut Vec<u8>) {
        (**self).write(out);
    }
    fn read(input: &mut &[u8]) -> Result<Self, WireError> {
        T::read(input).map(Box::new)
    }
}

impl<T: Field> Field for Vec<T> {
    fn write(&self, out: &mut Vec<u8>) {
        let len = self.len().min(MAX_LIST);
        (len as u16).write(out);
        self[..len].iter().for_each(|element| element.write(out));
    }
    fn read(input: &mut &[u8]) -> Result<Self, WireError> {
        let len = usize::from(u16::read(input)?);
        if len > MAX_LIST {
            return Err(WireError::Invalid { field: "list length" });
        }
        (0..len).map(|_| T::read(input)).collect()
    }
}

impl Field for CallRecord {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encode());
    }
    fn read(input: &mut &[u8]) -> Result<Self, WireError> {
        CallRecord::decode(&take(input)?).ok_or(WireError::Invalid { field: "call record" })
    }
}

impl Field for Stream {
    fn write(&self, out: &mut Vec<u8>) {
        pack_stream(*self).write(out);
    }
    fn read(input: &mut &[u8]) -> Result<Self, WireError> {
        unpack_stream(u64::read(input)?).ok_or(WireError::Invalid { field: "stream" })
    }
}

/// Writes and reads a struct field by field.
macro_rules! fields {
    ($type:ident { $($field:ident),* }) => {
        impl Field for $type {
            fn write(&self, out: &mut Vec<u8>) {
                $(self.$field.write(out);)*
            }
            fn read(input: &mut &[u8]) -> Result<Self, WireError> {
                Ok($type { $($field: Field::read(input)?),* })
            }
        }
    };
}
pub(super) use fields;

fields!(Operation { stream, sequence, record });
fields!(Entry { operation, state, steps, waiting_for });
fields!(Place { host, pid, process_space });
fields!(Awaited { by, operation });
fields!(Side { rank, stream, record });

/// Writes and reads an enum: a number for the variant, then its fields.
macro_rules! variants {
    ($type:ident { $($number:literal => $variant:ident { $($field:ident),* }),* $(,)? }) => {
        impl Field for $type {
            fn write(&self, out: &mut Vec<u8>) {
                match self {$(
                    $type::$variant { $($field),* } => {
                        u8::write(&$number, out);
                        $($field.write(out);)*
                    }
                )*}
            }
            fn read(input: &mut &[u8]) -> Result<Self, WireError> {
                match u8::read(input)? {
                    $($number => Ok($type::$variant { $($field: Field::read(input)?),* }),)*
                    _ => Err(WireError::Invalid { field: stringify!($type) }),
                }
            }
        }
    };
}
pub(super) use variants;

variants!(State { 0 => Running {}, 1 => Completed {} });
variants!(Death { 0 => ProcessEnded {}, 1 => ConnectionLost {}, 2 => NoAnswer {} });
