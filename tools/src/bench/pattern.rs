//! Inputs whose sums are exact in every type and in whatever order they are added, so that every
//! element of a result can be compared with what it must be.

use ringtree::{DataType, Element, F8E4M3, F8E5M2, Factor, Op, bf16, f16};

use super::layout::{Origin, Piece};

/// Elements are of one of so many kinds; the kind changes without a period from one to the next.
const KINDS: usize = 64;

/// An element type that the patterns are written in.
pub trait Patterned: Element {
    /// What an element holds that nobody has written: equal to no input and hardly any result.
    const UNWRITTEN: Self;

    /// The number as an element: exact within [`exact_limit`], and an integer's low bits.
    fn from_number(number: i64) -> Self;

    /// What the elements of two ranks become; of an average, their sum.
    fn combine(self, other: Self, op: Op) -> Self;

    /// Multiplied, where the type has factors.
    fn times(self, factor: f64) -> Self;

    /// Divided, where the type has averages.
    fn over(self, ranks: u32) -> Self;
}

macro_rules! patterned_float {
    ($type:ident, $unwritten:expr, $wide:ident, $widen:expr, $narrow:expr) => {
        impl Patterned for $type {
            const UNWRITTEN: Self = $unwritten;

            fn from_number(number: i64) -> Self {
                $narrow(number as $wide)
            }

            fn combine(self, other: Self, op: Op) -> Self {
                let (a, b) = ($widen(self), $widen(other));
                $narrow(match op {
                    Op::Max => a.max(b),
                    Op::Min => a.min(b),
                    Op::Product => a * b,
                    _ => a + b,
                })
            }

            fn times(self, factor: f64) -> Self {
                $narrow($widen(self) * factor as $wide)
            }

            fn over(self, ranks: u32) -> Self {
                $narrow($widen(self) / ranks as $wide)
            }
        }
    };
}

patterned_float!(f32, -3_145_728.0, f32, |x: f32| x, |x: f32| x);
patterned_float!(f64, -3_145_728.0, f64, |x: f64| x, |x: f64| x);
patterned_float!(bf16, bf16::MIN, f32, bf16::to_f32, bf16::from_f32);
patterned_float!(f16, f16::MIN, f32, f16::to_f32, f16::from_f32);
patterned_float!(F8E4M3, F8E4M3::from_bits(0xFE), f32, |x: F8E4M3| x.to_f32(), F8E4M3::from_f32);
patterned_float!(F8E5M2, F8E5M2::from_bits(0xFB), f32, |x: F8E5M2| x.to_f32(), F8E5M2::from_f32);

macro_rules! patterned_integer {
    ($($type:ident $unwritten:expr),*) => {$(
        impl Patterned for $type {
            const UNWRITTEN: Self = $unwritten;

            fn from_number(number: i64) -> Self {
                number as $type
            }

            fn combine(self, other: Self, op: Op) -> Self {
                match op {
                    Op::Max => self.max(other),
                    Op::Min => self.min(other),
                    Op::Product => self.wrapping_mul(other),
                    Op::BitAnd => self & other,
                    Op::BitOr => self | other,
                    Op::BitXor => self ^ other,
                    Op::Sum | Op::Average | Op::PreMulSum(_) => self.wrapping_add(other),
                }
            }

            fn times(self, _: f64) -> Self {
                self
            }

            fn over(self, _: u32) -> Self {
                self
            }
        }
    )*};
}

patterned_integer!(i8 -128, u8 128, i32 -3 << 20, u32 3 << 29, i64 -3 << 20, u64 3 << 61);

/// What the ranks of a call put in, and what comes out.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// What reduces, if anything does.
    pub op: Option<Op>,
    /// How many ranks there are.
    pub ranks: u32,
}

