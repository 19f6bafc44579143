//! Passes on what the ranks print, each line with the rank in front: `[2] text`. What the launcher
//! of another host prints has that already.
//!
//! Lines stay whole: what several ranks print at once never mixes within a line. Bytes are passed
//! on as they are, whatever their encoding.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::mem::replace;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::report;

/// What is read at once from one rank.
const READ_BYTES: usize = 64 << 10;

/// A longer line is broken here, so that a rank that never ends its line takes no more memory.
const LINE_LIMIT_BYTES: usize = 1 << 20;

/// Where lines go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The launcher's standard output.
    Stdout,
    /// The launcher's standard error.
    Stderr,
}

/// One stream of one rank, or of another launcher.
pub struct Stream {
    source: File,
    target: Target,
    lines: Prefixer,
}

impl Stream {
    /// What is written into `source`'s other end goes to `target`, with `prefix` before each line.
    pub fn new(prefix: &str, source: OwnedFd, target: Target) -> Stream {
        Stream { source: File::from(source), target, lines: Prefixer::new(prefix) }
    }
}

/// The way to the thread that passes streams on. Once it is dropped, no more streams come.
pub struct Feed {
    streams: Sender<Vec<Stream>>,
    /// One byte for each message.
    calls: PipeWriter,
}

impl Feed {
    /// Has these streams passed on, too.
    ///
    /// # Errors
    /// The thread has ended before its time.
    pub fn add(&mut self, streams: Vec<Stream>) -> io::Result<()> {
        self.streams.send(streams).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.calls.write_all(&[1])
    }
}

/// Starts a thread that passes streams on. The returned pipe reaches its end when no more come, all
/// of them have reached theirs and everything is written; there is a byte in it if something could
/// not be.
pub fn start() -> io::Result<(Feed, PipeReader)> {
    let (done, writer) = io::pipe()?;
    let (calls, caller) = io::pipe()?;
    let (sender, streams) = channel();
    thread::Builder::new().name("output".into()).spawn(move || {
        let mut closed_at_the_end = writer;
        let mut is_told = false;
        pass_on(Later { streams, calls }, |error| {
            if replace(&mut is_told, true) {
                return;
            }
            report(&format!("cannot pass on what the ranks print: {error}"));
            // The reader has gone if this fails.
            let _ = closed_at_the_end.write_all(&[1]);
        });
    })?;
    Ok((Feed { streams: sender, calls: caller }, done))
}

/// The other end of a [`Feed`].
struct Later {
    streams: Receiver<Vec<Stream>>,
    calls: PipeReader,
}

impl Later {
    /// What has come after a call; `None` when no more comes.
    fn take(&mut self) -> Option<Vec<Stream>> {
        match self.calls.read(&mut [0]) {
            Ok(0) => None,
            Ok(_) => Some(self.streams.try_recv().unwrap_or_default()),
            Err(error) => (error.kind() == io::ErrorKind::Interrupted).then(Vec::new),
        }
    }
}

/// `fail` hears of what could not be written, but for that nobody reads it any more.
fn pass_on(later: Later, mut fail: impl FnMut(&io::Error)) {
    let mut later = Some(later);
    let mut streams: Vec<Stream> = Vec::new();
    let mut bytes = vec![0; READ_BYTES];
    while later.is_some() || !streams.is_empty() {
        let mut ready = wait_for_any(&streams, later.as_ref()).into_iter();
        streams.retain_mut(|stream| {
            let is_ready = ready.next().unwrap_or(false);
            !is_ready || pass_on_some(stream, &mut bytes, &mut fail)
        });
        if ready.next().unwrap_or(false) {
            match later.as_mut().and_then(Later::take) {
                Some(more) => streams.extend(more),
                None => later = None,
            }
        }
    }
}

/// Which streams can be read (or have ended), and behind them whether there is a call for later ones.
fn wait_for_any(streams: &[Stream], later: Option<&Later>) -> Vec<bool> {
    let mut fds: Vec<PollFd> = streams
        .iter()
        .map(|stream| stream.source.as_fd())
        .chain(later.map(|later| later.calls.as_fd()))
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => fds.iter().map(|fd| fd.any() != Some(false)).collect(),
        Err(Errno::EINTR) => vec![false; fds.len()],
        // Reading then blocks for want of anything better, and says what is wrong.
        Err(_) => vec![true; fds.len()],
    }
}

/// Reads once and writes what became whole. Returns whether the stream goes on: it does not at its
/// end, nor when nobody takes the output any more. Dropping it then tells the rank, as a closed
/// pipe would.
fn pass_on_some(stream: &mut Stream, bytes: &mut [u8], fail: &mut impl FnMut(&io::Error)) -> bool {
    let mut out = Vec::new();
    let goes_on = match stream.source.read(bytes) {
        Ok(0) => {
            stream.lines.finish(&mut out);
            false
        }
        Ok(count) => {
            stream.lines.push(&bytes[..count], &mut out);
            true
        }
        Err(error) => error.kind() == io::ErrorKind::Interrupted,
    };
    match write_out(stream.target, &out) {
        Ok(()) => goes_on,
        Err(error) => {
            if error.kind() != io::ErrorKind::BrokenPipe {
                fail(&error);
            }
            false
        }
    }
}

fn write_out(target: Target, bytes: &[u8]) -> io::Result<()> {
    match target {
        Target::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        }
        Target::Stderr => io::stderr().lock().write_all(bytes),
    }
}

/// Cuts a stream of bytes into lines and puts a prefix in front of each.
struct Prefixer {
    prefix: Vec<u8>,
    partial: Vec<u8>,
}

impl Prefixer {
    fn new(prefix: &str) -> Prefixer {
        Prefixer { prefix: prefix.into(), partial: Vec::new() }
    }

    /// Takes bytes, and appends the lines that they complete to `out`.
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LINE_LIMIT_BYTES {
                self.finish(out);
            }
        }
    }

    /// Appends what is there of an unfinished line, and ends it.
    fn finish(&mut self, out: &mut Vec<u8>) {
        if self.partial.is_empty() {
            return;
        }
        out.extend_from_slice(&self.prefix);
        out.append(&mut self.partial);
        if !out.ends_with(b"\n") {
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixed(pieces: &[&[u8]]) -> Vec<u8> {
        let mut lines = Prefixer::new("[2] ");
        let mut out = Vec::new();
        for piece in pieces {
            lines.push(piece, &mut out);
        }
        lines.finish(&mut out);
        out
    }

    #[test]
    fn lines_stay_whole_however_they_arrive() {
        assert_eq!(prefixed(&[b"a", b"b\nc", b"d\n"]), b"[2] ab\n[2] cd\n");
    }

    #[test]
    fn an_unfinished_last_line_is_ended() {
        assert_eq!(prefixed(&[b"one\ntwo"]), b"[2] one\n[2] two\n");
    }

    #[test]
    fn empty_lines_and_any_bytes_pass() {
        assert_eq!(prefixed(&[b"\n\xff\x00\xfe\n"]), b"[2] \n[2] \xff\x00\xfe\n");
        assert_eq!(prefixed(&[]), b"");
    }

    #[test]
    fn an_endless_line_is_broken() {
        let long = vec![b'x'; LINE_LIMIT_BYTES / 2];
        let out = prefixed(&[&long, &long, &long]);
        let lines: Vec<&[u8]> = out.split(|&byte| byte == b'\n').collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].len(), LINE_LIMIT_BYTES + 4);
        assert_eq!(lines[1].len(), LINE_LIMIT_BYTES / 2 + 4);
    }
}
