//! What comes over a connection before the other side has proved anything, to whoever accepted or opened it
//! (by the first byte): nobody proves anything by chance, and nobody waits for more than there is.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use ringtree_transport::secure::{Job, Purpose, Secret, accept, initiate};

static JOB: LazyLock<Job> =
    LazyLock::new(|| Job { name: "fuzzing".into(), secret: Secret::from_text("of nobody") });

/// Longer inputs would not fit into the socket, which nobody empties meanwhile.
const MOST_BYTES: usize = 32 << 10;

fuzz_target!(|bytes: &[u8]| {
    let Some((accepts, bytes)) = bytes.split_first() else { return };
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(&bytes[..bytes.len().min(MOST_BYTES)]).expect("it fits");
    theirs.shutdown(Shutdown::Write).expect("it is open");
    let deadline = Instant::now() + Duration::from_secs(5);
    let is_proved = match accepts % 2 {
        0 => accept(Arc::new(ours), &JOB, deadline, |_, _| Ok(())).is_ok(),
        _ => initiate(ours, &JOB, Purpose::Store, b"hello", deadline).is_ok(),
    };
    assert!(!is_proved);
    assert!(Instant::now() < deadline, "it waited for what can never come");
});
