//! Rules about the workspace itself: which crate may import which, and how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// No source file may be longer.
const MOST_LINES: usize = 700;

/// `plan`, `topology` and `transport` import no other crate of the workspace; `collectives` imports
/// those; everything else stands on top. Development dependencies count too.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("ringtree-plan", &[]),
    ("ringtree-topology", &[]),
    ("ringtree-transport", &[]),
    ("ringtree", &["ringtree-plan", "ringtree-topology", "ringtree-transport"]),
    ("ringtree-loom-tests", &[]),
    ("ringtree-launcher", &["ringtree", "ringtree-transport"]),
    (
        "ringtree-trainer",
        &["ringtree", "ringtree-cuda-standin", "ringtree-launcher", "ringtree-tests"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").into()
}

/// For each package of the workspace, the packages of the workspace that it names.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_string();
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let dependencies = |package: &Value| {
        let all = package["dependencies"].as_array().expect("dependencies").iter().map(name);
        all.filter(|dependency| ours.contains(dependency)).collect()
    };
    packages.iter().map(|package| (name(package), dependencies(package))).collect()
}

#[test]
fn crates_import_only_what_lies_below_them() {
    let imports = imports();
    for (package, allowed) in ALLOWED {
        let imported = imports.get(package).unwrap_or_else(|| panic!("no package {package}"));
        let too_much: Vec<_> = imported.iter().filter(|i| !allowed.contains(&i.as_str())).collect();
        assert!(too_much.is_empty(), "{package} must not import {too_much:?}");
    }
    for (package, imported) in imports {
        assert!(!imported.contains("ringtree-cli"), "{package} imports the tool");
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut too_long = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a readable folder").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && !name.starts_with("target") {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let lines = std::fs::read_to_string(&path).expect("text").lines().count();
                if lines > MOST_LINES {
                    too_long.push((path, lines));
                }
            }
        }
    }
    assert!(too_long.is_empty(), "over {MOST_LINES} lines: {too_long:?}");
}
