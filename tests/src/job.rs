//! Jobs whose ranks are processes: starts them, listens to what they say, and ends them all.
//!
//! A rank is the program `ringtree-test-rank` with a script as its arguments. It prints one line an
//! event: the time, a word, and what else there is to say. Every wait here has a deadline, and a
//! test that waits in vain shows everything that was said.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};
use ringtree::control::ControlService;
use ringtree_transport::rendezvous::{self, Server};
use ringtree_transport::secure::{Job as Identity, Secret};

use crate::clock::monotonic_ns;

/// How long anything may take before a test fails: long, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Name and secret of every job here.
pub const JOB: &str = "processes";
/// See [`JOB`].
pub const SECRET: &str = "a secret of the tests";

/// Where the rendezvous and the arbiter are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// In the test's process, as with a launcher.
    Launcher,
    /// In the process of rank 0.
    RankZero,
}

/// What the ranks of a job have in common.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Path of `ringtree-test-rank`, which cargo tells the tests and not this library.
    pub program: &'static str,
    /// How many there are.
    pub ranks: u32,
    /// Value of `RINGTREE_TRANSPORT`.
    pub transport: &'static str,
    /// Who hosts the rendezvous.
    pub host: Host,
    /// Value of `RINGTREE_TIMEOUT`.
    pub timeout_s: f64,
}

impl Setup {
    /// `ranks` ranks over `transport`, hosted by the launcher, with the default timeout.
    pub fn new(program: &'static str, ranks: u32, transport: &'static str) -> Setup {
        Setup { program, ranks, transport, host: Host::Launcher, timeout_s: 60.0 }
    }

    /// The same with another timeout.
    pub fn timeout_s(self, timeout_s: f64) -> Setup {
        Setup { timeout_s, ..self }
    }

    /// The same with another host.
    pub fn host(self, host: Host) -> Setup {
        Setup { host, ..self }
    }
}

/// One thing that a rank said.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, on [`monotonic_ns`]'s clock.
    pub at_ns: u64,
    /// The first word: what happened.
    pub word: String,
    /// Everything behind it.
    pub rest: String,
}

impl Event {
    /// The field behind the word, counted from 0.
    pub fn field(&self, index: usize) -> &str {
        self.rest.split(' ').nth(index).unwrap_or_default()
    }

    /// The number in a field.
    pub fn number(&self, index: usize) -> f64 {
        self.field(index).parse().unwrap_or_else(|_| panic!("no number {index} in {self}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.word, self.rest)
    }
}

/// A job under way. Dropping it kills and reaps what is left of it.
pub struct Job {
    members: Vec<Member>,
    heard: Receiver<(usize, Option<Event>)>,
    say: Sender<(usize, Option<Event>)>,
    log: Vec<(usize, Event)>,
    setup: Setup,
    rendezvous: String,
    /// Where the launcher hosts. The server goes first, as its callback uses the service.
    hosted: Option<(Server, Arc<ControlService>)>,
}

/// One process.
struct Member {
    child: Child,
    events: VecDeque<Event>,
    /// It has said its last word.
    silent: bool,
}

impl Job {
    /// A job without ranks: its rendezvous is there, if the launcher hosts it.
    pub fn empty(setup: &Setup) -> Job {
        let hosted = (setup.host == Host::Launcher).then(host);
        let rendezvous = match &hosted {
            Some((server, _)) => server.address().to_string(),
            None => free_address(),
        };
        let (say, heard) = channel();
        let setup = setup.clone();
        Job { members: vec![], heard, say, log: vec![], setup, rendezvous, hosted }
    }

    /// Starts all ranks, each with its script.
    pub fn start(setup: &Setup, script: impl Fn(u32) -> String) -> Job {
        let mut job = Job::empty(setup);
        for rank in 0..setup.ranks {
            job.add(rank, &script(rank), &[]);
        }
        job
    }

    /// Starts one more process as `rank`, with some variables set differently (empty: as if not
    /// set). Returns its number, which is the rank if they are added in order. The steps of a
    /// script are separated by semicolons.
    pub fn add(&mut self, rank: u32, script: &str, environment: &[(&str, &str)]) -> usize {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = Command::new(self.setup.program);
        command.args(script.split(';').map(str::trim));
        let ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"RINGTREE_");
        for name in std::env::vars_os().map(|(name, _)| name).filter(ours) {
            command.env_remove(name);
        }
        command
            .env("RINGTREE_RANK", rank.to_string())
            .env("RINGTREE_RANKS", self.setup.ranks.to_string())
            .env("RINGTREE_RENDEZVOUS", &self.rendezvous)
            .env("RINGTREE_JOB", JOB)
            .env("RINGTREE_SECRET", SECRET)
            .env("RINGTREE_TRANSPORT", self.setup.transport)
            .env("RINGTREE_TIMEOUT", self.setup.timeout_s.to_string())
            // What a user of this machine keeps changes no test.
            .env("RINGTREE_TUNING", "off")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("a descriptor"))
            .stderr(writer);
        let parent = getpid();
        // SAFETY: the closure runs between fork and exec and only makes system calls.
        unsafe { command.pre_exec(move || end_with(parent)) };
        let child = command.spawn().expect("the rank's program starts");
        let number = self.members.len();
        let say = self.say.clone();
        std::thread::spawn(move || listen(number, reader, &say));
        self.members.push(Member { child, events: VecDeque::new(), silent: false });
        number
    }

