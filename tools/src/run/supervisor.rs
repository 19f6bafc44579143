//! Watches the ranks of one host from start to end: passes signals on, notices who failed first,
//! and ends the others.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use ringtree::control::Verdict;

use super::process;
use super::ranks::RankProcess;
use super::report;
use super::service::Service;

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every rank of this host has ended; this is the status to pass on: that of the first one
    /// that failed, or 0.
    Ended(u8),
    /// The process that watches the launcher was killed.
    Abandoned,
}

/// What is done about the ranks that still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// None has failed.
    Running,
    /// One has failed. The others learn that from the library and may still end by themselves.
    Grace { until: Instant },
    /// They were asked to end.
    Asked { until: Instant },
    /// They were killed.
    Killed,
}

/// Token of the signal descriptor; ranks are named by their place.
const SIGNALS: u64 = u64::MAX;
/// Token of the guardian's descriptor.
const GUARDIAN: u64 = u64::MAX - 1;

/// The ranks of one host.
pub struct Supervisor<'a> {
    epoll: Epoll,
    signals: &'a SignalFd,
    service: &'a Service,
    ranks: Vec<Rank>,
    grace: Duration,
    stage: Stage,
    passed_on: Option<Signal>,
    first_failure: Option<ExitStatus>,
    /// The first one that failed because of a rank that still runs.
    witness: Option<Failed>,
}

/// A rank that failed.
#[derive(Clone, Copy)]
struct Failed {
    rank: u32,
    pid: Pid,
    status: ExitStatus,
}

struct Rank {
    process: RankProcess,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Running,
    Reaped(ExitStatus),
    Ended,
}

