//! What a peer is told: the header in front of a slice or alone in a line, and the immediate of a work
//! request, which says where to look.
//!
//! ```text
//! header, 64 bytes, little-endian
//!  0      1         2       3        4     8          12       16                    36      38
//! | kind | channel | flags | number | len | sequence | digest | credits, a channel  | lines | directs |
//!  40        44       48       56      64
//! | message | memory | offset | length |
//! ```
//!
//! Where frames have checksums, nothing is offered, and in place of `message` and `memory` stand the checksum
//! of the payload and, of the header with that, its own.
//!
//! Every header returns the credits that its sender owes, and how many lines and direct writes it has
//! taken in, so that these rarely need a line of their own. Whatever comes from the wire is checked here
//! before it is used.

use super::{MAX_QUEUES, SLICE_BYTES};
use crate::checksum::{self, CHECKSUM_BYTES};
use crate::{CHANNELS, Tag};

/// Bytes of a header: a cache line, so that a payload behind it is aligned.
pub(super) const HEADER_BYTES: usize = 64;

const LEN_AT: usize = 4;
const SEQUENCE_AT: usize = 8;
const DIGEST_AT: usize = 12;
const CREDITS_AT: usize = 16;
const LINES_AT: usize = 36;
const DIRECTS_AT: usize = 38;
const MESSAGE_AT: usize = 40;
const MEMORY_AT: usize = 44;
const PAYLOAD_CHECKSUM_AT: usize = MESSAGE_AT;
const CHECKSUM_AT: usize = MEMORY_AT;
const OFFSET_AT: usize = 48;
const LENGTH_AT: usize = 56;
const _: () = assert!(CREDITS_AT + CHANNELS <= LINES_AT);

const LAST: u8 = 1;
const ASK: u8 = 2;

/// What a header is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// A slice of a message lies behind it.
    Data(Data),
    /// Returns credits, or asks for them, and nothing else.
    Credit { ask: bool },
    /// Room for a message that is yet to come.
    Offer { channel: u8, offer: Offer },
    /// The sender has closed a queue pair, on which so many writes had told of themselves.
    Closed { queue: u8, received: u64 },
}

/// A slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) channel: u8,
    /// Number of the frame on its channel, counted from 0 and wrapping: queue pairs deliver in an order each.
    pub(super) number: u8,
    /// The slice ends its message.
    pub(super) last: bool,
    /// Its credit shall come back as soon as it is released.
    pub(super) ask: bool,
    pub(super) len: u32,
    pub(super) tag: Tag,
}

/// Room in the memory of whoever makes the offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Number of the message on its channel, wrapping.
    pub(super) message: u32,
    /// The operation that it is expected from.
    pub(super) tag: Tag,
    /// Which of the memories that it has told of.
    pub(super) memory: u32,
    /// From the memory's first byte.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) body: Body,
    /// Credits returned to whoever gets this, for each channel.
    pub(super) credits: [u8; CHANNELS],
    /// Lines, and direct writes, that its sender has ever taken in, wrapping.
    pub(super) lines_taken: u16,
    pub(super) directs_taken: u16,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[CREDITS_AT..][..CHANNELS].copy_from_slice(&self.credits);
        put(&mut bytes, LINES_AT, &self.lines_taken.to_le_bytes());
        put(&mut bytes, DIRECTS_AT, &self.directs_taken.to_le_bytes());
        let tag = match self.body {
            Body::Data(Data { channel, number, last, ask, len, tag }) => {
                let flags = (u8::from(last) * LAST) | (u8::from(ask) * ASK);
                bytes[..4].copy_from_slice(&[1, channel, flags, number]);
                put(&mut bytes, LEN_AT, &len.to_le_bytes());
                tag
            }
            Body::Credit { ask } => {
                bytes[..3].copy_from_slice(&[2, 0, u8::from(ask) * ASK]);
                Tag::default()
            }
            Body::Offer { channel, offer } => {
                bytes[..2].copy_from_slice(&[3, channel]);
                put(&mut bytes, MESSAGE_AT, &offer.message.to_le_bytes());
                put(&mut bytes, MEMORY_AT, &offer.memory.to_le_bytes());
                put(&mut bytes, OFFSET_AT, &offer.offset.to_le_bytes());
                put(&mut bytes, LENGTH_AT, &offer.len.to_le_bytes());
                offer.tag
            }
            Body::Closed { queue, received } => {
                bytes[..4].copy_from_slice(&[4, 0, 0, queue]);
                put(&mut bytes, OFFSET_AT, &received.to_le_bytes());
                Tag::default()
            }
        };
        put(&mut bytes, SEQUENCE_AT, &tag.sequence.to_le_bytes());
        put(&mut bytes, DIGEST_AT, &tag.digest.to_le_bytes());
        bytes
    }
}

