//! One rank's part among several: all meet, tell each other where they are, try to make the links of
//! a communicator one by one, time those that there are, and report to rank 0.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use ringtree::{Attach, Meeting, Settings};
use ringtree_transport::Link;
use ringtree_transport::endpoint::{Endpoint, EndpointConfig, EndpointError};
use ringtree_transport::rendezvous::StoreError;
use ringtree_transport::shm::Board;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::attach::{self, Siblings};
use super::finding::{Check, Finding, Level};
use super::host::{Host, Introduction};
use super::probe::{self, Probed};
use super::system::System;
use super::timing::{Timing, partners, time};

const ENDPOINT: Check =
    Check { name: "endpoint", why: "whoever cannot listen or share memory is reached by nobody" };

/// How long a rank tries to reach another one.
pub const REACH_LIMIT: Duration = Duration::from_secs(5);

/// How much later than the others a busy rank may be.
pub const SLACK: Duration = Duration::from_secs(15);

/// The communicator that the links are made for. The job's own count from 1 and are digests.
const COMMUNICATOR: u64 = 0;

/// What a rank has found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RankReport {
    /// About itself and its host.
    pub findings: Vec<Finding>,
    /// About the links to others.
    pub links: BTreeMap<u32, LinkReport>,
    /// About what was written to others, if that was asked for.
    pub probed: Option<Vec<Probed>>,
}

/// What a rank has found about the link to another.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LinkReport {
    /// By which transport they are linked.
    pub transport: Option<String>,
    /// Whether each reaches the other's ordinary memory.
    pub reaches_memory: bool,
    /// What the one that led has measured.
    pub timing: Option<Timing>,
    /// Why there is no link.
    pub error: Option<String>,
}

/// What all ranks have found, as rank 0 knows it.
#[derive(Debug)]
pub struct Gathered {
    /// Who they are.
    pub introductions: Vec<Introduction>,
    /// What each reports, or why it does not.
    pub reports: Vec<Result<RankReport, StoreError>>,
}

/// Why ranks could not examine what is between them.
#[derive(Debug, thiserror::Error)]
pub enum MeetError {
    /// Another rank did not come.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Another rank speaks differently.
    #[error("rank {rank} runs another release of Ringtree: {source}")]
    Foreign {
        /// Which one.
        rank: usize,
        /// What cannot be read.
        source: serde_json::Error,
    },
}

/// Takes part as one of the ranks that meet there, with what was found about its host. Returns what
/// all have found, at rank 0.
pub fn examine(
    system: &System,
    settings: &Settings,
    meeting: Meeting,
    endpoint: Result<Endpoint, EndpointError>,
    host: &Host,
    probes: bool,
) -> Result<Option<Gathered>, MeetError> {
    let (rank, ranks) = (settings.rank, settings.ranks);
    let rendezvous = meeting.address().to_owned();
    let all = Exchange { meeting, rank, ranks };
    let own = host.introduction(endpoint.as_ref().ok().map(Endpoint::address));
    let introductions: Vec<Introduction> = all.gather("introductions", &own, settings.timeout)?;

    let addresses: Vec<Option<Vec<u8>>> =
        introductions.iter().map(|one| one.endpoint.clone()).collect();
    let links = connect_all(endpoint.as_ref().ok(), rank, &addresses);
    let is_linked: Vec<bool> = links.iter().map(|link| matches!(link, Some(Ok(_)))).collect();
    let linked: Vec<Vec<bool>> = all.gather("links", &is_linked, REACH_LIMIT + SLACK)?;
    let links = time_all(links, rank, &linked);
    let probed = match probes {
        true => {
            let endpoint = endpoint.as_ref().ok();
            Some(probe::probe(&all, settings, &rendezvous, endpoint, &introductions)?)
        }
        false => None,
    };

    let mut findings = host.findings.clone();
    // Where the host says why already, it is not said again.
    if findings.iter().all(|finding| finding.level < Level::Failure) {
        findings.extend(endpoint.err().map(|error| ENDPOINT.failure(error.to_string())));
    }
    let siblings = match settings.attach {
        Attach::Never => Siblings::Off("RINGTREE_ATTACH=never"),
        _ if settings.checksums => Siblings::Off("RINGTREE_CHECKSUMS=1"),
        _ => siblings(&links),
    };
    findings.push(attach::check(system, siblings));
    let report = RankReport { findings, links, probed };
    if rank > 0 {
        return match all.tell("report", &report) {
            // Rank 0, which has the report or says that it has not, may leave with the store before
            // the answer is here.
            Ok(()) | Err(StoreError::Lost { .. } | StoreError::Stopped) => Ok(None),
            Err(error) => Err(error.into()),
        };
    }
    let deadline = Instant::now() + SLACK;
    let told = (1..ranks).map(|other| all.told("report", other, deadline));
    let reports = std::iter::once(Ok(report)).chain(told).collect();
    Ok(Some(Gathered { introductions, reports }))
}

/// What ranks tell each other at the store.
pub struct Exchange {
    meeting: Meeting,
    /// This one.
    pub rank: u32,
    ranks: u32,
}

