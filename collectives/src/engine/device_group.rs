//! How the engine carries out groups of calls on memory of GPUs: messages that are all under way at once, then
//! collectives, of which small ones are reduced as one.

use ringtree_transport::cuda::{CudaError, Device, DeviceAddress, DeviceMemory, Event};
use ringtree_transport::memory::Registration;
use ringtree_transport::{Link, Tag};
use rustc_hash::FxHashMap;

use super::device::{DeviceEngine, DevicePlace, Entry};
use super::{Engine, drive};
use crate::calls::{PACK_BYTES, Posted, packed, packed_call};
use crate::control::{Operation as Named, Stream};
use crate::device::DeviceCounters;
use crate::executor::{Fault, Gear, Staged, Status};
use crate::prepared::Call;
use crate::reduce::Pass;
use crate::together::{Sending, Together};
use crate::{Error, Op};

/// Memory of a GPU that small buffers are packed into, and leave for peers to read it.
#[derive(Debug)]
pub(super) struct Pack {
    address: DeviceAddress,
    /// Keeps the memory.
    pub(super) registration: std::sync::Arc<Registration>,
}

impl Pack {
    pub(super) fn new(device: &Device) -> Result<Pack, CudaError> {
        let memory = std::sync::Arc::new(DeviceMemory::alloc_shared(device, PACK_BYTES)?);
        Ok(Pack { address: memory.address(), registration: Registration::of_device(memory) })
    }
}

