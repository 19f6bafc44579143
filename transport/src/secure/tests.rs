//! Handshakes and messages between right, wrong and hostile ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;

fn job(secret: &str) -> Job {
    Job { name: "job".into(), secret: Secret::from_text(secret) }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

type Accepted = Result<(SecureStream<UnixStream>, Purpose, Vec<u8>), SecureError>;

/// Both outcomes of a handshake between two jobs.
fn meet(a: Job, b: Job) -> (Result<SecureStream<UnixStream>, SecureError>, Accepted) {
    let (left, right) = UnixStream::pair().unwrap();
    let acceptor = thread::spawn(move || accept(Arc::new(right), &b, soon(), |_, _| Ok(())));
    let initiated = initiate(left, &a, Purpose::Control, b"hello", soon());
    (initiated, acceptor.join().unwrap())
}

fn pair() -> (SecureStream<UnixStream>, SecureStream<UnixStream>) {
    let (a, b) = meet(job("s"), job("s"));
    (a.unwrap(), b.unwrap().0)
}

/// What an initiator sends first; the other end of its socket stays open with it.
fn recorded_first_message(job: &Job) -> Vec<u8> {
    let (left, mut right) = UnixStream::pair().unwrap();
    let mut first = vec![0; PREAMBLE_BYTES + NOISE_BYTES];
    thread::scope(|scope| {
        scope.spawn(|| initiate(left, job, Purpose::Link, b"", soon()).unwrap_err());
        right.read_exact(&mut first).unwrap();
        drop(right);
    });
    first
}

/// What `accept` makes of bytes after which the stranger hangs up.
fn accept_bytes(bytes: &[u8]) -> SecureError {
    let (mut left, right) = UnixStream::pair().unwrap();
    left.write_all(bytes).unwrap();
    left.shutdown(std::net::Shutdown::Write).unwrap();
    accept(Arc::new(right), &job("s"), soon(), |_, _| Ok(())).unwrap_err()
}

/// Passes bytes on, as someone between the two ends does.
fn copy(mut from: &UnixStream, mut to: &UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    to.write_all(&bytes).unwrap();
    bytes
}

/// Two ends of a connection, and someone between them who has recorded the handshake.
struct WithMiddle {
    initiator: SecureStream<UnixStream>,
    acceptor: SecureStream<UnixStream>,
    /// The middle's sockets: to the initiator, and to the acceptor.
    initiators: UnixStream,
    acceptors: UnixStream,
    first: Vec<u8>,
    hello: Vec<u8>,
}

/// A frame with a message of five bytes.
const SHORT_FRAME_BYTES: usize = 2 + 4 + 5 + stream::TAG_BYTES;

fn pair_with_a_middle() -> WithMiddle {
    let (left, initiators) = UnixStream::pair().unwrap();
    let (acceptors, right) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let initiator =
            scope.spawn(|| initiate(left, &job("s"), Purpose::Link, b"hello", soon()).unwrap());
        let acceptor =
            scope.spawn(|| accept(Arc::new(right), &job("s"), soon(), |_, _| Ok(())).unwrap());
        let first = copy(&initiators, &acceptors, PREAMBLE_BYTES + NOISE_BYTES);
        copy(&acceptors, &initiators, 1 + NOISE_BYTES);
        let hello = copy(&initiators, &acceptors, SHORT_FRAME_BYTES);
        copy(&acceptors, &initiators, 2 + 4 + 1 + stream::TAG_BYTES);
        let (initiator, acceptor) = (initiator.join().unwrap(), acceptor.join().unwrap().0);
        WithMiddle { initiator, acceptor, initiators, acceptors, first, hello }
    })
}

/// xorshift64*: reproducible from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 56) as u8).collect()
    }
}

#[test]
fn equal_secrets_meet() {
    let (a, b) = meet(job("s"), job(" s\n"));
    let (a, (b, purpose, hello)) = (a.unwrap(), b.unwrap());
    assert_eq!((purpose, hello.as_slice()), (Purpose::Control, &b"hello"[..]));
    let (ours, theirs) = (a.frame_keys(), b.frame_keys());
    assert_eq!((ours.send, ours.receive), (theirs.receive, theirs.send));
    assert_ne!(ours.send, ours.receive, "a key for each direction");
    assert_ne!(ours.send, pair().0.frame_keys().send, "every connection has its own keys");
}

