//! What can go wrong in training.

use std::io;
use std::path::{Path, PathBuf};

/// As [`std::result::Result`], with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in training: who, what, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tensor library refused something.
    #[error("{0}")]
    Candle(#[from] candle_core::Error),
    /// A call among ranks failed.
    #[error(transparent)]
    Ringtree(#[from] ringtree::Error),
    /// Data is missing, empty or damaged.
    #[error("the data in {}: {what}; {remedy}", path.display())]
    Data {
        /// Which file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A checkpoint cannot be used.
    #[error("the checkpoint {}: {what}", path.display())]
    Checkpoint {
        /// Its folder or file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// Something was asked for that cannot be.
    #[error("{0}")]
    Argument(String),
    /// The system refused a file.
    #[error("{}: {source}{}", path.display(), remedy(source))]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Says what is wrong with a checkpoint.
    pub(crate) fn checkpoint(path: &Path, what: impl Into<String>) -> Error {
        Error::Checkpoint { path: path.to_owned(), what: what.into() }
    }

    /// Says which file the system refused.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room there, or name another folder"
        }
        _ => "",
    }
}
