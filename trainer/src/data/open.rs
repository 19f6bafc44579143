//! Data by name: the built-in digits, a text, or a folder of texts or of images.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::folder::entries;
use super::{Dataset, ImageSize, Images, Split, Text, digits};
use crate::{Error, Result};

/// How data is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSettings {
    /// Characters of text that a model sees at once.
    pub block: usize,
    /// The size to which images are scaled; without it, all must be of one size.
    pub image_size: Option<ImageSize>,
}

impl Default for DataSettings {
    /// Blocks of 64 characters; images as they are.
    fn default() -> DataSettings {
        DataSettings { block: 64, image_size: None }
    }
}

/// Data to learn from.
#[derive(Clone)]
pub struct Data {
    /// Of which kind it is.
    pub kind: DataKind,
    /// What is learnt from.
    pub train: Arc<dyn Dataset>,
    /// What shows how well that went.
    pub validation: Arc<dyn Dataset>,
}

/// A kind of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// The digits that come with the trainer.
    Digits,
    /// Text by character.
    Text,
    /// Images of several classes.
    Images,
}

/// Opens the data that `spec` names: `digits`, a text file, a folder of `.txt` files (which are read in the order of
/// their names), or a folder that has a folder of images for each class ([`Images::from_folder`]).
///
/// # Errors
///
/// [`Error::Data`] or [`Error::File`] names what is missing, empty or damaged; all is read here, so that no step
/// fails for it.
pub fn open(spec: &str, settings: &DataSettings) -> Result<Data> {
    let path = Path::new(spec);
    if spec == "digits" {
        return Ok(data(DataKind::Digits, digits()));
    }
    if !path.exists() {
        return Err(Error::Data {
            path: path.to_owned(),
            what: "is not there".into(),
            remedy: "give `digits`, a text file, or a folder".into(),
        });
    }
    if path.is_file() {
        let text = Text::from_files(&[path.to_owned()], settings.block)?;
        return Ok(data(DataKind::Text, text));
    }
    if !path.is_dir() {
        return Err(Error::Data {
            path: path.to_owned(),
            what: "is neither a file nor a folder".into(),
            remedy: "give a file that can be read more than once".into(),
        });
    }
    let mut texts = entries(path)?;
    texts.retain(|path| path.is_file() && path.extension().is_some_and(|e| e == "txt"));
    if !texts.is_empty() {
        return Ok(data(DataKind::Text, Text::from_files(&texts, settings.block)?));
    }
    Ok(data(DataKind::Images, Images::from_folder(path, settings.image_size)?))
}

fn data<D: Dataset + 'static>(kind: DataKind, split: Split<D>) -> Data {
    Data { kind, train: Arc::new(split.train), validation: Arc::new(split.validation) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open_in(folder: &Path) -> Result<Data> {
        open(folder.to_str().expect("a name of plain letters"), &DataSettings::default())
    }

    #[test]
    fn the_name_tells_which_kind_it_is() {
        let settings = DataSettings::default();
        assert_eq!(open("digits", &settings).expect("built in").kind, DataKind::Digits);

        let folder = tempfile::tempdir().expect("a folder");
        let text = folder.path().join("b.txt");
        fs::write(&text, "to be or not to be ".repeat(50)).expect("a file");
        assert_eq!(open_in(&text).expect("a text").kind, DataKind::Text);

        fs::write(folder.path().join("a.txt"), "x".repeat(10)).expect("a file");
        let data = open_in(folder.path()).expect("a folder of texts");
        assert_eq!(data.kind, DataKind::Text);
        assert_eq!(data.train.len() + 64, 960 - 96, "both files");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = open_in(&folder.path().join("digit")).err().expect("not there").to_string();
        assert!(error.contains("digit: is not there; give `digits`"), "{error}");
        let error = open_in(Path::new("/dev/null")).err().expect("a device").to_string();
        assert!(error.contains("null: is neither a file nor a folder"), "{error}");
        let error = open_in(folder.path()).err().expect("an empty folder").to_string();
        assert!(error.contains("has no folder in it"), "{error}");
    }
}
