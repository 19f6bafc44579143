//! RDMA for tests on machines without devices: the stand-in for libibverbs.

use std::ffi::c_void;
use std::path::PathBuf;

use ringtree_transport::rdma::{Rdma, RdmaConfig};

use crate::gpu::function_of;

/// The stand-in, which cargo puts beside this test.
pub fn stand_in() -> PathBuf {
    let test = std::env::current_exe().expect("this test's own file");
    let beside = test.with_file_name("libringtree_verbs_standin.so");
    assert!(beside.exists(), "{} is not there: build the whole workspace", beside.display());
    beside
}

/// Has this process use the stand-in.
pub fn open() {
    let library = Some(stand_in());
    Rdma::open(&RdmaConfig { library, ..RdmaConfig::default() }).expect("the stand-in's devices");
}

/// How many bytes of GPUs' memory this process's devices have sent, and written because they were sent to it.
pub fn dma_buf_bytes() -> (u64, u64) {
    let found = function_of(stand_in(), c"ringtree_verbs_standin_dma_buf_bytes");
    let (mut read, mut written) = (0, 0);
    // SAFETY: the function is as the stand-in's documentation says.
    unsafe {
        let function: extern "C" fn(*mut u64, *mut u64) =
            std::mem::transmute::<*mut c_void, _>(found);
        function(&raw mut read, &raw mut written);
    }
    (read, written)
}
