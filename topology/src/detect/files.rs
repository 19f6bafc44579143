//! Reading the files in which the kernel tells of the machine, below a folder that may be a recorded or a
//! hostile one: links are followed inside of it only, and what is read is bounded.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::machine::Warning;

/// No file that one value stands in is longer: the kernel's own limit is a page.
const MOST_BYTES: u64 = 4096;

/// `/proc/cpuinfo` of the first processors, and other tables of several lines, fit.
const MOST_TABLE_BYTES: u64 = 64 << 10;

/// No folder has more entries that are looked at. The largest hosts have some thousand PCI functions.
const MOST_ENTRIES: usize = 1 << 14;

/// As the kernel's own limit.
const MOST_LINKS: usize = 40;

/// More would help nobody.
const MOST_WARNINGS: usize = 1000;

/// What is found missing or absurd on the way.
#[derive(Debug, Default)]
pub(super) struct Warnings(RefCell<Vec<Warning>>);

impl Warnings {
    /// Notes something, once.
    pub fn add(&self, subject: impl ToString, message: impl Into<String>) {
        let warning = Warning { subject: subject.to_string(), message: message.into() };
        let mut all = self.0.borrow_mut();
        if all.len() < MOST_WARNINGS && !all.contains(&warning) {
            all.push(warning);
        }
    }

    /// All of them, in the order in which they were noted.
    pub fn into_inner(self) -> Vec<Warning> {
        self.0.into_inner()
    }
}

/// A file system of the kernel, or a copy of it.
#[derive(Debug)]
pub(super) struct Files<'w> {
    root: PathBuf,
    /// Where it is on a running system: what absolute links start with.
    mount: &'static str,
    pub warnings: &'w Warnings,
}

impl<'w> Files<'w> {
    /// `mount` is where it lies on a running system.
    pub fn new(root: &Path, mount: &'static str, warnings: &'w Warnings) -> Files<'w> {
        Files { root: root.into(), mount, warnings }
    }

    /// The uppermost folder.
    pub fn top(&self) -> Folder<'_> {
        Folder { files: self, path: PathBuf::new() }
    }

    /// The folder at `path`; `None` if there is none.
    pub fn folder(&self, path: &str) -> Option<Folder<'_>> {
        self.top().folder(path)
    }

    /// Where `path` leads from `start`, a folder without links in it, as a path below the root without
    /// links. `..` above the root stays there, as in a changed root.
    fn resolve(&self, start: &Path, path: &Path) -> Option<PathBuf> {
        let mut resolved = start.to_path_buf();
        let mut pending = Vec::new();
        push_reversed(path, &mut pending);
        let mut links = 0;
        while let Some(part) = pending.pop() {
            if part == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(part);
            let place = self.root.join(&next);
            if !fs::symlink_metadata(&place).ok()?.is_symlink() {
                resolved = next;
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                self.warnings.add(next.display(), "a link that leads round in circles, left out");
                return None;
            }
            let target = fs::read_link(&place).ok()?;
            if target.is_absolute() {
                resolved = PathBuf::new();
            }
            push_reversed(target.strip_prefix(self.mount).unwrap_or(&target), &mut pending);
        }
        Some(resolved)
    }
}

/// The parts of a path, so that the first one is popped first.
fn push_reversed(path: &Path, pending: &mut Vec<OsString>) {
    let parts = path.components().rev().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    });
    pending.extend(parts);
}

/// A folder of such a file system.
#[derive(Clone, Debug)]
pub(super) struct Folder<'f> {
    pub files: &'f Files<'f>,
    /// Below the root, without links.
    path: PathBuf,
}

