//! Streams.

use crate::code::Code;
use crate::context::{self, current, host_function};
use crate::counters::count;
use crate::event::EVENTS;
use crate::ffi::{Out, entry_points};
use crate::stream;

/// A function that a program puts in a stream.
type HostFunction = extern "C" fn(usize);
/// The same of the older kind: stream, status, data.
type Callback = extern "C" fn(usize, i32, usize);

entry_points! { Initialised:
    fn cuStreamCreate(to: Out<usize>, flags: u32) {
        let context = current()?;
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        to.set(stream::create(&context, flags, 0)?)
    }

    fn cuStreamCreateWithPriority(to: Out<usize>, flags: u32, priority: i32) {
        let context = current()?;
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // Documented: priorities outside of the range are clamped.
        to.set(stream::create(&context, flags, priority.clamp(-5, 0))?)
    }

    fn cuStreamDestroy_v2(stream: usize) {
        current()?;
        stream::destroy(stream)
    }

    fn cuStreamSynchronize(stream: usize) {
        let stream = stream::by_handle(stream)?;
        count(|counters| counters.stream_synchronisations += 1);
        // The NULL stream's end is also that of what is in blocking streams, as for work that is put in it.
        let end = if stream.handle == 0 { stream.submit(|| Ok(())) } else { stream.now() };
        end.wait(None);
        stream.context.check()
    }

    fn cuStreamQuery(stream: usize) {
        let stream = stream::by_handle(stream)?;
        let point = stream.now();
        if !point.is_reached() {
            point.demand();
            return Err(Code::NOT_READY);
        }
        stream.context.check()
    }

    fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) {
        let stream = stream::by_handle(stream)?;
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        EVENTS.get(event)?.hold_up(&stream);
        Ok(())
    }

    fn cuStreamGetCtx(stream: usize, to: Out<usize>) {
        to.set(context::handle(stream::by_handle(stream)?.context.device))
    }

    fn cuStreamGetDevice(stream: usize, to: Out<i32>) {
        to.set(stream::by_handle(stream)?.context.device as i32)
    }

    fn cuStreamGetPriority(stream: usize, to: Out<i32>) {
        to.set(stream::by_handle(stream)?.priority)
    }

    fn cuStreamGetFlags(stream: usize, to: Out<u32>) {
        to.set(!stream::by_handle(stream)?.blocking as u32)
    }

    fn cuStreamGetId(stream: usize, to: Out<u64>) {
        to.set(stream::by_handle(stream)?.handle as u64)
    }

    fn cuStreamIsCapturing(stream: usize, to: Out<i32>) {
        stream::by_handle(stream)?;
        to.set(0)
    }

    fn cuStreamGetCaptureInfo_v2(stream: usize, to: Out<i32>) {
        // The values after the state are for streams that capture.
        stream::by_handle(stream)?;
        to.set(0)
    }

    fn cuStreamBeginCapture_v2(stream: usize, mode: i32) {
        let _ = mode;
        stream::by_handle(stream)?;
        Err(Code::NOT_SUPPORTED)
    }

    fn cuStreamEndCapture(stream: usize, graph: Out<usize>) {
        let _ = graph;
        stream::by_handle(stream)?;
        Err(Code::NOT_SUPPORTED)
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Out<i32>) {
        // Nothing captures, so no mode forbids anything.
        if mode.is_null() { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }

    fn cuLaunchHostFunc(stream: usize, function: Option<HostFunction>, data: usize) {
        let stream = stream::by_handle(stream)?;
        let function = function.ok_or(Code::INVALID_VALUE)?;
        stream.submit(move || {
            host_function(|| function(data));
            Ok(())
        });
        Ok(())
    }

    fn cuStreamAddCallback(stream: usize, callback: Option<Callback>, data: usize, flags: u32) {
        let (handle, stream) = (stream, stream::by_handle(stream)?);
        let callback = callback.ok_or(Code::INVALID_VALUE)?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        stream.submit(move || {
            host_function(|| callback(handle, 0, data));
            Ok(())
        });
        Ok(())
    }
}
