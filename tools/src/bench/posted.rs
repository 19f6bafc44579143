//! Calls that are posted and waited for, several under way at once.

use ringtree::{Collective, Communicator, Error, Op, Pending};

use super::area::{Area, Lent};
use super::call::Called;
use super::layout::Layout;
use super::options::Placement;
use super::pattern::Patterned;

/// A pair of buffers.
pub struct Buffers<T> {
    /// Read, where the call is out of place.
    pub input: Area<T>,
    /// Written.
    pub output: Area<T>,
}

/// A call under way, which owns its buffers.
pub enum Posted<T: Patterned> {
    /// On one buffer.
    InPlace(Pending<Lent<T>>),
    /// From one into the other.
    Into(Pending<(Lent<T>, Lent<T>)>),
    /// On none.
    Barrier(Pending<()>),
}

impl<T: Patterned> Posted<T> {
    /// Posts a call.
    pub fn new(
        by: &Communicator,
        called: Called,
        op: Op,
        layout: &Layout,
        placement: Placement,
        buffers: &mut Buffers<T>,
    ) -> Result<Posted<T>, Error> {
        let Some(collective) = called.collective() else {
            let (rank, ranks) = (by.rank(), by.ranks());
            let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
            let input = buffers.input.lend(layout.input_count);
            let output = buffers.output.lend(layout.output_count);
            return by.send_receive_async(input, next, output, before).map(Posted::Into);
        };
        if collective == Collective::Barrier {
            return by.barrier_async().map(Posted::Barrier);
        }
        let output = buffers.output.lend(layout.output_count);
        if placement == Placement::InPlace {
            let posted = match collective {
                Collective::AllReduce => by.all_reduce_async(output, op),
                Collective::Broadcast { root } => by.broadcast_async(output, root),
                Collective::Reduce { root } => by.reduce_async(output, op, root),
                Collective::AllGather => by.all_gather_async(output),
                _ => by.reduce_scatter_async(output, op),
            };
            return posted.map(Posted::InPlace);
        }
        let input = buffers.input.lend(layout.input_count);
        let posted = match collective {
            Collective::AllReduce => by.all_reduce_into_async(input, output, op),
            Collective::Broadcast { root } => by.broadcast_into_async(input, output, root),
            Collective::Reduce { root } => by.reduce_into_async(input, output, op, root),
            Collective::AllGather => by.all_gather_into_async(input, output),
            Collective::ReduceScatter => by.reduce_scatter_into_async(input, output, op),
            Collective::Gather { root } => by.gather_into_async(input, output, root),
            Collective::Scatter { root } => by.scatter_into_async(input, output, root),
            _ => by.all_to_all_into_async(input, output),
        };
        posted.map(Posted::Into)
    }

    /// Waits for the end and gives the buffers back.
    pub fn wait(self, buffers: &mut Buffers<T>) -> Result<(), Error> {
        match self {
            Posted::InPlace(pending) => buffers.output = pending.wait()?.area,
            Posted::Into(pending) => {
                let (input, output) = pending.wait()?;
                (buffers.input, buffers.output) = (input.area, output.area);
            }
            Posted::Barrier(pending) => pending.wait()?,
        }
        Ok(())
    }
}
