//! Several calls on buffers of a GPU as one: as [`Group`](crate::Group) on the host, queued in a stream.

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use ringtree_transport::cuda::{Device, Event, Relaxed};

use super::calls::{OnStream, Queued};
use super::signal::Done;
use super::{DeviceBuffer, KeepAlive};
use crate::calls::{Asked, Lengths, Posted, packed, packed_call};
use crate::engine::{DevicePlace, Engine};
use crate::prepared::Call;
use crate::record::CallKind;
use crate::{Element, Error, Op};

/// Calls that are queued as one by [`DeviceGroup::run`]: see [`OnStream::group`].
#[must_use = "nothing is called before `run`"]
pub struct DeviceGroup<'a, 'b> {
    on: OnStream<'a>,
    messages: Vec<Posted<DevicePlace>>,
    collectives: Vec<Posted<DevicePlace>>,
    keep: Vec<KeepAlive>,
    _buffers: PhantomData<&'b mut ()>,
}

/// What the progress thread needs of a group.
pub(super) struct GroupJob {
    device: Device,
    /// When the stream has come to the group.
    ready: Event,
    messages: Vec<Posted<DevicePlace>>,
    collectives: Vec<Posted<DevicePlace>>,
    done: Done,
    _keep: Vec<KeepAlive>,
}

impl<'a> OnStream<'a> {
    /// Calls that are queued as one: as [`Communicator::group`](crate::Communicator::group), with the same bits.
    /// Messages are all under way at once, those to one peer, and those from one, in their order; then come the
    /// collectives, of which neighbours that reduce small buffers of one type by one operation are copied to one
    /// buffer and reduced together. Groups pass the progress thread, also after
    /// [`join_devices`](crate::Communicator::join_devices). Some ranks may make the group on the host.
    ///
    /// ```no_run
    /// # use ringtree::{Communicator, Error, Op, device::{DeviceMemory, Stream}};
    /// # fn sums(comm: &Communicator, stream: &Stream, weights: &mut DeviceMemory<f32>, bias: &mut DeviceMemory<f32>)
    /// # -> Result<(), Error> {
    /// let mut group = comm.on(stream).group();
    /// group.all_reduce(weights, Op::Sum)?;
    /// group.all_reduce(bias, Op::Sum)?;
    /// group.run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn group<'b>(&self) -> DeviceGroup<'a, 'b> {
        let (messages, collectives, keep) = (Vec::new(), Vec::new(), Vec::new());
        DeviceGroup { on: *self, messages, collectives, keep, _buffers: PhantomData }
    }
}

