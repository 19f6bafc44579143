//! Collectives on memory of GPUs that cannot be exported, as that of pools and of other libraries: peers' GPUs read
//! copies of it in memory that can, and nothing passes the host. On the stand-in for the CUDA driver or on real GPUs
//! (`tests/src/gpu.rs`).

use ringtree::device::{DeviceAddress, DeviceCounters, DevicePointer};
use ringtree::{Algorithm, Collective, Communicator, Op, Transports};
use ringtree_tests::gpu::{Gpu, alone, communicators, processes};
use ringtree_tests::gpu_checks::{bits, values};
use ringtree_tests::ranks::each;
use ringtree_transport::cuda::DeviceMemory;

/// Memory that the communicator does not know of.
struct Foreign(DeviceMemory, usize);

impl Foreign {
    fn new(gpu: &Gpu, elements: &[f32]) -> Foreign {
        let memory = DeviceMemory::alloc(&gpu.device, size_of_val(elements)).expect("memory");
        let from = elements.as_ptr().cast();
        // SAFETY: both are as long, and stay until the stream is through.
        let copied =
            unsafe { gpu.stream.copy_to_device(memory.address(), from, size_of_val(elements)) };
        copied.and_then(|()| gpu.stream.synchronize()).expect("a copy to the GPU");
        Foreign(memory, elements.len())
    }

    fn pointer(&self) -> DevicePointer<f32> {
        // SAFETY: the memory is as long, and each test waits for its calls before it drops it.
        unsafe { DevicePointer::new(self.address(), self.1) }
    }

    fn address(&self) -> DeviceAddress {
        self.0.address()
    }

    fn elements(&self, gpu: &Gpu) -> Vec<f32> {
        let mut elements = vec![0_f32; self.1];
        let into = elements.as_mut_ptr().cast();
        // SAFETY: both are as long, and stay until the stream is through.
        let copied = unsafe { gpu.stream.copy_to_host(into, self.address(), self.1 * 4) };
        copied.and_then(|()| gpu.stream.synchronize()).expect("a copy from the GPU");
        elements
    }
}

/// An all-reduce of foreign memory by an algorithm, whose result has the bits that the host gives. Returns what it
/// had this rank's GPU do.
fn all_reduce(
    communicator: &Communicator,
    gpu: &Gpu,
    algorithm: Algorithm,
    count: usize,
) -> DeviceCounters {
    let by = communicator.using(algorithm);
    let own = values::<f32>(1, communicator.rank(), count);
    let mut expected = own.clone();
    by.all_reduce(&mut expected, Op::Sum).expect("on the host");
    let foreign = Foreign::new(gpu, &own);
    let before = communicator.device_counters();
    let queued = by.on(&gpu.stream).all_reduce(&mut foreign.pointer(), Op::Sum);
    queued.and_then(|queued| queued.wait()).expect("on GPUs");
    let rank = communicator.rank();
    assert_eq!(bits(&foreign.elements(gpu)), bits(&expected), "{algorithm}, {count}, rank {rank}");
    communicator.device_counters().since(before)
}

/// All algorithms, of which nothing passes the host once all know that they reach each other.
fn check_algorithms(communicator: &Communicator, counts: &[usize]) {
    let gpu = Gpu::of(communicator);
    let serving = || Algorithm::ALL.into_iter().filter(|a| a.serves(Collective::AllReduce));
    // Those that exchange messages find out that they reach each other.
    for _ in 0..3 {
        for algorithm in serving() {
            all_reduce(communicator, &gpu, algorithm, 10_000);
        }
        communicator.barrier().expect("a barrier");
    }
    for algorithm in serving() {
        for &count in counts {
            let work = all_reduce(communicator, &gpu, algorithm, count);
            let host_bytes = work.from_host_bytes + work.to_host_bytes;
            assert_eq!(host_bytes, 0, "{algorithm}, {count}: {work:?}");
        }
    }
}

#[test]
fn foreign_memory_does_not_pass_the_host() {
    alone("foreign_memory_does_not_pass_the_host", &[], || {
        for ranks in 2..=4 {
            each(communicators(ranks, Transports::Shm), |communicator| {
                check_algorithms(&communicator, &[9_001, 200_003]);
            });
        }
    });
}

#[test]
fn foreign_memory_between_processes() {
    processes("foreign_memory_between_processes", 3, "shm", &[], |communicator| {
        check_algorithms(&communicator, &[60_001]);
    });
}

#[test]
fn foreign_memory_between_processes_without_handles() {
    let name = "foreign_memory_between_processes_without_handles";
    processes(name, 2, "shm", &[("NO_IPC", "open"), ("SCHEDULE", "random")], |communicator| {
        check_algorithms(&communicator, &[60_001]);
    });
}

/// Each byte is copied once before a peer reads it, as it is where memory is exported.
#[test]
fn foreign_memory_is_read_as_often_as_other_memory() {
    alone("foreign_memory_is_read_as_often_as_other_memory", &[], || {
        let (ranks, count) = (3_u32, 100_003);
        let works = each(communicators(ranks, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            for _ in 0..3 {
                all_reduce(&communicator, &gpu, Algorithm::Ring, count);
                communicator.barrier().expect("a barrier");
            }
            all_reduce(&communicator, &gpu, Algorithm::Ring, count)
        });
        let read: u64 = works.iter().map(|work| work.from_peers_bytes).sum();
        assert_eq!(read, 2 * u64::from(ranks - 1) * count as u64 * 4, "{works:?}");
    });
}

/// A message that is longer than what slots hold waits for its receiver, and does not pass the host; a shorter one
/// leaves before that, by the host's slots.
#[test]
fn messages_of_foreign_memory() {
    alone("messages_of_foreign_memory", &[], || {
        for transports in [Transports::Shm, Transports::Tcp] {
            each(communicators(2, transports), |communicator| {
                let gpu = Gpu::of(&communicator);
                all_reduce(&communicator, &gpu, Algorithm::Ring, 10_000);
                let on = communicator.on(&gpu.stream);
                let (rank, other) = (communicator.rank(), 1 - communicator.rank());
                for turn in 0..4 {
                    let mut last = DeviceCounters::default();
                    for count in [1, 30_000, 700_001] {
                        let mine = Foreign::new(&gpu, &values::<f32>(turn, rank, count));
                        let theirs = Foreign::new(&gpu, &vec![0.0; count]);
                        let before = communicator.device_counters();
                        let send = || on.send(&mine.pointer(), other).expect("a message");
                        let receive =
                            || on.receive(&mut theirs.pointer(), other).expect("a message");
                        let (first, second) =
                            if rank == 0 { (send(), receive()) } else { (receive(), send()) };
                        first.wait().and_then(|()| second.wait()).expect("both messages");
                        let expected = values::<f32>(turn, other, count);
                        assert_eq!(bits(&theirs.elements(&gpu)), bits(&expected), "{count}");
                        last = communicator.device_counters().since(before);
                    }
                    if turn == 3 && transports == Transports::Shm {
                        assert_eq!(last.to_host_bytes + last.from_host_bytes, 0, "{last:?}");
                    }
                }
            });
        }
    });
}