    /// Ends the rendezvous and the arbiter in good order, where the launcher hosts them.
    pub fn end_hosting(&mut self) {
        self.hosted = None;
    }

    /// Where the ranks meet.
    pub fn rendezvous(&self) -> SocketAddr {
        self.rendezvous.parse().expect("an address")
    }

    /// The process number of a member.
    pub fn pid(&self, member: usize) -> u32 {
        self.members[member].child.id()
    }

    /// The next event of a member with this word; others before it are skipped.
    #[track_caller]
    pub fn expect(&mut self, member: usize, word: &str) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(event) = self.members[member].events.pop_front() {
                if event.word == word {
                    return event;
                }
            }
            if self.members[member].silent || !self.hear(deadline) {
                panic!("member {member} did not say \"{word}\":\n{self}");
            }
        }
    }

    /// The next event with this word of each of `members`.
    #[track_caller]
    pub fn expect_all(
        &mut self,
        members: impl IntoIterator<Item = usize>,
        word: &str,
    ) -> Vec<Event> {
        members.into_iter().map(|member| self.expect(member, word)).collect()
    }

    /// Everything that a member has said so far and ever will, once it has ended, and how it ended.
    #[track_caller]
    pub fn end(&mut self, member: usize) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while !self.members[member].silent {
            assert!(self.hear(deadline), "member {member} does not end:\n{self}");
        }
        self.members[member].child.wait().expect("it can be reaped")
    }

    /// Waits until one of two members has ended, and says which.
    #[track_caller]
    pub fn first_to_end(&mut self, members: [usize; 2]) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(member) = members.into_iter().find(|m| self.members[*m].silent) {
                return member;
            }
            assert!(self.hear(deadline), "neither of {members:?} ends:\n{self}");
        }
    }

    /// Lets a member that waits go on.
    pub fn go_on(&mut self, member: usize) {
        self.tell(member, "");
    }

    /// Writes a line to a member's standard input.
    pub fn tell(&mut self, member: usize, line: &str) {
        let stdin = self.members[member].child.stdin.as_mut().expect("a pipe that has not ended");
        // Whoever has ended needs to hear nothing.
        let _ = stdin.write_all(format!("{line}\n").as_bytes());
    }

    /// Ends a member's standard input.
    pub fn end_input(&mut self, member: usize) {
        self.members[member].child.stdin = None;
    }

    /// Sends a signal to a member's process; returns when.
    pub fn signal(&self, member: usize, signal: Signal) -> u64 {
        let at_ns = monotonic_ns();
        let pid = Pid::from_raw(self.pid(member) as i32);
        kill(pid, signal).expect("the process is there until it is reaped");
        at_ns
    }

    /// Numbers of all members but one.
    pub fn others(&self, member: usize) -> Vec<usize> {
        (0..self.members.len()).filter(|other| *other != member).collect()
    }

    /// Takes in one event; false where none came in time.
    fn hear(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.heard.recv_timeout(left) {
            Ok((member, Some(event))) => {
                self.log.push((member, event.clone()));
                self.members[member].events.push_back(event);
                true
            }
            Ok((member, None)) => {
                self.members[member].silent = true;
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let began_ns = self.log.first().map_or(0, |(_, event)| event.at_ns);
        for (member, event) in &self.log {
            let at_ms = event.at_ns.saturating_sub(began_ns) as f64 / 1e6;
            writeln!(f, "{at_ms:10.3} ms  [{member}] {event}")?;
        }
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have ended already.
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

/// The rendezvous and the arbiter in this process, as a launcher has them.
fn host() -> (Server, Arc<ControlService>) {
    let service = Arc::new(ControlService::new(None).expect("a service"));
    let serve = service.clone();
    let listener = rendezvous::listen("127.0.0.1:0").expect("a port");
    let on_control = move |stream, hello| serve.serve(stream, hello);
    let server = Server::start(listener, identity(), on_control).expect("a server");
    service.meet_in(server.store());
    (server, service)
}

/// What every connection of a job proves.
pub fn identity() -> Identity {
    Identity { name: JOB.into(), secret: Secret::from_text(SECRET) }
}

/// A loopback address that no other job has, for a rendezvous that a rank will serve. Nobody looks
/// whether its port is free: whatever looks (or a child that is forked meanwhile) may still hold it
/// when the rank begins to listen.
pub fn free_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let pid = std::process::id();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{number}:29400", 1 + pid / 256 % 254, pid % 256)
}

/// In the new process: ends with the thread that started it.
fn end_with(parent: Pid) -> std::io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before it could be watched.
    if getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
}

/// Passes on what a member says, until it ends.
fn listen(member: usize, stream: impl Read, say: &Sender<(usize, Option<Event>)>) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        // Nobody listens any more if this fails.
        let _ = say.send((member, Some(parse(&line))));
    }
    let _ = say.send((member, None));
}

/// An event, or a line of something else: a panic's message, or a warning.
fn parse(line: &str) -> Event {
    let mut parts = line.splitn(3, ' ');
    let at_ns = parts.next().and_then(|time| time.parse().ok());
    match (at_ns, parts.next()) {
        (Some(at_ns), Some(word)) => {
            let rest = parts.next().unwrap_or_default().to_string();
            Event { at_ns, word: word.to_string(), rest }
        }
        _ => Event { at_ns: monotonic_ns(), word: "output".into(), rest: line.to_string() },
    }
}
