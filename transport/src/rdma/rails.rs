//! Which ports of which devices a rank uses, and by which of their addresses.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::device::{Device, device_names};
use super::ffi;
use super::{RdmaConfig, RdmaError};

/// Where the kernel describes devices.
pub(super) const SYSFS: &str = "/sys/class/infiniband";

/// Rails of one rank at most.
pub(crate) const MAX_RAILS: usize = 8;

/// A port that a rank uses.
#[derive(Clone, Debug)]
pub struct Rail {
    /// Its device.
    pub(super) device: Arc<Device>,
    /// Which of the rank's devices that is.
    pub(super) device_index: usize,
    /// Number of the port, from 1.
    pub(super) port: u8,
    /// Ethernet, so that all that goes out has a global address.
    pub(super) is_ethernet: bool,
    /// Which of its addresses is used, and the address.
    pub(super) gid: Option<GidChoice>,
    /// InfiniBand's local address.
    pub(super) lid: u16,
    /// Largest packet, as the number that stands for it: 1 is 256 bytes, 5 is 4096.
    pub(super) mtu: u8,
    /// Longest message.
    pub(super) max_message_bytes: u32,
}

impl Rail {
    /// The name of its device, and the number of the port.
    pub fn name_and_port(&self) -> (&str, u8) {
        (self.device.name(), self.port)
    }
}

/// An address of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidChoice {
    /// Its index in the port's table.
    pub index: u8,
    /// The address.
    pub gid: [u8; 16],
}

impl std::fmt::Display for Rail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.device.name(), self.port)?;
        match self.gid {
            Some(choice) => {
                write!(f, " (GID {} {}", choice.index, gid_text(&choice.gid))?;
            }
            None => write!(f, " (LID {}", self.lid)?,
        }
        write!(f, ", MTU {})", mtu_bytes(self.mtu))
    }
}

/// Bytes of an MTU's number.
pub fn mtu_bytes(number: u8) -> u32 {
    128 << number
}

/// A GID as IPv6 addresses are written, or IPv4 if it is one.
pub fn gid_text(gid: &[u8; 16]) -> String {
    let address = std::net::Ipv6Addr::from(*gid);
    address.to_ipv4_mapped().map_or_else(|| address.to_string(), |address| address.to_string())
}

/// A device, and a port of it if one is named, as in `mlx5_1:2`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    device: String,
    port: Option<u8>,
}

/// Whether a setting of devices can be read.
///
/// # Errors
/// [`RdmaError::Malformed`].
pub(super) fn check(text: &str) -> Result<(), RdmaError> {
    match parse(Some(text)) {
        Ok(_) | Err(RdmaError::Off) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The devices and ports of a setting; none named: all may be used.
fn parse(text: Option<&str>) -> Result<Vec<Named>, RdmaError> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let malformed = || RdmaError::Malformed { text: text.into() };
    if text == "none" {
        return Err(RdmaError::Off);
    }
    text.split(',')
        .map(|part| {
            let (device, port) = match part.trim().split_once(':') {
                None => (part.trim(), None),
                Some((device, port)) => (
                    device,
                    Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(malformed)?),
                ),
            };
            match device.is_empty() || device == "none" {
                true => Err(malformed()),
                false => Ok(Named { device: device.into(), port }),
            }
        })
        .collect()
}

/// The rails of this rank: what the setting names, in its order, or all ports that are up and as fast as
/// the fastest.
///
/// # Errors
/// Why there are none; where rails are named, why one of them cannot be used.
pub(super) fn find(config: &RdmaConfig) -> Result<Vec<Rail>, RdmaError> {
    let named = parse(config.devices.as_deref())?;
    let present = device_names(config.library.as_deref())?;
    if present.is_empty() {
        let in_kernel = fs::read_dir(SYSFS).is_ok_and(|mut entries| entries.next().is_some());
        let hint = if in_kernel {
            ", although the kernel has one: install its driver for libibverbs (ibverbs-providers), or give \
             the container /dev/infiniband"
        } else {
            ": `ls /sys/class/infiniband` shows none (load its driver; for soft-RoCE: rdma link add rxe0 \
             type rxe netdev eth0)"
        };
        return Err(RdmaError::NoDevice { hint });
    }
    if let Some(absent) = named.iter().find(|named| !present.contains(&named.device)) {
        let (wanted, present) = (absent.device.clone(), present.join(", "));
        return Err(RdmaError::NotPresent { wanted, present });
    }
    let mut rails =
        if named.is_empty() { every_rail(&present, config)? } else { named_rails(&named, config)? };
    rails.truncate(MAX_RAILS);
    number_devices(&mut rails);
    Ok(rails)
}

