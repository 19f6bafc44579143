//! Memory that one side lends to the other: shared memory of the program's own, read and written in
//! place.
//!
//! The owner sends a memory's descriptor over the link's socket before the first frame that names
//! it, so that the reader finds it there when the frame has come: nobody waits for an answer. The
//! same socket carries the bytes that wake a sleeping peer, and notices its end.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessage, MsgFlags, sendmsg};

use super::descriptors;
use super::devices::{self, Devices};
use crate::memory::{Registration, SharedMemory};

/// First bytes of the messages on the socket.
const WAKE: u8 = 1;
const LEND: u8 = 2;
const WITHDRAW: u8 = 3;

/// Length of a message by its first byte.
const fn message_bytes(kind: u8) -> Option<usize> {
    match kind {
        WAKE => Some(1),
        LEND => Some(13),
        WITHDRAW => Some(5),
        _ => devices::message_bytes(kind),
    }
}

/// Memories of one peer that a reader keeps mapped at most, since each takes a mapping and a
/// descriptor of its process. A lender copies what would be more; a peer that does not is broken.
const MOST_BORROWED: usize = 4096;

/// Descriptors that wait for the rest of their loans at most. Each comes with the first byte of its
/// loan, and a read cuts off only the last one; a peer that sends more is broken.
const MOST_PENDING: usize = 1;

/// What this side lends.
#[derive(Debug, Default)]
pub(super) struct Lender {
    memories: Vec<Lent>,
    next_id: u32,
    /// Memories that the peer has been told of and not yet to unmap.
    borrowed: usize,
}

#[derive(Debug)]
struct Lent {
    id: u32,
    registration: Weak<Registration>,
    start: usize,
    len_bytes: usize,
    announced: bool,
}

/// Where memory of one side begins, as it is named to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of a memory that is lent, or [`ORDINARY`].
    pub(super) id: u32,
    /// From its first byte; of ordinary memory the address.
    pub(super) offset: u64,
}

/// In place of a number: memory that has no descriptor.
pub(super) const ORDINARY: u32 = u32::MAX;

impl Lender {
    /// From now on ranges of the memory may be lent, until its registration is dropped.
    pub(super) fn share(&mut self, registration: &Arc<Registration>, socket: &UnixStream) {
        self.withdraw_dropped(socket);
        let Some(memory) = registration.shared_memory() else { return };
        self.memories.push(Lent {
            id: self.next_id,
            start: memory.start() as usize,
            len_bytes: memory.len_bytes(),
            registration: Arc::downgrade(registration),
            announced: false,
        });
        self.next_id = self.next_id.wrapping_add(1);
    }

    /// Whether a range lies in memory that may be lent.
    #[inline]
    pub(super) fn holds(&self, data: *const u8, len: usize) -> bool {
        self.memories.iter().any(|lent| lent.holds(data as usize, len))
    }

    /// The place of a range, announced to the peer; `None` where the range is not shared, the peer
    /// cannot be told now, or it keeps no more memories.
    pub(super) fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        socket: &UnixStream,
    ) -> Option<Place> {
        let data = data as usize;
        let lent = self.memories.iter_mut().find(|lent| lent.holds(data, len))?;
        if !lent.announced {
            if self.borrowed >= MOST_BORROWED {
                return None;
            }
            lent.announce(socket)?;
            self.borrowed += 1;
        }
        Some(Place { id: lent.id, offset: (data - lent.start) as u64 })
    }

    /// Tells the peer to unmap what has been dropped.
    fn withdraw_dropped(&mut self, socket: &UnixStream) {
        self.memories.retain(|lent| {
            let dropped = lent.registration.strong_count() == 0;
            if dropped && lent.announced {
                let mut message = vec![WITHDRAW];
                message.extend_from_slice(&lent.id.to_le_bytes());
                // Where it cannot be sent, the peer unmaps when the link ends.
                self.borrowed -= usize::from(send(socket, &message, None).is_some());
            }
            !dropped
        });
    }
}

impl Lent {
    /// An address is this memory's only while it is registered: afterwards the system may give it
    /// to another one.
    #[inline]
    fn holds(&self, data: usize, len: usize) -> bool {
        let end = self.start + self.len_bytes;
        self.start <= data && data + len <= end && self.registration.strong_count() > 0
    }

