//! What rank 0 does once its own files are written: waits for the others' parts, makes them one checkpoint, deletes old
//! ones.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::layout::{self, Attempt, Content, FileRecord, Key, Part};
use super::writer::WriterSettings;
use super::{Checkpoint, State};
use crate::{Error, Result};

/// How often rank 0 looks for parts: a folder on other hosts cannot tell when a file appears in it.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// At most so many missing ranks are named.
const MOST_NAMED: usize = 8;

/// What is to be one checkpoint.
pub(super) struct Commit<'a> {
    pub(super) settings: &'a WriterSettings,
    pub(super) attempt: Attempt,
    /// Where the parts are.
    pub(super) folder: &'a Path,
    pub(super) state: &'a State,
    /// Rank 0's own.
    pub(super) files: Vec<FileRecord>,
    pub(super) abandoned: &'a AtomicBool,
}

/// Returns the checkpoint's folder, which is on the disk.
pub(super) fn commit(mut commit: Commit) -> Result<PathBuf> {
    gather_parts(&mut commit)?;
    let Commit { settings, attempt, folder, state, files, .. } = commit;
    let content = Content { ranks: settings.ranks, state: state.clone(), files };
    layout::write_state(&folder.join(layout::STATE), &content)?;
    sync_folder(folder)?;
    let key = free_key(&settings.folder, attempt.step)?;
    let path = settings.folder.join(key.folder_name());
    fs::rename(folder, &path).map_err(Error::file(&path))?;
    sync_folder(&settings.folder)?;
    if let Err(error) = delete_old(&settings.folder, key, attempt, settings.keep) {
        tracing::warn!("old checkpoints could not be deleted: {error}");
    }
    Ok(path)
}

/// Waits for what the other ranks have written, and takes it in.
fn gather_parts(commit: &mut Commit) -> Result<()> {
    let WriterSettings { ranks, deadline, .. } = *commit.settings;
    let give_up = Instant::now() + deadline;
    let mut missing: BTreeSet<usize> = (1..ranks).collect();
    loop {
        for rank in missing.clone() {
            let path = commit.folder.join(layout::part_file_name(rank));
            match layout::read_document(&path) {
                Ok(Part::Files(files)) => {
                    commit.files.extend(files);
                    missing.remove(&rank);
                    fs::remove_file(&path).map_err(Error::file(&path))?;
                }
                Ok(Part::Failed(why)) => {
                    let what = format!("rank {rank} could not write its part: {why}");
                    return Err(Error::checkpoint(commit.folder, what));
                }
                Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        if commit.abandoned.load(Ordering::Relaxed) {
            return Err(Error::checkpoint(commit.folder, "was given up before all parts came"));
        }
        if Instant::now() >= give_up {
            let what = format!(
                "no part of {} came in {deadline:?}; all hosts must see one folder there",
                list_ranks(&missing)
            );
            return Err(Error::checkpoint(commit.folder, what));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn list_ranks(ranks: &BTreeSet<usize>) -> String {
    let names: Vec<String> = ranks.iter().take(MOST_NAMED).map(usize::to_string).collect();
    let more = match ranks.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{word} {}{more}", names.join(", "))
}

/// Waits until the names in a folder are on the disk.
fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file(folder))
}

/// A name that nothing has. A checkpoint of the same step may be there: a damaged one, which was passed over.
fn free_key(folder: &Path, step: u64) -> Result<Key> {
    let mut key = Key { step, copy: 0 };
    loop {
        let path = folder.join(key.folder_name());
        if !path.try_exists().map_err(Error::file(&path))? {
            return Ok(key);
        }
        key.copy += 1;
    }
}

/// Deletes what is older than the `keep` newest whole checkpoints up to the one just written, and what attempts before
/// this one have left.
fn delete_old(folder: &Path, newest: Key, attempt: Attempt, keep: NonZeroUsize) -> Result<()> {
    let mut checkpoints = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file(folder))? {
        let name = entry.map_err(Error::file(folder))?.file_name().to_string_lossy().into_owned();
        if let Some(key) = Key::from_folder_name(&name) {
            checkpoints.push(key);
        } else if layout::is_partial(&name) && !is_to_come(&name, attempt) {
            let path = folder.join(name);
            fs::remove_dir_all(&path).map_err(Error::file(&path))?;
        }
    }
    checkpoints.retain(|key| *key <= newest);
    checkpoints.sort_by(|a, b| b.cmp(a));
    let mut kept = 0;
    for key in checkpoints {
        let path = folder.join(key.folder_name());
        if kept < keep.get() {
            kept += usize::from(key == newest || Checkpoint::open(&path).is_ok());
            continue;
        }
        // Under another name first, so that a half-deleted one is not taken for a damaged one.
        let deleted = folder.join(layout::deleted_name(key));
        fs::rename(&path, &deleted).map_err(Error::file(&path))?;
        fs::remove_dir_all(&deleted).map_err(Error::file(&deleted))?;
    }
    Ok(())
}

/// Whether other ranks may be writing there already: they do not wait for rank 0.
fn is_to_come(name: &str, attempt: Attempt) -> bool {
    Attempt::from_folder_name(name)
        .is_some_and(|other| other.run == attempt.run && other.save > attempt.save)
}
