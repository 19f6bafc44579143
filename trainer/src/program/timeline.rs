//! `--timeline`: what each rank did when, as a file that <https://ui.perfetto.dev> draws.

use std::fs;
use std::path::Path;
use std::time::Instant;

use ringtree::Communicator;
use ringtree_trainer::Error;
use serde_json::{Value, json};

use crate::events::{Phase, StepEvents};

/// Numbers that a slice is sent as: what it is, of which step, how many bytes, begin and end in ns.
const FIELDS: usize = 5;

/// What stands for the exchange of a bucket, behind the phases.
const BUCKET: u64 = Phase::ALL.len() as u64;

/// One rank's slices, in time since its beginning.
pub struct Timeline {
    begin: Instant,
    slices: Vec<[u64; FIELDS]>,
}

impl Timeline {
    /// Begins with the clock of this rank: ranks begin together, behind a barrier.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn new(communicator: &Communicator) -> Result<Timeline, Error> {
        communicator.barrier()?;
        Ok(Timeline { begin: Instant::now(), slices: Vec::new() })
    }

    /// Adds a step.
    pub fn add(&mut self, step: u64, events: &StepEvents) {
        let ns = |at: Instant| at.saturating_duration_since(self.begin).as_nanos() as u64;
        for (phase, begin, end) in &events.phases {
            let kind = Phase::ALL.iter().position(|one| one == phase).unwrap_or(0) as u64;
            self.slices.push([kind, step, 0, ns(*begin), ns(*end)]);
        }
        for bucket in &events.exchanged.buckets {
            let (begin, end) = (ns(bucket.ran.began), ns(bucket.ran.ended));
            self.slices.push([BUCKET, step, bucket.bytes as u64, begin, end]);
        }
    }

    /// Collects those of all ranks at rank 0, which writes the file. All ranks call this.
    ///
    /// # Errors
    /// [`Error::File`], or [`Error::Ringtree`]: what has ended the communicator.
    pub fn write(self, communicator: &Communicator, path: &Path) -> Result<(), Error> {
        let own: Vec<u64> = self.slices.concat();
        if communicator.rank() > 0 {
            communicator.send(&[own.len() as u64], 0)?;
            communicator.send(&own, 0)?;
            return Ok(());
        }
        let mut events = drawn(0, &own);
        for rank in 1..communicator.ranks() {
            let mut len = [0_u64];
            communicator.receive(&mut len, rank)?;
            let mut theirs = vec![0; len[0] as usize];
            communicator.receive(&mut theirs, rank)?;
            events.extend(drawn(rank, &theirs));
        }
        let text = json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string();
        fs::write(path, text).map_err(|source| Error::File { path: path.to_owned(), source })
    }
}

/// A rank's slices as Perfetto reads them: its own work on one track, its buckets on another.
fn drawn(rank: u32, numbers: &[u64]) -> Vec<Value> {
    let named = |track: u64, name: &str| {
        json!({
            "ph": "M", "name": "thread_name", "pid": rank, "tid": track, "args": { "name": name },
        })
    };
    let mut events = vec![
        json!({
            "ph": "M", "name": "process_name", "pid": rank, "args": { "name": format!("rank {rank}") },
        }),
        named(0, "training"),
        named(1, "exchange"),
    ];
    for slice in numbers.chunks_exact(FIELDS) {
        let [kind, step, bytes, begin_ns, end_ns] =
            [slice[0], slice[1], slice[2], slice[3], slice[4]];
        let name = Phase::ALL.get(kind as usize).map_or("bucket", |phase| phase.name());
        events.push(json!({
            "ph": "X", "name": name, "pid": rank, "tid": u64::from(kind == BUCKET),
            "ts": begin_ns as f64 / 1e3, "dur": (end_ns - begin_ns) as f64 / 1e3,
            "args": { "step": step, "bytes": bytes },
        }));
    }
    events
}
