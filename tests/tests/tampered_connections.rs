//! Someone between two ranks who alters, repeats, leaves out or reorders what they encrypt ends the connection,
//! with an error that says so.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use ringtree_tests::links::{World, tcp_streams, wait_for};
use ringtree_transport::secure::FrameKeys;
use ringtree_transport::tcp::{Connection, TcpLink};
use ringtree_transport::{Link, LinkError, Tag, TransportKind};

const TAG: Tag = Tag { sequence: 8, digest: 0xd16e57 };

/// The messages, each a frame of its own, and what each is on the wire: a header and a payload, and a tag of 16
/// bytes behind each.
const MESSAGES: [&[u8]; 3] = [b"the first one", b"the second one", b"and the last one"];
const WIRE_BYTES: [usize; 3] = [32 + 16 + 13 + 16, 32 + 16 + 14 + 16, 32 + 16 + 16 + 16];

#[test]
fn what_is_left_alone_arrives() {
    assert_eq!(arrive(&frames().concat()), (3, None));
}

#[test]
fn each_altered_bit_is_found() {
    let whole = frames().concat();
    for bit in 0..8 * whole.len() {
        let mut wire = whole.clone();
        wire[bit / 8] ^= 1 << (bit % 8);
        let before =
            (0..3).filter(|&at| WIRE_BYTES[..=at].iter().sum::<usize>() <= bit / 8).count();
        assert_tampered(&wire, before, &format!("bit {bit}"));
    }
}

#[test]
fn repeated_reordered_and_missing_frames_are_found() {
    let [first, second, third] = frames();
    assert_tampered(&[&first[..], &first].concat(), 1, "repeated");
    assert_tampered(&[&first[..], &second, &second].concat(), 2, "repeated later");
    assert_tampered(&[&second[..], &first, &third].concat(), 0, "in another order");
    assert_tampered(&[&first[..], &third].concat(), 1, "left out");
    assert_tampered(&second, 0, "the first left out");
    // Of a header with the payload of another frame of the same length.
    let header = WIRE_BYTES[0] - 13 - 16;
    let mixed = [&first[..header], &third[header..header + 13 + 16]].concat();
    assert_tampered(&mixed, 0, "mixed");
}

#[test]
fn frames_of_another_connection_and_of_the_other_direction_are_found() {
    let [first, ..] = frames_with(&key(3), &key(4));
    assert_tampered(&first, 0, "another connection");
    let [first, ..] = frames_with(&key(2), &key(1));
    assert_tampered(&first, 0, "sent back");
}

#[test]
fn the_error_says_what_happened() {
    let [first, ..] = frames();
    let (_, error) = arrive(&[&first[..], &first].concat());
    let text = error.expect("it is found").to_string();
    for part in ["rank 0", "over tcp", "repeated", "put in another order", "cannot be decrypted"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
}

fn key(of: u8) -> [u8; 32] {
    [of; 32]
}

fn frames() -> [Vec<u8>; 3] {
    frames_with(&key(1), &key(2))
}

/// What a link that encrypts writes for each of the messages.
fn frames_with(send: &[u8; 32], receive: &[u8; 32]) -> [Vec<u8>; 3] {
    let (near, mut far) = tcp_streams();
    let mut link = link(near, FrameKeys { send: *send, receive: *receive }, 1);
    for message in MESSAGES {
        // SAFETY: a constant.
        unsafe { link.post(0, TAG, message.as_ptr(), message.len(), true) }.expect("an open link");
    }
    WIRE_BYTES.map(|len| {
        let mut frame = vec![0; len];
        far.read_exact(&mut frame).expect("it was written");
        frame
    })
}

/// How many messages of these bytes reach the other end, and the error that it ends with.
fn arrive(wire: &[u8]) -> (usize, Option<LinkError>) {
    let (mut near, far) = tcp_streams();
    let mut link = link(far, FrameKeys { send: key(2), receive: key(1) }, 0);
    near.write_all(wire).expect("the buffers hold that");
    near.shutdown(Shutdown::Write).expect("an open socket");
    let mut arrived = 0;
    let error = wait_for(&World::Real, "the end", || {
        let _ = link.poll(0);
        match link.arrival(0) {
            Err(error) => Some(error),
            Ok(None) => None,
            Ok(Some(arrival)) => {
                // SAFETY: it is not released.
                let bytes = unsafe { std::slice::from_raw_parts(arrival.data, arrival.len) };
                assert_eq!(bytes, MESSAGES[arrived]);
                arrived += 1;
                link.release(0, arrival.len).expect("it arrived");
                None
            }
        }
    });
    (arrived, (!matches!(error, LinkError::Closed { .. })).then_some(error))
}

fn assert_tampered(wire: &[u8], before: usize, what: &str) {
    let (arrived, error) = arrive(wire);
    assert_eq!(arrived, before, "{what}");
    let is_named =
        matches!(error, Some(LinkError::Tampered { peer: 0, transport: TransportKind::Tcp, .. }));
    assert!(is_named, "{what}: {error:?}");
}

fn link(stream: TcpStream, keys: FrameKeys, peer: u32) -> Link {
    let connection = Connection { stream, keys: Some(keys) };
    Link::Tcp(TcpLink::over(vec![connection], peer).expect("a connected stream"))
}
