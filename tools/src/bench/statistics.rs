//! What is said about the times of many iterations, and how many iterations there are.

use serde::Serialize;

/// Iterations of one loop at most, however short they are.
const MAX_ITERATIONS: u32 = 3000;
/// And at least, however long: fewer have no median worth the name.
const MIN_ITERATIONS: u32 = 4;

/// The times of one case, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// How many times the call was made in each loop.
    pub iterations: u32,
    /// Median, with a barrier before each call.
    pub median_us: f64,
    /// The shortest of them.
    pub min_us: f64,
    /// 95 of 100 were shorter.
    pub p95_us: f64,
    /// Mean of calls made back to back.
    pub loop_us: f64,
}

impl Timing {
    /// Sums up the times of single calls (at least one) and the mean of the back-to-back loop.
    pub fn new(mut single_us: Vec<f64>, loop_us: f64) -> Timing {
        single_us.sort_by(f64::total_cmp);
        let count = single_us.len();
        let middle = count / 2;
        let median_us = match count % 2 {
            1 => single_us[middle],
            _ => (single_us[middle - 1] + single_us[middle]) / 2.0,
        };
        Timing {
            iterations: count as u32,
            median_us,
            min_us: single_us[0],
            p95_us: single_us[count * 95 / 100],
            loop_us,
        }
    }
}

/// How the times of single calls are spread, and who was last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Half of the calls took no longer.
    pub p50_us: f64,
    /// 90 of 100 took no longer.
    pub p90_us: f64,
    /// 99 of 100 took no longer.
    pub p99_us: f64,
    /// 999 of 1000 took no longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// For each rank, how often it took longest.
    pub last: Vec<u32>,
}

impl Distribution {
    /// Of calls of `ranks`, with all times of one rank after those of another (at least one each). Also
    /// returns the slowest rank's time of each call.
    pub fn of(times_us: &[f64], ranks: usize) -> (Distribution, Vec<f64>) {
        let calls = times_us.len() / ranks;
        let mut last = vec![0; ranks];
        let slowest_us: Vec<f64> = (0..calls)
            .map(|call| {
                let time_us = |rank: &usize| times_us[rank * calls + call];
                let slowest =
                    (0..ranks).max_by(|a, b| time_us(a).total_cmp(&time_us(b))).unwrap_or(0);
                last[slowest] += 1;
                time_us(&slowest)
            })
            .collect();
        let mut sorted_us = slowest_us.clone();
        sorted_us.sort_by(f64::total_cmp);
        let within = |share: f64| {
            let rank = (share * calls as f64).ceil() as usize;
            (sorted_us[rank.clamp(1, calls) - 1] * 100.0).round() / 100.0
        };
        let distribution = Distribution {
            p50_us: within(0.5),
            p90_us: within(0.9),
            p99_us: within(0.99),
            p999_us: within(0.999),
            max_us: within(1.0),
            last,
        };
        (distribution, slowest_us)
    }
}

/// Calls before anything is measured.
pub fn warm_up_calls(bytes: u64) -> u32 {
    match bytes {
        0..=65_536 => 50,
        65_537..=1_048_576 => 10,
        _ => 2,
    }
}

/// How many iterations to add to those that are done, by the time that they took; `None` when the
/// loop has had its time. A batch is small beside what is known, since the first iterations may
/// have met a quieter machine than the next.
pub fn next_batch(done: u32, spent_us: f64, limit_us: f64) -> Option<u32> {
    if done == 0 {
        return Some(MIN_ITERATIONS);
    }
    if spent_us >= limit_us || done >= MAX_ITERATIONS {
        return None;
    }
    let mean_us = spent_us.max(0.1) / f64::from(done);
    let wanted = ((limit_us - spent_us) / mean_us) as u32;
    Some(wanted.clamp(1, 4 * done).min(MAX_ITERATIONS - done))
}

/// 1e9 bytes a second; 0 for no bytes.
pub fn algorithm_bandwidth(bytes: u64, time_us: f64) -> f64 {
    if bytes == 0 { 0.0 } else { bytes as f64 / time_us / 1000.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Timing::new(vec![3.0, 1.0, 2.0], 9.0);
        assert_eq!((odd.median_us, odd.min_us, odd.loop_us, odd.iterations), (2.0, 1.0, 9.0, 3));
        let even = Timing::new(vec![4.0, 1.0, 3.0, 2.0], 0.0);
        assert_eq!((even.median_us, even.p95_us), (2.5, 4.0));
        let hundred = Timing::new((0..100).map(f64::from).collect(), 0.0);
        assert_eq!(hundred.p95_us, 95.0);
    }

    #[test]
    fn a_distribution_knows_who_was_last() {
        let of_rank_0 = [1.0, 5.0, 1.0, 1.0];
        let of_rank_1 = [2.0, 1.0, 3.0, 2.0];
        let times_us = [of_rank_0, of_rank_1].concat();
        let (distribution, slowest_us) = Distribution::of(&times_us, 2);
        assert_eq!(slowest_us, [2.0, 5.0, 3.0, 2.0]);
        assert_eq!(distribution.last, [1, 3]);
        assert_eq!((distribution.p50_us, distribution.p90_us), (2.0, 5.0));
        let thousand: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        let (distribution, _) = Distribution::of(&thousand, 1);
        let Distribution { p50_us, p99_us, p999_us, max_us, .. } = distribution;
        assert_eq!((p50_us, p99_us, p999_us, max_us), (500.0, 990.0, 999.0, 1000.0));
    }

    #[test]
    fn batches_fill_the_time_within_limits() {
        let fill = |iteration_us: f64, limit_us| {
            let mut done = 0;
            while let Some(more) = next_batch(done, iteration_us * f64::from(done), limit_us) {
                done += more;
            }
            done
        };
        assert_eq!(fill(500.0, 50_000.0), 100);
        assert_eq!(fill(0.0, 50_000.0), MAX_ITERATIONS);
        assert_eq!(fill(1e9, 50_000.0), MIN_ITERATIONS);
    }

    #[test]
    fn bandwidth_is_in_units_of_1e9() {
        assert_eq!(algorithm_bandwidth(4_000_000, 1000.0), 4.0);
        assert_eq!(algorithm_bandwidth(0, 0.0), 0.0);
    }
}
