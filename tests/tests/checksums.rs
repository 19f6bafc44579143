//! Communicators whose frames have checksums: the same results as without, and an error that names the ranks, the
//! link and the operation where someone changes a bit between them. So it is where they encrypt.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use ringtree::control::Verdict;
use ringtree::{Algorithm, Collective, Communicator, Op, Settings, Transports};
use ringtree_tests::ranks::{TRANSPORTS, each};

/// Where the bit is changed of what rank 0 sends: behind the handshake, in the middle of a frame.
const CHANGED_AT: u64 = 50_000;

#[test]
fn every_algorithm_sums_as_without() {
    for transports in TRANSPORTS {
        let adjust = |settings: &mut Settings| {
            (settings.transports, settings.checksums) = (transports, true);
        };
        let made = Communicator::in_process_with(3, adjust).expect("communicators");
        each(made, |communicator| {
            let serving = |algorithm: &Algorithm| algorithm.serves(Collective::AllReduce);
            for algorithm in Algorithm::ALL.into_iter().filter(serving) {
                for count in [0, 1, 12, 13, 1000, 100_003] {
                    let mine = f64::from(communicator.rank() + 1);
                    let mut buffer = vec![mine; count];
                    let by = communicator.using(Some(algorithm));
                    by.all_reduce(&mut buffer, Op::Sum).expect("an all-reduce");
                    assert!(buffer.iter().all(|x| *x == 6.0), "{algorithm}, {count} elements");
                }
            }
        });
    }
}

/// Peers read such memory in place without checksums.
#[test]
fn memory_that_the_library_gives_is_reduced_too() {
    for transports in TRANSPORTS {
        let adjust = |settings: &mut Settings| {
            (settings.transports, settings.checksums) = (transports, true);
        };
        let made = Communicator::in_process_with(2, adjust).expect("communicators");
        each(made, |communicator| {
            let mut buffer = communicator.alloc::<u32>(300_000).expect("memory");
            buffer.fill(communicator.rank() + 1);
            communicator.all_reduce(&mut buffer, Op::Sum).expect("an all-reduce");
            assert!(buffer.iter().all(|x| *x == 3));
        });
    }
}

#[test]
fn ranks_that_disagree_about_them_are_told() {
    let adjust = |settings: &mut Settings| settings.checksums = settings.rank == 1;
    let error = Communicator::in_process_with(2, adjust).expect_err("one wants them").to_string();
    assert!(error.contains("with checksums") && error.contains("same settings"), "{error}");
}

#[test]
fn a_bit_that_changes_between_ranks_is_named_by_both() {
    let errors = errors_with_a_middle(|settings| settings.checksums = true);
    for part in ["the checksum does not fit bytes ", "doctor --probe"] {
        assert!(errors.iter().all(|error| error.contains(part)), "{part} is missing: {errors:?}");
    }
}

#[test]
fn a_bit_that_changes_in_what_is_encrypted_is_named_by_both() {
    let errors = errors_with_a_middle(|settings| settings.encrypts = true);
    for part in ["altered, repeated, left out", "cannot be decrypted"] {
        assert!(errors.iter().all(|error| error.contains(part)), "{part} is missing: {errors:?}");
    }
}

/// What two ranks say of an all-reduce in which someone between them changes a bit of what rank 0 sends.
fn errors_with_a_middle(adjust: impl Fn(&mut Settings)) -> Vec<String> {
    let middle = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let middle_port = middle.local_addr().expect("a bound socket").port();
    let port = free_port();
    // It ends with the connection that it passes on.
    let passing = thread::spawn(move || pass_on(&middle, port));
    let made = Communicator::in_process_with(2, |settings| {
        settings.transports = Transports::Tcp;
        if settings.rank == 1 {
            settings.ports = port.to_string().parse().ok();
            settings.advertise = vec![format!("127.0.0.1:{middle_port}").parse().expect("a port")];
        }
        adjust(settings);
    });
    let errors = each(made.expect("communicators"), |communicator| {
        let mut buffer = vec![1.0_f32; 1 << 20];
        let error = communicator.all_reduce(&mut buffer, Op::Sum).expect_err("a bit is changed");
        let is_of_both =
            matches!(error.verdict(), Some(Verdict::LinkBroken { a, b, .. }) if a + b == 1);
        assert!(is_of_both, "{error}");
        error.to_string()
    });
    for part in ["rank 0", "over tcp", "all-reduce"] {
        assert!(errors.iter().all(|error| error.contains(part)), "{part} is missing: {errors:?}");
    }
    passing.join().expect("no panic");
    errors
}

/// Passes one connection on to a port, and changes one bit of what its dialer says.
fn pass_on(middle: &TcpListener, port: u16) {
    let (dialer, _) = middle.accept().expect("rank 0 dials");
    let listener = TcpStream::connect(("127.0.0.1", port)).expect("rank 1 listens");
    thread::scope(|scope| {
        scope.spawn(|| copy(&dialer, &listener, Some(CHANGED_AT)));
        scope.spawn(|| copy(&listener, &dialer, None));
    });
}

/// Copies until either side ends, and ends the other one.
fn copy(mut from: &TcpStream, mut to: &TcpStream, change_at: Option<u64>) {
    let mut buffer = vec![0; 64 << 10];
    let mut passed = 0;
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let at = change_at.and_then(|at| at.checked_sub(passed));
        if let Some(byte) = at.and_then(|at| buffer[..len].get_mut(at as usize)) {
            *byte ^= 0x20;
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
        passed += len as u64;
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// A port that nobody listens on, outside of those that the system gives out itself.
fn free_port() -> u16 {
    /// Tests of this process begin at different ones.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 8_000) as u16;
    let first = first + 100 * NEXT.fetch_add(1, Ordering::Relaxed);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (first..30_000).find(is_free).expect("a free port")
}
