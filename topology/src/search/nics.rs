//! Which port serves which device: near ones, each device the same number of ports or each port the same
//! number of devices, so that no rank has less of the network than it must.
//!
//! An assignment problem, solved by shortest augmenting paths (Jonker and Volgenant, 1987).

use serde::Serialize;

use super::checked_routes;
use super::routes::{Route, Routes};
use crate::error::Error;
use crate::graph::{EdgeKind, Graph, NodeId, NodeKind};

/// What a step of one kind costs when it comes to who is near: links of PCIe, then between dies, then
/// between sockets, as the path classes PIX, PXB, PHB, SYS have it.
const PCIE_STEP: i64 = 1;
const THROUGH_PROCESSOR: i64 = 20;
const DIE_STEP: i64 = 100;
const SOCKET_STEP: i64 = 400;

/// What it costs if a link on the way carries less than the port, for each time that it would have to be wider.
const NARROW: i64 = 50;

/// What an uneven share costs: more than any distance.
const UNEVEN: i64 = 1_000_000;

/// A port with less than this part of the usual speed is not used: it would carry little, and is there for something
/// else.
const LEAST_SPEED: f64 = 0.5;

/// Which ports are used, and by whom.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NicAssignment {
    /// What is served.
    pub devices: Vec<NodeId>,
    /// Ports that are up and not much slower than most of them are, in the order of their numbers.
    pub ports: Vec<NodeId>,
    /// For each device the places of its ports in `ports`, the nearest first; at least one if there are any.
    pub ports_of: Vec<Vec<usize>>,
    /// For each device what it can send, and receive, when all do so at the same time, in bytes a
    /// second: equal shares of ports, and of the links before them.
    pub share_bytes_per_s: Vec<f64>,
}

impl NicAssignment {
    /// Places of the devices that a port serves.
    pub fn devices_of(&self, port: usize) -> Vec<usize> {
        let served = self.ports_of.iter().enumerate();
        served.filter(|(_, ports)| ports.contains(&port)).map(|(device, _)| device).collect()
    }

    /// The rails of the host: ports that serve the same devices are one. For each the places of its ports in
    /// `ports`.
    pub fn rails(&self) -> Vec<Vec<usize>> {
        let mut rails: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for port in 0..self.ports.len() {
            let devices = self.devices_of(port);
            match rails.iter_mut().find(|(known, _)| *known == devices) {
                Some((_, ports)) => ports.push(port),
                None => rails.push((devices, vec![port])),
            }
        }
        rails.into_iter().map(|(_, ports)| ports).collect()
    }
}

/// Gives every device of one host its ports. Without ports that can be used, nobody has one.
///
/// # Errors
/// If a device is none of the graph's nodes or is named twice.
pub fn assign_nics(graph: &Graph, devices: &[NodeId]) -> Result<NicAssignment, Error> {
    checked_routes(graph, devices)?;
    let ports = usable_ports(graph, devices);
    let endpoints = [devices, &ports].concat();
    let routes = Routes::new(graph, &endpoints);
    let count = devices.len();
    let cost = |device: usize, port: usize| {
        let route = nearest(graph, &routes, device, count + port);
        route.map_or(UNEVEN / 2, |route| distance(graph, &routes, route))
    };
    let mut ports_of = vec![Vec::new(); count];
    for (device, port) in shared_evenly(count, ports.len(), cost) {
        ports_of[device].push(port);
    }
    for (device, ports) in ports_of.iter_mut().enumerate() {
        ports.sort_by_key(|&port| (cost(device, port), port));
    }
    let share_bytes_per_s = shares(graph, &routes, &ports_of);
    Ok(NicAssignment { devices: devices.to_vec(), ports, ports_of, share_bytes_per_s })
}

/// The nearest of the routes between a device and a port.
pub(super) fn nearest<'a>(
    graph: &Graph,
    routes: &'a Routes,
    from: usize,
    to: usize,
) -> Option<&'a Route> {
    routes.between(from, to).iter().min_by_key(|route| distance(graph, routes, route))
}

/// What a port can carry, in bytes a second; 0 if it is down.
pub(super) fn port_speed(graph: &Graph, port: NodeId) -> f64 {
    let edges = graph.edges.iter().filter(|edge| edge.from == port && edge.kind == EdgeKind::Net);
    edges.map(|edge| edge.bandwidth_bytes_per_s).fold(0.0, f64::max)
}

