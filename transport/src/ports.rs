//! Which ports a process listens on, where a firewall lets only some through: `RINGTREE_PORTS`.

use std::fmt;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::str::FromStr;

/// Ports that may be listened on: `40000-40100`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// A text that is no range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a range of ports such as 40000-40100")]
pub struct PortRangeError {
    /// The text.
    pub text: String,
}

impl PortRange {
    /// How many ports it has.
    pub fn count(&self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// Whether it is a single port.
    pub fn is_single(&self) -> bool {
        self.first == self.last
    }
}

/// Listens on an address, at the first port of the range that is free; without a range, at any.
///
/// # Errors
/// What the system says; where all ports are taken, which range that is.
pub fn listen_on(ip: IpAddr, ports: Option<PortRange>) -> io::Result<TcpListener> {
    let Some(range) = ports else { return TcpListener::bind((ip, 0)) };
    for port in range.first..=range.last {
        match TcpListener::bind((ip, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            outcome => return outcome,
        }
    }
    let reason = format!("all ports of RINGTREE_PORTS={range} are taken: give a wider range");
    Err(io::Error::new(io::ErrorKind::AddrInUse, reason))
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<PortRange, PortRangeError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse().ok().filter(|port| *port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
            _ => Err(PortRangeError { text: text.into() }),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_single() {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_range_is_two_ports_or_one() {
        for text in ["40000-40100", "40000", "1-65535"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        assert_eq!("7-7".parse::<PortRange>().unwrap().to_string(), "7");
        for text in ["", "0", "0-5", "40100-40000", "40000-", "-5", "40000-65536", "a-b", "1-2-3"] {
            let error = text.parse::<PortRange>().unwrap_err().to_string();
            assert!(error.contains("40000-40100"), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_free_port_is_taken_and_a_range_without_one_is_named() {
        // An address of the loopback network that nobody else here listens on.
        let pid = std::process::id();
        let ip = Ipv4Addr::new(127, 100, (pid >> 8) as u8, pid as u8).into();
        let range: PortRange = "40000-40001".parse().unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let first = listen_on(ip, Some(range)).unwrap();
        let second = listen_on(ip, Some(range)).unwrap();
        assert_eq!((port(&first), port(&second)), (40000, 40001));
        let error = listen_on(ip, Some(range)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("RINGTREE_PORTS=40000-40001"), "{error}");
        drop(first);
        assert_eq!(port(&listen_on(ip, Some(range)).unwrap()), 40000);
    }
}
