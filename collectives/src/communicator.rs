//! The communicator: what a program calls.

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use ringtree_plan::Collective;
use ringtree_transport::TransportKind;
use ringtree_transport::cuda::Way;
use ringtree_transport::rdma::Counters as RdmaCounters;
use ringtree_transport::wait::restore_slices;
use rustc_hash::FxHashSet;

use crate::bootstrap::{self, Joined, Origin};
use crate::control::Control;
use crate::device::{Boards, Signals};
use crate::engine::{self, Engine};
use crate::hosting::Hosted;
use crate::memory::{Memory, Registered, Registrable};
use crate::prepared::Call;
use crate::progress::Progress;
use crate::selection::{self, Explanation, Shape};
use crate::settings::Settings;
use crate::tuning::Links;
use crate::{Algorithm, DataType, Element, Error};

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
/// dropped, or the survivors go on with another one ([`Communicator::shrink`]).
///
/// **Handles.** A clone is another handle of the same communicator, and so is what
/// [`Communicator::using`] gives. When the last one is dropped, prepared calls among them, the
/// asynchronous calls that were posted are completed, for which the peers must make them too, and the
/// communicator says goodbye. A peer that still waits for this rank gets an error that says so.
#[derive(Clone)]
pub struct Communicator {
    pub(crate) inner: Arc<Inner>,
    pub(crate) owner: Arc<Owner>,
    /// What carries out this handle's collectives, unless that is to be chosen.
    algorithm: Option<Algorithm>,
}

/// What the calling threads and the progress thread share.
pub(crate) struct Inner {
    rank: u32,
    shape: Shape,
    links: Links,
    engine: Mutex<Engine>,
    control: Arc<Control>,
    settings: Settings,
    origin: Origin,
    /// Calls that are ready on a GPU.
    known_on_device: Mutex<FxHashSet<(u32, Way, Call)>>,
    /// What streams of GPUs wait by, one for each.
    signals: Arc<Signals>,
    /// By which small calls on GPUs are one kernel, once all ranks have joined.
    boards: OnceLock<Arc<Boards>>,
    /// How often it was split.
    splits: AtomicU64,
    /// What keeps the rendezvous where it is, as far as that is this process's business; dropped after the
    /// engine and the control connection.
    host: Arc<dyn Any + Send + Sync>,
}

impl Inner {
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn host(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.host
    }

    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn engine(&self) -> &Mutex<Engine> {
        &self.engine
    }

    pub(crate) fn known(&self) -> &Mutex<FxHashSet<(u32, Way, Call)>> {
        &self.known_on_device
    }

    pub(crate) fn signals(&self) -> &Signals {
        &self.signals
    }

    #[inline]
    pub(crate) fn boards(&self) -> Option<&Arc<Boards>> {
        self.boards.get()
    }

    /// From now on small calls on GPUs are one kernel.
    pub(crate) fn join(&self, boards: Arc<Boards>) {
        engine::lock(&self.engine).join(boards.clone());
        let _ = self.boards.set(boards);
    }
}

/// What all handles of a communicator share, and the progress thread does not: the last one ends it.
pub(crate) struct Owner {
    pub(crate) progress: Progress,
    inner: Arc<Inner>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others shall hear of it, and not that this rank left in good order.
            self.inner.control.abort("it panicked");
        }
        // What was posted is completed first: its buffers belong to the operations.
        self.progress.finish();
        engine::lock(&self.inner.engine).close();
        restore_slices();
    }
}

