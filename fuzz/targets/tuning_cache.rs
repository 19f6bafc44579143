//! A table of measured times as it lies in the cache.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ringtree::TuningCache;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("ringtree-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let cache = TuningCache::at(&*FOLDER);
    fs::write(FOLDER.join("table.json"), bytes).expect("a file");
    let tables = cache.tables().expect("the folder can be read");
    // Whatever its text is, its name is not that of its ranks.
    assert!(matches!(&tables[..], [(_, Err(_))]), "{tables:?}");
});
