//! How the engine carries out calls on memory of GPUs.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringtree_transport::Tag;
use ringtree_transport::cuda::{
    CudaError, Device, DeviceAddress, DeviceMemory, Event, PinnedMemory, PublicMemory, Stream,
};
use rustc_hash::FxHashMap;

use super::device_group::Pack;
use super::{Engine, Place, drive};
use crate::control::{Operation as Named, Stream as Sequence};
use crate::device::{Boards, Kernels, QueuedExchange, Recording};
use crate::driver::{OnBoards, OnDevice};
use crate::executor::{Exchange, Fault, Gear, Geometry, Staged};
use crate::prepared::{Blocks, Call, Part, Planned, plan, varied};
use crate::record::{CallKind, CallRecord};
use crate::reduce::Pass;
use crate::{Error, Factor, Op};

/// Operations that are kept prepared on a GPU, and their scratch memory there at most, unless one alone needs more: as on
/// the host.
const PREPARED_MOST: usize = 256;
const PREPARED_MOST_BYTES: usize = 64 << 20;

/// What the engine has on one GPU.
#[derive(Debug)]
pub(super) struct DeviceEngine {
    pub(super) device: Device,
    pub(super) prepared: FxHashMap<Call, Entry>,
    pub(super) gear: Gear,
    pub(super) kernels: Arc<Kernels>,
    /// For what comes before and after operations.
    pub(super) stream: Stream,
    /// Where small buffers wait on the host.
    host: Option<PinnedMemory>,
    /// Where small buffers of a group are reduced as one.
    pub(super) pack: Option<Pack>,
}

/// A call that is ready to run on a GPU.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: CallRecord,
    part: Part,
    /// Nothing where it is carried out on the host: an exchange of so few bytes that all ranks publish at once.
    pub(super) operation: Option<Staged>,
}

/// As [`Place`], with addresses of a GPU's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DevicePlace {
    /// One buffer, of all blocks if there are blocks.
    In(DeviceAddress),
    /// A buffer to read and one to write, which do not overlap.
    Into(DeviceAddress, DeviceAddress),
}

