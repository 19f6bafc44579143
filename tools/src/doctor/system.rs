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
    }

    #[test]
    fn lists_of_processors_are_taken_apart() {
        assert_eq!(list("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(list("5"), [5]);
        assert_eq!(list(""), [0_usize; 0]);
    }
}
