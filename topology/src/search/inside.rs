//! What several rings do inside one host of several: each comes in by a port, goes through all devices and
//! leaves by a port.
//!
//! The ways of all rings are chosen against each other: again and again one is taken out and put back where links
//! are least loaded (negotiated congestion, McMurchie and Ebeling, 1995). A way is a cycle through the devices
//! and one more, the network.

use super::cycle::{self, Costs, Table};
use super::nics::NicAssignment;
use super::no_ring;
use super::routes::{Route, Routes};
use crate::error::Error;
use crate::graph::{EdgeId, Graph, NodeId};

/// How often all ways are chosen anew.
const ROUNDS: usize = 16;

/// How much dearer a link becomes that would be loaded twice.
const HASTE: f64 = 32.0;

/// One host; its devices are the routes' endpoints 0 to n - 1, its ports those after them.
pub(super) struct Inside {
    devices: Vec<NodeId>,
    ports: Vec<NodeId>,
    routes: Routes,
    /// For each channel the places of the ports by which it comes in and leaves.
    ports_of: Vec<[usize; 2]>,
    /// What each channel gets at its ports at most.
    wishes: Vec<f64>,
    /// For each channel, once they are chosen.
    ways: Vec<Way>,
    /// How much of each constraint all channels want.
    loads: Vec<f64>,
    /// How dear each constraint has become by having been overloaded.
    history: Vec<f64>,
}

/// Through a host: the devices in order, and the routes to each and from the last to the network.
#[derive(Clone)]
struct Way {
    order: Vec<usize>,
    routes: Vec<Route>,
}

impl Inside {
    /// Of channels that come in and leave by these ports (places in `nics.ports`).
    pub fn new(graph: &Graph, nics: &NicAssignment, ports_of: Vec<[usize; 2]>) -> Inside {
        let (devices, ports) = (nics.devices.clone(), nics.ports.clone());
        let routes = Routes::new(graph, &[&devices[..], &ports].concat());
        let reaches: Vec<_> = (0..ports.len())
            .map(|port| reach(&routes, devices.len(), devices.len() + port))
            .collect();
        let users = |end: usize, port: usize| {
            ports_of.iter().filter(|used| used[end] == port).count() as f64
        };
        let share = |end: usize, port: usize| {
            let (alone, together) = reaches[port];
            alone.min(together / users(end, port))
        };
        let wish = |&[come, go]: &[usize; 2]| share(0, come).min(share(1, go));
        let wishes = ports_of.iter().map(wish).collect();
        let loads = vec![0.0; routes.constraints.len()];
        let (ways, history) = (Vec::new(), loads.clone());
        Inside { devices, ports, routes, ports_of, wishes, ways, loads, history }
    }

    /// What a channel can get at most, by its ports.
    pub fn wish(&self, channel: usize) -> f64 {
        self.wishes[channel]
    }

    /// Chooses all ways, if each channel goes at its wish.
    ///
    /// # Errors
    /// If no way leads through all devices.
    pub fn choose(&mut self, graph: &Graph, wishes: &[f64]) -> Result<(), Error> {
        let mut table = Table::default();
        let mut best: Option<(f64, Vec<Way>, Vec<f64>)> = None;
        for round in 0..ROUNDS {
            for (channel, &wish) in wishes.iter().enumerate() {
                if round > 0 {
                    let old = self.ways[channel].clone();
                    self.load(&old, -wish);
                }
                let Some(way) = self.lightest(channel, wish, &mut table) else {
                    return Err(no_ring(graph, &self.devices, &self.routes));
                };
                self.load(&way, wish);
                if round == 0 {
                    self.ways.push(way);
                } else {
                    self.ways[channel] = way;
                }
            }
            let part: f64 = (0..wishes.len()).map(|channel| self.rate(channel, wishes)).sum();
            if best.as_ref().is_none_or(|(most, ..)| part > most * (1.0 + 1e-9)) {
                best = Some((part, self.ways.clone(), self.loads.clone()));
            }
            if part >= wishes.iter().sum::<f64>() * (1.0 - 1e-9) {
                break;
            }
            for ((load, c), history) in
                self.loads.iter().zip(&self.routes.constraints).zip(&mut self.history)
            {
                *history += 4.0 * (load / c.capacity - 1.0).max(0.0);
            }
        }
        if let Some((_, ways, loads)) = best {
            (self.ways, self.loads) = (ways, loads);
        }
        Ok(())
    }

