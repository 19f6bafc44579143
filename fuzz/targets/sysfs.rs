//! A machine's files as its kernel shows them: a line `== path` begins a file, a line `== path -> target` is a link.
//! Something is found or refused, whatever is in them, and what is found can be used.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ringtree_topology::{Graph, Machine, Roots, detect, table};

static FOLDER: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("ringtree-fuzz-{}", std::process::id())));

fuzz_target!(|text: &str| {
    // What the input before this one has left.
    let _ = fs::remove_dir_all(&*FOLDER);
    fs::create_dir_all(FOLDER.join("sys/devices")).expect("a folder");
    for block in text.split("== ").skip(1) {
        let (head, content) = block.split_once('\n').unwrap_or((block, ""));
        write(head, content);
    }
    let machine = detect(&Roots::recorded(&*FOLDER)).expect("there is a sysfs");
    let (graph, _) = Graph::new(&machine);
    let _ = table(&machine, &graph);
    Machine::from_xml(&machine.to_xml()).expect("what was written can be read");
});

/// Writes a file or a link below the folder, unless it leads elsewhere or something is in the way.
fn write(head: &str, content: &str) {
    let (path, target) = head.split_once(" -> ").map_or((head, None), |(p, t)| (p, Some(t)));
    let is_below = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let path = FOLDER.join(path);
    let Some(parent) = path.parent().filter(|_| is_below) else { return };
    // Nothing is written through a link.
    if parent.canonicalize().is_ok_and(|real| real != parent) || fs::create_dir_all(parent).is_err()
    {
        return;
    }
    let _ = match target {
        Some(target) => symlink(target, path),
        None => fs::write(path, content),
    };
}
