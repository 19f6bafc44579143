//! What there is to say of all ranks together: rank 0 judges what they have told.

use std::collections::BTreeMap;

use ringtree::Settings;
use serde::Serialize;

use super::finding::{Check, Finding, Level};
use super::host::Introduction;
use super::network::compare_mtus;
use super::processors::crowding;
use super::ranks::{Gathered, LinkReport, RankReport};
use super::{Topic, clock, probe, rdma};
use crate::words::counted;

const REACH: Check = Check {
    name: "reachability",
    why: "a collective needs links between all ranks; where one cannot be made every rank gets an error",
};

const ONE_HOST: Check = Check {
    name: "shared-memory",
    why: "ranks of one host are several times as fast over shared memory as over a network; it needs a common \
          network namespace",
};

const REPORT: Check = Check {
    name: "report",
    why: "a rank that does not report has died, or stands still, and would stop every collective",
};

/// What links go over, as findings and tables name it.
pub const TRANSPORTS: [&str; 3] = ["shm", "rdma", "tcp"];

/// Pairs that are named in one finding.
const MOST_NAMED: usize = 4;

/// Two ranks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Their numbers, the lower one first.
    pub ranks: [u32; 2],
    /// The transport between them; `None`: they do not reach each other.
    pub transport: Option<String>,
    /// Half of the median time that a small message takes to and fro.
    pub one_way_us: Option<f64>,
    /// By how much the second one's wall clock is ahead.
    pub clock_ahead_us: Option<f64>,
    /// Whether each copies straight from the other's memory.
    pub reaches_memory: bool,
    /// Why they do not reach each other.
    pub error: Option<String>,
}

/// A finding, and which ranks it is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Said {
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
    /// By which ranks; empty: about all of them together.
    pub ranks: Vec<u32>,
}

/// The hosts' names, and the ranks on each.
pub type Hosts = Vec<(String, Vec<u32>)>;

/// What all ranks have found, each thing once, and what follows from it.
pub fn judge(
    settings: &Settings,
    topic: Option<Topic>,
    gathered: Gathered,
) -> (Hosts, Vec<Said>, Vec<Pair>) {
    let Gathered { introductions, reports } = gathered;
    let together = |finding| Said { finding, ranks: Vec::new() };
    let mut said = Vec::new();
    let mut links = Vec::new();
    let mut probed = BTreeMap::new();
    for (rank, report) in (0..).zip(reports) {
        let report = report.unwrap_or_else(|error| {
            let failure = REPORT.failure(format!("rank {rank} has not reported: {error}"));
            said.push(together(failure.remedy("RINGTREE_LOG=debug ringtree doctor")));
            RankReport::default()
        });
        report.findings.into_iter().for_each(|finding| say(&mut said, finding, rank));
        links.push(report.links);
        probed.extend(report.probed.map(|probed| (rank, probed)));
    }
    let pairs = pairs(&links);
    let hosts = hosts(&introductions);
    said.extend(crowds(&introductions, &hosts).map(together));
    let advertised = introductions.iter().map(|one| (one.host.clone(), one.advertised.clone()));
    said.extend(compare_mtus(&advertised.collect::<Vec<_>>()).map(together));
    said.extend(rdma::compare_mtus(&introductions).map(together));
    let astray = match topic {
        Some(Topic::Rdma) => Level::Failure,
        Some(Topic::Gpu) | None => Level::Warning,
    };
    said.extend(rdma::links(&introductions, &pairs, astray).map(together));
    said.extend(reach(&introductions, &pairs).into_iter().map(together));
    if !probed.is_empty() {
        said.extend(probe::judge(&probed).into_iter().map(together));
    }
    said.extend(one_host(settings, &introductions, &pairs).map(together));
    said.extend(clock::difference(most_different(&pairs)).map(together));
    let name = |ranks: Vec<u32>| (introductions[ranks[0] as usize].host.clone(), ranks);
    (hosts.into_iter().map(name).collect(), said, pairs)
}

