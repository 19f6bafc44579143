//! What ranks tell each other in each step: by it the step commits.

use ringtree::Communicator;
use ringtree_trainer::Error;

use crate::events::StepEvents;
use crate::interrupt::Interrupt;

/// What a rank tells the others of a step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared {
    /// This rank's part of the step's loss.
    pub loss: f64,
    /// How long it was busy itself.
    pub busy_ms: f64,
    /// How long the step took it.
    pub step_s: f64,
    /// Not 0 if a signal has come.
    pub interrupted: f64,
    /// Not 0 if somebody wants to come in.
    pub newcomers: f64,
}

impl Shared {
    /// Of this rank.
    pub fn of(
        events: &StepEvents,
        loss: f64,
        step_s: f64,
        interrupt: &Interrupt,
        newcomers: bool,
    ) -> Shared {
        let number = |is: bool| f64::from(u8::from(is));
        let busy_ms = events.busy().as_secs_f64() * 1e3;
        let (interrupted, newcomers) = (number(interrupt.is_asked()), number(newcomers));
        Shared { loss, busy_ms, step_s, interrupted, newcomers }
    }

    /// That of all ranks, in one small call.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn gather(self, communicator: &Communicator) -> Result<Vec<Shared>, Error> {
        let own = [self.loss, self.busy_ms, self.step_s, self.interrupted, self.newcomers];
        let mut all = vec![0.0; own.len() * communicator.ranks() as usize];
        communicator.all_gather_into(&own, &mut all)?;
        let decode = |one: &[f64]| Shared {
            loss: one[0],
            busy_ms: one[1],
            step_s: one[2],
            interrupted: one[3],
            newcomers: one[4],
        };
        Ok(all.chunks_exact(own.len()).map(decode).collect())
    }
}
