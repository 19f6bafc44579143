//! What a thread, or the whole process, holds of the heap, to see that nothing stays behind. A program counts once
//! it has
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: ringtree_tests::live_bytes::Counting = ringtree_tests::live_bytes::Counting;
//! ```
//!
//! or [`CountingProcess`] in its place.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

/// The system's allocator, which also counts what each thread holds.
pub struct Counting;

thread_local! {
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
}

/// What the calling thread has allocated more than it has freed.
pub fn live_bytes() -> isize {
    LIVE_BYTES.get()
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.set(LIVE_BYTES.get() + layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE_BYTES.set(LIVE_BYTES.get() - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The system's allocator, which also counts what all threads together hold. It is slower where several threads
/// allocate at once.
pub struct CountingProcess;

static PROCESS_BYTES: AtomicIsize = AtomicIsize::new(0);

/// What the process has allocated more than it has freed.
pub fn process_bytes() -> isize {
    PROCESS_BYTES.load(Ordering::Relaxed)
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for CountingProcess {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PROCESS_BYTES.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        PROCESS_BYTES.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}
