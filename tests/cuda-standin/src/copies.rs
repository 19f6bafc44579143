//! Copies and memory sets: what is checked when they are called, what happens when they run.

use std::sync::Arc;
use std::time::Instant;

use crate::code::{Code, Result};
use crate::context::Context;
use crate::counters::{count, count_copy};
use crate::engines::{self, Bytes};
use crate::initialisation::driver;
use crate::memory::{Allocation, Kind};
use crate::stream::{Point, Stream};
use crate::{HOST, host_memory, settings};

/// One end of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Device memory.
    Device(u64),
    /// Host memory.
    Host(usize),
}

/// What there is at an end while a copy runs.
enum Source {
    Memory(End),
    /// Of pageable memory, taken when the copy was called: the caller may change it at once.
    Snapshot(Vec<u8>),
}

impl End {
    /// The end that an address is at, which unified addressing tells.
    pub fn of(address: u64) -> End {
        match driver().space.contains(address) {
            true => End::Device(address),
            false => End::Host(address as usize),
        }
    }

    fn check(self, len_bytes: u64, engine: &Context) -> Result {
        match self {
            End::Device(address) => {
                let right = |found: &Allocation| may_copy(found, engine);
                let covering = driver().space.covering(address, len_bytes, right);
                covering.map(|_| ()).ok_or(Code::INVALID_VALUE)
            }
            // A device's address is no host memory.
            End::Host(address) if address == 0 || driver().space.contains(address as u64) => {
                Err(Code::INVALID_VALUE)
            }
            End::Host(_) => Ok(()),
        }
    }

    fn is_pageable(self, len_bytes: u64) -> bool {
        match self {
            End::Device(_) => false,
            End::Host(address) => host_memory::covering(address, len_bytes as usize).is_none(),
        }
    }

    /// Where it is when the copy runs, and whose memory it is. What was freed meanwhile is illegal.
    fn locate(self, len_bytes: u64) -> Result<(*mut u8, usize)> {
        match self {
            End::Device(address) => {
                let space = &driver().space;
                let first = space.covering(address, len_bytes, |_| true);
                let first = first.ok_or(Code::ILLEGAL_ADDRESS)?;
                Ok((space.host(address), first.backing.device))
            }
            End::Host(address) => Ok((address as *mut u8, HOST)),
        }
    }

    fn wants_synchronous(self) -> bool {
        let End::Device(address) = self else { return false };
        let found = driver().space.find(address);
        found.is_some_and(|found| found.synchronous.load(std::sync::atomic::Ordering::SeqCst))
    }
}

/// Copy engines reach all memory but virtual memory that their device was not given access to: between devices without
/// peer access the real driver copies through the host.
fn may_copy(allocation: &Allocation, engine: &Context) -> bool {
    match &allocation.kind {
        Kind::Mapped(..) => allocation.is_open_to(engine, false),
        _ => true,
    }
}

/// Whose devices reach the two ends: for most copies it is the stream's for both.
pub struct Engines<'a> {
    /// Of the destination.
    pub to: &'a Context,
    /// Of the source.
    pub from: &'a Context,
}

