//! What strangers cost a job: ranks all-reduce over TCP while very many strangers of every kind come to all ports of
//! the job. Every result is checked; time, memory and descriptors are measured and compared with their bounds.
//!
//! Strangers take processors away from ranks of the same host whatever the job does with them. So each round has three
//! turns: nobody comes; the strangers come to other ports, whose listener closes every connection at once; the same
//! strangers come to the job. What the job's handling costs is the difference between the last two.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use ringtree::{Communicator, Error, Op};
use ringtree_tests::clock::monotonic_ns;
use ringtree_tests::job::{Host, Job, Setup, identity};
use ringtree_tests::sockets::tcp_listeners;
use ringtree_tests::strangers::{Kind, Knowledge, Tally, crowd, record};

/// Most that the handling of strangers may add to the mean time of an all-reduce, in percent.
const TIME_BOUND_PERCENT: f64 = 5.0;

/// Most that a rank's process may have more of while strangers come: the handshakes that are under way.
const DESCRIPTORS_BOUND: u64 = 256 + 8;
const THREADS_BOUND: u64 = 256 + 8;
const MEMORY_BOUND_KIB: u64 = 32 << 10;

/// How often the ranks' processes are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Lets strangers loose on a job, and measures what that costs it.
#[derive(Parser)]
struct Arguments {
    /// Ranks of the job.
    #[arg(long, default_value_t = 2)]
    ranks: u32,
    /// Elements (f32) of each all-reduce.
    #[arg(long, default_value_t = 16_384)]
    count: usize,
    /// How many strangers come to the job.
    #[arg(long, default_value_t = 100_000)]
    strangers: u64,
    /// How many of them a second.
    #[arg(long, default_value_t = 1_000.0)]
    per_s: f64,
    /// Rounds of three turns.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// What the strangers do follows from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    // The ranks are this program too.
    let mut words = std::env::args().skip(1);
    if let Some(count) = words.next().and_then(|word| word.strip_prefix("rank ").map(str::to_owned))
    {
        return match rank(count.parse().expect("a number")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&format!("failed {error}"));
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::parse();
    let findings = besiege(&arguments);
    ExitCode::from(u8::from(!findings.print(&arguments)))
}

// ---- the job -------------------------------------------------------------------------------------------------------

/// What rank 0 was told so far.
#[derive(Default)]
struct Orders {
    /// How many turns have ended, how many communicators shall have been made, whether all is over. The first elements
    /// of each all-reduce tell the other ranks.
    counts: [AtomicU32; 3],
    /// It shall do nothing until it is told anything else, so that all others wait for it.
    resting: Mutex<bool>,
    changed: Condvar,
}

impl Orders {
    /// A line of standard input ends a turn (`turn`), or asks for a communicator (`split`) or for rest (`rest`); its
    /// end is that of all.
    fn listen(&self) {
        let [turns, splits, ends] = &self.counts;
        for line in std::io::stdin().lines().map_while(Result::ok) {
            match line.trim() {
                "turn" => drop(turns.fetch_add(1, Ordering::Relaxed)),
                "split" => drop(splits.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
            self.set_resting(line.trim() == "rest");
        }
        ends.store(1, Ordering::Relaxed);
        self.set_resting(false);
    }

    fn set_resting(&self, resting: bool) {
        *self.resting.lock().expect("no panic") = resting;
        self.changed.notify_all();
    }

    /// Returns once there is no rest, or no more.
    fn rest(&self) {
        let resting = self.resting.lock().expect("no panic");
        if *resting {
            say("resting");
        }
        drop(self.changed.wait_while(resting, |resting| *resting));
    }

    /// Nothing on all ranks but 0, so that the sum is what rank 0 was told.
    fn write(&self, buffer: &mut [f32]) {
        for (element, order) in buffer.iter_mut().zip(&self.counts) {
            *element = order.load(Ordering::Relaxed) as f32;
        }
    }
}

/// All-reduces until it is told that all is over, and looks at each result.
fn rank(count: usize) -> Result<(), Error> {
    let communicator = Communicator::from_env()?;
    let is_first = communicator.rank() == 0;
    let orders: Arc<Orders> = Arc::default();
    if is_first {
        let orders = orders.clone();
        thread::spawn(move || orders.listen());
    }
    let mut buffer = vec![0_f32; count.max(4)];
    let (mut seen, mut times_ns) = ([0.0; 3], Vec::new());
    for number in 0_u32.. {
        buffer.fill((communicator.rank() + number % 1_000) as f32);
        orders.rest();
        orders.write(&mut buffer);
        let began = Instant::now();
        communicator.all_reduce(&mut buffer, Op::Sum)?;
        times_ns.push(began.elapsed().as_nanos() as f64);
        let sum: f32 = (0..communicator.ranks()).map(|rank| (rank + number % 1_000) as f32).sum();
        assert!(buffer[3..].iter().all(|value| *value == sum), "a wrong sum in operation {number}");
        let told = [buffer[0], buffer[1], buffer[2]];
        if told == seen {
            continue;
        }
        if told[0] != seen[0] && is_first {
            let mean_ns = times_ns.iter().sum::<f64>() / times_ns.len() as f64;
            say(&format!("turn {} {mean_ns} {}", times_ns.len(), median(&mut times_ns)));
        }
        if told[1] != seen[1] {
            let ms = time_of_a_split(&communicator)?.as_secs_f64() * 1e3;
            if is_first {
                say(&format!("split {ms}"));
            }
        }
        if told[2] != 0.0 {
            break;
        }
        times_ns.clear();
        seen = told;
    }
    Ok(())
}

/// How long it takes until a communicator of all ranks has all its links.
fn time_of_a_split(communicator: &Communicator) -> Result<Duration, Error> {
    let began = Instant::now();
    let made = communicator.split(Some(0), 0)?.expect("every rank is in it");
    made.warm_up()?;
    Ok(began.elapsed())
}

fn say(line: &str) {
    println!("{} {line}", monotonic_ns());
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// ---- the siege -----------------------------------------------------------------------------------------------------

/// Who comes in a turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scene {
    Nobody,
    ToOthers,
    ToTheJob,
}

const SCENES: [Scene; 3] = [Scene::Nobody, Scene::ToOthers, Scene::ToTheJob];

/// What was measured.
#[derive(Default)]
struct Findings {
    /// Of the turns of each scene, the mean and the median time of an all-reduce.
    mean_ns: [Vec<f64>; 3],
    median_ns: [Vec<f64>; 3],
    operations: u64,
    /// Times of communicators that were made while strangers came.
    splits_ms: Vec<f64>,
    came: Tally,
    /// Processor time of all ranks for one stranger, while they do nothing else.
    stranger_us: f64,
    before: Holdings,
    most: Holdings,
    after: Holdings,
}

fn besiege(arguments: &Arguments) -> Findings {
    let program = std::env::current_exe().expect("this program has a path");
    let program = program.into_os_string().into_string().expect("a path of plain text");
    let setup = Setup::new(program.leak(), arguments.ranks, "tcp").host(Host::RankZero);
    let mut job = Job::start(&setup, |_| format!("rank {}", arguments.count));
    let pids: Vec<u32> = (0..arguments.ranks as usize).map(|member| job.pid(member)).collect();
    split(&mut job);
    // Then that communicator's ports are closed again.
    turn(&mut job);
    let mut ports: Vec<SocketAddr> = pids.iter().flat_map(|pid| tcp_listeners(*pid)).collect();
    ports.sort_unstable();
    ports.dedup();
    assert!(
        ports.len() > arguments.ranks as usize,
        "the rendezvous and each rank listen: {ports:?}"
    );
    let others: Vec<SocketAddr> = ports.iter().map(|_| closes_at_once()).collect();
    let knowledge = Knowledge { job: identity(), recorded: record(job.rendezvous(), &identity()) };
    let each = arguments.strangers / arguments.rounds;
    let length = Duration::from_secs_f64(each as f64 / arguments.per_s);
    let mut findings = Findings { before: Holdings::most_of(&pids), ..Findings::default() };
    findings.most = findings.before;

    for round in 0..arguments.rounds {
        for at in 0..SCENES.len() {
            // Each is first in some rounds.
            let at = (at + round as usize) % SCENES.len();
            let seed = arguments.seed + round;
            let come = |ports: &[SocketAddr], strangers| {
                crowd(&knowledge, ports, strangers, Some(arguments.per_s), seed)
            };
            turn(&mut job);
            match SCENES[at] {
                Scene::Nobody => thread::sleep(length),
                Scene::ToOthers => drop(come(&others, each)),
                Scene::ToTheJob => {
                    let (most, came) = watch(&pids, || come(&ports, each));
                    findings.most = findings.most.max(most);
                    findings.came += came;
                }
            }
            let [operations, mean_ns, median_ns] = turn(&mut job);
            findings.operations += operations as u64;
            findings.mean_ns[at].push(mean_ns);
            findings.median_ns[at].push(median_ns);
        }
        // A communicator needs what strangers are at: the rendezvous, and connections to ports.
        let ms = thread::scope(|scope| {
            let strangers = scope.spawn(|| crowd(&knowledge, &ports, each / 10, None, !round));
            let ms = split(&mut job);
            findings.came += strangers.join().expect("no stranger is let in");
            ms
        });
        findings.splits_ms.push(ms);
    }
    findings.stranger_us = at_rest(&mut job, &pids, length, || {
        crowd(&knowledge, &ports, each, Some(arguments.per_s), arguments.seed);
    }) / each as f64;
    findings.after = Holdings::settled(&pids, &findings.before);
    job.end_input(0);
    for member in 0..pids.len() {
        assert!(job.end(member).success(), "{job}");
    }
    findings
}

/// Ends a turn; the number of its all-reduces, and their mean and median time in ns.
fn turn(job: &mut Job) -> [f64; 3] {
    job.tell(0, "turn");
    let event = job.expect(0, "turn");
    [event.number(0), event.number(1), event.number(2)]
}

/// Has a communicator made; how long that took, in ms.
fn split(job: &mut Job) -> f64 {
    job.tell(0, "split");
    job.expect(0, "split").number(0)
}

/// How much more processor time, in us, the ranks use while something is done than otherwise in that time, when all of
/// them wait.
fn at_rest(job: &mut Job, pids: &[u32], length: Duration, act: impl FnOnce()) -> f64 {
    job.tell(0, "rest");
    job.expect(0, "resting");
    let began = processor_us(pids);
    thread::sleep(length);
    let idle = processor_us(pids);
    act();
    let used = processor_us(pids);
    turn(job);
    (used - idle) - (idle - began)
}

/// Processor time that processes have used so far.
fn processor_us(pids: &[u32]) -> f64 {
    /// Of the ticks that Linux counts in for programs.
    const TICK_US: f64 = 10_000.0;
    let of = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        // Behind the name, which may hold anything.
        let fields = stat.rsplit_once(')').expect("a name").1.split_whitespace().skip(11).take(2);
        fields.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() * TICK_US
    };
    pids.iter().map(of).sum()
}

/// A port where whoever connects is cut off.
fn closes_at_once() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || listener.incoming().for_each(drop));
    address
}

