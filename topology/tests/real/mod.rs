//! Where the files of real machines are, which are no part of the project: in the folder that RINGTREE_TEST_TOPOLOGIES
//! names, or in `shared/topologies` beside the checkout.

use std::path::PathBuf;

/// The folder; without it tests are skipped, and say so.
pub fn folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/topologies");
    let named = std::env::var_os("RINGTREE_TEST_TOPOLOGIES");
    let folder = named.map_or_else(|| PathBuf::from(beside), PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: there is no {}, and RINGTREE_TEST_TOPOLOGIES names none", folder.display());
    None
}
