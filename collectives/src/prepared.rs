//! Calls made ready to run: the algorithm chosen, the plan lowered, the memory allocated, and kept for
//! the next time.

use std::borrow::Cow;

use ringtree_plan::{Action, Collective, Destination, Places, Program, Source, Span, lower};
use ringtree_transport::{Channel, POINT_TO_POINT};
use rustc_hash::FxHashMap;

use crate::control::Stream;
use crate::digest::{fnv1a, fold};
use crate::engine::Wiring;
use crate::executor::{Extent, Operation, Schedule};
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
    /// As in [`CallRecord`]; of blocks that differ in length, the next power of two.
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

/// Which part of all ranks' blocks this rank's buffers are, in elements or in bytes, as the length of a
/// block was given. Where it has one block only, its buffer begins with that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) input: usize,
    pub(crate) before_input: usize,
    pub(crate) output: usize,
    pub(crate) before_output: usize,
}

/// The blocks of a call that differ in length: how many elements each has.
#[derive(Debug)]
pub(crate) struct Blocks<'a> {
    /// Of the input. A rank that does not know those of others has 0 there.
    pub(crate) given: Cow<'a, [usize]>,
    /// Of the output.
    pub(crate) got: Cow<'a, [usize]>,
}

impl Part {
    /// Of equal blocks, or of buffers that are no blocks.
    #[inline]
    pub(crate) fn of(collective: Option<Collective>, rank: u32, ranks: u32, block: usize) -> Part {
        let all = ranks as usize * block;
        let own = (block, rank as usize * block);
        match collective {
            Some(collective) if collective.is_of_blocks() => {
                Part::of_blocks(collective, rank, [all, all], [own, own])
            }
            Some(Collective::Broadcast { root }) if root != rank => Part::new((0, 0), (block, 0)),
            Some(Collective::Reduce { root }) if root != rank => Part::new((block, 0), (0, 0)),
            _ => Part::new((block, 0), (block, 0)),
        }
    }

    /// Of blocks that differ in length, in elements of `element_bytes`.
    pub(crate) fn varied(
        collective: Collective,
        rank: u32,
        blocks: &Blocks,
        element_bytes: usize,
    ) -> Part {
        let tables = [&blocks.given, &blocks.got];
        let bytes = |lengths: &[usize]| lengths.iter().sum::<usize>() * element_bytes;
        let own = |lengths: &[usize]| {
            let (before, rest) = lengths.split_at(rank as usize);
            (rest[0] * element_bytes, bytes(before))
        };
        Part::of_blocks(collective, rank, tables.map(|t| bytes(t)), tables.map(|t| own(t)))
    }

    /// `all` is how long all blocks of the input and of the output are, `own` this rank's and what is
    /// before it.
    #[inline]
    fn of_blocks(
        collective: Collective,
        rank: u32,
        all: [usize; 2],
        own: [(usize, usize); 2],
    ) -> Part {
        let all = all.map(|length| (length, 0));
        match collective {
            Collective::AllGather => Part::new(own[0], all[1]),
            Collective::ReduceScatter => Part::new(all[0], own[1]),
            Collective::Gather { root } => {
                Part::new(own[0], if root == rank { all[1] } else { (0, 0) })
            }
            Collective::Scatter { root } => {
                Part::new(if root == rank { all[0] } else { (0, 0) }, own[1])
            }
            _ => Part::new(all[0], all[1]),
        }
    }

    const fn new(input: (usize, usize), output: (usize, usize)) -> Part {
        Part { input: input.0, before_input: input.1, output: output.0, before_output: output.1 }
    }
}

impl Entry {
    /// Sets the lengths of blocks that differ, for the next run.
    fn vary(&mut self, blocks: &Blocks, rank: u32) {
        (self.record, self.part) = varied(&self.call, self.record, blocks, rank);
        self.operation.vary(&blocks.given, &blocks.got, self.record.digest());
    }
}

/// What peers see of a call on blocks that differ in length, and this rank's part of them.
pub(crate) fn varied(
    call: &Call,
    mut record: CallRecord,
    blocks: &Blocks,
    rank: u32,
) -> (CallRecord, Part) {
    let Call { kind, data_type, root, .. } = *call;
    let collective = kind.collective(root).expect("blocks are of a collective");
    if kind.has_known_lengths() {
        record.count = blocks.given.iter().sum::<usize>() as u64;
        let words = blocks.given.iter().flat_map(|length| (*length as u64).to_le_bytes());
        record.root = fold(fnv1a(words));
    }
    (record, Part::varied(collective, rank, blocks, data_type.size_bytes()))
}