/// Reads a header and checks everything about it that does not depend on what came before.
///
/// # Errors
/// What is wrong with it. Whatever is accepted encodes to the same bytes.
pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, &'static str> {
    let [kind, channel, flags, number, ..] = *bytes;
    let tag = Tag { sequence: u32_at(bytes, SEQUENCE_AT), digest: u32_at(bytes, DIGEST_AT) };
    if usize::from(channel) >= CHANNELS {
        return Err("unknown channel");
    }
    let (last, ask) = (flags & LAST != 0, flags & ASK != 0);
    let body = match kind {
        1 => {
            let len = u32_at(bytes, LEN_AT);
            if len as usize > SLICE_BYTES {
                return Err("a slice longer than a slot");
            }
            Body::Data(Data { channel, number, last, ask, len, tag })
        }
        2 => Body::Credit { ask },
        3 => {
            let message = u32_at(bytes, MESSAGE_AT);
            let memory = u32_at(bytes, MEMORY_AT);
            let (offset, len) = (u64_at(bytes, OFFSET_AT), u64_at(bytes, LENGTH_AT));
            Body::Offer { channel, offer: Offer { message, tag, memory, offset, len } }
        }
        4 if usize::from(number) >= MAX_QUEUES => return Err("unknown queue pair"),
        4 => Body::Closed { queue: number, received: u64_at(bytes, OFFSET_AT) },
        _ => return Err("unknown kind of header"),
    };
    let mut credits = [0; CHANNELS];
    credits.copy_from_slice(&bytes[CREDITS_AT..][..CHANNELS]);
    let taken = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (lines_taken, directs_taken) = (taken(LINES_AT), taken(DIRECTS_AT));
    let header = Header { body, credits, lines_taken, directs_taken };
    if header.encode() != *bytes {
        return Err("a header that says what its kind does not");
    }
    Ok(header)
}

/// Adds the checksums to a header that is not an offer.
pub(super) fn add_checksums(bytes: &mut [u8; HEADER_BYTES], payload: u32) {
    put(bytes, PAYLOAD_CHECKSUM_AT, &payload.to_le_bytes());
    let own = checksum::of(bytes);
    put(bytes, CHECKSUM_AT, &own.to_le_bytes());
}

/// Takes the checksums out of a header again. Returns the payload's, if the header is as it was sent.
pub(super) fn take_checksums(bytes: &mut [u8; HEADER_BYTES]) -> Option<u32> {
    let own = u32_at(bytes, CHECKSUM_AT);
    put(bytes, CHECKSUM_AT, &[0; CHECKSUM_BYTES]);
    let is_whole = checksum::of(bytes) == own;
    let payload = u32_at(bytes, PAYLOAD_CHECKSUM_AT);
    put(bytes, PAYLOAD_CHECKSUM_AT, &[0; CHECKSUM_BYTES]);
    is_whole.then_some(payload)
}

fn put(bytes: &mut [u8; HEADER_BYTES], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// What the immediate of a write tells: where its header lies, or what it was itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Immediate {
    /// A header and a slice are in this slot.
    Slot(u8),
    /// A header is in this line.
    Line(u8),
    /// A header is in the line that is kept for this queue pair's end.
    Closed(u8),
    /// It was a part of a message, written to where it was offered room.
    Direct { channel: u8, number: u8, last: bool },
}

impl Immediate {
    pub(super) fn encode(self) -> u32 {
        match self {
            Immediate::Slot(slot) => u32::from(slot),
            Immediate::Line(line) => 1 << 24 | u32::from(line),
            Immediate::Closed(queue) => 2 << 24 | u32::from(queue),
            Immediate::Direct { channel, number, last } => {
                3 << 24 | u32::from(last) << 16 | u32::from(channel) << 8 | u32::from(number)
            }
        }
    }

