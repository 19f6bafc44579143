//! Stream memory operations. Those without suffix are the first version's, which took the same arguments.

use crate::ffi::{In, entry_points};
use crate::stream::by_handle;
use crate::wait_value::{self, BatchOperation, Width};

entry_points! { Initialised:
    fn cuStreamWaitValue32(stream: usize, address: u64, value: u32, flags: u32) {
        wait_value::wait(&by_handle(stream)?, Width::Bits32, address, value as u64, flags)
    }

    fn cuStreamWaitValue32_v2(stream: usize, address: u64, value: u32, flags: u32) {
        wait_value::wait(&by_handle(stream)?, Width::Bits32, address, value as u64, flags)
    }

    fn cuStreamWaitValue64(stream: usize, address: u64, value: u64, flags: u32) {
        wait_value::wait(&by_handle(stream)?, Width::Bits64, address, value, flags)
    }

    fn cuStreamWaitValue64_v2(stream: usize, address: u64, value: u64, flags: u32) {
        wait_value::wait(&by_handle(stream)?, Width::Bits64, address, value, flags)
    }

    fn cuStreamWriteValue32(stream: usize, address: u64, value: u32, flags: u32) {
        wait_value::write(&by_handle(stream)?, Width::Bits32, address, value as u64, flags)
    }

    fn cuStreamWriteValue32_v2(stream: usize, address: u64, value: u32, flags: u32) {
        wait_value::write(&by_handle(stream)?, Width::Bits32, address, value as u64, flags)
    }

    fn cuStreamWriteValue64(stream: usize, address: u64, value: u64, flags: u32) {
        wait_value::write(&by_handle(stream)?, Width::Bits64, address, value, flags)
    }

    fn cuStreamWriteValue64_v2(stream: usize, address: u64, value: u64, flags: u32) {
        wait_value::write(&by_handle(stream)?, Width::Bits64, address, value, flags)
    }

    fn cuStreamBatchMemOp(stream: usize, count: u32, operations: In<BatchOperation>, flags: u32) {
        wait_value::batch(&by_handle(stream)?, &operations.copied(count as usize)?, flags)
    }

    fn cuStreamBatchMemOp_v2(
        stream: usize,
        count: u32,
        operations: In<BatchOperation>,
        flags: u32,
    ) {
        wait_value::batch(&by_handle(stream)?, &operations.copied(count as usize)?, flags)
    }
}
