//! A rank of the tests: joins as the environment says, does what its arguments say one after the
//! other, and prints a line an event (time, word, details). An error ends no script, so that what
//! comes after it is seen too.
//!
//! | step | what it does, and says |
//! | --- | --- |
//! | `all-reduce TYPE OP COUNT` | a call, as the next four: `done`, or `error KIND RANKS MESSAGE` |
//! | `broadcast TYPE COUNT ROOT`, `barrier` | |
//! | `send TYPE COUNT PEER`, `receive TYPE COUNT PEER` | |
//! | `loop COUNT` | all-reduces of `COUNT` f32 until one fails: `running` after some, `error ...` |
//! | `loop-computing COUNT MS` | the same with so much processor time before each: `waited MS` in the one that failed |
//! | `loop-registered COUNT` | the same in memory that the library allocates |
//! | `loop-gpu COUNT` | the same on GPUs that the ranks have joined, as `joined-gpus BOOL` says |
//! | `stream COUNT` | all-reduces until rank 0 reads a line on standard input: `running`, `done` |
//! | `repeat TIMES COUNT` | so many all-reduces: `took MEAN_US` |
//! | `wait` | `waiting`; goes on when a line comes on standard input |
//! | `values` | `values V,V`: what is in the last call's buffer, each value once |
//! | `fill`, `check` | writes a pattern into the last call's buffer; `intact` or `touched` |
//! | `usage` | `usage US`: processor time of the process so far |
//! | `rest SECONDS` | does nothing |
//! | `churn TIMES` | communicators of threads of this process come and go: `clean`, `leaks WHAT` |
//! | `warm-up`, `abort REASON`, `leave` | what [`Communicator`] calls so; `done` |
//! | `shrink`, `admit` | go on with another communicator: `regrouped RANK OF RANKS EPOCH COMPLETED`, or `error ...` |
//! | `newcomer` | all ranks wait until one has heard of a newcomer: `knocks` |
//! | `join` | joins again, after leaving: `joined`, or `failed KIND RANKS MESSAGE` and the end |
//!
//! Rank r contributes 10^r everywhere, so that a value tells who contributed to it.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::BufRead;
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use half::bf16;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use ringtree::control::Verdict;
use ringtree::{Communicator, Element, Error, Op, RegroupError, Regrouped};
use ringtree_tests::clock::monotonic_ns;
use ringtree_tests::counts::Counts;
use ringtree_tests::gpu::Gpu;

/// All-reduces of a loop after which it counts as running.
const RUNNING_AFTER: usize = 10;

/// What no all-reduce here yields.
const PATTERN: f64 = -7.0;

fn main() {
    let mut rank = Rank { communicator: None, buffer: Box::new(Vec::<f32>::new()) };
    rank.join();
    std::env::args().skip(1).for_each(|step| rank.step(&step));
    drop(rank);
    say("left", "");
}

struct Rank {
    communicator: Option<Communicator>,
    /// What the last call worked on.
    buffer: Box<dyn Buffer>,
}

impl Rank {
    fn join(&mut self) {
        match Communicator::from_env() {
            Ok(communicator) => self.communicator = Some(communicator),
            Err(error) => {
                say("failed", describe(&error));
                std::process::exit(1);
            }
        }
        say("joined", "");
    }

    fn step(&mut self, step: &str) {
        let words: Vec<&str> = step.split_ascii_whitespace().collect();
        match words[..] {
            ["wait"] => wait(),
            ["values"] => say("values", self.buffer.values()),
            ["fill"] => self.buffer.paint(),
            ["check"] => say(if self.buffer.is_painted() { "intact" } else { "touched" }, ""),
            ["usage"] => say("usage", used_us(UsageWho::RUSAGE_SELF)),
            ["rest", seconds] => {
                std::thread::sleep(Duration::from_secs(number(seconds) as u64));
            }
            ["churn", times] => churn(number(times)),
            ["join"] => self.join(),
            ["shrink"] => self.regroup(Communicator::shrink),
            ["admit"] => self.regroup(Communicator::admit),
            ["newcomer"] => self.await_newcomer(),
            ["leave"] => {
                self.communicator = None;
                say("done", "");
            }
            _ => self.call(&words),
        }
    }

