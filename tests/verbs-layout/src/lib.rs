//! The transport's own declarations of libibverbs (`transport/src/rdma/ffi.rs`), compared with what bindgen
//! makes of rdma-core's header. A wrong offset or number there would corrupt memory without an error.
//!
//! Run with `cargo test --locked` in this folder. The build needs (Debian) cmake, libclang-dev,
//! libibverbs-dev, make, pkg-config and python3.
#![cfg(test)]

use std::io::Write;
use std::mem::{align_of, offset_of, size_of};
use std::process::{Command, Stdio};

use ibverbs_sys as verbs;

#[allow(dead_code)]
#[path = "../../../transport/src/rdma/error.rs"]
mod error;
#[allow(dead_code)]
#[path = "../../../transport/src/rdma/ffi.rs"]
mod ffi;

/// Each number of ours that is not theirs is a line of the failure.
#[derive(Default)]
struct Comparison {
    compared: Vec<&'static str>,
    wrong: Vec<String>,
}

impl Comparison {
    fn same<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, ours: T, theirs: T) {
        if ours != theirs {
            self.wrong.push(format!("{what} is {ours:?} here, {theirs:?} in verbs.h"));
        }
    }

    /// Fails on differences, and on items of `ffi.rs` (lines that begin with `keyword`) that were left out.
    fn finish(self, keyword: &str, not_of_the_header: &[&str]) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        let source = include_str!("../../../transport/src/rdma/ffi.rs");
        let names =
            source.lines().filter_map(|line| line.strip_prefix(keyword)?.split([':', ' ']).next());
        let mut declared: Vec<_> = names.filter(|name| !not_of_the_header.contains(name)).collect();
        let mut compared = self.compared;
        declared.sort_unstable();
        compared.sort_unstable();
        assert_eq!(compared, declared, "compared here, and declared in ffi.rs");
    }
}

/// The size of the field that `_field` names.
fn field_size<S, F>(_field: impl Fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// `whole`: size, alignment and fields. `start`: only the beginning is declared, since the library makes
/// these structures and we have no more than pointers to them: fields alone. `table`: as `whole`, but not
/// all fields are named. `a = b.c`: field `a` has the offset of what is called `b.c` in the header.
macro_rules! structure {
    ($to:ident, whole $ours:ident = $theirs:ident { $($fields:tt)* }) => {
        structure!($to, table $ours = $theirs { $($fields)* });
        structure!(@all $ours { $($fields)* });
    };
    ($to:ident, table $ours:ident = $theirs:ident { $($fields:tt)* }) => {
        let name = stringify!($ours);
        $to.same(&format!("size of {name}"), size_of::<ffi::$ours>(), size_of::<verbs::$theirs>());
        $to.same(&format!("alignment of {name}"), align_of::<ffi::$ours>(), align_of::<verbs::$theirs>());
        structure!(@fields $to $ours = $theirs { $($fields)* });
    };
    ($to:ident, start $ours:ident = $theirs:ident { $($fields:tt)* }) => {
        structure!(@fields $to $ours = $theirs { $($fields)* });
        structure!(@all $ours { $($fields)* });
    };
    (@fields $to:ident $ours:ident = $theirs:ident {
        $($field:ident $(= $first:ident $(.$more:ident)*)?),* $(,)?
    }) => {
        $to.compared.push(stringify!($ours));
        $(structure!(@field $to $ours $theirs $field $($first $(.$more)*)?);)*
    };
    (@field $to:ident $ours:ident $theirs:ident $field:ident) => {
        structure!(@field $to $ours $theirs $field $field);
        $to.same(
            concat!("size of ", stringify!($ours), ".", stringify!($field)),
            field_size(|value: &ffi::$ours| &value.$field),
            field_size(|value: &verbs::$theirs| &value.$field),
        );
    };
    (@field $to:ident $ours:ident $theirs:ident $field:ident $($path:ident).+) => {
        $to.same(
            concat!("offset of ", stringify!($ours), ".", stringify!($field)),
            offset_of!(ffi::$ours, $field),
            offset_of!(verbs::$theirs, $($path).+),
        );
    };
    // Does not compile when a field is left out.
    (@all $ours:ident { $($field:ident $(= $first:ident $(.$more:ident)*)?),* $(,)? }) => {
        let _ = |ffi::$ours { $($field: _),* }: ffi::$ours| {};
    };
}

#[test]
fn structures() {
    let mut to = Comparison::default();
    structure!(to, table ContextOps = ibv_context_ops { poll_cq, req_notify_cq, post_send, post_recv });
    structure!(to, start Context = ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors });
    structure!(to, whole CompletionChannel = ibv_comp_channel { context, fd, refcnt });
    structure!(to, start CompletionQueue = ibv_cq { context, channel, cq_context });
    structure!(to, start QueuePair = ibv_qp {
        context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num
    });
    structure!(to, whole MemoryRegion = ibv_mr { context, pd, addr, length, handle, lkey, rkey });
    structure!(to, whole Gid = ibv_gid { raw = raw });
    structure!(to, whole DeviceAttributes = ibv_device_attr {
        fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id, vendor_part_id, hw_ver,
        max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd,
        max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom, max_qp_init_rd_atom, max_ee_init_rd_atom,
        atomic_cap, max_ee, max_rdd, max_mw, max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp,
        max_mcast_qp_attach, max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq,
        max_srq_wr, max_srq_sge, max_pkeys, local_ca_ack_delay, phys_port_cnt
    });
    structure!(to, whole PortAttributes = ibv_port_attr {
        state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr,
        qkey_viol_cntr, pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout,
        init_type_reply, active_width, active_speed, phys_state, link_layer, flags, port_cap_flags2,
        active_speed_ex
    });
    structure!(to, whole QueuePairCapacity = ibv_qp_cap {
        max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data
    });
    structure!(to, whole QueuePairInit = ibv_qp_init_attr {
        qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all
    });
    structure!(to, whole GlobalRoute = ibv_global_route {
        dgid, flow_label, sgid_index, hop_limit, traffic_class
    });
    structure!(to, whole AddressHandle = ibv_ah_attr {
        grh, dlid, sl, src_path_bits, static_rate, is_global, port_num
    });
    structure!(to, whole QueuePairAttributes = ibv_qp_attr {
        qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
        qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index, en_sqd_async_notify,
        sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt,
        rnr_retry, alt_port_num, alt_timeout, rate_limit
    });
    structure!(to, whole ScatterGather = ibv_sge { addr, length, lkey });
    structure!(to, whole SendRequest = ibv_send_wr {
        wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data = __bindgen_anon_1.imm_data,
        remote_addr = wr.rdma.remote_addr, rkey = wr.rdma.rkey, unused_of_atomic = wr.atomic.swap,
        unused_of_xrc = qp_type.xrc.remote_srqn, unused_of_bind_and_tso = __bindgen_anon_2
    });
    structure!(to, whole ReceiveRequest = ibv_recv_wr { wr_id, next, sg_list, num_sge });
    // Its own test is below.
    to.compared.push("WorkCompletion");
    to.finish("pub struct ", &[]);
}

