//! Times a link: small messages to and fro, which carry the clocks of both sides.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringtree_transport::{Link, POINT_TO_POINT, Tag};
use serde::{Deserialize, Serialize};

/// Enough round trips to have the usual one among them.
const MOST_ROUNDS: usize = 200;

/// As many as fit this time, where ranks share processors.
const TIME: Duration = Duration::from_millis(20);

/// But so many in any case.
const LEAST_ROUNDS: usize = 5;

/// A peer that has not answered for so long is busy with another one: to look all the time would
/// only take its processor away.
const PATIENCE: Duration = Duration::from_millis(2);

/// What says that no other message follows.
const LAST: u8 = 1;

/// A message: whether it is the last one, and the sender's clock.
const MESSAGE_BYTES: usize = 9;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Half of the median round trip.
    pub one_way_us: f64,
    /// By how much the peer's wall clock is ahead.
    pub clock_ahead_us: f64,
}

/// Times a link to a peer that does the same at the same time: of the two, one leads, and knows the
/// result. Ends the link.
pub fn time(link: Link, leads: bool, deadline: Instant) -> Result<Option<Timing>, String> {
    // The link is dropped before the message that it may still read.
    let mut message = [0; MESSAGE_BYTES];
    let mut end = End { link, sequence: 0, deadline };
    let timing = match leads {
        true => end.lead(&mut message).map(Some),
        false => end.follow(&mut message).map(|()| None),
    }?;
    end.link.close(deadline);
    Ok(timing)
}

struct End {
    link: Link,
    /// Number of the round trip.
    sequence: u32,
    deadline: Instant,
}

impl End {
    fn lead(&mut self, message: &mut [u8; MESSAGE_BYTES]) -> Result<Timing, String> {
        let begin = Instant::now();
        let mut rounds: Vec<(Duration, f64)> = Vec::with_capacity(MOST_ROUNDS);
        loop {
            let count = rounds.len() + 1;
            let is_last = count >= MOST_ROUNDS || (count >= LEAST_ROUNDS && begin.elapsed() > TIME);
            let (sent, sent_ns) = (Instant::now(), wall_ns());
            encode(message, u8::from(is_last) * LAST, sent_ns);
            self.send(message)?;
            let (_, theirs_ns) = self.receive()?;
            let took = sent.elapsed();
            self.sequence += 1;
            let middle_ns = sent_ns + i64::try_from(took.as_nanos() / 2).unwrap_or_default();
            rounds.push((took, (theirs_ns - middle_ns) as f64 / 1e3));
            if is_last {
                break;
            }
        }
        rounds.sort_by_key(|(took, _)| *took);
        // The quickest round trip tells the clocks best.
        let (median, quickest) = (rounds[rounds.len() / 2], rounds[0]);
        let one_way_us = median.0.as_nanos() as f64 / 2e3;
        Ok(Timing { one_way_us, clock_ahead_us: quickest.1 })
    }

    fn follow(&mut self, message: &mut [u8; MESSAGE_BYTES]) -> Result<(), String> {
        loop {
            let (kind, _) = self.receive()?;
            encode(message, kind, wall_ns());
            self.send(message)?;
            self.sequence += 1;
            if kind == LAST {
                return Ok(());
            }
        }
    }

    /// Sends a message, and returns when it may be written again.
    fn send(&mut self, message: &[u8; MESSAGE_BYTES]) -> Result<(), String> {
        let (data, len) = (message.as_ptr(), message.len());
        // SAFETY: the message outlives the link, as `time` sees to, and stays as it is until it has
        // left: this waits for that, and after an error nobody writes it again.
        unsafe { self.link.post(POINT_TO_POINT, self.tag(), data, len, true) }
            .map_err(|error| error.to_string())?;
        self.wait(|end| Ok((!end.link.is_waiting(POINT_TO_POINT)).then_some(())))
    }

    /// The next message.
    fn receive(&mut self) -> Result<(u8, i64), String> {
        let mut message = [0_u8; MESSAGE_BYTES];
        let mut filled = 0;
        self.wait(|end| {
            let rest = &mut message[filled..];
            let (into, len) = (rest.as_mut_ptr(), rest.len());
            // SAFETY: that is the room that is left in the message.
            let received = unsafe { end.link.receive(POINT_TO_POINT, end.tag(), into, len) };
            let (bytes, is_whole) = received.map_err(|error| error.to_string())?;
            filled += bytes;
            Ok(is_whole.then_some(()))
        })?;
        let [kind, wall @ ..] = message;
        Ok((kind, i64::from_le_bytes(wall)))
    }

