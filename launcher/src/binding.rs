//! Which processors a rank may run on: `--bind`.

use std::fs;
use std::io;
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Where the system describes its processors.
const SYSTEM: &str = "/sys/devices/system";

/// What each rank is bound to.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Deserialize,
    serde::Serialize,
)]
pub enum Binding {
    /// To nothing: the system places the ranks
    #[default]
    None,
    /// To a core of its own, with all its hardware threads; beyond the cores, several ranks share one
    Core,
    /// To a NUMA node; neighbouring ranks share one
    Numa,
}

impl Binding {
    /// The processors of each of `local_ranks` ranks, among those that this process may use; `None`
    /// binds nobody.
    ///
    /// # Errors
    /// The system does not say which processors this process may use.
    pub fn sets(self, local_ranks: usize) -> io::Result<Option<Vec<CpuSet>>> {
        if self == Binding::None {
            return Ok(None);
        }
        let set = sched_getaffinity(Pid::from_raw(0))?;
        let usable: Vec<usize> =
            (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect();
        let groups = self.groups(&usable, Path::new(SYSTEM));
        Ok(Some((0..local_ranks).map(|rank| self.share(rank, local_ranks, &groups)).collect()))
    }

    /// The usable processors, core by core or node by node.
    fn groups(self, usable: &[usize], system: &Path) -> Vec<Vec<usize>> {
        let lists: Vec<Vec<usize>> = match self {
            Binding::None => vec![],
            Binding::Core => usable
                .iter()
                .filter_map(|cpu| {
                    list(&system.join(format!("cpu/cpu{cpu}/topology/core_cpus_list")))
                })
                .collect(),
            Binding::Numa => list(&system.join("node/online"))
                .into_iter()
                .flatten()
                .filter_map(|node| list(&system.join(format!("node/node{node}/cpulist"))))
                .collect(),
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for mut group in lists {
            group.retain(|cpu| usable.contains(cpu));
            if !group.is_empty() && !groups.contains(&group) {
                groups.push(group);
            }
        }
        let missing: Vec<usize> = usable
            .iter()
            .copied()
            .filter(|cpu| !groups.iter().flatten().any(|c| c == cpu))
            .collect();
        // What the system does not describe: each a core, or all one node.
        match self {
            Binding::Numa if !missing.is_empty() => groups.push(missing),
            _ => groups.extend(missing.into_iter().map(|cpu| vec![cpu])),
        }
        groups
    }

    fn share(self, rank: usize, local_ranks: usize, groups: &[Vec<usize>]) -> CpuSet {
        let group = match self {
            Binding::Numa => rank * groups.len() / local_ranks.max(1),
            _ => rank % groups.len().max(1),
        };
        let mut set = CpuSet::new();
        for &cpu in groups.get(group).into_iter().flatten() {
            // No processor has a number that does not fit: it came out of such a set.
            let _ = set.set(cpu);
        }
        set
    }
}

/// The numbers in a file such as `0-3,8`; `None` if it is not there or says something else.
fn list(path: &Path) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in fs::read_to_string(path).ok()?.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        numbers.extend(first..=last.min(first + CpuSet::count()));
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of two cores with two threads each: core 0 is processors 0 and 4.
    fn system(name: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("ringtree-{name}-{}", std::process::id()));
        let write = |path: String, text: String| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for cpu in 0..8 {
            let core = cpu % 4;
            write(
                format!("cpu/cpu{cpu}/topology/core_cpus_list"),
                format!("{core},{}\n", core + 4),
            );
        }
        write("node/online".into(), "0-1\n".into());
        write("node/node0/cpulist".into(), "0-1,4-5\n".into());
        write("node/node1/cpulist".into(), "2-3,6-7\n".into());
        root
    }

    #[test]
    fn cores_and_nodes_are_cut_to_what_may_be_used() {
        let root = system("groups");
        let cores = Binding::Core.groups(&[0, 1, 2, 4, 6], &root);
        assert_eq!(cores, [vec![0, 4], vec![1], vec![2, 6]]);
        let nodes = Binding::Numa.groups(&[0, 1, 2, 4, 6], &root);
        assert_eq!(nodes, [vec![0, 1, 4], vec![2, 6]]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_system_that_says_nothing_has_a_core_for_each_processor_and_one_node() {
        let nowhere = Path::new("/nowhere");
        assert_eq!(Binding::Core.groups(&[3, 5], nowhere), [vec![3], vec![5]]);
        assert_eq!(Binding::Numa.groups(&[3, 5], nowhere), [vec![3, 5]]);
    }

    #[test]
    fn ranks_go_round_the_cores_and_fill_the_nodes() {
        let groups = [vec![0, 4], vec![1, 5]];
        let cpus = |binding: Binding, rank, ranks| -> Vec<usize> {
            let set = binding.share(rank, ranks, &groups);
            (0..8).filter(|&cpu| set.is_set(cpu).unwrap()).collect()
        };
        let cores: Vec<_> = (0..3).map(|rank| cpus(Binding::Core, rank, 3)).collect();
        assert_eq!(cores, [vec![0, 4], vec![1, 5], vec![0, 4]]);
        let nodes: Vec<_> = (0..4).map(|rank| cpus(Binding::Numa, rank, 4)).collect();
        assert_eq!(nodes, [vec![0, 4], vec![0, 4], vec![1, 5], vec![1, 5]]);
    }
}
