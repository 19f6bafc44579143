//! The header of a frame on the wire: it is refused, or has just these bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtree_transport::tcp::frame::{HEADER_BYTES, parse};

fuzz_target!(|bytes: [u8; HEADER_BYTES]| {
    if let Ok(header) = parse(&bytes) {
        assert_eq!(header.encode(), bytes);
    }
});