impl Exchange {
    /// Everyone's value.
    pub fn gather<T: Serialize + DeserializeOwned>(
        &self,
        what: &str,
        own: &T,
        limit: Duration,
    ) -> Result<Vec<T>, MeetError> {
        let prefix = format!("doctor/{what}");
        let deadline = Instant::now() + limit;
        let store = self.meeting.store();
        let values = store.gather(&prefix, self.rank, self.ranks, &encode(own), deadline)?;
        let decode = |(rank, bytes): (usize, &Vec<u8>)| {
            serde_json::from_slice(bytes).map_err(|source| MeetError::Foreign { rank, source })
        };
        values.iter().enumerate().map(decode).collect()
    }

    /// Tells whoever asks.
    fn tell<T: Serialize>(&self, what: &str, own: &T) -> Result<(), StoreError> {
        let key = format!("doctor/{what}/{}", self.rank);
        self.meeting.store().set(&key, &encode(own), Instant::now() + SLACK)
    }

    /// What a rank tells.
    fn told<T: DeserializeOwned>(
        &self,
        what: &str,
        rank: u32,
        deadline: Instant,
    ) -> Result<T, StoreError> {
        let bytes = self.meeting.store().get(&format!("doctor/{what}/{rank}"), deadline)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| StoreError::Invalid { reason: error.to_string() })
    }
}

/// What it cannot be written as, a peer finds malformed.
fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Listens as a rank of a communicator does that meets the others at `rendezvous`.
pub fn bind(settings: &Settings, rendezvous: &str) -> Result<Endpoint, EndpointError> {
    let board = Board::new().map_err(|error| EndpointError::Listen {
        address: "shared memory".into(),
        reason: error.to_string(),
    })?;
    Endpoint::bind(EndpointConfig {
        job: settings.job.clone(),
        communicator: COMMUNICATOR,
        rank: settings.rank,
        transports: settings.transports,
        interface: settings.interface.clone(),
        ports: settings.ports,
        advertise: settings.advertise.clone(),
        sockets: settings.sockets,
        encrypts: settings.encrypts,
        checksums: settings.checksums,
        attach: settings.attach,
        rdma: settings.rdma.clone(),
        rendezvous: Some(rendezvous.to_owned()),
        board: board.memory().clone(),
    })
}

/// A link to each rank, or why there is none; nothing at the place of this rank.
pub fn connect_all(
    endpoint: Option<&Endpoint>,
    rank: u32,
    addresses: &[Option<Vec<u8>>],
) -> Vec<Option<Result<Link, String>>> {
    let deadline = Instant::now() + REACH_LIMIT;
    let connect = |peer: u32, address: &Option<Vec<u8>>| {
        let endpoint = endpoint.ok_or_else(|| format!("rank {rank} has no address"))?;
        let address = address.as_ref().ok_or_else(|| format!("rank {peer} has no address"))?;
        endpoint.connect(peer, address, deadline, &|| false).map_err(|error| error.to_string())
    };
    // Side by side, since each may take all the time that there is.
    thread::scope(|scope| {
        let attempt = |(peer, address)| {
            let connect = move || connect(peer, address);
            (peer != rank).then(|| thread::Builder::new().spawn_scoped(scope, connect))
        };
        let attempts: Vec<_> = (0..).zip(addresses).map(attempt).collect();
        let outcome = |attempt: std::io::Result<thread::ScopedJoinHandle<_>>| match attempt {
            Err(error) => Err(format!("no thread can be started: {error}")),
            Ok(thread) => thread.join().unwrap_or_else(|_| Err("the attempt panicked".into())),
        };
        attempts.into_iter().map(|attempt| attempt.map(outcome)).collect()
    })
}

/// Times the links that both sides have, and says of each what it is.
fn time_all(
    mut links: Vec<Option<Result<Link, String>>>,
    rank: u32,
    linked: &[Vec<bool>],
) -> BTreeMap<u32, LinkReport> {
    let ranks = links.len() as u32;
    let deadline = Instant::now() + SLACK;
    let mut reports = BTreeMap::new();
    for peer in partners(rank, ranks) {
        let is_linked_there = linked[peer as usize].get(rank as usize) == Some(&true);
        let report = match links[peer as usize].take() {
            Some(Ok(link)) => {
                let mut report = LinkReport {
                    transport: Some(link.kind().to_string()),
                    reaches_memory: link.reaches_memory(),
                    ..LinkReport::default()
                };
                if is_linked_there {
                    match time(link, rank < peer, deadline) {
                        Ok(timing) => report.timing = timing,
                        Err(error) => report.error = Some(error),
                    }
                }
                report
            }
            Some(Err(error)) => LinkReport { error: Some(error), ..LinkReport::default() },
            None => LinkReport::default(),
        };
        reports.insert(peer, report);
    }
    reports
}

/// Whether the ranks that memory is shared with can be reached by cross-memory attach.
fn siblings(links: &BTreeMap<u32, LinkReport>) -> Siblings {
    let shared = links.values().filter(|link| link.transport.as_deref() == Some("shm"));
    shared.fold(Siblings::None, |so_far, link| match (so_far, link.reaches_memory) {
        (Siblings::Refused, _) | (_, false) => Siblings::Refused,
        (_, true) => Siblings::Reached,
    })
}
