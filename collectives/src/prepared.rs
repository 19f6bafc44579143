//! Calls made ready to run: the algorithm chosen, the plan lowered, the memory allocated, and kept for
//! the next time.

use ringtree_plan::{Action, Collective, Destination, Program, Source, Span, lower};
use ringtree_transport::POINT_TO_POINT;
use rustc_hash::FxHashMap;

use crate::control::Stream;
use crate::engine::Wiring;
use crate::executor::{Extent, Operation};
use crate::record::{CallKind, CallRecord};
use crate::selection::{self, Choice, Shape};
use crate::{Algorithm, DataType, Factor, Op};

/// Operations that are kept prepared. A training step has some tens of different calls; beyond
/// this all are dropped and made again when they are next called.
const PREPARED_MOST: usize = 256;

/// Scratch memory of all prepared operations at most, unless one alone needs more.
const PREPARED_MOST_BYTES: usize = 64 << 20;

/// One call as the caller makes it: what decides how it is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) stream: Stream,
    pub(crate) kind: CallKind,
    pub(crate) data_type: DataType,
    /// What reduces; nothing where nothing is reduced.
    pub(crate) op: Option<Op>,
    pub(crate) root: u32,
    /// As in [`CallRecord`].
    pub(crate) count: u64,
    /// The algorithm, unless it is to be chosen.
    pub(crate) forced: Option<Algorithm>,
}

impl Call {
    /// What of the call all ranks agree on, as far as its operation goes.
    pub(crate) fn without_factor(&self) -> Call {
        match self.op {
            Some(Op::PreMulSum(_)) => Call { op: Some(Op::PreMulSum(Factor::ONE)), ..*self },
            _ => *self,
        }
    }
}

/// Operations by call, the last one at hand.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) operations: Vec<Entry>,
    scratch_bytes: usize,
    by_call: FxHashMap<Call, usize>,
    last: usize,
}

/// A call that is ready to run.
#[derive(Debug)]
pub(crate) struct Entry {
    call: Call,
    /// What peers and errors see of it.
    pub(crate) record: CallRecord,
    pub(crate) operation: Operation,
    pub(crate) part: Part,
    /// How often in a row: see [`Algorithm::runs_per_call`].
    pub(crate) runs: u32,
}

/// Which part of all ranks' blocks this rank's buffers are, in bytes. Where it has one block only, its
/// buffer begins with that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) input_bytes: usize,
    pub(crate) before_input_bytes: usize,
    pub(crate) output_bytes: usize,
    pub(crate) before_output_bytes: usize,
}

impl Part {
    pub(crate) fn of(collective: Option<Collective>, rank: u32, ranks: u32, bytes: usize) -> Part {
        let all = ranks as usize * bytes;
        let own = (bytes, rank as usize * bytes);
        let if_root = |root, bytes| if rank == root { (bytes, 0) } else { (0, 0) };
        let (input, output) = match collective {
            Some(Collective::AllGather) => (own, (all, 0)),
            Some(Collective::ReduceScatter) => ((all, 0), own),
            Some(Collective::AllToAll) => ((all, 0), (all, 0)),
            Some(Collective::Gather { root }) => (own, if_root(root, all)),
            Some(Collective::Scatter { root }) => (if_root(root, all), own),
            Some(Collective::Broadcast { root }) => (if_root(root, bytes), (bytes, 0)),
            Some(Collective::Reduce { root }) => ((bytes, 0), if_root(root, bytes)),
            Some(Collective::AllReduce | Collective::Barrier) | None => ((bytes, 0), (bytes, 0)),
        };
        Part {
            input_bytes: input.0,
            before_input_bytes: input.1,
            output_bytes: output.0,
            before_output_bytes: output.1,
        }
    }
}

