//! Memory of GPUs that one side lends to the other, read in place by the kernels of the other's GPU.
//!
//! Each side tells the other of its GPU, once its program has used one, with some exported memory of each way that
//! there is: by handle and by descriptor. The other looks whether its own GPU finds there what it should, and says by
//! which way it does. From then on memory of the library on that GPU which goes by such a way is lent as shared
//! memory is: named on the socket before the first frame that lends some of it. A rank whose buffers are on the host
//! for once copies what is lent to it, and so does one whose buffers are on another GPU than the first that it used:
//! a link serves one of each side. Memory must not be freed while another process has it mapped: what the peer has
//! been told of is kept until that has unmapped it, which the next calls bring about, or the link ends.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Weak};

use super::lending::send;
use crate::cuda::{
    self, CudaError, DeviceAddress, DeviceMemory, Exported, PeerMemory, Probe, Stream, Told, Way,
    Ways,
};
use crate::memory::Registration;

/// First bytes of the messages on the socket that are about GPUs.
pub(super) const GPU: u8 = 4;
pub(super) const READS: u8 = 5;
pub(super) const LEND: u8 = 6;
pub(super) const WITHDRAW: u8 = 7;
pub(super) const WITHDRAWN: u8 = 8;
pub(super) const PASS: u8 = 9;

/// Length of a message by its first byte.
pub(super) const fn message_bytes(kind: u8) -> Option<usize> {
    match kind {
        GPU => Some(1 + MOST_WAYS * Told::BYTES),
        READS => Some(2),
        LEND => Some(1 + 4 + Exported::BYTES),
        WITHDRAW | WITHDRAWN => Some(5),
        PASS => Some(9),
        _ => None,
    }
}

/// Ways by which memory gets to another process: [`GPU`] has room for all, and zeros in place of those that there are
/// not.
const MOST_WAYS: usize = 2;

/// Memories of one peer that are kept mapped at most, as of [`super::lending`].
const MOST_BORROWED: usize = 4096;

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// The two sides are threads of one process.
    is_one_process: bool,
    /// This side's GPU, of which the peer has been told.
    own: Option<Arc<Probe>>,
    /// What the peer has told of its.
    theirs: Option<Vec<(Told, Option<OwnedFd>)>>,
    /// How this side's GPU reads the peer's memory, once that was tried.
    reads: Option<Ways>,
    /// The peer has been told so.
    has_said: bool,
    /// How the peer's GPU reads this side's.
    is_read: Ways,
    lent: Vec<Lent>,
    next_id: u32,
    borrowed: Vec<(u32, PeerMemory)>,
    /// What is being unmapped, because the peer wants it back.
    returned: Vec<(u32, Receiver<()>)>,
    /// A descriptor that the peer has passed on, and its number.
    passed: Option<(u64, OwnedFd)>,
    /// By which what is lent is copied, for buffers of the host.
    stream: Option<Stream>,
    /// Why a message of the peer could not be taken in, where that is this side's matter.
    pub(super) failure: Option<String>,
}

#[derive(Debug)]
struct Lent {
    id: u32,
    registration: Weak<Registration>,
    start: DeviceAddress,
    len_bytes: u64,
    /// Its GPU.
    ordinal: u32,
    way: Way,
    /// What the peer has been told of.
    kept: Option<Arc<DeviceMemory>>,
    /// The peer has been told to unmap it.
    is_withdrawn: bool,
}

/// A range of a memory of a GPU, as it is named to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DevicePlace {
    pub(super) id: u32,
    pub(super) offset: u64,
}

impl Devices {
    pub(super) fn new(is_one_process: bool) -> Devices {
        Devices { is_one_process, ..Devices::default() }
    }

    /// Tells the peer of this side's GPU, once, and looks whether it reads the peer's memory.
    pub(super) fn use_device(&mut self, probe: &Arc<Probe>, socket: &UnixStream) {
        if self.own.is_none() {
            // Where it cannot be sent now, it is the next time.
            if self.tell(probe, socket).is_some() {
                self.own = Some(probe.clone());
            }
        }
        self.look(socket);
        self.withdraw_dropped(socket);
        self.returned.retain(|(id, unmapped)| {
            let is_unmapped = unmapped.try_recv() != Err(TryRecvError::Empty);
            let message = [&[WITHDRAWN][..], &id.to_le_bytes()].concat();
            !(is_unmapped && send(socket, &message, None).is_some())
        });
    }

    /// Whether this is the GPU that it serves, or may come to serve.
    pub(super) fn serves(&self, probe: &Probe) -> bool {
        self.own.as_ref().is_none_or(|own| own.device() == probe.device())
    }

    /// Whether there is nothing to tell the peer, nor to be told by it.
    pub(super) fn is_settled(&self) -> bool {
        let knows = self.reads == Some(Ways::NONE) || self.has_said && self.is_read.any();
        let wants = |lent: &Lent| lent.kept.is_some() && lent.is_dropped();
        knows && self.returned.is_empty() && !self.lent.iter().any(wants)
    }

