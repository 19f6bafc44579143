//! The best set of rings: the linear program by column generation, and then few rings of it.
//!
//! There are too many rings to list. The program begins with a few, and is asked what each capacity is
//! worth; the cheapest ring by these prices is the one that improves it most (Gilmore and Gomory, 1961). If
//! the cheapest one costs 1 or more, nothing improves it. At any time the sum is at most the worth of all
//! capacities divided by the cost of the cheapest ring (weak duality), which bounds how far from the best it is.

use std::collections::BTreeSet;

use super::cycle::{self, Costs, Table};
use super::greedy::Greedy;
use super::packing::{Packing, Uses};
use super::routes::{Route, Routes};

/// Relative to the whole: sums that differ by less are equal.
pub(super) const TOLERANCE: f64 = 1e-9;

/// From how many devices on the exact search for a ring is kept for when the improving one finds nothing.
const EXACT_ALWAYS: usize = 10;

/// How many exchanges of the program are made between two looks at how much was computed.
const AT_ONCE: usize = 16;

/// How much of the average of prices is the average before.
const AVERAGED: f64 = 0.8;

/// How many of the rings that the improving search finds are added.
const ADDED: usize = 4;

/// With how many rings, and as many turned round, it begins at most.
const FIRST_RINGS: usize = 32;

/// How much may be computed, in units of about a nanosecond of one core, so that the answer comes in time
/// and is the same on every machine.
pub(super) const WORK: u64 = 50_000_000;

/// How much of that the rings may take that it begins with, if it can be solved.
const FIRST_WORK: u64 = WORK / 2;

/// With more constraints the program would not get anywhere in that time: one exchange takes their square. Real
/// machines are far below; 24 GPUs with a link from each to each are not.
const MOST_CONSTRAINTS: usize = 512;

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

/// The solution of the program, as far as it was searched for.
pub(super) struct Optimum {
    /// All rings that were looked at.
    pub rings: Vec<Ring>,
    /// Their rates, most of them 0.
    pub rates: Vec<f64>,
    /// What no rates can exceed.
    pub bound: f64,
    /// What each constraint is worth at the end.
    pub prices: Vec<f64>,
    /// Whether these are rings that were taken one after the other, since the program was too large.
    pub is_greedy: bool,
}

impl Optimum {
    /// Sum of the rates.
    pub fn total(&self) -> f64 {
        self.rates.iter().sum()
    }
}

/// The rates of rings that together carry most. `None` if no ring leads through all devices. `bound` is what
/// they cannot exceed for other reasons. There are at least two devices. `work` grows by what it took.
pub(super) fn optimum(routes: &Routes, bound: f64, work: &mut u64) -> Option<Optimum> {
    let capacities = routes.constraints.iter().map(|c| c.capacity).collect();
    let mut search = Search::new(routes, capacities, bound, *work);
    let is_solvable = routes.constraints.len() <= MOST_CONSTRAINTS;
    let greedy = search.begin(if is_solvable { FIRST_WORK } else { WORK });
    if search.rings.is_empty() {
        return None;
    }
    if is_solvable {
        search.generate(f64::INFINITY);
    }
    *work = search.work;
    let solved = search.finish();
    if solved.total() >= greedy.total() * (1.0 - TOLERANCE) {
        return Some(solved);
    }
    let prices = greedy.prices();
    let (rings, rates) = greedy.into_rings();
    Some(Optimum { rings, rates, bound: solved.bound, prices, is_greedy: true })
}

/// The same in what is left of the capacities, beginning with these rings. It ends as soon as the sum is
/// known to be, or not to be, `wanted`.
pub(super) fn optimum_within(
    routes: &Routes,
    capacities: Vec<f64>,
    rings: &[Ring],
    wanted: f64,
    work: &mut u64,
) -> Optimum {
    let mut search = Search::new(routes, capacities, f64::INFINITY, *work);
    rings.iter().for_each(|ring| _ = search.add(ring.clone()));
    search.generate(wanted);
    *work = search.work;
    search.finish()
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
    /// Of the constraints; 0 where nothing is left.
    capacities: Vec<f64>,
    packing: Packing,
    rings: Vec<Ring>,
    known: BTreeSet<Ring>,
    table: Table,
    /// Average of the prices so far, the last ones counting most.
    average: Vec<f64>,
    bound: f64,
    work: u64,
}

impl<'a> Search<'a> {
    fn new(routes: &'a Routes, capacities: Vec<f64>, bound: f64, work: u64) -> Search<'a> {
        Search {
            routes,
            packing: Packing::new(&capacities),
            capacities,
            rings: Vec::new(),
            known: BTreeSet::new(),
            table: Table::default(),
            average: Vec::new(),
            bound,
            work,
        }
    }

    fn finish(self) -> Optimum {
        let rates = self.packing.rates();
        let bound = self.bound.max(rates.iter().sum());
        let prices = self.packing.prices().collect();
        Optimum { rings: self.rings, rates, bound, prices, is_greedy: false }
    }

    /// Rings that one would take one after the other, as long as they add something and there is time.
    fn begin(&mut self, most_work: u64) -> Greedy<'a> {
        let mut greedy = Greedy::new(self.routes);
        for _ in 0..FIRST_RINGS {
            let next = greedy.next(|costs| self.cheapest_cycle(costs));
            let Some((cheapest, ring)) = next else { break };
            self.add_both_ways(&cheapest, ring);
            if self.work >= most_work {
                break;
            }
        }
        greedy
    }

