//! Several calls as one: messages that are all under way at once, and small tensors that are reduced as
//! one buffer.

use std::fmt;
use std::marker::PhantomData;

use super::{Asked, Communicator, NO_ROOT, message};
use crate::control::Stream;
use crate::digest::{fnv1a, fold};
use crate::engine::{Engine, Place};
use crate::prepared::Call;
use crate::progress::Pending;
use crate::record::CallKind;
use crate::reduce::{self, Pass};
use crate::{Element, Error, Op};

/// Longer tensors are reduced by themselves: what a pass over a copy costs is more than a call then.
const PACKED_MOST_BYTES: usize = 16 << 10;

/// A pack is reduced when it is so long: it stays in cache while it is filled, reduced and emptied.
pub(crate) const PACK_BYTES: usize = 256 << 10;

/// Calls that are made as one by [`Group::run`]: see [`Communicator::group`].
#[must_use = "nothing is called before `run`"]
pub struct Group<'c, 'b> {
    communicator: &'c Communicator,
    messages: Vec<Posted<Place>>,
    collectives: Vec<Posted<Place>>,
    _buffers: PhantomData<&'b mut ()>,
}

/// A call and its buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Posted<P> {
    pub(crate) call: Call,
    pub(crate) place: P,
}

impl Communicator {
    /// Calls that are made as one. Messages are all under way at once, so that nobody waits for a peer
    /// that sends before it receives; those to one peer, and those from one, keep their order. Then come
    /// the collectives in the order in which they were added: neighbours that reduce small tensors of one
    /// type by one operation are packed into one buffer and reduced together, so that many small tensors
    /// take hardly longer than one.
    ///
    /// Before its first message the links to all peers of the group are made, for which each peer must call
    /// something that needs its end; [`Communicator::warm_up`] makes all links before.
    ///
    /// All ranks add the same collectives in the same order.
    ///
    /// ```
    /// # fn main() -> Result<(), ringtree::Error> {
    /// # let ranks = ringtree::Communicator::in_process(1)?;
    /// # let comm = &ranks[0];
    /// let (mut weights, mut bias) = ([1.0_f32; 100], [1.0_f32; 10]);
    /// let mut group = comm.group();
    /// group.all_reduce(&mut weights, ringtree::Op::Sum)?;
    /// group.all_reduce(&mut bias, ringtree::Op::Sum)?;
    /// group.run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn group<'b>(&self) -> Group<'_, 'b> {
        let (messages, collectives) = (Vec::new(), Vec::new());
        Group { communicator: self, messages, collectives, _buffers: PhantomData }
    }

    /// Sends `input` to rank `to` and receives `output` from rank `from`, both at once: ranks that all send
    /// around a ring do not wait for each other. A rank may exchange with itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send_receive<T: Element>(
        &self,
        input: &[T],
        to: u32,
        output: &mut [T],
        from: u32,
    ) -> Result<(), Error> {
        let call = self.exchange_call::<T>(input.len(), to, output.len(), from)?;
        // SAFETY: both are borrowed until the call has returned, and cannot overlap.
        unsafe {
            let (input, into) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
            exchange(&mut self.engine(), &call, input, into, output.len())
        }
    }

    /// As [`Communicator::send_receive`], of buffers that the call owns until [`Pending::wait`] gives them
    /// back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send_receive_async<T, A, B>(
        &self,
        input: A,
        to: u32,
        mut output: B,
        from: u32,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        let (given, got) = (input.as_ref().len(), output.as_mut().len());
        let call = self.exchange_call::<T>(given, to, got, from)?;
        let run = |engine: &mut Engine, call: &Call, (input, output): &mut (A, B)| {
            let (input, output) = (input.as_ref(), output.as_mut());
            let (from, into) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
            let call = Call { count: input.len() as u64, ..*call };
            // SAFETY: the call owns the buffers until it returns.
            unsafe { exchange(engine, &call, from, into, output.len()) }
        };
        Ok(self.owner.progress.post(&self.inner, call, (input, output), run))
    }

    /// The sending half; its root is the rank that is received from.
    fn exchange_call<T: Element>(
        &self,
        given: usize,
        to: u32,
        got: usize,
        from: u32,
    ) -> Result<Call, Error> {
        let is_own = (to, from) == (self.rank(), self.rank());
        if is_own && given != got {
            return Err(uneven(to, given as u64, got));
        }
        if !is_own {
            self.receive_call::<T>(got, from)?;
            self.send_call::<T>(given, to)?;
        }
        Ok(Call { root: from, ..message::<T>(Stream::SendTo(to), given) })
    }
}

