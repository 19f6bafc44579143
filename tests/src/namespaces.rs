//! Two hosts made of two network namespaces, for tests of what happens between hosts.
//!
//! ```text
//!        host 0                     host 1
//!   wire0 10.77.0.1  =========  wire0 10.77.0.2
//!   wire1 10.77.1.1  =========  wire1 10.77.1.2      (if there are two wires)
//! ```
//!
//! They have IPv4 addresses, or IPv6 addresses alone (`fd77::1`, and so on), or the second one is
//! behind a router that translates addresses:
//!
//! ```text
//!     outside                      router                      inside
//!   wire0 10.77.0.1  =====  10.77.0.254 | 10.78.0.254  =====  wire0 10.78.0.2
//! ```
//!
//! The namespaces have no names: descriptors hold them. When the last one is closed and the last
//! process inside has ended, the kernel removes them with their interfaces, whatever became of the
//! test. Addresses and ports mean nothing outside, so that beds never clash.
//!
//! The hosts share a kernel, its boot id and its host name: whoever takes that for one host is
//! found out here. Each has half of the processors, so that ranks who think that they have a
//! processor each really do.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// To the calls about affinity, the calling thread.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Two hosts and the wires between them.
#[derive(Debug)]
pub struct TwoHosts {
    /// The hosts, of which the first one is where ranks meet.
    pub hosts: [Host; 2],
}

/// One of the hosts.
#[derive(Debug)]
pub struct Host {
    number: u8,
    namespace: OwnedFd,
    /// On each wire.
    addresses: Vec<IpAddr>,
}

/// A host that reaches another one through a router that hides it.
#[derive(Debug)]
pub struct Translated {
    /// It knows the router, and not the inside.
    pub outside: Host,
    /// It can open connections to the outside.
    pub inside: Host,
    _router: Host,
}

impl TwoHosts {
    /// Two hosts joined by so many wires.
    ///
    /// `None`, with a line that says why, where the system does not let this process make them; in
    /// continuous integration (`CI=true`) that is a failure instead, lest nobody notices.
    pub fn new(wires: u8) -> Option<TwoHosts> {
        let address = |wire, host| Ipv4Addr::new(10, 77, wire, host + 1).into();
        TwoHosts::build(wires, address).map_err(|reason| unavailable(&reason)).ok()
    }

    /// The command of one rank of a job that has as many ranks on each of the hosts, and meets at rank 0 by the address of
    /// a wire. The job's secret is of these tests, and nothing that this machine's user keeps changes it.
    pub fn rank_command(
        &self,
        program: &str,
        rank: usize,
        ranks_a_host: usize,
        meet_on: u8,
    ) -> Command {
        let mut command = self.hosts[rank / ranks_a_host].command(program);
        let rendezvous = SocketAddr::new(self.hosts[0].address(meet_on), 29400);
        command
            .env("RINGTREE_RANK", rank.to_string())
            .env("RINGTREE_RANKS", (2 * ranks_a_host).to_string())
            .env("RINGTREE_RENDEZVOUS", rendezvous.to_string())
            .env("RINGTREE_SECRET", "between two hosts")
            .env("RINGTREE_TUNING", "off");
        command
    }

    /// As [`TwoHosts::new`], for hosts that have no IPv4 address at all, not even of their own.
    pub fn with_ipv6_only(wires: u8) -> Option<TwoHosts> {
        let address = |wire: u8, host: u8| {
            Ipv6Addr::new(0xfd77, 0, 0, wire.into(), 0, 0, 0, u16::from(host) + 1).into()
        };
        let build = || {
            let bed = TwoHosts::build(wires, address)?;
            for host in &bed.hosts {
                host.run("ip", &["-4", "address", "flush", "dev", "lo"])?;
            }
            Ok(bed)
        };
        build().map_err(|reason: String| unavailable(&reason)).ok()
    }

