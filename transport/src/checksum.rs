//! Checksums of what crosses a link: CRC32C (Castagnoli 1993, RFC 3720), which finds every change of one bit,
//! every burst of at most 32, and misses others once in four thousand million times.
//!
//! Where the ranks agree on them, each transport's frames carry two: one of the payload, and one of what the
//! frame says of itself, the first one included. What has not passed its own is shown to nobody.

use std::fmt;

use crc_fast::CrcAlgorithm;

use crate::{Channel, Tag};

/// Bytes of a checksum.
pub(crate) const CHECKSUM_BYTES: usize = 4;

/// Which bytes are not those that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// What a frame says of itself: nothing else of it can be believed.
    Header,
    /// Bytes of a message.
    Payload {
        /// The channel that it came on.
        channel: Channel,
        /// The operation that it belongs to.
        tag: Tag,
        /// Where in the message the damaged frame begins; `None` where what comes before it has not come yet.
        begin: Option<u64>,
        /// How many bytes it has.
        len: u64,
    },
    /// What the peer has published for an exchange.
    Board {
        /// The operation that it belongs to, if its number can be believed.
        tag: Tag,
        /// How many bytes it has, likewise.
        len: u64,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Header => write!(f, "the header of a frame"),
            Damage::Payload { channel, tag, begin, len } => {
                match begin {
                    Some(begin) => write!(f, "bytes {begin} to {}", begin + len),
                    None => write!(f, "{len} bytes"),
                }?;
                write!(f, " of a message of operation {} on channel {channel}", tag.sequence)
            }
            Damage::Board { tag, len } => {
                write!(f, "{len} bytes that it published for operation {}", tag.sequence)
            }
        }
    }
}

/// The checksum of bytes.
#[inline]
pub(crate) fn of(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The checksum of memory.
///
/// # Safety
/// `data .. data + len` must be readable. A peer that breaks the protocol may write there meanwhile, which
/// makes the checksum a wrong one.
#[inline]
pub(crate) unsafe fn of_memory(data: *const u8, len: usize) -> u32 {
    if len == 0 {
        return of(&[]);
    }
    // SAFETY: the caller's promise.
    of(unsafe { std::slice::from_raw_parts(data, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_crc32c() {
        // RFC 3720, appendix B.4.
        assert_eq!(of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(of(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(of(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn each_bit_changes_it() {
        for len in [1, 7, 64, 1000] {
            let mut bytes: Vec<u8> = (0..len).map(|i| (i * 37) as u8).collect();
            let before = of(&bytes);
            for bit in 0..8 * len {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(of(&bytes), before, "bit {bit} of {len} bytes");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
