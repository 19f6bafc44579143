//! Links over TCP sockets: any hosts.
//!
//! A link's sockets, usually one, carry all its channels as frames ([`frame`]): a 32-byte header
//! and at most [`SLICE_BYTES`] of payload, encrypted if that is wanted (`cipher.rs`). The payload is written straight from the poster's memory and, where
//! the receiver says where it wants it, read straight into its memory; otherwise it waits in one
//! of the receiver's slots. A frame leaves only against a credit (`transport/src/credit.rs`), so the receiver can
//! always take in what the socket holds, and a channel that nobody reads stops no other one.

mod batch;
mod block;
mod cipher;
pub mod frame;
mod link;
mod receiver;
mod sender;
mod socket;
#[cfg(test)]
mod tests;

use crate::credit::{LANE_SLOTS, POINT_TO_POINT_SLOTS};
pub use link::{Connection, TcpLink};
pub use socket::LOOPBACK_CONGESTION_CONTROLS;

/// Payload bytes of one frame at most. On loopback, 128 and 256 KiB are equally fast and 512 KiB
/// is a quarter slower where slices go through slots, which then no longer stay in the cache.
pub const SLICE_BYTES: usize = 128 << 10;

/// Frames that a side of a link may have under way, sent and not yet released by the receiver: the
/// receiver's slots. They are allocated when first needed.
pub const SLOTS: usize = LANE_SLOTS + POINT_TO_POINT_SLOTS;
