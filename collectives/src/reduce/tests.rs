//! All levels against a plain scalar reference, to the bit, on arbitrary bit patterns.

use half::bf16;

use super::{Level, copy, kernel, kernel_at};
use crate::{DataType, Op};

/// Bytes around each buffer that no kernel may touch.
const MARGIN_BYTES: usize = 72;
const MARGIN: u8 = 0xA5;

#[test]
fn every_level_gives_the_bits_of_the_reference() {
    let mut random = Random(1);
    for data_type in DataType::ALL {
        for op in Op::ALL {
            for count in 0..=200 {
                for sources in 1..=9 {
                    Case::random(data_type, op, count, sources, &mut random).check();
                }
            }
            // Several times around the widest loop, and remainders of every kind after it.
            for count in [1000, 1023, 1024, 4097] {
                for sources in [1, 2, 3, 9] {
                    Case::random(data_type, op, count, sources, &mut random).check();
                }
            }
        }
    }
}

#[test]
fn sums_have_the_bits_that_the_documentation_promises() {
    let nan = f32::from_bits(0xFF81_2345);
    fold_f32(Op::Sum, &[1.5, 2.25], 3.75);
    fold_f32(Op::Sum, &[f32::INFINITY, f32::NEG_INFINITY], f32::from_bits(0x7FC0_0000));
    fold_f32(Op::Sum, &[nan, 1.0], f32::from_bits(0x7FC0_0000));
    fold_f32(Op::Sum, &[1.0, nan], f32::from_bits(0x7FC0_0000));
    fold_f32(Op::Sum, &[f32::from_bits(1), f32::from_bits(2)], f32::from_bits(3));
    fold_f32(Op::Sum, &[-0.0, -0.0], -0.0);
    // Left to right: the other order would give 1.
    fold_f32(Op::Sum, &[1e30, -1e30, 1.0], 1.0);
    fold_f32(Op::Sum, &[1.0, 1e30, -1e30], 0.0);
    fold(DataType::I32, Op::Sum, &[i32::MAX as u32, 1], i32::MIN as u32);
    fold(DataType::F64, Op::Sum, &[f64::NAN.to_bits() | 1 << 63, 0], 0x7FF8_0000_0000_0000_u64);
}

#[test]
fn bf16_is_rounded_once_to_nearest_even() {
    let one = 0x3F80_u16;
    let half_ulp = 0x3B80; // 2^-8, half of the distance from 1 to the next number.
    fold(DataType::Bf16, Op::Sum, &[one, half_ulp], one);
    fold(DataType::Bf16, Op::Sum, &[one + 1, half_ulp], one + 2);
    // Rounding after each step would lose both halves.
    fold(DataType::Bf16, Op::Sum, &[one, half_ulp, half_ulp], one + 1);
    // The largest number and half of its unit make infinity.
    fold(DataType::Bf16, Op::Sum, &[0x7F7F_u16, 0x7B00], 0x7F80);
    fold(DataType::Bf16, Op::Sum, &[1_u16, 1], 2);
    fold(DataType::Bf16, Op::Sum, &[0xFFFF_u16, one], 0x7FC0);
    fold(DataType::Bf16, Op::Max, &[one, 0xFF81_u16], 0x7FC0);
}

#[test]
fn maximum_knows_signed_zeros_and_nan_wins() {
    let nan = f32::from_bits(0xFF81_2345);
    for operands in [[-0.0, 0.0], [0.0, -0.0]] {
        fold_f32(Op::Max, &operands, 0.0);
    }
    fold_f32(Op::Max, &[-0.0, -0.0], -0.0);
    fold_f32(Op::Max, &[-1.0, f32::NEG_INFINITY], -1.0);
    fold_f32(Op::Max, &[f32::from_bits(1), -1.0], f32::from_bits(1));
    for operands in [[nan, f32::INFINITY, 1.0], [1.0, nan, f32::INFINITY], [2.0, 1.0, nan]] {
        fold_f32(Op::Max, &operands, f32::from_bits(0x7FC0_0000));
    }
    fold(DataType::I32, Op::Max, &[i32::MIN as u32, -1_i32 as u32], -1_i32 as u32);
}

#[test]
fn copies_reach_every_destination_and_leave_the_source() {
    let mut random = Random(2);
    for len_bytes in [0, 1, 7, 8, 4096, 8192, 8193, 50_001] {
        let source: Vec<u8> = (0..len_bytes).map(|_| random.next() as u8).collect();
        for destinations in [0, 1, 2, 5] {
            let mut own = source.clone();
            let mut others = vec![vec![0; len_bytes]; destinations];
            let mut pointers: Vec<*mut u8> = others.iter_mut().map(|o| o.as_mut_ptr()).collect();
            pointers.push(own.as_mut_ptr());
            // SAFETY: all buffers have the length; the last destination is the source.
            unsafe { copy(own.as_ptr(), &pointers, len_bytes) };
            assert!(others.iter().chain([&own]).all(|buffer| *buffer == source));
        }
    }
}

