//! Stream memory operations: streams that wait for values in memory, and write them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst, fence};

use crate::code::{Code, Result};
use crate::counters::count;
use crate::initialisation::driver;
use crate::ipc::pause;
use crate::memory::Allocation;
use crate::stream::Stream;
use crate::{host_memory, settings};

/// How wide a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 4 bytes.
    Bits32,
    /// 8 bytes.
    Bits64,
}

/// `CUstreamBatchMemOpParams`: a union of structures that share these first fields.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BatchOperation {
    /// `CUstreamBatchMemOpType`.
    pub operation: u32,
    /// Flags of the operations without an address; else nothing.
    pub bare_flags: u32,
    /// Of the value.
    pub address: u64,
    /// Of which 32 bits count for the narrow operations.
    pub value: u64,
    /// Of the operations with an address.
    pub flags: u32,
    /// To be ignored.
    pub reserved: [u32; 5],
}

/// Of a batch, as documented.
const MOST_OPERATIONS: usize = 256;
/// `CU_STREAM_WAIT_VALUE_FLUSH`.
const FLUSH: u32 = 1 << 30;
/// `CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER`.
const NO_MEMORY_BARRIER: u32 = 1;

#[derive(Clone, Copy)]
enum Condition {
    AtLeast,
    Equal,
    And,
    Nor,
}

enum Operation {
    Wait(Width, u64, u64, Condition),
    Write(Width, u64, u64),
    Nothing,
}

impl Width {
    fn bytes(self) -> u64 {
        match self {
            Width::Bits32 => 4,
            Width::Bits64 => 8,
        }
    }
}

/// Lets a stream wait until memory has a value.
pub fn wait(stream: &Arc<Stream>, width: Width, address: u64, value: u64, flags: u32) -> Result {
    submit(stream, vec![parse_wait(stream, width, address, value, flags)?])
}

/// Lets a stream write a value.
pub fn write(stream: &Arc<Stream>, width: Width, address: u64, value: u64, flags: u32) -> Result {
    submit(stream, vec![parse_write(stream, width, address, value, flags)?])
}

/// Puts several operations in a stream, all of them or none.
pub fn batch(stream: &Arc<Stream>, operations: &[BatchOperation], flags: u32) -> Result {
    if operations.len() > MOST_OPERATIONS || flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let parse = |operation: &BatchOperation| {
        let BatchOperation { address, value, flags, bare_flags, .. } = *operation;
        match operation.operation {
            1 => parse_wait(stream, Width::Bits32, address, value, flags),
            2 => parse_write(stream, Width::Bits32, address, value, flags),
            4 => parse_wait(stream, Width::Bits64, address, value, flags),
            5 => parse_write(stream, Width::Bits64, address, value, flags),
            // Flush of remote writes, memory barrier: all memory here is the host's, and in order.
            3 if bare_flags == 0 => Ok(Operation::Nothing),
            6 if bare_flags <= 1 => Ok(Operation::Nothing),
            _ => Err(Code::INVALID_VALUE),
        }
    };
    let operations = operations.iter().map(parse).collect::<Result<Vec<_>>>()?;
    submit(stream, operations)
}

fn parse_wait(
    stream: &Stream,
    width: Width,
    address: u64,
    value: u64,
    flags: u32,
) -> Result<Operation> {
    check(stream, width, address)?;
    let condition = match flags & !FLUSH {
        0 => Condition::AtLeast,
        1 => Condition::Equal,
        2 => Condition::And,
        3 => Condition::Nor,
        _ => return Err(Code::INVALID_VALUE),
    };
    Ok(Operation::Wait(width, address, value, condition))
}

fn parse_write(
    stream: &Stream,
    width: Width,
    address: u64,
    value: u64,
    flags: u32,
) -> Result<Operation> {
    check(stream, width, address)?;
    if flags & !NO_MEMORY_BARRIER != 0 {
        return Err(Code::INVALID_VALUE);
    }
    Ok(Operation::Write(width, address, value))
}

fn check(stream: &Stream, width: Width, address: u64) -> Result {
    if !settings::get().stream_memory_operations {
        return Err(Code::NOT_SUPPORTED);
    }
    if !address.is_multiple_of(width.bytes()) {
        return Err(Code::INVALID_VALUE);
    }
    locate(stream, width, address).map(|_| ()).ok_or(Code::INVALID_VALUE)
}

/// Where a value is that the stream's device can reach.
fn locate(stream: &Stream, width: Width, address: u64) -> Option<*mut u8> {
    let space = &driver().space;
    if space.contains(address) {
        let right = |found: &Allocation| found.is_open_to(&stream.context, true);
        space.covering(address, width.bytes(), right)?;
        return Some(space.host(address));
    }
    host_memory::covering(address as usize, width.bytes() as usize)?;
    Some(address as *mut u8)
}

fn submit(stream: &Arc<Stream>, operations: Vec<Operation>) -> Result {
    let at = stream.clone();
    stream.submit(move || {
        for operation in operations {
            match operation {
                Operation::Wait(width, address, value, condition) => {
                    count(|counters| counters.value_waits += 1);
                    let mut looks = 0;
                    while !holds(condition, width, load(&at, width, address)?, value) {
                        if at.context.is_stopped() {
                            return Ok(());
                        }
                        pause(&mut looks);
                    }
                }
                Operation::Write(width, address, value) => {
                    count(|counters| counters.value_writes += 1);
                    store(&at, width, address, value)?;
                }
                Operation::Nothing => fence(SeqCst),
            }
        }
        Ok(())
    });
    Ok(())
}

/// Memory is looked up at every look, so that it may be freed while a stream waits: that is an error, not a crash.
fn load(stream: &Stream, width: Width, address: u64) -> Result<u64> {
    let _running = driver().space.running();
    let at = locate(stream, width, address).ok_or(Code::ILLEGAL_ADDRESS)?;
    // SAFETY: the value is mapped while something runs, aligned as was checked, and changed by whole values only.
    Ok(unsafe {
        match width {
            Width::Bits32 => AtomicU32::from_ptr(at.cast()).load(SeqCst) as u64,
            Width::Bits64 => AtomicU64::from_ptr(at.cast()).load(SeqCst),
        }
    })
}

fn store(stream: &Stream, width: Width, address: u64, value: u64) -> Result {
    let _running = driver().space.running();
    let at = locate(stream, width, address).ok_or(Code::ILLEGAL_ADDRESS)?;
    // SAFETY: the value is mapped while something runs, and aligned as was checked.
    unsafe {
        match width {
            Width::Bits32 => AtomicU32::from_ptr(at.cast()).store(value as u32, SeqCst),
            Width::Bits64 => AtomicU64::from_ptr(at.cast()).store(value, SeqCst),
        }
    }
    Ok(())
}

fn holds(condition: Condition, width: Width, found: u64, value: u64) -> bool {
    let value = if width == Width::Bits32 { value as u32 as u64 } else { value };
    match condition {
        // Documented as cyclic, so that counters may wrap.
        Condition::AtLeast => match width {
            Width::Bits32 => (found as i32).wrapping_sub(value as i32) >= 0,
            Width::Bits64 => (found as i64).wrapping_sub(value as i64) >= 0,
        },
        Condition::Equal => found == value,
        Condition::And => found & value != 0,
        Condition::Nor => match width {
            Width::Bits32 => !(found as u32 | value as u32) != 0,
            Width::Bits64 => !(found | value) != 0,
        },
    }
}
