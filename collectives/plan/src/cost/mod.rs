//! Predicts how long programs take, by running all ranks' on virtual time.
//!
//! The machine: every host has one port out and one port in, each of which passes one message at a
//! time at the machine's bandwidth, and every rank a processor that folds. A message leaves when the
//! port out is free, reaches the receiver a latency later, and passes its port in as it comes, or after
//! those that came before it. A message is taken when all of it is there; moving it between a port
//! and memory costs nothing more. Lanes share ports and processors. Where several ranks share a host,
//! they share its ports, and each has two more of its own, by which it reaches the others there.
//!
//! Ports, not pairs, are the limit because that is what a network card, and a core that copies,
//! are. It is the model of Hockney with the ports of Thakur, Rabenseifner and Gropp (2005), except
//! that latency occupies no port, and that a message occupies one for a while however short it is: the
//! gap of Culler and others, "LogP: towards a realistic model of parallel computation" (1993). Else all
//! could send to one at no cost.

mod representatives;
mod run;

pub use representatives::{Representatives, Sent};
pub use run::{Transfer, predict, trace};

/// The machine that a plan is thought to run on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// From the first byte's leaving to its arrival.
    pub latency_s: f64,
    /// For which a message occupies a port beside its bytes.
    pub message_s: f64,
    /// Of each host, in each direction.
    pub bandwidth_bytes_per_s: f64,
    /// Bytes of result of two operands; `k` operands take `k - 1` times as long.
    pub reduction_bytes_per_s: f64,
    /// How the ranks of a host reach each other; none where each has a host of its own.
    pub local: Option<Local>,
}

/// What ranks of one host have among themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Local {
    /// How many share each host, neighbours in the order of ranks.
    pub ranks: u32,
    /// As [`Machine::latency_s`].
    pub latency_s: f64,
    /// As [`Machine::message_s`].
    pub message_s: f64,
    /// Of each rank, in each direction.
    pub bandwidth_bytes_per_s: f64,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Size of the buffer of a rank.
    pub bytes: f64,
    /// Into how many rounds it is cut, at least 1.
    pub rounds: u32,
    /// How many of them are under way at once, at least 1.
    pub lanes: u32,
}

impl Work {
    /// Everything in one round.
    pub const fn whole(bytes: f64) -> Work {
        Work { bytes, rounds: 1, lanes: 1 }
    }

    /// Size of a round.
    pub fn round_bytes(&self) -> f64 {
        self.bytes / f64::from(self.rounds)
    }

    /// The first of its rounds.
    fn first(self, rounds: u32) -> Work {
        Work { bytes: self.round_bytes() * f64::from(rounds), rounds, ..self }
    }
}

impl Machine {
    /// Time that a message of `bytes` needs to pass a port.
    pub fn transfer_s(&self, bytes: f64) -> f64 {
        self.message_s + bytes / self.bandwidth_bytes_per_s
    }

    /// Time to fold `operands` operands of `bytes` each.
    pub fn reduction_s(&self, bytes: f64, operands: usize) -> f64 {
        (operands - 1) as f64 * bytes / self.reduction_bytes_per_s
    }

    /// How many ranks share a host.
    fn ranks_of_host(&self) -> u32 {
        self.local.map_or(1, |local| local.ranks)
    }
}

impl Local {
    fn transfer_s(&self, bytes: f64) -> f64 {
        self.message_s + bytes / self.bandwidth_bytes_per_s
    }
}