    /// Exactly if that is quick.
    fn cheapest_cycle(&mut self, costs: &Costs) -> Option<Vec<usize>> {
        if self.routes.count <= EXACT_ALWAYS {
            return self.exact_cycle(costs);
        }
        self.work += cycle::work_of_cheap(self.routes.count);
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

    /// Unless it is known, or uses what is used up.
    fn add(&mut self, ring: Ring) -> bool {
        let uses = ring.uses(self.routes);
        let possible = uses.iter().all(|&(c, _)| self.capacities[c] > 0.0);
        let new = possible && self.known.insert(ring.clone());
        if new {
            self.packing.add(uses);
            self.rings.push(ring);
        }
        new
    }

    /// Adds rings until none improves the sum, it is at the bound, it is known to be as wanted or
    /// not, or enough has been computed.
    fn generate(&mut self, wanted: f64) {
        let rows = self.routes.constraints.len() as u64;
        while self.work < WORK {
            let columns = self.rings.len() as u64 * 2 * self.routes.count as u64;
            let mut solved = false;
            while !solved && self.work < WORK {
                let exchanges = self.packing.solve(AT_ONCE);
                self.work += (exchanges as u64 + 1) * (rows * rows + columns);
                solved = exchanges < AT_ONCE;
            }
            let total = self.packing.total();
            let known = self.bound < wanted * (1.0 - TOLERANCE) && wanted.is_finite();
            if known || total >= self.bound.min(wanted) * (1.0 - TOLERANCE) {
                return;
            }
            if !self.price(total) {
                return;
            }
        }
    }

    /// Adds what is cheap by prices. Those of one solution say little where many solutions are as good: first
    /// it is sought by the average of what they were (Wentges, 1997).
    fn price(&mut self, total: f64) -> bool {
        // Where prices leave a choice, the wider links are taken. These prices bound as well as others.
        let shade = 1e-11 * total / self.capacities.len() as f64;
        let priced = self.packing.prices().zip(&self.routes.constraints).zip(&self.capacities);
        let priced = priced.map(|((price, constraint), left)| {
            if *left > 0.0 { price + shade / constraint.capacity } else { f64::INFINITY }
        });
        let prices: Vec<_> = priced.collect();
        if self.average.is_empty() {
            self.average.clone_from(&prices);
        }
        for (average, price) in self.average.iter_mut().zip(&prices) {
            *average = if price.is_finite() {
                AVERAGED * *average + (1.0 - AVERAGED) * price
            } else {
                *price
            };
        }
        let average = self.average.clone();
        self.add_cheap(&average, &prices) || self.add_cheap(&prices, &prices)
    }

    /// Adds rings that are cheap by some prices and gain by the others. Whether there were any.
    fn add_cheap(&mut self, sought_by: &[f64], prices: &[f64]) -> bool {
        let cheapest = Cheapest::new(self.routes, sought_by);
        let exact_now = self.routes.count <= EXACT_ALWAYS;
        if !exact_now {
            self.work += cycle::work_of_cheap(self.routes.count);
            let mut cheap: Vec<_> = cycle::cheap(&cheapest.costs)
                .into_iter()
                .map(|order| (cheapest.costs.of(&order), order))
                .collect();
            cheap.sort_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| x.cmp(y)));
            cheap.truncate(ADDED);
            // Written so that every ring is added.
            let gained = cheap.into_iter().fold(false, |any, (_, order)| {
                self.add_if_it_gains(&cheapest, order, prices) | any
            });
            if gained {
                return true;
            }
        }
        if self.routes.count > cycle::MOST_EXACT || (!exact_now && sought_by != prices) {
            return false;
        }
        let Some(order) = self.exact_cycle(&cheapest.costs) else {
            self.bound = 0.0;
            return false;
        };
        let left = sought_by.iter().zip(&self.capacities).filter(|(_, left)| **left > 0.0);
        let worth: f64 = left.map(|(price, capacity)| price * capacity).sum();
        self.bound = self.bound.min(worth / cheapest.costs.of(&order));
        self.add_if_it_gains(&cheapest, order, prices)
    }

    /// The ring, and turned round.
    fn add_if_it_gains(&mut self, cheapest: &Cheapest, order: Vec<usize>, prices: &[f64]) -> bool {
        let mut turned = order.clone();
        turned[1..].reverse();
        [order, turned].into_iter().fold(false, |any, order| {
            let ring = cheapest.ring(order);
            let uses = ring.uses(self.routes);
            let cost: f64 = uses.iter().map(|&(c, times)| times * prices[c]).sum();
            (cost < 1.0 - 1e-9 && self.add(ring)) | any
        })
    }
}
