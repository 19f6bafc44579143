//! Plans with one fault each: the checker rejects them, or they are as good as the original.
//!
//! A fault is a step deleted, two neighbouring steps that share a span or a channel swapped, a span
//! shifted by one chunk (to another space where there is one chunk only), or a mark added. All of
//! them for 2 to 9 ranks, and 200 drawn with a fixed seed at each of 16, 33 and 64.
//!
//! How many are as good as the original is fixed here. They are sends and copies of one span in another order,
//! flushes of the output instead of the input (which differ only out of place, where nothing needs
//! them), sends and receives of all-to-all in another order, and marks that are true: of receives into
//! scratch that nothing touched before, of messages of a barrier, of the first half of the turns of the
//! pairwise exchange, and of the first message of a half of halving and doubling where its peer is met
//! again.

use ringtree_plan::{
    Algorithm, CheckError, Collective, Conditions, Credits, Plan, Space, Span, Step, check, prove,
};

/// One step of one rank made wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Delete,
    SwapWithNext,
    /// The number of the span among the step's.
    Shift(usize),
    AddMark,
}

#[test]
fn mutants_of_the_ring() {
    assert_eq!(survivors(Algorithm::Ring, all_reduce), [0, 0, 0, 0]);
}

#[test]
fn mutants_of_the_double_tree() {
    assert_eq!(survivors(Algorithm::DoubleTree, all_reduce), [32, 10, 11, 5]);
}

#[test]
fn mutants_of_doubling() {
    assert_eq!(survivors(Algorithm::Doubling, all_reduce), [64, 8, 4, 2]);
}

#[test]
fn mutants_of_the_one_shot() {
    assert_eq!(survivors(Algorithm::OneShot, all_reduce), [480, 43, 48, 46]);
}

#[test]
fn mutants_of_the_two_shot() {
    assert_eq!(survivors(Algorithm::TwoShot, all_reduce), [436, 31, 28, 33]);
}

#[test]
fn mutants_of_halving_doubling() {
    assert_eq!(survivors(Algorithm::HalvingDoubling, all_reduce), [30, 0, 5, 0]);
    let all_gather = |_| vec![Collective::AllGather];
    assert_eq!(survivors(Algorithm::HalvingDoubling, all_gather), [30, 0, 4, 0]);
    let reduce_scatter = |_| vec![Collective::ReduceScatter];
    assert_eq!(survivors(Algorithm::HalvingDoubling, reduce_scatter), [38, 0, 6, 0]);
}

#[test]
fn mutants_of_the_star() {
    assert_eq!(survivors(Algorithm::Star, all_reduce), [64, 35, 35, 33]);
}

#[test]
fn mutants_of_the_hierarchy() {
    assert_eq!(survivors(Algorithm::Hierarchical, all_reduce), [250, 20, 16, 21]);
}

#[test]
fn mutants_of_the_broadcast() {
    assert_eq!(survivors(Algorithm::Tree, every_root), [154, 14, 10, 18]);
    assert_eq!(survivors(Algorithm::Chain, every_root), [44, 1, 2, 0]);
    assert_eq!(survivors(Algorithm::DoubleTree, every_root), [216, 16, 18, 20]);
}

#[test]
fn mutants_of_the_barrier() {
    let barrier = |_| vec![Collective::Barrier];
    assert_eq!(survivors(Algorithm::Dissemination, barrier), [160, 46, 53, 60]);
    assert_eq!(survivors(Algorithm::OneShot, barrier), [240, 46, 43, 54]);
}

#[test]
fn mutants_of_reduce_scatter() {
    let reduce_scatter = |_| vec![Collective::ReduceScatter];
    assert_eq!(survivors(Algorithm::Ring, reduce_scatter), [0, 0, 0, 0]);
    assert_eq!(survivors(Algorithm::Direct, reduce_scatter), [240, 23, 35, 34]);
}

#[test]
fn mutants_of_all_gather() {
    let all_gather = |_| vec![Collective::AllGather];
    assert_eq!(survivors(Algorithm::Ring, all_gather), [0, 0, 0, 0]);
    assert_eq!(survivors(Algorithm::Direct, all_gather), [196, 19, 22, 31]);
}

