//! The best set of rings: the linear program by column generation, and then few rings of it.
//!
//! There are too many rings to list. The program begins with a few, and is asked what each capacity is
//! worth; the cheapest ring by these prices is the one that improves it most (Gilmore and Gomory, 1961). If
//! the cheapest one costs 1 or more, nothing improves it. At any time the sum is at most the worth of all
//! capacities divided by the cost of the cheapest ring (weak duality), which bounds how far from the best it is.

use std::collections::BTreeSet;

use super::cycle::{self, Costs, Table};
use super::packing::{Packing, Uses};
use super::routes::{Route, Routes};

/// At most so many channels: each costs a block of threads on every GPU, and NCCL has stayed with 32.
pub(super) const MOST_CHANNELS: usize = 32;

/// A channel below this part of the whole is not worth having.
const LEAST_SHARE: f64 = 1.0 / 256.0;

/// Relative to the whole: sums that differ by less are equal.
const TOLERANCE: f64 = 1e-9;

/// From how many devices on the exact search for a ring is kept for when the improving one finds nothing.
const EXACT_ALWAYS: usize = 10;

/// How much may be computed, in units of about a nanosecond of one core, so that the answer comes in time
/// and is the same on every machine.
const WORK: u64 = 60_000_000;

/// A ring: the order of devices from 0, and the number of the route from each to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ring {
    pub order: Vec<usize>,
    pub routes: Vec<usize>,
}

impl Ring {
    /// Each device, the next one, and the route between.
    pub fn hops<'a>(
        &'a self,
        routes: &'a Routes,
    ) -> impl Iterator<Item = (usize, usize, &'a Route)> {
        let next = self.order.iter().skip(1).chain(self.order.first());
        let pairs = self.order.iter().zip(next).zip(&self.routes);
        pairs.map(|((&from, &to), &route)| (from, to, &routes.between(from, to)[route]))
    }

    /// How often it uses each constraint, those that it uses.
    pub fn uses(&self, routes: &Routes) -> Uses {
        let mut times = vec![0.0; routes.constraints.len()];
        let used = self.hops(routes).flat_map(|(_, _, route)| &route.constraints);
        used.for_each(|&constraint| times[constraint] += 1.0);
        times.into_iter().enumerate().filter(|(_, times)| *times > 0.0).collect()
    }
}

/// Rings with rates, how much that is and how much it could be at most.
pub(super) struct Best {
    /// The fastest first.
    pub rings: Vec<(Ring, f64)>,
    pub total: f64,
    pub bound: f64,
    /// All rings that were looked at.
    pub seen: Vec<Ring>,
    /// What each constraint is worth at the end.
    pub prices: Vec<f64>,
}

/// The rings that together carry most. `None` if no ring leads through all devices. `bound` is what they
/// cannot exceed for other reasons. There are at least two devices.
pub(super) fn best(routes: &Routes, bound: f64) -> Option<Best> {
    let mut search = Search::new(routes, bound);
    search.begin();
    if search.rings.is_empty() {
        return None;
    }
    search.generate();
    let rates = search.packing.rates();
    let whole: f64 = rates.iter().sum();
    let few = few(routes, &search.rings, &rates);
    let total = few.iter().map(|(_, rate)| rate).sum();
    Some(Best {
        rings: few,
        total,
        bound: search.bound.max(whole),
        prices: search.packing.prices().collect(),
        seen: search.rings,
    })
}

/// For each pair of devices the cheapest route by prices of the constraints, the first of equal ones.
pub(super) struct Cheapest {
    pub costs: Costs,
    routes: Vec<usize>,
    count: usize,
}

impl Cheapest {
    pub fn new(routes: &Routes, prices: &[f64]) -> Cheapest {
        let count = routes.count;
        let mut chosen = vec![(0, f64::INFINITY); count * count];
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            for (number, route) in routes.between(from, to).iter().enumerate() {
                let cost: f64 = route.constraints.iter().map(|&c| prices[c]).sum();
                if cost < chosen[from * count + to].1 {
                    chosen[from * count + to] = (number, cost);
                }
            }
        }
        let costs = Costs::new(count, |from, to| chosen[from * count + to].1);
        Cheapest { costs, routes: chosen.into_iter().map(|(number, _)| number).collect(), count }
    }

    /// With the cheapest routes.
    pub fn ring(&self, order: Vec<usize>) -> Ring {
        let next = order.iter().skip(1).chain(order.first());
        let routes = order.iter().zip(next).map(|(&a, &b)| self.routes[a * self.count + b]);
        Ring { routes: routes.collect(), order }
    }
}

struct Search<'a> {
    routes: &'a Routes,
    packing: Packing,
    rings: Vec<Ring>,
    known: BTreeSet<Ring>,
    table: Table,
    bound: f64,
    work: u64,
}

