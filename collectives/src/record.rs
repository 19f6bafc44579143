//! What a call was: the part of it on which all ranks must agree.

use std::fmt;

use ringtree_plan::Collective;

use crate::digest::{fnv1a, fold};

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
    /// All-gather.
    AllGather = 5,
    /// Reduce-scatter.
    ReduceScatter = 6,
    /// Reduction to a root.
    Reduce = 7,
    /// Gather to a root.
    Gather = 8,
    /// Scatter from a root.
    Scatter = 9,
    /// All-to-all.
    AllToAll = 10,
    /// All-gather of blocks that differ in length.
    AllGatherV = 11,
    /// Reduce-scatter of blocks that differ in length.
    ReduceScatterV = 12,
    /// Gather of blocks that differ in length.
    GatherV = 13,
    /// Scatter of blocks that differ in length.
    ScatterV = 14,
    /// All-to-all of blocks that differ in length.
    AllToAllV = 15,
    /// All-reduce of several buffers that are packed into one.
    AllReduceGroup = 16,
}

impl CallKind {
    const ALL: [CallKind; 16] = [
        CallKind::AllReduce,
        CallKind::Broadcast,
        CallKind::Barrier,
        CallKind::PointToPoint,
        CallKind::AllGather,
        CallKind::ReduceScatter,
        CallKind::Reduce,
        CallKind::Gather,
        CallKind::Scatter,
        CallKind::AllToAll,
        CallKind::AllGatherV,
        CallKind::ReduceScatterV,
        CallKind::GatherV,
        CallKind::ScatterV,
        CallKind::AllToAllV,
        CallKind::AllReduceGroup,
    ];

    /// Whether blocks differ in length.
    pub(crate) const fn is_varied(self) -> bool {
        self.has_known_lengths()
            || matches!(self, CallKind::GatherV | CallKind::ScatterV | CallKind::AllToAllV)
    }

    /// Whether blocks differ in length, and all ranks know the lengths of all.
    pub(crate) const fn has_known_lengths(self) -> bool {
        matches!(self, CallKind::AllGatherV | CallKind::ReduceScatterV)
    }

    /// The collective, from or to `root` where it has one; `None` for a message between two ranks.
    pub(crate) const fn collective(self, root: u32) -> Option<Collective> {
        Some(match self {
            CallKind::AllReduce | CallKind::AllReduceGroup => Collective::AllReduce,
            CallKind::Broadcast => Collective::Broadcast { root },
            CallKind::Barrier => Collective::Barrier,
            CallKind::PointToPoint => return None,
            CallKind::AllGather | CallKind::AllGatherV => Collective::AllGather,
            CallKind::ReduceScatter | CallKind::ReduceScatterV => Collective::ReduceScatter,
            CallKind::Reduce => Collective::Reduce { root },
            CallKind::Gather | CallKind::GatherV => Collective::Gather { root },
            CallKind::Scatter | CallKind::ScatterV => Collective::Scatter { root },
            CallKind::AllToAll | CallKind::AllToAllV => Collective::AllToAll,
        })
    }
}

/// In place of an algorithm's number: one kernel of each rank's GPU does it all (`device/board.rs`).
pub(crate) const ONE_KERNEL: u8 = 255;

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
    /// [`Algorithm`](crate::Algorithm) as its number; 255 where one kernel of each rank's GPU does it all.
    pub algorithm: u8,
    /// Root, or `u32::MAX`; where all ranks know the lengths of blocks or buffers that
    /// differ, what those hash to.
    pub root: u32,
    /// Elements of the buffer; where it is cut into a block for each rank, of a block. Where blocks differ
    /// in length, of all of them, or 0 where a rank knows only those that it gives or gets.
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
        let kind = CallKind::ALL.into_iter().find(|kind| *kind as u8 == bytes[0])?;
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
        fold(fnv1a(self.encode()))
    }
}

impl fmt::Display for CallRecord {
    /// `all-reduce of 1000 f32, sum (ring)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data_type = crate::DataType::from_number(self.data_type).map_or("?", |t| t.name());
        let Some(collective) = self.kind.collective(self.root) else {
            return write!(f, "send/receive of {} {data_type}", self.count);
        };
        if collective == Collective::Barrier {
            return write!(f, "barrier");
        }
        match self.kind {
            kind if kind.has_known_lengths() || kind == CallKind::AllReduceGroup => {
                let (name, count, lengths) = (collective.name(), self.count, self.root);
                let v = if kind.is_varied() { "-v" } else { "" };
                write!(f, "{name}{v} of {count} {data_type} in all, lengths #{lengths:08x}")?;
            }
            kind if kind.is_varied() => write!(f, "{}-v of {data_type}", collective.name())?,
            _ => write!(f, "{} of {} {data_type}", collective.name(), self.count)?,
        }
        if collective.is_of_blocks() && !self.kind.is_varied() {
            write!(f, " a rank")?;
        }
        match collective {
            Collective::Broadcast { root } | Collective::Scatter { root } => {
                write!(f, " from rank {root}")?;
            }
            Collective::Reduce { root } | Collective::Gather { root } => {
                write!(f, " to rank {root}")?;
            }
            _ => {}
        }
        if collective.is_reduction() {
            let op = crate::Op::from_number(self.operation).map_or("?", |o| o.name());
            write!(f, ", {op}")?;
        }
        match crate::Algorithm::from_number(self.algorithm) {
            Some(algorithm) => write!(f, " ({algorithm})"),
            None if self.algorithm == ONE_KERNEL => write!(f, " (one kernel of each GPU)"),
            None => Ok(()),
        }
    }
}
