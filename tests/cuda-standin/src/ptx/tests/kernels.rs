//! Kernels as a compiler emits them (`collectives.cu`), against results that the host computes.

use std::thread;

use super::{BASE, DeviceMemory};
use crate::ptx::{Fault, Launch, Module, Statistics};

fn module() -> Module {
    Module::parse(include_str!("collectives.ptx")).unwrap_or_else(|error| panic!("{error}"))
}

/// A kernel's argument.
enum Argument {
    /// Offset into the memory.
    At(usize),
    Word(u64),
    HalfWord(u32),
}
use Argument::{At, HalfWord, Word};

fn run(
    module: &Module,
    kernel: &str,
    arguments: &[Argument],
    [blocks, threads]: [u32; 2],
    memory: &DeviceMemory,
    seed: u64,
) -> Result<Statistics, Fault> {
    let entry = module.entry(kernel).unwrap();
    let mut parameters = vec![0; entry.parameters_bytes];
    for (argument, place) in arguments.iter().zip(&entry.parameters) {
        let value = match argument {
            At(offset_bytes) => BASE + *offset_bytes as u64,
            Word(value) => *value,
            HalfWord(value) => u64::from(*value),
        };
        parameters[place.offset_bytes..][..place.len_bytes]
            .copy_from_slice(&value.to_le_bytes()[..place.len_bytes]);
    }
    Launch {
        entry: &entry,
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

fn set_floats(
    memory: &DeviceMemory,
    offset_bytes: usize,
    value: impl Fn(usize) -> f32,
    count: usize,
) {
    for index in 0..count {
        memory.set_half_word(offset_bytes + 4 * index, value(index).to_bits());
    }
}

fn float(memory: &DeviceMemory, offset_bytes: usize, index: usize) -> f32 {
    f32::from_bits(memory.half_word(offset_bytes + 4 * index))
}

#[test]
fn two_peers_add_their_inputs_with_flags_between_them() {
    const COUNT: usize = 1000;
    const INPUTS: [usize; 2] = [0, 4096];
    const OUTPUTS: [usize; 2] = [8192, 12_288];
    const FLAGS: [usize; 2] = [16_384, 16_448];
    let module = module();
    for seed in 0..5 {
        let memory = DeviceMemory::new(16_512);
        set_floats(&memory, INPUTS[0], |index| index as f32, COUNT);
        set_floats(&memory, INPUTS[1], |index| 0.1 * index as f32, COUNT);
        let launch = |own: usize| {
            let arguments = [
                At(OUTPUTS[own]),
                At(INPUTS[own]),
                At(INPUTS[1 - own]),
                At(FLAGS[own]),
                At(FLAGS[1 - own]),
                HalfWord(7),
                Word(COUNT as u64),
            ];
            run(&module, "oneshot_f32", &arguments, [2, 256], &memory, seed + own as u64)
        };
        thread::scope(|scope| {
            let first = scope.spawn(|| launch(0));
            launch(1).unwrap();
            first.join().unwrap().unwrap();
        });
        for index in 0..COUNT {
            let sum = index as f32 + 0.1 * index as f32;
            for output in OUTPUTS {
                assert_eq!(float(&memory, output, index), sum);
            }
        }
    }
}

#[test]
fn words_with_their_flags_need_no_fence() {
    const COUNT: usize = 300;
    let [source, fifo, mine, out] = [0, 2048, 8192, 10_240];
    let module = module();
    let memory = DeviceMemory::new(12_288);
    for round in 1..4 {
        set_floats(&memory, source, |index| (round * index) as f32, COUNT);
        set_floats(&memory, mine, |_| 0.5, COUNT);
        let flag = round as u32;
        let send = [At(fifo), At(source), HalfWord(flag), Word(COUNT as u64)];
        let receive = [At(out), At(fifo), At(mine), HalfWord(flag), Word(COUNT as u64)];
        thread::scope(|scope| {
            let receiver =
                scope.spawn(|| run(&module, "ll_receive", &receive, [1, 64], &memory, 3));
            run(&module, "ll_send", &send, [1, 128], &memory, 4).unwrap();
            receiver.join().unwrap().unwrap();
        });
        for index in 0..COUNT {
            assert_eq!(float(&memory, out, index), (round * index) as f32 + 0.5);
        }
    }
}

#[test]
fn squares_are_summed_by_shuffles_shared_memory_and_atomics() {
    const COUNT: usize = 1000;
    let module = module();
    for seed in 0..10 {
        let memory = DeviceMemory::new(4096);
        set_floats(&memory, 0, |index| (index % 7) as f32, COUNT);
        let arguments = [At(0), At(4 * COUNT), Word(COUNT as u64)];
        run(&module, "sum_of_squares", &arguments, [3, 128], &memory, seed).unwrap();
        let sum: usize = (0..COUNT).map(|index| (index % 7) * (index % 7)).sum();
        assert_eq!(float(&memory, 4 * COUNT, 0), sum as f32);
    }
}

#[test]
fn sums_are_rounded_to_bf16() {
    const COUNT: usize = 512;
    let module = module();
    let memory = DeviceMemory::new(6 * COUNT);
    let operand = |index: usize| (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for word in 0..COUNT / 2 {
        memory.set_word(8 * word, operand(word));
    }
    let arguments = [At(4 * COUNT), At(0), At(2 * COUNT), Word(COUNT as u64)];
    run(&module, "add_bf16", &arguments, [2, 96], &memory, 1).unwrap();
    let bits = |offset_bytes: usize, index: usize| {
        let at = offset_bytes + 2 * index;
        (memory.word(at / 8 * 8) >> (at % 8 * 8)) as u16
    };
    for index in 0..COUNT {
        let [a, b] = [bits(0, index), bits(2 * COUNT, index)].map(half::bf16::from_bits);
        let expected = half::bf16::from_f32(a.to_f32() + b.to_f32());
        let result = half::bf16::from_bits(bits(4 * COUNT, index));
        assert!(result == expected || result.is_nan() && expected.is_nan(), "{a} + {b} = {result}");
    }
}
