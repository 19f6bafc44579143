//! How the members of a communicator agree on who goes on: after a failure, or to let newcomers in.
//!
//! ```text
//!   member            founder            member         an epoch of members decides the next one:
//!     |---- Arrival ---->|<---- Arrival ----|
//!     |<--- Prepare -----|----- Prepare --->|           one decision of Paxos, whose acceptors are
//!     |---- Promise ---->|<---- Promise ----|           the members of the epoch and whose value
//!     |<--- Propose -----|----- Propose --->|           is the roster of the next one
//!     |---- Accept ----->|<---- Accept -----|
//!     |<--- Decided -----|----- Decided --->|
//!     |---- Heard ------>|<---- Heard ------|           now newcomers hear of it, too
//!     |        they make the communicator   |
//!     |---- Standing --->|<---- Standing ---|
//! ```
//!
//! The founder is the control service where the ranks met, else that in the process of the lowest rank that is left
//! (`collectives/src/regroup.rs`). There may be two at a time, and each may end at any moment: Lamport's protocol
//! ("The part-time parliament", 1998; "Paxos made simple", 2001) sees to it that no epoch is decided twice, given a
//! rule by which a part of the members may decide ([`may_decide`]). A member is with one founder at a time.
//!
//! All of this is pure: the service carries messages, and says whose connection was lost and which time has come.

mod founder;
mod messages;
#[cfg(test)]
mod simulation;
mod voter;

pub(super) use founder::{Effect, Founder};
pub(super) use messages::{Arrival, ToFounder, ToVoter};
pub use messages::{Ballot, Member, Progress, Roster, Without};
pub(crate) use voter::Voter;

/// Members of an epoch at most: what one message carries whole.
pub(crate) const MAX_MEMBERS: usize = super::codec::MAX_LIST;

/// Whether those of an epoch's members for which `is_here` holds may decide what comes next: more than half of all, or half
/// of them with the one of the lowest rank; or if every other one is known to have ended.
///
/// Two parts that may both decide have a member in common, or one of them has nobody left: two majorities share a
/// member; and whoever is known to have ended decides nothing any more, nor knows anything that anybody acts on. For
/// that, nobody else may hear of a decision before all that live have: see `Founder::let_in`.
pub(crate) fn may_decide(
    members: &[Member],
    is_here: impl Fn(u64) -> bool,
    has_ended: impl Fn(u64) -> bool,
) -> bool {
    let here = members.iter().filter(|member| is_here(member.id)).count();
    let has_lowest = members.first().is_some_and(|lowest| is_here(lowest.id));
    let is_majority = 2 * here > members.len() || 2 * here == members.len() && has_lowest;
    let all_others_ended = members.iter().all(|member| is_here(member.id) || has_ended(member.id));
    here > 0 && (is_majority || all_others_ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u64) -> Vec<Member> {
        (0..count).map(|id| Member { id, process: id, standby: String::new() }).collect()
    }

    #[test]
    fn a_majority_decides_or_the_half_with_the_lowest_rank_or_all_that_live() {
        let cases: [(u64, &[u64], &[u64], bool); 10] = [
            (5, &[2, 3, 4], &[], true),
            (5, &[3, 4], &[], false),
            (5, &[3, 4], &[0, 1], false),
            (5, &[3, 4], &[0, 1, 2], true),
            (4, &[0, 3], &[], true),
            (4, &[2, 3], &[], false),
            (4, &[2, 3], &[0, 1], true),
            (2, &[1], &[], false),
            (2, &[1], &[0], true),
            (2, &[], &[0, 1], false),
        ];
        for (count, here, ended, expected) in cases {
            let decides =
                may_decide(&members(count), |id| here.contains(&id), |id| ended.contains(&id));
            assert_eq!(decides, expected, "{here:?} of {count}, {ended:?} have ended");
        }
    }

    #[test]
    fn who_could_not_make_the_communicator_keeps_nobody_waiting_for_it() {
        let roster = Roster {
            epoch: 0,
            name: "c".into(),
            members: members(2),
            newcomers: 0,
            progress: None,
        };
        let mut founder = Founder::new(1, "c".into(), &roster);
        let ballot = Ballot { round: 1, founder: 1 };
        let arrival = Arrival {
            roster: roster.clone(),
            communicator: 0,
            progress: None,
            promised: None,
            accepted: None,
            ended: vec![],
            gone: vec![],
            without: None,
            patience_ms: 1000,
        };
        let said = [
            ToFounder::Arrive { arrival: Box::new(arrival) },
            ToFounder::Promise { ballot, accepted: None },
            ToFounder::Accept { ballot },
            ToFounder::Heard {},
        ];
        for message in said {
            founder.handle(0, 0, message.clone());
            founder.handle(0, 1, message);
        }
        // It comes for the next decision, and has not stood.
        let next = Roster { epoch: 1, name: "c+1.1.1".into(), ..roster.clone() };
        let abandoned = founder.learn(0, 1, &next);
        assert!(matches!(&abandoned[..], [Effect::Abandon { absent, .. }] if *absent == [1]));
        assert_eq!(founder.learn(0, 1, &next), []);
    }

    #[test]
    fn no_two_parts_of_the_living_may_both_decide() {
        for count in 1..=7_u32 {
            let all = members(count.into());
            let is_in = |set: u32, id: u64| set >> id & 1 == 1;
            for ended in 0..1 << count {
                let living = !ended & ((1 << count) - 1);
                let may = |set: u32| may_decide(&all, |id| is_in(set, id), |id| is_in(ended, id));
                for part in (0..1 << count).filter(|part| part & !living == 0 && may(*part)) {
                    assert!(!may(living & !part), "{part:b} and the rest of {living:b}");
                }
            }
        }
    }
}
