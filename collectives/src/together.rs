//! Messages to and from peers that are all under way at once, so that two ranks that send to each other
//! before they receive do not wait for each other.

use std::collections::VecDeque;
use std::sync::Arc;

use ringtree_transport::{Link, Tag};

use crate::control::{FlightRecorder, Operation as Named, Ticket};
use crate::driver::Driven;
use crate::executor::{Fault, Operation, Status};

/// See the file's description.
pub(crate) struct Together<'g, O, G> {
    /// The messages of each stream, in their order: only the first one of each is under way.
    streams: Vec<VecDeque<Message<O>>>,
    recorder: Arc<FlightRecorder>,
    /// What was named first: it stands for all while nothing runs.
    first: Option<Named>,
    gear: &'g mut G,
}

/// The operation of a message, and its memory; `G` is what all operations run with.
pub(crate) trait Sending<G> {
    /// Begins. Whoever drives it vouches for the memory: see [`Operation::start`].
    fn start(
        &mut self,
        sequence: u32,
        links: &mut [Option<Link>],
        gear: &mut G,
    ) -> Result<(), Fault>;

    /// As [`Operation::poll`].
    fn poll(&mut self, links: &mut [Option<Link>], gear: &mut G) -> Result<Status, Fault>;

    /// As [`Operation::waiting_for`].
    fn waiting_for(&self, gear: &G) -> Vec<u32>;

    /// As [`Driven::waits_for_device`].
    fn waits_for_device(&self, _: &G) -> bool {
        false
    }
}

/// A message of memory of the host.
pub(crate) struct OnHost {
    pub(crate) operation: Operation,
    pub(crate) input: *const u8,
    pub(crate) output: *mut u8,
}

impl Sending<()> for OnHost {
    fn start(
        &mut self,
        sequence: u32,
        links: &mut [Option<Link>],
        (): &mut (),
    ) -> Result<(), Fault> {
        let tag = Tag { sequence, digest: self.operation.digest() };
        // SAFETY: whoever drives this vouches for the memory.
        unsafe { self.operation.start(tag, self.input, self.output, links) };
        Ok(())
    }

    fn poll(&mut self, links: &mut [Option<Link>], (): &mut ()) -> Result<Status, Fault> {
        self.operation.poll(links, 0)
    }

    fn waiting_for(&self, (): &()) -> Vec<u32> {
        self.operation.waiting_for()
    }
}

struct Message<O> {
    operation: O,
    named: Named,
    /// Once it runs.
    ticket: Option<Ticket>,
}

impl<'g, O: Sending<G>, G> Together<'g, O, G> {
    pub(crate) fn new(recorder: Arc<FlightRecorder>, gear: &'g mut G) -> Together<'g, O, G> {
        Together { streams: Vec::new(), recorder, first: None, gear }
    }

    /// Adds a message behind those of its stream. Whoever drives this vouches for its memory as for an
    /// operation's that was started: see [`Operation::start`].
    pub(crate) fn add(&mut self, named: Named, operation: O) {
        self.first.get_or_insert(named);
        let is_same = |messages: &&mut VecDeque<Message<O>>| {
            messages.front().is_some_and(|message| message.named.stream == named.stream)
        };
        let message = Message { operation, named, ticket: None };
        match self.streams.iter_mut().find(is_same) {
            Some(messages) => messages.push_back(message),
            None => self.streams.push(VecDeque::from([message])),
        }
    }

    /// Messages that are under way.
    fn running(&self) -> impl Iterator<Item = &Message<O>> {
        self.streams.iter().filter_map(|stream| stream.front())
    }
}

impl<O: Sending<G>, G> Driven for Together<'_, O, G> {
    fn poll(&mut self, links: &mut [Option<Link>]) -> Result<Status, (Fault, Named)> {
        let mut moved = false;
        for stream in &mut self.streams {
            while let Some(message) = stream.front_mut() {
                let named = message.named;
                let fails = |fault| (fault, named);
                if message.ticket.is_none() {
                    let begun = self.recorder.begin(named.stream, named.sequence, &named.record);
                    message.ticket = Some(begun);
                    let started = message.operation.start(named.sequence, links, self.gear);
                    started.map_err(fails)?;
                }
                match message.operation.poll(links, self.gear).map_err(fails)? {
                    Status::Done => {
                        message.ticket.into_iter().for_each(|ticket| self.recorder.end(ticket));
                        stream.pop_front();
                        moved = true;
                    }
                    Status::Moved => {
                        moved = true;
                        break;
                    }
                    Status::Blocked { moved: some } => {
                        moved |= some;
                        break;
                    }
                }
            }
        }
        Ok(match (self.streams.iter().all(VecDeque::is_empty), moved) {
            (true, _) => Status::Done,
            (false, true) => Status::Moved,
            (false, false) => Status::Blocked { moved: false },
        })
    }

    fn named(&self) -> Named {
        let mut running = self.running();
        let named = running.find(|message| !message.operation.waiting_for(self.gear).is_empty());
        named.map(|message| message.named).or(self.first).expect("there is a message")
    }

    fn waiting_for(&self) -> Vec<u32> {
        let mut waits = self.running().map(|message| message.operation.waiting_for(self.gear));
        waits.find(|peers| !peers.is_empty()).unwrap_or_default()
    }

    fn waits_for_device(&self) -> bool {
        self.running().any(|message| message.operation.waits_for_device(self.gear))
    }
}
