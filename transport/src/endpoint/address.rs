//! What endpoints tell each other: their addresses, and who dials whom.

use super::error::Peer;
use crate::fields::{Fields, put_bytes};
use crate::host_port::HostPort;
use crate::rdma::{MAX_RAILS, RailAddress};
use crate::secure::WIRE_VERSION;

/// Longest name of an abstract socket.
const SOCKET_NAME_LIMIT_BYTES: usize = 64;

/// Longest text of a TCP address: a name as DNS has it, and a port.
const TCP_LIMIT_BYTES: usize = 253 + 6;

/// TCP addresses of one endpoint at most.
pub(super) const MAX_TCP_ADDRESSES: usize = 16;

/// Connections of one link at most.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// Longest host name, as Linux has it.
const HOST_LIMIT_BYTES: usize = 64;

/// Where an endpoint can be reached. As bytes: the wire version, the name of the abstract socket,
/// the TCP addresses as texts and how many there are, the RDMA rails likewise, whether links go over TCP,
/// the host's name, the process; an absent name is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) socket_name: Option<String>,
    /// One for each interface, in the order of the setting, each with a port.
    pub(super) tcp: Vec<HostPort>,
    /// The ports of RDMA devices.
    pub(super) rails: Vec<RailAddress>,
    /// Whether links over TCP may be made, and not only begun there.
    pub(super) links_by_tcp: bool,
    pub(super) host: String,
    pub(super) pid: u32,
}

impl Address {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = WIRE_VERSION.to_le_bytes().to_vec();
        put_bytes(&mut out, self.socket_name.as_deref().unwrap_or_default().as_bytes());
        out.push(self.tcp.len() as u8);
        self.tcp.iter().for_each(|address| put_bytes(&mut out, address.to_string().as_bytes()));
        out.push(self.rails.len() as u8);
        self.rails.iter().for_each(|rail| out.push(rail.is_ethernet.into()));
        out.push(self.links_by_tcp.into());
        put_bytes(&mut out, self.host.as_bytes());
        out.extend_from_slice(&self.pid.to_le_bytes());
        out
    }

    /// The address from its bytes, or what is wrong with them.
    pub(super) fn decode(bytes: &[u8]) -> Result<Address, String> {
        let mut fields = Fields::new(bytes);
        match fields.u16() {
            Some(WIRE_VERSION) => {}
            Some(theirs) => {
                return Err(format!(
                    "it speaks wire version {theirs}, this rank {WIRE_VERSION}: run the same \
                     release of Ringtree everywhere"
                ));
            }
            None => return Err("its address is empty".into()),
        }
        Address::decode_fields(fields).ok_or_else(|| "its address is malformed".into())
    }

    fn decode_fields(mut fields: Fields<'_>) -> Option<Address> {
        let socket_name = fields.text(SOCKET_NAME_LIMIT_BYTES)?;
        let count = usize::from(fields.u8()?);
        let mut tcp_address = || {
            let address: HostPort = fields.text(TCP_LIMIT_BYTES)?.parse().ok()?;
            address.port.is_some().then_some(address)
        };
        let tcp = (0..count).map(|_| tcp_address()).collect::<Option<Vec<_>>>()?;
        let rail_count = usize::from(fields.u8()?);
        let mut rail = || Some(RailAddress { is_ethernet: flag(fields.u8()?)? });
        let rails = (0..rail_count).map(|_| rail()).collect::<Option<Vec<_>>>()?;
        let links_by_tcp = flag(fields.u8()?)?;
        if count > MAX_TCP_ADDRESSES || rail_count > MAX_RAILS {
            return None;
        }
        let host = fields.text(HOST_LIMIT_BYTES)?;
        let pid = fields.u32()?;
        fields.end()?;
        let socket_name = Some(socket_name).filter(|name| !name.is_empty());
        Some(Address { socket_name, tcp, rails, links_by_tcp, host, pid })
    }

    pub(super) fn peer(&self, rank: u32) -> Peer {
        Peer { rank, host: self.host.clone(), pid: self.pid }
    }
}

/// The name of this host.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        name if name.is_empty() || name.len() > HOST_LIMIT_BYTES => "unknown".into(),
        name => name.into(),
    }
}

/// The hello of a connection of a link: which communicator, who dials, who is meant, and which
/// part of which link it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) communicator: u64,
    pub(super) from: u32,
    pub(super) to: u32,
    /// A random number for each attempt to make the link.
    pub(super) link: u64,
    /// Which of the link's connections, and how many it has.
    pub(super) connection: u8,
    pub(super) connections: u8,
    /// Frames are encrypted.
    pub(super) encrypts: bool,
    /// Frames have checksums.
    pub(super) checksums: bool,
    /// The link shall be one over RDMA, for which the connection is used to make it.
    pub(super) makes_rdma: bool,
}

fn flag(byte: u8) -> Option<bool> {
    (byte < 2).then_some(byte == 1)
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.communicator.to_le_bytes().to_vec();
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.to.to_le_bytes());
        out.extend_from_slice(&self.link.to_le_bytes());
        out.extend_from_slice(&[self.connection, self.connections]);
        out.extend([self.encrypts, self.checksums, self.makes_rdma].map(u8::from));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Hello> {
        let mut fields = Fields::new(bytes);
        let hello = Hello {
            communicator: fields.u64()?,
            from: fields.u32()?,
            to: fields.u32()?,
            link: fields.u64()?,
            connection: fields.u8()?,
            connections: fields.u8()?,
            encrypts: flag(fields.u8()?)?,
            checksums: flag(fields.u8()?)?,
            makes_rdma: flag(fields.u8()?)?,
        };
        fields.end()?;
        let fits = usize::from(hello.connections) <= MAX_CONNECTIONS;
        (fits && hello.connection < hello.connections).then_some(hello)
    }
}
