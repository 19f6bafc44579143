//! Which addresses of this host a process listens on, and tells other ranks to connect to.
//!
//! The rule: the interfaces that the setting names, by name (`eth0`) or by subnet (`10.1.0.0/16`);
//! without a setting, the address from which this host reaches the rendezvous (127.0.0.1 for any of
//! 127.0.0.0/8). Whoever hosts the rendezvous without having been told where uses the address from
//! which this host reaches the world, else the first one that is not a loopback address.
//!
//! Addresses are IPv4 or IPv6. Link-local IPv6 addresses are never used: they mean nothing without
//! the interface, whose name and number differ from host to host.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::str::FromStr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// One address of a network interface. An interface has one entry for each of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name, such as `eth0`.
    pub name: String,
    /// The address.
    pub address: IpAddr,
}

/// Why no address was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// No interface matches the setting.
    #[error("no interface of this host is \"{setting}\": there are {available}")]
    Unknown {
        /// What was set.
        setting: String,
        /// What there is.
        available: String,
    },
    /// The setting looks like a subnet and is none.
    #[error("\"{setting}\" is not a subnet: write one such as 10.1.0.0/16, or an interface's name")]
    Subnet {
        /// What was set.
        setting: String,
    },
    /// All that match are link-local.
    #[error(
        "\"{setting}\" has only the link-local address {address}, which other hosts cannot tell from \
         their own: give the interface an address that is unique to it (such as one of fd00::/8), or \
         set RINGTREE_INTERFACE to another interface"
    )]
    LinkLocal {
        /// What was set, or which interface was meant.
        setting: String,
        /// One of its addresses.
        address: IpAddr,
    },
    /// This host has no way to the rendezvous.
    #[error("this host does not reach the rendezvous at {address}: {reason}")]
    Route {
        /// Host and port.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The interfaces cannot be listed.
    #[error("the network interfaces cannot be listed: {reason}")]
    List {
        /// What the system said.
        reason: String,
    },
}

/// The addresses of a rank by the rule above: one, or one for each part of the setting, which
/// commas separate. `rendezvous` is host and port; without one, ranks are of this host alone.
///
/// # Errors
/// [`InterfaceError`]; an unknown setting comes with the interfaces that there are.
pub fn rank_addresses(
    setting: Option<&str>,
    rendezvous: Option<&str>,
) -> Result<Vec<IpAddr>, InterfaceError> {
    match (setting, rendezvous) {
        (Some(setting), _) => chosen(setting),
        (None, Some(address)) => Ok(vec![route_to(address)?]),
        (None, None) => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
    }
}

/// The address of whoever hosts the rendezvous without having been told where, by the rule above.
///
/// # Errors
/// As [`rank_addresses`].
pub fn host_address(setting: Option<&str>) -> Result<IpAddr, InterfaceError> {
    if let Some(setting) = setting {
        return Ok(chosen(setting)?[0]);
    }
    // Addresses that are kept for documentation (RFC 5737, RFC 3849): only the way there counts.
    let world: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let mut ways = world.iter().filter_map(|ip| source_for(SocketAddr::new(*ip, 9)).ok());
    let is_useful = |address: &IpAddr| !address.is_loopback() && !is_link_local(*address);
    match ways.find(is_useful) {
        Some(address) => Ok(address),
        None => Ok(first_of(&interfaces()?)),
    }
}

/// The best that a host without a way to the world has.
fn first_of(interfaces: &[Interface]) -> IpAddr {
    let usable = || interfaces.iter().map(|i| i.address).filter(|address| !is_link_local(*address));
    let first = |loopback: bool, v4: bool| {
        usable().find(|address| address.is_loopback() == loopback && address.is_ipv4() == v4)
    };
    let order = [(false, true), (false, false), (true, true), (true, false)];
    let found = order.into_iter().find_map(|(loopback, v4)| first(loopback, v4));
    found.unwrap_or(Ipv4Addr::LOCALHOST.into())
}

fn chosen(setting: &str) -> Result<Vec<IpAddr>, InterfaceError> {
    let interfaces = interfaces()?;
    setting.split(',').map(|part| choose(&interfaces, part.trim())).collect()
}

fn interfaces() -> Result<Vec<Interface>, InterfaceError> {
    list().map_err(|error| InterfaceError::List { reason: error.to_string() })
}

