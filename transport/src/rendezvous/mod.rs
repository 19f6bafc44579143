//! Where the ranks of a job exchange addresses: a store of small values.
//!
//! [`Server`] hosts it over TCP, for rank 0 or the launcher, and passes on control connections that
//! come to the same port. [`StoreClient`] is a rank's connection to it, by address or by a file
//! ([`Notice`]) that tells the address; under some launchers it is told over [PMI](pmi). Ranks that
//! are threads of one process share a [`MemoryStore`]. Losing the store after the start harms nobody.

mod client;
mod error;
mod memory;
mod notice;
pub mod pmi;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Instant;

pub use client::{StoreClient, connect};
pub use error::StoreError;
pub use memory::MemoryStore;
pub use notice::{Notice, Place};
pub use server::{Server, listen, listen_somewhere, listen_within};
use wire::{Reply, Request};

/// Longest key, in bytes.
pub const KEY_LIMIT_BYTES: usize = 1024;

/// Longest value. A rank's address is a few hundred bytes.
pub const VALUE_LIMIT_BYTES: usize = 1 << 20;

/// Ranks of one gather at most.
pub const RANKS_LIMIT: u32 = 1 << 16;

/// A store of small values, the same for all ranks of a job.
#[derive(Debug)]
pub enum Store {
    /// On a [`Server`].
    Tcp(StoreClient),
    /// In this process.
    Memory(Arc<MemoryStore>),
}

impl Store {
    /// Sets a key's value, whether it has one or not.
    pub fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        let request = Request::Set { key: key.into(), value: value.into() };
        self.ask(request, deadline)?.done()
    }

    /// The value of a key, once it has one.
    ///
    /// # Errors
    /// [`StoreError::TimedOut`] where nobody has set it by the deadline.
    pub fn get(&self, key: &str, deadline: Instant) -> Result<Vec<u8>, StoreError> {
        self.ask(Request::Get { key: key.into() }, deadline)?.value()
    }

    /// Adds to a counter, which begins at 0, and returns its new value.
    ///
    /// # Errors
    /// [`StoreError::NotCounter`] where the key has a value that [`Store::set`] gave it.
    pub fn add(&self, key: &str, amount: i64, deadline: Instant) -> Result<i64, StoreError> {
        self.ask(Request::Add { key: key.into(), amount }, deadline)?.sum()
    }

    /// Publishes this rank's value, waits for those of all ranks, and returns them by rank. Each
    /// gather needs a prefix of its own, the same on all ranks.
    ///
    /// # Errors
    /// [`StoreError::Missing`] names the ranks that have not come by the deadline;
    /// [`StoreError::Claimed`]: two processes say that they are this rank.
    pub fn gather(
        &self,
        prefix: &str,
        rank: u32,
        ranks: u32,
        value: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let request = Request::Gather { prefix: prefix.into(), rank, ranks, value: value.into() };
        self.ask(request, deadline)?.values()
    }

    fn ask(&self, request: Request, deadline: Instant) -> Result<Reply, StoreError> {
        request.check()?;
        match self {
            Store::Tcp(client) => client.ask(&request, deadline),
            Store::Memory(store) => store.answer(request, deadline),
        }
    }
}
