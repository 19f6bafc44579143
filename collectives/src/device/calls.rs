//! Calls on buffers of a GPU, which are queued in a stream.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError};

use ringtree_transport::cuda::{CudaError, Device, Driver, Event, Relaxed, Stream, Way, device_of};

use super::group::GroupJob;
use super::signal::Done;
use super::{
    Boards, DeviceBuffer, DeviceCounters, DeviceMemory, DeviceSpan, KeepAlive, QueuedExchange,
};
use crate::calls::{Asked, Counts, Lengths};
use crate::engine::{DevicePlace, Engine};
use crate::prepared::Call;
use crate::progress::Pending;
use crate::record::CallKind;
use crate::{Communicator, Element, Error, Op};

impl Communicator {
    /// How many GPUs the driver shows to this process.
    ///
    /// # Errors
    /// [`Error::Device`]: there is no driver.
    pub fn devices(&self) -> Result<u32, Error> {
        Ok(Driver::open(self.settings().cuda_library.as_deref())?.devices())
    }

    /// The GPU with a number, among those that the driver shows to this process.
    ///
    /// # Errors
    /// [`Error::Device`]: there is no driver, or no such GPU.
    pub fn device(&self, ordinal: u32) -> Result<Device, Error> {
        Ok(Device::open(ordinal, self.settings().cuda_library.as_deref())?)
    }

    /// Memory for `count` elements on a GPU, which GPUs of this host that reach it read in place; what it holds at
    /// first is undefined. Waits for the calls that were posted before.
    ///
    /// # Errors
    /// [`Error::Device`]: the GPU has no room, or what the driver says, after which the communicator goes on; or the error
    /// that has ended it, if one has.
    pub fn alloc_device<T: Element>(
        &self,
        device: &Device,
        count: usize,
    ) -> Result<DeviceMemory<T>, Error> {
        let memory = DeviceMemory::alloc(device, count)?;
        self.engine().share(memory.registration())?;
        Ok(memory)
    }

    /// What the calls on GPUs so far have had these do. Waits for the calls that were posted before.
    pub fn device_counters(&self) -> DeviceCounters {
        self.engine().device_counters()
    }

    /// The communicator's calls on buffers of a stream's GPU, in the order of the stream: a call begins when the GPU
    /// has done what was queued there before, and what is queued later finds its result.
    pub fn on<'a>(&'a self, stream: &'a Stream) -> OnStream<'a> {
        OnStream { communicator: self, stream }
    }
}

/// The calls of a communicator on buffers of a GPU: see [`Communicator::on`].
///
/// A call queues and returns. Buffers that the library has allocated may be dropped then; others stay as long as what
/// is queued on them. After an error from the call itself nothing was queued, and it can be made again. Nothing waits for
/// the device as a whole. Calls of one communicator are made in the same order on
/// all ranks, whichever stream they are queued in, and run one after the other.
#[derive(Clone, Copy, Debug)]
pub struct OnStream<'a> {
    pub(super) communicator: &'a Communicator,
    pub(super) stream: &'a Stream,
}

/// A call that was queued. It may be dropped: what goes wrong then shows at the next call, and the stream goes on.
#[derive(Debug)]
pub struct Queued(Watched);

/// What is waited for.
#[derive(Debug)]
enum Watched {
    /// What the progress thread carries out.
    Job(Pending<Job>),
    /// The end of a kernel.
    Exchange(Pending<Exchange>),
    /// A group, which the progress thread carries out.
    Group(Pending<GroupJob>),
    /// A group of no calls.
    Nothing,
}

impl Queued {
    /// Waits until the call is done.
    ///
    /// # Errors
    /// See [`Error`]. What the buffers hold is neither input nor result then.
    pub fn wait(self) -> Result<(), Error> {
        match self.0 {
            Watched::Job(pending) => pending.wait().map(|_| ()),
            Watched::Exchange(pending) => pending.wait().map(|_| ()),
            Watched::Group(pending) => pending.wait().map(|_| ()),
            Watched::Nothing => Ok(()),
        }
    }

    pub(super) fn group(pending: Option<Pending<GroupJob>>) -> Queued {
        Queued(pending.map_or(Watched::Nothing, Watched::Group))
    }
}

