//! How slots are written: which slot, and by which stores. Whatever is fastest to this peer.
//!
//! Each cache line of a slot still lies in the cache of the processor that read it, if that was not
//! long ago. On AMD's processors an ordinary store then waits until that copy is gone, one line after the
//! other, and prefetching for writing does not help: 7 ns a line where both processors share a
//! third-level cache, 27 where they do not. It need not wait in a slot that was read so long ago that
//! only the third level still has it, nor if it goes past the cache, and then the reader fetches the
//! bytes from memory. But where both ranks have one processor nobody waits, and the slot that is in its
//! cache is best. Two ranks that write, read, write and read 32 KiB each take, in microseconds:
//!
//! | | same slot | another each time | past the cache |
//! | --- | --- | --- | --- |
//! | third-level cache is shared | 10.6 | 2.9 | 6.4 |
//! | it is not | 41 | 30 | 6 |
//!
//! (AMD EPYC, Zen 4.) Which it is can change while the ranks run, as a virtual machine's processors
//! move. So all three are measured, all the time.

use std::time::{Duration, Instant};

/// Shorter pieces are not measured, and never go past the cache.
const LEAST_MEASURED_BYTES: usize = 4 << 10;

/// Pieces of a trial: enough that the caches hold what they hold when all pieces go that way.
const TRIAL_PIECES: u32 = 32;

/// Between two trials: the pieces of so many at most, times how much slower the other way was.
const MOST_TRIALS_BETWEEN: u32 = 32;

/// A way that was so much slower, or more, is tried again as if it were only that.
const MOST_SLOWER: f32 = 16.0;

/// Another way is taken if it needs at most so much of the time.
const WORTH_A_CHANGE: f32 = 0.9;

/// Another way that needed at most so much of the time is tried at once.
const MUCH_FASTER: f32 = 0.4;

/// What it costs the reader, in nanoseconds for 1024 bytes, that bytes are in no cache.
const FETCHED_NS_PER_KIB: f32 = 40.0;

/// A piece that took longer than so many times what was expected was interrupted.
const MOST_SURPRISE: f32 = 4.0;

/// Slots that the executor writes, which nobody measures, before one is measured again.
const MOST_UNMEASURED_SLOTS: u32 = 16;

/// A way to write a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To a slot that was in use a short time ago.
    SameSlot,
    /// Round all slots.
    AllSlots,
    /// By stores that go past the cache.
    PastCache,
}

const WAYS: [Way; 3] = [Way::SameSlot, Way::AllSlots, Way::PastCache];

/// Chooses how the slots of a link are written.
#[derive(Debug)]
pub(super) struct SlotWriter {
    /// The fastest way, as far as is known.
    best: Way,
    /// The way that is being tried.
    tried: Option<Way>,
    tried_last: Way,
    /// Trials' pieces between two trials: few after a change, then more and more.
    trials_between: u32,
    /// Pieces until a trial begins or ends.
    pieces_left: u32,
    /// What 1024 bytes take, in nanoseconds, by way: `None` before the first piece, infinity where it is
    /// impossible.
    costs_ns: [Option<f32>; WAYS.len()],
    unmeasured_slots: u32,
}

impl SlotWriter {
    pub(super) fn new() -> SlotWriter {
        SlotWriter {
            best: Way::SameSlot,
            tried: None,
            tried_last: Way::PastCache,
            trials_between: 1,
            pieces_left: TRIAL_PIECES,
            costs_ns: [None, None, (!has_stores_past_cache()).then_some(f32::INFINITY)],
            unmeasured_slots: 0,
        }
    }

    /// What 1024 bytes take of the writer by the fastest way, in nanoseconds; `None` before all have been
    /// tried.
    pub(super) fn cost_ns_per_kib(&self) -> Option<f32> {
        let [same_slot, all_slots, past_cache] = self.costs_ns;
        Some(same_slot?.min(all_slots?).min(past_cache? - FETCHED_NS_PER_KIB))
    }

    /// Whether pieces of that length are measured.
    #[inline]
    pub(super) fn measures(len: usize) -> bool {
        len >= LEAST_MEASURED_BYTES
    }

    /// How the next piece is to be written.
    #[inline]
    pub(super) fn way(&self, len: usize) -> Way {
        if SlotWriter::measures(len) {
            self.tried.unwrap_or(self.best)
        } else if self.best == Way::AllSlots {
            Way::AllSlots
        } else {
            Way::SameSlot
        }
    }

    /// How the executor is to write `len` bytes to a slot itself, by ordinary stores and unmeasured;
    /// `None` if it must not.
    #[inline]
    pub(super) fn unmeasured_way(&mut self, len: usize) -> Option<Way> {
        if !SlotWriter::measures(len) {
            return Some(self.way(len));
        }
        self.unmeasured_slots = self.unmeasured_slots.saturating_add(1);
        let may = self.best != Way::PastCache
            && self.tried.is_none()
            && self.unmeasured_slots <= MOST_UNMEASURED_SLOTS;
        may.then_some(self.best)
    }