    fn tag(&self) -> Tag {
        Tag { sequence: self.sequence, digest: 0 }
    }

    /// Moves the link until `step` has what it wants.
    fn wait<T>(
        &mut self,
        mut step: impl FnMut(&mut End) -> Result<Option<T>, String>,
    ) -> Result<T, String> {
        let begin = Instant::now();
        loop {
            if let Some(done) = step(self)? {
                return Ok(done);
            }
            let now = Instant::now();
            if now > self.deadline {
                return Err(format!("rank {} does not answer in time", self.link.peer()));
            }
            match now - begin > PATIENCE {
                true => thread::sleep(Duration::from_micros(200)),
                false => thread::yield_now(),
            }
            self.link.poll(0).map_err(|error| error.to_string())?;
        }
    }
}

fn encode(message: &mut [u8; MESSAGE_BYTES], kind: u8, wall_ns: i64) {
    message[0] = kind;
    message[1..].copy_from_slice(&wall_ns.to_le_bytes());
}

/// The wall clock; far before 1970 or after 2262 it is 0.
fn wall_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or_default()
}

/// Whom `rank` of `ranks` meets, round by round, so that each meets each once and nobody two at a
/// time: one stands still while the others go round a table.
pub fn partners(rank: u32, ranks: u32) -> impl Iterator<Item = u32> {
    let seats = ranks.next_multiple_of(2);
    let others = seats - 1;
    (0..others).filter_map(move |round| {
        // They sit so that the numbers of two who meet are the round's together.
        let opposite = |seat: u32| (round + others - seat % others) % others;
        let partner = match rank {
            still if still == others => (0..others).find(|&seat| opposite(seat) == seat)?,
            moving if opposite(moving) == moving => others,
            moving => opposite(moving),
        };
        (partner < ranks).then_some(partner)
    })
}

#[cfg(test)]
mod tests {
    use ringtree_tests::links;

    use super::*;

    #[test]
    fn both_transports_are_timed() {
        for pair in [links::tcp(), links::shm()] {
            let deadline = Instant::now() + links::PATIENCE;
            let (left, right) = (pair.left, pair.right);
            let timing = thread::scope(|scope| {
                let follower = scope.spawn(move || time(right, false, deadline));
                let timing = time(left, true, deadline).unwrap().unwrap();
                assert_eq!(follower.join().unwrap(), Ok(None));
                timing
            });
            assert!(timing.one_way_us > 0.0, "{timing:?}");
            // One clock on both sides.
            assert!(timing.clock_ahead_us.abs() < 1e6, "{timing:?}");
        }
    }

    #[test]
    fn a_peer_that_does_not_answer_is_given_up() {
        let pair = links::tcp();
        let error = time(pair.left, true, Instant::now()).unwrap_err();
        assert_eq!(error, "rank 1 does not answer in time");
        drop(pair.right);
    }

    #[test]
    fn each_meets_each_once_and_nobody_two_at_a_time() {
        for ranks in 1..12_u32 {
            let mut met = vec![0; (ranks * ranks) as usize];
            for rank in 0..ranks {
                for partner in partners(rank, ranks) {
                    met[(rank * ranks + partner) as usize] += 1;
                }
            }
            for rank in 0..ranks {
                for other in 0..ranks {
                    let times = met[(rank * ranks + other) as usize];
                    assert_eq!(times, u32::from(rank != other), "{rank} and {other} of {ranks}");
                }
            }
        }
    }

    /// Whoever waits in a round waits for one that gets to it: all orders agree.
    #[test]
    fn nobody_waits_in_a_circle() {
        for ranks in 2..12 {
            let mut left: Vec<Vec<u32>> =
                (0..ranks).map(|rank| partners(rank, ranks).collect()).collect();
            while left.iter().any(|own| !own.is_empty()) {
                let meets = |rank: u32| left[rank as usize].first().copied();
                let pair = (0..ranks).find_map(|rank| {
                    let partner = meets(rank)?;
                    (meets(partner) == Some(rank)).then_some([rank, partner])
                });
                for rank in pair.expect("two that wait for each other") {
                    left[rank as usize].remove(0);
                }
            }
        }
    }
}