/// Ports that are up, reach a device and are not much slower than the usual speed.
fn usable_ports(graph: &Graph, devices: &[NodeId]) -> Vec<NodeId> {
    let up = graph.ports().into_iter().filter(|&port| port_speed(graph, port) > 0.0);
    let ports: Vec<NodeId> = up.collect();
    let routes = Routes::new(graph, &[devices, &ports].concat());
    let reaches = |port: usize| {
        let at = devices.len() + port;
        (0..devices.len()).all(|device| {
            !routes.between(device, at).is_empty() && !routes.between(at, device).is_empty()
        })
    };
    let reached = (0..ports.len()).filter(|&port| reaches(port));
    let reached: Vec<_> = reached.map(|port| ports[port]).collect();
    let speeds = reached.iter().map(|&port| port_speed(graph, port));
    let least = LEAST_SPEED * usual_speed(speeds.collect());
    reached.into_iter().filter(|&port| port_speed(graph, port) >= least).collect()
}

/// The speed at which ports carry most together if all that are as fast go at it: so neither a slow port among fast
/// ones counts, nor a single fast one among many. 0 without ports.
fn usual_speed(mut speeds: Vec<f64>) -> f64 {
    speeds.sort_by(|a, b| b.total_cmp(a));
    let together = |place: usize| (place + 1) as f64 * speeds[place];
    let more = |best, place| if together(place) > together(best) { place } else { best };
    (0..speeds.len()).reduce(more).map_or(0.0, |best| speeds[best])
}

/// How far a port is.
fn distance(graph: &Graph, routes: &Routes, route: &Route) -> i64 {
    let steps = route.edges.iter().map(|&id| {
        let edge = graph.edge(id);
        let processor = |node: NodeId| matches!(graph.node(node).kind, NodeKind::Numa(_));
        match edge.kind {
            EdgeKind::Die => DIE_STEP,
            EdgeKind::Socket => SOCKET_STEP,
            EdgeKind::Net => 0,
            _ if processor(edge.to) => PCIE_STEP + THROUGH_PROCESSOR,
            _ => PCIE_STEP,
        }
    });
    let speeds = route.edges.iter().map(|&id| graph.edge(id));
    let speeds = speeds.filter(|edge| edge.kind == EdgeKind::Net);
    let speed = speeds.map(|edge| edge.bandwidth_bytes_per_s).fold(0.0, f64::max);
    let narrow = (speed / routes.bottleneck(route) - 1.0).max(0.0) * NARROW as f64;
    steps.sum::<i64>() + narrow as i64
}

/// Pairs of device and port: each port serves a device, each device has a port, and the shares differ by
/// one at most. Among those, the least cost.
fn shared_evenly(
    devices: usize,
    ports: usize,
    cost: impl Fn(usize, usize) -> i64,
) -> Vec<(usize, usize)> {
    if devices == 0 || ports == 0 {
        return Vec::new();
    }
    // The more numerous ones are given to places of the others; a second place costs more than any distance.
    let (many, few) = (devices.max(ports), devices.min(ports));
    let places = many.div_ceil(few);
    let swapped = ports > devices;
    let costs: Vec<Vec<i64>> = (0..many)
        .map(|a| {
            let place = |place: usize| {
                let (b, turn) = (place % few, (place / few) as i64);
                UNEVEN * turn + if swapped { cost(b, a) } else { cost(a, b) }
            };
            (0..few * places).map(place).collect()
        })
        .collect();
    let given = assign(&costs).into_iter().map(|place| place % few).enumerate();
    given.map(|(a, b)| if swapped { (b, a) } else { (a, b) }).collect()
}

/// For each row a column of its own, so that the sum of costs is the least. No fewer columns than rows.
fn assign(costs: &[Vec<i64>]) -> Vec<usize> {
    let columns = costs.first().map_or(0, Vec::len);
    let (mut row_price, mut column_price) = (vec![0; costs.len()], vec![0; columns]);
    let mut row_of: Vec<Option<usize>> = vec![None; columns];
    for start in 0..costs.len() {
        // The cheapest way from this row to a free column, over columns whose rows move on.
        let mut least = vec![(i64::MAX, None); columns];
        let mut done = vec![false; columns];
        let (mut row, mut last) = (start, None);
        loop {
            let reached = last.map_or(0, |column: usize| least[column].0);
            for column in (0..columns).filter(|&column| !done[column]) {
                let step = costs[row][column] - row_price[row] - column_price[column];
                if reached + step < least[column].0 {
                    least[column] = (reached + step, last);
                }
            }
            let open = (0..columns).filter(|&column| !done[column]);
            let Some(next) = open.min_by_key(|&column| least[column].0) else { break };
            done[next] = true;
            last = Some(next);
            match row_of[next] {
                Some(occupant) => row = occupant,
                None => break,
            }
        }
        let length = last.map_or(0, |column| least[column].0);
        row_price[start] += length;
        for column in (0..columns).filter(|&column| done[column] && Some(column) != last) {
            if let Some(row) = row_of[column] {
                row_price[row] += length - least[column].0;
            }
            column_price[column] -= length - least[column].0;
        }
        while let Some(column) = last {
            let before = least[column].1;
            row_of[column] = before.map_or(Some(start), |before| row_of[before]);
            last = before;
        }
    }
    let mut column_of = vec![0; costs.len()];
    for (column, row) in row_of.iter().enumerate() {
        row.iter().for_each(|&row| column_of[row] = column);
    }
    column_of
}

