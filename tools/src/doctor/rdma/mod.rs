//! RDMA on one host: the library, the devices and their ports, as far as a rank may use them.

mod between;

use std::collections::BTreeSet;

use ringtree::Settings;
use ringtree_transport::endpoint::Transports;
use ringtree_transport::rdma::{
    self, Finding as Seen, PortFinding, RdmaConfig, RdmaError, RdmaLink,
};

use super::Topic;
use super::finding::{Check, Finding, Level};
use super::memory::Locking;
use super::system::System;
use between::PACKETS;
pub use between::{UsedPort, compare_mtus, links};

const RDMA: Check = Check {
    name: "rdma",
    why: "InfiniBand and RoCE adapters write straight into the memory of ranks on other hosts; TCP is \
          slower, and takes processors",
};

const LIBRARY: Check = Check {
    name: "rdma-library",
    why: "RDMA goes through libibverbs, which is opened where a rank has use for it",
};

const DEVICES: Check = Check {
    name: "rdma-devices",
    why: "a device needs a driver in the kernel and one for libibverbs, and a process leave to open it",
};

const PORT: Check =
    Check { name: "rdma-port", why: "a port that is not active carries nothing for any rank" };

const GID: Check = Check {
    name: "rdma-gid",
    why: "on Ethernet a port is known by an IP address of its interface; without one nobody finds it",
};

/// Where the kernel describes devices.
const SYSFS: &str = "/sys/class/infiniband";

/// What an Ethernet frame needs besides the packet's data: the longest headers of RoCE v2, rounded up.
const HEADERS_BYTES: u32 = 104;

/// What a rank wants of RDMA.
#[derive(Clone, Debug)]
pub struct Wish {
    config: RdmaConfig,
    /// What keeps it from any, and what ends that.
    refusal: Option<(String, &'static str)>,
    /// How bad it is where there is none.
    lack: Level,
}

impl Wish {
    /// What those settings want, if there are any, where the doctor is asked about that topic.
    pub fn of(settings: Option<&Settings>, topic: Option<Topic>) -> Wish {
        let config = settings.map_or_else(RdmaConfig::default, |settings| settings.rdma.clone());
        let transports = settings.map_or(Transports::Auto, |settings| settings.transports);
        let encrypts = settings.is_some_and(|settings| settings.encrypts);
        let lack = match (topic, transports) {
            (Some(Topic::Rdma), _) | (_, Transports::Rdma) => Level::Failure,
            (_, Transports::RdmaOrTcp) => Level::Warning,
            _ if config.devices.is_some() => Level::Warning,
            _ => Level::Ok,
        };
        let is_off = config.devices.as_deref() == Some("none");
        let refusal = if !transports.allows_rdma() {
            Some((format!("off by RINGTREE_TRANSPORT={transports}"), "unset RINGTREE_TRANSPORT"))
        } else if is_off {
            Some(("off by RINGTREE_RDMA_DEVICES=none".into(), "unset RINGTREE_RDMA_DEVICES"))
        } else if encrypts {
            let seen = "off by RINGTREE_ENCRYPT=1: what goes over RDMA cannot be encrypted";
            Some((seen.into(), "unset RINGTREE_ENCRYPT  # where nobody else is on the network"))
        } else {
            None
        };
        Wish { config, refusal, lack }
    }

    /// Whether the settings leave this port, or with `None` any of the device, to be used.
    fn includes(&self, device: &str, port: Option<u8>) -> bool {
        let Some(devices) = &self.config.devices else { return true };
        devices.split(',').any(|part| match (part.trim().split_once(':'), port) {
            (None, _) => part.trim() == device,
            (Some((name, _)), None) => name == device,
            (Some((name, number)), Some(port)) => name == device && number == port.to_string(),
        })
    }
}

/// What a rank has of RDMA.
#[derive(Debug)]
pub struct Rdma {
    wish: Wish,
    /// The devices that the kernel has.
    in_kernel: Vec<String>,
    /// What the library says of them.
    seen: Vec<Seen>,
    /// The device and number of each port that is used, or why there is none.
    used: Result<Vec<(String, u8)>, RdmaError>,
}

impl Rdma {
    /// Looks at what there is, if the wish allows to use it.
    pub fn look(system: &System, wish: Wish) -> Rdma {
        let in_kernel = system.names(SYSFS);
        let (mut seen, mut used) = (Vec::new(), Ok(Vec::new()));
        if wish.refusal.is_none() {
            seen = rdma::survey(wish.config.library.as_deref());
            used = rdma::Rdma::open(&wish.config).map(|open| {
                let names = open.rails().iter().map(rdma::Rail::device_and_port);
                names.map(|(device, port)| (device.to_owned(), port)).collect()
            });
        }
        Rdma { wish, in_kernel, seen, used }
    }

