//! What was done, counted: the figures of performance that mean something without a device.

use std::sync::{Mutex, PoisonError};

use crate::{HOST, MAX_DEVICES};

/// Copies of one kind.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Copies {
    /// How many ran.
    pub count: u64,
    /// Of all of them.
    pub bytes: u64,
}

/// What kernels moved over one link.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// What kernels loaded; a flag that a kernel polls counts each time.
    pub read_bytes: u64,
    /// What kernels stored, and what atomics touched.
    pub written_bytes: u64,
}

/// All counters of the process. Those that say "live" are levels, which a reset leaves alone.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Kernels that ran.
    pub kernels_launched: u64,
    /// PTX instructions that kernels executed.
    pub instructions: u64,
    /// From host to device memory.
    pub host_to_device: Copies,
    /// From device to host memory.
    pub device_to_host: Copies,
    /// Within one device's memory.
    pub same_device: Copies,
    /// Between two devices' memories.
    pub peer: Copies,
    /// Memory sets that ran, and their bytes.
    pub memsets: Copies,
    /// Calls of `cuCtxSynchronize`.
    pub context_synchronisations: u64,
    /// Calls of `cuStreamSynchronize`.
    pub stream_synchronisations: u64,
    /// Calls of `cuEventSynchronize`.
    pub event_synchronisations: u64,
    /// Records of events.
    pub event_records: u64,
    /// Waits of streams for events.
    pub event_waits: u64,
    /// Waits of streams for values.
    pub value_waits: u64,
    /// Writes of values by streams.
    pub value_writes: u64,
    /// Flushes of what network adapters have written.
    pub remote_write_flushes: u64,
    /// Live: allocations of device memory, without what was opened or imported.
    pub allocations_live: u64,
    /// Live: their bytes, in pages.
    pub bytes_live: u64,
    /// Live: bytes of pinned host memory, allocated and registered.
    pub pinned_bytes_live: u64,
    /// Live: streams, without NULL streams.
    pub streams_live: u64,
    /// Live: events.
    pub events_live: u64,
    /// Live: memory handles and event handles of other processes that are open here.
    pub ipc_handles_open: u64,
    /// Live: modules.
    pub modules_live: u64,
    /// What the kernels of a device (first index) moved from and to the memory of a device, or of the host (second
    /// index; the host is the last).
    pub links: [[Traffic; MAX_DEVICES + 1]; MAX_DEVICES],
}

static COUNTERS: Mutex<Option<Box<Counters>>> = Mutex::new(None);

/// Changes the counters.
pub fn count(change: impl FnOnce(&mut Counters)) {
    let mut counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    change(counters.get_or_insert_default());
}

/// The counters as they are.
pub fn read() -> Counters {
    let mut copied = Counters::default();
    count(|counters| copied = *counters);
    copied
}

/// Makes all but the levels zero.
pub fn reset() {
    count(|counters| {
        *counters = Counters {
            allocations_live: counters.allocations_live,
            bytes_live: counters.bytes_live,
            pinned_bytes_live: counters.pinned_bytes_live,
            streams_live: counters.streams_live,
            events_live: counters.events_live,
            ipc_handles_open: counters.ipc_handles_open,
            modules_live: counters.modules_live,
            ..Counters::default()
        };
    });
}

/// Counts a copy between two homes of memory.
pub fn count_copy(to: usize, from: usize, len_bytes: u64) {
    count(|counters| {
        let copies = match (to, from) {
            (HOST, HOST) => return,
            (HOST, _) => &mut counters.device_to_host,
            (_, HOST) => &mut counters.host_to_device,
            _ if to == from => &mut counters.same_device,
            _ => &mut counters.peer,
        };
        copies.count += 1;
        copies.bytes += len_bytes;
    });
}
