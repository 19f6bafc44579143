//! Makes the links of one rank of one communicator.
//!
//! An endpoint listens on an abstract Unix socket with a random name, for peers of this host, and
//! on TCP, for all others. It tells its address as bytes, which ranks exchange through the
//! [rendezvous](crate::rendezvous). Of two ranks the lower one dials, so that they never meet half
//! way; the other takes the link that has come.
//!
//! Abstract sockets belong to a network namespace: who can be reached by one may share memory, and
//! counts as being on this host once the shared memory's nonce has been read on both sides.

mod address;
mod desk;
mod error;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::host_port::HostPort;
use crate::interfaces::rank_addresses;
use crate::limits::described;
use crate::memory::SharedMemory;
use crate::ports::{PortRange, listen_on};
use crate::rdma::{Pairing, Rail, Rdma, RdmaConfig, RdmaError, RdmaLink};
use crate::secure::{
    Acceptor, Ended, FrameKeys, Job, Limit, Purpose, SecureError, SecureStream, Socket, dial,
    dial_local, hexadecimal, initiate_within, random_bytes,
};
use crate::shm::{Attach, ShmLink};
use crate::tcp::{Connection, TcpLink};
use crate::{Link, LinkError, TransportKind};
use address::{Address, Hello, MAX_CONNECTIONS, MAX_TCP_ADDRESSES, host_name};
use desk::Desk;
pub use error::{EndpointError, Peer};

/// How long a link of a peer that cannot be reached any more may take to come: all that is still to be done
/// for it is done on this side.
const GONE_GRACE: Duration = Duration::from_millis(500);

/// How often a peer is dialed at most that closes the connection before either side has proved itself.
const MOST_ATTEMPTS: u32 = 5;

/// How long two processes of one host may take to share memory, once they are connected.
const ESTABLISH_LIMIT: Duration = Duration::from_secs(5);

/// Which transports an endpoint uses. All ranks should use the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Transports {
    /// Shared memory with the ranks of this host, with the others RDMA where both ends have it, else TCP.
    #[default]
    Auto = 0,
    /// Shared memory only: all ranks must be on this host.
    Shm = 1,
    /// TCP only.
    Tcp = 2,
    /// RDMA only: a rank that has none is refused.
    Rdma = 3,
    /// RDMA where both ends have it, else TCP, on one host too.
    RdmaOrTcp = 4,
}

impl Transports {
    /// All of them.
    pub const ALL: [Transports; 5] = [
        Transports::Auto,
        Transports::Shm,
        Transports::Tcp,
        Transports::Rdma,
        Transports::RdmaOrTcp,
    ];

    /// Whether links may be made over shared memory.
    pub fn allows_shm(self) -> bool {
        matches!(self, Transports::Auto | Transports::Shm)
    }

    /// Whether links may be made over TCP.
    pub fn allows_tcp(self) -> bool {
        matches!(self, Transports::Auto | Transports::Tcp | Transports::RdmaOrTcp)
    }

    /// Whether links may be made over RDMA.
    pub fn allows_rdma(self) -> bool {
        matches!(self, Transports::Auto | Transports::Rdma | Transports::RdmaOrTcp)
    }
}

impl fmt::Display for Transports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transports::Auto => "auto",
            Transports::Shm => "shm",
            Transports::Tcp => "tcp",
            Transports::Rdma => "rdma",
            Transports::RdmaOrTcp => "rdma,tcp",
        })
    }
}

