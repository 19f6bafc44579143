//! Shared helpers of the tests in this folder, and of other packages' tests: jobs of real
//! processes, two hosts made of network namespaces, calls on a simulated network, traffic over
//! links, values to reduce.

pub mod bits;
pub mod calls;
pub mod clock;
pub mod conformance;
pub mod counts;
pub mod figures;
pub mod files;
pub mod gpu;
pub mod gpu_checks;
pub mod job;
pub mod links;
pub mod live_bytes;
pub mod namespaces;
pub mod pages;
pub mod program;
pub mod random;
pub mod ranks;
pub mod sample;
pub mod seeds;
pub mod simulation;
pub mod sockets;
pub mod ssh;
pub mod strangers;
pub mod traffic;
pub mod values;
pub mod varied;
pub mod verbs;
pub mod verdicts;
