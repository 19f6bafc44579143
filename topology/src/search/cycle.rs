//! The cheapest way round all devices, given what it costs to go from each to each.
//!
//! Exactly, by dynamic programming over sets of devices (Held and Karp, 1962), for at most
//! [`MOST_EXACT`] devices; for more, from the nearest neighbour of several starts, improved by moving parts
//! (Or, 1976) and turning parts round (Croes, 1958) until nothing gains.

/// With 16 devices the table has 2^15 sets of 15 devices: 4 MiB, filled in about 2 ms.
pub(super) const MOST_EXACT: usize = 16;

/// From how many devices the improving search begins at most.
const STARTS: usize = 16;

/// Pairs of devices that are looked at from all starts together; with more devices there are fewer starts.
const PAIRS: usize = 20_000;

/// What it costs to go from each device to each; infinite where there is no way.
pub(super) struct Costs {
    count: usize,
    costs: Vec<f64>,
}

impl Costs {
    /// `cost(from, to)` is asked for every pair.
    pub fn new(count: usize, cost: impl Fn(usize, usize) -> f64) -> Costs {
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        let costs = pairs.map(|(from, to)| if from == to { f64::INFINITY } else { cost(from, to) });
        Costs { count, costs: costs.collect() }
    }

    fn get(&self, from: usize, to: usize) -> f64 {
        self.costs[from * self.count + to]
    }

    /// Of a cycle.
    pub fn of(&self, order: &[usize]) -> f64 {
        let next = order.iter().skip(1).chain(order.first());
        order.iter().zip(next).map(|(&from, &to)| self.get(from, to)).sum()
    }
}

/// Memory of the exact search, which is used again.
#[derive(Default)]
pub(super) struct Table {
    best: Vec<f64>,
    width: usize,
}

impl Table {
    /// The cheapest cycle, from device 0; of several the same one always. `None` if there is none.
    ///
    /// The number of devices is 2 to [`MOST_EXACT`].
    pub fn cheapest(&mut self, costs: &Costs) -> Option<Vec<usize>> {
        let others = costs.count - 1;
        self.prepare(others);
        let Table { best, width } = self;
        let width = *width;
        // Costs by where they lead to, device 0 left out, since a set's row is compared with all that lead
        // to one device.
        let mut toward = vec![f64::INFINITY; others * width];
        for (from, to) in (0..others).flat_map(|from| (0..others).map(move |to| (from, to))) {
            toward[to * width + from] = costs.get(from + 1, to + 1);
        }
        for set in 1_usize..1 << others {
            for last in bits(set) {
                let before = set ^ (1 << last);
                best[set * width + last] = if before == 0 {
                    costs.get(0, last + 1)
                } else {
                    least_sum(&best[before * width..][..width], &toward[last * width..][..width])
                };
            }
        }
        self.walk_back(costs, &toward)
    }

    /// Entries of devices that are not in a set stay infinite from one search to the next.
    fn prepare(&mut self, others: usize) {
        let width = others.next_multiple_of(4);
        if self.width != width || self.best.len() != width << others {
            self.width = width;
            self.best = vec![f64::INFINITY; width << others];
        }
    }

    fn walk_back(&self, costs: &Costs, toward: &[f64]) -> Option<Vec<usize>> {
        let width = self.width;
        let mut set = (1 << (costs.count - 1)) - 1;
        let closing = |last: usize| self.best[set * width + last] + costs.get(last + 1, 0);
        let mut last = first_least(bits_down(set).map(|last| (closing(last), last)))?;
        let mut order = vec![last + 1];
        while set != 1 << last {
            set ^= 1 << last;
            let cost =
                |before: usize| self.best[set * width + before] + toward[last * width + before];
            last = first_least(bits_down(set).map(|before| (cost(before), before)))?;
            order.push(last + 1);
        }
        order.push(0);
        order.reverse();
        Some(order)
    }
}

/// Cheap cycles, each from device 0 and different, in the order in which they were found.
pub(super) fn cheap(costs: &Costs) -> Vec<Vec<usize>> {
    let mut found: Vec<Vec<usize>> = Vec::new();
    for start in 0..starts(costs.count) {
        let mut order = nearest_neighbours(costs, start);
        improve(costs, &mut order);
        let zero = order.iter().position(|&device| device == 0).unwrap_or(0);
        order.rotate_left(zero);
        if costs.of(&order).is_finite() && !found.contains(&order) {
            found.push(order);
        }
    }
    found
}

/// About how long [`cheap`] takes, in nanoseconds.
pub(super) fn work_of_cheap(count: usize) -> u64 {
    starts(count) as u64 * (count as u64).pow(3) * 4
}

fn starts(count: usize) -> usize {
    STARTS.min(count).min((PAIRS / (count * count)).max(1))
}

/// The numbers of the bits of a set.
fn bits(set: usize) -> impl Iterator<Item = usize> {
    let mut rest = set;
    std::iter::from_fn(move || {
        let lowest = (rest != 0).then_some(rest.trailing_zeros() as usize)?;
        rest &= rest - 1;
        Some(lowest)
    })
}

/// The least of the sums of two rows, four columns at a time.
fn least_sum(a: &[f64], b: &[f64]) -> f64 {
    let mut least = [f64::INFINITY; 4];
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(4)) {
        for lane in 0..4 {
            let sum = a[lane] + b[lane];
            least[lane] = if sum < least[lane] { sum } else { least[lane] };
        }
    }
    least.into_iter().fold(f64::INFINITY, f64::min)
}

