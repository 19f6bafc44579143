//! Why nothing can be shown.

use std::io;
use std::path::PathBuf;

/// Why nothing can be shown. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum TopoError {
    /// What the library has to say.
    #[error(transparent)]
    Topology(#[from] ringtree_topology::Error),
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file is of no kind that is known.
    #[error("{}: {problem}: expected NCCL's XML, or the JSON of ringtree topo --json", path.display())]
    NoMachine { path: PathBuf, problem: String },
    /// A file cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// A change names what is not there.
    #[error("there is no {name}: {known}")]
    NoDevice { name: String, known: String },
    /// A change that its device cannot have.
    #[error("{name} is {what}: {instead}")]
    BadChange { name: String, what: &'static str, instead: &'static str },
    /// Nothing is to be compared.
    #[error("--what-if compares with a change: give --without DEVICE or --link DEVICE=LINK")]
    NoChange,
    /// Two machines where one is looked at.
    #[error(
        "--xml and --sysfs are two machines: give one, or add --complete to fill in the file from the other"
    )]
    TwoMachines,
    /// Several files where one is looked at.
    #[error("several files are the hosts of a job: add --explain and no change, or give one file")]
    SeveralHosts,
}
