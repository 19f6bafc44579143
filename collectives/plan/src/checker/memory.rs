//! One rank's buffers in a run: what each cell holds, and who may still read it.

use super::expression::{Expression, Expressions};
use crate::{Collective, Program, Space, Span};

/// A message of this rank: the `frame`-th frame that it ever sent to `peer`.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) peer: u32,
    pub(super) frame: u32,
}

/// A slice of a chunk.
#[derive(Clone)]
pub(super) struct Cell {
    /// Nothing where it is undefined.
    pub(super) value: Option<Expression>,
    /// The rank's last event that touched it in this round; 0 if there is none.
    pub(super) touched: u32,
    /// The last action that wrote it in this round.
    pub(super) writer: Option<usize>,
    /// Sends from here that are neither flushed nor known to be consumed.
    pub(super) sends: Vec<Sent>,
}

const UNTOUCHED: Cell = Cell { value: None, touched: 0, writer: None, sends: vec![] };

/// A rank's input, output and scratch.
pub(super) struct Memory {
    cells: Vec<Cell>,
    slices: u32,
    /// Where the output begins; in place, where the input does.
    output: u32,
    scratch: u32,
}

impl Memory {
    pub(super) fn new(program: &Program, in_place: bool, slices: u32) -> Memory {
        let output = if in_place { 0 } else { program.chunks };
        let scratch = output + program.chunks;
        let chunks = scratch as usize + program.scratch.len();
        Memory { cells: vec![UNTOUCHED; chunks * slices as usize], slices, output, scratch }
    }

    /// A new round: another input and output, undefined scratch.
    pub(super) fn begin_round(
        &mut self,
        collective: Collective,
        program: &Program,
        expressions: &Expressions,
    ) {
        self.cells.fill(UNTOUCHED);
        for (index, cell) in self.cells.iter_mut().enumerate() {
            let chunk = index as u32 / self.slices;
            if chunk < program.chunks && collective.is_given(program.rank, chunk) {
                cell.value = Some(expressions.contribution(program.rank, chunk));
            }
        }
    }

    /// The number of cells of a span.
    pub(super) fn len(&self, span: Span) -> u32 {
        span.len * self.slices
    }

    /// Where the `cell`-th cell of a span is.
    pub(super) fn index(&self, span: Span, cell: u32) -> usize {
        let base = match span.space {
            Space::Input => 0,
            Space::Output => self.output,
            Space::Scratch => self.scratch,
        };
        ((base + span.start) * self.slices + cell) as usize
    }

    pub(super) fn cell(&self, span: Span, cell: u32) -> &Cell {
        &self.cells[self.index(span, cell)]
    }

    pub(super) fn cell_mut(&mut self, span: Span, cell: u32) -> &mut Cell {
        let index = self.index(span, cell);
        &mut self.cells[index]
    }
}
