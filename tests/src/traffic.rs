//! Traffic that checks itself: messages of known content go in at one end of a link in random
//! pieces, by every way there is, and must come out at the other.

use std::collections::VecDeque;

use ringtree_transport::{Channel, Link, LinkError, MAX_LANES, Tag};

use crate::links::{Pair, wait_for};
use crate::random::Random;

/// Bytes that are received in one call at most: room is cleared before it is used.
const MOST_AT_ONCE: usize = 1 << 20;

/// A message and the operation that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The operation.
    pub tag: Tag,
    /// The content.
    pub data: Vec<u8>,
}

/// Some messages for a channel, of random sizes up to `longest`.
pub fn messages(random: &mut Random, count: usize, longest: usize) -> VecDeque<Message> {
    (0..count)
        .map(|sequence| {
            let len = random.length(longest);
            let tag = Tag { sequence: sequence as u32, digest: random.number() as u32 };
            Message { tag, data: random.bytes(len) }
        })
        .collect()
}

/// Messages for some channels.
pub type Traffic = Vec<(Channel, VecDeque<Message>)>;

/// Carries messages both ways, dividing the slots anew now and then; returns when all have come.
pub fn exchange(pair: &mut Pair, random: &mut Random, there: Traffic, back: Traffic) {
    let lanes = there.iter().chain(&back).map(|&(channel, _)| channel).filter(|&c| c < MAX_LANES);
    let fewest_lanes = lanes.max().map_or(1, |channel| channel + 1);
    let split = |traffic: Traffic| -> (Vec<_>, Vec<_>) {
        let both = traffic.into_iter();
        both.map(|(c, m)| (Sending::new(c, m.clone()), Receiving::new(c, m))).unzip()
    };
    let (mut left_sends, mut right_receives) = split(there);
    let (mut right_sends, mut left_receives) = split(back);
    let world = pair.world.clone();
    wait_for(&world, "all messages", || {
        if random.one_in(50) {
            let lanes = fewest_lanes + random.below(MAX_LANES - fewest_lanes + 1);
            pair.divide(lanes);
        }
        let mut done = step(&mut pair.left, random, &mut left_sends, &mut left_receives);
        done &= step(&mut pair.right, random, &mut right_sends, &mut right_receives);
        done.then_some(())
    });
}

/// One turn of an end that posts now and then, and reads all its channels. Returns whether it has
/// sent and received everything.
pub fn step(
    link: &mut Link,
    random: &mut Random,
    sends: &mut [Sending],
    receives: &mut [Receiving],
) -> bool {
    if random.one_in(2) {
        link.poll(0).expect("open");
    }
    for sending in sends.iter_mut() {
        if random.one_in(2) {
            sending.step(link, random).expect("open");
        }
    }
    for receiving in receives.iter_mut() {
        receiving.step(link, random).expect("open");
    }
    sends.iter().all(|sending| sending.is_done(link)) && receives.iter().all(Receiving::is_done)
}

/// The sending end of a channel.
#[derive(Debug)]
pub struct Sending {
    channel: Channel,
    messages: VecDeque<Message>,
    /// Bytes of the first message that are posted.
    offset: usize,
    /// Messages that the link may still read, and what `sent_bytes` says once it does not.
    borrowed: VecDeque<(u64, Vec<u8>)>,
}

impl Sending {
    /// Will send these messages.
    pub fn new(channel: Channel, messages: VecDeque<Message>) -> Sending {
        Sending { channel, messages, offset: 0, borrowed: VecDeque::new() }
    }

    /// Whether everything has left, empty messages too.
    pub fn is_done(&self, link: &Link) -> bool {
        self.messages.is_empty() && self.borrowed.is_empty() && !link.is_waiting(self.channel)
    }

    /// Posts, or writes in place and commits, a random piece, and spoils what the link has promised
    /// not to read again. Returns whether anything was done.
    ///
    /// # Errors
    /// The link's.
    pub fn step(&mut self, link: &mut Link, random: &mut Random) -> Result<bool, LinkError> {
        self.spoil_sent(link);
        let Some(message) = self.messages.front() else { return Ok(false) };
        let rest = &message.data[self.offset..];
        let slot = if random.one_in(2) { link.reserve(self.channel, rest.len()) } else { None };
        let most = slot.map_or(rest.len(), |slot| slot.len.min(rest.len()));
        let len = if random.one_in(2) { most } else { random.length(most).max(most.min(1)) };
        let last = len == rest.len();
        if let Some(slot) = slot {
            // SAFETY: the slot has room for `len` bytes.
            unsafe { rest.as_ptr().copy_to_nonoverlapping(slot.data, len) };
            link.commit(self.channel, message.tag, len, last)?;
        } else {
            // SAFETY: the message is kept, where it is, until it has been sent.
            unsafe { link.post(self.channel, message.tag, rest.as_ptr(), len, last)? };
        }
        self.offset += len;
        if last && let Some(message) = self.messages.pop_front() {
            self.offset = 0;
            self.borrowed.push_back((link.posted_bytes(self.channel), message.data));
        }
        Ok(true)
    }

