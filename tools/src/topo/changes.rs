//! Changes to a machine: without a device, or with another link.

use std::str::FromStr;

use ringtree_topology::{BusId, Machine, NetPort, Nic, PciDevice, PcieLink};

use super::TopoError;

/// `DEVICE=LINK` of the command line.
#[derive(Clone, Debug)]
pub struct LinkChange {
    device: String,
    link: NewLink,
}

/// What a device shall have.
#[derive(Clone, Copy, Debug)]
enum NewLink {
    Pcie(PcieLink),
    /// Of a port.
    MbitPerS(u64),
}

impl FromStr for LinkChange {
    type Err = String;

    fn from_str(text: &str) -> Result<LinkChange, String> {
        let wrong = || {
            "write GPU3=32x16 (GT/s and lanes of PCIe), or mlx5_0=400G (Gbit/s of a port)"
                .to_owned()
        };
        let (device, link) = text.rsplit_once('=').ok_or_else(wrong)?;
        let number = |text: &str, most: f64| {
            text.parse::<f64>().ok().filter(|number| *number > 0.0 && *number <= most)
        };
        let link = match link.split_once(['x', 'X']) {
            Some((speed, width)) => {
                let gigatransfers_per_s = number(speed, 1024.0).ok_or_else(wrong)?;
                let width = width.parse().ok().filter(|width| (1..=32).contains(width));
                NewLink::Pcie(PcieLink { gigatransfers_per_s, width: width.ok_or_else(wrong)? })
            }
            None => {
                let speed = link.strip_suffix(['g', 'G']).ok_or_else(wrong)?;
                NewLink::MbitPerS((number(speed, 1e5).ok_or_else(wrong)? * 1e3).ceil() as u64)
            }
        };
        Ok(LinkChange { device: device.to_owned(), link })
    }
}

/// Changes a machine, and says each change in words.
pub fn changed(
    machine: &mut Machine,
    without: &[String],
    links: &[LinkChange],
) -> Result<Vec<String>, TopoError> {
    let mut said = Vec::new();
    for name in without {
        remove(machine, name)?;
        said.push(format!("without {name}"));
    }
    for change in links {
        said.push(set_link(machine, change)?);
    }
    Ok(said)
}

fn remove(machine: &mut Machine, name: &str) -> Result<(), TopoError> {
    let gpus = |machine: &Machine| -> Vec<BusId> {
        machine.gpus().iter().map(|gpu| gpu.place.device.bus_id).collect()
    };
    let before = gpus(machine);
    let mut is_found = false;
    for node in &mut machine.numa_nodes {
        remove_below(&mut node.devices, name, &mut is_found);
        node.nics.iter_mut().for_each(|nic| remove_port(nic, name, &mut is_found));
        node.nics.retain(|nic| !nic.ports.is_empty());
    }
    if !is_found {
        return Err(no_device(machine, name));
    }
    let after = gpus(machine);
    let is_gone = |bus_id: BusId| before.contains(&bus_id) && !after.contains(&bus_id);
    for_each(machine, &mut |device| {
        let links = device.gpu.as_mut().map(|gpu| &mut gpu.links);
        links.into_iter().for_each(|links| links.retain(|link| !link.target.is_some_and(is_gone)));
    });
    Ok(())
}

fn remove_below(devices: &mut Vec<PciDevice>, name: &str, is_found: &mut bool) {
    devices.retain_mut(|device| {
        if is_called(device, name) {
            *is_found = true;
            return false;
        }
        if let Some(nic) = &mut device.nic {
            remove_port(nic, name, is_found);
        }
        remove_below(&mut device.children, name, is_found);
        true
    });
}

fn remove_port(nic: &mut Nic, name: &str, is_found: &mut bool) {
    let ports = nic.ports.len();
    nic.ports.retain(|port| port.name != name);
    *is_found |= nic.ports.len() < ports;
}

