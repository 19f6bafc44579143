//! How slots are written: which slot, and by which stores. Whatever is fastest to this peer.
//!
//! Each cache line of a slot still lies in the cache of the processor that read it, if that was not
//! long ago. On AMD's processors an ordinary store then waits until that copy is gone, one line after the
//! other, and prefetching for writing does not help: 7 ns a line where both processors share a
//! third-level cache, 27 where they do not. It need not wait in a slot that was read so long ago that
//! only the third level still has it, nor if it goes past the cache, and then the reader fetches the
//! bytes from memory. But where both ranks have one processor nobody waits, and the slot that is in its
//! cache is best. On newer ones the copying instruction (`rep movsb`, which the system's `memcpy` is for long
//! pieces) does not wait either. Two ranks that write, read, write and read 32 KiB each take, in microseconds:
//!
//! | | same slot | another each time | past the cache | same slot, copying instruction |
//! | --- | --- | --- | --- | --- |
//! | Zen 4, third-level cache is shared | 10.6 | 2.9 | 6.4 | |
//! | Zen 4, it is not | 41 | 30 | 6 | |
//! | Zen 5, third-level cache is shared | 3 | 3.4 | 6.5 | 2.2 |
//! | Zen 5, it is not | 12 | 11 | 5 | 4.4 |
//!
//! Which it is can change while the ranks run, as a virtual machine's processors move. So all are measured, all
//! the time. The executor's own stores are ordinary ones: it folds into a slot where these cost no more than copying
//! what it has folded.

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

/// What it costs to copy what was just folded out of the own cache, in nanoseconds for 1024 bytes: so much slower may
/// the executor's stores be.
const COPIED_NS_PER_KIB: f32 = 8.0;

/// A way to write a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To a slot that was in use a short time ago, as the system copies memory.
    SameSlot,
    /// The same round all slots.
    AllSlots,
    /// By stores that go past the cache.
    PastCache,
    /// As [`Way::SameSlot`], by ordinary stores.
    SameSlotStored,
    /// As [`Way::AllSlots`], by ordinary stores.
    AllSlotsStored,
}

const WAYS: [Way; 5] =
    [Way::SameSlot, Way::AllSlots, Way::PastCache, Way::SameSlotStored, Way::AllSlotsStored];

impl Way {
    /// Whether pieces go round all slots.
    #[inline]
    pub(super) fn goes_round(self) -> bool {
        matches!(self, Way::AllSlots | Way::AllSlotsStored)
    }

