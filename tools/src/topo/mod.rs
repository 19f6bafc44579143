//! `ringtree topo`: shows how a machine is wired, as it is or as a file says, and what follows from that.
//!
//! A machine is found or read (`source`), perhaps changed (`changes`), and shown: as a tree (`tree`), as the
//! library's table, drawing and XML, as JSON, as findings and differences (`report`), or as the rings that are
//! chosen on it and why (`rings`).

mod changes;
mod error;
mod report;
mod rings;
mod source;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ringtree_topology::search::{Cluster, ClusterPlan, RingSet, explain_cluster};
use ringtree_topology::{Graph, Machine, Warning, check, diff, svg, table};
use serde::Serialize;

use crate::words::{json, say};
use changes::{LinkChange, changed};
pub use error::TopoError;
pub use rings::{host_name, through};
use ringtree_launcher::report;
use source::Source;
pub use source::read_machine;

/// Shows how this machine is wired, or one that a file describes, and what follows from that
///
/// NUMA nodes, PCIe switches, GPUs, network cards and their ports, with the bandwidths of the links between
/// them. Without an option that says what to show, they are shown as a tree. GB/s are those of one
/// direction.
///
/// What nobody says is assumed, as NCCL does, and named at the end. Of files that say where devices are and
/// not what they are (providers' base files) they are taken for what their PCI class says.
///
/// The exit status is 0; 1 if --check finds what does not work, or --diff a difference; and 2 if something
/// cannot be read or the command line is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ringtree topo\n  ringtree topo -m\n  \
                  ringtree topo --xml topology.xml --svg machine.svg\n  \
                  ringtree topo --write-xml topology.xml    # for NCCL_TOPO_FILE\n  \
                  ringtree topo --xml topology.xml --explain\n  \
                  ringtree topo --xml a.xml,b.xml --explain  # rings through two hosts\n  \
                  ringtree topo --diff a.xml b.xml\n  \
                  ringtree topo --check && ./train\n  \
                  ringtree topo --what-if --without GPU3 --link mlx5_0=400G --link 0000:1a:00.0=16x8")]
pub struct TopoArguments {
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    view: View,
    /// Take this out first: a GPU (GPU3), a port (mlx5_0), or what is at a PCI bus id, with all below it
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    without: Vec<String>,
    /// Give a device another link first: GPU3=16x8 or 0000:1a:00.0=32x16 (GT/s and lanes of PCIe), or a port
    /// another speed: mlx5_0=400G
    #[arg(long, value_name = "DEVICE=LINK", value_delimiter = ',')]
    link: Vec<LinkChange>,
    /// Print one JSON document: of the machine and its graph, which --xml reads; or of what --check, --diff,
    /// --explain or --what-if find
    #[arg(long, conflicts_with_all = ["table", "svg", "write_xml"])]
    json: bool,
}

/// Which machine.
#[derive(Debug, clap::Args)]
struct From {
    /// Read the machine from a file: NCCL's or RCCL's XML, or JSON that --json has printed. Several are the
    /// hosts of a job, for --explain
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    xml: Vec<PathBuf>,
    /// Look at a recorded machine: a folder with its sys and proc, or its sys alone
    #[arg(long, value_name = "DIR")]
    sysfs: Option<PathBuf>,
    /// Fill in what the file of --xml lacks from this machine (or the one of --sysfs), as NCCL does
    #[arg(long, requires = "xml")]
    complete: bool,
    /// Only what this process may use: its processors, and the GPUs of CUDA_VISIBLE_DEVICES and its like
    #[arg(long, conflicts_with = "xml")]
    visible: bool,
}

/// What to show of it.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct View {
    /// Show each GPU and port with each other, as nvidia-smi topo -m does
    #[arg(long, short = 'm')]
    table: bool,
    /// Write it as NCCL's XML (RCCL's for AMD's GPUs); - is standard output
    #[arg(long, value_name = "FILE")]
    write_xml: Option<PathBuf>,
    /// Draw it with its rings, as SVG; - is standard output
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Look for what is slow or broken, and say what to do
    #[arg(long)]
    check: bool,
    /// Show the rings and the tree that are chosen, which port serves whom, and what limits them
    #[arg(long)]
    explain: bool,
    /// Say what differs between two machines: files, or folders as for --sysfs
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    #[arg(conflicts_with_all = ["xml", "sysfs", "visible", "without", "link"])]
    diff: Option<Vec<PathBuf>>,
    /// Show what --without and --link change about the rings
    #[arg(long)]
    what_if: bool,
}