/// Adds what a rank has found, together with others that have found the same.
fn say(said: &mut Vec<Said>, finding: Finding, rank: u32) {
    let same = said.iter().position(|other| !other.ranks.is_empty() && other.finding == finding);
    match same {
        Some(at) => said[at].ranks.push(rank),
        None => {
            // Beside what the same check has said of others.
            let last = said.iter().rposition(|other| other.finding.check == finding.check);
            let at = last.map_or(said.len(), |at| at + 1);
            said.insert(at, Said { finding, ranks: vec![rank] });
        }
    }
}

/// The ranks of each host: those of a kernel and a network namespace.
fn hosts(introductions: &[Introduction]) -> Vec<Vec<u32>> {
    let mut hosts: Vec<Vec<u32>> = Vec::new();
    for (rank, one) in (0..).zip(introductions) {
        let is_same =
            |ranks: &&mut Vec<u32>| is_on_one_host(&introductions[ranks[0] as usize], one);
        match hosts.iter_mut().find(is_same) {
            Some(ranks) => ranks.push(rank),
            None => hosts.push(vec![rank]),
        }
    }
    hosts
}

/// Whether two ranks are on one host: a kernel and a network namespace.
pub fn is_on_one_host(one: &Introduction, other: &Introduction) -> bool {
    one.machine == other.machine && one.network == other.network
}

fn crowds(introductions: &[Introduction], hosts: &[Vec<u32>]) -> impl Iterator<Item = Finding> {
    hosts.iter().map(|ranks| {
        let of = |rank: &u32| (*rank, &introductions[*rank as usize].processors);
        let processors: Vec<_> = ranks.iter().map(of).collect();
        crowding(&introductions[ranks[0] as usize].host, &processors)
    })
}

/// All pairs, from what both sides have told.
fn pairs(links: &[BTreeMap<u32, LinkReport>]) -> Vec<Pair> {
    let nothing = LinkReport::default();
    let told = |by: usize, of: usize| links[by].get(&(of as u32)).unwrap_or(&nothing);
    let pair = |one: usize, other: usize| {
        let sides = [told(one, other), told(other, one)];
        let error = sides.iter().find_map(|side| side.error.clone());
        let is_linked = sides.iter().all(|side| side.transport.is_some());
        let error = error.or_else(|| (!is_linked).then(|| "one of them has not reported".into()));
        let timing = sides[0].timing;
        Pair {
            ranks: [one as u32, other as u32],
            transport: sides[0].transport.clone().filter(|_| error.is_none()),
            one_way_us: timing.map(|timing| rounded(timing.one_way_us)),
            clock_ahead_us: timing.map(|timing| rounded(timing.clock_ahead_us)),
            reaches_memory: sides.iter().all(|side| side.reaches_memory),
            error,
        }
    };
    let others = |one| (one + 1..links.len()).map(move |other| (one, other));
    (0..links.len()).flat_map(others).map(|(one, other)| pair(one, other)).collect()
}

fn rounded(us: f64) -> f64 {
    (us * 1000.0).round() / 1000.0
}

/// Whether all pairs reach each other; a few of those that do not have a finding each.
fn reach(introductions: &[Introduction], pairs: &[Pair]) -> Vec<Finding> {
    if pairs.is_empty() {
        return Vec::new();
    }
    let failed: Vec<&Pair> = pairs.iter().filter(|pair| pair.error.is_some()).collect();
    if failed.is_empty() {
        let count = |kind: &str| {
            let of = pairs.iter().filter(|pair| pair.transport.as_deref() == Some(kind)).count();
            (of > 0).then(|| format!("{of} over {kind}"))
        };
        let kinds: Vec<String> = TRANSPORTS.into_iter().filter_map(count).collect();
        let all = counted(pairs.len() as u64, "pair");
        return vec![REACH.ok(format!("{all}: {}", kinds.join(", ")))];
    }
    let name = |pair: &&Pair| {
        let [one, other] = pair.ranks.map(|rank| (rank, &introductions[rank as usize]));
        let error = pair.error.as_deref().unwrap_or_default();
        let seen = format!("rank {} and rank {}: {error}", one.0, other.0);
        // The lower one dials.
        let address = other.1.advertised.first().map(|advertised| advertised.address);
        let finding = REACH.failure(seen);
        // What keeps RDMA from working says itself what helps; TCP has nothing to do with it.
        match address.filter(|_| !error.contains("rdma") && !error.contains("RDMA")) {
            Some(address) => finding.remedy(format!(
                "ip route get {address} && ping -c 1 {address}  # on {}; else a firewall is in the \
                 way, or RINGTREE_INTERFACE must name a network of both",
                one.1.host
            )),
            None => finding,
        }
    };
    let rest = failed.len().saturating_sub(MOST_NAMED);
    let rest = (rest > 0).then(|| REACH.failure(format!("{} more", counted(rest as u64, "pair"))));
    failed.iter().take(MOST_NAMED).map(name).chain(rest).collect()
}