impl Prepared {
    /// The index of a call's operation, which is made if it is new.
    #[inline(always)]
    pub(crate) fn find(&mut self, call: &Call, wiring: &Wiring, shape: Shape) -> usize {
        if self.operations.get(self.last).is_some_and(|entry| entry.call == *call) {
            return self.last;
        }
        self.last = self.find_other(call, wiring, shape);
        self.last
    }

    #[cold]
    fn find_other(&mut self, call: &Call, wiring: &Wiring, shape: Shape) -> usize {
        match self.by_call.get(call) {
            Some(&index) => index,
            None => self.add(call, wiring, shape),
        }
    }

    fn add(&mut self, call: &Call, wiring: &Wiring, shape: Shape) -> usize {
        let entry = entry(call, wiring.rank, &wiring.hosts, shape);
        let scratch_bytes = entry.operation.scratch_bytes();
        self.scratch_bytes += scratch_bytes;
        if self.operations.len() >= PREPARED_MOST || self.scratch_bytes > PREPARED_MOST_BYTES {
            self.operations.clear();
            self.by_call.clear();
            self.scratch_bytes = scratch_bytes;
        }
        self.operations.push(entry);
        self.by_call.insert(*call, self.operations.len() - 1);
        self.operations.len() - 1
    }
}

/// Chooses how to carry a call out, plans and lowers it.
fn entry(call: &Call, rank: u32, hosts: &[u32], shape: Shape) -> Entry {
    let collective = call.kind.collective(call.root);
    let block_bytes = call.count * call.data_type.size_bytes() as u64;
    let (extent, bytes) = match collective {
        Some(collective) if collective.is_of_blocks() => {
            (Extent::Blocks(call.count), u64::from(shape.ranks) * block_bytes)
        }
        _ => (Extent::Whole(call.count), block_bytes),
    };
    let choice = collective
        .map(|collective| (collective, selection::choose(collective, bytes, shape, call.forced)));
    let record = CallRecord {
        kind: call.kind,
        data_type: call.data_type as u8,
        operation: call.op.map_or(0, Op::number),
        algorithm: choice.map_or(0, |(_, choice)| choice.algorithm as u8),
        root: call.root,
        count: call.count,
    };
    let (program, schedule, channel) = match choice {
        Some((collective, Choice { algorithm, schedule })) => {
            (lower(&algorithm.plan_on(collective, rank, hosts)), schedule, 0)
        }
        None => (point_to_point(call.stream, rank, shape.ranks), selection::WHOLE, POINT_TO_POINT),
    };
    let op = call.op.unwrap_or(Op::Sum);
    let digest = record.digest();
    let mut operation =
        Operation::new(program, call.data_type, op, extent, schedule, channel, digest);
    if choice.is_some_and(|(_, choice)| choice.algorithm.is_one_exchange()) {
        operation.exchange_at_once();
    }
    let runs = choice.map_or(1, |(collective, choice)| choice.algorithm.runs_per_call(collective));
    let part = Part::of(collective, rank, shape.ranks, block_bytes as usize);
    Entry { call: *call, record, operation, part, runs }
}

/// One message to or from a peer.
fn point_to_point(stream: Stream, rank: u32, ranks: u32) -> Program {
    let whole = Span::output(0, 1);
    let (source, destination) = match stream {
        Stream::SendTo(peer) => {
            (Source::Own(Span::input(0, 1)), Destination::Send { peer, settled: false })
        }
        Stream::ReceiveFrom(peer) => (Source::Arrival { peer }, Destination::Own(whole)),
        Stream::Collective => (Source::Own(whole), Destination::Own(whole)),
    };
    let action = Action::Move {
        first_source: 0,
        sources: 1,
        first_destination: 0,
        destinations: 1,
        shape: whole,
        guarded: false,
        early: false,
        completes: false,
    };
    Program {
        rank,
        ranks,
        chunks: 1,
        scratch: Vec::new(),
        actions: vec![action],
        sources: vec![source],
        destinations: vec![destination],
    }
}
