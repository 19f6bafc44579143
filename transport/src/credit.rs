//! Credits of both directions of a link over a network: what may be sent, and what is owed to the peer.
//!
//! A credit is spent by sending a slice and comes back when the receiver has released it. The
//! *sender* decides when the way back is urgent, since only it knows its limits: it marks slices
//! ("ask") when half of a channel's credits are gone, every quarter of the limit, and on the last credit
//! if no other mark is under way, so that a sender that is always at its limit gets several at once. A credit that nobody asked for waits for the next frame in the other direction,
//! so small messages that are answered need no frame for credits at all. A sender that finds itself
//! out of credit with nothing asked for (its limit was lowered meanwhile) asks explicitly; hence
//! whoever waits for a credit has asked for it.

use crate::{CHANNELS, Channel, MAX_LANES, POINT_TO_POINT};

/// Slots that the lanes of collectives divide: at least one each when all are in use.
pub(crate) const LANE_SLOTS: usize = 30;

/// Slots that only the point-to-point channel uses.
pub(crate) const POINT_TO_POINT_SLOTS: usize = 2;

/// Credits of both directions of a link.
#[derive(Debug)]
pub(crate) struct Credits {
    outgoing: [Outgoing; CHANNELS],
    /// Slices of all lanes that were sent and not returned.
    lanes_under_way: usize,
    lane_limit: u64,
    owed: [u8; CHANNELS],
    /// Slices of the lanes that arrived and whose credits were not sent back; likewise for the
    /// point-to-point channel. A correct peer never exceeds the slots.
    held_lanes: usize,
    held_point_to_point: usize,
    due: bool,
}

/// Slices of a channel, numbered from 1.
#[derive(Clone, Copy, Debug, Default)]
struct Outgoing {
    sent: u64,
    returned: u64,
    /// Number of the last slice whose release the peer was asked to report.
    asked: u64,
    /// The peer was asked to report each release up to this slice.
    asked_each: u64,
}

impl Outgoing {
    fn under_way(&self) -> u64 {
        self.sent - self.returned
    }

    fn waits_for_answer(&self) -> bool {
        self.asked > self.returned
    }

    /// Whether a slice may be released without our hearing of it.
    fn is_quiet(&self) -> bool {
        self.under_way() > 0 && self.asked_each < self.sent
    }
}

impl Credits {
    /// Credits of a new link, all for one lane.
    pub fn new() -> Credits {
        Credits {
            outgoing: [Outgoing::default(); CHANNELS],
            lanes_under_way: 0,
            lane_limit: LANE_SLOTS as u64,
            owed: [0; CHANNELS],
            held_lanes: 0,
            held_point_to_point: 0,
            due: false,
        }
    }

    /// Divides the slots of the lanes among `lanes` of them.
    pub fn divide(&mut self, lanes: usize) {
        self.lane_limit = (LANE_SLOTS / lanes.clamp(1, MAX_LANES)) as u64;
    }

    fn limit(&self, channel: Channel) -> u64 {
        if channel == POINT_TO_POINT { POINT_TO_POINT_SLOTS as u64 } else { self.lane_limit }
    }

    /// Whether a slice may leave on the channel.
    pub fn may_send(&self, channel: Channel) -> bool {
        self.outgoing[channel].under_way() < self.limit(channel)
            && (channel == POINT_TO_POINT || self.lanes_under_way < LANE_SLOTS)
    }

    /// Counts a slice that leaves; returns whether it must ask for credits.
    pub fn spend(&mut self, channel: Channel) -> bool {
        debug_assert!(self.may_send(channel));
        let limit = self.limit(channel);
        let outgoing = &mut self.outgoing[channel];
        let is_answered_soon = outgoing.waits_for_answer();
        outgoing.sent += 1;
        let under_way = outgoing.under_way();
        let since_asked = outgoing.sent - outgoing.asked.max(outgoing.returned);
        let ask = under_way >= limit && !is_answered_soon
            || under_way * 2 >= limit && since_asked >= (limit / 4).max(1);
        if ask {
            outgoing.asked = outgoing.sent;
        }
        if channel != POINT_TO_POINT {
            self.lanes_under_way += 1;
        }
        ask
    }

