//! Bounded reading and writing of sockets: every wait has a deadline, and may be stopped.
//!
//! Calls never block in the kernel other than in `poll`, whatever mode the socket is in, and leave
//! its mode and time-outs alone.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags, Shutdown, getsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket as Socket2, Type};

use super::SecureError;
use crate::limits::remedy;

/// How often a wait looks at its stop callback.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// Longest single wait in the kernel: `poll` takes milliseconds in an `i32`.
const POLL_LIMIT: Duration = Duration::from_secs(3600);

/// Rest before the next attempt to connect to a Unix socket whose backlog is full.
const BACKLOG_REST: Duration = Duration::from_millis(2);

/// A connected stream socket.
pub trait Socket: AsFd + From<OwnedFd> + Send + Sync + 'static {
    /// Who is at the other end, for people.
    fn peer_name(&self) -> String;

    /// Ends both directions: whoever waits on the socket wakes.
    fn sever(&self) {
        // An error means that the connection has ended already.
        let _ = socket::shutdown(self.as_fd().as_raw_fd(), Shutdown::Both);
    }
}

impl Socket for TcpStream {
    fn peer_name(&self) -> String {
        self.peer_addr().map_or_else(|_| "a lost connection".into(), |address| address.to_string())
    }
}

impl Socket for UnixStream {
    fn peer_name(&self) -> String {
        match getsockopt(self, sockopt::PeerCredentials) {
            Ok(credentials) => format!("process {} of this host", credentials.pid()),
            Err(_) => "a process of this host".into(),
        }
    }
}

/// How long a call may wait: until its deadline, or until `stop` says so. A deadline that has
/// passed still lets what needs no waiting happen.
pub(crate) struct Limit<'a> {
    deadline: Instant,
    stop: Option<&'a dyn Fn() -> bool>,
}

/// Why a wait ended without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    #[error("no answer in time")]
    TimedOut,
    #[error("stopped waiting")]
    Stopped,
    #[error("{}{}", .0.desc(), remedy(*.0))]
    Failed(Errno),
}

impl<'a> Limit<'a> {
    pub(crate) fn until(deadline: Instant) -> Limit<'static> {
        Limit { deadline, stop: None }
    }

    pub(crate) fn stoppable(deadline: Instant, stop: &'a dyn Fn() -> bool) -> Limit<'a> {
        Limit { deadline, stop: Some(stop) }
    }

    /// The same, and at most `limit` from now.
    pub(crate) fn at_most(&self, limit: Duration) -> Limit<'a> {
        Limit { deadline: self.deadline.min(Instant::now() + limit), stop: self.stop }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How long to wait before asking again.
    pub(crate) fn slice(&self) -> Result<Duration, Ended> {
        if self.stop.is_some_and(|stop| stop()) {
            return Err(Ended::Stopped);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left {
            Duration::ZERO => Err(Ended::TimedOut),
            _ => Ok(left.min(if self.stop.is_some() { STOP_INTERVAL } else { POLL_LIMIT })),
        }
    }

    /// Waits until the descriptor is ready or has failed.
    pub(crate) fn wait(&self, descriptor: &impl AsFd, events: PollFlags) -> Result<(), Ended> {
        loop {
            // Rounded up: a rest under a millisecond must not become a busy loop.
            let slice = self.slice()? + Duration::from_micros(999);
            let timeout = PollTimeout::try_from(slice).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(descriptor.as_fd(), events)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(Ended::Failed(error)),
            }
        }
    }
}

/// Connects to `address`, from the local address `source` if one is given.
pub(crate) fn dial(
    address: SocketAddr,
    source: Option<IpAddr>,
    limit: &Limit<'_>,
) -> Result<TcpStream, Ended> {
    let socket = Socket2::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
        .map_err(failed)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into()).map_err(failed)?;
    }
    socket.set_nonblocking(true).map_err(failed)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {
            limit.wait(&socket, PollFlags::POLLOUT)?;
            socket.take_error().map_err(failed)?.map_or(Ok(()), |error| Err(failed(error)))?;
        }
        outcome => outcome.map_err(failed)?,
    }
    socket.set_nonblocking(false).map_err(failed)?;
    socket.set_tcp_nodelay(true).map_err(failed)?;
    let stream = TcpStream::from(socket);
    // A free port of this host can be met by the socket itself: it is the source, too.
    match stream.local_addr() {
        Ok(local) if local == address => Err(Ended::Failed(Errno::ECONNREFUSED)),
        _ => Ok(stream),
    }
}

