//! A table of measured times as text: what a cache keeps, and what rank 0 tells the others. Both are
//! somebody else's words when they are read.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};

use ringtree_plan::{Algorithm, Collective};
use serde::{Deserialize, Serialize};

use super::{Times, Tuned};
use crate::selection::Shape;
use crate::settings::Settings;
use crate::{Costs, NetworkFigures};

/// Raised whenever the text changes, and when calls of another version take other times.
const FORMAT: u32 = 3;

/// A table is some 20 KiB.
pub(crate) const TABLE_LIMIT_BYTES: usize = 256 << 10;

/// Sizes of a collective at most: a step each, no 64-bit number has more.
const SIZES_LIMIT: usize = 64;

/// No call that anyone would wait for takes longer: a day.
const LONGEST_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Among what ranks times were measured. They tell nothing of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredOn {
    /// Members of the communicator.
    pub ranks: u32,
    /// Hosts that they were on.
    pub hosts: u32,
    /// Ranks on the host that had most of them for its processors.
    pub local_ranks: u32,
    /// Processors that they could use.
    pub processors: u32,
    /// Ranks on the host that had fewest of them.
    pub fewest_local_ranks: u32,
    /// Whether buffers were moved into large pages.
    pub large_pages: bool,
    /// What processor rank 0's host had.
    pub processor: String,
    /// How they were linked.
    pub links: Links,
}

/// How ranks are linked, as far as it matters to times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// Over what.
    pub way: Way,
    /// Whether all ranks were threads of one process.
    pub in_one_process: bool,
    /// Rank 0's interface for TCP, if one was named.
    pub interface: Option<String>,
    /// Connections of a TCP link for each pair of interfaces.
    pub sockets: u32,
    /// Whether TCP connections encrypted.
    pub encrypts: bool,
    /// Whether frames had checksums.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checksums: bool,
    /// Rank 0's setting of cross-memory attach.
    pub attach: String,
    /// Whether ranks that share no memory were linked over RDMA, and not over TCP.
    pub rdma: bool,
}

/// Over what ranks are linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Shared memory.
    Shm,
    /// The network.
    Network,
    /// Shared memory inside hosts, the network between them.
    Mixed,
}

/// The whole text.
#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    measured_on: MeasuredOn,
    times: Vec<TimesDocument>,
}

/// Only what tells whether the rest can be understood.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct TimesDocument {
    collective: String,
    sizes_bytes: Vec<u64>,
    by_algorithm: Vec<AlgorithmDocument>,
}

#[derive(Serialize, Deserialize)]
struct AlgorithmDocument {
    algorithm: String,
    times_ns: Vec<u64>,
}

impl Links {
    pub(crate) fn new(settings: &Settings, shape: &Shape, in_one_process: bool) -> Links {
        let way = match settings.transports {
            _ if shape.shared_memory => Way::Shm,
            transports if !transports.allows_shm() => Way::Network,
            _ if shape.hosts == shape.ranks => Way::Network,
            _ => Way::Mixed,
        };
        let Settings { interface, sockets, encrypts, checksums, .. } = settings;
        let (interface, sockets) = (interface.clone(), *sockets);
        let (encrypts, checksums) = (*encrypts, *checksums);
        let attach = settings.attach.to_string();
        let rdma = shape.rdma;
        Links { way, in_one_process, interface, sockets, encrypts, checksums, attach, rdma }
    }
}

impl MeasuredOn {
    /// Just these ranks, on this host.
    pub(crate) fn new(shape: &Shape, links: Links) -> MeasuredOn {
        MeasuredOn {
            ranks: shape.ranks,
            hosts: shape.hosts,
            local_ranks: shape.local_ranks,
            processors: shape.processors,
            fewest_local_ranks: shape.fewest_local_ranks,
            large_pages: shape.large_pages,
            processor: processor(),
            links,
        }
    }

    /// What all ranks know of such a machine, with the default costs.
    pub fn shape(&self) -> Shape {
        Shape {
            ranks: self.ranks,
            hosts: self.hosts,
            shared_memory: self.links.way == Way::Shm,
            rdma: self.links.rdma,
            local_ranks: self.local_ranks,
            processors: self.processors,
            fewest_local_ranks: self.fewest_local_ranks,
            reproducible: false,
            large_pages: self.large_pages,
            costs: Costs::default(),
            network_figures: NetworkFigures::Default,
            order: None,
            tuned: None,
        }
    }

    /// Whether what all ranks know of the machine is the same.
    pub(crate) fn is_like(&self, shape: &Shape) -> bool {
        self.ranks == shape.ranks
            && self.hosts == shape.hosts
            && self.local_ranks == shape.local_ranks
            && self.processors == shape.processors
            && self.fewest_local_ranks == shape.fewest_local_ranks
            && self.large_pages == shape.large_pages
            && (self.links.way == Way::Shm) == shape.shared_memory
            && self.links.rdma == shape.rdma
    }

    /// As it stands in a table.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("numbers and text can be written as JSON")
    }
}

