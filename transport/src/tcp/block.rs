//! Memory for slots and staging: aligned, not cleared, and reachable by raw pointers while the
//! block itself moves.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment that vector instructions like.
const ALIGN_BYTES: usize = 64;

/// An owned range of memory. Pages that nobody writes cost nothing.
#[derive(Debug)]
pub(super) struct Block {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is the only owner of its memory.
unsafe impl Send for Block {}

impl Block {
    /// A block of `LEN` bytes, not cleared.
    pub fn new<const LEN: usize>() -> Block {
        let layout = const {
            assert!(LEN > 0);
            match Layout::from_size_align(LEN, ALIGN_BYTES) {
                Ok(layout) => layout,
                Err(_) => panic!("too large"),
            }
        };
        // SAFETY: the layout is not empty.
        let data = unsafe { alloc(layout) };
        match NonNull::new(data) {
            Some(data) => Block { data, layout },
            None => handle_alloc_error(layout),
        }
    }

    /// Address of byte `at`, or of the end.
    pub fn at(&self, at: usize) -> *mut u8 {
        assert!(at <= self.layout.size());
        // SAFETY: within the block or at its end.
        unsafe { self.data.as_ptr().add(at) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `new`.
        unsafe { dealloc(self.data.as_ptr(), self.layout) }
    }
}
