//! Interfaces: which one ranks of other hosts are told to connect to, and what it is like.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use ringtree::Settings;
use ringtree_transport::endpoint::Transports;
use ringtree_transport::interfaces::{InterfaceError, rank_addresses};
use serde::{Deserialize, Serialize};

use super::finding::{Check, Finding};
use super::system::System;

const INTERFACES: Check = Check {
    name: "interfaces",
    why: "RINGTREE_INTERFACE takes one of them by name or subnet, or several separated by commas",
};

const CHOICE: Check =
    Check { name: "interface", why: "ranks of other hosts are told to connect to its address" };

const SPEED: Check = Check {
    name: "interface-speed",
    why: "what goes between hosts goes over the interfaces that are used, and no faster",
};

const MTU: Check = Check {
    name: "mtu",
    why: "where two ends of a network differ in it, small messages pass and large ones vanish",
};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    name: String,
    addresses: Vec<IpAddr>,
    is_up: bool,
    /// Whether there is something at the other end.
    has_carrier: bool,
    is_loopback: bool,
    mtu: Option<u32>,
    megabits_per_s: Option<u32>,
}

/// An address that others are told, and the MTU of its interface, if that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advertised {
    /// The address.
    pub address: IpAddr,
    mtu: Option<u32>,
}

/// What there is to say of the interfaces, and the addresses that a rank listens on: of one that was
/// not told where it meets the others, only those that are set.
pub fn check(
    system: &System,
    settings: &Settings,
    rendezvous: Option<&str>,
) -> (Vec<Finding>, Vec<Advertised>) {
    let interfaces = list(system);
    let mut findings = vec![describe(&interfaces)];
    let setting = settings.interface.as_deref();
    let is_unknown = setting.is_none() && rendezvous.is_none();
    if is_unknown || settings.transports == Transports::Shm {
        return (findings, Vec::new());
    }
    match rank_addresses(setting, rendezvous) {
        Err(error) => {
            findings.push(no_choice(&interfaces, setting, &error));
            (findings, Vec::new())
        }
        Ok(addresses) => {
            findings.push(choice(&interfaces, setting, &addresses));
            findings.extend(speed(&interfaces, &addresses));
            let mtu = |address| holding(&interfaces, address)?.mtu;
            let advertised = |address| Advertised { address, mtu: mtu(address) };
            (findings, addresses.into_iter().map(advertised).collect())
        }
    }
}

/// Whether the interfaces of all hosts' ranks have the same MTU, if there are several.
pub fn compare_mtus(all: &[(String, Vec<Advertised>)]) -> Option<Finding> {
    let mut hosts_by_mtu: BTreeMap<u32, &str> = BTreeMap::new();
    for (host, advertised) in all {
        let of_network = advertised.iter().filter(|one| !one.address.is_loopback());
        for mtu in of_network.filter_map(|one| one.mtu) {
            hosts_by_mtu.entry(mtu).or_insert(host);
        }
    }
    let (least, some) = hosts_by_mtu.first_key_value()?;
    let (most, others) = hosts_by_mtu.last_key_value()?;
    Some(if least == most {
        MTU.ok(least.to_string())
    } else {
        MTU.warning(format!("{least} on {some}, {most} on {others}"))
            .remedy(format!("sudo ip link set INTERFACE mtu {least}  # on {others}"))
    })
}

/// All interfaces, by name.
fn list(system: &System) -> Vec<Interface> {
    let mut all: BTreeMap<String, Interface> = BTreeMap::new();
    // Whoever may not list them gets an error from the choice.
    for entry in getifaddrs().into_iter().flatten() {
        let name = entry.interface_name;
        let flags = entry.flags;
        let interface = all.entry(name.clone()).or_insert_with(|| Interface {
            name: name.clone(),
            addresses: Vec::new(),
            is_up: flags.contains(InterfaceFlags::IFF_UP),
            has_carrier: flags.contains(InterfaceFlags::IFF_LOWER_UP),
            is_loopback: flags.contains(InterfaceFlags::IFF_LOOPBACK),
            mtu: None,
            megabits_per_s: None,
        });
        let Some(address) = entry.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()));
        interface.addresses.extend(v4.or(v6));
        if let Some(link) = address.as_link_addr() {
            let hardware = link.addr().map(|bytes| bytes.map(|byte| format!("{byte:02x}")));
            let hardware = hardware.map(|bytes| bytes.join(":"));
            ask_system(system, interface, link.ifindex(), hardware.as_deref());
        }
    }
    all.into_values().collect()
}

