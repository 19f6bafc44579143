//! Which parts of a row of elements something has been said of.

use std::ops::Range;

/// Ranges that do not overlap, in ascending order; neighbours are one.
#[derive(Clone, Debug, Default)]
pub struct Covered(Vec<Range<usize>>);

impl Covered {
    /// Adds a range. Returns whether none of it was in here; if any was, nothing changes.
    pub fn insert(&mut self, range: Range<usize>) -> bool {
        if range.is_empty() {
            return true;
        }
        let at = self.0.partition_point(|other| other.end <= range.start);
        if self.0.get(at).is_some_and(|next| next.start < range.end) {
            return false;
        }
        let joins_last = at > 0 && self.0[at - 1].end == range.start;
        let joins_next = self.0.get(at).is_some_and(|next| next.start == range.end);
        match (joins_last, joins_next) {
            (true, true) => self.0[at - 1].end = self.0.remove(at).end,
            (true, false) => self.0[at - 1].end = range.end,
            (false, true) => self.0[at].start = range.start,
            (false, false) => self.0.insert(at, range),
        }
        true
    }

    /// Whether all of a range is in here.
    pub fn contains(&self, range: &Range<usize>) -> bool {
        let at = self.0.partition_point(|other| other.end < range.end);
        range.is_empty() || self.0.get(at).is_some_and(|around| around.start <= range.start)
    }

    /// What of the first `len` elements is not in here.
    pub fn gaps(&self, len: usize) -> Vec<Range<usize>> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|range| range.end));
        let ends = self.0.iter().map(|range| range.start).chain(std::iter::once(len));
        starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
    }

    /// Forgets all ranges.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_nothing_is_added_twice() {
        let mut covered = Covered::default();
        let all = 0..10;
        assert_eq!(covered.gaps(10), [all]);
        for (range, is_new) in [
            (4..6, true),
            (5..5, true),
            (5..7, false),
            (3..5, false),
            (0..10, false),
            (8..10, true),
            (6..8, true),
            (0..1, true),
        ] {
            assert_eq!(covered.insert(range.clone()), is_new, "{range:?}");
        }
        assert_eq!(covered.0, [0..1, 4..10]);
        assert_eq!(covered.gaps(12), [1..4, 10..12]);
        for (range, is_in) in [
            (0..1, true),
            (4..10, true),
            (5..6, true),
            (0..2, false),
            (3..5, false),
            (9..11, false),
            (7..7, true),
        ] {
            assert_eq!(covered.contains(&range), is_in, "{range:?}");
        }
        covered.clear();
        assert!(covered.gaps(0).is_empty());
    }
}
