//! Events.

use std::sync::Arc;

use crate::code::{Code, Result};
use crate::context::current;
use crate::counters::count;
use crate::event::{self, EVENTS, Event};
use crate::ffi::{Out, entry_points};
use crate::stream;

entry_points! { Initialised:
    fn cuEventCreate(to: Out<usize>, flags: u32) {
        let context = current()?;
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        to.set(event::create(context, flags)?)
    }

    fn cuEventDestroy_v2(event: usize) {
        current()?;
        event::destroy(event)
    }

    fn cuEventRecord(event: usize, stream: usize) {
        let stream = stream::by_handle(stream)?;
        EVENTS.get(event)?.record(&stream)
    }

    fn cuEventRecordWithFlags(event: usize, stream: usize, flags: u32) {
        let stream = stream::by_handle(stream)?;
        // Flag 1 is for capture, which there is not.
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        EVENTS.get(event)?.record(&stream)
    }

    fn cuEventQuery(event: usize) {
        let event = usable(event)?;
        event.query()?;
        event.context.check()
    }

    fn cuEventSynchronize(event: usize) {
        let event = usable(event)?;
        count(|counters| counters.event_synchronisations += 1);
        event.synchronise();
        event.context.check()
    }

    fn cuEventElapsedTime(to_ms: Out<f32>, start: usize, end: usize) {
        elapsed(to_ms, start, end)
    }

    fn cuEventElapsedTime_v2(to_ms: Out<f32>, start: usize, end: usize) {
        elapsed(to_ms, start, end)
    }
}

fn usable(event: usize) -> Result<Arc<Event>> {
    current()?;
    let event = EVENTS.get(event)?;
    event.context.check()?;
    Ok(event)
}

fn elapsed(to_ms: Out<f32>, start: usize, end: usize) -> Result {
    let (start, end) = (usable(start)?, usable(end)?);
    if !Arc::ptr_eq(&start.context, &end.context) {
        return Err(Code::INVALID_HANDLE);
    }
    to_ms.set(start.elapsed_ms(&end)?)
}