impl Pattern {
    /// What elements of each kind are.
    fn values<T: Patterned>(self, origin: Origin) -> [T; KINDS] {
        match (origin, self.op) {
            (Origin::Rank(rank), _) => std::array::from_fn(|kind| self.given(kind, rank)),
            (Origin::Reduced, Some(op)) => std::array::from_fn(|kind| self.reduced(kind, op)),
            (Origin::Reduced, None) => unreachable!("an operation reduces"),
        }
    }

    fn given<T: Patterned>(self, kind: usize, rank: u32) -> T {
        T::from_number(match self.op {
            Some(Op::Product) => factor(kind, rank),
            _ => number(T::DATA_TYPE, kind, rank, self.ranks),
        })
    }

    fn reduced<T: Patterned>(self, kind: usize, op: Op) -> T {
        let given = |rank| match with_factor(op, rank) {
            Op::PreMulSum(factor) => self.given::<T>(kind, rank).times(factor.get()),
            _ => self.given(kind, rank),
        };
        let folded = (1..self.ranks).fold(given(0), |all, rank| all.combine(given(rank), op));
        if op == Op::Average { folded.over(self.ranks) } else { folded }
    }

    /// Writes pieces of a buffer.
    pub fn fill<T: Patterned>(self, buffer: &mut [T], pieces: &[Piece]) {
        for piece in pieces {
            let values = self.values::<T>(piece.origin);
            let elements = buffer[piece.place.clone()].iter_mut().zip(piece.index..);
            elements.for_each(|(element, index)| *element = values[kind(index)]);
        }
    }

    /// How many elements of a buffer differ from what the pieces say.
    pub fn wrong<T: Patterned>(self, buffer: &[T], pieces: &[Piece]) -> u64 {
        let wrong = pieces.iter().map(|piece| {
            let values = self.values::<T>(piece.origin);
            let elements = buffer[piece.place.clone()].iter().zip(piece.index..);
            elements.filter(|&(element, index)| *element != values[kind(index)]).count() as u64
        });
        wrong.sum()
    }
}

/// The operation, with a factor of the rank's own where it has factors: every sum stays exact.
pub fn with_factor(op: Op, rank: u32) -> Op {
    match op {
        Op::PreMulSum(_) if rank.is_multiple_of(2) => Op::PreMulSum(Factor::new(0.5)),
        Op::PreMulSum(_) => Op::PreMulSum(Factor::new(-0.5)),
        op => op,
    }
}

