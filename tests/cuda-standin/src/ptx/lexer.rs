//! Cuts PTX text into words, strings and punctuation marks.

use super::ParseError;

/// A piece of the text and the line it stands on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    /// A word (`ld.global.u32`, `%r1`, `0f3F800000`), a string with its quotes, or one mark.
    pub text: &'a str,
    /// Counted from 1.
    pub line: usize,
}

/// The error about something on `line` of `source`.
pub(super) fn error(source: &str, line: usize, what: impl Into<String>) -> ParseError {
    let text = source.lines().nth(line.saturating_sub(1)).unwrap_or("").trim().to_string();
    ParseError { line, text, what: what.into() }
}

/// All tokens of the text, comments left out.
pub(super) fn tokens(source: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = source.as_bytes();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let rest = &source[at..];
        let len = match bytes[at] {
            b'\n' => {
                line += 1;
                1
            }
            // Drivers accept a text with its final zero.
            0 | b' ' | b'\t' | b'\r' => 1,
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => {
                let end =
                    rest.find("*/").ok_or_else(|| error(source, line, "comment has no end"))?;
                line += rest[..end].matches('\n').count();
                end + 2
            }
            b'"' => {
                let end = rest[1..].find(['"', '\n']).filter(|end| bytes[at + 1 + end] == b'"');
                let end = end.ok_or_else(|| error(source, line, "string has no end"))?;
                tokens.push(Token { text: &rest[..end + 2], line });
                end + 2
            }
            first if is_word(first) => {
                let len = word_len(rest.as_bytes());
                tokens.push(Token { text: &rest[..len], line });
                len
            }
            b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b',' | b';' | b':' | b'+'
            | b'-' | b'=' | b'|' | b'!' | b'@' => {
                tokens.push(Token { text: &rest[..1], line });
                1
            }
            _ => {
                let mark = rest.chars().next().unwrap_or(' ');
                return Err(error(source, line, format!("the character {mark:?} has no meaning")));
            }
        };
        at += len;
    }
    Ok(tokens)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Modifiers such as `.L1::no_allocate` hold colons; a label is followed by one.
fn word_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    while len < bytes.len() {
        if is_word(bytes[len]) {
            len += 1;
        } else if bytes[len..].starts_with(b"::") && len + 2 < bytes.len() {
            len += 2;
        } else {
            break;
        }
    }
    len
}
