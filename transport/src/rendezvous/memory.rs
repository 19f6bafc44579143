//! The store itself, in memory. The server answers from it, too.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;
use super::wire::{Reply, Request};

/// Gathers that were abandoned and are remembered. Whoever comes to an older one waits until its deadline.
const ABANDONED_LIMIT: usize = 256;

/// A store in this process, for ranks that are threads of it.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    /// A key has got a value, or the store has stopped.
    set: Condvar,
    /// A gather is complete, or the store has stopped. Apart from `set`, so that hundreds of
    /// waiting ranks wake once and not with every rank that comes.
    gathered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    values: HashMap<String, Value>,
    gathers: HashMap<String, Gather>,
    /// Prefixes of gathers that will never be complete: the last [`ABANDONED_LIMIT`], the newest at the end.
    abandoned: VecDeque<String>,
}

#[derive(Debug)]
enum Value {
    Bytes(Vec<u8>),
    Counter(i64),
}

#[derive(Debug)]
struct Gather {
    values: Vec<Option<Vec<u8>>>,
    missing: usize,
    /// All values by rank, once none is missing.
    complete: Option<Arc<Vec<Vec<u8>>>>,
    /// Ranks that have not taken the values yet.
    untaken: usize,
    /// How often a rank has waited in vain. One that gives up takes all with it that wait at that
    /// time: they would wait for a rank that is no longer there.
    given_up: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Arc<MemoryStore> {
        Arc::default()
    }

    /// Does what a request asks, waiting until the deadline where it waits for others.
    pub(super) fn answer(&self, request: Request, deadline: Instant) -> Result<Reply, StoreError> {
        match request {
            Request::Set { key, value } => self.set(key, value),
            Request::Get { key } => self.get(key, deadline),
            Request::Add { key, amount } => self.add(key, amount),
            Request::Gather { prefix, rank, ranks, value } => {
                self.publish(&prefix, rank, ranks, value)?;
                self.await_gather(&prefix, deadline)
            }
        }
    }

    /// Lets every gather fail whose prefix is this one, or begins with it and a slash, now and later: somebody will
    /// not come.
    pub fn abandon(&self, prefix: &str) {
        let mut state = self.lock();
        if state.abandoned.iter().any(|known| known == prefix) {
            return;
        }
        let goes = |gather: &String| is_below(gather, prefix);
        state.gathers.retain(|gather, it| !goes(gather) || it.complete.is_some());
        if state.abandoned.len() == ABANDONED_LIMIT
            && let Some(oldest) = state.abandoned.pop_front()
        {
            // Whoever has not taken the values of a complete one by now never will.
            state.gathers.retain(|gather, _| !is_below(gather, &oldest));
        }
        state.abandoned.push_back(prefix.to_owned());
        self.gathered.notify_all();
    }