/// The kind of an element: the upper bits of its index times the golden ratio.
fn kind(index: usize) -> usize {
    ((index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as usize
}

/// One rank's number of one kind: a small count, with a sign and a power of two that are the
/// kind's. Any sum of counts stays within what the type represents exactly.
fn number(data_type: DataType, kind: usize, rank: u32, ranks: u32) -> i64 {
    let limit = exact_limit(data_type);
    let counts = (limit / i64::from(ranks) + 1).clamp(2, 31);
    // Where even ones add up to too much, the last ranks put in zeros.
    let is_counted = i64::from(rank) < limit;
    let count = (kind as i64 * 7 + i64::from(rank) * 5 + 1) % counts;
    let sign = if kind.is_multiple_of(2) { 1 } else { -1 };
    if is_counted { sign * (count << (kind % 5)) } else { 0 }
}

/// One rank's number of one kind for products, which are whole and at most 8.
fn factor(kind: usize, rank: u32) -> i64 {
    let sign = if (kind + rank as usize).is_multiple_of(3) { -1 } else { 1 };
    if rank < 3 { sign * (1 + (kind as i64 + i64::from(rank)) % 2) } else { sign }
}

/// All whole numbers up to this one are represented exactly, by themselves and times 16.
fn exact_limit(data_type: DataType) -> i64 {
    match data_type {
        DataType::F32 => 1 << 24,
        DataType::F64 => 1 << 53,
        DataType::Bf16 => 1 << 8,
        DataType::F16 => 1 << 11,
        DataType::F8E4M3 => 1 << 4,
        DataType::F8E5M2 => 1 << 3,
        DataType::I8 | DataType::U8 => 6,
        DataType::I32 | DataType::U32 | DataType::I64 | DataType::U64 => 1 << 26,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reductions_are_exact<T: Patterned>() {
        for op in T::DATA_TYPE.ops() {
            reduction_is_exact::<T>(op);
        }
    }

    fn reduction_is_exact<T: Patterned>(op: Op) {
        for ranks in [1, 2, 3, 7, 64, 255, 256, 257, 1000] {
            let pattern = Pattern { op: Some(op), ranks };
            let results = pattern.values::<T>(Origin::Reduced);
            for (kind, result) in results.into_iter().enumerate() {
                let given = |rank: u32| match with_factor(op, rank) {
                    Op::PreMulSum(factor) => pattern.given::<T>(kind, rank).times(factor.get()),
                    _ => pattern.given(kind, rank),
                };
                let end = |sum: T| if op == Op::Average { sum.over(ranks) } else { sum };
                let combine = |a: T, b: T| a.combine(b, op);
                let upwards = (0..ranks).map(given).reduce(combine).map(end);
                let downwards = (0..ranks).rev().map(given).reduce(combine).map(end);
                assert_eq!(upwards, Some(result), "{op:?} of {ranks} {}", T::DATA_TYPE.name());
                assert_eq!(downwards, upwards);
                let is_written = |rank| pattern.given::<T>(kind, rank) != T::UNWRITTEN;
                assert!((0..ranks).all(is_written));
                let collides = matches!(op, Op::BitAnd | Op::BitOr | Op::BitXor);
                assert!(collides || result != T::UNWRITTEN, "{op:?} of {ranks}");
            }
        }
    }

    #[test]
    fn reductions_are_exact_in_every_type() {
        reductions_are_exact::<f32>();
        reductions_are_exact::<f64>();
        reductions_are_exact::<bf16>();
        reductions_are_exact::<f16>();
        reductions_are_exact::<F8E4M3>();
        reductions_are_exact::<F8E5M2>();
        reductions_are_exact::<i8>();
        reductions_are_exact::<u8>();
        reductions_are_exact::<i32>();
        reductions_are_exact::<u32>();
        reductions_are_exact::<i64>();
        reductions_are_exact::<u64>();
    }

    #[test]
    fn maxima_and_roots_are_found() {
        let pattern = Pattern { op: Some(Op::Max), ranks: 5 };
        let maxima = pattern.values::<i32>(Origin::Reduced);
        for (kind, maximum) in maxima.into_iter().enumerate() {
            let given = (0..5).map(|rank| pattern.given::<i32>(kind, rank));
            assert_eq!(given.max(), Some(maximum));
        }
        let pattern = Pattern { op: None, ranks: 5 };
        assert_ne!(pattern.values::<f32>(Origin::Rank(3)), pattern.values::<f32>(Origin::Rank(1)));
    }

    fn piece(len: usize, index: usize, origin: Origin) -> [Piece; 1] {
        [Piece { place: 0..len, index, origin }]
    }

    #[test]
    fn every_wrong_element_counts() {
        let pattern = Pattern { op: None, ranks: 2 };
        let pieces = piece(1000, 0, Origin::Rank(0));
        let mut elements = vec![0.0; 1000];
        pattern.fill(&mut elements, &pieces);
        assert_eq!(pattern.wrong(&elements, &pieces), 0);
        elements[0] = f32::UNWRITTEN;
        elements[999] += 1.0;
        assert_eq!(pattern.wrong(&elements, &pieces), 2);
    }

    #[test]
    fn a_shifted_result_is_wrong_nearly_everywhere() {
        let pattern = Pattern { op: Some(Op::Sum), ranks: 4 };
        let mut elements = vec![0.0_f32; 1000];
        pattern.fill(&mut elements, &piece(1000, 1, Origin::Reduced));
        assert_eq!(pattern.wrong(&elements, &piece(1000, 1, Origin::Reduced)), 0);
        assert!(pattern.wrong(&elements, &piece(1000, 0, Origin::Reduced)) > 900);
    }
}
