//! A lane: the counter of one round in flight, and what its sends still read.

use std::ops::Range;

use ringtree_plan::{Action, Destination, Program};
use ringtree_transport::{Channel, Link};

/// Behind every round.
const NOT_STARTED: u64 = u64::MAX;

/// State of one lane.
#[derive(Debug)]
pub(super) struct Lane {
    /// First round of the lane.
    first: u64,
    /// Its channel on every link.
    pub(super) channel: Channel,
    stride: u64,
    /// The round in hand; past the last one when the lane is done, or has not been started.
    pub(super) round: u64,
    /// Which variant of the program it carries out, and where the actions of that are.
    pub(super) variant: usize,
    actions: Range<usize>,
    /// Next action of the round.
    pub(super) next: usize,
    /// Bytes of that action that are done.
    pub(super) done_bytes: usize,
    /// Whom the lane waits for, while it does.
    pub(super) blocked_on: Option<u32>,
    /// Peers know where this round's results are wanted.
    pub(super) has_offered: bool,
    outstanding: Vec<Outstanding>,
}

/// Bytes that a link still reads from memory of this rank.
#[derive(Debug)]
struct Outstanding {
    peer: u32,
    /// Where the bytes end in the channel's stream.
    end: u64,
    data: *const u8,
    len: usize,
}

impl Lane {
    pub(super) fn new(number: usize, lanes: usize, channel: Channel, program: &Program) -> Lane {
        let variant = number % program.variants();
        let actions = program.variant(variant);
        let sends = program.destinations.iter();
        let sends = sends.filter(|d| matches!(d, Destination::Send { .. })).count();
        Lane {
            first: number as u64,
            channel,
            stride: lanes as u64,
            round: NOT_STARTED,
            variant,
            next: actions.start,
            actions,
            done_bytes: 0,
            blocked_on: None,
            has_offered: false,
            outstanding: Vec::with_capacity(sends),
        }
    }

    pub(super) fn restart(&mut self) {
        self.round = self.first;
        self.next = self.actions.start;
        self.done_bytes = 0;
        self.blocked_on = None;
        self.has_offered = false;
        self.outstanding.clear();
    }

    pub(super) fn is_done(&self, rounds: u64) -> bool {
        self.round >= rounds
    }

    /// For which rounds of the lane an offer is made now, as its round begins: the round itself, or where it may be made
    /// a round ahead, the next one, so that it is there in time.
    pub(super) fn rounds_to_offer(&self, is_ahead: bool) -> &'static [u32] {
        match (is_ahead, self.round == self.first) {
            (false, _) => &[0],
            (true, true) => &[0, 1],
            (true, false) => &[1],
        }
    }

    /// Whether a round is one of every second of the lane.
    pub(super) fn is_odd(&self, round: u64) -> bool {
        (round - self.first) / self.stride % 2 == 1
    }

    /// The action in hand is complete.
    pub(super) fn finish_action(&mut self) {
        self.next += 1;
        self.done_bytes = 0;
    }

    /// The action in hand; `None` when the round has none left.
    pub(super) fn action(&self, program: &Program) -> Option<Action> {
        program.actions[..self.actions.end].get(self.next).copied()
    }

    /// The round is complete; the lane's next one begins.
    pub(super) fn next_round(&mut self) {
        self.round += self.stride;
        self.next = self.actions.start;
        self.done_bytes = 0;
        self.has_offered = false;
    }

    /// Remembers what was just posted to `peer`, unless it has left already.
    #[inline]
    pub(super) fn posted(&mut self, link: &Link, peer: u32, data: *const u8, len: usize) {
        if !link.is_waiting(self.channel) {
            return;
        }
        let end = link.posted_bytes(self.channel);
        let continues = |piece: &&mut Outstanding| {
            piece.peer == peer && piece.data.wrapping_add(piece.len) == data
        };
        if let Some(piece) = self.outstanding.iter_mut().rev().find(continues) {
            piece.len += len;
            piece.end = end;
            return;
        }
        self.outstanding.push(Outstanding { peer, end, data, len });
    }

    /// A peer that has not taken everything that this lane sent.
    #[inline]
    pub(super) fn unsent(&mut self, links: &[Option<Link>]) -> Option<u32> {
        let channel = self.channel;
        let waits =
            |peer: u32| links[peer as usize].as_ref().is_some_and(|l| l.is_waiting(channel));
        self.outstanding.retain(|piece| waits(piece.peer));
        self.outstanding.first().map(|piece| piece.peer)
    }

    /// How many of the `len` bytes from `start` may be written because no link reads them any
    /// more, and who has to take the byte behind them.
    pub(super) fn writable(
        &self,
        links: &[Option<Link>],
        start: *const u8,
        len: usize,
    ) -> (usize, Option<u32>) {
        let (start, mut end, mut reader) = (start as usize, start as usize + len, None);
        for piece in &self.outstanding {
            let left = left_to_send(links, piece, self.channel);
            let (first, last) =
                (piece.data as usize + piece.len - left, piece.data as usize + piece.len);
            if left > 0 && first < end && last > start {
                end = first.max(start);
                reader = Some(piece.peer);
            }
        }
        (end - start, reader)
    }
}

/// Bytes at the end of a piece that the link has not taken.
fn left_to_send(links: &[Option<Link>], piece: &Outstanding, channel: usize) -> usize {
    let Some(link) = &links[piece.peer as usize] else { return 0 };
    let left = piece.end.saturating_sub(link.sent_bytes(channel));
    (left as usize).min(piece.len)
}