    fn announce(&mut self, socket: &UnixStream) -> Option<()> {
        let registration = self.registration.upgrade()?;
        let descriptor = registration.shared_memory()?.descriptor().as_raw_fd();
        let mut message = vec![LEND];
        message.extend_from_slice(&self.id.to_le_bytes());
        message.extend_from_slice(&(self.len_bytes as u64).to_le_bytes());
        send(socket, &message, Some(descriptor))?;
        self.announced = true;
        Some(())
    }
}

/// Wakes the peer. A full socket means that it has been woken already.
pub(super) fn wake(socket: &UnixStream) {
    let _ = send(socket, &[WAKE], None);
}

/// Sends a whole message or nothing.
pub(super) fn send(socket: &UnixStream, message: &[u8], descriptor: Option<RawFd>) -> Option<()> {
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    let sent = match descriptor {
        // Allocates nothing: a peer is woken in the midst of calls.
        None => socket::send(fd, message, flags),
        Some(descriptor) => {
            let rights = [ControlMessage::ScmRights(&[descriptor])];
            sendmsg::<()>(fd, &[IoSlice::new(message)], &rights, flags, None)
        }
    };
    (sent.ok()? == message.len()).then_some(())
}

/// What the peer lends to this side.
#[derive(Debug)]
pub(super) struct Borrower {
    memories: Vec<(u32, SharedMemory)>,
    /// What each side lends of GPUs' memory.
    pub(super) devices: Devices,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

/// Bytes taken in by one read.
const READ_BYTES: usize = 256;

/// What a look at the socket found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    /// The peer holds its end.
    Open,
    /// The peer's process or link has ended.
    Ended,
    /// The peer sent what no correct peer sends.
    Broken,
}

impl Borrower {
    /// With nothing lent to it.
    pub(super) fn new(is_one_process: bool) -> Borrower {
        Borrower {
            memories: Vec::new(),
            devices: Devices::new(is_one_process),
            // What is left of one read, and the next.
            bytes: Vec::with_capacity(2 * READ_BYTES),
            descriptors: VecDeque::new(),
        }
    }

    /// First byte of a place in a memory that is mapped, if the range lies inside.
    #[inline]
    pub(super) fn address(&self, place: Place, len: u64) -> Option<*mut u8> {
        let (_, memory) = self.memories.iter().find(|(id, _)| *id == place.id)?;
        let end = place.offset.checked_add(len)?;
        let inside = end <= memory.len_bytes() as u64;
        inside.then(|| memory.start().wrapping_add(place.offset as usize))
    }

    /// Takes in everything that is on the socket.
    pub(super) fn take_in(&mut self, socket: &UnixStream) -> Socket {
        loop {
            let mut bytes = [0; READ_BYTES];
            match descriptors::receive(socket, &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok((0, _)) => return Socket::Ended,
                Ok((received, descriptor)) => {
                    self.bytes.extend_from_slice(&bytes[..received]);
                    self.descriptors.extend(descriptor);
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return self.process(),
                Err(Errno::ENOBUFS) => return Socket::Broken,
                Err(_) => return Socket::Ended,
            }
            if self.process() == Socket::Broken {
                return Socket::Broken;
            }
        }
    }

    fn process(&mut self) -> Socket {
        let mut at = 0;
        while let Some(&kind) = self.bytes.get(at) {
            let Some(len) = message_bytes(kind) else { return Socket::Broken };
            let Some(message) = self.bytes.get(at + 1..at + len) else { break };
            let number = |range: std::ops::Range<usize>| {
                message[range].iter().rev().fold(0_u64, |n, &byte| n << 8 | u64::from(byte))
            };
            match kind {
                LEND => {
                    let (id, len_bytes) = (number(0..4) as u32, number(4..12) as usize);
                    let file = self.descriptors.pop_front();
                    let memory =
                        file.and_then(|file| SharedMemory::open_writable(file, len_bytes).ok());
                    match memory {
                        Some(memory) if self.memories.len() < MOST_BORROWED => {
                            self.memories.push((id, memory));
                        }
                        _ => return Socket::Broken,
                    }
                }
                WITHDRAW => {
                    let id = number(0..4) as u32;
                    self.memories.retain(|(other, _)| *other != id);
                }
                WAKE => {}
                _ if !self.devices.take(kind, message, &mut self.descriptors) => {
                    return Socket::Broken;
                }
                _ => {}
            }
            at += len;
        }
        self.bytes.drain(..at);
        if self.descriptors.len() > MOST_PENDING { Socket::Broken } else { Socket::Open }
    }
}

#[cfg(test)]
mod tests {
    use super::super::descriptors::tests::{open, pass};
    use super::*;