    fn tell(&self, probe: &Probe, socket: &UnixStream) -> Option<()> {
        let all = if self.is_one_process {
            probe.told().into_iter().map(|told| (told, None)).collect()
        } else {
            probe.exported()
        };
        let mut message = vec![GPU];
        all.iter().for_each(|(told, _)| message.extend_from_slice(&told.to_bytes()));
        message.resize(1 + MOST_WAYS * Told::BYTES, 0);
        // There is one way at most that has a descriptor.
        let descriptor = all.iter().find_map(|(_, descriptor)| descriptor.as_ref());
        send(socket, &message, descriptor.map(AsRawFd::as_raw_fd))
    }

    fn look(&mut self, socket: &UnixStream) {
        let (Some(own), Some(theirs)) = (&self.own, &mut self.theirs) else { return };
        if self.reads.is_none() {
            let is_one_process = self.is_one_process;
            let ways = theirs.drain(..).filter_map(|(told, descriptor)| {
                own.reads(&told, descriptor, is_one_process).then_some(told.way())
            });
            self.reads = Some(Ways::of(&ways.collect::<Vec<Way>>()));
        }
        if let Some(ways) = self.reads.filter(|ways| ways.any() && !self.has_said) {
            self.has_said = send(socket, &[READS, ways.to_byte()], None).is_some();
        }
    }

    /// From now on ranges of the memory may be lent, until its registration is dropped.
    pub(super) fn share(&mut self, registration: &Arc<Registration>, socket: &UnixStream) {
        self.withdraw_dropped(socket);
        let Some(memory) = registration.device_memory() else { return };
        self.lent.push(Lent {
            id: self.next_id,
            registration: Arc::downgrade(registration),
            start: memory.address(),
            len_bytes: memory.len_bytes() as u64,
            ordinal: memory.device().ordinal(),
            way: memory.way(),
            kept: None,
            is_withdrawn: false,
        });
        self.next_id = self.next_id.wrapping_add(1);
    }

    /// Whether a range lies in memory that may be lent to this peer.
    pub(super) fn lends(&self, address: DeviceAddress, len_bytes: usize) -> bool {
        let has_room = || self.announced() < MOST_BORROWED;
        let may = |lent: &Lent| {
            self.may_lend(lent, address, len_bytes) && (lent.kept.is_some() || has_room())
        };
        self.is_read.any() && self.lent.iter().any(may)
    }

    /// As [`Devices::lends`], and the peer has been told of the memory, so that nothing but room for a frame is
    /// missing.
    pub(super) fn announces(
        &mut self,
        address: DeviceAddress,
        len_bytes: usize,
        socket: &UnixStream,
    ) -> bool {
        self.lends(address, len_bytes) && self.place(address, len_bytes, socket).is_some()
    }

    /// Memories that the peer has been told of, and keeps mapped.
    fn announced(&self) -> usize {
        self.lent.iter().filter(|lent| lent.kept.is_some()).count()
    }

    /// Whether a range is of a memory, and that of the GPU that the peer's reads, by a way by which it does.
    fn may_lend(&self, lent: &Lent, address: DeviceAddress, len_bytes: usize) -> bool {
        let own = self.own.as_ref().map(|own| own.device().ordinal());
        let is_read = own == Some(lent.ordinal) && self.is_read.has(lent.way);
        is_read && lent.holds(address, len_bytes)
    }

    /// The place of a range, announced to the peer; `None` where it cannot be lent now.
    pub(super) fn place(
        &mut self,
        address: DeviceAddress,
        len_bytes: usize,
        socket: &UnixStream,
    ) -> Option<DevicePlace> {
        let announced = self.announced();
        let at = self.lent.iter().position(|lent| self.may_lend(lent, address, len_bytes))?;
        let lent = &mut self.lent[at];
        if lent.kept.is_none() {
            if announced >= MOST_BORROWED {
                return None;
            }
            lent.announce(self.is_one_process, socket)?;
        }
        Some(DevicePlace { id: lent.id, offset: address - lent.start })
    }

    /// Has the peer unmap what has been dropped.
    fn withdraw_dropped(&mut self, socket: &UnixStream) {
        self.lent.retain_mut(|lent| {
            if !lent.is_dropped() {
                return true;
            }
            if lent.kept.is_some() && !lent.is_withdrawn {
                let message = [&[WITHDRAW][..], &lent.id.to_le_bytes()].concat();
                lent.is_withdrawn = send(socket, &message, None).is_some();
            }
            lent.kept.is_some()
        });
    }

    /// Where this side's GPU finds a range that the peer lends, if it has been told of it.
    pub(super) fn address(&self, place: DevicePlace, len_bytes: u64) -> Option<DeviceAddress> {
        let (_, memory) = self.borrowed.iter().find(|(id, _)| *id == place.id)?;
        memory.address_of(place.offset, len_bytes)
    }

