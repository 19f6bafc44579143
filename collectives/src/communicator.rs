//! The communicator: what a program calls.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use ringtree_plan::Collective;
use ringtree_transport::TransportKind;
use ringtree_transport::wait::restore_slices;

use crate::bootstrap;
use crate::control::{Control, Stream};
use crate::engine::{self, Engine};
use crate::hosting::{Hosted, Hosting};
use crate::memory::{Memory, Registered};
use crate::prepared::Call;
use crate::progress::{Pending, Progress};
use crate::record::CallKind;
use crate::selection::{self, Explanation, Shape};
use crate::settings::Settings;
use crate::using::{Prepared, PreparedInto, Using};
use crate::{Algorithm, DataType, Element, Error, Op};

/// No root.
pub(crate) const NO_ROOT: u32 = u32::MAX;

/// The ranks of a job, as one of them sees it.
///
/// A process that a launcher started joins with [`Communicator::from_env`]; a program that knows
/// its rank and where the ranks meet, with [`Communicator::with`]; threads of one process that are
/// ranks get theirs from [`Communicator::in_process`]:
///
/// ```
/// use ringtree::{Communicator, Op};
///
/// # fn main() -> Result<(), ringtree::Error> {
/// let ranks = Communicator::in_process(3)?;
/// std::thread::scope(|scope| {
///     for comm in ranks {
///         scope.spawn(move || {
///             let mut losses = [comm.rank() as f32, 1.0];
///             comm.all_reduce(&mut losses, Op::Sum)?;
///             assert_eq!(losses, [3.0, 3.0]);
///             Ok::<(), ringtree::Error>(())
///         });
///     }
/// });
/// # Ok(())
/// # }
/// ```
///
/// **Agreement.** All ranks make the same collective calls in the same order. Where they do not,
/// every rank gets an error that names both sides; no byte of a wrong call reaches anyone's
/// memory.
///
/// **Threads.** A communicator may be used from several threads, and a process may have many.
/// Calls run one after the other in the order in which they were posted: a blocking call waits for
/// the asynchronous ones posted before it. Which of two threads posts first is the program's
/// business, and must be the same on every rank. A thread that waits where ranks outnumber
/// processors asks the system to run for shorter times at once, and takes that back when it drops
/// a communicator; threads and processes that it starts meanwhile inherit it.
///
/// **Failure.** No call waits for ever. After an error other than [`Error::Argument`], or
/// [`Error::Memory`] from [`Communicator::alloc`], the communicator is over: it can only be
/// dropped.
///
/// **Dropping** completes the asynchronous calls that were posted, for which the peers must make
/// them too, and says goodbye. A peer that still waits for this rank gets an error that says so.
pub struct Communicator {
    pub(crate) inner: Arc<Inner>,
    pub(crate) progress: Progress,
}

/// What the calling threads and the progress thread share.
pub(crate) struct Inner {
    rank: u32,
    shape: Shape,
    engine: Mutex<Engine>,
    control: Arc<Control>,
    /// The rendezvous, where the ranks are threads of one process.
    hosted: Option<Arc<Hosted>>,
    /// Dropped after the engine and the control connection.
    _hosting: Option<Hosting>,
}

impl Inner {
    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    pub(crate) fn engine(&self) -> &Mutex<Engine> {
        &self.engine
    }
}

impl Communicator {
    /// Joins the communicator that the environment describes (`RINGTREE_*`, else torchrun's
    /// variables), and waits until all ranks have come.
    ///
    /// # Errors
    /// Wrong or missing settings, a rank that does not come in time, a wrong secret.
    pub fn from_env() -> Result<Communicator, Error> {
        Communicator::with(Settings::from_env()?)
    }

    /// Joins the communicator that `settings` describe, and waits until all ranks have come. The
    /// same settings again make another communicator of the same ranks; all ranks must make theirs
    /// in the same order.
    ///
    /// # Errors
    /// As [`Communicator::from_env`].
    pub fn with(settings: Settings) -> Result<Communicator, Error> {
        settings.check()?;
        let joined = bootstrap::join(&settings)?;
        Ok(Communicator {
            inner: Arc::new(Inner {
                rank: settings.rank,
                shape: joined.shape,
                engine: Mutex::new(joined.engine),
                control: joined.control,
                hosted: None,
                _hosting: joined.hosting,
            }),
            progress: Progress::default(),
        })
    }

    /// `ranks` communicators of this process, for threads that are ranks: the `i`-th is rank `i`.
    ///
    /// # Errors
    /// Descriptors or memory have run out.
    pub fn in_process(ranks: u32) -> Result<Vec<Communicator>, Error> {
        Communicator::in_process_with(ranks, |_| {})
    }

