//! The header of every frame on the wire: 32 bytes, little-endian.
//!
//! ```text
//!  0      1         2       3                     20    23       24         28       32
//! | kind | channel | flags | credits, a channel  | len | number | sequence | digest | payload ...
//! ```
//!
//! Every frame returns the credits that its sender owes, so that they rarely need a frame of their
//! own. Whatever comes from the wire is checked here before it is used.
//!
//! Where frames have checksums, those follow the header: first the payload's, then that of the header and of the
//! payload's checksum.

use super::SLICE_BYTES;
use crate::checksum::{self, CHECKSUM_BYTES};
use crate::{CHANNELS, Tag};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;

/// Bytes that follow a header where frames have checksums.
pub(super) const CHECKSUMS_BYTES: usize = 2 * CHECKSUM_BYTES;

/// Both of one frame.
const CHECKED_BYTES: usize = HEADER_BYTES + CHECKSUMS_BYTES;

const CREDITS_AT: usize = 3;
const LEN_AT: usize = CREDITS_AT + CHANNELS;
const NUMBER_AT: usize = LEN_AT + 3;
const SEQUENCE_AT: usize = NUMBER_AT + 1;
const DIGEST_AT: usize = SEQUENCE_AT + 4;
const _: () = assert!(DIGEST_AT + 4 == HEADER_BYTES);
const _: () = assert!(SLICE_BYTES < 1 << 24);

const LEN_MASK: u32 = (1 << 24) - 1;

const LAST: u8 = 1;
const ASK: u8 = 2;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A slice of a message; uses a credit of its channel.
    Data = 1,
    /// Returns credits, or asks for them, and nothing else.
    Credit = 2,
    /// The sender's last frame.
    Goodbye = 3,
}

/// A frame without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is. Only data has a channel, a length, a tag and an end.
    pub kind: Kind,
    /// Channel of the slice.
    pub channel: u8,
    /// Number of the slice on its channel, counted from 0 and wrapping: the sockets of a link may
    /// deliver slices in another order.
    pub number: u8,
    /// The slice ends its message.
    pub last: bool,
    /// Data: the receiver shall return its credits as soon as this slice is released. Credit: as
    /// soon as anything is released that it holds now.
    pub ask: bool,
    /// Credits returned to the receiver of this frame, for each channel.
    pub credits: [u8; CHANNELS],
    /// Bytes of payload that follow.
    pub len: u32,
    /// The operation that the slice belongs to.
    pub tag: Tag,
}

impl Header {
    /// A frame without a slice.
    pub fn control(kind: Kind, ask: bool, credits: [u8; CHANNELS]) -> Header {
        let (channel, number, len) = (0, 0, 0);
        Header { kind, channel, number, last: false, ask, credits, len, tag: Tag::default() }
    }

    /// The header's bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind as u8;
        bytes[1] = self.channel;
        bytes[2] = (u8::from(self.last) * LAST) | (u8::from(self.ask) * ASK);
        bytes[CREDITS_AT..LEN_AT].copy_from_slice(&self.credits);
        put_u32(&mut bytes, LEN_AT, self.len);
        bytes[NUMBER_AT] = self.number;
        put_u32(&mut bytes, SEQUENCE_AT, self.tag.sequence);
        put_u32(&mut bytes, DIGEST_AT, self.tag.digest);
        bytes
    }
}

/// Reads a header and checks everything about it that does not depend on what came before.
///
/// # Errors
/// What is wrong with it. Whatever is accepted encodes to the same bytes.
pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, &'static str> {
    let kind = match bytes[0] {
        1 => Kind::Data,
        2 => Kind::Credit,
        3 => Kind::Goodbye,
        _ => return Err("unknown kind of frame"),
    };
    if bytes[2] & !(LAST | ASK) != 0 {
        return Err("unknown flag");
    }
    let mut credits = [0; CHANNELS];
    credits.copy_from_slice(&bytes[CREDITS_AT..LEN_AT]);
    let header = Header {
        kind,
        channel: bytes[1],
        number: bytes[NUMBER_AT],
        last: bytes[2] & LAST != 0,
        ask: bytes[2] & ASK != 0,
        credits,
        len: get_u32(bytes, LEN_AT) & LEN_MASK,
        tag: Tag { sequence: get_u32(bytes, SEQUENCE_AT), digest: get_u32(bytes, DIGEST_AT) },
    };
    if usize::from(header.channel) >= CHANNELS {
        return Err("unknown channel");
    }
    if header.len as usize > SLICE_BYTES {
        return Err("frame longer than a slot");
    }
    if kind != Kind::Data && header != Header::control(kind, header.ask, credits) {
        return Err("control frame with a slice");
    }
    if kind == Kind::Credit && !header.ask && credits == [0; CHANNELS] {
        return Err("credit frame that says nothing");
    }
    Ok(header)
}

