//! The machine's network interfaces: taken down, or made to lose, delay and reorder. Each change lasts as long
//! as its value.

use std::fs;
use std::process::Command;

/// Runs a program of the machine, which must succeed.
fn run(line: &str) {
    let mut words = line.split_whitespace();
    let program = format!("/usr/sbin/{}", words.next().expect("a program"));
    let output = Command::new(program).args(words).output().expect("it is in the machine");
    assert!(output.status.success(), "{line}: {output:?}");
}

/// An end of the veth pair, without a carrier on either end.
pub struct Down(&'static str);

impl Down {
    /// Takes `v1` or `v2` down.
    pub fn take(interface: &'static str) -> Down {
        run(&format!("ip link set {interface} down"));
        Down(interface)
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        let interface = self.0;
        run(&format!("ip link set {interface} up"));
        // Its route has gone with it.
        let (peer, own) = match interface {
            "v1" => ("10.2.0.2", "10.2.0.1"),
            _ => ("10.2.0.1", "10.2.0.2"),
        };
        run(&format!("ip route replace {peer} dev {interface} src {own}"));
    }
}

/// Another MTU of an end of the veth pair.
pub struct Mtu(&'static str);

impl Mtu {
    /// Sets it.
    pub fn set(interface: &'static str, bytes: u32) -> Mtu {
        run(&format!("ip link set {interface} mtu {bytes}"));
        Mtu(interface)
    }
}

impl Drop for Mtu {
    fn drop(&mut self) {
        run(&format!("ip link set {} mtu 9000", self.0));
    }
}

/// What `tc netem` does to the packets of both ends of the veth pair.
pub struct Netem;

impl Netem {
    /// Begins; `how` is netem's own language.
    pub fn begin(how: &str) -> Netem {
        for v in ["v1", "v2"] {
            run(&format!("tc qdisc add dev {v} root netem {how}"));
        }
        Netem
    }
}

impl Drop for Netem {
    fn drop(&mut self) {
        for v in ["v1", "v2"] {
            run(&format!("tc qdisc del dev {v} root"));
        }
    }
}

/// Packets that the kernel keeps of a burst; it drops the rest.
pub struct Backlog(String);

impl Backlog {
    const PATH: &str = "/proc/sys/net/core/netdev_max_backlog";

    /// Sets it.
    pub fn set(packets: u32) -> Backlog {
        let before = fs::read_to_string(Backlog::PATH).expect("procfs");
        fs::write(Backlog::PATH, packets.to_string()).expect("root");
        Backlog(before)
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        fs::write(Backlog::PATH, self.0.trim()).expect("root");
    }
}
