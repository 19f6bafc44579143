//! Asynchronous calls: a queue of operations that own their buffers, and the thread that drives
//! them.
//!
//! The order of posting is the order of running. A blocking call takes its turn behind what is
//! queued, and drives it itself rather than wait for the progress thread.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::mem::replace;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::Error;
use crate::communicator::Inner;
use crate::control::Stream;
use crate::engine::{self, Engine};
use crate::prepared::Call;

/// How a call is carried out on the buffers that it owns.
pub(crate) type Run<B> = fn(&mut Engine, &Call, &mut B) -> Result<(), Error>;

/// An asynchronous operation that owns its buffer until it is waited for. Operations complete in
/// the order in which they were posted, whatever the order of waiting. Dropping this lets the
/// operation go on, and its buffer is freed when it is done; what went wrong then shows at the
/// communicator's next call. It may outlive the communicator.
#[must_use = "the result is in the buffer that `wait` gives back"]
pub struct Pending<B> {
    /// None once it has been waited for.
    slot: Option<Arc<Slot<B>>>,
}

impl<B> Pending<B> {
    /// Waits until the operation is done and gives the buffer back.
    ///
    /// # Errors
    /// See [`Error`]. The buffer is freed then: what it holds is neither input nor result.
    pub fn wait(self) -> Result<B, Error> {
        self.wait_timed().map(|(buffer, _)| buffer)
    }

    /// As [`Pending::wait`], and says when the operation was carried out: what of that time the program has spent
    /// waiting is what it did not hide.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn wait_timed(mut self) -> Result<(B, Ran), Error> {
        match self.slot.take().map(|slot| slot.wait()) {
            Some(Stage::Done(buffer, result, ran)) => result.map(|()| (buffer, ran)),
            _ => Err(Error::Panicked),
        }
    }
}

/// When an asynchronous operation was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// When its turn had come.
    pub began: Instant,
    /// When this rank was done with it.
    pub ended: Instant,
}

impl<B> Drop for Pending<B> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.forget();
        }
    }
}

impl<B> fmt::Debug for Pending<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// The place of one operation at a time, used again for later ones on buffers of the same type: in
/// the steady state posting allocates nothing.
struct Slot<B> {
    operation: Mutex<Operation<B>>,
    ended: Condvar,
}

struct Operation<B> {
    stage: Stage<B>,
    /// Nobody will wait for it.
    is_forgotten: bool,
}

enum Stage<B> {
    /// The slot can be taken for the next operation.
    Free,
    Posted(Call, B, Run<B>),
    Running,
    Done(B, Result<(), Error>, Ran),
    /// The code of the buffer's owner panicked.
    Panicked,
}

impl<B> Slot<B> {
    fn new() -> Slot<B> {
        let operation = Operation { stage: Stage::Free, is_forgotten: false };
        Slot { operation: Mutex::new(operation), ended: Condvar::new() }
    }

    /// Waits for the end, and frees the slot.
    fn wait(&self) -> Stage<B> {
        let mut operation = lock(&self.operation);
        while matches!(operation.stage, Stage::Posted(..) | Stage::Running) {
            operation = self.ended.wait(operation).unwrap_or_else(PoisonError::into_inner);
        }
        replace(&mut operation.stage, Stage::Free)
    }

    /// Frees the slot at the end of its operation, or now if that was before.
    fn forget(&self) {
        let mut operation = lock(&self.operation);
        if matches!(operation.stage, Stage::Done(..) | Stage::Panicked) {
            let stage = replace(&mut operation.stage, Stage::Free);
            // A buffer's owner may do anything while it drops it.
            drop(operation);
            drop(stage);
        } else {
            operation.is_forgotten = true;
        }
    }

    fn end(&self, stage: Stage<B>) {
        let mut operation = lock(&self.operation);
        if operation.is_forgotten {
            *operation = Operation { stage: Stage::Free, is_forgotten: false };
            drop(operation);
            drop(stage);
        } else {
            operation.stage = stage;
            self.ended.notify_all();
        }
    }
}

/// A slot of any type.
trait Job: Any + Send + Sync {
    /// Runs what was posted. Panics if code of the buffer's owner does.
    fn run(&self, engine: &mut Engine);

    /// Ends the operation, in which [`Job::run`] has panicked.
    fn panicked(&self);

    fn is_free(&self) -> bool;
}

