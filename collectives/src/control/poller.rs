//! What the service's and the monitor's thread have in common: a queue that wakes, a set of
//! descriptors to sleep on, and a connection that carries control messages.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{setsockopt, sockopt};
use ringtree_transport::secure::{SecureError, SecureReceiver, SecureSender, SecureStream};
use tracing::debug;

use super::codec::WireError;
use super::wire::{self, Message};

/// Descriptors that are taken from the kernel at once.
const EVENTS: usize = 256;

/// Key of the inbox's descriptor.
const INBOX: u64 = u64::MAX;

/// How long a message may take into the kernel's buffer. Nobody sends many, so that a full buffer
/// means a connection that is dead.
const SEND_LIMIT: Duration = Duration::from_millis(100);

/// A host that has lost its power sends nothing: ask the other kernel after so many seconds
/// without traffic, so often, so many times.
const KEEPALIVE: (u32, u32, u32) = (5, 2, 3);

/// Sleeps on an inbox and on descriptors, each of which has a key.
#[derive(Debug)]
pub(super) struct Poller<T> {
    epoll: Epoll,
    inbox: Arc<Inbox<T>>,
}

/// Work for a thread that sleeps.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    queue: Mutex<Vec<T>>,
    bell: EventFd,
}

impl<T> Poller<T> {
    /// With an empty inbox.
    pub(super) fn new() -> io::Result<Poller<T>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_value_and_flags(0, flags)?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, INBOX))?;
        Ok(Poller { epoll, inbox: Arc::new(Inbox { queue: Mutex::default(), bell }) })
    }

    /// Where work is put for the thread that polls.
    pub(super) fn inbox(&self) -> Arc<Inbox<T>> {
        self.inbox.clone()
    }

    /// Sleeps on a descriptor from now on, until it is closed.
    pub(super) fn add(&self, descriptor: impl AsFd, key: u64) -> io::Result<()> {
        Ok(self.epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, key))?)
    }

    /// Sleeps no more on a descriptor.
    pub(super) fn remove(&self, descriptor: impl AsFd) {
        // An error means that it was not added.
        let _ = self.epoll.delete(descriptor);
    }

    /// Sleeps until something is ready or the deadline passes. Returns what was put into the inbox
    /// and the keys of the descriptors that are ready; if `more`, others may be ready, too.
    pub(super) fn sleep(&self, deadline: Option<Instant>) -> io::Result<Ready<T>> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout_until(deadline)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut keys: Vec<u64> = events[..count].iter().map(EpollEvent::data).collect();
        let mut work = Vec::new();
        if let Some(position) = keys.iter().position(|key| *key == INBOX) {
            keys.swap_remove(position);
            // The bell first: what comes after it rings again.
            let _ = self.inbox.bell.read();
            work = std::mem::take(
                &mut *self.inbox.queue.lock().unwrap_or_else(PoisonError::into_inner),
            );
        }
        Ok(Ready { work, keys, more: count == EVENTS })
    }
}

/// What [`Poller::sleep`] found.
#[derive(Debug)]
pub(super) struct Ready<T> {
    pub work: Vec<T>,
    pub keys: Vec<u64>,
    pub more: bool,
}

impl<T> Inbox<T> {
    /// Puts work in, and wakes the thread.
    pub(super) fn push(&self, work: T) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(work);
        // A bell that refuses has been rung often enough.
        let _ = self.bell.write(1);
    }
}

/// Rounded up: waking a little early would be waking again and again.
fn timeout_until(deadline: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    let left_ms = left.as_nanos().div_ceil(1_000_000);
    EpollTimeout::try_from(left_ms as u64).unwrap_or(EpollTimeout::MAX)
}

/// A control connection. Reading never waits.
pub(super) struct Connection {
    sender: SecureSender<TcpStream>,
    receiver: SecureReceiver<TcpStream>,
}

/// Why a control connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Stream(#[from] SecureError),
    #[error(transparent)]
    Message(#[from] WireError),
}

impl Connection {
    /// Over a stream that has been authenticated.
    pub(super) fn new(stream: SecureStream<TcpStream>) -> Connection {
        let (idle_s, interval_s, probes) = KEEPALIVE;
        // Without them a dead host is noticed later, at the deadline.
        let _ = setsockopt(&stream, sockopt::KeepAlive, &true)
            .and_then(|()| setsockopt(&stream, sockopt::TcpKeepIdle, &idle_s))
            .and_then(|()| setsockopt(&stream, sockopt::TcpKeepInterval, &interval_s))
            .and_then(|()| setsockopt(&stream, sockopt::TcpKeepCount, &probes));
        let (sender, receiver) = stream.split();
        Connection { sender, receiver }
    }

    /// Sends a message. If that fails the connection is ended, which its reader finds after
    /// everything that had come.
    pub(super) fn send<M: Message>(&mut self, message: &M) {
        if let Err(error) = self.sender.send(&wire::encode(message), Instant::now() + SEND_LIMIT) {
            debug!("a control message could not be sent: {error}");
            self.sender.shutdown();
        }
    }

    /// Ends the connection, which its reader finds.
    pub(super) fn hang_up(&mut self) {
        self.sender.shutdown();
    }

    /// The next message, if it is there.
    pub(super) fn receive<M: Message>(&mut self) -> Result<Option<M>, ConnectionError> {
        self.receive_until(Instant::now())
    }

    /// The next message, if it comes in time.
    pub(super) fn receive_until<M: Message>(
        &mut self,
        deadline: Instant,
    ) -> Result<Option<M>, ConnectionError> {
        match self.receiver.receive(deadline) {
            Ok(bytes) => Ok(Some(wire::decode(&bytes)?)),
            Err(SecureError::TimedOut { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.receiver.peer()).finish()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}
