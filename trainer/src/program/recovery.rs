//! A run goes on when ranks die, and lets those in that are started in their place: who is left, what each of them
//! has of the run, and how all get the same again.
//!
//! A step commits when all ranks have told each other what they have seen of it, behind its exchange: whoever has
//! heard that from all makes the step, the others do not. So after a failure some may be one step ahead, and all go on
//! from the state of one of those. Steps have the same samples whoever is left, only divided otherwise.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use ringtree::control::Verdict;
use ringtree::{Communicator, Op, Regrouped};
use ringtree_trainer::data::Position;
use ringtree_trainer::optimiser::StateKind;
use ringtree_trainer::{DataParallel, Error, Model, Optimizing, Real};

use crate::interrupt::Interrupt;
use crate::saving::Progress;

/// How long ranks that are too few wait for another: launchers start again after 10 s at the latest, and a host may need long
/// to start a program.
const NEWCOMER_LIMIT: Duration = Duration::from_secs(60);

/// How long ranks rest between two looks for a newcomer.
const LOOK: Duration = Duration::from_millis(5);

/// With how few ranks a run goes on, if it goes on at all when one dies.
#[derive(Clone, Debug)]
pub struct Elastic {
    /// At least so many.
    pub min_ranks: u32,
    /// Whoever is asked to leave waits for nobody.
    pub interrupt: Interrupt,
}

/// The ranks that go on, and what has happened.
pub struct GoingOn {
    pub communicator: Communicator,
    /// For people.
    pub what: String,
}

impl Elastic {
    /// Goes on without those that are lost, where that is what has ended a communicator; `None` for any other error.
    /// Waits for newcomers where too few are left.
    ///
    /// # Errors
    /// Too few are left and none comes, or those that are left may not go on.
    pub fn survive(
        &self,
        communicator: &Communicator,
        error: &Error,
    ) -> Result<Option<GoingOn>, Error> {
        let Some(ended) = what_has_ended(communicator, error) else { return Ok(None) };
        let mut what = Vec::new();
        let left = shrunk(communicator, &ended, &mut what)?;
        self.settled(left, what).map(Some)
    }

    /// Lets newcomers in.
    ///
    /// # Errors
    /// As [`Elastic::survive`].
    pub fn grow(&self, communicator: &Communicator) -> Result<GoingOn, Error> {
        let grown = communicator.admit()?;
        let what = vec![told_newcomers(&grown), told("lost", &grown.lost(communicator.ranks()))];
        self.settled(grown.communicator, what)
    }

    /// Waits until there are enough ranks, whoever dies meanwhile.
    fn settled(
        &self,
        mut communicator: Communicator,
        mut what: Vec<String>,
    ) -> Result<GoingOn, Error> {
        while let Err(error) = self.await_enough(&mut communicator, &mut what) {
            let Some(ended) = what_has_ended(&communicator, &error) else { return Err(error) };
            communicator = shrunk(&communicator, &ended, &mut what)?;
        }
        what.push(format!("{} go on", communicator.ranks()));
        what.retain(|part| !part.is_empty());
        Ok(GoingOn { communicator, what: what.join("; ") })
    }

    /// Lets newcomers in until there are enough ranks, or until one is asked to leave: then those that are here have the run
    /// to save. All ranks do so whenever others have come or gone, newcomers too.
    ///
    /// # Errors
    /// None comes, or what has ended the communicator.
    pub fn await_enough(
        &self,
        communicator: &mut Communicator,
        what: &mut Vec<String>,
    ) -> Result<(), Error> {
        while communicator.ranks() < self.min_ranks {
            if !self.await_newcomer(communicator)? {
                break;
            }
            let grown = communicator.admit()?;
            what.push(told_newcomers(&grown));
            *communicator = grown.communicator;
        }
        Ok(())
    }

