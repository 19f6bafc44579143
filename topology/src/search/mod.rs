//! Rings and trees inside a host, and rings through several hosts.
//!
//! The problem, exactly. Given are devices (GPUs, or NUMA nodes for ranks without one) and directed links with
//! capacities: links are full duplex, what a switch moves inside is no limit, a link between sockets is one in
//! each direction. A *ring* is a cyclic order of all devices with a route (`routes`) from each to the
//! next. A *channel* is a ring with a rate. For every link, the sum over all channels of rate times how often the
//! ring uses the link must not exceed its capacity. [`rings`] finds the channels whose rates have the
//! greatest sum: a large all-reduce of n devices over them runs at sum * n / (2 (n - 1)) bytes a second.
//!
//! That is a linear program with a column for each ring, solved exactly for up to about 16 devices and
//! otherwise as far as a fixed amount of work gets; every answer comes with an upper bound. Nothing depends
//! on time, on chance or on the machine: the same graph gives the same rings everywhere.
//!
//! - `routes`: the ways between two devices, and what they share.
//! - `channels`: the program; `packing` solves it, `cycle` finds the cheapest ring, `cut` bounds it, `few`
//!   makes few channels of it. `greedy` is where it begins, and what is taken where it is too large.
//! - `single`, `tree`: the best ring alone, the best tree alone.
//! - `nics`, `cluster`: which port serves which device, and rings through all hosts (`inside` of each).
//! - `explain`: all that in words.

mod channels;
mod cluster;
mod cut;
mod cycle;
mod explain;
mod few;
mod greedy;
mod inside;
mod nics;
mod packing;
mod routes;
mod single;
mod tree;

use std::collections::BTreeSet;

use serde::Serialize;

pub use cluster::{Cluster, ClusterChannel, ClusterPlan, HostGraph, HostPart, cluster_plan};
pub use explain::{explain_cluster, explain_limits, explain_rings, explain_tree};
pub use nics::{NicAssignment, assign_nics};
pub use tree::{Tree, best_tree};

use crate::error::Error;
use crate::graph::{EdgeId, Graph, NodeId};
use routes::Routes;

/// A ring, and what of it is used at which rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Channel {
    /// Places in the list of devices, from 0 on, each once.
    pub order: Vec<usize>,
    /// The links from each device of `order` to the next one, from the last to the first. Links between the
    /// same two nodes follow each other; they are used side by side, each by its part of their capacity.
    pub hops: Vec<Vec<EdgeId>>,
    /// Bytes a second that may go from each device to the next.
    pub rate_bytes_per_s: f64,
}

/// The channels that together carry most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RingSet {
    /// What the orders speak of.
    pub devices: Vec<NodeId>,
    /// The fastest first. Empty for fewer than two devices, which have nothing to send.
    pub channels: Vec<Channel>,
    /// Sum of the channels' rates.
    pub total_bytes_per_s: f64,
    /// What no set of channels can exceed.
    pub bound_bytes_per_s: f64,
    /// The links that bound the total: all rings go through them, or they are what more is worth
    /// most of.
    pub limits: Vec<EdgeId>,
    /// The best ring alone: of those whose rate is the greatest when nothing else runs, the one that
    /// occupies links least. It need not be one of the channels.
    pub single: Option<Channel>,
}

impl RingSet {
    /// How far the total may be from the best: 0.02 is 2 %.
    pub fn gap(&self) -> f64 {
        if self.bound_bytes_per_s > 0.0 {
            (1.0 - self.total_bytes_per_s / self.bound_bytes_per_s).max(0.0)
        } else {
            0.0
        }
    }

    /// Bytes a second of a large all-reduce over all channels.
    pub fn all_reduce_bytes_per_s(&self) -> f64 {
        let count = self.devices.len() as f64;
        self.total_bytes_per_s * count / (2.0 * (count - 1.0)).max(1.0)
    }
}

