//! Gradients in the memory of a GPU, exchanged in a stream beside the program's, so that calls and kernels overlap.
//!
//! ```text
//! program's stream   write bucket 0 | write bucket 1 | write bucket 2 |           read the sums
//!                                   v event          v                v           ^ event
//! side stream                       | exchange 0 .......| exchange 1 ..| exchange 2 |
//! ```

use std::ops::Range;
use std::sync::Arc;

use ringtree::device::{DeviceMemory, Event, Queued, Stream};
use ringtree::{Communicator, Op};

use super::backend::{Backend, Carried, Travel};
use crate::Result;
use crate::real::Real;

/// The memory of a GPU, and the streams in which gradients are written and travel.
#[derive(Debug)]
pub struct Gpu {
    program: Arc<Stream>,
    side: Stream,
    /// Marks either stream for the other one; a wait that is queued keeps what it marked then.
    event: Event,
    /// What has left since the program's stream was last told to wait.
    queued: Vec<Queued>,
}

impl Gpu {
    /// Beside a stream of the program.
    pub(super) fn new(program: Arc<Stream>) -> Result<Gpu> {
        let device = program.device();
        let side = Stream::new(device).map_err(ringtree::Error::from)?;
        let event = Event::new(device).map_err(ringtree::Error::from)?;
        Ok(Gpu { program, side, event, queued: Vec::new() })
    }

    /// Has what is queued in one stream from now on wait for what has been queued in the other.
    fn order(&self, before: &Stream, after: &Stream) -> Result<()> {
        self.event.record(before).map_err(ringtree::Error::from)?;
        Ok(after.wait_for_event(&self.event).map_err(ringtree::Error::from)?)
    }
}

impl<T: Real> Backend<T> for Gpu {
    type Memory = DeviceMemory<T>;
    type View<'a>
        = DeviceMemory<T>
    where
        T: 'a;

    // The driver waits for all streams while it loads kernels, and the side stream for calls that cannot go on then.
    const LEAVES_IN_FIRST_STEP: bool = false;

    fn alloc(&self, communicator: &Communicator, len: usize, _: bool) -> Result<DeviceMemory<T>> {
        Ok(communicator.alloc_device(self.program.device(), len)?)
    }

    fn view(memory: &mut DeviceMemory<T>, at: Range<usize>) -> Result<DeviceMemory<T>> {
        Ok(memory.part(at))
    }

    fn zero(&self, mut view: DeviceMemory<T>) -> Result<()> {
        Ok(view.zero(&self.program)?)
    }

    fn copy(&self, from: DeviceMemory<T>, mut to: DeviceMemory<T>) -> Result<()> {
        Ok(to.copy_from(&self.program, &from)?)
    }

    fn leave(
        &mut self,
        memory: &mut DeviceMemory<T>,
        communicator: &Communicator,
        travel: Travel,
    ) -> Result<()> {
        self.order(&self.program, &self.side)?;
        let on = communicator.on(&self.side);
        self.queued.push(match travel {
            Travel::Sum => on.all_reduce(memory, Op::Sum)?,
            Travel::Scatter => on.reduce_scatter(memory, Op::Sum)?,
            Travel::Gather => on.all_gather(memory)?,
        });
        Ok(())
    }

    fn carry(
        &mut self,
        memory: &mut DeviceMemory<T>,
        communicator: &Communicator,
        travel: Travel,
    ) -> Result<Option<Carried>> {
        self.leave(memory, communicator, travel)?;
        Ok(None)
    }

    fn arrive(&mut self, _: &mut DeviceMemory<T>) -> Result<Option<Carried>> {
        Ok(None)
    }

    fn join(&mut self, is_first_step: bool) -> Result<()> {
        self.order(&self.side, &self.program)?;
        for queued in self.queued.drain(..).filter(|_| is_first_step) {
            queued.wait()?;
        }
        Ok(())
    }
}
