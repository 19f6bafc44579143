//! Runs the programs of all ranks side by side.

use std::collections::VecDeque;
use std::rc::Rc;

use super::error::{CheckError, Fault};
use super::expression::{Expression, Expressions};
use super::form;
use super::memory::{Memory, Sent};
use super::{Conditions, Credits, Report};
use crate::action::Move;
use crate::{Action, Collective, Program, Source, Space, Span};

/// Text of a rank's step.
pub(super) type Describe<'a> = &'a dyn Fn(usize, usize) -> String;

/// Runs to the end, or to the first fault.
pub(super) fn run(
    collective: Collective,
    programs: &[Program],
    is_lowered: bool,
    conditions: Conditions,
    describe: Describe,
) -> Result<Report, CheckError> {
    let mut run = Run::new(collective, programs, is_lowered, conditions, describe);
    run.inspect()?;
    (0..programs.len()).for_each(|rank| run.begin_round(rank));
    loop {
        let mut moved = false;
        for rank in 0..programs.len() {
            while run.advance(rank)? {
                moved = true;
            }
        }
        if !moved {
            return run.end();
        }
    }
}

pub(super) struct Run<'a> {
    pub(super) collective: Collective,
    pub(super) programs: &'a [Program],
    /// Lowering has marked the moves that complete a result.
    pub(super) is_lowered: bool,
    pub(super) conditions: Conditions,
    pub(super) describe: Describe<'a>,
    pub(super) expressions: Expressions,
    pub(super) ranks: Vec<Rank>,
    /// By sender, then by receiver.
    pub(super) channels: Vec<Channel>,
    /// The expression that each chunk's result must have, from the first rank that has it.
    pub(super) results: Vec<Option<Expression>>,
    pub(super) report: Report,
}

/// How far a rank has come.
pub(super) struct Rank {
    pub(super) round: u32,
    pub(super) action: usize,
    /// The next cell of the action.
    pub(super) cell: u32,
    /// Of each rank, how many of its events are known to have happened. An own event counts when
    /// it is over.
    pub(super) clock: Vec<u32>,
    /// A copy of `clock` for messages, good for all ranks but this one.
    pub(super) known: Option<Rc<[u32]>>,
    /// The event that began each round.
    pub(super) begun: Vec<u32>,
    pub(super) memory: Memory,
    /// The messages of this round, each with its action and whether it is settled.
    pub(super) sent: Vec<(Sent, usize, bool)>,
}

#[derive(Default)]
pub(super) struct Channel {
    /// Frames that were posted and are not consumed.
    pub(super) frames: VecDeque<Frame>,
    /// The receiver's event that consumed each frame so far.
    pub(super) consumed_at: Vec<u32>,
}

/// A slice of a message, or an empty message.
pub(super) struct Frame {
    /// Nothing in an empty message.
    pub(super) value: Option<Expression>,
    /// The action that sent it.
    pub(super) round: u32,
    pub(super) action: usize,
    /// Its place in the message.
    pub(super) cell: u32,
    /// The sender's event that sent it, and what it knew of the others.
    pub(super) event: u32,
    pub(super) known: Rc<[u32]>,
}

impl Frame {
    /// How many events of `rank` had happened before the frame was sent by `sender`.
    fn knows(&self, sender: u32, rank: u32) -> u32 {
        if rank == sender { self.event } else { self.known[rank as usize] }
    }
}