    /// Copies a piece into a slot.
    ///
    /// # Safety
    /// `from` must be readable and `slot` writable for `len` bytes; they must not overlap. `way` is what
    /// [`SlotWriter::way`] has said for this piece.
    #[inline]
    pub(super) unsafe fn write(&mut self, way: Way, from: *const u8, slot: *mut u8, len: usize) {
        self.unmeasured_slots = 0;
        if !SlotWriter::measures(len) {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from, slot, len) };
            return;
        }
        let start = Instant::now();
        // SAFETY: the caller's promise; where no stores go past the cache that is not tried.
        unsafe {
            match way {
                Way::SameSlot | Way::AllSlots => std::ptr::copy_nonoverlapping(from, slot, len),
                Way::PastCache => copy_past_cache(from, slot, len),
            }
        }
        self.learn(way, len, start.elapsed());
    }

    /// Takes in what a piece took.
    fn learn(&mut self, way: Way, len: usize, taken: Duration) {
        let mut taken_ns = taken.as_nanos() as f32 * 1024.0 / len as f32;
        if way == Way::PastCache {
            taken_ns += FETCHED_NS_PER_KIB;
        }
        // A coarse clock may show nothing.
        let known_ns = self.costs_ns[way as usize].unwrap_or(taken_ns).max(1.0);
        let surprise_ns = taken_ns.min(known_ns * MOST_SURPRISE) - known_ns;
        self.costs_ns[way as usize] = Some(known_ns + surprise_ns / 4.0);
        self.pieces_left -= 1;
        let is_over = self.pieces_left == 0;
        match self.tried {
            Some(tried) if is_over => self.judge(tried),
            None if is_over => self.start_trial(self.next_trial()),
            None => {
                if let Some(faster) = self.much_faster() {
                    self.start_trial(faster);
                }
            }
            Some(_) => {}
        }
    }

    fn start_trial(&mut self, way: Way) {
        self.tried = Some(way);
        self.tried_last = way;
        self.pieces_left = TRIAL_PIECES;
    }

    /// A way that took much less when it was last tried: what was best has become slow.
    fn much_faster(&self) -> Option<Way> {
        let most_ns = self.costs_ns[self.best as usize]? * MUCH_FASTER;
        WAYS.into_iter().find(|way| self.costs_ns[*way as usize].is_some_and(|ns| ns < most_ns))
    }

    /// The others take turns.
    fn next_trial(&self) -> Way {
        let is_impossible = |way: Way| self.costs_ns[way as usize] == Some(f32::INFINITY);
        let others = WAYS.into_iter().filter(|way| *way != self.best && !is_impossible(*way));
        others.max_by_key(|way| *way != self.tried_last).unwrap_or(self.best)
    }

    /// A trial has ended.
    fn judge(&mut self, tried: Way) {
        let costs = |way: Way| self.costs_ns[way as usize].unwrap_or(f32::INFINITY);
        let (best_ns, tried_ns) = (costs(self.best).max(1.0), costs(tried));
        if tried_ns < best_ns * WORTH_A_CHANGE {
            self.best = tried;
            self.trials_between = 1;
        } else if self.costs_ns.iter().all(Option::is_some) {
            self.trials_between = (2 * self.trials_between).min(MOST_TRIALS_BETWEEN);
        }
        let slower = (tried_ns / best_ns).clamp(1.0, MOST_SLOWER);
        self.tried = None;
        self.pieces_left = (TRIAL_PIECES as f32 * self.trials_between as f32 * slower) as u32;
    }
}

/// Whether this processor has [`copy_past_cache`].
fn has_stores_past_cache() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Copies past the cache. Others see the bytes before anything that is stored later.
///
/// # Safety
/// The processor has AVX; `from` must be readable and `to` writable for `len` bytes; they must not overlap.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn copy_past_cache(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{_mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};
    const VECTOR_BYTES: usize = 32;
    const LINE_BYTES: usize = 2 * VECTOR_BYTES;
    // Whole lines, since one that is written in part is read first.
    let head = to.align_offset(LINE_BYTES).min(len);
    let lines = (len - head) / LINE_BYTES;
    let tail = head + lines * LINE_BYTES;
    // SAFETY: everything lies within the caller's two ranges, and the lines are aligned.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        for line in 0..lines {
            let offset = head + line * LINE_BYTES;
            let (from, to) = (from.add(offset), to.add(offset));
            let low = _mm256_loadu_si256(from.cast());
            let high = _mm256_loadu_si256(from.add(VECTOR_BYTES).cast());
            _mm256_stream_si256(to.cast(), low);
            _mm256_stream_si256(to.add(VECTOR_BYTES).cast(), high);
        }
        std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), len - tail);
    }
    _mm_sfence();
}

