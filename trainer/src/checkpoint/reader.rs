//! Finds and reads checkpoints. Nothing in them is believed before it was checked.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::State;
use super::layout::{self, Content, FileRecord, Key};
use super::pieces::Pieces;
use super::tensors::{self, TensorFile};
use crate::optimiser::StateKind;
use crate::real::Real;
use crate::{Error, Result};

/// What [`latest`] found.
#[derive(Debug)]
pub struct Found {
    /// The newest whole checkpoint; `None` where there is none.
    pub checkpoint: Option<Checkpoint>,
    /// Why each newer one, and each that was never finished, cannot be used.
    pub unusable: Vec<Error>,
}

/// Seeks the newest checkpoint of a folder whose files have the lengths and checksums that they were written with. It
/// warns of each that it passes over. All of the data is read: one rank should do it and tell the others which
/// ([`Checkpoint::path`]), who [`Checkpoint::open`] it.
///
/// # Errors
///
/// [`Error::File`] if the folder cannot be read. One that does not exist has no checkpoint.
pub fn latest(folder: &Path) -> Result<Found> {
    let mut found = Found { checkpoint: None, unusable: Vec::new() };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(Error::file(folder)(error)),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::file(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if layout::is_partial(&name) {
            found.pass_over(Error::checkpoint(&entry.path(), "was never finished"));
        }
        keys.extend(Key::from_folder_name(&name));
    }
    keys.sort_by(|a, b| b.cmp(a));
    for key in keys {
        let path = folder.join(key.folder_name());
        match Checkpoint::open(&path)
            .and_then(|checkpoint| checkpoint.verify().map(|()| checkpoint))
        {
            Ok(checkpoint) => {
                found.checkpoint = Some(checkpoint);
                break;
            }
            Err(error) => found.pass_over(error),
        }
    }
    Ok(found)
}

impl Found {
    fn pass_over(&mut self, error: Error) {
        tracing::warn!("passed over: {error}");
        self.unusable.push(error);
    }
}

/// A checkpoint, open for reading.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    content: Content,
    parameters: TensorFile,
    pieces: Pieces,
}

impl Checkpoint {
    /// Opens a checkpoint's folder. Lengths, headers and that nothing is missing are checked here, the data by
    /// [`Checkpoint::verify`].
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::Checkpoint`] name the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let content = layout::read_state(&path.join(layout::STATE))?;
        let mut parameters = None;
        let mut optimiser = Vec::new();
        for record in &content.files {
            let file = open_file(path, record)?;
            if record.name == layout::PARAMETERS {
                parameters = Some(file);
            } else {
                optimiser.push(file);
            }
        }
        let parameters = parameters.ok_or_else(|| {
            Error::checkpoint(path, format!("has no {} by its state", layout::PARAMETERS))
        })?;
        let pieces = Pieces::new(path, &parameters, optimiser)?;
        Ok(Checkpoint { path: path.to_owned(), content, parameters, pieces })
    }

    /// Reads all of the data and compares its checksums.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] names the first file that differs.
    pub fn verify(&self) -> Result<()> {
        for record in &self.content.files {
            let path = self.path.join(&record.name);
            if tensors::checksum(&path)? != record.crc32 {
                let what = "is damaged: its checksum is not the one that it was written with";
                return Err(Error::checkpoint(&path, what));
            }
        }
        Ok(())
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the training stood.
    pub fn state(&self) -> &State {
        &self.content.state
    }

    /// How many ranks wrote it.
    pub fn ranks(&self) -> usize {
        self.content.ranks
    }

    /// The names of parameters and buffers.
    pub fn names(&self) -> Vec<String> {
        self.parameters.names()
    }

    /// The shape of a parameter or buffer.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.parameters.shape(name)
    }

    /// Reads a whole parameter or buffer.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there is none of the name, or its type or number of elements is another.
    pub fn read<T: Real>(&self, name: &str, values: &mut [T]) -> Result<()> {
        let elements: Option<usize> = self.shape(name).map(|shape| shape.iter().product());
        if elements.is_some_and(|elements| elements != values.len()) {
            let (has, wanted) = (elements.unwrap_or(0), values.len());
            let what = format!("has {has} elements of {name}, and {wanted} are wanted");
            return Err(Error::checkpoint(&self.path, what));
        }
        self.parameters.read(name, 0, values)
    }

    /// Whether it has an array of the optimiser's state for a parameter.
    pub fn has_state(&self, kind: StateKind, parameter: &str) -> bool {
        self.pieces.has(kind, parameter)
    }

    /// Reads elements of the optimiser's state for a parameter, from `first_element` on, as many as there is room for,
    /// whatever pieces they were written in.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if it does not have them, or in another type.
    pub fn read_state<T: Real>(
        &self,
        kind: StateKind,
        parameter: &str,
        first_element: usize,
        values: &mut [T],
    ) -> Result<()> {
        self.pieces.read(kind, parameter, first_element, values)
    }
}

/// Opens a file of tensors that the state tells of, if it is one and has the length.
fn open_file(folder: &Path, record: &FileRecord) -> Result<TensorFile> {
    let FileRecord { name, bytes, .. } = record;
    let is_optimisers = name.starts_with("optimiser-") && !name.contains('/');
    if name != layout::PARAMETERS && !is_optimisers {
        return Err(Error::checkpoint(
            folder,
            format!("its state tells of a strange file {name:?}"),
        ));
    }
    let path = folder.join(name);
    let has_bytes = fs::metadata(&path).map_err(Error::file(&path))?.len();
    if has_bytes != *bytes {
        let what = format!("is damaged: it has {has_bytes} bytes, and was written with {bytes}");
        return Err(Error::checkpoint(&path, what));
    }
    TensorFile::open(path)
}
