//! Blocking calls in the steady state allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use ringtree::{Communicator, Op};
use ringtree_tests::ranks::{TRANSPORTS, on_ranks};

/// Counts what the calling thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(data, layout) }
    }

    unsafe fn realloc(&self, data: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(data, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A call without progress for 100 ms reports that, which allocates. On a machine that is busy
/// with other things it happens; such calls are not what is counted here.
const STALLED: Duration = Duration::from_millis(100);

const SIZES_BYTES: [usize; 3] = [8, 64 << 10, 1 << 20];
const WARM_UP_CALLS: usize = 20;
const COUNTED_CALLS: usize = 60;

#[test]
fn a_blocking_call_allocates_nothing() {
    for transports in TRANSPORTS {
        for ranks in [2, 3] {
            on_ranks(ranks, transports, |communicator| {
                for bytes in SIZES_BYTES {
                    let mut buffer = vec![0.0_f32; bytes / 4];
                    for _ in 0..WARM_UP_CALLS {
                        let _ = call(communicator, &mut buffer);
                    }
                    let counted: Vec<u64> = (0..COUNTED_CALLS)
                        .filter_map(|_| call(communicator, &mut buffer))
                        .collect();
                    let rank = communicator.rank();
                    let what = format!("{bytes} bytes, rank {rank} of {ranks}, {transports}");
                    assert!(counted.len() > COUNTED_CALLS / 2, "{what}: nearly all calls stalled");
                    assert!(counted.iter().all(|count| *count == 0), "{what}: {counted:?}");
                }
            });
        }
    }
}

/// What one call allocated, unless it stalled.
fn call(communicator: &Communicator, buffer: &mut [f32]) -> Option<u64> {
    let began = Instant::now();
    let before = ALLOCATIONS.get();
    communicator.all_reduce(buffer, Op::Sum).expect("an all-reduce");
    let allocated = ALLOCATIONS.get() - before;
    (began.elapsed() < STALLED).then_some(allocated)
}

#[test]
fn the_count_counts() {
    let before = ALLOCATIONS.get();
    drop(vec![0_u8; std::hint::black_box(100)]);
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
