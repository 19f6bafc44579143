//! Blocking calls in the steady state allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use ringtree::{Communicator, Op, Transports};
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

/// The counted calls may be repeated so often until none of them allocates. A TCP link makes its
/// receive slots when it first needs them: how many it needs at once depends on who is late, and
/// the link has not very many.
const fn repeats(transports: Transports) -> usize {
    match transports {
        Transports::Tcp => 30,
        Transports::Shm | Transports::Auto => 1,
    }
}

#[test]
fn blocking_calls_allocate_nothing() {
    for transports in TRANSPORTS {
        for ranks in [2, 3] {
            on_ranks(ranks, transports, |communicator| {
                for bytes in SIZES_BYTES {
                    let mut buffer = vec![0.0_f32; bytes / 4];
                    for _ in 0..WARM_UP_CALLS {
                        let _ = call(communicator, &mut buffer);
                    }
                    let clean = (0..repeats(transports))
                        .any(|_| nobody_allocates(communicator, &mut buffer));
                    assert!(clean, "calls of {bytes} bytes over {transports} allocate");
                }
            });
        }
    }
}

/// Makes the counted calls; whether none of them allocated on any rank.
fn nobody_allocates(communicator: &Communicator, buffer: &mut [f32]) -> bool {
    let counted: Vec<u64> = (0..COUNTED_CALLS).filter_map(|_| call(communicator, buffer)).collect();
    assert!(counted.len() > COUNTED_CALLS / 2, "nearly all calls stalled");
    let mut most = [counted.iter().sum::<u64>() as i32];
    communicator.all_reduce(&mut most, Op::Max).expect("an all-reduce");
    most == [0]
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
