//! Watches the ranks of one host, or the launchers of several, from start to end: passes signals on,
//! notices who failed first, and ends the others; or starts ranks again.

mod replacing;

use std::fs::File;
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

use super::member::{Member, Role};
use super::ranks::Ranks;
use super::relay::{Feed, Stream};
use super::service::Service;
use super::{END_LIMIT, process, remote, report};
use replacing::Replacing;

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everyone has ended; this is the status to pass on: that of the first one that failed, or 0.
    Ended(u8),
    /// The process that watches the launcher was killed, or the launcher that started it.
    Abandoned,
}

/// What is done about those that still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// None has failed.
    Running,
    /// One has failed. The others learn that from the library and may still end by themselves.
    Grace { until: Instant },
    /// They were asked to end.
    Asked { until: Instant },
    /// They were killed: other hosts were told to.
    Killed { until: Instant },
    /// What still connects to other hosts was killed, too.
    GivenUp,
}

/// Token of the signal descriptor; members are named by their place.
const SIGNALS: u64 = u64::MAX;
/// Token of the guardian's descriptor.
const GUARDIAN: u64 = u64::MAX - 1;
/// Token of the descriptor on which another launcher sends signals.
const LAUNCHER: u64 = u64::MAX - 2;

/// The ranks of one host, or the launchers of several.
pub struct Supervisor<'a> {
    epoll: Epoll,
    signals: &'a SignalFd,
    service: &'a Service,
    /// The launcher that started this one, if one did.
    launcher: Option<File>,
    /// Takes what the members print.
    feed: Feed,
    members: Vec<Watched>,
    /// If ranks that die do not end the job.
    replacing: Option<Replacing>,
    grace: Duration,
    stage: Stage,
    passed_on: Option<Signal>,
    first_failure: Option<ExitStatus>,
    /// The first one that failed because of a rank that still runs.
    witness: Option<Failed>,
}

/// A member that failed, by its place.
#[derive(Clone, Copy)]
struct Failed {
    index: usize,
    status: ExitStatus,
}

struct Watched {
    member: Member,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Running,
    Reaped(ExitStatus),
    Ended(ExitStatus),
}