impl<'a> Run<'a> {
    fn new(
        collective: Collective,
        programs: &'a [Program],
        is_lowered: bool,
        conditions: Conditions,
        describe: Describe<'a>,
    ) -> Run<'a> {
        let (ranks, chunks) = (programs.len(), programs[0].chunks);
        for (rank, program) in programs.iter().enumerate() {
            let belongs = program.rank as usize == rank
                && program.ranks as usize == ranks
                && program.chunks == chunks;
            assert!(belongs, "not the plan of rank {rank} of {ranks} with {chunks} chunks");
        }
        let new_rank = |program| Rank {
            round: 0,
            action: 0,
            cell: 0,
            clock: vec![0; ranks],
            known: None,
            begun: vec![],
            memory: Memory::new(program, conditions.in_place, conditions.slices),
            sent: vec![],
        };
        Run {
            collective,
            programs,
            is_lowered,
            conditions,
            describe,
            expressions: Expressions::new(ranks as u32, chunks),
            ranks: programs.iter().map(new_rank).collect(),
            channels: (0..ranks * ranks).map(|_| Channel::default()).collect(),
            results: vec![None; chunks as usize],
            report: Report { frames: 0, steps: 0, expressions: 0, is_in_rank_order: false },
        }
    }

    fn inspect(&self) -> Result<(), CheckError> {
        for (rank, program) in self.programs.iter().enumerate() {
            form::inspect(self.collective, program).map_err(|(step, span, fault)| {
                let input = span.space == Space::Input && span.start < program.chunks;
                let contributions = if input { vec![rank as u32] } else { vec![] };
                self.error_with(rank, step, span.start, contributions, fault)
            })?;
        }
        Ok(())
    }

    fn begin_round(&mut self, rank: usize) {
        let state = &mut self.ranks[rank];
        state.clock[rank] += 1;
        state.begun.push(state.clock[rank]);
        state.sent.clear();
        (state.action, state.cell) = (0, 0);
        state.memory.begin_round(self.collective, &self.programs[rank], &self.expressions);
    }

    /// Takes a rank as far as one slice, or one step without slices. False: it waits.
    fn advance(&mut self, rank: usize) -> Result<bool, CheckError> {
        let state = &self.ranks[rank];
        if state.round == self.conditions.rounds {
            return Ok(false);
        }
        let Some(&action) = self.programs[rank].actions.get(state.action) else {
            return self.end_round(rank);
        };
        let Some(parts) = Move::of(&self.programs[rank], action) else {
            return Ok(self.flush(rank, action));
        };
        if parts.own().is_none() {
            self.post(rank, &parts)?;
            return Ok(true);
        }
        self.slice(rank, &parts)
    }

    /// Ends a round when every message that is not settled has left.
    fn end_round(&mut self, rank: usize) -> Result<bool, CheckError> {
        for &(sent, step, settled) in &self.ranks[rank].sent {
            if !settled && !self.has_left(rank, sent) {
                return Ok(false);
            }
            if settled && !self.is_consumed(rank, sent) {
                let span = self.shape(rank, step);
                return Err(self.error(rank, step, span, 0, Fault::NotSettled { peer: sent.peer }));
            }
        }
        match self.collective {
            Collective::Barrier => self.check_heard(rank)?,
            _ => self.check_results(rank)?,
        }
        self.ranks[rank].round += 1;
        if self.ranks[rank].round < self.conditions.rounds {
            self.begin_round(rank);
        }
        Ok(true)
    }

    fn flush(&mut self, rank: usize, action: Action) -> bool {
        let Action::Flush { span } = action else { unreachable!("neither move nor flush") };
        let cells = 0..self.ranks[rank].memory.len(span);
        if !cells.clone().all(|cell| self.is_free(rank, span, cell)) {
            return false;
        }
        let event = self.event(rank);
        cells.for_each(|cell| self.flushed(rank, span, cell, event));
        self.next(rank);
        true
    }

    /// A move that only sends from own memory is posted whole.
    fn post(&mut self, rank: usize, parts: &Move) -> Result<(), CheckError> {
        let [Source::Own(src)] = *parts.sources else { unreachable!("inspected") };
        let event = self.event(rank);
        for cell in 0..self.ranks[rank].memory.len(src).max(1) {
            let value = self.read(rank, src, cell, event)?;
            self.send(rank, parts, src, cell, value, event);
        }
        self.next(rank);
        Ok(())
    }

    /// One slice of a move.
    fn slice(&mut self, rank: usize, parts: &Move) -> Result<bool, CheckError> {
        let cell = self.ranks[rank].cell;
        let ready = |peer| !self.channel(peer, rank).frames.is_empty();
        if !parts.arrivals().all(|peer| ready(peer as usize)) {
            return Ok(false);
        }
        let Some((dst, backing)) = parts.own() else { unreachable!("sends are posted whole") };
        if parts.guarded && !self.is_free(rank, dst, cell) {
            return Ok(false);
        }
        let event = self.event(rank);
        if parts.guarded {
            self.flushed(rank, dst, cell, event);
        }
        let value = self.operands(rank, parts, dst, event)?;
        self.write(rank, parts, dst, value, event)?;
        self.send(rank, parts, dst, cell, value, event);

        let state = &mut self.ranks[rank];
        let cells = state.memory.len(dst);
        if backing && cells > 0 {
            state.memory.cell_mut(dst, cell).value = None;
        }
        state.cell += 1;
        if state.cell >= cells {
            self.next(rank);
        }
        Ok(true)
    }

    /// Reads the operands, consumes the arrivals among them, and folds.
    fn operands(
        &mut self,
        rank: usize,
        parts: &Move,
        dst: Span,
        event: u32,
    ) -> Result<Option<Expression>, CheckError> {
        let cell = self.ranks[rank].cell;
        let mut values = Vec::with_capacity(parts.sources.len());
        for source in parts.sources {
            values.extend(match *source {
                Source::Own(span) => self.read(rank, span, cell, event)?,
                Source::Arrival { peer } => self.take(rank, peer, parts, dst, event)?,
            });
        }
        if values.is_empty() {
            return Ok(None);
        }
        let folded = (self.expressions.fold(&values))
            .map_err(|ranks| self.error_here(rank, dst, Fault::CountedTwice { ranks }))?;
        let completes = values.len() > 1 && self.expressions.is_complete(folded);
        if self.is_lowered && parts.completes != completes {
            return Err(self.error_here(rank, dst, Fault::NotAsMarked { completes }));
        }
        Ok(Some(folded))
    }

    fn read(
        &mut self,
        rank: usize,
        span: Span,
        cell: u32,
        event: u32,
    ) -> Result<Option<Expression>, CheckError> {
        if span.len == 0 {
            return Ok(None);
        }
        let place = self.ranks[rank].memory.cell_mut(span, cell);
        place.touched = event;
        let value = place.value;
        if value.is_none() {
            let step = self.ranks[rank].action;
            return Err(self.error(rank, step, span, cell, Fault::Undefined));
        }
        Ok(value)
    }

    /// Consumes the next frame of a peer.
    fn take(
        &mut self,
        rank: usize,
        peer: u32,
        parts: &Move,
        dst: Span,
        event: u32,
    ) -> Result<Option<Expression>, CheckError> {
        let (cell, round) = (self.ranks[rank].cell, self.ranks[rank].round);
        let frame = &self.channel(peer as usize, rank).frames[0];
        if frame.round != round {
            let fault = Fault::OtherRound { peer, sent_in: frame.round };
            return Err(self.error_here(rank, dst, fault));
        }
        let sent = self.shape(peer as usize, frame.action);
        let [theirs, ours] = [(peer as usize, sent), (rank, parts.shape)]
            .map(|(rank, span)| form::lengths(self.collective, &self.programs[rank], span));
        if frame.cell != cell || (cell == 0 && !theirs.eq(ours)) {
            return Err(self.error_here(rank, dst, Fault::LengthsDiffer { peer, sent }));
        }
        if parts.early && !self.is_early(rank, peer, frame, dst, cell) {
            return Err(self.error_here(rank, dst, Fault::NotEarly { peer }));
        }

        let channel = self.channel_mut(peer as usize, rank);
        let frame = channel.frames.pop_front().expect("it was looked at");
        channel.consumed_at.push(event);
        let state = &mut self.ranks[rank];
        for (ours, theirs) in state.clock.iter_mut().zip(frame.known.iter()) {
            *ours = (*ours).max(*theirs);
        }
        let theirs = &mut state.clock[peer as usize];
        *theirs = (*theirs).max(frame.event);
        state.known = None;
        Ok(frame.value)
    }

    /// Whether all that this rank did with a cell was over when the peer sent the frame.
    fn is_early(&self, rank: usize, peer: u32, frame: &Frame, dst: Span, cell: u32) -> bool {
        if dst.len == 0 {
            return true;
        }
        let place = self.ranks[rank].memory.cell(dst, cell);
        let consumed = |sent: &Sent| {
            let at = self.channel(rank, sent.peer as usize).consumed_at.get(sent.frame as usize);
            at.is_some_and(|&at| frame.knows(peer, sent.peer) >= at)
        };
        frame.knows(peer, rank as u32) >= place.touched && place.sends.iter().all(consumed)
    }

    /// Writes the current cell of `dst`.
    fn write(
        &mut self,
        rank: usize,
        parts: &Move,
        dst: Span,
        value: Option<Expression>,
        event: u32,
    ) -> Result<(), CheckError> {
        let state = &self.ranks[rank];
        let (action, cell) = (state.action, state.cell);
        // A copy onto itself writes nothing.
        let onto_itself = matches!(*parts.sources, [Source::Own(src)]
            if state.memory.index(src, cell) == state.memory.index(dst, cell));
        if dst.len == 0 || onto_itself {
            return Ok(());
        }
        let sends = &state.memory.cell(dst, cell).sends;
        if let Some(reader) = sends.iter().find(|sent| !self.is_consumed(rank, **sent)) {
            return Err(self.error_here(rank, dst, Fault::Overwrites { peer: reader.peer }));
        }
        let place = self.ranks[rank].memory.cell_mut(dst, cell);
        place.sends.clear();
        place.value = value;
        place.touched = event;
        place.writer = Some(action);
        Ok(())
    }

    /// Sends one frame to each receiver; it may be read from `backing` until it is consumed.
    fn send(
        &mut self,
        rank: usize,
        parts: &Move,
        backing: Span,
        cell: u32,
        value: Option<Expression>,
        event: u32,
    ) {
        let Rank { round, action, .. } = self.ranks[rank];
        for (peer, settled) in parts.sends() {
            let state = &mut self.ranks[rank];
            let known = state.known.get_or_insert_with(|| state.clock.as_slice().into()).clone();
            let channel = &mut self.channels[rank * self.programs.len() + peer as usize];
            let frame = (channel.consumed_at.len() + channel.frames.len()) as u32;
            channel.frames.push_back(Frame { value, round, action, cell, event, known });
            let sent = Sent { peer, frame };
            state.sent.push((sent, action, settled));
            if backing.len > 0 {
                state.memory.cell_mut(backing, cell).sends.push(sent);
            }
            self.report.frames += 1;
        }
    }

    /// Whether every earlier send from a cell has left or is known to be consumed.
    fn is_free(&self, rank: usize, span: Span, cell: u32) -> bool {
        let sends = || self.ranks[rank].memory.cell(span, cell).sends.iter();
        span.len == 0 || sends().all(|sent| self.has_left(rank, *sent))
    }

    fn flushed(&mut self, rank: usize, span: Span, cell: u32, event: u32) {
        if span.len > 0 {
            let place = self.ranks[rank].memory.cell_mut(span, cell);
            place.sends.clear();
            place.touched = event;
        }
    }

    /// Whether a message is out of this rank's memory.
    pub(super) fn has_left(&self, rank: usize, sent: Sent) -> bool {
        let consumed = self.channel(rank, sent.peer as usize).consumed_at.len() as u32;
        let ahead = match self.conditions.credits {
            Credits::Unlimited => return true,
            Credits::Slices(slices) => slices,
            Credits::Rendezvous => u32::from(self.receives(sent.peer as usize, rank as u32)),
        };
        sent.frame < consumed + ahead
    }

    /// Whether a rank is at an action that takes a message of `peer`.
    fn receives(&self, rank: usize, peer: u32) -> bool {
        let action = self.programs[rank].actions.get(self.ranks[rank].action);
        let parts = action.and_then(|action| Move::of(&self.programs[rank], *action));
        let running = self.ranks[rank].round < self.conditions.rounds;
        running && parts.is_some_and(|parts| parts.arrivals().any(|from| from == peer))
    }

    /// Whether a message is known to this rank to be consumed.
    fn is_consumed(&self, rank: usize, sent: Sent) -> bool {
        let at = self.channel(rank, sent.peer as usize).consumed_at.get(sent.frame as usize);
        at.is_some_and(|&at| self.ranks[rank].clock[sent.peer as usize] >= at)
    }

    /// An own event begins; its number.
    fn event(&mut self, rank: usize) -> u32 {
        self.ranks[rank].clock[rank] += 1;
        self.ranks[rank].clock[rank]
    }

    fn next(&mut self, rank: usize) {
        let state = &mut self.ranks[rank];
        (state.action, state.cell) = (state.action + 1, 0);
        self.report.steps += 1;
    }

    pub(super) fn channel(&self, from: usize, to: usize) -> &Channel {
        &self.channels[from * self.programs.len() + to]
    }

    fn channel_mut(&mut self, from: usize, to: usize) -> &mut Channel {
        &mut self.channels[from * self.programs.len() + to]
    }
}
