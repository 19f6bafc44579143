//! TCP: congestion control, socket buffers, and ports.

use std::ffi::OsString;

use nix::sys::socket::sockopt::TcpCongestion;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket};
use ringtree_transport::ports::PortRange;
use ringtree_transport::tcp::LOOPBACK_CONGESTION_CONTROLS;

use super::finding::{Check, Finding, Level};
use super::system::System;
use crate::words::{bytes, counted};

const CONGESTION: Check = Check {
    name: "congestion-control",
    why: "between ranks of one host, BBR reaches half of the bandwidth of cubic or reno; the library \
          takes one of these where it may",
};

const BUFFERS: Check = Check {
    name: "socket-buffers",
    why: "a connection carries at most its buffer in a round trip: 10 Gbit/s over 1 ms need 1.25 MiB",
};

const PORTS: Check = Check {
    name: "ports",
    why: "each rank listens on a port for each interface, and each connection takes another where it \
          begins",
};

/// Less limits what a connection carries between hosts.
const LITTLE_BUFFER_BYTES: i64 = 5 << 18;

/// What a rank does with ports.
#[derive(Clone, Debug)]
pub struct PortUse {
    /// Those that it may listen on, if not on any.
    pub set: Option<PortRange>,
    /// Connections that it has at most.
    pub connections: u64,
    /// Why it cannot listen.
    pub refused: Option<String>,
}

/// What there is to say of TCP on this host.
pub fn check(system: &System, of_rank: &PortUse) -> Vec<Finding> {
    vec![congestion(system, settable()), buffers(system), ports(system, of_rank)]
}

/// The congestion control that a rank of this process gets towards its own host, if it may choose
/// one that is quick there.
fn settable() -> Option<&'static str> {
    let may_set = |name: &&str| {
        let (family, kind) = (AddressFamily::Inet, SockType::Stream);
        socket(family, kind, SockFlag::SOCK_CLOEXEC, None)
            .and_then(|socket| setsockopt(&socket, TcpCongestion, &OsString::from(name)))
            .is_ok()
    };
    LOOPBACK_CONGESTION_CONTROLS.into_iter().find(may_set)
}

fn congestion(system: &System, settable: Option<&str>) -> Finding {
    const FOLDER: &str = "/proc/sys/net/ipv4";
    let Some(default) = system.text(&format!("{FOLDER}/tcp_congestion_control")) else {
        return CONGESTION.note("it cannot be read which one is used");
    };
    if LOOPBACK_CONGESTION_CONTROLS.contains(&default.as_str()) {
        return CONGESTION.ok(default);
    }
    if let Some(name) = settable {
        return CONGESTION.ok(format!("{default}; ranks of one host use {name} between them"));
    }
    let words = |name| system.text(&format!("{FOLDER}/{name}")).unwrap_or_default();
    let there = words("tcp_available_congestion_control");
    let is_there = |name: &&str| there.split_whitespace().any(|word| word == *name);
    let mut allowed = words("tcp_allowed_congestion_control");
    for name in LOOPBACK_CONGESTION_CONTROLS.into_iter().filter(is_there) {
        allowed = format!("{allowed} {name}");
    }
    let level = if default == "bbr" { Level::Warning } else { Level::Note };
    let seen = format!("{default}, and only an administrator may use cubic or reno");
    CONGESTION
        .found(level, seen)
        .remedy(format!("sudo sysctl -w net.ipv4.tcp_allowed_congestion_control=\"{allowed}\""))
}

fn buffers(system: &System) -> Finding {
    let most = |name| system.numbers(&format!("/proc/sys/net/ipv4/{name}")).get(2).copied();
    let (Some(read), Some(write)) = (most("tcp_rmem"), most("tcp_wmem")) else {
        return BUFFERS.note("the limits cannot be read");
    };
    let size = |number: i64| bytes(u64::try_from(number).unwrap_or_default());
    let seen = format!("grow to {} for reading, {} for writing", size(read), size(write));
    if read.min(write) >= LITTLE_BUFFER_BYTES {
        return BUFFERS.ok(seen);
    }
    BUFFERS.warning(seen).remedy(
        "sudo sysctl -w net.ipv4.tcp_rmem='4096 131072 16777216' \
         net.ipv4.tcp_wmem='4096 65536 16777216'",
    )
}