    fn build(wires: u8, address: impl Fn(u8, u8) -> IpAddr) -> Result<TwoHosts, String> {
        let mut hosts = [Host::new(0)?, Host::new(1)?];
        for wire in 0..wires {
            hosts[0].join(&hosts[1], &name_of(wire), &name_of(wire))?;
        }
        for host in &mut hosts {
            for wire in 0..wires {
                let address = address(wire, host.number);
                host.add_address(&name_of(wire), address)?;
                host.addresses.push(address);
            }
        }
        Ok(TwoHosts { hosts })
    }

    /// Limits a wire to so many megabits a second, either way, as a cheap switch would: what comes
    /// faster is queued a little and then dropped. Returns whether the system can do that; where it
    /// cannot, the same is done as in [`TwoHosts::new`].
    pub fn limit_rate(&self, wire: u8, megabits_per_s: u32) -> bool {
        let (name, rate) = (name_of(wire), format!("{megabits_per_s}mbit"));
        let qdisc = ["qdisc", "add", "dev", &name, "root", "tbf", "rate", &rate];
        let limited = self.hosts.iter().try_for_each(|host| {
            host.run("tc", &[&qdisc[..], &["burst", "64kb", "latency", "50ms"]].concat())
        });
        limited.map_err(|reason| unavailable(&reason)).is_ok()
    }
}

/// The router's address on the outside.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

impl Translated {
    /// Two hosts with the router between them, which passes on what comes from the inside under an
    /// address of its own, and what `rules` say to the inside: lines such as `tcp dport 7 dnat to
    /// 10.78.0.2`, for nftables.
    ///
    /// Where they cannot be made, as [`TwoHosts::new`].
    pub fn new(rules: &[&str]) -> Option<Translated> {
        Translated::build(rules).map_err(|reason| unavailable(&reason)).ok()
    }

    fn build(rules: &[&str]) -> Result<Translated, String> {
        let (mut outside, mut inside, router) = (Host::new(0)?, Host::new(1)?, Host::new(1)?);
        router.join(&outside, "out", &name_of(0))?;
        router.join(&inside, "in", &name_of(0))?;
        router.add_address("out", ROUTER.into())?;
        let gateway = Ipv4Addr::new(10, 78, 0, 254);
        router.add_address("in", gateway.into())?;
        let ends = [(&mut outside, [10, 77, 0, 1]), (&mut inside, [10, 78, 0, 2])];
        for (host, address) in ends {
            host.add_address(&name_of(0), address.into())?;
            host.addresses.push(address.into());
        }
        inside.run("ip", &["route", "add", "default", "via", &gateway.to_string()])?;
        let forwards = router.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
        forwards.map_err(|error| format!("a host that forwards: {error}"))?;
        let mut commands = vec![
            "add table ip nat".to_owned(),
            "add chain ip nat in { type nat hook prerouting priority dstnat; }".into(),
            "add chain ip nat out { type nat hook postrouting priority srcnat; }".into(),
            "add rule ip nat out oifname out masquerade".into(),
        ];
        commands.extend(rules.iter().map(|rule| format!("add rule ip nat in iifname out {rule}")));
        router.run("nft", &[&commands.join("\n")])?;
        Ok(Translated { outside, inside, _router: router })
    }
}

impl Host {
    fn new(number: u8) -> Result<Host, String> {
        // A thread of its own moves into the new namespace and leaves it behind.
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let made = made.join().expect("a thread that makes a namespace");
        let failed = |error| format!("a network namespace cannot be made: {error}");
        let host = Host { number, namespace: made.map_err(failed)?.into(), addresses: vec![] };
        host.run("ip", &["link", "set", "lo", "up"])?;
        Ok(host)
    }

    /// Lays a wire to another host.
    fn join(&self, other: &Host, name: &str, name_there: &str) -> Result<(), String> {
        let there = path_of(&other.namespace);
        let veth = ["link", "add", name, "type", "veth", "peer", "name", name_there];
        self.run("ip", &[&veth[..], &["netns", &there]].concat())
    }