/// What an endpoint needs to know.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// What every connection proves.
    pub job: Job,
    /// Number of the communicator, the same on all its ranks: links of two communicators never mix.
    pub communicator: u64,
    /// This rank.
    pub rank: u32,
    /// Which transports to use.
    pub transports: Transports,
    /// Interfaces for TCP, names (`eth0`) or subnets (`10.1.0.0/16`), separated by commas. The
    /// links of two ranks use as many as the one has that has more, the first with the first and
    /// so on.
    pub interface: Option<String>,
    /// Ports for TCP; `None`: any.
    pub ports: Option<PortRange>,
    /// What peers are told instead of the address of each interface, where that is behind address
    /// translation; without a port, the one that is listened on. Empty: the addresses themselves.
    pub advertise: Vec<HostPort>,
    /// Connections of a TCP link for each pair of interfaces, at least 1.
    pub sockets: u32,
    /// Whether TCP links encrypt what they carry; all ranks alike.
    pub encrypts: bool,
    /// Whether frames have checksums; all ranks alike: see [`Link::with_checksums`].
    pub checksums: bool,
    /// Where the rendezvous is (host and port): without `interface`, TCP listens on the address
    /// from which this host reaches it.
    pub rendezvous: Option<String>,
    /// The memory of this rank's [`Board`](crate::shm::Board), which shared-memory links hand over.
    pub board: Arc<SharedMemory>,
    /// When shared-memory links use cross-memory attach.
    pub attach: Attach,
    /// How RDMA is used.
    pub rdma: RdmaConfig,
}

/// Listens for one rank of one communicator, and makes its links. Dropping it closes the sockets
/// and joins the threads; links that were made stay.
pub struct Endpoint {
    config: EndpointConfig,
    own: Address,
    /// Where it listens for TCP.
    listens_on: Vec<IpAddr>,
    /// Where TCP links begin, if interfaces were set.
    sources: Vec<IpAddr>,
    desk: Arc<Desk>,
    rdma: Option<Arc<Rdma>>,
    _unix: Option<Acceptor<UnixListener>>,
    _tcp: Vec<Acceptor<TcpListener>>,
}