/// Counts the devices in the order in which the rails name them.
fn number_devices(rails: &mut [Rail]) {
    let mut names: Vec<String> = Vec::new();
    for rail in rails {
        let name = rail.device.name();
        rail.device_index = names.iter().position(|other| other == name).unwrap_or(names.len());
        if rail.device_index == names.len() {
            names.push(name.to_owned());
        }
    }
}

fn named_rails(named: &[Named], config: &RdmaConfig) -> Result<Vec<Rail>, RdmaError> {
    let mut devices = Devices::default();
    let (mut rails, mut reasons): (Vec<Rail>, Vec<RdmaError>) = (Vec::new(), Vec::new());
    for Named { device, port } in named {
        let device = devices.open(device)?;
        let count = device.ports();
        if let Some(port) = port.filter(|port| *port > count) {
            return Err(RdmaError::NoSuchPort { device: device.name().into(), port, count });
        }
        for port in port.map_or(1..=count, |port| port..=port) {
            let is_twice = |rail: &Rail| rail.device.name() == device.name() && rail.port == port;
            if rails.iter().any(is_twice) {
                continue;
            }
            match rail(&device, port, config) {
                Ok(rail) => rails.push(rail),
                Err(error) => reasons.push(error),
            }
        }
    }
    if rails.is_empty() {
        return Err(none_usable(reasons));
    }
    for reason in reasons {
        tracing::warn!("RDMA goes without a port that RINGTREE_RDMA_DEVICES names: {reason}");
    }
    if rails.len() > MAX_RAILS {
        tracing::warn!("RINGTREE_RDMA_DEVICES names {} ports; {MAX_RAILS} are used", rails.len());
    }
    Ok(rails)
}

/// Why no port can be used, one line for all devices that cannot be opened for the same reason.
fn none_usable(mut errors: Vec<RdmaError>) -> RdmaError {
    let is_alike = |error: &RdmaError| match (error, errors.first()) {
        (RdmaError::Open { reason, .. }, Some(RdmaError::Open { reason: first, .. })) => {
            reason == first
        }
        _ => false,
    };
    if errors.len() > 1 && errors.iter().all(is_alike) {
        let names: Vec<String> = errors.iter().filter_map(device_of).collect();
        if let Some(RdmaError::Open { device, .. }) = errors.first_mut() {
            *device = names.join(", ");
        }
        errors.truncate(1);
    }
    match errors.len() {
        1 => errors.remove(0),
        _ => {
            let reasons = errors.iter().map(ToString::to_string).collect();
            RdmaError::NoneUsable { reasons }
        }
    }
}

fn device_of(error: &RdmaError) -> Option<String> {
    match error {
        RdmaError::Open { device, .. } => Some(device.clone()),
        _ => None,
    }
}

fn every_rail(present: &[String], config: &RdmaConfig) -> Result<Vec<Rail>, RdmaError> {
    let mut devices = Devices::default();
    let (mut rails, mut reasons) = (Vec::new(), Vec::new());
    for name in present {
        match devices.open(name) {
            Ok(device) => {
                for port in 1..=device.ports() {
                    match rail(&device, port, config) {
                        Ok(rail) => rails.push(rail),
                        Err(error) => reasons.push(error),
                    }
                }
            }
            Err(error) => reasons.push(error),
        }
    }
    for reason in &reasons {
        tracing::debug!("not used for RDMA: {reason}");
    }
    let rate = |rail: &Rail| rate_gbit_per_s(Path::new(SYSFS), rail.device.name(), rail.port);
    let fastest = rails.iter().map(rate).fold(0.0, f64::max);
    rails.retain(|rail| rate(rail) >= fastest);
    if rails.is_empty() { Err(none_usable(reasons)) } else { Ok(rails) }
}

/// Devices that were opened, each once.
#[derive(Default)]
struct Devices(Vec<Arc<Device>>);

impl Devices {
    fn open(&mut self, name: &str) -> Result<Arc<Device>, RdmaError> {
        if let Some(open) = self.0.iter().find(|device| device.name() == name) {
            return Ok(open.clone());
        }
        let device = Device::open(name)?;
        self.0.push(device.clone());
        Ok(device)
    }
}