/// Puts a copy in a stream, and waits for it where the real driver does: a copy to pageable memory is over when the
/// call is back, and one from pageable memory has read it.
pub fn copy(
    stream: &Arc<Stream>,
    engines: Engines,
    to: End,
    from: End,
    len_bytes: usize,
) -> Result<Option<Point>> {
    if len_bytes == 0 {
        return Ok(None);
    }
    let len = len_bytes as u64;
    to.check(len, engines.to)?;
    from.check(len, engines.from)?;
    let pageable = to.is_pageable(len);
    let source = match from {
        End::Host(address) if from.is_pageable(len) => {
            let mut snapshot = vec![0u8; len_bytes];
            // SAFETY: the caller promises that it can be read; the snapshot is as long.
            unsafe { snapshot.as_mut_ptr().copy_from(address as *const u8, len_bytes) };
            Source::Snapshot(snapshot)
        }
        _ => Source::Memory(from),
    };
    let device = stream.context.device;
    let point = stream.submit(move || {
        let began = Instant::now();
        let _running = driver().space.running();
        let (target, target_home) = to.locate(len)?;
        let (source, source_home) = match &source {
            Source::Memory(end) => end.locate(len)?,
            Source::Snapshot(bytes) => (bytes.as_ptr().cast_mut(), HOST),
        };
        if settings::get().loses(target_home, source_home) {
            return Ok(());
        }
        // SAFETY: both ranges are mapped as long as something runs, host memory because the caller promises it. They
        // may overlap, and others may change them meanwhile, as on a device.
        unsafe { target.copy_from(source, len_bytes) };
        count_copy(target_home, source_home, len);
        let bytes = match (target_home, source_home) {
            (HOST, HOST) => Bytes::default(),
            (HOST, _) => Bytes { up: len, ..Bytes::default() },
            (_, HOST) => Bytes { down: len, ..Bytes::default() },
            _ => Bytes { kernel: len, ..Bytes::default() },
        };
        engines::occupy(device, began, bytes);
        Ok(())
    });
    if pageable || to.wants_synchronous() || from.wants_synchronous() {
        point.wait(None);
        stream.context.check()?;
    }
    Ok(Some(point))
}

/// A copy as the synchronous functions do it: in the NULL stream, and over when the call is back if that is documented.
/// Copies within and between devices, and from pageable memory, are not: the latter has only been read.
pub fn copy_synchronously(context: &Arc<Context>, to: End, from: End, len_bytes: usize) -> Result {
    let stream = context.null_stream();
    if from.is_pageable(len_bytes as u64) {
        // Documented: the stream is synchronised before pageable memory is read.
        stream.now().wait(None);
        context.check()?;
    }
    let engines = Engines { to: context, from: context };
    let Some(point) = copy(&stream, engines, to, from, len_bytes)? else { return Ok(()) };
    let pinned_from = matches!(from, End::Host(_)) && !from.is_pageable(len_bytes as u64);
    if pinned_from || matches!(to, End::Host(_)) {
        point.wait(None);
        context.check()?;
    }
    Ok(())
}

/// Puts a memory set in a stream: `count_values` of a pattern of 1, 2 or 4 bytes. It waits only for pinned host memory.
pub fn set(
    stream: &Arc<Stream>,
    to: u64,
    pattern: &[u8],
    count_values: usize,
    synchronous: bool,
) -> Result {
    if !to.is_multiple_of(pattern.len() as u64) {
        return Err(Code::INVALID_VALUE);
    }
    let Some(len_bytes) = count_values.checked_mul(pattern.len()) else {
        return Err(Code::INVALID_VALUE);
    };
    if len_bytes == 0 {
        return Ok(());
    }
    let len = len_bytes as u64;
    let end = End::of(to);
    match end {
        // It is a kernel that sets, so it reaches what kernels reach.
        End::Device(address) => {
            let right = |found: &Allocation| found.is_open_to(&stream.context, true);
            driver().space.covering(address, len, right).ok_or(Code::INVALID_VALUE)?;
        }
        End::Host(_) if end.is_pageable(len) => return Err(Code::INVALID_VALUE),
        End::Host(_) => {}
    }
    let pattern = pattern.to_vec();
    let point = stream.submit(move || {
        let _running = driver().space.running();
        let (target, _) = end.locate(len)?;
        // SAFETY: the range is mapped as long as something runs; others may look meanwhile, as on a device.
        unsafe {
            target.write_bytes(pattern[0], len_bytes);
            for (offset, byte) in pattern.iter().enumerate().skip(1) {
                for value in 0..count_values {
                    target.add(value * pattern.len() + offset).write(*byte);
                }
            }
        }
        count(|counters| {
            counters.memsets.count += 1;
            counters.memsets.bytes += len;
        });
        Ok(())
    });
    if synchronous && matches!(end, End::Host(_)) || end.wants_synchronous() {
        point.wait(None);
        stream.context.check()?;
    }
    Ok(())
}