/// What each device can send when all send: an equal part of each of its ports, less where links before
/// them are overloaded.
fn shares(graph: &Graph, routes: &Routes, ports_of: &[Vec<usize>]) -> Vec<f64> {
    let count = ports_of.len();
    let users = |port: usize| ports_of.iter().filter(|ports| ports.contains(&port)).count() as f64;
    let mut wishes = Vec::new();
    for (device, &port) in
        ports_of.iter().enumerate().flat_map(|(d, ports)| ports.iter().map(move |port| (d, port)))
    {
        if let Some(route) = nearest(graph, routes, device, count + port) {
            let speeds = route.edges.iter().map(|&edge| graph.edge(edge));
            let net = speeds.filter(|edge| edge.kind == EdgeKind::Net);
            let speed = net.map(|edge| edge.bandwidth_bytes_per_s).fold(f64::INFINITY, f64::min);
            let wish = (speed / users(port)).min(routes.bottleneck(route));
            wishes.push((device, route, wish));
        }
    }
    let mut loads = vec![0.0; routes.constraints.len()];
    for (_, route, wish) in &wishes {
        route.constraints.iter().for_each(|&c| loads[c] += wish);
    }
    let mut shares = vec![0.0; count];
    for (device, route, wish) in wishes {
        let fits = route.constraints.iter().map(|&c| routes.constraints[c].capacity / loads[c]);
        shares[device] += wish * fits.fold(1.0, f64::min);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assignment_is_the_cheapest_of_all() {
        let costs = vec![vec![4, 1, 3, 9], vec![2, 0, 5, 9], vec![3, 2, 2, 9]];
        assert_eq!(assign(&costs), [1, 0, 2]);
        let mixed = |row: usize, column: usize| ((row * 37 + column * 101) % 29) as i64;
        let costs: Vec<Vec<i64>> =
            (0..5).map(|row| (0..6).map(|column| mixed(row, column)).collect()).collect();
        let sum: i64 = assign(&costs).iter().enumerate().map(|(row, &c)| costs[row][c]).sum();
        assert_eq!(sum, least(&costs, 0, &mut vec![false; 6]));
    }

    fn least(costs: &[Vec<i64>], row: usize, taken: &mut Vec<bool>) -> i64 {
        if row == costs.len() {
            return 0;
        }
        let mut best = i64::MAX;
        for column in 0..taken.len() {
            if !taken[column] {
                taken[column] = true;
                best = best.min(costs[row][column] + least(costs, row + 1, taken));
                taken[column] = false;
            }
        }
        best
    }

    #[test]
    fn the_usual_speed_is_that_of_most() {
        let usual = |speeds: &[f64]| usual_speed(speeds.to_vec());
        assert_eq!(usual(&[]), 0.0);
        assert_eq!(usual(&[400.0, 400.0, 10.0]), 400.0, "a slow one is for something else");
        assert_eq!(
            usual(&[180.0, 400.0, 180.0, 180.0]),
            180.0,
            "one that is faster changes nothing"
        );
        assert_eq!(usual(&[25.0, 100.0]), 100.0);
    }

    #[test]
    fn shares_are_even_and_near() {
        let far = |device: usize, port: usize| (device as i64 - 2 * port as i64).abs();
        let pairs = shared_evenly(4, 2, far);
        assert_eq!(pairs, [(0, 0), (1, 0), (2, 1), (3, 1)]);
        let pairs = shared_evenly(2, 4, |device, port| far(port, device));
        assert_eq!(pairs, [(0, 0), (0, 1), (1, 2), (1, 3)]);
        assert!(shared_evenly(3, 0, far).is_empty());
    }
}
