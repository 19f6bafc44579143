//! The optimiser's state in a checkpoint, whatever pieces it was written in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::layout;
use super::tensors::TensorFile;
use crate::optimiser::StateKind;
use crate::real::Real;
use crate::{Error, Result};

/// All pieces of all ranks.
#[derive(Debug)]
pub(super) struct Pieces {
    /// The checkpoint's folder, for messages.
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// For each kind and parameter its pieces in order, without gap or overlap.
    arrays: BTreeMap<(StateKind, String), Vec<Piece>>,
}

#[derive(Debug)]
struct Piece {
    /// Which of [`Pieces::files`].
    file: usize,
    /// The tensor's.
    name: String,
    first_element: usize,
    elements: usize,
}

impl Pieces {
    /// Puts the pieces in order, and checks that those of each array are all that its parameter has elements.
    pub(super) fn new(
        folder: &Path,
        parameters: &TensorFile,
        files: Vec<TensorFile>,
    ) -> Result<Pieces> {
        let failed = |what| Error::checkpoint(folder, what);
        let mut arrays: BTreeMap<_, Vec<Piece>> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                let (Some((kind, parameter, first_element)), Some(&[elements])) =
                    (layout::parse_piece_name(&name), file.shape(&name))
                else {
                    return Err(failed(format!("{name:?} is no piece of an optimiser's state")));
                };
                let array = arrays.entry((kind, parameter.to_owned())).or_default();
                array.push(Piece { file: index, name, first_element, elements });
            }
        }
        for ((kind, parameter), pieces) in &mut arrays {
            pieces.sort_by_key(|piece| (piece.first_element, piece.elements));
            let shape = parameters.shape(parameter).ok_or_else(|| {
                failed(format!("has {kind} of {parameter}, and no such parameter"))
            })?;
            check_cover(pieces, shape.iter().product())
                .map_err(|what| failed(format!("{kind} of {parameter} {what}")))?;
        }
        Ok(Pieces { folder: folder.to_owned(), files, arrays })
    }

    pub(super) fn has(&self, kind: StateKind, parameter: &str) -> bool {
        self.arrays.contains_key(&(kind, parameter.to_owned()))
    }

    pub(super) fn read<T: Real>(
        &self,
        kind: StateKind,
        parameter: &str,
        first_element: usize,
        mut values: &mut [T],
    ) -> Result<()> {
        let failed = |what| Error::checkpoint(&self.folder, what);
        let pieces = self.arrays.get(&(kind, parameter.to_owned()));
        let pieces = pieces.ok_or_else(|| failed(format!("has no {kind} of {parameter}")))?;
        let mut at = first_element;
        for piece in pieces {
            let skipped = at.saturating_sub(piece.first_element);
            if skipped >= piece.elements || values.is_empty() {
                continue;
            }
            let (now, rest) = values.split_at_mut(values.len().min(piece.elements - skipped));
            self.files[piece.file].read(&piece.name, skipped, now)?;
            at += now.len();
            values = rest;
        }
        if values.is_empty() {
            return Ok(());
        }
        let wanted = values.len();
        Err(failed(format!("{kind} of {parameter} has no {wanted} elements from number {at} on")))
    }
}

/// Whether pieces in order are all elements, each once; if not, what is wrong.
fn check_cover(pieces: &[Piece], elements: usize) -> std::result::Result<(), String> {
    let mut end = 0_usize;
    for Piece { first_element, elements, .. } in pieces {
        if *first_element > end {
            return Err(format!("has a gap: elements {end} to {} are missing", first_element - 1));
        }
        if *first_element < end {
            return Err(format!("has an overlap: element {first_element} is in two pieces"));
        }
        end = end.checked_add(*elements).ok_or("has more elements than there can be")?;
    }
    if end == elements {
        return Ok(());
    }
    Err(format!("has {end} elements, and the parameter has {elements}"))
}