/// Runs both halves of a send-receive, the second one of `got` elements.
///
/// # Safety
/// As of [`Engine::run`].
unsafe fn exchange(
    engine: &mut Engine,
    call: &Call,
    input: *const u8,
    output: *mut u8,
    got: usize,
) -> Result<(), Error> {
    let from = call.root;
    let send = Call { root: NO_ROOT, ..*call };
    let receive = Call { stream: Stream::ReceiveFrom(from), count: got as u64, ..send };
    let nowhere = std::ptr::null_mut();
    if from == engine.rank() {
        engine.check()?;
        if call.count != got as u64 {
            return Err(uneven(from, call.count, got));
        }
        let bytes = got * call.data_type.size_bytes();
        // SAFETY: what a rank gives itself is as long as what it expects; the buffers do not overlap.
        unsafe { input.copy_to_nonoverlapping(output, bytes) };
        return Ok(());
    }
    // SAFETY: the caller's promise is passed on.
    unsafe {
        let halves =
            [(send, Place::Into(input, nowhere)), (receive, Place::Into(std::ptr::null(), output))];
        engine.run_together(halves.into_iter())
    }
}

fn uneven(rank: u32, given: u64, got: usize) -> Error {
    Error::Argument(format!("rank {rank} gives itself {given} elements and expects {got}"))
}

impl<'b> Group<'_, 'b> {
    /// Adds a [`Communicator::send`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send<T: Element>(&mut self, buffer: &'b [T], peer: u32) -> Result<(), Error> {
        let call = self.communicator.send_call::<T>(buffer.len(), peer)?;
        let place = Place::Into(buffer.as_ptr().cast(), std::ptr::null_mut());
        self.messages.push(Posted { call, place });
        Ok(())
    }

    /// Adds a [`Communicator::receive`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn receive<T: Element>(&mut self, buffer: &'b mut [T], peer: u32) -> Result<(), Error> {
        let call = self.communicator.receive_call::<T>(buffer.len(), peer)?;
        let place = Place::Into(std::ptr::null(), buffer.as_mut_ptr().cast());
        self.messages.push(Posted { call, place });
        Ok(())
    }

    /// Adds a [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce<T: Element>(&mut self, buffer: &'b mut [T], op: Op) -> Result<(), Error> {
        self.add_in_place(Asked::of(CallKind::AllReduce).by(op), buffer)
    }

    /// Adds a [`Communicator::all_reduce_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce_into<T: Element>(
        &mut self,
        input: &'b [T],
        output: &'b mut [T],
        op: Op,
    ) -> Result<(), Error> {
        self.add_into(Asked::of(CallKind::AllReduce).by(op), input, output)
    }

    /// Adds a [`Communicator::broadcast`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast<T: Element>(&mut self, buffer: &'b mut [T], root: u32) -> Result<(), Error> {
        self.add_in_place(Asked::of(CallKind::Broadcast).rooted(root), buffer)
    }

    /// Adds a [`Communicator::reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce<T: Element>(
        &mut self,
        buffer: &'b mut [T],
        op: Op,
        root: u32,
    ) -> Result<(), Error> {
        self.add_in_place(Asked::of(CallKind::Reduce).by(op).rooted(root), buffer)
    }

    /// Adds a [`Communicator::all_gather_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_into<T: Element>(
        &mut self,
        input: &'b [T],
        output: &'b mut [T],
    ) -> Result<(), Error> {
        self.add_into(Asked::of(CallKind::AllGather), input, output)
    }

    /// Adds a [`Communicator::reduce_scatter_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_into<T: Element>(
        &mut self,
        input: &'b [T],
        output: &'b mut [T],
        op: Op,
    ) -> Result<(), Error> {
        self.add_into(Asked::of(CallKind::ReduceScatter).by(op), input, output)
    }

    /// Adds a [`Communicator::all_to_all_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_to_all_into<T: Element>(
        &mut self,
        input: &'b [T],
        output: &'b mut [T],
    ) -> Result<(), Error> {
        self.add_into(Asked::of(CallKind::AllToAll), input, output)
    }

    /// Makes all calls and returns when they are done.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self) -> Result<(), Error> {
        let mut engine = self.communicator.engine();
        if !self.messages.is_empty() {
            let messages = self.messages.iter().map(|message| (message.call, message.place));
            // SAFETY: the group has borrowed all buffers, those that are written mutably.
            unsafe { engine.run_together(messages) }?;
        }
        let mut rest = &self.collectives[..];
        while let [first, ..] = rest {
            let number = packed(rest);
            let (now, later) = rest.split_at(number);
            rest = later;
            // SAFETY: as above.
            unsafe {
                match now {
                    [_] => engine.run(&first.call, first.place)?,
                    _ => run_packed(&mut engine, now)?,
                }
            }
        }
        Ok(())
    }

    fn add_in_place<T: Element>(&mut self, asked: Asked, buffer: &'b mut [T]) -> Result<(), Error> {
        let call = self.communicator.call_in_place::<T>(asked, buffer.len())?;
        let place = Place::In(buffer.as_mut_ptr().cast());
        self.collectives.push(Posted { call, place });
        Ok(())
    }

    fn add_into<T: Element>(
        &mut self,
        asked: Asked,
        input: &'b [T],
        output: &'b mut [T],
    ) -> Result<(), Error> {
        let call = self.communicator.call_into::<T>(asked, input.len(), output.len())?;
        let place = Place::Into(input.as_ptr().cast(), output.as_mut_ptr().cast());
        self.collectives.push(Posted { call, place });
        Ok(())
    }
}

