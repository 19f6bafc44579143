//! Shared memory between the ranks of one host.
//!
//! Tiny messages travel in one cache line ([`ring`]); larger ones through slots that stay in the
//! cache, pipelined. The pages are sealed memory files handed over by descriptor ([`layout`],
//! [`establish`]), so that a container's limit on /dev/shm does not matter.

#[cfg(not(loom))]
mod establish;
#[cfg(not(loom))]
mod layout;
#[cfg(not(loom))]
mod link;
mod primitive;
mod ring;

#[cfg(not(loom))]
pub use link::ShmLink;
