//! One collective call in any of its forms, for tests that must not care which.

use ringtree::{Collective, Communicator, Element, Error, Op};

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The caller waits.
    Blocking,
    /// The communicator's thread makes it.
    Asynchronous,
    /// It was made ready before.
    Prepared,
}

impl Way {
    /// All ways.
    pub const ALL: [Way; 3] = [Way::Blocking, Way::Asynchronous, Way::Prepared];
}

/// The call on one buffer.
///
/// # Panics
/// If the collective has none.
pub fn in_place<T: Element>(
    by: &Communicator,
    way: Way,
    collective: Collective,
    op: Op,
    buffer: &mut [T],
) -> Result<(), Error> {
    let owned = |buffer: &[T]| buffer.to_vec();
    let result = match (way, collective) {
        (Way::Blocking, Collective::AllReduce) => return by.all_reduce(buffer, op),
        (Way::Blocking, Collective::Broadcast { root }) => return by.broadcast(buffer, root),
        (Way::Blocking, Collective::Reduce { root }) => return by.reduce(buffer, op, root),
        (Way::Blocking, Collective::AllGather) => return by.all_gather(buffer),
        (Way::Blocking, Collective::ReduceScatter) => return by.reduce_scatter(buffer, op),
        (Way::Asynchronous, Collective::AllReduce) => by.all_reduce_async(owned(buffer), op),
        (Way::Asynchronous, Collective::Broadcast { root }) => {
            by.broadcast_async(owned(buffer), root)
        }
        (Way::Asynchronous, Collective::Reduce { root }) => {
            by.reduce_async(owned(buffer), op, root)
        }
        (Way::Asynchronous, Collective::AllGather) => by.all_gather_async(owned(buffer)),
        (Way::Asynchronous, Collective::ReduceScatter) => {
            by.reduce_scatter_async(owned(buffer), op)
        }
        (Way::Prepared, collective) => {
            let mut prepared = match collective {
                Collective::AllReduce => by.prepare_all_reduce(owned(buffer), op),
                Collective::Broadcast { root } => by.prepare_broadcast(owned(buffer), root),
                Collective::Reduce { root } => by.prepare_reduce(owned(buffer), op, root),
                Collective::AllGather => by.prepare_all_gather(owned(buffer)),
                Collective::ReduceScatter => by.prepare_reduce_scatter(owned(buffer), op),
                other => panic!("{other:?} has no call in place"),
            }?;
            prepared.run()?;
            buffer.copy_from_slice(&prepared.into_inner());
            return Ok(());
        }
        (_, other) => panic!("{other:?} has no call in place"),
    };
    buffer.copy_from_slice(&result?.wait()?);
    Ok(())
}

/// The call from one buffer into another.
///
/// # Panics
/// If the collective has none.
pub fn into<T: Element>(
    by: &Communicator,
    way: Way,
    collective: Collective,
    op: Op,
    input: &[T],
    output: &mut [T],
) -> Result<(), Error> {
    if way == Way::Blocking {
        return match collective {
            Collective::AllReduce => by.all_reduce_into(input, output, op),
            Collective::Broadcast { root } => by.broadcast_into(input, output, root),
            Collective::Reduce { root } => by.reduce_into(input, output, op, root),
            Collective::AllGather => by.all_gather_into(input, output),
            Collective::ReduceScatter => by.reduce_scatter_into(input, output, op),
            Collective::Gather { root } => by.gather_into(input, output, root),
            Collective::Scatter { root } => by.scatter_into(input, output, root),
            Collective::AllToAll => by.all_to_all_into(input, output),
            Collective::Barrier => panic!("a barrier has no buffers"),
        };
    }
    let (from, to) = (input.to_vec(), output.to_vec());
    let (given, got) = if way == Way::Asynchronous {
        let pending = match collective {
            Collective::AllReduce => by.all_reduce_into_async(from, to, op),
            Collective::Broadcast { root } => by.broadcast_into_async(from, to, root),
            Collective::Reduce { root } => by.reduce_into_async(from, to, op, root),
            Collective::AllGather => by.all_gather_into_async(from, to),
            Collective::ReduceScatter => by.reduce_scatter_into_async(from, to, op),
            Collective::Gather { root } => by.gather_into_async(from, to, root),
            Collective::Scatter { root } => by.scatter_into_async(from, to, root),
            Collective::AllToAll => by.all_to_all_into_async(from, to),
            Collective::Barrier => panic!("a barrier has no buffers"),
        };
        pending?.wait()?
    } else {
        let prepared = match collective {
            Collective::AllReduce => by.prepare_all_reduce_into(from, to, op),
            Collective::Broadcast { root } => by.prepare_broadcast_into(from, to, root),
            Collective::Reduce { root } => by.prepare_reduce_into(from, to, op, root),
            Collective::AllGather => by.prepare_all_gather_into(from, to),
            Collective::ReduceScatter => by.prepare_reduce_scatter_into(from, to, op),
            Collective::Gather { root } => by.prepare_gather_into(from, to, root),
            Collective::Scatter { root } => by.prepare_scatter_into(from, to, root),
            Collective::AllToAll => by.prepare_all_to_all_into(from, to),
            Collective::Barrier => panic!("a barrier has no buffers"),
        };
        let mut prepared = prepared?;
        prepared.run()?;
        prepared.into_inner()
    };
    assert_eq!(given.len(), input.len(), "the input came back");
    output.copy_from_slice(&got);
    Ok(())
}
