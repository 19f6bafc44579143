//! What can go wrong with a GPU, and what to do about it.

use std::path::PathBuf;

/// Why something on a GPU failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// There is no driver, or it cannot be used.
    #[error(
        "no CUDA driver: {library}: {reason}; install NVIDIA's driver (in a container, start it with the \
         GPUs passed in), or name its library with RINGTREE_CUDA_LIBRARY", library = .library.display()
    )]
    NoDriver {
        /// What was to be opened.
        library: PathBuf,
        /// What the dynamic linker or the driver said.
        reason: String,
    },
    /// Another library than the one that is open already was asked for.
    #[error(
        "{asked} cannot be opened: this process uses {open} as its CUDA driver, and there can be only one",
        asked = .asked.display(), open = .open.display()
    )]
    OtherDriver {
        /// What was asked for.
        asked: PathBuf,
        /// What is open.
        open: PathBuf,
    },
    /// There is no such device.
    #[error("there is no GPU {ordinal}: {}", how_many(*.count))]
    NoDevice {
        /// Which was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The device is too old for the kernels of the library.
    #[error(
        "GPU {ordinal} ({name}) has compute capability {}.{}: Ringtree's kernels need 7.5 or later; use another GPU, or \
         buffers on the host", .capability.0, .capability.1
    )]
    OldDevice {
        /// The device.
        ordinal: u32,
        /// What its maker calls it.
        name: String,
        /// What it has.
        capability: (u32, u32),
    },
    /// The driver is too old for what the library needs.
    #[error(
        "the CUDA driver is of version {}.{}: {needs}; update NVIDIA's driver", .version / 1000, .version % 1000 / 10
    )]
    OldDriver {
        /// As the driver says it: 1000 times the major and 10 times the minor version.
        version: i32,
        /// What it lacks.
        needs: String,
    },
    /// Memory of a GPU, or memory that it can reach, has run out.
    #[error("GPU {ordinal} has no room for {len_bytes} more bytes{}", free(*.free_bytes))]
    Memory {
        /// The device.
        ordinal: u32,
        /// How much was wanted.
        len_bytes: usize,
        /// How much was free, of device memory; `None` of pinned host memory.
        free_bytes: Option<usize>,
    },
    /// A call of the driver failed.
    #[error("{call} failed on GPU {ordinal}: {name} ({code}): {text}")]
    Driver {
        /// What was called.
        call: &'static str,
        /// The device.
        ordinal: u32,
        /// The driver's code.
        code: i32,
        /// Its name.
        name: String,
        /// What the driver says about it.
        text: String,
    },
    /// What was passed makes no sense.
    #[error("{0}")]
    Argument(String),
}

fn how_many(count: u32) -> String {
    match count {
        0 => "the driver finds none; see CUDA_VISIBLE_DEVICES, and in a container whether GPUs are passed in".into(),
        1 => "there is one, GPU 0".into(),
        _ => format!("there are {count}, GPU 0 to GPU {}", count - 1),
    }
}

fn free(free_bytes: Option<usize>) -> String {
    match free_bytes {
        Some(free_bytes) => {
            format!(": {free_bytes} are free; make the buffers smaller, or end what else uses it")
        }
        None => " of pinned host memory; see `ulimit -l` and the memory of the host".into(),
    }
}
