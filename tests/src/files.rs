//! Files that are gone when a test is over.

use std::path::{Path, PathBuf};

/// A file that is removed when this is dropped.
#[derive(Debug)]
pub struct TemporaryFile(PathBuf);

impl TemporaryFile {
    /// A file of this process, whose name ends like this, with a text in it.
    pub fn new(name: &str, text: &str) -> TemporaryFile {
        let path = std::env::temp_dir().join(format!("ringtree-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("a file");
        TemporaryFile(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