/// The rings through all of these devices that together carry most.
///
/// Takes mostly less than a millisecond for 8 devices, less than 100 ms for 16, and less than a second for any number
/// that a host has.
///
/// # Errors
/// If a device is none of the graph's nodes or is named twice, or if no ring leads through all of them.
pub fn rings(graph: &Graph, devices: &[NodeId]) -> Result<RingSet, Error> {
    let routes = checked_routes(graph, devices)?;
    if devices.len() < 2 {
        return Ok(RingSet {
            devices: devices.to_vec(),
            channels: Vec::new(),
            total_bytes_per_s: 0.0,
            bound_bytes_per_s: 0.0,
            limits: Vec::new(),
            single: None,
        });
    }
    let groups: Vec<_> = devices.iter().map(|device| vec![*device]).collect();
    let cut = cut::narrowest(graph, &groups);
    let bound = cut.as_ref().map_or(f64::INFINITY, |cut| cut.capacity);
    let mut work = 0;
    let Some(optimum) = channels::optimum(&routes, bound, &mut work) else {
        return Err(no_ring(graph, devices, &routes));
    };
    let few = few::few(&routes, &optimum, &mut work);
    let total = few.iter().map(|(_, rate)| rate).sum();
    let (single, rate) = single::best(&routes, &optimum.rings);
    let limits = match cut {
        Some(cut) if total >= cut.capacity * (1.0 - 1e-6) => cut.edges,
        _ => dear(&routes, &optimum.prices),
    };
    Ok(RingSet {
        devices: devices.to_vec(),
        channels: few.iter().map(|(ring, rate)| channel(&routes, ring, *rate)).collect(),
        total_bytes_per_s: total,
        bound_bytes_per_s: optimum.bound.max(total),
        limits,
        single: Some(channel(&routes, &single, rate)),
    })
}

/// What the narrowest cut between two of these devices lets through, which no rings can exceed. Much quicker than
/// [`rings`].
pub(crate) fn narrowest_cut_bytes_per_s(graph: &Graph, devices: &[NodeId]) -> f64 {
    let groups: Vec<_> = devices.iter().map(|device| vec![*device]).collect();
    cut::narrowest(graph, &groups).map_or(f64::INFINITY, |cut| cut.capacity)
}

/// The links of a hop, and which part of what crosses it each carries: 1 but for links side by side.
fn parts<'a>(graph: &'a Graph, hop: &'a [EdgeId]) -> impl Iterator<Item = (EdgeId, f64)> + 'a {
    hop.iter().map(|&id| {
        let edge = graph.edge(id);
        let beside = hop.iter().map(|&other| graph.edge(other));
        let beside = beside.filter(|other| (other.from, other.to) == (edge.from, edge.to));
        let together: f64 = beside.map(|other| other.bandwidth_bytes_per_s).sum();
        (id, edge.bandwidth_bytes_per_s / together)
    })
}

fn channel(routes: &Routes, ring: &channels::Ring, rate: f64) -> Channel {
    let hops = ring.hops(routes).map(|(_, _, route)| route.edges.clone()).collect();
    Channel { order: ring.order.clone(), hops, rate_bytes_per_s: rate }
}

/// The constraints that make up all but a hundredth of the worth.
fn dear(routes: &Routes, prices: &[f64]) -> Vec<EdgeId> {
    let worth = prices.iter().zip(&routes.constraints).map(|(price, c)| price * c.capacity);
    let whole: f64 = worth.clone().sum();
    let many = routes.constraints.len() as f64;
    let worthy = worth.zip(&routes.constraints).filter(|(worth, _)| *worth * 100.0 * many > whole);
    let edges: BTreeSet<EdgeId> = worthy.flat_map(|(_, c)| c.edges.iter().copied()).collect();
    edges.into_iter().collect()
}

/// The routes between devices that are nodes of the graph, each once.
fn checked_routes(graph: &Graph, devices: &[NodeId]) -> Result<Routes, Error> {
    let mut seen = BTreeSet::new();
    for &device in devices {
        if device.0 as usize >= graph.nodes.len() {
            return Err(Error::NoSuchNode { node: device.0, nodes: graph.nodes.len() });
        }
        if !seen.insert(device) {
            return Err(Error::DeviceTwice { device: graph.node(device).name.clone() });
        }
    }
    Ok(Routes::new(graph, devices))
}

fn no_ring(graph: &Graph, devices: &[NodeId], routes: &Routes) -> Error {
    let count = devices.len();
    let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
    let missing = pairs
        .filter(|(from, to)| from != to)
        .find(|(from, to)| routes.between(*from, *to).is_empty());
    let name = |device: usize| graph.node(devices[device]).name.clone();
    match missing {
        Some((from, to)) => Error::NoWay { from: name(from), to: name(to) },
        None => Error::NoRing { devices: count },
    }
}
