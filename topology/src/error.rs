//! What can go wrong.

use std::path::PathBuf;

/// What can go wrong. The texts say where, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        #[allow(missing_docs)]
        path: PathBuf,
        #[allow(missing_docs)]
        source: std::io::Error,
    },
    /// A file was read, and something is wrong with what it says.
    #[error("{}: {source}", path.display())]
    File {
        #[allow(missing_docs)]
        path: PathBuf,
        #[allow(missing_docs)]
        source: Box<Error>,
    },
    /// A description of a machine is longer than any machine needs.
    #[error("longer than {limit_bytes} bytes: descriptions of machines have a few thousand")]
    TooLong {
        #[allow(missing_docs)]
        limit_bytes: usize,
    },
    /// A text is no XML, or no XML that is accepted here.
    #[error("line {line}, column {column}: {problem}")]
    NoXml {
        #[allow(missing_docs)]
        line: u32,
        #[allow(missing_docs)]
        column: u32,
        #[allow(missing_docs)]
        problem: String,
    },
    /// An element is where it does not belong, or an attribute has a value that it cannot have.
    #[error("line {line}, column {column}, <{element}>: {problem}")]
    Element {
        #[allow(missing_docs)]
        line: u32,
        #[allow(missing_docs)]
        column: u32,
        #[allow(missing_docs)]
        element: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// Something else than the graph's nodes was named.
    #[error("there is no node {node} in a graph of {nodes}: give numbers of its nodes")]
    NoSuchNode {
        /// What was named.
        node: u32,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A ring goes through each device once.
    #[error("{device} is named twice: give every device once")]
    DeviceTwice {
        /// Its name.
        device: String,
    },
    /// Devices are not connected.
    #[error(
        "no way is known from {from} to {to}, and no ring leads through all devices without one: leave one of \
         them out, or complete the description of the machine"
    )]
    NoWay {
        /// Of a pair without a way between them.
        from: String,
        #[allow(missing_docs)]
        to: String,
    },
    /// Devices are connected, but not so that each could be visited once.
    #[error("no ring was found that leads once through each of {devices} devices: leave some out")]
    NoRing {
        /// How many there are.
        devices: usize,
    },
    /// A plan for no host at all.
    #[error("a cluster without hosts was given: name at least one")]
    NoHosts,
    /// A host without devices of its ranks.
    #[error("host {host} has no rank: leave it out, or say where its ranks are")]
    NoRanks {
        /// Its name.
        host: String,
    },
    /// A host that others cannot reach.
    #[error(
        "no port of host {host} is up and reaches all its devices: see `ringtree topo --check` there"
    )]
    NoPort {
        /// Its name.
        host: String,
    },
    /// A folder does not hold what the system keeps in sysfs.
    #[error(
        "{} holds neither devices, class nor bus, as sysfs does: mount sysfs there, or name a folder \
         with the recorded sys and proc of a machine",
        folder.display()
    )]
    NoSysfs {
        /// Where it was expected.
        folder: PathBuf,
    },
}
