//! Calls on blocks of a GPU's memory that differ in length.

use super::calls::{OnStream, Queued, Varied};
use super::{DeviceBuffer, DeviceSpan};
use crate::calls::{Asked, Counts, Lengths};
use crate::engine::DevicePlace;
use crate::record::CallKind;
use crate::{Element, Error, Op};

impl OnStream<'_> {
    /// As [`Communicator::all_gather_v`](crate::Communicator::all_gather_v).
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_gather_v<T: Element>(
        &self,
        buffer: &mut impl DeviceBuffer<T>,
        counts: &[usize],
    ) -> Result<Queued, Error> {
        self.varied_in_place(Asked::of(CallKind::AllGatherV), buffer, counts)
    }

    /// As [`Communicator::all_gather_v_into`](crate::Communicator::all_gather_v_into).
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_gather_v_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        counts: &[usize],
    ) -> Result<Queued, Error> {
        self.varied_into(Asked::of(CallKind::AllGatherV), input, output, [counts; 2])
    }

    /// As [`Communicator::reduce_scatter_v`](crate::Communicator::reduce_scatter_v).
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn reduce_scatter_v<T: Element>(
        &self,
        buffer: &mut impl DeviceBuffer<T>,
        counts: &[usize],
        op: Op,
    ) -> Result<Queued, Error> {
        self.varied_in_place(Asked::of(CallKind::ReduceScatterV).by(op), buffer, counts)
    }

    /// As [`Communicator::reduce_scatter_v_into`](crate::Communicator::reduce_scatter_v_into).
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn reduce_scatter_v_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        counts: &[usize],
        op: Op,
    ) -> Result<Queued, Error> {
        self.varied_into(Asked::of(CallKind::ReduceScatterV).by(op), input, output, [counts; 2])
    }

    /// As [`Communicator::gather_v_into`](crate::Communicator::gather_v_into).
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn gather_v_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        counts: &[usize],
        root: u32,
    ) -> Result<Queued, Error> {
        self.varied_into(Asked::of(CallKind::GatherV).rooted(root), input, output, [counts; 2])
    }

    /// As [`Communicator::scatter_v_into`](crate::Communicator::scatter_v_into).
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn scatter_v_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        counts: &[usize],
        root: u32,
    ) -> Result<Queued, Error> {
        self.varied_into(Asked::of(CallKind::ScatterV).rooted(root), input, output, [counts; 2])
    }

    /// As [`Communicator::all_to_all_v_into`](crate::Communicator::all_to_all_v_into).
    ///
    /// # Errors
    /// As [`OnStream::all_reduce`].
    pub fn all_to_all_v_into<T: Element>(
        &self,
        input: &impl DeviceBuffer<T>,
        input_counts: &[usize],
        output: &mut impl DeviceBuffer<T>,
        output_counts: &[usize],
    ) -> Result<Queued, Error> {
        let counts = [input_counts, output_counts];
        self.varied_into(Asked::of(CallKind::AllToAllV), input, output, counts)
    }

    fn varied_in_place<T: Element>(
        &self,
        asked: Asked,
        buffer: &mut impl DeviceBuffer<T>,
        counts: &[usize],
    ) -> Result<Queued, Error> {
        let DeviceSpan { address, count, keep, .. } = self.written(buffer)?;
        let (place, lengths) = (DevicePlace::In(address), Lengths::InPlace(count));
        self.queue_varied::<T>(asked, place, lengths, [counts; 2], [keep, None])
    }

    fn varied_into<T: Element>(
        &self,
        asked: Asked,
        input: &impl DeviceBuffer<T>,
        output: &mut impl DeviceBuffer<T>,
        counts: [&[usize]; 2],
    ) -> Result<Queued, Error> {
        let (input, output) = self.apart(input, output)?;
        let place = DevicePlace::Into(input.address, output.address);
        let lengths = Lengths::Into { input: input.count, output: output.count };
        self.queue_varied::<T>(asked, place, lengths, counts, [input.keep, output.keep])
    }

    fn queue_varied<T: Element>(
        &self,
        asked: Asked,
        place: DevicePlace,
        lengths: Lengths,
        counts: [&[usize]; 2],
        buffers: [Option<super::KeepAlive>; 2],
    ) -> Result<Queued, Error> {
        let [given, got] = counts;
        let known = Counts::of_each(given, got);
        let (call, _) = self.communicator.varied_call::<T>(asked, lengths, known)?;
        let varied = Varied { counts: counts.map(<[usize]>::to_vec), lengths };
        self.queue(call, place, Some(varied), buffers)
    }
}
