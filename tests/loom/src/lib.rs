//! The shared-memory ring and the board under loom, which tries every interleaving that the memory model
//! allows. Their own source is compiled here with loom's atomics, since the rest of its crate
//! maps memory and opens sockets, which loom does not model.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p ringtree-loom-tests --target-dir target/loom`;
//! without that flag there is nothing here.
#![cfg(loom)]
#![allow(dead_code)]

#[path = "../../../transport/src/shm/board.rs"]
mod board;
#[path = "../../../transport/src/shm/primitive.rs"]
mod primitive;
#[path = "../../../transport/src/shm/ring.rs"]
mod ring;
