//! Where a machine comes from: this one, a recorded one, or a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ringtree_topology::{
    Detection, Error, GpuFacts, Limits, Machine, Roots, VisibleDevices, Warning, detect_with,
};
use serde::Deserialize;

use super::{From, TopoError};

/// Longest file; the library takes no longer XML.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A machine, and what is known of it beside.
pub struct Source {
    /// The host's name, or the file's.
    pub name: String,
    pub machine: Machine,
    /// What this process may use of it, if it is this machine.
    pub limits: Option<Limits>,
}

impl Source {
    /// What the command line names.
    pub(super) fn find(from: &From) -> Result<Source, TopoError> {
        if let Some(path) = from.xml.first() {
            if from.sysfs.is_some() && !from.complete {
                return Err(TopoError::TwoMachines);
            }
            let name = path.display().to_string();
            let machine = match from.complete {
                true => {
                    let mut machine = read_bare(path)?;
                    machine.complete_from(&system(from)?.machine);
                    machine
                }
                false => read_machine(path)?,
            };
            return Ok(Source { name, machine, limits: None });
        }
        let Detection { mut machine, limits } = system(from)?;
        if from.visible {
            limits.apply(&mut machine);
        }
        let folder = from.sysfs.as_ref().map(|folder| folder.display().to_string());
        let name = match machine.host.as_str() {
            "" => folder.unwrap_or_else(|| "this machine".into()),
            host => host.to_owned(),
        };
        let limits = from.sysfs.is_none().then_some(limits);
        Ok(Source { name, machine, limits })
    }
}

/// This machine, or the recorded one.
fn system(from: &From) -> Result<Detection, TopoError> {
    let (roots, facts, visible) = match &from.sysfs {
        Some(folder) => {
            (Roots::recorded(folder), GpuFacts::unknown("a recorded machine"), Default::default())
        }
        None => (Roots::system(), GpuFacts::of_system(), VisibleDevices::from_environment()),
    };
    Ok(detect_with(&roots, &facts, &visible)?)
}

/// A machine from a file, or from a folder as of `--sysfs`.
pub fn read_any(path: &Path) -> Result<Machine, TopoError> {
    match path.is_dir() {
        true => Ok(ringtree_topology::detect(&Roots::recorded(path))?),
        false => read_machine(path),
    }
}

/// A machine from a file. If that names neither GPUs nor ports, its devices are taken for what their classes
/// say.
pub fn read_machine(path: &Path) -> Result<Machine, TopoError> {
    let mut machine = read_bare(path)?;
    if machine.gpus().is_empty() && machine.ports().is_empty() {
        let devices = machine.devices().len();
        machine.assume_devices();
        let (gpus, ports) = (machine.gpus().len(), machine.ports().len());
        let message = format!(
            "a base file: it lacks GPUs, network cards and the links of GPUs. By their classes, {gpus} of its \
             {devices} PCI devices are taken for GPUs and {ports} for cards; --complete fills in what \
             the machine itself says"
        );
        machine.warnings.insert(0, Warning { subject: path.display().to_string(), message });
    }
    Ok(machine)
}

/// Of what `--json` has printed.
#[derive(Deserialize)]
struct Document {
    machine: Machine,
}

/// As the file says.
fn read_bare(path: &Path) -> Result<Machine, TopoError> {
    let unreadable = |source| TopoError::Read { path: path.into(), source };
    let wrong = |problem| TopoError::NoMachine { path: path.into(), problem };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(wrong(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("no text in UTF-8".into()))?;
    let in_file = |source: Error| Error::File { path: path.into(), source: Box::new(source) };
    if !text.trim_start().starts_with('{') {
        return Ok(Machine::from_xml(&text).map_err(in_file)?);
    }
    let document = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()));
    let Document { machine } = document?;
    // Figures of JSON may be absurd, too: what could not be read as XML is refused.
    Machine::from_xml(&machine.to_xml()).map_err(in_file)?;
    Ok(machine)
}