impl Tuned {
    /// The table as text.
    pub(crate) fn encode(&self) -> String {
        let row = |times: &Times| TimesDocument {
            collective: times.collective.name().to_owned(),
            sizes_bytes: times.sizes_bytes.clone(),
            by_algorithm: times
                .by_algorithm
                .iter()
                .map(|(algorithm, times_ns)| AlgorithmDocument {
                    algorithm: algorithm.name().to_owned(),
                    times_ns: times_ns.clone(),
                })
                .collect(),
        };
        let document = Document {
            format: FORMAT,
            measured_on: self.measured_on.clone(),
            times: self.times.iter().map(row).collect(),
        };
        serde_json::to_string_pretty(&document).expect("numbers and text can be written as JSON")
    }

    /// The table that [`Tuned::encode`] made a text of.
    ///
    /// # Errors
    /// Why it is none.
    pub(crate) fn decode(text: &[u8]) -> Result<Tuned, String> {
        if text.len() > TABLE_LIMIT_BYTES {
            return Err(format!("it has more than {TABLE_LIMIT_BYTES} bytes"));
        }
        let damaged = |error: serde_json::Error| format!("it is damaged: {error}");
        let Format { format } = serde_json::from_slice(text).map_err(damaged)?;
        if format != FORMAT {
            return Err(format!(
                "it is of another version of Ringtree: its format is {format}, and this version's \
                 {FORMAT}"
            ));
        }
        let document: Document = serde_json::from_slice(text).map_err(damaged)?;
        let mut times: Vec<Times> = Vec::new();
        for row in document.times {
            let row = row.checked().map_err(|what| format!("it is damaged: {what}"))?;
            if times.iter().any(|other| other.collective == row.collective) {
                return Err(format!("it is damaged: {} comes twice", row.collective.name()));
            }
            times.push(row);
        }
        Ok(Tuned { measured_on: document.measured_on, times })
    }
}

impl TimesDocument {
    /// What it says, if that can be.
    fn checked(self) -> Result<Times, String> {
        let TimesDocument { collective: name, sizes_bytes, by_algorithm } = self;
        let named = Collective::all(0).into_iter().find(|collective| collective.name() == name);
        let collective = named.ok_or_else(|| format!("there is no collective \"{name}\""))?;
        let is_sorted = sizes_bytes.is_sorted_by(|a, b| a < b);
        if sizes_bytes.is_empty() || sizes_bytes.len() > SIZES_LIMIT || !is_sorted {
            return Err(format!("{name} has sizes that nobody measured: {sizes_bytes:?}"));
        }
        let mut checked: Vec<(Algorithm, Vec<u64>)> = Vec::new();
        for AlgorithmDocument { algorithm: called, times_ns } in by_algorithm {
            let algorithm = Algorithm::from_name(&called).filter(|a| a.serves(collective));
            let algorithm =
                algorithm.ok_or_else(|| format!("no algorithm of {name} is \"{called}\""))?;
            if checked.iter().any(|(other, _)| *other == algorithm) {
                return Err(format!("{called} of {name} comes twice"));
            }
            let has_all = times_ns.len() == sizes_bytes.len();
            if !has_all || !times_ns.iter().all(|ns| (1..=LONGEST_NS).contains(ns)) {
                return Err(format!("{called} of {name} has times that nobody measured"));
            }
            checked.push((algorithm, times_ns));
        }
        if checked.is_empty() {
            return Err(format!("{name} has no algorithm"));
        }
        Ok(Times { collective, sizes_bytes, by_algorithm: checked })
    }
}

/// The model of this host's first processor; empty where the system does not tell.
fn processor() -> String {
    let Ok(file) = File::open("/proc/cpuinfo") else { return String::new() };
    let lines = BufReader::new(file).lines().map_while(Result::ok).take_while(|l| !l.is_empty());
    let value = |line: String| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim().to_owned())
    };
    lines.filter_map(value).next().unwrap_or_default()
}

impl fmt::Display for MeasuredOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |count: u32, what| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let MeasuredOn { ranks, hosts, local_ranks, processors, processor, links, .. } = self;
        write!(f, "{} on {}", counted(*ranks, "rank"), counted(*hosts, "host"))?;
        let over = match links.way {
            Way::Shm => "shared memory",
            Way::Network if links.rdma => "RDMA",
            Way::Network => "TCP",
            Way::Mixed if links.rdma => "shared memory and RDMA",
            Way::Mixed => "shared memory and TCP",
        };
        write!(f, " over {over}")?;
        if let Some(interface) = &links.interface {
            write!(f, " ({interface})")?;
        }
        if links.sockets > 1 {
            write!(f, ", {} a link", counted(links.sockets, "socket"))?;
        }
        if links.encrypts {
            write!(f, ", encrypted")?;
        }
        if links.checksums {
            write!(f, ", with checksums")?;
        }
        let (ranks, processors) =
            (counted(*local_ranks, "rank"), counted(*processors, "processor"));
        write!(f, ", {ranks} for {processors}")?;
        if !processor.is_empty() {
            write!(f, " ({processor})")?;
        }
        Ok(())
    }
}
