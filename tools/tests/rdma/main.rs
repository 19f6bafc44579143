//! RDMA on real verbs, in a machine that has devices: `tests/rdma-vm`, where cargo's runner takes these
//! tests. Times in it mean nothing; what is asserted is that everything arrives, what it took, and what is
//! said when it does not.

#![cfg(target_arch = "x86_64")]

mod allocations;
mod failures;
mod flipped;
mod gpus;
mod jobs;
mod links;
mod network;
mod setup;
mod wire;

ringtree_tests::conformance! { rdma rdma_rails rdma_checked rdma_rails_checked }