impl<'f> Folder<'f> {
    /// Where it is below the root, after all links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder at `path`; `None` if there is none.
    pub fn folder(&self, path: &str) -> Option<Folder<'f>> {
        let path = self.files.resolve(&self.path, Path::new(path))?;
        let is_folder = fs::metadata(self.files.root.join(&path)).is_ok_and(|found| found.is_dir());
        is_folder.then_some(Folder { files: self.files, path })
    }

    /// Whether there is something at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.files.resolve(&self.path, Path::new(path)).is_some()
    }

    /// The names of its entries, numbers in names in the order of numbers (`eth2` before `eth10`).
    pub fn names(&self) -> Vec<String> {
        let entries =
            fs::read_dir(self.files.root.join(&self.path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .take(MOST_ENTRIES + 1)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        if names.len() > MOST_ENTRIES {
            let message = format!("more than {MOST_ENTRIES} entries, the others are left out");
            self.files.warnings.add(self.path.display(), message);
            names.pop();
        }
        names.sort_by_cached_key(|name| natural(name));
        names
    }

    /// The text of a file with one value, without blanks around it; `None` if it cannot be read, is
    /// empty, or is no such file.
    pub fn text(&self, path: &str) -> Option<String> {
        let text = self.read(path, MOST_BYTES + 1)?;
        if text.len() as u64 > MOST_BYTES {
            let message =
                format!("longer than {MOST_BYTES} bytes where one value should be, ignored");
            self.files.warnings.add(self.path.join(path).display(), message);
            return None;
        }
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// The beginning of a file with a table in it; empty if it cannot be read.
    pub fn table(&self, path: &str) -> String {
        self.read(path, MOST_TABLE_BYTES).unwrap_or_default()
    }

    /// The number that a file consists of; `None` if it cannot be read or is none.
    pub fn number<N: FromStr>(&self, path: &str) -> Option<N> {
        self.text(path)?.parse().ok()
    }

    /// The hexadecimal number, with or without `0x`, that a file consists of.
    pub fn hexadecimal(&self, path: &str) -> Option<u64> {
        let text = self.text(path)?;
        u64::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
    }

    /// What the link at `name` ends with, whether or not there is something where it leads.
    pub fn link_name(&self, name: &str) -> Option<String> {
        let target = self.link(name)?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// The text of the link at `name`.
    pub fn link(&self, name: &str) -> Option<PathBuf> {
        fs::read_link(self.files.root.join(&self.path).join(name)).ok()
    }

    fn read(&self, path: &str, most_bytes: u64) -> Option<String> {
        let place = self.files.root.join(self.files.resolve(&self.path, Path::new(path))?);
        // A pipe would block, a device do anything.
        if !fs::symlink_metadata(&place).ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        File::open(place).ok()?.take(most_bytes).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A key by which names with numbers in them are in the order of the numbers.
pub(super) fn natural(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, after) = rest.split_at(digits);
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(end);
        key.push((text.to_owned(), number.parse().unwrap_or(u64::MAX)));
        rest = after;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn made_up(name: &str) -> PathBuf {
        let root =
            std::env::temp_dir().join(format!("ringtree-files-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("sys/devices/a/b")).unwrap();
        fs::create_dir_all(root.join("sys/class")).unwrap();
        fs::write(root.join("sys/devices/a/b/value"), "7\n").unwrap();
        fs::write(root.join("secret"), "outside").unwrap();
        root
    }

    #[test]
    fn links_are_followed_inside_only() {
        let root = made_up("links");
        let link =
            |target: &str, name: &str| symlink(target, root.join("sys/class").join(name)).unwrap();
        link("../devices/a/b", "relative");
        link("/sys/devices/a/b", "absolute");
        link("../../secret", "above");
        link("/secret", "root");
        link(root.join("secret").to_str().unwrap(), "outside");
        link("two", "one");
        link("one", "two");
        let warnings = Warnings::default();
        let files = Files::new(&root.join("sys"), "/sys", &warnings);
        let class = files.folder("class").unwrap();
        for name in ["relative", "absolute"] {
            let folder = class.folder(name).unwrap();
            assert_eq!(folder.path(), Path::new("devices/a/b"));
            assert_eq!(folder.number("value"), Some(7));
            assert_eq!(folder.number("../../../class/absolute/value"), Some(7));
        }
        for name in ["above", "root", "outside", "one"] {
            assert_eq!(class.text(name), None, "{name}");
        }
        assert!(files.folder("../../../../../secret").is_none());
        let warnings = warnings.into_inner();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].message.contains("circles"), "{warnings:?}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn long_files_and_pipes_are_no_values() {
        let root = made_up("long");
        let folder = root.join("sys/devices/a");
        File::create(folder.join("huge")).unwrap().set_len(100 << 20).unwrap();
        nix::unistd::mkfifo(&folder.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(folder.join("blank"), " \n").unwrap();
        let warnings = Warnings::default();
        let files = Files::new(&root.join("sys"), "/sys", &warnings);
        let a = files.folder("devices/a").unwrap();
        assert_eq!(a.number::<u32>("huge"), None);
        assert_eq!(a.table("huge").len() as u64, MOST_TABLE_BYTES);
        for name in ["pipe", "blank", "b", "none"] {
            assert_eq!(a.text(name), None, "{name}");
        }
        assert_eq!(warnings.into_inner().len(), 1);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let mut names = ["eth10", "eth2", "mlx5_11", "mlx5_2", "eth2np1", "a"];
        names.sort_by_cached_key(|name| natural(name));
        assert_eq!(names, ["a", "eth2", "eth2np1", "eth10", "mlx5_2", "mlx5_11"]);
    }
}
