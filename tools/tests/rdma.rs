//! RDMA on real verbs, in a machine that has devices: `tests/rdma-vm`, where cargo's runner takes this file.

ringtree_tests::conformance! { rdma rdma_rails }
