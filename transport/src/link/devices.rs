//! What a link does with memory of GPUs: lends it to the peer's GPU or to an RDMA device, offers room in it, and passes
//! descriptors of it. See the contract in `link.rs`.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Channel, Link, LinkError, Slot, Tag};
use crate::cuda::{DeviceAddress, Probe};

impl Link {
    /// The operation in hand is one on memory of the GPU that the probe is of: what peers lend of their GPUs' memory may be
    /// shown as it is, and this side's memory may be lent once each side has found that it reaches the other's.
    pub fn use_device(&mut self, probe: &Arc<Probe>) {
        if let Link::Shm(link) = self {
            link.use_device(probe);
        }
    }

    /// Hands the peer, another process of this host, a descriptor of memory under a number, by which it asks for it
    /// with [`Link::passed_memory`]. Returns whether it was sent: only shared memory does it.
    pub fn pass_memory(&mut self, number: u64, descriptor: BorrowedFd<'_>) -> bool {
        matches!(self, Link::Shm(link) if link.pass_memory(number, descriptor))
    }

    /// The descriptor that the peer has handed over last, if it did so under this number.
    pub fn passed_memory(&mut self, number: u64) -> Option<OwnedFd> {
        match self {
            Link::Shm(link) => link.passed_memory(number),
            Link::Tcp(_) | Link::Rdma(_) | Link::Sim(_) => None,
        }
    }

    /// Whether [`Link::lend_device`] may lend this range of a GPU's memory on a channel: as of [`Link::lends`].
    #[inline]
    pub fn lends_device(&self, channel: Channel, address: DeviceAddress, len: usize) -> bool {
        match self {
            Link::Shm(link) => link.lends_device(channel, address, len),
            Link::Rdma(link) => link.lends_device(address, len),
            Link::Tcp(_) | Link::Sim(_) => false,
        }
    }

    /// Whether [`Link::lend_device`] needs nothing but a frame to lend a part of a message of `message_bytes` that is
    /// copied to this range of a GPU's memory: what is copied there waits for no other way.
    pub fn takes_device(
        &mut self,
        channel: Channel,
        address: DeviceAddress,
        len: usize,
        message_bytes: usize,
    ) -> bool {
        match self {
            Link::Shm(link) => link.takes_device(channel, address, len, message_bytes),
            Link::Tcp(_) | Link::Rdma(_) | Link::Sim(_) => false,
        }
    }

    /// As [`Link::lend`], for memory of a GPU, which the peer's GPU or an RDMA device of this host reads in place: all
    /// that was to be written there has been, as an event of the GPU has told.
    pub fn lend_device(
        &mut self,
        channel: Channel,
        tag: Tag,
        address: DeviceAddress,
        len: usize,
        last: bool,
    ) -> Result<bool, LinkError> {
        match self {
            Link::Shm(link) => link.lend_device(channel, tag, address, len, last),
            Link::Rdma(link) => link.lend_device(channel, tag, address, len, last).map(|()| true),
            Link::Tcp(_) | Link::Sim(_) => Ok(false),
        }
    }

    /// As [`Link::offer`], for room in memory of a GPU, which an RDMA device of this host writes. Before a kernel reads
    /// what has come there, it must be settled, on devices that need that ([`RemoteWrites`](crate::cuda::RemoteWrites)).
    ///
    /// # Safety
    /// As [`Link::offer`], with addresses of the GPU.
    pub unsafe fn offer_device(
        &mut self,
        channel: Channel,
        tag: Tag,
        ahead: u32,
        into: DeviceAddress,
        len: usize,
    ) -> Result<(), LinkError> {
        match self {
            // SAFETY: the caller's promise is passed on.
            Link::Rdma(link) => unsafe { link.offer(channel, tag, ahead, into as *mut u8, len) },
            Link::Shm(_) | Link::Tcp(_) | Link::Sim(_) => Ok(()),
        }
    }

    /// As [`Link::reserve`], for a device that writes the slot, so that what is known of this processor's stores does not
    /// count.
    pub fn reserve_for_device(&mut self, channel: Channel, wanted: usize) -> Option<Slot> {
        match self {
            Link::Shm(link) => link.reserve_for_device(channel, wanted),
            Link::Tcp(_) | Link::Rdma(_) | Link::Sim(_) => self.reserve(channel, wanted),
        }
    }
}
