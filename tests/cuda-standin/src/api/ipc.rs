//! Legacy IPC.

use std::sync::Arc;

use crate::code::Code;
use crate::context::current;
use crate::event::{self, DISABLE_TIMING, EVENTS, INTERPROCESS};
use crate::ffi::{Out, entry_points};
use crate::initialisation::driver;
use crate::ipc::{self, Handle, SharedEvent, check_supported};

/// A handle as C passes it: a structure by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PassedHandle {
    words: Handle,
}

entry_points! { Initialised:
    fn cuIpcGetMemHandle(to: Out<Handle>, address: u64) {
        check_supported()?;
        current()?;
        to.set(ipc::memory_handle(address)?)
    }

    fn cuIpcOpenMemHandle_v2(to: Out<u64>, handle: PassedHandle, flags: u32) {
        check_supported()?;
        let context = current()?;
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        to.set(ipc::open_memory(handle.words, &context, flags)?)
    }

    fn cuIpcCloseMemHandle(address: u64) {
        check_supported()?;
        current()?;
        if let Some(found) = driver().space.find(address)
            && let Some(context) = driver().devices[found.device].context()
        {
            context.synchronise();
        }
        ipc::close_memory(address)
    }

    fn cuIpcGetEventHandle(to: Out<Handle>, event: usize) {
        check_supported()?;
        current()?;
        let event = EVENTS.get(event)?;
        to.set(event.shared.as_ref().ok_or(Code::INVALID_HANDLE)?.handle()?)
    }

    fn cuIpcOpenEventHandle(to: Out<usize>, handle: PassedHandle) {
        check_supported()?;
        let context = current()?;
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let shared = Arc::new(SharedEvent::open(handle.words)?);
        to.set(event::add(context, INTERPROCESS | DISABLE_TIMING, Some(shared)))
    }
}
