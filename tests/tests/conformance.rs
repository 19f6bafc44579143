//! What every transport's links must do. Those over RDMA are tested here by a stand-in for libibverbs, and in a machine
//! that has devices (`tools/tests/rdma`).

ringtree_tests::conformance! {
    tcp tcp_several tcp_encrypted shm sim tcp_checked tcp_several_checked shm_checked sim_checked
    rdma_standin rdma_standin_rails rdma_standin_checked
}
