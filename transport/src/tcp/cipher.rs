//! Encryption of the frames of one socket: AES-256-GCM (NIST SP 800-38D) with the keys that its
//! Noise handshake gave.
//!
//! The header of a frame is one sealed record and its payload, unless it is empty, another one: the
//! length is proved before it is believed. Records are numbered by their nonces, so that none can
//! be left out, repeated or moved.
//!
//! After [`RECORDS_A_KEY`] records each direction goes on with another key, which the one before gives and which
//! does not give that one.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::secure::{FrameKeys, KEY_BYTES, next_frame_key};

/// Bytes that a record is longer than what it holds.
pub(super) const TAG_BYTES: usize = 16;

/// Records that one key seals. They have 2^33 blocks of the cipher at most, and 2^34.5 are safe: as many as those of
/// 2^24.5 records of 16 KiB (RFC 8446, section 5.5).
const RECORDS_A_KEY: u64 = 1 << 20;

/// Seals records in one direction.
#[derive(Debug)]
pub(super) struct Sealer(Records);

/// Opens records in one direction.
#[derive(Debug)]
pub(super) struct Opener(Records);

struct Records {
    secret: [u8; KEY_BYTES],
    key: LessSafeKey,
    /// Number of the next record among those of the key.
    next: u64,
    records_a_key: u64,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("next", &self.next).finish_non_exhaustive()
    }
}

/// A record that is not the next one of its sender's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unproven;

/// Both directions of one socket.
pub(super) fn ciphers(keys: &FrameKeys) -> (Sealer, Opener) {
    let records = |key: [u8; KEY_BYTES]| Records::new(key, RECORDS_A_KEY);
    (Sealer(records(keys.send)), Opener(records(keys.receive)))
}

impl Sealer {
    /// Encrypts `data` and returns the tag that follows it.
    pub fn seal(&mut self, data: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = self.0.nonce();
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::empty(), data);
        let tag = tag.expect("a record is far shorter than AES-GCM allows");
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }
}

impl Opener {
    /// Decrypts what stands before the tag at the end of `sealed`.
    ///
    /// # Errors
    /// It is not the next record that the peer sealed.
    pub fn open(&mut self, sealed: &mut [u8]) -> Result<(), Unproven> {
        let nonce = self.0.nonce();
        let opened = self.0.key.open_in_place(nonce, Aad::empty(), sealed);
        opened.map(drop).map_err(|_| Unproven)
    }
}

impl Records {
    fn new(secret: [u8; KEY_BYTES], records_a_key: u64) -> Records {
        let key = UnboundKey::new(&AES_256_GCM, &secret).expect("the key has the cipher's length");
        Records { secret, key: LessSafeKey::new(key), next: 0, records_a_key }
    }

    /// The nonce of the next record, with which another key may begin.
    fn nonce(&mut self) -> Nonce {
        if self.next == self.records_a_key {
            *self = Records::new(next_frame_key(&self.secret), self.records_a_key);
        }
        let mut bytes = [0; NONCE_LEN];
        bytes[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        Nonce::assume_unique_for_key(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Opener) {
        let keys = FrameKeys { send: [1; 32], receive: [2; 32] };
        let (_, opener) = ciphers(&FrameKeys { send: [2; 32], receive: [1; 32] });
        (ciphers(&keys).0, opener)
    }

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut record = text.to_vec();
        let tag = sealer.seal(&mut record);
        [record, tag.to_vec()].concat()
    }

    #[test]
    fn records_open_in_their_order_and_nowhere_else() {
        let (mut sealer, mut opener) = pair();
        let mut first = sealed(&mut sealer, b"first");
        let mut second = sealed(&mut sealer, b"second");
        assert!(!first.windows(5).any(|part| part == b"first"));
        opener.open(&mut first).unwrap();
        assert_eq!(&first[..5], b"first");
        opener.open(&mut second).unwrap();
        assert!(opener.open(&mut second.clone()).is_err(), "repeated");

        let (mut sealer, mut opener) = pair();
        sealed(&mut sealer, b"left out");
        assert!(opener.open(&mut sealed(&mut sealer, b"second")).is_err());
    }

    #[test]
    fn both_ends_go_on_with_another_key_at_the_limit() {
        const LIMIT: u64 = 3;
        let records = || Records::new([1; KEY_BYTES], LIMIT);
        let (mut sealer, mut opener) = (Sealer(records()), Opener(records()));
        let mut secrets = Vec::new();
        for number in 0..10 * LIMIT {
            let mut record = sealed(&mut sealer, b"text");
            secrets.push(sealer.0.secret);
            // Who keeps the first key opens the records of that one alone.
            let mut old =
                Opener(Records { next: number % LIMIT, ..Records::new([1; 32], u64::MAX) });
            assert_eq!(old.open(&mut record.clone()).is_ok(), number < LIMIT, "record {number}");
            assert_eq!(opener.open(&mut record), Ok(()), "record {number}");
            assert_eq!(&record[..4], b"text");
        }
        secrets.dedup();
        assert_eq!(secrets.len(), 10, "a key for {LIMIT} records each");
    }

    #[test]
    fn one_bit_that_differs_is_noticed() {
        for bit in 0..8 * (4 + TAG_BYTES) {
            let (mut sealer, mut opener) = pair();
            let mut record = sealed(&mut sealer, b"text");
            record[bit / 8] ^= 1 << (bit % 8);
            assert!(opener.open(&mut record).is_err(), "bit {bit}");
        }
    }
}
