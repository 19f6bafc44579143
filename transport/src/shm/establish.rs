//! How two sides come to share memory: each hands its half's descriptor over the socket, and proves
//! that it sees the other's by repeating the nonce that it finds there.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::layout::{HALF_BYTES, Half};
use super::link::{Halves, peer_process};
use super::publish::BOARD_FILE_BYTES;
use super::reach::{Attach, Reach};
use super::{ShmLink, descriptors};
use crate::limits::described;
use crate::memory::SharedMemory;
use crate::process::PidFd;
use crate::{LinkError, TransportKind, wait};

/// What travels beside the descriptor: length of the half, whether this side's kernel can order a
/// sleeper's memory accesses for everyone, and where this side's process has its nonce.
const HELLO_BYTES: usize = 24;

/// What says that the memory is a board.
const BOARD: u8 = b'b';

/// What is answered: the nonce that was found, and whether this side reaches the peer's ordinary
/// memory.
const SEEN_BYTES: usize = 9;

impl ShmLink {
    /// Makes the link to `peer` over a connected socket on which both sides have proven who they
    /// are. Both call it; the socket stays with the link. `board` is the memory of this rank's
    /// [`Board`](super::Board). That one side never attaches goes for both.
    ///
    /// # Errors
    /// [`LinkError::Failed`] where the two do not share memory, where memory or descriptors have
    /// run out, or when `deadline` passes.
    pub fn establish(
        stream: UnixStream,
        peer: u32,
        board: &SharedMemory,
        attach: Attach,
        deadline: Instant,
    ) -> Result<ShmLink, LinkError> {
        establish(stream, peer, board, attach, deadline).map_err(|error| LinkError::Failed {
            peer,
            transport: TransportKind::Shm,
            reason: described(&error),
        })
    }
}

fn establish(
    stream: UnixStream,
    peer: u32,
    board: &SharedMemory,
    attach: Attach,
    deadline: Instant,
) -> io::Result<ShmLink> {
    stream.set_nonblocking(false)?;
    let mine = SharedMemory::create(HALF_BYTES)?;
    let nonce = random()?;
    nonce_of(&mine).store(nonce, Ordering::Release);
    let can_order = wait::register_membarrier();
    if attach != Attach::Never {
        Reach::invite();
    }
    set_timeout(&stream, deadline)?;
    send_half(&stream, &mine, can_order)?;
    send_memory(&stream, board, &[BOARD])?;
    let (theirs, they_can_order, their_nonce_at) = receive_half(&stream)?;
    let mut what = [0];
    let their_board = receive_memory(&stream, &mut what, BOARD_FILE_BYTES)?;
    if what != [BOARD] {
        return Err(io::Error::other("the peer hands over something else than its board"));
    }
    let their_nonce = nonce_of(&theirs).load(Ordering::Acquire);
    // That it answers afterwards shows that the number still is the peer's.
    let pid = peer_process(&stream).filter(|&pid| pid != std::process::id());
    let process = pid.and_then(|pid| PidFd::open(pid).ok()).filter(PidFd::may_kill);
    // What is this process's own needs no attach.
    let is_tried = attach != Attach::Never || pid.is_none();
    let reach = if is_tried {
        Reach::probe(peer_process(&stream), their_nonce_at, their_nonce)
    } else {
        Reach::Nothing
    };
    let mut seen = [0; SEEN_BYTES];
    seen[..8].copy_from_slice(&their_nonce.to_le_bytes());
    seen[8] = u8::from(reach != Reach::Nothing);
    (&stream).write_all(&seen)?;
    set_timeout(&stream, deadline)?;
    (&stream).read_exact(&mut seen)?;
    if seen[..8] != nonce.to_le_bytes() {
        return Err(io::Error::other("the peer reads another memory than this side writes"));
    }
    let reach = if seen[8] == 1 { reach } else { Reach::Nothing };
    tracing::debug!("rank {peer} shares memory; the way to its ordinary memory: {reach:?}");
    stream.set_read_timeout(None)?;
    stream.set_nonblocking(true)?;
    let (mine, theirs) = (Arc::new(mine), Arc::new(theirs));
    let halves = Halves { mine, theirs, board: their_board };
    let fenced = !(can_order && they_can_order);
    Ok(ShmLink::new(peer, stream, halves, fenced, reach, attach, process))
}