/// The addresses of the interfaces that are up, in the system's order.
///
/// # Errors
/// What the system says.
pub fn list() -> io::Result<Vec<Interface>> {
    let up = getifaddrs()?.filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP));
    Ok(up
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()));
            Some(Interface { name: entry.interface_name, address: v4.or(v6)? })
        })
        .collect())
}

/// The address of the first interface that a setting (a name, an address or a subnet) means; an
/// IPv4 address where it has one.
///
/// # Errors
/// [`InterfaceError::Unknown`], [`InterfaceError::Subnet`], [`InterfaceError::LinkLocal`].
pub fn choose(interfaces: &[Interface], setting: &str) -> Result<IpAddr, InterfaceError> {
    let subnet = setting.parse::<Subnet>();
    if subnet.is_err() && setting.contains('/') {
        return Err(InterfaceError::Subnet { setting: setting.into() });
    }
    let is_meant = |interface: &&Interface| match &subnet {
        Ok(subnet) => subnet.contains(interface.address),
        Err(_) => interface.name == setting,
    };
    let meant = || interfaces.iter().filter(is_meant).map(|interface| interface.address);
    let usable = || meant().filter(|address| !is_link_local(*address));
    let found = usable().find(IpAddr::is_ipv4).or_else(|| usable().next());
    found.ok_or_else(|| match meant().next() {
        Some(address) => InterfaceError::LinkLocal { setting: setting.into(), address },
        None => {
            let available = describe(interfaces);
            InterfaceError::Unknown { setting: setting.into(), available }
        }
    })
}

/// The address from which this host reaches another (host and port). Nothing is sent: connecting a
/// UDP socket only asks the routing table.
fn route_to(address: &str) -> Result<IpAddr, InterfaceError> {
    let failed = |reason: String| InterfaceError::Route { address: address.into(), reason };
    let mut outcome = Err(failed("the name has no address".into()));
    for remote in address.to_socket_addrs().map_err(|error| failed(error.to_string()))? {
        match source_for(remote) {
            Ok(IpAddr::V4(local)) if local.is_loopback() => return Ok(Ipv4Addr::LOCALHOST.into()),
            Ok(local) if is_link_local(local) => {
                let setting = format!("the way to {address}");
                outcome = Err(InterfaceError::LinkLocal { setting, address: local });
            }
            Ok(local) => return Ok(local),
            Err(error) => outcome = Err(failed(error.to_string())),
        }
    }
    outcome
}