    /// The same slots, by the executor's stores; `None` where those are never taken.
    fn stored(self) -> Option<Way> {
        match self {
            Way::SameSlot | Way::SameSlotStored => Some(Way::SameSlotStored),
            Way::AllSlots | Way::AllSlotsStored => Some(Way::AllSlotsStored),
            Way::PastCache => None,
        }
    }
}

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
            tried_last: Way::SameSlot,
            trials_between: 1,
            pieces_left: TRIAL_PIECES,
            costs_ns: WAYS.map(|way| (!is_possible(way)).then_some(f32::INFINITY)),
            unmeasured_slots: 0,
        }
    }

    /// What 1024 bytes take of the writer by the fastest way, in nanoseconds; `None` before all have been
    /// tried.
    pub(super) fn cost_ns_per_kib(&self) -> Option<f32> {
        WAYS.into_iter().try_fold(f32::INFINITY, |least_ns, way| {
            let fetched_ns = if way == Way::PastCache { FETCHED_NS_PER_KIB } else { 0.0 };
            Some(least_ns.min(self.costs_ns[way as usize]? - fetched_ns))
        })
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
        } else if self.best.goes_round() {
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
        if self.tried.is_some() || self.unmeasured_slots > MOST_UNMEASURED_SLOTS {
            return None;
        }
        let stored = self.best.stored()?;
        let stored_ns = self.costs_ns[stored as usize]?;
        let most_ns = self.costs_ns[self.best as usize]? + COPIED_NS_PER_KIB;
        // Where only one kind of stores is known, the executor's are those.
        (stored_ns <= most_ns || stored_ns == f32::INFINITY).then_some(stored)
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
        // SAFETY: the caller's promise; what the processor has no stores for is not tried.
        unsafe {
            match way {
                Way::SameSlot | Way::AllSlots => std::ptr::copy_nonoverlapping(from, slot, len),
                Way::SameSlotStored | Way::AllSlotsStored => copy_by_stores(from, slot, len),
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
        let is_possible = |way: Way| self.costs_ns[way as usize] != Some(f32::INFINITY);
        let mut turns =
            (1..=WAYS.len()).map(|step| WAYS[(self.tried_last as usize + step) % WAYS.len()]);
        turns.find(|way| *way != self.best && is_possible(*way)).unwrap_or(self.best)
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

/// Whether this processor has the stores for it.
fn is_possible(way: Way) -> bool {
    match way {
        Way::SameSlot | Way::AllSlots => true,
        #[cfg(target_arch = "x86_64")]
        Way::PastCache | Way::SameSlotStored | Way::AllSlotsStored => {
            is_x86_feature_detected!("avx")
        }
        #[cfg(not(target_arch = "x86_64"))]
        Way::PastCache | Way::SameSlotStored | Way::AllSlotsStored => false,
    }
}

/// Copies past the cache. Others see the bytes before anything that is stored later.
///
/// # Safety
/// The processor has AVX; `from` must be readable and `to` writable for `len` bytes; they must not overlap.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn copy_past_cache(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{_mm_sfence, _mm256_stream_si256};
    // SAFETY: the caller's promise; the closure gets whole lines of `to`.
    unsafe {
        copy_lines(from, to, len, |to, low, high| {
            _mm256_stream_si256(to, low);
            _mm256_stream_si256(to.add(1), high);
        });
    }
    _mm_sfence();
}

/// Copies by ordinary stores, as the executor's kernels write.
///
/// # Safety
/// The processor has AVX; `from` must be readable and `to` writable for `len` bytes; they must not overlap.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn copy_by_stores(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::_mm256_store_si256;
    // SAFETY: the caller's promise; the closure gets whole lines of `to`.
    unsafe {
        copy_lines(from, to, len, |to, low, high| {
            _mm256_store_si256(to, low);
            _mm256_store_si256(to.add(1), high);
        });
    }
}

/// Copies whole lines by `store`, which gets both halves, and the rest as the system does: a line that goes past the
/// cache in part is read first.
///
/// # Safety
/// As [`copy_past_cache`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
#[inline]
unsafe fn copy_lines(
    from: *const u8,
    to: *mut u8,
    len: usize,
    store: impl Fn(
        *mut std::arch::x86_64::__m256i,
        std::arch::x86_64::__m256i,
        std::arch::x86_64::__m256i,
    ),
) {
    use std::arch::x86_64::_mm256_loadu_si256;
    const VECTOR_BYTES: usize = 32;
    const LINE_BYTES: usize = 2 * VECTOR_BYTES;
    let head = to.align_offset(LINE_BYTES).min(len);
    let lines = (len - head) / LINE_BYTES;
    let tail = head + lines * LINE_BYTES;
    // SAFETY: everything lies within the caller's two ranges, and the lines are aligned.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        for line in 0..lines {
            let offset = head + line * LINE_BYTES;
            let from = from.add(offset);
            let low = _mm256_loadu_si256(from.cast());
            let high = _mm256_loadu_si256(from.add(VECTOR_BYTES).cast());
            store(to.add(offset).cast(), low, high);
        }
        std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), len - tail);
    }
}

/// Never called: see [`is_possible`].
///
/// # Safety
/// As on x86-64.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_past_cache(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}