impl<B: Send + 'static> Job for Slot<B> {
    fn run(&self, engine: &mut Engine) {
        let stage = replace(&mut lock(&self.operation).stage, Stage::Running);
        if let Stage::Posted(call, mut buffer, run) = stage {
            let began = Instant::now();
            let result = run(engine, &call, &mut buffer);
            self.end(Stage::Done(buffer, result, Ran { began, ended: Instant::now() }));
        }
    }

    fn panicked(&self) {
        // What panicked may have been the drop of a forgotten buffer, after the end.
        if matches!(lock(&self.operation).stage, Stage::Running) {
            self.end(Stage::Panicked);
        }
    }

    fn is_free(&self) -> bool {
        matches!(lock(&self.operation).stage, Stage::Free)
    }
}

/// The slots of a communicator's operations: as many as were ever under way at once, up to a bound.
#[derive(Default)]
struct Slots(Mutex<Vec<Arc<dyn Job>>>);

impl Slots {
    /// Beyond so many, slots are not kept for later operations.
    const MOST_KEPT: usize = 64;

    /// A slot that holds the operation.
    fn post<B: Send + 'static>(&self, call: Call, buffer: B, run: Run<B>) -> Arc<Slot<B>> {
        let mut slots = lock(&self.0);
        let slot = slots.iter().filter(|slot| slot.is_free()).find_map(|slot| {
            let slot: Arc<dyn Any + Send + Sync> = slot.clone();
            slot.downcast::<Slot<B>>().ok()
        });
        let slot = slot.unwrap_or_else(|| {
            let slot = Arc::new(Slot::new());
            if slots.len() < Self::MOST_KEPT {
                slots.push(slot.clone());
            } else if let Some(unused) = slots.iter_mut().find(|slot| slot.is_free()) {
                *unused = slot.clone();
            }
            slot
        });
        // Before another thread can look for a free one.
        lock(&slot.operation).stage = Stage::Posted(call, buffer, run);
        slot
    }
}

/// A communicator's queue and its thread, which is started with the first asynchronous call.
#[derive(Default)]
pub(crate) struct Progress {
    queue: Arc<Queue>,
    slots: Slots,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    /// Jobs queued or running, so that a blocking call sees without a lock that there are none.
    posted: AtomicUsize,
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Arc<dyn Job>>,
    finished: bool,
}

impl Progress {
    /// The engine, behind everything that was posted before.
    #[inline]
    pub(crate) fn turn<'a>(&self, engine: &'a Mutex<Engine>) -> MutexGuard<'a, Engine> {
        let mut engine = engine::lock(engine);
        if self.queue.posted.load(Ordering::Acquire) != 0 {
            self.queue.run(&mut engine);
        }
        engine
    }

    /// Queues `call`, to be carried out on `buffer` by `run`.
    pub(crate) fn post<B: Send + 'static>(
        &self,
        inner: &Arc<Inner>,
        call: Call,
        buffer: B,
        run: Run<B>,
    ) -> Pending<B> {
        if call.stream == Stream::Collective
            && let Some(boards) = inner.boards()
        {
            boards.count_call();
        }
        let slot = self.slots.post(call, buffer, run);
        self.queue.posted.fetch_add(1, Ordering::Release);
        lock(&self.queue.jobs).waiting.push_back(slot.clone());
        if self.start(inner) {
            self.queue.changed.notify_one();
        } else {
            // No thread can be had: the caller does the work.
            drop(self.turn(inner.engine()));
        }
        Pending { slot: Some(slot) }
    }

    /// Completes what is queued and ends the thread.
    pub(crate) fn finish(&self) {
        lock(&self.queue.jobs).finished = true;
        self.queue.changed.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    /// Whether there is a progress thread, which is started if need be.
    fn start(&self, inner: &Arc<Inner>) -> bool {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let (queue, inner) = (self.queue.clone(), inner.clone());
            let name = format!("ringtree-{}", inner.rank());
            let run = move || queue.serve(inner.engine());
            *thread = std::thread::Builder::new().name(name).spawn(run).ok();
        }
        thread.is_some()
    }
}

impl Queue {
    /// Runs jobs until the communicator is dropped and none is left.
    fn serve(&self, engine: &Mutex<Engine>) {
        loop {
            let mut jobs = lock(&self.jobs);
            while jobs.waiting.is_empty() {
                if jobs.finished {
                    return;
                }
                jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            }
            drop(jobs);
            self.run(&mut engine::lock(engine));
        }
    }

    /// Runs what is queued. Holding the engine keeps the order.
    fn run(&self, engine: &mut Engine) {
        loop {
            let Some(job) = lock(&self.jobs).waiting.pop_front() else { return };
            // A job runs code of its buffer's owner. The jobs behind it must not hang when that
            // panics.
            engine.is_in_job = true;
            let outcome = catch_unwind(AssertUnwindSafe(|| job.run(engine)));
            engine.is_in_job = false;
            if outcome.is_err() {
                engine.abandon();
                job.panicked();
            }
            self.posted.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A panic in another thread has left nothing half-done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
