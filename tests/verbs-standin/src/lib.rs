//! A stand-in for libibverbs (`libibverbs.so.1`) between processes of one host, for tests on machines without RDMA
//! devices: what `ringtree-transport` uses of the library, and nothing else.
//!
//! Devices are those of the host, which all of its processes open. A queue pair is two threads: one carries out
//! what was posted, one after the other, over a socket (`requester.rs`), the other what the peer's asks for
//! (`responder.rs`). So memory is read some time after a write was posted and before it is complete, and is written
//! without the receiving process doing anything, as by an adapter.
//!
//! It is as unforgiving as one: keys, bounds, rights and protection domains are checked on both sides; what fails
//! ends the queue pair and flushes what waits, in order; who posts more than a queue holds, or in the wrong state,
//! is refused; a peer that is not ready, or gone, costs the retries that were set. Memory that the host cannot touch, as
//! that of a GPU, cannot be registered by its address, but by a dma-buf descriptor of the stand-in for the CUDA driver
//! (`tests/cuda-standin`), whose pages are then read and written.
//!
//! It says nothing about speed, loses and reorders no packets, and pins no pages: who unmaps registered memory crashes
//! instead of going on with pages that nobody else has. A process that is stopped stops its queue pairs, too.
//!
//! # Settings
//!
//! Environment variables, each with the prefix `RINGTREE_VERBS_STANDIN_`.
//!
//! | Name | Default | Meaning |
//! |---|---|---|
//! | `DEVICES` | 2 | number of devices, `standin0` and so on, 0 to 8; each has one port, of InfiniBand |
//! | `NO_DMA_BUF` | 0 | 1: no device registers dma-bufs, as soft-RoCE |
//!
//! # For tests in the same process
//!
//! `void ringtree_verbs_standin_dma_buf_bytes(uint64_t *read, uint64_t *written)` tells how many bytes of dma-bufs this
//! process's devices have read to send, and written because they were sent.

// The functions are libibverbs', whose manual says what their callers owe.
#![allow(clippy::missing_safety_doc)]

mod completion;
mod device;
#[allow(dead_code, missing_docs)]
#[path = "../../../transport/src/rdma/ffi.rs"]
pub mod ffi;
mod memory;
mod queue_pair;
mod requester;
mod responder;
mod state;
mod wire;

use std::ffi::c_int;

pub use completion::*;
pub use device::*;
pub use memory::*;
pub use queue_pair::*;

/// Sets the calling thread's `errno`.
fn set_errno(code: c_int) {
    // SAFETY: it is this thread's.
    unsafe { *libc::__errno_location() = code };
}

/// A null pointer, with `errno`.
fn refuse<T>(code: c_int) -> *mut T {
    set_errno(code);
    std::ptr::null_mut()
}

/// Forks need nothing here.
#[unsafe(no_mangle)]
pub extern "C" fn ibv_fork_init() -> c_int {
    0
}
