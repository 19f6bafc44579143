//! Launches: checks, parameters, and memory as kernels see it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Instant;

use crate::code::{Code, Result};
use crate::context::Context;
use crate::counters::count;
use crate::device::{
    BLOCKS_PER_MULTIPROCESSOR, MULTIPROCESSORS, SHARED_BYTES_PER_BLOCK, THREADS_PER_MULTIPROCESSOR,
    shared_bytes_opt_in,
};
use crate::engines::{self, Bytes};
use crate::initialisation::driver;
use crate::module::Function;
use crate::ptx::{Access, Fault, Launch, Memory};
use crate::stream::{Stream, mix};
use crate::{HOST, host_memory, settings};

/// How a grid is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Shared memory besides what the kernel declares.
    pub dynamic_shared_bytes: u32,
    /// Whether all blocks must be there at once.
    pub cooperative: bool,
}

/// Puts a launch in a stream. `parameter` copies a parameter's bytes out of the caller's memory, which the caller may
/// change once the call is back.
pub fn launch(
    stream: &Arc<Stream>,
    function: &Arc<Function>,
    layout: Layout,
    parameter: impl Fn(usize, &mut [u8]) -> Result,
) -> Result {
    // The real driver says so where the stream is of another device than the kernel.
    if !Arc::ptr_eq(&stream.context, &function.context) {
        return Err(Code::INVALID_HANDLE);
    }
    check_layout(function, layout)?;
    let mut parameters = vec![0; function.entry.parameters_bytes];
    for (index, at) in function.entry.parameters.iter().enumerate() {
        parameter(index, &mut parameters[at.offset_bytes..at.offset_bytes + at.len_bytes])?;
    }
    let (function, context) = (function.clone(), stream.context.clone());
    stream.submit(move || run(&function, &context, layout, &parameters));
    Ok(())
}

