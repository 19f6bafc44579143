//! The two ways in which the kernel writes sets of processors.

use crate::machine::CpuSet;

/// Higher numbers are no processors: Linux is built for 8,192 at most.
const MOST_CPUS: usize = 1 << 16;

/// Reads a list such as `0-3,8`. Empty for an empty one; `None` if it is none.
pub(super) fn list(text: &str) -> Option<CpuSet> {
    let mut set = CpuSet::default();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<usize>().ok()?);
        if last >= MOST_CPUS {
            return None;
        }
        (first..=last).for_each(|cpu| set.insert(cpu));
    }
    Some(set)
}

/// Reads a mask such as `00000000,0000ffff`: words of up to 32 bits in hexadecimal, the highest first.
pub(super) fn mask(text: &str) -> Option<CpuSet> {
    let mut set = CpuSet::default();
    for (i, word) in text.trim().rsplit(',').enumerate() {
        let bits = u32::from_str_radix(word.trim_start_matches("0x"), 16).ok()?;
        let cpus = (0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| 32 * i + bit);
        cpus.filter(|&cpu| cpu < MOST_CPUS).for_each(|cpu| set.insert(cpu));
    }
    Some(set)
}

/// The processors that are in both.
pub(super) fn common(a: &CpuSet, b: &CpuSet) -> CpuSet {
    a.iter().filter(|&cpu| b.contains(cpu)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_read() {
        assert_eq!(list("0-3,8,10-11\n").unwrap().to_string(), "0-3,8,10-11");
        assert!(list("").unwrap().is_empty());
        assert_eq!(
            mask("0000,00000011,11111111").unwrap().to_string(),
            "0,4,8,12,16,20,24,28,32,36"
        );
        assert_eq!(mask("0xf").unwrap().to_string(), "0-3");
        for nonsense in ["x", "0-", "0-4294967295", "-1"] {
            assert_eq!(list(nonsense), None, "{nonsense}");
        }
        assert_eq!(mask("fffffffff"), None);
    }
}
