//! Contexts: each device's primary one, which of them is current for a thread, errors that stick to them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::code::{Code, Result};
use crate::initialisation::{device, driver};
use crate::stream::Stream;

/// A context.
pub struct Context {
    /// Whose primary context it is.
    pub device: usize,
    error: AtomicI32,
    stopped: AtomicBool,
    peers: Mutex<BTreeSet<usize>>,
    /// All streams with a thread: destroyed ones stay until their work is done.
    streams: Mutex<Vec<Arc<Stream>>>,
    null: OnceLock<Arc<Stream>>,
}

impl Context {
    /// A context in which nothing happened yet.
    pub fn new(device: usize) -> Context {
        Context {
            device,
            error: AtomicI32::new(0),
            stopped: AtomicBool::new(false),
            peers: Mutex::default(),
            streams: Mutex::default(),
            null: OnceLock::new(),
        }
    }

    /// The error that sticks to the context.
    pub fn check(&self) -> Result {
        match self.error.load(SeqCst) {
            0 => Ok(()),
            code => Err(Code(code)),
        }
    }

    /// Makes an error stick, unless one does already.
    pub fn poison(&self, code: Code) {
        let _ = self.error.compare_exchange(0, code.0, SeqCst, SeqCst);
    }

    /// Whether work has to end because the context does.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// Ends the work of all streams and waits for their threads.
    pub fn stop(&self) {
        self.stopped.store(true, SeqCst);
        let streams = self.streams();
        for stream in &streams {
            stream.abandon();
        }
        for stream in &streams {
            stream.wait_for_end();
        }
    }

    /// Lets kernels reach the memory of a peer.
    pub fn enable_peer(&self, peer: usize) -> Result {
        if !self.lock_peers().insert(peer) {
            return Err(Code::PEER_ACCESS_ALREADY_ENABLED);
        }
        driver().space.note_change();
        Ok(())
    }

    /// Ends that.
    pub fn disable_peer(&self, peer: usize) -> Result {
        if !self.lock_peers().remove(&peer) {
            return Err(Code::PEER_ACCESS_NOT_ENABLED);
        }
        driver().space.note_change();
        Ok(())
    }

    /// Whether kernels reach the memory of a peer.
    pub fn reaches(&self, peer: usize) -> bool {
        self.lock_peers().contains(&peer)
    }

    fn lock_peers(&self) -> std::sync::MutexGuard<'_, BTreeSet<usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The NULL stream.
    pub fn null_stream(self: &Arc<Self>) -> Arc<Stream> {
        self.null.get_or_init(|| Stream::start(self.clone(), 0, true, 0)).clone()
    }

    /// The NULL stream if it was ever used.
    pub fn null_stream_if_used(&self) -> Option<&Arc<Stream>> {
        self.null.get()
    }

    /// All streams, the NULL stream too.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a stream whose thread starts.
    pub fn add_stream(&self, stream: Arc<Stream>) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }

    /// Removes a stream whose thread ends.
    pub fn remove_stream(&self, stream: &Arc<Stream>) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|other| !Arc::ptr_eq(other, stream));
    }

    /// Waits for all work that was submitted by now.
    pub fn synchronise(&self) {
        let points: Vec<_> = self.streams().iter().map(Stream::now).collect();
        // All are demanded before one is waited for, because they may wait for each other in kernels.
        points.iter().for_each(|point| point.demand());
        points.iter().for_each(|point| point.wait(None));
    }
}

thread_local! {
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

const FIRST_HANDLE: usize = 0x0c00_0000_0000;

/// The handle of a device's primary context, which stays the same.
pub fn handle(device: usize) -> usize {
    FIRST_HANDLE + device * 16
}

/// The device whose primary context a handle names.
pub fn device_of(handle: usize) -> Result<usize> {
    let index = handle.checked_sub(FIRST_HANDLE).filter(|distance| distance % 16 == 0);
    let index = index.map(|distance| distance / 16);
    index.filter(|index| *index < driver().devices.len()).ok_or(Code::INVALID_CONTEXT)
}

/// The context that a handle names. It must be active: the real driver's words for 709 are "has been destroyed, or is a
/// primary context which has not yet been initialized".
pub fn by_handle(handle: usize) -> Result<Arc<Context>> {
    device(device_of(handle)? as i32)?.context().ok_or(Code::CONTEXT_IS_DESTROYED)
}

/// This thread's current context, without an error that sticks to it.
pub fn current() -> Result<Arc<Context>> {
    let context = current_or_poisoned()?;
    context.check()?;
    Ok(context)
}

/// This thread's current context, even after an error.
pub fn current_or_poisoned() -> Result<Arc<Context>> {
    by_handle(current_handle().ok_or(Code::INVALID_CONTEXT)?)
}

/// The handle of this thread's current context; none while the thread ends, when programs still drop what they have.
pub fn current_handle() -> Option<usize> {
    STACK.try_with(|stack| stack.borrow().last().copied()).ok().flatten()
}

/// Replaces the current context; 0 removes it.
pub fn set_current(handle: usize) -> Result {
    if handle != 0 {
        by_handle(handle)?;
    }
    let replace = |stack: &RefCell<Vec<usize>>| {
        let mut stack = stack.borrow_mut();
        stack.pop();
        if handle != 0 {
            stack.push(handle);
        }
    };
    STACK.try_with(replace).map_err(|_| Code::DEINITIALIZED)
}

/// Makes a context current, and keeps what was.
pub fn push(handle: usize) -> Result {
    by_handle(handle)?;
    STACK.try_with(|stack| stack.borrow_mut().push(handle)).map_err(|_| Code::DEINITIALIZED)
}

/// Brings back what was current before.
pub fn pop() -> Result<usize> {
    let top = STACK.try_with(|stack| stack.borrow_mut().pop());
    top.ok().flatten().ok_or(Code::INVALID_CONTEXT)
}

/// Whether this thread runs a function that was put in a stream.
pub fn in_host_function() -> bool {
    IN_HOST_FUNCTION.get()
}

/// Runs a function that was put in a stream.
pub fn host_function(run: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    run();
    IN_HOST_FUNCTION.set(false);
}
