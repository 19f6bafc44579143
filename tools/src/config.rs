//! `ringtree config`: all settings, what they are here, and who says so.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::process::ExitCode;

use ringtree::{Origins, Setting, Settings, Source};
use serde::Serialize;

use crate::words::{json, say};

/// Names that are less alike than this are not taken for each other.
const LEAST_ALIKE: f64 = 0.9;

/// What every variable of Ringtree begins with.
const PREFIX: &str = "RINGTREE_";

/// Lists all settings: their values here, where each comes from, and what it means
///
/// A value comes from its own variable, from one that the launcher has set (torchrun's MASTER_ADDR),
/// or is the default. A secret is never shown, only whether it is set. Variables that look like
/// settings and are none are pointed out.
///
/// The exit status is 1 where a rank could not be started with these settings.
#[derive(Debug, clap::Args)]
pub struct ConfigArguments {
    /// Print one line of JSON instead
    #[arg(long)]
    json: bool,
}

/// A setting here.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    name: &'static str,
    /// None: it is not set and has no default, or it is a secret.
    value: Option<String>,
    is_secret: bool,
    /// The variable, or `default`; None: it is not set.
    from: Option<&'static str>,
    meaning: &'static str,
}

/// A variable that is no setting.
#[derive(Debug, PartialEq, Serialize)]
struct Stranger {
    name: String,
    /// The setting that was meant, probably.
    nearest: Option<&'static str>,
}

/// Everything that there is to say.
#[derive(Debug, Serialize)]
struct Configuration {
    /// Whose variables say who this rank is.
    launcher: Option<String>,
    settings: Vec<Line>,
    unknown: Vec<Stranger>,
    /// Why a rank could not be started.
    error: Option<String>,
}

/// Prints them.
pub fn run(arguments: &ConfigArguments) -> ExitCode {
    let configuration = Configuration::of(&variables());
    let status = u8::from(configuration.error.is_some());
    match arguments.json {
        true => say(&json(&configuration), status),
        false => say(&configuration.text(), status),
    }
}

/// The environment, as far as it is text.
fn variables() -> HashMap<String, String> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    env::vars_os().filter_map(text).collect()
}

impl Configuration {
    fn of(variables: &HashMap<String, String>) -> Configuration {
        let is_set = |name: &str| variables.get(name).is_some_and(|value| !value.trim().is_empty());
        let (joined, error) = match Settings::with_origins(variables) {
            Ok((settings, _)) if settings.source == Source::Alone => (None, None),
            Ok(joined) => (Some(joined), None),
            Err(error) => (None, Some(error)),
        };
        let settings = Setting::ALL.iter().map(|setting| match &joined {
            _ if is_set(setting.name) => {
                let value = variables[setting.name].trim().to_owned();
                Line::new(setting, Some(value), Some(setting.name))
            }
            Some((joined, origins)) => from_launcher(setting, joined, origins),
            None => Line::default(setting),
        });
        let mut names: Vec<&String> = variables.keys().collect();
        names.sort_unstable();
        Configuration {
            launcher: joined.as_ref().map(|(settings, _)| settings.source.to_string()),
            settings: settings.collect(),
            unknown: names.into_iter().filter_map(|name| stranger(name)).collect(),
            error: error.map(|error| error.to_string()),
        }
    }

    fn text(&self) -> String {
        let mut text = match &self.launcher {
            Some(launcher) => format!("# this rank is told who it is by {launcher}\n"),
            None => "# no launcher has started this process\n".to_owned(),
        };
        let values: Vec<String> = self.settings.iter().map(Line::shown).collect();
        let name_width = self.settings.iter().map(|line| line.name.len()).max().unwrap_or(0);
        let width = values.iter().map(|value| value.chars().count()).max().unwrap_or(0);
        // Writing into a string cannot fail.
        for (line, value) in self.settings.iter().zip(values) {
            let (name, meaning) = (line.name, line.meaning);
            let from = match line.from {
                Some(variable) if variable == name => "environment",
                other => other.unwrap_or("not set"),
            };
            let _ = writeln!(text, "{name:<name_width$} {value:<width$} {from:<19} {meaning}");
        }
        for Stranger { name, nearest } in &self.unknown {
            let meant = nearest.map(|nearest| format!(": did you mean {nearest}?"));
            let _ = writeln!(text, "# {name} is no setting{}", meant.unwrap_or_default());
        }
        if let Some(error) = &self.error {
            let _ = writeln!(text, "# a rank cannot be started so: {error}");
        }
        text
    }
}

/// What the launcher's own variables say where Ringtree's does not.
fn from_launcher(setting: &'static Setting, joined: &Settings, origins: &Origins) -> Line {
    let told = match setting.name {
        "RINGTREE_RANK" => Some((joined.rank.to_string(), origins.rank)),
        "RINGTREE_RANKS" => Some((joined.ranks.to_string(), origins.ranks)),
        "RINGTREE_LOCAL_RANK" => {
            joined.local_rank.map(|rank| (rank.to_string(), origins.local_rank))
        }
        "RINGTREE_RENDEZVOUS" => Some((joined.rendezvous.clone(), origins.rendezvous)),
        "RINGTREE_JOB" => Some((joined.job.name.clone(), origins.job)),
        _ => None,
    };
    match told.filter(|(_, variable)| !variable.is_empty()) {
        Some((value, variable)) => Line::new(setting, Some(value), Some(variable)),
        None => Line::default(setting),
    }
}

/// A variable that looks like a setting and is none.
fn stranger(name: &str) -> Option<Stranger> {
    if !name.starts_with(PREFIX) || Setting::ALL.iter().any(|setting| setting.name == name) {
        return None;
    }
    let likeness = |setting: &Setting| {
        let rest = setting.name.strip_prefix(PREFIX).unwrap_or(setting.name);
        strsim::jaro_winkler(rest, &name[PREFIX.len()..])
    };
    let alike = Setting::ALL.iter().map(|setting| (likeness(setting), setting.name));
    let nearest = alike.max_by(|(one, _), (other, _)| one.total_cmp(other));
    let nearest = nearest.filter(|(likeness, _)| *likeness >= LEAST_ALIKE);
    Some(Stranger { name: name.to_owned(), nearest: nearest.map(|(_, name)| name) })
}

impl Line {
    fn new(setting: &'static Setting, value: Option<String>, from: Option<&'static str>) -> Line {
        let &Setting { name, meaning, is_secret, .. } = setting;
        Line { name, value: value.filter(|_| !is_secret), is_secret, from, meaning }
    }

    fn default(setting: &'static Setting) -> Line {
        let from = setting.default.map(|_| "default");
        Line::new(setting, setting.default.map(str::to_owned), from)
    }

    /// The value, as far as people may see it.
    fn shown(&self) -> String {
        match (&self.value, self.from) {
            (Some(value), _) => value.clone(),
            (None, Some(_)) => "(set)".into(),
            (None, None) => "-".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_told_from_one_of_another_kind() {
        let nearest = |name| stranger(name).map(|stranger| stranger.nearest);
        assert_eq!(nearest("RINGTREE_TIMOUT"), Some(Some("RINGTREE_TIMEOUT")));
        assert_eq!(nearest("RINGTREE_INTERFACES"), Some(Some("RINGTREE_INTERFACE")));
        assert_eq!(nearest("RINGTREE_COLOUR"), Some(None));
        assert_eq!(nearest("RINGTREE_RANK"), None);
        assert_eq!(nearest("PATH"), None);
    }
}