    fn spoil_sent(&mut self, link: &Link) {
        while let Some((until, data)) = self.borrowed.front_mut()
            && link.sent_bytes(self.channel) >= *until
        {
            data.fill(0xee);
            self.borrowed.pop_front();
        }
    }
}

/// The receiving end of a channel.
#[derive(Debug)]
pub struct Receiving {
    channel: Channel,
    expected: VecDeque<Message>,
    /// What has come of the first of them.
    got: Vec<u8>,
}

impl Receiving {
    /// Will check that these messages arrive.
    pub fn new(channel: Channel, expected: VecDeque<Message>) -> Receiving {
        Receiving { channel, expected, got: Vec::new() }
    }

    /// Whether everything has come.
    pub fn is_done(&self) -> bool {
        self.expected.is_empty()
    }

    /// What has not come: messages, and how much has come of the first.
    pub fn missing(&self) -> (usize, usize) {
        (self.expected.len(), self.got.len())
    }

    /// Takes in something, in a random way. Returns whether anything came.
    ///
    /// # Errors
    /// The link's.
    pub fn step(&mut self, link: &mut Link, random: &mut Random) -> Result<bool, LinkError> {
        if self.is_done() {
            let surplus = link.arrival(self.channel)?;
            assert!(surplus.is_none(), "channel {}: surplus {surplus:?}", self.channel);
            return Ok(false);
        }
        match random.below(8) {
            0 => self.receive_as_another(link),
            1..=4 => self.receive(link, random),
            _ => self.look_and_release(link, random),
        }
    }

    /// Asks for a message of another operation, which must write nothing.
    fn receive_as_another(&mut self, link: &mut Link) -> Result<bool, LinkError> {
        let mut tag = self.expected[0].tag;
        tag.digest ^= 1;
        let mut into = [0x5a; 64];
        // SAFETY: `into` has 64 writable bytes.
        let got = unsafe { link.receive(self.channel, tag, into.as_mut_ptr(), into.len())? };
        assert_eq!((got, into), ((0, false), [0x5a; 64]), "channel {}", self.channel);
        Ok(false)
    }

    fn receive(&mut self, link: &mut Link, random: &mut Random) -> Result<bool, LinkError> {
        let Message { tag, data } = &self.expected[0];
        let rest = data.len() - self.got.len();
        let room = match random.below(4) {
            0 => random.length(rest),
            1 => rest.min(MOST_AT_ONCE) + 100,
            _ => rest.min(MOST_AT_ONCE),
        };
        let before = self.got.len();
        self.got.resize(before + room, 0);
        // SAFETY: `room` bytes were just added.
        let result =
            unsafe { link.receive(self.channel, *tag, self.got[before..].as_mut_ptr(), room) };
        let (len, ended) = result.as_ref().map_or((0, false), |&got| got);
        assert!(len <= rest, "channel {}: past the end of the message", self.channel);
        self.got.truncate(before + len);
        result?;
        if ended {
            self.finish();
        }
        Ok(len > 0 || ended)
    }

    fn look_and_release(
        &mut self,
        link: &mut Link,
        random: &mut Random,
    ) -> Result<bool, LinkError> {
        let Some(arrival) = link.arrival(self.channel)? else { return Ok(false) };
        assert_eq!(arrival.tag, self.expected[0].tag, "channel {}", self.channel);
        let len = if random.one_in(2) { arrival.len } else { random.length(arrival.len) };
        // SAFETY: the arrival has that many readable bytes.
        self.got.extend_from_slice(unsafe { std::slice::from_raw_parts(arrival.data, len) });
        link.release(self.channel, len)?;
        if arrival.last && len == arrival.len {
            self.finish();
        }
        Ok(true)
    }

    fn finish(&mut self) {
        let Some(message) = self.expected.pop_front() else { return };
        assert_eq!(self.got.len(), message.data.len(), "channel {}: length", self.channel);
        assert!(self.got == message.data, "channel {}: content", self.channel);
        self.got.clear();
    }

    /// Checks that what has come of a message that never ended is its beginning.
    pub fn check_beginning(&self) {
        if let Some(message) = self.expected.front() {
            assert!(message.data.starts_with(&self.got), "channel {}: content", self.channel);
        } else {
            assert!(self.got.is_empty(), "channel {}: surplus", self.channel);
        }
    }
}
