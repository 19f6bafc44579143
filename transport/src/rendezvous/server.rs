//! Hosts the store, and passes on control connections that come to the same port.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::debug;

use super::wire::{Request, encode_answer};
use super::{MemoryStore, StoreError};
use crate::host_port::HostPort;
use crate::interfaces::host_address;
use crate::limits::described;
use crate::ports::{PortRange, listen_on};
use crate::secure::{
    Acceptor, Job, MESSAGE_LIMIT_BYTES, Purpose, SecureError, SecureStream, Service, Socket,
};

/// How long a rank may take to take its answer in.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long a rank may be silent between two requests: for ever, in practice. Its connection ends
/// with its process or with the server.
const IDLE_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Listens on an address (host and port; port 0 is one that is free).
///
/// # Errors
/// [`StoreError::Listen`].
pub fn listen(address: &str) -> Result<TcpListener, StoreError> {
    listen_within(address, None)
}

/// As [`listen`], where port 0 is one of `ports`.
///
/// # Errors
/// [`StoreError::Listen`].
pub fn listen_within(address: &str, ports: Option<PortRange>) -> Result<TcpListener, StoreError> {
    let failed = |error: io::Error| failed_to_listen(address.into(), &error);
    let mut outcome = Err(failed(io::Error::other("the name has no address")));
    for address in address.to_socket_addrs().map_err(failed)? {
        outcome = match address.port() {
            0 => listen_on(address.ip(), ports),
            _ => TcpListener::bind(address),
        }
        .map_err(failed);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Listens where other hosts reach this one, nobody having said where: at the address of
/// [`host_address`], a free port of `ports`. Also returns what to tell the ranks: that address, or
/// the host `advertise` in its place.
///
/// # Errors
/// [`StoreError::Interface`], [`StoreError::Listen`].
pub fn listen_somewhere(
    interface: Option<&str>,
    ports: Option<PortRange>,
    advertise: Option<&HostPort>,
) -> Result<(TcpListener, HostPort), StoreError> {
    let own = HostPort::from(host_address(interface)?).with_port(0);
    let listener = listen_within(&own.to_string(), ports)?;
    let address = listener.local_addr();
    let port = address.map_err(|error| failed_to_listen(own.to_string(), &error))?.port();
    Ok((listener, advertise.unwrap_or(&own).with_port(port)))
}

fn failed_to_listen(address: String, error: &io::Error) -> StoreError {
    StoreError::Listen { address, kind: error.kind(), reason: described(error) }
}

/// A store that ranks reach over TCP. It has one thread a connected rank, which sleeps. Dropping it
/// ends the connections to the store (control connections that were passed on stay) and all
/// threads.
pub struct Server {
    address: SocketAddr,
    hub: Arc<dyn Hub>,
    acceptor: Acceptor<TcpListener>,
}

/// The part of the service that the server's owner uses.
trait Hub: Send + Sync {
    fn store(&self) -> Arc<MemoryStore>;
    fn await_no_clients(&self, deadline: Instant) -> bool;
    fn stop(&self);
}

struct HubOf<F> {
    store: Arc<MemoryStore>,
    on_control: F,
    clients: Mutex<Clients>,
    /// A client has left.
    left: Condvar,
}

#[derive(Default)]
struct Clients {
    stopping: bool,
    next_id: u64,
    sockets: HashMap<u64, Arc<TcpStream>>,
}

impl Server {
    /// Starts to serve. Connections with [`Purpose::Control`] go to `on_control` with their hello,
    /// on a thread of their own that dropping the server waits for: it should hand the connection
    /// over and return.
    ///
    /// # Errors
    /// [`StoreError::Listen`].
    pub fn start(
        listener: TcpListener,
        job: Job,
        on_control: impl Fn(SecureStream<TcpStream>, Vec<u8>) + Send + Sync + 'static,
    ) -> Result<Server, StoreError> {
        let address =
            listener.local_addr().map_err(|error| failed_to_listen("a socket".into(), &error))?;
        let store = MemoryStore::new();
        let hub =
            Arc::new(HubOf { store, on_control, clients: Mutex::default(), left: Condvar::new() });
        let acceptor = Acceptor::start(listener, job, hub.clone())
            .map_err(|error| failed_to_listen(address.to_string(), &error))?;
        Ok(Server { address, hub, acceptor })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store itself, for whoever is in the server's process. It stops with the server.
    pub fn store(&self) -> Arc<MemoryStore> {
        self.hub.store()
    }

    /// Waits until no rank is connected to the store, at most until the deadline; whether that
    /// came true.
    pub fn await_no_clients(&self, deadline: Instant) -> bool {
        self.hub.await_no_clients(deadline)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The acceptor, dropped after this, joins the threads.
        if self.acceptor.is_own() {
            self.hub.stop();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl<F: Send + Sync> Hub for HubOf<F> {
    fn store(&self) -> Arc<MemoryStore> {
        self.store.clone()
    }

    fn await_no_clients(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let is_used = |clients: &mut Clients| !clients.sockets.is_empty();
        let waited = self.left.wait_timeout_while(self.clients(), left, is_used);
        waited.unwrap_or_else(PoisonError::into_inner).0.sockets.is_empty()
    }

    fn stop(&self) {
        self.store.stop();
        let mut clients = self.clients();
        clients.stopping = true;
        clients.sockets.values().for_each(|socket| socket.sever());
    }
}

impl<F> Service<TcpStream> for HubOf<F>
where
    F: Fn(SecureStream<TcpStream>, Vec<u8>) + Send + Sync + 'static,
{
    fn judge(&self, purpose: Purpose, _hello: &[u8]) -> Result<(), String> {
        match purpose {
            Purpose::Store | Purpose::Control => Ok(()),
            Purpose::Link => Err("this is the job's store, which makes no links".into()),
        }
    }

    fn serve(&self, stream: SecureStream<TcpStream>, purpose: Purpose, hello: Vec<u8>) {
        if purpose == Purpose::Control {
            return (self.on_control)(stream, hello);
        }
        let Some(id) = self.begin_client(&stream) else { return };
        let peer = stream.peer().to_owned();
        if let Err(error) = self.serve_client(stream) {
            debug!("the store's connection to {peer} has ended: {error}");
        }
        self.clients().sockets.remove(&id);
        self.left.notify_all();
    }
}

impl<F> HubOf<F> {
    /// Answers one rank's requests, until it goes.
    fn serve_client(&self, mut stream: SecureStream<TcpStream>) -> Result<(), SecureError> {
        loop {
            let message = stream.receive(Instant::now() + IDLE_LIMIT)?;
            let answer = match Request::decode(&message) {
                Some((request, wait)) => self.store.answer(request, Instant::now() + wait),
                None => Err(StoreError::Invalid { reason: "an unknown request".into() }),
            };
            let mut bytes = encode_answer(&answer);
            if bytes.len() > MESSAGE_LIMIT_BYTES {
                let reason = format!("an answer of {} bytes is too long", bytes.len());
                bytes = encode_answer(&Err(StoreError::Invalid { reason }));
            }
            stream.send(&bytes, Instant::now() + ANSWER_LIMIT)?;
        }
    }

    /// Notes a client's socket, so that it can be shut down; `None` when the server stops.
    fn begin_client(&self, stream: &SecureStream<TcpStream>) -> Option<u64> {
        let mut clients = self.clients();
        if clients.stopping {
            return None;
        }
        clients.next_id += 1;
        let id = clients.next_id;
        clients.sockets.insert(id, stream.socket());
        Some(id)
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
