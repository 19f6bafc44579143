//! What every transport's links must do. Those over RDMA are tested in a machine that has such devices
//! (`tools/tests/rdma.rs`).

ringtree_tests::conformance! {
    tcp tcp_several tcp_encrypted shm sim tcp_checked tcp_several_checked shm_checked sim_checked
}