#[test]
fn nothing_is_written_without_sources() {
    let mut untouched = [7_u8; 16];
    let sum = kernel(DataType::F32, Op::Sum);
    // SAFETY: the destination has four elements.
    unsafe { sum.run(&[], &[untouched.as_mut_ptr()], 4) };
    assert_eq!(untouched, [7; 16]);
}

/// Folds one value a source, at every level, in buffers long enough for each of the loop's widths.
fn fold<T: Copy + PartialEq + std::fmt::Debug>(
    data_type: DataType,
    op: Op,
    operands: &[T],
    expected: T,
) {
    assert_eq!(size_of::<T>(), data_type.size_bytes());
    const COUNT: usize = 255;
    let sources: Vec<Vec<T>> = operands.iter().map(|&operand| vec![operand; COUNT]).collect();
    let pointers: Vec<*const u8> = sources.iter().map(|source| source.as_ptr().cast()).collect();
    for level in Level::ALL {
        let Some(kernel) = kernel_at(level, data_type, op) else { continue };
        let mut result = vec![operands[0]; COUNT];
        // SAFETY: all buffers have COUNT elements.
        unsafe { kernel.run(&pointers, &[result.as_mut_ptr().cast()], COUNT) };
        assert!(result.iter().all(|r| *r == expected), "{level:?} {operands:?}: {result:?}");
    }
}

fn fold_f32(op: Op, operands: &[f32], expected: f32) {
    let operands: Vec<u32> = operands.iter().map(|operand| operand.to_bits()).collect();
    fold(DataType::F32, op, &operands, expected.to_bits());
}

/// One reduction with everything that can vary.
#[derive(Debug)]
struct Case {
    data_type: DataType,
    op: Op,
    count: usize,
    /// The elements of each source.
    sources: Vec<Vec<u8>>,
    /// How far each source's buffer is from an aligned address.
    misalignments: Vec<usize>,
    /// For each destination, the source that it is, or how far it is from an aligned address.
    destinations: Vec<Target>,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Source(usize),
    Own { misalignment: usize },
}

impl Case {
    fn random(
        data_type: DataType,
        op: Op,
        count: usize,
        sources: usize,
        random: &mut Random,
    ) -> Case {
        let mut targets = Vec::new();
        for _ in 0..1 + random.below(9) {
            targets.push(match random.below(3) {
                0 => Target::Source(random.below(sources)),
                _ => Target::Own { misalignment: random.below(65) },
            });
        }
        Case {
            data_type,
            op,
            count,
            sources: (0..sources).map(|_| random.elements(data_type, count)).collect(),
            misalignments: (0..sources).map(|_| random.below(65)).collect(),
            destinations: targets,
        }
    }

    fn check(&self) {
        let expected = self.reference();
        for level in Level::ALL {
            let Some(kernel) = kernel_at(level, self.data_type, self.op) else { continue };
            let mut sources: Vec<Padded> = (self.sources.iter().zip(&self.misalignments))
                .map(|(source, &misalignment)| Padded::new(source, misalignment))
                .collect();
            let mut own: Vec<Option<Padded>> = (self.destinations.iter())
                .map(|target| match *target {
                    Target::Source(_) => None,
                    Target::Own { misalignment } => {
                        Some(Padded::new(&vec![0; expected.len()], misalignment))
                    }
                })
                .collect();

            let inputs: Vec<*mut u8> = sources.iter_mut().map(Padded::content).collect();
            let outputs: Vec<*mut u8> = (self.destinations.iter().zip(&mut own))
                .map(|(target, own)| match (*target, own) {
                    (_, Some(own)) => own.content(),
                    (Target::Source(source), None) => inputs[source],
                    (Target::Own { .. }, None) => unreachable!("every own target has a buffer"),
                })
                .collect();
            let inputs: Vec<*const u8> = inputs.iter().map(|input| input.cast_const()).collect();
            // SAFETY: every buffer has `count` elements between its margins.
            unsafe { kernel.run(&inputs, &outputs, self.count) };

            for (index, target) in self.destinations.iter().enumerate() {
                let result = match (*target, &own[index]) {
                    (_, Some(own)) => own,
                    (Target::Source(source), None) => &sources[source],
                    (Target::Own { .. }, None) => unreachable!("every own target has a buffer"),
                };
                result.assert_holds(&expected, || format!("{level:?} {self:?}"));
            }
            for (index, source) in self.sources.iter().enumerate() {
                let is = |target: &Target| matches!(target, Target::Source(s) if *s == index);
                if !self.destinations.iter().any(is) {
                    sources[index].assert_holds(source, || format!("{level:?} source {self:?}"));
                }
            }
        }
    }