impl<'a> Search<'a> {
    fn new(routes: &'a Routes, bound: f64) -> Search<'a> {
        let capacities: Vec<_> = routes.constraints.iter().map(|c| c.capacity).collect();
        Search {
            routes,
            packing: Packing::new(&capacities),
            rings: Vec::new(),
            known: BTreeSet::new(),
            table: Table::default(),
            bound,
            work: 0,
        }
    }

    /// Rings that one would take one after the other: by what is left of each capacity, as long as much is left.
    fn begin(&mut self) {
        let constraints = &self.routes.constraints;
        let mut left: Vec<f64> = constraints.iter().map(|c| c.capacity).collect();
        let mut taken = 0.0;
        for _ in 0..MOST_CHANNELS {
            let prices: Vec<_> = left
                .iter()
                .zip(constraints)
                .map(|(left, c)| if *left > 1e-6 * c.capacity { 1.0 / left } else { f64::INFINITY })
                .collect();
            let cheapest = Cheapest::new(self.routes, &prices);
            let Some(order) = self.cheapest_cycle(&cheapest.costs) else { break };
            let ring = cheapest.ring(order);
            let uses = ring.uses(self.routes);
            let rate = uses.iter().map(|&(c, times)| left[c] / times).fold(f64::INFINITY, f64::min);
            uses.iter().for_each(|&(c, times)| left[c] -= rate * times);
            taken += rate;
            self.add_both_ways(&cheapest, ring);
            if rate < taken / 1000.0 {
                break;
            }
        }
    }

    /// Exactly if that is quick.
    fn cheapest_cycle(&mut self, costs: &Costs) -> Option<Vec<usize>> {
        if self.routes.count <= EXACT_ALWAYS {
            return self.exact_cycle(costs);
        }
        self.work += improving_work(self.routes.count);
        let found = cycle::cheap(costs).into_iter().map(|order| (costs.of(&order), order));
        found.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, order)| order)
    }

    fn exact_cycle(&mut self, costs: &Costs) -> Option<Vec<usize>> {
        let count = self.routes.count as u64;
        self.work += ((count * count) << count) / 8;
        self.table.cheapest(costs)
    }

    /// The ring, and the order turned round, since links carry as much in the other direction.
    fn add_both_ways(&mut self, cheapest: &Cheapest, ring: Ring) -> bool {
        let mut turned = ring.order.clone();
        turned[1..].reverse();
        let turned = cheapest.ring(turned);
        let finite = cheapest.costs.of(&turned.order).is_finite();
        self.add(ring) | (finite && self.add(turned))
    }

    fn add(&mut self, ring: Ring) -> bool {
        let new = self.known.insert(ring.clone());
        if new {
            self.packing.add(ring.uses(self.routes));
            self.rings.push(ring);
        }
        new
    }

    /// Adds rings until none improves the sum, it is at the bound, or enough has been computed.
    fn generate(&mut self) {
        let rows = self.routes.constraints.len() as u64;
        let capacities: Vec<_> = self.routes.constraints.iter().map(|c| c.capacity).collect();
        while self.work < WORK {
            let exchanges = self.packing.solve(1000) as u64;
            self.work += (exchanges + 1) * (rows * rows + rows * self.rings.len() as u64 / 8);
            let total = self.packing.total();
            if total >= self.bound * (1.0 - TOLERANCE) {
                return;
            }
            // Where prices leave a choice, the wider links are taken. These prices bound as well as others.
            let shade = 1e-11 * total / rows as f64;
            let prices = self.packing.prices().zip(&capacities).map(|(price, c)| price + shade / c);
            let prices: Vec<_> = prices.collect();
            let cheapest = Cheapest::new(self.routes, &prices);
            if !self.improve(&cheapest) && !self.prove(&cheapest, &prices) {
                return;
            }
        }
    }

    /// Adds what the improving search finds. Whether that was anything.
    fn improve(&mut self, cheapest: &Cheapest) -> bool {
        if self.routes.count <= EXACT_ALWAYS {
            return false;
        }
        self.work += improving_work(self.routes.count);
        let cheap = cycle::cheap(&cheapest.costs).into_iter();
        let cheap = cheap.filter(|order| cheapest.costs.of(order) < 1.0 - 1e-8);
        // Written so that every ring is added.
        cheap.fold(false, |any, order| self.add_both_ways(cheapest, cheapest.ring(order)) | any)
    }

    /// Adds the cheapest ring, or finds that there is none to add. Lowers the bound in either case.
    fn prove(&mut self, cheapest: &Cheapest, prices: &[f64]) -> bool {
        if self.routes.count > cycle::MOST_EXACT {
            return false;
        }
        let Some(order) = self.exact_cycle(&cheapest.costs) else { return false };
        let cost = cheapest.costs.of(&order);
        let worth: f64 =
            prices.iter().zip(&self.routes.constraints).map(|(price, c)| price * c.capacity).sum();
        self.bound = self.bound.min(worth / cost);
        cost < 1.0 - 1e-9 && self.add_both_ways(cheapest, cheapest.ring(order))
    }
}

