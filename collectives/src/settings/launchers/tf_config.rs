//! TensorFlow's `TF_CONFIG`, which many trainers of clusters set: who there is, and who this is.

use std::collections::HashMap;

use serde::Deserialize;

use super::{Place, Source, Told, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

const VARIABLE: &str = "TF_CONFIG";

/// The kinds of task that take part, in the order of their ranks.
const KINDS: [&str; 3] = ["chief", "master", "worker"];

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    cluster: HashMap<String, Vec<String>>,
    task: Option<Task>,
}

#[derive(Deserialize)]
struct Task {
    #[serde(rename = "type")]
    kind: String,
    index: Index,
}

/// Some trainers write the number as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Index {
    Number(u32),
    Text(String),
}

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    let Some(text) = env.get(VARIABLE) else { return Ok(None) };
    let wrong = |what: String| settings(format!("{VARIABLE} {what}"));
    let config: Config = serde_json::from_str(text)
        .map_err(|error| wrong(format!("is not what TensorFlow expects: {error}")))?;
    if config.cluster.is_empty() {
        return Ok(None);
    }
    let members = |kind: &str| config.cluster.get(kind).map_or(&[][..], |members| members);
    let task = config.task.as_ref().ok_or_else(|| wrong("has no task: who is this?".into()))?;
    let index = match &task.index {
        Index::Number(index) => Some(*index),
        Index::Text(text) => text.parse().ok(),
    };
    let kind = task.kind.as_str();
    let Some(at) = KINDS.iter().position(|known| *known == kind) else {
        return Err(wrong(format!(
            "says that this is a task of type {kind}, which has no rank: only {} have one",
            KINDS.join(", ")
        )));
    };
    let index = index.filter(|index| (*index as usize) < members(kind).len()).ok_or_else(|| {
        let count = members(kind).len();
        wrong(format!("has {count} tasks of type {kind}, and this one's index is none of theirs"))
    })?;
    let before: usize = KINDS[..at].iter().map(|kind| members(kind).len()).sum();
    let all: Vec<&String> = KINDS.iter().flat_map(|kind| members(kind)).collect();
    let first = || Told { value: all[0].clone(), variable: VARIABLE };
    Ok(Some(Place {
        source: Source::TfConfig,
        rank: Told { value: before as u32 + index, variable: VARIABLE },
        ranks: Told { value: all.len() as u32, variable: VARIABLE },
        local_rank: None,
        local_ranks: None,
        rendezvous: set_rendezvous(env).unwrap_or_else(first),
        job: None,
    }))
}
