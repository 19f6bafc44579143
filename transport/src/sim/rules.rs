//! Rules: what happens to which frames, and to which calls, of a simulated network.

use std::ops::Range;

use crate::Channel;

/// What a rule does to the frames, or the link operations, that it matches.
///
/// Every rule looks at every frame and every operation, in the order in which the rules were added,
/// and all that match take effect: delays add up, factors multiply. What no rule matches passes.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Looks at each frame when it leaves its sender. `from` is the sender, `to` the receiver.
    Frame(Match, FrameEffect),
    /// Looks at each link operation (see [`Operation`](super::Operation)) before it takes effect.
    /// `from` is the rank that calls, `to` the peer of its link.
    Operation(Match, OperationEffect),
}

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameEffect {
    /// It arrives this many ns later, and later frames of its channel not before it.
    Delay(u64),
    /// Its time on the wire and its latency are multiplied.
    Slow(u32),
    /// It never arrives, nor does any later frame of its channel (a stalled connection).
    Drop,
    /// One bit of it arrives changed: of its tag if the number is below 64, else of its payload, which begins anew
    /// where it ends.
    Flip(u64),
    /// Its link is cut (see [`Network::cut`](super::Network::cut)) and the frame lost.
    Cut,
    /// This rank is killed (see [`Network::kill`](super::Network::kill)), before the frame leaves.
    Kill(u32),
}

/// What happens to a link operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationEffect {
    /// It does nothing and returns [`LinkError::Failed`](crate::LinkError::Failed), as does every
    /// later call on this end. The peer learns of it when this end is closed or dropped.
    Fail,
    /// Its link is cut (see [`Network::cut`](super::Network::cut)).
    Cut,
    /// The rank that calls is killed (see [`Network::kill`](super::Network::kill)).
    Kill,
}

/// Which frames or operations a rule speaks of: all that meet every condition given.
#[derive(Clone, Debug)]
pub struct Match {
    from: Option<u32>,
    to: Option<u32>,
    either: Option<u32>,
    channel: Option<Channel>,
    window_ns: Range<u64>,
    nth: Option<u64>,
}

impl Match {
    /// Everything, until conditions are added.
    pub fn any() -> Match {
        Match {
            from: None,
            to: None,
            either: None,
            channel: None,
            window_ns: 0..u64::MAX,
            nth: None,
        }
    }

    /// From this rank.
    pub fn from(self, rank: u32) -> Match {
        Match { from: Some(rank), ..self }
    }

    /// To this rank.
    pub fn to(self, rank: u32) -> Match {
        Match { to: Some(rank), ..self }
    }

    /// From or to this rank.
    pub fn rank(self, rank: u32) -> Match {
        Match { either: Some(rank), ..self }
    }

    /// On this channel. Polls are on none.
    pub fn channel(self, channel: Channel) -> Match {
        Match { channel: Some(channel), ..self }
    }

    /// While the network's clock is in `window_ns`.
    pub fn during_ns(self, window_ns: Range<u64>) -> Match {
        Match { window_ns, ..self }
    }

    /// Only the `n`-th (from 0) of those that meet the other conditions.
    pub fn nth(self, n: u64) -> Match {
        Match { nth: Some(n), ..self }
    }

    /// Whether a frame or an operation meets all conditions but [`Match::nth`].
    fn covers(&self, at: &Occasion) -> bool {
        self.from.is_none_or(|rank| rank == at.from)
            && self.to.is_none_or(|rank| rank == at.to)
            && self.either.is_none_or(|rank| rank == at.from || rank == at.to)
            && self.channel.is_none_or(|channel| Some(channel) == at.channel)
            && self.window_ns.contains(&at.now_ns)
    }
}

/// A frame or an operation, as rules see it.
pub(super) struct Occasion {
    pub(super) now_ns: u64,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) channel: Option<Channel>,
}

/// What all rules together do to one frame.
#[derive(Default)]
pub(super) struct FrameFate {
    pub(super) delay_ns: u64,
    pub(super) factor: u64,
    pub(super) dropped: bool,
    pub(super) flipped_bits: Vec<u64>,
    pub(super) cut: bool,
    pub(super) killed: Vec<u32>,
}

/// The rules of a network, and how many frames or operations each has met.
#[derive(Default)]
pub(super) struct Rules {
    rules: Vec<(Rule, u64)>,
}

impl Rules {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push((rule, 0));
    }

    pub(super) fn frame(&mut self, at: &Occasion) -> FrameFate {
        let mut fate = FrameFate { factor: 1, ..FrameFate::default() };
        for (rule, seen) in &mut self.rules {
            let Rule::Frame(which, effect) = rule else { continue };
            if !meets(which, seen, at) {
                continue;
            }
            match *effect {
                FrameEffect::Delay(ns) => fate.delay_ns = fate.delay_ns.saturating_add(ns),
                FrameEffect::Slow(factor) => {
                    fate.factor = fate.factor.saturating_mul(u64::from(factor));
                }
                FrameEffect::Drop => fate.dropped = true,
                FrameEffect::Flip(bit) => fate.flipped_bits.push(bit),
                FrameEffect::Cut => fate.cut = true,
                FrameEffect::Kill(rank) => fate.killed.push(rank),
            }
        }
        fate
    }

    pub(super) fn operation(&mut self, at: &Occasion) -> Vec<OperationEffect> {
        let mut effects = Vec::new();
        for (rule, seen) in &mut self.rules {
            let Rule::Operation(which, effect) = rule else { continue };
            if meets(which, seen, at) {
                effects.push(*effect);
            }
        }
        effects
    }
}

/// Counts what a rule covers, and says whether it is the one that the rule waits for.
fn meets(which: &Match, seen: &mut u64, at: &Occasion) -> bool {
    if !which.covers(at) {
        return false;
    }
    let number = *seen;
    *seen += 1;
    which.nth.is_none_or(|n| n == number)
}
