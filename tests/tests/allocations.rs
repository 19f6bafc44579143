//! Calls in the steady state allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use ringtree::{Communicator, Op, Pending, Transports};
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
        _ => 1,
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

/// Asynchronous calls under way at once.
const IN_FLIGHT: usize = 8;

/// A buffer that notes, whenever it is asked for its memory, what the thread that asks has
/// allocated. The one that carries out a call asks last.
struct Noting {
    elements: Vec<f32>,
    thread_has_allocated: u64,
}

impl AsMut<[f32]> for Noting {
    fn as_mut(&mut self) -> &mut [f32] {
        self.thread_has_allocated = ALLOCATIONS.get();
        &mut self.elements
    }
}

#[test]
fn asynchronous_calls_allocate_nothing_and_copy_no_buffer() {
    for transports in TRANSPORTS {
        on_ranks(2, transports, |communicator| {
            for bytes in SIZES_BYTES {
                let buffer = || Noting { elements: vec![0.0; bytes / 4], thread_has_allocated: 0 };
                let mut buffers: Vec<Noting> = (0..IN_FLIGHT).map(|_| buffer()).collect();
                let mut pending = Vec::with_capacity(IN_FLIGHT);
                for _ in 0..WARM_UP_CALLS {
                    let _ = in_flight(communicator, &mut buffers, &mut pending);
                }
                let clean = (0..repeats(transports)).any(|_| {
                    let batch = |_| in_flight(communicator, &mut buffers, &mut pending);
                    let counted: Vec<u64> = (0..COUNTED_CALLS).filter_map(batch).collect();
                    assert!(counted.len() > COUNTED_CALLS / 2, "nearly all calls stalled");
                    let mut most = [counted.iter().sum::<u64>() as i32];
                    communicator.all_reduce(&mut most, Op::Max).expect("an all-reduce");
                    most == [0]
                });
                assert!(clean, "asynchronous calls of {bytes} bytes over {transports} allocate");
            }
        });
    }
}

/// Posts a call for each buffer before it waits for the first. What this thread and the one that
/// carries the calls out allocated, unless a call stalled.
fn in_flight(
    communicator: &Communicator,
    buffers: &mut Vec<Noting>,
    pending: &mut Vec<Pending<Noting>>,
) -> Option<u64> {
    let addresses: [usize; IN_FLIGHT] =
        std::array::from_fn(|index| buffers[index].elements.as_ptr().addr());
    // The last call before these noted this.
    let carried_out_before = buffers[IN_FLIGHT - 1].thread_has_allocated;
    let began = Instant::now();
    let before = ALLOCATIONS.get();
    for buffer in buffers.drain(..) {
        pending.push(communicator.all_reduce_async(buffer, Op::Sum).expect("a call"));
    }
    for call in pending.drain(..) {
        buffers.push(call.wait().expect("an all-reduce"));
    }
    let posting = ALLOCATIONS.get() - before;
    let carrying_out = buffers[IN_FLIGHT - 1].thread_has_allocated - carried_out_before;
    let is_its_own =
        |(buffer, address): (&Noting, usize)| buffer.elements.as_ptr().addr() == address;
    assert!(buffers.iter().zip(addresses).all(is_its_own), "a buffer was exchanged");
    (began.elapsed() < STALLED).then_some(posting + carrying_out)
}

#[test]
fn the_count_counts() {
    let before = ALLOCATIONS.get();
    drop(vec![0_u8; std::hint::black_box(100)]);
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
