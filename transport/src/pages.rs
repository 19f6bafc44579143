//! Large pages for the large buffers that a program calls with again and again.
//!
//! Ordinary memory has pages of 4 KiB, unless the program or the system's administrator asked for
//! large ones. The kernel looks each of them up where it copies between processes, or to a socket,
//! and so does the processor where it reads: an all-reduce of 16 MiB between 2 processes takes two
//! thirds of the time with pages of 2 MiB. Linux 6.1 and later moves memory of a process into large
//! pages when asked to (`MADV_COLLAPSE`); its addresses and its content stay. As that takes as long as
//! a few calls with the buffer, it waits for the second one: a program that comes again is in a loop.

use std::io;
use std::sync::OnceLock;

const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Bytes that one call moves at most, in some 80 ms: peers wait meanwhile.
const MOST_BYTES_PER_CALL: usize = 128 << 20;

/// Buffers that are remembered. A training step has some tens of them.
const MOST_BUFFERS: usize = 64;

/// Bytes of a large page, if this process can have its memory moved into such: the kernel can, and
/// neither the administrator (`never`) nor the program forbids it.
pub fn large_page_bytes() -> Option<usize> {
    static BYTES: OnceLock<Option<usize>> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let setting = |name| std::fs::read_to_string(format!("{SETTINGS}/{name}")).ok();
        let bytes: usize = setting("hpage_pmd_size")?.trim().parse().ok()?;
        let is_allowed = !setting("enabled")?.contains("[never]");
        // SAFETY: the call takes integers and touches no memory.
        let is_forbidden = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) } != 0;
        // No bytes at all: an advice that the kernel knows is taken, another one refused.
        // SAFETY: as said, no memory is advised on.
        let is_known = unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_COLLAPSE) } == 0;
        (bytes.is_power_of_two() && is_allowed && !is_forbidden && is_known).then_some(bytes)
    })
}

/// The buffers that a communicator was called with lately.
#[derive(Debug)]
pub struct LargePages {
    buffers: Vec<Buffer>,
    /// The entry that the next new buffer takes, once all are taken.
    oldest: usize,
}

#[derive(Debug)]
struct Buffer {
    start: usize,
    len_bytes: usize,
    /// First address that is yet to be moved.
    next: usize,
}

impl Default for LargePages {
    fn default() -> LargePages {
        LargePages { buffers: Vec::with_capacity(MOST_BUFFERS), oldest: 0 }
    }
}

impl LargePages {
    /// Remembers the buffer of a call, and moves one that comes again into large pages: whole ones, so
    /// that nothing beside the buffer is touched.
    pub fn note_call(&mut self, start: *const u8, len_bytes: usize) {
        let Some(page_bytes) = large_page_bytes() else { return };
        // A shorter one may not have a single whole page; a call may have no buffer on one side.
        if start.is_null() || len_bytes < 2 * page_bytes {
            return;
        }
        let start = start as usize;
        let is_it = |buffer: &&mut Buffer| buffer.start == start && buffer.len_bytes == len_bytes;
        let Some(buffer) = self.buffers.iter_mut().find(is_it) else {
            let next = start.next_multiple_of(page_bytes);
            return self.remember(Buffer { start, len_bytes, next });
        };
        let end = (start + len_bytes) / page_bytes * page_bytes;
        if buffer.next >= end {
            return;
        }
        let part = (end - buffer.next).min(MOST_BYTES_PER_CALL.next_multiple_of(page_bytes));
        buffer.next = match collapse(buffer.next, part) {
            Ok(()) => buffer.next + part,
            // There is no room, or pages are held in place by a device. Another attempt would only
            // take its time again.
            Err(error) => {
                tracing::debug!("a buffer of {len_bytes} bytes keeps its small pages: {error}");
                end
            }
        };
    }

    fn remember(&mut self, buffer: Buffer) {
        if self.buffers.len() < MOST_BUFFERS {
            return self.buffers.push(buffer);
        }
        self.buffers[self.oldest] = buffer;
        self.oldest = (self.oldest + 1) % MOST_BUFFERS;
    }
}

/// Moves a range of whole large pages into such.
fn collapse(start: usize, len_bytes: usize) -> io::Result<()> {
    // SAFETY: the advice changes neither what is in memory nor who may use it, whatever the range is.
    match unsafe { libc::madvise(start as *mut _, len_bytes, libc::MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a large page, where there are such; in CI there must be.
    fn page_bytes() -> Option<usize> {
        let bytes = large_page_bytes();
        assert!(bytes.is_some() || std::env::var("CI").as_deref() != Ok("true"), "no large pages");
        bytes
    }

    #[test]
    fn a_buffer_that_comes_again_is_moved_part_by_part_and_keeps_its_content() {
        let Some(page_bytes) = page_bytes() else { return };
        let most = MOST_BYTES_PER_CALL.next_multiple_of(page_bytes);
        let buffer: Vec<u8> = (0..2 * most).map(|i| (i % 251) as u8).collect();
        let first = (buffer.as_ptr() as usize).next_multiple_of(page_bytes);
        let mut pages = LargePages::default();
        for moved in [0, most] {
            pages.note_call(buffer.as_ptr(), buffer.len());
            assert_eq!(pages.buffers[0].next, first + moved);
        }
        for _ in 0..2 {
            pages.note_call(buffer.as_ptr(), buffer.len());
        }
        let end = buffer.as_ptr_range().end as usize / page_bytes * page_bytes;
        assert_eq!(pages.buffers[0].next, end);
        assert!(buffer.iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8));
    }

    #[test]
    fn short_buffers_are_left_alone_and_not_all_are_remembered() {
        let Some(page_bytes) = page_bytes() else { return };
        let buffer = vec![1_u8; 4 * page_bytes];
        let start = (buffer.as_ptr() as usize).next_multiple_of(page_bytes);
        let mut pages = LargePages::default();
        pages.note_call(buffer.as_ptr(), 2 * page_bytes - 1);
        pages.note_call(std::ptr::null(), 2 * page_bytes);
        assert!(pages.buffers.is_empty());
        let lengths = || (0..2 * MOST_BUFFERS).map(|shorter| 4 * page_bytes - shorter);
        lengths().for_each(|len_bytes| pages.note_call(buffer.as_ptr(), len_bytes));
        // The last ones are.
        let known = lengths().skip(MOST_BUFFERS);
        assert!(pages.buffers.iter().map(|buffer| buffer.len_bytes).eq(known));
        assert!(pages.buffers.iter().all(|buffer| buffer.next == start));
    }

    #[test]
    fn what_cannot_be_moved_is_tried_once() {
        let Some(page_bytes) = page_bytes() else { return };
        let mut pages = LargePages::default();
        // Nothing is mapped there.
        let nowhere = std::ptr::without_provenance(page_bytes);
        for _ in 0..2 {
            pages.note_call(nowhere, 4 * page_bytes);
        }
        assert_eq!(pages.buffers[0].next, 5 * page_bytes);
    }
}
