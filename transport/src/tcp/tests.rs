//! What a TCP link says on the wire, seen by a plain socket at the other end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::cipher::TAG_BYTES;
use super::frame::{HEADER_BYTES, Header, Kind, parse};
use super::{Connection, SLICE_BYTES, TcpLink};
use crate::secure::FrameKeys;
use crate::{CHANNELS, LinkError, POINT_TO_POINT, Tag};

const TAG: Tag = Tag { sequence: 4, digest: 9 };
const PATIENCE: Duration = Duration::from_secs(30);

/// A link, and the socket at its other end.
fn link_and_socket() -> (TcpLink, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    (TcpLink::new(listener.accept().unwrap().0, 3).unwrap(), socket)
}

fn data(channel: usize, number: u8, ask: bool, len: usize) -> Vec<u8> {
    let mut header = Header::control(Kind::Data, ask, [0; CHANNELS]);
    (header.channel, header.last, header.len, header.tag) = (channel as u8, true, len as u32, TAG);
    header.number = number;
    let mut frame = header.encode().to_vec();
    frame.resize(HEADER_BYTES + len, 7);
    frame
}

fn read_header(socket: &mut TcpStream) -> Header {
    let mut bytes = [0; HEADER_BYTES];
    socket.read_exact(&mut bytes).unwrap();
    parse(&bytes).unwrap()
}

/// Waits for a slice and releases it.
fn consume(link: &mut TcpLink, channel: usize) -> Result<usize, LinkError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(arrival) = link.arrival(channel)? {
            link.release(channel, arrival.len)?;
            return Ok(arrival.len);
        }
        assert!(Instant::now() < deadline, "nothing arrived");
        // The next look sees what the poll has read, or may read again.
        let _ = link.poll(0);
    }
}

#[test]
fn the_answer_brings_the_credit_back() {
    let (mut link, mut socket) = link_and_socket();
    for number in 0..100 {
        socket.write_all(&data(POINT_TO_POINT, number, true, 8)).unwrap();
        assert_eq!(consume(&mut link, POINT_TO_POINT), Ok(8));
        // SAFETY: a constant.
        unsafe { link.post(0, TAG, b"12345678".as_ptr(), 8, true) }.unwrap();
        link.poll(0).unwrap();
        let header = read_header(&mut socket);
        assert_eq!((header.kind, header.len, header.tag), (Kind::Data, 8, TAG));
        assert_eq!(header.credits[POINT_TO_POINT], 1, "no frame was needed for it");
        socket.read_exact(&mut [0; 8]).unwrap();
        let mut credits = [0; CHANNELS];
        credits[0] = 1;
        socket.write_all(&Header::control(Kind::Credit, false, credits).encode()).unwrap();
    }
}

#[test]
fn a_poll_returns_what_was_asked_for_and_nothing_else() {
    let (mut link, mut socket) = link_and_socket();
    socket.write_all(&[data(0, 0, false, 100), data(1, 0, true, 100)].concat()).unwrap();
    consume(&mut link, 0).unwrap();
    assert!(!link.poll(0).unwrap(), "nobody waits for this credit");
    consume(&mut link, 1).unwrap();
    assert!(link.descriptors().any(|(_, writable)| writable));
    assert!(link.poll(0).unwrap());
    let header = read_header(&mut socket);
    assert_eq!((header.kind, &header.credits[..2]), (Kind::Credit, &[1, 1][..]));
    assert!(!link.poll(0).unwrap());
}

#[test]
fn who_is_out_of_credit_asks() {
    let (mut link, mut socket) = link_and_socket();
    // SAFETY: constants.
    let post = |link: &mut TcpLink| unsafe { link.post(0, TAG, b"x".as_ptr(), 1, true) }.unwrap();
    post(&mut link);
    link.divide(16);
    post(&mut link);
    assert_eq!((link.posted_bytes(0), link.sent_bytes(0)), (2, 1));
    assert!(!read_header(&mut socket).ask);
    socket.read_exact(&mut [0]).unwrap();
    let ask = read_header(&mut socket);
    assert_eq!((ask.kind, ask.ask), (Kind::Credit, true));
}

#[test]
fn what_came_whole_is_shown_before_the_end() {
    let whole = [data(5, 0, false, 3), data(5, 1, false, SLICE_BYTES)].concat();
    let garbage = [whole.clone(), vec![9; 50]].concat();
    let repeated = [whole.clone(), data(5, 1, false, 10)].concat();
    let cut_off = [whole, data(5, 2, false, 10)[..41].into()].concat();
    for (stream, is_protocol) in [(garbage, true), (repeated, true), (cut_off, false)] {
        let (mut link, mut socket) = link_and_socket();
        let writer = std::thread::spawn(move || {
            socket.write_all(&stream).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            socket
        });
        assert_eq!(consume(&mut link, 5), Ok(3));
        assert_eq!(consume(&mut link, 5), Ok(SLICE_BYTES));
        match consume(&mut link, 5).unwrap_err() {
            LinkError::Protocol { peer: 3, .. } => assert!(is_protocol),
            LinkError::Closed { peer: 3, .. } => assert!(!is_protocol),
            other => panic!("{other}"),
        }
        assert_eq!(link.descriptors().next(), None, "a socket that is always ready");
        drop(writer.join().unwrap());
    }
}

