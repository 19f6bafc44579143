//! A call that was made before allocates nothing, over RDMA neither.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ringtree::Op;

use crate::wire::communicators;
use ringtree_tests::ranks::each;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks for.
struct Counting;

// SAFETY: everything is passed on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn calls_that_were_made_before_allocate_nothing() {
    const COUNT: usize = 1 << 20;
    for ranks in [2, 3] {
        each(communicators(ranks), |communicator| {
            let mut memory = communicator.alloc::<f32>(COUNT).expect("memory");
            let mut plain = vec![0.0_f32; COUNT];
            // Each size through slots, and straight.
            for count in [2, 5_000, COUNT] {
                let mut call = || {
                    let before = ALLOCATIONS.get();
                    communicator.all_reduce(&mut memory[..count], Op::Sum).expect("an all-reduce");
                    communicator.all_reduce(&mut plain[..count], Op::Sum).expect("an all-reduce");
                    ALLOCATIONS.get() - before
                };
                // How much is under way at once differs from call to call, and the lists for it grow
                // with it; they end with all that a link may have under way.
                let is_clean = (0..20).any(|_| {
                    let mut most = [(0..5).map(|_| call()).sum::<u64>()];
                    communicator.all_reduce(&mut most, Op::Max).expect("an all-reduce");
                    most == [0]
                });
                assert!(is_clean, "{ranks} ranks, {count} elements");
            }
        });
    }
}