/// Of the improving search.
fn improving_work(count: usize) -> u64 {
    let starts = count.min(16) as u64;
    starts * (count as u64).pow(3) * 4
}

/// Few rings that carry together as much as all do, or nearly, the fastest first.
fn few(routes: &Routes, rings: &[Ring], rates: &[f64]) -> Vec<(Ring, f64)> {
    let whole: f64 = rates.iter().sum();
    let by_program = fewer(routes, rings, rates, whole);
    let by_turns = one_after_the_other(routes, rings, whole);
    let sum = |set: &[(usize, f64)]| set.iter().map(|(_, rate)| rate).sum::<f64>();
    let as_good = sum(&by_turns) >= sum(&by_program) * (1.0 - TOLERANCE);
    let mut chosen =
        if as_good && by_turns.len() <= by_program.len() { by_turns } else { by_program };
    chosen.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| rings[*a].cmp(&rings[*b])));
    within_capacities(
        routes,
        chosen.into_iter().map(|(i, rate)| (rings[i].clone(), rate)).collect(),
    )
}

/// Rings of the program's solution, without those that it can do without.
fn fewer(routes: &Routes, rings: &[Ring], rates: &[f64], whole: f64) -> Vec<(usize, f64)> {
    let mut kept: Vec<_> = rates.iter().copied().enumerate().collect();
    kept.retain(|(_, rate)| *rate > 1e-9 * whole);
    kept.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let too_slow = |kept: &[(usize, f64)]| {
        kept.last().is_some_and(|(_, rate)| *rate < LEAST_SHARE * whole && kept.len() > 1)
    };
    while kept.len() > MOST_CHANNELS || too_slow(&kept) {
        kept.pop();
        kept = solved(routes, rings, &kept);
    }
    let enough = kept.iter().map(|(_, rate)| rate).sum::<f64>() * (1.0 - TOLERANCE);
    let mut at = kept.len();
    while at > 1 {
        at -= 1;
        let mut without = kept.clone();
        without.remove(at);
        let without = solved(routes, rings, &without);
        if without.iter().map(|(_, rate)| rate).sum::<f64>() >= enough {
            kept = without;
            at = at.min(kept.len());
        }
    }
    kept
}

/// The best rates of some of the rings, the fastest first; those without a rate are left out.
fn solved(routes: &Routes, rings: &[Ring], some: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let columns: Vec<_> = some.iter().map(|(i, _)| rings[*i].uses(routes)).collect();
    let used: BTreeSet<_> = columns.iter().flatten().map(|(row, _)| *row).collect();
    let rows: Vec<_> = used.into_iter().collect();
    let capacities: Vec<_> = rows.iter().map(|&row| routes.constraints[row].capacity).collect();
    let mut packing = Packing::new(&capacities);
    for column in columns {
        let row_of = |row: usize| rows.partition_point(|&other| other < row);
        packing.add(column.into_iter().map(|(row, times)| (row_of(row), times)).collect());
    }
    packing.solve(1000);
    let rates = some.iter().zip(packing.rates()).map(|((i, _), rate)| (*i, rate));
    let whole = packing.total();
    let mut rates: Vec<_> = rates.filter(|(_, rate)| *rate > 1e-9 * whole).collect();
    rates.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    rates
}

/// The ring that can go fastest in what is left, and so on.
fn one_after_the_other(routes: &Routes, rings: &[Ring], whole: f64) -> Vec<(usize, f64)> {
    let uses: Vec<_> = rings.iter().map(|ring| ring.uses(routes)).collect();
    let mut left: Vec<_> = routes.constraints.iter().map(|c| c.capacity).collect();
    let mut chosen = Vec::new();
    while chosen.len() < MOST_CHANNELS {
        let rate = |uses: &Uses| {
            uses.iter().map(|&(c, times)| left[c] / times).fold(f64::INFINITY, f64::min)
        };
        let mut best = (0, LEAST_SHARE * whole);
        for (i, uses) in uses.iter().enumerate() {
            let rate = rate(uses);
            // The first of equal ones, where what differs is rounding.
            if rate > best.1 * (1.0 + TOLERANCE) {
                best = (i, rate);
            }
        }
        if best.1 <= LEAST_SHARE * whole {
            break;
        }
        uses[best.0].iter().for_each(|&(c, times)| left[c] -= best.1 * times);
        chosen.push(best);
    }
    chosen
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
