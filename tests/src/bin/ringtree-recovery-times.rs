//! How fast a job goes on after a rank was killed: kills one of four ranks of this host again and again while they
//! all-reduce, lets the survivors go on, and starts a replacement that they let in. Prints each figure beside its
//! bound, and ends with status 1 where one is missed.
//!
//! `ringtree-recovery-times [--kills N] [--transport shm|tcp] [--loose]`. With `--loose` the bounds are ten times as high:
//! for machines that do other things, too.

use std::process::ExitCode;

use nix::sys::signal::Signal;
use ringtree_tests::clock::monotonic_ns;
use ringtree_tests::figures::{Figure, are_kept};
use ringtree_tests::job::{Event, Host, Job, Setup};

const RANKS: usize = 4;

/// What every rank does: all-reduces until somebody dies, goes on, and lets a newcomer in.
const SCRIPT: &str =
    "loop 1000; shrink; all-reduce f64 sum 1000; newcomer; admit; all-reduce f64 sum 1000";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).cloned()
    };
    let kills: usize = value("--kills").map_or(100, |text| text.parse().expect("a number"));
    let transport = match value("--transport").as_deref() {
        Some("tcp") => "tcp",
        _ => "shm",
    };
    let factor = if arguments.iter().any(|argument| argument == "--loose") { 10.0 } else { 1.0 };
    let program =
        std::env::current_exe().expect("this program").with_file_name("ringtree-test-rank");
    let program = program.to_str().expect("a path of text").to_owned();
    let setup = Setup::new(program.leak(), RANKS as u32, transport);

    let mut figures = Figures::new();
    for kill in 0..kills {
        // Every fourth time rank 0 hosts the control service, and dies.
        let host = if kill % 4 == 0 { Host::RankZero } else { Host::Launcher };
        figures.take(&setup.clone().host(host), kill % RANKS);
    }
    println!("{kills} kills of one of {RANKS} ranks over {transport}; ms, median and highest");
    let kept = are_kept(vec![figures.named, figures.shrunk, figures.joined], factor);
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Figures {
    named: Figure,
    shrunk: Figure,
    joined: Figure,
}

impl Figures {
    fn new() -> Figures {
        Figures {
            named: Figure::new("until every survivor has named it", 20.0),
            shrunk: Figure::new("from there to the first all-reduce", 200.0),
            joined: Figure::new("from a replacement's start to its first all-reduce", 1000.0),
        }
    }

    fn take(&mut self, setup: &Setup, victim: usize) {
        let mut job = Job::start(setup, |_| SCRIPT.into());
        job.expect_all(0..RANKS, "running");
        let killed_ns = job.signal(victim, Signal::SIGKILL);
        let survivors = job.others(victim);
        let named_ns = last(&job.expect_all(survivors.clone(), "error"));
        let first_ns = last(&job.expect_all(survivors.clone(), "done"));
        self.named.all_ms.push(ms(named_ns - killed_ns));
        self.shrunk.all_ms.push(ms(first_ns - named_ns));
        // A newcomer finds the job where the launcher hosts it; rank 0 is gone in the other jobs.
        if setup.host == Host::Launcher {
            let started_ns = monotonic_ns();
            let newcomer =
                job.add(victim as u32, "all-reduce f64 sum 1000", &[("RINGTREE_JOIN", "1")]);
            let joined_ns = job.expect(newcomer, "done").at_ns;
            self.joined.all_ms.push(ms(joined_ns - started_ns));
            for member in survivors.into_iter().chain([newcomer]) {
                assert!(job.end(member).success(), "{job}");
            }
        }
    }
}

fn last(events: &[Event]) -> u64 {
    events.iter().map(|event| event.at_ns).max().unwrap_or_default()
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}
