//! Primary contexts, the current context, peer access.

use crate::code::Code;
use crate::context::{self, by_handle, current};
use crate::counters::count;
use crate::ffi::{Out, entry_points};
use crate::initialisation::{device, driver};
use crate::settings;

entry_points! { Initialised:
    fn cuDevicePrimaryCtxRetain(to: Out<usize>, ordinal: i32) {
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let context = device(ordinal)?.retain();
        to.set(context::handle(context.device))
    }

    fn cuDevicePrimaryCtxRelease(ordinal: i32) {
        device(ordinal)?.release()
    }

    fn cuDevicePrimaryCtxRelease_v2(ordinal: i32) {
        device(ordinal)?.release()
    }

    fn cuDevicePrimaryCtxReset(ordinal: i32) {
        device(ordinal)?.reset();
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(ordinal: i32) {
        device(ordinal)?.reset();
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(ordinal: i32, flags: Out<u32>, active: Out<i32>) {
        let (current_flags, is_active) = device(ordinal)?.state();
        flags.set(current_flags)?;
        active.set(is_active as i32)
    }

    fn cuDevicePrimaryCtxSetFlags(ordinal: i32, flags: u32) {
        device(ordinal)?.set_flags(flags);
        Ok(())
    }

    fn cuDevicePrimaryCtxSetFlags_v2(ordinal: i32, flags: u32) {
        device(ordinal)?.set_flags(flags);
        Ok(())
    }

    fn cuCtxSetCurrent(context: usize) {
        context::set_current(context)
    }

    fn cuCtxGetCurrent(to: Out<usize>) {
        to.set(context::current_handle().unwrap_or(0))
    }

    fn cuCtxPushCurrent_v2(context: usize) {
        context::push(context)
    }

    fn cuCtxPopCurrent_v2(to: Out<usize>) {
        to.set_if_wanted(context::pop()?)
    }

    fn cuCtxGetDevice(to: Out<i32>) {
        to.set(current()?.device as i32)
    }

    fn cuCtxGetFlags(to: Out<u32>) {
        to.set(driver().devices[current()?.device].state().0)
    }

    fn cuCtxGetApiVersion(context: usize, to: Out<u32>) {
        match context {
            0 => current()?,
            handle => by_handle(handle)?,
        };
        to.set(3020)
    }

    fn cuCtxGetId(context: usize, to: Out<u64>) {
        let context = match context {
            0 => current()?,
            handle => by_handle(handle)?,
        };
        to.set(context.device as u64 + 1)
    }

    fn cuCtxSynchronize() {
        let context = current()?;
        count(|counters| counters.context_synchronisations += 1);
        context.synchronise();
        context.check()
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        current()?;
        least.set_if_wanted(0)?;
        greatest.set_if_wanted(-5)
    }

    fn cuCtxGetLimit(to: Out<usize>, limit: i32) {
        current()?;
        match limit {
            0 => to.set(1024),      // stack of a thread
            1 => to.set(1 << 20),   // buffer of printf
            2 => to.set(8 << 20),   // heap of malloc
            _ => Err(Code::NOT_SUPPORTED),
        }
    }

    fn cuCtxSetLimit(limit: i32, value: usize) {
        current()?;
        let _ = value;
        if (0..=2).contains(&limit) { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
    }

    fn cuCtxEnablePeerAccess(peer: usize, flags: u32) {
        let (context, peer) = (current()?, by_handle(peer)?);
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        // As documented, where both are the same.
        if context.device == peer.device {
            return Err(Code::INVALID_CONTEXT);
        }
        if !settings::get().can_access_peer(context.device, peer.device) {
            return Err(Code::PEER_ACCESS_UNSUPPORTED);
        }
        context.enable_peer(peer.device)
    }

    fn cuCtxDisablePeerAccess(peer: usize) {
        let peer = by_handle(peer)?;
        current()?.disable_peer(peer.device)
    }
}
