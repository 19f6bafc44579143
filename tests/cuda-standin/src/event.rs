//! Events: marks of points in streams.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::code::{Code, Result};
use crate::context::Context;
use crate::counters::count;
use crate::ipc::SharedEvent;
use crate::registry::Registry;
use crate::stream::{Point, Stream};

/// `CU_EVENT_DISABLE_TIMING`.
pub const DISABLE_TIMING: u32 = 2;
/// `CU_EVENT_INTERPROCESS`.
pub const INTERPROCESS: u32 = 4;
/// With `CU_EVENT_BLOCKING_SYNC`, which changes only how the host waits.
const ALL_FLAGS: u32 = 7;

/// An event.
pub struct Event {
    /// Whose it is.
    pub context: Arc<Context>,
    /// As the program gave them.
    pub flags: u32,
    /// What other processes see of it.
    pub shared: Option<Arc<SharedEvent>>,
    last: Mutex<Option<Recording>>,
}

/// What one record of an event stands for.
#[derive(Clone)]
enum Recording {
    Local(Point, Arc<OnceLock<Instant>>),
    Shared(Arc<SharedEvent>, u64),
}

impl Recording {
    fn is_reached(&self) -> bool {
        match self {
            Recording::Local(point, _) => point.is_reached(),
            Recording::Shared(event, generation) => event.is_complete(*generation),
        }
    }

    fn demand(&self) {
        match self {
            Recording::Local(point, _) => point.demand(),
            Recording::Shared(event, generation) => event.demand(*generation),
        }
    }

    fn wait(&self, waiter: Option<&Context>) {
        match self {
            Recording::Local(point, _) => point.wait(waiter),
            Recording::Shared(event, generation) => event.wait(*generation, waiter),
        }
    }
}

/// All events.
pub static EVENTS: Registry<Event> = Registry::new(0x0e00_0000_0000);

/// Makes an event.
pub fn create(context: Arc<Context>, flags: u32) -> Result<usize> {
    let interprocess = flags & INTERPROCESS != 0;
    if flags & !ALL_FLAGS != 0 || (interprocess && flags & DISABLE_TIMING == 0) {
        return Err(Code::INVALID_VALUE);
    }
    let shared = if interprocess { Some(Arc::new(SharedEvent::create()?)) } else { None };
    Ok(add(context, flags, shared))
}

/// Adds an event, be it this process's own or one that it opened.
pub fn add(context: Arc<Context>, flags: u32, shared: Option<Arc<SharedEvent>>) -> usize {
    count(|counters| counters.events_live += 1);
    EVENTS.add(|_| Event { context, flags, shared, last: Mutex::default() }).0
}

/// Forgets an event. What waits for it goes on waiting for what was recorded.
pub fn destroy(handle: usize) -> Result {
    let event = EVENTS.remove(handle)?;
    forget(&event, 1);
    Ok(())
}

/// Forgets the events of a context that ends.
pub fn forget_all(context: &Arc<Context>) {
    EVENTS.remove_where(|event| {
        let gone = Arc::ptr_eq(&event.context, context);
        forget(event, gone as u64);
        gone
    });
}

fn forget(event: &Event, events: u64) {
    let opened = event.shared.as_ref().is_some_and(|shared| shared.is_opened());
    count(|counters| {
        counters.events_live -= events;
        counters.ipc_handles_open -= events * opened as u64;
    });
}

impl Event {
    /// Marks the end of what is in a stream.
    pub fn record(&self, stream: &Arc<Stream>) -> Result {
        // As documented: an event and the stream that it is recorded in are of one context.
        if !Arc::ptr_eq(&self.context, &stream.context) {
            return Err(Code::INVALID_HANDLE);
        }
        count(|counters| counters.event_records += 1);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(match &self.shared {
            Some(shared) => {
                let generation = shared.next_generation();
                stream.submit_shared(Some((shared.clone(), generation)), || Ok(()));
                Recording::Shared(shared.clone(), generation)
            }
            None => {
                let time = Arc::new(OnceLock::new());
                let set = time.clone();
                let point = stream.submit(move || {
                    let _ = set.set(Instant::now());
                    Ok(())
                });
                Recording::Local(point, time)
            }
        });
        Ok(())
    }

    /// Lets a stream wait for the last record, if there is one.
    pub fn hold_up(&self, stream: &Arc<Stream>) {
        count(|counters| counters.event_waits += 1);
        let Some(recording) = self.last_recording() else { return };
        let context = stream.context.clone();
        stream.submit(move || {
            recording.wait(Some(&context));
            Ok(())
        });
    }

    /// Whether the last record is reached; if not, it is demanded. An event that was never recorded is.
    pub fn query(&self) -> Result {
        match self.last_recording() {
            Some(recording) if !recording.is_reached() => {
                recording.demand();
                Err(Code::NOT_READY)
            }
            _ => Ok(()),
        }
    }

    /// Waits for the last record.
    pub fn synchronise(&self) {
        if let Some(recording) = self.last_recording() {
            recording.wait(None);
        }
    }

    /// Milliseconds from this event to a later one.
    pub fn elapsed_ms(&self, later: &Event) -> Result<f32> {
        let (from, to) = (self.time()?, later.time()?);
        let (forward, backward) =
            (to.saturating_duration_since(from), from.saturating_duration_since(to));
        Ok((forward.as_secs_f32() - backward.as_secs_f32()) * 1e3)
    }

    /// Events without timing and those never recorded are no valid handles for this, as documented.
    fn time(&self) -> Result<Instant> {
        if self.flags & DISABLE_TIMING != 0 {
            return Err(Code::INVALID_HANDLE);
        }
        match self.last_recording() {
            Some(Recording::Local(point, time)) => {
                if !point.is_reached() {
                    point.demand();
                    return Err(Code::NOT_READY);
                }
                // It has no time if an error kept it from running.
                time.get().copied().ok_or(Code::UNKNOWN)
            }
            _ => Err(Code::INVALID_HANDLE),
        }
    }

    fn last_recording(&self) -> Option<Recording> {
        if let Some(shared) = &self.shared {
            // Another process may have recorded it since.
            let generation = shared.last_generation();
            return (generation > 0).then(|| Recording::Shared(shared.clone(), generation));
        }
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
