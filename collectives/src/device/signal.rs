//! How a stream of the program learns that a call queued on it is done: a word of pinned memory that it waits for.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringtree_transport::cuda::{CudaError, Device, PinnedMemory, Stream};

use crate::Error;

/// The word of one communicator and GPU. Calls are done in the order in which they were queued, so that one will do:
/// it has the number of the last call that is done.
#[derive(Debug)]
pub(crate) struct Signal {
    device: Device,
    word: PinnedMemory,
    /// Held while a call is queued: the stream that the last one that waits for the word was queued in.
    order: Mutex<Option<usize>>,
    /// The number of the last call that was queued, wrapping.
    last: AtomicU32,
    /// Why calls fail from now on.
    error: Mutex<Option<Error>>,
}

/// Says that a call is done when it is dropped, if not before: a stream must not wait for ever.
#[derive(Debug)]
pub(crate) struct Done {
    signal: Arc<Signal>,
    number: u32,
    is_said: bool,
}

/// The signals of one communicator, one for each GPU.
#[derive(Debug, Default)]
pub(crate) struct Signals(Mutex<Vec<Arc<Signal>>>);

/// Signals of communicators that are gone. A stream may look at a word long after the communicator has said that all is
/// done, so that words are never given back; another communicator goes on counting.
static FREE: Mutex<Vec<Arc<Signal>>> = Mutex::new(Vec::new());

impl Signals {
    /// That of a device.
    pub(crate) fn of(&self, device: &Device) -> Result<Arc<Signal>, CudaError> {
        let mut signals = lock(&self.0);
        if let Some(signal) = signals.iter().find(|signal| signal.device == *device) {
            return Ok(signal.clone());
        }
        let mut free = lock(&FREE);
        let signal = match free.iter().position(|signal| signal.device == *device) {
            Some(at) => free.swap_remove(at),
            None => Arc::new(Signal::new(device)?),
        };
        signals.push(signal.clone());
        Ok(signal)
    }
}

impl Signals {
    /// Lets all streams go on: the calls that they wait for have failed, and no later one will be queued.
    pub(crate) fn release(&self, error: &Error) {
        for signal in lock(&self.0).iter() {
            signal.fail(error);
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for signal in lock(&self.0).drain(..) {
            *lock(&signal.error) = None;
            *lock(&signal.order) = None;
            lock(&FREE).push(signal);
        }
    }
}

impl Signal {
    fn new(device: &Device) -> Result<Signal, CudaError> {
        let signal = Signal {
            device: device.clone(),
            word: PinnedMemory::alloc(device, size_of::<u32>())?,
            order: Mutex::default(),
            last: AtomicU32::new(0),
            error: Mutex::default(),
        };
        signal.word().store(0, Ordering::Release);
        Ok(signal)
    }

    /// Queues a call by `post`, and has the stream wait for its end. Nobody else queues one meanwhile.
    ///
    /// # Errors
    /// Why an earlier call failed, or what the driver says.
    pub(crate) fn queue<P>(
        self: &Arc<Self>,
        stream: &Stream,
        post: impl FnOnce(Done) -> P,
    ) -> Result<P, Error> {
        let mut last_stream = lock(&self.order);
        self.check()?;
        let number = self.last.load(Ordering::Relaxed).wrapping_add(1);
        // First, so that no call is under way that the stream does not wait for. SAFETY: the word is never given back.
        unsafe { stream.wait_for_word(self.word.address(), number)? };
        self.last.store(number, Ordering::Relaxed);
        *last_stream = Some(stream.raw() as usize);
        Ok(post(Done { signal: self.clone(), number, is_said: false }))
    }

    /// Queues, by `queue`, what the stream itself carries out, behind the last call that was queued in another stream.
    ///
    /// # Errors
    /// Why an earlier call failed, or what `queue` or the driver says.
    pub(crate) fn follow<P>(
        &self,
        stream: &Stream,
        queue: impl FnOnce() -> Result<P, Error>,
    ) -> Result<P, Error> {
        let last_stream = lock(&self.order);
        self.check()?;
        if last_stream.is_some_and(|last| last != stream.raw() as usize) {
            let number = self.last.load(Ordering::Relaxed);
            // SAFETY: the word is never given back.
            unsafe { stream.wait_for_word(self.word.address(), number)? };
        }
        queue()
    }

    fn check(&self) -> Result<(), Error> {
        lock(&self.error).as_ref().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// From now on calls fail, and all that were queued count as done.
    fn fail(&self, error: &Error) {
        lock(&self.error).get_or_insert_with(|| error.clone());
        self.word().store(self.last.load(Ordering::Relaxed), Ordering::Release);
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the memory is pinned, aligned and as long as a word; the device only reads it.
        unsafe { AtomicU32::from_ptr(self.word.start().cast()) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Done {
    /// The call is done: what it has written is there for what follows in the stream.
    pub(crate) fn say(&mut self, result: &Result<(), Error>) {
        self.is_said = true;
        match result {
            Ok(()) if lock(&self.signal.error).is_none() => {
                self.signal.word().store(self.number, Ordering::Release);
            }
            Ok(()) => {}
            Err(error) => self.signal.fail(error),
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if !self.is_said {
            self.say(&Err(Error::Panicked));
        }
    }
}
