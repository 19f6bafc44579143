//! `ringtree doctor --probe`: writes patterns to every rank over every path, and compares what arrives with what
//! was sent: shared memory in all its ways, each interface for TCP, each port for RDMA.
//!
//! A path is a transport and, of the interfaces or ports of a rank, one by number. The ranks try one path after the
//! other, each by links of its own without encryption or checksums, so that what is wrong shows as it is.

mod exchange;
mod pattern;

use std::collections::BTreeMap;

use ringtree::{Attach, Settings};
use ringtree_transport::Link;
use ringtree_transport::endpoint::{Endpoint, Transports};
use serde::{Deserialize, Serialize};

use super::finding::{Check, Finding};
use super::host::Introduction;
use super::job::is_on_one_host;
use super::ranks::{Exchange, MeetError, REACH_LIMIT, SLACK, bind, connect_all};
use super::timing::partners;
use crate::words::counted;
use exchange::{Defect, SILENCE, Seen, exchange};
use pattern::{Pattern, WrongByte};

const PROBE: Check = Check {
    name: "probe",
    why: "a path that loses or changes what is written to it makes results wrong, or has ranks wait for ever",
};

/// Defects of one path that are told.
const MOST_TOLD: usize = 4;

/// What the patterns are made of.
const SEED: u64 = 0x7269_6e67_7472_6565;

/// A way to other ranks.
#[derive(Clone, Debug)]
struct Path {
    /// What it has in common with that of another rank: `shm`, `tcp 0`, `rdma 1`.
    key: String,
    /// What it is here: `shm`, `tcp over eth0`, `rdma over mlx5_0:1`.
    name: String,
    settings: Settings,
}

/// A path as the others are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    key: String,
    name: String,
    /// Where it is reached, or why it is not.
    address: Result<Vec<u8>, String>,
}

/// What one rank has seen of its paths to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// The other rank.
    peer: u32,
    /// The path, by this rank's name for it.
    path: String,
    seen: Seen,
}