/// Never called: see [`has_stores_past_cache`].
///
/// # Safety
/// As on x86-64.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_past_cache(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 32 << 10;

    /// Writes pieces that take so many nanoseconds for 1024 bytes, by way; how many went each way.
    fn write(writer: &mut SlotWriter, costs_ns: [u64; 3], pieces: u32) -> [u32; 3] {
        let mut counts = [0; 3];
        for _ in 0..pieces {
            let way = writer.way(LEN);
            counts[way as usize] += 1;
            writer.learn(way, LEN, Duration::from_nanos(costs_ns[way as usize] * 32));
        }
        counts
    }

    fn ready() -> SlotWriter {
        SlotWriter { costs_ns: [None; 3], ..SlotWriter::new() }
    }

    #[test]
    fn the_fastest_way_is_found_and_trials_of_the_others_cost_little() {
        for (costs_ns, best) in [
            ([100, 27, 32], Way::AllSlots),
            ([430, 250, 20], Way::PastCache),
            ([24, 50, 22], Way::SameSlot),
        ] {
            let mut writer = ready();
            write(&mut writer, costs_ns, 1000);
            assert_eq!(writer.best, best, "{costs_ns:?}");
            let counts = write(&mut writer, costs_ns, 100_000);
            let spent_ns: u64 = counts.iter().zip(costs_ns).map(|(n, ns)| u64::from(*n) * ns).sum();
            let least_ns = 100_000 * costs_ns[best as usize];
            assert!(spent_ns < least_ns + least_ns / 7, "{costs_ns:?}: {counts:?}");
        }
    }

    #[test]
    fn what_becomes_slow_is_left_at_once() {
        let mut writer = ready();
        write(&mut writer, [100, 27, 32], 10_000);
        assert_eq!(writer.best, Way::AllSlots);
        write(&mut writer, [430, 250, 20], 2 * TRIAL_PIECES);
        assert_eq!(writer.best, Way::PastCache);
    }

    #[test]
    fn an_interruption_changes_nothing() {
        let mut writer = ready();
        write(&mut writer, [24, 30, 22], 1000);
        let way = writer.way(LEN);
        writer.learn(way, LEN, Duration::from_millis(4));
        write(&mut writer, [24, 30, 22], 2 * TRIAL_PIECES);
        assert_eq!(writer.best, Way::SameSlot);
    }

    #[test]
    fn without_such_stores_nothing_goes_past_the_cache() {
        let mut writer = ready();
        writer.costs_ns[Way::PastCache as usize] = Some(f32::INFINITY);
        let counts = write(&mut writer, [100, 100, 1], 10_000);
        assert_eq!(counts[Way::PastCache as usize], 0);
        assert!(counts[Way::AllSlots as usize] > 0);
        assert!(writer.cost_ns_per_kib().is_some());
    }

    #[test]
    fn a_small_piece_never_goes_past_the_cache() {
        let writer = SlotWriter { best: Way::PastCache, ..ready() };
        assert_eq!(writer.way(LEAST_MEASURED_BYTES - 1), Way::SameSlot);
        assert_eq!(writer.way(LEAST_MEASURED_BYTES), Way::PastCache);
    }

    #[test]
    fn the_executor_writes_slots_itself_until_one_must_be_measured() {
        let mut writer = ready();
        for _ in 0..MOST_UNMEASURED_SLOTS {
            assert_eq!(writer.unmeasured_way(LEN), Some(Way::SameSlot));
        }
        assert_eq!(writer.unmeasured_way(LEN), None);
        assert_eq!(writer.unmeasured_way(LEAST_MEASURED_BYTES - 1), Some(Way::SameSlot));
        let mut slot = [0; 8];
        // SAFETY: both have so many bytes.
        unsafe { writer.write(Way::SameSlot, [7; 8].as_ptr(), slot.as_mut_ptr(), slot.len()) };
        assert_eq!((slot, writer.unmeasured_way(LEN)), ([7; 8], Some(Way::SameSlot)));
    }

    #[test]
    fn every_byte_goes_past_the_cache_wherever_it_lies() {
        if !has_stores_past_cache() {
            return;
        }
        let from: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        for (start, offset, len) in
            [(0, 0, 0), (0, 0, 64), (1, 0, 640), (3, 5, 700), (0, 63, 65), (7, 64, 1), (2, 31, 333)]
        {
            let mut to = vec![0xff; 1000];
            // SAFETY: both have room for the range.
            unsafe { copy_past_cache(from[start..].as_ptr(), to[offset..].as_mut_ptr(), len) };
            let mut expected = vec![0xff; 1000];
            expected[offset..offset + len].copy_from_slice(&from[start..start + len]);
            assert_eq!(to, expected, "{len} bytes from {start} to {offset}");
        }
    }
}
