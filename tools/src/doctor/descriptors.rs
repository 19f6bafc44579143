//! Descriptors: whether a rank may open as many as it has links.

use super::finding::{Check, Finding, Level};
use super::system::System;

const DESCRIPTORS: Check = Check {
    name: "descriptors",
    why: "each link takes some; a rank that may open no more cannot reach the rest",
};

/// What a rank has open besides its links, and leaves to the program.
const REST: u64 = 64;

/// What a link takes: over shared memory a socket, three memory files and the peer's process.
const A_LINK: u64 = 5;

/// What a peer takes where the ranks meet: the store's connection and the control connection.
const A_RANK_MET: u64 = 2;

/// Whether the limit is enough for `ranks` ranks with so many connections between two.
pub fn check(system: &System, ranks: u32, connections: u64) -> Finding {
    let Some(limit) = system.limit("Max open files") else {
        return DESCRIPTORS.note("the limit cannot be read");
    };
    let Some(soft) = limit.soft else { return DESCRIPTORS.ok("no limit") };
    let peers = u64::from(ranks.saturating_sub(1));
    let by_links = peers * A_LINK.max(connections);
    let needed = REST + by_links + peers * A_RANK_MET;
    let seen = format!("at most {soft}; a rank of {ranks} needs up to {needed}");
    if soft >= needed {
        return DESCRIPTORS.ok(seen);
    }
    let is_raisable = limit.hard.is_none_or(|hard| hard >= needed);
    let level = if soft < by_links { Level::Failure } else { Level::Warning };
    DESCRIPTORS.found(level, seen).remedy(if is_raisable {
        format!("ulimit -n {needed}")
    } else {
        format!(
            "echo '* - nofile {needed}' | sudo tee -a /etc/security/limits.d/ringtree.conf  # and \
             log in again"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::system::made_up::Machine;
    use super::*;

    #[test]
    fn many_ranks_need_many_descriptors() {
        let machine = Machine::new(&[("/proc/self/limits", "Max open files  1024  4096  files")]);
        assert_eq!(check(&machine.system, 4, 1).level, Level::Ok);
        assert_eq!(check(&machine.system, 160, 1).level, Level::Warning);
        let finding = check(&machine.system, 256, 1);
        assert_eq!(finding.level, Level::Failure);
        assert_eq!(finding.seen, "at most 1024; a rank of 256 needs up to 1849");
        assert_eq!(finding.remedy.as_deref(), Some("ulimit -n 1849"));
        assert!(check(&machine.system, 1024, 1).remedy.unwrap().contains("limits.d"));
        assert_eq!(
            check(&machine.system, 64, 16).seen,
            "at most 1024; a rank of 64 needs up to 1198"
        );
    }
}
