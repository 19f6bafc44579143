//! What RDMA is like on this host, for `ringtree doctor`.

use std::path::Path;

use super::device::{Device, device_names};
use super::rails::{self, GidChoice};
use super::{Rail, RdmaError, RdmaLink, ffi, mtu_bytes};

/// What there is of RDMA.
#[derive(Clone, Debug)]
pub enum Finding {
    /// The library cannot be used, or a device not be opened.
    Unusable(RdmaError),
    /// A port.
    Port(PortFinding),
}

/// A port of a device.
#[derive(Clone, Debug)]
pub struct PortFinding {
    /// Its device.
    pub device: String,
    /// Its number.
    pub port: u8,
    /// Its state in words, and what helps if it is not active.
    pub state: &'static str,
    /// See [`PortFinding::state`].
    pub remedy: Option<String>,
    /// Ethernet, not InfiniBand.
    pub is_ethernet: bool,
    /// Bytes of the largest packet that it takes now, and that it could take.
    pub mtu_bytes: (u32, u32),
    /// What it carries, in Gbit/s.
    pub rate_gbit_per_s: f64,
    /// All its addresses: index, text, whether of RoCE v2, network interface.
    pub gids: Vec<(u8, String, bool, String)>,
    /// The address that would be used.
    pub gid: Option<u8>,
    /// InfiniBand's local address.
    pub lid: u16,
}

impl Rail {
    /// Its device and the number of its port there, as a [`PortFinding`] names them.
    pub fn device_and_port(&self) -> (&str, u8) {
        (self.device.name(), self.port)
    }
}

impl RdmaLink {
    /// What a link locks of this process's memory for each device that it may use, besides the memory that
    /// is registered: where the peer writes, and what this side writes from.
    pub const LOCKED_BYTES: u64 = 2_102_272 + 2_364_416;
}

/// Looks at everything, by the library that is named or found. The first entry is the library's if that cannot be
/// used, and then the only one.
pub fn survey(library: Option<&Path>) -> Vec<Finding> {
    let names = match device_names(library) {
        Ok(names) => names,
        Err(error) => return vec![Finding::Unusable(error)],
    };
    names.iter().flat_map(|name| device(name)).collect()
}

fn device(name: &str) -> Vec<Finding> {
    match Device::open(name) {
        Err(error) => vec![Finding::Unusable(error)],
        Ok(device) => (1..=device.ports())
            .map(|number| match device.port(number) {
                Err(error) => Finding::Unusable(error),
                Ok(attributes) => Finding::Port(port(name, number, &attributes)),
            })
            .collect(),
    }
}

fn port(device: &str, number: u8, attributes: &ffi::PortAttributes) -> PortFinding {
    let sysfs = Path::new(rails::SYSFS);
    let is_ethernet = attributes.link_layer == ffi::LINK_LAYER_ETHERNET;
    let is_active = attributes.state == ffi::PORT_ACTIVE;
    let gids = rails::gids(sysfs, device, number);
    let gid = if is_ethernet {
        rails::best_gid(&gids).map(|GidChoice { index, .. }| index)
    } else {
        gids.first().map(|entry| entry.index)
    };
    let bytes = |mtu: u32| mtu_bytes(mtu.clamp(1, 5) as u8);
    PortFinding {
        device: device.into(),
        port: number,
        state: rails::port_state(attributes.state),
        remedy: (!is_active).then(|| rails::port_hint(is_ethernet, device, number)),
        is_ethernet,
        mtu_bytes: (bytes(attributes.active_mtu), bytes(attributes.max_mtu)),
        rate_gbit_per_s: rails::rate_gbit_per_s(sysfs, device, number),
        gids: gids
            .into_iter()
            .map(|entry| {
                (entry.index, rails::gid_text(&entry.gid), entry.is_roce_v2, entry.interface)
            })
            .collect(),
        gid,
        lid: attributes.lid,
    }
}

#[cfg(test)]
mod tests {
    use super::super::arena::Arena;
    use super::*;

    #[test]
    fn what_a_link_locks_is_known() {
        let arenas = [Arena::landing().unwrap(), Arena::staging().unwrap()];
        let locked: usize = arenas.iter().map(Arena::len_bytes).sum();
        assert_eq!(RdmaLink::LOCKED_BYTES, locked as u64);
    }
}