#[test]
fn messages_of_any_length_arrive() {
    let (mut a, mut b) = pair();
    let frame = 65_535 - 16;
    let lengths = [0, 1, frame - 5, frame - 4, frame - 3, 2 * frame, MESSAGE_LIMIT_BYTES];
    let sent: Vec<Vec<u8>> = lengths.iter().map(|len| Random(7).bytes(*len)).collect();
    thread::scope(|scope| {
        scope.spawn(|| sent.iter().for_each(|message| a.send(message, soon()).unwrap()));
        for message in &sent {
            assert!(b.receive(soon()).unwrap() == *message, "{} bytes", message.len());
        }
    });
    let error = a.send(&vec![0; MESSAGE_LIMIT_BYTES + 1], soon()).unwrap_err();
    assert!(matches!(error, SecureError::TooLong { .. }), "{error}");
    a.send(b"after a refused message", soon()).unwrap();
    assert_eq!(b.receive(soon()).unwrap(), b"after a refused message");
}

#[test]
fn both_directions_at_once_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let acceptor = thread::spawn(move || {
        let accepted = Arc::new(listener.accept().unwrap().0);
        accept(accepted, &job("s"), soon(), |_, _| Ok(())).unwrap().0
    });
    let (mut sender, mut receiver) =
        initiate(stream, &job("s"), Purpose::Store, b"", soon()).unwrap().split();
    let message = Random(11).bytes(4 << 20);
    let (mut back, mut forth) = acceptor.join().unwrap().split();
    thread::scope(|scope| {
        scope.spawn(|| sender.send(&message, soon()).unwrap());
        scope.spawn(|| back.send(&message, soon()).unwrap());
        scope.spawn(|| assert!(forth.receive(soon()).unwrap() == message));
        assert!(receiver.receive(soon()).unwrap() == message);
    });
}

#[test]
fn a_wrong_secret_is_an_error_on_both_sides() {
    let (a, b) = meet(job("right"), job("wrong"));
    let (a, b) = (a.unwrap_err(), b.unwrap_err());
    assert!(matches!(a, SecureError::Refused { .. }), "{a}");
    assert!(a.to_string().contains("check RINGTREE_SECRET"), "{a}");
    assert!(matches!(b, SecureError::Unproven { .. }), "{b}");
    assert!(!a.is_transient() && !b.is_transient());
}

#[test]
fn who_was_refused_is_named_though_the_connection_is_gone() {
    let mut other_version = recorded_first_message(&job("s"));
    other_version[8..10].copy_from_slice(&7u16.to_le_bytes());
    for first in [recorded_first_message(&job("wrong")), other_version] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let name = stranger.local_addr().unwrap().to_string();
        stranger.write_all(&first).unwrap();
        stranger.shutdown(std::net::Shutdown::Write).unwrap();
        let accepted = Arc::new(listener.accept().unwrap().0);
        let error = accept(accepted, &job("s"), soon(), |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with(&name), "{error}");
    }
}

#[test]
fn another_job_with_the_same_secret_is_refused() {
    let other = Job { name: "other".into(), ..job("s") };
    let (a, b) = meet(job("s"), other);
    assert!(matches!(a.unwrap_err(), SecureError::Refused { .. }));
    assert!(matches!(b.unwrap_err(), SecureError::Unproven { .. }));
}

#[test]
fn an_acceptor_without_the_secret_is_found_out() {
    let (left, mut right) = UnixStream::pair().unwrap();
    right.write_all(&[&[PROVED], Random(3).bytes(NOISE_BYTES).as_slice()].concat()).unwrap();
    let error = initiate(left, &job("s"), Purpose::Link, b"", soon()).unwrap_err();
    assert!(matches!(error, SecureError::Unproven { .. }), "{error}");
}

#[test]
fn secrets_do_not_show() {
    let text = Secret::generate().unwrap();
    assert_eq!(text.len(), 64);
    assert_ne!(text, Secret::generate().unwrap());
    let job = job(&text);
    let shown = format!("{job:?} {}", job.secret);
    assert_eq!(shown, r#"Job { name: "job", secret: Secret(..) } (secret)"#);
    assert!(Secret::insecure() != Secret::from_text(""));
}

#[test]
fn another_wire_version_is_named_on_both_sides() {
    let mut first = recorded_first_message(&job("s"));
    first[8..10].copy_from_slice(&7u16.to_le_bytes());
    let (mut left, right) = UnixStream::pair().unwrap();
    left.write_all(&first).unwrap();
    left.shutdown(std::net::Shutdown::Write).unwrap();
    let error = accept(Arc::new(right), &job("s"), soon(), |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, SecureError::Version { ours: WIRE_VERSION, theirs: 7, .. }), "{error}");
    let mut answer = Vec::new();
    left.read_to_end(&mut answer).unwrap();
    let [low, high] = WIRE_VERSION.to_le_bytes();
    assert_eq!(answer, [OTHER_VERSION, low, high]);

    let (left, mut right) = UnixStream::pair().unwrap();
    right.write_all(&[OTHER_VERSION, 9, 0]).unwrap();
    let error = initiate(left, &job("s"), Purpose::Link, b"", soon()).unwrap_err();
    assert!(matches!(error, SecureError::Version { ours: WIRE_VERSION, theirs: 9, .. }), "{error}");
}

