//! Calls that change who the ranks are: [`Communicator::shrink`] after a failure, [`Communicator::admit`] for newcomers.

use std::ops::Range;
use std::sync::Arc;

use crate::Error;
use crate::communicator::Communicator;
use crate::regroup::{self, Baggage};

/// What [`Communicator::shrink`] and [`Communicator::admit`] give.
#[derive(Debug)]
pub struct Regrouped {
    /// The communicator of those that go on.
    pub communicator: Communicator,
    /// Collectives of the communicator before that every rank of it that is still there has completed: numbers count
    /// from 1 and with each call, groups of small tensors as those are packed. What came after, some have not.
    pub completed: u32,
    /// For each rank, which rank it was before; `None` for newcomers.
    pub previous_ranks: Vec<Option<u32>>,
}

impl Regrouped {
    /// Ranks of the communicator before that are not there any more.
    pub fn lost(&self, ranks_before: u32) -> Vec<u32> {
        let stays = |rank: &u32| self.previous_ranks.contains(&Some(*rank));
        (0..ranks_before).filter(|rank| !stays(rank)).collect()
    }
}

impl Communicator {
    /// Goes on with those that are left, after an error that is neither [`Error::Argument`] nor [`Error::Memory`]: all
    /// of them call it, and get a communicator of their own. This one is over.
    ///
    /// **Ranks.** Survivors keep their order and close up; newcomers that wait come behind them, in the order in
    /// which they came, if all who are missing have certainly ended.
    ///
    /// **Who may go on.** More than half of the members, or half of them with the lowest rank, or all that live: a
    /// member counts as dead only if its process was seen to end. So of a job that the network cuts into parts one at
    /// most goes on. A member that lives and does not come within a third of
    /// [`Settings::timeout`](crate::Settings::timeout) is left out, and hears so when it comes. After
    /// [`Verdict::LinkBroken`](crate::control::Verdict::LinkBroken) the higher one of the two ranks is left out.
    ///
    /// **Where.** The members meet at the control service where they have met before: the launcher's, or that of the
    /// process which was rank 0 first. If that is gone, the process of the lowest rank that is left takes its place,
    /// and so on. If somebody dies meanwhile, the others begin again without it.
    ///
    /// Links are made anew: in the old ones the rest of the operation that failed may still be under way.
    ///
    /// # Errors
    /// [`Error::Regroup`] says why this process does not go on; or what can go wrong when a communicator is made. Then this
    /// process is out: calling it again returns the same.
    pub fn shrink(&self) -> Result<Regrouped, Error> {
        self.regroup()
    }

    /// Lets newcomers in: makes a communicator of all ranks of this one, in their order, and of all that wait, behind
    /// them. All ranks call it as they call a collective, which only makes sense where they know that somebody waits:
    /// [`Communicator::members_changed`] may say so to one rank before the others. This communicator is over.
    ///
    /// Should a rank die meanwhile, the others go on without it, as by [`Communicator::shrink`].
    ///
    /// # Errors
    /// The error that has ended this communicator, if one has; else as [`Communicator::shrink`].
    pub fn admit(&self) -> Result<Regrouped, Error> {
        self.engine().check()?;
        self.regroup()
    }

    /// Whether somebody waits to be let in, as far as this rank has heard: a process that was started with
    /// `RINGTREE_JOIN=1` and asks for its communicator. Ranks hear of it at different times: agree before any calls
    /// [`Communicator::admit`].
    pub fn members_changed(&self) -> bool {
        self.inner.control().newcomers() > 0
    }

    /// How often the members have changed since the job began.
    pub fn epoch(&self) -> u64 {
        self.inner.origin().roster.epoch
    }

    /// The ranks that came with the last change of the members. A process that finds itself among them has what its
    /// program needs to get from the others.
    pub fn newcomers(&self) -> Range<u32> {
        self.ranks() - self.inner.origin().roster.newcomers..self.ranks()
    }

    fn regroup(&self) -> Result<Regrouped, Error> {
        let inner = &self.inner;
        let origin = inner.origin();
        let mut engine = self.engine();
        engine.check_may_regroup()?;
        let baggage = Baggage {
            settings: self.settings(),
            origin,
            control: inner.control(),
            completed: engine.completed(),
            verdict: engine.verdict(),
        };
        // What this rank has promised others is known no more then: it may not come again.
        let joined = regroup::go_on(&baggage).inspect_err(|error| engine.give_up(error))?;
        engine.replace();
        drop(engine);
        let roster = &joined.origin.roster;
        let rank_before = |id: u64| origin.roster.members.iter().position(|member| member.id == id);
        let previous_ranks = roster.members.iter();
        let previous_ranks =
            previous_ranks.map(|member| rank_before(member.id).map(|rank| rank as u32)).collect();
        let of_this = roster.progress.filter(|progress| progress.epoch == origin.roster.epoch);
        let completed = of_this.map_or(0, |progress| progress.completed);
        let communicator = Communicator::of(joined, Arc::clone(inner.host()));
        Ok(Regrouped { communicator, completed, previous_ranks })
    }
}