fn send_half(stream: &UnixStream, half: &SharedMemory, can_order: bool) -> io::Result<()> {
    let mut hello = [0; HELLO_BYTES];
    hello[..8].copy_from_slice(&(HALF_BYTES as u64).to_le_bytes());
    hello[8] = u8::from(can_order);
    let nonce_at = std::ptr::from_ref(nonce_of(half)) as u64;
    hello[16..].copy_from_slice(&nonce_at.to_le_bytes());
    send_memory(stream, half, &hello)
}

/// Hands over a memory, with bytes that say what it is.
fn send_memory(stream: &UnixStream, memory: &SharedMemory, bytes: &[u8]) -> io::Result<()> {
    let descriptors = [memory.descriptor().as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &message, flags, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the hello did not fit")) }
}

fn receive_half(stream: &UnixStream) -> io::Result<(SharedMemory, bool, u64)> {
    let mut hello = [0; HELLO_BYTES];
    let half = receive_memory(stream, &mut hello, HALF_BYTES)?;
    let len_bytes = u64::from_le_bytes(hello[..8].try_into().map_err(io::Error::other)?);
    if len_bytes != HALF_BYTES as u64 {
        return Err(io::Error::other("the peer's version lays its memory out differently"));
    }
    let nonce_at = u64::from_le_bytes(hello[16..].try_into().map_err(io::Error::other)?);
    Ok((half, hello[8] == 1, nonce_at))
}

/// Maps a memory of `len_bytes` that the peer hands over, with the bytes that come with it.
fn receive_memory(
    stream: &UnixStream,
    bytes: &mut [u8],
    len_bytes: usize,
) -> io::Result<SharedMemory> {
    let (received, file) = descriptors::receive(stream, bytes, MsgFlags::MSG_WAITALL).map_err(
        |errno| match errno {
            Errno::ENOBUFS => io::Error::other(
                "the peer's memory was cut off: this process may have too few descriptors \
                 (raise ulimit -n)",
            ),
            errno => errno.into(),
        },
    )?;
    let file = file.filter(|_| received == bytes.len());
    let file = file.ok_or_else(|| io::Error::other("the peer sent no memory"))?;
    SharedMemory::open(file, len_bytes)
}

fn set_timeout(stream: &UnixStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))
}

