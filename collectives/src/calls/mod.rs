//! The calls of a communicator: the collectives, send and receive in all their forms.
//!
//! Every form describes what it is asked for by a [`Call`], checks its buffers against it, and hands
//! their addresses to the engine.

mod asynchronous;
mod blocking;
mod form;
mod group;
mod lengths;
mod prepare;
mod varied;

pub use group::Group;
pub(crate) use group::{PACK_BYTES, Posted, packed, packed_call};
pub use prepare::{Prepared, PreparedInto};
pub use varied::Counted;
pub(crate) use varied::Counts;

use crate::communicator::Communicator;
use crate::control::Stream;
use crate::prepared::Call;
use crate::record::CallKind;
use crate::{Algorithm, Collective, DataType, Element, Error, Op};
pub(crate) use lengths::Lengths;

/// No root.
const NO_ROOT: u32 = u32::MAX;

/// What is asked for, before it is known of how much.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    kind: CallKind,
    op: Option<Op>,
    root: u32,
}

impl Asked {
    pub(crate) const fn of(kind: CallKind) -> Asked {
        Asked { kind, op: None, root: NO_ROOT }
    }

    pub(crate) const fn by(self, op: Op) -> Asked {
        Asked { op: Some(op), ..self }
    }

    pub(crate) const fn rooted(self, root: u32) -> Asked {
        Asked { root, ..self }
    }
}

impl Communicator {
    /// The call on one buffer of `length` elements, all blocks of all ranks where there are blocks.
    #[inline]
    pub(crate) fn call_in_place<T: Element>(
        &self,
        asked: Asked,
        length: usize,
    ) -> Result<Call, Error> {
        let is_of_blocks = matches!(asked.kind, CallKind::AllGather | CallKind::ReduceScatter);
        let count = if is_of_blocks { self.block(length)? } else { length };
        self.call(asked, T::DATA_TYPE, count)
    }

    /// The call from one buffer into another.
    #[inline]
    pub(crate) fn call_into<T: Element>(
        &self,
        asked: Asked,
        input: usize,
        output: usize,
    ) -> Result<Call, Error> {
        let count = match asked.kind {
            CallKind::Broadcast | CallKind::ReduceScatter | CallKind::Scatter => output,
            CallKind::AllToAll => self.block(input)?,
            _ => input,
        };
        let call = self.call(asked, T::DATA_TYPE, count)?;
        Lengths::Into { input, output }.check(&call, self.rank(), self.ranks())?;
        Ok(call)
    }

    fn barrier_call(&self) -> Result<Call, Error> {
        self.call(Asked::of(CallKind::Barrier), DataType::F32, 0)
    }

    /// The call with its choice of algorithm.
    #[inline]
    fn call(&self, asked: Asked, data_type: DataType, count: usize) -> Result<Call, Error> {
        let Asked { kind, op, root } = asked;
        let forced = self.algorithm();
        let collective = kind.collective(root).expect("a collective");
        let is_served = forced.is_none_or(|algorithm| self.serves(algorithm, kind, collective));
        let is_root = collective.root().is_none_or(|root| root < self.ranks());
        let is_had = op.is_none_or(|op| data_type.has(op));
        if !(is_served && is_root && is_had) {
            return Err(self.refused(asked, data_type));
        }
        let (stream, count) = (Stream::Collective, count as u64);
        Ok(Call { stream, kind, data_type, op, root, count, forced })
    }

    /// Whether an algorithm carries out calls of this kind. Where blocks differ in length, a plan must not
    /// name several as one span.
    #[inline]
    fn serves(&self, algorithm: Algorithm, kind: CallKind, collective: Collective) -> bool {
        let is_any = !self.shape().reproducible || !collective.is_reduction();
        algorithm.serves(collective)
            && !(kind.is_varied() && algorithm.takes_one_round(collective))
            && (is_any || algorithm.folds_in_rank_order(collective))
    }

    /// Why a call cannot be made.
    #[cold]
    fn refused(&self, asked: Asked, data_type: DataType) -> Error {
        let Asked { kind, op, root } = asked;
        let collective = kind.collective(root).expect("a collective");
        let forced = self.algorithm();
        if let Some(algorithm) = forced.filter(|by| !self.serves(*by, kind, collective)) {
            let serving = Algorithm::ALL.into_iter().filter(|a| self.serves(*a, kind, collective));
            let serving: Vec<&str> = serving.map(Algorithm::name).collect();
            let (name, serving) = (collective.name(), serving.join(", "));
            let v = if kind.is_varied() { "-v" } else { "" };
            let mode = if self.shape().reproducible { "reproducible " } else { "" };
            return Error::Argument(format!(
                "{algorithm} does not serve {mode}{name}{v}, which takes one of: {serving}"
            ));
        }
        if let Some(op) = op.filter(|op| !data_type.has(*op)) {
            let has: Vec<&str> = data_type.ops().map(Op::name).collect();
            let (name, op, has) = (data_type.name(), op.name(), has.join(", "));
            return Error::Argument(format!("{name} has no {op}: it has {has}"));
        }
        let last = self.ranks() - 1;
        Error::Argument(format!("root {root} is no rank: ranks are 0 to {last}"))
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
        Ok(message::<T>(stream, count))
    }

    /// Elements of a block of a buffer that has one for each rank.
    fn block(&self, length: usize) -> Result<usize, Error> {
        let ranks = self.ranks() as usize;
        if length.is_multiple_of(ranks) {
            return Ok(length / ranks);
        }
        Err(Error::Argument(format!(
            "a buffer of {length} elements cannot be cut into {ranks} equal blocks, one for each rank"
        )))
    }
}

/// One message to or from a peer.
fn message<T: Element>(stream: Stream, count: usize) -> Call {
    Call {
        stream,
        kind: CallKind::PointToPoint,
        data_type: T::DATA_TYPE,
        op: None,
        root: NO_ROOT,
        count: count as u64,
        forced: None,
    }
}
