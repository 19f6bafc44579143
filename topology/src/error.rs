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
