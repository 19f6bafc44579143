//! The system calls of a TCP link: vectored, non-blocking reads and writes of raw memory, and what
//! the socket can be asked and told.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Congestion controls that reach full bandwidth on loopback, best first. BBR reaches half of it.
pub const LOOPBACK_CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// Bytes that are thrown away at once.
const DISCARD_BYTES: usize = 1 << 20;

/// Bytes that one of several sockets takes before the network has taken those before: no more than
/// what keeps it busy, so that the next frame is still there for the socket that has room first.
const UNSENT_BYTES: libc::c_int = super::SLICE_BYTES as libc::c_int;

/// Makes the socket non-blocking and quick, and chooses its congestion control.
pub(super) fn prepare(stream: &TcpStream, is_alone: bool) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    if !is_alone {
        set_option(stream.as_raw_fd(), libc::TCP_NOTSENT_LOWAT, UNSENT_BYTES)?;
    }
    if stream.peer_addr()?.ip() == stream.local_addr()?.ip() {
        // Only a process with privilege may choose any; another keeps what it has.
        let is_taken = |name: &&str| set_congestion_control(stream, name.as_bytes()).is_ok();
        let _ = LOOPBACK_CONGESTION_CONTROLS.into_iter().find(is_taken);
    }
    Ok(())
}

fn set_congestion_control(stream: &TcpStream, name: &[u8]) -> io::Result<()> {
    // SAFETY: the descriptor is open, and `name` is readable for its length.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
    check(result as isize).map(drop)
}

/// An empty range, to fill arrays with.
pub(super) const NO_RANGE: libc::iovec = range(std::ptr::null_mut(), 0);

/// A range of memory to read from or write to.
pub(super) const fn range(data: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: data.cast(), iov_len: len }
}

/// Sends as much of the ranges as the socket takes. A full socket is an error of kind
/// `WouldBlock`.
///
/// # Safety
/// Every range must be readable.
pub(super) unsafe fn send(fd: RawFd, ranges: &[libc::iovec]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let message = message(ranges);
    uninterrupted(|| match ranges {
        // SAFETY: one readable range. This is the shortest way into the kernel.
        [one] => unsafe { libc::send(fd, one.iov_base, one.iov_len, flags) },
        // SAFETY: the message names readable ranges that outlive the call.
        _ => unsafe { libc::sendmsg(fd, &message, flags) },
    })
}

/// Receives what the socket holds into the ranges, in order. 0 is the end of the stream; an empty
/// socket is an error of kind `WouldBlock`.
///
/// # Safety
/// Every range must be writable.
pub(super) unsafe fn receive(fd: RawFd, ranges: &[libc::iovec]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT;
    let mut message = message(ranges);
    uninterrupted(|| match ranges {
        // SAFETY: one writable range. This is the shortest way into the kernel.
        [one] => unsafe { libc::recv(fd, one.iov_base, one.iov_len, flags) },
        // SAFETY: the message names writable ranges that outlive the call.
        _ => unsafe { libc::recvmsg(fd, &mut message, flags) },
    })
}

/// Tells the peer's kernel at once what has arrived, since the peer waits for that to close its
/// side; by itself the kernel waits 40 ms for something to send along.
pub(super) fn acknowledge_now(fd: RawFd) {
    // A failure costs time only.
    let _ = set_option(fd, libc::TCP_QUICKACK, 1);
}

fn set_option(fd: RawFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option is one int.
    let result =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const value).cast(), len) };
    check(result as isize).map(drop)
}