    #[test]
    fn lent_memory_is_read_in_place_until_it_is_dropped() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut lender, mut borrower) = (Lender::default(), Borrower::new(false));
        let memory = Arc::new(SharedMemory::create_writable(8192).unwrap());
        let registration = Registration::new(memory.clone());
        lender.share(&registration, &ours);
        let data = memory.start().wrapping_add(100);
        // SAFETY: the mapping has 8192 bytes and nobody else uses it.
        unsafe { data.write(42) };
        wake(&ours);
        let loan = lender.lend(data, 10, &ours).unwrap();
        assert_eq!(borrower.address(loan, 10), None);
        assert_eq!(borrower.take_in(&theirs), Socket::Open);
        let seen = borrower.address(loan, 10).unwrap();
        // SAFETY: the loan has 10 bytes and the memory is still there.
        assert_eq!(unsafe { seen.read() }, 42);
        assert_eq!(borrower.address(loan, 8093), None, "past the end");
        drop(registration);
        assert!(!lender.holds(data, 10));
        lender.withdraw_dropped(&ours);
        assert_eq!(borrower.take_in(&theirs), Socket::Open);
        assert_eq!(borrower.address(loan, 10), None);
        drop(ours);
        assert_eq!(borrower.take_in(&theirs), Socket::Ended);
    }

    #[test]
    fn garbage_on_the_socket_is_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &[77], None).unwrap();
        assert_eq!(Borrower::new(false).take_in(&theirs), Socket::Broken);
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &[LEND, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], None).unwrap();
        assert_eq!(Borrower::new(false).take_in(&theirs), Socket::Broken, "no descriptor");
    }

    #[test]
    fn a_peer_that_sends_descriptors_without_loans_is_broken_and_leaves_none_behind() {
        let (passed, _held) = UnixStream::pair().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut borrower = Borrower::new(false);
        pass(&ours, WAKE, &passed, 200);
        assert_eq!((borrower.take_in(&theirs), open(&passed)), (Socket::Broken, 1));

        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut borrower = Borrower::new(false);
        for _ in 0..MOST_PENDING {
            pass(&ours, WAKE, &passed, 1);
            assert_eq!(borrower.take_in(&theirs), Socket::Open);
        }
        // One read at a time: the rest stays on the socket.
        (0..20).for_each(|_| pass(&ours, WAKE, &passed, 1));
        assert_eq!(borrower.take_in(&theirs), Socket::Broken);
        assert_eq!(borrower.descriptors.len(), MOST_PENDING + 1);
        drop(borrower);
        assert_eq!(open(&passed), 1);
    }

    #[test]
    fn a_loan_that_two_reads_cut_is_whole_with_the_second() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut lender, mut borrower) = (Lender::default(), Borrower::new(false));
        let memories = [(); 2].map(|()| Arc::new(SharedMemory::create_writable(4096).unwrap()));
        let registrations = memories.clone().map(Registration::new);
        registrations.iter().for_each(|registration| lender.share(registration, &ours));
        // The first loan ends behind the first read; the second read brings its rest and the next.
        (0..READ_BYTES - 6).for_each(|_| wake(&ours));
        let loans = memories.map(|memory| lender.lend(memory.start(), 8, &ours).unwrap());
        assert_eq!(borrower.take_in(&theirs), Socket::Open);
        assert!(loans.iter().all(|loan| borrower.address(*loan, 8).is_some()));
    }

    #[test]
    fn nothing_is_lent_to_a_peer_that_keeps_no_more_until_it_has_unmapped_some() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut lender = Lender { borrowed: MOST_BORROWED - 1, ..Lender::default() };
        let memories = [(); 2].map(|()| Arc::new(SharedMemory::create_writable(4096).unwrap()));
        let [first, second] = memories.clone().map(Registration::new);
        lender.share(&first, &ours);
        lender.share(&second, &ours);
        let data = memories.map(|memory| memory.start().cast_const());
        assert!(lender.lend(data[0], 8, &ours).is_some());
        assert!(lender.lend(data[0], 8, &ours).is_some(), "it is there already");
        assert_eq!(lender.lend(data[1], 8, &ours), None);
        drop(first);
        lender.withdraw_dropped(&ours);
        assert!(lender.lend(data[1], 8, &ours).is_some());
    }
}
