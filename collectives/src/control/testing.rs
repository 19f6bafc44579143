//! What the tests of the control plane share.

use super::recorder::{Entry, Operation, State, Stream};
use crate::record::{CallKind, CallRecord};
use crate::{Algorithm, DataType, Op};

/// Pseudo-random numbers, xorshift64* (Vigna 2016): the same for the same seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub(super) fn all_reduce(count: u64) -> CallRecord {
    CallRecord {
        kind: CallKind::AllReduce,
        data_type: DataType::F32 as u8,
        operation: Op::Sum.number(),
        algorithm: Algorithm::Ring as u8,
        root: u32::MAX,
        count,
    }
}

pub(super) fn barrier() -> CallRecord {
    CallRecord {
        kind: CallKind::Barrier,
        data_type: 0,
        operation: 0,
        algorithm: Algorithm::Dissemination as u8,
        root: u32::MAX,
        count: 0,
    }
}

pub(super) fn operation(stream: Stream, sequence: u32, record: CallRecord) -> Operation {
    Operation { stream, sequence, record }
}

pub(super) fn entry(operation: Operation, state: State, waiting_for: Option<u32>) -> Entry {
    Entry { operation, state, steps: 0, waiting_for }
}