impl Prepared {
    /// The index of a call's operation, which is made if it is new.
    #[inline(always)]
    pub(crate) fn find(&mut self, call: &Call, wiring: &Wiring, shape: &Shape) -> usize {
        if self.operations.get(self.last).is_some_and(|entry| entry.call == *call) {
            return self.last;
        }
        self.last = self.find_other(call, wiring, shape);
        self.last
    }

    /// Sets the lengths of an operation's blocks for the next run. Returns where it is then: if memory for
    /// what arrives has grown too much, all others are dropped.
    pub(crate) fn vary(&mut self, index: usize, blocks: &Blocks, rank: u32) -> usize {
        let entry = &mut self.operations[index];
        let before = entry.operation.scratch_bytes();
        entry.vary(blocks, rank);
        let now = entry.operation.scratch_bytes();
        self.scratch_bytes += now - before;
        if self.scratch_bytes <= PREPARED_MOST_BYTES || self.operations.len() == 1 {
            return index;
        }
        let entry = self.operations.swap_remove(index);
        self.by_call = FxHashMap::from_iter([(entry.call, 0)]);
        self.operations = vec![entry];
        (self.scratch_bytes, self.last) = (now, 0);
        0
    }

    #[cold]
    fn find_other(&mut self, call: &Call, wiring: &Wiring, shape: &Shape) -> usize {
        match self.by_call.get(call) {
            Some(&index) => index,
            None => self.add(call, wiring, shape),
        }
    }

    fn add(&mut self, call: &Call, wiring: &Wiring, shape: &Shape) -> usize {
        let entry = entry(call, wiring.rank, &wiring.places, shape);
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

/// How a call is carried out: what its operation is made of, wherever its memory is.
pub(crate) struct Planned {
    /// What peers and errors see of it.
    pub(crate) record: CallRecord,
    pub(crate) program: Program,
    pub(crate) op: Op,
    pub(crate) extent: Extent,
    pub(crate) schedule: Schedule,
    pub(crate) channel: Channel,
    /// The program is one small exchange.
    pub(crate) is_exchange: bool,
    /// See [`Entry::runs`].
    pub(crate) runs: u32,
    pub(crate) part: Part,
}

/// A call's operation on memory of the host.
pub(crate) fn entry(call: &Call, rank: u32, places: &[Places], shape: &Shape) -> Entry {
    let Planned { record, program, op, extent, schedule, channel, is_exchange, runs, part } =
        plan(call, rank, places, shape);
    let digest = record.digest();
    let mut operation =
        Operation::new(program, call.data_type, op, extent, schedule, channel, digest);
    if is_exchange {
        operation.exchange_at_once();
    }
    Entry { call: *call, record, operation, part, runs }
}

/// Chooses how to carry a call out, plans and lowers it. Of the `places` lanes of rings take all by turns, and
/// everyone else the first.
pub(crate) fn plan(call: &Call, rank: u32, places: &[Places], shape: &Shape) -> Planned {
    let collective = call.kind.collective(call.root);
    let block_bytes = call.count * call.data_type.size_bytes() as u64;
    let (extent, bytes) = match collective {
        Some(_) if call.kind.is_varied() => (Extent::Varied, block_bytes),
        Some(collective) if collective.is_of_blocks() => {
            (Extent::Blocks(call.count), u64::from(shape.ranks) * block_bytes)
        }
        _ => (Extent::Whole(call.count), block_bytes),
    };
    let choice = collective.map(|collective| {
        let choice = match call.kind {
            kind if kind.has_known_lengths() => {
                selection::choose_varied(collective, bytes, shape, call.forced)
            }
            // No rank knows how much there is to do, so that only what needs no rounds will do.
            kind if kind.is_varied() => Choice {
                algorithm: call.forced.unwrap_or(Algorithm::Direct),
                schedule: selection::WHOLE,
            },
            _ => selection::choose(collective, bytes, shape, call.forced),
        };
        (collective, choice)
    });
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
            let places = if algorithm.goes_around() { places } else { &places[..1] };
            let plans = places.iter().map(|places| algorithm.plan_on(collective, rank, places));
            (Program::of_variants(plans.map(|plan| lower(&plan)).collect()), schedule, 0)
        }
        None => (point_to_point(call.stream, rank, shape.ranks), selection::WHOLE, POINT_TO_POINT),
    };
    Planned {
        record,
        program,
        op: call.op.unwrap_or(Op::Sum),
        extent,
        schedule,
        channel,
        is_exchange: choice.is_some_and(|(_, choice)| choice.algorithm.is_one_exchange()),
        runs: choice.map_or(1, |(collective, choice)| choice.algorithm.runs_per_call(collective)),
        part: Part::of(collective, rank, shape.ranks, block_bytes as usize),
    }
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
        // Nobody touches the memory of a message before it has come.
        early: true,
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
        further_variants: Vec::new(),
    }
}
