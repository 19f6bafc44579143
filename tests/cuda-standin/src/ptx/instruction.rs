//! Instructions as they are executed.
//!
//! Every operand is a slot of the thread's register file. Immediates, addresses of variables and
//! special registers that never change for a thread have slots of their own, which are filled when the
//! thread starts: reading an operand is one indexed load, whatever it is.
//!
//! What a slot holds above its register's width is unspecified: who reads it cuts it to size.

use super::convert::Conversion;
use super::types::Type;

/// Index into a thread's register file.
pub(super) type Slot = u16;

/// Values computed from up to three operands.
pub(super) type Unary = fn(u64) -> u64;
pub(super) type Binary = fn(u64, u64) -> u64;
pub(super) type Ternary = fn(u64, u64, u64) -> u64;
pub(super) type Compare = fn(u64, u64) -> bool;

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instruction {
    pub guard: Guard,
    pub operation: Operation,
    /// Of the PTX text.
    pub line: u32,
}

/// `@%p` and `@!%p`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Guard {
    Always,
    If(Slot),
    Unless(Slot),
}

/// What an instruction does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Unary {
        apply: Unary,
        to: Slot,
        a: Slot,
    },
    Binary {
        apply: Binary,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    Ternary {
        apply: Ternary,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `lop3`: any function of three bits.
    Lookup {
        table: u8,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `bfi`, the one with four operands.
    Insert {
        kind: Type,
        to: Slot,
        a: Slot,
        b: Slot,
        position: Slot,
        len: Slot,
    },
    /// `setp`: the second destination takes the opposite.
    Compare {
        apply: Compare,
        to: Slot,
        opposite: Slot,
        a: Slot,
        b: Slot,
        combine: Combine,
    },
    Select {
        to: Slot,
        a: Slot,
        b: Slot,
        condition: Slot,
    },
    Convert {
        conversion: Conversion,
        to: Slot,
        a: Slot,
    },
    /// `mov.b64 %rd, {%r1, %r2}`.
    Pack {
        to: Slot,
        from: [Slot; 4],
        count: u8,
        piece_bits: u8,
    },
    /// `mov.b64 {%r1, %r2}, %rd`.
    Unpack {
        to: [Slot; 4],
        count: u8,
        piece_bits: u8,
        a: Slot,
    },
    Clock {
        to: Slot,
    },
    GlobalTimer {
        to: Slot,
    },
    ToGeneric {
        space: Space,
        to: Slot,
        a: Slot,
    },
    FromGeneric {
        space: Space,
        to: Slot,
        a: Slot,
    },
    Load {
        place: Address,
        kind: Type,
        count: u8,
        order: Order,
        to: [Slot; 4],
    },
    Store {
        place: Address,
        kind: Type,
        count: u8,
        order: Order,
        from: [Slot; 4],
    },
    Atomic {
        place: Address,
        kind: Type,
        order: Order,
        apply: Ternary,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    Fence {
        scope: Scope,
    },
    /// `count` is 0 for "all threads of the block".
    Barrier {
        id: Slot,
        count: Slot,
    },
    /// A barrier that also tells for how many threads, or whether for any or all, a predicate holds.
    BarrierReduce {
        mode: Reduce,
        id: Slot,
        count: Slot,
        to: Slot,
        value: Slot,
        negated: bool,
    },
    WarpBarrier {
        mask: Slot,
    },
    Shuffle {
        mode: Shuffle,
        to: Slot,
        valid: Slot,
        value: Slot,
        lane: Slot,
        clamp: Slot,
        mask: Slot,
    },
    Vote {
        mode: Vote,
        to: Slot,
        value: Slot,
        negated: bool,
        mask: Slot,
    },
    ActiveMask {
        to: Slot,
    },
    Branch {
        target: u32,
    },
    Exit,
    Trap,
    Nanosleep,
}

/// What `setp` does with its comparison and a further predicate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Combine {
    No,
    And { with: Slot, negated: bool },
    Or { with: Slot, negated: bool },
    Xor { with: Slot, negated: bool },
}

/// `[register+offset]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub space: Space,
    /// False for a base register of 32 bits.
    pub is_wide: bool,
    pub base: Slot,
    pub offset_bytes: i32,
}

/// State spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Generic,
    /// `.const` is memory of the device, too.
    Global,
    Shared,
    Local,
    Param,
}

/// What an access orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Made for being seen by others at work: volatile, relaxed, acquire, release, atomic.
    pub is_strong: bool,
    pub acquires: bool,
    /// The scope in which what came before is visible first.
    pub releases: Option<Scope>,
}

/// Who sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Block,
    /// `.gpu`, `.gl` and `.sys`.
    All,
}

/// `shfl` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// `bar.red` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reduce {
    Count,
    All,
    Any,
}

/// `vote` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What a slot holds when its thread starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SlotContent {
    /// Nothing: the program is to write it before it reads it.
    Register,
    Value(u64),
    /// Address of one of the module's variables, plus an offset.
    Variable {
        index: usize,
        offset_bytes: i64,
    },
    /// Offset into shared memory, from where the dynamic part starts.
    DynamicShared {
        offset_bytes: i64,
    },
    Special(Special),
}

/// Special registers that stay the same for a thread. The number is the dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Special {
    ThreadIndex(u8),
    BlockShape(u8),
    BlockIndex(u8),
    GridShape(u8),
    Lane,
    Warp,
    WarpCount,
    Processor,
    ProcessorCount,
    LaneMaskEqual,
    LaneMaskLess,
    LaneMaskLessEqual,
    LaneMaskGreater,
    LaneMaskGreaterEqual,
}

impl Special {
    /// Of names as `%tid.x`. The clocks are no constants and not here.
    pub fn parse(name: &str) -> Option<Special> {
        if let Some((base, dimension)) = name.split_once('.') {
            let dimension = ["x", "y", "z"].iter().position(|known| *known == dimension)? as u8;
            return Some(match base {
                "%tid" => Special::ThreadIndex(dimension),
                "%ntid" => Special::BlockShape(dimension),
                "%ctaid" => Special::BlockIndex(dimension),
                "%nctaid" => Special::GridShape(dimension),
                _ => return None,
            });
        }
        Some(match name {
            "%laneid" => Special::Lane,
            "%warpid" => Special::Warp,
            "%nwarpid" => Special::WarpCount,
            "%smid" => Special::Processor,
            "%nsmid" => Special::ProcessorCount,
            "%lanemask_eq" => Special::LaneMaskEqual,
            "%lanemask_lt" => Special::LaneMaskLess,
            "%lanemask_le" => Special::LaneMaskLessEqual,
            "%lanemask_gt" => Special::LaneMaskGreater,
            "%lanemask_ge" => Special::LaneMaskGreaterEqual,
            _ => return None,
        })
    }
}