    /// Takes back credits that the peer returned.
    pub fn take_back(&mut self, credits: &[u8; CHANNELS]) -> Result<(), &'static str> {
        for (channel, &count) in credits.iter().enumerate() {
            if count == 0 {
                continue;
            }
            let outgoing = &mut self.outgoing[channel];
            if u64::from(count) > outgoing.under_way() {
                return Err("more credits returned than were spent");
            }
            outgoing.returned += u64::from(count);
            if channel != POINT_TO_POINT {
                self.lanes_under_way -= usize::from(count);
            }
        }
        Ok(())
    }

    /// Whether a channel among `waiting` (a bit each) has no credit and no answer to expect, so
    /// that the peer must be asked by a frame of its own.
    pub fn must_ask(&self, waiting: u32) -> bool {
        (0..CHANNELS).filter(|&channel| waiting & (1 << channel) != 0).any(|channel| {
            if self.outgoing[channel].under_way() >= self.limit(channel) {
                !self.outgoing[channel].waits_for_answer()
            } else {
                // The other lanes may hold all slots: any release may help.
                !self.may_send(channel) && self.outgoing[..MAX_LANES].iter().any(Outgoing::is_quiet)
            }
        })
    }

    /// The peer has been asked to report every release of what is under way.
    pub fn asked_for_all(&mut self) {
        for outgoing in &mut self.outgoing {
            outgoing.asked = outgoing.sent;
            outgoing.asked_each = outgoing.sent;
        }
    }

    /// Counts a slice that arrives.
    pub fn arrive(&mut self, channel: Channel) -> Result<(), &'static str> {
        let (held, slots) = if channel == POINT_TO_POINT {
            (&mut self.held_point_to_point, POINT_TO_POINT_SLOTS)
        } else {
            (&mut self.held_lanes, LANE_SLOTS)
        };
        if *held == slots {
            return Err("frame without a credit");
        }
        *held += 1;
        Ok(())
    }

    /// Counts a slice that was released and whose sender `asked` to hear of it.
    pub fn release(&mut self, channel: Channel, asked: bool) {
        self.owed[channel] += 1;
        self.due |= asked;
    }

    /// The peer asks for what it gets: whatever is owed already is due.
    pub fn peer_asks(&mut self) {
        self.due |= self.owed != [0; CHANNELS];
    }

    /// Whether the peer waits for credits that are owed to it.
    pub fn due(&self) -> bool {
        self.due
    }

    /// Everything that is owed, for a header that leaves.
    pub fn pay(&mut self) -> [u8; CHANNELS] {
        let paid = std::mem::replace(&mut self.owed, [0; CHANNELS]);
        let lanes: usize = paid[..MAX_LANES].iter().map(|&n| usize::from(n)).sum();
        self.held_lanes -= lanes;
        self.held_point_to_point -= usize::from(paid[POINT_TO_POINT]);
        self.due = false;
        paid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(channel: Channel, count: u8) -> [u8; CHANNELS] {
        let mut credits = [0; CHANNELS];
        credits[channel] = count;
        credits
    }

    #[test]
    fn lanes_share_and_point_to_point_has_its_own() {
        let mut credits = Credits::new();
        credits.divide(2);
        while credits.may_send(0) {
            credits.spend(0);
        }
        assert_eq!(credits.outgoing[0].sent, 15);
        assert!(credits.may_send(1) && credits.may_send(POINT_TO_POINT));
        credits.divide(1);
        while credits.may_send(1) {
            credits.spend(1);
        }
        assert_eq!(credits.outgoing[1].sent, 15);
        assert!(!credits.may_send(0) && credits.may_send(POINT_TO_POINT));
    }

    #[test]
    fn whoever_is_out_of_credit_has_asked_and_the_first_of_many_does_not() {
        let mut credits = Credits::new();
        let asks: Vec<u64> = (1..=30).filter(|_| credits.spend(0)).collect();
        assert_eq!(asks.first(), Some(&15));
        assert_eq!(asks.last(), Some(&29));
        assert!(asks.len() <= 4, "{asks:?}");
        assert!(!credits.must_ask(1));
        // Always at its limit, it asks for a quarter of it at a time.
        let mut credits = Credits::new();
        (0..LANE_SLOTS).for_each(|_| _ = credits.spend(0));
        let asks = (0..30).filter(|_| {
            assert_eq!(credits.take_back(&returned(0, 1)), Ok(()));
            credits.spend(0)
        });
        assert_eq!(asks.count(), 4);
        let mut credits = Credits::new();
        credits.divide(MAX_LANES);
        assert!(credits.spend(1), "an only credit");
    }

    #[test]
    fn a_lowered_limit_makes_the_sender_ask() {
        let mut credits = Credits::new();
        for _ in 0..5 {
            assert!(!credits.spend(0));
        }
        credits.divide(16);
        assert!(credits.must_ask(1), "out of credit and nothing asked for");
        credits.asked_for_all();
        assert!(!credits.must_ask(1));
        assert_eq!(credits.take_back(&returned(0, 5)), Ok(()));
        assert!(credits.may_send(0));
    }

    #[test]
    fn a_lane_stopped_by_what_others_hold_asks_for_all() {
        let mut credits = Credits::new();
        for _ in 0..14 {
            credits.spend(0);
        }
        credits.divide(2);
        for _ in 0..6 {
            credits.spend(1);
        }
        credits.divide(1);
        for _ in 0..10 {
            credits.spend(2);
        }
        assert!(!credits.may_send(3), "all slots are taken");
        assert!(credits.must_ask(1 << 3), "by lanes that had enough credits not to ask");
        credits.asked_for_all();
        assert_eq!(credits.take_back(&returned(2, 10)), Ok(()));
        assert!(credits.may_send(3) && !credits.must_ask(1 << 3));
    }

    #[test]
    fn a_peer_that_cheats_is_noticed() {
        let mut credits = Credits::new();
        assert!(credits.take_back(&returned(4, 1)).is_err());
        for _ in 0..LANE_SLOTS {
            assert_eq!(credits.arrive(7), Ok(()));
        }
        assert!(credits.arrive(8).is_err());
        assert_eq!(credits.arrive(POINT_TO_POINT), Ok(()));
        credits.release(7, false);
        assert!(credits.arrive(8).is_err(), "owed, but not paid yet");
        assert_eq!(credits.pay()[7], 1);
        assert_eq!(credits.arrive(8), Ok(()));
    }

    #[test]
    fn credits_are_due_only_when_asked_for() {
        let mut credits = Credits::new();
        credits.peer_asks();
        assert!(!credits.due());
        (0..3).for_each(|_| credits.arrive(0).unwrap_or_default());
        credits.release(0, false);
        assert!(!credits.due());
        credits.peer_asks();
        assert!(credits.due());
        credits.pay();
        credits.release(0, true);
        assert!(credits.due());
    }
}