impl Endpoint {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`EndpointError::Rdma`] where RDMA alone was asked for and this rank has none,
    /// [`EndpointError::Interface`] where no address can be chosen for TCP,
    /// [`EndpointError::Advertised`] where more or fewer shall be told than there are,
    /// [`EndpointError::Listen`] where the system refuses or no port is free.
    pub fn bind(config: EndpointConfig) -> Result<Endpoint, EndpointError> {
        let rdma = open_rdma(&config)?;
        let desk = Arc::new(Desk::new(&config, rdma.clone()));
        let mut own = Address {
            socket_name: None,
            tcp: vec![],
            rails: rdma.as_deref().map(Rdma::addresses).unwrap_or_default(),
            links_by_tcp: config.transports.allows_tcp(),
            host: host_name(),
            pid: std::process::id(),
        };
        let mut unix = None;
        if config.transports.allows_shm() {
            let (name, acceptor) = listen_unix(&config.job, &desk)?;
            own.socket_name = Some(name);
            unix = Some(acceptor);
        }
        let mut tcp = Vec::new();
        let (mut listens_on, mut sources) = (Vec::new(), Vec::new());
        if config.transports != Transports::Shm {
            let (interface, rendezvous) = (config.interface.as_deref(), &config.rendezvous);
            let ips = rank_addresses(interface, rendezvous.as_deref())?;
            if !config.advertise.is_empty() && config.advertise.len() != ips.len() {
                let (advertised, listened) = (config.advertise.len(), ips.len());
                return Err(EndpointError::Advertised { advertised, listened });
            }
            for (at, &ip) in ips.iter().enumerate().take(MAX_TCP_ADDRESSES) {
                let (address, acceptor) = listen_tcp(ip, &config, &desk)?;
                own.tcp.push(match config.advertise.get(at) {
                    Some(told) => told.with_port(told.port.unwrap_or(address.port())),
                    None => address.into(),
                });
                tcp.push(acceptor);
                listens_on.push(ip);
            }
            if interface.is_some() {
                sources = ips;
            }
        }
        Ok(Endpoint { config, own, listens_on, sources, desk, rdma, _unix: unix, _tcp: tcp })
    }

    /// Where this endpoint is reached, for [`Endpoint::connect`] of other ranks: some hundred
    /// bytes.
    pub fn address(&self) -> Vec<u8> {
        self.own.encode()
    }

    /// Whether this rank has RDMA, and may use it.
    pub fn has_rdma(&self) -> bool {
        self.rdma.is_some()
    }

    /// The addresses of this host at which it is reached over TCP.
    pub fn tcp_addresses(&self) -> &[IpAddr] {
        &self.listens_on
    }

    /// The ports that it uses for RDMA: each device's name and the number of the port.
    pub fn rdma_ports(&self) -> impl Iterator<Item = (&str, u8)> {
        self.rdma.iter().flat_map(|rdma| rdma.rails()).map(Rail::name_and_port)
    }

    /// The ports that it uses for RDMA, as people know them.
    pub fn rails(&self) -> Vec<String> {
        let rails = self.rdma.iter().flat_map(|rdma| rdma.rails());
        rails.map(ToString::to_string).collect()
    }

    /// The link to rank `peer`, whose endpoint said that it is at `peer_address`. Both ranks call
    /// this; the lower one does not wait for the other's call. `stop` is asked every few
    /// milliseconds whether to give up.
    ///
    /// # Errors
    /// [`EndpointError`]: at once where waiting cannot help, else at the deadline.
    pub fn connect(
        &self,
        peer: u32,
        peer_address: &[u8],
        deadline: Instant,
        stop: &dyn Fn() -> bool,
    ) -> Result<Link, EndpointError> {
        let theirs = Address::decode(peer_address)
            .map_err(|reason| EndpointError::Address { peer, reason })?;
        let rank = self.config.rank;
        let way = self.way_to(peer, &theirs)?;
        let limit = Limit::stoppable(deadline, stop);
        let link = match peer.cmp(&rank) {
            std::cmp::Ordering::Greater => self.dial(&way, &limit),
            std::cmp::Ordering::Less => self.await_dial(&way, &limit),
            std::cmp::Ordering::Equal => {
                Err(EndpointError::Address { peer, reason: "it is this rank itself".into() })
            }
        }?;
        Ok(if self.config.checksums { link.with_checksums() } else { link })
    }

    /// The transports that both sides have.
    fn way_to<'a>(&self, rank: u32, theirs: &'a Address) -> Result<Way<'a>, EndpointError> {
        let peer = theirs.peer(rank);
        let shm = self.own.socket_name.as_ref().and(theirs.socket_name.as_deref());
        let tcp = if self.own.tcp.is_empty() { &[] } else { &theirs.tcp[..] };
        let by_rdma = Pairing::of(&self.own.rails, &theirs.rails, 1).is_some() && !tcp.is_empty();
        let links_by_tcp = self.own.links_by_tcp && theirs.links_by_tcp && !tcp.is_empty();
        let is_of_another_kind =
            !by_rdma && !self.own.rails.is_empty() && !theirs.rails.is_empty() && !tcp.is_empty();
        if shm.is_none() && !links_by_tcp && is_of_another_kind {
            return Err(EndpointError::OtherRdma { peer });
        }
        if shm.is_none() && !by_rdma && !links_by_tcp {
            return Err(EndpointError::NoCommonTransport { peer, ours: self.config.transports });
        }
        let peer_has_rdma = !theirs.rails.is_empty();
        Ok(Way { peer, shm, by_rdma, peer_has_rdma, tcp, links_by_tcp })
    }

    /// Makes a link by the best way that works.
    fn dial(&self, way: &Way<'_>, limit: &Limit<'_>) -> Result<Link, EndpointError> {
        if let Some(name) = way.shm {
            match self.dial_shm(name, way, limit) {
                Err(error) if way.leads_to_other_hosts() && error.leaves_others() => {
                    debug!("no shared memory with {}: {error}", way.peer);
                }
                outcome => return outcome,
            }
        }
        if let (Some(rdma), true) = (&self.rdma, way.by_rdma) {
            match self.dial_rdma(rdma, way, limit) {
                Err(error) if way.links_by_tcp && error.leaves_others() => {
                    warn!("no RDMA with {}, hence tcp: {error}", way.peer);
                }
                outcome => return outcome,
            }
        }
        let link = self.dial_tcp(way, limit)?;
        self.note_tcp(way);
        Ok(link)
    }

    /// A rank that has RDMA is linked over TCP.
    fn note_tcp(&self, way: &Way<'_>) {
        if !self.own.rails.is_empty() && !way.by_rdma {
            let what = if way.peer_has_rdma { "another kind of RDMA" } else { "no RDMA" };
            warn!("{} has {what}, hence tcp to it", way.peer);
        }
    }

    fn dial_rdma(
        &self,
        rdma: &Arc<Rdma>,
        way: &Way<'_>,
        limit: &Limit<'_>,
    ) -> Result<Link, EndpointError> {
        let refused = |source| EndpointError::Refused { peer: way.peer.clone(), source };
        let link = u64::from_le_bytes(random_bytes().map_err(refused)?);
        let source = self.sources.first().copied();
        let hello = Hello { makes_rdma: true, ..self.hello(way, link, 0, 1) };
        let connect = || self.connect_tcp(way, &way.tcp[0], source, limit);
        let stream = self.prove(connect, way, &hello, limit)?;
        let limit = limit.at_most(rdma.link_limit());
        let made = RdmaLink::establish_within(stream, way.peer.rank, rdma, &limit)?;
        Ok(Link::Rdma(Box::new(made)))
    }

    fn dial_shm(
        &self,
        name: &str,
        way: &Way<'_>,
        limit: &Limit<'_>,
    ) -> Result<Link, EndpointError> {
        let connect = || self.connect_unix(name, way, limit);
        let (socket, _) = self.introduce(connect, way, self.hello(way, 0, 0, 1), limit)?;
        let deadline = limit.at_most(ESTABLISH_LIMIT).deadline();
        Ok(Link::Shm(ShmLink::establish(
            socket,
            way.peer.rank,
            self.desk.board(),
            self.config.attach,
            deadline,
        )?))
    }

    fn dial_tcp(&self, way: &Way<'_>, limit: &Limit<'_>) -> Result<Link, EndpointError> {
        if !way.links_by_tcp {
            let (peer, ours) = (way.peer.clone(), self.config.transports);
            return Err(EndpointError::NoCommonTransport { peer, ours });
        }
        let pairs = self.own.tcp.len().max(way.tcp.len());
        let count = (pairs * self.config.sockets as usize).clamp(1, MAX_CONNECTIONS) as u8;
        let refused = |source| EndpointError::Refused { peer: way.peer.clone(), source };
        let link = u64::from_le_bytes(random_bytes().map_err(refused)?);
        let mut connections = Vec::new();
        for at in 0..count {
            let pair = usize::from(at) % pairs;
            let source = self.sources.iter().cycle().nth(pair).copied();
            let address = &way.tcp[pair % way.tcp.len()];
            let connect = || self.connect_tcp(way, address, source, limit);
            let hello = self.hello(way, link, at, count);
            let (stream, keys) = self.introduce(connect, way, hello, limit)?;
            let keys = self.config.encrypts.then_some(keys);
            connections.push(Connection { stream, keys });
        }
        Ok(Link::Tcp(TcpLink::over(connections, way.peer.rank)?))
    }

    fn hello(&self, way: &Way<'_>, link: u64, connection: u8, connections: u8) -> Hello {
        Hello {
            communicator: self.config.communicator,
            from: self.config.rank,
            to: way.peer.rank,
            link,
            connection,
            connections,
            encrypts: self.config.encrypts,
            checksums: self.config.checksums,
            makes_rdma: false,
        }
    }

    /// Proves this rank to its peer, and the reverse, for plain bytes from there on.
    fn introduce<S: Socket>(
        &self,
        connect: impl Fn() -> Result<S, EndpointError>,
        way: &Way<'_>,
        hello: Hello,
        limit: &Limit<'_>,
    ) -> Result<(S, FrameKeys), EndpointError> {
        let stream = self.prove(connect, way, &hello, limit)?;
        let keys = stream.frame_keys();
        let socket = stream.into_inner();
        let refused = |source| EndpointError::Refused { peer: way.peer.clone(), source };
        Ok((socket.map_err(refused)?, keys))
    }

    /// Proves this rank to its peer, and the reverse. A peer whose places for that strangers have taken drops who is
    /// slow: then it is tried again.
    fn prove<S: Socket>(
        &self,
        connect: impl Fn() -> Result<S, EndpointError>,
        way: &Way<'_>,
        hello: &Hello,
        limit: &Limit<'_>,
    ) -> Result<SecureStream<S>, EndpointError> {
        let peer = || way.peer.clone();
        let mut attempts_left = MOST_ATTEMPTS;
        loop {
            attempts_left -= 1;
            let job = &self.config.job;
            match initiate_within(connect()?, job, Purpose::Link, &hello.encode(), limit) {
                Ok(stream) => return Ok(stream),
                Err(SecureError::Stopped { .. }) => {
                    return Err(EndpointError::Stopped { peer: peer() });
                }
                Err(SecureError::Closed { .. }) if attempts_left > 0 => {}
                Err(source) => return Err(EndpointError::Refused { peer: peer(), source }),
            }
        }
    }

    fn await_dial(&self, way: &Way<'_>, limit: &Limit<'_>) -> Result<Link, EndpointError> {
        let peer = &way.peer;
        if let (Some(name), false) = (way.shm, way.leads_to_other_hosts()) {
            // The peer may be unable to reach this side, and would never come: it is the same
            // from here. Or it has come, and has gone since.
            if let Err(error) = self.connect_unix(name, way, limit) {
                let come = self.desk.take(peer.rank, &limit.at_most(GONE_GRACE));
                return come.ok().and_then(Result::ok).ok_or(error);
            }
        }
        let mut failed: Option<LinkError> = None;
        loop {
            match self.desk.take(peer.rank, limit) {
                Ok(Ok(link)) => {
                    if link.kind() == TransportKind::Tcp {
                        self.note_tcp(way);
                    }
                    return Ok(link);
                }
                // The dialer has seen this, too, and comes again by another way.
                Ok(Err(error)) if way.is_followed(&error) => failed = Some(error),
                Ok(Err(error)) => return Err(error.into()),
                Err(Ended::Stopped) => return Err(EndpointError::Stopped { peer: peer.clone() }),
                Err(Ended::TimedOut | Ended::Failed(_)) => {
                    let late =
                        || EndpointError::TimedOut { peer: peer.clone(), listening: self.place() };
                    return Err(failed.map_or_else(late, EndpointError::Link));
                }
            }
        }
    }

    fn connect_unix(
        &self,
        name: &str,
        way: &Way<'_>,
        limit: &Limit<'_>,
    ) -> Result<UnixStream, EndpointError> {
        dial_local(name, limit).map_err(|ended| match ended {
            Ended::Stopped => EndpointError::Stopped { peer: way.peer.clone() },
            Ended::TimedOut => {
                let (peer, address) = (way.peer.clone(), "its local socket".to_owned());
                let (reason, hint) = (ended.to_string(), "; it is stopped or swamped");
                EndpointError::Unreachable { peer, address, reason, hint }
            }
            Ended::Failed(_) => self.not_on_this_host(way),
        })
    }

    /// Connects to the first address of a peer's host that answers.
    fn connect_tcp(
        &self,
        way: &Way<'_>,
        address: &HostPort,
        source: Option<IpAddr>,
        limit: &Limit<'_>,
    ) -> Result<TcpStream, EndpointError> {
        let failed = |address: &HostPort, reason: String| self.unreachable(way, address, reason);
        let port = address.port.unwrap_or_default();
        let resolved = (address.host.as_str(), port).to_socket_addrs();
        let resolved = resolved.map_err(|error| failed(address, error.to_string()))?;
        let mut outcome = Err(failed(address, "the name has no address".into()));
        for remote in resolved {
            let source = source.filter(|source| source.is_ipv4() == remote.is_ipv4());
            outcome = match dial(remote, source, limit) {
                Ok(stream) => return Ok(stream),
                Err(Ended::Stopped) => {
                    return Err(EndpointError::Stopped { peer: way.peer.clone() });
                }
                Err(ended) => Err(failed(&remote.into(), ended.to_string())),
            };
        }
        outcome
    }

    fn not_on_this_host(&self, way: &Way<'_>) -> EndpointError {
        let same_name = way.peer.host == self.own.host;
        let doubt = if same_name { ", or in another container, or it has ended" } else { "" };
        EndpointError::NotOnThisHost { peer: way.peer.clone(), doubt }
    }

    fn unreachable(&self, way: &Way<'_>, address: &HostPort, reason: String) -> EndpointError {
        let is_loopback = address.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let hint = if is_loopback && way.peer.host != self.own.host {
            "; that address means every host itself: set RINGTREE_INTERFACE, or give the \
             rendezvous by an address that other hosts reach"
        } else {
            "; it has ended, or a firewall or address translation is in the way (RINGTREE_PORTS, \
             RINGTREE_ADVERTISE)"
        };
        let (peer, address) = (way.peer.clone(), address.to_string());
        EndpointError::Unreachable { peer, address, reason, hint }
    }

    /// Where this endpoint listens, for people.
    fn place(&self) -> String {
        match self.own.tcp.first() {
            Some(address) => format!("{address} on host {}", self.own.host),
            None => format!("process {} on host {}", self.own.pid, self.own.host),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("config", &self.config).field("own", &self.own).finish()
    }
}

