//! A file that tells where the ranks meet: nobody goes anywhere by one that is not of the job.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use ringtree_transport::rendezvous::{StoreClient, StoreError};
use ringtree_transport::secure::{Job, Secret};

static JOB: LazyLock<Job> =
    LazyLock::new(|| Job { name: "fuzzing".into(), secret: Secret::from_text("of nobody") });

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("ringtree-fuzz-{}", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    fs::write(&*FILE, bytes).expect("a file");
    let place = format!("file:{}", FILE.display());
    let error = StoreClient::connect(&place, &JOB, Instant::now()).expect_err("nobody serves");
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
});
