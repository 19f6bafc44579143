//! Parses and executes PTX, the assembly text that NVIDIA's compilers emit.
//!
//! [`Module::parse`] turns text into [`Entry`]s of decoded instructions and refuses what it does not
//! know, modifier by modifier: nothing is ignored. [`Launch::run`] executes a whole grid on the thread
//! that calls it and returns when the grid has ended.
//!
//! What the execution is like:
//! - **Threads** are independent, as on Volta and later, and preempted at any instruction. All blocks
//!   of a launch are resident at once (up to 65,536 threads), so blocks may wait for one another.
//!   [`Launch::seed`] decides the order.
//! - **Global stores** wait in a buffer of their thread and reach memory late and out of order, unless
//!   a fence, a release or a barrier orders them (`store_buffer.rs`). A kernel that lacks a fence shows
//!   it. Loads are neither delayed nor reordered, and the scopes `.gpu` and `.sys` are the same.
//! - **Device memory** is reached through [`Memory`]. Aligned pieces of up to eight bytes are read and
//!   written whole, by atomic accesses, so that other processes may look at the same time; wider
//!   vectors are several such pieces.
//! - **Waiting**: a grid of which all threads poll memory in vain gives the processor away.
//! - **Misbehaviour** ends the launch with a [`Fault`] that names the line of the PTX.
//!
//! ```ignore
//! let module = Module::parse(text)?;
//! let entry = module.entry("sum").ok_or(...)?;
//! let statistics = Launch {
//!     entry: &entry, parameters: &bytes, variables: &addresses_of_module_variables,
//!     grid: [1, 1, 1], block: [256, 1, 1], dynamic_shared_bytes: 0,
//!     memory: &device_memory, seed: 1, stop: &|| false,
//! }.run()?;
//! ```

mod access;
mod arithmetic;
mod convert;
mod decode;
mod execute;
mod fault;
mod float;
mod forms;
mod grid;
mod instruction;
mod lexer;
mod names;
mod operands;
mod parse;
mod random;
mod store_buffer;
#[cfg(test)]
mod tests;
mod types;
mod variables;
mod warp;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

pub use fault::{Fault, Place};
pub use variables::{Variable, VariableSpace};

use instruction::{Instruction, SlotContent};

/// What a PTX text holds.
#[derive(Debug)]
pub struct Module {
    /// `.version`: major and minor.
    pub version: (u32, u32),
    /// `.target`: 75 for `sm_75`.
    pub target: u32,
    /// The `.global` and `.const` variables, which whoever loads the module places in device memory,
    /// filled with [`Variable::initial`], and whose addresses [`Launch::variables`] gives in this order.
    pub variables: Vec<Variable>,
    entries: HashMap<String, Arc<Entry>>,
}

impl Module {
    /// Reads a PTX text.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        parse::parse(text)
    }

    /// The kernel of this name.
    pub fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        self.entries.get(name).cloned()
    }

    /// All kernels, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }
}

/// A kernel.
#[derive(Debug)]
pub struct Entry {
    /// As `cuModuleGetFunction` asks for it.
    pub name: String,
    /// Where each parameter lies in [`Launch::parameters`].
    pub parameters: Vec<Parameter>,
    /// Bytes of all parameters, with the gaps between them.
    pub parameters_bytes: usize,
    /// Shared memory that the kernel declares, without the dynamic one.
    pub shared_bytes: usize,
    /// Local memory of each thread.
    pub local_bytes: usize,
    /// The most threads a block may have, from `.maxntid` or `.reqntid`.
    pub max_threads: Option<u32>,
    /// The block's shape that `.reqntid` demands.
    pub required_block: Option<[u32; 3]>,
    /// Where dynamic shared memory starts: [`Entry::shared_bytes`], aligned.
    dynamic_shared_offset_bytes: usize,
    code: Vec<Instruction>,
    /// A thread's register file.
    slots: Vec<SlotContent>,
}

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// From the start of [`Launch::parameters`].
    pub offset_bytes: usize,
    /// Its size.
    pub len_bytes: usize,
}

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// That line, trimmed.
    pub text: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: `{}`: {}", self.line, self.text, self.what)
    }
}

impl std::error::Error for ParseError {}

/// What an instruction wants of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To write, or to read and write at once.
    Write,
}

/// Memory of the device, as a launch reaches it.
///
/// # Safety
///
/// A pointer that [`Memory::resolve`] returns must be aligned as the device address is (to 8 bytes),
/// and stay valid for `len_bytes` of the asked access until the launch has ended. Nobody may hold a
/// Rust reference to these bytes meanwhile, other than to atomics.
pub unsafe trait Memory: Sync {
    /// Where `len_bytes` of device memory at `address` lie in this process; an error if they are not
    /// all there. Called for every access: it should be quick.
    #[allow(clippy::result_unit_err)]
    fn resolve(&self, address: u64, len_bytes: usize, access: Access) -> Result<*mut u8, ()>;
}

/// A grid to execute.
pub struct Launch<'a> {
    /// The kernel.
    pub entry: &'a Entry,
    /// Its parameters, laid out as [`Entry::parameters`] says.
    pub parameters: &'a [u8],
    /// Device address of each of [`Module::variables`].
    pub variables: &'a [u64],
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of each block in x, y and z.
    pub block: [u32; 3],
    /// Shared memory besides what the kernel declares.
    pub dynamic_shared_bytes: usize,
    /// The device's memory.
    pub memory: &'a dyn Memory,
    /// Decides the order of threads and of their stores.
    pub seed: u64,
    /// Looked at between turns of threads: true ends the launch with [`Fault::Stopped`].
    pub stop: &'a dyn Fn() -> bool,
}

impl Launch<'_> {
    /// Executes the grid to its end. After a fault memory holds whatever was written until then.
    pub fn run(self) -> Result<Statistics, Fault> {
        grid::run(&self)
    }
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Instructions of all threads, those whose predicate was false included.
    pub instructions: u64,
    /// Bytes read from device memory, without atomics.
    pub global_load_bytes: u64,
    /// Bytes written to device memory, without atomics.
    pub global_store_bytes: u64,
    /// `atom` and `red` on device memory.
    pub global_atomics: u64,
}
