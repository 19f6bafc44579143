//! Members that die, founders that end, connections that are cut with what was under way, knowledge that comes late or
//! never, communicators that fail again: all at random, and replayable from a seed.
//!
//! No two living members ever believe in different rosters of one epoch; in the end, all that have a communicator are
//! in the same one; and nobody waits for ever. That the seeds can see the opposite is tested, too: one [`Fault`] after
//! the other is built in, and must be found.

mod host;
mod trouble;
mod world;

use world::{Tally, World};

const SEEDS: u64 = 20_000;

/// What is wrong with members, founders, or what they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A member accepts a proposal though it has promised not to.
    BreaksPromises,
    /// A member that comes to another founder does not know what it has promised and accepted.
    ForgetsVotes,
    /// A founder does not hear what members have accepted in earlier rounds.
    IgnoresAccepted,
    /// A founder takes what was accepted in the oldest round, not in the newest.
    TakesOldest,
    /// Half of the members is enough for a founder, with whatever rank is the lowest one there.
    HalfIsEnough,
    /// All proposals have one ballot.
    SharesBallots,
    /// A founder proposes different rosters to different members.
    ProposesTwo,
    /// A founder decides when it proposes, whoever accepts that.
    AsksNobody,
    /// Newcomers hear of a decision that members do not know yet.
    TellsNewcomers,
    /// Members are said to have ended that live.
    BuriesTheLiving,
    /// Whoever was left behind comes when nobody is left that knows it: the case that is not covered, as
    /// docs/reliability.md says.
    ReturnsLate,
}

#[test]
fn no_epoch_has_two_rosters_and_whoever_may_go_on_does() {
    let mut all = Tally::default();
    for seed in 0..SEEDS {
        all += World::new(seed, None).run().unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
    // The seeds have been where they should.
    let Tally { went_on, no_quorum, epochs, joined, met_again } = all;
    assert!(went_on > SEEDS / 4 && no_quorum > SEEDS / 50, "{all:?}");
    assert!(epochs > SEEDS / 2 && joined > SEEDS / 20 && met_again > SEEDS / 20, "{all:?}");
}

#[test]
fn every_fault_is_found() {
    use Fault::*;
    // The rarest ones show in one of a hundred thousand seeds: there the search begins at one that shows it.
    for (fault, from) in [
        (BreaksPromises, 29_881),
        (ForgetsVotes, 0),
        (IgnoresAccepted, 0),
        (TakesOldest, 4_651),
        (HalfIsEnough, 0),
        (SharesBallots, 4_651),
        (ProposesTwo, 0),
        (AsksNobody, 0),
        (TellsNewcomers, 35_876),
        (BuriesTheLiving, 0),
        (ReturnsLate, 164_763),
    ] {
        let is_found = |seed: &u64| World::new(*seed, Some(fault)).run().is_err();
        let found = (from..from + SEEDS).find(is_found);
        let seed = found.unwrap_or_else(|| panic!("{fault:?} is not found"));
        let without = World::new(seed, None).run();
        assert!(without.is_ok(), "seed {seed} fails without {fault:?}: {without:?}");
    }
}
