//! Shared helpers of the criterion benchmarks in this folder.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringtree_transport::Link;
use ringtree_transport::shm::ShmLink;

/// Both ends of a shared-memory link between rank 0 and rank 1: the first is rank 0's.
pub fn shm_pair() -> (Link, Link) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let (a, b) = UnixStream::pair().expect("a socket pair");
    let other = std::thread::spawn(move || ShmLink::establish(b, 0, deadline).expect("a link"));
    let mine = ShmLink::establish(a, 1, deadline).expect("a link");
    (Link::Shm(mine), Link::Shm(other.join().expect("the other end")))
}
