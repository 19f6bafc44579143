//! Shared helpers of the criterion benchmarks in this folder.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringtree_transport::Link;
use ringtree_transport::shm::{Board, ShmLink};

/// Both ends of a shared-memory link between rank 0 and rank 1: the first is rank 0's.
pub fn shm_pair() -> (Link, Link) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let (a, b) = UnixStream::pair().expect("a socket pair");
    let establish = move |socket, peer| {
        let board = Board::new().expect("a board");
        Link::Shm(ShmLink::establish(socket, peer, board.memory(), deadline).expect("a link"))
    };
    let other = std::thread::spawn(move || establish(b, 0));
    (establish(a, 1), other.join().expect("the other end"))
}
