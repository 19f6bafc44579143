//! `ringtree sim --topology`: predicts what a collective takes on machines that files describe, by the rings,
//! trees and ways of their topology.
//!
//! The model: time = latency + bytes / bandwidth, without any cost of software.
//!
//! - *ring*: all channels through all ranks, each as fast as the search found; every byte of the buffer crosses
//!   every hop as often as the collective needs. Its latency is that of all hops that follow one another.
//! - *tree*: inside each host the best tree; between hosts two binary trees of which every host is inside one
//!   and a leaf of the other (Sanders, Speck, Traeff 2009), so that a host sends an all-reduce's buffer twice.
//! - *direct*: every rank sends each block to whom it is for (`flows`).

use std::path::PathBuf;

use ringtree_plan::Collective;
use ringtree_topology::Machine;
use ringtree_topology::search::{Cluster, ClusterPlan, HostGraph, Tree, best_tree, explain_limits};
use serde::Serialize;

use super::{SimArguments, SimError, flows};
use crate::bench::bus_factor;
use crate::topo::{TopoError, host_name, read_machine, through};
use crate::words::counted;

/// More hosts are not planned in a few seconds.
const MOST_HOSTS: usize = 256;

/// What is predicted, and on which hosts.
#[derive(Debug, Serialize)]
struct Prediction {
    collective: &'static str,
    bytes: u64,
    ranks: usize,
    hosts: Vec<Host>,
    /// Of all channels through all ranks.
    rings_bytes_per_s: f64,
    channels: usize,
    /// The fastest first.
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Host {
    name: String,
    ranks: usize,
}

/// What is predicted of one algorithm.
#[derive(Debug, Serialize)]
struct Row {
    algorithm: &'static str,
    time_us: f64,
    /// The part of it that does not depend on bytes.
    latency_us: f64,
    #[serde(rename = "algbw_GBps")]
    algbw_gbps: f64,
    #[serde(rename = "busbw_GBps")]
    busbw_gbps: f64,
    limited_by: String,
}

/// What an algorithm takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    pub latency_ns: f64,
    pub transfer_s: f64,
    pub limited_by: String,
}

/// Predicts what was asked for.
pub(super) fn predict(arguments: &SimArguments) -> Result<String, SimError> {
    let machines = machines(&arguments.topology, arguments.hosts)?;
    let (cluster, plan) = through(&machines)?;
    let collective = arguments.collective.with_root(0);
    let bytes = if collective == Collective::Barrier { 0 } else { arguments.bytes };
    let ranks = cluster.hosts.iter().map(|host| host.devices.len()).sum();
    let model = Model { cluster: &cluster, plan: &plan, ranks };
    let algorithms = [
        ("ring", model.ring(collective, bytes as f64)),
        ("tree", model.tree(collective, bytes as f64)?),
        ("direct", flows::direct(&cluster, &plan, collective, bytes as f64)),
    ];
    let rows = algorithms.into_iter().filter_map(|(name, taken)| Some((name, taken?)));
    let mut rows: Vec<Row> =
        rows.map(|(name, taken)| row(name, taken, collective, bytes, ranks)).collect();
    rows.sort_by(|a, b| a.time_us.total_cmp(&b.time_us));
    let hosts = cluster.hosts.iter();
    let prediction = Prediction {
        collective: collective.name(),
        bytes,
        ranks,
        hosts: hosts
            .map(|host| Host { name: host.name.clone(), ranks: host.devices.len() })
            .collect(),
        rings_bytes_per_s: plan.total_bytes_per_s,
        channels: plan.channels.len(),
        rows,
    };
    match arguments.json {
        true => serde_json::to_string_pretty(&prediction)
            .map(|document| document + "\n")
            .map_err(SimError::Print),
        false => Ok(prediction.table()),
    }
}

/// Each file is a host; one file with `--hosts` is so many.
fn machines(files: &[PathBuf], hosts: Option<u32>) -> Result<Vec<(String, Machine)>, SimError> {
    let hosts = hosts.map_or(files.len(), |hosts| hosts as usize);
    if hosts != files.len() && files.len() != 1 {
        return Err(SimError::Files { hosts, files: files.len() });
    }
    if hosts > MOST_HOSTS {
        return Err(SimError::TooManyHosts { hosts, most: MOST_HOSTS });
    }
    let mut machines = Vec::new();
    for path in files {
        machines.push((host_name(path), read_machine(path)?));
    }
    Ok(machines.into_iter().cycle().take(hosts).collect())
}

fn row(
    algorithm: &'static str,
    taken: Taken,
    collective: Collective,
    bytes: u64,
    ranks: usize,
) -> Row {
    let latency_us = taken.latency_ns / 1e3;
    let time_us = latency_us + taken.transfer_s * 1e6;
    let algbw_gbps = if time_us > 0.0 { bytes as f64 / time_us / 1e3 } else { 0.0 };
    let busbw_gbps = algbw_gbps * bus_factor(collective, ranks as u32);
    let limited_by = taken.limited_by;
    Row { algorithm, time_us, latency_us, algbw_gbps, busbw_gbps, limited_by }
}

struct Model<'a> {
    cluster: &'a Cluster,
    plan: &'a ClusterPlan,
    ranks: usize,
}