    /// Copies what the peer lends to the host.
    ///
    /// # Safety
    /// The address must be of a loan in hand, and `into` be writable, for `len_bytes`.
    pub(super) unsafe fn read(
        &mut self,
        address: DeviceAddress,
        into: *mut u8,
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        let Some(own) = &self.own else {
            return Err(CudaError::Argument(
                "it lends memory of its GPU to a rank without one".into(),
            ));
        };
        if self.stream.is_none() {
            self.stream = Some(Stream::new(own.device())?);
        }
        let stream = self.stream.as_ref().expect("made above");
        // SAFETY: the caller's promise; both stay until the stream is through.
        unsafe { stream.copy_to_host(into, address, len_bytes)? };
        stream.synchronize()
    }

    /// Hands the peer a descriptor under a number. Returns whether it was sent.
    pub(super) fn pass(
        &self,
        number: u64,
        descriptor: BorrowedFd<'_>,
        socket: &UnixStream,
    ) -> bool {
        let message = [&[PASS][..], &number.to_le_bytes()].concat();
        send(socket, &message, Some(descriptor.as_raw_fd())).is_some()
    }

    /// The descriptor that the peer has passed on last, if it has that number.
    pub(super) fn take_passed(&mut self, number: u64) -> Option<OwnedFd> {
        self.passed.take_if(|(of, _)| *of == number).map(|(_, descriptor)| descriptor)
    }

    /// Takes in a message of the peer, without its first byte, and the descriptor that came with it, if it needs one.
    /// Returns whether it makes sense.
    pub(super) fn take(
        &mut self,
        kind: u8,
        message: &[u8],
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> bool {
        let is_one_process = self.is_one_process;
        if kind == PASS {
            let number = message.try_into().map(u64::from_le_bytes).ok();
            self.passed = number.zip(descriptors.pop_front());
            return self.passed.is_some();
        }
        let mut descriptor = |way: Way| match (is_one_process, way) {
            (false, Way::Descriptor) => descriptors.pop_front().map(Some),
            _ => Some(None),
        };
        match kind {
            GPU => {
                let (told, _) = message.as_chunks();
                let told = told.iter().filter_map(Told::from_bytes);
                let theirs = told.map(|told| Some((told, descriptor(told.way())?)));
                let Some(theirs) = theirs.collect() else { return false };
                // It tells of one.
                self.theirs.replace(theirs).is_none()
            }
            READS => {
                let (Some(own), Some(ways)) = (&self.own, Ways::from_byte(message[0])) else {
                    return false;
                };
                if !ways.has(Way::Handle) && ways.has(Way::Descriptor) {
                    cuda::share_by_descriptor(own.device());
                }
                self.is_read = ways;
                true
            }
            LEND => {
                let Some((id, exported)) = message.split_first_chunk() else { return false };
                let exported = exported.try_into().ok().and_then(Exported::from_bytes);
                let Some(exported) = exported else { return false };
                let Some(descriptor) = descriptor(exported.way()) else { return false };
                let reads = self.reads.is_some_and(|ways| ways.has(exported.way()));
                let may = reads && self.borrowed.len() < MOST_BORROWED;
                let Some(own) = self.own.as_ref().filter(|_| may) else { return false };
                match PeerMemory::open(own.device(), &exported, descriptor, is_one_process) {
                    Ok(memory) => self.borrowed.push((u32::from_le_bytes(*id), memory)),
                    Err(error) => {
                        self.failure =
                            Some(format!("memory that its GPU lends cannot be used: {error}"));
                        return false;
                    }
                }
                true
            }
            _ => {
                let Ok(id) = message.try_into().map(u32::from_le_bytes) else { return false };
                if kind == WITHDRAWN {
                    self.lent.retain(|lent| lent.id != id || !lent.is_withdrawn);
                } else if let Some(at) = self.borrowed.iter().position(|(other, _)| *other == id) {
                    self.returned.push((id, self.borrowed.swap_remove(at).1.close()));
                }
                true
            }
        }
    }
}

impl Lent {
    /// An address is this memory's only while it is registered.
    fn holds(&self, address: DeviceAddress, len_bytes: usize) -> bool {
        let end = self.start + self.len_bytes;
        let is_within = self.start <= address && address + len_bytes as u64 <= end;
        is_within && !self.is_dropped()
    }

    fn is_dropped(&self) -> bool {
        self.registration.strong_count() == 0
    }

    fn announce(&mut self, is_one_process: bool, socket: &UnixStream) -> Option<()> {
        let registration = self.registration.upgrade()?;
        let memory = registration.device_memory()?;
        let (exported, descriptor) = if is_one_process {
            (memory.told(), None)
        } else {
            let failed = |error: &CudaError| tracing::debug!("memory is not lent: {error}");
            memory.export().inspect_err(failed).ok()?
        };
        let message = [&[LEND][..], &self.id.to_le_bytes(), &exported.to_bytes()].concat();
        send(socket, &message, descriptor.as_ref().map(AsRawFd::as_raw_fd))?;
        self.kept = Some(memory.clone());
        Some(())
    }
}