impl<P> Posted<P> {
    pub(crate) fn bytes(&self) -> usize {
        self.call.count as usize * self.call.data_type.size_bytes()
    }
}

impl Posted<Place> {
    /// Puts what this rank gives into a pack, multiplied where it has a factor.
    ///
    /// # Safety
    /// What the call reads must be readable, and the pack have room for it.
    unsafe fn pack(&self, pack: *mut u8) {
        let input = match self.place {
            Place::In(buffer) => buffer.cast_const(),
            Place::Into(input, _) => input,
        };
        // SAFETY: the caller's promise.
        unsafe {
            match self.call.op {
                Some(Op::PreMulSum(factor)) => {
                    let pass = Pass::Scale { factor: factor.get() };
                    let kernel = reduce::kernel(self.call.data_type, pass);
                    kernel.run(&[input], &[pack], self.call.count as usize);
                }
                _ => input.copy_to_nonoverlapping(pack, self.bytes()),
            }
        }
    }
}

/// How many of the calls, from the first on, are made as one; at least 1.
pub(crate) fn packed<P>(calls: &[Posted<P>]) -> usize {
    // A factor is each rank's own: what all ranks must agree on is without it.
    let first = calls[0].call.without_factor();
    let is_alike = |posted: &&Posted<P>| {
        let call = posted.call.without_factor();
        call.kind == CallKind::AllReduce
            && (Call { count: 0, ..call }) == (Call { count: 0, ..first })
            && posted.bytes() <= PACKED_MOST_BYTES
    };
    let mut bytes = 0;
    let fits = |posted: &&Posted<P>| {
        bytes += posted.bytes();
        bytes <= PACK_BYTES
    };
    calls.iter().take_while(is_alike).take_while(fits).count().max(1)
}

/// The call that several are made as.
pub(crate) fn packed_call<P>(calls: &[Posted<P>]) -> Call {
    let lengths = calls.iter().flat_map(|posted| posted.call.count.to_le_bytes());
    Call {
        kind: CallKind::AllReduceGroup,
        root: fold(fnv1a(lengths)),
        count: calls.iter().map(|posted| posted.call.count).sum(),
        ..calls[0].call.without_factor()
    }
}

/// Reduces several buffers as one.
///
/// # Safety
/// As of [`Engine::run`], of each.
unsafe fn run_packed(engine: &mut Engine, calls: &[Posted<Place>]) -> Result<(), Error> {
    let mut pack = engine.take_pack();
    let bytes: usize = calls.iter().map(Posted::bytes).sum();
    pack.resize(pack.len().max(bytes.div_ceil(8)), 0);
    let start = pack.as_mut_ptr().cast::<u8>();
    let mut place = start;
    for posted in calls {
        // SAFETY: the caller vouches for the input; the pack has room for all of them.
        unsafe { posted.pack(place) };
        place = place.wrapping_add(posted.bytes());
    }
    let call = packed_call(calls);
    // SAFETY: the pack is as long as the call says, and nothing else uses it.
    unsafe { engine.run(&call, Place::In(start)) }?;
    let mut place = start;
    for posted in calls {
        let (Place::In(output) | Place::Into(_, output)) = posted.place;
        // SAFETY: the caller vouches for the output; the pack holds what goes there.
        unsafe { place.copy_to_nonoverlapping(output, posted.bytes()) };
        place = place.wrapping_add(posted.bytes());
    }
    engine.keep_pack(pack);
    Ok(())
}

impl fmt::Debug for Group<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("messages", &self.messages.len())
            .field("collectives", &self.collectives.len())
            .finish_non_exhaustive()
    }
}