impl Engine {
    /// Runs a group of calls on memory of a GPU to its end, from when the device has come to `ready`. All are prepared.
    ///
    /// # Safety
    /// As of [`Engine::run_on_device`], of each; and no message writes what another reads or writes.
    pub(crate) unsafe fn run_group_on_device(
        &mut self,
        messages: &[Posted<DevicePlace>],
        collectives: &[Posted<DevicePlace>],
        device: &Device,
        ready: &Event,
    ) -> Result<(), Error> {
        self.check()?;
        let at = self.on_device(device)?;
        self.await_device(ready)?;
        if !messages.is_empty() {
            // SAFETY: the caller's promise is passed on.
            unsafe { self.run_messages_on_device(messages, at)? };
        }
        let mut rest = collectives;
        while let [first, ..] = rest {
            let (now, later) = rest.split_at(packed(rest));
            rest = later;
            // SAFETY: likewise.
            unsafe {
                match now {
                    [_] => self.run_ready(&first.call, None, at, first.place)?,
                    _ => self.run_packed_on_device(now, at)?,
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// As of [`Engine::run_group_on_device`].
    unsafe fn run_messages_on_device(
        &mut self,
        messages: &[Posted<DevicePlace>],
        at: usize,
    ) -> Result<(), Error> {
        let mut operations = self.take_operations(messages, at)?;
        let of_entry = |entry: &Entry| entry.operation.as_ref().map(|o| o.peers().to_vec());
        let mut peers: Vec<u32> = operations.values().filter_map(of_entry).flatten().collect();
        peers.sort_unstable();
        peers.dedup();
        let named: Vec<Named> = messages
            .iter()
            .map(|Posted { call, .. }| Named {
                stream: call.stream,
                sequence: self.next_sequence(call.stream),
                record: operations[call].record,
            })
            .collect();
        self.connect(&peers, named.first().copied())?;
        self.pin(at, &peers);
        let DeviceEngine { prepared, gear, .. } = &mut self.devices[at];
        let counters = DeviceCounters::default();
        let mut running = Running { operations: &mut operations, gear, counters };
        let mut together = Together::new(self.driver.recorder.clone(), &mut running);
        for (first_lane, stream) in streams(messages).into_iter().enumerate() {
            for (Posted { call, place }, named) in messages.iter().zip(&named) {
                if call.stream == stream {
                    together.add(*named, OnDevice { call: *call, place: *place, first_lane });
                }
            }
        }
        let result = drive(&mut self.driver, &mut together, &mut self.wiring);
        drop(together);
        self.device_counters += running.counters;
        gear.first_lane = 0;
        if let Err(error) = result {
            // It waits for the device, which may use what the operations hold.
            return Err(self.fail(error));
        }
        prepared.extend(operations);
        Ok(())
    }

    /// The operations of messages, out of those that are prepared, which other calls may drop.
    fn take_operations(
        &mut self,
        messages: &[Posted<DevicePlace>],
        at: usize,
    ) -> Result<FxHashMap<Call, Entry>, Error> {
        let mut operations = FxHashMap::default();
        for Posted { call, .. } in messages {
            if operations.contains_key(call) {
                continue;
            }
            let prepared = self.prepare_on_device(call, None, at);
            prepared.map_err(|error| self.fail_on_device(error))?;
            operations.extend(self.devices[at].prepared.remove_entry(call));
        }
        Ok(operations)
    }

    /// Reduces several buffers as one, by way of a buffer that they are copied to.
    ///
    /// # Safety
    /// As of [`Engine::run_on_device`], of each.
    unsafe fn run_packed_on_device(
        &mut self,
        calls: &[Posted<DevicePlace>],
        at: usize,
    ) -> Result<(), Error> {
        // SAFETY: the caller vouches for the inputs.
        let packed = unsafe { self.pack(calls, at) };
        let (pack, filled) = packed.map_err(|error| self.fail_on_device(error))?;
        self.await_device(&filled)?;
        // SAFETY: the pack has room for all of them, and nothing else uses it.
        unsafe { self.run_ready(&packed_call(calls), None, at, DevicePlace::In(pack))? };
        // SAFETY: the caller vouches for the outputs.
        let unpacked = unsafe { self.devices[at].unpack(calls, pack) };
        let emptied = unpacked.map_err(|error| self.fail_on_device(error))?;
        self.await_device(&emptied)
    }

    /// Queues the copies of what calls read into a pack, multiplied where they have factors. Returns the pack, and what
    /// marks their end.
    ///
    /// # Safety
    /// What the calls read must be readable by the device.
    unsafe fn pack(
        &mut self,
        calls: &[Posted<DevicePlace>],
        at: usize,
    ) -> Result<(DeviceAddress, Event), CudaError> {
        let pack = self.provide_pack(at)?;
        let on = &self.devices[at];
        let mut place = pack;
        for posted in calls {
            let (DevicePlace::In(input) | DevicePlace::Into(input, _)) = posted.place;
            // SAFETY: the caller's promise; the pack has room for all, and nothing else uses it.
            unsafe {
                match posted.call.op {
                    Some(Op::PreMulSum(factor)) => {
                        let pass = Pass::Scale { factor: factor.get() };
                        let fold = on.kernels.fold(posted.call.data_type, pass)?;
                        fold.queue(&on.stream, &[input], &[place], posted.bytes())?;
                    }
                    _ if posted.bytes() > 0 => on.stream.copy(place, input, posted.bytes())?,
                    _ => {}
                }
            }
            place += posted.bytes() as u64;
        }
        let filled = Event::new(&on.device)?;
        filled.record(&on.stream)?;
        Ok((pack, filled))
    }

    /// The memory for packs, allocated if it is new.
    pub(super) fn provide_pack(&mut self, at: usize) -> Result<DeviceAddress, CudaError> {
        if let Some(pack) = &self.devices[at].pack {
            return Ok(pack.address);
        }
        let pack = Pack::new(&self.devices[at].device)?;
        self.wiring.share(&pack.registration);
        Ok(self.devices[at].pack.insert(pack).address)
    }
}

impl DeviceEngine {
    /// Queues the copies of a pack's sums to where calls write them. Returns what marks their end.
    ///
    /// # Safety
    /// What the calls write must be writable by the device.
    unsafe fn unpack(
        &self,
        calls: &[Posted<DevicePlace>],
        pack: DeviceAddress,
    ) -> Result<Event, CudaError> {
        let mut place = pack;
        for posted in calls {
            let (DevicePlace::In(output) | DevicePlace::Into(_, output)) = posted.place;
            if posted.bytes() > 0 {
                // SAFETY: the caller's promise; the pack holds what goes there.
                unsafe { self.stream.copy(output, place, posted.bytes())? };
            }
            place += posted.bytes() as u64;
        }
        let emptied = Event::new(&self.device)?;
        emptied.record(&self.stream)?;
        Ok(emptied)
    }
}

/// The streams of messages, those that send first: their lanes have pieces before others do.
fn streams(messages: &[Posted<DevicePlace>]) -> Vec<Stream> {
    let mut streams: Vec<Stream> = Vec::new();
    for sends in [true, false] {
        for stream in messages.iter().map(|message| message.call.stream) {
            if matches!(stream, Stream::SendTo(_)) == sends && !streams.contains(&stream) {
                streams.push(stream);
            }
        }
    }
    streams
}

/// What messages of a group run with.
struct Running<'a> {
    operations: &'a mut FxHashMap<Call, Entry>,
    gear: &'a mut Gear,
    /// What those that are done have had the device do.
    counters: DeviceCounters,
}

/// A message of a group. Those of one call are never under way at once, and share its operation.
struct OnDevice {
    call: Call,
    place: DevicePlace,
    /// The gear of its lanes, which are its stream's alone.
    first_lane: usize,
}

impl OnDevice {
    fn of<'a>(&self, running: &'a mut Running<'_>) -> (&'a mut Staged, &'a mut Gear) {
        running.gear.first_lane = self.first_lane;
        let entry = running.operations.get_mut(&self.call).expect("prepared before");
        let operation = entry.operation.as_mut().expect("a message is no exchange");
        (operation, running.gear)
    }

    fn operation<'a>(&self, running: &'a Running<'_>) -> &'a Staged {
        running.operations[&self.call].operation.as_ref().expect("a message is no exchange")
    }
}

impl Sending<Running<'_>> for OnDevice {
    fn start(
        &mut self,
        sequence: u32,
        links: &mut [Option<Link>],
        running: &mut Running<'_>,
    ) -> Result<(), Fault> {
        let (input, output) = match self.place {
            DevicePlace::In(buffer) => (buffer, buffer),
            DevicePlace::Into(input, output) => (input, output),
        };
        let (operation, gear) = self.of(running);
        let tag = Tag { sequence, digest: operation.digest() };
        // SAFETY: whoever drives this vouches for the memory; after an error, the engine settles.
        unsafe { operation.start(tag, input, output, gear, links) }.map_err(Fault::Device)
    }

    fn poll(
        &mut self,
        links: &mut [Option<Link>],
        running: &mut Running<'_>,
    ) -> Result<Status, Fault> {
        let (operation, gear) = self.of(running);
        let status = operation.poll(links, gear)?;
        if status == Status::Done {
            let counters = operation.counters();
            running.counters += counters;
        }
        Ok(status)
    }

    fn waiting_for(&self, running: &Running<'_>) -> Vec<u32> {
        self.operation(running).waiting_for()
    }

    fn waits_for_device(&self, running: &Running<'_>) -> bool {
        self.operation(running).waits_for_device()
    }
}
