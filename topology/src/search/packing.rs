//! The linear program of packing: given columns, each of which uses some capacities so often, find rates not
//! below 0 that use no capacity beyond what it is and whose sum is the greatest.
//!
//! Solved by the revised simplex method with the inverse of the basis (Dantzig and Orchard-Hays, 1954), from
//! the basis of the slacks, which is feasible; columns may be added at any time. Capacities are often equal,
//! so that many bases are degenerate: ties are broken by the lexicographic rule (Dantzig, Orden and Wolfe,
//! 1955), which ends always.

/// Relative to capacities, which are scaled to at most 1: what is below counts as nothing.
const EPSILON: f64 = 1e-10;

/// How often a column uses each of some capacities.
pub(super) type Uses = Vec<(usize, f64)>;

/// A program and the best solution of it so far.
pub(super) struct Packing {
    scale: f64,
    columns: Vec<Uses>,
    /// For each row the variable that it determines: a slack if below the number of rows, else a column.
    basis: Vec<usize>,
    /// Rows of the inverse, one after the other; none before the first exchange.
    inverse: Vec<f64>,
    /// Of the basis' variables.
    values: Vec<f64>,
    /// What one unit of each capacity is worth.
    prices: Vec<f64>,
    rows: usize,
}

impl Packing {
    /// Without columns. Capacities are above 0.
    pub fn new(capacities: &[f64]) -> Packing {
        let rows = capacities.len();
        let scale = capacities.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        Packing {
            scale,
            columns: Vec::new(),
            basis: (0..rows).collect(),
            inverse: Vec::new(),
            values: capacities.iter().map(|capacity| capacity / scale).collect(),
            prices: vec![0.0; rows],
            rows,
        }
    }

    /// Adds a column, which must use something. The solution is as it was until [`Packing::solve`].
    pub fn add(&mut self, uses: Uses) {
        debug_assert!(!uses.is_empty());
        self.columns.push(uses);
    }

    /// Improves the solution until it is the best, in at most so many exchanges. Returns how many it made.
    pub fn solve(&mut self, most: usize) -> usize {
        let rows = self.rows;
        if self.inverse.is_empty() {
            self.inverse = vec![0.0; rows * rows];
            (0..rows).for_each(|i| self.inverse[i * rows + i] = 1.0);
        }
        for exchange in 0..most {
            let Some((entering, gain)) = self.entering() else { return exchange };
            let direction = self.direction(entering);
            // There is always a row, for every column uses something that is finite.
            let Some(row) = self.leaving(&direction) else { return exchange };
            self.exchange(entering, gain, row, &direction);
        }
        most
    }

    /// Rates of the columns.
    pub fn rates(&self) -> Vec<f64> {
        let mut rates = vec![0.0; self.columns.len()];
        for (&variable, &value) in self.basis.iter().zip(&self.values) {
            if variable >= self.rows {
                rates[variable - self.rows] = (value * self.scale).max(0.0);
            }
        }
        rates
    }

    /// Sum of the rates.
    pub fn total(&self) -> f64 {
        self.rates().iter().sum()
    }

    /// What one more unit of each capacity would add to the sum. No column costs less than 1 by them, once
    /// it is solved.
    pub fn prices(&self) -> impl Iterator<Item = f64> {
        self.prices.iter().map(|price| price.max(0.0))
    }

    /// The variable that gains most by a unit of it, if any gains.
    fn entering(&self) -> Option<(usize, f64)> {
        let slacks = self.prices.iter().enumerate().map(|(i, price)| (i, -price));
        let columns = self.columns.iter().enumerate().map(|(i, uses)| {
            let cost: f64 = uses.iter().map(|&(row, times)| times * self.prices[row]).sum();
            (self.rows + i, 1.0 - cost)
        });
        let mut best: Option<(usize, f64)> = None;
        for (variable, gain) in slacks.chain(columns) {
            if gain > best.map_or(1e-9, |(_, most)| most) {
                best = Some((variable, gain));
            }
        }
        best
    }

    /// How much of each variable of the basis one unit of another one takes.
    fn direction(&self, entering: usize) -> Vec<f64> {
        let slack = [(entering, 1.0)];
        let uses = match entering.checked_sub(self.rows) {
            Some(column) => &self.columns[column][..],
            None => &slack,
        };
        let row = |row: &[f64]| uses.iter().map(|&(i, times)| row[i] * times).sum();
        self.inverse.chunks_exact(self.rows).map(row).collect()
    }

    /// The row that bounds it first; of several the lexicographically smallest.
    fn leaving(&self, direction: &[f64]) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (row, _) in direction.iter().enumerate().filter(|(_, d)| **d > EPSILON) {
            if best.is_none_or(|best| self.before(direction, row, best)) {
                best = Some(row);
            }
        }
        best
    }

    /// Whether row `a` of values and inverse, divided by its direction, is smaller than row `b`.
    fn before(&self, direction: &[f64], a: usize, b: usize) -> bool {
        let inverse = |row: usize| &self.inverse[row * self.rows..][..self.rows];
        let pairs = [(self.values[a], self.values[b])].into_iter();
        let mut pairs = pairs.chain(inverse(a).iter().copied().zip(inverse(b).iter().copied()));
        let difference = pairs.find_map(|(x, y)| {
            let difference = x / direction[a] - y / direction[b];
            (difference.abs() > EPSILON).then_some(difference)
        });
        difference.is_some_and(|difference| difference < 0.0)
    }

    fn exchange(&mut self, entering: usize, gain: f64, row: usize, direction: &[f64]) {
        let pivot = direction[row];
        let mut pivot_row = self.inverse[row * self.rows..][..self.rows].to_vec();
        pivot_row.iter_mut().for_each(|entry| *entry /= pivot);
        let value = self.values[row] / pivot;
        for (i, &times) in direction.iter().enumerate().filter(|(_, d)| **d != 0.0) {
            self.values[i] -= times * value;
            let entries = self.inverse[i * self.rows..][..self.rows].iter_mut();
            entries.zip(&pivot_row).for_each(|(entry, pivot)| *entry -= times * pivot);
        }
        self.prices.iter_mut().zip(&pivot_row).for_each(|(price, pivot)| *price += gain * pivot);
        self.inverse[row * self.rows..][..self.rows].copy_from_slice(&pivot_row);
        self.values[row] = value;
        self.basis[row] = entering;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_that_share_in_pairs_get_half_each() {
        // Each two columns share one capacity: best is a half of each, 1.5 in all, which no whole numbers reach.
        let mut packing = Packing::new(&[1.0, 1.0, 1.0]);
        for (a, b) in [(0, 1), (1, 2), (0, 2)] {
            packing.add(vec![(a, 1.0), (b, 1.0)]);
        }
        packing.solve(100);
        assert!((packing.total() - 1.5).abs() < 1e-12, "{:?}", packing.rates());
        assert!(packing.prices().all(|price| (price - 0.5).abs() < 1e-12));
    }

    #[test]
    fn columns_that_come_later_improve_it() {
        let mut packing = Packing::new(&[4.0, 6.0]);
        packing.add(vec![(0, 2.0), (1, 1.0)]);
        packing.solve(100);
        assert!((packing.total() - 2.0).abs() < 1e-12);
        packing.add(vec![(1, 1.0)]);
        packing.solve(100);
        assert!((packing.total() - 6.0).abs() < 1e-12, "{:?}", packing.rates());
    }
}