    pub(super) fn parse(value: u32) -> Result<Immediate, &'static str> {
        let [low, middle, high, kind] = value.to_le_bytes();
        let immediate = match kind {
            0 => Immediate::Slot(low),
            1 => Immediate::Line(low),
            2 => Immediate::Closed(low),
            3 if usize::from(middle) < CHANNELS => {
                Immediate::Direct { channel: middle, number: low, last: high == 1 }
            }
            _ => return Err("unknown immediate"),
        };
        if immediate.encode() == value { Ok(immediate) } else { Err("unknown immediate") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(body: Body) -> Header {
        let mut credits = [0; CHANNELS];
        (credits[3], credits[CHANNELS - 1]) = (7, 2);
        Header { body, credits, lines_taken: 0x0102, directs_taken: 0xfffe }
    }

    fn examples() -> [Body; 4] {
        let tag = Tag { sequence: 0x0102_0304, digest: 0xfffe_fdfc };
        let offer = Offer { message: 9, tag, memory: 5, offset: 1 << 40, len: 5 << 30 };
        let len = SLICE_BYTES as u32;
        [
            Body::Data(Data { channel: 16, number: 255, last: true, ask: true, len, tag }),
            Body::Credit { ask: true },
            Body::Offer { channel: 2, offer },
            Body::Closed { queue: MAX_QUEUES as u8 - 1, received: u64::MAX },
        ]
    }

    #[test]
    fn headers_survive_the_wire() {
        for body in examples() {
            assert_eq!(parse(&header(body).encode()), Ok(header(body)));
        }
    }

    #[test]
    fn no_byte_is_overlooked() {
        for body in examples() {
            let bytes = header(body).encode();
            for at in 0..HEADER_BYTES {
                let mut damaged = bytes;
                damaged[at] ^= 0xa5;
                assert_ne!(parse(&damaged), Ok(header(body)), "byte {at} of {body:?}");
            }
        }
    }

    #[test]
    fn checksums_tell_of_each_bit_of_a_header() {
        for body in examples().into_iter().filter(|body| !matches!(body, Body::Offer { .. })) {
            let mut bytes = header(body).encode();
            add_checksums(&mut bytes, 0x89ab_cdef);
            let mut whole = bytes;
            assert_eq!(take_checksums(&mut whole), Some(0x89ab_cdef));
            assert_eq!(parse(&whole), Ok(header(body)));
            for bit in 0..8 * HEADER_BYTES {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(take_checksums(&mut damaged), None, "bit {bit} of {body:?}");
            }
        }
    }

    #[test]
    fn damage_is_refused() {
        let [data, _, _, closed] = examples().map(|body| header(body).encode());
        for (bytes, at, value, reason) in [
            (data, 0, 0, "unknown kind of header"),
            (data, 0, 5, "unknown kind of header"),
            (data, 0, 2, "a header that says what its kind does not"),
            (data, 1, 17, "unknown channel"),
            (data, 2, 4, "a header that says what its kind does not"),
            (data, 7, 1, "a slice longer than a slot"),
            (data, 34, 1, "a header that says what its kind does not"),
            (closed, 3, MAX_QUEUES as u8, "unknown queue pair"),
        ] {
            let mut bytes = bytes;
            bytes[at] = value;
            assert_eq!(parse(&bytes), Err(reason), "byte {at} set to {value}");
        }
    }

    /// A peer may write anything at all there.
    #[test]
    fn whatever_is_accepted_is_written_the_same() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut accepted = 0;
        for turn in 0..200_000 {
            // Some that are nearly right, so that many are accepted.
            let mut bytes = header(examples()[turn % 4]).encode();
            for _ in 0..random() % 3 {
                bytes[random() as usize % HEADER_BYTES] = random() as u8;
            }
            if let Ok(header) = parse(&bytes) {
                assert_eq!(header.encode(), bytes);
                accepted += 1;
            }
            let immediate = random() as u32;
            if let Ok(parsed) = Immediate::parse(immediate) {
                assert_eq!(parsed.encode(), immediate);
            }
        }
        assert!(accepted > 50_000, "{accepted}");
    }

    #[test]
    fn immediates_survive_and_others_are_refused() {
        for immediate in [
            Immediate::Slot(31),
            Immediate::Line(0),
            Immediate::Closed(7),
            Immediate::Direct { channel: 16, number: 255, last: true },
            Immediate::Direct { channel: 0, number: 0, last: false },
        ] {
            assert_eq!(Immediate::parse(immediate.encode()), Ok(immediate));
        }
        for value in [1 << 8, 4 << 24, u32::MAX, 3 << 24 | 17 << 8, 3 << 24 | 2 << 16] {
            assert!(Immediate::parse(value).is_err(), "{value:#x}");
        }
    }
}
