//! Links without which the rings through all GPUs would be twice as fast.

use super::{Finding, Severity, add};
use crate::search::{explain_limits, narrowest_cut_bytes_per_s, rings};
use crate::{EdgeId, EdgeKind, Graph};

/// What the rings lose at least for a link to be a bottleneck.
const LEAST_GAIN: f64 = 2.0;

/// So many times as wide a link limits nothing.
const WIDENED: f64 = 1024.0;

/// Compares the rings with those that there would be if the links that limit them, and those back, did not.
pub(super) fn find(graph: &Graph, found: &mut Vec<Finding>) {
    let gpus = graph.gpus();
    let Ok(now) = rings(graph, &gpus) else { return };
    let mut limits = now.limits;
    // Links of GPUs are not to be widened; what a machine has of them it was bought with.
    limits.retain(|&id| is_shared(graph, id));
    if limits.is_empty() {
        return;
    }
    let mut wider = graph.clone();
    for id in limits.iter().flat_map(|id| [id.0, id.0 ^ 1]) {
        wider.edges[id as usize].bandwidth_bytes_per_s *= WIDENED;
    }
    let least_bytes_per_s = LEAST_GAIN * (1.0 - 1e-6) * now.total_bytes_per_s;
    // Where another cut is nearly as narrow, that tells it, and no rings need to be sought.
    if narrowest_cut_bytes_per_s(&wider, &gpus) < least_bytes_per_s {
        return;
    }
    let Ok(then) = rings(&wider, &gpus) else { return };
    if then.total_bytes_per_s < least_bytes_per_s {
        return;
    }
    let gigabytes = |bytes_per_s: f64| format!("{:.1} GB/s", bytes_per_s / 1e9);
    let message = format!(
        "{} limits them to {}; without that they would have {}",
        explain_limits(graph, &limits),
        gigabytes(now.total_bytes_per_s),
        gigabytes(then.total_bytes_per_s)
    );
    let socket = |&id: &EdgeId| matches!(graph.edge(id).kind, EdgeKind::Socket | EdgeKind::Die);
    let remedy = match limits.iter().any(socket) {
        true => {
            "keep jobs that need fewer GPUs inside one of the parts that this link joins; where GPUs have \
             links of their own, see whether some are missing"
        }
        false => {
            "see whether this link has all its lanes and its full speed, and whether devices below it could \
             be spread over other slots"
        }
    };
    add(found, Severity::Warning, "rings of all GPUs", message, remedy);
}

fn is_shared(graph: &Graph, id: EdgeId) -> bool {
    !matches!(graph.edge(id).kind, EdgeKind::NvLink | EdgeKind::Xgmi)
}