    /// What there is to say.
    pub fn check(&self, system: &System) -> Vec<Finding> {
        if let Some((seen, remedy)) = &self.wish.refusal {
            return vec![match self.wish.lack {
                Level::Failure => RDMA.failure(seen).remedy(*remedy),
                _ => RDMA.ok(seen),
            }];
        }
        let devices = self.devices_of_library();
        if self.in_kernel.is_empty() && devices.is_empty() && self.wish.lack == Level::Ok {
            return vec![RDMA.ok("none on this host")];
        }
        let mut findings = vec![self.library(), self.devices(system, &devices)];
        let (trouble, wish) = (self.trouble(), &self.wish);
        for seen in &self.seen {
            match seen {
                Seen::Unusable(RdmaError::Open { device, reason, .. })
                    if wish.includes(device, None) =>
                {
                    findings.push(not_opened(system, trouble, device, reason));
                }
                Seen::Unusable(error @ RdmaError::Call { device, .. })
                    if wish.includes(device, None) =>
                {
                    let remedy = format!("sudo dmesg | grep {device}");
                    findings.push(DEVICES.found(trouble, error.to_string()).remedy(remedy));
                }
                Seen::Unusable(_) => {}
                Seen::Port(port) => findings.extend(self.port(system, port)),
            }
        }
        let worst = findings.iter().map(|finding| finding.level).max();
        findings.extend(self.outcome(worst));
        findings
    }

    /// How bad it is that a part of RDMA does not work: where others do it costs speed.
    fn trouble(&self) -> Level {
        match &self.used {
            Ok(_) => Level::Warning,
            Err(_) => self.wish.lack.max(Level::Warning),
        }
    }

    fn devices_of_library(&self) -> BTreeSet<&str> {
        let name = |seen| match seen {
            &Seen::Port(PortFinding { ref device, .. })
            | &Seen::Unusable(RdmaError::Open { ref device, .. })
            | &Seen::Unusable(RdmaError::Call { ref device, .. }) => Some(device.as_str()),
            _ => None,
        };
        self.seen.iter().filter_map(name).collect()
    }