#[test]
fn garbage_is_dropped() {
    let mut random = Random(0x5eed);
    for round in 0..300 {
        let mut bytes = random.bytes(round % 200);
        if round % 3 == 0 {
            let start = &recorded_first_message(&job("other"))[..PREAMBLE_BYTES];
            bytes.splice(..0, start.iter().copied());
        }
        accept_bytes(&bytes);
    }
    assert!(matches!(accept_bytes(b"GET / HTTP/1.1\r\n\r\n"), SecureError::NotRingtree { .. }));
}

#[test]
fn every_truncated_or_altered_first_message_is_dropped() {
    let first = recorded_first_message(&job("s"));
    for len in 0..first.len() {
        let error = accept_bytes(&first[..len]);
        assert!(matches!(error, SecureError::Closed { .. }), "{len} bytes: {error}");
    }
    for bit in 0..first.len() * 8 {
        let mut altered = first.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let error = accept_bytes(&altered);
        // An altered key still decrypts to nothing; X25519 alone ignores the last bit of a key,
        // but the handshake's hash does not.
        assert!(!matches!(error, SecureError::Closed { .. }), "bit {bit}: {error}");
    }
}

#[test]
fn garbage_from_an_acceptor_is_an_error() {
    let mut random = Random(0xacce);
    for round in 0..200 {
        let (left, mut right) = UnixStream::pair().unwrap();
        right.write_all(&random.bytes(round)).unwrap();
        right.shutdown(std::net::Shutdown::Write).unwrap();
        initiate(left, &job("s"), Purpose::Link, b"", soon()).unwrap_err();
    }
}

#[test]
fn a_replayed_handshake_gains_nothing() {
    let recorded = pair_with_a_middle();
    let (replay, right) = UnixStream::pair().unwrap();
    (&replay).write_all(&[recorded.first, recorded.hello].concat()).unwrap();
    let judged = |_: Purpose, _: &[u8]| panic!("a replay reached the judge");
    let error = accept(Arc::new(right), &job("s"), soon(), judged).unwrap_err();
    assert!(matches!(error, SecureError::Corrupt { .. }), "{error}");
}

#[test]
fn a_silent_stranger_is_cut_off_by_the_deadline() {
    let (_silent, right) = UnixStream::pair().unwrap();
    let deadline = Instant::now() + Duration::from_millis(20);
    let error = accept(Arc::new(right), &job("s"), deadline, |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, SecureError::TimedOut { .. }), "{error}");
    assert!(Instant::now() >= deadline);
}

#[test]
fn a_stop_callback_ends_the_wait() {
    let (left, _silent) = UnixStream::pair().unwrap();
    let asked = std::cell::Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) == 2;
    let limit = Limit::stoppable(soon(), &stop);
    let error = initiate_within(left, &job("s"), Purpose::Link, b"", &limit).unwrap_err();
    assert!(matches!(error, SecureError::Stopped { .. }), "{error}");
}

#[test]
fn a_denied_hello_gets_the_reason() {
    let (left, right) = UnixStream::pair().unwrap();
    let acceptor = thread::spawn(move || {
        accept(Arc::new(right), &job("s"), soon(), |purpose, hello| {
            assert_eq!((purpose, hello), (Purpose::Link, &b"from 3"[..]));
            Err("rank 3 is connected already".into())
        })
    });
    let error = initiate(left, &job("s"), Purpose::Link, b"from 3", soon()).unwrap_err();
    assert!(error.to_string().ends_with("refused: rank 3 is connected already"), "{error}");
    assert!(matches!(acceptor.join().unwrap().unwrap_err(), SecureError::Denied { .. }));
}

#[test]
fn plain_bytes_follow_the_handshake() {
    let (a, b) = pair();
    let mut b = b.into_inner().unwrap();
    b.write_all(b"plain").unwrap();
    let mut read = [0; 5];
    a.into_inner().unwrap().read_exact(&mut read).unwrap();
    assert_eq!(&read, b"plain");
}

#[test]
fn receiving_goes_on_after_a_deadline() {
    let mut ends = pair_with_a_middle();
    let past = Instant::now();
    ends.initiator.send(b"hello", soon()).unwrap();
    for byte in 0..SHORT_FRAME_BYTES {
        let error = ends.acceptor.receive(past).unwrap_err();
        assert!(matches!(error, SecureError::TimedOut { .. }), "after {byte} bytes: {error}");
        copy(&ends.initiators, &ends.acceptors, 1);
    }
    assert_eq!(ends.acceptor.receive(past).unwrap(), b"hello");
}

