//! Runs the program, and reads what it prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program with arguments that are separated by blanks.
pub fn ringtree(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(arguments.split_whitespace()).stdin(Stdio::null()).env_clear();
    command.output().expect("the program starts")
}

/// What it prints if it ends with this status and says nothing on standard error.
#[track_caller]
pub fn printed(arguments: &str, status: i32) -> String {
    let output = ringtree(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments}: {stderr}");
    assert_eq!(stderr, "", "{arguments}");
    String::from_utf8(output.stdout).expect("text")
}

/// The one line on standard error of what cannot be done.
#[track_caller]
pub fn refused(arguments: &str) -> String {
    let output = ringtree(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{arguments}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments}");
    stderr
}

/// A JSON document that it prints.
#[track_caller]
pub fn document(arguments: &str, status: i32) -> Value {
    serde_json::from_str(&printed(arguments, status)).expect("a document")
}

/// One of our own machines.
pub fn sample(name: &str) -> String {
    format!("{}/../topology/tests/files/{name}", env!("CARGO_MANIFEST_DIR"))
}

pub const SAMPLES: [&str; 4] =
    ["nvlink-pairs.xml", "card-at-x8.xml", "flat-virtual-machine.xml", "nvswitch-8gpu-8nic.xml"];

/// A folder that is removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let folder =
            std::env::temp_dir().join(format!("ringtree-topo-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Folder(folder)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// With this text in it.
    pub fn file(&self, name: &str, text: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("a folder");
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left there does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
