//! Which GPUs a program sees: the variables that the makers' runtimes follow.

use std::env;

use super::files::Warnings;
use super::gpu::{Known, Vendor};
use crate::machine::BusId;

/// The variables that say which GPUs a program sees, as they are set; `None` if they are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VisibleDevices {
    /// `CUDA_VISIBLE_DEVICES`, which CUDA follows.
    pub cuda: Option<String>,
    /// `NVIDIA_VISIBLE_DEVICES`, which NVIDIA's container runtime follows. By the time that a program runs
    /// it has done so: the driver then names those GPUs alone. It counts where the driver says nothing.
    pub nvidia: Option<String>,
    /// `ROCR_VISIBLE_DEVICES`, which AMD's runtime follows.
    pub rocr: Option<String>,
    /// `HIP_VISIBLE_DEVICES`: numbers among those that are left.
    pub hip: Option<String>,
}

impl VisibleDevices {
    /// Those of this process.
    pub fn from_environment() -> VisibleDevices {
        let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        VisibleDevices {
            cuda: variable("CUDA_VISIBLE_DEVICES"),
            nvidia: variable("NVIDIA_VISIBLE_DEVICES"),
            rocr: variable("ROCR_VISIBLE_DEVICES"),
            hip: variable("HIP_VISIBLE_DEVICES"),
        }
    }

    /// The GPUs that are left of `all`, in the order in which a program numbers them.
    pub(super) fn of(
        &self,
        all: &[Known],
        driver_answers: bool,
        warnings: &Warnings,
    ) -> Vec<BusId> {
        let made_by = |vendor| all.iter().filter(move |gpu| gpu.vendor == vendor).collect();
        let mut nvidia: Vec<&Known> = made_by(Vendor::Nvidia);
        if let Some(setting) = self.nvidia.as_deref().filter(|_| !driver_answers) {
            nvidia = of_container(setting, nvidia, warnings);
        }
        nvidia = listed("CUDA_VISIBLE_DEVICES", &self.cuda, nvidia, warnings);
        let mut amd: Vec<&Known> = made_by(Vendor::Amd);
        amd = listed("ROCR_VISIBLE_DEVICES", &self.rocr, amd, warnings);
        amd = listed("HIP_VISIBLE_DEVICES", &self.hip, amd, warnings);
        let others: Vec<&Known> = made_by(Vendor::Other);
        [nvidia, amd, others].concat().into_iter().map(|gpu| gpu.bus_id).collect()
    }
}

/// `all`, nothing (which the runtime leaves as it is, without GPUs), or a list.
fn of_container<'k>(setting: &str, all: Vec<&'k Known>, warnings: &Warnings) -> Vec<&'k Known> {
    match setting.trim() {
        "all" => all,
        "" | "none" | "void" => Vec::new(),
        list => listed("NVIDIA_VISIBLE_DEVICES", &Some(list.to_owned()), all, warnings),
    }
}

/// The GPUs of a list of numbers and UUIDs, which may be shortened, by the rules of CUDA's programming guide
/// ("CUDA environment variables"): the list ends before the first entry that is none. If a GPU is named
/// twice there are none, as nvitop found.
fn listed<'k>(
    variable: &str,
    setting: &Option<String>,
    all: Vec<&'k Known>,
    warnings: &Warnings,
) -> Vec<&'k Known> {
    let Some(setting) = setting else {
        return all;
    };
    let mut chosen: Vec<&Known> = Vec::new();
    for entry in setting.split(',').map(str::trim).take_while(|entry| !entry.is_empty()) {
        if entry.starts_with("GPU-") && !all.is_empty() && all.iter().all(|gpu| gpu.uuid.is_empty())
        {
            let message =
                format!("{entry:?}: the UUIDs of the GPUs are unknown; all are taken as visible");
            warnings.add(variable, message);
            return all;
        }
        match find(entry, &all) {
            Some(gpu) if chosen.iter().any(|other| other.bus_id == gpu.bus_id) => {
                warnings.add(variable, format!("{entry:?} names a GPU twice: none is visible"));
                return Vec::new();
            }
            Some(gpu) => chosen.push(gpu),
            None => {
                // -1 is the usual way to end the list.
                if entry != "-1" {
                    let message = format!("{entry:?} is no GPU here: the list ends before it");
                    warnings.add(variable, message);
                }
                break;
            }
        }
    }
    chosen
}

