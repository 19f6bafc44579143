//! Asynchronous calls: a queue of operations that own their buffers, and the thread that drives
//! them.
//!
//! The order of posting is the order of running. A blocking call takes its turn behind what is
//! queued, and drives it itself rather than wait for the progress thread.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::Error;
use crate::communicator::Inner;
use crate::engine::{self, Engine};

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// An asynchronous operation that owns its buffer until it is waited for. Operations complete in
/// the order in which they were posted, whatever the order of waiting. Dropping this lets the
/// operation go on, and its buffer is freed when it is done; what went wrong then shows at the
/// communicator's next call. It may outlive the communicator.
#[must_use = "the result is in the buffer that `wait` gives back"]
pub struct Pending<B> {
    outcome: Receiver<(B, Result<(), Error>)>,
}

impl<B> Pending<B> {
    /// Waits until the operation is done and gives the buffer back.
    ///
    /// # Errors
    /// See [`Error`]. The buffer is freed then: what it holds is neither input nor result.
    pub fn wait(self) -> Result<B, Error> {
        match self.outcome.recv() {
            Ok((buffer, Ok(()))) => Ok(buffer),
            Ok((_, Err(error))) => Err(error),
            Err(_) => Err(Error::Panicked),
        }
    }
}

impl<B> fmt::Debug for Pending<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// A communicator's queue and its thread, which is started with the first asynchronous call.
#[derive(Default)]
pub(crate) struct Progress {
    queue: Arc<Queue>,
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
    waiting: VecDeque<Job>,
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

    /// Queues `run` on `buffer`.
    pub(crate) fn post<B, F>(&self, inner: &Arc<Inner>, mut buffer: B, run: F) -> Pending<B>
    where
        B: Send + 'static,
        F: FnOnce(&mut Engine, &mut B) -> Result<(), Error> + Send + 'static,
    {
        let (sender, outcome) = sync_channel(1);
        let job = Box::new(move |engine: &mut Engine| {
            let result = run(engine, &mut buffer);
            // Nobody may be waiting any more; the buffer is dropped then.
            let _ = sender.send((buffer, result));
        });
        self.queue.posted.fetch_add(1, Ordering::Release);
        lock(&self.queue.jobs).waiting.push_back(job);
        if self.start(inner) {
            self.queue.changed.notify_one();
        } else {
            // No thread can be had: the caller does the work.
            drop(self.turn(inner.engine()));
        }
        Pending { outcome }
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
            if catch_unwind(AssertUnwindSafe(|| job(engine))).is_err() {
                engine.abandon();
            }
            self.posted.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A panic in another thread has left nothing half-done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
