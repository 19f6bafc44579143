//! Which pages a buffer lies in.

use std::fs;

/// Bytes of large pages in the mappings that hold `buffer`.
pub fn bytes_in_large_pages<T>(buffer: &[T]) -> usize {
    let range = buffer.as_ptr_range();
    let (start, end) = (range.start as usize, range.end as usize);
    let mut is_within = false;
    let mut bytes = 0;
    for line in fs::read_to_string("/proc/self/smaps").expect("own mappings").lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let address = |word| usize::from_str_radix(word, 16).ok();
        let ends = first.split_once('-').and_then(|(from, to)| address(from).zip(address(to)));
        if let Some((from, to)) = ends {
            is_within = from < end && start < to;
        } else if first == "AnonHugePages:" && is_within {
            let kib = words.next().and_then(|word| word.parse::<usize>().ok());
            bytes += kib.expect("a number of KiB") << 10;
        }
    }
    bytes
}
