//! What of the machine a process may use: processors, their time, GPUs.
//!
//! Network interfaces need no limit: those that sysfs shows are those of the process's network namespace.

use std::collections::BTreeSet;
use std::path::Path;

use super::cpu_list::{self, common};
use super::files::{Files, Folder};
use crate::machine::{BusId, CpuSet, Machine, NumaNode, PciDevice, Warning};

/// What a process may use of a machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Processors that it may run on; `None` if unknown.
    pub cpus: Option<CpuSet>,
    /// The time of how many processors its control groups grant; `None` without such a limit.
    pub cpu_quota: Option<f64>,
    /// GPUs in the order in which a program numbers them: CUDA's (as `CUDA_DEVICE_ORDER=PCI_BUS_ID` has
    /// them, which is the usual order where all are of one kind), then AMD's, then others.
    pub visible_gpus: Vec<BusId>,
    /// What could not be followed, and what was assumed instead.
    pub warnings: Vec<Warning>,
}

impl Limits {
    /// Leaves in the machine what the process may use: processors that it may run on, and visible GPUs, by
    /// the numbers by which the program knows them. Other GPUs are taken out, with what led only to
    /// them and the links to them. A node stays without processors: devices may hang on it.
    pub fn apply(&self, machine: &mut Machine) {
        let gpus = machine.gpus().into_iter().map(|placed| placed.place.device.bus_id);
        let hidden: BTreeSet<BusId> = gpus.filter(|id| !self.visible_gpus.contains(id)).collect();
        for NumaNode { cpus, devices, .. } in &mut machine.numa_nodes {
            if let Some(allowed) = &self.cpus {
                *cpus = common(cpus, allowed);
            }
            self.keep_visible(devices, &hidden);
        }
        machine.warnings.extend(self.warnings.iter().cloned());
    }

    fn keep_visible(&self, devices: &mut Vec<PciDevice>, hidden: &BTreeSet<BusId>) {
        devices.retain_mut(|device| {
            let was_empty = device.children.is_empty();
            self.keep_visible(&mut device.children, hidden);
            if hidden.contains(&device.bus_id) {
                device.gpu = None;
            }
            if let Some(gpu) = &mut device.gpu {
                let number = self.visible_gpus.iter().position(|id| *id == device.bus_id);
                gpu.index = number.unwrap_or_default() as u32;
                gpu.links.retain(|link| link.target.is_none_or(|target| !hidden.contains(&target)));
            }
            let is_useful = device.gpu.is_some() || device.nic.is_some();
            is_useful
                || !device.children.is_empty()
                || was_empty && !hidden.contains(&device.bus_id)
        });
    }
}

/// The processors that the calling thread may run on; of a recorded tree, those of the process that
/// recorded it.
pub(super) fn allowed_cpus(sysfs: &Files, procfs: &Files, root: &Files) -> Option<CpuSet> {
    let of = |path| {
        let status = procfs.top().table(path);
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        cpu_list::list(list)
    };
    let by_group = || {
        let names = ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus", "cpus"];
        let groups = Groups { sysfs, procfs, root };
        let list = |folder: &Folder| names.iter().find_map(|name| folder.text(name));
        groups.folders("cpuset").iter().find_map(|folder| cpu_list::list(&list(folder)?))
    };
    of("thread-self/status").or_else(|| of("self/status")).or_else(by_group)
}

/// The least that the control groups of the process grant, by version 2 (`max 100000`, or microseconds of
/// work in so many of time) or 1 (two files; -1 is no limit).
pub(super) fn cpu_quota(sysfs: &Files, procfs: &Files, root: &Files) -> Option<f64> {
    let quota = |folder: &Folder| {
        let (work, time) = match folder.text("cpu.max") {
            Some(text) => {
                let (work, time) = text.split_once(' ')?;
                (work.parse().ok()?, time.parse().ok()?)
            }
            None => (folder.number("cpu.cfs_quota_us")?, folder.number("cpu.cfs_period_us")?),
        };
        let (work_us, time_us): (i64, i64) = (work, time);
        (work_us > 0 && time_us > 0).then(|| work_us as f64 / time_us as f64)
    };
    let folders = Groups { sysfs, procfs, root }.folders("cpu");
    folders.iter().filter_map(quota).reduce(f64::min)
}

/// Control groups nest a few levels.
const MOST_DEPTH: usize = 64;

/// The control groups of the process.
struct Groups<'a> {
    sysfs: &'a Files<'a>,
    procfs: &'a Files<'a>,
    /// Where mounts that are not in sysfs lie.
    root: &'a Files<'a>,
}

impl<'a> Groups<'a> {
    /// The folders of the group that has this controller, and of those above it, the innermost first.
    fn folders(&self, controller: &str) -> Vec<Folder<'a>> {
        let mut found = Vec::new();
        let mounts = self.procfs.top().table("mounts");
        for mount in mounts.lines() {
            let words: Vec<&str> = mount.split(' ').collect();
            let [_, place, kind, options, ..] = words[..] else {
                continue;
            };
            let has_controller = || options.split(',').any(|option| option == controller);
            let group = match kind {
                "cgroup2" => self.group(|controllers| controllers.is_empty()),
                "cgroup" if has_controller() => {
                    self.group(|controllers| controllers.split(',').any(|one| one == controller))
                }
                // The file system that control groups have replaced.
                "cpuset" if controller == "cpuset" => None,
                _ => continue,
            };
            let group = group.or_else(|| self.cpuset_group(controller)).unwrap_or_default();
            // In a container the group may be a path of the host: then the mount is the group.
            for above in Path::new(group.trim_start_matches('/')).ancestors().take(MOST_DEPTH) {
                found.extend(self.mounted(place).and_then(|top| top.folder(above.to_str()?)));
            }
        }
        found
    }

    /// The path of a group by its controllers, from lines such as `4:cpu,cpuacct:/job`.
    fn group(&self, is_it: impl Fn(&str) -> bool) -> Option<String> {
        let groups = self.procfs.top().table("self/cgroup");
        let of = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next()?, fields.next()?);
            is_it(controllers).then(|| group.to_owned())
        };
        groups.lines().find_map(of)
    }

    fn cpuset_group(&self, controller: &str) -> Option<String> {
        self.procfs.top().text("self/cpuset").filter(|_| controller == "cpuset")
    }

    fn mounted(&self, place: &str) -> Option<Folder<'a>> {
        match place.strip_prefix("/sys/") {
            Some(path) => self.sysfs.folder(path),
            None => self.root.folder(place.trim_start_matches('/')),
        }
    }
}