/// A part of a GPU (`MIG-..`) is none.
fn find<'k>(entry: &str, all: &[&'k Known]) -> Option<&'k Known> {
    if let Ok(number) = entry.parse::<usize>() {
        return all.get(number).copied();
    }
    let begins = |gpu: &&&Known| {
        let start = gpu.uuid.get(..entry.len());
        entry.len() > "GPU-".len() && start.is_some_and(|start| start.eq_ignore_ascii_case(entry))
    };
    let mut found = all.iter().filter(begins);
    let first = found.next()?;
    found.next().is_none().then_some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUIDS: [&str; 4] = ["GPU-8932f937-d7", "GPU-8932aaaa-01", "GPU-11111111-02", "GPU-2-03"];

    fn known(vendor: Vendor, uuids: &[&str]) -> Vec<Known> {
        let gpu = |(i, uuid): (usize, &&str)| {
            let bus = i as u8 + if vendor == Vendor::Amd { 0x80 } else { 0 };
            let bus_id = BusId { bus, ..BusId::default() };
            Known { bus_id, vendor, uuid: (*uuid).to_owned() }
        };
        uuids.iter().enumerate().map(gpu).collect()
    }

    fn numbers(visible: &VisibleDevices, all: &[Known], driver_answers: bool) -> (Vec<u8>, usize) {
        let warnings = Warnings::default();
        let found = visible.of(all, driver_answers, &warnings);
        (found.iter().map(|id| id.bus).collect(), warnings.into_inner().len())
    }

    #[test]
    fn cuda_ends_its_list_at_what_is_none() {
        let all = known(Vendor::Nvidia, &UUIDS);
        let cuda = |setting: &str, expected: &[u8], warnings: usize| {
            let visible = VisibleDevices { cuda: Some(setting.into()), ..Default::default() };
            assert_eq!(numbers(&visible, &all, true), (expected.to_vec(), warnings), "{setting}");
        };
        cuda("3,1", &[3, 1], 0);
        cuda(" 2 , 0 ", &[2, 0], 0);
        cuda("0,2,-1,1", &[0, 2], 0);
        cuda("1,7,0", &[1], 1);
        cuda("", &[], 0);
        cuda("-1", &[], 0);
        cuda("1,1", &[], 1);
        cuda("GPU-8932f,gpu-1111", &[0, 2], 0);
        cuda("GPU-8932,1", &[], 1);
        cuda("GPU-,1", &[], 1);
        cuda("2,GPU-2-03,MIG-GPU-8932f937/1/2", &[2, 3], 1);
        cuda("99999999999999999999999", &[], 1);
        assert_eq!(numbers(&VisibleDevices::default(), &all, true), (vec![0, 1, 2, 3], 0));
    }

    #[test]
    fn a_container_s_choice_counts_where_the_driver_is_silent() {
        let all = known(Vendor::Nvidia, &["", "", ""]);
        let nvidia = |setting: &str, driver_answers| {
            let visible = VisibleDevices { nvidia: Some(setting.into()), ..Default::default() };
            numbers(&visible, &all, driver_answers).0
        };
        assert_eq!(nvidia("1,2", false), [1, 2]);
        assert_eq!(nvidia("1,2", true), [0, 1, 2]);
        assert_eq!(nvidia("all", false), [0, 1, 2]);
        assert_eq!(nvidia("void", false), []);
        assert_eq!(nvidia("GPU-77", false), [0, 1, 2], "who it is cannot be told");
    }

    #[test]
    fn amd_has_two_filters() {
        let mut all = known(Vendor::Nvidia, &UUIDS[..1]);
        all.extend(known(Vendor::Amd, &["GPU-00aa", "GPU-00bb", "GPU-00cc"]));
        let visible = VisibleDevices {
            rocr: Some("2,GPU-00aa".into()),
            hip: Some("1".into()),
            ..Default::default()
        };
        assert_eq!(numbers(&visible, &all, true), (vec![0, 0x80], 0));
    }
}