#[test]
fn mutants_of_all_to_all() {
    let all_to_all = |_| vec![Collective::AllToAll];
    assert_eq!(survivors(Algorithm::Pairwise, all_to_all), [177, 35, 36, 28]);
    assert_eq!(survivors(Algorithm::Direct, all_to_all), [44, 6, 2, 0]);
}

fn every(ranks: u32, collective: fn(u32) -> Collective) -> Vec<Collective> {
    (0..ranks).map(collective).collect()
}

#[test]
fn mutants_of_reduce() {
    let reduce = |ranks| every(ranks, |root| Collective::Reduce { root });
    assert_eq!(survivors(Algorithm::Tree, reduce), [0, 0, 0, 0]);
    assert_eq!(survivors(Algorithm::Chain, reduce), [0, 0, 0, 0]);
    assert_eq!(survivors(Algorithm::DoubleTree, reduce), [0, 0, 0, 0]);
}

#[test]
fn mutants_of_gather_and_scatter() {
    let gather = |ranks| every(ranks, |root| Collective::Gather { root });
    assert_eq!(survivors(Algorithm::Direct, gather), [0, 0, 0, 0]);
    assert_eq!(survivors(Algorithm::Tree, gather), [0, 0, 0, 0]);
    let scatter = |ranks| every(ranks, |root| Collective::Scatter { root });
    assert_eq!(survivors(Algorithm::Direct, scatter), [0, 0, 0, 0]);
    assert_eq!(survivors(Algorithm::Tree, scatter), [0, 0, 0, 0]);
}

fn every_root(ranks: u32) -> Vec<Collective> {
    (0..ranks).map(|root| Collective::Broadcast { root }).collect()
}

fn all_reduce(_: u32) -> Vec<Collective> {
    vec![Collective::AllReduce]
}

/// How many mutants are as good as the original: of all up to 9 ranks, and of 200 at 16, 33, 64.
fn survivors(algorithm: Algorithm, collectives: impl Fn(u32) -> Vec<Collective>) -> [usize; 4] {
    let small = (2..=9).flat_map(|ranks| collectives(ranks).into_iter().map(move |c| (ranks, c)));
    let all = small.map(|(ranks, collective)| {
        let mut subject = Subject::new(algorithm, collective, ranks);
        let faults = faults(&subject.plans);
        faults.into_iter().filter(|fault| subject.survives(*fault)).count()
    });
    let drawn = [16, 33, 64].map(|ranks| {
        let mut random = Random(u64::from(ranks));
        let collectives = collectives(ranks);
        let drawn = (0..200).filter(|_| {
            let collective = collectives[random.below(collectives.len())];
            let mut subject = Subject::new(algorithm, collective, ranks);
            let faults = faults(&subject.plans);
            subject.survives(faults[random.below(faults.len())])
        });
        drawn.count()
    });
    [all.sum(), drawn[0], drawn[1], drawn[2]]
}

/// The plans of all ranks, and by which expressions they get their results.
struct Subject {
    collective: Collective,
    plans: Vec<Plan>,
    expressions: u64,
}

impl Subject {
    fn new(algorithm: Algorithm, collective: Collective, ranks: u32) -> Subject {
        let plans: Vec<Plan> =
            (0..ranks).map(|rank| algorithm.plan(collective, rank, ranks)).collect();
        let out_of_place =
            Conditions { in_place: false, rounds: 1, credits: Credits::Unlimited, slices: 1 };
        let report = check(collective, &plans, out_of_place).unwrap();
        Subject { collective, plans, expressions: report.expressions }
    }

    /// Whether the plans with a fault are proved, and give the same results. If not, the error
    /// says where and what.
    fn survives(&mut self, (rank, at, kind): (usize, usize, Fault)) -> bool {
        let original = self.plans[rank].clone();
        mutate(&mut self.plans[rank], at, kind);
        let verdict = prove(self.collective, &self.plans);
        let mut is_same = true;
        match &verdict {
            // Only the root has a sum, so that it may be in any order.
            Ok(report) if matches!(self.collective, Collective::Reduce { .. }) => {
                is_same = report.expressions == self.expressions;
            }
            Ok(report) => assert_eq!(report.expressions, self.expressions, "{kind:?} at {at}"),
            Err(error) => assert_names_the_place(error, &self.plans),
        }
        self.plans[rank] = original;
        verdict.is_ok() && is_same
    }
}

