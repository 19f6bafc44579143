//! Requests and answers of PMI as bytes. In version 1 each is a line, `cmd=get key=k` and its newline;
//! in version 2 it begins with its length in six characters, `    16cmd=kvs-get;key=k;`.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::PmiError;

/// Longest answer. Values are at most some thousand bytes.
const ANSWER_LIMIT_BYTES: usize = 1 << 16;

/// Characters of the length.
const LENGTH_BYTES: usize = 6;

/// How much of an answer that cannot be understood is repeated to the user.
const SHOWN_CHARACTERS: usize = 120;

/// How requests and answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A connection to the launcher, over which one request at a time is answered.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    pub(super) deadline: Instant,
    /// Read, and not yet part of an answer.
    unread: Vec<u8>,
}

/// An answer without its command.
#[derive(Debug)]
pub(super) struct Answer {
    fields: Vec<(String, String)>,
    text: String,
}

impl Answer {
    /// The value of a field.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All of it, for an error.
    pub(super) fn text(&self) -> String {
        self.text.clone()
    }
}

impl Wire {
    pub(super) fn new(stream: UnixStream, deadline: Instant) -> Wire {
        Wire { stream, deadline, unread: Vec::new() }
    }

    /// Asks for something, and returns the answer if it is the one that is expected and no refusal.
    pub(super) fn ask(
        &mut self,
        version: Version,
        request: &'static str,
        fields: &[(&str, &str)],
        expected: &str,
    ) -> Result<Answer, PmiError> {
        let answer = self.exchange(version, request, fields)?;
        if answer.get("cmd") != Some(expected) {
            return Err(PmiError::Unexpected { request, answer: answer.text() });
        }
        match answer.get("rc") {
            None | Some("0") => Ok(answer),
            Some(_) => Err(PmiError::Refused { request, answer: answer.text() }),
        }
    }

    /// Asks for something, and returns whatever is answered.
    pub(super) fn exchange(
        &mut self,
        version: Version,
        request: &'static str,
        fields: &[(&str, &str)],
    ) -> Result<Answer, PmiError> {
        self.send(&encode(version, request, fields), request)?;
        let bytes = match version {
            Version::One => self.line(request)?,
            Version::Two => {
                let length = self.exactly(LENGTH_BYTES, request)?;
                let parsed = str::from_utf8(&length).ok().and_then(|text| text.trim().parse().ok());
                let parsed = parsed.filter(|length| *length <= ANSWER_LIMIT_BYTES);
                let length = parsed.ok_or_else(|| unexpected(request, &length))?;
                self.exactly(length, request)?
            }
        };
        decode(version, &bytes).ok_or_else(|| unexpected(request, &bytes))
    }

    fn send(&mut self, bytes: &[u8], request: &'static str) -> Result<(), PmiError> {
        // A request is far shorter than what the kernel keeps for a socket that is ready.
        self.await_ready(PollFlags::POLLOUT, request)?;
        self.stream.write_all(bytes).map_err(|error| lost(request, error.to_string()))
    }

    /// Bytes up to a newline, which is left out.
    fn line(&mut self, request: &'static str) -> Result<Vec<u8>, PmiError> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let rest = self.unread.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.pop();
                return Ok(line);
            }
            if self.unread.len() > ANSWER_LIMIT_BYTES {
                return Err(unexpected(request, &self.unread));
            }
            self.read_more(request)?;
        }
    }

    fn exactly(&mut self, count: usize, request: &'static str) -> Result<Vec<u8>, PmiError> {
        while self.unread.len() < count {
            self.read_more(request)?;
        }
        let rest = self.unread.split_off(count);
        Ok(std::mem::replace(&mut self.unread, rest))
    }

    fn read_more(&mut self, request: &'static str) -> Result<(), PmiError> {
        self.await_ready(PollFlags::POLLIN, request)?;
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(lost(request, "it closed the connection".into())),
            Ok(count) => {
                self.unread.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(lost(request, error.to_string())),
        }
    }

    /// The socket's own timeouts would hold for the launcher's end of it too.
    fn await_ready(&self, what: PollFlags, request: &'static str) -> Result<(), PmiError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PmiError::TimedOut { request });
            }
            let left_ms = left.as_millis().saturating_add(1).min(60_000) as u16;
            let mut fds = [PollFd::new(self.stream.as_fd(), what)];
            match poll(&mut fds, PollTimeout::from(left_ms)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(lost(request, error.to_string())),
            }
        }
    }
}

fn encode(version: Version, request: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = [("cmd", request)].into_iter().chain(fields.iter().copied());
    match version {
        Version::One => {
            let words: Vec<String> = fields.map(|(key, value)| format!("{key}={value}")).collect();
            format!("{}\n", words.join(" ")).into_bytes()
        }
        Version::Two => {
            let text: String = fields.map(|(key, value)| format!("{key}={value};")).collect();
            format!("{:>LENGTH_BYTES$}{text}", text.len()).into_bytes()
        }
    }
}

fn decode(version: Version, bytes: &[u8]) -> Option<Answer> {
    let text = str::from_utf8(bytes).ok()?;
    let separator = match version {
        Version::One => ' ',
        Version::Two => ';',
    };
    // An error's text may hold separators: what is no field belongs to it.
    let field = |word: &str| {
        let (key, value) = word.split_once('=')?;
        Some((key.to_string(), value.to_string()))
    };
    let fields: Vec<_> = text.split(separator).filter_map(field).collect();
    (!fields.is_empty()).then(|| Answer { fields, text: shown(text) })
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARACTERS).collect::<String>().trim_end().escape_debug().to_string()
}

fn unexpected(request: &'static str, bytes: &[u8]) -> PmiError {
    PmiError::Unexpected { request, answer: shown(&String::from_utf8_lossy(bytes)) }
}

fn lost(request: &'static str, reason: String) -> PmiError {
    PmiError::Lost { request, reason }
}
