//! Shared helpers of the tests in this folder: jobs of real processes.
#![deny(missing_docs)]

pub mod clock;
pub mod counts;
pub mod job;
pub mod sockets;