/// What the processes had at most while something was done.
fn watch<T>(pids: &[u32], act: impl FnOnce() -> T) -> (Holdings, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = Holdings::default();
            while !over.load(Ordering::Relaxed) {
                most = most.max(Holdings::most_of(pids));
                thread::sleep(LOOK_AGAIN);
            }
            most
        });
        let outcome = act();
        over.store(true, Ordering::Relaxed);
        (watcher.join().expect("the ranks live"), outcome)
    })
}

/// What a process has, or the one of several that has most.
#[derive(Clone, Copy, Debug, Default)]
struct Holdings {
    descriptors: u64,
    threads: u64,
    resident_kib: u64,
}

impl Holdings {
    fn of(pid: u32) -> Holdings {
        let entries = |what| fs::read_dir(format!("/proc/{pid}/{what}")).expect("it lives").count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Holdings {
            descriptors: entries("fd") as u64,
            threads: entries("task") as u64,
            resident_kib: kib.expect("a process has memory"),
        }
    }

    fn most_of(pids: &[u32]) -> Holdings {
        pids.iter().map(|pid| Holdings::of(*pid)).fold(Holdings::default(), Holdings::max)
    }

    fn max(self, other: Holdings) -> Holdings {
        Holdings {
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
            resident_kib: self.resident_kib.max(other.resident_kib),
        }
    }

