//! Where links that other ranks dialed wait for this rank to take them.

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::debug;

use super::ESTABLISH_LIMIT;
use super::address::Hello;
use crate::memory::SharedMemory;
use crate::secure::{Ended, Limit, Purpose, SecureStream, Service, Socket};
use crate::shm::ShmLink;
use crate::tcp::TcpLink;
use crate::{Link, LinkError};

/// The links that have been dialed, each made to its end on the thread that accepted it, so that no
/// dialer waits for what this rank does meanwhile.
pub(super) struct Desk {
    communicator: u64,
    rank: u32,
    board: Arc<SharedMemory>,
    dialed: Mutex<HashMap<u32, Result<Link, LinkError>>>,
    changed: Condvar,
}

impl Desk {
    pub(super) fn new(communicator: u64, rank: u32, board: Arc<SharedMemory>) -> Desk {
        Desk { communicator, rank, board, dialed: Mutex::default(), changed: Condvar::new() }
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
        Ok(())
    }

    /// Makes the link of an accepted connection. A newer one replaces one that nobody has taken,
    /// since its dialer has given it up; a failure never replaces a link.
    fn serve_link<S: Socket>(
        &self,
        stream: SecureStream<S>,
        hello: &[u8],
        make: impl FnOnce(S, u32) -> Result<Link, LinkError>,
    ) {
        let Some(Hello { from, .. }) = Hello::decode(hello) else { return };
        match stream.into_inner() {
            Ok(socket) => {
                let outcome = make(socket, from);
                let mut dialed = self.lock();
                if outcome.is_ok() || !matches!(dialed.get(&from), Some(Ok(_))) {
                    dialed.insert(from, outcome);
                }
                self.changed.notify_all();
            }
            Err(error) => debug!("a connection from rank {from} was lost: {error}"),
        }
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
        self.serve_link(stream, &hello, |socket, from| {
            let deadline = Instant::now() + ESTABLISH_LIMIT;
            ShmLink::establish(socket, from, &self.board, deadline).map(Link::Shm)
        });
    }
}

impl Service<TcpStream> for Desk {
    fn judge(&self, purpose: Purpose, hello: &[u8]) -> Result<(), String> {
        self.judge_link(purpose, hello)
    }

    fn serve(&self, stream: SecureStream<TcpStream>, _purpose: Purpose, hello: Vec<u8>) {
        self.serve_link(stream, &hello, |socket, from| TcpLink::new(socket, from).map(Link::Tcp));
    }
}
