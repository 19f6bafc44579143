//! What a rank finds about its host by itself.

use std::fs;

use ringtree::Settings;
use serde::{Deserialize, Serialize};

use super::finding::Finding;
use super::network::Advertised;
use super::processors::Processors;
use super::rdma::{Rdma, UsedPort, Wish};
use super::system::System;
use super::tcp::PortUse;
use super::{Topic, clock, descriptors, gpu, memory, network, tcp};

/// A host, as one rank sees it.
#[derive(Debug)]
pub struct Host {
    /// What there is to say.
    pub findings: Vec<Finding>,
    name: String,
    /// Which start of which machine this is.
    machine: String,
    network: String,
    processors: Processors,
    advertised: Vec<Advertised>,
    rdma: Vec<UsedPort>,
}

/// What a rank tells the others of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Introduction {
    /// Its host's name.
    pub host: String,
    /// The same for all ranks of one kernel.
    pub machine: String,
    /// The same for all ranks of one network namespace of a kernel.
    pub network: String,
    /// What processors it may use.
    pub processors: Processors,
    /// Where it can be reached over TCP.
    pub advertised: Vec<Advertised>,
    /// Where it can be reached over RDMA.
    pub rdma: Vec<UsedPort>,
    /// How it can be reached, if it can.
    pub endpoint: Option<Vec<u8>>,
}

/// What a rank of this host does.
#[derive(Debug)]
pub struct OfRank<'a> {
    /// Its settings.
    pub settings: &'a Settings,
    /// Where it has met the others, `host:port`.
    pub rendezvous: Option<&'a str>,
    /// Why it cannot listen for them.
    pub refused: Option<String>,
}

impl Host {
    /// Looks at this host, for a rank if there is one, where the doctor is asked about that topic.
    pub fn examine(system: &System, topic: Option<Topic>, of_rank: Option<OfRank<'_>>) -> Host {
        let processors = Processors::of_this_process(system);
        let settings = of_rank.as_ref().map(|of_rank| of_rank.settings);
        let rdma = Rdma::look(system, Wish::of(settings, topic));
        let gpus = gpu::Probe::start(topic, gpu::Wish::of(settings, topic));
        let peers = settings.map_or(1, |settings| settings.ranks.saturating_sub(1));
        let mut findings = rdma.check(system);
        findings.extend(memory::check(system, rdma.locking(peers)));
        findings.extend(processors.check());
        let (mut advertised, mut ranks) = (Vec::new(), 1);
        let mut ports = PortUse { set: None, connections: 0, refused: None };
        let mut connections_of_link = 1;
        if let Some(OfRank { settings, rendezvous, refused }) = of_rank {
            let (found, addresses) = network::check(system, settings, rendezvous);
            findings.extend(found);
            advertised = addresses;
            ranks = settings.ranks;
            connections_of_link = u64::from(settings.sockets) * advertised.len().max(1) as u64;
            let connections = u64::from(ranks - 1) * connections_of_link;
            ports = PortUse { set: settings.ports, connections, refused };
        }
        findings.extend(tcp::check(system, &ports));
        findings.push(descriptors::check(system, ranks, connections_of_link));
        findings.extend(clock::check(system));
        findings.extend(gpus.check(system));
        let name = system.text("/proc/sys/kernel/hostname").unwrap_or_else(|| "unknown".into());
        let machine = system.text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let network = fs::read_link(system.path("/proc/self/ns/net")).unwrap_or_default();
        let network = network.display().to_string();
        let rdma = rdma.used_ports(system);
        Host { findings, name, machine, network, processors, advertised, rdma }
    }

    /// What a rank of this host tells the others, of which it is reached at `endpoint`.
    pub fn introduction(&self, endpoint: Option<Vec<u8>>) -> Introduction {
        Introduction {
            host: self.name.clone(),
            machine: self.machine.clone(),
            network: self.network.clone(),
            processors: self.processors.clone(),
            advertised: self.advertised.clone(),
            rdma: self.rdma.clone(),
            endpoint,
        }
    }
}