/// `ibv_wc`: ibverbs-sys has it not from bindgen but written by hand, with private fields. The C compiler
/// compares it with the installed header.
#[test]
fn work_completion() {
    let mut program = String::from("#include <stddef.h>\n#include <infiniband/verbs.h>\n");
    let mut same = |c: &str, ours: usize| {
        program += &format!("_Static_assert({c} == {ours}, \"WorkCompletion, {c}\");\n");
    };
    macro_rules! fields {
        ($($field:ident),*) => {
            $(
                let field = stringify!($field);
                let size = field_size(|value: &ffi::WorkCompletion| &value.$field);
                same(&format!("offsetof(struct ibv_wc, {field})"), offset_of!(ffi::WorkCompletion, $field));
                same(&format!("sizeof ((struct ibv_wc *)0)->{field}"), size);
            )*
            // Does not compile when a field is left out.
            let ffi::WorkCompletion { $($field: _),* } = ffi::WorkCompletion::default();
        };
    }
    fields! {
        wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags, pkey_index,
        slid, sl, dlid_path_bits
    }
    same("sizeof(struct ibv_wc)", size_of::<ffi::WorkCompletion>());
    same("_Alignof(struct ibv_wc)", align_of::<ffi::WorkCompletion>());

    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-xc", "-fsyntax-only", "-"]);
    compiler.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = compiler.spawn().expect("cc can be started");
    child.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Constants of `ffi.rs`, each with its name in the header, of which bindgen makes numbers in a module per
/// enumeration, or a number in a structure for what is combined by `|`.
macro_rules! constants {
    ($to:ident, $($ours:ident = $theirs:expr;)*) => {$(
        $to.compared.push(stringify!($ours));
        $to.same(stringify!($ours), i64::from(ffi::$ours), i64::from($theirs));
    )*};
}

#[test]
fn constants() {
    use verbs::{
        ibv_access_flags as access, ibv_port_state as port, ibv_qp_attr_mask as mask,
        ibv_qp_state as state, ibv_qp_type as kind, ibv_send_flags as send,
        ibv_wc_status as status, ibv_wr_opcode as opcode,
    };
    let mut to = Comparison::default();
    constants! { to,
        PORT_ACTIVE = port::IBV_PORT_ACTIVE;
        LINK_LAYER_ETHERNET = verbs::IBV_LINK_LAYER_ETHERNET;
        ACCESS_LOCAL_WRITE = access::IBV_ACCESS_LOCAL_WRITE.0;
        ACCESS_REMOTE_WRITE = access::IBV_ACCESS_REMOTE_WRITE.0;
        QPT_RC = kind::IBV_QPT_RC;
        QPS_INIT = state::IBV_QPS_INIT;
        QPS_RTR = state::IBV_QPS_RTR;
        QPS_RTS = state::IBV_QPS_RTS;
        QPS_ERR = state::IBV_QPS_ERR;
        QP_STATE = mask::IBV_QP_STATE.0;
        QP_ACCESS_FLAGS = mask::IBV_QP_ACCESS_FLAGS.0;
        QP_PKEY_INDEX = mask::IBV_QP_PKEY_INDEX.0;
        QP_PORT = mask::IBV_QP_PORT.0;
        QP_AV = mask::IBV_QP_AV.0;
        QP_PATH_MTU = mask::IBV_QP_PATH_MTU.0;
        QP_TIMEOUT = mask::IBV_QP_TIMEOUT.0;
        QP_RETRY_CNT = mask::IBV_QP_RETRY_CNT.0;
        QP_RNR_RETRY = mask::IBV_QP_RNR_RETRY.0;
        QP_RQ_PSN = mask::IBV_QP_RQ_PSN.0;
        QP_MAX_QP_RD_ATOMIC = mask::IBV_QP_MAX_QP_RD_ATOMIC.0;
        QP_MIN_RNR_TIMER = mask::IBV_QP_MIN_RNR_TIMER.0;
        QP_SQ_PSN = mask::IBV_QP_SQ_PSN.0;
        QP_MAX_DEST_RD_ATOMIC = mask::IBV_QP_MAX_DEST_RD_ATOMIC.0;
        QP_DEST_QPN = mask::IBV_QP_DEST_QPN.0;
        WR_RDMA_WRITE = opcode::IBV_WR_RDMA_WRITE;
        WR_RDMA_WRITE_WITH_IMM = opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
        SEND_SIGNALED = send::IBV_SEND_SIGNALED.0;
        SEND_INLINE = send::IBV_SEND_INLINE.0;
        WC_SUCCESS = status::IBV_WC_SUCCESS;
        WC_WR_FLUSH_ERR = status::IBV_WC_WR_FLUSH_ERR;
    }
    to.finish("pub const ", &[]);
}

/// The numbers that `error.rs` explains are those of the statuses it means; the others get what it says of
/// an unknown one.
#[test]
fn meanings_of_statuses() {
    use verbs::ibv_wc_status::*;
    let meanings = [
        (IBV_WC_LOC_LEN_ERR, "local length error"),
        (IBV_WC_LOC_QP_OP_ERR, "local queue pair operation error"),
        (IBV_WC_LOC_PROT_ERR, "local protection error"),
        (IBV_WC_WR_FLUSH_ERR, "the device has ended the queue pair"),
        (IBV_WC_BAD_RESP_ERR, "bad response"),
        (IBV_WC_LOC_ACCESS_ERR, "local access error"),
        (IBV_WC_REM_INV_REQ_ERR, "remote invalid request"),
        (IBV_WC_REM_ACCESS_ERR, "remote access error"),
        (IBV_WC_REM_OP_ERR, "remote operation error"),
        (IBV_WC_RETRY_EXC_ERR, "retries exceeded"),
        (IBV_WC_RNR_RETRY_EXC_ERR, "receiver-not-ready retries exceeded"),
        (IBV_WC_FATAL_ERR, "fatal error"),
        (IBV_WC_RESP_TIMEOUT_ERR, "response timeout"),
    ];
    let mut to = Comparison::default();
    for status in IBV_WC_SUCCESS..=IBV_WC_TM_RNDV_INCOMPLETE {
        let ours = error::meaning_of(status).split(':').next().unwrap();
        let theirs = meanings.iter().find(|meaning| meaning.0 == status).map(|meaning| meaning.1);
        to.same(&format!("status {status}"), ours, theirs.unwrap_or(error::meaning_of(u32::MAX)));
    }
    assert!(to.wrong.is_empty(), "{}", to.wrong.join("\n"));
}

/// Every function that is looked up is in the library as it is installed.
#[test]
fn functions() {
    let functions = ffi::Functions::load(c"libibverbs.so.1").unwrap();
    assert!(functions.reg_dmabuf_mr.is_some(), "the library has no ibv_reg_dmabuf_mr");
}