impl Model<'_> {
    fn ring(&self, collective: Collective, bytes: f64) -> Option<Taken> {
        let ranks = self.ranks as f64;
        let part = (ranks - 1.0) / ranks;
        // How often the buffer goes round.
        let (rounds, hops) = match collective {
            Collective::AllReduce => (2.0 * part, 2.0 * (ranks - 1.0)),
            Collective::AllGather | Collective::ReduceScatter => (part, ranks - 1.0),
            Collective::Broadcast { .. } | Collective::Reduce { .. } => (1.0, ranks - 1.0),
            _ => return None,
        };
        if self.ranks < 2 {
            return Some(Taken::default());
        }
        let limited_by = match &self.plan.limit {
            Some((host, edges)) => {
                self.at(*host, &explain_limits(&self.cluster.hosts[*host].graph, edges))
            }
            None => String::new(),
        };
        let transfer_s = rounds * bytes / self.plan.total_bytes_per_s;
        Some(Taken { latency_ns: hops * self.hop_ns(), transfer_s, limited_by })
    }

    /// The mean latency of a hop of the slowest channel.
    fn hop_ns(&self) -> f64 {
        let channels = self.plan.channels.iter().map(|channel| {
            let parts = channel.parts.iter().map(|part| {
                let graph = &self.cluster.hosts[part.host].graph;
                part.hops.iter().map(|hop| flows::latency_ns(graph, hop)).sum::<u64>()
            });
            parts.sum::<u64>()
        });
        channels.max().unwrap_or(0) as f64 / self.ranks as f64
    }

    fn tree(&self, collective: Collective, bytes: f64) -> Result<Option<Taken>, SimError> {
        // How often a host sends the buffer to other hosts, and the way is gone.
        let (sent, ways) = match collective {
            Collective::AllReduce => (2.0, 2.0),
            Collective::Broadcast { .. } | Collective::Reduce { .. } => (1.0, 1.0),
            Collective::Barrier => (0.0, 2.0),
            _ => return Ok(None),
        };
        let mut slowest = Taken::default();
        let (mut inside_ns, mut between_ns) = (0, 0);
        for (number, host) in self.cluster.hosts.iter().enumerate() {
            let tree = best_tree(&host.graph, &host.devices).map_err(TopoError::from)?;
            if tree.rate_bytes_per_s > 0.0 {
                let limit = self.at(number, "the best tree inside");
                slower(&mut slowest, bytes / tree.rate_bytes_per_s, limit);
            }
            let depths = (0..host.devices.len()).map(|device| depth_ns(host, &tree, device));
            inside_ns = inside_ns.max(depths.max().unwrap_or(0));
            if self.cluster.hosts.len() > 1 {
                let nics = &self.plan.nics[number];
                let together: f64 = nics.share_bytes_per_s.iter().sum();
                slower(
                    &mut slowest,
                    sent * bytes / together,
                    self.at(number, "its ports together"),
                );
                between_ns = between_ns.max(flows::to_network_ns(host, nics, 0));
            }
        }
        // Out of one host and into another, from level to level.
        let levels = f64::from(self.cluster.hosts.len().max(1).ilog2());
        slowest.latency_ns = ways * (inside_ns as f64 + levels * 2.0 * between_ns as f64);
        Ok(Some(slowest))
    }

    /// On several hosts with the one it is about.
    fn at(&self, host: usize, what: &str) -> String {
        match self.cluster.hosts.len() {
            1 => what.to_owned(),
            _ => format!("{}: {what}", self.cluster.hosts[host].name),
        }
    }
}

/// From a device up to the root.
fn depth_ns(host: &HostGraph, tree: &Tree, device: usize) -> u64 {
    let (mut at, mut sum) = (device, 0);
    while let Some(parent) = tree.parents[at] {
        sum += flows::latency_ns(&host.graph, &tree.up[at]);
        at = parent;
    }
    sum
}

/// What takes longest counts.
pub(super) fn slower(slowest: &mut Taken, transfer_s: f64, limited_by: String) {
    if transfer_s > slowest.transfer_s {
        (slowest.transfer_s, slowest.limited_by) = (transfer_s, limited_by);
    }
}

impl Prediction {
    fn table(&self) -> String {
        let Prediction { collective, bytes, ranks, hosts, channels, rows, .. } = self;
        let (ranks, on) = (counted(*ranks as u64, "rank"), counted(hosts.len() as u64, "host"));
        let mut text =
            format!("# {collective} of {bytes} bytes among {ranks} on {on}, predicted\n");
        for alike in hosts.chunk_by(|a, b| (&a.name, a.ranks) == (&b.name, b.ranks)) {
            let Host { name, ranks } = &alike[0];
            let times = if alike.len() > 1 { format!("{} x ", alike.len()) } else { String::new() };
            text += &format!("# {times}{name} with {}\n", counted(*ranks as u64, "rank"));
        }
        text += &format!(
            "# rings through all of them: {:.2} GB/s over {}\n#\n",
            self.rings_bytes_per_s / 1e9,
            counted(*channels as u64, "channel")
        );
        text += &format!(
            "# {:<10} {:>14} {:>10} {:>8} {:>8}  {}\n",
            "algorithm", "time", "latency", "algbw", "busbw", "limited by"
        );
        text += &format!(
            "# {:<10} {:>14} {:>10} {:>8} {:>8}\n",
            "", "(us)", "(us)", "(GB/s)", "(GB/s)"
        );
        for Row { algorithm, time_us, latency_us, algbw_gbps, busbw_gbps, limited_by } in rows {
            let row = format!(
                "  {algorithm:<10} {time_us:>14.2} {latency_us:>10.2} {algbw_gbps:>8.2} \
                 {busbw_gbps:>8.2}  {limited_by}"
            );
            text += row.trim_end();
            text.push('\n');
        }
        text
    }
}
