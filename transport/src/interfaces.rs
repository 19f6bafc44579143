//! Which address of this host other ranks are told to connect to.
//!
//! The rule: the interfaces that the setting names, by name (`eth0`) or by subnet (`10.1.0.0/16`);
//! without a setting, the address from which this host reaches the rendezvous; if that is on this
//! host's loopback interface, or there is none, 127.0.0.1.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
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

/// The addresses to listen on and to tell others, by the rule above: one, or one for each part of
/// the setting, which commas separate. `rendezvous` is host and port.
///
/// # Errors
/// [`InterfaceError`]; an unknown setting comes with the interfaces that there are.
pub fn advertised_addresses(
    setting: Option<&str>,
    rendezvous: Option<&str>,
) -> Result<Vec<IpAddr>, InterfaceError> {
    match (setting, rendezvous) {
        (Some(setting), _) => {
            let interfaces =
                list().map_err(|error| InterfaceError::List { reason: error.to_string() })?;
            setting.split(',').map(|part| choose(&interfaces, part.trim())).collect()
        }
        (None, Some(address)) => match route_to(address) {
            Ok(address) => Ok(vec![address]),
            Err(error) => {
                Err(InterfaceError::Route { address: address.into(), reason: error.to_string() })
            }
        },
        (None, None) => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
    }
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
/// IPv4 address where it has one. Link-local IPv6 addresses are left out: they mean nothing without
/// the interface, which differs from host to host.
///
/// # Errors
/// [`InterfaceError::Unknown`], [`InterfaceError::Subnet`].
pub fn choose(interfaces: &[Interface], setting: &str) -> Result<IpAddr, InterfaceError> {
    let subnet = setting.parse::<Subnet>();
    if subnet.is_err() && setting.contains('/') {
        return Err(InterfaceError::Subnet { setting: setting.into() });
    }
    let meant = |interface: &&Interface| match &subnet {
        Ok(subnet) => subnet.contains(interface.address),
        Err(_) => interface.name == setting && !is_link_local(interface.address),
    };
    let first_of = |v4: bool| {
        interfaces.iter().filter(meant).map(|i| i.address).find(|address| address.is_ipv4() == v4)
    };
    first_of(true).or_else(|| first_of(false)).ok_or_else(|| InterfaceError::Unknown {
        setting: setting.into(),
        available: describe(interfaces),
    })
}

/// The address from which this host reaches another (host and port). Nothing is sent: connecting a
/// UDP socket only asks the routing table.
fn route_to(address: &str) -> io::Result<IpAddr> {
    let mut outcome = Err(io::Error::other("the name has no address"));
    for remote in address.to_socket_addrs()? {
        outcome = source_for(remote);
        if outcome.is_ok() {
            break;
        }
    }
    let local = outcome?;
    Ok(if local.is_loopback() { Ipv4Addr::LOCALHOST.into() } else { local })
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
                         wg0 (fe80::2, fd01::7)";
            let said = format!("no interface of this host is \"{setting}\": there are {there}");
            assert_eq!(error.to_string(), said);
        }
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
        assert_eq!(advertised_addresses(None, None).unwrap(), [localhost]);
        assert_eq!(advertised_addresses(None, Some("127.0.0.1:1")).unwrap(), [localhost]);
        assert_eq!(advertised_addresses(None, Some("127.8.9.1:1")).unwrap(), [localhost]);
        for interface in list().unwrap().iter().filter(|i| i.address.is_ipv4()) {
            // The way to an own address begins at that address.
            let address = format!("{}:1", interface.address);
            let chosen = advertised_addresses(None, Some(&address)).unwrap();
            assert!(
                chosen == [interface.address] || interface.address.is_loopback(),
                "{interface}"
            );
        }
        let error = advertised_addresses(None, Some("no port")).unwrap_err();
        assert!(matches!(error, InterfaceError::Route { .. }), "{error}");
    }

    #[test]
    fn this_host_has_a_loopback_interface() {
        let loopback = list().unwrap().into_iter().find(|i| i.address.is_loopback()).unwrap();
        assert_eq!(advertised_addresses(Some(&loopback.name), None).unwrap(), [loopback.address]);
        let twice = format!("{}, 127.0.0.0/8", loopback.name);
        assert_eq!(advertised_addresses(Some(&twice), None).unwrap().len(), 2);
    }
}
