//! All levels against a plain scalar reference, to the bit, on arbitrary bit patterns.

use half::{bf16, f16};

use super::{Level, Pass, copy, kernel, kernel_at};
use crate::{DataType, F8E4M3, F8E5M2, Factor, Op};

/// Bytes around each buffer that no kernel may touch.
const MARGIN_BYTES: usize = 72;
const MARGIN: u8 = 0xA5;

#[test]
fn every_level_gives_the_bits_of_the_reference() {
    let mut random = Random(1);
    for data_type in DataType::ALL {
        for pass in passes(data_type) {
            for count in (0..=64).chain([95, 96, 97, 127, 128, 191, 192]) {
                for sources in 1..=9 {
                    Case::random(data_type, pass, count, sources, &mut random).check();
                }
            }
            // Several times around the widest loop, and remainders of every kind after it.
            for count in [255, 256, 257, 1000, 1023, 1024, 4097] {
                for sources in [1, 2, 3, 4, 9] {
                    Case::random(data_type, pass, count, sources, &mut random).check();
                }
            }
        }
    }
}

/// Everything that a type has.
fn passes(data_type: DataType) -> Vec<Pass> {
    let mut passes = vec![];
    for op in data_type.ops() {
        passes.push(match op {
            Op::PreMulSum(_) => Pass::Scale { factor: -0.7 },
            _ => op.completing_pass(3),
        });
    }
    passes
}

#[test]
fn sums_have_the_bits_that_the_documentation_promises() {
    let nan = f32::from_bits(0xFF81_2345);
    fold_f32(Pass::Sum, &[1.5, 2.25], 3.75);
    fold_f32(Pass::Sum, &[f32::INFINITY, f32::NEG_INFINITY], f32::from_bits(0x7FC0_0000));
    fold_f32(Pass::Sum, &[nan, 1.0], f32::from_bits(0x7FC0_0000));
    fold_f32(Pass::Sum, &[1.0, nan], f32::from_bits(0x7FC0_0000));
    fold_f32(Pass::Sum, &[f32::from_bits(1), f32::from_bits(2)], f32::from_bits(3));
    fold_f32(Pass::Sum, &[-0.0, -0.0], -0.0);
    // Left to right: the other order would give 1.
    fold_f32(Pass::Sum, &[1e30, -1e30, 1.0], 1.0);
    fold_f32(Pass::Sum, &[1.0, 1e30, -1e30], 0.0);
    fold(DataType::I32, Pass::Sum, &[i32::MAX as u32, 1], i32::MIN as u32);
    fold(DataType::F64, Pass::Sum, &[f64::NAN.to_bits() | 1 << 63, 0], 0x7FF8_0000_0000_0000_u64);
}

#[test]
fn bf16_is_rounded_once_to_nearest_even() {
    let one = 0x3F80_u16;
    let half_ulp = 0x3B80; // 2^-8, half of the distance from 1 to the next number.
    fold(DataType::Bf16, Pass::Sum, &[one, half_ulp], one);
    fold(DataType::Bf16, Pass::Sum, &[one + 1, half_ulp], one + 2);
    // Rounding after each step would lose both halves.
    fold(DataType::Bf16, Pass::Sum, &[one, half_ulp, half_ulp], one + 1);
    // The largest number and half of its unit make infinity.
    fold(DataType::Bf16, Pass::Sum, &[0x7F7F_u16, 0x7B00], 0x7F80);
    fold(DataType::Bf16, Pass::Sum, &[1_u16, 1], 2);
    fold(DataType::Bf16, Pass::Sum, &[0xFFFF_u16, one], 0x7FC0);
    fold(DataType::Bf16, Pass::Max, &[one, 0xFF81_u16], 0x7FC0);
}

#[test]
fn maximum_knows_signed_zeros_and_nan_wins() {
    let nan = f32::from_bits(0xFF81_2345);
    for operands in [[-0.0, 0.0], [0.0, -0.0]] {
        fold_f32(Pass::Max, &operands, 0.0);
    }
    fold_f32(Pass::Max, &[-0.0, -0.0], -0.0);
    fold_f32(Pass::Max, &[-1.0, f32::NEG_INFINITY], -1.0);
    fold_f32(Pass::Max, &[f32::from_bits(1), -1.0], f32::from_bits(1));
    for operands in [[nan, f32::INFINITY, 1.0], [1.0, nan, f32::INFINITY], [2.0, 1.0, nan]] {
        fold_f32(Pass::Max, &operands, f32::from_bits(0x7FC0_0000));
    }
    fold(DataType::I32, Pass::Max, &[i32::MIN as u32, -1_i32 as u32], -1_i32 as u32);
}

