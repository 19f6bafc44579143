//! The best ring alone, when nothing else runs: branch and bound over orders and routes.
//!
//! Of rings with the same rate the one is best that loads the links least: the load of a ring is the sum of 1 /
//! capacity over all its uses of links. So it crosses narrow links no more often than it must.

use super::channels::{Cheapest, Ring};
use super::routes::{Route, Routes};

/// After so many steps the best ring found so far is taken: a few milliseconds. With up to [`EXACT_UP_TO`]
/// devices there are more, which are rarely needed.
const MOST_STEPS: u32 = 50_000;
const MOST_STEPS_OF_FEW: u32 = 3_000_000;
const EXACT_UP_TO: usize = 8;

/// Relative differences below this are rounding.
const EQUAL: f64 = 1e-9;

/// The best ring and its rate. `known` are rings to begin with, at least one.
pub(super) fn best(routes: &Routes, known: &[Ring]) -> (Ring, f64) {
    let weights: Vec<f64> = routes.constraints.iter().map(|c| 1.0 / c.capacity).collect();
    let cheapest = Cheapest::new(routes, &weights);
    let begin = (0.0, f64::INFINITY, known[0].clone());
    let mut search = Search {
        routes,
        uses: vec![0; routes.constraints.len()],
        least_load: (0..routes.count).map(|device| least_load(routes, &weights, device)).collect(),
        weights,
        ring: Ring { order: vec![0], routes: Vec::new() },
        visited: vec![false; routes.count],
        best: begin,
        steps: 0,
        most_steps: if routes.count <= EXACT_UP_TO { MOST_STEPS_OF_FEW } else { MOST_STEPS },
    };
    // Also with the routes that load least, which prices of full links need not choose.
    let again = known.iter().map(|ring| cheapest.ring(ring.order.clone()));
    for ring in known.iter().cloned().chain(again) {
        search.consider(ring);
    }
    search.visited[0] = true;
    let rest: f64 = search.least_load.iter().sum();
    search.extend(f64::INFINITY, 0.0, rest);
    let (rate, _, ring) = search.best;
    (ring, rate)
}

/// What it loads at least to leave a device.
fn least_load(routes: &Routes, weights: &[f64], from: usize) -> f64 {
    let others = (0..routes.count).filter(|&to| to != from);
    let loads = others.flat_map(|to| routes.between(from, to)).map(|route| load(weights, route));
    loads.fold(f64::INFINITY, f64::min)
}

fn load(weights: &[f64], route: &Route) -> f64 {
    route.constraints.iter().map(|&c| weights[c]).sum()
}

struct Search<'a> {
    routes: &'a Routes,
    /// How often each constraint is used by what there is of the ring.
    uses: Vec<u32>,
    least_load: Vec<f64>,
    weights: Vec<f64>,
    ring: Ring,
    visited: Vec<bool>,
    /// Rate, load and ring.
    best: (f64, f64, Ring),
    steps: u32,
    most_steps: u32,
}

impl Search<'_> {
    /// All ways on from the last device. `rest` is what the ways from devices that have not been left load at least.
    fn extend(&mut self, rate: f64, load: f64, rest: f64) {
        let from = self.ring.order[self.ring.order.len() - 1];
        let rest = rest - self.least_load[from];
        if self.ring.order.len() == self.routes.count {
            self.go(from, 0, rate, load, rest);
            return;
        }
        for to in 1..self.routes.count {
            if !self.visited[to] {
                self.go(from, to, rate, load, rest);
            }
        }
    }

    /// By every route from one device to another, and on from there.
    fn go(&mut self, from: usize, to: usize, rate: f64, load: f64, rest: f64) {
        let routes = self.routes;
        for (number, route) in routes.between(from, to).iter().enumerate() {
            self.steps += 1;
            if self.steps > self.most_steps {
                return;
            }
            route.constraints.iter().for_each(|&c| self.uses[c] += 1);
            let now = route.constraints.iter().map(|&c| self.share(c)).fold(rate, f64::min);
            let load = load + self::load(&self.weights, route);
            if self.is_better(now, load + rest) {
                self.ring.routes.push(number);
                if to == 0 {
                    self.best = (now, load, self.ring.clone());
                } else {
                    self.ring.order.push(to);
                    self.visited[to] = true;
                    self.extend(now, load, rest);
                    self.visited[to] = false;
                    self.ring.order.pop();
                }
                self.ring.routes.pop();
            }
            route.constraints.iter().for_each(|&c| self.uses[c] -= 1);
        }
    }

    fn share(&self, constraint: usize) -> f64 {
        self.routes.constraints[constraint].capacity / f64::from(self.uses[constraint])
    }

    fn is_better(&self, rate: f64, load: f64) -> bool {
        let (best_rate, best_load, _) = self.best;
        rate > best_rate * (1.0 + EQUAL)
            || (rate >= best_rate * (1.0 - EQUAL) && load < best_load * (1.0 - EQUAL))
    }

    fn consider(&mut self, ring: Ring) {
        let constraints = &self.routes.constraints;
        let uses = ring.uses(self.routes);
        let rates = uses.iter().map(|&(c, times)| constraints[c].capacity / times);
        let rate = rates.fold(f64::INFINITY, f64::min);
        let load = uses.iter().map(|&(c, times)| self.weights[c] * times).sum();
        if self.is_better(rate, load) {
            self.best = (rate, load, ring);
        }
    }
}
