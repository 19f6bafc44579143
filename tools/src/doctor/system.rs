//! What the checks read: the files in which Linux says how a machine is set up. They lie under a
//! folder, so that tests can make up a machine.

use std::fs;
use std::path::PathBuf;

/// A machine's files.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

/// A limit of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLimit {
    /// What counts; `None`: no limit.
    pub soft: Option<u64>,
    /// What it can be raised to without privilege.
    pub hard: Option<u64>,
}

impl System {
    /// The machine that this program runs on.
    pub fn real() -> System {
        System { root: "/".into() }
    }

    /// Where a file is that this machine has at `path`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a file, without blanks around it; `None` if it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim().to_owned())
    }

    /// The whole numbers in a file, up to the first word that is none.
    pub fn numbers(&self, path: &str) -> Vec<i64> {
        let text = self.text(path).unwrap_or_default();
        text.split_whitespace().map_while(|word| word.parse().ok()).collect()
    }

    /// The number that a file begins with.
    pub fn number(&self, path: &str) -> Option<i64> {
        self.numbers(path).first().copied()
    }

    /// The names of what is in a folder, in their order; none if it cannot be read.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Whether limits on locked memory do not hold for this process: it has `CAP_IPC_LOCK`, and that of
    /// the machine, not of a user namespace.
    pub fn may_lock_all(&self) -> bool {
        const IPC_LOCK: u64 = 1 << 14;
        let effective = self.status("CapEff").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
        let users = self.numbers("/proc/self/uid_map");
        let is_outermost = users.is_empty() || users == [0, 0, i64::from(u32::MAX)];
        is_outermost && effective.is_some_and(|mask| mask & IPC_LOCK != 0)
    }

    /// What `/proc/self/status` says of this process.
    pub fn status(&self, field: &str) -> Option<String> {
        let status = self.text("/proc/self/status")?;
        let of = |line: &str| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned());
        status.lines().find_map(of)
    }

    /// A limit by its name in `/proc/self/limits`.
    pub fn limit(&self, name: &str) -> Option<ProcessLimit> {
        let limits = self.text("/proc/self/limits")?;
        let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = rest.split_whitespace().map(|word| match word {
            "unlimited" => Some(None),
            number => number.parse().ok().map(Some),
        });
        Some(ProcessLimit { soft: words.next()??, hard: words.next()?? })
    }
}

/// A list such as `0-2,8`, as Linux writes sets of processors.
pub fn list(text: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>();
        if let (Ok(first), Ok(last)) = (number(first), number(last)) {
            numbers.extend(first..=last);
        }
    }
    numbers
}

#[cfg(test)]
pub mod made_up {
    //! Machines that tests make up.

    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A machine that has these files and no others, until it is dropped.
    pub struct Machine {
        pub system: System,
    }

    impl Machine {
        pub fn new(files: &[(&str, &str)]) -> Machine {
            static MADE: AtomicU32 = AtomicU32::new(0);
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let name = format!("ringtree-machine-{}-{number}", std::process::id());
            let system = System { root: std::env::temp_dir().join(name) };
            for (path, text) in files {
                let path = system.path(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{text}\n")).unwrap();
            }
            Machine { system }
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.system.root);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::made_up::Machine;
    use super::*;

    #[test]
    fn files_of_a_machine_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max locked memory         8388608              unlimited            bytes\n\
                      Max open files            1024                 4096                 files";
        let machine = Machine::new(&[
            ("/proc/self/limits", limits),
            ("/proc/self/status", "Name:\tringtree\nCpus_allowed_list:\t0-1,4"),
            ("/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432"),
        ]);
        let system = &machine.system;
        let limit = |soft, hard| Some(ProcessLimit { soft, hard });
        assert_eq!(system.limit("Max locked memory"), limit(Some(8 << 20), None));
        assert_eq!(system.limit("Max open files"), limit(Some(1024), Some(4096)));
        assert_eq!(system.limit("Max nothing"), None);
        assert_eq!(system.status("Cpus_allowed_list").as_deref(), Some("0-1,4"));
        assert_eq!(system.status("Cpus"), None);
        assert_eq!(system.numbers("/proc/sys/net/ipv4/tcp_rmem"), [4096, 131_072, 33_554_432]);
        assert_eq!(system.number("/proc/none"), None);
        assert_eq!(system.names("/proc/self"), ["limits", "status"]);
        assert_eq!(system.names("/proc/none"), [""; 0]);
    }

    #[test]
    fn only_the_machines_own_root_locks_what_it_likes() {
        let may = |mask: &str, users: &str| {
            let status = format!("CapEff:\t{mask}");
            let files = [("/proc/self/status", status.as_str()), ("/proc/self/uid_map", users)];
            Machine::new(&files).system.may_lock_all()
        };
        let whole = "         0          0 4294967295";
        assert!(may("000001ffffffffff", whole));
        assert!(may("0000000000004000", whole));
        assert!(!may("00000000a80425fb", whole), "as docker run gives");
        assert!(!may("000001ffffffffff", "         0       1000          1"));
    }

    #[test]
    fn lists_of_processors_are_taken_apart() {
        assert_eq!(list("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(list("5"), [5]);
        assert_eq!(list(""), [0_usize; 0]);
    }
}