fn rail(device: &Arc<Device>, port: u8, config: &RdmaConfig) -> Result<Rail, RdmaError> {
    let attributes = device.port(port)?;
    let is_ethernet = attributes.link_layer == ffi::LINK_LAYER_ETHERNET;
    if attributes.state != ffi::PORT_ACTIVE {
        return Err(RdmaError::PortDown {
            device: device.name().into(),
            port,
            state: port_state(attributes.state).into(),
            hint: port_hint(is_ethernet, device.name(), port),
        });
    }
    let gids = gids(Path::new(SYSFS), device.name(), port);
    let gid = match config.gid_index {
        Some(index) => {
            let device = device.name().to_owned();
            let asked = gids.iter().find(|entry| u32::from(entry.index) == index);
            Some(asked.ok_or(RdmaError::NoSuchGid { device, port, index })?.choice())
        }
        None if is_ethernet => Some(
            best_gid(&gids)
                .ok_or_else(|| RdmaError::NoGid { device: device.name().into(), port })?,
        ),
        // InfiniBand's first GID has the number of the subnet.
        None => gids.first().map(GidEntry::choice),
    };
    let mtu = attributes.active_mtu.clamp(1, 5) as u8;
    Ok(Rail {
        device: device.clone(),
        device_index: 0,
        port,
        is_ethernet,
        gid,
        lid: attributes.lid,
        mtu: config.mtu.map_or(mtu, |wanted| mtu.min(wanted.number())),
        max_message_bytes: attributes.max_msg_sz,
    })
}

/// The state of a port in words.
pub(super) fn port_state(state: u32) -> &'static str {
    match state {
        1 => "down",
        2 => "initialising",
        3 => "armed",
        4 => "active",
        5 => "in deferred activity",
        _ => "in no known state",
    }
}

/// What helps a port that is not active.
pub(super) fn port_hint(is_ethernet: bool, device: &str, port: u8) -> String {
    if !is_ethernet {
        return "check the cable, and that a subnet manager runs in the fabric (opensm)".into();
    }
    let folder = port_folder(Path::new(SYSFS), device, port).join("gid_attrs/ndevs/0");
    let interface = fs::read_to_string(folder).unwrap_or_default();
    let interface = match interface.trim() {
        "" => "INTERFACE",
        name => name,
    };
    format!(
        "check the cable and the switch, and that its network interface is up (`ip link set {interface} up`)"
    )
}

/// An entry of a port's table of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GidEntry {
    pub(super) index: u8,
    pub(super) gid: [u8; 16],
    pub(super) is_roce_v2: bool,
    pub(super) interface: String,
}

impl GidEntry {
    fn choice(&self) -> GidChoice {
        GidChoice { index: self.index, gid: self.gid }
    }

    /// Whether packets from this address find their way beyond one wire.
    pub(super) fn routes(&self) -> bool {
        let address = std::net::Ipv6Addr::from(self.gid);
        let is_link_local = address.is_unicast_link_local();
        self.is_roce_v2 && !is_link_local && !address.is_loopback() && !address.is_unspecified()
    }
}

/// The address to use on Ethernet: of RoCE v2, IPv4 before global IPv6, since that is what most fabrics
/// route; a link-local one never.
pub(super) fn best_gid(gids: &[GidEntry]) -> Option<GidChoice> {
    let routing = || gids.iter().filter(|entry| entry.routes());
    let is_ipv4 =
        |entry: &&GidEntry| std::net::Ipv6Addr::from(entry.gid).to_ipv4_mapped().is_some();
    routing().find(is_ipv4).or_else(|| routing().next()).map(GidEntry::choice)
}

/// The table of a port's addresses, as the kernel tells it.
pub(super) fn gids(sysfs: &Path, device: &str, port: u8) -> Vec<GidEntry> {
    let folder = port_folder(sysfs, device, port);
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let entry = |index: u8| {
        let gid = gid_bytes(text(folder.join(format!("gids/{index}"))).trim())?;
        let attribute =
            |name: &str| text(folder.join(format!("gid_attrs/{name}/{index}"))).trim().to_owned();
        let is_roce_v2 = attribute("types") == "RoCE v2";
        (gid != [0; 16]).then(|| GidEntry { index, gid, is_roce_v2, interface: attribute("ndevs") })
    };
    (0..=u8::MAX).filter_map(entry).collect()
}

