//! What happens to a simulated job, and how often.

use crate::control::testing::Random;

/// What happens next.
#[derive(Clone, Copy)]
pub(super) enum Event {
    /// A process ends.
    Kill,
    /// A connection ends.
    Cut,
    /// A host of founders ends.
    EndHost,
    /// A communicator ends.
    Fail,
    /// A member learns who is missing, and says so.
    Missing,
    /// A host learns which processes have ended.
    HostLearns,
    /// Time passes.
    Time,
    /// Members go to another host first.
    Fashion,
    /// A member that is with nobody comes to a host.
    Come,
    /// Whoever makes a communicator has it, or not.
    Meet,
    /// A message arrives, or the end of a connection.
    Deliver,
}

/// What a seed is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Theme {
    /// Trouble of any kinds. Each seed has its own ones and none of the others, so that those do not hide behind
    /// each other (Groce et al., "Swarm testing", 2012).
    Any,
    /// Members live, and are with one founder after the other.
    Founders,
    /// Members change again and again.
    Changes,
}

/// How often what happens.
pub(super) struct Trouble(Vec<(Event, u64)>);

impl Trouble {
    pub(super) fn new(theme: Theme, random: &mut Random) -> Trouble {
        let mut often = |most: u64| match theme {
            Theme::Any => [0, 0, most / 8, most / 2, most][random.below(5) as usize],
            _ => most,
        };
        let mut events = vec![
            (Event::Cut, often(64)),
            (Event::Time, often(32)),
            (Event::Fashion, often(32)),
            (Event::Come, 120),
            (Event::Meet, 60),
            (Event::Deliver, 480),
        ];
        if theme != Theme::Founders {
            events.extend([
                (Event::Kill, often(8)),
                (Event::EndHost, often(8)),
                (Event::Fail, often(32)),
                (Event::Missing, often(32)),
                (Event::HostLearns, often(32)),
            ]);
        }
        Trouble(events)
    }

    pub(super) fn next(&self, random: &mut Random) -> Event {
        let mut at = random.below(self.0.iter().map(|(_, often)| often).sum());
        let is_it = |(_, often): &&(Event, u64)| {
            let is_it = at < *often;
            at = at.saturating_sub(*often);
            is_it
        };
        self.0.iter().find(is_it).map_or(Event::Deliver, |(event, _)| *event)
    }
}
