//! The simulated transport: links on virtual time, seeded, with rules that delay, drop, cut, kill,
//! slow and fail.
//!
//! It is a transport, not a mock: the executor that runs over shared memory and TCP runs over it
//! unchanged. A driver owns every rank's executor and one [`Network`]. It polls the ranks in turn,
//! and when none of them moves it lets time go on with [`Network::step`], or with
//! [`Network::advance_to`] where a deadline comes before the network's next event. One thread, the
//! same seed and the same calls give the same events, so that a failing run is replayed from its
//! seed.
//!
//! How a frame travels: it leaves against a credit of its channel, when it is posted or when a
//! later poll finds the credit; its bytes are copied into a slot then, and count as sent. Frames
//! of one direction of a link leave one after another at the bandwidth, and arrive a latency (and
//! its jitter) later, each channel in its order. The receiver's poll takes in what has arrived.
//! Releasing a slice sends its slot and its credit back, which takes a latency again.
//!
//! Dropping a frame does what a lost frame does to a reliable link: nothing ever arrives on its
//! channel again and no credit comes back, as on a connection that stalls. No end sees an error;
//! only deadlines help.

mod end;
mod link;
mod network;
mod rules;
mod state;
#[cfg(test)]
mod tests;
mod trace;

pub use link::SimLink;
pub use network::{Config, Network, Traffic};
pub use rules::{FrameEffect, Match, OperationEffect, Rule};
pub use trace::{Operation, TraceEntry, TraceEvent};
