//! Programs with one fault each: the checker rejects them, or they are as good as the original.
//!
//! A fault is an action deleted, a guard taken away, an own result called backing, a mark added, or
//! the mark of a completing reduction turned: what lowering could get wrong. All of them for 2 to 9 ranks.
//!
//! As good as the original are only those that concern a barrier's empty messages, and marks that are
//! true: of the first message of a half of halving and doubling, where the number of ranks is no power of
//! two, so that the peer is met again.

use ringtree_plan::{
    Action, Algorithm, Collective, Destination, Program, Source, lower, prove_programs,
};

#[derive(Clone, Copy, Debug)]
enum Fault {
    Delete,
    Unguard,
    CallBacking,
    /// The number of the destination that is called settled.
    CallSettled(usize),
    CallEarly,
    /// A reduction that completes a result is said not to, or the other way round.
    TurnCompletes,
}

#[test]
fn program_mutants_of_all_reduces() {
    let survivors = |algorithm| survivors(algorithm, |_| vec![Collective::AllReduce]);
    assert_eq!(survivors(Algorithm::Ring), 0);
    assert_eq!(survivors(Algorithm::DoubleTree), 0);
    assert_eq!(survivors(Algorithm::Doubling), 0);
    assert_eq!(survivors(Algorithm::OneShot), 0);
    assert_eq!(survivors(Algorithm::TwoShot), 0);
    assert_eq!(survivors(Algorithm::Hierarchical), 0);
    assert_eq!(survivors(Algorithm::Star), 0);
    assert_eq!(survivors(Algorithm::HalvingDoubling), 30);
}

#[test]
fn program_mutants_of_broadcast_and_barrier() {
    let every_root = |ranks| (0..ranks).map(|root| Collective::Broadcast { root }).collect();
    for algorithm in [Algorithm::Tree, Algorithm::Chain, Algorithm::DoubleTree] {
        assert_eq!(survivors(algorithm, every_root), 0);
    }
    assert_eq!(survivors(Algorithm::Dissemination, |_| vec![Collective::Barrier]), 246);
    assert_eq!(survivors(Algorithm::OneShot, |_| vec![Collective::Barrier]), 240);
}

#[test]
fn program_mutants_of_reductions_and_gathers() {
    let every_root = |ranks| (0..ranks).map(|root| Collective::Reduce { root }).collect();
    for algorithm in [Algorithm::Tree, Algorithm::Chain, Algorithm::DoubleTree] {
        assert_eq!(survivors(algorithm, every_root), 0);
    }
    let every_root = |ranks| (0..ranks).map(|root| Collective::Gather { root }).collect();
    assert_eq!(survivors(Algorithm::Tree, every_root), 0);
    let every_root = |ranks| (0..ranks).map(|root| Collective::Scatter { root }).collect();
    assert_eq!(survivors(Algorithm::Tree, every_root), 0);
    assert_eq!(survivors(Algorithm::HalvingDoubling, |_| vec![Collective::ReduceScatter]), 38);
    assert_eq!(survivors(Algorithm::HalvingDoubling, |_| vec![Collective::AllGather]), 30);
    for algorithm in [Algorithm::Ring, Algorithm::Direct] {
        assert_eq!(survivors(algorithm, |_| vec![Collective::ReduceScatter]), 0);
        assert_eq!(survivors(algorithm, |_| vec![Collective::AllGather]), 0);
    }
}

/// How many mutants up to 9 ranks are as good as the original.
fn survivors(algorithm: Algorithm, collectives: impl Fn(u32) -> Vec<Collective>) -> usize {
    let mut survivors = 0;
    for ranks in 2..=9 {
        for collective in collectives(ranks) {
            let plan = |rank| algorithm.plan(collective, rank, ranks);
            let mut programs: Vec<Program> = (0..ranks).map(|rank| lower(&plan(rank))).collect();
            let expressions = prove_programs(collective, &programs).unwrap().expressions;
            for (rank, at, fault) in faults(&programs) {
                let original = programs[rank].clone();
                mutate(&mut programs[rank], at, fault);
                if let Ok(report) = prove_programs(collective, &programs) {
                    assert_eq!(report.expressions, expressions);
                    survivors += 1;
                }
                programs[rank] = original;
            }
        }
    }
    survivors
}

/// Every fault there can be, with its rank and action.
fn faults(programs: &[Program]) -> Vec<(usize, usize, Fault)> {
    let mut faults = vec![];
    for (rank, program) in programs.iter().enumerate() {
        for (at, action) in program.actions.iter().enumerate() {
            faults.push((rank, at, Fault::Delete));
            let Action::Move { first_source, sources, guarded, early, .. } = *action else {
                continue;
            };
            if guarded {
                faults.push((rank, at, Fault::Unguard));
            }
            if sources > 1 {
                faults.push((rank, at, Fault::TurnCompletes));
            }
            let destinations = destinations(program, at);
            let own = matches!(program.destinations[destinations.start], Destination::Own(_));
            if own && destinations.len() > 1 {
                faults.push((rank, at, Fault::CallBacking));
            }
            let receives = matches!(
                program.sources[first_source as usize..][..sources as usize],
                [Source::Arrival { .. }]
            );
            if own && receives && !early {
                faults.push((rank, at, Fault::CallEarly));
            }
            let unsettled = |at: &usize| {
                matches!(program.destinations[*at], Destination::Send { settled: false, .. })
            };
            let unsettled = destinations.filter(unsettled);
            faults.extend(unsettled.map(|number| (rank, at, Fault::CallSettled(number))));
        }
    }
    faults
}

fn destinations(program: &Program, at: usize) -> std::ops::Range<usize> {
    match program.actions[at] {
        Action::Move { first_destination: first, destinations: count, .. } => {
            first as usize..(first + count) as usize
        }
        Action::Flush { .. } => 0..0,
    }
}

fn mutate(program: &mut Program, at: usize, fault: Fault) {
    let own = destinations(program, at).start;
    match (fault, &mut program.actions[at]) {
        (Fault::Delete, _) => drop(program.actions.remove(at)),
        (Fault::Unguard, Action::Move { guarded, .. }) => *guarded = false,
        (Fault::CallEarly, Action::Move { early, .. }) => *early = true,
        (Fault::TurnCompletes, Action::Move { completes, .. }) => *completes = !*completes,
        (Fault::CallBacking, Action::Move { early, .. }) => {
            *early = false;
            let Destination::Own(span) = program.destinations[own] else {
                panic!("an own span stands first")
            };
            program.destinations[own] = Destination::Backing(span);
        }
        (Fault::CallSettled(number), _) => {
            let Destination::Send { settled, .. } = &mut program.destinations[number] else {
                panic!("not a send")
            };
            *settled = true;
        }
        (fault, action) => panic!("{fault:?} does not fit {action:?}"),
    }
}
