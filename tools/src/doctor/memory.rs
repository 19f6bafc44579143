//! Memory: what can be locked, shared, and have large pages.

use std::io;

use nix::sys::statvfs::statvfs;
use ringtree_transport::memory::SharedMemory;
use ringtree_transport::pages;

use super::finding::{Check, Finding, Level};
use super::system::System;
use crate::words::bytes;

const MEMLOCK: Check = Check {
    name: "memlock",
    why: "RDMA adapters and GPUs reach only memory that is locked: a link over RDMA locks 4.3 MiB for \
          each device, and all memory that is registered; shared memory and TCP do without",
};

const MEMORY_FILES: Check = Check {
    name: "memory-files",
    why: "ranks of one host share sealed memory files, which need no room in /dev/shm",
};

const SHM_FOLDER: Check = Check {
    name: "dev-shm",
    why: "Ringtree does without it, but MPI, NCCL and data loaders that run beside it do not",
};

const LARGE_PAGES: Check = Check {
    name: "large-pages",
    why: "with pages of 4 KiB a large all-reduce takes half as long again",
};

/// What the memory that ranks share has.
const SHARED_LARGE_PAGES: Check = Check {
    name: "shared-large-pages",
    why: "memory that the library shares (Communicator::alloc) is faster in large pages",
};

/// Less is what no device can work with.
const LITTLE_LOCKED_BYTES: u64 = 64 << 10;

/// Less is what containers get that nobody gave more.
const LITTLE_SHM_BYTES: u64 = 64 << 20;

/// What RDMA locks of a rank's memory.
#[derive(Clone, Copy, Debug)]
pub struct Locking {
    /// For links to all others.
    pub links_bytes: u64,
    /// How bad it is if that is more than may be locked.
    pub too_little: Level,
}

/// All of them, of a rank that locks so much for RDMA if it has that.
pub fn check(system: &System, locking: Option<Locking>) -> Vec<Finding> {
    vec![
        memlock(system, locking),
        memory_files(system, try_memory_file()),
        shm_folder(system),
        large_pages(system, pages::large_page_bytes()),
        shared_large_pages(system),
    ]
}

fn memlock(system: &System, locking: Option<Locking>) -> Finding {
    let Some(limit) = system.limit("Max locked memory") else {
        return MEMLOCK.note("the limit cannot be read");
    };
    let Some(soft) = limit.soft else { return MEMLOCK.ok("no limit") };
    let mut seen = format!("at most {}", bytes(soft));
    let needed_bytes = locking.map_or(0, |locking| locking.links_bytes);
    if locking.is_some() {
        if system.may_lock_all() {
            return MEMLOCK.ok(seen + ", which does not hold for this process (CAP_IPC_LOCK)");
        }
        seen.push_str(&format!(
            "; a rank's links over RDMA need up to {}, and registered buffers come on top",
            bytes(needed_bytes)
        ));
    }
    let is_raisable = limit.hard.is_none_or(|hard| hard > soft && hard >= needed_bytes);
    let raise = match (is_raisable, limit.hard) {
        (true, None) => "ulimit -l unlimited".to_owned(),
        (true, Some(hard)) => format!("ulimit -l {}", hard >> 10),
        (false, _) => "echo '* - memlock unlimited' | sudo tee -a \
                       /etc/security/limits.d/ringtree.conf  # and log in again; in a container: \
                       docker run --ulimit memlock=-1 IMAGE"
            .to_owned(),
    };
    let level = match locking {
        Some(locking) if soft < needed_bytes => locking.too_little,
        _ if soft < LITTLE_LOCKED_BYTES => Level::Warning,
        _ => Level::Note,
    };
    MEMLOCK.found(level, seen).remedy(raise)
}

/// Makes and maps a memory file as the ranks of one host do.
fn try_memory_file() -> io::Result<()> {
    let memory = SharedMemory::create(4096)?;
    SharedMemory::open(memory.descriptor().try_clone_to_owned()?, 4096).map(drop)
}

fn memory_files(system: &System, tried: io::Result<()>) -> Finding {
    let Err(error) = tried else {
        return MEMORY_FILES.ok("made, sealed and mapped");
    };
    let failure = MEMORY_FILES.failure(format!("a memory file cannot be made and sealed: {error}"));
    if system.number("/proc/sys/vm/memfd_noexec").is_some_and(|policy| policy > 1) {
        return failure.remedy("sudo sysctl -w vm.memfd_noexec=1");
    }
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => failure.remedy("ulimit -n $(ulimit -Hn)"),
        Some(libc::EPERM | libc::ENOSYS) => {
            failure.remedy("docker run --security-opt seccomp=unconfined IMAGE")
        }
        _ => failure,
    }
}

fn shm_folder(system: &System) -> Finding {
    const REMEDY: &str = "sudo mount -o remount,size=50% /dev/shm  # or: docker run --shm-size=8g";
    let path = system.path("/dev/shm");
    match statvfs(&path) {
        Err(error) => SHM_FOLDER
            .note(format!("there is none: {}", error.desc()))
            .remedy("sudo mkdir -p /dev/shm && sudo mount -t tmpfs tmpfs /dev/shm"),
        Ok(file_system) => {
            let unit = file_system.fragment_size();
            let (size, free) = (file_system.blocks() * unit, file_system.blocks_available() * unit);
            let seen = format!("{} free of {}", bytes(free), bytes(size));
            match free {
                0..=LITTLE_SHM_BYTES => SHM_FOLDER.note(seen).remedy(REMEDY),
                _ => SHM_FOLDER.ok(seen),
            }
        }
    }
}

