//! Who takes part in a run: ranks, hosts and the transports between them.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use ringtree::{Communicator, Error, Source};
use ringtree_transport::TransportKind;
use serde::Serialize;

use super::gpu::Gpu;
use super::options::{By, Measurement};
use super::record::VERSION;
use crate::words::{counted, ranges};

/// Longest host name, in bytes: Linux's limit.
const NAME_BYTES: usize = 64;

/// Numbers that a rank tells: which transports its links have, its name's length, its name.
const NUMBERS: usize = 2 + NAME_BYTES;

/// The bit of RDMA among the transports.
const RDMA: i32 = 8;

/// Who takes part, as rank 0 knows it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Ranks of the run.
    pub ranks: u32,
    /// Transport of all links: `shm`, `tcp`, `rdma` or `mixed`; `none` where there is one rank.
    pub transport: &'static str,
    /// Ports that rank 0 uses for RDMA, with their addresses.
    rdma_ports: Vec<String>,
    /// The GPU of rank 0, and the driver.
    gpu: Option<String>,
    /// Who told the ranks their places.
    launcher: String,
    /// Ranks of each host, by name.
    hosts: BTreeMap<String, Vec<u32>>,
    /// Whether algorithms are chosen by measured times.
    tuned: bool,
    /// Processors that rank 0 may use.
    processors: usize,
    /// Linux version of rank 0's host.
    kernel: String,
}

impl Summary {
    /// Collects it at rank 0, and `None` elsewhere. All links must be there.
    pub fn collect(
        communicator: &Communicator,
        launcher: Source,
        gpu: Option<&Gpu>,
    ) -> Result<Option<Summary>, Error> {
        let (rank, ranks) = (communicator.rank(), communicator.ranks());
        let mut numbers = [0; NUMBERS];
        numbers[0] = transports(communicator);
        let name = first_line("/proc/sys/kernel/hostname");
        numbers[1] = name.len().min(NAME_BYTES) as i32;
        name.bytes().zip(&mut numbers[2..]).for_each(|(byte, number)| *number = i32::from(byte));
        if rank > 0 {
            communicator.send(&numbers, 0)?;
            return Ok(None);
        }
        let mut seen = numbers[0];
        let mut hosts = BTreeMap::from([(name, vec![0])]);
        for peer in 1..ranks {
            communicator.receive(&mut numbers, peer)?;
            seen |= numbers[0];
            let length = numbers[1].clamp(0, NAME_BYTES as i32) as usize;
            let name: Vec<u8> = numbers[2..2 + length].iter().map(|&byte| byte as u8).collect();
            let name = String::from_utf8_lossy(&name).into_owned();
            hosts.entry(name).or_insert_with(Vec::new).push(peer);
        }
        Ok(Some(Summary {
            ranks,
            transport: transport_name(seen),
            rdma_ports: if seen & RDMA != 0 { communicator.rdma_ports() } else { Vec::new() },
            gpu: gpu.map(Gpu::describe),
            launcher: launcher.to_string(),
            hosts,
            tuned: communicator.shape().tuned.is_some(),
            processors: thread::available_parallelism().map_or(1, usize::from),
            kernel: first_line("/proc/sys/kernel/osrelease"),
        }))
    }

    /// The line above a picture.
    pub fn title(&self, measurement: &Measurement) -> String {
        format!(
            "{} among {} on {} over {}",
            measurement.call.with_root(0).name(),
            counted(self.ranks, "rank"),
            counted(self.hosts.len(), "host"),
            self.transport,
        )
    }

    /// The lines above the table.
    pub fn heading(&self, measurement: &Measurement) -> String {
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|(name, ranks)| format!("{name} (rank {})", ranges(ranks)))
            .collect();
        let algorithm = match measurement.by {
            By::One(algorithm) => algorithm.name(),
            By::Choice if self.tuned => "chosen by measured times",
            By::Choice => "chosen by size",
            By::Each if self.tuned => "each in turn, * chosen by measured times",
            By::Each => "each in turn, * chosen by size",
        };
        format!(
            "# ringtree {VERSION}: {} among {} on {}: {}\n\
             # places told by {}\n\
             {}\
             # transport {}{}{}, algorithm {algorithm}, {} memory{}\n\
             # time: median of the slowest rank's times, with a barrier before each {}\n",
            measurement.call.with_root(0).name(),
            counted(self.ranks, "rank"),
            counted(hosts.len(), "host"),
            hosts.join(", "),
            self.launcher,
            self.gpu.as_ref().map_or(String::new(), |gpu| format!("# rank 0 uses {gpu}\n")),
            self.transport,
            match self.rdma_ports.is_empty() {
                true => String::new(),
                false => format!(" over {}", self.rdma_ports.join(" and ")),
            },
            if measurement.encrypt && self.transport != "shm" { " (encrypted)" } else { "" },
            measurement.memory.name(),
            if measurement.touch { ", written before each call" } else { "" },
            measurement.asynchronous.map_or("call".to_owned(), |at_once| {
                format!("{}, of which a time is that of one", counted(at_once, "asynchronous call"))
            }),
        )
    }
}

/// Which transports this rank's links have, as bits.
fn transports(communicator: &Communicator) -> i32 {
    let links = (0..communicator.ranks()).filter_map(|peer| communicator.transport_to(peer));
    links.fold(0, |seen, kind| {
        seen | match kind {
            TransportKind::Shm => 1,
            TransportKind::Tcp => 2,
            TransportKind::Sim => 4,
            TransportKind::Rdma => RDMA,
        }
    })
}

fn transport_name(seen: i32) -> &'static str {
    match seen {
        0 => "none",
        1 => "shm",
        2 => "tcp",
        4 => "sim",
        RDMA => "rdma",
        _ => "mixed",
    }
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_transports_are_mixed() {
        assert_eq!([0, 1, 2, 3].map(transport_name), ["none", "shm", "tcp", "mixed"]);
    }
}
