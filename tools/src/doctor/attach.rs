//! Cross-memory attach: whether the kernel lets ranks of one host copy from each other's memory.

use std::io::IoSliceMut;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::finding::{Check, Finding};
use super::system::System;

const ATTACH: Check = Check {
    name: "memory-attach",
    why: "where the kernel is fast in it, ranks of one host copy large buffers straight from each \
          other's memory; without leave to they copy everything twice (memory of Communicator::alloc \
          is shared in any case)",
};

/// How it went with the ranks of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Siblings {
    /// There is none that memory is shared with.
    None,
    /// All can be reached.
    Reached,
    /// One cannot.
    Refused,
    /// It is not wanted, by this setting.
    Off(&'static str),
}

/// What the links to the ranks of this host have shown.
pub fn check(system: &System, siblings: Siblings) -> Finding {
    judge(system, siblings, read_own_memory())
}

fn judge(system: &System, siblings: Siblings, own: nix::Result<()>) -> Finding {
    const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";
    let scope = system.number(SCOPE).unwrap_or(0);
    match (siblings, own) {
        (Siblings::Off(setting), _) => ATTACH.ok(format!("off by {setting}")),
        (Siblings::Reached, _) => ATTACH.ok("tried between the ranks of the host, both ways"),
        (Siblings::None, Ok(())) if scope < 2 => {
            ATTACH.ok("allowed; no two ranks share memory here to try it between")
        }
        (_, Err(error)) => ATTACH
            .warning(format!("process_vm_readv is refused ({}), as by a container", error.desc()))
            .remedy("docker run --cap-add SYS_PTRACE IMAGE"),
        (_, Ok(())) if scope >= 2 => {
            let warning = ATTACH.warning(format!("{SCOPE} is {scope}: no process may attach"));
            match scope {
                2 => warning.remedy("sudo sysctl -w kernel.yama.ptrace_scope=1"),
                _ => warning.remedy(
                    "echo kernel.yama.ptrace_scope=1 | sudo tee /etc/sysctl.d/10-ptrace.conf && \
                     sudo reboot",
                ),
            }
        }
        (_, Ok(())) => ATTACH
            .warning(
                "ranks of the host may not attach to each other: they run as different users, or \
                 what started them is not their common parent",
            )
            .remedy("ringtree run --ranks N -- PROGRAM"),
    }
}

/// A process may always read its own memory; only a filter of system calls can be in the way.
fn read_own_memory() -> nix::Result<()> {
    let (there, mut found) = ([0x5a_u8; 8], [0_u8; 8]);
    let remote = RemoteIoVec { base: there.as_ptr() as usize, len: there.len() };
    match process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut found)], &[remote])? {
        8 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::super::system::made_up::Machine;
    use super::*;

    #[test]
    fn each_refusal_has_its_own_reason() {
        let machine = |scope| Machine::new(&[("/proc/sys/kernel/yama/ptrace_scope", scope)]);
        let refused = Siblings::Refused;
        let filtered = judge(&machine("1").system, refused, Err(Errno::EPERM));
        assert_eq!(filtered.remedy.as_deref(), Some("docker run --cap-add SYS_PTRACE IMAGE"));
        let yama = judge(&machine("2").system, refused, Ok(()));
        assert_eq!(yama.remedy.as_deref(), Some("sudo sysctl -w kernel.yama.ptrace_scope=1"));
        assert!(judge(&machine("3").system, refused, Ok(())).remedy.unwrap().contains("reboot"));
        let strangers = judge(&machine("0").system, refused, Ok(()));
        assert!(strangers.seen.contains("different users"), "{}", strangers.seen);
        for finding in [filtered, yama, strangers] {
            assert_eq!(finding.level, Level::Warning);
        }
    }

    #[test]
    fn without_siblings_the_settings_tell() {
        let machine = Machine::new(&[]);
        assert_eq!(judge(&machine.system, Siblings::None, Ok(())).level, Level::Ok);
        assert_eq!(judge(&machine.system, Siblings::Reached, Ok(())).level, Level::Ok);
        let filtered = judge(&machine.system, Siblings::None, Err(Errno::ENOSYS));
        assert_eq!(filtered.level, Level::Warning);
        assert_eq!(read_own_memory(), Ok(()));
    }
}
