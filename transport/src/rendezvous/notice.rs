//! A file that tells where the store is, for ranks that share a folder and know no address.
//!
//! Whoever hosts the store writes the file when it listens, in one step, and removes it in the end:
//!
//! ```text
//! ringtree rendezvous
//! 10.0.0.1:40000
//! 6c9f..                  the tag: a digest of the job's secret, its name and the line above
//! ```
//!
//! Without the right tag it is not believed: another job's file, or one that an earlier run with
//! another secret left behind, is as good as none. One that a killed run of the same job left
//! behind names a store that is gone; ranks read the file again for each attempt to connect, until
//! the host of the new run has replaced it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::StoreError;
use crate::host_port::HostPort;
use crate::secure::{Job, hexadecimal, random_bytes};

/// First line of the file.
const TITLE: &str = "ringtree rendezvous";

/// More than such a file ever has.
const LIMIT_BYTES: u64 = 1024;

/// Where ranks meet, as `RINGTREE_RENDEZVOUS` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// `host:port`.
    Address(&'a str),
    /// `file:/path`: a file that tells the address.
    File(&'a Path),
}

impl Place<'_> {
    /// What a setting means. Whether an address is one shows only when it is used.
    pub fn of(setting: &str) -> Place<'_> {
        match setting.strip_prefix("file:") {
            Some(path) => Place::File(Path::new(path)),
            None => Place::Address(setting),
        }
    }
}

/// The file, as long as the store is there. Dropping it removes the file, unless another one has
/// taken its place; a forked child leaves it alone.
#[derive(Debug)]
pub struct Notice {
    path: PathBuf,
    text: String,
    process: u32,
}

impl Notice {
    /// Tells in a file at `path` that the job's store is at `address`. What was there before is
    /// replaced.
    ///
    /// # Errors
    /// [`StoreError::Notice`].
    pub fn publish(path: &Path, job: &Job, address: &HostPort) -> Result<Notice, StoreError> {
        let text = text_of(job, &address.to_string());
        write_in_one_step(path, &text).map_err(|error| StoreError::Notice {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Notice { path: path.into(), text, process: std::process::id() })
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        if self.process == std::process::id() && read(&self.path).is_ok_and(|it| it == self.text) {
            // Gone already if it cannot be removed, or for someone else to remove.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The address in the file at `path`, or why there is none to believe.
pub(super) fn address_in(path: &Path, job: &Job) -> Result<String, String> {
    let text = read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "it is not there".to_owned(),
        _ => error.to_string(),
    })?;
    let mut lines = text.lines();
    match (lines.next(), lines.next()) {
        (Some(TITLE), Some(address)) if text == text_of(job, address) => Ok(address.into()),
        (Some(TITLE), Some(_)) => Err("it is of another job, or of another secret".into()),
        _ => Err("it is not one that Ringtree wrote".into()),
    }
}

fn text_of(job: &Job, address: &str) -> String {
    let told = [job.name.as_bytes(), &[0], address.as_bytes()].concat();
    let tag = job.secret.tag("ringtree: rendezvous file", &told);
    format!("{TITLE}\n{address}\n{tag}\n")
}

/// Nobody ever sees a part of it.
fn write_in_one_step(path: &Path, text: &str) -> io::Result<()> {
    let random = random_bytes::<8>().map_err(io::Error::other)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
    name.push(format!(".{}", hexadecimal(&random)));
    let beside = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LIMIT_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