impl Communicator {
    /// Joins the communicator that the environment describes (`RINGTREE_*`, else what a launcher such
    /// as mpirun, srun or torchrun tells; see [`Source`](crate::Source)), and waits until all ranks have
    /// come. Without any of these, the process is the only rank.
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
        Communicator::join(settings, None)
    }

    fn join(settings: Settings, threads: Option<Arc<Hosted>>) -> Result<Communicator, Error> {
        settings.check()?;
        let mut joined = bootstrap::join(settings)?;
        let hosting = joined.hosting.take();
        Ok(Communicator::of(joined, Arc::new((threads, hosting))))
    }

    pub(crate) fn of(joined: Joined, host: Arc<dyn Any + Send + Sync>) -> Communicator {
        let inner = Arc::new(Inner {
            rank: joined.settings.rank,
            shape: joined.shape,
            links: joined.links,
            control: joined.control,
            settings: joined.settings,
            origin: joined.origin,
            known_on_device: Mutex::default(),
            signals: joined.engine.signals().clone(),
            boards: OnceLock::new(),
            engine: Mutex::new(joined.engine),
            splits: AtomicU64::new(0),
            host,
        });
        let owner = Arc::new(Owner { progress: Progress::default(), inner: inner.clone() });
        Communicator { inner, owner, algorithm: None }
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
        let job = settings.first().map(|settings| settings.job.name.clone());
        let settings = settings.into_iter().map(|mut settings| {
            adjust(&mut settings);
            settings
        });
        let threads: Vec<_> = settings
            .map(|settings| {
                let hosted = hosted.clone();
                let join = move || Communicator::join(settings, Some(hosted));
                std::thread::Builder::new().name("ringtree-join".to_owned()).spawn(join)
            })
            .collect();
        let join =
            |thread: io::Result<JoinHandle<_>>| thread?.join().map_err(|_| Error::Panicked)?;
        // All of them, also where one failed: nobody else ends them.
        let joined: Vec<Result<Communicator, Error>> = threads.into_iter().map(join).collect();
        job.iter().for_each(|job| bootstrap::forget_job(job));
        joined.into_iter().collect()
    }

    /// Splits the communicator: the ranks that pass the same `color` become a communicator of their own,
    /// numbered by `key` and where that is equal by their rank here. A rank that passes `None` belongs to
    /// none. All ranks call it; this communicator goes on, and which of the two is used when is the
    /// program's business, as long as all ranks agree.
    ///
    /// The ranks meet where those of this communicator did. Without a launcher that is in the process of
    /// rank 0, which must not end before the others are done.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn split(&self, color: Option<u32>, key: i64) -> Result<Option<Communicator>, Error> {
        let Inner { rank, ref shape, ref settings, .. } = *self.inner;
        let mut all = vec![[-1_i64, 0]; shape.ranks as usize];
        let mine = [color.map_or(-1, i64::from), key];
        self.using(None).all_gather_into(&mine, all.as_flattened_mut())?;
        let split = self.inner.splits.fetch_add(1, Ordering::Relaxed);
        let Some(color) = color else { return Ok(None) };
        let mut members: Vec<u32> = (0..shape.ranks).collect();
        members.retain(|member| all[*member as usize][0] == i64::from(color));
        members.sort_by_key(|member| (all[*member as usize][1], *member));
        let position = members.iter().position(|member| *member == rank);
        let settings = Settings {
            rank: position.expect("a rank has its own color") as u32,
            ranks: members.len() as u32,
            costs: self.inner.origin.costs,
            ..settings.clone()
        };
        let part = format!("{split}/{color}");
        let joined = bootstrap::join_part(settings, &self.inner.origin, &part)?;
        let host = self.inner.clone();
        Ok(Some(Communicator { algorithm: self.algorithm, ..Communicator::of(joined, host) }))
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
    pub fn shape(&self) -> &Shape {
        &self.inner.shape
    }

    /// How long a call may be without progress.
    pub fn timeout(&self) -> Duration {
        self.inner.settings.bounded_timeout()
    }

    /// What has ended the communicator, if something has; says nothing to anybody. Waits for the calls that were posted
    /// before.
    ///
    /// # Errors
    /// That error.
    pub fn check(&self) -> Result<(), Error> {
        self.engine().check()
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

    /// A handle whose collectives are carried out by `algorithm` instead of the one that would be chosen;
    /// `None` for that one. All ranks must name the same one; one that does not serve a collective is
    /// refused by the call.
    pub fn using(&self, algorithm: impl Into<Option<Algorithm>>) -> Communicator {
        Communicator { algorithm: algorithm.into(), ..self.clone() }
    }

    /// Zeroed memory for `count` elements that peers of the same host, and RDMA devices, can use in place,
    /// which spares copies of large buffers. It changes no result, and each rank may use it or not.
    /// Peers map it when it is first used; this call only waits for those that were posted before. Devices
    /// register it now, or when the first link over RDMA is made, and lock it as
    /// [`Communicator::register`] says.
    ///
    /// # Errors
    /// Memory or descriptors have run out, after which the communicator goes on; or the error that
    /// has ended it, if one has.
    pub fn alloc<T: Element>(&self, count: usize) -> Result<Memory<T>, Error> {
        let memory = Memory::new(count)?;
        self.engine().share(memory.registration())?;
        Ok(memory)
    }

    /// Registers a buffer, so that RDMA devices send from it and receive into it without a copy, until the
    /// guard is dropped. The guard is used in the buffer's place, as a slice;
    /// [`into_inner`](Registered::into_inner) gives the buffer back.
    ///
    /// ```
    /// # use ringtree::{Communicator, Op};
    /// # let communicator = &Communicator::in_process(1)?[0];
    /// let mut gradients = communicator.register(vec![1.0_f32; 1000])?;
    /// communicator.all_reduce(&mut gradients, Op::Sum)?;
    /// let gradients: Vec<f32> = gradients.into_inner();
    /// # Ok::<(), ringtree::Error>(())
    /// ```
    ///
    /// A buffer is a `Vec` or a boxed slice, which RDMA alone reaches; or a [`Memory`] that another
    /// communicator allocated (`&mut memory`), which peers of the same host then map, too. It changes no
    /// result, and each rank may do it or not.
    ///
    /// Registering takes as long as locking the memory does, and pays for buffers of 16 KiB
    /// or more that are used again and again. Devices register it now, or when the first link over RDMA is
    /// made. Where one cannot, because the process may lock no more, the buffer is copied as any other is: the
    /// log says so, and [`RdmaCounters::registered`] does not count it. This call only waits for those that
    /// were posted before, and dropping the guard for nothing.
    ///
    /// # Errors
    /// The error that has ended the communicator, if one has.
    pub fn register<R: Registrable>(&self, buffer: R) -> Result<Registered<R>, Error> {
        let guard = Registered::new(buffer);
        guard.registration().map_or(Ok(()), |registration| self.engine().share(registration))?;
        Ok(guard)
    }

    /// What the links over RDMA that this rank has now have done, all together. Waits for the calls that
    /// were posted before.
    pub fn rdma_counters(&self) -> RdmaCounters {
        self.engine().rdma_counters()
    }

    /// The ports that this rank may use for RDMA, as in `mlx5_0:1 (GID 3 10.2.0.1, MTU 4096)`; none where it
    /// has no RDMA or may not use it.
    pub fn rdma_ports(&self) -> Vec<String> {
        self.engine().rdma_ports()
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
        selection::explain(collective, bytes, &self.inner.shape, None)
    }

    /// Ends the communicator for every rank: their running or next calls return an error that
    /// names this rank and the reason. Returns at once.
    pub fn abort(&self, reason: &str) {
        self.inner.control.abort(reason);
    }

    pub(crate) fn engine(&self) -> MutexGuard<'_, Engine> {
        self.owner.progress.turn(&self.inner.engine)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        self.algorithm
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { ranks, shared_memory, .. } = self.shape();
        f.debug_struct("Communicator")
            .field("rank", &self.rank())
            .field("ranks", ranks)
            .field("shared_memory", shared_memory)
            .finish_non_exhaustive()
    }
}
