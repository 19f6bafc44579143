//! Which gradients travel together: a pure function of their lengths, of the order in which they become ready, and of
//! the sizes that buckets may have.

use std::ops::Range;

/// Gradients that are exchanged in one call: whole pieces, in the order in which they become ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its pieces, by their numbers.
    pub pieces: Vec<usize>,
    /// Where each piece begins in the bucket, in elements, and where the last one ends.
    pub starts: Vec<usize>,
}

impl Bucket {
    /// How many gradients it has.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Its pieces, and where each stands in it.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let ranges = self.starts.windows(2).map(|pair| pair[0]..pair[1]);
        self.pieces.iter().copied().zip(ranges)
    }
}

/// Cuts pieces of the given lengths, taken in the given order, into buckets that end as soon as they have
/// `bucket_elements`, the first one `first_elements`: one that travels early, and large ones that travel well (Li et al.,
/// "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020).
pub fn cut(
    lengths: &[usize],
    order: &[usize],
    first_elements: usize,
    bucket_elements: usize,
) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    let mut open = Bucket { pieces: Vec::new(), starts: vec![0] };
    for &piece in order {
        let end = open.len() + lengths[piece];
        open.pieces.push(piece);
        open.starts.push(end);
        let most = if buckets.is_empty() { first_elements } else { bucket_elements };
        if end >= most {
            buckets
                .push(std::mem::replace(&mut open, Bucket { pieces: Vec::new(), starts: vec![0] }));
        }
    }
    if !open.pieces.is_empty() {
        buckets.push(open);
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_end_once_they_have_enough_and_the_first_is_small() {
        let lengths = [10, 3, 20, 0, 5, 6];
        let buckets = cut(&lengths, &[5, 4, 3, 2, 1, 0], 6, 20);
        let pieces: Vec<_> = buckets.iter().map(|bucket| bucket.pieces.clone()).collect();
        assert_eq!(pieces, [vec![5], vec![4, 3, 2], vec![1, 0]]);
        assert_eq!(buckets[1].starts, [0, 5, 5, 25]);
        let ranges: Vec<_> = buckets[1].iter().collect();
        assert_eq!(ranges, [(4, 0..5), (3, 5..5), (2, 5..25)]);
    }

    #[test]
    fn every_piece_is_in_one_bucket_whatever_the_sizes() {
        let lengths = [7, 0, 1, 100, 3, 3];
        let order = [3, 0, 5, 1, 2, 4];
        for (first, most) in [(1, 1), (5, 9), (1000, 1000), (0, 0), (1, usize::MAX)] {
            let buckets = cut(&lengths, &order, first, most);
            let pieces: Vec<usize> = buckets.iter().flat_map(|b| b.pieces.clone()).collect();
            assert_eq!(pieces, order, "first {first}, then {most}");
            let total: usize = buckets.iter().map(Bucket::len).sum();
            assert_eq!(total, 114);
        }
    }
}