fn source_for(remote: SocketAddr) -> io::Result<IpAddr> {
    let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

/// A range of addresses: those that share its first bits.
struct Subnet {
    base: IpAddr,
    prefix_bits: u32,
}

impl FromStr for Subnet {
    type Err = ();

    /// `10.1.0.0/16`, `fd00::/8`, or a single address.
    fn from_str(text: &str) -> Result<Subnet, ()> {
        let (base, prefix) = match text.split_once('/') {
            Some((base, prefix)) => (base, Some(prefix)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(drop)?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let prefix_bits = prefix.map_or(Ok(most), |bits| bits.parse().map_err(drop))?;
        if prefix_bits <= most { Ok(Subnet { base, prefix_bits }) } else { Err(()) }
    }
}

impl Subnet {
    fn contains(&self, address: IpAddr) -> bool {
        let differ = match (self.base, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        differ >= self.prefix_bits
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// `lo (127.0.0.1, ::1), eth0 (10.1.0.5)`.
fn describe(interfaces: &[Interface]) -> String {
    let mut names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    names.dedup();
    let mut seen = Vec::new();
    names.retain(|name| {
        !seen.contains(name) && {
            seen.push(name);
            true
        }
    });
    let of = |name: &str| {
        let addresses: Vec<String> = interfaces
            .iter()
            .filter(|interface| interface.name == name)
            .map(|interface| interface.address.to_string())
            .collect();
        format!("{name} ({})", addresses.join(", "))
    };
    names.into_iter().map(of).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<Interface> {
        let entries = [
            ("lo", "127.0.0.1"),
            ("eth0", "fe80::1"),
            ("eth0", "fd00::5"),
            ("eth0", "10.1.2.3"),
            ("ib0", "10.2.0.9"),
            ("wg0", "fe80::2"),
            ("wg0", "fd01::7"),
            ("usb0", "fe80::3"),
        ];
        let of = |(name, address): (&str, &str)| Interface {
            name: name.into(),
            address: address.parse().unwrap(),
        };
        entries.map(of).to_vec()
    }

    #[test]
    fn a_setting_means_a_name_a_subnet_or_an_address() {
        let cases = [
            ("eth0", "10.1.2.3"),
            ("wg0", "fd01::7"),
            ("lo", "127.0.0.1"),
            ("10.2.0.0/16", "10.2.0.9"),
            ("10.0.0.0/8", "10.1.2.3"),
            ("10.2.0.9", "10.2.0.9"),
            ("10.2.0.9/32", "10.2.0.9"),
            ("0.0.0.0/0", "127.0.0.1"),
            ("fd00::/16", "fd00::5"),
            ("fd00::/15", "fd00::5"),
        ];
        for (setting, expected) in cases {
            assert_eq!(choose(&some(), setting).unwrap().to_string(), expected, "{setting}");
        }
    }

    #[test]
    fn an_unknown_setting_lists_what_there_is() {
        for setting in ["eth1", "192.168.0.0/16", "10.2.0.8/32", "eth", "fd02::/16"] {
            let error = choose(&some(), setting).unwrap_err();
            let there = "lo (127.0.0.1), eth0 (fe80::1, fd00::5, 10.1.2.3), ib0 (10.2.0.9), \
                         wg0 (fe80::2, fd01::7), usb0 (fe80::3)";
            let said = format!("no interface of this host is \"{setting}\": there are {there}");
            assert_eq!(error.to_string(), said);
        }
    }

    #[test]
    fn link_local_addresses_are_refused_with_what_to_do() {
        for setting in ["usb0", "fe80::/10", "fe80::2"] {
            let error = choose(&some(), setting).unwrap_err();
            assert!(matches!(error, InterfaceError::LinkLocal { .. }), "{setting}: {error}");
            assert!(error.to_string().contains("fd00::/8"), "{error}");
        }
        // Where there is another one, that is meant.
        assert_eq!(choose(&some(), "::/0").unwrap().to_string(), "fd00::5");
    }

    #[test]
    fn a_host_without_a_way_to_the_world_is_known_by_its_first_address() {
        let address = |skipped: &[&str]| {
            let mut some = some();
            some.retain(|interface| !skipped.contains(&interface.name.as_str()));
            first_of(&some).to_string()
        };
        assert_eq!(address(&[]), "10.1.2.3");
        assert_eq!(address(&["eth0", "ib0"]), "fd01::7");
        assert_eq!(address(&["eth0", "ib0", "wg0"]), "127.0.0.1");
        assert_eq!(host_address(Some("127.0.0.0/8")).unwrap(), IpAddr::from([127, 0, 0, 1]));
        let address = host_address(None).unwrap();
        assert!(list().unwrap().iter().any(|interface| interface.address == address), "{address}");
    }

    #[test]
    fn a_malformed_subnet_is_said_to_be_one() {
        for setting in ["10.1.0.0/33", "10.1/16", "fd00::/129", "10.1.0.0/", "/8", "10.0.0.0/-1"] {
            let error = choose(&some(), setting).unwrap_err();
            assert_eq!(error, InterfaceError::Subnet { setting: setting.into() });
        }
    }

    #[test]
    fn without_a_setting_the_way_to_the_rendezvous_counts() {
        let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(rank_addresses(None, None).unwrap(), [localhost]);
        assert_eq!(rank_addresses(None, Some("127.0.0.1:1")).unwrap(), [localhost]);
        assert_eq!(rank_addresses(None, Some("127.8.9.1:1")).unwrap(), [localhost]);
        let usable = |interface: &&Interface| !is_link_local(interface.address);
        for interface in list().unwrap().iter().filter(usable) {
            // The way to an own address begins at that address.
            let address = SocketAddr::new(interface.address, 1).to_string();
            let chosen = rank_addresses(None, Some(&address)).unwrap();
            assert!(
                chosen == [interface.address] || interface.address.is_loopback(),
                "{interface}"
            );
        }
        let error = rank_addresses(None, Some("no port")).unwrap_err();
        assert!(matches!(error, InterfaceError::Route { .. }), "{error}");
    }

    #[test]
    fn this_host_has_a_loopback_interface() {
        let loopback = list().unwrap().into_iter().find(|i| i.address.is_loopback()).unwrap();
        assert_eq!(rank_addresses(Some(&loopback.name), None).unwrap(), [loopback.address]);
        let twice = format!("{}, 127.0.0.0/8", loopback.name);
        assert_eq!(rank_addresses(Some(&twice), None).unwrap().len(), 2);
    }
}