    fn reason_without_library(&self) -> Option<&str> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Unusable(RdmaError::NoLibrary { reason }) => Some(reason.as_str()),
            _ => None,
        })
    }

    fn library(&self) -> Finding {
        match self.reason_without_library() {
            None => LIBRARY.ok("libibverbs can be used"),
            Some(reason) => LIBRARY
                .found(self.trouble(), format!("libibverbs cannot be used: {reason}"))
                .remedy(
                    "sudo apt-get install libibverbs1 ibverbs-providers  # Fedora, RHEL: sudo dnf \
                     install libibverbs",
                ),
        }
    }

    fn devices(&self, system: &System, of_library: &BTreeSet<&str>) -> Finding {
        let is_absent = |name: &&String| !of_library.contains(name.as_str());
        let absent: Vec<&str> =
            self.in_kernel.iter().filter(is_absent).map(String::as_str).collect();
        let all = || of_library.iter().copied().collect::<Vec<_>>().join(", ");
        if self.in_kernel.is_empty() && of_library.is_empty() {
            return DEVICES.found(self.trouble(), "there is none on this host").remedy(
                "sudo modprobe mlx5_ib  # or the driver of the adapter; without one, soft-RoCE: \
                 sudo rdma link add rxe0 type rxe netdev INTERFACE",
            );
        }
        if self.reason_without_library().is_some() {
            return DEVICES.ok(absent.join(", "));
        }
        if absent.is_empty() {
            return DEVICES.ok(all());
        }
        let there = if of_library.is_empty() { "none".into() } else { all() };
        let seen = format!("the kernel has {}, libibverbs finds {there}", absent.join(", "));
        // They come with the module that gives processes a way to the devices.
        let has_no_way = system.names("/sys/class/infiniband_verbs").is_empty();
        DEVICES.found(self.trouble(), seen).remedy(match has_no_way {
            true => "sudo modprobe ib_uverbs",
            false => "sudo apt-get install ibverbs-providers  # the drivers of libibverbs",
        })
    }

    fn port(&self, system: &System, port: &PortFinding) -> Vec<Finding> {
        let name = name_of(&port.device, port.port);
        let is_included = self.wish.includes(&port.device, Some(port.port));
        let interface = port.is_ethernet.then(|| interface_of(system, port));
        let kind = match &interface {
            Some(interface) => format!("Ethernet ({interface})"),
            None => "InfiniBand".into(),
        };
        let state = port.state;
        if let Some(remedy) = &port.remedy {
            let seen = format!("{name} is {state}: {kind}");
            return vec![match is_included {
                false => PORT.ok(seen + "; not named by RINGTREE_RDMA_DEVICES"),
                true => PORT
                    .found(self.trouble(), seen)
                    .remedy(remedy.replace("INTERFACE", interface.as_deref().unwrap_or_default())),
            }];
        }
        let (mtu_bytes, rate) = (port.mtu_bytes.0, port.rate_gbit_per_s);
        let mut seen = format!("{name} is {state}: {kind}, {rate} Gbit/s, MTU {mtu_bytes}");
        if !port.is_ethernet {
            seen.push_str(&format!(", LID {}", port.lid));
        }
        let gid = self.wish.config.gid_index.or(port.gid.map(u32::from));
        let entry = port.gids.iter().find(|(index, ..)| Some(u32::from(*index)) == gid);
        if let Some((index, address, ..)) = entry {
            seen.push_str(&format!(", GID {index} {address}"));
        }
        let is_used = self.uses(port);
        match (is_included, &self.used) {
            (false, _) => seen.push_str("; not named by RINGTREE_RDMA_DEVICES"),
            (true, Ok(_)) if !is_used && gid.is_some() => {
                seen.push_str(match self.is_outrun(port) {
                    true => "; not used beside faster ones",
                    false => "; not used beside so many others",
                });
            }
            _ => {}
        }
        let mut findings = vec![PORT.ok(seen)];
        if is_included && entry.is_none() {
            findings.extend(self.no_address(&name, interface.as_deref(), &port.gids));
        }
        if let (true, Some(interface)) = (is_used, &interface) {
            findings.extend(small_packets(system, &name, interface, port.mtu_bytes));
        }
        findings
    }

    /// Why a port has none of the addresses of its table.
    fn no_address(
        &self,
        name: &str,
        interface: Option<&str>,
        gids: &[(u8, String, bool, String)],
    ) -> Option<Finding> {
        if let Some(index) = self.wish.config.gid_index {
            let all = gids.iter().map(|(index, address, ..)| format!("{index} {address}"));
            let all = all.collect::<Vec<_>>().join(", ");
            let seen = format!("{name} has no GID {index} (RINGTREE_RDMA_GID_INDEX), but {all}");
            let finding = GID.found(self.trouble(), seen);
            return Some(finding.remedy("unset RINGTREE_RDMA_GID_INDEX"));
        }
        // InfiniBand does without.
        let interface = interface?;
        let seen = format!("{name} has no address that routes (RoCE v2, IPv4 or global IPv6)");
        let finding = GID.found(self.trouble(), seen);
        Some(finding.remedy(format!("sudo ip addr add ADDRESS dev {interface}")))
    }

    fn uses(&self, port: &PortFinding) -> bool {
        let is_this =
            |(device, number): &(String, u8)| *device == port.device && *number == port.port;
        self.used.as_ref().is_ok_and(|used| used.iter().any(is_this))
    }

    /// Whether a port that is used is faster.
    fn is_outrun(&self, port: &PortFinding) -> bool {
        self.seen.iter().any(|seen| match seen {
            Seen::Port(other) => self.uses(other) && other.rate_gbit_per_s > port.rate_gbit_per_s,
            Seen::Unusable(_) => false,
        })
    }

    /// Which ports are used; or why there is none, where nothing so far is as bad as that.
    fn outcome(&self, worst: Option<Level>) -> Option<Finding> {
        let error = match &self.used {
            Ok(used) => {
                let names = used.iter().map(|(device, port)| name_of(device, *port));
                return Some(RDMA.ok(format!("over {}", names.collect::<Vec<_>>().join(", "))));
            }
            Err(_) if worst >= Some(self.trouble()) => return None,
            Err(error) => error,
        };
        let finding = RDMA.found(self.trouble(), error.to_string());
        Some(match error {
            RdmaError::NotPresent { present, .. } => {
                let present = present.replace(", ", ",");
                finding.remedy(format!("export RINGTREE_RDMA_DEVICES={present}"))
            }
            RdmaError::Malformed { .. } => finding.remedy("unset RINGTREE_RDMA_DEVICES"),
            _ => finding,
        })
    }

    /// What a rank locks for links to so many others at most; `None` where it has no RDMA.
    pub fn locking(&self, peers: u32) -> Option<Locking> {
        let used = self.used.as_ref().ok()?;
        let devices: BTreeSet<&str> = used.iter().map(|(device, _)| device.as_str()).collect();
        let of_a_peer = devices.len() as u64 * RdmaLink::LOCKED_BYTES;
        let too_little = self.wish.lack.max(Level::Warning);
        (!devices.is_empty())
            .then(|| Locking { links_bytes: u64::from(peers) * of_a_peer, too_little })
    }

    /// The ports that are used, for the other ranks.
    pub fn used_ports(&self, system: &System) -> Vec<UsedPort> {
        let ports = self.seen.iter().filter_map(|seen| match seen {
            Seen::Port(port) => Some(port),
            Seen::Unusable(_) => None,
        });
        let told = |port: &PortFinding| UsedPort {
            name: name_of(&port.device, port.port),
            interface: port.is_ethernet.then(|| interface_of(system, port)),
            mtu_bytes: port.mtu_bytes.0,
        };
        ports.filter(|port| self.uses(port)).map(told).collect()
    }
}

