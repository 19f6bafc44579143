//! Where measured times are kept: a folder with a file for each machine and number of ranks.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::document::TABLE_LIMIT_BYTES;
use super::{MeasuredOn, Tuned};
use crate::digest::fnv1a;

/// How the name of a file ends that is a table.
const EXTENSION: &str = "json";

/// A folder of tables that were measured before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuningCache {
    folder: PathBuf,
}

impl TuningCache {
    /// This user's: `$XDG_CACHE_HOME/ringtree`, else `~/.cache/ringtree`; none where there is no home.
    pub fn of_user() -> Option<TuningCache> {
        let set = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let caches = set.filter(|path| path.is_absolute());
        let caches = caches.or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
        Some(TuningCache::at(caches.join("ringtree")))
    }

    /// The tables in a folder, which need not be there yet.
    pub fn at(folder: impl Into<PathBuf>) -> TuningCache {
        TuningCache { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file that a table for such ranks is kept in.
    pub fn path(&self, measured_on: &MeasuredOn) -> PathBuf {
        let text = measured_on.text();
        let MeasuredOn { ranks, hosts, .. } = measured_on;
        let exact = fnv1a(text.bytes());
        self.folder.join(format!("{ranks}-ranks-{hosts}-hosts-{exact:016x}.{EXTENSION}"))
    }

    /// Keeps a table, in place of an earlier one for such ranks, and returns its file.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep(&self, tuned: &Tuned) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.path(tuned.measured_on());
        // Written aside and renamed: nobody reads it half-written.
        let aside = path.with_extension(format!("{}", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside);
        let written = file.and_then(|mut file| {
            file.write_all(tuned.encode().as_bytes())?;
            file.sync_all()?;
            fs::rename(&aside, &path)
        });
        if let Err(error) = written {
            let _ = fs::remove_file(&aside);
            return Err(error);
        }
        Ok(path)
    }

    /// The tables by file, each with what is wrong with it if it cannot be used.
    ///
    /// # Errors
    /// The folder is there and cannot be read.
    pub fn tables(&self) -> io::Result<Vec<(PathBuf, Result<Tuned, String>)>> {
        let table = |path: PathBuf| {
            let table =
                read(&path).and_then(|tuned| match self.path(tuned.measured_on()) == path {
                    true => Ok(tuned),
                    false => {
                        Err("it is a copy of another's: its name is not that of its ranks".into())
                    }
                });
            (path, table)
        };
        Ok(self.files()?.into_iter().map(table).collect())
    }

    /// Removes all tables, usable or not, and returns how many there were.
    ///
    /// # Errors
    /// What the system says about one of them.
    pub fn forget(&self) -> io::Result<usize> {
        let files = self.files()?;
        files.iter().try_for_each(fs::remove_file)?;
        Ok(files.len())
    }

    /// The files of tables, in the order of their names.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// Whether there may be tables.
    pub(crate) fn exists(&self) -> bool {
        self.folder.is_dir()
    }

    /// The table for such ranks, if there is one. One that cannot be used is left alone, and a warning
    /// says why.
    pub(crate) fn find(&self, measured_on: &MeasuredOn) -> Option<Tuned> {
        let path = self.path(measured_on);
        if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return None;
        }
        let table = read(&path).and_then(|tuned| match tuned.measured_on() == measured_on {
            true => Ok(tuned),
            false => Err(format!("it was measured among other ranks: {}", tuned.measured_on())),
        });
        let ignored = |why| {
            tracing::warn!(
                "the measured times in {} are ignored: {why}; measure again with `ringtree tune`, or \
                 remove them with `ringtree tune --forget`",
                path.display()
            );
        };
        table.map_err(ignored).ok()
    }
}

/// The table in a file that only this user, or the system's, can have written.
fn read(path: &Path) -> Result<Tuned, String> {
    let fail = |error: io::Error| format!("it cannot be read: {error}");
    // Without the flag nobody would come back from a pipe.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err("it is no file".into());
    }
    if ![0, geteuid().as_raw()].contains(&metadata.uid()) {
        return Err(format!("it belongs to another user ({})", metadata.uid()));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err("other users may write it".into());
    }
    let mut text = Vec::new();
    file.take(TABLE_LIMIT_BYTES as u64 + 1).read_to_end(&mut text).map_err(fail)?;
    Tuned::decode(&text)
}
