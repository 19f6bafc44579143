//! A ring of cache lines between one writer and one reader: the heart of shared-memory links.
//!
//! Each line carries its own stamp, which tells its number in the ring's history and is stored last; a reader
//! that finds the stamp it waits for has the whole line, so that a tiny message costs one cache line. What the reader has consumed it counts in a line of its own, which the
//! writer reads only when the lines that it knows to be free have run out. Nothing is ever reset.

use super::primitive::{AtomicU32, AtomicU64, Ordering, UnsafeCell};

/// Words of a line beside its header.
pub(super) const BODY_WORDS: usize = 7;

/// What a line carries: anything of [`BODY_WORDS`] words.
pub(super) type Body = [u64; BODY_WORDS];

/// One cache line: the stamp in the lower half of the header, 32 bits of the writer's choice in
/// the upper one, and a body.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Line {
    header: AtomicU64,
    body: UnsafeCell<Body>,
}

/// The stamp of the line of this number. Stamps are three apart: those of one line, of which the first is 0, differ
/// then by no power of two, so that no change of one bit makes one of another.
#[inline]
fn stamp(number: u32) -> u32 {
    number.wrapping_add(1).wrapping_mul(3)
}

/// How many lines the reader has consumed, wrapping. Two cache lines, so that the processor's
/// prefetcher does not drag the neighbour along.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Consumed(AtomicU32);

/// The other side's counter has a value that no correct peer writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

/// The writing end.
#[derive(Debug)]
pub(super) struct Writer {
    lines: *const Line,
    consumed: *const Consumed,
    capacity: u32,
    next: u32,
    known_consumed: u32,
}

impl Writer {
    /// # Safety
    /// `lines` (`capacity` of them, a power of two) and `consumed` must stay valid as long as the
    /// writer, be zero at first, and have no other writer.
    pub(super) unsafe fn new(
        lines: *const Line,
        consumed: *const Consumed,
        capacity: u32,
    ) -> Writer {
        assert!(capacity.is_power_of_two());
        Writer { lines, consumed, capacity, next: 0, known_consumed: 0 }
    }

    /// Number of the next line.
    #[inline]
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Lines known to be consumed.
    #[inline]
    pub(super) fn known_consumed(&self) -> u32 {
        self.known_consumed
    }