/// As people write ports.
fn name_of(device: &str, port: u8) -> String {
    format!("{device}:{port}")
}

fn not_opened(system: &System, level: Level, device: &str, reason: &str) -> Finding {
    let is_there = system.path("/dev/infiniband").exists();
    DEVICES.found(level, format!("{device} cannot be opened: {reason}")).remedy(match is_there {
        true => "sudo chmod a+rw /dev/infiniband/uverbs*  # until the next start: udev's rules say who may",
        false => "sudo modprobe ib_uverbs  # in a container: docker run --device=/dev/infiniband IMAGE",
    })
}

/// The network interface of an Ethernet port: by the table of its addresses, or by its device where that
/// is empty; else the word that commands have in its place.
fn interface_of(system: &System, port: &PortFinding) -> String {
    let of_gid = |gid: Option<u8>| {
        let entries = port.gids.iter().filter(|(.., interface)| !interface.is_empty());
        { entries }
            .find(|(index, ..)| gid.is_none_or(|gid| *index == gid))
            .map(|(.., interface)| interface.clone())
    };
    let folder = format!("{SYSFS}/{}", port.device);
    of_gid(port.gid)
        .or_else(|| of_gid(None))
        // Soft-RoCE has no hardware, but a parent.
        .or_else(|| system.text(&format!("{folder}/parent")))
        .or_else(|| system.names(&format!("{folder}/device/net")).into_iter().next())
        .unwrap_or_else(|| "INTERFACE".into())
}

/// Where packets are small because the interface's frames are.
fn small_packets(
    system: &System,
    name: &str,
    interface: &str,
    (active, most): (u32, u32),
) -> Option<Finding> {
    let frame_bytes = system.number(&format!("/sys/class/net/{interface}/mtu"))?;
    let is_cause = active < most && frame_bytes < i64::from(most + HEADERS_BYTES);
    let seen = format!(
        "{name} takes packets of {active} bytes instead of {most}, since {interface} has MTU {frame_bytes}"
    );
    is_cause.then(|| {
        PACKETS.note(seen).remedy(format!(
            "sudo ip link set {interface} mtu 9000  # at the other ends and the switches, too"
        ))
    })
}

#[cfg(test)]
mod tests;