    fn regroup(&mut self, change: fn(&Communicator) -> Result<Regrouped, Error>) {
        let communicator = self.communicator.take().expect("a communicator");
        match change(&communicator) {
            Ok(Regrouped { communicator: next, completed, .. }) => {
                let (rank, ranks, epoch) = (next.rank(), next.ranks(), next.epoch());
                say("regrouped", format!("{rank} of {ranks} {epoch} {completed}"));
                self.communicator = Some(next);
            }
            Err(error) => {
                say("error", describe(&error));
                self.communicator = Some(communicator);
            }
        }
    }

    /// Calls until some rank has heard of a newcomer, so that all agree.
    fn await_newcomer(&mut self) {
        let communicator = self.communicator.as_ref().expect("a communicator");
        let mut heard = [0u32];
        while heard == [0] {
            heard = [communicator.members_changed().into()];
            if let Err(error) = communicator.all_reduce(&mut heard, Op::Max) {
                return say("error", describe(&error));
            }
        }
        say("knocks", "");
    }

    fn call(&mut self, words: &[&str]) {
        let Some(communicator) = &self.communicator else { panic!("{words:?} after leaving") };
        match *words {
            ["warm-up"] => report(communicator.warm_up()),
            ["barrier"] => report(communicator.barrier()),
            ["abort", reason] => report({
                communicator.abort(reason);
                Ok(())
            }),
            ["loop", count] => self.buffer = endless(communicator, vec![0.0; number(count)]),
            ["loop-computing", count, ms] => {
                endless_computing(communicator, number(count), number(ms))
            }
            ["loop-registered", count] => {
                let memory = communicator.alloc(number(count)).expect("memory");
                self.buffer = endless(communicator, memory);
            }
            ["loop-gpu", count] => report(endless_on_gpu(communicator, number(count))),
            ["stream", count] => report(stream(communicator, number(count))),
            ["repeat", times, count] => repeat(communicator, number(times), number(count)),
            [_, "f32", ..] => self.buffer = typed::<f32>(communicator, words),
            [_, "f64", ..] => self.buffer = typed::<f64>(communicator, words),
            [_, "bf16", ..] => self.buffer = typed::<bf16>(communicator, words),
            [_, "i32", ..] => self.buffer = typed::<i32>(communicator, words),
            _ => panic!("no step {words:?}"),
        }
    }
}

/// A call on a fresh buffer.
fn typed<T: Value>(communicator: &Communicator, words: &[&str]) -> Box<dyn Buffer> {
    let own = 10_f64.powi(communicator.rank() as i32);
    let buffer = |count: &str| vec![T::from_f64(own); number(count)];
    let (buffer, result) = match *words {
        ["all-reduce", _, op, count] => {
            let op = if op == "max" { Op::Max } else { Op::Sum };
            let mut buffer = buffer(count);
            let result = communicator.all_reduce(&mut buffer, op);
            (buffer, result)
        }
        ["broadcast", _, count, root] => {
            let mut buffer = buffer(count);
            let result = communicator.broadcast(&mut buffer, number(root) as u32);
            (buffer, result)
        }
        ["send", _, count, peer] => {
            let buffer = buffer(count);
            let result = communicator.send(&buffer, number(peer) as u32);
            (buffer, result)
        }
        ["receive", _, count, peer] => {
            let mut buffer = buffer(count);
            let result = communicator.receive(&mut buffer, number(peer) as u32);
            (buffer, result)
        }
        _ => panic!("no step {words:?}"),
    };
    report(result);
    Box::new(buffer)
}

/// All-reduces until one fails; every result is looked at.
fn endless<B>(communicator: &Communicator, mut buffer: B) -> Box<dyn Buffer>
where
    B: DerefMut<Target = [f32]> + 'static,
{
    let own = 10_f32.powi(communicator.rank() as i32);
    let sum: f32 = (0..communicator.ranks()).map(|rank| 10_f32.powi(rank as i32)).sum();
    for turn in 0.. {
        buffer.fill(own);
        let result = communicator.all_reduce(&mut buffer, Op::Sum);
        if result.is_err() {
            report(result);
            break;
        }
        assert!(buffer.iter().all(|value| *value == sum), "a wrong sum in turn {turn}");
        if turn == RUNNING_AFTER {
            say("running", "");
        }
    }
    Box::new(buffer)
}