    /// Whether a line is known to be free.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// How many lines are known to be free.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        self.capacity - self.next.wrapping_sub(self.known_consumed)
    }

    /// Reads how far the reader is; returns whether that is further than was known.
    #[inline]
    pub(super) fn refresh(&mut self) -> Result<bool, Corrupt> {
        // SAFETY: valid by the promise of `new`.
        let consumed = unsafe { (*self.consumed).0.load(Ordering::Acquire) };
        let outstanding = self.next.wrapping_sub(self.known_consumed);
        let advanced = consumed.wrapping_sub(self.known_consumed);
        if advanced > outstanding {
            return Err(Corrupt);
        }
        self.known_consumed = consumed;
        Ok(advanced > 0)
    }

    /// Writes and publishes the next line. There must be room.
    #[inline]
    pub(super) fn publish(&mut self, meta: u32, write: impl FnOnce(&mut Body)) {
        debug_assert!(self.has_room());
        // SAFETY: the index is below `capacity`; the line is free, so that only this writer
        // touches its body until the stamp is stored.
        let line = unsafe { &*self.lines.add((self.next & (self.capacity - 1)) as usize) };
        // SAFETY: as above.
        line.body.with_mut(|body| write(unsafe { &mut *body }));
        let header = u64::from(meta) << 32 | u64::from(stamp(self.next));
        self.next = self.next.wrapping_add(1);
        line.header.store(header, Ordering::Release);
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Reader {
    lines: *const Line,
    consumed: *const Consumed,
    capacity: u32,
    next: u32,
}

impl Reader {
    /// # Safety
    /// As [`Writer::new`], with no other reader.
    pub(super) unsafe fn new(
        lines: *const Line,
        consumed: *const Consumed,
        capacity: u32,
    ) -> Reader {
        assert!(capacity.is_power_of_two());
        Reader { lines, consumed, capacity, next: 0 }
    }

    /// The writer's 32 bits and the body of the next line, if it is there. The pointer is valid
    /// until [`Reader::advance`].
    #[inline]
    pub(super) fn peek(&self) -> Option<(u32, *const Body)> {
        // SAFETY: the index is below `capacity` and the memory valid by the promise of `new`.
        let line = unsafe { &*self.lines.add((self.next & (self.capacity - 1)) as usize) };
        let header = line.header.load(Ordering::Acquire);
        if header as u32 != stamp(self.next) {
            return None;
        }
        Some(((header >> 32) as u32, line.body.with(|body| body)))
    }

    /// Number of the next line.
    #[inline]
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Whether the next line has a stamp that its writer gave it: its own, or that of the lap before.
    #[inline]
    pub(super) fn has_known_stamp(&self) -> bool {
        // SAFETY: as of `peek`.
        let line = unsafe { &*self.lines.add((self.next & (self.capacity - 1)) as usize) };
        let found = line.header.load(Ordering::Acquire) as u32;
        let before = stamp(self.next.wrapping_sub(self.capacity));
        let may_be_new = self.next < self.capacity;
        found == stamp(self.next) || found == before || may_be_new && found == 0
    }

    /// Gives the line that was peeked back to the writer.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.next = self.next.wrapping_add(1);
        // SAFETY: valid by the promise of `new`.
        unsafe { (*self.consumed).0.store(self.next, Ordering::Release) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shared {
        lines: Vec<Line>,
        consumed: Consumed,
    }

    // SAFETY: the test hands one writer and one reader to two threads, as the ring demands.
    unsafe impl Send for Shared {}
    // SAFETY: as above.
    unsafe impl Sync for Shared {}

    fn shared(lines: usize) -> Shared {
        let line = || Line { header: AtomicU64::new(0), body: UnsafeCell::new([0; BODY_WORDS]) };
        Shared {
            lines: (0..lines).map(|_| line()).collect(),
            consumed: Consumed(AtomicU32::new(0)),
        }
    }

    fn ends(shared: &Shared) -> (Writer, Reader) {
        let (lines, consumed) = (shared.lines.as_ptr(), std::ptr::from_ref(&shared.consumed));
        let capacity = shared.lines.len() as u32;
        // SAFETY: `shared` outlives both ends in every test.
        unsafe { (Writer::new(lines, consumed, capacity), Reader::new(lines, consumed, capacity)) }
    }

    fn write(writer: &mut Writer, number: u64, wait: impl Fn()) {
        while !writer.has_room() {
            if !writer.refresh().unwrap() {
                wait();
            }
        }
        writer.publish(number as u32, |body| *body = [number; BODY_WORDS]);
    }

    fn read(reader: &mut Reader, wait: impl Fn()) -> u64 {
        let (meta, body) = loop {
            match reader.peek() {
                Some(found) => break found,
                None => wait(),
            }
        };
        // SAFETY: the line was peeked and is not advanced yet.
        let body = unsafe { *body };
        assert_eq!(body, [u64::from(meta); BODY_WORDS]);
        reader.advance();
        u64::from(meta)
    }

    #[cfg(loom)]
    #[test]
    fn every_interleaving_delivers_whole_lines_in_order() {
        loom::model(|| {
            let shared = loom::sync::Arc::new(shared(2));
            let theirs = shared.clone();
            let sender = loom::thread::spawn(move || {
                let (mut writer, _) = ends(&theirs);
                (0..3).for_each(|n| write(&mut writer, n, loom::thread::yield_now));
            });
            let (_, mut reader) = ends(&shared);
            (0..3).for_each(|n| assert_eq!(read(&mut reader, loom::thread::yield_now), n));
            sender.join().unwrap();
        });
    }

    #[cfg(not(loom))]
    #[test]
    fn two_threads_pass_many_lines_in_order() {
        let shared = shared(4);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut writer, _) = ends(&shared);
                (0..100_000).for_each(|n| write(&mut writer, n, std::thread::yield_now));
            });
            let (_, mut reader) = ends(&shared);
            (0..100_000).for_each(|n| assert_eq!(read(&mut reader, std::thread::yield_now), n));
        });
    }

    #[cfg(not(loom))]
    #[test]
    fn the_counters_wrap() {
        let shared = shared(2);
        let (mut writer, mut reader) = ends(&shared);
        let start = u32::MAX - 1;
        (writer.next, writer.known_consumed, reader.next) = (start, start, start);
        shared.consumed.0.store(start, Ordering::Relaxed);
        for number in 0..5 {
            write(&mut writer, number, || unreachable!("the reader keeps up"));
            assert_eq!(read(&mut reader, || unreachable!("the line is there")), number);
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn no_bit_makes_a_stamp_of_another() {
        let shared = shared(4);
        let (mut writer, mut reader) = ends(&shared);
        for number in 0..100 {
            let header = &shared.lines[number % 4].header;
            let flipped = |bit: u32| {
                header.fetch_xor(1 << bit, Ordering::Relaxed);
                let seen = (reader.has_known_stamp(), reader.peek().is_some());
                header.fetch_xor(1 << bit, Ordering::Relaxed);
                seen
            };
            assert!(reader.has_known_stamp() && reader.peek().is_none());
            assert!((0..32).all(|bit| flipped(bit) == (false, false)), "before line {number}");
            write(&mut writer, number as u64, || unreachable!("the reader keeps up"));
            assert!((0..32).all(|bit| flipped(bit) == (false, false)), "of line {number}");
            assert!(reader.has_known_stamp());
            read(&mut reader, || unreachable!("the line is there"));
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn a_counter_that_runs_ahead_is_corrupt() {
        let shared = shared(2);
        let (mut writer, _) = ends(&shared);
        shared.consumed.0.store(1, Ordering::Relaxed);
        assert_eq!(writer.refresh(), Err(Corrupt));
    }
}