#[test]
fn minimum_knows_signed_zeros_and_nan_wins() {
    let nan = f32::from_bits(0xFF81_2345);
    for operands in [[-0.0, 0.0], [0.0, -0.0]] {
        fold_f32(Pass::Min, &operands, -0.0);
    }
    fold_f32(Pass::Min, &[1.0, f32::INFINITY], 1.0);
    for operands in [[nan, f32::NEG_INFINITY, 1.0], [1.0, nan, -1.0], [2.0, 1.0, nan]] {
        fold_f32(Pass::Min, &operands, f32::from_bits(0x7FC0_0000));
    }
    fold(DataType::I8, Pass::Min, &[0x7F_u8, 0x80], 0x80);
    fold(DataType::U8, Pass::Min, &[0x7F_u8, 0x80], 0x7F);
}

#[test]
fn sums_that_are_too_large_are_infinite_or_nan() {
    fold(DataType::F16, Pass::Sum, &[0x7BFF_u16, 0x4B00], 0x7BFF);
    fold(DataType::F16, Pass::Sum, &[0x7BFF_u16, 0x4C00], 0x7C00);
    fold(DataType::F16, Pass::Sum, &[0xFBFF_u16, 0xFBFF], 0xFC00);
    fold(DataType::F8E5M2, Pass::Sum, &[0xFB_u8, 0xFB], 0xFC);
    // 448 and 16 are half-way to what would come next; e4m3 has nothing there but NaN.
    fold(DataType::F8E4M3, Pass::Sum, &[0x7E_u8, 0x58], 0x7E);
    fold(DataType::F8E4M3, Pass::Sum, &[0xFE_u8, 0xD8, 0xB8], 0x7F);
}

#[test]
fn averages_are_divided_once() {
    let average = |ranks| Pass::Average { ranks };
    fold_f32(average(3), &[1.0, 1.0, 2.0], 4.0 / 3.0);
    // In single precision before it is rounded: the sum alone would be infinite.
    fold(DataType::F16, average(2), &[0x7BFF_u16, 0x7BFF], 0x7BFF);
    fold(DataType::Bf16, average(4), &[0x3F80_u16, 0x3F80, 0x3F80, 0x4000], 0x3FA0);
}

/// The numbers of the types that users hold are what the kernels take them for.
#[test]
fn fp8_numbers_are_those_of_their_types() {
    for code in 0..=u8::MAX {
        let e4m3 = narrow_value(code.into(), 3, 7, 0x7F, 8) as f32;
        let e5m2 = narrow_value(code.into(), 2, 15, 0x7D, 8) as f32;
        let same = |a: f32, b: f32| a == b && a.is_sign_negative() == b.is_sign_negative();
        let both_nan = |a: f32, b: f32| a.is_nan() && b.is_nan();
        let theirs = F8E4M3::from_bits(code).to_f32();
        assert!(same(e4m3, theirs) || both_nan(e4m3, theirs), "{code:x}: {e4m3} {theirs}");
        let theirs = F8E5M2::from_bits(code).to_f32();
        assert!(same(e5m2, theirs) || both_nan(e5m2, theirs), "{code:x}: {e5m2} {theirs}");
        // A fold of one number gives it back.
        let quiet = |is_nan: bool, nan: u8| if is_nan { nan } else { code };
        fold(DataType::F8E4M3, Pass::Sum, &[code], quiet(e4m3.is_nan(), 0x7F));
        fold(DataType::F8E5M2, Pass::Sum, &[code], quiet(e5m2.is_nan(), 0x7E));
    }
}

#[test]
fn every_f16_is_itself_after_a_fold() {
    for code in 0..=u16::MAX {
        let is_nan = f16::from_bits(code).is_nan();
        fold(DataType::F16, Pass::Sum, &[code], if is_nan { 0x7E00 } else { code });
    }
}

#[test]
fn what_a_type_does_not_have_it_says() {
    assert!(!DataType::F32.has(Op::BitAnd) && DataType::I64.has(Op::BitXor));
    assert!(!DataType::U8.has(Op::Average) && DataType::Bf16.has(Op::Average));
    assert!(!DataType::I32.has(Op::PreMulSum(Factor::ONE)));
    assert!(!DataType::F8E4M3.has(Op::Product) && DataType::F8E5M2.has(Op::Min));
    for op in Op::ALL {
        assert_eq!(Op::from_number(op.number()), Some(op));
    }
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
    let sum = kernel(DataType::F32, Pass::Sum);
    // SAFETY: the destination has four elements.
    unsafe { sum.run(&[], &[untouched.as_mut_ptr()], 4) };
    assert_eq!(untouched, [7; 16]);
}