impl<'a> Supervisor<'a> {
    /// A supervisor of nobody yet. Once one has failed, the others get `grace` to end by
    /// themselves, and as much again after they were asked to. `guardian` becomes readable when the
    /// process that watches this one has ended. On `launcher`, the launcher that started this one
    /// sends signals, until it is gone. What the ranks know of each other, `service` knows; what
    /// they print goes to `feed`.
    pub fn new(
        signals: &'a SignalFd,
        service: &'a Service,
        guardian: &OwnedFd,
        launcher: Option<File>,
        feed: Feed,
        grace: Duration,
    ) -> io::Result<Supervisor<'a>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        epoll.add(guardian, EpollEvent::new(EpollFlags::EPOLLIN, GUARDIAN))?;
        if let Some(launcher) = &launcher {
            epoll.add(launcher, EpollEvent::new(EpollFlags::EPOLLIN, LAUNCHER))?;
        }
        Ok(Supervisor {
            epoll,
            signals,
            service,
            launcher,
            feed,
            members: Vec::new(),
            replacing: None,
            grace,
            stage: Stage::Running,
            passed_on: None,
            first_failure: None,
            witness: None,
        })
    }

    /// Takes charge of a member, and of what it prints. To be called before the next one is started:
    /// ends are reported in the order in which they happen, for those that are watched by then.
    pub fn watch(&mut self, member: Member, streams: Vec<Stream>) -> io::Result<()> {
        self.listen_to(&member, self.members.len(), streams)?;
        self.members.push(Watched { member, state: State::Running });
        Ok(())
    }

    /// Has the watched ranks started again by `ranks` when they die, or goes on without them, if
    /// those have limits that say so.
    pub fn replace_by(&mut self, ranks: Ranks) {
        self.replacing = ranks.limits().map(|limits| Replacing::new(ranks, limits));
    }

    /// Waits until everyone has ended.
    pub fn run(mut self) -> io::Result<Outcome> {
        let mut events = [EpollEvent::empty(); 64];
        while self.has_more_to_come() {
            let next_start = self.replacing.as_ref().and_then(|it| it.next_start);
            let until = [self.deadline(), next_start].into_iter().flatten().min();
            let limit = until.map(|until| until.saturating_duration_since(Instant::now()));
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
                    LAUNCHER => {
                        let sent = self.launcher.as_mut().map(remote::signals_from);
                        let Some(signals) = sent.transpose()?.flatten() else {
                            return Ok(Outcome::Abandoned);
                        };
                        signals.into_iter().for_each(|signal| self.on_sent(signal));
                    }
                    index => self.on_end(index as usize)?,
                }
            }
            self.on_time(Instant::now());
            self.follow_decisions()?;
        }
        Ok(Outcome::Ended(self.first_failure.map_or(0, process::exit_code)))
    }

    fn has_more_to_come(&self) -> bool {
        self.members.iter().any(|watched| !matches!(watched.state, State::Ended(_)))
            || self.replacing.as_ref().is_some_and(|it| it.next_start.is_some())
    }

    /// Has the end of the member at `index` reported, and what it prints passed on.
    fn listen_to(&mut self, member: &Member, index: usize, streams: Vec<Stream>) -> io::Result<()> {
        self.feed.add(streams)?;
        Ok(self.epoll.add(&member.end, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?)
    }

    /// Keeps the status of a member until its turn; an orphan that ended here is of no interest.
    fn on_reaped(&mut self, pid: Pid, status: ExitStatus) {
        self.service.process_ended(pid.as_raw() as u32);
        let found = self
            .members
            .iter_mut()
            .find(|watched| watched.member.pid == pid && matches!(watched.state, State::Running));
        if let Some(watched) = found {
            watched.state = State::Reaped(status);
        }
    }

    fn on_end(&mut self, index: usize) -> io::Result<()> {
        let watched = &mut self.members[index];
        let State::Reaped(status) = watched.state else { return Ok(()) };
        watched.state = State::Ended(status);
        self.epoll.delete(&watched.member.end)?;
        let ended = Failed { index, status };
        if self.first_failure.is_some() {
            return Ok(());
        }
        if matches!(self.stage, Stage::Killed { .. } | Stage::GivenUp) {
            // Whoever had it killed has said why.
            self.first_failure = (!status.success()).then_some(status);
            return Ok(());
        }
        if self.members[index].member.ended_by(Signal::SIGPIPE, status) {
            // Nobody reads what it prints: everyone ends, and nobody needs to be told.
            self.first_failure = Some(status);
            self.kill();
            return Ok(());
        }
        if let Some(signal) = self.passed_on.filter(|_| !status.success()) {
            self.first_failure = Some(status);
            let member = &self.members[index].member;
            let (name, how) = (member.name(), member.describe(status));
            report(&format!("ended by {signal}: {name}: {how}"));
        } else if self.replacing.is_some() {
            return self.on_rank_end(index, status);
        } else {
            self.look_for_the_first(ended);
        }
        if !status.success() && self.stage == Stage::Running {
            self.stage = Stage::Grace { until: Instant::now() + self.grace };
        }
        Ok(())
    }

    /// Names the one that failed first. That is the one that the ranks' verdict is about, if it is
    /// here and fails, too: they learn of its failure while it may not even have ended.
    fn look_for_the_first(&mut self, ended: Failed) {
        let culprit = self.service.verdict().as_ref().and_then(Verdict::culprit);
        let at = culprit.and_then(|rank| self.members.iter().position(|w| w.member.has(rank)));
        let still_runs = at.is_some_and(|at| !matches!(self.members[at].state, State::Ended(_)));
        let failed = (!ended.status.success()).then_some(ended);
        if still_runs {
            self.witness = self.witness.or(failed);
        } else if at == Some(ended.index) {
            self.name(failed.or(self.witness));
        } else {
            self.name(self.witness.or(failed));
        }
    }

    fn name(&mut self, first: Option<Failed>) {
        let Some(Failed { index, status }) = first else { return };
        self.first_failure = Some(status);
        let member = &self.members[index].member;
        let verdict = self.service.verdict();
        let was_killed = status.signal() == Some(Signal::SIGKILL as i32);
        let why = match verdict.as_ref().and_then(Verdict::culprit) {
            Some(culprit) if !member.has(culprit) => format!(", because of rank {culprit}"),
            Some(_) if was_killed && matches!(verdict, Some(Verdict::Stopped { .. })) => {
                " by its peers, since it was stopped and must not write into their memory later"
                    .into()
            }
            _ => String::new(),
        };
        let who = match &member.role {
            Role::Rank(rank) => format!("rank {rank} (process {})", member.pid),
            Role::Host { .. } => member.name(),
        };
        report(&format!("{who} failed first: {}{why}", member.describe(status)));
    }

    /// The first signal is for the ranks to deal with; the second one ends them.
    fn on_signal(&mut self, signal: Signal) {
        if self.passed_on.is_some() {
            report(&format!("{signal} again: killing all ranks"));
            self.kill();
        } else {
            self.passed_on = Some(signal);
            self.stop_replacing(signal);
            self.signal_running(signal);
        }
    }

    /// What another launcher sends has been decided there.
    fn on_sent(&mut self, signal: Signal) {
        self.passed_on.get_or_insert(signal);
        self.stop_replacing(signal);
        match signal {
            Signal::SIGKILL => self.kill(),
            _ => self.signal_running(signal),
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
            Stage::Killed { .. } => {
                self.running().for_each(|member| member.signal_here(Signal::SIGKILL));
                self.stage = Stage::GivenUp;
            }
            Stage::Running | Stage::GivenUp => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Grace { until } | Stage::Asked { until } | Stage::Killed { until } => {
                Some(until)
            }
            Stage::Running | Stage::GivenUp => None,
        }
    }

    fn kill(&mut self) {
        self.replacing = None;
        self.signal_running(Signal::SIGKILL);
        self.stage = Stage::Killed { until: Instant::now() + END_LIMIT };
    }

    fn signal_running(&self, signal: Signal) {
        self.running().for_each(|member| member.signal(signal));
    }

    fn report_running(&self, what: &str) {
        let (kinds, names): (Vec<_>, Vec<_>) = self.running().map(Member::words).unzip();
        // All are of one kind.
        if let Some(kind) = kinds.first() {
            let seconds = self.grace.as_secs_f64();
            let names = names.join(", ");
            report(&format!("still running {seconds} s later: {kind} {names}: {what}"));
        }
    }

    fn running(&self) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(|watched| matches!(watched.state, State::Running))
            .map(|watched| &watched.member)
    }
}
