//! Numbers that look random and are the same every time: a failing test replays from its seed.

/// A generator (SplitMix64). Ranks that begin with the same seed draw the same numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Random {
        Random(mix(seed))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// One of the values.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Puts the values into any order.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }

    /// Keeps the processor busy for a while: how a rank comes late.
    pub fn dawdle(&mut self, most_spins: usize) {
        (0..self.below(most_spins)).for_each(|_| std::hint::spin_loop());
    }
}

/// Every bit of the result depends on every bit of `x`.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The number of an element of a rank's buffer.
pub fn element(seed: u64, rank: u32, index: usize) -> u64 {
    mix(seed ^ (u64::from(rank) << 48) ^ index as u64)
}
