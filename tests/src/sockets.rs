//! Where a process listens, as anyone on its host can find out.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

/// State of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// The IPv4 addresses on which a process listens.
pub fn tcp_listeners(pid: u32) -> Vec<SocketAddr> {
    let own = inodes(pid);
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("the process lives");
    let lines = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let listening = lines.filter(|fields| fields[3] == LISTENING && own.contains(fields[9]));
    listening.map(|fields| address(fields[1]).expect("address and port")).collect()
}

/// The names of the abstract Unix sockets on which a process listens.
pub fn unix_listeners(pid: u32) -> Vec<String> {
    let own = inodes(pid);
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).expect("the process lives");
    let lines = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let names = lines.filter(|fields| fields.len() == 8 && own.contains(fields[6]));
    let mut names: Vec<_> =
        names.filter_map(|fields| fields[7].strip_prefix('@').map(str::to_string)).collect();
    // A connection has the name of the socket that accepted it.
    names.sort_unstable();
    names.dedup();
    names
}

/// `0100007F:1F90`: the address as a word of this machine, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    Some((ip, u16::from_str_radix(port, 16).ok()?).into())
}

/// The sockets that a process has open.
fn inodes(pid: u32) -> HashSet<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives");
    let links = folder.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |link: std::path::PathBuf| {
        Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_string())
    };
    links.filter_map(inode).collect()
}
