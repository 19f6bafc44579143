//! Writes checkpoints on a thread of its own, while the training goes on.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::commit::{Commit, commit};
use super::layout::{self, Attempt, FileRecord, Part};
use super::{Snapshot, tensors};
use crate::{Error, Result};

/// Where and with whom a rank writes.
#[derive(Clone, Debug)]
pub struct WriterSettings {
    /// The folder of all checkpoints, the same for all ranks, on all hosts.
    pub folder: PathBuf,
    /// This rank.
    pub rank: usize,
    /// How many ranks there are.
    pub ranks: usize,
    /// A number that all ranks of this run share and no run before had: random, from rank 0. By it nothing of a run
    /// that was killed is taken for this one's.
    pub run: u64,
    /// How many checkpoints stay; older ones are deleted.
    pub keep: NonZeroUsize,
    /// How long rank 0 waits for the other ranks' parts, and a save for the one before.
    pub deadline: Duration,
}

/// Writes one rank's parts of checkpoints in the background; rank 0's puts them together. All ranks must save the same
/// steps.
#[derive(Debug)]
pub struct Writer {
    settings: Arc<WriterSettings>,
    /// How many saves were begun or refused: the same number at all ranks.
    saves: u64,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    folder: PathBuf,
    thread: JoinHandle<()>,
    outcome: Receiver<Result<Option<PathBuf>>>,
    abandoned: Arc<AtomicBool>,
}

impl Writer {
    /// Makes the folder, if it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if that cannot be.
    pub fn new(settings: WriterSettings) -> Result<Writer> {
        fs::create_dir_all(&settings.folder).map_err(Error::file(&settings.folder))?;
        Ok(Writer { settings: Arc::new(settings), saves: 0, running: None })
    }

    /// Begins to write, and returns how the save before ended, as [`Writer::finish`] does. If that still runs, it is
    /// waited for.
    ///
    /// # Errors
    ///
    /// Those of the save *before*; this one has begun all the same, so that the ranks stay together. Only if the save
    /// before has not ended by the deadline, this one is not begun.
    pub fn save(&mut self, snapshot: Snapshot) -> Result<Option<PathBuf>> {
        self.saves += 1;
        let before = self.finish(self.settings.deadline);
        if self.running.is_none() {
            self.running = Some(self.start(snapshot)?);
        }
        before
    }

    /// Whether a save has begun that has not ended.
    pub fn is_busy(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.thread.is_finished())
    }

    /// Waits until the last save has ended, at most so long. At rank 0 it returns the checkpoint's folder; at others
    /// `None`, as where nothing was saved since it was last asked: they have written their part, and know no more.
    ///
    /// # Errors
    ///
    /// [`Error::File`] names the file and why it could not be written, [`Error::Checkpoint`] the ranks whose parts did
    /// not come, or that it takes longer. Earlier checkpoints are as they were.
    pub fn finish(&mut self, deadline: Duration) -> Result<Option<PathBuf>> {
        let Some(running) = &self.running else { return Ok(None) };
        let outcome = match running.outcome.recv_timeout(deadline) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                let what = format!(
                    "is still being written after {deadline:?}; save less often, or to a faster disk"
                );
                return Err(Error::checkpoint(&running.folder, what));
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::checkpoint(&running.folder, "the thread that wrote it has panicked"))
            }
        };
        self.join();
        outcome
    }

    fn start(&self, snapshot: Snapshot) -> Result<Running> {
        let WriterSettings { run, folder, .. } = self.settings.as_ref();
        let attempt = Attempt { step: snapshot.state.step, run: *run, save: self.saves };
        let folder = folder.join(attempt.folder_name());
        let settings = self.settings.clone();
        let abandoned = Arc::new(AtomicBool::new(false));
        let (tell, outcome) = sync_channel(1);
        let work = {
            let (folder, abandoned) = (folder.clone(), abandoned.clone());
            move || {
                let outcome = write(&settings, attempt, &folder, &snapshot, &abandoned);
                // Nobody listens any more if the writer was dropped.
                let _ = tell.send(outcome);
            }
        };
        let thread = thread::Builder::new().name("ringtree-checkpoint".into()).spawn(work);
        let thread = thread.map_err(Error::file(&folder))?;
        Ok(Running { folder, thread, outcome, abandoned })
    }

    fn join(&mut self) {
        if let Some(running) = self.running.take() {
            // A panic is known from the channel, and was printed.
            let _ = running.thread.join();
        }
    }
}

/// Whoever wants the last checkpoint calls [`Writer::finish`] first: here nobody is waited for but the disk.
impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abandoned.store(true, Ordering::Relaxed);
        }
        self.join();
    }
}

fn write(
    settings: &WriterSettings,
    attempt: Attempt,
    folder: &Path,
    snapshot: &Snapshot,
    abandoned: &AtomicBool,
) -> Result<Option<PathBuf>> {
    let files = write_files(settings, folder, snapshot);
    if settings.rank != 0 {
        return leave_part(settings, folder, files).map(|()| None);
    }
    let committed = files.and_then(|files| {
        let state = &snapshot.state;
        commit(Commit { settings, attempt, folder, state, files, abandoned })
    });
    if committed.is_err()
        && let Err(error) = fs::remove_dir_all(folder)
    {
        tracing::warn!("{}: cannot be removed: {error}", folder.display());
    }
    committed.map(Some)
}

/// Writes what is this rank's.
fn write_files(
    settings: &WriterSettings,
    folder: &Path,
    snapshot: &Snapshot,
) -> Result<Vec<FileRecord>> {
    fs::create_dir_all(folder).map_err(Error::file(folder))?;
    let mut files = Vec::new();
    if settings.rank == 0 {
        files.push(tensors::write(&folder.join(layout::PARAMETERS), &snapshot.parameters)?);
    }
    if !snapshot.pieces.is_empty() {
        let path = folder.join(layout::optimiser_file_name(settings.rank, settings.ranks));
        files.push(tensors::write(&path, &snapshot.pieces)?);
    }
    Ok(files)
}

/// Tells rank 0 what was written, or why it was not. The file appears whole.
fn leave_part(
    settings: &WriterSettings,
    folder: &Path,
    files: Result<Vec<FileRecord>>,
) -> Result<()> {
    let WriterSettings { rank, ranks, .. } = *settings;
    let (part, outcome) = match files {
        Ok(files) => (Part::Files(files), Ok(())),
        Err(error) => {
            // Makes room on a full disk for the few bytes that say so.
            let _ = fs::remove_file(folder.join(layout::optimiser_file_name(rank, ranks)));
            (Part::Failed(error.to_string()), Err(error))
        }
    };
    let path = folder.join(layout::part_file_name(rank));
    let new = path.with_extension("new");
    let left = layout::write_document(&new, &part)
        .and_then(|()| fs::rename(&new, &path).map_err(Error::file(&path)));
    outcome.and(left)
}
