//! A stand-in for ssh, and for the servers of the hosts that it connects to.
//!
//! The program that stands in is a shell script. As ssh does, it only carries standard input, output
//! and errors to and from a process that somebody else starts, here a thread of the test, and ends
//! with that one's status. So that process is no descendant of whoever called the script: it learns
//! of the caller's end by the end of its input, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// What ssh itself ends with where it cannot connect.
const NOT_CONNECTED: i32 = 255;

/// `ssh HOST LINE`: a folder with a pipe for each direction goes to the test's thread.
const SCRIPT: &str = r#"#!/bin/sh
call=$(mktemp -d "${0%/*}/call-XXXXXX")
mkfifo "$call/in" "$call/out" "$call/err" "$call/status"
printf %s "$1" >"$call/host"
printf %s "$2" >"$call/line"
exec 3<&0
cat <&3 >"$call/in" & cat "$call/out" & out=$!
cat "$call/err" >&2 & err=$!
echo "$call" >"${0%/*}/calls"
read status <"$call/status"
wait $out $err
exit $status
"#;

/// The hosts that a stand-in reaches. Dropping it removes the stand-in.
#[derive(Debug)]
pub struct Ssh {
    folder: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Ssh {
    /// Hosts that run a line of shell by the command that `shell_of` returns for them, to which
    /// `-c LINE` is added; `None`: no such host. `name` is that of the test.
    pub fn new(name: &str, shell_of: impl Fn(&str) -> Option<Command> + Send + 'static) -> Ssh {
        let folder = std::env::temp_dir().join(format!("ringtree-{name}-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        let program = folder.join("ssh");
        fs::write(&program, SCRIPT).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
        let calls = folder.join("calls");
        mkfifo(&calls, Mode::S_IRWXU).expect("a pipe");
        // For writing as well, so that it does not end between two calls.
        let calls = OpenOptions::new().read(true).write(true).open(calls).expect("a pipe");
        let server = thread::spawn(move || {
            for call in BufReader::new(calls).lines().map_while(Result::ok) {
                if call.is_empty() {
                    break;
                }
                answer(Path::new(&call), &shell_of);
            }
        });
        Ssh { folder, server: Some(server) }
    }

    /// The program that stands in for ssh.
    pub fn program(&self) -> String {
        self.folder.join("ssh").display().to_string()
    }

    /// A path in a folder that goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let mut calls = OpenOptions::new().write(true).open(self.folder.join("calls"));
        let told = calls.as_mut().map(|calls| calls.write_all(b"\n"));
        if let (Ok(_), Some(server)) = (told, self.server.take()) {
            let _ = server.join();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn answer(call: &Path, shell_of: &impl Fn(&str) -> Option<Command>) {
    let read = |name| fs::read_to_string(call.join(name)).expect("what the stand-in wrote");
    let writer = |name| OpenOptions::new().write(true).open(call.join(name)).expect("a pipe");
    let (host, line) = (read("host"), read("line"));
    let input = File::open(call.join("in")).expect("a pipe");
    let (output, mut errors) = (writer("out"), writer("err"));
    let Some(mut shell) = shell_of(&host) else {
        let _ = writeln!(errors, "ssh: connect to host {host} port 22: No route to host");
        drop((output, errors));
        end(call.into(), NOT_CONNECTED);
        return;
    };
    shell.args(["-c", &line]).stdin(input).stdout(output).stderr(errors);
    let mut child = shell.spawn().expect("a shell");
    drop(shell);
    let call = call.to_owned();
    thread::spawn(move || {
        let status = child.wait().expect("a child");
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        end(call, code.unwrap_or(NOT_CONNECTED));
    });
}

/// Tells the stand-in the status, if it still runs: otherwise this waits in vain, on a thread.
fn end(call: PathBuf, status: i32) {
    thread::spawn(move || {
        let told = OpenOptions::new().write(true).open(call.join("status"));
        let _ = told.and_then(|mut told| writeln!(told, "{status}"));
    });
}