/// Throws away what the socket holds, until `deadline` at most. Returns whether nothing more will
/// come.
pub(super) fn discard(stream: &TcpStream, deadline: Instant) -> bool {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    while Instant::now() < deadline {
        // SAFETY: with MSG_TRUNC, TCP drops the bytes and writes nothing (tcp(7)).
        let call = || unsafe {
            libc::recv(stream.as_raw_fd(), std::ptr::null_mut(), DISCARD_BYTES, flags)
        };
        match uninterrupted(call) {
            Ok(0) => {
                acknowledge_now(stream.as_raw_fd());
                return true;
            }
            Ok(_) => acknowledge_now(stream.as_raw_fd()),
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
    false
}

fn message(ranges: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: a `msghdr` of zeros is valid: no name, no control data, no ranges.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = ranges.as_ptr().cast_mut();
    message.msg_iovlen = ranges.len() as _;
    message
}

fn uninterrupted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether something is still to reach the peer's kernel. The bytes of a connection that was reset
/// count as unacknowledged for ever.
pub(super) fn is_on_the_way(stream: &TcpStream) -> bool {
    unacknowledged_bytes(stream).is_ok_and(|bytes| bytes > 0)
        && info(stream).tcpi_state != TCP_CLOSE
}

/// State of a connection that is over; linux/tcp_states.h.
const TCP_CLOSE: u8 = 7;

/// What the kernel says of a connection; what it does not know is 0.
pub(super) fn info(stream: &TcpStream) -> libc::tcp_info {
    // SAFETY: a `tcp_info` of zeros is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes; an older one writes less.
    unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut len,
        )
    };
    info
}

/// Bytes, the end of the stream included, that the peer's kernel has not acknowledged.
fn unacknowledged_bytes(stream: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    check(result as isize)?;
    Ok(bytes.max(0) as usize)
}

/// How a socket drains.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    /// Bytes that the peer's kernel has not acknowledged.
    pub waiting_bytes: usize,
    bytes_per_s: f64,
    /// Where the time that counts for the rate begins, and where it will after that.
    since: [Progress; 2],
}

/// What a socket has ever drained.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    bytes: u64,
    /// Time in which it had something to drain.
    busy_us: u64,
}

/// The rate is that of the last one or two such times: long enough for bursts not to matter.
const RATE_TIME_US: u64 = 500_000;

/// What stands for an unknown rate: such a socket is tried.
const FAST_BYTES_PER_S: f64 = 1e12;

impl Drain {
    /// Seconds until so many more bytes will have gone.
    pub fn time_s(&self, bytes: usize) -> f64 {
        let rate = if self.bytes_per_s > 0.0 { self.bytes_per_s } else { FAST_BYTES_PER_S };
        (self.waiting_bytes + bytes) as f64 / rate
    }

    /// Looks at what the kernel says of the socket.
    pub fn update(&mut self, stream: &TcpStream) {
        let info = info(stream);
        self.waiting_bytes = unacknowledged_bytes(stream).unwrap_or(0);
        self.count(Progress { bytes: info.tcpi_bytes_acked, busy_us: info.tcpi_busy_time });
    }

    fn count(&mut self, now: Progress) {
        let [begin, next] = self.since;
        if now.busy_us.saturating_sub(next.busy_us) > RATE_TIME_US {
            self.since = [next, now];
        }
        let busy_us = now.busy_us.saturating_sub(begin.busy_us);
        if busy_us > 0 {
            self.bytes_per_s = now.bytes.saturating_sub(begin.bytes) as f64 * 1e6 / busy_us as f64;
        }
    }
}

/// What to wait for on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitFor {
    /// Something to read.
    Input,
    /// Something to read, or room to write.
    InputOrRoom,
    /// Nothing but the time.
    Time,
}

/// Sleeps until what is waited for is there on a socket, at most for `longest` and until
/// `deadline`. Waking early is allowed.
pub(super) fn wait<'a>(
    streams: impl Iterator<Item = &'a TcpStream>,
    what: WaitFor,
    longest: Duration,
    deadline: Instant,
) {
    let time = longest.min(deadline.saturating_duration_since(Instant::now()));
    let events = match what {
        WaitFor::InputOrRoom => libc::POLLIN | libc::POLLOUT,
        WaitFor::Input | WaitFor::Time => libc::POLLIN,
    };
    let entry = |stream: &TcpStream| libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 };
    let mut entries: Vec<libc::pollfd> = match what {
        WaitFor::Time => Vec::new(),
        WaitFor::Input | WaitFor::InputOrRoom => streams.map(entry).collect(),
    };
    let time = libc::timespec {
        tv_sec: time.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: time.subsec_nanos().into(),
    };
    let count = entries.len() as libc::nfds_t;
    // SAFETY: entries and a time that live through the call, and no mask. A failure is a short
    // sleep.
    unsafe { libc::ppoll(entries.as_mut_ptr(), count, &time, std::ptr::null()) };
}
