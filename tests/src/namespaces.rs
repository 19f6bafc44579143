//! Two hosts made of two network namespaces, for tests of what happens between hosts.
//!
//! ```text
//!        host 0                     host 1
//!   wire0 10.77.0.1  =========  wire0 10.77.0.2
//!   wire1 10.77.1.1  =========  wire1 10.77.1.2      (if there are two wires)
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
use std::net::Ipv4Addr;
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
}

impl TwoHosts {
    /// Two hosts joined by so many wires.
    ///
    /// `None`, with a line that says why, where the system does not let this process make them; in
    /// continuous integration (`CI=true`) that is a failure instead, lest nobody notices.
    pub fn new(wires: u8) -> Option<TwoHosts> {
        TwoHosts::build(wires).map_err(|reason| unavailable(&reason)).ok()
    }

    fn build(wires: u8) -> Result<TwoHosts, String> {
        let hosts = [Host::new(0)?, Host::new(1)?];
        let other_end = path_of(&hosts[1].namespace);
        for wire in 0..wires {
            let name = name_of(wire);
            let veth = ["link", "add", &name, "type", "veth", "peer", "name", &name];
            hosts[0].run("ip", &[&veth[..], &["netns", &other_end]].concat())?;
        }
        for host in &hosts {
            host.run("ip", &["link", "set", "lo", "up"])?;
            for wire in 0..wires {
                let (name, address) = (name_of(wire), format!("{}/24", host.address(wire)));
                host.run("ip", &["address", "add", &address, "dev", &name])?;
                host.run("ip", &["link", "set", &name, "up"])?;
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

impl Host {
    fn new(number: u8) -> Result<Host, String> {
        // A thread of its own moves into the new namespace and leaves it behind.
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let made = made.join().expect("a thread that makes a namespace");
        let failed = |error| format!("a network namespace cannot be made: {error}");
        Ok(Host { number, namespace: made.map_err(failed)?.into() })
    }

    /// The host's address on a wire.
    pub fn address(&self, wire: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, wire, self.number + 1)
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
    assert!(!in_ci, "tests between two hosts need root, iproute2, veth and tbf: {reason}");
    // Not by a macro: the line shall be seen although the test passes.
    let _ = writeln!(io::stderr(), "SKIPPED, no test between two hosts: {reason}");
}