    /// Waits until somebody asks to be let in, but not for ever; false where a rank is asked to leave before.
    fn await_newcomer(&self, communicator: &Communicator) -> Result<bool, Error> {
        let limit = NEWCOMER_LIMIT.max(communicator.timeout());
        let deadline = Instant::now() + limit;
        loop {
            let is_there = communicator.members_changed();
            let own = [is_there, self.interrupt.is_asked(), Instant::now() >= deadline];
            // What one has heard all go by.
            let mut heard = own.map(u32::from);
            communicator.all_reduce(&mut heard, Op::Max)?;
            match heard {
                [_, 1, _] => return Ok(false),
                [1, ..] => return Ok(true),
                [_, _, 1] => {
                    return Err(Error::Argument(format!(
                        "{} ranks are left, and none has come in {limit:?}: the run needs {}; see why ranks are \
                         not started again, or give a lower --min-ranks",
                        communicator.ranks(),
                        self.min_ranks
                    )));
                }
                _ => std::thread::sleep(LOOK),
            }
        }
    }
}

/// Those that are left.
fn shrunk(
    communicator: &Communicator,
    ended: &ringtree::Error,
    what: &mut Vec<String>,
) -> Result<Communicator, Error> {
    what.push(ended.to_string());
    let shrunk = communicator.shrink()?;
    what.push(told("lost", &shrunk.lost(communicator.ranks())));
    what.push(told_newcomers(&shrunk));
    Ok(shrunk.communicator)
}

/// The loss of ranks that has ended a communicator, if that is what has. An error may have come through candle, which
/// keeps its text alone.
fn what_has_ended(communicator: &Communicator, error: &Error) -> Option<ringtree::Error> {
    let ended = match error {
        Error::Ringtree(error) => error.clone(),
        _ => communicator.check().err()?,
    };
    let is_loss = match &ended {
        ringtree::Error::Verdict(verdict) => !matches!(**verdict, Verdict::Mismatch { .. }),
        ringtree::Error::Link { .. } | ringtree::Error::Timeout { .. } => true,
        _ => false,
    };
    is_loss.then_some(ended)
}

fn told(what: &str, ranks: &[u32]) -> String {
    let names: Vec<String> = ranks.iter().map(u32::to_string).collect();
    match names.len() {
        0 => String::new(),
        1 => format!("{what} rank {}", names[0]),
        _ => format!("{what} ranks {}", names.join(", ")),
    }
}

fn told_newcomers(regrouped: &Regrouped) -> String {
    match regrouped.communicator.newcomers().len() {
        0 => String::new(),
        1 => "a new rank has come".to_owned(),
        count => format!("{count} new ranks have come"),
    }
}

/// What a rank has of a run.
pub struct Held<T: Real> {
    pub model: DataParallel<Box<dyn Model>, T>,
    pub optimizing: Optimizing<T>,
    pub progress: Progress,
}

/// The rank that has come furthest, which all go on from; `None` if no rank has a whole state. `progress` is how far this
/// one has come, if it has one.
///
/// # Errors
/// [`Error::Ringtree`]: what has ended the communicator.
pub fn furthest(
    communicator: &Communicator,
    progress: Option<Progress>,
) -> Result<Option<u32>, Error> {
    let mine = progress.map_or(0, |progress| progress.step + 1);
    let mut all = vec![0_u64; communicator.ranks() as usize];
    communicator.all_gather_into(&[mine], &mut all)?;
    let highest = all.iter().copied().max().filter(|highest| *highest > 0);
    Ok(highest.and_then(|highest| all.iter().position(|step| *step == highest)).map(|at| at as u32))
}

/// The order in which the buckets of that rank are cut, which all take over.
///
/// # Errors
/// [`Error::Ringtree`]: what has ended the communicator.
pub fn bucket_order<T: Real>(
    communicator: &Communicator,
    held: Option<&Held<T>>,
    from: u32,
) -> Result<Vec<usize>, Error> {
    let own = match held.filter(|_| communicator.rank() == from) {
        Some(held) => held.model.bucket_order()?,
        None => Vec::new(),
    };
    let own: Vec<u64> = own.into_iter().map(|piece| piece as u64).collect();
    let order = tell(communicator, own, from)?;
    Ok(order.into_iter().map(|piece| piece as usize).collect())
}