/// A peer, and how it can be reached: at least one way is there.
struct Way<'a> {
    peer: Peer,
    shm: Option<&'a str>,
    /// Both have ports that reach each other. A link is made over a connection to the first TCP address.
    by_rdma: bool,
    peer_has_rdma: bool,
    tcp: &'a [HostPort],
    /// Whether a link may be one over TCP.
    links_by_tcp: bool,
}

impl Way<'_> {
    fn leads_to_other_hosts(&self) -> bool {
        self.by_rdma || self.links_by_tcp
    }

    /// Whether the dialer tries another way after an attempt that ended like this.
    fn is_followed(&self, error: &LinkError) -> bool {
        match error {
            LinkError::Failed { transport: TransportKind::Rdma, .. } => self.links_by_tcp,
            LinkError::Failed { .. } => self.leads_to_other_hosts(),
            _ => false,
        }
    }
}

/// What this rank has of RDMA, if it may use it.
fn open_rdma(config: &EndpointConfig) -> Result<Option<Arc<Rdma>>, EndpointError> {
    if !config.transports.allows_rdma() {
        return Ok(None);
    }
    let opened = if config.encrypts { Err(RdmaError::Encrypted) } else { Rdma::open(&config.rdma) };
    match opened {
        Ok(rdma) => Ok(Some(rdma)),
        Err(error) if config.transports == Transports::Rdma => Err(EndpointError::Rdma(error)),
        Err(error) => {
            // Whoever names it or its devices expects them to be used.
            let is_wanted =
                config.transports == Transports::RdmaOrTcp || config.rdma.devices.is_some();
            if is_wanted && error != RdmaError::Off {
                warn!("rank {} has no RDMA, hence tcp: {error}", config.rank);
            } else {
                info!("rank {} has no RDMA: {error}", config.rank);
            }
            Ok(None)
        }
    }
}