impl<'b> DeviceGroup<'_, 'b> {
    /// Adds an [`OnStream::send`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn send<T: Element>(
        &mut self,
        buffer: &'b impl DeviceBuffer<T>,
        to: u32,
    ) -> Result<(), Error> {
        let span = self.on.read(buffer)?;
        let call = self.on.communicator.send_call::<T>(span.count, to)?;
        let place = DevicePlace::Into(span.address, 0);
        self.messages.push(Posted { call, place });
        self.keep.extend(span.keep);
        Ok(())
    }

    /// Adds an [`OnStream::receive`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn receive<T: Element>(
        &mut self,
        buffer: &'b mut impl DeviceBuffer<T>,
        from: u32,
    ) -> Result<(), Error> {
        let span = self.on.written(buffer)?;
        let call = self.on.communicator.receive_call::<T>(span.count, from)?;
        self.messages.push(Posted { call, place: DevicePlace::In(span.address) });
        self.keep.extend(span.keep);
        Ok(())
    }

    /// Adds an [`OnStream::all_reduce`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_reduce<T: Element>(
        &mut self,
        buffer: &'b mut impl DeviceBuffer<T>,
        op: Op,
    ) -> Result<(), Error> {
        self.add_in_place(Asked::of(CallKind::AllReduce).by(op), buffer)
    }

    /// Adds an [`OnStream::all_reduce_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_reduce_into<T: Element>(
        &mut self,
        input: &'b impl DeviceBuffer<T>,
        output: &'b mut impl DeviceBuffer<T>,
        op: Op,
    ) -> Result<(), Error> {
        self.add_into(Asked::of(CallKind::AllReduce).by(op), input, output)
    }

    /// Adds an [`OnStream::broadcast`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn broadcast<T: Element>(
        &mut self,
        buffer: &'b mut impl DeviceBuffer<T>,
        root: u32,
    ) -> Result<(), Error> {
        self.add_in_place(Asked::of(CallKind::Broadcast).rooted(root), buffer)
    }

    /// Adds an [`OnStream::reduce`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn reduce<T: Element>(
        &mut self,
        buffer: &'b mut impl DeviceBuffer<T>,
        op: Op,
        root: u32,
    ) -> Result<(), Error> {
        self.add_in_place(Asked::of(CallKind::Reduce).by(op).rooted(root), buffer)
    }

    /// Adds an [`OnStream::all_gather_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_gather_into<T: Element>(
        &mut self,
        input: &'b impl DeviceBuffer<T>,
        output: &'b mut impl DeviceBuffer<T>,
    ) -> Result<(), Error> {
        self.add_into(Asked::of(CallKind::AllGather), input, output)
    }

    /// Adds an [`OnStream::reduce_scatter_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn reduce_scatter_into<T: Element>(
        &mut self,
        input: &'b impl DeviceBuffer<T>,
        output: &'b mut impl DeviceBuffer<T>,
        op: Op,
    ) -> Result<(), Error> {
        self.add_into(Asked::of(CallKind::ReduceScatter).by(op), input, output)
    }

    /// Adds an [`OnStream::all_to_all_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_to_all_into<T: Element>(
        &mut self,
        input: &'b impl DeviceBuffer<T>,
        output: &'b mut impl DeviceBuffer<T>,
    ) -> Result<(), Error> {
        self.add_into(Asked::of(CallKind::AllToAll), input, output)
    }

    /// Queues all calls.
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn run(self) -> Result<Queued, Error> {
        let DeviceGroup {
            on: OnStream { communicator, stream }, messages, collectives, keep, ..
        } = self;
        let Some(first) = collectives.first().or(messages.first()) else {
            return Ok(Queued::group(None));
        };
        self.on.check_stream()?;
        let (call, device) = (first.call, stream.device());
        let _relaxed = Relaxed::new(device.driver());
        let made = calls_made(&collectives);
        for call in messages.iter().map(|message| &message.call).chain(&made) {
            communicator.prepare_on_device(call, device)?;
        }
        let ready = Event::new(device)?;
        ready.record(stream)?;
        let signal = communicator.inner.signals().of(device)?;
        let pending = signal.queue(stream, |done| {
            if let Some(boards) = communicator.inner.boards() {
                // One is counted when the group is posted.
                made.iter().skip(1).for_each(|_| boards.count_call());
            }
            let device = device.clone();
            let job = GroupJob { device, ready, messages, collectives, done, _keep: keep };
            communicator.owner.progress.post(&communicator.inner, call, job, run)
        })?;
        Ok(Queued::group(Some(pending)))
    }

    fn add_in_place<T: Element>(
        &mut self,
        asked: Asked,
        buffer: &'b mut impl DeviceBuffer<T>,
    ) -> Result<(), Error> {
        let span = self.on.written(buffer)?;
        let call = self.on.communicator.call_in_place::<T>(asked, span.count)?;
        self.collectives.push(Posted { call, place: DevicePlace::In(span.address) });
        self.keep.extend(span.keep);
        Ok(())
    }

    fn add_into<T: Element>(
        &mut self,
        asked: Asked,
        input: &'b impl DeviceBuffer<T>,
        output: &'b mut impl DeviceBuffer<T>,
    ) -> Result<(), Error> {
        let communicator = self.on.communicator;
        let (input, output) = self.on.apart(input, output)?;
        let call = communicator.call_into::<T>(asked, input.count, output.count)?;
        let lengths = Lengths::Into { input: input.count, output: output.count };
        lengths.check(&call, communicator.rank(), communicator.ranks())?;
        let place = DevicePlace::Into(input.address, output.address);
        self.collectives.push(Posted { call, place });
        self.keep.extend(input.keep.into_iter().chain(output.keep));
        Ok(())
    }
}

/// The calls that collectives of a group are made as.
fn calls_made(collectives: &[Posted<DevicePlace>]) -> Vec<Call> {
    let (mut made, mut rest) = (Vec::new(), collectives);
    while let [first, ..] = rest {
        let (now, later) = rest.split_at(packed(rest));
        rest = later;
        made.push(if now.len() == 1 { first.call.without_factor() } else { packed_call(now) });
    }
    made
}

/// Carries a group out, in its turn. Should that panic, the device is left before the stream goes on.
fn run(engine: &mut Engine, _: &Call, job: &mut GroupJob) -> Result<(), Error> {
    let _relaxed = Relaxed::new(job.device.driver());
    let carry_out = || {
        let GroupJob { device, ready, messages, collectives, .. } = &*job;
        // SAFETY: the buffers are memory of the device with room for what the calls name, and stay: that is the promise
        // of `DeviceBuffer`. The group has borrowed them, those that are written mutably.
        unsafe { engine.run_group_on_device(messages, collectives, device, ready) }
    };
    match catch_unwind(AssertUnwindSafe(carry_out)) {
        Ok(result) => {
            job.done.say(&result);
            result
        }
        Err(panic) => {
            engine.abandon();
            resume_unwind(panic)
        }
    }
}

impl fmt::Debug for GroupJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupJob")
            .field("messages", &self.messages)
            .field("collectives", &self.collectives)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DeviceGroup<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceGroup")
            .field("messages", &self.messages.len())
            .field("collectives", &self.collectives.len())
            .finish_non_exhaustive()
    }
}