/// All-reduces with computing between them, until one fails.
fn endless_computing(communicator: &Communicator, count: usize, compute_ms: usize) {
    let mut buffer = vec![0_f32; count];
    for turn in 0.. {
        let until_us = used_us(UsageWho::RUSAGE_THREAD) + 1000 * compute_ms as i64;
        while used_us(UsageWho::RUSAGE_THREAD) < until_us {
            std::hint::spin_loop();
        }
        let began = Instant::now();
        if let Err(error) = communicator.all_reduce(&mut buffer, Op::Sum) {
            say("waited", began.elapsed().as_secs_f64() * 1e3);
            return report(Err(error));
        }
        if turn == RUNNING_AFTER {
            say("running", "");
        }
    }
}

/// All-reduces on GPUs until one fails.
fn endless_on_gpu(communicator: &Communicator, count: usize) -> Result<(), Error> {
    let gpu = Gpu::of(communicator);
    say("joined-gpus", communicator.join_devices(&gpu.device)?);
    let mut memory = gpu.memory(communicator, &vec![0_i32; count]);
    for turn in 0.. {
        let own = 10_i32.pow(communicator.rank()) + turn;
        memory.write(&gpu.stream, &vec![own; count])?;
        communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum)?.wait()?;
        let ranks = communicator.ranks();
        let sum: i32 = (0..ranks).map(|rank| 10_i32.pow(rank) + turn).sum();
        assert_eq!(gpu.elements(&memory), vec![sum; count], "turn {turn}");
        if turn == RUNNING_AFTER as i32 {
            say("running", "");
        }
    }
    Ok(())
}

/// All-reduces until rank 0 is told to stop, which the sum of the first elements tells everyone.
fn stream(communicator: &Communicator, count: usize) -> Result<(), Error> {
    let told = Arc::new(AtomicBool::new(false));
    if communicator.rank() == 0 {
        let told = told.clone();
        std::thread::spawn(move || {
            read_line();
            told.store(true, Ordering::Relaxed);
        });
    }
    let mut buffer = vec![0_f32; count];
    for turn in 0.. {
        buffer.fill(communicator.rank() as f32 + turn as f32);
        buffer[0] = if told.load(Ordering::Relaxed) { 1.0 } else { 0.0 };
        communicator.all_reduce(&mut buffer, Op::Sum)?;
        let sum: f32 = (0..communicator.ranks()).map(|rank| (rank + turn) as f32).sum();
        assert!(buffer[1..].iter().all(|value| *value == sum), "a wrong sum in turn {turn}");
        if turn == RUNNING_AFTER as u32 {
            say("running", "");
        }
        if buffer[0] > 0.0 {
            break;
        }
    }
    Ok(())
}

fn repeat(communicator: &Communicator, times: usize, count: usize) {
    let mut buffer = vec![0_f32; count];
    let began = Instant::now();
    for _ in 0..times {
        if let Err(error) = communicator.all_reduce(&mut buffer, Op::Sum) {
            return report(Err(error));
        }
    }
    say("took", began.elapsed().as_secs_f64() * 1e6 / times as f64);
}

/// What stays behind of communicators that have gone: nothing.
fn churn(times: usize) {
    churn_once(); // makes whatever is made only once in a process
    let before = Counts::now();
    (0..times).for_each(|_| churn_once());
    match Counts::settled(&before) {
        after if after.exceed(&before) => say("leaks", format!("{before:?}, then {after:?}")),
        _ => say("clean", ""),
    }
}

fn churn_once() {
    for transports in [ringtree::Transports::Shm, ringtree::Transports::Tcp] {
        let adjust = |settings: &mut ringtree::Settings| settings.transports = transports;
        let communicators = Communicator::in_process_with(3, adjust).expect("communicators");
        std::thread::scope(|scope| {
            for communicator in communicators {
                scope.spawn(move || {
                    let buffer = vec![1_f32; 50_000];
                    let pending = communicator.all_reduce_async(buffer, Op::Sum).expect("posted");
                    communicator.barrier().expect("a barrier");
                    assert_eq!(pending.wait().expect("a sum")[0], 3.0);
                });
            }
        });
    }
}

