//! RDMA devices and their ports, from `/sys/class/infiniband`.

use super::files::{Files, Folder};
use super::network::{Interface, MOST_MBIT_PER_S, Place, Placed, driver, place};
use crate::machine::{LinkLayer, NetPort, PortState};

/// A port's table has up to some hundred identifiers; the ones that are set come first.
const MOST_GIDS: usize = 16;

/// The state of a port that may send, of those in the InfiniBand specification (`PortState`).
const ACTIVE: u32 = 4;

/// The ports of all devices, by name and number.
pub(super) fn read(sysfs: &Files, interfaces: &[Interface]) -> Vec<Placed> {
    let Some(class) = sysfs.folder("class/infiniband") else {
        return Vec::new();
    };
    let gpu_direct_rdma = gpu_direct_rdma(sysfs);
    let mut all = Vec::new();
    for name in class.names() {
        let Some(folder) = class.folder(&name) else {
            sysfs.warnings.add(&name, "its folder in sysfs is missing: left out");
            continue;
        };
        let device = Device { name, folder, interfaces, gpu_direct_rdma };
        all.extend(device.ports());
    }
    all
}

/// Whether the module is there by which NVIDIA's driver lets network cards reach the memory of GPUs.
/// Without it they may still, by dma-buf, which sysfs does not tell.
fn gpu_direct_rdma(sysfs: &Files) -> Option<bool> {
    let signs = ["module/nvidia_peermem", "module/nv_peer_mem", "kernel/mm/memory_peers/nv_mem"];
    signs.iter().any(|sign| sysfs.top().has(sign)).then_some(true)
}

struct Device<'a, 'f> {
    name: String,
    folder: Folder<'f>,
    interfaces: &'a [Interface<'f>],
    gpu_direct_rdma: Option<bool>,
}

impl<'f> Device<'_, 'f> {
    fn ports(&self) -> Vec<Placed> {
        let Some(ports) = self.folder.folder("ports") else {
            self.folder.files.warnings.add(&self.name, "an RDMA device without ports");
            return Vec::new();
        };
        let names = ports.names();
        let is_only = names.len() == 1;
        let port = |name: &String| {
            let number = name.parse().ok()?;
            Some(self.port(number, &ports.folder(name)?, is_only))
        };
        names.iter().filter_map(port).collect()
    }

    fn port(&self, number: u32, port: &Folder, is_only: bool) -> Placed {
        let partner = self.partner(number, port, is_only);
        let device = self.folder.folder("device").map(|device| place(&device));
        // A device in software hangs where its interface does.
        let place = device.or(partner.map(|partner| partner.place)).unwrap_or(Place::Numa(None));
        let guid = self.guid("sys_image_guid").or_else(|| self.guid("node_guid")).unwrap_or(0);
        let link_layer = match port.text("link_layer").as_deref() {
            Some("Ethernet") => LinkLayer::Ethernet,
            Some("InfiniBand") => LinkLayer::InfiniBand,
            _ => LinkLayer::Unknown,
        };
        let rate = port.text("rate").unwrap_or_default();
        let speed_mbit_per_s = self.speed_mbit_per_s(&rate);
        let is_infiniband = link_layer == LinkLayer::InfiniBand;
        let port = NetPort {
            name: self.name.clone(),
            port: number,
            speed_mbit_per_s,
            possible_speed_mbit_per_s: speed_mbit_per_s
                .filter(|_| is_infiniband)
                .and_then(|speed| with_all_lanes(&rate, speed)),
            guid,
            gpu_direct_rdma: self.gpu_direct_rdma,
            link_layer,
            state: state(port),
            driver: driver(&self.folder),
            partner: partner.map(|partner| partner.name.clone()).unwrap_or_default(),
            addresses: gids(port),
            mtu_bytes: partner.and_then(Interface::mtu_bytes),
            ..NetPort::default()
        };
        Placed { place, port }
    }

    /// The network interface that goes through the same port: the one that the port's identifiers name, or
    /// that a device in software was made on, else one of the same PCI function, which counts its ports
    /// from 0.
    fn partner(&self, number: u32, port: &Folder, is_only: bool) -> Option<&Interface<'f>> {
        let named = |name: &str| self.interfaces.iter().find(|interface| interface.name == name);
        let table = port.folder("gid_attrs/ndevs");
        let mut by_gid = (0..MOST_GIDS).filter_map(|i| table.as_ref()?.text(&i.to_string()));
        let of_software = || self.folder.text("parent");
        if let Some(found) = by_gid.find_map(|name| named(&name)) {
            return Some(found);
        }
        if let Some(found) = of_software().and_then(|name| named(&name)) {
            return Some(found);
        }
        let siblings = self.folder.folder("device/net")?.names();
        let siblings: Vec<_> = siblings.iter().filter_map(|name| named(name)).collect();
        match siblings[..] {
            [sibling] if is_only => Some(sibling),
            _ => siblings.into_iter().find(|sibling| sibling.device_port() + 1 == number),
        }
    }

    /// `100 Gb/sec (4X EDR)` in megabits a second.
    fn speed_mbit_per_s(&self, rate: &str) -> Option<u64> {
        let speed = megabits(rate);
        if speed.is_none() {
            let message = format!("rate {rate:?}: taken as unknown");
            self.folder.files.warnings.add(&self.name, message);
        }
        speed
    }

    /// `0002:c903:00f9:bfa0` as a number.
    fn guid(&self, name: &str) -> Option<u64> {
        let digits = self.folder.text(name)?.replace(':', "");
        u64::from_str_radix(&digits, 16).ok().filter(|guid| *guid != 0)
    }
}

fn megabits(rate: &str) -> Option<u64> {
    let (number, rest) = rate.split_once(' ')?;
    let gigabits: f64 = number.parse().ok().filter(|_| rest.starts_with("Gb/sec"))?;
    let megabits = gigabits * 1000.0;
    (1.0..=MOST_MBIT_PER_S as f64).contains(&megabits).then_some(megabits as u64)
}

/// What a port of InfiniBand that runs on a single lane could have: its connectors and cables have four. Two may be
/// meant, where a cable feeds two hosts (HDR100, NDR200).
fn with_all_lanes(rate: &str, speed_mbit_per_s: u64) -> Option<u64> {
    rate.contains("(1X ").then_some(4 * speed_mbit_per_s)
}

/// `4: ACTIVE`.
fn state(port: &Folder) -> PortState {
    let text = port.text("state").unwrap_or_default();
    match text.split(':').next().and_then(|number| number.parse().ok()) {
        Some(ACTIVE) => PortState::Up,
        Some(1..ACTIVE) => PortState::Down,
        _ => PortState::Unknown,
    }
}

/// Those that are set. A prefix without an interface identifier is none.
fn gids(port: &Folder) -> Vec<String> {
    let Some(table) = port.folder("gids") else {
        return Vec::new();
    };
    let gid = |i: usize| table.text(&i.to_string());
    let is_set = |gid: &String| gid.split(':').skip(4).any(|word| word != "0000");
    (0..MOST_GIDS).filter_map(gid).filter(is_set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_megabits() {
        assert_eq!(megabits("100 Gb/sec (4X EDR)"), Some(100_000));
        assert_eq!(megabits("2.5 Gb/sec (1X SDR)"), Some(2_500));
        let nonsense =
            ["", "100", "-1 Gb/sec (4X)", "0 Gb/sec", "nan Gb/sec", "1e300 Gb/sec", "5 Mb/sec"];
        for rate in nonsense {
            assert_eq!(megabits(rate), None, "{rate}");
        }
    }
}