/// What `/sys` says of an interface, where it speaks of the same one: it may have been mounted in
/// another network namespace.
fn ask_system(system: &System, interface: &mut Interface, index: usize, hardware: Option<&str>) {
    let folder = format!("/sys/class/net/{}", interface.name);
    let number = |name| system.number(&format!("{folder}/{name}"));
    let is_same = number("ifindex") == i64::try_from(index).ok()
        && system.text(&format!("{folder}/address")).as_deref() == hardware;
    if is_same {
        interface.mtu = number("mtu").and_then(|mtu| u32::try_from(mtu).ok());
        // Interfaces that are not made of copper or glass say -1, or nothing.
        let speed = number("speed").filter(|speed| *speed > 0);
        interface.megabits_per_s = speed.and_then(|speed| u32::try_from(speed).ok());
    }
}

fn describe(interfaces: &[Interface]) -> Finding {
    let names: Vec<String> = interfaces.iter().map(Interface::describe).collect();
    INTERFACES.ok(names.join("; "))
}

fn holding(interfaces: &[Interface], address: IpAddr) -> Option<&Interface> {
    interfaces.iter().find(|interface| interface.addresses.contains(&address))
}

/// The interfaces that could be set, those of networks first.
fn usable(interfaces: &[Interface]) -> impl Iterator<Item = &Interface> {
    let are_usable = |loopback: bool| {
        interfaces.iter().filter(move |interface| {
            interface.is_loopback == loopback && interface.is_up && !interface.addresses.is_empty()
        })
    };
    are_usable(false).chain(are_usable(true))
}

/// Why no address can be told to others.
fn no_choice(interfaces: &[Interface], setting: Option<&str>, error: &InterfaceError) -> Finding {
    let parts = setting.into_iter().flat_map(|setting| setting.split(',').map(str::trim));
    let named: Vec<&Interface> =
        parts.filter_map(|part| interfaces.iter().find(|one| one.name == part)).collect();
    let value = setting.unwrap_or_default();
    if let Some(down) = named.iter().find(|interface| !interface.is_up) {
        return CHOICE
            .failure(format!("{} is down (RINGTREE_INTERFACE={value})", down.name))
            .remedy(format!("sudo ip link set {} up", down.name));
    }
    if let Some(bare) = named.iter().find(|interface| interface.addresses.is_empty()) {
        return CHOICE
            .failure(format!("{} has no address (RINGTREE_INTERFACE={value})", bare.name))
            .remedy(format!("sudo ip address add ADDRESS/24 dev {}", bare.name));
    }
    let failure = CHOICE.failure(error.to_string());
    let loopback = interfaces.iter().find(|one| one.is_loopback && !one.is_up);
    if let (InterfaceError::Route { .. }, Some(loopback)) = (error, loopback) {
        return failure.remedy(format!("sudo ip link set {} up", loopback.name));
    }
    match (error, usable(interfaces).next()) {
        (InterfaceError::Unknown { .. } | InterfaceError::Subnet { .. }, Some(other)) => {
            failure.remedy(format!("export RINGTREE_INTERFACE={}", other.name))
        }
        (InterfaceError::LinkLocal { .. }, _) => {
            failure.remedy("sudo ip address add fd00::1/64 dev INTERFACE")
        }
        (InterfaceError::Route { address, .. }, _) => {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            let host = host.trim_matches(['[', ']']);
            let is_name = host.parse::<IpAddr>().is_err();
            failure
                .remedy(format!("{} {host}", if is_name { "getent hosts" } else { "ip route get" }))
        }
        _ => failure,
    }
}

