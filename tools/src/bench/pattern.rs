//! Inputs whose sums are exact in every type and in whatever order they are added, so that every
//! element of a result can be compared with what it must be.

use half::bf16;
use ringtree::{DataType, Element, Op};

/// Elements are of one of so many kinds; the kind changes without a period from one to the next.
const KINDS: usize = 64;

/// An element type that the patterns are written in.
pub trait Patterned: Element {
    /// The number as an element; exact within [`exact_limit`].
    fn from_number(number: i64) -> Self;
}

macro_rules! patterned {
    ($type:ty, $number:ident => $element:expr) => {
        impl Patterned for $type {
            fn from_number($number: i64) -> Self {
                $element
            }
        }
    };
}

patterned!(f32, number => number as f32);
patterned!(f64, number => number as f64);
patterned!(bf16, number => bf16::from_f32(number as f32));
patterned!(i32, number => number as i32);

/// What a rank puts in, and what comes out.
pub struct Pattern<T> {
    inputs: [T; KINDS],
    results: [T; KINDS],
}

/// Where a result comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// From all ranks.
    Reduced(Op),
    /// From this one.
    From(u32),
}

impl<T: Patterned> Pattern<T> {
    /// The pattern of `rank` among `ranks`.
    pub fn new(rule: Rule, rank: u32, ranks: u32) -> Pattern<T> {
        let number = |kind: usize, rank: u32| number(T::DATA_TYPE, kind, rank, ranks);
        let result = |kind: usize| match rule {
            Rule::Reduced(Op::Sum) => (0..ranks).map(|rank| number(kind, rank)).sum(),
            Rule::Reduced(Op::Max) => {
                (0..ranks).map(|rank| number(kind, rank)).max().unwrap_or_default()
            }
            Rule::From(root) => number(kind, root),
        };
        Pattern {
            inputs: std::array::from_fn(|kind| T::from_number(number(kind, rank))),
            results: std::array::from_fn(|kind| T::from_number(result(kind))),
        }
    }

    /// Writes this rank's input.
    pub fn fill(&self, input: &mut [T]) {
        for (index, element) in input.iter_mut().enumerate() {
            *element = self.inputs[kind(index)];
        }
    }

    /// How many elements differ from the result.
    pub fn wrong(&self, output: &[T]) -> u64 {
        count_where(output, |index, element| element != self.results[kind(index)])
    }

    /// How many elements differ from what [`Pattern::fill`] wrote.
    pub fn altered(&self, input: &[T]) -> u64 {
        count_where(input, |index, element| element != self.inputs[kind(index)])
    }
}

/// What an element holds that nobody has written: equal to no input and no result.
pub fn unwritten<T: Patterned>() -> T {
    // Every input and result is a whole multiple of its kind's power of two, within its limit.
    T::from_number(-3 << 20)
}

fn count_where<T: Copy>(elements: &[T], differs: impl Fn(usize, T) -> bool) -> u64 {
    elements.iter().enumerate().filter(|&(index, &element)| differs(index, element)).count() as u64
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

/// All whole numbers up to this one are represented exactly, by themselves and times 16.
fn exact_limit(data_type: DataType) -> i64 {
    match data_type {
        DataType::F32 => 1 << 24,
        DataType::F64 => 1 << 53,
        DataType::Bf16 => 1 << 8,
        DataType::I32 => 1 << 26,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums_are_exact<T: Patterned + std::ops::Add<Output = T>>() {
        for ranks in [1, 2, 3, 7, 64, 255, 256, 257, 1000] {
            let patterns: Vec<Pattern<T>> =
                (0..ranks).map(|rank| Pattern::new(Rule::Reduced(Op::Sum), rank, ranks)).collect();
            for kind in 0..KINDS {
                let upwards = patterns.iter().map(|p| p.inputs[kind]).reduce(|a, b| a + b);
                let downwards = patterns.iter().rev().map(|p| p.inputs[kind]).reduce(|a, b| a + b);
                assert_eq!(upwards, Some(patterns[0].results[kind]), "{ranks} ranks");
                assert_eq!(downwards, upwards);
                assert_ne!(patterns[0].results[kind], unwritten());
            }
        }
    }

    #[test]
    fn sums_are_exact_in_every_type() {
        sums_are_exact::<f32>();
        sums_are_exact::<f64>();
        sums_are_exact::<bf16>();
        sums_are_exact::<i32>();
    }

    #[test]
    fn maxima_and_roots_are_found() {
        let patterns: Vec<Pattern<i32>> =
            (0..5).map(|rank| Pattern::new(Rule::Reduced(Op::Max), rank, 5)).collect();
        for kind in 0..KINDS {
            let largest = patterns.iter().map(|p| p.inputs[kind]).max();
            assert_eq!(largest, Some(patterns[0].results[kind]));
        }
        let root = Pattern::<f32>::new(Rule::From(3), 3, 5);
        let other = Pattern::<f32>::new(Rule::From(3), 1, 5);
        assert_eq!(root.inputs, other.results);
        assert_ne!(root.inputs, other.inputs);
    }

    #[test]
    fn every_wrong_element_counts() {
        let pattern = Pattern::<f32>::new(Rule::From(0), 0, 2);
        let mut elements = vec![0.0; 1000];
        pattern.fill(&mut elements);
        assert_eq!((pattern.wrong(&elements), pattern.altered(&elements)), (0, 0));
        elements[0] = unwritten();
        elements[999] += 1.0;
        assert_eq!((pattern.wrong(&elements), pattern.altered(&elements)), (2, 2));
    }

    #[test]
    fn a_shifted_result_is_wrong_nearly_everywhere() {
        let pattern = Pattern::<f32>::new(Rule::Reduced(Op::Sum), 0, 4);
        let mut elements = vec![0.0; 1001];
        elements.iter_mut().enumerate().for_each(|(i, e)| *e = pattern.results[kind(i)]);
        assert_eq!(pattern.wrong(&elements), 0);
        assert!(pattern.wrong(&elements[1..]) > 900);
    }
}