impl Engine {
    /// Runs a call on memory of a GPU to its end, from when the device has come to `ready`; `blocks` are those that differ
    /// in length, if they do.
    ///
    /// # Safety
    /// What the call reads must be readable by the device, and what it writes writable, until this returns.
    pub(crate) unsafe fn run_on_device(
        &mut self,
        call: &Call,
        blocks: Option<&Blocks>,
        device: &Device,
        ready: &Event,
        place: DevicePlace,
    ) -> Result<(), Error> {
        self.check()?;
        let at = self.on_device(device)?;
        self.await_device(ready)?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.run_ready(call, blocks, at, place) }
    }

    /// As [`Engine::run_on_device`], on one of the devices in use, which has come to the call.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn run_ready(
        &mut self,
        call: &Call,
        blocks: Option<&Blocks>,
        at: usize,
        place: DevicePlace,
    ) -> Result<(), Error> {
        if let Some(Op::PreMulSum(factor)) = call.op
            && factor != Factor::ONE
        {
            // SAFETY: the caller's promise is passed on.
            return unsafe { self.run_multiplied_on_device(call, blocks, at, factor, place) };
        }
        // SAFETY: likewise.
        unsafe { self.run_at(call, blocks, at, place) }
    }

    /// From now on small calls are one kernel.
    pub(crate) fn join(&mut self, boards: Arc<Boards>) {
        self.boards = Some(boards);
    }

    /// Hands memory's descriptor, if it has one, to all ranks of this host to which there are links.
    pub(crate) fn pass_memory(&mut self, memory: &PublicMemory) {
        let Some(descriptor) = memory.descriptor() else { return };
        for link in self.wiring.links.iter_mut().flatten() {
            // Who has not got it says that it does not reach the memory.
            if !link.pass_memory(memory.told().nonce(), descriptor) {
                tracing::debug!("rank {} was not handed a descriptor", link.peer());
            }
        }
    }

    /// The descriptor that a rank has handed over under a number.
    pub(crate) fn passed_memory(&mut self, peer: u32, number: u64) -> Option<OwnedFd> {
        self.wiring.links[peer as usize].as_mut()?.passed_memory(number)
    }

    /// Waits for the end of a call that one kernel of the program's stream carries out. Its deadline counts from when the
    /// stream has come to it.
    pub(crate) fn watch_exchange(&mut self, queued: &QueuedExchange) -> Result<(), Error> {
        self.check()?;
        let (stream, record) = (Sequence::Collective, queued.record);
        let sequence = self.next_sequence(stream);
        let named = Named { stream, sequence, record };
        let ticket = self.driver.recorder.begin(stream, sequence, &record);
        if !queued.is_done().map_err(|error| self.fail_on_device(error))? {
            self.await_device(&queued.marks.begin)?;
        }
        let mut driven = OnBoards { queued, named };
        let result = drive(&mut self.driver, &mut driven, &mut self.wiring);
        self.device_counters += queued.counters;
        if let Err(error) = result {
            return Err(self.fail(error));
        }
        self.driver.recorder.end(ticket);
        Ok(())
    }

    /// Waits until the device has come to an event, however long that takes.
    pub(super) fn await_device(&mut self, event: &Event) -> Result<(), Error> {
        self.driver.await_device(event).map_err(|error| match error {
            Error::Device(error) => self.fail_on_device((*error).clone()),
            error => self.fail(error),
        })
    }

    /// Makes a call's operation and what it takes ready, before a stream waits for it: the driver may wait for all streams
    /// while it allocates, or loads a kernel for the first time.
    ///
    /// # Errors
    /// [`Error::Argument`] if it cannot be carried out on a GPU; or what ends the communicator.
    pub(crate) fn prepare_call_on_device(
        &mut self,
        call: &Call,
        device: &Device,
    ) -> Result<(), Error> {
        self.check()?;
        let at = self.on_device(device)?;
        let call = &call.without_factor();
        if !self.devices[at].prepared.contains_key(call) {
            match self.add_on_device(call, at) {
                Ok(()) => {}
                Err(CudaError::Argument(what)) => return Err(Error::Argument(what)),
                Err(error) => return Err(self.fail_on_device(error)),
            }
        }
        if call.kind == CallKind::AllReduceGroup {
            let provided = self.provide_pack(at);
            provided.map_err(|error| self.fail_on_device(error))?;
        }
        let Some(operation) = &self.devices[at].prepared[call].operation else { return Ok(()) };
        let (peers, lanes) = (operation.peers().to_vec(), operation.lanes());
        // Of two ranks that exchange messages, one may come much later.
        if call.stream == Sequence::Collective {
            self.connect(&peers, None)?;
            self.pin(at, &peers);
            self.provide_landing(at, call)?;
        }
        // Messages of a group are under way at once, to as many peers.
        let groups = call.kind == CallKind::PointToPoint;
        let lanes = if groups { self.shape.local_ranks as usize - 1 } else { lanes };
        self.provide_pieces(at, &peers, lanes);
        Ok(())
    }

    /// Sees to it that there is memory of a GPU where RDMA devices write what a call folds.
    fn provide_landing(&mut self, at: usize, call: &Call) -> Result<(), Error> {
        let DeviceEngine { prepared, gear, .. } = &mut self.devices[at];
        let operation = prepared.get(call).and_then(|entry| entry.operation.as_ref());
        let Some(operation) = operation else { return Ok(()) };
        let len_bytes = operation.landing_bytes(gear, &self.wiring.links);
        match gear.provide_landing(len_bytes) {
            Ok(None) => Ok(()),
            Ok(Some(registration)) => {
                self.wiring.share(&registration);
                gear.check_landing(&self.wiring.links);
                Ok(())
            }
            Err(error) => Err(self.fail_on_device(error)),
        }
    }

    /// Has so many lanes copy to memory of the GPU what peers cannot read where it is, if some of these may reach that.
    fn provide_pieces(&mut self, at: usize, peers: &[u32], lanes: usize) {
        let may_share = |peer: &u32| match &self.wiring.links[*peer as usize] {
            Some(link) => link.shares_board(),
            None => self.shape.local_ranks > 1,
        };
        if !peers.iter().any(may_share) {
            return;
        }
        match self.devices[at].gear.provide_pieces(lanes) {
            Ok(new) => new.iter().for_each(|registration| self.wiring.share(registration)),
            Err(error) => tracing::info!("what GPUs cannot lend passes the host: {error}"),
        }
    }

    /// Locks the slots of links for a GPU.
    pub(super) fn pin(&mut self, at: usize, peers: &[u32]) {
        let gear = &mut self.devices[at].gear;
        for peer in peers {
            self.wiring.links[*peer as usize].iter().for_each(|link| gear.pins.pin(link));
        }
    }

    /// As [`Engine::run_ready`], of a call without a factor.
    unsafe fn run_at(
        &mut self,
        call: &Call,
        blocks: Option<&Blocks>,
        at: usize,
        place: DevicePlace,
    ) -> Result<(), Error> {
        if let Err(error) = self.prepare_on_device(call, blocks, at) {
            return Err(self.fail_on_device(error));
        }
        let entry = &self.devices[at].prepared[call];
        let (record, part) = (entry.record, entry.part);
        let Some(operation) = &entry.operation else {
            // SAFETY: the caller's promise is passed on.
            return unsafe { self.run_on_host(call, blocks, at, part, place) };
        };
        let (peers, digest) = (operation.peers().to_vec(), operation.digest());
        let sequence = self.next_sequence(call.stream);
        let named = Named { stream: call.stream, sequence, record };
        let ticket = self.driver.recorder.begin(call.stream, sequence, &record);
        self.connect(&peers, Some(named))?;
        self.pin(at, &peers);
        let (input, output) = match place {
            DevicePlace::In(buffer) => (buffer, buffer),
            DevicePlace::Into(input, output) => (
                input.wrapping_sub(part.before_input as u64),
                output.wrapping_sub(part.before_output as u64),
            ),
        };
        let DeviceEngine { prepared, gear, .. } = &mut self.devices[at];
        let operation = prepared.get_mut(call).and_then(|entry| entry.operation.as_mut());
        let operation = operation.expect("prepared above");
        gear.recording = self.recording.take();
        let links = &mut self.wiring.links;
        // SAFETY: the caller's promise is passed on; after an error, the operation settles below.
        let started =
            unsafe { operation.start(Tag { sequence, digest }, input, output, gear, links) };
        let result = match started {
            Ok(()) => {
                let mut driven = OnDevice { operation, gear, named };
                drive(&mut self.driver, &mut driven, &mut self.wiring)
            }
            Err(error) => Err(self.driver.report(Fault::Device(error), named)),
        };
        self.recording = gear.recording.take();
        let counters = operation.counters();
        self.device_counters += counters;
        if let Err(error) = result {
            return Err(self.fail(error));
        }
        if let Some(Err(error)) = self.recording.as_mut().map(Recording::end_call) {
            return Err(self.fail_on_device(error));
        }
        self.driver.recorder.end(ticket);
        Ok(())
    }

    /// Has the host carry out a call of few bytes.
    ///
    /// # Safety
    /// As [`Engine::run_on_device`].
    unsafe fn run_on_host(
        &mut self,
        call: &Call,
        blocks: Option<&Blocks>,
        at: usize,
        part: Part,
        place: DevicePlace,
    ) -> Result<(), Error> {
        let (input, output, is_one) = match place {
            DevicePlace::In(buffer) => (buffer, buffer, true),
            DevicePlace::Into(input, output) => (input, output, false),
        };
        // In place, what the call leaves as it is must be there, too.
        let whole = part.input.max(part.output);
        let (input_bytes, output_bytes) =
            if is_one { (whole, whole) } else { (part.input, part.output) };
        let output_at = if is_one { 0 } else { input_bytes.next_multiple_of(64) };
        let len_bytes = output_at + output_bytes;
        // SAFETY: the caller's promise is passed on.
        let taken = unsafe { self.devices[at].take(input, input_bytes, len_bytes) };
        let host = taken.map_err(|error| self.fail_on_device(error))?;
        let host_output = host.wrapping_add(output_at);
        let host_place =
            if is_one { Place::In(host) } else { Place::Into(host.cast_const(), host_output) };
        // SAFETY: the host's memory is as long as the call says, and nobody else uses it.
        unsafe {
            match blocks {
                None => self.run(call, host_place)?,
                Some(blocks) => self.run_varied(call, blocks, host_place)?,
            }
        }
        // SAFETY: the caller's promise is passed on.
        let given = unsafe { self.devices[at].give(output, host_output, output_bytes) };
        given.map_err(|error| self.fail_on_device(error))
    }

    /// Runs an [`Op::PreMulSum`]: as on the host, multiplies what this rank gives where the result will be, if that
    /// has room for it, or else into a copy, and sums.
    ///
    /// # Safety
    /// As [`Engine::run_on_device`].
    unsafe fn run_multiplied_on_device(
        &mut self,
        call: &Call,
        blocks: Option<&Blocks>,
        at: usize,
        factor: Factor,
        place: DevicePlace,
    ) -> Result<(), Error> {
        let part = self.part(call, blocks);
        let (input, own_output) = match place {
            DevicePlace::In(buffer) => (buffer, buffer + part.before_output as u64),
            DevicePlace::Into(input, output) => (input, output),
        };
        let on = &self.devices[at];
        let mut copy = None;
        let mut multiply = || -> Result<(DevicePlace, Event), CudaError> {
            let (multiplied, place) = if part.output == part.input {
                (own_output, DevicePlace::In(own_output))
            } else {
                let address = copy.insert(DeviceMemory::alloc(&on.device, part.input)?).address();
                (address, DevicePlace::Into(address, own_output))
            };
            let fold = on.kernels.fold(call.data_type, Pass::Scale { factor: factor.get() })?;
            // SAFETY: the caller vouches for the input and the output, which are the same or do not overlap; a copy
            // has room for the input.
            unsafe { fold.queue(&on.stream, &[input], &[multiplied], part.input)? };
            let multiplied = Event::new(&on.device)?;
            multiplied.record(&on.stream)?;
            Ok((place, multiplied))
        };
        let (place, multiplied) = match multiply() {
            Ok(done) => done,
            Err(error) => return Err(self.fail_on_device(error)),
        };
        self.await_device(&multiplied)?;
        // SAFETY: the caller's promise, with the multiplied elements for the input.
        unsafe { self.run_at(&call.without_factor(), blocks, at, place) }
    }

    /// Where the engine keeps what it has on a GPU.
    pub(super) fn on_device(&mut self, device: &Device) -> Result<usize, Error> {
        if let Some(at) = self.devices.iter().position(|on| on.device == *device) {
            return Ok(at);
        }
        let new = || -> Result<DeviceEngine, CudaError> {
            Ok(DeviceEngine {
                device: device.clone(),
                prepared: FxHashMap::default(),
                gear: Gear::new(device, self.shape.ranks)?,
                kernels: Kernels::of(device),
                stream: Stream::urgent(device)?,
                host: None,
                pack: None,
            })
        };
        match new() {
            Ok(on) => {
                self.devices.push(on);
                Ok(self.devices.len() - 1)
            }
            Err(error) => Err(self.fail_on_device(error)),
        }
    }

    /// Makes a call's operation, if it is new, and sets the lengths of its blocks, if they differ.
    pub(super) fn prepare_on_device(
        &mut self,
        call: &Call,
        blocks: Option<&Blocks>,
        at: usize,
    ) -> Result<(), CudaError> {
        if !self.devices[at].prepared.contains_key(call) {
            self.add_on_device(call, at)?;
        }
        let Some(blocks) = blocks else { return Ok(()) };
        let rank = self.wiring.rank;
        let entry = self.devices[at].prepared.get_mut(call).expect("added above");
        (entry.record, entry.part) = varied(call, entry.record, blocks, rank);
        if let Some(operation) = &mut entry.operation
            && operation.vary(&blocks.given, &blocks.got, entry.record.digest())?
        {
            let registration = operation.registration().clone();
            self.wiring.share(&registration);
        }
        Ok(())
    }

    /// Makes a call's operation.
    fn add_on_device(&mut self, call: &Call, at: usize) -> Result<(), CudaError> {
        let on = &mut self.devices[at];
        let planned = plan(call, self.wiring.rank, &self.wiring.places, &self.shape);
        let Planned { record, program, op, extent, schedule, channel, is_exchange, runs, part } =
            planned;
        // What runs several times in a row is a barrier of no bytes.
        let is_exchange = is_exchange && {
            let element_bytes = call.data_type.size_bytes();
            let (chunks, scratch) = (program.chunks, &program.scratch);
            let geometry =
                Geometry::new(extent, element_bytes, chunks, scratch, schedule.round_bytes);
            Exchange::at_once(&program, &geometry).is_some()
        };
        let operation = if is_exchange || runs > 1 {
            None
        } else {
            let (data_type, digest) = (call.data_type, record.digest());
            Some(Staged::new(
                program,
                data_type,
                op,
                extent,
                schedule,
                channel,
                digest,
                &on.kernels,
            )?)
        };
        let scratch_bytes = |operation: &Staged| operation.scratch_bytes();
        let of_entry = |entry: &Entry| entry.operation.as_ref().map_or(0, scratch_bytes);
        let all_bytes = on.prepared.values().map(of_entry).sum::<usize>()
            + operation.as_ref().map_or(0, scratch_bytes);
        if on.prepared.len() >= PREPARED_MOST || all_bytes > PREPARED_MOST_BYTES {
            on.prepared.clear();
        }
        let registration = operation.as_ref().map(|operation| operation.registration().clone());
        on.prepared.insert(*call, Entry { record, part, operation });
        if let Some(registration) = registration {
            self.wiring.share(&registration);
        }
        Ok(())
    }

    /// Gives up what there is on GPUs, because of an error: when this returns, they use neither the buffers of calls
    /// nor the memory of links.
    pub(super) fn leave_devices(&mut self, error: &Error) {
        if let Some(boards) = &self.boards {
            boards.end();
        }
        for on in &self.devices {
            on.gear.settle();
            if let Err(error) = on.stream.synchronize() {
                tracing::debug!("after an error: {error}");
            }
        }
        // Before anything is given back, which may wait for all streams.
        self.signals.release(error);
        self.devices.clear();
    }

    /// Ends the communicator, for all ranks, because this rank's GPU failed.
    pub(super) fn fail_on_device(&mut self, error: CudaError) -> Error {
        self.driver.control.abort(&format!("its GPU failed: {error}"));
        self.fail(error.into())
    }
}

