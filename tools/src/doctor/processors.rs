//! Processors: how many this process may use, and whether the ranks have one each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::finding::{Check, Finding};
use super::system::{self, System};
use crate::words::{counted, ranges};

const AFFINITY: Check = Check {
    name: "affinity",
    why: "a rank uses only the processors that it is bound to, whatever the machine has",
};

const QUOTA: Check = Check {
    name: "cpu-quota",
    why: "a rank that has used its quota stands still for up to a tenth of a second, and all others \
          wait for it",
};

const CROWDING: Check = Check {
    name: "processors",
    why: "where ranks share a processor, each waits while another runs: small messages take tens of \
          microseconds instead of one",
};

/// The processors of one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Processors {
    /// The numbers of those that it may use.
    pub allowed: BTreeSet<usize>,
    /// Those of the machine that are switched on.
    pub online: usize,
    /// How many a control group grants it the time of.
    pub quota: Option<f64>,
}

impl Processors {
    /// Those of this process.
    pub fn of_this_process(system: &System) -> Processors {
        let allowed = system.status("Cpus_allowed_list").unwrap_or_default();
        let online = system.text("/sys/devices/system/cpu/online").unwrap_or_default();
        let allowed: BTreeSet<usize> = system::list(&allowed).into_iter().collect();
        let online = system::list(&online).len().max(allowed.len());
        Processors { allowed, online, quota: quota(system) }
    }

    /// How many of them do work at a time: whole ones, as the library counts them.
    pub fn usable(&self) -> usize {
        let granted = self.quota.map_or(usize::MAX, |quota| quota as usize);
        self.allowed.len().min(granted).max(1)
    }

    /// What there is to say of one process.
    pub fn check(&self) -> Vec<Finding> {
        vec![self.affinity(), self.cpu_quota()]
    }

    fn affinity(&self) -> Finding {
        let (allowed, online) = (self.allowed.len(), self.online);
        let of = format!("{allowed} of {}", counted(online as u64, "processor"));
        if allowed >= online { AFFINITY.ok(of) } else { AFFINITY.note(format!("bound to {of}")) }
    }

    fn cpu_quota(&self) -> Finding {
        match self.quota {
            None => QUOTA.ok("none"),
            Some(quota) => {
                let seen = format!("the time of {quota:.2} processors");
                let remedy = format!("docker run --cpus {} IMAGE", self.allowed.len());
                if quota >= self.allowed.len() as f64 {
                    QUOTA.ok(seen)
                } else {
                    QUOTA.note(seen).remedy(remedy)
                }
            }
        }
    }
}

/// Processors whose time the control groups of this process grant: the least of them and of those
/// that they are in, by version 2 or 1.
fn quota(system: &System) -> Option<f64> {
    let groups = system.text("/proc/self/cgroup")?;
    let of_group = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let above = Path::new(group).ancestors();
        if controllers.is_empty() {
            let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
            let at = |group: &Path| mounts.map(|mount| quota_2(system, mount, group));
            above.flat_map(at).flatten().reduce(f64::min)
        } else if controllers.split(',').any(|one| one == "cpu") {
            let at = |group: &Path| {
                [controllers, "cpu"]
                    .map(|name| quota_1(system, &format!("/sys/fs/cgroup/{name}"), group))
            };
            above.flat_map(at).flatten().reduce(f64::min)
        } else {
            None
        }
    };
    groups.lines().filter_map(of_group).reduce(f64::min)
}

/// `max 100000`, or microseconds of work in so many of time.
fn quota_2(system: &System, mount: &str, group: &Path) -> Option<f64> {
    match system.numbers(&format!("{mount}{}/cpu.max", folder(group)))[..] {
        [work_us, time_us] if time_us > 0 => Some(work_us as f64 / time_us as f64),
        _ => None,
    }
}

fn quota_1(system: &System, mount: &str, group: &Path) -> Option<f64> {
    let number = |name| system.number(&format!("{mount}{}/cpu.{name}", folder(group)));
    let (work_us, time_us) = (number("cfs_quota_us")?, number("cfs_period_us")?);
    (work_us > 0 && time_us > 0).then(|| work_us as f64 / time_us as f64)
}

/// A group's folder below the mount, without the slash at the end that the uppermost has.
fn folder(group: &Path) -> String {
    group.display().to_string().trim_end_matches('/').to_owned()
}

