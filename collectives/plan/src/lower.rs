//! Turns the steps of a plan into the actions that executors run.
//!
//! - A receive, reduction or copy takes the sends of exactly its result that follow it along.
//! - Receives into scratch that only the reduction after them reads become its operands.
//! - A flush before a write of the same chunks becomes a guard of the write.
//! - A span that only backs the sends of its action is marked so.
//! - The reductions that complete a result are marked so.
//!
//! Two reductions are never merged, and the messages of a channel keep their order.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Action, Destination, Plan, Program, Source, Space, Span, Step};

/// Lowers a plan.
///
/// # Panics
/// If a step sends to a rank that the plan does not have.
pub fn lower(plan: &Plan) -> Program {
    let mut folds = folds(plan).into_iter().rev().peekable();
    let mut lowering = Lowering::new(plan);
    let mut at = 0;
    while at < plan.steps.len() {
        if let Some(fold) = folds.next_if(|fold| fold.start == at) {
            at = lowering.fold(&fold);
            continue;
        }
        let next_is_whole = folds.peek().is_none_or(|fold| fold.start != at + 1);
        let guards = next_is_whole && guards_next(plan, at);
        at = if guards { lowering.step(at + 1, true) } else { lowering.step(at, false) };
    }
    let mut program = lowering.program;
    mark_completing(&mut program);
    mark_backing(&mut program);
    drop_unnamed_scratch(&mut program);
    program
}

/// A reduction, and the receives before it that become its operands.
struct Fold {
    /// The first receive.
    start: usize,
    /// The reduction.
    reduce: usize,
    /// By scratch chunk, who sends the operand that would have gone there.
    arrivals: BTreeMap<u32, u32>,
}

/// Finds the reductions that can draw in the receives before them, last one first.
fn folds(plan: &Plan) -> Vec<Fold> {
    let mut live = vec![false; plan.scratch.len()];
    let mut folds = vec![];
    for (at, step) in plan.steps.iter().enumerate().rev() {
        if let Step::Reduce { first, count, dst } = *step {
            let operands = operands(plan, first, count);
            folds.extend(fold(plan, at, operands, dst, &live));
            set(&mut live, dst, false);
            operands.iter().for_each(|&operand| set(&mut live, operand, true));
            continue;
        }
        let (read, written) = accesses(*step);
        written.into_iter().for_each(|span| set(&mut live, span, false));
        read.into_iter().for_each(|span| set(&mut live, span, true));
    }
    folds
}

/// What the reduction at `reduce` can draw in. `live` are the scratch chunks that are read after
/// it.
fn fold(plan: &Plan, reduce: usize, operands: &[Span], dst: Span, live: &[bool]) -> Option<Fold> {
    let mut wanted = BTreeMap::new();
    for operand in operands.iter().filter(|operand| operand.space == Space::Scratch) {
        // An operand that is named twice is needed in memory.
        let once = wanted.insert(operand.start, *operand).is_none();
        if !once || operand.len != 1 || live[operand.start as usize] {
            return None;
        }
    }
    let mut arrivals = BTreeMap::new();
    let mut peers = BTreeSet::new();
    let mut start = reduce;
    if start > 0 && is_flush_of(plan.steps[start - 1], dst) {
        start -= 1;
    }
    while let Some(Step::Recv { peer, dst, .. }) = start.checked_sub(1).map(|at| plan.steps[at]) {
        // Two messages of one peer come one after the other and cannot be operands side by side.
        let drawn_in = wanted.get(&dst.start) == Some(&dst) && peers.insert(peer);
        if !drawn_in || arrivals.insert(dst.start, peer).is_some() {
            break;
        }
        start -= 1;
    }
    (!arrivals.is_empty()).then_some(Fold { start, reduce, arrivals })
}

/// What a step other than `Reduce` reads, and what it writes.
fn accesses(step: Step) -> (Option<Span>, Option<Span>) {
    match step {
        Step::Send { src, .. } => (Some(src), None),
        Step::Recv { dst, .. } | Step::Reduce { dst, .. } => (None, Some(dst)),
        Step::RecvReduce { src, dst, .. } | Step::Copy { src, dst } => (Some(src), Some(dst)),
        Step::Flush { .. } => (None, None),
    }
}

fn set(live: &mut [bool], span: Span, value: bool) {
    if span.space == Space::Scratch {
        live[span.chunks()].fill(value);
    }
}

