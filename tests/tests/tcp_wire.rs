//! Whatever bytes come from the network: a TCP link never panics, hangs or touches memory that is
//! not its own. `corpus/tcp-frames` keeps streams with the end that each must have.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use ringtree_tests::links::{World, tcp_streams, wait_for};
use ringtree_tests::random::Random;
use ringtree_transport::tcp::frame::{HEADER_BYTES, Header, Kind, parse};
use ringtree_transport::tcp::{Connection, SLICE_BYTES, TcpLink};
use ringtree_transport::{CHANNELS, LinkError, Tag};

/// How long each kind of fuzzing goes on in the test run.
const FUZZING_TIME: Duration = Duration::from_secs(3);

/// What lies around the memory that a link may write.
const CANARY: u8 = 0xc5;

#[test]
fn the_parser_accepts_only_what_it_would_write() {
    let mut random = Random::new(31);
    let end = Instant::now() + FUZZING_TIME;
    let (mut accepted, mut refused) = (0, 0);
    while Instant::now() < end {
        let mut bytes = random_header(&mut random).encode();
        for _ in 0..random.below(4) {
            bytes[random.below(HEADER_BYTES)] = random.number() as u8;
        }
        match parse(&bytes) {
            Ok(header) => {
                assert_eq!(header.encode(), bytes);
                assert!(usize::from(header.channel) < CHANNELS);
                assert!(header.len as usize <= SLICE_BYTES);
                accepted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 0 && refused > 0);
}

#[test]
fn a_damaged_stream_ends_the_link_and_nothing_else() {
    let begin = Instant::now();
    let mut ends = [0; 2];
    for seed in 0.. {
        if begin.elapsed() > FUZZING_TIME {
            break;
        }
        let mut random = Random::new(seed);
        let mut streams = random_streams(&mut random);
        streams.iter_mut().for_each(|stream| damage(stream, &mut random));
        match feed(&streams, &mut random) {
            LinkError::Closed { .. } => ends[0] += 1,
            LinkError::Protocol { .. } => ends[1] += 1,
            error => panic!("seed {seed}: {error}"),
        }
    }
    assert!(ends.iter().all(|&count| count > 0), "both ends occur: {ends:?}");
}

/// Each file of the corpus is a stream; its name begins with the end that it must have.
#[test]
fn kept_streams_end_as_they_must() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/tcp-frames");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus") {
        let path = entry.expect("the corpus").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stream = std::fs::read(&path).expect("the corpus");
        for seed in 0..20 {
            let error = feed(std::slice::from_ref(&stream), &mut Random::new(seed));
            let kind = match error {
                LinkError::Closed { .. } => "closed",
                LinkError::Protocol { .. } => "protocol",
                LinkError::Failed { .. } => "failed",
                error => panic!("{name}, seed {seed}: {error}"),
            };
            assert!(name.starts_with(kind), "{name}, seed {seed}: {error}");
        }
        count += 1;
    }
    assert!(count >= 10, "only {count} streams");
}

/// Sends streams to a link, a socket each, that is used in random ways meanwhile; returns how the
/// link ended.
fn feed(streams: &[Vec<u8>], random: &mut Random) -> LinkError {
    static POSTED: [u8; 3_000] = [1; 3_000];
    let (mut raw, mut connections) = (Vec::new(), Vec::new());
    for _ in streams {
        let (ours, stream) = tcp_streams();
        ours.set_nonblocking(true).expect("an open socket");
        raw.push((ours, 0));
        connections.push(Connection { stream, keys: None });
    }
    let sent_bytes: usize = streams.iter().map(Vec::len).sum();
    let mut link = TcpLink::over(connections, 9).expect("connected streams");
    link.divide(1 + random.below(16));
    let mut ended = [false; CHANNELS];
    let mut received = 0;
    wait_for(&World::Real, "the end of the link", || {
        for ((raw, written), stream) in raw.iter_mut().zip(streams) {
            write_some(raw, stream, written, random);
        }
        let channel = random.below(CHANNELS);
        let tag = Tag { sequence: random.below(3) as u32, digest: 5 };
        if random.one_in(10) {
            // SAFETY: the data is constant. An ended link refuses.
            let _ = unsafe { link.post(channel, tag, POSTED.as_ptr(), random.length(3_000), true) };
        }
        let _ = link.poll(0);
        let result = if random.one_in(2) {
            receive(&mut link, channel, tag, random).map(Some)
        } else {
            look(&mut link, channel, random)
        };
        match result {
            Ok(bytes) => received += bytes.unwrap_or(0),
            Err(error) => {
                ended[channel] = true;
                assert!(received <= sent_bytes, "more than was sent");
                return (ended == [true; CHANNELS]).then_some(error);
            }
        }
        None
    })
}