/// Connects to the Unix socket of an abstract name.
pub(crate) fn dial_local(name: &str, limit: &Limit<'_>) -> Result<UnixStream, Ended> {
    let address = SockAddr::unix(format!("\0{name}")).map_err(failed)?;
    let socket = Socket2::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    loop {
        match socket.connect(&address) {
            // The listener has not accepted those that came before. Nothing tells when it has.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(limit.slice()?.min(BACKLOG_REST));
            }
            outcome => break outcome.map_err(failed)?,
        }
    }
    socket.set_nonblocking(false).map_err(failed)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn failed(error: io::Error) -> Ended {
    Ended::Failed(error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
}

/// Whether whoever connected has gone or has begun with something else than `start`, as far as that is known already.
pub(super) fn is_lost<S: Socket, const N: usize>(socket: &S, start: &[u8; N]) -> bool {
    let mut bytes = [0; N];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match socket::recv(socket.as_fd().as_raw_fd(), &mut bytes, flags) {
        Ok(len) => len == 0 || bytes[..len] != start[..len],
        Err(error) => !matches!(error, Errno::EAGAIN | Errno::EINTR),
    }
}

/// Appends what comes to `buffer` until it has `want_bytes`. What had come before an error stays
/// there, so that the call can be repeated.
pub(super) fn fill<S: Socket>(
    socket: &S,
    buffer: &mut Vec<u8>,
    want_bytes: usize,
    limit: &Limit<'_>,
) -> Result<(), SecureError> {
    let mut have = buffer.len();
    buffer.resize(want_bytes, 0);
    let mut outcome = Ok(());
    while have < want_bytes && outcome.is_ok() {
        let flags = MsgFlags::MSG_DONTWAIT;
        match socket::recv(socket.as_fd().as_raw_fd(), &mut buffer[have..], flags) {
            Ok(0) => outcome = Err(SecureError::Closed { peer: socket.peer_name() }),
            Ok(len) => have += len,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => outcome = wait(socket, PollFlags::POLLIN, limit),
            Err(error) => outcome = Err(failure(socket, error)),
        }
    }
    buffer.truncate(have);
    outcome
}

/// Sends all bytes.
pub(super) fn write_all<S: Socket>(
    socket: &S,
    mut bytes: &[u8],
    limit: &Limit<'_>,
) -> Result<(), SecureError> {
    while !bytes.is_empty() {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match socket::send(socket.as_fd().as_raw_fd(), bytes, flags) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait(socket, PollFlags::POLLOUT, limit)?,
            Err(error) => return Err(failure(socket, error)),
        }
    }
    Ok(())
}

/// Ends the sending direction, and reads what the other side has under way, so that closing does
/// not reset the connection before the other side has read what was written.
pub(super) fn hang_up<S: Socket>(socket: &S, limit: &Limit<'_>) {
    /// More than a handshake ever has under way.
    const DRAIN_LIMIT_BYTES: usize = 64 * 1024;
    if socket::shutdown(socket.as_fd().as_raw_fd(), Shutdown::Write).is_ok() {
        let _ = fill(socket, &mut Vec::new(), DRAIN_LIMIT_BYTES, limit);
    }
}

fn wait<S: Socket>(socket: &S, events: PollFlags, limit: &Limit<'_>) -> Result<(), SecureError> {
    limit.wait(socket, events).map_err(|ended| ended.into_error(socket.peer_name()))
}

fn failure<S: Socket>(socket: &S, error: Errno) -> SecureError {
    match error {
        Errno::ECONNRESET | Errno::EPIPE => SecureError::Closed { peer: socket.peer_name() },
        error => Ended::Failed(error).into_error(socket.peer_name()),
    }
}

impl Ended {
    pub(crate) fn into_error(self, peer: String) -> SecureError {
        match self {
            Ended::TimedOut => SecureError::TimedOut { peer },
            Ended::Stopped => SecureError::Stopped { peer },
            Ended::Failed(_) => SecureError::Failed { peer, reason: self.to_string() },
        }
    }
}