/// What follows a header that stands before a payload of this checksum.
pub(super) fn checksums(header: &[u8; HEADER_BYTES], payload: u32) -> [u8; CHECKSUMS_BYTES] {
    let mut bytes = [0; CHECKED_BYTES];
    bytes[..HEADER_BYTES].copy_from_slice(header);
    bytes[HEADER_BYTES..][..CHECKSUM_BYTES].copy_from_slice(&payload.to_le_bytes());
    let own = checksum::of(&bytes[..CHECKED_BYTES - CHECKSUM_BYTES]);
    bytes[CHECKED_BYTES - CHECKSUM_BYTES..].copy_from_slice(&own.to_le_bytes());
    let mut checksums = [0; CHECKSUMS_BYTES];
    checksums.copy_from_slice(&bytes[HEADER_BYTES..]);
    checksums
}

/// The payload's checksum, if header and checksums are as they were sent.
pub(super) fn payload_checksum(bytes: &[u8; CHECKED_BYTES]) -> Option<u32> {
    let (header, rest) = bytes.split_first_chunk()?;
    let (payload, _) = rest.split_first_chunk()?;
    let payload = u32::from_le_bytes(*payload);
    (checksums(header, payload) == rest).then_some(payload)
}

fn put_u32(bytes: &mut [u8; HEADER_BYTES], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get_u32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Header {
        let mut credits = [0; CHANNELS];
        credits[3] = 7;
        credits[CHANNELS - 1] = 2;
        Header {
            kind: Kind::Data,
            channel: 16,
            number: 0x55,
            last: true,
            ask: true,
            credits,
            len: SLICE_BYTES as u32,
            tag: Tag { sequence: 0x0102_0304, digest: 0xfffe_fdfc },
        }
    }

    #[test]
    fn a_header_survives_the_wire() {
        let header = example();
        assert_eq!(parse(&header.encode()), Ok(header));
        let goodbye = Header::control(Kind::Goodbye, false, [1; CHANNELS]);
        assert_eq!(parse(&goodbye.encode()), Ok(goodbye));
    }

    #[test]
    fn the_wire_is_little_endian_at_fixed_places() {
        let bytes = example().encode();
        assert_eq!(bytes[..3], [1, 16, 3]);
        assert_eq!(bytes[3 + 3], 7);
        assert_eq!(bytes[20..24], [0, 0, 2, 0x55]);
        assert_eq!(bytes[24..], [4, 3, 2, 1, 0xfc, 0xfd, 0xfe, 0xff]);
    }

    #[test]
    fn checksums_tell_of_each_bit_of_a_header() {
        let header = example().encode();
        let mut bytes = [0; CHECKED_BYTES];
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        bytes[HEADER_BYTES..].copy_from_slice(&checksums(&header, 0x89ab_cdef));
        assert_eq!(payload_checksum(&bytes), Some(0x89ab_cdef));
        for bit in 0..8 * CHECKED_BYTES {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(payload_checksum(&bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn damage_is_refused() {
        for (at, value, reason) in [
            (0, 0, "unknown kind of frame"),
            (0, 4, "unknown kind of frame"),
            (0, 2, "control frame with a slice"),
            (1, 17, "unknown channel"),
            (2, 4, "unknown flag"),
            (20, 1, "frame longer than a slot"),
            (22, 0x80, "frame longer than a slot"),
        ] {
            let mut bytes = example().encode();
            bytes[at] = value;
            assert_eq!(parse(&bytes), Err(reason), "byte {at} set to {value}");
        }
    }
}