/// Folds one value a source, at every level, in buffers long enough for each of the loop's widths.
fn fold<T: Copy + PartialEq + std::fmt::Debug>(
    data_type: DataType,
    pass: Pass,
    operands: &[T],
    expected: T,
) {
    assert_eq!(size_of::<T>(), data_type.size_bytes());
    const COUNT: usize = 511;
    let sources: Vec<Vec<T>> = operands.iter().map(|&operand| vec![operand; COUNT]).collect();
    let pointers: Vec<*const u8> = sources.iter().map(|source| source.as_ptr().cast()).collect();
    for level in Level::ALL {
        let Some(kernel) = kernel_at(level, data_type, pass) else { continue };
        let mut result = vec![operands[0]; COUNT];
        // SAFETY: all buffers have COUNT elements.
        unsafe { kernel.run(&pointers, &[result.as_mut_ptr().cast()], COUNT) };
        assert!(result.iter().all(|r| *r == expected), "{level:?} {operands:?}: {result:?}");
    }
}

fn fold_f32(pass: Pass, operands: &[f32], expected: f32) {
    let operands: Vec<u32> = operands.iter().map(|operand| operand.to_bits()).collect();
    fold(DataType::F32, pass, &operands, expected.to_bits());
}

/// One reduction with everything that can vary.
#[derive(Debug)]
struct Case {
    data_type: DataType,
    pass: Pass,
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
        pass: Pass,
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
            pass,
            count,
            sources: (0..sources).map(|_| random.elements(data_type, count)).collect(),
            misalignments: (0..sources).map(|_| random.below(65)).collect(),
            destinations: targets,
        }
    }

    fn check(&self) {
        let expected = self.reference();
        for level in Level::ALL {
            let Some(kernel) = kernel_at(level, self.data_type, self.pass) else { continue };
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
            reference(self.data_type, self.pass, &operands)
        };
        (0..self.count).flat_map(element).collect()
    }
}

/// The result for one element, written as the documentation says it.
fn reference(data_type: DataType, pass: Pass, operands: &[Vec<u8>]) -> Vec<u8> {
    macro_rules! reference_float {
        ($float:ty, $canonical_nan:expr) => {{
            let numbers =
                operands.iter().map(|o| <$float>::from_ne_bytes(o[..].try_into().unwrap()));
            let nan = numbers.clone().find(|number| number.is_nan());
            let sum = numbers.clone().reduce(|a, b| a + b).unwrap();
            let result = match pass {
                Pass::Sum => sum,
                Pass::Average { ranks } => sum / ranks as $float,
                Pass::Scale { factor } => sum * factor as $float,
                Pass::Product => numbers.reduce(|a, b| a * b).unwrap(),
                Pass::Max => nan.unwrap_or_else(|| numbers.max_by(<$float>::total_cmp).unwrap()),
                Pass::Min => nan.unwrap_or_else(|| numbers.min_by(<$float>::total_cmp).unwrap()),
                _ => unreachable!("no float has it"),
            };
            let bits = if result.is_nan() { $canonical_nan } else { result.to_bits() };
            bits.to_ne_bytes().to_vec()
        }};
    }
    macro_rules! reference_integer {
        ($integer:ty) => {{
            let numbers =
                operands.iter().map(|o| <$integer>::from_ne_bytes(o[..].try_into().unwrap()));
            let result = match pass {
                Pass::Sum => numbers.reduce(<$integer>::wrapping_add),
                Pass::Product => numbers.reduce(<$integer>::wrapping_mul),
                Pass::Max => numbers.max(),
                Pass::Min => numbers.min(),
                Pass::BitAnd => numbers.reduce(|a, b| a & b),
                Pass::BitOr => numbers.reduce(|a, b| a | b),
                Pass::BitXor => numbers.reduce(|a, b| a ^ b),
                _ => unreachable!("no integer has it"),
            };
            result.unwrap().to_ne_bytes().to_vec()
        }};
    }
    let in_f32 = |widen: fn(&[u8]) -> f32| {
        let wide: Vec<Vec<u8>> = operands.iter().map(|o| widen(o).to_ne_bytes().to_vec()).collect();
        let folded = reference(DataType::F32, pass, &wide);
        f32::from_ne_bytes(folded[..].try_into().unwrap())
    };
    match data_type {
        DataType::F32 => reference_float!(f32, 0x7FC0_0000_u32),
        DataType::F64 => reference_float!(f64, 0x7FF8_0000_0000_0000_u64),
        DataType::I8 => reference_integer!(i8),
        DataType::U8 => reference_integer!(u8),
        DataType::I32 => reference_integer!(i32),
        DataType::U32 => reference_integer!(u32),
        DataType::I64 => reference_integer!(i64),
        DataType::U64 => reference_integer!(u64),
        DataType::Bf16 => {
            let folded = in_f32(|o| bf16::from_ne_bytes(o.try_into().unwrap()).to_f32());
            let bits = if folded.is_nan() { 0x7FC0 } else { bf16::from_f32(folded).to_bits() };
            bits.to_ne_bytes().to_vec()
        }
        DataType::F16 => {
            let folded = in_f32(|o| f16::from_ne_bytes(o.try_into().unwrap()).to_f32());
            let bits = if folded.is_nan() { 0x7E00 } else { f16::from_f32(folded).to_bits() };
            bits.to_ne_bytes().to_vec()
        }
        DataType::F8E4M3 => {
            let folded = in_f32(|o| narrow_value(o[0].into(), 3, 7, 0x7F, 8) as f32);
            let code = nearest(folded, 3, 7, 0x7F);
            vec![if code & 0x7F == 0x7F { 0x7F } else { code }]
        }
        DataType::F8E5M2 => {
            let folded = in_f32(|o| narrow_value(o[0].into(), 2, 15, 0x7D, 8) as f32);
            vec![if folded.is_nan() { 0x7E } else { nearest(folded, 2, 15, 0x7C) }]
        }
    }
}

