//! What a process may have runs out: whoever is told so learns what is missing and how to raise it, nothing hangs, and
//! nothing is left behind. A program of its own, since it limits the whole process.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringtree::{Communicator, Error, Op, Transports};
use ringtree_tests::counts::Counts;
use ringtree_tests::ranks::{TRANSPORTS, communicators, each};

/// How long a rank waits for one that could not come.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long one attempt may take: a few timeouts, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fewer descriptors than two ranks need, so that each runs out at another place: where they meet, where they connect,
/// where they listen, where they share memory.
const TOO_FEW: [u64; 5] = [0, 2, 5, 9, 14];

/// With so many at most they cannot even be served, and the call itself says so. With more it may be the peer that
/// is short of them; then it is in its log.
const NOBODY_MEETS: u64 = 2;

/// One test at a time limits the process.
static LIMITING: Mutex<()> = Mutex::new(());

#[test]
fn too_few_descriptors_end_in_errors_wherever_they_run_out() {
    let _alone = LIMITING.lock().unwrap_or_else(PoisonError::into_inner);
    for transports in TRANSPORTS {
        let enough = communicate(transports, 30 * TIMEOUT);
        assert!(enough.is_empty(), "{enough:?}");
        let before = Counts::now();
        for more in TOO_FEW {
            let began = Instant::now();
            let errors = with_descriptors(more, || communicate(transports, TIMEOUT));
            assert!(began.elapsed() < PATIENCE, "{more} descriptors: {errors:?}");
            assert!(!errors.is_empty(), "{more} descriptors are enough");
            let is_told = errors.iter().any(|error| error.contains("ulimit -n"));
            assert!(is_told || more > NOBODY_MEETS, "{more} descriptors: {errors:?}");
            let after = Counts::settled(&before);
            assert!(!after.exceed(&before), "{more} descriptors: {before:?}, then {after:?}");
        }
    }
}

/// Two ranks meet and add something up; what went wrong.
fn communicate(transports: Transports, timeout: Duration) -> Vec<String> {
    let adjust = |settings: &mut ringtree::Settings| {
        settings.transports = transports;
        settings.timeout = timeout;
    };
    let communicators = match Communicator::in_process_with(2, adjust) {
        Ok(communicators) => communicators,
        Err(error) => return vec![error.to_string()],
    };
    let outcomes = each(communicators, |communicator| {
        let mut buffer = vec![1.0_f32; 50_000];
        communicator.all_reduce(&mut buffer, Op::Sum)?;
        assert_eq!(buffer[0], 2.0);
        Ok::<(), Error>(())
    });
    outcomes.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect()
}

/// Does something while the process can open so many more descriptors.
fn with_descriptors<T>(more: u64, act: impl FnOnce() -> T) -> T {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let listed = std::fs::read_dir("/proc/self/fd").expect("procfs");
    let numbers = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
    let open: Vec<u64> = numbers.collect();
    // The limit is one on the descriptors' numbers.
    let free_below =
        |limit: u64| limit - open.iter().filter(|number| **number < limit).count() as u64;
    let limit = (0..soft).find(|limit| free_below(*limit) == more).expect("fewer than it may have");
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).expect("less is always allowed");
    let outcome = act();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("what it was before");
    outcome
}

#[test]
fn memory_that_runs_out_is_named_and_the_communicator_goes_on() {
    let _alone = LIMITING.lock().unwrap_or_else(PoisonError::into_inner);
    for transports in TRANSPORTS {
        let communicators = communicators(2, transports);
        let before = Counts::now();
        let errors = with_addresses(256 << 20, || {
            let too_much = |communicator: &Communicator| communicator.alloc::<f32>(1 << 28);
            communicators.iter().map(|one| too_much(one).expect_err("1 GiB").to_string()).collect()
        });
        assert!(!Counts::now().exceed(&before));
        let is_told = |error: &String| error.starts_with("memory: ") && error.contains("ulimit -v");
        assert!(errors.iter().all(is_told), "{errors:?}");
        each(communicators, |communicator| {
            let mut memory = communicator.alloc::<f32>(1_000).expect("so much");
            memory.fill(1.0);
            communicator.all_reduce(&mut memory, Op::Sum).expect("a sum");
            assert_eq!(memory[999], 2.0);
        });
    }
}

/// Does something while the process can map so many more bytes.
fn with_addresses(more_bytes: u64, act: impl FnOnce() -> Vec<String>) -> Vec<String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).expect("a limit");
    let pages = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: u64 =
        pages.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
    let mapped_bytes = pages * 4096;
    setrlimit(Resource::RLIMIT_AS, mapped_bytes + more_bytes, hard).expect("less is allowed");
    let outcome = act();
    setrlimit(Resource::RLIMIT_AS, soft, hard).expect("what it was before");
    outcome
}
