//! When calls on GPUs did what: recorded when it is asked for ([`Communicator::record_timeline`]).

use std::time::Instant;

use ringtree_transport::Link;
use ringtree_transport::cuda::{CudaError, Event, Stream};

use crate::{Communicator, Error};

/// What an [`Entry`] of a timeline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// A copy from the host's memory.
    CopyDown = 0,
    /// A copy to the host's memory.
    CopyUp = 1,
    /// A copy inside a GPU, or from another one.
    CopyAcross = 2,
    /// A kernel.
    Kernel = 3,
    /// What a lane has queued at once, from when it began to do so until it saw the end.
    Batch = 4,
    /// A slice for a peer was handed to the link: a moment.
    Posted = 5,
    /// Bytes of a peer were there: a moment. Over TCP that is when the socket had given a whole frame, elsewhere when the
    /// lane came to use them.
    Arrived = 6,
}

impl Activity {
    /// In the order of their numbers.
    pub const ALL: [Activity; 7] = [
        Activity::CopyDown,
        Activity::CopyUp,
        Activity::CopyAcross,
        Activity::Kernel,
        Activity::Batch,
        Activity::Posted,
        Activity::Arrived,
    ];
}

/// Something that a call did. Times are in nanoseconds since the recording began. Those of a GPU's work are from two marks
/// in the lane's stream, one before and one behind it: where an engine of the GPU serves other streams first, that wait is
/// inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it did.
    pub activity: Activity,
    /// The lane that did it.
    pub lane: u32,
    /// With whom, where it is about a link.
    pub peer: Option<u32>,
    /// Bytes that were copied, or sent, or came; of a kernel, all that it read and wrote.
    pub bytes: u64,
    /// Those of them that were read in the host's memory by the GPU.
    pub from_host_bytes: u64,
    /// Those of them that were written to the host's memory by the GPU.
    pub to_host_bytes: u64,
    /// When it began.
    pub begin_ns: u64,
    /// When it was over.
    pub end_ns: u64,
}

impl Communicator {
    /// Has this rank record what its calls on GPUs do from now on, except those of so few bytes that the host carries
    /// them out. Calls take longer then: the GPU makes two marks for each copy and kernel. Waits for the calls that were
    /// posted before.
    pub fn record_timeline(&self) {
        self.engine().set_recording(Some(Recording::new()));
    }

    /// What has been recorded, after which nothing more is, in the order in which it was over. Waits for the calls that
    /// were posted before.
    ///
    /// # Errors
    /// The error that has ended the communicator, if one has.
    pub fn take_timeline(&self) -> Result<Vec<Entry>, Error> {
        let mut engine = self.engine();
        engine.check()?;
        let mut entries =
            engine.set_recording(None).map_or(Vec::new(), |recording| recording.entries);
        entries.sort_by_key(|entry| entry.end_ns);
        Ok(entries)
    }
}

/// What a lane has its GPU do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) activity: Activity,
    pub(crate) bytes: u64,
    pub(crate) from_host_bytes: u64,
    pub(crate) to_host_bytes: u64,
}

/// A recording under way.
#[derive(Debug)]
pub(crate) struct Recording {
    zero: Instant,
    entries: Vec<Entry>,
    /// A mark in the first lane's stream, and when the GPU had come to it.
    base: Option<(Event, u64)>,
    /// Work of the call in hand between its two marks, to which the GPU may not have come.
    marked: Vec<(Event, Event, Entry)>,
    /// When each lane began with its batch.
    batches: Vec<u64>,
    /// Bytes that had come of each peer, on each channel, when the link was last looked at.
    arrived: Vec<(u32, usize, u64)>,
}

impl Recording {
    fn new() -> Recording {
        Recording {
            zero: Instant::now(),
            entries: Vec::new(),
            base: None,
            marked: Vec::new(),
            batches: Vec::new(),
            arrived: Vec::new(),
        }
    }