/// Whether ranks of one machine share memory; `None` where no two are on one.
fn one_host(
    settings: &Settings,
    introductions: &[Introduction],
    pairs: &[Pair],
) -> Option<Finding> {
    let of = |pair: &Pair| pair.ranks.map(|rank| &introductions[rank as usize]);
    let is_local = |pair: &&Pair| {
        let [one, other] = of(pair);
        pair.transport.is_some() && one.machine == other.machine
    };
    let local: Vec<&Pair> = pairs.iter().filter(is_local).collect();
    let apart = local.iter().find(|pair| pair.transport.as_deref() != Some("shm"));
    let Some(apart) = apart else {
        let pairs = counted(local.len() as u64, "pair");
        return (!local.is_empty()).then(|| ONE_HOST.ok(format!("used by {pairs}")));
    };
    let ([one, other], [first, second]) = (apart.ranks, of(apart));
    let transport = apart.transport.as_deref().unwrap_or_default();
    let seen = format!("ranks {one} and {other} are on one machine and use {transport}");
    Some(if !settings.transports.allows_shm() {
        ONE_HOST
            .note(format!("{seen}, as RINGTREE_TRANSPORT says"))
            .remedy("unset RINGTREE_TRANSPORT")
    } else if first.network != second.network {
        ONE_HOST
            .warning(format!("{seen}: they are in different network namespaces (containers)"))
            .remedy("docker run --network host --ipc host --pid host IMAGE")
    } else {
        ONE_HOST.warning(seen).remedy("RINGTREE_LOG=debug ringtree doctor --ranks 2")
    })
}

