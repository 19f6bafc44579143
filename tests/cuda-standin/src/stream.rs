//! Streams: each a queue and a thread, and the schedule that says when the thread runs what.
//!
//! A [`Point`] is a place in a stream's order of work. Whoever waits for one first demands it: under the adversarial
//! schedule work runs only when it is demanded, be it through other streams, or when it was held long enough. So work
//! whose order the program forgot to state runs in an order that the program did not expect.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::code::{Code, Result};
use crate::context::{self, Context};
use crate::counters::count;
use crate::ipc::SharedEvent;
use crate::registry::Registry;
use crate::settings::{self, Schedule};

/// What an operation does; an error poisons the context.
pub type Work = Box<dyn FnOnce() -> Result + Send>;

/// How often a wait looks whether its context ends, and a held stream whether another process demands an event.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOK_FOR_DEMAND: Duration = Duration::from_micros(200);
/// The longest delay of the random schedule.
const LONGEST_DELAY_US: u64 = 1000;

/// A stream.
pub struct Stream {
    /// What programs know it by; 0 for a NULL stream.
    pub handle: usize,
    /// Whose it is.
    pub context: Arc<Context>,
    /// Whether it is ordered with the NULL stream.
    pub blocking: bool,
    /// As the program gave it.
    pub priority: i32,
    queue: Mutex<Queue>,
    arrived: Condvar,
    completed: Condvar,
}

#[derive(Default)]
struct Queue {
    operations: VecDeque<Operation>,
    /// Counts of operations since the stream began; the last ones mark how far what is said of them holds.
    submitted: u64,
    completed: u64,
    demanded: u64,
    released: u64,
    shared_records: usize,
    is_running: bool,
    closing: bool,
    abandoned: bool,
    ended: bool,
}

struct Operation {
    after: Vec<Point>,
    work: Work,
    /// The event of other processes, and its generation, that this operation records.
    shared: Option<(Arc<SharedEvent>, u64)>,
}

/// The end of an operation of a stream.
#[derive(Clone)]
pub struct Point {
    stream: Arc<Stream>,
    ticket: u64,
}

/// All streams but NULL streams.
pub static STREAMS: Registry<Stream> = Registry::new(0x0500_0000_0000);

impl Point {
    /// Whether it is reached.
    pub fn is_reached(&self) -> bool {
        self.stream.lock().completed >= self.ticket
    }

    /// Lets the stream run up to here.
    pub fn demand(&self) {
        let mut queue = self.stream.lock();
        if queue.demanded < self.ticket {
            queue.demanded = self.ticket;
            self.stream.arrived.notify_all();
        }
    }