    /// Gives an end of a wire an address, and switches it on.
    fn add_address(&self, wire: &str, address: IpAddr) -> Result<(), String> {
        let prefix_bits = if address.is_ipv4() { 24 } else { 64 };
        let with_prefix = format!("{address}/{prefix_bits}");
        let mut add = vec!["address", "add", &with_prefix, "dev", wire];
        // Nobody else has it, so that nobody needs to be asked.
        add.extend(address.is_ipv6().then_some("nodad"));
        self.run("ip", &add)?;
        self.run("ip", &["link", "set", wire, "up"])
    }

    /// The host's address on a wire.
    pub fn address(&self, wire: u8) -> IpAddr {
        self.addresses[usize::from(wire)]
    }

    /// Where a child of this process finds the host's network namespace.
    pub fn namespace_path(&self) -> String {
        path_of(&self.namespace)
    }

    /// A program that will run on this host, with nothing in its environment. It is killed when
    /// the thread that starts it ends.
    pub fn command(&self, program: &str) -> Command {
        let namespace = self.namespace.try_clone().expect("a descriptor");
        let processors = self.processors();
        let mut command = Command::new(program);
        command.env_clear();
        // SAFETY: the closure runs between fork and exec: it only makes system calls, and neither
        // allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                sched_setaffinity(THIS_THREAD, &processors)?;
                Ok(set_pdeathsig(Signal::SIGKILL)?)
            })
        };
        command
    }

    /// This host's half of the processors that this process may use; all if that is one.
    fn processors(&self) -> CpuSet {
        let all = sched_getaffinity(THIS_THREAD).expect("an affinity");
        let usable = (0..CpuSet::count()).filter(|processor| all.is_set(*processor) == Ok(true));
        let usable: Vec<usize> = usable.collect();
        let half = usable.chunks(usable.len().div_ceil(2)).nth(self.number.into());
        let mut processors = CpuSet::new();
        for processor in half.unwrap_or(&usable) {
            processors.set(*processor).expect("a processor that a set can hold");
        }
        processors
    }

    /// Bytes that have arrived here over a wire.
    pub fn received_bytes(&self, wire: u8) -> u64 {
        let table = self.inside(|| fs::read_to_string("/proc/thread-self/net/dev"));
        let table = table.expect("the table of interfaces");
        let start = format!("{}:", name_of(wire));
        let row = table.lines().find_map(|line| line.trim_start().strip_prefix(&start));
        let first = row.and_then(|row| row.split_whitespace().next()?.parse().ok());
        first.unwrap_or_else(|| panic!("no {start} in {table}"))
    }

    /// Switches this host's end of a wire off. The other host sees that the wire is dead; this one
    /// even loses the address.
    pub fn cut(&self, wire: u8) {
        self.run("ip", &["link", "set", &name_of(wire), "down"]).expect("a wire that can be cut");
    }

    /// Switches this host's end of a wire on again.
    pub fn mend(&self, wire: u8) {
        self.run("ip", &["link", "set", &name_of(wire), "up"]).expect("a wire that can be mended");
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let mut command = self.command(program);
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(arguments);
        let output = command.output().map_err(|error| format!("{program}: {error}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "{program} {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            )),
        }
    }

    /// Runs `body` in a thread that is inside the namespace.
    fn inside<T: Send>(&self, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let body = || {
            setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            body()
        };
        thread::scope(|scope| scope.spawn(body).join().expect("a thread inside a namespace"))
    }
}

/// The name of a wire's ends, the same on both hosts.
pub fn name_of(wire: u8) -> String {
    format!("wire{wire}")
}

/// Where a child of this process finds a descriptor.
fn path_of(descriptor: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), descriptor.as_raw_fd())
}

/// The system cannot do what a test needs.
fn unavailable(reason: &str) {
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!in_ci, "tests between hosts need root, iproute2, nftables, veth and tbf: {reason}");
    // Not by a macro: the line shall be seen although the test passes.
    let _ = writeln!(io::stderr(), "SKIPPED, no test between two hosts: {reason}");
}
