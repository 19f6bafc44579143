//! Variables that a module declares outside its kernels, and how `.align .type name[count] = {…}`,
//! the declaration of any variable, is read.

use super::types::Type;

/// A `.global` or `.const` variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// As `cuModuleGetGlobal` asks for it.
    pub name: String,
    /// Which of the two it is.
    pub space: VariableSpace,
    /// Its size.
    pub len_bytes: usize,
    /// Its address must be a multiple of this.
    pub align_bytes: usize,
    /// What it holds at first, [`Variable::len_bytes`] long.
    pub initial: Vec<u8>,
}

/// Where a variable lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableSpace {
    /// Kernels may write it.
    Global,
    /// Only the host writes it.
    Const,
}

/// A declaration: what follows the name of the state space.
pub(super) struct Declaration<'a> {
    pub name: &'a str,
    pub kind: Type,
    pub align_bytes: usize,
    /// 1 for what is no array; none for `[]`, the size of which the launch decides.
    pub count: Option<usize>,
}

impl Declaration<'_> {
    pub fn len_bytes(&self) -> usize {
        self.kind.bytes() * self.count.unwrap_or(0)
    }
}

/// Places variables one behind the other.
#[derive(Clone, Default)]
pub(super) struct Layout {
    pub len_bytes: usize,
}

impl Layout {
    /// The offset of the next variable.
    pub fn place(&mut self, len_bytes: usize, align_bytes: usize) -> usize {
        let offset_bytes = self.len_bytes.next_multiple_of(align_bytes.max(1));
        self.len_bytes = offset_bytes + len_bytes;
        offset_bytes
    }
}