fn ports(system: &System, of_rank: &PortUse) -> Finding {
    const REMEDY: &str = "sudo sysctl -w net.ipv4.ip_local_port_range='16384 60999'";
    let PortUse { set, connections, refused } = of_rank;
    let [first, last] = system.numbers("/proc/sys/net/ipv4/ip_local_port_range")[..] else {
        return PORTS.note("the range cannot be read");
    };
    let count = u64::try_from(last - first + 1).unwrap_or_default();
    let listens = set.map_or("any".into(), |range| format!("RINGTREE_PORTS={range}"));
    let seen = format!(
        "listens on {listens}; {first} to {last} for up to {} of a rank",
        counted(*connections, "connection")
    );
    match refused {
        Some(error) => PORTS.failure(error).remedy("ss --listening --tcp --numeric"),
        // Other programs need some, and those of closed connections rest for a minute.
        None if count < 2 * connections => PORTS.warning(seen).remedy(REMEDY),
        None => PORTS.ok(seen),
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::made_up::Machine;
    use super::*;

    fn with_control(default: &str) -> Machine {
        Machine::new(&[
            ("/proc/sys/net/ipv4/tcp_congestion_control", default),
            ("/proc/sys/net/ipv4/tcp_allowed_congestion_control", "bbr"),
            ("/proc/sys/net/ipv4/tcp_available_congestion_control", "reno bbr"),
        ])
    }

    #[test]
    fn bbr_counts_where_ranks_may_use_nothing_else() {
        let bbr = with_control("bbr");
        let finding = congestion(&bbr.system, None);
        assert_eq!(finding.level, Level::Warning);
        let remedy = "sudo sysctl -w net.ipv4.tcp_allowed_congestion_control=\"bbr reno\"";
        assert_eq!(finding.remedy.as_deref(), Some(remedy));
        let finding = congestion(&bbr.system, Some("reno"));
        assert_eq!(finding.level, Level::Ok);
        assert_eq!(finding.seen, "bbr; ranks of one host use reno between them");
        assert_eq!(congestion(&with_control("cubic").system, None).level, Level::Ok);
        assert_eq!(congestion(&with_control("vegas").system, None).level, Level::Note);
    }

    #[test]
    fn small_buffers_limit_a_connection() {
        let machine = |most| {
            let numbers = format!("4096\t16384\t{most}");
            let file = |name| format!("/proc/sys/net/ipv4/{name}");
            Machine::new(&[(&file("tcp_rmem"), &numbers), (&file("tcp_wmem"), &numbers)])
        };
        assert_eq!(buffers(&machine(4 << 20).system).level, Level::Ok);
        let finding = buffers(&machine(1 << 20).system);
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(finding.seen, "grow to 1 MiB for reading, 1 MiB for writing");
    }

    #[test]
    fn ports_run_out() {
        let range = ("/proc/sys/net/ipv4/ip_local_port_range", "60000\t60099");
        let machine = Machine::new(&[range]);
        let of_rank = |connections| PortUse { set: None, connections, refused: None };
        assert_eq!(ports(&machine.system, &of_rank(50)).level, Level::Ok);
        let finding = ports(&machine.system, &of_rank(51));
        assert_eq!(finding.level, Level::Warning);
        let seen = "listens on any; 60000 to 60099 for up to 51 connections of a rank";
        assert_eq!(finding.seen, seen);
        let refused = PortUse { refused: Some("all are taken".into()), ..of_rank(1) };
        let finding = ports(&machine.system, &refused);
        assert_eq!((finding.level, finding.seen.as_str()), (Level::Failure, "all are taken"));
    }
}