fn choice(interfaces: &[Interface], setting: Option<&str>, addresses: &[IpAddr]) -> Finding {
    let name = |address: &IpAddr| match holding(interfaces, *address) {
        Some(interface) => format!("{} ({address})", interface.name),
        None => address.to_string(),
    };
    let names: Vec<String> = addresses.iter().map(name).collect();
    let reason = match setting {
        Some(_) => "by RINGTREE_INTERFACE",
        None => "the way to the rendezvous",
    };
    let seen = format!("{}, {reason}", names.join(", "));
    let dead = addresses.iter().filter_map(|address| holding(interfaces, *address));
    match { dead }.find(|interface| !interface.has_carrier) {
        Some(dead) => CHOICE
            .warning(format!("{seen}; {} has no carrier", dead.name))
            .remedy(format!("ip -details link show {}  # the cable, or the other end", dead.name)),
        None => CHOICE.ok(seen),
    }
}

/// Whether there is an interface that is faster than all those that are used.
fn speed(interfaces: &[Interface], addresses: &[IpAddr]) -> Option<Finding> {
    let used = addresses.iter().filter_map(|address| holding(interfaces, *address));
    let used: Vec<&Interface> = used.filter(|interface| !interface.is_loopback).collect();
    let fastest = used.iter().copied().max_by_key(|interface| interface.megabits_per_s)?;
    let seen = format!("{} has {}", fastest.name, fastest.speed());
    let own = fastest.megabits_per_s?;
    let others = usable(interfaces).filter(|other| !other.is_loopback && other.has_carrier);
    let best = others.max_by_key(|other| other.megabits_per_s)?;
    Some(match best.megabits_per_s {
        Some(more) if more > own => SPEED
            .warning(format!("{seen}, but {} has {}", best.name, best.speed()))
            .remedy(format!("export RINGTREE_INTERFACE={}", best.name)),
        _ if own < 1000 => SPEED
            .warning(seen)
            .remedy(format!("sudo ethtool {}  # what it and its partner can do", fastest.name)),
        _ => SPEED.ok(seen),
    })
}

impl Interface {
    /// `eth0 (10.1.0.5), MTU 1500, 10 Gbit/s`.
    fn describe(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let mut text = match addresses.is_empty() {
            true => self.name.clone(),
            false => format!("{} ({})", self.name, addresses.join(", ")),
        };
        match (self.is_up, self.has_carrier) {
            (false, _) => text.push_str(", down"),
            (true, false) => text.push_str(", no carrier"),
            (true, true) => {}
        }
        if let Some(mtu) = self.mtu {
            text.push_str(&format!(", MTU {mtu}"));
        }
        if self.megabits_per_s.is_some() {
            text.push_str(&format!(", {}", self.speed()));
        }
        text
    }

