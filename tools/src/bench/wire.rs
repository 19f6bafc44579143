//! What links over RDMA have done in a run: how much of the wire was payload, what it took to send it, and
//! what was copied on the way.

use ringtree::{Communicator, Error, Op};
use serde::Serialize;

/// The sums of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wire {
    /// Bytes given to the devices to send.
    wire_bytes: u64,
    /// Bytes of messages among those.
    payload_bytes: u64,
    /// Bytes of messages that were written straight to where the receiver wanted them.
    direct_bytes: u64,
    /// Bytes of messages that the sender copied first.
    copied_bytes: u64,
    /// Send work requests.
    work_requests: u64,
    /// Completions of both directions.
    completions: u64,
    /// Buffers that were registered with the devices, on the rank that has registered most.
    registrations: u64,
}

impl Wire {
    /// Collects it at rank 0; `None` elsewhere, and where nothing went over RDMA. All ranks call it.
    pub fn collect(communicator: &Communicator) -> Result<Option<Wire>, Error> {
        let own = communicator.rdma_counters();
        let mut sums = [
            own.wire_bytes,
            own.payload_bytes,
            own.direct_bytes,
            own.copied_bytes,
            own.work_requests,
            own.completions,
        ];
        let mut most = [own.registrations];
        communicator.reduce(&mut sums, Op::Sum, 0)?;
        communicator.reduce(&mut most, Op::Max, 0)?;
        let [wire_bytes, payload_bytes, direct_bytes, copied_bytes, work_requests, completions] =
            sums;
        let [registrations] = most;
        let wire = Wire {
            wire_bytes,
            payload_bytes,
            direct_bytes,
            copied_bytes,
            work_requests,
            completions,
            registrations,
        };
        Ok((communicator.rank() == 0 && payload_bytes > 0).then_some(wire))
    }

    /// The lines below the table.
    pub fn text(&self) -> String {
        let share = |bytes: u64| 100.0 * bytes as f64 / self.payload_bytes as f64;
        format!(
            "# RDMA, all ranks and calls: {} bytes of messages and {} of headers, in {} work requests with {} \
             completions\n\
             # RDMA: senders copied {:.1} % of the messages first; {:.1} % went straight to their places, the \
             rest to slots; at most {} buffers registered on a rank\n#\n",
            self.payload_bytes,
            self.wire_bytes.saturating_sub(self.payload_bytes),
            self.work_requests,
            self.completions,
            share(self.copied_bytes),
            share(self.direct_bytes),
            self.registrations,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_wire_carried_is_told_in_shares() {
        let wire = Wire {
            wire_bytes: 2_202_010,
            payload_bytes: 2 << 20,
            direct_bytes: 1 << 20,
            copied_bytes: 0,
            work_requests: 20,
            completions: 41,
            registrations: 3,
        };
        assert_eq!(
            wire.text(),
            "# RDMA, all ranks and calls: 2097152 bytes of messages and 104858 of headers, in 20 work requests \
             with 41 completions\n\
             # RDMA: senders copied 0.0 % of the messages first; 50.0 % went straight to their places, the rest \
             to slots; at most 3 buffers registered on a rank\n#\n"
        );
    }
}