    fn reference(&self) -> Vec<u8> {
        let size_bytes = self.data_type.size_bytes();
        let element = |index: usize| {
            let of = |source: &Vec<u8>| source[index * size_bytes..][..size_bytes].to_vec();
            let operands: Vec<Vec<u8>> = self.sources.iter().map(of).collect();
            reference(self.data_type, self.op, &operands)
        };
        (0..self.count).flat_map(element).collect()
    }
}

/// The result for one element, written as the documentation says it.
fn reference(data_type: DataType, op: Op, operands: &[Vec<u8>]) -> Vec<u8> {
    macro_rules! reference_float {
        ($float:ty, $canonical_nan:expr) => {{
            let numbers =
                operands.iter().map(|o| <$float>::from_ne_bytes(o[..].try_into().unwrap()));
            let result = match op {
                Op::Sum => numbers.reduce(|a, b| a + b).unwrap(),
                Op::Max => (numbers.clone().find(|number| number.is_nan()))
                    .unwrap_or_else(|| numbers.max_by(<$float>::total_cmp).unwrap()),
            };
            let bits = if result.is_nan() { $canonical_nan } else { result.to_bits() };
            bits.to_ne_bytes().to_vec()
        }};
    }
    match data_type {
        DataType::F32 => reference_float!(f32, 0x7FC0_0000_u32),
        DataType::F64 => reference_float!(f64, 0x7FF8_0000_0000_0000_u64),
        DataType::I32 => {
            let numbers = operands.iter().map(|o| i32::from_ne_bytes(o[..].try_into().unwrap()));
            let result = match op {
                Op::Sum => numbers.reduce(i32::wrapping_add),
                Op::Max => numbers.max(),
            };
            result.unwrap().to_ne_bytes().to_vec()
        }
        DataType::Bf16 => {
            let widen = |o: &Vec<u8>| {
                bf16::from_bits(u16::from_ne_bytes(o[..].try_into().unwrap())).to_f32()
            };
            let wide: Vec<Vec<u8>> =
                operands.iter().map(|o| widen(o).to_ne_bytes().to_vec()).collect();
            let folded = reference(DataType::F32, op, &wide);
            let folded = f32::from_ne_bytes(folded[..].try_into().unwrap());
            let bits = if folded.is_nan() { 0x7FC0 } else { bf16::from_f32(folded).to_bits() };
            bits.to_ne_bytes().to_vec()
        }
    }
}

/// A buffer between margins, at a chosen distance from an aligned address.
struct Padded {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Padded {
    fn new(content: &[u8], misalignment: usize) -> Padded {
        let mut bytes = vec![MARGIN; content.len() + 64 + 65 + 2 * MARGIN_BYTES];
        let aligned = (bytes.as_ptr() as usize + MARGIN_BYTES).next_multiple_of(64);
        let start = aligned - bytes.as_ptr() as usize + misalignment;
        bytes[start..start + content.len()].copy_from_slice(content);
        Padded { bytes, start, len: content.len() }
    }

    fn content(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    fn assert_holds(&self, expected: &[u8], describe: impl Fn() -> String) {
        let (before, rest) = self.bytes.split_at(self.start);
        let (content, after) = rest.split_at(self.len);
        assert!(content == expected, "{}\n{content:x?}\nexpected\n{expected:x?}", describe());
        let whole = before.iter().chain(after).all(|byte| *byte == MARGIN);
        assert!(whole, "margin written: {}", describe());
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 8
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Elements of every kind: arbitrary bits, near-equal numbers, zeros, infinities, NaN with and
    /// without payload, denormals, and the largest numbers.
    fn elements(&mut self, data_type: DataType, count: usize) -> Vec<u8> {
        // As the upper 16 bits of an f32; an f64 has three bits of exponent more.
        const SPECIAL: [u16; 10] =
            [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81, 0x0001, 0x8001, 0x7F7F];
        let mut bytes = Vec::new();
        for _ in 0..count {
            let special = SPECIAL[self.below(SPECIAL.len())];
            let low = [0, 1, u64::MAX >> 16, self.next()][self.below(4)] & (u64::MAX >> 16);
            let special_f64 = match special & 0x7F80 {
                0x7F80 => special & 0x8000 | 0x7FF0 | (special & 0x7F) >> 3,
                _ => special,
            };
            let kind = self.below(4);
            let arbitrary = self.next() ^ self.next() << 32;
            let near_one = 0x3F80_0000_0000_0000 ^ (arbitrary & 0x807F_FFFF_FFFF_FFFF);
            let bits = match (kind, data_type) {
                (0, DataType::F64) => u64::from(special_f64) << 48 | low,
                (0, _) => u64::from(special) << 48 | low,
                (1, _) => arbitrary,
                (_, _) => near_one,
            };
            bytes.extend_from_slice(&match data_type {
                DataType::F64 => bits.to_ne_bytes().to_vec(),
                DataType::Bf16 => ((bits >> 48) as u16).to_ne_bytes().to_vec(),
                DataType::F32 | DataType::I32 => ((bits >> 32) as u32).to_ne_bytes().to_vec(),
            });
        }
        bytes
    }
}
