//! Gradients in the host's memory, exchanged by asynchronous calls.

use std::ops::Range;
use std::time::Instant;

use ringtree::{Communicator, Element, Memory, Op, Pending, Ran, bf16};

use super::backend::{Backend, Carried, Travel};
use crate::real::Real;
use crate::{Error, Result};

/// The host's memory.
#[derive(Clone, Copy, Debug)]
pub struct Host;

/// A bucket's memory, and where that is.
pub struct HostMemory<T: Real> {
    place: Place<T>,
    /// Where the bucket travels in bf16.
    narrow: Option<Memory<bf16>>,
}

enum Place<T: Real> {
    Here(Memory<T>),
    Away {
        pending: Pending<Memory<T>>,
        posted: Instant,
    },
    /// Its copy in bf16 is.
    NarrowAway {
        memory: Memory<T>,
        pending: Pending<Memory<bf16>>,
        posted: Instant,
    },
    /// An error has ended the communicator.
    Lost,
}

impl<T: Real> Backend<T> for Host {
    type Memory = HostMemory<T>;
    type View<'a> = &'a mut [T];

    const LEAVES_IN_FIRST_STEP: bool = true;

    fn alloc(
        &self,
        communicator: &Communicator,
        len: usize,
        in_bf16: bool,
    ) -> Result<HostMemory<T>> {
        let place = Place::Here(communicator.alloc(len)?);
        let narrow = if in_bf16 { Some(communicator.alloc(len)?) } else { None };
        Ok(HostMemory { place, narrow })
    }

    fn view(memory: &mut HostMemory<T>, at: Range<usize>) -> Result<&mut [T]> {
        match &mut memory.place {
            Place::Here(memory) => Ok(&mut memory[at]),
            _ => Err(lost()),
        }
    }

    fn zero(&self, view: &mut [T]) -> Result<()> {
        view.fill(T::default());
        Ok(())
    }

    fn copy(&self, from: &mut [T], to: &mut [T]) -> Result<()> {
        to.copy_from_slice(from);
        Ok(())
    }

    fn leave(
        &mut self,
        memory: &mut HostMemory<T>,
        communicator: &Communicator,
        travel: Travel,
    ) -> Result<()> {
        let Place::Here(gradients) = std::mem::replace(&mut memory.place, Place::Lost) else {
            return Err(lost());
        };
        // What is gathered are no gradients any more, and keeps its precision.
        let narrow = if travel == Travel::Gather { None } else { memory.narrow.take() };
        memory.place = match narrow {
            Some(mut narrow) => {
                narrowed(&gradients, &mut narrow);
                let posted = Instant::now();
                let pending = post(communicator, narrow, travel)?;
                Place::NarrowAway { memory: gradients, pending, posted }
            }
            None => {
                let posted = Instant::now();
                Place::Away { pending: post(communicator, gradients, travel)?, posted }
            }
        };
        Ok(())
    }

    /// Exchanges the bucket in this thread.
    fn carry(
        &mut self,
        memory: &mut HostMemory<T>,
        communicator: &Communicator,
        travel: Travel,
    ) -> Result<Option<Carried>> {
        let Place::Here(gradients) = &mut memory.place else { return Err(lost()) };
        let began = Instant::now();
        match &mut memory.narrow {
            Some(narrow) => {
                narrowed(gradients, narrow);
                call(communicator, narrow, travel)?;
                widened(narrow, gradients);
            }
            None => call(communicator, gradients, travel)?,
        }
        Ok(Some(Carried { posted: began, ran: Ran { began, ended: Instant::now() } }))
    }

    /// Waits until the bucket is back.
    fn arrive(&mut self, memory: &mut HostMemory<T>) -> Result<Option<Carried>> {
        let (gradients, posted, ran) = match std::mem::replace(&mut memory.place, Place::Lost) {
            Place::Here(_) | Place::Lost => return Err(lost()),
            Place::Away { pending, posted } => {
                let (gradients, ran) = pending.wait_timed()?;
                (gradients, posted, ran)
            }
            Place::NarrowAway { memory: mut gradients, pending, posted } => {
                let (narrow, ran) = pending.wait_timed()?;
                widened(&narrow, &mut gradients);
                memory.narrow = Some(narrow);
                (gradients, posted, ran)
            }
        };
        memory.place = Place::Here(gradients);
        Ok(Some(Carried { posted, ran }))
    }

    fn join(&mut self, _: bool) -> Result<()> {
        Ok(())
    }
}

fn post<E: Element>(
    communicator: &Communicator,
    memory: Memory<E>,
    travel: Travel,
) -> Result<Pending<Memory<E>>> {
    Ok(match travel {
        Travel::Sum => communicator.all_reduce_async(memory, Op::Sum)?,
        Travel::Scatter => communicator.reduce_scatter_async(memory, Op::Sum)?,
        Travel::Gather => communicator.all_gather_async(memory)?,
    })
}

fn call<E: Element>(communicator: &Communicator, elements: &mut [E], travel: Travel) -> Result<()> {
    match travel {
        Travel::Sum => communicator.all_reduce(elements, Op::Sum)?,
        Travel::Scatter => communicator.reduce_scatter(elements, Op::Sum)?,
        Travel::Gather => communicator.all_gather(elements)?,
    }
    Ok(())
}

fn narrowed<T: Real>(gradients: &[T], narrow: &mut [bf16]) {
    for (narrow, gradient) in narrow.iter_mut().zip(gradients) {
        *narrow = bf16::from_f64(gradient.to_f64());
    }
}

fn widened<T: Real>(narrow: &[bf16], gradients: &mut [T]) {
    for (gradient, narrow) in gradients.iter_mut().zip(narrow) {
        *gradient = T::from_f64(narrow.to_f64());
    }
}

fn lost() -> Error {
    Error::Argument("the exchange of gradients has ended by an earlier error".into())
}