fn set_link(machine: &mut Machine, change: &LinkChange) -> Result<String, TopoError> {
    let LinkChange { device: name, link } = change;
    let mut said = None;
    match *link {
        NewLink::Pcie(link) => for_each(machine, &mut |device| {
            if is_called(device, name) {
                let old = device.link.map_or("an unknown link".into(), |old| old.to_string());
                said = Some(format!("{name} at {link} instead of {old}"));
                device.link = Some(link);
            }
        }),
        NewLink::MbitPerS(speed) => for_each_port(machine, &mut |port| {
            if port.name == *name {
                let gbit = |speed: u64| format!("{} Gbit/s", speed as f64 / 1e3);
                let old = port.speed_mbit_per_s.map_or("an unknown speed".into(), gbit);
                said = Some(format!("{name} at {} instead of {old}", gbit(speed)));
                port.speed_mbit_per_s = Some(speed);
            }
        }),
    }
    let is_port = machine.ports().iter().any(|placed| placed.port.name == *name);
    let is_device = machine.devices().iter().any(|placed| is_called(placed.device, name));
    said.ok_or_else(|| match *link {
        NewLink::Pcie(_) if is_port => TopoError::BadChange {
            name: name.clone(),
            what: "a port",
            instead: "give it a speed such as 400G, or its card's bus id a PCIe link",
        },
        NewLink::MbitPerS(_) if is_device => TopoError::BadChange {
            name: name.clone(),
            what: "a PCI device",
            instead: "give it a link such as 32x16, or its port's name a speed",
        },
        _ => no_device(machine, name),
    })
}

/// `GPU3`, or a bus id with or without its domain.
fn is_called(device: &PciDevice, name: &str) -> bool {
    let gpu = device.gpu.as_ref().map(|gpu| format!("GPU{}", gpu.index));
    gpu.is_some_and(|gpu| gpu.eq_ignore_ascii_case(name)) || name.parse() == Ok(device.bus_id)
}

fn for_each(machine: &mut Machine, change: &mut impl FnMut(&mut PciDevice)) {
    fn walk(devices: &mut [PciDevice], change: &mut impl FnMut(&mut PciDevice)) {
        for device in devices {
            change(device);
            walk(&mut device.children, change);
        }
    }
    machine.numa_nodes.iter_mut().for_each(|node| walk(&mut node.devices, change));
}

fn for_each_port(machine: &mut Machine, change: &mut impl FnMut(&mut NetPort)) {
    for_each(machine, &mut |device| {
        device.nic.iter_mut().flat_map(|nic| &mut nic.ports).for_each(&mut *change);
    });
    let nics = machine.numa_nodes.iter_mut().flat_map(|node| &mut node.nics);
    nics.flat_map(|nic| &mut nic.ports).for_each(change);
}

fn no_device(machine: &Machine, name: &str) -> TopoError {
    let gpus = machine.gpus().into_iter().map(|placed| format!("GPU{}", placed.gpu.index));
    let ports = machine.ports().into_iter().map(|placed| placed.port.name.clone());
    let known: Vec<String> = gpus.chain(ports).collect();
    let known = match known.is_empty() {
        true => "give the bus id of a device that the tree shows".into(),
        false => format!("there are {}, and what has a bus id", known.join(", ")),
    };
    TopoError::NoDevice { name: name.to_owned(), known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_of_pcie_or_of_ports() {
        let pcie = |text: &str| match text.parse::<LinkChange>().expect("a change") {
            LinkChange { device, link: NewLink::Pcie(link) } => (device, link.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(pcie("0000:1a:00.0=16x32"), ("0000:1a:00.0".into(), "16 GT/s x32".into()));
        assert_eq!(pcie("GPU3=2.5x1"), ("GPU3".into(), "2.5 GT/s x1".into()));
        let port = "mlx5_0=2.5g".parse::<LinkChange>().expect("a change");
        assert!(matches!(port.link, NewLink::MbitPerS(2500)), "{port:?}");
        for text in ["", "GPU3", "GPU3=", "GPU3=16", "GPU3=16x", "GPU3=16x33", "GPU3=0x16"] {
            assert!(text.parse::<LinkChange>().is_err(), "{text}");
        }
        for text in ["GPU3=-1x2", "a=NaNx1", "a=infG", "a=G", "a=0G", "a=1e9G"] {
            assert!(text.parse::<LinkChange>().is_err(), "{text}");
        }
    }
}