fn large_pages(system: &System, page_bytes: Option<usize>) -> Finding {
    const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    if let Some(page_bytes) = page_bytes {
        let seen = format!("buffers are moved into pages of {}", bytes(page_bytes as u64));
        return LARGE_PAGES.ok(seen);
    }
    match system.text(ENABLED) {
        None => LARGE_PAGES.note("this kernel has none"),
        Some(choice) if choice.contains("[never]") => LARGE_PAGES
            .warning(format!("{ENABLED} says {choice}"))
            .remedy(format!("echo madvise | sudo tee {ENABLED}")),
        Some(_) => LARGE_PAGES.note(
            "a process cannot have its memory moved into large pages: it is forbidden to this one, \
             or Linux is older than 6.1",
        ),
    }
}

fn shared_large_pages(system: &System) -> Finding {
    const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    match system.text(ENABLED) {
        None => SHARED_LARGE_PAGES.note("this kernel has none"),
        Some(choice) if choice.contains("[never]") || choice.contains("[deny]") => {
            SHARED_LARGE_PAGES
                .note(format!("{ENABLED} says {choice}"))
                .remedy(format!("echo advise | sudo tee {ENABLED}"))
        }
        Some(_) => SHARED_LARGE_PAGES.ok("given where they are asked for"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::made_up::Machine;
    use super::*;

    fn locked(soft: &str, hard: &str) -> Finding {
        memlock(&with_limit(soft, hard, "0").system, None)
    }

    fn with_limit(soft: &str, hard: &str, capabilities: &str) -> Machine {
        let limits = format!("Max locked memory         {soft}  {hard}  bytes");
        let status = format!("CapEff:\t{capabilities}");
        Machine::new(&[("/proc/self/limits", &limits), ("/proc/self/status", &status)])
    }

    #[test]
    fn what_cannot_be_locked_is_said_with_how_to_raise_it() {
        let none = locked("0", "0");
        assert_eq!((none.level, none.seen.as_str()), (Level::Warning, "at most 0 bytes"));
        assert!(none.remedy.unwrap().contains("limits.d"), "only an administrator can raise it");
        let some = locked("8388608", "67108864");
        assert_eq!((some.level, some.seen.as_str()), (Level::Note, "at most 8 MiB"));
        assert_eq!(some.remedy.as_deref(), Some("ulimit -l 65536"));
        assert_eq!(locked("0", "unlimited").remedy.as_deref(), Some("ulimit -l unlimited"));
        assert_eq!(locked("unlimited", "unlimited").level, Level::Ok);
    }

    #[test]
    fn links_over_rdma_need_memory_that_is_locked() {
        let locking = Locking { links_bytes: 12 << 20, too_little: Level::Failure };
        let judge = |soft, hard, capabilities| {
            memlock(&with_limit(soft, hard, capabilities).system, Some(locking))
        };
        let little = judge("8388608", "8388608", "0");
        assert_eq!(little.level, Level::Failure);
        assert!(
            little.seen.starts_with("at most 8 MiB; a rank's links over RDMA need up to 12 MiB")
        );
        assert!(little.remedy.unwrap().contains("limits.d"));
        assert_eq!(judge("8388608", "16777216", "0").remedy.as_deref(), Some("ulimit -l 16384"));
        assert!(judge("8388608", "9437184", "0").remedy.unwrap().contains("limits.d"));
        assert_eq!(judge("16777216", "16777216", "0").level, Level::Note);
        assert_eq!(judge("unlimited", "unlimited", "0").level, Level::Ok);
        assert_eq!(judge("0", "0", "4000").level, Level::Ok, "root");
    }

    #[test]
    fn a_memory_file_that_cannot_be_made_is_a_failure() {
        let machine = |policy| Machine::new(&[("/proc/sys/vm/memfd_noexec", policy)]);
        let refused = || Err(io::Error::from_raw_os_error(libc::EACCES));
        let finding = memory_files(&machine("2").system, refused());
        assert_eq!(finding.level, Level::Failure);
        assert_eq!(finding.remedy.as_deref(), Some("sudo sysctl -w vm.memfd_noexec=1"));
        assert_eq!(memory_files(&machine("0").system, refused()).remedy, None);
        assert_eq!(memory_files(&machine("0").system, try_memory_file()).level, Level::Ok);
    }

    #[test]
    fn a_machine_without_shm_or_large_pages_is_told_how_to_get_them() {
        let folder = "/sys/kernel/mm/transparent_hugepage";
        let machine = Machine::new(&[
            (&format!("{folder}/enabled"), "always madvise [never]"),
            (&format!("{folder}/shmem_enabled"), "always within_size advise [never] deny force"),
        ]);
        let finding = shm_folder(&machine.system);
        assert_eq!(finding.level, Level::Note);
        assert!(finding.seen.starts_with("there is none: "), "{}", finding.seen);
        let finding = large_pages(&machine.system, None);
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(finding.remedy, Some(format!("echo madvise | sudo tee {folder}/enabled")));
        let finding = shared_large_pages(&machine.system);
        assert_eq!(finding.remedy, Some(format!("echo advise | sudo tee {folder}/shmem_enabled")));
        let bare = Machine::new(&[]);
        assert_eq!(large_pages(&bare.system, None).level, Level::Note);
        assert_eq!(large_pages(&bare.system, Some(2 << 20)).level, Level::Ok);
    }
}