    /// Once there are no more descriptors and threads than before, or after a while.
    fn settled(pids: &[u32], before: &Holdings) -> Holdings {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = Holdings::most_of(pids);
            let is_as_before =
                now.descriptors <= before.descriptors && now.threads <= before.threads;
            if is_as_before || Instant::now() > deadline {
                return now;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Findings {
    /// Prints figures and bounds; whether all bounds hold.
    fn print(&self, arguments: &Arguments) -> bool {
        let Findings { before, most, after, .. } = self;
        let Arguments { ranks, count, per_s, rounds, .. } = arguments;
        println!(
            "{} strangers ({per_s} a second) at {ranks} ranks; {} all-reduces of {count} f32, \
             every result right",
            self.came.total(),
            self.operations
        );
        for (kind, came) in Kind::ALL.iter().zip(self.came.came) {
            println!("  {came:7} {kind:?}");
        }
        let [mean, median] = [&self.mean_ns, &self.median_ns].map(|times| {
            [0, 1, 2].map(|scene: usize| self::median(&mut times[scene].clone()) / 1e3)
        });
        println!("\ntime of an all-reduce, us (median of {rounds} turns)      mean   median");
        for (at, scene) in
            ["nobody comes", "strangers at other ports", "strangers at the job"].iter().enumerate()
        {
            println!("  {scene:<45}{:10.1}{:9.1}", mean[at], median[at]);
        }
        let cost_percent = (mean[2] / mean[1] - 1.0) * 100.0;
        println!(
            "  the processors that strangers themselves take: {:+.1} %",
            (mean[1] / mean[0] - 1.0) * 100.0
        );

        let processors = thread::available_parallelism().map_or(1, usize::from) as f64;
        let share_percent = self.stranger_us * per_s / (processors * 1e6) * 100.0;
        println!("  processor time that the job spends on a stranger: {:.0} us", self.stranger_us);
        let mut splits_ms = self.splits_ms.clone();
        println!(
            "communicators made while strangers came: {}, median {:.1} ms, longest {:.1} ms\n",
            splits_ms.len(),
            self::median(&mut splits_ms),
            splits_ms.last().copied().unwrap_or_default()
        );
        let more = |of: fn(&Holdings) -> u64| of(most).saturating_sub(of(before));
        let left = |of: fn(&Holdings) -> u64| of(after).saturating_sub(of(before));
        let bounds = [
            Bound::new(
                "share of the processors that they cost, %",
                share_percent,
                TIME_BOUND_PERCENT,
            ),
            Bound::new("time that handling strangers adds, %", cost_percent, TIME_BOUND_PERCENT),
            Bound::count(
                "descriptors of a rank at most, more than before",
                more(|h| h.descriptors),
                DESCRIPTORS_BOUND,
            ),
            Bound::count(
                "threads of a rank at most, more than before",
                more(|h| h.threads),
                THREADS_BOUND,
            ),
            Bound::count(
                "memory of a rank at most, KiB more than before",
                more(|h| h.resident_kib),
                MEMORY_BOUND_KIB,
            ),
            Bound::count("strangers that nobody heard", self.came.unheard, 0),
            Bound::count("descriptors left behind", left(|h| h.descriptors), 0),
            Bound::count("threads left behind", left(|h| h.threads), 0),
        ];
        println!("{:<52}{:>10}{:>10}", "", "figure", "bound");
        bounds.iter().for_each(Bound::print);
        bounds.iter().all(Bound::holds)
    }
}

/// A figure and what it may be at most.
struct Bound {
    what: &'static str,
    figure: f64,
    most: f64,
}

impl Bound {
    fn new(what: &'static str, figure: f64, most: f64) -> Bound {
        Bound { what, figure, most }
    }

    fn count(what: &'static str, figure: u64, most: u64) -> Bound {
        Bound::new(what, figure as f64, most as f64)
    }

    fn holds(&self) -> bool {
        self.figure <= self.most
    }

    fn print(&self) {
        let verdict = if self.holds() { "holds" } else { "MISSED" };
        println!("{:<52}{:>10.1}{:>10.1}  {verdict}", self.what, self.figure, self.most);
    }
}
