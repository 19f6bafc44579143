//! Where links that other ranks dialed wait for this rank to take them.

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::debug;

use super::address::Hello;
use super::{ESTABLISH_LIMIT, EndpointConfig};
use crate::memory::SharedMemory;
use crate::rdma::{Rdma, RdmaLink};
use crate::secure::{Ended, FrameKeys, Limit, Purpose, SecureStream, Service, Socket};
use crate::shm::{Attach, ShmLink};
use crate::tcp::{Connection, TcpLink};
use crate::{Link, LinkError};

/// The links that have been dialed, each made to its end on the thread that accepted it, so that no
/// dialer waits for what this rank does meanwhile.
pub(super) struct Desk {
    communicator: u64,
    rank: u32,
    /// TCP links encrypt their frames.
    encrypts: bool,
    /// Frames have checksums.
    checksums: bool,
    board: Arc<SharedMemory>,
    attach: Attach,
    rdma: Option<Arc<Rdma>>,
    dialed: Mutex<HashMap<u32, Result<Link, LinkError>>>,
    changed: Condvar,
    /// By dialer: the connections that have come of its last attempt to make a TCP link.
    parts: Mutex<HashMap<u32, Parts>>,
}

struct Parts {
    link: u64,
    connections: Vec<Option<Connection>>,
}

impl Desk {
    pub(super) fn new(config: &EndpointConfig, rdma: Option<Arc<Rdma>>) -> Desk {
        Desk {
            communicator: config.communicator,
            rank: config.rank,
            encrypts: config.encrypts,
            checksums: config.checksums,
            board: config.board.clone(),
            attach: config.attach,
            rdma,
            dialed: Mutex::default(),
            changed: Condvar::new(),
            parts: Mutex::default(),
        }
    }

    /// The memory in which this rank publishes.
    pub(super) fn board(&self) -> &SharedMemory {
        &self.board
    }

    /// Waits for the link from `peer`, or the error that its making ended with.
    pub(super) fn take(
        &self,
        peer: u32,
        limit: &Limit<'_>,
    ) -> Result<Result<Link, LinkError>, Ended> {
        let mut dialed = self.lock();
        loop {
            if let Some(outcome) = dialed.remove(&peer) {
                return Ok(outcome);
            }
            let waited = self.changed.wait_timeout(dialed, limit.slice()?);
            dialed = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn judge_link(&self, purpose: Purpose, hello: &[u8]) -> Result<(), String> {
        let hello = match Hello::decode(hello) {
            Some(hello) if purpose == Purpose::Link => hello,
            _ => return Err("links are made here, and nothing else".into()),
        };
        let rank = self.rank;
        if hello.communicator != self.communicator {
            return Err(format!("rank {rank} listens here for another communicator"));
        }
        if hello.to != rank {
            return Err(format!("this is rank {rank}, not rank {}", hello.to));
        }
        if hello.from >= rank {
            return Err(format!("rank {rank} dials rank {}, not the reverse", hello.from));
        }
        if hello.makes_rdma && self.rdma.is_none() {
            return Err(format!("rank {rank} has no RDMA"));
        }
        if hello.encrypts != self.encrypts {
            let (does, does_not) =
                if self.encrypts { (rank, hello.from) } else { (hello.from, rank) };
            return Err(format!(
                "rank {does} encrypts and rank {does_not} does not: give RINGTREE_ENCRYPT the \
                 same value everywhere"
            ));
        }
        if hello.checksums != self.checksums {
            let (has, has_not) =
                if self.checksums { (rank, hello.from) } else { (hello.from, rank) };
            return Err(format!(
                "rank {has} wants checksums and rank {has_not} does not: give RINGTREE_CHECKSUMS the \
                 same value everywhere"
            ));
        }
        Ok(())
    }

    /// Makes a link of an accepted connection, once all that it needs have come. A newer one
    /// replaces one that nobody has taken, since its dialer has given it up; a failure never
    /// replaces a link.
    fn serve_link<S: Socket>(
        &self,
        stream: SecureStream<S>,
        hello: &Hello,
        make: impl FnOnce(S, FrameKeys) -> Option<Result<Link, LinkError>>,
    ) {
        let keys = stream.frame_keys();
        match stream.into_inner() {
            Ok(socket) => {
                if let Some(outcome) = make(socket, keys) {
                    self.lay_out(hello.from, outcome);
                }
            }
            Err(error) => debug!("a connection from rank {} was lost: {error}", hello.from),
        }
    }

    fn lay_out(&self, from: u32, outcome: Result<Link, LinkError>) {
        let mut dialed = self.lock();
        if outcome.is_ok() || !matches!(dialed.get(&from), Some(Ok(_))) {
            dialed.insert(from, outcome);
        }
        self.changed.notify_all();
    }

    /// Keeps a connection until the others of its link have come; then returns all.
    fn gather(&self, connection: Connection, hello: &Hello) -> Option<Vec<Connection>> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || Parts {
            link: hello.link,
            connections: (0..hello.connections).map(|_| None).collect(),
        };
        let part = parts.entry(hello.from).or_insert_with(none);
        if part.link != hello.link {
            *part = none();
        }
        *part.connections.get_mut(usize::from(hello.connection))? = Some(connection);
        if part.connections.iter().any(Option::is_none) {
            return None;
        }
        parts.remove(&hello.from)?.connections.into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Result<Link, LinkError>>> {
        self.dialed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service<UnixStream> for Desk {
    fn judge(&self, purpose: Purpose, hello: &[u8]) -> Result<(), String> {
        self.judge_link(purpose, hello)
    }

    fn serve(&self, stream: SecureStream<UnixStream>, _purpose: Purpose, hello: Vec<u8>) {
        let Some(hello) = Hello::decode(&hello) else { return };
        self.serve_link(stream, &hello, |socket, _| {
            let deadline = Instant::now() + ESTABLISH_LIMIT;
            let made = ShmLink::establish(socket, hello.from, &self.board, self.attach, deadline);
            Some(made.map(Link::Shm))
        });
    }
}

impl Service<TcpStream> for Desk {
    fn judge(&self, purpose: Purpose, hello: &[u8]) -> Result<(), String> {
        self.judge_link(purpose, hello)
    }

    fn serve(&self, stream: SecureStream<TcpStream>, _purpose: Purpose, hello: Vec<u8>) {
        let Some(hello) = Hello::decode(&hello) else { return };
        if let (true, Some(rdma)) = (hello.makes_rdma, &self.rdma) {
            let deadline = Instant::now() + rdma.link_limit();
            let made = RdmaLink::establish(stream, hello.from, rdma, deadline);
            return self.lay_out(hello.from, made.map(|link| Link::Rdma(Box::new(link))));
        }
        self.serve_link(stream, &hello, |stream, keys| {
            let connection = Connection { stream, keys: hello.encrypts.then_some(keys) };
            let connections = self.gather(connection, &hello)?;
            Some(TcpLink::over(connections, hello.from).map(Link::Tcp))
        });
    }
}
