//! What communicators and failed operations leave behind: nothing. A program of its own, since it counts what the
//! whole process has.

use std::sync::{Mutex, PoisonError};

use ringtree::control::Verdict;
use ringtree::{Communicator, Error, Op, Transports};
use ringtree_tests::counts::Counts;
use ringtree_tests::live_bytes::{CountingProcess, process_bytes};
use ringtree_tests::random::Random;
use ringtree_tests::ranks::{TRANSPORTS, communicators, each};

#[global_allocator]
static ALLOCATOR: CountingProcess = CountingProcess;

const COMMUNICATORS: usize = 1_000;

const OPERATIONS: usize = 10_000;

/// Before anything is counted: whatever is made only once in a process, and tables that grow.
const WARM_UP: usize = 40;

/// What tables of the process may come to hold more, such as those of the allocator of threads: far less than would be
/// left if each communicator left its smallest part.
const TOLERANCE_BYTES: isize = 16 << 10;

/// One test at a time counts.
static COUNTING: Mutex<()> = Mutex::new(());

#[test]
fn communicators_leave_nothing_behind() {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let make_two_and_split_them = |turn: usize| {
        each(communicators(2, TRANSPORTS[turn % 2]), |communicator| {
            let pending = communicator.all_reduce_async(vec![1.0_f32; 20_000], Op::Sum);
            assert_eq!(pending.expect("posted").wait().expect("a sum")[0], 2.0);
            let part = communicator.split(Some(0), 0).expect("a split").expect("a part");
            part.barrier().expect("a barrier");
        });
    };
    (0..WARM_UP).for_each(make_two_and_split_them);
    assert_as_before("communicators", || {
        // Two, and the two parts.
        (0..COMMUNICATORS / 4).for_each(make_two_and_split_them);
    });
}

#[test]
fn operations_with_errors_leave_nothing_behind() {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    (0..WARM_UP as u64).for_each(|seed| {
        Trial::of(seed).run();
    });
    let mut operations = 0;
    assert_as_before("operations", || {
        for seed in 0.. {
            operations += Trial::of(seed).run();
            if operations >= OPERATIONS {
                break;
            }
        }
    });
}

/// Descriptors, threads, mappings and bytes of the heap are what they were.
fn assert_as_before(what: &str, act: impl FnOnce()) {
    let (before, before_bytes) = (Counts::now(), process_bytes());
    act();
    let after = Counts::settled(&before);
    assert!(!after.exceed(&before), "{what}: {before:?}, then {after:?}");
    let left_bytes = process_bytes() - before_bytes;
    assert!(left_bytes < TOLERANCE_BYTES, "{what} leave {left_bytes} bytes");
}

/// Operations of a few ranks, at one of which something goes wrong. All follows from a seed.
struct Trial {
    seed: u64,
    ranks: u32,
    transports: Transports,
    operations: usize,
    fault: Option<Fault>,
}

#[derive(Clone, Copy)]
struct Fault {
    kind: FaultKind,
    /// Who is to blame.
    by: u32,
    at: usize,
}

#[derive(Clone, Copy)]
enum FaultKind {
    /// It aborts the communicator.
    Abort,
    /// It leaves, as one does that panics.
    Leave,
    /// It calls something else than the others. Found only after a while without progress.
    OtherCall,
}

impl Trial {
    fn of(seed: u64) -> Trial {
        let mut random = Random::new(seed);
        let ranks = 2 + random.below(2) as u32;
        let operations = 10 + random.below(60);
        let kind = match random.below(30) {
            0 => FaultKind::OtherCall,
            1..15 => FaultKind::Abort,
            _ => FaultKind::Leave,
        };
        let by = random.below(ranks as usize) as u32;
        let fault = Fault { kind, by, at: random.below(operations) };
        let fault = (!random.one_in(8)).then_some(fault);
        Trial { seed, ranks, transports: random.pick(&TRANSPORTS), operations, fault }
    }

    /// Returns how many operations there were.
    fn run(&self) -> usize {
        let done = each(communicators(self.ranks, self.transports), |communicator| {
            let mut random = Random::new(self.seed);
            for number in 0..self.operations {
                let count = random.below(3) * random.below(20_000) + 2;
                let way = random.below(4);
                if let Err(error) = self.operate(&communicator, number, count, way) {
                    self.check(number, &error);
                    return number;
                }
            }
            self.operations
        });
        done.into_iter().max().unwrap_or_default()
    }

    fn operate(
        &self,
        communicator: &Communicator,
        number: usize,
        mut count: usize,
        way: usize,
    ) -> Result<(), Error> {
        let fault = self.fault.filter(|f| f.at == number && f.by == communicator.rank());
        match fault.map(|fault| fault.kind) {
            Some(FaultKind::Abort) => communicator.abort("a fault of the test"),
            Some(FaultKind::Leave) => {
                // Between a call that is under way and the next one.
                let _pending = communicator.all_reduce_async(vec![1.0_f32; count], Op::Sum)?;
                return Err(Error::Argument("it leaves".into()));
            }
            Some(FaultKind::OtherCall) => count += 1,
            None => {}
        }
        let sum = communicator.ranks() as f32;
        match way {
            0 => {
                // Refused, and the communicator goes on.
                let refused = communicator.all_reduce_into(&vec![1.0_f32; count], &mut [], Op::Sum);
                assert!(matches!(refused, Err(Error::Argument(_))), "{refused:?}");
                let mut buffer = vec![1.0_f32; count];
                communicator.all_reduce(&mut buffer, Op::Sum)?;
                assert_eq!(buffer[count - 1], sum);
            }
            1 => {
                let post = || communicator.all_reduce_async(vec![1.0_f32; count], Op::Sum);
                for pending in [post()?, post()?, post()?] {
                    assert_eq!(pending.wait()?[0], sum);
                }
            }
            2 => {
                let mut all = vec![0.0_f32; count * communicator.ranks() as usize];
                communicator.all_gather_into(&vec![1.0; count], &mut all)?;
                assert!(all.iter().all(|value| *value == 1.0));
            }
            _ => {
                let mut memory = communicator.alloc::<f32>(count)?;
                memory.fill(1.0);
                communicator.all_reduce(&mut memory, Op::Sum)?;
                assert_eq!(memory[0], sum);
            }
        }
        Ok(())
    }

    /// Everyone is told who is to blame, and not before it happened.
    fn check(&self, number: usize, error: &Error) {
        let fault = self.fault.unwrap_or_else(|| panic!("seed {}: {error}", self.seed));
        let is_named = match error.verdict() {
            Some(Verdict::Aborted { by, .. }) => *by == fault.by,
            Some(Verdict::Left { rank, .. }) => *rank == fault.by,
            Some(Verdict::Mismatch { a, b, .. }) => a.rank == fault.by || b.rank == fault.by,
            None => matches!(error, Error::Argument(_)),
            _ => false,
        };
        // Nobody is more than a call behind.
        assert!(is_named && number + 1 >= fault.at, "seed {}: {error}", self.seed);
    }
}
