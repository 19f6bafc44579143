//! What is written over a path, and how what arrives differs from it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the bytes of a message are. Each differs everywhere from the one before, so that a write that was lost
/// shows what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Each word is its own number, with the seed: finds what went to another place.
    Addresses,
    /// All bits are set.
    Ones,
    /// No bit is set.
    Zeroes,
    /// One bit of each word is set, the next one in the next word.
    WalkingOne,
    /// One bit of each word is not set.
    WalkingZero,
    /// Random words, by the seed.
    Random,
}

/// Bytes of a word.
const WORD_BYTES: usize = size_of::<u64>();

impl Pattern {
    /// All of them, in the order in which they are written.
    pub const ALL: [Pattern; 6] = [
        Pattern::Addresses,
        Pattern::Ones,
        Pattern::Zeroes,
        Pattern::WalkingOne,
        Pattern::WalkingZero,
        Pattern::Random,
    ];

    /// Writes the pattern.
    pub fn fill(self, seed: u64, into: &mut [u8]) {
        for (index, chunk) in (0..).zip(into.chunks_mut(WORD_BYTES)) {
            chunk.copy_from_slice(&self.word(seed, index).to_le_bytes()[..chunk.len()]);
        }
    }

    /// Compares a part of a message, from byte `at` on, with the pattern.
    pub fn compare(self, seed: u64, at: usize, found: &[u8], differences: &mut Differences) {
        let mut found = found;
        let mut at = at;
        while !found.is_empty() {
            let word = self.word(seed, (at / WORD_BYTES) as u64).to_le_bytes();
            let expected = &word[at % WORD_BYTES..];
            let len = expected.len().min(found.len());
            let (part, rest) = found.split_at(len);
            if part != &expected[..len] {
                differences.add(at, &expected[..len], part);
            }
            found = rest;
            at += len;
        }
    }

    fn word(self, seed: u64, index: u64) -> u64 {
        match self {
            Pattern::Addresses => index ^ seed.rotate_left(32),
            Pattern::Ones => u64::MAX,
            Pattern::Zeroes => 0,
            Pattern::WalkingOne => 1 << (index % 64),
            Pattern::WalkingZero => !(1 << (index % 64)),
            Pattern::Random => split_mix(seed.wrapping_add(index)),
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn split_mix(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pattern::Addresses => "addresses",
            Pattern::Ones => "ones",
            Pattern::Zeroes => "zeroes",
            Pattern::WalkingOne => "a walking one",
            Pattern::WalkingZero => "a walking zero",
            Pattern::Random => "random bytes",
        })
    }
}

/// How what came differs from what was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// How many bytes differ.
    pub wrong_bytes: u64,
    /// The first of them.
    pub first: Option<WrongByte>,
}

/// A byte that is not the one that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongByte {
    /// Its place in the message.
    pub at: u64,
    /// What was sent.
    pub expected: u8,
    /// What came.
    pub found: u8,
}

impl Differences {
    fn add(&mut self, at: usize, expected: &[u8], found: &[u8]) {
        let differing = (at as u64..).zip(expected.iter().zip(found)).filter(|(_, (a, b))| a != b);
        for (at, (&expected, &found)) in differing {
            self.wrong_bytes += 1;
            self.first.get_or_insert(WrongByte { at, expected, found });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pattern_differs_from_the_one_before_nearly_everywhere() {
        let filled = |pattern: Pattern| {
            let mut bytes = vec![0; 4096];
            pattern.fill(7, &mut bytes);
            bytes
        };
        for pair in Pattern::ALL.windows(2) {
            let (before, after) = (filled(pair[0]), filled(pair[1]));
            let words = before.chunks(8).zip(after.chunks(8));
            assert!(words.clone().all(|(a, b)| a != b), "{} and {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn what_differs_is_counted_and_the_first_of_it_named() {
        for pattern in Pattern::ALL {
            let mut bytes = vec![0; 1003];
            pattern.fill(3, &mut bytes);
            let mut differences = Differences::default();
            // In parts that begin anywhere.
            pattern.compare(3, 0, &bytes[..13], &mut differences);
            pattern.compare(3, 13, &bytes[13..], &mut differences);
            assert_eq!(differences, Differences::default(), "{pattern}");
            let right = bytes[501];
            bytes[501] ^= 0x10;
            bytes[1002] ^= 1;
            pattern.compare(3, 0, &bytes[..501], &mut differences);
            pattern.compare(3, 501, &bytes[501..], &mut differences);
            let first = WrongByte { at: 501, expected: right, found: right ^ 0x10 };
            assert_eq!(
                differences,
                Differences { wrong_bytes: 2, first: Some(first) },
                "{pattern}"
            );
        }
    }
}