/// A peer that is silent, takes nothing and gives no credit.
#[test]
fn close_ends_at_the_deadline() {
    let (mut link, socket) = link_and_socket();
    let much = vec![1; 64 << 20];
    // SAFETY: kept until the link is closed.
    unsafe { link.post(0, TAG, much.as_ptr(), much.len(), true) }.unwrap();
    let begin = Instant::now();
    link.close(begin + Duration::from_millis(50));
    assert!(begin.elapsed() >= Duration::from_millis(50) && begin.elapsed() < PATIENCE);
    drop(socket);
}

/// Whoever waits for something else must not take it for progress.
#[test]
fn the_end_of_the_link_alone_is_not_something_that_came() {
    for goodbye in [true, false] {
        let (mut link, mut socket) = link_and_socket();
        if goodbye {
            let header = Header::control(Kind::Goodbye, false, [0; CHANNELS]);
            socket.write_all(&header.encode()).unwrap();
        }
        socket.shutdown(Shutdown::Write).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while link.descriptors().next().is_some() {
            assert_eq!(link.poll(0), Ok(false));
            assert!(Instant::now() < deadline, "the end is not seen");
        }
        assert_eq!(link.poll(0), Ok(false));
    }
}

#[test]
fn what_came_with_the_end_of_the_link_is_progress_once() {
    let (mut link, mut socket) = link_and_socket();
    let mut bytes = data(2, 0, false, 100);
    bytes.extend_from_slice(&Header::control(Kind::Goodbye, false, [0; CHANNELS]).encode());
    socket.write_all(&bytes).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !link.poll(0).unwrap() {
        assert!(Instant::now() < deadline, "nothing comes");
    }
    while link.descriptors().next().is_some() {
        let _ = link.poll(0);
        assert!(Instant::now() < deadline, "the end is not seen");
    }
    assert_eq!(link.poll(0), Ok(false));
    assert_eq!(link.arrival(2).unwrap().unwrap().len, 100);
}

#[test]
fn an_encrypted_link_shows_nothing_and_believes_nothing_else() {
    let (listener, keys) = (TcpListener::bind("127.0.0.1:0").unwrap(), [[5; 32], [6; 32]]);
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (stream, [send, receive]) = (listener.accept().unwrap().0, keys);
    let keys = Some(FrameKeys { send, receive });
    let mut link = TcpLink::over(vec![Connection { stream, keys }], 3).unwrap();
    // SAFETY: a constant.
    unsafe { link.post(0, TAG, [7; 1000].as_ptr(), 1000, true) }.unwrap();
    let mut wire = vec![0; HEADER_BYTES + TAG_BYTES + 1000 + TAG_BYTES];
    socket.read_exact(&mut wire).unwrap();
    assert!(!wire.windows(8).any(|part| part == [7; 8]), "the payload is on the wire");
    assert_ne!(wire[..HEADER_BYTES], Header::control(Kind::Data, false, [0; CHANNELS]).encode());
    socket.write_all(&data(0, 0, false, 100)).unwrap();
    assert!(matches!(consume(&mut link, 0), Err(LinkError::Tampered { peer: 3, .. })));
}

/// What was on the way when the peer reset the connection stays so for the kernel.
#[test]
fn close_does_not_wait_for_a_peer_that_reset() {
    const TCP_LAST_ACK: u8 = 9;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    peer.set_recv_buffer_size(4096).unwrap();
    peer.connect(&listener.local_addr().unwrap().into()).unwrap();
    let stream = listener.accept().unwrap().0;
    let seen = stream.try_clone().unwrap();
    let mut link = TcpLink::new(stream, 3).unwrap();
    let data = vec![7; 100 << 10];
    // SAFETY: kept until the link is closed.
    unsafe { link.post(0, TAG, data.as_ptr(), data.len(), true) }.unwrap();
    assert!(!link.is_waiting(0), "the kernel has it all");
    peer.shutdown(Shutdown::Write).unwrap();
    let begin = Instant::now();
    while link.descriptors().next().is_some() {
        let _ = link.poll(0);
        assert!(begin.elapsed() < PATIENCE, "the end is not seen");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| link.close(begin + PATIENCE));
        while super::socket::info(&seen).tcpi_state != TCP_LAST_ACK {
            assert!(begin.elapsed() < PATIENCE, "the link does not end its side");
            std::thread::yield_now();
        }
        drop(peer);
    });
    assert!(begin.elapsed() < PATIENCE, "closed only at the deadline");
}
