//! Buffers of more than 4 GiB, where the memory of the machine allows them.

use half::bf16;
use ringtree::{Element, Op, Transports};
use ringtree_tests::ranks::{TRANSPORTS, on_ranks};

/// Of one buffer; what a number of 32 bits cannot count.
const BYTES: usize = 5 << 30;

const RANKS: usize = 2;

/// Elements after which the pattern begins again. No multiple of it is a power of two.
const PERIOD: usize = 251 * 4099;

/// Bytes of memory that could be had without swapping.
fn available_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").expect("Linux says what it has");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.expect("a number of kB") << 10
}

fn is_reduced<T: Element + PartialEq>(over: &[Transports], value: impl Fn(usize) -> T + Sync) {
    let needed_bytes = RANKS * BYTES + (2 << 30);
    if available_bytes() < needed_bytes {
        eprintln!("skipped: {needed_bytes} bytes of memory are not available");
        return;
    }
    for &transports in over {
        on_ranks(RANKS as u32, transports, |communicator| {
            let factor = communicator.rank() as usize + 1;
            let given: Vec<T> = (0..PERIOD).map(|index| value(factor * (index % 31))).collect();
            let wanted: Vec<T> = (0..PERIOD).map(|index| value(3 * (index % 31))).collect();
            let mut buffer = Vec::with_capacity(BYTES / size_of::<T>());
            while buffer.len() < buffer.capacity() {
                let more = PERIOD.min(buffer.capacity() - buffer.len());
                buffer.extend_from_slice(&given[..more]);
            }
            communicator.all_reduce(&mut buffer, Op::Sum).expect("an all-reduce");
            for (number, part) in buffer.chunks(PERIOD).enumerate() {
                assert!(part == &wanted[..part.len()], "part {number} over {transports}");
            }
        });
    }
}

/// Both in one test, so that their memory is not wanted at once.
#[test]
fn more_than_4_gib_are_reduced() {
    is_reduced::<u8>(&TRANSPORTS, |number| number as u8);
    is_reduced::<bf16>(&[Transports::Shm], |number| bf16::from_f32(number as f32));
}