impl DeviceEngine {
    /// Pinned memory of the host, kept for the next time.
    fn host_memory(&mut self, len_bytes: usize) -> Result<*mut u8, CudaError> {
        if self.host.as_ref().is_none_or(|host| host.len_bytes() < len_bytes) {
            let len_bytes = len_bytes.next_power_of_two().max(4096);
            self.host = Some(PinnedMemory::alloc(&self.device, len_bytes)?);
        }
        Ok(self.host.as_ref().expect("allocated above").start())
    }

    /// Copies what a call reads to the host. Returns where there is room for `len_bytes`.
    ///
    /// # Safety
    /// The device must be able to read `input_bytes` there.
    unsafe fn take(
        &mut self,
        input: DeviceAddress,
        input_bytes: usize,
        len_bytes: usize,
    ) -> Result<*mut u8, CudaError> {
        let host = self.host_memory(len_bytes)?;
        if input_bytes > 0 {
            // SAFETY: the caller's promise; the host's memory has room, and nobody else uses it.
            unsafe { self.stream.copy_to_host(host, input, input_bytes)? };
        }
        self.stream.synchronize()?;
        Ok(host)
    }

    /// Copies what a call has written from the host.
    ///
    /// # Safety
    /// The device must be able to write `len_bytes` there.
    unsafe fn give(
        &self,
        output: DeviceAddress,
        host: *const u8,
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        if len_bytes > 0 {
            // SAFETY: the caller's promise.
            unsafe { self.stream.copy_to_device(output, host, len_bytes)? };
        }
        self.stream.synchronize()
    }
}