fn wait() {
    say("waiting", "");
    read_line();
}

fn read_line() {
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line).is_ok_and(|bytes| bytes == 0) {
        std::process::exit(1); // whoever would say so has ended
    }
}

fn report(result: Result<(), Error>) {
    match result {
        Ok(()) => say("done", ""),
        Err(error) => say("error", describe(&error)),
    }
}

/// `KIND RANKS MESSAGE`.
fn describe(error: &Error) -> String {
    let (kind, ranks) = match error {
        Error::Verdict(verdict) => match &**verdict {
            Verdict::Died { rank, .. } => ("died", vec![*rank]),
            Verdict::Stopped { rank, .. } => ("stopped", vec![*rank]),
            Verdict::Late { rank, .. } => ("late", vec![*rank]),
            Verdict::Left { rank, .. } => ("left", vec![*rank]),
            Verdict::Mismatch { a, b, .. } => ("mismatch", vec![a.rank, b.rank]),
            Verdict::LinkBroken { a, b, .. } => ("broken", vec![*a, *b]),
            Verdict::Aborted { by, .. } => ("aborted", vec![*by]),
            Verdict::ArbiterLost { .. } => ("arbiter", vec![]),
        },
        Error::Settings(_) => ("settings", vec![]),
        Error::Argument(_) => ("argument", vec![]),
        Error::Rendezvous(_) => ("rendezvous", vec![]),
        Error::Control(_) => ("control", vec![]),
        Error::Endpoint(_) => ("endpoint", vec![]),
        Error::Memory(_) => ("memory", vec![]),
        Error::Link { .. } => ("link", vec![]),
        Error::Device(_) => ("device", vec![]),
        Error::Panicked => ("panicked", vec![]),
        Error::Regroup(regroup) => match &**regroup {
            RegroupError::NoQuorum { .. } => ("no-quorum", vec![]),
            RegroupError::LeftOut { .. } => ("left-out", vec![]),
            RegroupError::TimedOut { .. } => ("regroup-timeout", vec![]),
            RegroupError::TooMany { .. } => ("too-many", vec![]),
        },
        Error::Replaced => ("replaced", vec![]),
        Error::Timeout { waiting_for, .. } => ("timeout", waiting_for.clone()),
    };
    let ranks: Vec<String> = ranks.iter().map(u32::to_string).collect();
    let ranks = if ranks.is_empty() { "-".to_string() } else { ranks.join(",") };
    format!("{kind} {ranks} {error}")
}

/// Processor time so far.
fn used_us(whose: UsageWho) -> i64 {
    let usage = getrusage(whose).expect("every process has a usage");
    usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("\"{text}\" is no number"))
}

/// Prints one event at once.
fn say(word: &str, rest: impl Display) {
    let rest = rest.to_string().replace('\n', " ");
    println!("{} {word} {rest}", monotonic_ns());
}

/// A call's buffer, whatever its type.
trait Buffer {
    fn values(&self) -> String;
    fn paint(&mut self);
    fn is_painted(&self) -> bool;
}

impl<T: Value, B: DerefMut<Target = [T]>> Buffer for B {
    fn values(&self) -> String {
        let values: BTreeSet<i64> = self.iter().map(|value| value.to_f64() as i64).collect();
        values.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
    }

    fn paint(&mut self) {
        self.fill(T::from_f64(PATTERN));
    }

    fn is_painted(&self) -> bool {
        self.iter().all(|value| *value == T::from_f64(PATTERN))
    }
}

/// An element that small whole numbers can be turned into, and back.
trait Value: Element {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

macro_rules! value {
    ($type:ty, $value:ident => $from:expr, $itself:ident => $to:expr) => {
        impl Value for $type {
            fn from_f64($value: f64) -> Self {
                $from
            }

            fn to_f64($itself) -> f64 {
                $to
            }
        }
    };
}

value!(f32, value => value as f32, self => f64::from(self));
value!(f64, value => value, self => self);
value!(bf16, value => bf16::from_f64(value), self => self.to_f64());
value!(i32, value => value as i32, self => f64::from(self));