fn nonce_of(half: &SharedMemory) -> &std::sync::atomic::AtomicU64 {
    // SAFETY: the mapping is HALF_BYTES long, aligned to a page, and lives as long as the borrow.
    unsafe { &(*half.start().cast::<Half>()).nonce }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Board;
    use super::super::descriptors::tests::{open, pass};
    use super::*;

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn board() -> Arc<SharedMemory> {
        Board::new().unwrap().memory().clone()
    }

    #[test]
    fn what_is_published_is_seen_and_wakes_a_sleeper() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut own = Board::new().unwrap();
        let memory = own.memory().clone();
        let other = std::thread::spawn(move || {
            ShmLink::establish(b, 0, &board(), Attach::Auto, deadline()).unwrap()
        });
        let publisher = ShmLink::establish(a, 1, &memory, Attach::Auto, deadline()).unwrap();
        let mut reader = other.join().unwrap();
        assert_eq!(reader.published(1).unwrap().map(|arrival| arrival.len), None);
        reader.set_parked(true);
        let tag = crate::Tag { sequence: 3, digest: 9 };
        // SAFETY: a constant stays readable, and it is the first exchange.
        let number = unsafe { own.publish(tag, b"news".as_ptr(), 4) }.number;
        publisher.announce();
        let arrival = reader.published(number).unwrap().unwrap();
        assert_eq!((arrival.len, arrival.last, arrival.tag), (4, true, tag));
        // SAFETY: the arrival has four bytes, which stay until the reader publishes.
        assert_eq!(unsafe { *arrival.data.cast::<[u8; 4]>() }, *b"news");
        let (socket, _) = reader.descriptor().unwrap();
        let mut entry = libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, as said.
        assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 0) }, 1);
    }

    #[test]
    fn a_sleeper_that_waits_for_room_is_woken_when_there_is_some() {
        let (a, b) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || {
            ShmLink::establish(b, 0, &board(), Attach::Auto, deadline()).unwrap()
        });
        let mut sender = ShmLink::establish(a, 1, &board(), Attach::Auto, deadline()).unwrap();
        let mut receiver = other.join().unwrap();
        let data = vec![7_u8; 8 << 20];
        let tag = crate::Tag::default();
        // SAFETY: the data outlives the links.
        unsafe { sender.post(0, tag, data.as_ptr(), data.len(), true).unwrap() };
        assert!(sender.is_waiting(0), "more than the slots hold");
        let (socket, _) = sender.descriptor().unwrap();
        let is_woken = || {
            let mut entry = libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, as said.
            unsafe { libc::poll(&raw mut entry, 1, 0) == 1 }
        };
        for parked in [false, true] {
            sender.set_parked(parked);
            assert!(!is_woken());
            let arrival = receiver.arrival(0).unwrap().unwrap();
            receiver.release(0, arrival.len).unwrap();
            assert_eq!(is_woken(), parked);
        }
        sender.set_parked(false);
        assert!(!is_woken() && sender.poll(0).unwrap());
    }

    #[test]
    fn a_byte_crosses_between_the_two_ends() {
        let (a, b) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || {
            ShmLink::establish(b, 0, &board(), Attach::Auto, deadline()).unwrap()
        });
        let mut first = ShmLink::establish(a, 1, &board(), Attach::Auto, deadline()).unwrap();
        let mut second = other.join().unwrap();
        let tag = crate::Tag { sequence: 3, digest: 9 };
        // SAFETY: a constant stays readable for ever.
        unsafe { first.post(0, tag, b"x".as_ptr(), 1, true).unwrap() };
        let arrival = second.arrival(0).unwrap().unwrap();
        assert_eq!((arrival.len, arrival.last, arrival.tag), (1, true, tag));
        // SAFETY: the arrival has one byte and is not released.
        assert_eq!(unsafe { *arrival.data }, b'x');
        second.release(0, 1).unwrap();
        assert!(second.arrival(0).unwrap().is_none());
        drop(first);
        assert!(matches!(second.poll(0), Err(LinkError::Closed { peer: 0, .. })));
    }

    #[test]
    fn a_peer_that_sends_no_memory_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        (&b).write_all(&[0; HELLO_BYTES]).unwrap();
        let refused = ShmLink::establish(a, 1, &board(), Attach::Auto, deadline()).unwrap_err();
        assert!(refused.to_string().contains("sent no memory"), "{refused}");
    }

    #[test]
    fn a_peer_that_sends_more_than_its_memory_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let (passed, _held) = UnixStream::pair().unwrap();
        pass(&b, 0, &passed, 200);
        let refused = ShmLink::establish(a, 1, &board(), Attach::Auto, deadline()).unwrap_err();
        assert!(refused.to_string().contains("cut off"), "{refused}");
        assert_eq!(open(&passed), 1);
    }

    #[test]
    fn a_silent_peer_ends_at_the_deadline() {
        let (a, _b) = UnixStream::pair().unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(ShmLink::establish(a, 1, &board(), Attach::Auto, soon).is_err());
    }
}