/// Every fault there can be, with its rank and step.
fn faults(plans: &[Plan]) -> Vec<(usize, usize, Fault)> {
    let mut faults = vec![];
    for (rank, plan) in plans.iter().enumerate() {
        for (at, step) in plan.steps.iter().enumerate() {
            faults.push((rank, at, Fault::Delete));
            let next = plan.steps.get(at + 1);
            if next.is_some_and(|next| next != step && share(plan, *step, *next)) {
                faults.push((rank, at, Fault::SwapWithNext));
            }
            let spans = spans(plan, *step);
            let filled = spans.iter().enumerate().filter(|(_, span)| span.len > 0);
            faults.extend(filled.map(|(number, _)| (rank, at, Fault::Shift(number))));
            let unmarked =
                matches!(step, Step::Send { settled: false, .. } | Step::Recv { early: false, .. });
            if unmarked {
                faults.push((rank, at, Fault::AddMark));
            }
        }
    }
    faults
}

fn share(plan: &Plan, one: Step, other: Step) -> bool {
    let span = |a: &Span| spans(plan, other).iter().any(|b| a.overlaps(*b, true));
    spans(plan, one).iter().any(span) || (channel(one).is_some() && channel(one) == channel(other))
}

/// The peer, and whether it is sent to.
fn channel(step: Step) -> Option<(u32, bool)> {
    match step {
        Step::Send { peer, .. } => Some((peer, true)),
        Step::Recv { peer, .. } | Step::RecvReduce { peer, .. } => Some((peer, false)),
        _ => None,
    }
}

fn spans(plan: &Plan, step: Step) -> Vec<Span> {
    match step {
        Step::Send { src, .. } => vec![src],
        Step::Recv { dst, .. } => vec![dst],
        Step::RecvReduce { src, dst, .. } | Step::Copy { src, dst } => vec![src, dst],
        Step::Reduce { first, count, dst } => {
            let mut spans = plan.sources[first as usize..][..count as usize].to_vec();
            spans.push(dst);
            spans
        }
        Step::Flush { span } => vec![span],
    }
}

fn assert_names_the_place(error: &CheckError, plans: &[Plan]) {
    let plan = &plans[error.rank as usize];
    assert!(error.step < plan.steps.len().max(1), "{error}");
    assert!(error.chunk < plan.chunks.max(plan.scratch.len() as u32), "{error}");
    assert!(error.contributions.iter().all(|rank| *rank < plan.ranks), "{error}");
    let text = error.to_string();
    let CheckError { rank, step, chunk, .. } = error;
    let place = [format!("rank {rank}, "), format!("step {step} "), format!("chunk {chunk} ")];
    assert!(
        place.iter().all(|word| text.contains(word)) && text.contains("contribution"),
        "{text}"
    );
}

fn mutate(plan: &mut Plan, at: usize, fault: Fault) {
    match fault {
        Fault::Delete => drop(plan.steps.remove(at)),
        Fault::SwapWithNext => plan.steps.swap(at, at + 1),
        Fault::Shift(number) => shift(plan, at, number),
        Fault::AddMark => match &mut plan.steps[at] {
            Step::Send { settled: mark, .. } | Step::Recv { early: mark, .. } => *mark = true,
            other => panic!("{other} takes no mark"),
        },
    }
}

fn shift(plan: &mut Plan, at: usize, number: usize) {
    let (chunks, scratch) = (plan.chunks, plan.scratch.len() as u32);
    let span = match (&mut plan.steps[at], number) {
        (Step::Reduce { first, count, .. }, number) if number < *count as usize => {
            &mut plan.sources[*first as usize + number]
        }
        (Step::RecvReduce { src: span, .. } | Step::Copy { src: span, .. }, 0)
        | (Step::Send { src: span, .. } | Step::Flush { span }, _)
        | (Step::Recv { dst: span, .. } | Step::Reduce { dst: span, .. }, _)
        | (Step::RecvReduce { dst: span, .. } | Step::Copy { dst: span, .. }, _) => span,
    };
    let chunks = if span.space == Space::Scratch { scratch } else { chunks };
    if chunks > 1 {
        span.start = (span.start + 1) % chunks;
    } else {
        span.space = match span.space {
            Space::Input | Space::Scratch => Space::Output,
            Space::Output => Space::Input,
        };
    }
}

/// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % bound as u64) as usize
    }
}
