//! Figures that a program has taken several times, beside their bounds.

/// What was measured, each time.
#[derive(Clone, Debug)]
pub struct Figure {
    /// In words.
    pub what: &'static str,
    /// All that was seen.
    pub all_ms: Vec<f64>,
    /// What the median may be.
    pub bound_ms: f64,
}

impl Figure {
    /// Nothing has been seen yet.
    pub fn new(what: &'static str, bound_ms: f64) -> Figure {
        Figure { what, all_ms: Vec::new(), bound_ms }
    }
}

/// Prints median, highest and bound of each that was seen at all; whether all bounds are kept. Bounds are taken so many
/// times.
pub fn are_kept(figures: Vec<Figure>, factor: f64) -> bool {
    let mut kept = true;
    for Figure { what, mut all_ms, bound_ms } in figures {
        if all_ms.is_empty() {
            continue;
        }
        all_ms.sort_by(f64::total_cmp);
        let (median_ms, highest_ms) = (all_ms[all_ms.len() / 2], all_ms[all_ms.len() - 1]);
        let bound_ms = bound_ms * factor;
        kept &= median_ms <= bound_ms;
        println!("{what:64} {median_ms:8.1} {highest_ms:8.1}   bound {bound_ms:.0}");
    }
    kept
}