/// Does what was asked for.
pub fn run(arguments: &TopoArguments) -> ExitCode {
    match show(arguments) {
        Ok(Shown { text, status }) => say(&text, status),
        Err(error) => {
            report(&error.to_string());
            ExitCode::from(2)
        }
    }
}

/// What is printed, and the status.
struct Shown {
    text: String,
    status: u8,
}

impl Shown {
    fn new(text: String) -> Result<Shown, TopoError> {
        Ok(Shown { text, status: 0 })
    }
}

/// What `--json` prints of a machine. The reader takes `machine` alone.
#[derive(Serialize)]
struct Document<'a> {
    version: &'static str,
    machine: &'a Machine,
    graph: &'a Graph,
    /// For the graph.
    assumed: &'a [Warning],
}

/// What `--json` prints of several hosts: numbers of nodes and links are those of the graphs.
#[derive(Serialize)]
struct Hosts<'a> {
    cluster: &'a Cluster,
    plan: &'a ClusterPlan,
}

fn show(arguments: &TopoArguments) -> Result<Shown, TopoError> {
    let TopoArguments { from, view, json: as_json, .. } = arguments;
    if let Some([first, second]) = view.diff.as_deref() {
        let differences = diff(&source::read_any(first)?, &source::read_any(second)?);
        let text = match as_json {
            true => json(&differences),
            false => report::differences(&differences),
        };
        return Ok(Shown { text, status: u8::from(!differences.is_empty()) });
    }
    if let [_, _, ..] = from.xml[..] {
        return several_hosts(arguments);
    }
    let source = Source::find(from)?;
    let mut machine = source.machine.clone();
    let changes = changed(&mut machine, &arguments.without, &arguments.link)?;
    let (graph, assumed) = Graph::new(&machine);
    let found = || rings::of(&machine, &graph);
    if view.table {
        return Shown::new(table(&machine, &graph));
    }
    if let Some(path) = &view.write_xml {
        return write(path, machine.to_xml());
    }
    if let Some(path) = &view.svg {
        // Without rings a machine is a drawing all the same.
        let set: Option<RingSet> = found().ok();
        return write(path, svg(&machine, &graph, set.as_ref()));
    }
    if view.check {
        let findings = check(&machine, &graph);
        let text = if *as_json { json(&findings) } else { report::findings(&source, &findings) };
        return Ok(Shown { text, status: u8::from(report::has_failure(&findings)) });
    }
    if view.explain {
        let explained = rings::Explained::new(&machine, &graph)?;
        return Shown::new(match as_json {
            true => json(&explained),
            false => explained.text(&graph) + &report::assumed(&machine.warnings, &assumed),
        });
    }
    if view.what_if {
        if changes.is_empty() {
            return Err(TopoError::NoChange);
        }
        let compared = rings::Compared::new(&source.machine, &machine, changes)?;
        return Shown::new(if *as_json { json(&compared) } else { compared.text() });
    }
    let version = env!("CARGO_PKG_VERSION");
    Shown::new(match as_json {
        true => json(&Document { version, machine: &machine, graph: &graph, assumed: &assumed }),
        false => {
            let text = tree::text(&source, &machine, &graph);
            text + &report::assumed(&machine.warnings, &assumed)
        }
    })
}

/// Rings through the hosts of several files.
fn several_hosts(arguments: &TopoArguments) -> Result<Shown, TopoError> {
    let TopoArguments { from, view, without, link, json: as_json } = arguments;
    let changes = !without.is_empty() || !link.is_empty();
    if !view.explain || from.complete || from.sysfs.is_some() || changes {
        return Err(TopoError::SeveralHosts);
    }
    let mut machines = Vec::new();
    for path in &from.xml {
        machines.push((host_name(path), read_machine(path)?));
    }
    let (cluster, plan) = rings::through(&machines)?;
    Shown::new(match as_json {
        true => json(&Hosts { cluster: &cluster, plan: &plan }),
        false => explain_cluster(&cluster, &plan),
    })
}

fn write(path: &Path, text: String) -> Result<Shown, TopoError> {
    if path == Path::new("-") {
        return Shown::new(text);
    }
    fs::write(path, text).map_err(|source| TopoError::Write { path: path.into(), source })?;
    Shown::new(String::new())
}
