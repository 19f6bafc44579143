//! Each bit that changes between two ranks is found where frames have checksums: in lines, slots and boards of
//! shared memory, and on the wire. Those of frames over RDMA are in `tools/tests/rdma`, and those of simulated
//! ones in `simulated_faults.rs`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use ringtree_tests::links::{PATIENCE, World, shm_checked, tcp_streams, wait_for};
use ringtree_transport::memory::SharedMemory;
use ringtree_transport::shm::{Attach, Board, ShmLink};
use ringtree_transport::tcp::TcpLink;
use ringtree_transport::{Arrival, Damage, Link, LinkError, Tag, TransportKind};

const TAG: Tag = Tag { sequence: 5, digest: 0xd16e57 };

/// A cache line of shared memory.
const LINE_BYTES: usize = 64;

#[test]
fn each_bit_of_a_line_and_of_a_slot_is_found() {
    // In the line itself, and in a slot.
    for len in [1, 40, 41, 700] {
        let mut pair = shm_checked();
        let mapping = pair.left.slot_memory().remove(0).mapping;
        // The slots, of 64 KiB each, are behind everything else.
        let slots_at = mapping.len_bytes() - (32 << 16);
        // After 16 rounds each line was in use before.
        for round in 0..18_u8 {
            let before = copy_of(&mapping);
            let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8 ^ round).collect();
            post(&mut pair.left, &data);
            let after = copy_of(&mapping);
            // Of a line all bytes count, those too that are as they were.
            let mut bytes: Vec<usize> = Vec::new();
            for at in (0..after.len()).filter(|&at| after[at] != before[at]) {
                let line = at / LINE_BYTES * LINE_BYTES;
                if at >= slots_at {
                    bytes.push(at);
                } else if !bytes.contains(&line) {
                    bytes.extend(line..line + LINE_BYTES);
                }
            }
            assert!(bytes.len() > len / 2, "{len} bytes went somewhere else");
            for (at, bit) in bytes.into_iter().flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let payload = (at >= slots_at).then_some(len);
                flip(&mapping, at, bit);
                let error = pair.right.arrival(0).expect_err("a changed bit is found");
                flip(&mapping, at, bit);
                assert_corrupt(&error, TransportKind::Shm, payload);
            }
            let arrival = pair.right.arrival(0).expect("all bits are as they were");
            assert_eq!(bytes_of(&arrival.expect("it is there")), data);
            pair.right.release(0, len).expect("it arrived");
        }
    }
}

#[test]
fn each_bit_of_a_board_is_found() {
    for len in [1, 48, 49, 4096] {
        let (mut own, left, right) = boards();
        let mapping = own.memory().clone();
        for exchange in 1..=4 {
            let data: Vec<u8> = (0..len).map(|i| (i * 11 + exchange) as u8).collect();
            let before = copy_of(&mapping);
            // SAFETY: the data is there, and the only reader has seen what came before.
            let number = unsafe { own.publish(TAG, data.as_ptr(), len) }.number;
            left.announce();
            let after = copy_of(&mapping);
            let bytes: Vec<usize> =
                (0..after.len()).filter(|&at| after[at] != before[at]).collect();
            assert!(bytes.len() > len / 2, "{len} bytes went somewhere else");
            for (at, bit) in bytes.into_iter().flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                flip(&mapping, at, bit);
                let error = right.published(number).expect_err("a changed bit is found");
                flip(&mapping, at, bit);
                let is_named = matches!(
                    error,
                    LinkError::Corrupt {
                        peer: 0,
                        transport: TransportKind::Shm,
                        damage: Damage::Board { .. } | Damage::Header
                    }
                );
                assert!(is_named, "bit {bit} of byte {at}: {error}");
            }
            let arrival = right.published(number).expect("all bits are as they were");
            assert_eq!(bytes_of(&arrival.expect("it is there")), data);
        }
    }
}

#[test]
fn each_bit_on_the_wire_is_found() {
    let data: Vec<u8> = (0..97_u8).map(|i| i.wrapping_mul(3)).collect();
    let wire_bytes = recorded(&data).len();
    for bit in 0..8 * wire_bytes {
        let mut wire = recorded(&data);
        wire[bit / 8] ^= 1 << (bit % 8);
        let (mut near, far) = tcp_streams();
        let mut link =
            Link::Tcp(TcpLink::new(far, 0).expect("a connected stream")).with_checksums();
        near.write_all(&wire).expect("the buffers hold that");
        let error = first_error(&mut link);
        let payload = wire_bytes - data.len();
        assert_corrupt(&error, TransportKind::Tcp, (bit / 8 >= payload).then_some(data.len()));
    }
}