    /// Lets everything that waits, and everything that comes later, fail.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.set.notify_all();
        self.gathered.notify_all();
    }

    fn set(&self, key: String, value: Vec<u8>) -> Result<Reply, StoreError> {
        self.running()?.values.insert(key, Value::Bytes(value));
        self.set.notify_all();
        Ok(Reply::Done)
    }

    fn get(&self, key: String, deadline: Instant) -> Result<Reply, StoreError> {
        let mut state = self.running()?;
        loop {
            match state.values.get(&key) {
                Some(Value::Bytes(bytes)) => return Ok(Reply::Value(bytes.clone())),
                Some(Value::Counter(sum)) => return Ok(Reply::Value(sum.to_le_bytes().into())),
                None => {}
            }
            let Some(left) = time_left(deadline) else {
                return Err(StoreError::TimedOut { key });
            };
            state = wait(&self.set, state, left)?;
        }
    }

    fn add(&self, key: String, amount: i64) -> Result<Reply, StoreError> {
        let mut state = self.running()?;
        let sum = match state.values.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Value::Counter(amount));
                amount
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Value::Counter(sum) => {
                    *sum = sum.wrapping_add(amount);
                    *sum
                }
                Value::Bytes(_) => {
                    return Err(StoreError::NotCounter { key: entry.key().clone() });
                }
            },
        };
        self.set.notify_all();
        Ok(Reply::Sum(sum))
    }

    /// Adds a rank's value to a gather. The same value again is a second attempt of the same rank;
    /// another value is another process that has the same rank.
    fn publish(
        &self,
        prefix: &str,
        rank: u32,
        ranks: u32,
        value: Vec<u8>,
    ) -> Result<(), StoreError> {
        let mut state = self.running()?;
        state.check_abandoned(prefix)?;
        let gather =
            state.gathers.entry(prefix.into()).or_insert_with(|| Gather::new(ranks as usize));
        let others = gather.values.len() as u32;
        if others != ranks {
            return Err(StoreError::RanksDiffer { prefix: prefix.into(), ranks, others });
        }
        match &mut gather.values[rank as usize] {
            Some(published) if *published != value => {
                return Err(StoreError::Claimed { prefix: prefix.into(), rank });
            }
            Some(_) => {}
            vacant => {
                *vacant = Some(value);
                gather.missing -= 1;
            }
        }
        if gather.missing == 0 && gather.complete.is_none() {
            gather.complete = Some(Arc::new(gather.values.iter().flatten().cloned().collect()));
            self.gathered.notify_all();
        }
        Ok(())
    }

    /// Waits for all values of a gather. The last rank that takes them removes it.
    fn await_gather(&self, prefix: &str, deadline: Instant) -> Result<Reply, StoreError> {
        let mut state = self.running()?;
        let given_up = state.gathers.get(prefix).map(|gather| gather.given_up);
        loop {
            let Some(gather) = state.gathers.get_mut(prefix) else {
                state.check_abandoned(prefix)?;
                let reason = format!("all ranks have left \"{prefix}\" already");
                return Err(StoreError::Invalid { reason });
            };
            if let Some(values) = gather.complete.clone() {
                gather.untaken -= 1;
                if gather.untaken == 0 {
                    state.gathers.remove(prefix);
                }
                return Ok(Reply::Values(values));
            }
            if given_up != Some(gather.given_up) {
                return Err(gather.missing_ranks(prefix));
            }
            let Some(left) = time_left(deadline) else {
                gather.given_up += 1;
                self.gathered.notify_all();
                return Err(gather.missing_ranks(prefix));
            };
            state = wait(&self.gathered, state, left)?;
        }
    }

    fn running(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.lock();
        if state.stopped { Err(StoreError::Stopped) } else { Ok(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check_abandoned(&self, prefix: &str) -> Result<(), StoreError> {
        match self.abandoned.iter().any(|abandoned| is_below(prefix, abandoned)) {
            true => Err(StoreError::Abandoned { prefix: prefix.into() }),
            false => Ok(()),
        }
    }
}

fn is_below(prefix: &str, of: &str) -> bool {
    prefix.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Gather {
    fn new(ranks: usize) -> Gather {
        let values = vec![None; ranks];
        Gather { values, missing: ranks, complete: None, untaken: ranks, given_up: 0 }
    }

    fn missing_ranks(&self, prefix: &str) -> StoreError {
        let ranks = (0..).zip(&self.values).filter(|(_, value)| value.is_none());
        StoreError::Missing {
            prefix: prefix.into(),
            ranks: ranks.map(|(rank, _)| rank).collect(),
            of: self.values.len() as u32,
        }
    }
}

fn time_left(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

/// Waits for a change, not longer than `left`.
fn wait<'a>(
    changed: &Condvar,
    state: MutexGuard<'a, State>,
    left: Duration,
) -> Result<MutexGuard<'a, State>, StoreError> {
    let (state, _) = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
    if state.stopped { Err(StoreError::Stopped) } else { Ok(state) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_abandoned_gathers_only_the_last_ones_are_remembered() {
        let store = MemoryStore::new();
        let publish = |prefix: &str, rank| store.publish(prefix, rank, 2, Vec::new());
        for epoch in 0..10 * ABANDONED_LIMIT {
            let prefix = format!("communicator/1+{epoch}");
            // Complete, and taken by nobody.
            assert_eq!((publish(&prefix, 0), publish(&prefix, 1)), (Ok(()), Ok(())));
            assert_eq!(publish(&format!("{prefix}/topology"), 0), Ok(()));
            store.abandon(&prefix);
            let abandoned = StoreError::Abandoned { prefix: prefix.clone() };
            assert_eq!(publish(&prefix, 0), Err(abandoned));
        }
        let state = store.lock();
        assert_eq!(state.abandoned.len(), ABANDONED_LIMIT);
        assert!(state.gathers.len() <= ABANDONED_LIMIT, "{}", state.gathers.len());
    }
}
