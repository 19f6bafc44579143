//! Text by character: what comes next, at each place.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{Dataset, Facts, Input, Split, check_indices};
use crate::{Batch, Error, Result};

/// Blocks of characters, as numbers in a sorted vocabulary: input and target (samples, block), the target one character
/// further on.
#[derive(Clone, Debug)]
pub struct Text {
    /// Every character of the corpus, both parts in one.
    tokens: Arc<[u32]>,
    vocabulary: Arc<[char]>,
    block: usize,
    /// Where the first sample begins.
    start: usize,
    /// How far apart samples begin.
    stride: usize,
    len: usize,
}

impl Text {
    /// Reads one text or several, which follow one another. The first nine tenths are for training: a sample begins at
    /// each character. The last tenth is for validation, in blocks that do not overlap. The text is in memory, four
    /// bytes a character.
    ///
    /// # Errors
    ///
    /// [`Error::Data`] names the file that is not UTF-8 or empty, or the first if all are too short together;
    /// [`Error::File`] the one that cannot be read; [`Error::Argument`] for no file, or a block of no character.
    pub fn from_files(paths: &[PathBuf], block: usize) -> Result<Split<Text>> {
        let [first, ..] = paths else {
            return Err(Error::Argument("no text: give at least one file".into()));
        };
        if block == 0 {
            return Err(Error::Argument("a block of 0 characters: give at least 1".into()));
        }
        let text = paths.iter().map(|path| read(path)).collect::<Result<String>>()?;
        let vocabulary: Vec<char> = BTreeSet::from_iter(text.chars()).into_iter().collect();
        let token = |c: char| vocabulary.partition_point(|&other| other < c) as u32;
        let tokens: Arc<[u32]> = text.chars().map(token).collect();
        let train = tokens.len() - tokens.len() / 10;
        // A sample needs the character behind its block, too.
        if train <= block || tokens.len() - train <= block {
            return Err(too_short(first, tokens.len(), block));
        }
        let (vocabulary, validation) = (Arc::<[char]>::from(vocabulary), tokens.len() - train);
        let part = |start, stride, len| {
            let (tokens, vocabulary) = (Arc::clone(&tokens), Arc::clone(&vocabulary));
            Text { tokens, vocabulary, block, start, stride, len }
        };
        Ok(Split {
            train: part(0, 1, train - block),
            validation: part(train, block, (validation - 1) / block),
        })
    }

    /// The characters that tokens stand for: token `i` is the `i`-th.
    pub fn vocabulary(&self) -> &[char] {
        &self.vocabulary
    }
}

impl Dataset for Text {
    fn len(&self) -> usize {
        self.len
    }

    fn facts(&self) -> Facts {
        Facts { input: Input::Tokens { block: self.block }, classes: self.vocabulary.len() }
    }

    fn batch(&self, indices: &[usize], _: DType) -> Result<Batch> {
        check_indices(indices, self.len)?;
        let blocks = |shift: usize| {
            let tokens = indices.iter().flat_map(|index| {
                &self.tokens[self.start + index * self.stride + shift..][..self.block]
            });
            let tokens: Vec<u32> = tokens.copied().collect();
            Tensor::from_vec(tokens, (indices.len(), self.block), &Device::Cpu)
        };
        Ok(Batch { input: blocks(0)?, target: blocks(1)? })
    }
}

fn read(path: &Path) -> Result<String> {
    let refuse = |what: String, remedy: &str| {
        Err(Error::Data { path: path.to_owned(), what, remedy: remedy.into() })
    };
    match String::from_utf8(fs::read(path).map_err(Error::file(path))?) {
        Ok(text) if text.is_empty() => refuse("is empty".into(), "give a file with text"),
        Ok(text) => Ok(text),
        Err(error) => refuse(
            format!("is not UTF-8 from byte {} on", error.utf8_error().valid_up_to()),
            "give a text file, or convert this one",
        ),
    }
}

fn too_short(path: &Path, len: usize, block: usize) -> Error {
    Error::Data {
        path: path.to_owned(),
        what: format!(
            "has {len} characters, of which a tenth must hold a block of {block} and one more"
        ),
        remedy: format!("give at least {}, or set a smaller block", 10 * (block + 1)),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Files with these contents.
    fn files(contents: &[&[u8]]) -> (TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |(number, content): (usize, &&[u8])| {
            let path = folder.path().join(format!("{number}.txt"));
            fs::write(&path, content).expect("a file");
            path
        };
        let paths = contents.iter().enumerate().map(write).collect();
        (folder, paths)
    }

    fn refusal(contents: &[&[u8]], block: usize) -> String {
        let (_folder, paths) = files(contents);
        Text::from_files(&paths, block).expect_err("it must be refused").to_string()
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<u32>> {
        tensor.to_vec2().expect("tokens")
    }

    #[test]
    fn samples_are_blocks_and_what_follows_them() {
        // 20 characters: 18 to learn from, the last 2 for validation.
        let (_folder, paths) = files(&[b"abcabcabc\n", b"abcabcaz\xc3\xa4b"]);
        let Split { train, validation } = Text::from_files(&paths, 1).expect("long enough");
        assert_eq!(train.vocabulary(), ['\n', 'a', 'b', 'c', 'z', 'ä']);
        assert_eq!(train.facts(), Facts { input: Input::Tokens { block: 1 }, classes: 6 });
        assert_eq!((train.len(), validation.len()), (17, 1));
        let batch = train.batch(&[16, 0, 9], DType::F32).expect("samples");
        assert_eq!(rows(&batch.input), [[1], [1], [0]]);
        assert_eq!(rows(&batch.target), [[4], [2], [1]]);
        let batch = validation.batch(&[0], DType::F32).expect("a sample");
        assert_eq!((rows(&batch.input), rows(&batch.target)), (vec![vec![5]], vec![vec![2]]));
    }

    #[test]
    fn blocks_for_validation_do_not_overlap() {
        let text: String = ('a'..='z').cycle().take(100).collect();
        let (_folder, paths) = files(&[text.as_bytes()]);
        let Split { train, validation } = Text::from_files(&paths, 3).expect("long enough");
        assert_eq!((train.len(), validation.len()), (87, 3));
        let batch = validation.batch(&[0, 1, 2], DType::F32).expect("samples");
        // The 91st character is the 13th letter, m.
        assert_eq!(rows(&batch.input), [[12, 13, 14], [15, 16, 17], [18, 19, 20]]);
        assert_eq!(rows(&batch.target), [[13, 14, 15], [16, 17, 18], [19, 20, 21]]);
        assert!(train.batch(&[87], DType::F32).is_err());
    }

    #[test]
    fn what_cannot_be_learnt_from_is_refused_by_name() {
        let error = refusal(&[b"good", b""], 1);
        assert!(error.contains("1.txt: is empty"), "{error}");
        let error = refusal(&[b"abc\xff"], 1);
        assert!(error.contains("0.txt: is not UTF-8 from byte 3 on"), "{error}");
        let error = refusal(&[b"0123456789012345678"], 1);
        assert!(error.contains("0.txt: has 19 characters"), "{error}");
        assert!(error.contains("at least 20"), "{error}");
        let missing = Text::from_files(&["/nowhere/at/all.txt".into()], 1).expect_err("missing");
        assert!(missing.to_string().starts_with("/nowhere/at/all.txt: "), "{missing}");
    }
}