/// The pair whose wall clocks differ most.
fn most_different(pairs: &[Pair]) -> Option<(f64, [u32; 2])> {
    let differences =
        pairs.iter().filter_map(|pair| Some((pair.clock_ahead_us?.abs(), pair.ranks)));
    differences.max_by(|(one, _), (other, _)| one.total_cmp(other))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::processors::Processors;
    use super::super::timing::Timing;
    use super::*;

    fn rank(machine: &str, network: &str) -> Introduction {
        Introduction {
            host: format!("{machine}-name"),
            machine: machine.into(),
            network: network.into(),
            processors: Processors { allowed: BTreeSet::from([0, 1]), online: 2, quota: None },
            advertised: Vec::new(),
            rdma: Vec::new(),
            endpoint: None,
        }
    }

    fn linked(transport: &str) -> LinkReport {
        let timing = Timing { one_way_us: 1.0, clock_ahead_us: -50.0 };
        LinkReport {
            transport: Some(transport.into()),
            timing: Some(timing),
            ..LinkReport::default()
        }
    }

    fn failed(error: &str) -> LinkReport {
        LinkReport { error: Some(error.into()), ..LinkReport::default() }
    }

    /// The reports of two ranks.
    fn two(one: LinkReport, other: LinkReport) -> Vec<BTreeMap<u32, LinkReport>> {
        vec![BTreeMap::from([(1, one)]), BTreeMap::from([(0, other)])]
    }

    #[test]
    fn what_several_ranks_have_found_is_said_once() {
        const CHECK: Check = Check { name: "check", why: "why" };
        const OTHER: Check = Check { name: "other", why: "why" };
        let mut said = Vec::new();
        for rank in 0..3 {
            say(&mut said, CHECK.ok(if rank == 1 { "odd" } else { "even" }), rank);
            say(&mut said, OTHER.ok("same"), rank);
        }
        let short: Vec<(&str, &[u32])> =
            said.iter().map(|said| (said.finding.seen.as_str(), &said.ranks[..])).collect();
        assert_eq!(short, [("even", &[0, 2][..]), ("odd", &[1]), ("same", &[0, 1, 2])]);
    }

    #[test]
    fn a_pair_is_linked_if_both_sides_say_so() {
        let all = pairs(&two(linked("tcp"), linked("tcp")));
        assert_eq!((all[0].transport.as_deref(), all[0].one_way_us), (Some("tcp"), Some(1.0)));
        let introductions = [rank("a", "1"), rank("b", "2")];
        assert_eq!(reach(&introductions, &all)[0].seen, "1 pair: 1 over tcp");
        let all = pairs(&two(linked("tcp"), failed("it did not come")));
        assert_eq!((&all[0].transport, all[0].error.as_deref()), (&None, Some("it did not come")));
        let finding = &reach(&introductions, &all)[0];
        assert_eq!(finding.level, Level::Failure);
        assert_eq!(finding.seen, "rank 0 and rank 1: it did not come");
        let silent = pairs(&[BTreeMap::from([(1, linked("tcp"))]), BTreeMap::new()]);
        assert_eq!(silent[0].error.as_deref(), Some("one of them has not reported"));
    }

    #[test]
    fn many_failures_are_counted() {
        let links = (0..4).map(|rank| {
            let others = (0..4).filter(|other| *other != rank);
            others.map(|other| (other, failed("no"))).collect()
        });
        let all = pairs(&links.collect::<Vec<_>>());
        let introductions = ["a", "b", "c", "d"].map(|machine| rank(machine, "1"));
        let findings = reach(&introductions, &all);
        assert_eq!((findings.len(), findings[4].seen.as_str()), (5, "2 pairs more"));
    }

    #[test]
    fn containers_of_one_machine_are_pointed_out() {
        let settings = |transports| {
            let variables = [
                ("RINGTREE_RANK", "0"),
                ("RINGTREE_RANKS", "2"),
                ("RINGTREE_RENDEZVOUS", "10.0.0.1:1"),
                ("RINGTREE_INSECURE", "1"),
                ("RINGTREE_TRANSPORT", transports),
            ];
            let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Settings::from_variables(&variables.into()).unwrap()
        };
        let found = |transports, networks: [&str; 2], transport| {
            let introductions = networks.map(|network| rank("a", network));
            let pairs = pairs(&two(linked(transport), linked(transport)));
            let findings = one_host(&settings(transports), &introductions, &pairs);
            findings.map(|finding| finding.level)
        };
        assert_eq!(found("auto", ["1", "2"], "tcp"), Some(Level::Warning));
        assert_eq!(found("auto", ["1", "1"], "tcp"), Some(Level::Warning));
        assert_eq!(found("tcp", ["1", "1"], "tcp"), Some(Level::Note));
        assert_eq!(found("rdma", ["1", "1"], "rdma"), Some(Level::Note));
        assert_eq!(found("auto", ["1", "2"], "rdma"), Some(Level::Warning));
        assert_eq!(found("auto", ["1", "1"], "shm"), Some(Level::Ok));
        assert_eq!(hosts(&[rank("a", "1"), rank("a", "2"), rank("a", "1")]), [vec![0, 2], vec![1]]);
    }

    #[test]
    fn the_largest_difference_of_clocks_is_found() {
        let pairs = pairs(&two(linked("tcp"), linked("tcp")));
        assert_eq!(most_different(&pairs), Some((50.0, [0, 1])));
        assert_eq!(most_different(&[]), None);
    }
}