/// What the progress thread needs of a call.
#[derive(Debug)]
struct Job {
    device: Device,
    /// When the stream has come to the call.
    ready: Event,
    place: DevicePlace,
    varied: Option<Varied>,
    done: Done,
    _keep: Keep,
}

/// What the progress thread needs of a call that a kernel of the program's stream carries out.
#[derive(Debug)]
struct Exchange {
    queued: QueuedExchange,
    _keep: Keep,
}

/// Blocks that differ in length, and how long the buffers are.
#[derive(Debug)]
pub(super) struct Varied {
    pub(super) counts: [Vec<usize>; 2],
    pub(super) lengths: Lengths,
}

/// What keeps the buffers.
struct Keep {
    _buffers: [Option<KeepAlive>; 2],
}

impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keep")
    }
}

impl OnStream<'_> {
    /// As [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// See [`Error`]; what goes wrong later, [`Queued::wait`] tells.
    pub fn all_reduce<T: Element>(
        &self,
        buffer: &mut impl DeviceBuffer<T>,
        op: Op,
    ) -> Result<Queued, Error> {
        self.in_place(Asked::of(CallKind::AllReduce).by(op), buffer)
    }

    /// As [`Communicator::all_reduce_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_reduce_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        op: Op,
    ) -> Result<Queued, Error> {
        self.into(Asked::of(CallKind::AllReduce).by(op), input, output)
    }

    /// As [`Communicator::broadcast`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn broadcast<T: Element>(
        &self,
        buffer: &mut impl DeviceBuffer<T>,
        root: u32,
    ) -> Result<Queued, Error> {
        self.in_place(Asked::of(CallKind::Broadcast).rooted(root), buffer)
    }

    /// As [`Communicator::broadcast_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn broadcast_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        root: u32,
    ) -> Result<Queued, Error> {
        self.into(Asked::of(CallKind::Broadcast).rooted(root), input, output)
    }

    /// As [`Communicator::reduce`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn reduce<T: Element>(
        &self,
        buffer: &mut impl DeviceBuffer<T>,
        op: Op,
        root: u32,
    ) -> Result<Queued, Error> {
        self.in_place(Asked::of(CallKind::Reduce).by(op).rooted(root), buffer)
    }

    /// As [`Communicator::reduce_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn reduce_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        op: Op,
        root: u32,
    ) -> Result<Queued, Error> {
        self.into(Asked::of(CallKind::Reduce).by(op).rooted(root), input, output)
    }

    /// As [`Communicator::all_gather`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_gather<T: Element>(
        &self,
        buffer: &mut impl DeviceBuffer<T>,
    ) -> Result<Queued, Error> {
        self.in_place(Asked::of(CallKind::AllGather), buffer)
    }

    /// As [`Communicator::all_gather_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_gather_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
    ) -> Result<Queued, Error> {
        self.into(Asked::of(CallKind::AllGather), input, output)
    }

    /// As [`Communicator::reduce_scatter`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn reduce_scatter<T: Element>(
        &self,
        buffer: &mut impl DeviceBuffer<T>,
        op: Op,
    ) -> Result<Queued, Error> {
        self.in_place(Asked::of(CallKind::ReduceScatter).by(op), buffer)
    }

    /// As [`Communicator::reduce_scatter_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn reduce_scatter_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        op: Op,
    ) -> Result<Queued, Error> {
        self.into(Asked::of(CallKind::ReduceScatter).by(op), input, output)
    }

    /// As [`Communicator::gather_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn gather_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        root: u32,
    ) -> Result<Queued, Error> {
        self.into(Asked::of(CallKind::Gather).rooted(root), input, output)
    }

    /// As [`Communicator::scatter_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn scatter_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        root: u32,
    ) -> Result<Queued, Error> {
        self.into(Asked::of(CallKind::Scatter).rooted(root), input, output)
    }

    /// As [`Communicator::all_to_all_into`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_to_all_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
    ) -> Result<Queued, Error> {
        self.into(Asked::of(CallKind::AllToAll), input, output)
    }

    /// As [`Communicator::send`]. It ends when the buffer has left this rank's GPU.
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn send<T: Element>(
        &self,
        buffer: &impl DeviceBuffer<T>,
        to: u32,
    ) -> Result<Queued, Error> {
        let span = self.read(buffer)?;
        let call = self.communicator.send_call::<T>(span.count, to)?;
        let place = DevicePlace::Into(span.address, 0);
        self.queue(call, place, None, [span.keep, None])
    }

    /// As [`Communicator::receive`].
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn receive<T: Element>(
        &self,
        buffer: &mut impl DeviceBuffer<T>,
        from: u32,
    ) -> Result<Queued, Error> {
        let span = self.written(buffer)?;
        let call = self.communicator.receive_call::<T>(span.count, from)?;
        self.queue(call, DevicePlace::In(span.address), None, [span.keep, None])
    }

    fn in_place<T: Element>(
        &self,
        asked: Asked,
        buffer: &mut impl DeviceBuffer<T>,
    ) -> Result<Queued, Error> {
        let DeviceSpan { address, count, keep, .. } = self.written(buffer)?;
        let call = self.communicator.call_in_place::<T>(asked, count)?;
        self.queue(call, DevicePlace::In(address), None, [keep, None])
    }

    fn into<T: Element>(
        &self,
        asked: Asked,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
    ) -> Result<Queued, Error> {
        let (input, output) = self.apart(input, output)?;
        let call = self.communicator.call_into::<T>(asked, input.count, output.count)?;
        let (rank, ranks) = (self.communicator.rank(), self.communicator.ranks());
        let lengths = Lengths::Into { input: input.count, output: output.count };
        lengths.check(&call, rank, ranks)?;
        self.queue(
            call,
            DevicePlace::Into(input.address, output.address),
            None,
            [input.keep, output.keep],
        )
    }

    /// Where the elements are that a call reads, and those that it writes.
    pub(super) fn apart<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &impl DeviceBuffer<T>,
    ) -> Result<(DeviceSpan, DeviceSpan), Error> {
        let (input, output) = (self.read(input)?, self.written(output)?);
        if input.overlaps(&output, size_of::<T>()) {
            let what = "the input and the output have elements in common: make the call in place, or give it others";
            return Err(Error::Argument(what.to_owned()));
        }
        Ok((input, output))
    }

    /// Where the elements of a buffer are that a call reads.
    pub(super) fn read<T: Element>(
        &self,
        buffer: &impl DeviceBuffer<T>,
    ) -> Result<DeviceSpan, Error> {
        let span = buffer.span();
        if span.only_on.is_some_and(|stream| stream != self.stream.raw()) {
            let what = "the buffer was taken on another stream than the call is queued in: take it on that one";
            return Err(Error::Argument(what.to_owned()));
        }
        let device = self.stream.device();
        if span.count > 0 {
            if !span.address.is_multiple_of(size_of::<T>() as u64) {
                let (address, name) = (span.address, T::DATA_TYPE.name());
                let what = format!(
                    "{address:#x} is no address of {name}, which kernels read by multiples of its size"
                );
                return Err(Error::Argument(what));
            }
            let theirs = match device_of(device, span.address) {
                Err(CudaError::Argument(what)) => return Err(Error::Argument(what)),
                theirs => theirs?,
            };
            let mine = device.ordinal();
            if theirs != mine {
                return Err(Error::Argument(format!(
                    "the buffer is memory of GPU {theirs}, and the stream one of GPU {mine}: queue the call in a stream \
                     of the buffer's"
                )));
            }
        }
        Ok(span)
    }

    /// Where the elements of a buffer are that a call writes.
    pub(super) fn written<T: Element>(
        &self,
        buffer: &impl DeviceBuffer<T>,
    ) -> Result<DeviceSpan, Error> {
        let span = self.read(buffer)?;
        if span.is_read_only {
            let what = "the call would write to a buffer that was lent to be read: lend it mutably";
            return Err(Error::Argument(what.to_owned()));
        }
        Ok(span)
    }

    /// Refuses a stream that calls cannot be queued in.
    pub(super) fn check_stream(&self) -> Result<(), Error> {
        if self.stream.is_capturing()? {
            let what = "a stream that is being captured into a graph takes no collectives: make them outside";
            return Err(Error::Argument(what.to_owned()));
        }
        Ok(())
    }

    pub(super) fn queue(
        &self,
        call: Call,
        place: DevicePlace,
        varied: Option<Varied>,
        buffers: [Option<KeepAlive>; 2],
    ) -> Result<Queued, Error> {
        let (stream, device) = (self.stream, self.stream.device());
        self.check_stream()?;
        let _relaxed = Relaxed::new(device.driver());
        if let Some(boards) = self.communicator.inner.boards().filter(|boards| boards.take(&call)) {
            return self.exchange(boards, call, place, buffers);
        }
        self.communicator.prepare_on_device(&call, device)?;
        let ready = Event::new(device)?;
        ready.record(stream)?;
        let signal = self.communicator.inner.signals().of(device)?;
        let pending = signal.queue(stream, |done| {
            let keep = Keep { _buffers: buffers };
            let job = Job { device: device.clone(), ready, place, varied, done, _keep: keep };
            self.communicator.owner.progress.post(&self.communicator.inner, call, job, run)
        })?;
        Ok(Queued(Watched::Job(pending)))
    }

    /// Queues a call that is one kernel.
    fn exchange(
        &self,
        boards: &Arc<Boards>,
        call: Call,
        place: DevicePlace,
        buffers: [Option<KeepAlive>; 2],
    ) -> Result<Queued, Error> {
        let (stream, device) = (self.stream, self.stream.device());
        if device != boards.device() {
            return Err(Error::Argument(format!(
                "this rank has joined with GPU {}, and the stream is one of GPU {}: queue small calls in a stream of that \
                 which joined",
                boards.device().ordinal(),
                device.ordinal()
            )));
        }
        let Communicator { inner, owner, .. } = self.communicator;
        let signal = inner.signals().of(device)?;
        let queue = || {
            let post = |queued| {
                let exchange = Exchange { queued, _keep: Keep { _buffers: buffers } };
                owner.progress.post(inner, call, exchange, watch)
            };
            // SAFETY: the buffers are memory of the device with room for what the call names, and stay: that is the
            // promise of `DeviceBuffer`.
            unsafe { boards.queue(&call, stream, place, post) }
        };
        Ok(Queued(Watched::Exchange(signal.follow(stream, queue)?)))
    }
}

