//! Rings one after the other: each is the cheapest by what the ones before it have left of every capacity, and takes
//! all that is left on its way.
//!
//! The program (`channels`) begins with such rings. Where it is too large to be solved in time, they are the answer.

use super::channels::{Cheapest, Ring};
use super::cycle::Costs;
use super::routes::Routes;

/// A capacity of which less than this part is left counts as used up.
const USED_UP: f64 = 1e-6;

/// A ring that adds less than this part of what there is already is the last one.
const LEAST_PART: f64 = 1e-3;

/// The rings that have been taken.
pub(super) struct Greedy<'a> {
    routes: &'a Routes,
    left: Vec<f64>,
    rings: Vec<(Ring, f64)>,
}

impl<'a> Greedy<'a> {
    /// None yet.
    pub fn new(routes: &'a Routes) -> Greedy<'a> {
        let left = routes.constraints.iter().map(|c| c.capacity).collect();
        Greedy { routes, left, rings: Vec::new() }
    }

    /// Takes one more, in the order that `cheapest_cycle` finds, and gives it with the cheapest routes by the prices.
    /// `None` if no way round is left, or little.
    pub fn next(
        &mut self,
        cheapest_cycle: impl FnOnce(&Costs) -> Option<Vec<usize>>,
    ) -> Option<(Cheapest, Ring)> {
        if self.rings.last().is_some_and(|(_, last)| *last < LEAST_PART * self.total()) {
            return None;
        }
        let prices =
            self.left.iter().zip(&self.routes.constraints).map(|(left, c)| {
                if *left > USED_UP * c.capacity { 1.0 / left } else { f64::INFINITY }
            });
        let cheapest = Cheapest::new(self.routes, &prices.collect::<Vec<_>>());
        let ring = cheapest.ring(cheapest_cycle(&cheapest.costs)?);
        let uses = ring.uses(self.routes);
        let rates = uses.iter().map(|&(c, times)| self.left[c] / times);
        let rate = rates.fold(f64::INFINITY, f64::min);
        uses.iter().for_each(|&(c, times)| self.left[c] -= rate * times);
        self.rings.push((ring.clone(), rate));
        Some((cheapest, ring))
    }

    /// What the rings carry together.
    pub fn total(&self) -> f64 {
        self.rings.iter().map(|(_, rate)| rate).sum()
    }

    /// Prices at which only what is used up is worth something, all of it the same.
    pub fn prices(&self) -> Vec<f64> {
        let capacities = self.routes.constraints.iter().map(|c| c.capacity);
        let priced = capacities.zip(&self.left);
        priced
            .map(|(whole, left)| if *left <= USED_UP * whole { 1.0 / whole } else { 0.0 })
            .collect()
    }

    /// The rings with their rates.
    pub fn into_rings(self) -> (Vec<Ring>, Vec<f64>) {
        self.rings.into_iter().unzip()
    }
}
