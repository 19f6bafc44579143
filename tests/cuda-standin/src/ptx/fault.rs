//! How a launch can go wrong.

use std::fmt;

use super::Access;

/// What ended a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An access to memory that is not there (`CUDA_ERROR_ILLEGAL_ADDRESS`).
    IllegalAddress {
        /// Who did it.
        at: Place,
        /// State space, for example "global".
        space: &'static str,
        /// Of the access, in that space.
        address: u64,
        /// Of the access.
        len_bytes: usize,
        /// What was wanted.
        access: Access,
    },
    /// An address that is no multiple of the access's size (`CUDA_ERROR_MISALIGNED_ADDRESS`).
    Misaligned {
        /// Who did it.
        at: Place,
        /// Of the access.
        address: u64,
        /// What it must be a multiple of.
        len_bytes: usize,
    },
    /// The instruction `trap` (`CUDA_ERROR_LAUNCH_FAILED`).
    Trap {
        /// Who did it.
        at: Place,
    },
    /// An instruction with operands it cannot have (`CUDA_ERROR_ILLEGAL_INSTRUCTION`).
    IllegalInstruction {
        /// Who did it.
        at: Place,
        /// What is wrong.
        what: String,
    },
    /// All threads of a block wait, and none of what they wait for can come.
    Deadlock {
        /// One of those threads.
        at: Place,
        /// Who waits where.
        what: String,
    },
    /// The launch does not fit the kernel; nothing was executed.
    InvalidLaunch {
        /// What does not fit.
        what: String,
    },
    /// [`super::Launch::stop`] said so.
    Stopped,
}

/// A thread at an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The kernel's name.
    pub kernel: String,
    /// Line of the PTX text, counted from 1.
    pub line: usize,
    /// `blockIdx`.
    pub block: [u32; 3],
    /// `threadIdx`.
    pub thread: [u32; 3],
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { kernel, line, block, thread } = self;
        write!(formatter, "kernel {kernel}, PTX line {line}, block {block:?}, thread {thread:?}")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::IllegalAddress { at, space, address, len_bytes, access } => {
                let verb = if *access == Access::Read { "read" } else { "write" };
                write!(formatter, "{at}: {verb} of {len_bytes} bytes of {space} memory at ")?;
                write!(formatter, "{address:#x}, which are not there")
            }
            Fault::Misaligned { at, address, len_bytes } => {
                write!(formatter, "{at}: address {address:#x} is no multiple of {len_bytes}")
            }
            Fault::Trap { at } => write!(formatter, "{at}: trap"),
            Fault::IllegalInstruction { at, what } => write!(formatter, "{at}: {what}"),
            Fault::Deadlock { at, what } => write!(formatter, "{at}: deadlock: {what}"),
            Fault::InvalidLaunch { what } => write!(formatter, "invalid launch: {what}"),
            Fault::Stopped => write!(formatter, "the launch was told to stop"),
        }
    }
}

impl std::error::Error for Fault {}
