//! From what the ranks of a communicator said to a verdict: a pure function.
//!
//! The arbiter calls it at the end of a survey, when every rank that runs has said which
//! operations it knows, so that the verdict does not depend on the order in which messages came.
//! First it looks for calls that differ, since everything else may follow from them; then for
//! ranks that left; then, if somebody's deadline has passed, it follows who waits for whom to the
//! rank that waits for nobody.

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::member::{Line, Member, Presence, Standing};
use super::recorder::{Operation, Stream};
use super::verdict::{Awaited, Side, Verdict};
use super::wire::Suspicion;

/// What is known at the end of a survey.
pub(super) struct Evidence<'a> {
    /// Ranks of the communicator, joined or not.
    pub ranks: u32,
    /// The ranks that have joined.
    pub members: &'a BTreeMap<u32, Member>,
    /// Number of the survey.
    pub survey: u64,
}

impl Evidence<'_> {
    /// The verdict, if there is reason for one. There always is where the deadline of a rank that
    /// answers has passed.
    pub(super) fn judge(&self) -> Option<Verdict> {
        self.mismatch()
            .or_else(|| self.unexplained_frame())
            .or_else(|| self.left())
            .or_else(|| self.overdue())
    }

    /// The earliest operation that ranks know by different records, collectives first.
    fn mismatch(&self) -> Option<Verdict> {
        let mut calls = BTreeMap::new();
        let mut earliest: Option<(Line, u32, Side, Side)> = None;
        for (&rank, member) in self.members {
            for Operation { stream, sequence, record } in member.operations() {
                let line = Line::of(rank, stream);
                let side = Side { rank, stream, record: Some(record) };
                let first: Side = match calls.entry((line, sequence)) {
                    Place::Vacant(place) => *place.insert(side),
                    Place::Occupied(place) => *place.get(),
                };
                let earlier = earliest.is_none_or(|(best_line, best, _, _)| {
                    line < best_line || line == best_line && is_before(sequence, best)
                });
                if first.record != side.record && earlier {
                    earliest = Some((line, sequence, first, side));
                }
            }
        }
        earliest.map(|(_, sequence, a, b)| Verdict::Mismatch { sequence, a, b })
    }

    /// A frame of another call, where the records did not tell which call that was.
    fn unexplained_frame(&self) -> Option<Verdict> {
        let suspicions = self.members.iter().filter(|(_, member)| member.answered == self.survey);
        let (rank, suspicion) =
            suspicions.filter_map(|(rank, member)| Some((*rank, member.suspicion?))).next()?;
        let Suspicion { operation, peer, peer_sequence, .. } = suspicion;
        let Operation { stream, sequence, record } = operation;
        let peer_knows = self.members.get(&peer).is_some_and(|member| {
            member.standing(peer, Line::of(rank, stream), sequence) == Standing::Inside
        });
        if peer_sequence == sequence && !peer_knows {
            let ours = Side { rank, stream, record: Some(record) };
            let theirs = Side { rank: peer, stream: facing(rank, stream), record: None };
            let (a, b) = if rank < peer { (ours, theirs) } else { (theirs, ours) };
            return Some(Verdict::Mismatch { sequence, a, b });
        }
        let reason = format!("in {operation} a frame of operation {peer_sequence} came instead");
        Some(Verdict::LinkBroken { a: rank, b: peer, reason })
    }

    /// The lowest rank that left although somebody waits for it. What a rank that completed the
    /// operation had to send is on its way, and the wait for it soon over.
    fn left(&self) -> Option<Verdict> {
        let (rank, by, operation) = self
            .members
            .iter()
            .flat_map(|(&by, member)| member.stalls(self.survey).map(move |stall| (by, stall)))
            .flat_map(|(by, stall)| {
                stall.waiting_for.iter().map(move |&rank| (rank, by, stall.operation))
            })
            .filter(|(rank, by, operation)| {
                self.members.get(rank).is_some_and(|member| {
                    let line = Line::of(*by, operation.stream);
                    member.presence == Presence::Left
                        && member.standing(*rank, line, operation.sequence) != Standing::Ahead
                })
            })
            .min_by_key(|(rank, by, _)| (*rank, *by))?;
        Some(Verdict::Left { rank, by, operation: Some(operation) })
    }

    /// If a deadline has passed: what everything waits for.
    fn overdue(&self) -> Option<Verdict> {
        let overdue = self.members.iter().flat_map(|(&rank, member)| {
            let stalls = member.stalls(self.survey).filter(|stall| stall.deadline_passed);
            stalls.map(move |stall| Awaited { by: rank, operation: stall.operation })
        });
        let overdue: Vec<Awaited> = overdue.collect();
        let start = *overdue.first()?;
        let waits = self.waits_from(overdue.iter().map(|awaited| awaited.by).collect());
        let cause = waits
            .iter()
            .map(|wait| (self.cause(wait), wait))
            .min_by_key(|(cause, Wait { awaited, target, .. })| (*cause, *target, awaited.by));
        Some(match cause {
            // Whom could it wait for? For itself.
            None => self.late(start.by, start),
            Some((Cause::Circle, _)) => self.broken_circle(start.by),
            Some((Cause::Ahead, wait)) => {
                let Awaited { by, operation } = wait.awaited;
                let reason = format!(
                    "rank {} has completed {operation}, but rank {by} still waits for it there",
                    wait.target
                );
                Verdict::LinkBroken { a: by, b: wait.target, reason }
            }
            Some((Cause::Left, Wait { awaited: Awaited { by, operation }, target, .. })) => {
                Verdict::Left { rank: *target, by: *by, operation: Some(*operation) }
            }
            Some((Cause::Stopped, wait)) => Verdict::Stopped {
                rank: wait.target,
                place: self.members.get(&wait.target).map(|member| member.place.clone()),
                awaited: wait.awaited,
                last_seen: self.members.get(&wait.target).and_then(Member::doing),
            },
            Some((Cause::Late | Cause::Idle | Cause::Elsewhere, wait)) => {
                self.late(wait.target, wait.awaited)
            }
        })
    }

    /// Everything that these ranks wait for, and what that waits for, and so on.
    fn waits_from(&self, mut seen: BTreeSet<u32>) -> Vec<Wait> {
        let mut queue: VecDeque<u32> = seen.iter().copied().collect();
        let mut waits = Vec::new();
        while let Some(rank) = queue.pop_front() {
            for wait in self.waits(rank) {
                if seen.insert(wait.target) {
                    queue.push_back(wait.target);
                }
                waits.push(wait);
            }
        }
        waits
    }

    /// What a rank waits for. A stall that names nobody waits for everybody.
    fn waits(&self, rank: u32) -> Vec<Wait> {
        let Some(member) = self.members.get(&rank) else { return Vec::new() };
        let mut waits = Vec::new();
        for (operation, targets) in member.waits() {
            let awaited = Awaited { by: rank, operation };
            let vague = targets.is_empty();
            let everybody: Vec<u32> = match operation.stream {
                Stream::Collective => (0..self.ranks).collect(),
                Stream::SendTo(peer) | Stream::ReceiveFrom(peer) => vec![peer],
            };
            let targets = if vague { &everybody } else { targets };
            let targets = targets.iter().filter(|&&target| target != rank && target < self.ranks);
            waits.extend(targets.map(|&target| Wait { awaited, target, vague }));
        }
        waits
    }

    /// Why a wait may be in vain.
    fn cause(&self, wait: &Wait) -> Cause {
        let Awaited { by, operation } = wait.awaited;
        let Some(member) = self.members.get(&wait.target) else { return Cause::Late };
        if member.presence == Presence::Left {
            return Cause::Left;
        }
        if member.answered != self.survey {
            return Cause::Stopped;
        }
        let line = Line::of(by, operation.stream);
        let waits_itself = member.waits().next().is_some();
        match member.standing(wait.target, line, operation.sequence) {
            Standing::Ahead if !wait.vague => Cause::Ahead,
            Standing::Behind if waits_itself => Cause::Elsewhere,
            Standing::Behind => Cause::Late,
            Standing::Inside if !waits_itself => Cause::Idle,
            Standing::Inside | Standing::Ahead => Cause::Circle,
        }
    }

    fn late(&self, rank: u32, awaited: Awaited) -> Verdict {
        let member = self.members.get(&rank);
        let place = member.map(|member| member.place.clone());
        Verdict::Late { rank, place, awaited, doing: member.and_then(Member::doing) }
    }

    /// Everyone is inside the same operation and waits: something was lost on the way. In the
    /// circle that a rank's waits lead into, the rank that came least far waits for it.
    fn broken_circle(&self, start: u32) -> Verdict {
        let mut walk: Vec<Wait> = Vec::new();
        let mut rank = start;
        while let Some(wait) = self.waits(rank).into_iter().next() {
            if let Some(begin) = walk.iter().position(|wait| wait.awaited.by == rank) {
                walk.drain(..begin);
                break;
            }
            rank = wait.target;
            walk.push(wait);
        }
        let least = walk.iter().min_by_key(|wait| {
            let Awaited { by, operation } = wait.awaited;
            (self.members.get(&by).map(|member| member.steps(&operation)), by)
        });
        match least {
            Some(Wait { awaited: Awaited { by, operation }, target, .. }) => {
                let reason = format!("everyone waits inside {operation}, and nothing arrives");
                Verdict::LinkBroken { a: *by, b: *target, reason }
            }
            None => {
                let reason = "nothing arrives".to_owned();
                Verdict::LinkBroken { a: start, b: rank, reason }
            }
        }
    }
}

/// A rank waits for another one.
#[derive(Clone, Copy, Debug)]
struct Wait {
    awaited: Awaited,
    target: u32,
    /// The rank did not say for whom it waits.
    vague: bool,
}

/// Why a wait may be in vain, the likeliest to be the cause of all others first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// It does not answer.
    Stopped,
    /// It has left.
    Left,
    /// It has completed the operation already.
    Ahead,
    /// It has not begun the operation, and waits for nobody.
    Late,
    /// It is inside the operation, and waits for nobody.
    Idle,
    /// It has not begun the operation, and waits in another one.
    Elsewhere,
    /// It is inside the operation and waits, too.
    Circle,
}

/// Whether `a` comes before `b` among numbers that wrap.
pub(super) fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// The stream at the peer of the stream that `rank` calls this.
fn facing(rank: u32, stream: Stream) -> Stream {
    match stream {
        Stream::Collective => Stream::Collective,
        Stream::SendTo(_) => Stream::ReceiveFrom(rank),
        Stream::ReceiveFrom(_) => Stream::SendTo(rank),
    }
}