    /// A call begins, of which the GPU has not been given anything in this stream.
    pub(crate) fn begin_call(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let mark = Event::timed(stream.device())?;
        mark.record(stream)?;
        stream.synchronize()?;
        self.base = Some((mark, self.now_ns()));
        self.marked.clear();
        Ok(())
    }

    /// Queues work in a stream between two marks.
    pub(crate) fn queue(
        &mut self,
        lane: usize,
        stream: &Stream,
        work: Work,
        queue: impl FnOnce(&Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let (begin, end) = (Event::timed(stream.device())?, Event::timed(stream.device())?);
        begin.record(stream)?;
        queue(stream)?;
        end.record(stream)?;
        let Work { activity, bytes, from_host_bytes, to_host_bytes } = work;
        let entry = Entry { bytes, from_host_bytes, to_host_bytes, ..self.moment(activity, lane) };
        self.marked.push((begin, end, entry));
        Ok(())
    }

    /// A lane begins to queue a batch, or to look whether there is one to queue.
    pub(crate) fn begin_batch(&mut self, lane: usize) {
        let now_ns = self.now_ns();
        self.batches.resize(self.batches.len().max(lane + 1), 0);
        self.batches[lane] = now_ns;
    }

    /// A lane has seen the end of its batch.
    pub(crate) fn end_batch(&mut self, lane: usize, bytes: usize) {
        let begin_ns = self.batches[lane];
        let bytes = bytes as u64;
        self.entries.push(Entry { begin_ns, bytes, ..self.moment(Activity::Batch, lane) });
    }

    /// A lane has handed a slice to a link.
    pub(crate) fn posted(&mut self, lane: usize, peer: u32, bytes: usize) {
        let (peer, bytes) = (Some(peer), bytes as u64);
        self.entries.push(Entry { peer, bytes, ..self.moment(Activity::Posted, lane) });
    }

    /// Looks how much has come over a link. Returns whether the link tells.
    pub(crate) fn look(&mut self, lane: usize, channel: usize, link: &Link) -> bool {
        let Some(now_bytes) = link.arrived_bytes(channel) else { return false };
        let peer = link.peer();
        let known = self.arrived.iter_mut().find(|(p, c, _)| (*p, *c) == (peer, channel));
        let before = match known {
            Some((.., bytes)) => std::mem::replace(bytes, now_bytes),
            None => {
                self.arrived.push((peer, channel, now_bytes));
                now_bytes
            }
        };
        if now_bytes > before {
            self.arrive(lane, peer, now_bytes - before);
        }
        true
    }

    /// Bytes of a peer have come.
    pub(crate) fn arrive(&mut self, lane: usize, peer: u32, bytes: u64) {
        let peer = Some(peer);
        self.entries.push(Entry { peer, bytes, ..self.moment(Activity::Arrived, lane) });
    }

    /// The call is over: the GPU has come to all marks.
    pub(crate) fn end_call(&mut self) -> Result<(), CudaError> {
        let Some((base, base_ns)) = self.base.take() else { return Ok(()) };
        for (begin, end, entry) in self.marked.drain(..) {
            let at_ns = |mark: &Event| -> Result<u64, CudaError> {
                let since_base_ns = f64::from(mark.ms_since(&base)?) * 1e6;
                Ok(base_ns.saturating_add_signed(since_base_ns as i64))
            };
            self.entries.push(Entry { begin_ns: at_ns(&begin)?, end_ns: at_ns(&end)?, ..entry });
        }
        Ok(())
    }

    fn moment(&self, activity: Activity, lane: usize) -> Entry {
        let now_ns = self.now_ns();
        Entry {
            activity,
            lane: lane as u32,
            peer: None,
            bytes: 0,
            from_host_bytes: 0,
            to_host_bytes: 0,
            begin_ns: now_ns,
            end_ns: now_ns,
        }
    }

    fn now_ns(&self) -> u64 {
        self.zero.elapsed().as_nanos() as u64
    }
}
