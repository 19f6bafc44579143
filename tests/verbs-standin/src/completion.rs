//! Completion queues, and channels that tell of completions.

use std::collections::VecDeque;
use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::MOST_COMPLETIONS;
use crate::ffi::{CompletionChannel, CompletionQueue, Context, WorkCompletion};
use crate::{refuse, set_errno};

/// A channel: a pipe, through which go the addresses of the queues that have something.
#[repr(C)]
pub(crate) struct Channel {
    public: CompletionChannel,
    _read: OwnedFd,
    write: OwnedFd,
    queues: AtomicU32,
}

/// A completion queue.
#[repr(C)]
pub(crate) struct Queue {
    public: CompletionQueue,
    pub(crate) inner: Arc<Completions>,
    /// Events that were taken and not acknowledged.
    unacknowledged: AtomicU32,
}

/// What a completion queue has.
pub(crate) struct Completions {
    held: Mutex<Held>,
    /// Queue pairs.
    pub(crate) users: AtomicU32,
}

struct Held {
    entries: VecDeque<Entry>,
    capacity: usize,
    /// More came than it has room for: nothing is right any more.
    is_overrun: bool,
    is_armed: bool,
    /// The queue's own address and its channel's write end, where there is a channel.
    event: Option<(usize, c_int)>,
}

/// A completion, and what becomes free when somebody has taken it.
struct Entry {
    completion: WorkCompletion,
    freed: Option<(Arc<AtomicU32>, u32)>,
}

impl Completions {
    /// Adds a completion. When it is taken, so many places of a send queue are free again.
    pub(crate) fn add(&self, completion: WorkCompletion, freed: Option<(Arc<AtomicU32>, u32)>) {
        let mut held = self.held();
        if held.entries.len() >= held.capacity {
            eprintln!("verbs stand-in: a completion queue has run over");
            held.is_overrun = true;
            return;
        }
        held.entries.push_back(Entry { completion, freed });
        if std::mem::take(&mut held.is_armed)
            && let Some((queue, write)) = held.event
        {
            let bytes = queue.to_ne_bytes();
            // SAFETY: the channel outlives its queues. A full pipe is readable already.
            unsafe { libc::write(write, bytes.as_ptr().cast(), bytes.len()) };
        }
    }

    /// Forgets the completions of a queue pair that is gone.
    pub(crate) fn forget(&self, queue_pair: u32) {
        self.held().entries.retain(|entry| entry.completion.qp_num != queue_pair);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a channel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_comp_channel(context: *mut Context) -> *mut CompletionChannel {
    let mut ends: [c_int; 2] = [-1; 2];
    // SAFETY: there is room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return std::ptr::null_mut();
    }
    // SAFETY: both were just made and are nobody else's.
    let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    // SAFETY: the descriptor is open.
    unsafe { libc::fcntl(ends[1], libc::F_SETFL, libc::O_NONBLOCK) };
    let public = CompletionChannel { context, fd: ends[0], refcnt: 0 };
    Box::into_raw(Box::new(Channel { public, _read: read, write, queues: AtomicU32::new(0) }))
        .cast()
}

/// Ends a channel without queues.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_comp_channel(channel: *mut CompletionChannel) -> c_int {
    let channel: *mut Channel = channel.cast();
    // SAFETY: it was made above.
    if unsafe { &*channel }.queues.load(SeqCst) > 0 {
        return libc::EBUSY;
    }
    // SAFETY: it ends once.
    drop(unsafe { Box::from_raw(channel) });
    0
}