impl<'a> Supervisor<'a> {
    /// A supervisor of no rank yet. Once one has failed, the others get `grace` to end by
    /// themselves, and as much again after they were asked to. `guardian` becomes readable when the
    /// process that watches this one has ended. What the ranks know of each other, `service` knows.
    pub fn new(
        signals: &'a SignalFd,
        service: &'a Service,
        guardian: &OwnedFd,
        grace: Duration,
    ) -> io::Result<Supervisor<'a>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        epoll.add(guardian, EpollEvent::new(EpollFlags::EPOLLIN, GUARDIAN))?;
        Ok(Supervisor {
            epoll,
            signals,
            service,
            ranks: Vec::new(),
            grace,
            stage: Stage::Running,
            passed_on: None,
            first_failure: None,
            witness: None,
        })
    }

    /// Takes charge of a rank. To be called before the next rank is started: ends are reported in
    /// the order in which they happen, for the ranks that are watched by then.
    pub fn watch(&mut self, process: RankProcess) -> io::Result<()> {
        let token = self.ranks.len() as u64;
        self.epoll.add(&process.end, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        self.ranks.push(Rank { process, state: State::Running });
        Ok(())
    }

    /// Waits until every rank has ended.
    pub fn run(mut self) -> io::Result<Outcome> {
        let mut events = [EpollEvent::empty(); 64];
        while self.ranks.iter().any(|rank| !matches!(rank.state, State::Ended)) {
            let limit =
                self.deadline().map(|until| until.saturating_duration_since(Instant::now()));
            let ready = match self.epoll.wait(&mut events, process::poll_timeout(limit)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            while let Some((pid, status)) = process::reap() {
                self.on_reaped(pid, status);
            }
            for event in &events[..ready] {
                match event.data() {
                    SIGNALS => {
                        for signal in process::pending_signals(self.signals)? {
                            self.on_signal(signal);
                        }
                    }
                    GUARDIAN => return Ok(Outcome::Abandoned),
                    index => self.on_end(index as usize)?,
                }
            }
            self.on_time(Instant::now());
        }
        Ok(Outcome::Ended(self.first_failure.map_or(0, process::exit_code)))
    }

    /// Keeps the status of a rank until its turn; an orphan that ended here is of no interest.
    fn on_reaped(&mut self, pid: Pid, status: ExitStatus) {
        let found = self
            .ranks
            .iter_mut()
            .find(|rank| rank.process.pid == pid && matches!(rank.state, State::Running));
        if let Some(rank) = found {
            rank.state = State::Reaped(status);
        }
    }

    fn on_end(&mut self, index: usize) -> io::Result<()> {
        let rank = &mut self.ranks[index];
        let State::Reaped(status) = rank.state else { return Ok(()) };
        rank.state = State::Ended;
        self.epoll.delete(&rank.process.end)?;
        let ended = Failed { rank: rank.process.rank, pid: rank.process.pid, status };
        if self.first_failure.is_some() {
            return Ok(());
        }
        if status.signal() == Some(Signal::SIGPIPE as i32) {
            // Nobody reads what it prints: everyone ends, and nobody needs to be told.
            self.first_failure = Some(status);
            self.kill();
            return Ok(());
        }
        if let Some(signal) = self.passed_on.filter(|_| !status.success()) {
            self.first_failure = Some(status);
            report(&format!(
                "ended by {signal}: rank {}: {}",
                ended.rank,
                process::describe(status)
            ));
        } else {
            self.look_for_the_first(ended);
        }
        if !status.success() && self.stage == Stage::Running {
            self.stage = Stage::Grace { until: Instant::now() + self.grace };
        }
        Ok(())
    }

    /// Names the rank that failed first. That is the one that the others' verdict is about, if it
    /// is here and fails, too: they learn of its failure while it may not even have ended.
    fn look_for_the_first(&mut self, ended: Failed) {
        let culprit = self.service.verdict().as_ref().and_then(Verdict::culprit);
        let still_runs = |culprit: &u32| {
            let here = self.ranks.iter().find(|rank| rank.process.rank == *culprit);
            here.is_some_and(|rank| !matches!(rank.state, State::Ended))
        };
        let failed = (!ended.status.success()).then_some(ended);
        if culprit.as_ref().is_some_and(still_runs) {
            self.witness = self.witness.or(failed);
        } else if culprit == Some(ended.rank) {
            self.name(failed.or(self.witness));
        } else {
            self.name(self.witness.or(failed));
        }
    }

    fn name(&mut self, first: Option<Failed>) {
        let Some(Failed { rank, pid, status }) = first else { return };
        self.first_failure = Some(status);
        let verdict = self.service.verdict();
        let was_killed = status.signal() == Some(Signal::SIGKILL as i32);
        let why = match verdict.as_ref().and_then(Verdict::culprit) {
            Some(culprit) if culprit != rank => format!(", because of rank {culprit}"),
            Some(_) if was_killed && matches!(verdict, Some(Verdict::Stopped { .. })) => {
                " by its peers, since it was stopped and must not write into their memory later"
                    .into()
            }
            _ => String::new(),
        };
        let how = process::describe(status);
        report(&format!("rank {rank} (process {pid}) failed first: {how}{why}"));
    }

    /// The first signal is for the ranks to deal with; the second one ends them.
    fn on_signal(&mut self, signal: Signal) {
        if self.passed_on.is_some() {
            report(&format!("{signal} again: killing all ranks"));
            self.kill();
        } else {
            self.passed_on = Some(signal);
            self.signal_running(signal);
        }
    }

    fn on_time(&mut self, now: Instant) {
        if self.deadline().is_none_or(|until| now < until) {
            return;
        }
        match self.stage {
            Stage::Grace { until } => {
                if self.first_failure.is_none() {
                    self.name(self.witness);
                }
                self.report_running("sending SIGTERM");
                self.signal_running(Signal::SIGTERM);
                self.stage = Stage::Asked { until: until + self.grace };
            }
            Stage::Asked { .. } => {
                self.report_running("sending SIGKILL");
                self.kill();
            }
            Stage::Running | Stage::Killed => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Grace { until } | Stage::Asked { until } => Some(until),
            Stage::Running | Stage::Killed => None,
        }
    }

    fn kill(&mut self) {
        self.signal_running(Signal::SIGKILL);
        self.stage = Stage::Killed;
    }

    fn signal_running(&self, signal: Signal) {
        self.running().for_each(|process| process.signal(signal));
    }

    fn report_running(&self, what: &str) {
        let names: Vec<String> = self.running().map(|process| process.rank.to_string()).collect();
        if !names.is_empty() {
            let seconds = self.grace.as_secs_f64();
            let names = names.join(", ");
            report(&format!("still running {seconds} s later: rank {names}: {what}"));
        }
    }

    fn running(&self) -> impl Iterator<Item = &RankProcess> {
        self.ranks
            .iter()
            .filter(|rank| matches!(rank.state, State::Running))
            .map(|rank| &rank.process)
    }
}
