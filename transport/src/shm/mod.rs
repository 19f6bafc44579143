//! Shared memory between the ranks of one host.
//!
//! Tiny messages travel in one cache line ([`ring`]); larger ones through slots that stay in the
//! cache, pipelined. The pages are sealed memory files handed over by descriptor ([`layout`],
//! [`establish`]), so that a container's limit on /dev/shm does not matter.

mod establish;
mod layout;
mod link;
mod primitive;
mod ring;

pub use link::ShmLink;
