//! Hosts and ports as people write them: `node7:29400`, `10.0.0.1`, `[fd00::1]:29400`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A host, by name or address, and perhaps a port. As text, an IPv6 address is in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// The port, if one is given.
    pub port: Option<u16>,
}

/// Why a text names no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    /// Something else.
    #[error("\"{text}\" is not host:port, such as node7:29400 or [fd00::1]:29400")]
    Malformed {
        /// The text.
        text: String,
    },
    /// Several colons, of which one may stand before a port.
    #[error("\"{text}\": write an IPv6 address in brackets, such as [fd00::1]:29400")]
    Brackets {
        /// The text.
        text: String,
    },
    /// An address that every network uses for itself.
    #[error(
        "\"{text}\" is a link-local address, which means another host on each interface: give the \
         host's name, or an address that is unique to it (such as one of fd00::/8)"
    )]
    LinkLocal {
        /// The text.
        text: String,
    },
}

impl HostPort {
    /// A host without a port, which may be a bare IPv6 address.
    ///
    /// # Errors
    /// [`HostPortError`].
    pub fn from_host(text: &str) -> Result<HostPort, HostPortError> {
        match text.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]").parse(),
            Err(_) => text.parse(),
        }
    }

    /// The same host with another port.
    pub fn with_port(&self, port: u16) -> HostPort {
        HostPort { host: self.host.clone(), port: Some(port) }
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<HostPort, HostPortError> {
        let malformed = || HostPortError::Malformed { text: text.into() };
        let is_bracketed = text.starts_with('[');
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(malformed)?,
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return Err(malformed()),
            Some(rest) if !is_bracketed && rest.contains(':') => {
                return Err(HostPortError::Brackets { text: text.into() });
            }
            Some(digits) => Some(digits.parse().map_err(|_| malformed())?),
        };
        if is_bracketed {
            // What follows `%` is an interface, which only link-local addresses need.
            let address = host.split('%').next().unwrap_or(host);
            let address: Ipv6Addr = address.parse().map_err(|_| malformed())?;
            if address.is_unicast_link_local() {
                return Err(HostPortError::LinkLocal { text: text.into() });
            }
        }
        if host.is_empty() || host.contains('%') {
            return Err(malformed());
        }
        Ok(HostPort { host: host.into(), port })
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> HostPort {
        HostPort { host: address.ip().to_string(), port: Some(address.port()) }
    }
}

impl From<IpAddr> for HostPort {
    fn from(address: IpAddr) -> HostPort {
        HostPort { host: address.to_string(), port: None }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_with_and_without_a_port() {
        for (text, host, port) in [
            ("node7:29400", "node7", Some(29400)),
            ("node7", "node7", None),
            ("10.0.0.1:0", "10.0.0.1", Some(0)),
            ("[fd00::1]:29400", "fd00::1", Some(29400)),
            ("[::1]", "::1", None),
        ] {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port), "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!(HostPort::from_host("fd00::1").unwrap().with_port(5).to_string(), "[fd00::1]:5");
        assert_eq!(HostPort::from_host("node7").unwrap().to_string(), "node7");
    }

    #[test]
    fn what_names_no_host_is_said() {
        for text in
            ["", ":1", "host:", "host:65536", "[::1", "[::1]5", "[host]:1", "[]:1", "[::1%lo]"]
        {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(matches!(error, HostPortError::Malformed { .. }), "{text}: {error}");
        }
        for text in ["::1", "::1:29400", "fd00::1:29400", "a:b:1"] {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.to_string().contains("in brackets"), "{text}: {error}");
        }
        for text in ["[fe80::1]:29400", "[fe80::1%eth0]:29400", "[fe80::1%2]"] {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.to_string().contains("link-local"), "{text}: {error}");
        }
        assert!(HostPort::from_host("fe80::1").unwrap_err().to_string().contains("link-local"));
    }
}