    fn speed(&self) -> String {
        match self.megabits_per_s {
            None => "an unknown speed".into(),
            Some(megabits @ 0..1000) => format!("{megabits} Mbit/s"),
            Some(megabits) => format!("{} Gbit/s", f64::from(megabits) / 1000.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::super::system::made_up::Machine;
    use super::*;

    fn interface(name: &str, address: &str, megabits_per_s: u32) -> Interface {
        Interface {
            name: name.into(),
            addresses: address.parse().into_iter().collect(),
            is_up: true,
            has_carrier: true,
            is_loopback: name == "lo",
            mtu: Some(1500),
            megabits_per_s: Some(megabits_per_s).filter(|speed| *speed > 0),
        }
    }

    fn unknown(setting: &str) -> InterfaceError {
        InterfaceError::Unknown { setting: setting.into(), available: "others".into() }
    }

    #[test]
    fn an_interface_that_cannot_be_used_is_told_from_one_that_is_not_there() {
        let lo = interface("lo", "127.0.0.1", 0);
        let down = Interface { is_up: false, ..interface("eth1", "", 0) };
        let bare = interface("eth2", "", 0);
        let good = interface("eth3", "10.0.0.3", 0);
        let all = [lo, down, bare, good];
        for (name, says, remedy) in [
            ("eth1", "eth1 is down", "sudo ip link set eth1 up"),
            ("eth2", "eth2 has no address", "sudo ip address add ADDRESS/24 dev eth2"),
            ("eth9", "no interface of this host is \"eth9\"", "export RINGTREE_INTERFACE=eth3"),
            ("eth3, eth1", "eth1 is down", "sudo ip link set eth1 up"),
        ] {
            let finding = no_choice(&all, Some(name), &unknown(name));
            assert_eq!(finding.level, Level::Failure);
            assert!(finding.seen.starts_with(says), "{}", finding.seen);
            assert_eq!(finding.remedy.as_deref(), Some(remedy));
        }
        let route = InterfaceError::Route { address: "10.9.9.9:1".into(), reason: "no".into() };
        assert_eq!(no_choice(&all, None, &route).remedy.as_deref(), Some("ip route get 10.9.9.9"));
        let name = InterfaceError::Route { address: "node7:1".into(), reason: "no".into() };
        assert_eq!(no_choice(&all, None, &name).remedy.as_deref(), Some("getent hosts node7"));
        let down = [Interface { is_up: false, ..interface("lo", "", 0) }];
        let remedy = no_choice(&down, None, &route).remedy;
        assert_eq!(remedy.as_deref(), Some("sudo ip link set lo up"));
    }

    #[test]
    fn a_faster_interface_and_a_dead_one_are_pointed_out() {
        let slow = interface("eth0", "10.0.0.1", 1000);
        let fast = interface("eth1", "10.1.0.1", 25_000);
        let (first, second) = (slow.addresses[0], fast.addresses[0]);
        let finding = speed(&[slow.clone(), fast.clone()], &[first]).unwrap();
        assert_eq!(finding.seen, "eth0 has 1 Gbit/s, but eth1 has 25 Gbit/s");
        assert_eq!(finding.remedy.as_deref(), Some("export RINGTREE_INTERFACE=eth1"));
        let finding = speed(&[slow.clone(), fast.clone()], &[second]).unwrap();
        assert_eq!(finding.level, Level::Ok);
        let dead = Interface { has_carrier: false, ..fast };
        assert_eq!(speed(&[slow, dead.clone()], &[first]).unwrap().level, Level::Ok);
        let finding = choice(&[dead], Some("eth1"), &[second]);
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.seen.ends_with("eth1 has no carrier"), "{}", finding.seen);
    }

    #[test]
    fn hosts_that_differ_in_mtu_are_named() {
        let host = |name: &str, address: &str, mtu| {
            let address = address.parse().unwrap();
            (name.to_owned(), vec![Advertised { address, mtu: Some(mtu) }])
        };
        let (a, b) = (host("a", "10.0.0.1", 9000), host("b", "10.0.0.2", 1500));
        let finding = compare_mtus(&[a.clone(), b]).unwrap();
        assert_eq!(finding.seen, "1500 on b, 9000 on a");
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(compare_mtus(&[a.clone(), a]).unwrap().level, Level::Ok);
        assert_eq!(compare_mtus(&[host("c", "127.0.0.1", 65_536)]), None);
    }

    #[test]
    fn what_sys_says_of_another_namespaces_interface_is_not_believed() {
        let machine = Machine::new(&[
            ("/sys/class/net/eth0/ifindex", "2"),
            ("/sys/class/net/eth0/address", "02:00:00:00:00:01"),
            ("/sys/class/net/eth0/mtu", "9000"),
            ("/sys/class/net/eth0/speed", "-1"),
        ]);
        let mut eth0 = Interface { mtu: None, ..interface("eth0", "10.0.0.1", 0) };
        ask_system(&machine.system, &mut eth0, 2, Some("02:00:00:00:00:02"));
        assert_eq!(eth0.mtu, None);
        ask_system(&machine.system, &mut eth0, 2, Some("02:00:00:00:00:01"));
        assert_eq!((eth0.mtu, eth0.megabits_per_s), (Some(9000), None));
    }

    #[test]
    fn this_machine_has_a_loopback_interface() {
        let interfaces = list(&System::real());
        let lo = interfaces.iter().find(|interface| interface.is_loopback).unwrap();
        assert!(lo.is_up && lo.addresses.iter().any(IpAddr::is_loopback));
    }
}
