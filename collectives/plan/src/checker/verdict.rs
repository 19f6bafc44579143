//! What a run ends with: the results, what waits for ever, and errors with their place.

use super::Report;
use super::error::{CheckError, Fault};
use super::expression::{Expression, mix};
use super::memory::Sent;
use super::run::Run;
use crate::action::Move;
use crate::{Action, Collective, Span};

impl Run<'_> {
    pub(super) fn check_heard(&self, rank: usize) -> Result<(), CheckError> {
        let state = &self.ranks[rank];
        let last = state.action.saturating_sub(1);
        for peer in 0..self.programs.len() {
            if !self.has_heard(rank, peer) {
                let fault = Fault::NotHeard { peer: peer as u32 };
                return Err(self.error(rank, last, Span::output(0, 0), 0, fault));
            }
        }
        Ok(())
    }

    /// Whether a rank knows that a peer has begun its round.
    fn has_heard(&self, rank: usize, peer: usize) -> bool {
        let state = &self.ranks[rank];
        let begun = self.ranks[peer].begun.get(state.round as usize);
        begun.is_some_and(|&begun| state.clock[peer] >= begun)
    }

    pub(super) fn check_results(&mut self, rank: usize) -> Result<(), CheckError> {
        let program = &self.programs[rank];
        let all = Span::output(0, program.chunks);
        for cell in 0..self.ranks[rank].memory.len(all) {
            let chunk = cell / self.conditions.slices;
            if !self.collective.is_got(program.rank, chunk) {
                continue;
            }
            let place = self.ranks[rank].memory.cell(all, cell);
            let last = place.writer.unwrap_or(program.actions.len().saturating_sub(1));
            let value = place.value.filter(|value| self.is_wanted(*value, program.rank, chunk));
            let fault = match (value, self.results[chunk as usize]) {
                (None, _) => Fault::WrongResult { wanted: self.wanted(chunk) },
                (Some(_), _) if self.is_exchange() => continue,
                (Some(value), Some(other)) if value != other => Fault::Disagrees {
                    expression: self.expressions.text(value),
                    other: self.expressions.text(other),
                },
                (Some(value), _) => {
                    self.results[chunk as usize] = Some(value);
                    continue;
                }
            };
            return Err(self.error(rank, last, all, cell, fault));
        }
        Ok(())
    }

    /// Whether a value is a right result. Of which chunk its contributions are needs no proof:
    /// operands, messages and spans are of one length, and so of one chunk.
    fn is_wanted(&self, value: Expression, rank: u32, chunk: u32) -> bool {
        let contribution = |giver, chunk| value == self.expressions.contribution(giver, chunk);
        match self.collective {
            Collective::Broadcast { root } | Collective::Scatter { root } => {
                contribution(root, chunk)
            }
            Collective::AllGather | Collective::Gather { .. } => contribution(chunk, chunk),
            Collective::AllToAll => contribution(chunk, rank),
            _ => self.expressions.is_complete(value),
        }
    }

    /// Whose contributions a chunk of a result should hold.
    fn wanted(&self, chunk: u32) -> Vec<u32> {
        match self.collective {
            Collective::Broadcast { root } | Collective::Scatter { root } => vec![root],
            Collective::AllGather | Collective::Gather { .. } | Collective::AllToAll => vec![chunk],
            _ => (0..self.programs.len() as u32).collect(),
        }
    }

    /// Whether ranks get different results at the same place, each of which can only be one.
    fn is_exchange(&self) -> bool {
        self.collective == Collective::AllToAll
    }

    /// Nothing moves any more: either all is done or some wait for each other.
    pub(super) fn end(mut self) -> Result<Report, CheckError> {
        for rank in 0..self.programs.len() {
            if self.ranks[rank].round < self.conditions.rounds {
                return Err(self.waits(rank));
            }
        }
        for (index, channel) in self.channels.iter().enumerate() {
            if let Some(frame) = channel.frames.front() {
                let (rank, peer) = (index / self.programs.len(), index % self.programs.len());
                let fault = Fault::Unmatched { peer: peer as u32 };
                let span = self.shape(rank, frame.action);
                return Err(self.error(rank, frame.action, span, frame.cell, fault));
            }
        }
        let is_in_rank_order = |result: &Expression| self.expressions.is_in_rank_order(*result);
        self.report.is_in_rank_order = self.results.iter().flatten().all(is_in_rank_order);
        let results = self.results.iter().flatten();
        self.report.expressions =
            results.fold(0, |hash, result| mix(hash, self.expressions.hash(*result)));
        Ok(self.report)
    }

    /// Why a rank that has not finished waits.
    fn waits(&self, rank: usize) -> CheckError {
        let state = &self.ranks[rank];
        let program = &self.programs[rank];
        let Some(&action) = program.actions.get(state.action) else {
            let waits = |&&(sent, _, settled): &&(Sent, usize, bool)| {
                !settled && !self.has_left(rank, sent)
            };
            let (sent, step, _) = state.sent.iter().find(waits).expect("a round's end waits");
            let fault = Fault::NotTaken { peer: sent.peer };
            return self.error(rank, *step, self.shape(rank, *step), 0, fault);
        };
        let parts = Move::of(program, action);
        let missing = |peer: &u32| self.channel(*peer as usize, rank).frames.is_empty();
        let (span, cells) = match (action, parts) {
            (Action::Flush { span }, _) => (span, 0..state.memory.len(span)),
            (Action::Move { shape, .. }, _) => (shape, state.cell..state.cell + 1),
        };
        if let Some(peer) = parts.and_then(|parts| parts.arrivals().find(missing)) {
            let fault = Fault::NoMessage { peer };
            return self.error(rank, state.action, span, state.cell, fault);
        }
        let written = parts.and_then(|parts| parts.own()).map_or(span, |(dst, _)| dst);
        let sends = |cell| &state.memory.cell(written, cell).sends;
        let unread = cells.flat_map(sends).find(|sent| !self.has_left(rank, **sent));
        let peer = unread.map_or(rank as u32, |sent| sent.peer);
        self.error(rank, state.action, span, state.cell, Fault::NotTaken { peer })
    }

    pub(super) fn shape(&self, rank: usize, action: usize) -> Span {
        match self.programs[rank].actions[action] {
            Action::Move { shape, .. } => shape,
            Action::Flush { span } => span,
        }
    }

    pub(super) fn error_here(&self, rank: usize, span: Span, fault: Fault) -> CheckError {
        let state = &self.ranks[rank];
        self.error(rank, state.action, span, state.cell, fault)
    }

    /// A fault at a cell of a span, with what the cell holds.
    pub(super) fn error(
        &self,
        rank: usize,
        step: usize,
        span: Span,
        cell: u32,
        fault: Fault,
    ) -> CheckError {
        let heard = |peer: &u32| self.has_heard(rank, *peer as usize);
        let contributions = if span.len == 0 {
            (0..self.programs.len() as u32).filter(heard).collect()
        } else {
            let value = self.ranks[rank].memory.cell(span, cell).value;
            value.map_or(vec![], |value| self.expressions.contributors(value))
        };
        let chunk = span.start + cell / self.conditions.slices;
        self.error_with(rank, step, chunk, contributions, fault)
    }

    pub(super) fn error_with(
        &self,
        rank: usize,
        step: usize,
        chunk: u32,
        contributions: Vec<u32>,
        fault: Fault,
    ) -> CheckError {
        let exists = step < self.programs[rank].actions.len();
        let text = if exists { (self.describe)(rank, step) } else { "end".to_owned() };
        let round = self.ranks[rank].round;
        CheckError { rank: rank as u32, round, step, text, chunk, contributions, fault }
    }
}
