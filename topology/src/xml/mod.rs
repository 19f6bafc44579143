//! The XML that NCCL and RCCL read and write (`NCCL_TOPO_FILE`, `NCCL_TOPO_DUMP_FILE`), version 1 and AMD's 2.
//!
//! What those formats have no word for is written as attributes of our own, which NCCL skips: `host` of
//! `system`; `package`, `memory_bytes`, `distances` of `cpu`; `max_link_speed`, `max_link_width` of `pci`;
//! `name`, `memory_bytes` of `gpu`; `state`, `link_layer`, `max_speed`, `driver`, `partner`, `mtu` of `net`.
//! Addresses of ports are not written: they say who a host is and not how it is wired.
//!
//! NCCL takes at most 16 attributes of an element and 255 bytes of a value; what is written keeps to that
//! where the machine does.

mod fields;
mod read;
mod write;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Machine};

/// Longest file; real ones have about 10 KiB.
const MAX_FILE_BYTES: usize = 16 << 20;

/// Most nodes of the parsed document: elements, texts between them and comments.
const MAX_NODES: u32 = 200_000;

/// Deepest nesting; PCIe allows 256 buses, and real machines have up to 10.
const MAX_DEPTH: u32 = 64;

/// Most quotation marks after a `<`: twice the number of attributes, and the parser compares each
/// attribute of an element with all others.
const MAX_QUOTES_IN_TAG: usize = 256;

impl Machine {
    /// Reads a description in the XML of NCCL or RCCL. What is unknown or odd becomes a warning.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`], [`Error::NoXml`] for what is not well-formed, too large, nested too deeply or has a
    /// document type or namespaces, and [`Error::Element`] for an element out of place or a bad value.
    pub fn from_xml(text: &str) -> Result<Machine, Error> {
        check_bounds(text)?;
        let options = roxmltree::ParsingOptions { nodes_limit: MAX_NODES, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(text, options)
            .map_err(|error| no_xml(text, error))?;
        read::machine(&document)
    }

    /// Reads a file as [`from_xml`](Machine::from_xml) does.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], or [`Error::File`] with the path and what `from_xml` says.
    pub fn from_xml_file(path: impl AsRef<Path>) -> Result<Machine, Error> {
        let path = path.as_ref();
        let text = read_text(path)?;
        Machine::from_xml(&text)
            .map_err(|source| Error::File { path: path.into(), source: source.into() })
    }

    /// The description as NCCL reads it; as version 2, AMD's, if there is a GPU of AMD's.
    pub fn to_xml(&self) -> String {
        write::machine(self)
    }
}

/// Not more than the limit is read, whatever the file is.
fn read_text(path: &Path) -> Result<String, Error> {
    let unreadable = |source| Error::Read { path: path.into(), source };
    let wrong = |source| Error::File { path: path.into(), source: Box::new(source) };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(wrong(Error::TooLong { limit_bytes: MAX_FILE_BYTES }));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let (line, column) = position(before);
        let problem = "a byte that is no UTF-8: expected XML in UTF-8".into();
        wrong(Error::NoXml { line, column, problem })
    })
}

/// What would cost the parser more than time in proportion to the length.
fn check_bounds(text: &str) -> Result<(), Error> {
    if text.len() > MAX_FILE_BYTES {
        return Err(Error::TooLong { limit_bytes: MAX_FILE_BYTES });
    }
    let refuse = |offset: usize, problem: &str| {
        let (line, column) = position(&text.as_bytes()[..offset]);
        Err(Error::NoXml { line, column, problem: problem.into() })
    };
    if let Some(offset) = text.find("xmlns") {
        return refuse(offset, "xmlns: descriptions of machines have no namespaces");
    }
    let mut quotes = 0;
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            b'<' => quotes = 0,
            b'"' | b'\'' if quotes == MAX_QUOTES_IN_TAG => {
                return refuse(offset, "expected fewer attributes: no element has more than 16");
            }
            b'"' | b'\'' => quotes += 1,
            _ => {}
        }
    }
    Ok(())
}

fn no_xml(text: &str, error: roxmltree::Error) -> Error {
    use roxmltree::Error::{DtdDetected, NoRootNode, NodesLimitReached, UnclosedRootNode};
    let (before, problem) = match error {
        DtdDetected => (text.split("<!DOCTYPE").next(), "a document type: expected none".into()),
        UnclosedRootNode => (Some(text), "the file ends within an element".into()),
        NoRootNode => (Some(text), "expected <system>".into()),
        NodesLimitReached => (
            None,
            format!("more than {MAX_NODES} elements, texts and comments: machines have hundreds"),
        ),
        _ => {
            // The parser's texts end with the position, which has a place of its own here.
            let text = error.to_string();
            (None, text.rsplit_once(" at ").map_or(text.as_str(), |(problem, _)| problem).into())
        }
    };
    let at = error.pos();
    let (line, column) = before.map_or((at.row, at.col), |before| position(before.as_bytes()));
    Error::NoXml { line, column, problem }
}

/// Line and column, from 1, of what follows these bytes.
fn position(before: &[u8]) -> (u32, u32) {
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    (line as u32, column as u32)
}

#[cfg(test)]
mod tests;
