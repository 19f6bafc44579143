//! What a launcher answers over PMI, of whatever version: the rank gets a value or an error, and waits for nothing that
//! can never come.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use ringtree_transport::rendezvous::pmi::Pmi;

/// Longer inputs would not fit into the socket, which nobody empties meanwhile.
const MOST_BYTES: usize = 32 << 10;

fuzz_target!(|bytes: &[u8]| {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(&bytes[..bytes.len().min(MOST_BYTES)]).expect("it fits");
    theirs.shutdown(Shutdown::Write).expect("it is open");
    let deadline = Instant::now() + Duration::from_secs(5);
    if let Ok(pmi) = Pmi::open(ours.as_raw_fd() as u32, 0, 2, deadline) {
        let _ = pmi.share(Some("127.0.0.1:1"));
    }
    assert!(Instant::now() < deadline, "it waited for what can never come");
});