/// Never called: see [`is_possible`].
///
/// # Safety
/// As on x86-64.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_by_stores(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 32 << 10;

    /// Writes pieces that take so many nanoseconds for 1024 bytes, by way; how many went each way.
    fn write(writer: &mut SlotWriter, costs_ns: [u64; 5], pieces: u32) -> [u32; 5] {
        let mut counts = [0; 5];
        for _ in 0..pieces {
            let way = writer.way(LEN);
            counts[way as usize] += 1;
            writer.learn(way, LEN, Duration::from_nanos(costs_ns[way as usize] * 32));
        }
        counts
    }

    fn ready() -> SlotWriter {
        SlotWriter { costs_ns: [None; 5], ..SlotWriter::new() }
    }

    #[test]
    fn the_fastest_way_is_found_and_trials_of_the_others_cost_little() {
        for (costs_ns, best) in [
            ([100, 27, 32, 110, 31], Way::AllSlots),
            ([430, 250, 20, 430, 250], Way::PastCache),
            ([24, 50, 22, 28, 50], Way::SameSlot),
            ([40, 30, 50, 40, 20], Way::AllSlotsStored),
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
        write(&mut writer, [100, 27, 32, 110, 31], 10_000);
        assert_eq!(writer.best, Way::AllSlots);
        // Its stores are believed to be fast, and tried first.
        write(&mut writer, [430, 250, 20, 430, 250], 3 * TRIAL_PIECES);
        assert_eq!(writer.best, Way::PastCache);
    }

    #[test]
    fn an_interruption_changes_nothing() {
        let mut writer = ready();
        write(&mut writer, [24, 30, 22, 30, 40], 1000);
        let way = writer.way(LEN);
        writer.learn(way, LEN, Duration::from_millis(4));
        write(&mut writer, [24, 30, 22, 30, 40], 2 * TRIAL_PIECES);
        assert_eq!(writer.best, Way::SameSlot);
    }

    #[test]
    fn without_such_stores_nothing_goes_past_the_cache() {
        let mut writer = ready();
        writer.costs_ns[Way::PastCache as usize] = Some(f32::INFINITY);
        let counts = write(&mut writer, [100, 100, 1, 100, 100], 10_000);
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
        let mut writer = SlotWriter { costs_ns: [Some(30.0); 5], ..SlotWriter::new() };
        for _ in 0..MOST_UNMEASURED_SLOTS {
            assert_eq!(writer.unmeasured_way(LEN), Some(Way::SameSlotStored));
        }
        assert_eq!(writer.unmeasured_way(LEN), None);
        assert_eq!(writer.unmeasured_way(LEAST_MEASURED_BYTES - 1), Some(Way::SameSlot));
        let mut slot = [0; 8];
        // SAFETY: both have so many bytes.
        unsafe { writer.write(Way::SameSlot, [7; 8].as_ptr(), slot.as_mut_ptr(), slot.len()) };
        assert_eq!((slot, writer.unmeasured_way(LEN)), ([7; 8], Some(Way::SameSlotStored)));
    }

    #[test]
    fn the_executor_writes_slots_only_where_its_stores_are_not_slower_than_a_copy() {
        let may = |best, costs_ns: [Option<f32>; 5]| {
            SlotWriter { best, costs_ns, ..SlotWriter::new() }.unmeasured_way(LEN)
        };
        let known =
            |stored_ns| [Some(20.0), Some(20.0), Some(60.0), Some(stored_ns), Some(stored_ns)];
        assert_eq!(may(Way::AllSlots, known(25.0)), Some(Way::AllSlotsStored));
        assert_eq!(may(Way::AllSlots, known(40.0)), None);
        assert_eq!(may(Way::SameSlot, known(f32::INFINITY)), Some(Way::SameSlotStored));
        assert_eq!(may(Way::PastCache, known(20.0)), None);
        assert_eq!(may(Way::SameSlot, [None; 5]), None, "nothing is known yet");
    }

    #[test]
    fn every_byte_is_copied_wherever_it_lies() {
        if !is_possible(Way::PastCache) {
            return;
        }
        let from: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        for (start, offset, len) in
            [(0, 0, 0), (0, 0, 64), (1, 0, 640), (3, 5, 700), (0, 63, 65), (7, 64, 1), (2, 31, 333)]
        {
            let mut expected = vec![0xff; 1000];
            expected[offset..offset + len].copy_from_slice(&from[start..start + len]);
            for way in WAYS {
                let mut to = vec![0xff; 1000];
                let (from, slot) = (from[start..].as_ptr(), to[offset..].as_mut_ptr());
                // SAFETY: both have room for the range.
                unsafe {
                    match way {
                        Way::PastCache => copy_past_cache(from, slot, len),
                        Way::SameSlotStored => copy_by_stores(from, slot, len),
                        _ => continue,
                    }
                }
                assert_eq!(to, expected, "{len} bytes from {start} to {offset}, {way:?}");
            }
        }
    }
}