/// The numbers of the bits of a set, the highest first: of equal cycles it is the one in the order of numbers.
fn bits_down(set: usize) -> impl Iterator<Item = usize> {
    (0..usize::BITS as usize - set.leading_zeros() as usize)
        .rev()
        .filter(move |bit| set >> bit & 1 == 1)
}

/// The first of the least, if it is finite.
fn first_least(candidates: impl Iterator<Item = (f64, usize)>) -> Option<usize> {
    let mut best = (f64::INFINITY, None);
    for (cost, candidate) in candidates {
        if cost < best.0 {
            best = (cost, Some(candidate));
        }
    }
    best.1
}

fn nearest_neighbours(costs: &Costs, start: usize) -> Vec<usize> {
    let mut order = vec![start];
    let mut rest: Vec<usize> = (0..costs.count).filter(|&device| device != start).collect();
    while !rest.is_empty() {
        let last = order[order.len() - 1];
        let candidates = rest.iter().enumerate().map(|(i, &to)| (costs.get(last, to), i));
        order.push(rest.remove(first_least(candidates).unwrap_or(0)));
    }
    order
}

/// Moves and turns parts as long as that gains.
fn improve(costs: &Costs, order: &mut Vec<usize>) {
    // Each change gains, so that it ends; the bound is for gains that are rounding errors.
    for _ in 0..4 * order.len() {
        let before = costs.of(order);
        let changed = move_part(costs, order, before) || turn_part(costs, order, before);
        if !changed {
            return;
        }
    }
}

/// What a change must gain.
fn gains(before: f64, after: f64) -> bool {
    after < before * (1.0 - 1e-12) || (before.is_infinite() && after.is_finite())
}

/// Puts up to three neighbours elsewhere, if that gains.
fn move_part(costs: &Costs, order: &mut Vec<usize>, before: f64) -> bool {
    let count = order.len();
    for length in 1..=3.min(count.saturating_sub(2)) {
        for from in 0..count {
            let mut turned = order.clone();
            turned.rotate_left(from);
            let part: Vec<usize> = turned.drain(..length).collect();
            for to in 1..turned.len() {
                // Only the six hops at the three seams differ.
                let (end, start) = (turned[turned.len() - 1], turned[0]);
                let (left, right) = (turned[to - 1], turned[to]);
                let (first, last) = (part[0], part[length - 1]);
                let removed =
                    costs.get(end, first) + costs.get(last, start) + costs.get(left, right);
                let added = costs.get(end, start) + costs.get(left, first) + costs.get(last, right);
                if removed.is_finite() && !gains(before, before - removed + added) {
                    continue;
                }
                let mut changed = turned.clone();
                changed.splice(to..to, part.iter().copied());
                if gains(before, costs.of(&changed)) {
                    *order = changed;
                    return true;
                }
            }
        }
    }
    false
}

/// Turns a part round, if that gains; the costs of its hops may differ by direction.
fn turn_part(costs: &Costs, order: &mut [usize], before: f64) -> bool {
    let count = order.len();
    for from in 1..count {
        let (mut forward, mut backward) = (0.0, 0.0);
        for to in from + 1..count {
            forward += costs.get(order[to - 1], order[to]);
            backward += costs.get(order[to], order[to - 1]);
            let (left, right) = (order[from - 1], order[(to + 1) % count]);
            let removed = forward + costs.get(left, order[from]) + costs.get(order[to], right);
            let added = backward + costs.get(left, order[to]) + costs.get(order[from], right);
            if removed.is_finite() && !gains(before, before - removed + added) {
                continue;
            }
            order[from..=to].reverse();
            if gains(before, costs.of(order)) {
                return true;
            }
            order[from..=to].reverse();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Costs that look random and differ by direction.
    fn scattered(count: usize, seed: u64) -> Costs {
        Costs::new(count, |from, to| {
            let mixed = (seed + from as u64 * 131 + to as u64 * 7919)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
                .wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f64 / 1e3
        })
    }

    fn least_of_all(costs: &Costs, order: &mut Vec<usize>) -> f64 {
        if order.len() == costs.count {
            return costs.of(order);
        }
        let mut least = f64::INFINITY;
        for device in 1..costs.count {
            if !order.contains(&device) {
                order.push(device);
                least = least.min(least_of_all(costs, order));
                order.pop();
            }
        }
        least
    }

    #[test]
    fn the_table_finds_the_cheapest_of_all_cycles() {
        let mut table = Table::default();
        for (count, seed) in (2..=8).flat_map(|count| (0..4).map(move |seed| (count, seed))) {
            let costs = scattered(count, seed);
            let order = table.cheapest(&costs).unwrap();
            assert_eq!(order[0], 0);
            let least = least_of_all(&costs, &mut vec![0]);
            assert!(
                (costs.of(&order) - least).abs() < 1e-9 * least,
                "{count} devices, seed {seed}"
            );
        }
    }

    #[test]
    fn where_no_cycle_is_none_is_found() {
        // Nothing leads to device 2.
        let costs = Costs::new(3, |_, to| if to == 2 { f64::INFINITY } else { 1.0 });
        assert_eq!(Table::default().cheapest(&costs), None);
        assert!(cheap(&costs).is_empty());
    }

    #[test]
    fn the_improving_search_is_near_the_cheapest() {
        let mut table = Table::default();
        for seed in 0..5 {
            let costs = scattered(12, seed);
            let cheapest = costs.of(&table.cheapest(&costs).unwrap());
            let found = cheap(&costs).iter().map(|order| costs.of(order)).fold(f64::MAX, f64::min);
            assert!(found >= cheapest * (1.0 - 1e-9) && found <= 1.3 * cheapest, "seed {seed}");
        }
    }
}