/// The bytes of a GID as sysfs writes it: eight groups of four digits.
fn gid_bytes(text: &str) -> Option<[u8; 16]> {
    text.parse::<std::net::Ipv6Addr>().ok().map(|address| address.octets())
}

/// What a port carries, as sysfs says: "100 Gb/sec (4X EDR)".
pub(super) fn rate_gbit_per_s(sysfs: &Path, device: &str, port: u8) -> f64 {
    let text = fs::read_to_string(port_folder(sysfs, device, port).join("rate"));
    text.ok().and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

fn port_folder(sysfs: &Path, device: &str, port: u8) -> PathBuf {
    sysfs.join(device).join("ports").join(port.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_with_or_without_ports() {
        let named = |device: &str, port| Named { device: device.into(), port };
        assert_eq!(parse(None), Ok(vec![]));
        assert_eq!(
            parse(Some("mlx5_0, mlx5_1:2")),
            Ok(vec![named("mlx5_0", None), named("mlx5_1", Some(2))])
        );
        assert_eq!(parse(Some("none")), Err(RdmaError::Off));
        for text in ["", "none,a", "a,,b", "a:", "a:0", "a:x", ":1"] {
            let refused = parse(Some(text));
            assert_eq!(refused, Err(RdmaError::Malformed { text: text.into() }));
        }
    }

    /// A table as that of a port on an interface with both kinds of address.
    fn table(entries: &[(&str, &str)]) -> (PathBuf, Vec<GidEntry>) {
        let name = format!("ringtree-gids-{}-{:p}", std::process::id(), entries);
        let sysfs = std::env::temp_dir().join(name);
        let folder = sysfs.join("mlx5_0/ports/1");
        for part in ["gids", "gid_attrs/types", "gid_attrs/ndevs"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        for (index, (gid, kind)) in entries.iter().enumerate() {
            fs::write(folder.join(format!("gids/{index}")), format!("{gid}\n")).unwrap();
            fs::write(folder.join(format!("gid_attrs/types/{index}")), format!("{kind}\n"))
                .unwrap();
            fs::write(folder.join(format!("gid_attrs/ndevs/{index}")), "eth0\n").unwrap();
        }
        fs::write(folder.join("rate"), "100 Gb/sec (4X EDR)\n").unwrap();
        let gids = gids(&sysfs, "mlx5_0", 1);
        (sysfs, gids)
    }

    const LINK_LOCAL: &str = "fe80:0000:0000:0000:0200:00ff:fe00:0000";
    const GLOBAL: &str = "2001:0db8:0000:0000:0000:0000:0000:0001";
    const IPV4: &str = "0000:0000:0000:0000:0000:ffff:0a02:0001";
    const EMPTY: &str = "0000:0000:0000:0000:0000:0000:0000:0000";

    #[test]
    fn an_address_that_routes_is_chosen_and_ipv4_first() {
        for (entries, chosen) in [
            (
                &[
                    (LINK_LOCAL, "RoCE v2"),
                    (GLOBAL, "RoCE v2"),
                    (IPV4, "IB/RoCE v1"),
                    (IPV4, "RoCE v2"),
                ][..],
                Some(3),
            ),
            (&[(LINK_LOCAL, "RoCE v2"), (EMPTY, ""), (GLOBAL, "RoCE v2")][..], Some(2)),
            (&[(LINK_LOCAL, "RoCE v2"), (IPV4, "IB/RoCE v1")][..], None),
            (&[("0000:0000:0000:0000:0000:0000:0000:0001", "RoCE v2")][..], None),
            (&[][..], None),
        ] {
            let (sysfs, gids) = table(entries);
            assert_eq!(best_gid(&gids).map(|choice| choice.index), chosen, "{entries:?}");
            assert!(gids.iter().all(|entry| entry.interface == "eth0"));
            assert_eq!(rate_gbit_per_s(&sysfs, "mlx5_0", 1), 100.0);
            fs::remove_dir_all(sysfs).unwrap();
        }
    }

    #[test]
    fn addresses_are_written_as_people_know_them() {
        let bytes = |text| gid_bytes(text).unwrap();
        assert_eq!(gid_text(&bytes(IPV4)), "10.2.0.1");
        assert_eq!(gid_text(&bytes(GLOBAL)), "2001:db8::1");
        assert_eq!(mtu_bytes(5), 4096);
    }
}