    /// As [`Communicator::in_process`], with each rank's settings changed by `adjust` first.
    ///
    /// # Errors
    /// As [`Communicator::in_process`].
    pub fn in_process_with(
        ranks: u32,
        adjust: impl Fn(&mut Settings),
    ) -> Result<Vec<Communicator>, Error> {
        let (hosted, settings) = bootstrap::in_process(ranks)?;
        let settings = settings.into_iter().map(|mut settings| {
            adjust(&mut settings);
            settings
        });
        let threads: Vec<_> = settings
            .map(|settings| {
                let join = move || Communicator::with(settings);
                std::thread::Builder::new().name("ringtree-join".to_owned()).spawn(join)
            })
            .collect();
        let mut communicators = Vec::with_capacity(ranks as usize);
        for thread in threads {
            let joined = thread?.join().map_err(|_| Error::Panicked)?;
            let mut communicator = joined?;
            if let Some(inner) = Arc::get_mut(&mut communicator.inner) {
                inner.hosted = Some(hosted.clone());
            }
            communicators.push(communicator);
        }
        Ok(communicators)
    }

    /// This rank, below [`Communicator::ranks`].
    pub fn rank(&self) -> u32 {
        self.inner.rank
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> u32 {
        self.inner.shape.ranks
    }

    /// What all ranks know of the machine, by which algorithms are chosen.
    pub fn shape(&self) -> Shape {
        self.inner.shape
    }

    /// Makes all links now, so that no later call has to. All ranks call it: a link needs both of
    /// its ends.
    ///
    /// # Errors
    /// A rank cannot be reached.
    pub fn warm_up(&self) -> Result<(), Error> {
        self.engine().warm_up()
    }

    /// The transport of the link to `peer`; `None` while there is no link: they are made by
    /// [`Communicator::warm_up`] or when first needed. Waits for the calls that were posted before.
    pub fn transport_to(&self, peer: u32) -> Option<TransportKind> {
        self.engine().link(peer).map(ringtree_transport::Link::kind)
    }

    /// The same calls by `algorithm` instead of the one that would be chosen; `None` for that one. All
    /// ranks must name the same one; one that does not serve a collective is refused by the call.
    pub fn using(&self, algorithm: impl Into<Option<Algorithm>>) -> Using<'_> {
        Using::new(self, algorithm.into())
    }

