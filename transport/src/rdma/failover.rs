//! When a queue pair fails and others are left, they carry the rest.
//!
//! Whoever notices ends the queue pair on his side and takes what had come: from then on nothing arrives by
//! it any more. Then he tells the peer, over another queue pair, how many of its writes had told of
//! themselves; the peer does the same. What a side had under way beyond that number has not been taken in,
//! so that it can be made again over the others, in order; what is before it has arrived. Nothing that was
//! taken in is ever written a second time, since the program may use that memory by then.
//!
//! A sender whose last writes went by the queue pair that failed is done when the peer has told: not before the
//! peer looks at its links again.

use std::time::Instant;

use super::arena::Place;
use super::control::State as ControlState;
use super::error::meaning_of;
use super::ffi;
use super::frame::Body;
use super::link::{RdmaLink, SENSELESS};
use super::queue::{State, Work};
use super::rails::{port_hint, port_state};
use super::sending::KEPT;
use crate::{LinkError, TransportKind};

impl RdmaLink {
    /// A work request of a queue pair failed.
    pub(super) fn request_failed(&mut self, at: usize, status: u32) {
        if self.queues[at].state == State::Open {
            let reason = self.reason_of(at, status);
            self.end_queue(at, reason);
        }
    }

    /// A call of the library for a queue pair failed, as happens where a device is reset or gone.
    pub(super) fn call_failed(&mut self, at: usize, what: &str, error: &std::io::Error) {
        if self.queues[at].state == State::Open {
            self.end_queue(at, format!("{what}: {error}"));
        }
    }

    /// What a failed work request means: where the port is down, only that.
    fn reason_of(&self, at: usize, status: u32) -> String {
        let rail = &self.queues[at].rail;
        match rail.device.port(rail.port) {
            Ok(port) if port.state != ffi::PORT_ACTIVE => {
                format!(
                    "the port is {}: {}",
                    port_state(port.state),
                    port_hint(rail.is_ethernet, rail.device.name(), rail.port)
                )
            }
            _ => meaning_of(status).into(),
        }
    }

    /// Ends a queue pair that is open. If it was the last one, the link has failed.
    fn end_queue(&mut self, at: usize, reason: String) {
        self.queues[at].state = State::Ending;
        // Whoever left in good order takes his queue pairs with him.
        if self.control.take_in(&mut self.foreign) == ControlState::Broken {
            self.protocol(SENSELESS);
        }
        let has_left = self.control.has_ended();
        let ended = self.queues[at].pair.end();
        let rail = &self.queues[at].rail;
        let (device, port, peer) = (rail.device.name(), rail.port, self.peer);
        let left = self.queues.iter().filter(|queue| queue.state == State::Open).count();
        let is_over = left == 0 || ended.is_err();
        if has_left || is_over {
            tracing::debug!("RDMA to rank {peer}: {device}:{port} has failed: {reason}");
        } else {
            tracing::warn!(
                "RDMA to rank {peer}: a queue pair on {device}:{port} has failed ({reason}); the others, {left} in \
                 all, carry the rest"
            );
        }
        if is_over {
            let reason = format!("{device}:{port}: {reason}");
            let error = LinkError::Failed { peer, transport: TransportKind::Rdma, reason };
            self.failing.get_or_insert((Instant::now(), error));
        }
    }

    /// Nothing more comes of a queue pair that was ended.
    pub(super) fn queue_ended(&mut self, at: usize) {
        if self.queues[at].state != State::Ending {
            return;
        }
        self.queues[at].state = State::Ended;
        self.to_close |= 1 << at;
        self.replace(at);
    }

    /// The peer has ended a queue pair, on which so many writes of this side had told of themselves.
    pub(super) fn peer_ended(&mut self, at: usize, received: u64) -> Result<(), &'static str> {
        let queue = self.queues.get_mut(at).ok_or("the end of a queue pair that there is not")?;
        let is_possible = queue.completed <= received && received <= queue.next_id();
        if queue.peer_received.is_some() || !is_possible {
            return Err("an end that cannot be");
        }
        queue.peer_received = Some(received);
        if queue.state == State::Open {
            self.end_queue(at, "the peer has ended it".into());
        }
        self.replace(at);
        Ok(())
    }

    /// Once both sides have ended a queue pair, what it has not delivered goes to the others.
    fn replace(&mut self, at: usize) {
        let queue = &mut self.queues[at];
        let (State::Ended, Some(received)) = (queue.state, queue.peer_received) else { return };
        queue.state = State::Replaced;
        queue.outstanding_bytes = 0;
        for work in std::mem::take(&mut queue.outstanding) {
            let has_arrived = self.queues[at].completed < received;
            self.queues[at].completed += 1;
            if has_arrived {
                self.complete(work);
            } else {
                self.resend.push_back(work);
            }
        }
    }

    /// Whether it is not known yet what a queue pair has delivered, so that lines would not be in order.
    pub(super) fn is_replacing(&self) -> bool {
        let is_between = |state| matches!(state, State::Ending | State::Ended);
        !self.resend.is_empty() || self.queues.iter().any(|queue| is_between(queue.state))
    }

    /// Makes again what failed queue pairs have not delivered. Returns whether anything left.
    pub(super) fn send_again(&mut self) -> bool {
        let mut moved = false;
        while let Some(&work) = self.resend.front() {
            let is_line = matches!(work, Work::Line { .. });
            let way = if is_line { self.lead() } else { self.queue_with_room(KEPT) };
            let Some(at) = way.filter(|&at| self.queues[at].room() > KEPT) else { break };
            self.resend.pop_front();
            self.post_work(at, work);
            moved = true;
        }
        moved
    }

    /// Tells the peer of the queue pairs that have ended here.
    pub(super) fn tell_ends(&mut self) -> bool {
        let mut moved = false;
        while self.to_close != 0 {
            let Some(lead) = self.lead().filter(|&at| self.queues[at].room() > 0) else { break };
            let at = self.to_close.trailing_zeros() as usize;
            self.to_close &= !(1 << at);
            let queue = at as u8;
            let received = self.queues[at].received;
            self.write_header(Place::Closed(queue), Body::Closed { queue, received }, 0);
            self.post_work(lead, Work::Closed { queue });
            moved = true;
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_said_in_words() {
        assert!(meaning_of(12).contains("the peer is dead"));
        assert!(meaning_of(10).contains("withdrawn"));
        assert!(meaning_of(ffi::WC_WR_FLUSH_ERR).contains("has ended the queue pair"));
    }
}