fn operands(plan: &Plan, first: u32, count: u32) -> &[Span] {
    &plan.sources[first as usize..][..count as usize]
}

/// Whether the step waits for nothing but what a write of `dst` must wait for.
fn is_flush_of(step: Step, dst: Span) -> bool {
    matches!(step, Step::Flush { span } if dst.covers(span))
}

/// Whether the step at `at` is a flush that can guard the writes of the step after it.
fn guards_next(plan: &Plan, at: usize) -> bool {
    let written = plan.steps.get(at + 1).and_then(|next| accesses(*next).1);
    written.is_some_and(|dst| is_flush_of(plan.steps[at], dst))
}

struct Lowering<'a> {
    plan: &'a Plan,
    program: Program,
    /// By rank, the last step whose result it was sent.
    sent_from: Vec<usize>,
}

impl<'a> Lowering<'a> {
    fn new(plan: &'a Plan) -> Lowering<'a> {
        let program = Program {
            rank: plan.rank,
            ranks: plan.ranks,
            chunks: plan.chunks,
            scratch: plan.scratch.clone(),
            actions: Vec::with_capacity(plan.steps.len()),
            sources: Vec::with_capacity(plan.steps.len()),
            destinations: Vec::with_capacity(plan.steps.len()),
            further_variants: Vec::new(),
        };
        Lowering { plan, program, sent_from: vec![usize::MAX; plan.ranks as usize] }
    }

    /// Lowers a reduction and the receives that it draws in. Returns the next step that is left.
    fn fold(&mut self, fold: &Fold) -> usize {
        let steps = &self.plan.steps;
        let Step::Reduce { first, count, dst } = steps[fold.reduce] else {
            unreachable!("a fold ends with its reduction")
        };
        let guarded = matches!(steps[fold.reduce - 1], Step::Flush { .. });
        let source = |span: &Span| match fold.arrivals.get(&span.start) {
            Some(&peer) if span.space == Space::Scratch => Source::Arrival { peer },
            _ => Source::Own(*span),
        };
        let sources = operands(self.plan, first, count).iter().map(source);
        self.result(fold.reduce, sources, dst, guarded, false)
    }

    /// Lowers the step at `at`, with the sends after it that become part of its action. Returns
    /// the next step that is left.
    fn step(&mut self, at: usize, guarded: bool) -> usize {
        let plan = self.plan;
        match plan.steps[at] {
            Step::Send { peer, src, settled } => {
                let first = self.program.destinations.len();
                self.program.destinations.push(Destination::Send { peer, settled });
                self.push([Source::Own(src)], first, src, false, false);
                at + 1
            }
            Step::Recv { peer, dst, early } => {
                self.result(at, [Source::Arrival { peer }], dst, guarded, early)
            }
            Step::RecvReduce { peer, src, dst } => {
                let sources = [Source::Own(src), Source::Arrival { peer }];
                self.result(at, sources, dst, guarded, false)
            }
            Step::Copy { src, dst } => self.result(at, [Source::Own(src)], dst, guarded, false),
            Step::Reduce { first, count, dst } => {
                let sources = operands(plan, first, count).iter().map(|span| Source::Own(*span));
                self.result(at, sources, dst, guarded, false)
            }
            Step::Flush { span } => {
                self.program.actions.push(Action::Flush { span });
                at + 1
            }
        }
    }

    /// Puts the result of the step at `at` into `dst`, and takes the sends of it along.
    fn result(
        &mut self,
        at: usize,
        sources: impl IntoIterator<Item = Source>,
        dst: Span,
        guarded: bool,
        early: bool,
    ) -> usize {
        let steps = &self.plan.steps[at + 1..];
        let sends = steps.iter().map_while(|step| match *step {
            Step::Send { peer, src, settled } if src == dst => Some((peer, settled)),
            _ => None,
        });
        let destinations = &mut self.program.destinations;
        let first = destinations.len();
        destinations.push(Destination::Own(dst));
        for (peer, settled) in sends {
            // A second message to one peer comes after the first, not beside it.
            if std::mem::replace(&mut self.sent_from[peer as usize], at) == at {
                break;
            }
            destinations.push(Destination::Send { peer, settled });
        }
        let next = at + destinations.len() - first;
        self.push(sources, first, dst, guarded, early);
        next
    }

    /// Adds a move from `sources` to the destinations from `first_destination` on.
    fn push(
        &mut self,
        sources: impl IntoIterator<Item = Source>,
        first_destination: usize,
        shape: Span,
        guarded: bool,
        early: bool,
    ) {
        let program = &mut self.program;
        let first_source = program.sources.len();
        program.sources.extend(sources);
        program.actions.push(Action::Move {
            first_source: first_source as u32,
            sources: (program.sources.len() - first_source) as u32,
            first_destination: first_destination as u32,
            destinations: (program.destinations.len() - first_destination) as u32,
            shape,
            guarded,
            early,
            completes: false,
        });
    }
}

/// Marks the reductions whose results this rank's output ends with, here or by a copy: each rank
/// names only what it gets of the output, so these have everyone's contributions. So has a fold of as many
/// operands as there are ranks, whoever gets its result.
fn mark_completing(program: &mut Program) {
    // Whether a chunk holds, from here on, what the output ends with.
    let mut is_final = Live {
        data: vec![true; program.chunks as usize],
        scratch: vec![false; program.scratch.len()],
    };
    let Program { ranks, actions, sources, destinations, .. } = program;
    for action in actions.iter_mut().rev() {
        let Action::Move {
            first_source,
            sources: source_count,
            first_destination,
            destinations: destination_count,
            completes,
            ..
        } = action
        else {
            continue;
        };
        let range = |first: u32, count: u32| first as usize..first as usize + count as usize;
        let sources = &sources[range(*first_source, *source_count)];
        let destinations = &destinations[range(*first_destination, *destination_count)];
        let own = destinations.iter().find_map(|destination| match *destination {
            Destination::Own(span) | Destination::Backing(span) => Some(span),
            Destination::Send { .. } => None,
        });
        let Some(dst) = own else { continue };
        let chunks = &mut is_final.of(dst)[dst.chunks()];
        let ends = !chunks.is_empty() && chunks.iter().all(|chunk| *chunk);
        chunks.fill(false);
        match *sources {
            [Source::Own(src)] if src.space != Space::Input => {
                is_final.of(src)[src.chunks()].fill(ends);
            }
            [_] => {}
            _ => *completes = ends || sources.len() == *ranks as usize,
        }
    }
}

/// Marks the own destinations that nothing but the sends beside them reads before they are
/// overwritten.
fn mark_backing(program: &mut Program) {
    // Input counts as Output, with which it may be one.
    let mut live = Live {
        data: vec![true; program.chunks as usize],
        scratch: vec![false; program.scratch.len()],
    };
    for action in program.actions.iter_mut().rev() {
        let Action::Move { first_source, sources, first_destination, destinations, early, .. } =
            action
        else {
            continue;
        };
        let sends = *destinations > 1;
        let range = *first_destination as usize..(*first_destination + *destinations) as usize;
        for destination in &mut program.destinations[range] {
            if let Destination::Own(dst) = *destination {
                let chunks = &mut live.of(dst)[dst.chunks()];
                if sends && !chunks.is_empty() && chunks.iter().all(|live| !live) {
                    *destination = Destination::Backing(dst);
                    *early = false;
                }
                chunks.fill(false);
            }
        }
        for source in &program.sources[*first_source as usize..][..*sources as usize] {
            if let Source::Own(src) = *source {
                live.of(src)[src.chunks()].fill(true);
            }
        }
    }
}

/// Which chunks are read later.
struct Live {
    data: Vec<bool>,
    scratch: Vec<bool>,
}

impl Live {
    fn of(&mut self, span: Span) -> &mut [bool] {
        if span.space == Space::Scratch { &mut self.scratch } else { &mut self.data }
    }
}

/// Removes the scratch chunks that no action names, and numbers the others anew in their order.
fn drop_unnamed_scratch(program: &mut Program) {
    if program.scratch.is_empty() {
        return;
    }
    let mut named = vec![false; program.scratch.len()];
    let spans = program.spans_mut().filter(|span| span.space == Space::Scratch);
    let spans: Vec<&mut Span> = spans.collect();
    for span in &spans {
        named[span.chunks()].fill(true);
    }
    // `number[i]` of the first `i` chunks are left.
    let left = named.iter().scan(0, |count, &named| {
        *count += u32::from(named);
        Some(*count)
    });
    let number: Vec<u32> = std::iter::once(0).chain(left).collect();
    for span in spans {
        span.start = number[span.start as usize];
    }
    let mut named = named.iter();
    program.scratch.retain(|_| named.next() == Some(&true));
}
