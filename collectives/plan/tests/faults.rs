//! Plans that are wrong in known ways, and what the checker says of them.

use ringtree_plan::{
    Algorithm, CheckError, Collective, Conditions, Credits, Fault, Plan, Span, Step, check, prove,
};

const IN_PLACE: Conditions =
    Conditions { in_place: true, rounds: 2, credits: Credits::Rendezvous, slices: 1 };

fn plans(algorithm: Algorithm, ranks: u32) -> Vec<Plan> {
    (0..ranks).map(|rank| algorithm.plan(Collective::AllReduce, rank, ranks)).collect()
}

fn fault(plans: &[Plan], conditions: Conditions) -> CheckError {
    check(Collective::AllReduce, plans, conditions).unwrap_err()
}

/// Where a one-shot's flush stands among 3 ranks: after two sends and two receives.
const FLUSH: usize = 4;

#[test]
fn a_flush_before_the_receives_deadlocks_with_rendezvous_only() {
    let mut plans = plans(Algorithm::OneShot, 3);
    for plan in &mut plans {
        let flush = plan.steps.remove(FLUSH);
        plan.steps.insert(2, flush);
    }
    assert_eq!(fault(&plans, IN_PLACE).fault, Fault::NotTaken { peer: 1 });
    let with_credit = Conditions { credits: Credits::Slices(1), ..IN_PLACE };
    assert!(check(Collective::AllReduce, &plans, with_credit).is_ok());
}

#[test]
fn a_missing_flush_is_a_hazard_in_place_only() {
    let mut plans = plans(Algorithm::OneShot, 3);
    plans[1].steps.remove(FLUSH);
    let error = fault(&plans, IN_PLACE);
    assert_eq!((error.rank, error.step), (1, FLUSH));
    assert_eq!(error.fault, Fault::Overwrites { peer: 2 });
    assert_eq!(
        error.to_string(),
        "rank 1, round 0, step 4 `Reduce Scratch[0], In[0], Scratch[2] -> Out[0]`, \
         chunk 0 with the contributions of ranks [1]: writes what rank 2 may still be reading"
    );
    let out_of_place = Conditions { in_place: false, ..IN_PLACE };
    assert!(check(Collective::AllReduce, &plans, out_of_place).is_ok());
}

#[test]
fn another_order_of_summation_on_one_rank_is_found() {
    let mut plans = plans(Algorithm::OneShot, 3);
    plans[2].sources.rotate_left(1);
    let error = fault(&plans, IN_PLACE);
    // Rank 2 ended first.
    assert_eq!((error.rank, error.contributions.as_slice()), (0, &[0, 1, 2][..]));
    let [expression, other] = ["(0+1+2)", "(1+2+0)"].map(str::to_owned);
    assert_eq!(error.fault, Fault::Disagrees { expression, other });
}

#[test]
fn a_contribution_that_counts_twice_is_found() {
    let mut plans = plans(Algorithm::Doubling, 4);
    plans[3].sources[3] = Span::output(0, 1);
    assert_eq!(fault(&plans, IN_PLACE).fault, Fault::CountedTwice { ranks: vec![2, 3] });
}

#[test]
fn a_message_too_many_is_found_in_either_round() {
    let mut plans = plans(Algorithm::Ring, 3);
    plans[0].steps.push(Step::send_settled(1, Span::input(0, 1)));
    let unsettled = fault(&plans, IN_PLACE);
    assert_eq!((unsettled.rank, unsettled.step), (0, 8));
    assert_eq!(unsettled.fault, Fault::NotSettled { peer: 1 });

    plans[0].steps[8] = Step::send(1, Span::input(0, 1));
    let unlimited = Conditions { credits: Credits::Unlimited, ..IN_PLACE };
    let next_round = fault(&plans, unlimited);
    assert_eq!((next_round.rank, next_round.round), (1, 1));
    assert_eq!(next_round.fault, Fault::OtherRound { peer: 0, sent_in: 0 });
    let one_round = Conditions { rounds: 1, ..unlimited };
    assert_eq!(fault(&plans, one_round).fault, Fault::Unmatched { peer: 1 });
}

#[test]
fn a_message_of_another_length_is_found() {
    let mut plans = plans(Algorithm::Ring, 3);
    plans[0].steps[0] = Step::send_settled(1, Span::input(1, 1));
    let error = fault(&plans, IN_PLACE);
    assert_eq!((error.rank, error.step, error.chunk), (1, 1, 0));
    let sent = Span::input(1, 1);
    assert_eq!(error.fault, Fault::LengthsDiffer { peer: 0, sent });
}

#[test]
fn a_write_to_the_input_is_found() {
    let mut plans = plans(Algorithm::Ring, 2);
    plans[1].steps[1] = Step::recv_reduce(0, Span::input(0, 1), Span::input(0, 1));
    assert!(matches!(fault(&plans, IN_PLACE).fault, Fault::Malformed { .. }));
}

#[test]
fn a_barrier_that_hears_from_half_the_ranks_is_found() {
    let mut plans: Vec<Plan> =
        (0..4).map(|rank| Algorithm::Dissemination.plan(Collective::Barrier, rank, 4)).collect();
    plans.iter_mut().for_each(|plan| plan.steps.truncate(2));
    let error = prove(Collective::Barrier, &plans).unwrap_err();
    assert_eq!(error.contributions.len(), 2);
    assert!(matches!(error.fault, Fault::NotHeard { .. }));
}
