//! Whether processes of this host use each other's memory of GPUs, and by which way: a second process tries.

use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};

use ringtree::device::{CudaError, Device};
use ringtree_transport::cuda::{Probe, Told, Way};

use super::probe::{found, tries};
use crate::doctor::finding::Check;
use crate::words::ranges;

const PROCESSES: Check = Check {
    name: "gpu-processes",
    why: "ranks are processes: where these use each other's memory of GPUs, nothing passes the host. The driver's handles do \
          that, or else file descriptors",
};

/// Tries it with each device.
pub(super) fn processes(devices: &[Device]) {
    let ways = [(Way::Handle, "handle"), (Way::Descriptor, "file descriptor")];
    let mut well: Vec<(&str, Vec<u32>)> = ways.map(|(_, name)| (name, Vec::new())).to_vec();
    for device in devices {
        tries(format!("memory of GPU {} in another process", device.ordinal()));
        match taken(device) {
            Ok(taken) => {
                for ((way, _), (_, well)) in ways.iter().zip(&mut well) {
                    well.extend(taken.contains(way).then(|| device.ordinal()));
                }
            }
            Err(error) => found(PROCESSES.note(error)),
        }
    }
    let by = |(name, well): &(&str, Vec<u32>)| {
        (!well.is_empty()).then(|| format!("that of GPU {} by {name}", ranges(well)))
    };
    let seen: Vec<String> = well.iter().filter_map(by).collect();
    if seen.is_empty() {
        return found(
            PROCESSES
                .note("no process uses another's memory of GPUs, which passes the host")
                .remedy("docker run --ipc=host IMAGE  # where ranks are in several containers"),
        );
    }
    found(PROCESSES.ok(format!("other processes use memory: {}", seen.join(", "))));
}

/// The ways by which another process uses memory of a device.
fn taken(device: &Device) -> Result<Vec<Way>, String> {
    let probe = Probe::of(device).map_err(|error| error.to_string())?;
    let mut taken = Vec::new();
    for (told, descriptor) in probe.exported() {
        let way = told.way();
        let reads = reads(device, &told, descriptor);
        if reads.map_err(|error| format!("no process that tries it starts: {error}"))? {
            taken.push(way);
        }
    }
    Ok(taken)
}

/// Whether another process reads a probe. It finds the descriptor as its standard input.
fn reads(
    device: &Device,
    told: &Told,
    descriptor: Option<OwnedFd>,
) -> Result<bool, std::io::Error> {
    let hex: String = told.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut command = Command::new(env::current_exe()?);
    command.args(["doctor", "--gpu-reads", &format!("{}:{hex}", device.ordinal())]);
    command.env("RINGTREE_CUDA_LIBRARY", device.driver().library());
    command.stdin(descriptor.map_or_else(Stdio::null, Stdio::from));
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
}

/// The other process: tries to read what it was told of.
pub fn read(told: &str) -> ExitCode {
    match told_of(told).map(|(ordinal, told)| try_read(ordinal, &told)) {
        Some(Ok(true)) => ExitCode::SUCCESS,
        Some(Ok(false) | Err(_)) | None => ExitCode::FAILURE,
    }
}

fn told_of(told: &str) -> Option<(u32, Told)> {
    let (ordinal, hex) = told.split_once(':')?;
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    let told = Told::from_bytes(&bytes?.try_into().ok()?)?;
    Some((ordinal.parse().ok()?, told))
}

fn try_read(ordinal: u32, told: &Told) -> Result<bool, CudaError> {
    let library = env::var_os("RINGTREE_CUDA_LIBRARY").map(std::path::PathBuf::from);
    let device = Device::open(ordinal, library.as_deref())?;
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned().ok();
    Ok(Probe::of(&device)?.reads(told, descriptor, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_read_by_nobody() {
        for told in
            ["", "0", "0:", "0:zz", "x:00", "0:0", &format!("0:{}", "00".repeat(Told::BYTES))]
        {
            assert!(told_of(told).is_none(), "{told}");
        }
    }
}
