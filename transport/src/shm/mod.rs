//! Shared memory between the ranks of one host.
//!
//! Tiny messages travel in one cache line (`ring`); larger ones through slots, pipelined (`slots`), each
//! written in the way that is fastest to its reader (`writer`). The program's own shared memory is read
//! in place (`lending`), and written in place where room for a message was offered (`direct`). Between
//! processes that may trace each other that goes for ordinary memory, too, where the kernel copies
//! faster than slots are written (`reach`).
//!
//! A message for all ranks of the host is written once, where all read it (`board`, `publish`).
//!
//! The pages are sealed memory files handed over by descriptor (`layout`, `establish`), so that a
//! container's limit on /dev/shm does not matter.

mod board;
mod descriptors;
mod devices;
mod direct;
mod establish;
mod layout;
mod lending;
mod link;
mod primitive;
mod publish;
mod reach;
mod receive;
mod ring;
mod send;
mod slots;
mod writer;

pub use board::BOARD_BYTES;
pub use link::ShmLink;
pub use publish::{Board, Published};
pub use reach::Attach;
