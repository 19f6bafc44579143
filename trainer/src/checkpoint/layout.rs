//! Names of folders and files, and the two JSON documents. What is read is bounded, and believed only after a check.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::State;
use crate::optimiser::StateKind;
use crate::{Error, Result};

pub(super) const PARAMETERS: &str = "parameters.safetensors";
pub(super) const STATE: &str = "state.json";
const PARTIAL: &str = ".partial";
const FORMAT: u32 = 1;

/// A document that is longer is refused: room for the order of a million parameters.
const MOST_DOCUMENT_BYTES: u64 = 16 << 20;

/// Which checkpoint of a folder: the step, and how many with the same step were there before. The latest is the
/// greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) step: u64,
    pub(super) copy: u64,
}

impl Key {
    pub(super) fn folder_name(self) -> String {
        match self.copy {
            0 => format!("step-{:010}", self.step),
            copy => format!("step-{:010}-{copy}", self.step),
        }
    }

    pub(super) fn from_folder_name(name: &str) -> Option<Key> {
        let numbers = name.strip_prefix("step-")?;
        let (step, copy) = numbers.split_once('-').unwrap_or((numbers, "0"));
        let key = Key { step: step.parse().ok()?, copy: copy.parse().ok()? };
        (key.folder_name() == name).then_some(key)
    }
}

/// One writing of one checkpoint. All ranks of a run count the same saves, so that they meet in one folder, where
/// nothing is from an earlier run or an earlier attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) step: u64,
    pub(super) run: u64,
    pub(super) save: u64,
}

impl Attempt {
    pub(super) fn folder_name(self) -> String {
        format!("step-{:010}.{:016x}-{}{PARTIAL}", self.step, self.run, self.save)
    }

    pub(super) fn from_folder_name(name: &str) -> Option<Attempt> {
        let (step, rest) = name.strip_suffix(PARTIAL)?.strip_prefix("step-")?.split_once('.')?;
        let (run, save) = rest.split_once('-')?;
        let run = u64::from_str_radix(run, 16).ok()?;
        Some(Attempt { step: step.parse().ok()?, run, save: save.parse().ok()? })
    }
}

/// Whether a folder holds a checkpoint that is not finished, or one that was being deleted.
pub(super) fn is_partial(name: &str) -> bool {
    name.starts_with("step-") && name.ends_with(PARTIAL)
}

/// What a checkpoint is called while it is deleted.
pub(super) fn deleted_name(key: Key) -> String {
    format!("{}.deleted{PARTIAL}", key.folder_name())
}

pub(super) fn optimiser_file_name(rank: usize, ranks: usize) -> String {
    format!("optimiser-{rank}-of-{ranks}.safetensors")
}

pub(super) fn part_file_name(rank: usize) -> String {
    format!("part-{rank}.json")
}

pub(super) fn piece_name(kind: StateKind, parameter: &str, first_element: usize) -> String {
    format!("{kind}/{parameter}/{first_element}")
}

/// The kind, the parameter and the first element.
pub(super) fn parse_piece_name(name: &str) -> Option<(StateKind, &str, usize)> {
    let (kind, rest) = name.split_once('/')?;
    let (parameter, first_element) = rest.rsplit_once('/')?;
    Some((StateKind::from_name(kind)?, parameter, first_element.parse().ok()?))
}

/// A file of a checkpoint as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) crc32: u32,
}

/// What a rank tells rank 0, in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Part {
    Files(Vec<FileRecord>),
    Failed(String),
}

/// What `state.json` tells, beside its format and checksum.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) ranks: usize,
    pub(super) state: State,
    pub(super) files: Vec<FileRecord>,
}

#[derive(Serialize, Deserialize)]
struct StateFile<C> {
    format: u32,
    /// Of `content` without spaces: a flipped digit is valid JSON too.
    crc32: u32,
    content: C,
}

pub(super) fn write_state(path: &Path, content: &Content) -> Result<()> {
    write_document(path, &StateFile { format: FORMAT, crc32: checksum(path, content)?, content })
}

pub(super) fn read_state(path: &Path) -> Result<Content> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bytes = read_bounded(path)?;
    let Format { format } = parse(path, &bytes)?;
    if format != FORMAT {
        let what = format!("its format is {format}, and this program knows {FORMAT} only");
        return Err(Error::checkpoint(path, what));
    }
    let file: StateFile<Content> = parse(path, &bytes)?;
    if file.crc32 != checksum(path, &file.content)? {
        return Err(Error::checkpoint(path, "its checksum is not that of its content"));
    }
    Ok(file.content)
}

fn checksum(path: &Path, content: &Content) -> Result<u32> {
    let text = serde_json::to_vec(content).map_err(|e| Error::checkpoint(path, e.to_string()))?;
    Ok(crc32fast::hash(&text))
}

/// Writes a document and waits until it is on the disk.
pub(super) fn write_document(path: &Path, document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(document).map_err(|e| Error::checkpoint(path, e.to_string()))?;
    if text.len() as u64 > MOST_DOCUMENT_BYTES {
        let what = format!("would have {} bytes, over {MOST_DOCUMENT_BYTES}", text.len());
        return Err(Error::checkpoint(path, what));
    }
    let mut file = File::create(path).map_err(Error::file(path))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(Error::file(path))
}

pub(super) fn read_document<D: DeserializeOwned>(path: &Path) -> Result<D> {
    parse(path, &read_bounded(path)?)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::file(path))?;
    let mut bytes = Vec::new();
    file.take(MOST_DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(Error::file(path))?;
    if bytes.len() as u64 > MOST_DOCUMENT_BYTES {
        return Err(Error::checkpoint(path, format!("has more than {MOST_DOCUMENT_BYTES} bytes")));
    }
    Ok(bytes)
}

/// serde_json stops at 128 levels by itself.
fn parse<D: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<D> {
    serde_json::from_slice(bytes).map_err(|e| Error::checkpoint(path, format!("is damaged: {e}")))
}
