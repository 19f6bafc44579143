//! Few rings out of a solution of the program, which may have many.
//!
//! One after the other is taken for good at the highest rate that it can have (diving): if what is left of the
//! capacities can still carry the rest of the sum, nothing is lost, and a whole link is used up
//! instead of parts of several. What is taken in the end is the best that these rings can do, without those that
//! add nothing.

use std::collections::BTreeSet;

use super::channels::{Optimum, Ring, TOLERANCE, WORK, optimum_within};
use super::packing::{Packing, Uses};
use super::routes::Routes;

/// At most so many channels: each costs a block of threads on every GPU, and NCCL has stayed with 32.
pub(super) const MOST_CHANNELS: usize = 32;

/// A channel below this part of the whole is not worth having.
const LEAST_SHARE: f64 = 1.0 / 256.0;

/// How many rings are tried as the next one.
const TRIED: usize = 8;

/// Rings with rates, the fastest first, that carry as much as the solution, or nearly.
pub(super) fn few(routes: &Routes, optimum: &Optimum, work: &mut u64) -> Vec<(Ring, f64)> {
    if optimum.is_greedy {
        // Each has used up something; there are no better rates for them to be found in time.
        return support(&optimum.rings, &optimum.rates, optimum.total());
    }
    let rings = dive(routes, optimum, work);
    let dived = without_idle(routes, rings, optimum.total());
    let support = optimum.rings.iter().zip(&optimum.rates);
    let support = support.filter(|(_, rate)| **rate > TOLERANCE * optimum.total());
    let plain = support.map(|(ring, rate)| (ring.clone(), *rate)).collect();
    let plain = without_idle(routes, plain, optimum.total());
    let better = sum(&dived) > sum(&plain) * (1.0 + TOLERANCE);
    let as_good = sum(&dived) >= sum(&plain) * (1.0 - TOLERANCE);
    let chosen = if better || (as_good && dived.len() <= plain.len()) { dived } else { plain };
    within_capacities(routes, chosen)
}

fn sum(rings: &[(Ring, f64)]) -> f64 {
    rings.iter().map(|(_, rate)| rate).sum()
}

/// Takes rings one after the other.
fn dive(routes: &Routes, optimum: &Optimum, work: &mut u64) -> Vec<(Ring, f64)> {
    let whole = optimum.total();
    let mut left: Vec<f64> = routes.constraints.iter().map(|c| c.capacity).collect();
    let mut pool = optimum.rings.clone();
    let mut known: BTreeSet<Ring> = pool.iter().cloned().collect();
    let mut rest = support(&optimum.rings, &optimum.rates, whole);
    let mut taken: Vec<(Ring, f64)> = Vec::new();
    while !rest.is_empty() && taken.len() < 2 * MOST_CHANNELS {
        let remaining = sum(&rest);
        // Those that use up most come first.
        let most = |ring: &Ring| highest_rate(routes, ring, &left);
        let mut order: Vec<_> =
            rest.into_iter().map(|(ring, rate)| (most(&ring), ring, rate)).collect();
        order.sort_by(|(x, a, _), (y, b, _)| y.total_cmp(x).then_with(|| a.cmp(b)));
        rest = order.into_iter().map(|(_, ring, rate)| (ring, rate)).collect();
        let next = rest.iter().take(TRIED).enumerate().find_map(|(i, (ring, rate))| {
            let most = highest_rate(routes, ring, &left);
            if most <= rate * (1.0 + TOLERANCE) {
                return Some((i, *rate, None));
            }
            let after = lowered(routes, &left, ring, most);
            let wanted = remaining - most;
            if wanted <= TOLERANCE * whole {
                return Some((i, most, Some(Vec::new())));
            }
            if *work >= WORK {
                return None;
            }
            let found = optimum_within(routes, after, &pool, wanted, work);
            for ring in &found.rings {
                if known.insert(ring.clone()) {
                    pool.push(ring.clone());
                }
            }
            (found.total() >= wanted - TOLERANCE * whole)
                .then(|| (i, most, Some(support(&found.rings, &found.rates, whole))))
        });
        // Where none can go faster without loss, the fastest is taken as it is.
        let (i, rate, after) = next.unwrap_or((0, rest[0].1, None));
        let (ring, _) = rest.remove(i);
        left = lowered(routes, &left, &ring, rate);
        rest = after.unwrap_or(rest);
        taken.push((ring, rate));
    }
    taken
}