#[test]
fn no_byte_of_a_damaged_frame_gets_to_where_it_is_wanted() {
    let data = vec![9; 100_000];
    let mut wire = recorded(&data);
    let last = wire.len() - 1;
    wire[last] ^= 1;
    let (mut near, far) = tcp_streams();
    let mut link = Link::Tcp(TcpLink::new(far, 0).expect("a connected stream")).with_checksums();
    let writer = std::thread::spawn(move || {
        near.write_all(&wire).expect("somebody reads");
        near
    });
    let mut room = vec![0_u8; data.len()];
    let error = wait_for(&World::Real, "the error", || {
        let _ = link.poll(0);
        // SAFETY: the room has so many bytes.
        match unsafe { link.receive(0, TAG, room.as_mut_ptr(), room.len()) } {
            Ok(received) => {
                assert_eq!(received, (0, false));
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_corrupt(&error, TransportKind::Tcp, Some(data.len()));
    assert!(room.iter().all(|&byte| byte == 0), "a byte of a damaged frame");
    drop(writer.join());
}

#[test]
fn the_error_says_who_where_and_what_to_do() {
    let damage = Damage::Payload { channel: 2, tag: TAG, begin: Some(65_536), len: 1000 };
    let error = LinkError::Corrupt { peer: 3, transport: TransportKind::Shm, damage };
    let text = error.to_string();
    for part in ["rank 3", "over shm", "bytes 65536 to 66536", "operation 5", "doctor --probe"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
}

/// What a link with checksums writes for one message.
fn recorded(data: &[u8]) -> Vec<u8> {
    let (near, mut far) = tcp_streams();
    let mut link = Link::Tcp(TcpLink::new(near, 1).expect("a connected stream")).with_checksums();
    post(&mut link, data);
    let reader = std::thread::spawn(move || {
        let mut wire = Vec::new();
        far.read_to_end(&mut wire).map(|_| wire)
    });
    let deadline = Instant::now() + PATIENCE;
    while link.is_waiting(0) {
        link.poll(0).expect("somebody reads");
        assert!(Instant::now() < deadline, "the message does not leave");
    }
    // Without a goodbye.
    drop(link);
    reader.join().expect("no panic").expect("a stream that ends")
}

/// The error that a link ends with which gets a message that is no longer what it was.
fn first_error(link: &mut Link) -> LinkError {
    wait_for(&World::Real, "the error", || {
        let _ = link.poll(0);
        match link.arrival(0) {
            Ok(arrival) => {
                assert_eq!(arrival.map(|arrival| arrival.len), None, "a damaged frame is shown");
                None
            }
            Err(error) => Some(error),
        }
    })
}

/// Rank 0's board and two ends of a link, of which the second reads it.
fn boards() -> (Board, Link, Link) {
    let board = || Board::new().expect("memory and a descriptor").with_checksums();
    let own = board();
    let (left, right) = UnixStream::pair().expect("two descriptors");
    let deadline = Instant::now() + PATIENCE;
    let (left, right) = std::thread::scope(|scope| {
        let right = scope
            .spawn(move || ShmLink::establish(right, 0, board().memory(), Attach::Auto, deadline));
        let left = ShmLink::establish(left, 1, own.memory(), Attach::Auto, deadline);
        (left, right.join().expect("no panic"))
    });
    let link =
        |made: Result<ShmLink, LinkError>| Link::Shm(made.expect("shared memory")).with_checksums();
    (own, link(left), link(right))
}

/// The error names transport and, of a payload of so many bytes, operation and place.
fn assert_corrupt(error: &LinkError, transport: TransportKind, payload_len: Option<usize>) {
    let damage = payload_len.map_or(Damage::Header, |len| {
        let (channel, begin, len) = (0, Some(0), len as u64);
        Damage::Payload { channel, tag: TAG, begin, len }
    });
    let peer = 0;
    assert_eq!(*error, LinkError::Corrupt { peer, transport, damage });
}

fn post(link: &mut Link, data: &[u8]) {
    // SAFETY: every test keeps the data as long as the link sends.
    unsafe { link.post(0, TAG, data.as_ptr(), data.len(), true) }.expect("an open link");
}

fn bytes_of(arrival: &Arrival) -> Vec<u8> {
    // SAFETY: it is not released.
    unsafe { std::slice::from_raw_parts(arrival.data, arrival.len) }.to_vec()
}

fn copy_of(mapping: &SharedMemory) -> Vec<u8> {
    // SAFETY: the mapping is that long, and both ends are in this thread.
    unsafe { std::slice::from_raw_parts(mapping.start(), mapping.len_bytes()) }.to_vec()
}

/// Changes a bit of memory that two ends share.
fn flip(mapping: &SharedMemory, at: usize, bit: u32) {
    assert!(at < mapping.len_bytes());
    let byte = mapping.start().wrapping_add(at);
    // SAFETY: the byte is one of the mapping's, and both ends are in this thread.
    unsafe { byte.write_volatile(byte.read_volatile() ^ 1 << bit) };
}
