//! A stand-in for the CUDA driver (`libcuda.so.1`) over host memory, for tests on machines without a GPU.
//!
//! It executes the PTX that the library ships ([`ptx`]), and is as unforgiving as a real driver: the host cannot touch
//! device memory, fresh memory is full of a pattern, freed memory is illegal, streams run when they like, and misuse
//! gives the codes that it gives on a device. It says nothing about speed, about weak memory ordering, or about
//! the driver's compiler.
//!
//! # Use
//!
//! Load the library by its path before anything looks for `libcuda.so.1`: it has that name, so the loader gives it to
//! whoever asks for the driver later. `libringtree_cuda_standin.so` lies beside the test executables, in
//! `target/<profile>/deps`.
//!
//! # Settings
//!
//! Environment variables, each with the prefix `RINGTREE_STANDIN_`. A malformed one fails `cuInit` with a message.
//!
//! | Name | Default | Meaning |
//! |---|---|---|
//! | `DEVICES` | 2 | number of devices, 0 to 16 |
//! | `MEMORY_BYTES` | 1 GiB | memory of each device |
//! | `DRIVER_VERSION` | 12080 | what `cuDriverGetVersion` says; decides the newest PTX that loads |
//! | `COMPUTE_CAPABILITY` | 8.0 | of each device; decides the highest PTX target that loads |
//! | `NO_PEER` | none | pairs of devices without peer access, as `0-1,2-3`, or `all` |
//! | `LOST_PEER` | none | pairs of devices, or `all`, between which copies are lost without an error, as an IOMMU that is set up wrongly loses them |
//! | `NO_DMA_BUF` | 0 | 1: memory cannot be exported as a dma-buf |
//! | `REMOTE_WRITES` | ordered | what the device says of network adapters' writes in its memory: kernels find them (`ordered`), or once the host has flushed them (`flushed`), or never surely (`unordered`). They do always; flushes are counted |
//! | `NO_IPC` | 0 | 1: no legacy IPC; `open`: memory has handles, and no process opens another's, as between containers |
//! | `NO_VMM` | 0 | 1: no virtual memory management |
//! | `NO_READ_ONLY_REGISTRATION` | 0 | 1: memory that the process may only read cannot be registered |
//! | `NO_STREAM_MEMORY_OPS` | 0 | 1: streams cannot wait for and write values |
//! | `SCHEDULE` | adversarial | when work of streams runs: `adversarial`, `random`, `prompt` ([`settings::Schedule`]) |
//! | `BANDWIDTHS` | none | bytes a second, as `down=2e8,up=2e8,kernel=1e9`: copies and kernels take as long as their bytes do on a device's engines, of which each serves one after the other; streams run as by `prompt`. The work is really done within that time, so that it must be set low enough for that |
//! | `HOLD_MS` | 20 | how long the adversarial schedule holds back what nothing waits for |
//! | `SEED` | 1 | of the random delays, and of how threads of kernels interleave |
//! | `FAIL` | none | calls that fail: `cuMemAlloc_v2:3:2` is the third call with code 2; several by comma |
//!
//! # For tests in the same process
//!
//! The library exports these with the C ABI beside the driver's functions; [`Counters`] is their structure.
//!
//! | Function | |
//! |---|---|
//! | `int ringtree_standin_is_standin(void)` | 1; the real driver has no such symbol |
//! | `int ringtree_standin_configure(const char *key, const char *value)` | a setting by its name without prefix; `DEVICES` only before `cuInit` |
//! | `int ringtree_standin_counters(Counters *)` | what was done in this process |
//! | `uint64_t ringtree_standin_inside_ns(void)` | how long the calling thread has been in the driver's functions, in nanoseconds |
//! | `int ringtree_standin_reset_counters(void)` | zeroes all but the levels |

mod api;
mod code;
mod context;
mod copies;
mod counters;
mod device;
mod engines;
mod event;
mod faults;
mod ffi;
mod host_memory;
mod initialisation;
mod ipc;
mod kernel;
mod memory;
mod module;
pub mod ptx;
mod registry;
pub mod settings;
mod stream;
mod virtual_memory;
mod wait_value;

pub use counters::{Copies, Counters, Traffic};

/// Devices at most.
pub const MAX_DEVICES: usize = 16;

/// The index that stands for the host's memory among the homes of memory.
pub const HOST: usize = MAX_DEVICES;

/// How the names of memory files begin, by which other processes know them.
const FILE_NAME: &str = "ringtree-standin-";
