//! What a check has found.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Good to know; no harm to the library.
    Note,
    /// It works, and slower than it could.
    Warning,
    /// It does not work.
    Failure,
}

impl Level {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Failure => "failure",
        }
    }
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the check.
    pub check: Cow<'static, str>,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub seen: String,
    /// Why that matters.
    pub why: Cow<'static, str>,
    /// A command that changes it, to be copied.
    pub remedy: Option<String>,
}

impl Finding {
    /// With a command that changes it.
    pub fn remedy(mut self, command: impl Into<String>) -> Finding {
        self.remedy = Some(command.into());
        self
    }
}

/// What is looked at, and why it matters.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name, the same in every release.
    pub name: &'static str,
    /// Why it matters.
    pub why: &'static str,
}

impl Check {
    /// All is as it should be.
    pub fn ok(self, seen: impl Into<String>) -> Finding {
        self.found(Level::Ok, seen)
    }

    /// Something is good to know.
    pub fn note(self, seen: impl Into<String>) -> Finding {
        self.found(Level::Note, seen)
    }

    /// Something costs speed.
    pub fn warning(self, seen: impl Into<String>) -> Finding {
        self.found(Level::Warning, seen)
    }

    /// Something does not work.
    pub fn failure(self, seen: impl Into<String>) -> Finding {
        self.found(Level::Failure, seen)
    }

    /// Something was found.
    pub fn found(self, level: Level, seen: impl Into<String>) -> Finding {
        let Check { name, why } = self;
        Finding { check: name.into(), level, seen: seen.into(), why: why.into(), remedy: None }
    }
}