/// Whether the ranks of a host have a processor each. `ranks` are those of one host.
pub fn crowding(host: &str, ranks: &[(u32, &Processors)]) -> Finding {
    let numbers: Vec<u32> = ranks.iter().map(|(rank, _)| *rank).collect();
    let all: BTreeSet<usize> = ranks.iter().flat_map(|(_, own)| &own.allowed).copied().collect();
    let mut groups: BTreeMap<&BTreeSet<usize>, (Vec<u32>, usize)> = BTreeMap::new();
    for (rank, own) in ranks {
        let (same, usable) = groups.entry(&own.allowed).or_default();
        same.push(*rank);
        *usable = own.usable();
    }
    // Sets that overlap may be too few together.
    let everyone = groups.entry(&all).or_insert((Vec::new(), all.len().max(1)));
    everyone.0 = numbers;
    let crowd = groups.into_iter().filter(|(_, (ranks, usable))| ranks.len() > *usable);
    let worst = crowd.max_by(|(_, a), (_, b)| (a.0.len() * b.1).cmp(&(b.0.len() * a.1)));
    match worst {
        None => CROWDING.ok(format!("a processor for each rank of {host}")),
        Some((set, (crowd, usable))) => {
            let share = counted(usable as u64, "processor");
            let seen = format!(
                "{} ({}) share {share} of {host}",
                counted(crowd.len() as u64, "rank"),
                ranges(&crowd)
            );
            CROWDING.warning(seen).remedy(more_room(ranks, set, usable))
        }
    }
}

/// How ranks get a processor each: by leave to use those that the machine has, else by being fewer.
fn more_room(ranks: &[(u32, &Processors)], crowded: &BTreeSet<usize>, usable: usize) -> String {
    let online = ranks.iter().map(|(_, own)| own.online).max().unwrap_or(1);
    let bound_by_quota = crowded.len() > usable;
    match (online >= ranks.len(), bound_by_quota) {
        (true, false) => {
            format!("taskset -c 0-{} ringtree run --ranks {} -- PROGRAM", online - 1, ranks.len())
        }
        (true, true) => format!("docker run --cpus {} IMAGE", ranks.len()),
        (false, _) => format!("ringtree run --ranks {} -- PROGRAM", online.min(usable.max(1))),
    }
}

#[cfg(test)]
mod tests {
    use ringtree_transport::wait::usable_processors;

    use super::super::finding::Level;
    use super::super::system::made_up::Machine;
    use super::*;

    fn of(allowed: &[usize], online: usize, quota: Option<f64>) -> Processors {
        Processors { allowed: allowed.iter().copied().collect(), online, quota }
    }

    #[test]
    fn the_doctor_counts_as_the_library_does() {
        let own = Processors::of_this_process(&System::real());
        assert_eq!(own.usable(), usable_processors(), "{own:?}");
    }

    #[test]
    fn quotas_of_both_versions_and_of_groups_above_count() {
        let status = ("/proc/self/status", "Cpus_allowed_list:\t0-7");
        let v2 = Machine::new(&[
            status,
            ("/proc/self/cgroup", "0::/job/rank"),
            ("/sys/fs/cgroup/job/cpu.max", "150000 100000"),
            ("/sys/fs/cgroup/job/rank/cpu.max", "max 100000"),
        ]);
        let own = Processors::of_this_process(&v2.system);
        assert_eq!((own.quota, own.usable()), (Some(1.5), 1));
        assert_eq!(own.cpu_quota().level, Level::Note);
        let v1 = Machine::new(&[
            status,
            ("/proc/self/cgroup", "3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n0::/"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000"),
        ]);
        assert_eq!(Processors::of_this_process(&v1.system).usable(), 3);
        let none = Machine::new(&[
            status,
            ("/proc/self/cgroup", "1:cpu:/"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        ]);
        let own = Processors::of_this_process(&none.system);
        assert_eq!((own.quota, own.usable()), (None, 8));
    }

    #[test]
    fn four_ranks_on_one_processor_are_a_crowd() {
        let own = of(&[0], 4, None);
        let ranks = [(0, &own), (1, &own), (2, &own), (3, &own)];
        let finding = crowding("here", &ranks);
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(finding.seen, "4 ranks (0-3) share 1 processor of here");
        let remedy = "taskset -c 0-3 ringtree run --ranks 4 -- PROGRAM";
        assert_eq!(finding.remedy.as_deref(), Some(remedy));
    }

    #[test]
    fn ranks_that_are_bound_apart_are_no_crowd() {
        let (first, second) = (of(&[0], 2, None), of(&[1], 2, None));
        let finding = crowding("here", &[(0, &first), (1, &second)]);
        assert_eq!((finding.level, finding.remedy), (Level::Ok, None));
        let finding = crowding("here", &[(0, &first), (1, &first)]);
        assert_eq!(finding.seen, "2 ranks (0-1) share 1 processor of here");
        let both = of(&[0, 1], 2, None);
        let finding = crowding("here", &[(0, &first), (1, &second), (2, &both)]);
        assert_eq!(finding.seen, "3 ranks (0-2) share 2 processors of here");
        let finding = crowding("here", &[(4, &both), (5, &both), (6, &both)]);
        assert_eq!(finding.remedy.as_deref(), Some("ringtree run --ranks 2 -- PROGRAM"));
    }

    #[test]
    fn a_quota_makes_a_crowd() {
        let own = of(&[0, 1, 2, 3], 4, Some(0.5));
        let finding = crowding("here", &[(0, &own), (1, &own)]);
        assert_eq!(finding.seen, "2 ranks (0-1) share 1 processor of here");
        assert_eq!(finding.remedy.as_deref(), Some("docker run --cpus 2 IMAGE"));
    }
}