/// Rings that have a rate, the fastest first.
fn support(rings: &[Ring], rates: &[f64], whole: f64) -> Vec<(Ring, f64)> {
    let with_rates = rings.iter().cloned().zip(rates.iter().copied());
    let mut support: Vec<_> = with_rates.filter(|(_, rate)| *rate > TOLERANCE * whole).collect();
    sort(&mut support);
    support
}

/// The fastest first; of those that differ by rounding only, in the order of their devices.
fn sort(rings: &mut [(Ring, f64)]) {
    let most = rings.iter().map(|(_, rate)| *rate).fold(f64::MIN_POSITIVE, f64::max);
    let rounded = |rate: f64| (rate / most / TOLERANCE).round() as i64;
    rings.sort_by(|(a, x), (b, y)| rounded(*y).cmp(&rounded(*x)).then_with(|| a.cmp(b)));
}

fn highest_rate(routes: &Routes, ring: &Ring, left: &[f64]) -> f64 {
    let uses = ring.uses(routes).into_iter();
    uses.map(|(c, times)| left[c] / times).fold(f64::INFINITY, f64::min)
}

/// What a ring leaves of capacities; where that is a rounding error, nothing.
fn lowered(routes: &Routes, left: &[f64], ring: &Ring, rate: f64) -> Vec<f64> {
    let mut left = left.to_vec();
    for (c, times) in ring.uses(routes) {
        left[c] -= rate * times;
        if left[c] < 10.0 * TOLERANCE * routes.constraints[c].capacity {
            left[c] = 0.0;
        }
    }
    left
}

/// The best rates of rings, without those that are too slow, too many, or that nothing is lost without.
fn without_idle(routes: &Routes, rings: Vec<(Ring, f64)>, whole: f64) -> Vec<(Ring, f64)> {
    let mut kept = solved(routes, &rings);
    let too_slow = |kept: &[(Ring, f64)]| {
        kept.last().is_some_and(|(_, rate)| *rate < LEAST_SHARE * whole && kept.len() > 1)
    };
    while kept.len() > MOST_CHANNELS || too_slow(&kept) {
        kept.truncate(MOST_CHANNELS.min(kept.len() - 1));
        kept = solved(routes, &kept);
    }
    let enough = sum(&kept) * (1.0 - TOLERANCE);
    let mut at = kept.len();
    while at > 1 {
        at -= 1;
        let mut without = kept.clone();
        without.remove(at);
        let without = solved(routes, &without);
        if sum(&without) >= enough {
            kept = without;
            at = at.min(kept.len());
        }
    }
    kept
}

/// The best rates of rings, the fastest first; those without a rate are left out.
fn solved(routes: &Routes, rings: &[(Ring, f64)]) -> Vec<(Ring, f64)> {
    let columns: Vec<Uses> = rings.iter().map(|(ring, _)| ring.uses(routes)).collect();
    let used: BTreeSet<_> = columns.iter().flatten().map(|(row, _)| *row).collect();
    let rows: Vec<_> = used.into_iter().collect();
    let capacities: Vec<_> = rows.iter().map(|&row| routes.constraints[row].capacity).collect();
    let mut packing = Packing::new(&capacities);
    for column in columns {
        let row_of = |row: usize| rows.partition_point(|&other| other < row);
        packing.add(column.into_iter().map(|(row, times)| (row_of(row), times)).collect());
    }
    packing.solve(1000);
    let only_rings: Vec<_> = rings.iter().map(|(ring, _)| ring.clone()).collect();
    support(&only_rings, &packing.rates(), packing.total())
}

/// Rounding must not exceed a capacity: all rates are lowered by what it does.
fn within_capacities(routes: &Routes, mut rings: Vec<(Ring, f64)>) -> Vec<(Ring, f64)> {
    let mut loads = vec![0.0; routes.constraints.len()];
    for (ring, rate) in &rings {
        ring.uses(routes).iter().for_each(|&(c, times)| loads[c] += rate * times);
    }
    let over = loads.iter().zip(&routes.constraints).map(|(load, c)| load / c.capacity);
    let most = over.fold(1.0, f64::max);
    rings.iter_mut().for_each(|(_, rate)| *rate /= most);
    rings
}
