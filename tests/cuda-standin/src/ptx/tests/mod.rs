//! Tests of the PTX interpreter, and what they share: device memory, and a kernel around a few
//! instructions.

mod control;
mod coverage;
mod floats;
mod integers;
mod kernels;
mod memory;
mod refusals;
mod stores;

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Access, Fault, Launch, Memory, Module, Statistics};

/// Device address of the first byte of [`DeviceMemory`].
const BASE: u64 = 0x7_0000_0000;

/// Memory of a device, all words zero at first.
struct DeviceMemory {
    words: Vec<AtomicU64>,
}

impl DeviceMemory {
    fn new(len_bytes: usize) -> DeviceMemory {
        DeviceMemory { words: (0..len_bytes.div_ceil(8)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The 8 bytes at an offset that is a multiple of 8.
    fn word(&self, offset_bytes: usize) -> u64 {
        self.words[offset_bytes / 8].load(Ordering::SeqCst)
    }

    fn set_word(&self, offset_bytes: usize, value: u64) {
        self.words[offset_bytes / 8].store(value, Ordering::SeqCst);
    }

    /// The 4 bytes at an offset that is a multiple of 4.
    fn half_word(&self, offset_bytes: usize) -> u32 {
        (self.word(offset_bytes / 8 * 8) >> (offset_bytes % 8 * 8)) as u32
    }

    fn set_half_word(&self, offset_bytes: usize, value: u32) {
        let shift = offset_bytes % 8 * 8;
        let others = self.word(offset_bytes / 8 * 8) & !(0xFFFF_FFFF << shift);
        self.set_word(offset_bytes / 8 * 8, others | u64::from(value) << shift);
    }
}

// SAFETY: The words live as long as this, are aligned as their addresses are, and are atomics.
unsafe impl Memory for DeviceMemory {
    fn resolve(&self, address: u64, len_bytes: usize, _: Access) -> Result<*mut u8, ()> {
        let offset_bytes = address.checked_sub(BASE).ok_or(())? as usize;
        if offset_bytes + len_bytes > self.words.len() * 8 {
            return Err(());
        }
        Ok(self.words.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset_bytes))
    }
}

/// A kernel `test` with these parameters of 64 bits and this body, alone in its module.
fn module(parameters: &[&str], body: &str) -> Module {
    Module::parse(&module_text(parameters, body)).unwrap_or_else(|error| panic!("{error}\n{body}"))
}

/// Its first line is the module's header, its second the kernel's; the body starts at the third.
fn module_text(parameters: &[&str], body: &str) -> String {
    let parameters: Vec<String> =
        parameters.iter().map(|name| format!(".param .u64 {name}")).collect();
    format!(
        ".version 8.0 .target sm_90 .address_size 64\n.visible .entry test({}) {{\n{body}\n}}\n",
        parameters.join(", ")
    )
}

/// Runs `test` of a module to its end.
fn launch(
    module: &Module,
    parameters: &[u64],
    [blocks, threads]: [u32; 2],
    memory: &DeviceMemory,
    seed: u64,
) -> Result<Statistics, Fault> {
    let parameters: Vec<u8> = parameters.iter().flat_map(|value| value.to_le_bytes()).collect();
    Launch {
        entry: &module.entry("test").expect("the module's kernel is named test"),
        parameters: &parameters,
        variables: &[],
        grid: [blocks, 1, 1],
        block: [threads, 1, 1],
        dynamic_shared_bytes: 0,
        memory,
        seed,
        stop: &|| false,
    }
    .run()
}

/// Instructions with up to three operands, and what they give.
///
/// The operands are in `%d0`, `%d1`, `%d2`, and cut to size in `%r0`…, `%h0`… and `%p0`…. The result is
/// what is in that of `%dx`, `%rx`, `%hx` and `%px` which the instructions name first. `%dm` is the
/// address of 64 bytes of global memory, 0x81 and up.
struct Case {
    instructions: String,
    operands: Vec<u64>,
    expected: u64,
}

fn case(instructions: impl Into<String>, operands: &[u64], expected: u64) -> Case {
    Case { instructions: instructions.into(), operands: operands.to_vec(), expected }
}

impl Case {
    fn check(&self) {
        let Case { instructions, operands, expected } = self;
        let result = evaluate(instructions, operands);
        assert_eq!(
            result, *expected,
            "{instructions} of {operands:x?} gave {result:#x}, not {expected:#x}"
        );
    }

    /// The opcodes of all instructions.
    fn opcodes(&self) -> impl Iterator<Item = &str> {
        self.instructions.split(';').filter_map(|statement| {
            let is_before = |word: &&str| word.starts_with(['@', '{', '}']) || word.ends_with(':');
            let first = statement.split_whitespace().find(|word| !is_before(word))?;
            (!first.starts_with('.')).then_some(first)
        })
    }
}

const PROLOGUE: &str = "
    .reg .pred %p<3>, %px, %py; .reg .b16 %h<3>, %hx, %hy, %hz, %hw;
    .reg .b32 %r<3>, %rx, %ry, %rz, %rw, %result_p; .reg .b64 %d<3>, %dx, %dy, %dz, %dw, %dm, %out;
    .shared .align 16 .b8 shared[64]; .local .align 16 .b8 local[64];
    ld.param.u64 %out, [out]; ld.param.u64 %dm, [scratch];
    ld.param.u64 %d0, [a0]; cvt.u32.u64 %r0, %d0; cvt.u16.u64 %h0, %d0; setp.ne.u64 %p0, %d0, 0;
    ld.param.u64 %d1, [a1]; cvt.u32.u64 %r1, %d1; cvt.u16.u64 %h1, %d1; setp.ne.u64 %p1, %d1, 0;
    ld.param.u64 %d2, [a2]; cvt.u32.u64 %r2, %d2; cvt.u16.u64 %h2, %d2; setp.ne.u64 %p2, %d2, 0;
";
const EPILOGUE: &str = "
    st.global.u64 [%out], %dx; st.global.u32 [%out+8], %rx; st.global.u16 [%out+16], %hx;
    selp.u32 %result_p, 1, 0, %px; st.global.u32 [%out+24], %result_p;
";

fn evaluate(instructions: &str, operands: &[u64]) -> u64 {
    let result = ["%dx", "%rx", "%hx", "%px"]
        .iter()
        .enumerate()
        .filter_map(|(index, name)| Some((instructions.find(name)?, index)))
        .min()
        .unwrap_or_else(|| panic!("{instructions} names no result"))
        .1;
    let body = format!("{PROLOGUE}{instructions};{EPILOGUE}");
    let module = module(&["out", "scratch", "a0", "a1", "a2"], &body);
    let memory = DeviceMemory::new(128);
    for offset_bytes in (0..64).step_by(8) {
        let bytes = std::array::from_fn(|index| 0x81 + (offset_bytes + index) as u8);
        memory.set_word(64 + offset_bytes, u64::from_le_bytes(bytes));
    }
    let mut parameters = vec![BASE, BASE + 64, 0, 0, 0];
    parameters[2..2 + operands.len()].copy_from_slice(operands);
    launch(&module, &parameters, [1, 1], &memory, 1)
        .unwrap_or_else(|fault| panic!("{instructions} of {operands:x?}: {fault}"));
    memory.word(8 * result)
}

/// The register of a type's width that ends in `name`.
fn register(bits: u32, name: &str) -> String {
    let letter = match bits {
        1 => 'p',
        16 => 'h',
        32 => 'r',
        _ => 'd',
    };
    format!("%{letter}{name}")
}