    /// What a channel gets if all want what they wish and every overloaded link is divided.
    pub fn rate(&self, channel: usize, wishes: &[f64]) -> f64 {
        let used = self.ways[channel].routes.iter().flat_map(|route| &route.constraints);
        let parts = used.map(|&c| self.routes.constraints[c].capacity / self.loads[c]);
        wishes[channel] * parts.fold(1.0, f64::min)
    }

    /// The links that are loaded most.
    pub fn most_loaded(&self) -> Vec<EdgeId> {
        let loads = self.loads.iter().zip(&self.routes.constraints);
        let parts = loads.map(|(load, c)| (load / c.capacity, c));
        let most = parts.clone().map(|(part, _)| part).fold(0.0, f64::max);
        let full = parts.filter(|(part, _)| *part >= most * (1.0 - 1e-9));
        full.flat_map(|(_, c)| c.edges.iter().copied()).collect()
    }

    /// Places of the devices in order, and the links to each of them and to the port after them.
    pub fn way(&self, channel: usize) -> (&[usize], Vec<Vec<EdgeId>>) {
        let way = &self.ways[channel];
        (&way.order, way.routes.iter().map(|route| route.edges.clone()).collect())
    }

    /// By which a channel comes in and leaves.
    pub fn ports(&self, channel: usize) -> [NodeId; 2] {
        self.ports_of[channel].map(|port| self.ports[port])
    }

    fn load(&mut self, way: &Way, rate: f64) {
        let used = way.routes.iter().flat_map(|route| &route.constraints);
        used.for_each(|&c| self.loads[c] += rate);
    }

    /// The way of a channel that goes where links are least loaded.
    fn lightest(&self, channel: usize, wish: f64, table: &mut Table) -> Option<Way> {
        let prices = self.loads.iter().zip(&self.routes.constraints).zip(&self.history);
        let prices = prices.map(|((load, constraint), history)| {
            let over = ((load + wish) / constraint.capacity - 1.0).max(0.0);
            (1.0 + history) * (1.0 + HASTE * over) / constraint.capacity
        });
        let prices: Vec<f64> = prices.collect();
        let count = self.devices.len();
        let [come, go] = self.ports_of[channel];
        // Place 0 of the cycle is the network.
        let cheapest = |from: usize, to: usize| {
            let from = if from == 0 { count + come } else { from - 1 };
            let to = if to == 0 { count + go } else { to - 1 };
            let cost = |route: &Route| route.constraints.iter().map(|&c| prices[c]).sum::<f64>();
            let priced = self.routes.between(from, to).iter().map(|route| (cost(route), route));
            priced.min_by(|(a, _), (b, _)| a.total_cmp(b))
        };
        let costs = Costs::new(count + 1, |from, to| {
            cheapest(from, to).map_or(f64::INFINITY, |(cost, _)| cost)
        });
        let cycle = if count < cycle::MOST_EXACT {
            table.cheapest(&costs)?
        } else {
            let cheap = cycle::cheap(&costs).into_iter().map(|order| (costs.of(&order), order));
            cheap.min_by(|(a, _), (b, _)| a.total_cmp(b))?.1
        };
        let next = cycle.iter().skip(1).chain(cycle.first());
        let routes = cycle.iter().zip(next).filter_map(|(&a, &b)| Some(cheapest(a, b)?.1.clone()));
        Some(Way { routes: routes.collect(), order: cycle[1..].iter().map(|d| d - 1).collect() })
    }
}

/// What one route between a port and a device can carry, and what all of them together can: what every one of
/// them uses limits both.
fn reach(routes: &Routes, devices: usize, port: usize) -> (f64, f64) {
    let all = || (0..devices).flat_map(|device| routes.between(device, port));
    let alone = all().map(|route| routes.bottleneck(route)).fold(0.0, f64::max);
    let common = (0..routes.constraints.len())
        .filter(|c| all().all(|route| route.constraints.contains(c)))
        .map(|c| routes.constraints[c].capacity);
    (alone, common.fold(alone * devices as f64, f64::min))
}
