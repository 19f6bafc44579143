//! What can be seen of a program without running it; and plans as programs of one action a step.

use std::collections::BTreeSet;

use super::error::Fault;
use crate::action::Move;
use crate::{Action, Collective, Destination, Plan, Program, Source, Space, Span, Step};

/// A plan with every step as an action of its own, so that one run checks both forms. Operands
/// that the plan does not have are left out.
pub(super) fn verbatim(plan: &Plan) -> Program {
    let mut program = Program {
        rank: plan.rank,
        ranks: plan.ranks,
        chunks: plan.chunks,
        scratch: plan.scratch.clone(),
        actions: Vec::with_capacity(plan.steps.len()),
        sources: Vec::with_capacity(plan.steps.len()),
        destinations: Vec::with_capacity(plan.steps.len()),
        further_variants: Vec::new(),
    };
    for step in &plan.steps {
        let own = |dst| Destination::Own(dst);
        match *step {
            Step::Send { peer, src, settled } => {
                let send = Destination::Send { peer, settled };
                push(&mut program, &[Source::Own(src)], send, src, false);
            }
            Step::Recv { peer, dst, early } => {
                push(&mut program, &[Source::Arrival { peer }], own(dst), dst, early);
            }
            Step::RecvReduce { peer, src, dst } => {
                let sources = [Source::Own(src), Source::Arrival { peer }];
                push(&mut program, &sources, own(dst), dst, false);
            }
            Step::Copy { src, dst } => {
                push(&mut program, &[Source::Own(src)], own(dst), dst, false);
            }
            Step::Reduce { first, count, dst } => {
                let operands = plan.sources.iter().skip(first as usize).take(count as usize);
                let sources: Vec<Source> = operands.map(|span| Source::Own(*span)).collect();
                push(&mut program, &sources, own(dst), dst, false);
            }
            Step::Flush { span } => program.actions.push(Action::Flush { span }),
        }
    }
    program
}

fn push(
    program: &mut Program,
    sources: &[Source],
    destination: Destination,
    shape: Span,
    early: bool,
) {
    program.actions.push(Action::Move {
        first_source: program.sources.len() as u32,
        sources: sources.len() as u32,
        first_destination: program.destinations.len() as u32,
        destinations: 1,
        shape,
        guarded: false,
        early,
        completes: false,
    });
    program.sources.extend_from_slice(sources);
    program.destinations.push(destination);
}

/// For each chunk of a span, the chunk of the round that it is as long as. In all-to-all all are of
/// one length.
pub(super) fn lengths(
    collective: Collective,
    program: &Program,
    span: Span,
) -> impl Iterator<Item = u32> + '_ {
    (span.start..span.end()).map(move |chunk| match span.space {
        _ if collective == Collective::AllToAll => 0,
        Space::Scratch => program.scratch[chunk as usize],
        _ => chunk,
    })
}

/// Finds the first action that can mean nothing.
pub(super) fn inspect(
    collective: Collective,
    program: &Program,
) -> Result<(), (usize, Span, Fault)> {
    for (at, action) in program.actions.iter().enumerate() {
        let shape = match *action {
            Action::Move { shape, .. } => shape,
            Action::Flush { span } => span,
        };
        inspect_action(collective, program, *action, shape)
            .map_err(|(span, reason)| (at, span, Fault::Malformed { reason }))?;
    }
    Ok(())
}

fn inspect_action(
    collective: Collective,
    program: &Program,
    action: Action,
    shape: Span,
) -> Result<(), (Span, &'static str)> {
    require(exists(program, shape), shape, "names a chunk that does not exist")?;
    if let Action::Flush { .. } = action {
        return Ok(());
    }
    let Some(parts) = Move::of(program, action) else {
        return Err((shape, "names operands that do not exist"));
    };
    require(!parts.sources.is_empty(), shape, "has no operand")?;
    require(!parts.destinations.is_empty(), shape, "has no result")?;
    for source in parts.sources {
        if let Source::Own(span) = *source {
            inspect_span(collective, program, span, shape)?;
        }
    }
    inspect_peers(program, parts.arrivals(), shape)?;
    inspect_peers(program, parts.sends().map(|(peer, _)| peer), shape)?;
    inspect_results(collective, program, &parts)
}

fn inspect_results(
    collective: Collective,
    program: &Program,
    parts: &Move,
) -> Result<(), (Span, &'static str)> {
    let shape = parts.shape;
    let sends = parts.sends().count();
    require(parts.destinations.len() - sends <= 1, shape, "has two results in own memory")?;
    if let Some((span, backing)) = parts.own() {
        inspect_span(collective, program, span, shape)?;
        require(span.space != Space::Input, span, "writes the input")?;
        require(!backing || sends > 0, span, "backs no send")?;
    } else {
        let forwards = matches!(parts.sources, [Source::Own(_)]);
        require(forwards, shape, "has no own memory to send from without credit")?;
    }
    let into_own = matches!(parts.own(), Some((_, false)));
    let receives = matches!(parts.sources, [Source::Arrival { .. }]);
    require(!parts.early || (receives && into_own), shape, "cannot be early")
}

fn inspect_span(
    collective: Collective,
    program: &Program,
    span: Span,
    shape: Span,
) -> Result<(), (Span, &'static str)> {
    require(exists(program, span), span, "names a chunk that does not exist")?;
    let got = |chunk| span.space != Space::Output || collective.is_got(program.rank, chunk);
    require((span.start..span.end()).all(got), span, "names an output that this rank has not")?;
    let given = |chunk| span.space != Space::Input || collective.is_given(program.rank, chunk);
    require((span.start..span.end()).all(given), span, "names an input that this rank has not")?;
    let alike = lengths(collective, program, span).eq(lengths(collective, program, shape));
    require(alike, span, "joins chunks of different lengths")
}

fn inspect_peers(
    program: &Program,
    peers: impl Iterator<Item = u32>,
    shape: Span,
) -> Result<(), (Span, &'static str)> {
    let mut seen = BTreeSet::new();
    for peer in peers {
        let other = peer < program.ranks && peer != program.rank;
        require(other, shape, "names a peer that is no other rank")?;
        require(seen.insert(peer), shape, "has two messages of one channel side by side")?;
    }
    Ok(())
}

fn exists(program: &Program, span: Span) -> bool {
    let end = u64::from(span.start) + u64::from(span.len);
    let chunks = match span.space {
        Space::Scratch => program.scratch.len() as u64,
        _ => u64::from(program.chunks),
    };
    end <= chunks
}

fn require(holds: bool, span: Span, reason: &'static str) -> Result<(), (Span, &'static str)> {
    if holds { Ok(()) } else { Err((span, reason)) }
}