/// What a narrow number is, by its definition. `first_nan` is the first magnitude that is none; where
/// infinity comes before it, that is the largest exponent without mantissa.
fn narrow_value(code: u32, mantissa: u32, bias: i32, first_nan: u32, width: u32) -> f64 {
    let magnitude = code & ((1 << (width - 1)) - 1);
    let sign = if code == magnitude { 1.0 } else { -1.0 };
    if magnitude >= first_nan {
        return f64::NAN;
    }
    if magnitude + 1 == first_nan && magnitude & ((1 << mantissa) - 1) == 0 {
        return sign * f64::INFINITY;
    }
    sign * finite_value(magnitude, mantissa, bias)
}

fn finite_value(magnitude: u32, mantissa: u32, bias: i32) -> f64 {
    let exponent = (magnitude >> mantissa) as i32;
    let fraction = f64::from(magnitude & ((1 << mantissa) - 1)) / f64::from(1 << mantissa);
    match exponent {
        0 => fraction * 2_f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2_f64.powi(exponent - bias),
    }
}

/// The 8-bit number nearest to `value`, the even one of two, where `first_special` stands for what
/// would be the next number if there were one.
fn nearest(value: f32, mantissa: u32, bias: i32, first_special: u32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = f64::from(value.abs());
    if value.is_nan() || value.is_infinite() {
        return sign | first_special as u8;
    }
    let distance = |code: &u32| (finite_value(*code, mantissa, bias) - magnitude).abs();
    let by_distance =
        |a: &u32, b: &u32| distance(a).total_cmp(&distance(b)).then_with(|| (a & 1).cmp(&(b & 1)));
    sign | (0..=first_special).min_by(by_distance).unwrap() as u8
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
            const SPECIAL_F16: [u16; 9] =
                [0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF, 0x0001, 0x8001, 0x7BFF, 0x0400];
            bytes.extend_from_slice(&match data_type {
                DataType::F64 => bits.to_ne_bytes().to_vec(),
                DataType::I64 | DataType::U64 => arbitrary.to_ne_bytes().to_vec(),
                DataType::Bf16 => ((bits >> 48) as u16).to_ne_bytes().to_vec(),
                DataType::F16 => {
                    let near_one = 0x3C00 ^ (arbitrary as u16 & 0x83FF);
                    let special = SPECIAL_F16[self.below(SPECIAL_F16.len())];
                    [special, arbitrary as u16, near_one, near_one][kind].to_ne_bytes().to_vec()
                }
                DataType::F32 | DataType::I32 | DataType::U32 => {
                    ((bits >> 32) as u32).to_ne_bytes().to_vec()
                }
                DataType::F8E4M3 | DataType::F8E5M2 | DataType::I8 | DataType::U8 => {
                    vec![arbitrary as u8]
                }
            });
        }
        bytes
    }
}
