//! Each bit that changes on its way into the memory of a link's receiver is found where frames have checksums,
//! be it sent through a slot or straight from registered memory.

use std::ptr::NonNull;

use ringtree_tests::links::{Pair, rdma_checked, wait_for};
use ringtree_transport::memory::{Registration, SharedMemory};
use ringtree_transport::{Damage, LinkError, Tag, TransportKind};

const TAG: Tag = Tag { sequence: 6, digest: 0xd16e57 };

/// In front of the data of a slot.
const HEADER_BYTES: usize = 64;

#[test]
fn each_bit_of_a_payload_is_found() {
    for (len, is_registered) in [(300, false), (20_000, true)] {
        let mut pair = rdma_checked();
        let mut data = message(len);
        let start = NonNull::new(data.as_mut_ptr()).expect("a vector's address");
        // SAFETY: the vector is kept beside its registration and never grows.
        let registration = unsafe { Registration::of_plain(start, len) };
        if is_registered {
            pair.left.share(&registration);
        }
        let (landing, at) = arrive(&mut pair, &data);
        let step = if is_registered { 101 } else { 1 };
        for bit in (0..8 * len).step_by(step) {
            flip(&landing, at + bit / 8, bit % 8);
            let error = pair.right.arrival(0).expect_err("a changed bit is found");
            flip(&landing, at + bit / 8, bit % 8);
            let (channel, begin) = (0, Some(0));
            let damage = Damage::Payload { channel, tag: TAG, begin, len: len as u64 };
            let (peer, transport) = (0, TransportKind::Rdma);
            assert_eq!(error, LinkError::Corrupt { peer, transport, damage }, "bit {bit}");
        }
        let arrival = pair.right.arrival(0).expect("all bits are as they were").expect("it came");
        assert_eq!((arrival.len, arrival.tag), (len, TAG));
        let copied = pair.left.rdma_counters().expect("RDMA").copied_bytes;
        assert_eq!(copied == 0, is_registered, "{copied} bytes were copied");
    }
}

#[test]
fn a_changed_bit_of_a_header_is_found() {
    // Each bit takes a link, since what its header says is lost with it.
    for bit in (0..8 * HEADER_BYTES).step_by(11) {
        let mut pair = rdma_checked();
        let data = message(300);
        let (landing, at) = arrive(&mut pair, &data);
        flip(&landing, at - HEADER_BYTES + bit / 8, bit % 8);
        let error = wait_for(&pair.world, "the error", || pair.right.arrival(0).err());
        let (peer, transport) = (0, TransportKind::Rdma);
        let damage = Damage::Header;
        assert_eq!(error, LinkError::Corrupt { peer, transport, damage }, "bit {bit}");
    }
}

fn message(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ 0x5a).collect()
}

/// Sends a message, and waits until it lies in the memory of the receiver, which has not looked. Where that is.
fn arrive(pair: &mut Pair, data: &[u8]) -> (std::sync::Arc<SharedMemory>, usize) {
    let landing = pair.right.slot_memory().remove(0).mapping;
    // SAFETY: every test keeps the data as long as the link.
    unsafe { pair.left.post(0, TAG, data.as_ptr(), data.len(), true) }.expect("open");
    let Pair { left, world, .. } = pair;
    let at = wait_for(world, "the message in memory", || {
        left.poll(0).expect("open");
        // SAFETY: the mapping is so long; what the device writes meanwhile makes it another copy.
        let bytes =
            unsafe { std::slice::from_raw_parts(landing.start(), landing.len_bytes()) }.to_vec();
        bytes.windows(data.len()).position(|window| window == data)
    });
    (landing, at)
}

/// Changes a bit of the receiver's memory.
fn flip(landing: &SharedMemory, at: usize, bit: usize) {
    assert!(at < landing.len_bytes());
    let byte = landing.start().wrapping_add(at);
    // SAFETY: the byte is one of the mapping's, and the device has written what it had to.
    unsafe { byte.write_volatile(byte.read_volatile() ^ 1 << bit) };
}
