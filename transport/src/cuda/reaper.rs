//! Gives memory back on a thread of its own. The driver waits for all that is queued on the device before it frees,
//! and a stream may wait there for a call that the freeing thread is to carry out.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::capture::Relaxed;
use super::device::Device;
use super::ffi::{self, Code, DeviceAddress, Functions};
use crate::memory::SharedMemory;

/// How long an allocation waits for memory to be given back, before it fails.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is to be given back.
pub(super) enum Freed {
    /// Memory of the device.
    Device(DeviceAddress),
    /// Pinned memory of the host, by its first byte.
    Pinned(usize),
    /// The registration of a mapping of the host's.
    Registered(Arc<SharedMemory>),
    /// Memory of another process, which was opened by its handle.
    Opened(DeviceAddress),
    /// A mapping, and how long it is.
    Mapping(DeviceAddress, usize),
}

enum Order {
    Free(Device, Freed),
    /// Say when all orders before have been carried out.
    Tell(Sender<()>),
}

/// Has memory given back, some time.
pub(super) fn free(device: &Device, freed: Freed) {
    if let Some(orders) = orders() {
        // The thread ends with the process, and what is left then the system takes back.
        let _ = orders.send(Order::Free(device.clone(), freed));
    }
}

/// Waits until what was to be given back so far has been, or for a while.
pub(super) fn wait() {
    let _ = told().recv_timeout(PATIENCE);
}

/// Tells when what was to be given back so far has been.
pub(super) fn told() -> Receiver<()> {
    let (tell, told) = channel();
    if let Some(orders) = orders() {
        let _ = orders.send(Order::Tell(tell));
    }
    told
}

fn orders() -> Option<&'static Sender<Order>> {
    static ORDERS: OnceLock<Option<Sender<Order>>> = OnceLock::new();
    let start = || {
        let (sender, orders) = channel();
        let serve = move || orders.into_iter().for_each(carry_out);
        let started = std::thread::Builder::new().name("ringtree-free".to_owned()).spawn(serve);
        started.ok().map(|_| sender)
    };
    ORDERS.get_or_init(start).as_ref()
}

fn carry_out(order: Order) {
    let (device, freed) = match order {
        Order::Free(device, freed) => (device, freed),
        Order::Tell(tell) => {
            let _ = tell.send(());
            return;
        }
    };
    let _relaxed = Relaxed::new(device.driver());
    let Ok(_entered) = device.enter() else { return };
    let functions = device.functions();
    // SAFETY: it was allocated there, nobody has it any more, and it is freed once.
    let (call, code): (_, Code) = unsafe {
        match freed {
            Freed::Device(address) => ("cuMemFree", (functions.free)(address)),
            Freed::Registered(mapping) => {
                ("cuMemHostUnregister", (functions.host_unregister)(mapping.start().cast()))
            }
            Freed::Opened(address) => ("cuIpcCloseMemHandle", (functions.ipc_close)(address)),
            Freed::Mapping(address, len_bytes) => unmap(functions, address, len_bytes),
            Freed::Pinned(start) => {
                ("cuMemFreeHost", (functions.host_free)(start as *mut std::ffi::c_void))
            }
        }
    };
    // What cannot be given back is only worth a line: a kernel has failed before.
    if code != ffi::SUCCESS {
        tracing::debug!("{call} on GPU {}: code {code}", device.ordinal());
    }
}

/// Unmaps memory. Unlike the others this does not wait for what is queued on the device.
///
/// # Safety
/// The range must be a mapping that nothing uses but what was queued before.
unsafe fn unmap(
    functions: &Functions,
    address: DeviceAddress,
    len_bytes: usize,
) -> (&'static str, Code) {
    // SAFETY: the caller's promise.
    unsafe {
        match (functions.synchronize)() {
            ffi::SUCCESS => {}
            code => return ("cuCtxSynchronize", code),
        }
        match (functions.unmap)(address, len_bytes) {
            ffi::SUCCESS => ("cuMemAddressFree", (functions.unreserve)(address, len_bytes)),
            code => ("cuMemUnmap", code),
        }
    }
}