impl EndpointError {
    /// Whether an attempt failed in a way that says nothing against other transports.
    fn leaves_others(&self) -> bool {
        matches!(self, EndpointError::NotOnThisHost { .. } | EndpointError::Link(_))
    }
}

fn listen_unix(
    job: &Job,
    desk: &Arc<Desk>,
) -> Result<(String, Acceptor<UnixListener>), EndpointError> {
    let failed = |reason: String| EndpointError::Listen { address: "a Unix socket".into(), reason };
    let random = random_bytes::<16>().map_err(|error| failed(error.to_string()))?;
    let name = format!("ringtree-{}", hexadecimal(&random));
    net::SocketAddr::from_abstract_name(&name)
        .and_then(|address| UnixListener::bind_addr(&address))
        .and_then(|listener| Acceptor::start(listener, job.clone(), desk.clone()))
        .map(|acceptor| (name, acceptor))
        .map_err(|error| failed(described(&error)))
}

fn listen_tcp(
    ip: IpAddr,
    config: &EndpointConfig,
    desk: &Arc<Desk>,
) -> Result<(SocketAddr, Acceptor<TcpListener>), EndpointError> {
    let listen = || {
        let listener = listen_on(ip, config.ports)?;
        let address = listener.local_addr()?;
        Ok((address, Acceptor::start(listener, config.job.clone(), desk.clone())?))
    };
    listen().map_err(|error: std::io::Error| EndpointError::Listen {
        address: ip.to_string(),
        reason: described(&error),
    })
}