/// Writes a part of the stream, and the end after it; throws away what the link says.
fn write_some(raw: &mut TcpStream, stream: &[u8], written: &mut usize, random: &mut Random) {
    let rest = &stream[(*written).min(stream.len())..];
    if *written < stream.len() {
        match raw.write(&rest[..random.length(rest.len())]) {
            Ok(len) => *written += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The link has ended and is not read any more.
            Err(_) => *written = stream.len(),
        }
    } else if *written == stream.len() {
        let _ = raw.shutdown(Shutdown::Write);
        *written += 1;
    }
    let _ = raw.read(&mut [0; 4096]);
}

/// Receives into memory with canaries on both sides.
fn receive(
    link: &mut TcpLink,
    channel: usize,
    tag: Tag,
    random: &mut Random,
) -> Result<usize, LinkError> {
    const MARGIN: usize = 64;
    let room = random.length(2 * SLICE_BYTES);
    let mut memory = vec![CANARY; room + 2 * MARGIN];
    // SAFETY: `room` bytes are writable behind the first margin.
    let result = unsafe { link.receive(channel, tag, memory[MARGIN..].as_mut_ptr(), room) };
    let got = result.as_ref().map_or(0, |&(len, _)| len);
    assert!(got <= room);
    let untouched = [&memory[..MARGIN], &memory[MARGIN + room..]].concat();
    assert!(untouched.iter().all(|&byte| byte == CANARY), "wrote beside its room");
    result.map(|(len, _)| len)
}

/// Looks at all of an arrival and releases some.
fn look(
    link: &mut TcpLink,
    channel: usize,
    random: &mut Random,
) -> Result<Option<usize>, LinkError> {
    let Some(arrival) = link.arrival(channel)? else { return Ok(None) };
    assert!(arrival.len <= SLICE_BYTES);
    // SAFETY: what arrived is readable.
    let bytes = unsafe { std::slice::from_raw_parts(arrival.data, arrival.len) };
    std::hint::black_box(bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)));
    let len = if random.one_in(2) { arrival.len } else { random.length(arrival.len) };
    link.release(channel, len)?;
    Ok(Some(len))
}

fn random_header(random: &mut Random) -> Header {
    let mut header = Header::control(Kind::Data, random.one_in(4), [0; CHANNELS]);
    header.channel = random.below(CHANNELS) as u8;
    header.last = random.one_in(2);
    header.number = random.number() as u8;
    header.len = random.length(SLICE_BYTES) as u32;
    header.tag = Tag { sequence: random.below(3) as u32, digest: 5 };
    if random.one_in(20) {
        header.credits[random.below(CHANNELS)] = random.below(3) as u8;
    }
    if random.one_in(8) {
        return Header::control(Kind::Credit, true, header.credits);
    }
    header
}

/// Frames as a peer sends them over one to three sockets, though it may run out of credit.
fn random_streams(random: &mut Random) -> Vec<Vec<u8>> {
    let mut streams = vec![Vec::new(); 1 + random.below(3)];
    let mut numbers = [0u8; CHANNELS];
    for _ in 0..random.length(40) {
        let mut header = random_header(random);
        if header.kind == Kind::Data {
            let number = &mut numbers[usize::from(header.channel)];
            header.number = *number;
            *number = number.wrapping_add(1);
        }
        let at = random.below(streams.len());
        streams[at].extend(header.encode());
        streams[at].extend(random.bytes(header.len as usize));
    }
    for stream in &mut streams {
        if random.one_in(2) {
            stream.extend(Header::control(Kind::Goodbye, false, [0; CHANNELS]).encode());
        }
    }
    streams
}

/// Flips, removes, repeats or cuts off; or leaves the stream as it is.
fn damage(stream: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(3) {
        if stream.is_empty() {
            return;
        }
        let at = random.below(stream.len());
        let to = (at + random.length(100)).min(stream.len());
        match random.below(4) {
            0 => stream[at] = random.number() as u8,
            1 => drop(stream.drain(at..to)),
            2 => stream.extend_from_within(at..to),
            _ => stream.truncate(at),
        }
    }
}
