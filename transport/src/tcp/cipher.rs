//! Encryption of the frames of one socket: AES-256-GCM (NIST SP 800-38D) with the keys that its
//! Noise handshake gave.
//!
//! The header of a frame is one sealed record and its payload, unless it is empty, another one: the
//! length is proved before it is believed. Records are numbered by their nonces, so that none can
//! be left out, repeated or moved.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::secure::FrameKeys;

/// Bytes that a record is longer than what it holds.
pub(super) const TAG_BYTES: usize = 16;

/// Seals records in one direction.
#[derive(Debug)]
pub(super) struct Sealer(Records);

/// Opens records in one direction.
#[derive(Debug)]
pub(super) struct Opener(Records);

#[derive(Debug)]
struct Records {
    key: LessSafeKey,
    next: u64,
}

/// A record that is not the next one of its sender's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unproven;

/// Both directions of one socket.
pub(super) fn ciphers(keys: &FrameKeys) -> (Sealer, Opener) {
    (Sealer(Records::new(&keys.send)), Opener(Records::new(&keys.receive)))
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
    fn new(key: &[u8; 32]) -> Records {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the cipher's length");
        Records { key: LessSafeKey::new(key), next: 0 }
    }

    /// The nonce of the next record. A socket does not live to see 2^64 of them.
    fn nonce(&mut self) -> Nonce {
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
    fn one_bit_that_differs_is_noticed() {
        for bit in 0..8 * (4 + TAG_BYTES) {
            let (mut sealer, mut opener) = pair();
            let mut record = sealed(&mut sealer, b"text");
            record[bit / 8] ^= 1 << (bit % 8);
            assert!(opener.open(&mut record).is_err(), "bit {bit}");
        }
    }
}