/// Gives all ranks the state of one: `new` is a model of the new ranks, as it was built, and its optimiser.
///
/// # Errors
/// [`Error::Ringtree`]: what has ended the communicator; [`Error::Candle`]: a buffer cannot be read or set.
pub fn take_over<T: Real>(
    new: &mut Held<T>,
    old: Option<&Held<T>>,
    from: u32,
) -> Result<(), Error> {
    let communicator = new.model.communicator().clone();
    let old = old.filter(|_| communicator.rank() == from);
    if let Some(old) = old {
        for (one, other) in new.model.parameters().iter().zip(old.model.parameters()) {
            let values = other.read(|values: &[T]| values.to_vec())?;
            one.write(|new: &mut [T]| new.copy_from_slice(&values))?;
        }
    }
    new.model.share_parameters_of(from)?;
    let old_buffers = old.map(|old| old.model.model().buffers());
    for (at, (_, buffer)) in new.model.model().buffers().iter().enumerate() {
        let source = old_buffers.as_ref().map_or(buffer, |buffers| &buffers[at].1);
        let mut values: Vec<T> = source.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1()?;
        communicator.broadcast(&mut values, from)?;
        let values = Tensor::from_vec(values, buffer.dims(), buffer.device())?;
        buffer.set(&values.to_dtype(buffer.dtype())?)?;
    }
    let Progress { step, position, samples } = old.map_or(new.progress, |old| old.progress);
    let mut numbers =
        [step, position.epoch, position.consumed as u64, old.map_or(0, |it| it.optimizing.steps())];
    communicator.broadcast(&mut numbers, from)?;
    let [step, epoch, consumed, optimiser_steps] = numbers;
    let position = Position { epoch, consumed: consumed as usize };
    new.progress = Progress { step, position, samples };
    if optimiser_steps > 0 {
        let kept = old.map(kept_by_parameter).transpose()?.unwrap_or_default();
        new.optimizing.restore(&new.model, optimiser_steps, |part, kind, values| {
            if let Some(kept) = kept.get(&(kind, part.piece)) {
                values.copy_from_slice(&kept[part.elements.clone()]);
            }
            communicator.broadcast(values, from)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// What an optimiser keeps for each parameter, however the parts were cut.
fn kept_by_parameter<T: Real>(
    held: &Held<T>,
) -> Result<HashMap<(StateKind, usize), Vec<T>>, Error> {
    let mut kept: HashMap<(StateKind, usize), Vec<T>> = HashMap::new();
    let lengths: Vec<usize> = held.model.parameters().iter().map(|one| one.len()).collect();
    held.optimizing.visit(&held.model, |part, kind, values| {
        let all =
            kept.entry((kind, part.piece)).or_insert_with(|| vec![T::zero(); lengths[part.piece]]);
        all[part.elements.clone()].copy_from_slice(values);
    })?;
    Ok(kept)
}

/// What one rank has to say, at all ranks.
///
/// # Errors
/// [`Error::Ringtree`]: what has ended the communicator.
pub fn tell<E: ringtree::Element + Default + Clone>(
    communicator: &Communicator,
    mut own: Vec<E>,
    from: u32,
) -> Result<Vec<E>, Error> {
    let mut length = [own.len() as u64];
    communicator.broadcast(&mut length, from)?;
    own.resize(length[0] as usize, E::default());
    communicator.broadcast(&mut own, from)?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_asked_to_leave_waits_for_no_newcomer() {
        let ranks = Communicator::in_process(2).expect("two ranks");
        std::thread::scope(|scope| {
            for mut communicator in ranks {
                scope.spawn(move || {
                    let interrupt = match communicator.rank() {
                        0 => Interrupt::asked(),
                        _ => Interrupt::catch().expect("signals"),
                    };
                    let elastic = Elastic { min_ranks: 3, interrupt };
                    elastic.await_enough(&mut communicator, &mut Vec::new()).expect("no failure");
                    assert_eq!(communicator.ranks(), 2);
                });
            }
        });
    }
}