fn check_layout(function: &Function, layout: Layout) -> Result {
    let threads = layout.block.iter().try_fold(1u32, |product, n| product.checked_mul(*n));
    let threads = threads.ok_or(Code::INVALID_VALUE)?;
    let shaped = function.entry.required_block.is_none_or(|block| block == layout.block);
    if layout.grid.contains(&0)
        || layout.grid[0] > i32::MAX as u32
        || layout.grid[1].max(layout.grid[2]) > 65535
        || !(1..=function.max_threads()).contains(&threads)
        || layout.block[2] > 64
        || !shaped
        || layout.dynamic_shared_bytes > function.dynamic_shared_limit_bytes.load(SeqCst)
    {
        return Err(Code::INVALID_VALUE);
    }
    if layout.cooperative {
        let blocks = layout.grid.iter().map(|n| *n as u64).product::<u64>();
        let resident = blocks_per_multiprocessor(function, threads, layout.dynamic_shared_bytes);
        if blocks > resident as u64 * MULTIPROCESSORS as u64 {
            return Err(Code::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
    }
    Ok(())
}

/// How many blocks of this size a multiprocessor holds.
pub fn blocks_per_multiprocessor(function: &Function, threads: u32, dynamic_bytes: u32) -> u32 {
    if threads == 0 || threads > function.max_threads() {
        return 0;
    }
    let shared_bytes = dynamic_bytes.saturating_add(function.entry.shared_bytes as u32);
    let all_bytes = shared_bytes_opt_in(&settings::get()).max(SHARED_BYTES_PER_BLOCK);
    let by_shared = all_bytes.checked_div(shared_bytes).unwrap_or(BLOCKS_PER_MULTIPROCESSOR);
    let by_threads = THREADS_PER_MULTIPROCESSOR / threads.next_multiple_of(32);
    by_threads.min(by_shared).min(BLOCKS_PER_MULTIPROCESSOR)
}

fn run(function: &Function, context: &Arc<Context>, layout: Layout, parameters: &[u8]) -> Result {
    static LAUNCHES: AtomicU64 = AtomicU64::new(1);
    let number = LAUNCHES.fetch_add(1, SeqCst);
    let began = Instant::now();
    let _running = driver().space.running();
    let view = View::new(context, number);
    let result = Launch {
        entry: &function.entry,
        parameters,
        variables: &function.variables,
        grid: layout.grid,
        block: layout.block,
        dynamic_shared_bytes: layout.dynamic_shared_bytes as usize,
        memory: &view,
        seed: mix(settings::get().seed ^ mix(number)),
        stop: &|| context.is_stopped(),
    }
    .run();
    let instructions = result.as_ref().map_or(0, |statistics| statistics.instructions);
    count(|counters| {
        counters.kernels_launched += 1;
        counters.instructions += instructions;
        for (traffic, [read, written]) in
            counters.links[context.device].iter_mut().zip(&view.traffic)
        {
            traffic.read_bytes += read.load(Relaxed);
            traffic.written_bytes += written.load(Relaxed);
        }
    });
    engines::occupy(context.device, began, view.bytes());
    match result {
        Ok(_) | Err(Fault::Stopped) => Ok(()),
        Err(fault) => {
            settings::say(&format!("device {}: {fault}", context.device));
            Err(match fault {
                Fault::IllegalAddress { .. } => Code::ILLEGAL_ADDRESS,
                Fault::Misaligned { .. } => Code::MISALIGNED_ADDRESS,
                Fault::IllegalInstruction { .. } => Code::ILLEGAL_INSTRUCTION,
                _ => Code::LAUNCH_FAILED,
            })
        }
    }
}

/// Memory as the kernels of a context see it: their device's, that of peers they were given, and pinned memory of the
/// host.
struct View<'a> {
    context: &'a Arc<Context>,
    launch: u64,
    /// By home of the memory: read and written bytes.
    traffic: [[AtomicU64; 2]; HOST + 1],
}

/// What a thread found last, because kernels touch few allocations, and each of them often.
#[derive(Clone, Copy)]
struct Found {
    launch: u64,
    changes: u64,
    start: u64,
    end: u64,
    /// What to add to an address for the host's.
    distance: u64,
    home: usize,
    writable: bool,
}

const CACHED: usize = 4;

thread_local! {
    static CACHE: Cell<([Option<Found>; CACHED], usize)> = const { Cell::new(([None; CACHED], 0)) };
}

impl<'a> View<'a> {
    fn new(context: &'a Arc<Context>, launch: u64) -> View<'a> {
        View { context, launch, traffic: Default::default() }
    }

    /// What was touched.
    fn bytes(&self) -> Bytes {
        let [read, written] = &self.traffic[HOST];
        let all = self.traffic.iter().flatten().map(|bytes| bytes.load(Relaxed)).sum();
        Bytes { down: read.load(Relaxed), up: written.load(Relaxed), kernel: all }
    }

    fn look_up(&self, address: u64, len_bytes: u64, write: bool, changes: u64) -> Option<Found> {
        let space = &driver().space;
        let (launch, writable) = (self.launch, write);
        if space.contains(address) {
            let right = |allocation: &_| {
                crate::memory::Allocation::is_open_to(allocation, self.context, write)
            };
            let first = space.covering(address, len_bytes, right)?;
            let (start, end) = (first.base, first.end());
            let distance = (space.host(start) as u64).wrapping_sub(start);
            let home = first.backing.device;
            return Some(Found { launch, changes, start, end, distance, home, writable });
        }
        let pinned = host_memory::covering(address as usize, len_bytes as usize)?;
        let writable = pinned.is_writable();
        if write && !writable {
            return None;
        }
        let (start, end) = (pinned.base as u64, (pinned.base + pinned.len_bytes) as u64);
        Some(Found { launch, changes, start, end, distance: 0, home: HOST, writable })
    }
}

// SAFETY: pages of allocations are mapped at multiples of a page from their addresses, and stay mapped while a launch
// runs (`Space::running`), even if the program frees them; whoever else touches them (copies, other kernels, the host)
// does so without Rust references, as on a device.
unsafe impl Memory for View<'_> {
    fn resolve(
        &self,
        address: u64,
        len_bytes: usize,
        access: Access,
    ) -> std::result::Result<*mut u8, ()> {
        let write = access == Access::Write;
        let (len_bytes, changes) = (len_bytes as u64, driver().space.changes());
        let (mut cache, mut next) = CACHE.get();
        let fits = |found: &Found| {
            found.launch == self.launch
                && found.changes == changes
                && (found.writable || !write)
                && found.start <= address
                && address.checked_add(len_bytes).is_some_and(|end| end <= found.end)
        };
        let found = match cache.iter().flatten().find(|found| fits(found)) {
            Some(found) => *found,
            None => {
                let found = self.look_up(address, len_bytes, write, changes).ok_or(())?;
                cache[next % CACHED] = Some(found);
                next += 1;
                CACHE.set((cache, next));
                found
            }
        };
        self.traffic[found.home][write as usize].fetch_add(len_bytes, Relaxed);
        Ok(address.wrapping_add(found.distance) as *mut u8)
    }
}