#[test]
fn an_altered_or_repeated_frame_is_found_out() {
    let (a, mut b) = pair();
    let mut socket = a.into_inner().unwrap();
    socket.write_all(&[&20u16.to_le_bytes()[..], &[0; 20]].concat()).unwrap();
    assert!(matches!(b.receive(soon()).unwrap_err(), SecureError::Corrupt { .. }));

    let mut ends = pair_with_a_middle();
    (&ends.acceptors).write_all(&ends.hello).unwrap();
    assert!(matches!(ends.acceptor.receive(soon()).unwrap_err(), SecureError::Corrupt { .. }));
}

#[test]
fn frames_in_another_order_or_left_out_are_found_out() {
    const SENT: [&[u8; 5]; 3] = [b"first", b"2nd..", b"third"];
    for (passed_on, whole) in [([0, 1, 2], 3), ([1, 0, 2], 0), ([0, 2, 1], 1), ([0, 0, 1], 1)] {
        let mut ends = pair_with_a_middle();
        let mut frames = Vec::new();
        for message in SENT {
            ends.initiator.send(message, soon()).unwrap();
            let mut frame = vec![0; SHORT_FRAME_BYTES];
            ends.initiators.read_exact(&mut frame).unwrap();
            frames.push(frame);
        }
        passed_on.iter().for_each(|&at| ends.acceptors.write_all(&frames[at]).unwrap());
        for message in &SENT[..whole] {
            assert_eq!(ends.acceptor.receive(soon()).unwrap(), *message);
        }
        if whole < SENT.len() {
            let error = ends.acceptor.receive(soon()).unwrap_err();
            assert!(matches!(error, SecureError::Corrupt { .. }), "{error}");
            assert!(
                error.to_string().contains("repeated, left out or put in another order"),
                "{error}"
            );
        }
    }
}

#[test]
fn each_altered_bit_of_a_frame_is_found_out() {
    for bit in 0..8 * SHORT_FRAME_BYTES {
        let mut ends = pair_with_a_middle();
        ends.initiator.send(b"hello", soon()).unwrap();
        let mut frame = vec![0; SHORT_FRAME_BYTES];
        ends.initiators.read_exact(&mut frame).unwrap();
        frame[bit / 8] ^= 1 << (bit % 8);
        ends.acceptors.write_all(&frame).unwrap();
        // Whoever waits for more of a longer frame gets the end.
        ends.acceptors.shutdown(std::net::Shutdown::Write).unwrap();
        let error = ends.acceptor.receive(soon()).unwrap_err();
        let is_found = matches!(error, SecureError::Corrupt { .. } | SecureError::Closed { .. });
        assert!(is_found, "bit {bit}: {error}");
    }
}

#[test]
fn both_ends_go_on_with_other_keys_at_the_limit() {
    let (a, b) = pair();
    let ((mut to_b, mut from_b), (mut to_a, mut from_a)) = (a.split(), b.split());
    (to_b.frames_a_key, from_a.frames_a_key) = (3, 3);
    (to_a.frames_a_key, from_b.frames_a_key) = (4, 4);
    for number in 0..30_u8 {
        to_b.send(&[number], soon()).unwrap();
        assert_eq!(from_a.receive(soon()).unwrap(), [number]);
        to_a.send(&[number; 2], soon()).unwrap();
        assert_eq!(from_b.receive(soon()).unwrap(), [number; 2]);
    }
    // An end that keeps its key understands nothing more.
    from_a.frames_a_key = u64::MAX;
    let error = (0..3).find_map(|_| {
        to_b.send(b"after", soon()).unwrap();
        from_a.receive(soon()).err()
    });
    assert!(matches!(error, Some(SecureError::Corrupt { .. })), "{error:?}");
}

#[test]
fn announced_lengths_are_not_believed() {
    let cases: [(&[u8], &str); 4] = [
        (&[255, 255, 255, 255, 0], "at most"),
        (&[1, 0, 0, 0, 7, 7], "longer than announced"),
        (&[1, 0, 0], "without its length"),
        (&[], "without its length"),
    ];
    for (plain, complaint) in cases {
        let (a, mut b) = pair();
        a.split().0.send_frame(plain, &Limit::until(soon())).unwrap();
        let error = b.receive(soon()).unwrap_err();
        assert!(error.to_string().contains(complaint), "{plain:?}: {error}");
    }
}

#[test]
fn a_shutdown_wakes_the_receiver() {
    let (a, mut b) = pair();
    let (sender, mut receiver) = a.split();
    let waiting = thread::spawn(move || receiver.receive(soon()).unwrap_err());
    sender.shutdown();
    assert!(matches!(waiting.join().unwrap(), SecureError::Closed { .. }));
    assert!(matches!(b.receive(soon()).unwrap_err(), SecureError::Closed { .. }));
}