impl Communicator {
    /// Makes a call ready, the first time that it is made: see [`Engine::prepare_call_on_device`].
    pub(super) fn prepare_on_device(&self, call: &Call, device: &Device) -> Result<(), Error> {
        // What peers read changes its way once they have been found to refuse the first one.
        let key = (device.ordinal(), Way::best(device), call.without_factor());
        let known = || self.inner.known().lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(&key) {
            return Ok(());
        }
        self.engine().prepare_call_on_device(call, device)?;
        let mut known = known();
        if known.len() >= KNOWN_MOST {
            known.clear();
        }
        known.insert(key);
        Ok(())
    }
}

/// Calls that are known to be ready: as many as are kept prepared.
const KNOWN_MOST: usize = 256;

/// Watches a call that is one kernel, in its turn.
fn watch(engine: &mut Engine, _: &Call, exchange: &mut Exchange) -> Result<(), Error> {
    let _relaxed = Relaxed::new(exchange.queued.boards.device().driver());
    engine.watch_exchange(&exchange.queued)
}

/// Carries a call out, in its turn. Should that panic, the device is left before the stream goes on.
fn run(engine: &mut Engine, call: &Call, job: &mut Job) -> Result<(), Error> {
    let _relaxed = Relaxed::new(job.device.driver());
    match catch_unwind(AssertUnwindSafe(|| carry_out(engine, call, job))) {
        Ok(result) => result,
        Err(panic) => {
            engine.abandon();
            resume_unwind(panic)
        }
    }
}

fn carry_out(engine: &mut Engine, call: &Call, job: &mut Job) -> Result<(), Error> {
    let (rank, ranks) = (engine.rank(), engine.ranks());
    let blocks = job.varied.as_ref().map(|Varied { counts: [given, got], lengths }| {
        Counts::of_each(given, got).blocks(call.kind, call.root, *lengths, rank, ranks)
    });
    let result = blocks.transpose().and_then(|blocks| {
        // SAFETY: the buffers are memory of the device with room for what the call names, and stay: that is the promise
        // of `DeviceBuffer`.
        unsafe { engine.run_on_device(call, blocks.as_ref(), &job.device, &job.ready, job.place) }
    });
    job.done.say(&result);
    result
}