/// Tries all paths to all ranks, as one of them. All ranks call it.
pub fn probe(
    all: &Exchange,
    settings: &Settings,
    rendezvous: &str,
    endpoint: Option<&Endpoint>,
    introductions: &[Introduction],
) -> Result<Vec<Probed>, MeetError> {
    let own = paths(settings, endpoint);
    let endpoints: Vec<Result<Endpoint, String>> = own
        .iter()
        .map(|path| bind(&path.settings, rendezvous).map_err(|error| error.to_string()))
        .collect();
    let told = own.iter().zip(&endpoints).map(|(path, endpoint)| Told {
        key: path.key.clone(),
        name: path.name.clone(),
        address: endpoint.as_ref().map(Endpoint::address).map_err(String::clone),
    });
    let told: Vec<Vec<Told>> = all.gather("probe/paths", &told.collect::<Vec<_>>(), SLACK)?;
    // The same for all ranks, so that they try the same one at a time.
    let mut keys: Vec<&str> = told.iter().flatten().map(|told| told.key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut probed = Vec::new();
    for key in keys {
        let at = own.iter().position(|path| path.key == key);
        let endpoint = at.and_then(|at| endpoints[at].as_ref().ok());
        let name = at.map_or(key, |at| &own[at].name);
        let reached = |peer: usize| {
            let theirs = told[peer].iter().find(|told| told.key == key)?;
            let here = &introductions[all.rank as usize];
            let is_there = key != "shm" || is_on_one_host(here, &introductions[peer]);
            theirs.address.clone().ok().filter(|_| is_there && endpoint.is_some())
        };
        let addresses: Vec<Option<Vec<u8>>> = (0..told.len()).map(reached).collect();
        let links = connect_all(endpoint, all.rank, &addresses);
        let is_linked: Vec<bool> = links.iter().map(|link| matches!(link, Some(Ok(_)))).collect();
        let linked = all.gather(&format!("probe/{key}"), &is_linked, REACH_LIMIT + SLACK)?;
        probed.extend(exchange_all(links, all.rank, &addresses, &linked, name));
    }
    Ok(probed)
}

/// All ways that this rank has to others.
fn paths(settings: &Settings, endpoint: Option<&Endpoint>) -> Vec<Path> {
    let plain = Settings { encrypts: false, checksums: false, sockets: 1, ..settings.clone() };
    let mut paths = Vec::new();
    let mut add = |key: String, name: String, settings| paths.push(Path { key, name, settings });
    if settings.transports.allows_shm() {
        // Where the kernel copies at all, that is tried.
        let attach = if plain.attach == Attach::Never { Attach::Never } else { Attach::Always };
        let of = Settings { transports: Transports::Shm, attach, ..plain.clone() };
        add("shm".into(), "shared memory".into(), of);
    }
    if settings.transports.allows_tcp() {
        let interfaces: Vec<Option<&str>> = match &settings.interface {
            Some(list) => list.split(',').map(|one| Some(one.trim())).collect(),
            None => vec![None],
        };
        for (number, interface) in interfaces.into_iter().enumerate() {
            let name = match interface {
                Some(interface) => format!("tcp over {interface}"),
                None => "tcp".into(),
            };
            let of = Settings {
                transports: Transports::Tcp,
                interface: interface.map(str::to_owned),
                advertise: settings.advertise.get(number).cloned().into_iter().collect(),
                ..plain.clone()
            };
            add(format!("tcp {number}"), name, of);
        }
    }
    let ports = endpoint.into_iter().flat_map(Endpoint::rdma_ports);
    for (number, (device, port)) in ports.enumerate() {
        let mut of = Settings { transports: Transports::Rdma, ..plain.clone() };
        of.rdma.devices = Some(format!("{device}:{port}"));
        add(format!("rdma {number}"), format!("rdma over {device}:{port}"), of);
    }
    paths
}

/// Exchanges patterns with one rank after the other, over the links of one path.
fn exchange_all(
    mut links: Vec<Option<Result<Link, String>>>,
    rank: u32,
    addresses: &[Option<Vec<u8>>],
    linked: &[Vec<bool>],
    path: &str,
) -> Vec<Probed> {
    let mut probed = Vec::new();
    for peer in partners(rank, links.len() as u32) {
        let is_linked_there = linked[peer as usize].get(rank as usize) == Some(&true);
        let seen = match links[peer as usize].take() {
            Some(Ok(link)) if is_linked_there => exchange(link, rank < peer, SEED, SILENCE),
            // The other side says why.
            Some(Ok(_)) | None => continue,
            Some(Err(_)) if addresses[peer as usize].is_none() => continue,
            Some(Err(error)) => Seen { error: Some(error), ..Seen::default() },
        };
        probed.push(Probed { peer, path: path.to_owned(), seen });
    }
    probed
}

/// What there is to say of all that the ranks have probed.
pub fn judge(probed: &BTreeMap<u32, Vec<Probed>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    // By path: how many pairs tried it, and in which ways.
    let mut whole: BTreeMap<&str, (u64, Vec<&str>)> = BTreeMap::new();
    for (&rank, probed) in probed {
        for Probed { peer, path, seen } in probed {
            let told = seen.defects.iter().take(MOST_TOLD);
            findings.extend(told.map(|defect| damaged(*peer, rank, path, defect)));
            if let Some(rest @ 1..) = seen.defects.len().checked_sub(MOST_TOLD) {
                let more = counted(rest as u64, "more defect");
                findings.push(
                    PROBE.failure(format!("{more} from rank {peer} to rank {rank} over {path}")),
                );
            }
            if let Some(error) = &seen.error {
                let seen = format!("between rank {rank} and rank {peer} over {path}: {error}");
                findings.push(PROBE.failure(seen).remedy(remedy(path)));
            }
            let (directions, ways) = whole.entry(path).or_default();
            *directions += u64::from(seen.defects.is_empty() && seen.error.is_none());
            for way in &seen.ways {
                if !ways.contains(&way.as_str()) {
                    ways.push(way);
                }
            }
        }
    }
    let whole = whole.into_iter().filter(|(_, (directions, _))| *directions > 0);
    findings.extend(whole.map(|(path, (directions, ways))| {
        let patterns = Pattern::ALL.len();
        let directions = counted(directions, "direction");
        PROBE.ok(format!(
            "{path}: {patterns} patterns arrived in {directions}, as {}",
            ways.join(", ")
        ))
    }));
    if findings.is_empty() {
        findings.push(PROBE.note("there is no path to another rank"));
    }
    findings
}

/// What came wrong, from whom to whom and where.
fn damaged(from: u32, to: u32, path: &str, defect: &Defect) -> Finding {
    let Defect { way, pattern, len_bytes, differences } = defect;
    let first = differences.first.map_or(String::new(), |WrongByte { at, expected, found }| {
        format!(", the first at byte {at}: {found:#04x} instead of {expected:#04x}")
    });
    let wrong = differences.wrong_bytes;
    let seen = format!(
        "from rank {from} to rank {to} over {path}, by {way}: {wrong} of {len_bytes} bytes of {pattern} are \
         wrong{first}"
    );
    PROBE.failure(seen).remedy(remedy(path))
}

/// What finds out which part is broken.
fn remedy(path: &str) -> String {
    if path.starts_with("tcp") {
        "ip -s link  # errors of interfaces, on both hosts; RINGTREE_CHECKSUMS=1 finds it in a job"
            .into()
    } else if path.starts_with("rdma") {
        "rdma statistic  # errors of ports, on both hosts; RINGTREE_CHECKSUMS=1 finds it in a job"
            .into()
    } else {
        "sudo dmesg | grep -i -E 'mce|edac|memory error'; sudo memtester 1G 1  # is the memory sound?".into()
    }
}
