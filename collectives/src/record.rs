//! What a call was: the part of it on which all ranks must agree.

use std::fmt;

use crate::digest::fnv1a;

/// Kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CallKind {
    /// All-reduce.
    AllReduce = 1,
    /// Broadcast from a root.
    Broadcast = 2,
    /// Barrier.
    Barrier = 3,
    /// Send and receive between two ranks.
    PointToPoint = 4,
}

/// One call, as far as all ranks must agree on it. Fixed size, so that it fits a recorder slot and
/// a control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallRecord {
    /// Which collective.
    pub kind: CallKind,
    /// [`DataType`](crate::DataType) as its number.
    pub data_type: u8,
    /// [`Op`](crate::Op) as its number; 0 where nothing is reduced.
    pub operation: u8,
    /// [`Algorithm`](crate::Algorithm) as its number.
    pub algorithm: u8,
    /// Root, or `u32::MAX`.
    pub root: u32,
    /// Elements.
    pub count: u64,
}

impl CallRecord {
    /// Size of the encoded record.
    pub const ENCODED_BYTES: usize = 16;

    /// The record as bytes.
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let mut out = [0; Self::ENCODED_BYTES];
        out[0] = self.kind as u8;
        out[1] = self.data_type;
        out[2] = self.operation;
        out[3] = self.algorithm;
        out[4..8].copy_from_slice(&self.root.to_le_bytes());
        out[8..16].copy_from_slice(&self.count.to_le_bytes());
        out
    }

    /// The record from bytes; `None` where they are not one.
    pub fn decode(bytes: &[u8; Self::ENCODED_BYTES]) -> Option<CallRecord> {
        let kind = match bytes[0] {
            1 => CallKind::AllReduce,
            2 => CallKind::Broadcast,
            3 => CallKind::Barrier,
            4 => CallKind::PointToPoint,
            _ => return None,
        };
        Some(CallRecord {
            kind,
            data_type: bytes[1],
            operation: bytes[2],
            algorithm: bytes[3],
            root: u32::from_le_bytes(bytes[4..8].try_into().ok()?),
            count: u64::from_le_bytes(bytes[8..16].try_into().ok()?),
        })
    }

    /// Digest that frames carry: FNV-1a over the encoded record, folded to 32 bits.
    pub fn digest(&self) -> u32 {
        let hash = fnv1a(self.encode());
        (hash ^ (hash >> 32)) as u32
    }
}

impl fmt::Display for CallRecord {
    /// `all-reduce of 1000 f32, sum (ring)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data_type = crate::DataType::from_number(self.data_type).map_or("?", |t| t.name());
        match self.kind {
            CallKind::AllReduce => {
                let op = crate::Op::from_number(self.operation).map_or("?", |o| o.name());
                write!(f, "all-reduce of {} {data_type}, {op}", self.count)?;
            }
            CallKind::Broadcast => {
                write!(f, "broadcast of {} {data_type} from rank {}", self.count, self.root)?;
            }
            CallKind::Barrier => return write!(f, "barrier"),
            CallKind::PointToPoint => {
                return write!(f, "send/receive of {} {data_type}", self.count);
            }
        }
        match crate::Algorithm::from_number(self.algorithm) {
            Some(algorithm) => write!(f, " ({algorithm})"),
            None => Ok(()),
        }
    }
}
