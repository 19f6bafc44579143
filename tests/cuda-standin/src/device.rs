//! Devices: attributes, the primary context, memory in use.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use crate::code::{Code, Result};
use crate::context::Context;
use crate::initialisation::driver;
use crate::settings::{self, RemoteWrites, Settings};
use crate::{MAX_DEVICES, event, host_memory, module, stream};

/// Multiprocessors of each device.
pub const MULTIPROCESSORS: u32 = 4;
/// Threads that a multiprocessor holds.
pub const THREADS_PER_MULTIPROCESSOR: u32 = 2048;
/// Blocks that a multiprocessor holds.
pub const BLOCKS_PER_MULTIPROCESSOR: u32 = 32;
/// Shared memory that a block gets without asking for more.
pub const SHARED_BYTES_PER_BLOCK: u32 = 48 << 10;

/// A device.
pub struct Device {
    /// Its number.
    pub ordinal: usize,
    /// Memory in use.
    pub used_bytes: AtomicU64,
    /// Which devices may touch memory of this one's pool. Enabling peer access does not open pools.
    pub pool_access: [AtomicBool; MAX_DEVICES],
    primary: Mutex<Primary>,
    ending: Mutex<()>,
}

#[derive(Default)]
struct Primary {
    retained: u64,
    flags: u32,
    context: Option<Arc<Context>>,
}

impl Device {
    /// A device on which nothing happened yet.
    pub fn new(ordinal: usize) -> Device {
        Device {
            ordinal,
            used_bytes: AtomicU64::new(0),
            pool_access: std::array::from_fn(|device| AtomicBool::new(device == ordinal)),
            primary: Mutex::default(),
            ending: Mutex::default(),
        }
    }

    /// Its address on the PCI bus.
    pub fn pci_bus_id(&self) -> String {
        format!("0000:{:02x}:00.0", self.pci_bus())
    }

    /// Which is the same in all processes.
    pub fn uuid(&self) -> [u8; 16] {
        let mut uuid = *b"stand-in GPU   \0";
        uuid[15] = self.ordinal as u8;
        uuid
    }

    fn pci_bus(&self) -> usize {
        0x10 + self.ordinal
    }

    /// Takes memory, if there is as much.
    pub fn charge(&self, len_bytes: u64) -> Result {
        let limit = settings::get().memory_bytes;
        let grown = |used: u64| used.checked_add(len_bytes).filter(|used| *used <= limit);
        self.used_bytes
            .fetch_update(SeqCst, SeqCst, grown)
            .map(|_| ())
            .map_err(|_| Code::OUT_OF_MEMORY)
    }

    /// The primary context, if it is active.
    pub fn context(&self) -> Option<Arc<Context>> {
        self.lock().context.clone()
    }

    /// Retains the primary context, and makes it if it is not there.
    pub fn retain(&self) -> Arc<Context> {
        let _ending = self.await_ending();
        let mut primary = self.lock();
        primary.retained += 1;
        primary.context.get_or_insert_with(|| Arc::new(Context::new(self.ordinal))).clone()
    }

    /// Releases the primary context, which ends with the last release.
    pub fn release(&self) -> Result {
        let _ending = self.await_ending();
        let mut primary = self.lock();
        // As documented for a context that is not retained.
        primary.retained = primary.retained.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        let last = if primary.retained == 0 { primary.context.take() } else { None };
        drop(primary);
        if let Some(context) = last {
            destroy(&context);
        }
        Ok(())
    }

    /// Ends the primary context and all that is in it. Who retained it still has to release it, and can use it again
    /// only after somebody retained it anew.
    pub fn reset(&self) {
        let _ending = self.await_ending();
        let context = self.lock().context.take();
        if let Some(context) = context {
            destroy(&context);
        }
    }

    /// Flags of the primary context, and whether it is active.
    pub fn state(&self) -> (u32, bool) {
        let primary = self.lock();
        (primary.flags, primary.context.is_some())
    }

    /// Sets the primary context's flags.
    pub fn set_flags(&self, flags: u32) {
        self.lock().flags = flags;
    }

    /// One context after the other: what the last one had is given back before the next one has anything.
    fn await_ending(&self) -> std::sync::MutexGuard<'_, ()> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Primary> {
        self.primary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attribute with a number of `CUdevice_attribute`; 0 for those that nobody here asks for, as for features
    /// that a device lacks.
    pub fn attribute(&self, attribute: i32) -> Result<i32> {
        let settings = settings::get();
        let (major, minor) = settings.compute_capability;
        Ok(match attribute {
            1..=3 => 1024,  // threads per block, block size x and y
            4 => 64,        // block size z
            5 => i32::MAX,  // grid size x
            6 | 7 => 65535, // grid size y and z
            8 => SHARED_BYTES_PER_BLOCK as i32,
            9 => 65536,       // constant memory
            10 => 32,         // warp size
            11 => i32::MAX,   // pitch of copies
            12 | 82 => 65536, // registers per block and multiprocessor
            13 => 1_000_000,  // clock in kHz
            14 => 512,        // alignment of textures
            15 => 1,          // copies beside kernels
            16 => MULTIPROCESSORS as i32,
            19 => 1, // can map host memory
            31 => 1, // concurrent kernels
            33 => self.pci_bus() as i32,
            36 => 1_000_000, // memory clock in kHz
            37 => 256,       // memory bus width
            38 => 4 << 20,   // L2 cache
            39 => THREADS_PER_MULTIPROCESSOR as i32,
            40 => 2, // copy engines
            41 => 1, // unified addressing
            75 => major,
            76 => minor,
            78 => 1,      // stream priorities
            79 | 80 => 1, // globals and locals in L1
            81 => shared_bytes_opt_in(&settings) as i32 + 1024,
            87 => 32, // single to double performance
            90 => 1,  // compute preemption
            91 => 1,  // host pointers of registered memory are device pointers
            92..=94 | 122 | 123 => settings.stream_memory_operations as i32,
            95 => 1, // cooperative launch
            97 => shared_bytes_opt_in(&settings) as i32,
            98 => settings.stream_memory_operations as i32, // can flush remote writes
            99 => 1,                                        // host memory can be registered
            102 | 103 | 110 => settings.virtual_memory as i32, // it, by file descriptor, with RDMA
            106 => BLOCKS_PER_MULTIPROCESSOR as i32,
            111 => 1024, // shared memory that the system takes of each block
            113 => settings.read_only_registration as i32,
            115 => 1, // memory pools
            116 => 1, // GPUDirect RDMA
            117 => (settings.remote_writes != RemoteWrites::Unordered) as i32, // flushing from the host
            // Its writes are ordered for their owner.
            118 => 100 * (settings.remote_writes == RemoteWrites::Ordered) as i32,
            124 => settings.dma_buf as i32,
            125 => settings.ipc as i32, // IPC events
            ..=0 | 151.. => return Err(Code::INVALID_VALUE),
            _ => 0,
        })
    }
}

/// Shared memory that a block can ask for, which depends on the generation.
pub fn shared_bytes_opt_in(settings: &Settings) -> u32 {
    let kib = match settings.compute_capability {
        (7, 5) => 64,
        (7, _) => 96,
        (8, 0 | 7) => 163,
        (8, _) | (12, _) => 99,
        (9..=11, _) => 227,
        _ => 48,
    };
    kib << 10
}

/// Ends a context: work that runs is told to stop, work that waits is dropped, and all that belongs to it goes.
fn destroy(context: &Arc<Context>) {
    context.stop();
    stream::forget_all(context);
    event::forget_all(context);
    module::forget_all(context);
    driver().space.free_all(context.device);
    host_memory::free_all(context.device);
}