/// Makes a completion queue.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_cq(
    context: *mut Context,
    entries: c_int,
    cq_context: *mut c_void,
    channel: *mut CompletionChannel,
    vector: c_int,
) -> *mut CompletionQueue {
    if !(1..=MOST_COMPLETIONS).contains(&entries) || vector != 0 {
        return refuse(libc::EINVAL);
    }
    let held = Held {
        entries: VecDeque::new(),
        capacity: entries as usize,
        is_overrun: false,
        is_armed: false,
        event: None,
    };
    let inner = Arc::new(Completions { held: Mutex::new(held), users: AtomicU32::new(0) });
    let public = CompletionQueue { context, channel, cq_context };
    let made = Queue { public, inner: inner.clone(), unacknowledged: AtomicU32::new(0) };
    let queue: *mut CompletionQueue = Box::into_raw(Box::new(made)).cast();
    if !channel.is_null() {
        // SAFETY: the caller has it from above.
        let channel = unsafe { &*channel.cast::<Channel>() };
        channel.queues.fetch_add(1, SeqCst);
        inner.held().event =
            Some((queue as usize, std::os::fd::AsRawFd::as_raw_fd(&channel.write)));
    }
    queue
}

/// Ends a completion queue that no queue pair has, and whose events are acknowledged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_cq(queue: *mut CompletionQueue) -> c_int {
    let made: *mut Queue = queue.cast();
    // SAFETY: it was made above, and ends below.
    let found = unsafe { &*made };
    if found.inner.users.load(SeqCst) > 0 {
        return libc::EBUSY;
    }
    if found.unacknowledged.load(SeqCst) > 0 {
        eprintln!("verbs stand-in: ibv_destroy_cq waits for ever: an event is not acknowledged");
        std::process::abort();
    }
    if !found.public.channel.is_null() {
        // SAFETY: a channel outlives its queues.
        let channel = unsafe { &*found.public.channel.cast::<Channel>() };
        channel.queues.fetch_sub(1, SeqCst);
    }
    // SAFETY: it ends once.
    drop(unsafe { Box::from_raw(made) });
    0
}

/// Takes an event of a channel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_cq_event(
    channel: *mut CompletionChannel,
    queue: *mut *mut CompletionQueue,
    cq_context: *mut *mut c_void,
) -> c_int {
    let mut bytes = [0; size_of::<usize>()];
    // SAFETY: the channel is open, and the bytes have room for an address.
    let read = unsafe { libc::read((*channel).fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    if read != bytes.len() as isize {
        if read >= 0 {
            set_errno(libc::EIO);
        }
        return -1;
    }
    let found = usize::from_ne_bytes(bytes) as *mut CompletionQueue;
    // SAFETY: a queue outlives its events, since somebody acknowledges them first.
    unsafe {
        let taken = &*found.cast::<Queue>();
        taken.unacknowledged.fetch_add(1, SeqCst);
        *queue = found;
        *cq_context = (*found).cq_context;
    }
    0
}

/// Acknowledges events.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_ack_cq_events(queue: *mut CompletionQueue, count: c_uint) {
    // SAFETY: the queue lives.
    unsafe { &*queue.cast::<Queue>() }.unacknowledged.fetch_sub(count, SeqCst);
}

/// `ibv_poll_cq`: takes completions.
pub(crate) unsafe extern "C" fn poll_cq(
    queue: *mut CompletionQueue,
    most: c_int,
    to: *mut WorkCompletion,
) -> c_int {
    // SAFETY: the queue lives.
    let mut held = unsafe { &*queue.cast::<Queue>() }.inner.held();
    if held.is_overrun {
        return -1;
    }
    let count = held.entries.len().min(most.max(0) as usize);
    for (at, entry) in held.entries.drain(..count).enumerate() {
        if let Some((places, freed)) = entry.freed {
            places.fetch_sub(freed, SeqCst);
        }
        // SAFETY: the caller has room for so many.
        unsafe { to.add(at).write(entry.completion) };
    }
    count as c_int
}

/// `ibv_req_notify_cq`: asks for an event with the next completion.
pub(crate) unsafe extern "C" fn req_notify_cq(
    queue: *mut CompletionQueue,
    solicited: c_int,
) -> c_int {
    if solicited != 0 {
        return libc::EINVAL;
    }
    // SAFETY: the queue lives.
    unsafe { &*queue.cast::<Queue>() }.inner.held().is_armed = true;
    0
}
