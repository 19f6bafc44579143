//! Copies and memory sets.

use std::sync::Arc;

use crate::code::{Code, Result};
use crate::context::{Context, by_handle, current};
use crate::copies::{self, End, Engines};
use crate::ffi::entry_points;
use crate::stream;

entry_points! { Initialised:
    fn cuMemcpyHtoD_v2(to: u64, from: usize, len_bytes: usize) {
        copies::copy_synchronously(&current()?, End::Device(to), End::Host(from), len_bytes)
    }

    fn cuMemcpyDtoH_v2(to: usize, from: u64, len_bytes: usize) {
        copies::copy_synchronously(&current()?, End::Host(to), End::Device(from), len_bytes)
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, len_bytes: usize) {
        copies::copy_synchronously(&current()?, End::Device(to), End::Device(from), len_bytes)
    }

    fn cuMemcpy(to: u64, from: u64, len_bytes: usize) {
        copies::copy_synchronously(&current()?, End::of(to), End::of(from), len_bytes)
    }

    fn cuMemcpyPeer(to: u64, to_context: usize, from: u64, from_context: usize, len_bytes: usize) {
        let (context, to_context, from_context) =
            (current()?, by_handle(to_context)?, by_handle(from_context)?);
        // Documented: in order with all work of the contexts.
        for other in [&context, &to_context, &from_context] {
            other.synchronise();
            other.check()?;
        }
        peer(&context.null_stream(), to, &to_context, from, &from_context, len_bytes)?;
        context.null_stream().now().wait(None);
        context.check()
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: usize, len_bytes: usize, stream: usize) {
        copy(stream, End::Device(to), End::Host(from), len_bytes)
    }

    fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, len_bytes: usize, stream: usize) {
        copy(stream, End::Host(to), End::Device(from), len_bytes)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len_bytes: usize, stream: usize) {
        copy(stream, End::Device(to), End::Device(from), len_bytes)
    }

    fn cuMemcpyAsync(to: u64, from: u64, len_bytes: usize, stream: usize) {
        copy(stream, End::of(to), End::of(from), len_bytes)
    }

    fn cuMemcpyPeerAsync(
        to: u64,
        to_context: usize,
        from: u64,
        from_context: usize,
        len_bytes: usize,
        stream: usize,
    ) {
        let stream = stream::by_handle(stream)?;
        let (to_context, from_context) = (by_handle(to_context)?, by_handle(from_context)?);
        peer(&stream, to, &to_context, from, &from_context, len_bytes)
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        copies::set(&current()?.null_stream(), to, &[value], count, true)
    }

    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        copies::set(&current()?.null_stream(), to, &value.to_ne_bytes(), count, true)
    }

    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) {
        copies::set(&current()?.null_stream(), to, &value.to_ne_bytes(), count, true)
    }

    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) {
        copies::set(&stream::by_handle(stream)?, to, &[value], count, false)
    }

    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: usize) {
        copies::set(&stream::by_handle(stream)?, to, &value.to_ne_bytes(), count, false)
    }

    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize) {
        copies::set(&stream::by_handle(stream)?, to, &value.to_ne_bytes(), count, false)
    }
}

fn copy(stream: usize, to: End, from: End, len_bytes: usize) -> Result {
    let stream = stream::by_handle(stream)?;
    let engines = Engines { to: &stream.context, from: &stream.context };
    copies::copy(&stream, engines, to, from, len_bytes).map(|_| ())
}

fn peer(
    stream: &Arc<stream::Stream>,
    to: u64,
    to_context: &Context,
    from: u64,
    from_context: &Context,
    len_bytes: usize,
) -> Result {
    let of = |address, context: &Context| {
        let found = crate::initialisation::driver().space.find(address);
        found.is_some_and(|found| found.device == context.device)
    };
    if len_bytes > 0 && !(of(to, to_context) && of(from, from_context)) {
        return Err(Code::INVALID_VALUE);
    }
    let engines = Engines { to: to_context, from: from_context };
    copies::copy(stream, engines, End::Device(to), End::Device(from), len_bytes).map(|_| ())
}