    /// Reduces `buffer` over all ranks, element by element, in place. Count, type and operation are
    /// the same on all ranks; any count will do, 0 too. Every rank gets the same bits.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce<T: Element>(&self, buffer: &mut [T], op: Op) -> Result<(), Error> {
        self.chosen().all_reduce(buffer, op)
    }

    /// As [`Communicator::all_reduce`], from `input` into `output` of the same length.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        op: Op,
    ) -> Result<(), Error> {
        self.chosen().all_reduce_into(input, output, op)
    }

    /// Copies the buffer of rank `root` into everyone's. Count, type and root are the same on all
    /// ranks. Returns when this rank is done, which does not mean that all are.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: u32) -> Result<(), Error> {
        self.chosen().broadcast(buffer, root)
    }

    /// As [`Communicator::broadcast`], from the root's `input` into everyone's `output` of the same
    /// length. The other ranks' `input` is not read and may be empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        self.chosen().broadcast_into(input, output, root)
    }

    /// Reduces `buffer` over all ranks, element by element, into that of rank `root`. The other ranks'
    /// buffers stay as they are.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce<T: Element>(&self, buffer: &mut [T], op: Op, root: u32) -> Result<(), Error> {
        self.chosen().reduce(buffer, op, root)
    }

    /// As [`Communicator::reduce`], from everyone's `input` into the root's `output` of the same
    /// length. The other ranks' `output` is not written and may be empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        op: Op,
        root: u32,
    ) -> Result<(), Error> {
        self.chosen().reduce_into(input, output, op, root)
    }

    /// Completes everyone's `buffer`, which has a block of the same length for each rank: of each,
    /// the block of its own rank is what it gives, and the others are what it gets.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather<T: Element>(&self, buffer: &mut [T]) -> Result<(), Error> {
        self.chosen().all_gather(buffer)
    }

    /// Puts all ranks' `input`, which is of one length, into everyone's `output`, in the order of the
    /// ranks.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<(), Error> {
        self.chosen().all_gather_into(input, output)
    }

    /// Reduces `buffer`, which has a block of the same length for each rank, over all ranks: the block
    /// of its own rank is what each gets, and the others stay as they are.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter<T: Element>(&self, buffer: &mut [T], op: Op) -> Result<(), Error> {
        self.chosen().reduce_scatter(buffer, op)
    }

    /// Reduces everyone's `input`, which has a block for each rank, and puts the block of each rank into
    /// its `output`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        op: Op,
    ) -> Result<(), Error> {
        self.chosen().reduce_scatter_into(input, output, op)
    }

    /// Puts all ranks' `input`, which is of one length, into the `output` of rank `root`, in the order
    /// of the ranks. The other ranks' `output` is not written and may be empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn gather_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        self.chosen().gather_into(input, output, root)
    }

    /// Deals out the `input` of rank `root`, which has a block for each rank, into everyone's `output`.
    /// The other ranks' `input` is not read and may be empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn scatter_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        self.chosen().scatter_into(input, output, root)
    }

    /// Gives block `i` of `input` to rank `i`, whose block `rank` of `output` it becomes. Both have a
    /// block of the same length for each rank.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_to_all_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<(), Error> {
        self.chosen().all_to_all_into(input, output)
    }

    /// Returns when every rank has called it: none leaves before the last has come.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn barrier(&self) -> Result<(), Error> {
        self.chosen().barrier()
    }

    /// Sends `buffer` to `peer`, which calls [`Communicator::receive`] with the same count and
    /// type. Returns when the buffer may be written again.
    ///
    /// A message of more than 256 KiB may wait for its receiver. Two ranks that both send
    /// before they receive would then wait for each other, until the deadline: let one of them
    /// receive first.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send<T: Element>(&self, buffer: &[T], peer: u32) -> Result<(), Error> {
        let call = self.send_call::<T>(buffer.len(), peer)?;
        // SAFETY: the buffer is borrowed until the call has returned; a send writes nothing.
        unsafe { self.engine().run(&call, buffer.as_ptr().cast(), std::ptr::null_mut()) }
    }

    /// Receives into `buffer` what `peer` sends. Messages of one peer come in the order in which it
    /// sent them.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn receive<T: Element>(&self, buffer: &mut [T], peer: u32) -> Result<(), Error> {
        let call = self.receive_call::<T>(buffer.len(), peer)?;
        // SAFETY: the buffer is borrowed mutably until the call has returned.
        unsafe { self.engine().run(&call, std::ptr::null(), buffer.as_mut_ptr().cast()) }
    }

    /// Posts an in-place all-reduce of a buffer that the call owns until [`Pending::wait`] gives
    /// it back: a `Vec<T>`, a [`Memory<T>`], or a type of the program's. A thread of the
    /// communicator carries it out meanwhile.
    ///
    /// ```no_run
    /// # fn step(comm: &ringtree::Communicator) -> Result<(), ringtree::Error> {
    /// let pending = comm.all_reduce_async(vec![1.0_f32; 1_000_000], ringtree::Op::Sum)?;
    /// // ... compute something else ...
    /// let sums = pending.wait()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`]; those of the operation itself come from [`Pending::wait`].
    pub fn all_reduce_async<T, B>(&self, buffer: B, op: Op) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        self.chosen().all_reduce_async(buffer, op)
    }

    /// As [`Communicator::all_reduce_async`], from `input` into `output` of the same length.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        op: Op,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.chosen().all_reduce_into_async(input, output, op)
    }

    /// Posts a broadcast of a buffer that the call owns until [`Pending::wait`] gives it back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast_async<T, B>(&self, buffer: B, root: u32) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        self.chosen().broadcast_async(buffer, root)
    }

    /// A broadcast that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_broadcast<T, B>(&self, buffer: B, root: u32) -> Result<Prepared<'_, T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        self.chosen().prepare_broadcast(buffer, root)
    }

    /// An in-place all-reduce that can be repeated with the least work a call: planned, with its
    /// links made. All ranks prepare, or all make the plain call: their runs meet either way.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_reduce<T, B>(&self, buffer: B, op: Op) -> Result<Prepared<'_, T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        self.chosen().prepare_all_reduce(buffer, op)
    }

    /// As [`Communicator::prepare_all_reduce`], from `input` into `output` of the same length.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_reduce_into<T, A, B>(
        &self,
        input: A,
        output: B,
        op: Op,
    ) -> Result<PreparedInto<'_, T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.chosen().prepare_all_reduce_into(input, output, op)
    }

    /// Zeroed memory for `count` elements that peers of the same host can use in place, which
    /// spares a copy of large buffers. It changes no result, and each rank may use it or not.
    /// Peers map it when it is first used; this call only waits for those that were posted before.
    ///
    /// # Errors
    /// Memory or descriptors have run out, after which the communicator goes on; or the error that
    /// has ended it, if one has.
    pub fn alloc<T: Element>(&self, count: usize) -> Result<Memory<T>, Error> {
        let memory = Memory::new(count)?;
        self.engine().share(memory.registration())?;
        Ok(memory)
    }

    /// Lets this communicator's peers use memory in place that another communicator allocated,
    /// until the guard is dropped. Peers are not needed for that; this call only waits for those
    /// that were posted before.
    ///
    /// # Errors
    /// The error that has ended the communicator, if one has.
    pub fn register<'m, T: Element>(&self, memory: &'m Memory<T>) -> Result<Registered<'m>, Error> {
        let (registration, guard) = memory.register_again();
        self.engine().share(&registration)?;
        Ok(guard)
    }

    /// Which algorithm a collective of `count` elements would use, or of so many in each block where
    /// it has blocks: all candidates with their predicted times, best first. Print it.
    pub fn explain(
        &self,
        collective: Collective,
        count: usize,
        data_type: DataType,
    ) -> Explanation {
        let blocks = if collective.is_of_blocks() { u64::from(self.ranks()) } else { 1 };
        let bytes = blocks * count as u64 * data_type.size_bytes() as u64;
        selection::explain(collective, bytes, self.inner.shape, None)
    }

    /// Ends the communicator for every rank: their running or next calls return an error that
    /// names this rank and the reason. Returns at once.
    pub fn abort(&self, reason: &str) {
        self.inner.control.abort(reason);
    }

    fn chosen(&self) -> Using<'_> {
        Using::new(self, None)
    }

    pub(crate) fn engine(&self) -> MutexGuard<'_, Engine> {
        self.progress.turn(&self.inner.engine)
    }

    /// The call with its choice of algorithm.
    #[inline]
    pub(crate) fn call(
        &self,
        kind: CallKind,
        data_type: DataType,
        op: Option<Op>,
        root: u32,
        count: usize,
        forced: Option<Algorithm>,
    ) -> Result<Call, Error> {
        let collective = kind.collective(root).expect("a collective");
        let is_served = forced.is_none_or(|algorithm| algorithm.serves(collective));
        let is_root = collective.root().is_none_or(|root| root < self.ranks());
        let is_had = op.is_none_or(|op| data_type.has(op));
        if !(is_served && is_root && is_had) {
            return Err(self.refused(collective, data_type, op, forced));
        }
        let (stream, count) = (Stream::Collective, count as u64);
        Ok(Call { stream, kind, data_type, op, root, count, forced })
    }

    /// Why a call cannot be made.
    #[cold]
    fn refused(
        &self,
        collective: Collective,
        data_type: DataType,
        op: Option<Op>,
        forced: Option<Algorithm>,
    ) -> Error {
        if let Some(algorithm) = forced.filter(|algorithm| !algorithm.serves(collective)) {
            let serving = Algorithm::ALL.into_iter().filter(|a| a.serves(collective));
            let serving: Vec<&str> = serving.map(Algorithm::name).collect();
            let (name, serving) = (collective.name(), serving.join(", "));
            return Error::Argument(format!(
                "{algorithm} does not serve {name}, which takes one of: {serving}"
            ));
        }
        if let Some(op) = op.filter(|op| !data_type.has(*op)) {
            let has: Vec<&str> = data_type.ops().map(Op::name).collect();
            let (name, op, has) = (data_type.name(), op.name(), has.join(", "));
            return Error::Argument(format!("{name} has no {op}: it has {has}"));
        }
        let root = collective.root().unwrap_or(NO_ROOT);
        let last = self.ranks() - 1;
        Error::Argument(format!("root {root} is no rank: ranks are 0 to {last}"))
    }

    pub(crate) fn barrier_call(&self, by: Option<Algorithm>) -> Result<Call, Error> {
        self.call(CallKind::Barrier, DataType::F32, None, NO_ROOT, 0, by)
    }

    pub(crate) fn send_call<T: Element>(&self, count: usize, to: u32) -> Result<Call, Error> {
        self.point_to_point::<T>(Stream::SendTo(to), count, to)
    }

    pub(crate) fn receive_call<T: Element>(&self, count: usize, from: u32) -> Result<Call, Error> {
        self.point_to_point::<T>(Stream::ReceiveFrom(from), count, from)
    }

    fn point_to_point<T: Element>(
        &self,
        stream: Stream,
        count: usize,
        peer: u32,
    ) -> Result<Call, Error> {
        if peer >= self.ranks() || peer == self.rank() {
            let (rank, last) = (self.rank(), self.ranks() - 1);
            return Err(Error::Argument(format!(
                "rank {rank} cannot exchange with rank {peer}: peers are 0 to {last} without itself"
            )));
        }
        Ok(Call {
            stream,
            kind: CallKind::PointToPoint,
            data_type: T::DATA_TYPE,
            op: None,
            root: NO_ROOT,
            count: count as u64,
            forced: None,
        })
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others shall hear of it, and not that this rank left in good order.
            self.abort("it panicked");
        }
        // What was posted is completed first: its buffers belong to the operations.
        self.progress.finish();
        engine::lock(&self.inner.engine).close();
        restore_slices();
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { ranks, shared_memory, .. } = self.shape();
        f.debug_struct("Communicator")
            .field("rank", &self.rank())
            .field("ranks", &ranks)
            .field("shared_memory", &shared_memory)
            .finish_non_exhaustive()
    }
}