    /// Waits until it is reached, or until the waiter's context ends.
    pub fn wait(&self, waiter: Option<&Context>) {
        self.demand();
        let mut queue = self.stream.lock();
        while queue.completed < self.ticket && !waiter.is_some_and(Context::is_stopped) {
            queue = match waiter {
                None => self.stream.completed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(_) => {
                    let waited = self.stream.completed.wait_timeout(queue, LOOK_AGAIN);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Stream {
    /// A stream, whose thread runs from now.
    pub fn start(
        context: Arc<Context>,
        handle: usize,
        blocking: bool,
        priority: i32,
    ) -> Arc<Stream> {
        let stream = Arc::new(Stream {
            handle,
            context: context.clone(),
            blocking,
            priority,
            queue: Mutex::default(),
            arrived: Condvar::new(),
            completed: Condvar::new(),
        });
        context.add_stream(stream.clone());
        let run = stream.clone();
        std::thread::Builder::new()
            .name(format!("standin-{}", context.device))
            .spawn(move || run.run())
            .expect("a thread for the stream");
        stream
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of all that was submitted by now.
    pub fn now(self: &Arc<Self>) -> Point {
        Point { stream: self.clone(), ticket: self.lock().submitted }
    }

    /// Adds an operation.
    pub fn submit(self: &Arc<Self>, work: impl FnOnce() -> Result + Send + 'static) -> Point {
        self.submit_shared(None, work)
    }

    /// Adds an operation that records an event of other processes.
    pub fn submit_shared(
        self: &Arc<Self>,
        shared: Option<(Arc<SharedEvent>, u64)>,
        work: impl FnOnce() -> Result + Send + 'static,
    ) -> Point {
        let after = self.legacy_order();
        let mut queue = self.lock();
        queue.submitted += 1;
        let ticket = queue.submitted;
        if queue.abandoned {
            queue.completed = ticket;
        } else {
            queue.shared_records += shared.is_some() as usize;
            queue.operations.push_back(Operation { after, work: Box::new(work), shared });
            self.arrived.notify_all();
        }
        Point { stream: self.clone(), ticket }
    }

    /// What the legacy NULL stream's rule puts before an operation: the NULL stream waits for all blocking streams, and
    /// these wait for it.
    fn legacy_order(&self) -> Vec<Point> {
        let mut before = Vec::new();
        if self.handle == 0 {
            let streams = self.context.streams();
            before.extend(streams.iter().filter(|s| s.blocking && s.handle != 0).map(Stream::now));
        } else if self.blocking {
            before.extend(self.context.null_stream_if_used().map(Stream::now));
        }
        before.retain(|point| !point.is_reached());
        before
    }

    /// Ends the stream once its work is done.
    pub fn close(&self) {
        self.lock().closing = true;
        self.arrived.notify_all();
    }

    /// Drops the work that did not begin.
    pub fn abandon(&self) {
        let mut queue = self.lock();
        queue.abandoned = true;
        let dropped = std::mem::take(&mut queue.operations);
        self.arrived.notify_all();
        drop(queue);
        drop(dropped);
    }

    /// Waits for the stream's thread.
    pub fn wait_for_end(&self) {
        let mut queue = self.lock();
        while !queue.ended {
            queue = self.completed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the stream's thread is at work.
    pub fn is_running(&self) -> bool {
        self.lock().is_running
    }

    fn run(self: Arc<Self>) {
        while let Some((operation, ticket)) = self.next() {
            for point in &operation.after {
                point.wait(Some(&self.context));
            }
            self.delay(ticket);
            // After an error nothing more runs, but what waits for it goes on, and is told.
            if self.context.check().is_ok() && !self.context.is_stopped() {
                // Were a fault of the stand-in to end the thread, the program would wait for ever.
                let result = catch_unwind(AssertUnwindSafe(operation.work));
                if let Err(code) = result.unwrap_or(Err(Code::LAUNCH_FAILED)) {
                    self.context.poison(code);
                }
            }
            if let Some((event, generation)) = operation.shared {
                event.complete(generation);
            }
            let mut queue = self.lock();
            queue.is_running = false;
            queue.completed = ticket;
            self.completed.notify_all();
        }
        self.context.remove_stream(&self);
        let mut queue = self.lock();
        queue.ended = true;
        queue.completed = queue.submitted;
        self.completed.notify_all();
    }

    /// The next operation, once it may run; none when the stream ends.
    fn next(&self) -> Option<(Operation, u64)> {
        let mut held_since = None;
        let mut queue = self.lock();
        loop {
            if queue.closing && queue.operations.is_empty() {
                // Who got hold of the stream before it was destroyed may still submit; that will not run.
                queue.abandoned = true;
            }
            if queue.abandoned {
                return None;
            }
            if queue.operations.is_empty() {
                held_since = None;
                queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let settings = settings::get();
            let ticket = queue.completed + 1;
            let held = *held_since.get_or_insert_with(Instant::now);
            if settings.schedule() != Schedule::Adversarial
                || ticket <= queue.demanded.max(queue.released)
                || queue.is_demanded_elsewhere()
            {
                let operation = queue.operations.pop_front()?;
                queue.is_running = true;
                queue.shared_records -= operation.shared.is_some() as usize;
                return Some((operation, ticket));
            }
            let left = settings.hold.saturating_sub(held.elapsed());
            if left.is_zero() {
                // All that waits by now runs: a chain that nobody demands costs one hold, not one for each operation.
                queue.released = queue.submitted;
                continue;
            }
            let left = if queue.shared_records > 0 { left.min(LOOK_FOR_DEMAND) } else { left };
            let waited = self.arrived.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn delay(&self, ticket: u64) {
        let settings = settings::get();
        if settings.schedule() != Schedule::Random {
            return;
        }
        let random = mix(settings.seed ^ mix(self.handle as u64 ^ ticket << 20));
        if random.is_multiple_of(2) {
            std::thread::sleep(Duration::from_micros((random >> 8) % LONGEST_DELAY_US));
        }
    }
}

impl Queue {
    /// Whether another process waits for an event that is recorded in the queue; then all up to there may run.
    fn is_demanded_elsewhere(&mut self) -> bool {
        if self.shared_records == 0 {
            return false;
        }
        let demanded = self.operations.iter().rposition(|operation| {
            operation
                .shared
                .as_ref()
                .is_some_and(|(event, generation)| event.is_demanded(*generation))
        });
        let Some(last) = demanded else { return false };
        self.demanded = self.demanded.max(self.completed + last as u64 + 1);
        true
    }
}

/// Spreads a number's bits (the finalizer of SplitMix64).
pub fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// `CU_STREAM_LEGACY` names the NULL stream, `CU_STREAM_PER_THREAD` one that the stand-in does not have.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// Makes a stream in a context.
pub fn create(context: &Arc<Context>, flags: u32, priority: i32) -> Result<usize> {
    if flags > 1 {
        return Err(Code::INVALID_VALUE);
    }
    let (handle, _) =
        STREAMS.add_shared(|handle| Stream::start(context.clone(), handle, flags == 0, priority));
    count(|counters| counters.streams_live += 1);
    Ok(handle)
}

/// Forgets a stream, whose work goes on.
pub fn destroy(handle: usize) -> Result {
    let stream = STREAMS.remove(handle)?;
    stream.close();
    count(|counters| counters.streams_live -= 1);
    Ok(())
}

/// The stream that a handle names, for work. A context must be current, as for the real driver.
pub fn by_handle(handle: usize) -> Result<Arc<Stream>> {
    let context = context::current()?;
    match handle {
        0 | LEGACY => Ok(context.null_stream()),
        PER_THREAD => Err(Code::NOT_SUPPORTED),
        _ => {
            let stream = STREAMS.get(handle)?;
            // The stream's own context may have failed while the current one is well.
            stream.context.check()?;
            Ok(stream)
        }
    }
}

/// Forgets the streams of a context that ends.
pub fn forget_all(context: &Arc<Context>) {
    let gone = STREAMS.remove_where(|stream| Arc::ptr_eq(&stream.context, context));
    count(|counters| counters.streams_live -= gone);
}
