//! A program under test: what it prints, and its end, each with a deadline.

use std::io::{BufRead, BufReader, PipeReader, pipe};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ringtree_transport::process::PidFd;

/// How long a program may take to say or do what a test waits for. Much longer than any should
/// need, on a busy machine too: it only ends tests that would hang.
const LIMIT: Duration = Duration::from_secs(60);

/// A program that runs; killed if it is dropped before its end.
#[derive(Debug)]
pub struct Program {
    child: Child,
    process: PidFd,
    lines: Receiver<String>,
    said: Vec<String>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// All lines that it printed, errors among them.
    pub lines: Vec<String>,
}

impl Program {
    /// Starts a program with nothing to read.
    pub fn start(mut command: Command) -> Program {
        let (output, input) = pipe().expect("a pipe");
        command.stdin(Stdio::null());
        command.stdout(input.try_clone().expect("a descriptor")).stderr(input);
        let child = command.spawn().expect("the program starts");
        // The command holds the pipe open.
        drop(command);
        // Not reaped yet, so that the number means this process.
        let process = PidFd::open(child.id()).expect("a process");
        Program { child, process, lines: lines_of(output), said: Vec::new() }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that begins so, and returns the rest of it.
    pub fn await_line(&mut self, start: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if let Some(rest) = line.strip_prefix(start) {
                        return rest.trim().to_owned();
                    }
                }
                Err(why) => panic!("no line \"{start}...\" ({why}); it said {:#?}", self.said),
            }
        }
    }

    /// Forgets what it has printed so far.
    pub fn skip_lines(&mut self) {
        self.said.extend(self.lines.try_iter());
    }

    /// Waits for the program's end.
    pub fn await_end(mut self) -> Ended {
        let deadline = Instant::now() + LIMIT;
        let ended = self.process.wait_ended(deadline).expect("a process");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("it does not end ({ended}); it said {:#?}", self.said)
                }
            }
        }
        let status = self.child.wait().expect("a child");
        Ended { status, lines: std::mem::take(&mut self.said) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The rest of the line that begins so.
    pub fn line(&self, start: &str) -> &str {
        let found = self.lines.iter().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("no line \"{start}...\" in {self:#?}")).trim()
    }
}

fn lines_of(output: PipeReader) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
