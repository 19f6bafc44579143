//! Messages to and from peers that are all under way at once, so that two ranks that send to each other
//! before they receive do not wait for each other.

use std::collections::VecDeque;
use std::sync::Arc;

use ringtree_transport::{Link, Tag};

use crate::control::{FlightRecorder, Operation as Named, Ticket};
use crate::driver::Driven;
use crate::executor::{Fault, Operation, Status};

/// See the file's description.
pub(crate) struct Together {
    /// The messages of each stream, in their order: only the first one of each is under way.
    streams: Vec<VecDeque<Message>>,
    recorder: Arc<FlightRecorder>,
    /// What was named first: it stands for all while nothing runs.
    first: Option<Named>,
}

/// A message that has not begun.
pub(crate) struct Waiting {
    pub(crate) operation: Operation,
    pub(crate) named: Named,
    pub(crate) input: *const u8,
    pub(crate) output: *mut u8,
}

struct Message {
    waiting: Waiting,
    /// Once it runs.
    ticket: Option<Ticket>,
}

impl Together {
    pub(crate) fn new(recorder: Arc<FlightRecorder>) -> Together {
        Together { streams: Vec::new(), recorder, first: None }
    }

    /// Adds a message behind those of its stream. Whoever drives this vouches for its memory as for an
    /// operation's that was started: see [`Operation::start`].
    pub(crate) fn add(&mut self, waiting: Waiting) {
        self.first.get_or_insert(waiting.named);
        let stream = waiting.named.stream;
        let is_same = |messages: &&mut VecDeque<Message>| {
            messages.front().is_some_and(|message| message.waiting.named.stream == stream)
        };
        let message = Message { waiting, ticket: None };
        match self.streams.iter_mut().find(is_same) {
            Some(messages) => messages.push_back(message),
            None => self.streams.push(VecDeque::from([message])),
        }
    }

    /// Messages that are under way.
    fn running(&self) -> impl Iterator<Item = &Waiting> {
        self.streams.iter().filter_map(|stream| stream.front()).map(|message| &message.waiting)
    }
}

impl Message {
    fn begin(&mut self, recorder: &FlightRecorder, links: &mut [Option<Link>]) {
        let Waiting { operation, named, input, output } = &mut self.waiting;
        self.ticket = Some(recorder.begin(named.stream, named.sequence, &named.record));
        let tag = Tag { sequence: named.sequence, digest: operation.digest() };
        // SAFETY: whoever drives this vouches for the memory: see `Together::add`.
        unsafe { operation.start(tag, *input, *output, links) };
    }
}

impl Driven for Together {
    fn poll(&mut self, links: &mut [Option<Link>]) -> Result<Status, (Fault, Named)> {
        let mut moved = false;
        for stream in &mut self.streams {
            while let Some(message) = stream.front_mut() {
                if message.ticket.is_none() {
                    message.begin(&self.recorder, links);
                }
                let named = message.waiting.named;
                match message.waiting.operation.poll(links, 0).map_err(|fault| (fault, named))? {
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
        let named = running.find(|message| !message.operation.waiting_for().is_empty());
        named.map(|message| message.named).or(self.first).expect("there is a message")
    }

    fn waiting_for(&self) -> Vec<u32> {
        let waits = self.running().map(|message| message.operation.waiting_for());
        waits.into_iter().find(|peers| !peers.is_empty()).unwrap_or_default()
    }
}
